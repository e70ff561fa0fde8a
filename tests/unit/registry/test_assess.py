"""What a version lacks, and who may review it, decided from records alone."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import Conflict, Refused
from loopwright.kernel.stage import Stage
from loopwright.kernel.verdict import Verdict
from loopwright.registry.assess import Assessment, Overdue, Requirement, check_reviewer
from loopwright.registry.assess import assess as assess_at
from loopwright.registry.freeze import window_of
from loopwright.registry.policy import Policy, Promotion, Rules, Wanted
from loopwright.registry.records import Approval, Evidence, Version
from tests.governing import CARD

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
BYTES, OTHER = "a" * 64, "b" * 64
GATES = (Wanted("gates"),)
STRICT = Policy(staging=Rules(1, GATES), production=Rules(2, GATES))
"""The strictest about people; of evidence it wants the gates only."""


def version(bundle: str | None = BYTES, snapshot: str | None = "snap") -> Version:
    return Version("flights", 3, bundle, "run", snapshot, "1.2.0", Stage.NONE, "ana", NOON, 2)


def found(
    kind: str = "gates",
    verdict: Verdict = Verdict.PASS,
    bundle: str = BYTES,
    at: datetime = NOON,
    **payload: Any,
) -> Evidence:
    return Evidence("e" * 64, kind, "flights", None, bundle, verdict, payload, at)


def gates(verdict: Verdict = Verdict.PASS, bundle: str = BYTES, at: datetime = NOON) -> Evidence:
    return found("gates", verdict, bundle, at)


def yes(reviewer: str, bundle: str = BYTES, at: datetime = NOON, role: Role = Role.APPROVER) -> Approval:
    return Approval(reviewer, "approve", "", at, bundle, role)


def promotion(*approvals: Approval, policy: Policy = STRICT) -> Promotion:
    return Promotion(
        "pr_1", "flights", 3, Stage.PRODUCTION, BYTES, "bo", NOON, "better", "pending", None, policy, policy.digest,
        approvals,
    )  # fmt: skip


FULL = promotion(yes("cy"), yes("di"))


def assess(
    about: Version,
    asked: Promotion | None,
    evidence: list[Evidence],
    policy: Policy = STRICT,
    stage: Stage = Stage.PRODUCTION,
    now: datetime = NOON,
    overdue: Overdue | None = None,
) -> Assessment:
    return assess_at(about, asked, evidence, policy, stage, now=now, overdue=overdue)


def wanting(*wanted: Wanted) -> Policy:
    return replace(STRICT, production=Rules(2, wanted))


class TestEvidence:
    def test_two_approvals_and_passed_gates_satisfy_production(self) -> None:
        verdict = assess(version(), FULL, [gates()])
        assert verdict.satisfied and verdict.evidence == ("e" * 64,)

    def test_every_missing_thing_is_named_at_once(self) -> None:
        assert assess(version(), promotion(), []).missing == (
            "gates: no result is recorded for these bytes (aaaaaaaaaaaa)",
            "2 approvals by different people (0 of 2 given; not by the author ana or the requester bo)",
        )

    @pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.ERROR])
    def test_only_a_pass_is_a_pass(self, verdict: Verdict) -> None:
        judged = assess(version(), FULL, [gates(verdict)])
        assert judged.missing == (f"gates: the latest result is {verdict.value} (2013-07-01T12:00:00Z)",)

    def test_evidence_for_other_bytes_does_not_count(self) -> None:
        assert not assess(version(), FULL, [gates(bundle=OTHER)]).satisfied

    def test_the_latest_result_counts_even_when_an_earlier_one_passed(self) -> None:
        later = gates(Verdict.FAIL, at=NOON + timedelta(minutes=1))
        assert not assess(version(), FULL, [later, gates()]).satisfied

    def test_the_latest_is_the_last_recorded_whatever_the_clock_said(self) -> None:
        failed = replace(gates(Verdict.FAIL, at=NOON - DAY), seq=9)  # recorded after the clock was set back
        assert not assess(version(), FULL, [failed, replace(gates(), seq=8)]).satisfied

    def test_evidence_goes_stale(self) -> None:
        fresh = wanting(Wanted("gates", 30 * DAY))
        assert assess(version(), FULL, [gates()], fresh, now=NOON + 10 * DAY).satisfied
        later = assess(version(), FULL, [gates()], fresh, now=NOON + 31 * DAY)
        assert "gates: the latest result is of 2013-07-01T12:00:00Z, older than 30d" in later.missing

    def test_evidence_from_the_future_never_counts(self) -> None:
        ahead = [gates(at=NOON + timedelta(hours=1))]
        (lack,) = assess(version(), FULL, ahead).missing
        assert "dated 2013-07-01T13:00:00Z, after now" in lack and "clock" in lack
        assert assess(version(), FULL, [gates(at=NOON + timedelta(minutes=4))]).satisfied, (
            "clocks differ a little"
        )

    def test_what_was_measured_on_another_snapshot_does_not_count(self) -> None:
        on_its_own = wanting(Wanted("fairness", None, "version"))
        assert assess(version(), FULL, [found("fairness", snapshot="snap")], on_its_own).satisfied
        assert assess(version(), FULL, [found("fairness")], on_its_own).satisfied, (
            "it says nothing; the bytes are right"
        )
        (lack,) = assess(version(), FULL, [found("fairness", snapshot="other")], on_its_own).missing
        assert lack == "fairness: measured on snapshot other, not on the version's own"
        any_will_do = wanting(Wanted("fairness"))
        assert assess(version(), FULL, [found("fairness", snapshot="other")], any_will_do).satisfied

    def test_the_cards_sections_must_say_something(self) -> None:
        policy = wanting(Wanted("card", sections=("intended_use", "risks")))
        assert assess(version(), FULL, [found("card", sections=CARD)], policy).satisfied
        thin = {**CARD, "risks": "to be written"}
        (lack,) = assess(version(), FULL, [found("card", sections=thin)], policy).missing
        assert lack == "card: not filled: Risks"
        assert "Intended use, Risks" in str(
            assess(version(), FULL, [found("card", sections="no map")], policy)
        )

    def test_what_a_plain_client_registered_cannot_be_promoted_by_any_policy(self) -> None:
        nothing = Policy(staging=Rules(0, ()), production=Rules(0, ()))
        assert assess(version(bundle=None), None, [], nothing).missing[0].startswith("a sealed bundle")


class TestApprovals:
    def test_one_approval_leaves_one_missing(self) -> None:
        assert assess(version(), promotion(yes("cy")), [gates()]).missing == (
            "one approval more (1 of 2 given; not by the author ana or the requester bo)",
        )

    def test_without_a_request_the_request_is_missing(self) -> None:
        assert assess(version(), None, [gates()]).missing == (
            "a request for Production and 2 approvals by different people on it",
        )

    def test_approvals_for_other_bytes_do_not_count_and_are_mentioned(self) -> None:
        said = assess(version(), promotion(yes("cy"), yes("di", OTHER)), [gates()])
        assert "1 given for other bytes do not count" in said.missing[0]

    def test_approvals_expire_and_say_so(self) -> None:
        later = NOON + 15 * DAY
        (lack,) = assess(version(), promotion(yes("cy"), yes("di", at=later)), [gates()], now=later).missing
        assert (
            lack.startswith("one approval more") and "cy's of 2013-07-01T12:00:00Z expired after 2w" in lack
        )
        renewed = promotion(yes("cy"), yes("di", at=later), yes("cy", at=later))
        assert assess(version(), renewed, [gates()], now=later).satisfied

    def test_an_approval_from_the_future_does_not_count(self) -> None:
        said = promotion(yes("cy"), yes("di", at=NOON + DAY))
        assert (
            "di's is dated 2013-07-02T12:00:00Z, after now" in assess(version(), said, [gates()]).missing[0]
        )

    def test_a_policy_tightened_since_asks_again(self) -> None:
        tighter = replace(STRICT, production=Rules(2, GATES, Role.ADMIN))
        said = assess(version(), FULL, [gates()], tighter)
        assert "cy's was given as approver, not as admin" in said.missing[0]
        alone = replace(STRICT, author_may_approve=True, requester_may_approve=True)
        by_author = promotion(yes("ana"), yes("cy"), policy=alone)
        assert assess(version(), by_author, [gates()], alone).satisfied
        assert "ana's does not count: ana is the author" in assess(version(), by_author, [gates()]).missing[0]

    def test_a_policy_without_approvals_still_wants_the_gates(self) -> None:
        alone = replace(STRICT, staging=Rules(0, GATES))
        assert not assess(version(), None, [], alone, Stage.STAGING).satisfied
        assert assess(version(), None, [gates()], alone, Stage.STAGING).satisfied


class TestTimeAndReview:
    def test_a_freeze_keeps_what_is_complete_waiting(self) -> None:
        icy = replace(
            STRICT, freeze=(window_of({"from": "2013-06-30T00:00:00Z", "until": "2013-07-02T00:00:00Z"}),)
        )
        assert assess(version(), FULL, [gates()], icy).missing == ("frozen until 2013-07-02T00:00:00Z",)
        assert assess(version(), FULL, [gates()], icy, now=NOON + DAY).satisfied

    def test_an_overdue_review_of_the_model_stops_every_promotion(self) -> None:
        said = assess(version(), FULL, [gates()], overdue=Overdue(2, NOON - DAY))
        assert said.missing == (
            "the review of version 2, for which the glass was broken; it was due 2013-06-30T12:00:00Z",
        )


class TestNextStep:
    def test_the_cheapest_step_comes_first(self) -> None:
        strict = Policy()
        nothing = assess(version(), None, [], strict)
        assert nothing.cheapest is not None
        assert nothing.cheapest.next == "loopwright promote flights 3 --to production"
        asked = assess(version(), promotion(policy=strict), [gates()], strict)
        assert asked.cheapest is not None and asked.cheapest.next == "loopwright approve flights 3"
        agreed = assess(version(), FULL, [gates(), found("fairness"), found("explainability")], strict)
        assert agreed.cheapest is not None
        assert agreed.cheapest.next == "loopwright models document flights 3 card.md"
        assert agreed.to_json()["next"]["cost"] == "writing"

    def test_every_requirement_says_whether_it_is_met(self) -> None:
        said = assess(version(), promotion(yes("cy")), [gates()])
        assert [(each.kind, each.met) for each in said.requirements] == [
            ("seal", True), ("gates", True), ("approvals", False),
        ]  # fmt: skip
        assert all(isinstance(each, Requirement) and each.what and each.found for each in said.requirements)
        assert str(assess(version(), FULL, [gates()])) == "nothing is missing"


@given(
    approvals=st.lists(st.tuples(st.sampled_from("cdefg"), st.sampled_from([BYTES, OTHER])), max_size=8),
    verdicts=st.lists(st.tuples(st.sampled_from(Verdict), st.sampled_from([BYTES, OTHER])), max_size=4),
    needed=st.integers(0, 4),
)
def test_nothing_is_satisfied_without_enough_distinct_people_and_a_pass_on_these_bytes(
    approvals: list[tuple[str, str]], verdicts: list[tuple[Verdict, str]], needed: int
) -> None:
    policy = replace(STRICT, production=Rules(needed, GATES))
    evidence = [
        gates(verdict, bundle, NOON + timedelta(seconds=i)) for i, (verdict, bundle) in enumerate(verdicts)
    ]
    said = promotion(*(yes(name, bundle) for name, bundle in approvals), policy=policy)
    judged = assess(version(), said, evidence, policy)
    people = {name for name, bundle in approvals if bundle == BYTES}
    on_these = [verdict for verdict, bundle in verdicts if bundle == BYTES]
    assert judged.satisfied == (len(people) >= needed and bool(on_these) and on_these[-1] is Verdict.PASS)


def reviewer(name: str, role: Role = Role.APPROVER, service: bool = False) -> Actor:
    return Actor(name, role, service=service)


def check(who: Actor, about: Version, asked: Promotion, policy: Policy = STRICT, **more: Any) -> None:
    check_reviewer(who, about, asked, policy, **{"reviewed": None, "now": NOON, **more})


class TestReviewers:
    @pytest.mark.parametrize(
        ("who", "reason"),
        [
            (reviewer("ana"), "ana is the author"),
            (reviewer("bo"), "bo requested this promotion"),
            (reviewer("cy"), "cy has spoken on this promotion already"),
            (reviewer("di", Role.DEVELOPER), "wanted role approver"),
            (reviewer("ci-bot", service=True), "machines review nothing"),
        ],
    )
    def test_who_may_not_review_is_told_why(self, who: Actor, reason: str) -> None:
        with pytest.raises(Refused, match=reason):
            check(who, version(), promotion(yes("cy")))

    def test_the_role_on_the_model_is_what_counts(self) -> None:
        check(reviewer("di", Role.DEVELOPER), version(), promotion(), role=Role.APPROVER)
        with pytest.raises(Refused, match="wanted role admin or above"):
            check(
                reviewer("di"),
                version(),
                promotion(),
                replace(STRICT, production=Rules(2, GATES, Role.ADMIN)),
            )

    def test_whose_yes_has_expired_may_say_it_again(self) -> None:
        check(reviewer("cy"), version(), promotion(yes("cy")), now=NOON + 15 * DAY)

    def test_a_review_of_other_bytes_is_refused(self) -> None:
        with pytest.raises(Refused, match="other bytes"):
            check(reviewer("di"), version(), promotion(), reviewed=OTHER)
        with pytest.raises(Refused, match="other bytes"):
            check(reviewer("di"), version(OTHER), promotion())

    def test_a_decided_promotion_takes_no_more_words(self) -> None:
        with pytest.raises(Conflict, match="rejected already"):
            check(reviewer("di"), version(), replace(promotion(), state="rejected"))

    def test_a_lone_developer_may_approve_their_own_work_when_policy_says_so(self) -> None:
        alone = replace(STRICT, author_may_approve=True)
        check(reviewer("ana"), version(), promotion(policy=alone), alone, reviewed=BYTES)
        with pytest.raises(Refused, match="bo requested"):
            check(reviewer("bo"), version(), promotion(policy=alone), alone)
