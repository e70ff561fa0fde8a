"""Intervals and tests for groups, against scipy, scikit-learn and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from loopwright.kernel.errors import BadInput
from loopwright.stats import proportions
from loopwright.stats.proportions import Estimate

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.sampled_from([0.8, 0.95, 0.999]))
def test_wilson_is_scipys(found: tuple[int, int], confidence: float) -> None:
    k, n = found
    ours = proportions.wilson(k, n, confidence)
    theirs = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert ours.low <= ours.value <= ours.high


def test_no_rows_say_nothing_about_a_share() -> None:
    assert (proportions.wilson(0, 0).low, proportions.wilson(0, 0).high) == (0.0, 1.0)


def test_a_confidence_of_one_is_refused() -> None:
    with pytest.raises(BadInput, match="between 0 and 1"):
        proportions.wilson(1, 2, 1.0)


def test_the_difference_of_two_shares_is_newcombes_tenth_method() -> None:
    # Newcombe 1998, table II, case (a): 56/70 - 48/80, interval 0.0524 to 0.3339.
    found = proportions.difference(proportions.wilson(56, 70), proportions.wilson(48, 80))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


@given(counts, counts)
def test_fisher_is_scipys(one: tuple[int, int], other: tuple[int, int]) -> None:
    (k1, n1), (k2, n2) = one, other
    wanted = stats.fisher_exact([[k1, n1 - k1], [k2, n2 - k2]]).pvalue
    assert proportions.fisher(k1, n1, k2, n2) == pytest.approx(wanted, abs=1e-6)


@given(counts, counts)
def test_two_shares_are_tested_by_chi_squared_or_exactly_when_counts_are_small(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    (k1, n1), (k2, n2) = one, other
    p = proportions.two_shares(k1, n1, k2, n2)
    table = np.array([[k1, n1 - k1], [k2, n2 - k2]])
    if (table.sum(axis=0) == 0).any():
        assert p == 1.0
        return
    chi2 = stats.chi2_contingency(table, correction=False)
    if chi2.expected_freq.min() < 5:
        assert p == pytest.approx(stats.fisher_exact(table).pvalue, abs=1e-6)
    else:
        assert p == pytest.approx(chi2.pvalue, abs=1e-9)


def test_two_means_are_tested_as_welch_does_when_there_are_many_rows() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, 4_000), rng.normal(0.08, 2, 3_000)
    errors = [x.std(ddof=1) / np.sqrt(len(x)) for x in (a, b)]
    ours = proportions.two_means(a.mean(), errors[0], b.mean(), errors[1])
    assert ours == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-2)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_what_stepping_down_finds(pvalues: list[float]) -> None:
    adjusted = proportions.holm(pvalues)
    for alpha in (0.01, 0.05, 0.2):
        rejected, order = set(), np.argsort(pvalues, kind="stable")
        for step, place in enumerate(order):
            if pvalues[place] * (len(pvalues) - step) > alpha:
                break
            rejected.add(int(place))
        assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(2, 60), st.booleans())
def test_the_area_is_scikit_learns(seed: int, ups: int, downs: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    y = np.array([1] * ups + [0] * downs)
    scores = rng.integers(0, 5, len(y)) / 4 if tied else rng.random(len(y))
    assert proportions.auc_with_error(y, scores)[0] == pytest.approx(roc_auc_score(y, scores))


def test_the_areas_error_is_that_of_repeated_samples() -> None:
    rng = np.random.default_rng(2)
    y = np.array([1] * 120 + [0] * 300)
    found = [proportions.auc_with_error(y, rng.normal(y * 1.0, 1.0)) for _ in range(800)]
    areas, errors = (np.array(column) for column in zip(*found, strict=True))
    assert errors.mean() == pytest.approx(areas.std(), rel=0.08)
    held = [
        e.low <= stats.norm.cdf(1 / np.sqrt(2)) <= e.high
        for e in map(proportions.auc_interval, areas, errors)
    ]
    assert 0.93 <= np.mean(held) <= 0.97


def test_an_area_needs_two_rows_of_both_classes() -> None:
    assert np.isnan(proportions.auc_with_error(np.array([1, 0, 0]), np.array([0.5, 0.1, 0.2]))[0])


def test_the_widest_gap_is_between_the_extremes_and_its_bounds_hold_for_every_pair() -> None:
    rng = np.random.default_rng(3)
    sizes, true = np.array([120, 300, 500, 900]), np.array([0.2, 0.25, 0.3, 0.35])
    level = proportions.simultaneous(0.95, 4)
    beyond = 0
    for _ in range(400):
        shares = [
            proportions.wilson(k, n, level) for k, n in zip(rng.binomial(sizes, true), sizes, strict=True)
        ]
        gap = proportions.widest(shares)
        values = [each.value for each in shares]
        assert gap.value == pytest.approx(max(values) - min(values))
        beyond += not gap.low <= 0.15 <= gap.high
    assert beyond <= 400 * 0.05


def test_groups_that_are_alike_have_a_gap_of_at_least_nothing() -> None:
    alike = [Estimate(0.5, 0.4, 0.6)] * 3
    assert proportions.widest(alike).low == 0.0
