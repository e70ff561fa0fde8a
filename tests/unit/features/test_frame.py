from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.features.frame import Frame
from loopwright.kernel.errors import BadInput

START = datetime(2013, 1, 1, tzinfo=UTC)


def frame(hours: list[int | None]) -> Frame:
    times = [None if hour is None else START + timedelta(hours=hour) for hour in hours]
    moment = pa.timestamp("us", "UTC")
    return Frame(
        pa.table({
            "_id": [f"row-{i}" for i in range(len(hours))],
            "_unit": pa.array(["u"] * len(hours)),
            "_event_time": pa.array(times, moment),
            "_label": pa.array([float(i % 2) for i in range(len(hours))], pa.float64()),
            "_label_at": pa.array(times, moment),
            "x": pa.array([None if i == 0 else float(i) for i in range(len(hours))], pa.float64()),
            "name": pa.array([None if i == 0 else "a" for i in range(len(hours))], pa.string()),
        }),
        {"x": "float64", "name": "string"},
    )  # fmt: skip


@given(hours=st.lists(st.integers(0, 30), min_size=1, max_size=60).map(sorted), share=st.floats(0.01, 0.99))
def test_a_split_keeps_every_row_and_never_parts_a_moment(hours: list[int], share: float) -> None:
    early, late = frame(hours).split(share)
    assert early.rows + late.rows == len(hours)
    assert late.rows > 0
    if early.rows:
        assert early.event_times().max() < late.event_times().min()


def test_a_split_by_time_cuts_off_the_last_span() -> None:
    early, late = frame(list(range(48))).split(timedelta(hours=10))
    assert (early.rows, late.rows) == (38, 10)


@given(total=st.integers(20, 200))
def test_without_time_a_row_stays_on_its_side_of_a_split(total: int) -> None:
    chosen = set(frame([None] * total).split(0.3)[1].ids())
    again = set(frame([None] * total).split(0.3)[1].ids())
    assert chosen == again
    assert len(chosen) == total - int(np.ceil(total * 0.7))


def test_without_time_a_span_cannot_be_held_out() -> None:
    with pytest.raises(BadInput, match="span of time"):
        frame([None, None]).split(timedelta(days=1))


def test_a_share_outside_zero_and_one_is_refused() -> None:
    with pytest.raises(BadInput, match="share"):
        frame([1, 2]).split(1.5)


def test_a_slice_holds_its_start_and_not_its_end() -> None:
    part = frame(list(range(10))).slice(START + timedelta(hours=2), START + timedelta(hours=5))
    assert part.ids().tolist() == ["row-2", "row-3", "row-4"]


def test_nulls_are_nan_in_numbers_and_none_in_text() -> None:
    inputs = frame([1, 2]).inputs()
    np.testing.assert_array_equal(inputs["x"], [np.nan, 1.0])
    assert inputs["name"].tolist() == [None, "a"]
    assert inputs["name"].dtype == object


def test_rows_can_be_taken_by_mask_or_by_position() -> None:
    rows = frame(list(range(4)))
    assert rows.take(np.array([True, False, False, True])).ids().tolist() == ["row-0", "row-3"]
    assert rows.take(np.array([2, 1])).ids().tolist() == ["row-2", "row-1"]


def test_whole_numbers_that_a_float_cannot_hold_are_refused_by_name() -> None:
    rows = pa.table({"n": pa.array([1, -(2**53) - 1, None], pa.int64()), "m": pa.array([2**53, 0, None])})
    held = Frame(rows, {"n": "int64", "m": "int64"})
    with pytest.raises(BadInput, match=r"`n`.*got -9007199254740993, wanted at most .*2\^53.*string"):
        held.inputs()
    assert Frame(rows, {"m": "int64"}).inputs()["m"][0] == 2**53
