"""Policies: what tiers ask, how a project's section and a new document are merged, and what is looser."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.actor import Role
from loopwright.kernel.errors import BadInput
from loopwright.kernel.stage import Stage
from loopwright.project.policy import TIERS
from loopwright.project.policy import Policy as Section
from loopwright.registry.freeze import window_of
from loopwright.registry.policies import builtin
from loopwright.registry.policy import Emergency, Policy, Rules, Wanted

STRICT = Policy()
DAY = timedelta(days=1)
YEAR_END = {"from": "2013-12-20T00:00:00Z", "until": "2014-01-06T00:00:00Z", "why": "year end"}
WEEKENDS = {"from": "17:00", "until": "08:00", "days": ["fri", "sat", "sun"], "zone": "Europe/Berlin"}


def section(**said: Any) -> dict[str, Any]:
    """A `policy:` section as a stored loop.yaml has it: every key, most of them saying nothing."""
    return Section.from_json({"tier": "high", **said}).model_dump(mode="json")


def wanted() -> st.SearchStrategy[tuple[Wanted, ...]]:
    ages = st.one_of(st.none(), st.integers(1, 400).map(lambda days: days * DAY))
    of = {
        kind: st.builds(
            Wanted,
            st.just(kind),
            ages,
            st.sampled_from(["version", "any"]),
            st.lists(st.sampled_from(["intended_use", "risks"]), unique=True).map(sorted).map(tuple)
            if kind == "card"
            else st.just(()),
        )
        for kind in ("card", "fairness", "gates")
    }
    kinds = st.lists(st.sampled_from(sorted(of)), unique=True).map(sorted)
    return kinds.flatmap(lambda chosen: st.tuples(*(of[kind] for kind in chosen)))


POLICIES = st.builds(
    Policy,
    tier=st.sampled_from(TIERS),
    staging=st.builds(Rules, st.integers(0, 5), wanted(), st.sampled_from([Role.DEVELOPER, Role.ADMIN])),
    production=st.builds(Rules, st.integers(0, 5), wanted(), st.sampled_from([Role.APPROVER, Role.ADMIN])),
    author_may_approve=st.booleans(),
    requester_may_approve=st.booleans(),
    approvals_expire=st.one_of(st.none(), st.integers(1, 60).map(lambda days: days * DAY)),
    freeze=st.lists(st.sampled_from([YEAR_END, WEEKENDS]), unique_by=str, max_size=2).map(
        lambda items: tuple(sorted((window_of(item) for item in items), key=lambda w: str(w.to_json())))
    ),
    emergency=st.builds(
        Emergency, st.booleans(), st.sampled_from([Role.APPROVER, Role.ADMIN]), st.just(DAY), st.booleans()
    ),
    retain=st.integers(1, 10).map(lambda years: years * 365 * DAY),
)


def test_the_strict_default_is_the_document_of_the_highest_tier() -> None:
    assert builtin("high") == STRICT


def test_every_tier_asks_for_less_than_the_one_above() -> None:
    assert builtin("low").looser_than(builtin("medium")) and builtin("medium").looser_than(builtin("high"))
    assert builtin("high").looser_than(builtin("medium")) == ()
    assert builtin("medium").looser_than(builtin("low")) == ()


def test_what_each_tier_asks_for_production() -> None:
    asked = {tier: builtin(tier).rules(Stage.PRODUCTION) for tier in TIERS}
    kinds = {tier: [one.kind for one in rules.evidence] for tier, rules in asked.items()}
    assert [asked[tier].approvals for tier in TIERS] == [1, 1, 2]
    assert kinds == {
        "low": ["gates"], "medium": ["card", "gates"], "high": ["card", "explainability", "fairness", "gates"],
    }  # fmt: skip
    assert builtin("low").author_may_approve and not builtin("medium").author_may_approve


def test_an_unknown_tier_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean `medium`"):
        builtin("mediun")


@given(POLICIES)
def test_a_policy_reads_back_from_its_json_with_the_same_digest(policy: Policy) -> None:
    assert Policy.from_json(policy.to_json()).to_json() == policy.to_json()
    assert Policy.from_json(policy.to_json()).digest == policy.digest


@given(POLICIES, POLICIES)
def test_the_stricter_of_two_is_looser_than_neither(one: Policy, other: Policy) -> None:
    both = one.stricter(other)
    assert both.looser_than(one) == () and both.looser_than(other) == ()
    assert one.stricter(one).to_json() == one.to_json()
    assert both.digest == other.stricter(one).digest


@given(POLICIES, POLICIES)
def test_a_section_without_waivers_never_loosens_its_document(document: Policy, said: Policy) -> None:
    merged = document.within({**said.to_json(), "tier": document.tier})
    assert merged.looser_than(document) == ()


@given(POLICIES, POLICIES)
def test_what_is_waived_is_all_that_gets_looser(document: Policy, said: Policy) -> None:
    asked = {**said.to_json(), "tier": document.tier}
    points = document.loosened_by(asked)
    assert len(document.within(asked, points).looser_than(document)) == len(points)
    assert document.within(asked, points).loosened_by(asked) == ()


@pytest.mark.parametrize(
    ("looser", "told"),
    [
        (replace(STRICT, tier="medium"), "tier medium instead of high"),
        (replace(STRICT, staging=replace(STRICT.staging, approvals=0)), "staging approvals 0 instead of 1"),
        (
            replace(STRICT, production=replace(STRICT.production, approvals=1)),
            "production approvals 1 instead of 2",
        ),
        (
            replace(STRICT, production=replace(STRICT.production, reviewer=Role.DEVELOPER)),
            "reviewers for production: role developer instead of approver",
        ),
        (replace(STRICT, author_may_approve=True), "authors may approve their own work"),
        (replace(STRICT, requester_may_approve=True), "requesters may approve their own requests"),
        (replace(STRICT, approvals_expire=None), "approvals expire after never instead of 2w"),
        (
            replace(STRICT, emergency=Emergency(role=Role.APPROVER)),
            "break the glass: role approver instead of admin",
        ),
        (
            replace(STRICT, emergency=Emergency(review_within=7 * DAY)),
            "review of an emergency within 1w instead of 3d",
        ),
        (replace(STRICT, emergency=Emergency(failed_gates=True)), "an emergency passes over failed gates"),
        (replace(STRICT, retain=DAY), "kept for 1d instead of 7y"),
        (replace(STRICT, staging=replace(STRICT.staging, evidence=())), "no evidence of gates for staging"),
        (
            replace(STRICT, staging=replace(STRICT.staging, evidence=(Wanted("gates", None, "version"),))),
            "gates for staging of any age instead of at most 90d old",
        ),
        (
            replace(STRICT, staging=replace(STRICT.staging, evidence=(Wanted("gates", 90 * DAY, "any"),))),
            "gates for staging on any snapshot",
        ),
    ],
)
def test_every_point_that_is_looser_is_told(looser: Policy, told: str) -> None:
    (point,) = looser.looser_than(STRICT)
    assert told in point
    assert STRICT.looser_than(looser) == ()


def test_a_dropped_section_of_the_card_and_a_dropped_freeze_are_looser() -> None:
    evidence = tuple(
        Wanted("card", sections=("risks",)) if w.kind == "card" else w for w in STRICT.production.evidence
    )
    fewer = replace(STRICT, production=replace(STRICT.production, evidence=evidence))
    assert "no section intended_use of the card for production" in fewer.looser_than(STRICT)
    icy = replace(STRICT, freeze=(window_of(YEAR_END),))
    assert STRICT.looser_than(icy) == ("no freeze from 2013-12-20T00:00:00Z until 2014-01-06T00:00:00Z",)


def test_glass_that_may_not_be_broken_is_stricter_than_glass_that_may() -> None:
    never = replace(STRICT, emergency=Emergency(allowed=False))
    assert STRICT.looser_than(never) == ("the glass may be broken",)


def test_a_section_tightens_and_adds() -> None:
    said = section(
        approvals={"production": 3}, freeze=[YEAR_END],
        evidence={"production": {"gates": {"max_age": "30d"}, "security": {}}},
    )  # fmt: skip
    merged = STRICT.within(said)
    assert merged.approvals(Stage.PRODUCTION) == 3 and len(merged.freeze) == 1
    asked = {one.kind: one for one in merged.production.evidence}
    assert asked["gates"] == Wanted("gates", 30 * DAY, "version") and "security" in asked and "card" in asked


def test_a_section_that_loosens_counts_only_where_it_is_waived() -> None:
    said = section(approvals={"production": 1}, author_may_approve=True)
    assert STRICT.loosened_by(said) == ("approvals.production", "author_may_approve")
    assert STRICT.within(said) == STRICT
    merged = STRICT.within(said, ["approvals.production"])
    assert merged.approvals(Stage.PRODUCTION) == 1 and not merged.author_may_approve


def test_a_new_document_replaces_what_it_says_and_keeps_the_rest() -> None:
    said = {"tier": "high", "approvals": {"production": 3}, "evidence": {"staging": {}}, "freeze": [WEEKENDS]}
    made = builtin("high").replaced_by(Section.from_json(said).to_json())
    assert made.approvals(Stage.PRODUCTION) == 3 and made.staging.evidence == () and len(made.freeze) == 1
    assert made.production.evidence == STRICT.production.evidence and made.retain == STRICT.retain


def test_what_a_section_leaves_out_stays_strict() -> None:
    assert Policy.from_json({}) == STRICT and STRICT.within(section()) == STRICT


def test_a_negative_number_of_approvals_is_refused() -> None:
    with pytest.raises(BadInput, match=r"policy\.approvals\.production"):
        replace(STRICT, production=Rules(-1))
