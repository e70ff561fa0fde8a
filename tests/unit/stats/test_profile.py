import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.errors import BadInput
from loopwright.stats.profile import EMPTY, Counts, Reference, build_reference

RNG = np.random.default_rng(11)
TRAINING = {
    "distance": RNG.gamma(2, 500, 5000),
    "precip": np.where(RNG.random(5000) < 0.9, 0.0, RNG.random(5000)),
    "month": RNG.integers(1, 4, 5000),
    "carrier": RNG.choice(np.array(["UA", "B6", "AA", None], dtype=object), 5000),
    "@prediction": RNG.random(5000),
}
REFERENCE = build_reference(TRAINING)

numbers = st.lists(st.one_of(st.floats(), st.just(float("nan"))), max_size=30)
words = st.lists(st.one_of(st.none(), st.sampled_from(["UA", "B6", "ZZ", "HA"])), max_size=30)


def rows(draw_numbers: list[float], draw_words: list[str | None]) -> dict[str, np.ndarray]:
    n = min(len(draw_numbers), len(draw_words))
    column = np.array(draw_numbers[:n], dtype=float)
    return {
        "distance": column,
        "precip": column,
        "month": column,
        "carrier": np.array([*draw_words[:n], None], dtype=object)[:n],
        "@prediction": column,
    }


def test_every_row_falls_in_exactly_one_slot() -> None:
    for counts in REFERENCE.counts.columns.values():
        assert counts.sum() == REFERENCE.rows == 5000


def test_quantile_bins_hold_equal_shares_and_the_ends_are_open() -> None:
    counts = REFERENCE.counts.columns["distance"][1:]
    assert len(counts) == 20
    assert counts.min() > 240
    assert counts.max() < 260
    far = REFERENCE.bins["distance"].count("distance", np.array([-1e9, np.inf, -np.inf, 1e12]))
    assert far[1] == 2
    assert far[-1] == 2


def test_a_value_that_fills_a_bin_alone_is_told_from_what_lies_around_it() -> None:
    bins = REFERENCE.bins["precip"]
    below, at, above = (bins.count("precip", np.array([x])) for x in (-0.001, 0.0, 0.001))
    assert not np.array_equal(below, at)
    assert not np.array_equal(at, above)


def test_a_constant_column_notices_any_other_value() -> None:
    reference = build_reference({"gate": np.full(100, 5.0)})
    same, less, more = (reference.count({"gate": np.array([x])}).columns["gate"] for x in (5.0, 4.0, 6.0))
    assert np.argmax(same) == np.argmax(reference.counts.columns["gate"])
    assert len({int(np.argmax(c)) for c in (same, less, more)}) == 3


def test_rare_known_values_are_other_and_unseen_ones_novel() -> None:
    values = np.array(["a"] * 50 + ["b"] * 30 + ["c"], dtype=object)
    reference = build_reference({"x": values}, top=2)
    counted = reference.count({"x": np.array(["a", "c", "never", None], dtype=object)})
    assert dict(zip(reference.bins["x"].names, counted.columns["x"].tolist(), strict=True)) == {
        "null": 1, "a": 1, "b": 0, "OTHER": 1, "NOVEL": 1,
    }  # fmt: skip


def test_objects_that_are_all_numbers_are_numeric_and_none_is_null() -> None:
    reference = build_reference({"x": np.array([1.5, None, 2.5, float("nan")], dtype=object)})
    assert reference.bins["x"].ordered
    assert reference.counts.columns["x"][0] == 2


@given(numbers, words, numbers, words)
def test_counting_in_parts_and_adding_equals_counting_at_once(
    n1: list[float], w1: list[str | None], n2: list[float], w2: list[str | None]
) -> None:
    a, b = rows(n1, w1), rows(n2, w2)
    both = {name: np.concatenate([a[name], b[name]]) for name in a}
    merged = REFERENCE.count(a) + REFERENCE.count(b)
    assert merged == REFERENCE.count(both) == REFERENCE.count(b) + REFERENCE.count(a)
    assert merged + EMPTY == merged == EMPTY + merged


@given(numbers, words)
def test_profiles_survive_json(n: list[float], w: list[str | None]) -> None:
    again = Reference.from_json(REFERENCE.to_json())
    assert again.counts == REFERENCE.counts
    counted = again.count(rows(n, w))
    assert counted == REFERENCE.count(rows(n, w)) == Counts.from_json(counted.to_json())


def test_profiles_of_different_references_do_not_add_up() -> None:
    other = build_reference({"distance": RNG.random(100)}, bins=5)
    with pytest.raises(BadInput, match="different bins"):
        REFERENCE.counts + other.counts


@given(numbers, words, st.booleans(), st.booleans())
def test_a_column_that_is_not_looked_at_is_left_out_and_the_sum_does_not_depend_on_the_order(
    n: list[float], w: list[str | None], without: bool, also: bool
) -> None:
    less = REFERENCE.without(["carrier"])
    a = (less if without else REFERENCE).count(rows(n, w))
    b = (less if also else REFERENCE).count(rows(n, w))
    assert a + b == b + a
    assert (a + b) + a == a + (b + a)
    assert ("carrier" in (a + b).columns) == (not (without and also))
    assert (a + b).columns["distance"].sum() == 2 * len(rows(n, w)["distance"])
    assert (a + b).rows == a.rows + b.rows


def test_a_missing_column_is_named() -> None:
    with pytest.raises(BadInput, match="carrier"):
        REFERENCE.count({name: c for name, c in TRAINING.items() if name != "carrier"})


@pytest.mark.parametrize(
    "document", [{}, {"format": 1}, {"format": 1, "rows": 1, "columns": {"x": {"kind": "numeric"}}}]
)
def test_a_damaged_document_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        Reference.from_json(document)
    with pytest.raises(BadInput):
        Counts.from_json({"rows": 1, "columns": {"x": [-1]}})
