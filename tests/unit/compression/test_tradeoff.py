import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.compression.tradeoff import Point, dominators, points
from loopwright.kernel.errors import BadInput
from tests.unit.compression.candidates import measured, skipped

# Few distinct values, so that ties and equal points are common.
places = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(-2, 4))
many = st.lists(places, max_size=30).map(
    lambda found: [Point(f"p{i}", size, latency, loss / 100) for i, (size, latency, loss) in enumerate(found)]
)


@given(many)
def test_the_front_is_what_comparing_every_pair_gives(found: list[Point]) -> None:
    values = np.array([one.place for one in found], dtype=float).reshape(-1, 3)
    no_worse = (values[:, None] <= values[None]).all(-1)
    better = (values[:, None] < values[None]).any(-1)
    expected = (no_worse & better).any(0)

    beaten = dominators(found)

    assert [bool(beaten[one.name]) for one in found] == expected.tolist()
    by_name = {one.name: one for one in found}
    for name, by in beaten.items():
        assert set(by) == {
            other.name for other in found if other.dominates(by_name[name]) and not beaten[other.name]
        }


@given(many, st.randoms())
def test_the_front_does_not_depend_on_the_order(found: list[Point], random: object) -> None:
    turned = list(found)
    random.shuffle(turned)  # type: ignore[attr-defined]
    assert dominators(turned) == dominators(found)


@given(many)
def test_domination_is_a_strict_order(found: list[Point]) -> None:
    for one, other in itertools.product(found, found):
        assert not (one.dominates(other) and other.dominates(one))
    assert not any(one.dominates(one) for one in found)


def test_equal_points_share_the_front() -> None:
    assert dominators([Point("a", 1, 1, 0), Point("b", 1, 1, 0), Point("c", 1, 2, 0)]) == {
        "a": (), "b": (), "c": ("a", "b"),
    }  # fmt: skip


def test_a_machine_that_was_busy_during_one_measurement_moves_no_point() -> None:
    calm = measured("calm", p50=2.0, original_p50=8.0)
    busy = measured("busy", p50=6.0, original_p50=24.0)
    usual = measured("usual", p50=8.0, original_p50=8.0)

    found = {one.name: one.latency for one in points([calm, busy, usual, skipped("never")])}

    assert found == {"calm": 2.0, "busy": 2.0, "usual": 8.0}


def test_the_parent_is_as_fast_as_itself_however_unsteady_the_machine_was() -> None:
    parent = measured("original", size=4_000_000, p50=5.0, original_p50=8.0)
    slower = measured("slower", size=1_000_000, p50=8.2, original_p50=8.0)
    faster = measured("faster", size=1_000_000, p50=7.8, original_p50=8.0)

    found = points([parent, slower, faster])

    assert [round(one.latency, 3) for one in found] == [8.0, 8.2, 7.8]
    assert dominators(found)["original"] == ("faster",)


def test_a_point_that_is_no_number_and_a_name_used_twice_are_refused() -> None:
    with pytest.raises(BadInput, match="without a place"):
        dominators([Point("a", 1, float("nan"), 0)])
    with pytest.raises(BadInput, match="two candidates of one name"):
        dominators([Point("a", 1, 1, 0), Point("a", 2, 1, 0)])
