"""The route table's pure parts: how a state becomes arms, and where a rollback may go."""

from datetime import UTC, datetime
from math import isclose

from hypothesis import given
from hypothesis import strategies as st

from loopwright.delivery.plan import Plan, Step, Strategy
from loopwright.delivery.rollout import Aborted, Canary, Paused, RolledBack, Shadow, Smoke, State
from loopwright.delivery.routes import arms, previous_versions

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)

moving = st.one_of(
    st.just(Shadow(NOON)),
    st.just(Smoke(NOON)),
    st.floats(0.0, 1.0, exclude_min=True).map(lambda weight: Canary(0, weight, NOON, NOON)),
)
states: st.SearchStrategy[State] = st.one_of(
    moving, moving.map(lambda inner: Paused(inner, NOON)), st.just(RolledBack("x")), st.just(Aborted("y"))
)


@given(state=states, share=st.floats(0.01, 1.0))
def test_one_stable_arm_and_the_answering_arms_sum_to_one(state: State, share: float) -> None:
    split = arms(Plan(shadow_share=share), state, version=2, baseline=1)
    answering = [arm for arm in split if arm.name != "shadow"]
    assert [arm.version for arm in split if arm.name == "stable"] == [1]
    assert isclose(sum(arm.weight for arm in answering), 1.0)


def test_a_shadow_gets_copies_and_takes_nothing_from_stable() -> None:
    split = {
        arm.name: arm.weight for arm in arms(Plan(shadow_share=0.3), Shadow(NOON), version=2, baseline=1)
    }
    assert split == {"stable": 1.0, "shadow": 0.3}


def test_green_is_loaded_before_it_gets_traffic() -> None:
    plan = Plan(strategy=Strategy.BLUE_GREEN, steps=(Step(1.0),))
    assert [(arm.version, arm.weight) for arm in arms(plan, Smoke(NOON), version=2, baseline=1)] == [
        (1, 1.0),
        (2, 0.0),
    ]


def test_rolling_back_twice_goes_further_back() -> None:
    assert previous_versions([(1, False), (2, False), (3, False)]) == [2, 1]
    assert previous_versions([(1, False), (2, False), (3, False), (2, True)]) == [1]
    assert previous_versions([(1, False), (2, False), (3, False), (2, True), (1, True)]) == []


def test_a_version_that_was_left_can_be_promoted_again() -> None:
    assert previous_versions([(1, False), (2, False), (1, True), (2, False)]) == [1]
    assert previous_versions([]) == []


@given(history=st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=20))
def test_a_rollback_never_stays_where_it_is_nor_names_a_version_twice(
    history: list[tuple[int, bool]],
) -> None:
    targets = previous_versions(history)
    assert len(set(targets)) == len(targets)
    assert not history or history[-1][0] not in targets
