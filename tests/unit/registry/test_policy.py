"""What a promotion needs, decided from records alone."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, Conflict, Refused
from loopwright.kernel.stage import Stage
from loopwright.kernel.verdict import Verdict
from loopwright.registry.policy import Policy, Promotion, assess, check_reviewer
from loopwright.registry.records import Approval, Evidence, Version

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
BYTES, OTHER = "a" * 64, "b" * 64
STRICT = Policy()


def version(bundle: str | None = BYTES) -> Version:
    return Version("flights", 3, bundle, "run", "snap", "1.2.0", Stage.NONE, "ana", NOON, 2)


def gates(verdict: Verdict = Verdict.PASS, bundle: str = BYTES, at: datetime = NOON) -> Evidence:
    return Evidence("e" * 64, "gates", "flights", None, bundle, verdict, {}, at)


def yes(reviewer: str, bundle: str = BYTES) -> Approval:
    return Approval(reviewer, "approve", "", NOON, bundle)


def promotion(*approvals: Approval, policy: Policy = STRICT) -> Promotion:
    return Promotion(
        "pr_1", "flights", 3, Stage.PRODUCTION, BYTES, "bo", NOON, "better", "pending", None, policy, policy.digest,
        approvals,
    )  # fmt: skip


def test_two_approvals_and_passed_gates_satisfy_production() -> None:
    verdict = assess(version(), promotion(yes("cy"), yes("di")), [gates()], STRICT, Stage.PRODUCTION)
    assert verdict.satisfied and verdict.evidence == ("e" * 64,)


def test_every_missing_thing_is_named_at_once() -> None:
    verdict = assess(version(), promotion(), [], STRICT, Stage.PRODUCTION)
    assert verdict.missing == (
        "gates: no result is recorded for these bytes (aaaaaaaaaaaa)",
        "2 approvals by different people (0 of 2 given; not by the author ana or the requester bo)",
    )


def test_one_approval_leaves_one_missing() -> None:
    verdict = assess(version(), promotion(yes("cy")), [gates()], STRICT, Stage.PRODUCTION)
    assert verdict.missing == ("one approval more (1 of 2 given; not by the author ana or the requester bo)",)


def test_without_a_request_the_request_is_missing() -> None:
    verdict = assess(version(), None, [gates()], STRICT, Stage.PRODUCTION)
    assert verdict.missing == ("a request for Production and 2 approvals by different people on it",)


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.ERROR])
def test_only_a_pass_is_a_pass(verdict: Verdict) -> None:
    judged = assess(version(), promotion(yes("cy"), yes("di")), [gates(verdict)], STRICT, Stage.PRODUCTION)
    assert judged.missing == (f"gates: the latest result is {verdict.value} (2013-07-01T12:00:00Z)",)


def test_evidence_for_other_bytes_does_not_count() -> None:
    full = promotion(yes("cy"), yes("di"))
    assert not assess(version(), full, [gates(bundle=OTHER)], STRICT, Stage.PRODUCTION).satisfied


def test_the_latest_gate_result_counts_even_when_an_earlier_one_passed() -> None:
    later = gates(Verdict.FAIL, at=NOON + timedelta(hours=1))
    full = promotion(yes("cy"), yes("di"))
    assert not assess(version(), full, [later, gates()], STRICT, Stage.PRODUCTION).satisfied


def test_approvals_for_other_bytes_do_not_count_and_are_mentioned() -> None:
    verdict = assess(version(), promotion(yes("cy"), yes("di", OTHER)), [gates()], STRICT, Stage.PRODUCTION)
    assert "1 given for other bytes do not count" in verdict.missing[0]


def test_what_a_plain_client_registered_cannot_be_promoted_by_any_policy() -> None:
    nothing = Policy(staging=0, production=0, required_evidence=())
    verdict = assess(version(bundle=None), None, [], nothing, Stage.PRODUCTION)
    assert verdict.missing[0].startswith("a sealed bundle")


def test_a_policy_without_approvals_still_wants_the_gates() -> None:
    alone = Policy(staging=0, production=0)
    assert not assess(version(), None, [], alone, Stage.STAGING).satisfied
    assert assess(version(), None, [gates()], alone, Stage.STAGING).satisfied


@given(
    approvals=st.lists(st.tuples(st.sampled_from("cdefg"), st.sampled_from([BYTES, OTHER])), max_size=8),
    verdicts=st.lists(st.tuples(st.sampled_from(Verdict), st.sampled_from([BYTES, OTHER])), max_size=4),
    needed=st.integers(0, 4),
)
def test_nothing_is_satisfied_without_enough_distinct_people_and_a_pass_on_these_bytes(
    approvals: list[tuple[str, str]], verdicts: list[tuple[Verdict, str]], needed: int
) -> None:
    policy = Policy(production=needed)
    evidence = [
        gates(verdict, bundle, NOON + timedelta(minutes=i)) for i, (verdict, bundle) in enumerate(verdicts)
    ]
    said = promotion(*(yes(name, bundle) for name, bundle in approvals), policy=policy)
    judged = assess(version(), said, evidence, policy, Stage.PRODUCTION)
    people = {name for name, bundle in approvals if bundle == BYTES}
    on_these = [verdict for verdict, bundle in verdicts if bundle == BYTES]
    assert judged.satisfied == (len(people) >= needed and bool(on_these) and on_these[-1] is Verdict.PASS)


def reviewer(name: str, role: Role = Role.APPROVER) -> Actor:
    return Actor(name, role)


@pytest.mark.parametrize(
    ("who", "error", "reason"),
    [
        (reviewer("ana"), Refused, "ana is the author"),
        (reviewer("bo"), Refused, "bo requested this promotion"),
        (reviewer("cy"), Refused, "cy has spoken on this promotion already"),
        (reviewer("di", Role.DEVELOPER), Refused, "wanted role approver"),
    ],
)
def test_who_may_not_review_is_told_why(who: Actor, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        check_reviewer(who, version(), promotion(yes("cy")), STRICT, reviewed=None)


def test_a_review_of_other_bytes_is_refused() -> None:
    with pytest.raises(Refused, match="other bytes"):
        check_reviewer(reviewer("di"), version(), promotion(), STRICT, reviewed=OTHER)
    with pytest.raises(Refused, match="other bytes"):
        check_reviewer(reviewer("di"), version(OTHER), promotion(), STRICT, reviewed=None)


def test_a_decided_promotion_takes_no_more_words() -> None:
    with pytest.raises(Conflict, match="rejected already"):
        check_reviewer(
            reviewer("di"), version(), replace(promotion(), state="rejected"), STRICT, reviewed=None
        )


def test_a_lone_developer_may_approve_their_own_work_when_policy_says_so() -> None:
    alone = Policy(production=1, author_may_approve=True)
    check_reviewer(reviewer("ana"), version(), promotion(policy=alone), alone, reviewed=BYTES)


@given(
    st.builds(
        Policy,
        tier=st.sampled_from(["low", "medium", "high"]),
        staging=st.integers(0, 5),
        production=st.integers(0, 5),
        author_may_approve=st.booleans(),
    )
)
def test_a_policy_reads_back_from_its_json_with_the_same_digest(policy: Policy) -> None:
    assert Policy.from_json(policy.to_json()) == policy
    assert Policy.from_json(policy.to_json()).digest == policy.digest


def test_what_a_project_leaves_out_stays_strict() -> None:
    assert Policy.from_json({}) == Policy(staging=1, production=2, author_may_approve=False)
    assert Policy.from_json({"approvals": {"production": 1}}).staging == 1


def test_a_negative_number_of_approvals_is_refused() -> None:
    with pytest.raises(BadInput, match=r"policy\.approvals\.production"):
        Policy(production=-1)
