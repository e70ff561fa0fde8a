from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.errors import BadInput
from loopwright.retraining.policy import AskPerson, Cause, Past, Policy, Run, Suppress, Trigger, decide

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
POLICY = Policy(cooldown=timedelta(days=2), runs_per_week=2, enough_labels=1000)
LOSS = Trigger(Cause.QUALITY_DROP, NOON, "quality:al_1:v1", "roc_auc fell", 5000, confirmed_loss=True)
DRIFT = Trigger(Cause.DRIFT, NOON, "drift:al_2:v1", "temp has moved")

moments = st.integers(-30 * 24, 0).map(lambda hours: NOON + timedelta(hours=hours))
pasts = st.lists(st.builds(Past, key=st.sampled_from(["a", "b", "quality:al_1:v1"]), at=moments), max_size=20)
triggers = st.builds(
    Trigger,
    cause=st.sampled_from([c for c in Cause if c is not Cause.PERSON]),
    at=st.just(NOON),
    key=st.sampled_from(["a", "c"]),
    story=st.just("told"),
    fresh_labels=st.integers(0, 5000),
    confirmed_loss=st.booleans(),
)


def test_a_confirmed_loss_trains() -> None:
    assert isinstance(decide(LOSS, (), POLICY), Run)


def test_a_broken_contract_never_trains() -> None:
    broken = replace(LOSS, cause=Cause.CONTRACT_BROKEN)
    assert isinstance(decide(broken, (), POLICY), AskPerson)


def test_drift_alone_is_evaluated_not_trained_on() -> None:
    decision = decide(replace(DRIFT, fresh_labels=999), (), POLICY)
    assert isinstance(decision, Suppress)
    assert decision.rule == "evaluate"
    assert "999 fresh labels of the 1,000" in decision.why


@pytest.mark.parametrize("evidence", [{"fresh_labels": 1000}, {"confirmed_loss": True}])
def test_drift_with_enough_labels_or_a_confirmed_loss_trains(evidence: dict[str, object]) -> None:
    assert isinstance(decide(replace(DRIFT, **evidence), (), POLICY), Run)


def test_the_same_cause_on_the_same_data_is_answered_once() -> None:
    earlier = Past(LOSS.key, NOON - timedelta(days=30))
    assert decide(LOSS, (earlier,), POLICY) == Suppress(
        "this cause on this data has been answered already", "answered"
    )


def test_a_run_two_hours_ago_cools_down() -> None:
    decision = decide(LOSS, (Past("other", NOON - timedelta(hours=2)),), POLICY)
    assert isinstance(decision, Suppress)
    assert "1d22h" in decision.why


def test_a_spent_budget_asks_a_person() -> None:
    past = (Past("a", NOON - timedelta(days=3)), Past("b", NOON - timedelta(days=6)))
    assert isinstance(decide(LOSS, past, POLICY), AskPerson)


def test_a_schedule_without_anything_new_does_not_train() -> None:
    due = Trigger(Cause.SCHEDULE, NOON, "schedule:1", "7d have passed")
    assert isinstance(decide(due, (), POLICY), Suppress)
    assert isinstance(decide(replace(due, fresh_labels=1), (), POLICY), Run)
    assert isinstance(decide(replace(due, new_data=True), (), POLICY), Run)


@given(pasts)
def test_a_persons_word_always_runs(past: list[Past]) -> None:
    assert isinstance(decide(replace(DRIFT, cause=Cause.PERSON), past, POLICY), Run)


@given(pasts, triggers)
def test_no_history_exceeds_the_weekly_budget(past: list[Past], trigger: Trigger) -> None:
    week = [each for each in past if trigger.at - each.at < timedelta(weeks=1)]
    if len(week) >= POLICY.runs_per_week:
        assert not isinstance(decide(trigger, past, POLICY), Run)


@given(pasts, triggers)
def test_no_run_falls_into_the_cooldown_and_the_order_of_history_does_not_matter(
    past: list[Past], trigger: Trigger
) -> None:
    decision = decide(trigger, past, POLICY)
    assert decision == decide(trigger, past[::-1], POLICY)
    if isinstance(decision, Run):
        assert all(trigger.at - each.at >= POLICY.cooldown for each in past)


def test_a_budget_of_nothing_is_refused_with_the_way_to_say_it() -> None:
    with pytest.raises(BadInput, match="remove the `retraining` section"):
        Policy(timedelta(), 0)
