import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.errors import BadInput
from loopwright.stats.histogram import BUCKETS, GROWTH, LatencyHistogram

latencies = st.lists(st.floats(1, 1e8), min_size=1, max_size=200)


def histogram(us: list[float]) -> LatencyHistogram:
    made = LatencyHistogram()
    made.add(us)
    return made


@given(latencies, st.floats(0, 1))
def test_a_quantile_is_at_most_three_per_cent_above_the_true_one(us: list[float], q: float) -> None:
    true = float(np.quantile(us, q, method="inverted_cdf"))
    assert true * (1 - 1e-6) <= histogram(us).quantile(q) <= true * GROWTH * (1 + 1e-6)


@given(latencies, latencies)
def test_merging_equals_adding_everything_to_one(a: list[float], b: list[float]) -> None:
    merged = histogram(a) + histogram(b)
    assert merged == histogram(a + b) == histogram(b) + histogram(a)
    assert merged.n == len(a) + len(b)
    assert merged.mean_us == pytest.approx(np.mean(a + b))


@given(latencies)
def test_json_keeps_every_count(us: list[float]) -> None:
    assert LatencyHistogram.from_json(histogram(us).to_json()) == histogram(us)


@given(latencies, st.floats(1, 1e8))
def test_above_counts_what_is_surely_above(us: list[float], limit: float) -> None:
    surely = sum(x > limit * GROWTH * (1 + 1e-6) for x in us)
    at_most = sum(x > limit * (1 - 1e-6) for x in us)
    assert surely <= histogram(us).above(limit) <= at_most


def test_the_extremes_have_buckets_of_their_own() -> None:
    made = histogram([0, 0.5, 1e12])
    assert made.counts[0] == 2
    assert made.counts[BUCKETS - 1] == 1
    assert made.quantile(1.0) == 100e6


def test_an_empty_histogram_has_no_quantile() -> None:
    assert np.isnan(LatencyHistogram().quantile(0.5))
    assert LatencyHistogram().above(10) == 0


@pytest.mark.parametrize("bad", [[-1.0], [float("nan")]])
def test_impossible_latencies_are_refused(bad: list[float]) -> None:
    with pytest.raises(BadInput):
        histogram(bad)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"growth": 1.5, "counts": {}, "total_us": 0},
        {"growth": GROWTH, "counts": {"-1": 3}, "total_us": 0},
    ],
)
def test_other_buckets_are_refused(document: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        LatencyHistogram.from_json(document)
