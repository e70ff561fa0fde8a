"""Where a rollout goes next: promises that hold for every sequence of evidence."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.delivery.judge import ArmCounts, Limits
from loopwright.delivery.plan import Plan, Require, Step, Strategy
from loopwright.delivery.rollout import (
    Aborted,
    Active,
    Canary,
    Done,
    Ended,
    Evidence,
    Paused,
    RolledBack,
    Shadow,
    Smoke,
    State,
    abort,
    advance,
    begin,
    canary_weight,
    pause,
    promote,
    resume,
    state_from_json,
    state_to_json,
)
from loopwright.kernel.errors import BadInput, Conflict
from loopwright.kernel.verdict import Verdict
from loopwright.stats.histogram import LatencyHistogram

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
PLAN = Plan(
    shadow_first=HOUR,
    steps=(Step(0.01, HOUR), Step(0.05, 4 * HOUR), Step(0.25, 24 * HOUR, Require.PASS), Step(1.0)),
)


def arm(n: int, errors: int = 0) -> ArmCounts:
    latency = LatencyHistogram()
    latency.add(np.full(n, 200.0))
    return ArmCounts(n, errors, latency)


def seen(candidate: int, errors: int = 0, stable: int = 5_000) -> Evidence:
    return Evidence(baseline=arm(stable), candidate=arm(candidate, errors))


HARM = seen(200, errors=60)


def canary(step: int, seen: int = 0) -> Canary:
    return Canary(step, PLAN.steps[step].weight, since=NOON, began=NOON, seen=seen)


def test_a_first_version_takes_all_traffic_at_once() -> None:
    assert begin(PLAN, baseline=None, event_time=NOON) == Done()


def test_shadow_comes_first_and_gives_no_traffic() -> None:
    state = begin(PLAN, baseline=1, event_time=NOON)
    assert state == Shadow(NOON)
    assert canary_weight(state) == 0.0


def test_a_hold_runs_in_event_time() -> None:
    early = advance(PLAN, canary(0), seen(500), NOON + timedelta(minutes=59))
    assert not early.changed
    assert early.why.endswith("holding until event time 2013-07-01T13:00:00Z")
    assert advance(PLAN, canary(0), seen(500), NOON).why == early.why
    assert advance(PLAN, canary(0), seen(500), NOON + HOUR).state == Canary(1, 0.05, NOON + HOUR, NOON, 500)


def test_no_harm_waits_for_a_minimum_of_requests_in_this_step() -> None:
    late = NOON + 48 * HOUR
    assert not advance(PLAN, canary(0), seen(19), late).changed
    assert advance(PLAN, canary(0), seen(20), late).changed
    # 500 requests answered before the step began say nothing about it.
    waiting = advance(PLAN, canary(1, seen=500), seen(519), late)
    assert not waiting.changed
    assert "19 of the 20 requests" in waiting.why


def test_the_step_that_requires_pass_holds_while_the_judge_is_undecided() -> None:
    waiting = advance(PLAN, canary(2), seen(500), NOON + 48 * HOUR)
    assert not waiting.changed
    assert "needs PASS, is INCONCLUSIVE" in waiting.why
    assert advance(PLAN, canary(2), seen(8_000, stable=30_000), NOON + 48 * HOUR).state == Done()


def test_the_same_evidence_never_advances_two_steps() -> None:
    hasty = Plan(steps=(Step(0.1), Step(0.2), Step(1.0)))
    start = begin(hasty, baseline=1, event_time=NOON)
    assert not isinstance(start, Ended)
    once = advance(hasty, start, seen(50), NOON)
    assert once.changed
    assert not isinstance(once.state, Ended)
    again = advance(hasty, once.state, seen(50), NOON)
    assert not again.changed
    assert again.state == once.state


def test_harm_in_shadow_ends_the_rollout_before_any_user_is_asked() -> None:
    move = advance(PLAN, Shadow(NOON), HARM, NOON)
    assert isinstance(move.state, RolledBack)
    assert "60 errors in 200" in move.why


def test_a_pause_stops_progress_and_harm_still_rolls_back() -> None:
    paused = pause(canary(0), NOON)
    assert not advance(PLAN, paused, seen(500), NOON + 9 * HOUR).changed
    assert isinstance(advance(PLAN, paused, HARM, NOON).state, RolledBack)


def test_time_paused_does_not_count_towards_the_hold() -> None:
    back = resume(pause(canary(0), NOON + HOUR / 2), NOON + 10 * HOUR)
    assert not advance(PLAN, back, seen(500), NOON + 10 * HOUR).changed
    assert advance(PLAN, back, seen(500), NOON + 10.5 * HOUR).changed


def test_blue_green_switches_everything_at_once_after_its_smoke_test() -> None:
    plan = Plan(strategy=Strategy.BLUE_GREEN, steps=(Step(1.0, HOUR),))
    state = begin(plan, baseline=1, event_time=NOON)
    assert state == Smoke(NOON)
    assert not advance(plan, Smoke(NOON), Evidence(), NOON).changed
    assert isinstance(advance(plan, Smoke(NOON), Evidence(smoke=Verdict.FAIL), NOON).state, RolledBack)
    assert isinstance(advance(plan, Smoke(NOON), Evidence(smoke=Verdict.ERROR), NOON).state, RolledBack)
    baking = advance(plan, Smoke(NOON), Evidence(smoke=Verdict.PASS), NOON).state
    assert baking == Canary(0, 1.0, NOON, NOON, 0)
    assert isinstance(baking, Canary)
    assert advance(plan, baking, seen(30), NOON + HOUR).state == Done()


def test_a_shadow_rollout_waits_for_a_person() -> None:
    plan = Plan(strategy=Strategy.SHADOW, shadow_first=HOUR)
    state = begin(plan, baseline=1, event_time=NOON)
    assert isinstance(state, Shadow)
    move = advance(plan, state, seen(100_000, stable=100_000), NOON + 1000 * HOUR)
    assert not move.changed
    assert "promote or abort" in move.why
    assert promote(plan, state, seen(50))[0] == Done()


def test_a_person_cannot_promote_what_the_judge_fails() -> None:
    with pytest.raises(Conflict, match="judge says FAIL"):
        promote(PLAN, canary(1), HARM)


def test_an_ended_rollout_takes_no_commands() -> None:
    for ended in (Done(), RolledBack("x"), Aborted("y")):
        with pytest.raises(Conflict):
            advance(PLAN, ended, seen(1), NOON)
        with pytest.raises(Conflict):
            abort(ended, "why")
        with pytest.raises(Conflict):
            pause(ended, NOON)
        with pytest.raises(Conflict):
            promote(PLAN, ended, seen(1))
    with pytest.raises(Conflict):
        resume(canary(0), NOON)


def test_a_rollout_begun_before_a_replay_holds_in_the_replays_time() -> None:
    wall = datetime(2026, 1, 1, tzinfo=UTC)
    first = advance(PLAN, Shadow(wall), seen(1), NOON)
    assert first.state == Shadow(NOON)
    assert not first.changed
    assert isinstance(first.state, Shadow)
    assert isinstance(advance(PLAN, first.state, seen(30), NOON + HOUR).state, Canary)


@pytest.mark.parametrize("weights", [(), (0.1,), (0.1, 0.1, 1.0), (0.5, 0.2, 1.0)])
def test_a_plan_grows_to_all_traffic_or_is_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(BadInput):
        Plan(steps=tuple(Step(weight) for weight in weights))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    weights = [*sorted(draw(st.sets(st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.5]), max_size=4))), 1.0]
    steps = tuple(
        Step(w, timedelta(hours=draw(st.integers(0, 3))), draw(st.sampled_from(list(Require))))
        for w in weights
    )
    return Plan(
        strategy=draw(st.sampled_from(list(Strategy))),
        shadow_first=timedelta(hours=draw(st.integers(0, 2))),
        steps=steps,
        limits=Limits(latency_p99=draw(st.sampled_from([None, 1.5]))),
        min_requests=draw(st.integers(1, 30)),
    )


@st.composite
def evidences(draw: st.DrawFn) -> Evidence:
    candidate = draw(st.sampled_from([0, 1, 15, 40, 300, 6_000]))
    errors = draw(st.sampled_from([0, 0, 0, 0, 1, candidate // 10]))
    return Evidence(
        baseline=arm(draw(st.sampled_from([0, 20, 400, 20_000]))),
        candidate=arm(candidate, min(errors, candidate)),
        smoke=draw(st.sampled_from([None, Verdict.PASS, Verdict.PASS, Verdict.FAIL])),
    )


clocks = st.lists(st.integers(-2, 12), max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    plan=plans(),
    evidence=st.lists(evidences(), max_size=12),
    hours=clocks,
    acts=st.lists(st.sampled_from("....pr"), max_size=12),
)
def test_weights_only_grow_until_an_end_and_never_after_a_fail(
    plan: Plan, evidence: list[Evidence], hours: list[int], acts: list[str]
) -> None:
    state: State = begin(plan, baseline=1, event_time=NOON)
    now = NOON
    for item, step, act in zip(evidence, hours, acts, strict=False):
        if isinstance(state, Ended):
            break
        now += step * HOUR
        before: Active = state
        move = advance(plan, before, item, now)
        assert advance(plan, before, item, now) == move
        assert move.judgement is not None
        if move.judgement.verdict is Verdict.FAIL:
            assert isinstance(move.state, RolledBack)
            assert canary_weight(move.state) == 0.0
        else:
            assert canary_weight(move.state) >= canary_weight(before)
        assert move.changed or canary_weight(move.state) == canary_weight(before)
        state = move.state
        if act == "p" and not isinstance(state, Ended | Paused):
            state = pause(state, now)
        elif act == "r" and isinstance(state, Paused):
            state = resume(state, now)


@settings(max_examples=100, deadline=None)
@given(plan=plans())
def test_plans_and_states_survive_json(plan: Plan) -> None:
    assert Plan.from_json(plan.to_json()) == plan
    for state in (
        Shadow(NOON),
        Smoke(NOON),
        canary(1, 7),
        Paused(canary(0), NOON),
        Done(),
        RolledBack("a"),
        Aborted("b"),
    ):
        assert state_from_json(state_to_json(state)) == state
