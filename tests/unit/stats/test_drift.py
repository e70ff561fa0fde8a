import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.spatial.distance import jensenshannon

from loopwright.kernel.errors import BadInput
from loopwright.kernel.verdict import Verdict
from loopwright.stats.drift import (
    Level,
    benjamini_hochberg,
    design_effect,
    js_divergence,
    judge_drift,
    ks_from_bins,
    psi,
    psi_corrected,
    psi_pvalue,
)
from loopwright.stats.profile import EMPTY, Counts, build_reference
from loopwright.stats.special import chi2_survival

counts = st.lists(st.integers(0, 1000), min_size=2, max_size=25)
RNG = np.random.default_rng(5)
REFERENCE = build_reference(
    {
        "x": RNG.normal(size=20_000),
        "y": RNG.normal(size=20_000),
        "c": RNG.choice(np.array(["a", "b", "c"], dtype=object), 20_000),
    }
)


def window(n: int, *, shift: float = 0.0, values: tuple[str, ...] = ("a", "b", "c"), seed: int = 1) -> Counts:
    random = np.random.default_rng(seed)
    return REFERENCE.count(
        {
            "x": random.normal(shift, size=n),
            "y": random.normal(size=n),
            "c": random.choice(np.array(values, dtype=object), n),
        }
    )


@given(st.floats(0, 500), st.integers(1, 100))
@example(5e-324, 1)
def test_chi2_survival_agrees_with_scipy(x: float, df: int) -> None:
    assert chi2_survival(x, df) == pytest.approx(scipy_stats.chi2.sf(x, df), rel=1e-9, abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_benjamini_hochberg_agrees_with_scipy(pvalues: list[float]) -> None:
    assert benjamini_hochberg(pvalues) == pytest.approx(scipy_stats.false_discovery_control(pvalues))


@given(counts, st.data())
def test_js_divergence_agrees_with_scipy(a: list[int], data: st.DataObject) -> None:
    b = data.draw(st.lists(st.integers(0, 1000), min_size=len(a), max_size=len(a)))
    if sum(a) and sum(b):
        assert js_divergence(a, b) == pytest.approx(jensenshannon(a, b, base=2) ** 2, abs=1e-9)


@given(counts, st.data())
def test_psi_is_symmetric_never_negative_and_zero_for_equal_counts(a: list[int], data: st.DataObject) -> None:
    b = data.draw(st.lists(st.integers(0, 1000), min_size=len(a), max_size=len(a)))
    assert psi(a, b) == pytest.approx(psi(b, a))
    assert psi(a, b) >= 0
    assert psi(a, a) == pytest.approx(0)
    assert 0 <= psi_corrected(a, b) <= psi(a, b)
    assert 0 <= psi_pvalue(a, b) <= 1


def test_psi_of_large_counts_is_the_textbook_sum() -> None:
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.3, 0.3, 0.4])
    assert psi(p * 1e8, q * 1e8) == pytest.approx(float(((p - q) * np.log(p / q)).sum()), rel=1e-5)


def test_ks_is_a_lower_bound_of_the_true_distance_and_close_to_it() -> None:
    shifted = RNG.normal(0.3, size=20_000)
    base = RNG.normal(size=20_000)
    reference = build_reference({"x": base})
    seen = ks_from_bins(reference.counts.columns["x"][1:], reference.count({"x": shifted}).columns["x"][1:])
    true = scipy_stats.ks_2samp(base, shifted).statistic
    assert true * 0.95 <= seen <= true + 1e-12


def test_small_quiet_windows_exceed_psi_but_not_its_correction() -> None:
    random = np.random.default_rng(3)
    pairs = [random.multinomial(200, np.full(20, 0.05), size=2) for _ in range(200)]
    assert np.mean([psi(a, b) > 0.1 for a, b in pairs]) > 0.9
    assert np.mean([psi_corrected(a, b) for a, b in pairs]) < 0.03
    assert np.mean([psi_corrected(a, b) > 0.1 for a, b in pairs]) < 0.1


def test_pvalues_of_quiet_windows_are_about_uniform() -> None:
    random = np.random.default_rng(2)
    shares = np.array([0.3, 0.3, 0.2, 0.1, 0.0995, 0.0005])
    pvalues = [
        psi_pvalue(random.multinomial(20_000, shares), random.multinomial(1000, shares)) for _ in range(400)
    ]
    assert 0.02 <= np.mean(np.array(pvalues) < 0.05) <= 0.09
    assert scipy_stats.kstest(pvalues, "uniform").pvalue > 0.001


def test_quiet_windows_raise_no_alarm_over_many_looks() -> None:
    levels = {
        d.level for seed in range(200) for d in judge_drift(REFERENCE, window(1000, seed=seed)).values()
    }
    assert levels == {Level.QUIET}


def weather_week(seed: int, *, shift: float = 0.0) -> list[Counts]:
    """Seven days of 900 rows; x is the day's weather, hardly varying within it. y and c are each row's own."""
    random = np.random.default_rng(seed)
    days = []
    for weather in random.normal(shift, 0.95, 7):
        x = weather + random.normal(0, 0.3, 900)
        c = random.choice(np.array(["a", "b", "c"], dtype=object), 900)
        days.append(REFERENCE.count({"x": x, "y": random.normal(size=900), "c": c}))
    return days


def test_a_week_of_weather_is_seldom_drift_though_its_rows_are_many() -> None:
    weeks = [weather_week(seed) for seed in range(60)]
    naive = [judge_drift(REFERENCE, sum(days, EMPTY))["x"].level is Level.ALARM for days in weeks]
    aware = [judge_drift(REFERENCE, sum(days, EMPTY), days=days)["x"].level is Level.ALARM for days in weeks]
    assert np.mean(naive) > 0.7
    assert np.mean(aware) < 0.25


def test_a_season_is_still_found_in_clustered_rows() -> None:
    weeks = [weather_week(seed, shift=3.0) for seed in range(20)]
    found = [judge_drift(REFERENCE, sum(days, EMPTY), days=days)["x"].level is Level.ALARM for days in weeks]
    assert np.mean(found) > 0.8


def test_the_design_effect_is_one_for_independent_rows_and_the_cluster_size_for_copies() -> None:
    random = np.random.default_rng(1)
    shares = np.full(10, 0.1)
    independent = [design_effect(random.multinomial(500, shares, size=7)) for _ in range(200)]
    assert np.mean(independent) == pytest.approx(1.0, abs=0.15)
    copies = [design_effect(random.multinomial(1, shares, size=300) * 50) for _ in range(20)]
    assert np.mean(copies) == pytest.approx(50, rel=0.05)
    assert design_effect(np.array([[5, 0], [0, 5]])) == 1.0
    assert design_effect(np.array([[5, 0]] * 7)) == 1.0


def test_a_small_window_gives_no_verdict() -> None:
    judged = judge_drift(REFERENCE, window(999, shift=5.0))
    assert {d.verdict for d in judged.values()} == {Verdict.INCONCLUSIVE}


def test_no_rows_at_all_give_no_verdict() -> None:
    assert {d.level for d in judge_drift(REFERENCE, Counts(0, {}), min_rows=0).values()} == {Level.UNKNOWN}


def test_a_shift_is_found_in_its_own_column_only() -> None:
    judged = judge_drift(REFERENCE, window(2000, shift=0.8))
    assert (judged["x"].level, judged["y"].level, judged["c"].level) == (
        Level.ALARM,
        Level.QUIET,
        Level.QUIET,
    )
    assert judged["x"].verdict is Verdict.FAIL
    assert judged["x"].ks == pytest.approx(0.31, abs=0.04)


def test_a_tiny_shift_in_a_huge_window_is_significant_and_still_quiet() -> None:
    judged = judge_drift(REFERENCE, window(200_000, shift=0.05))
    assert judged["x"].adjusted < 0.05
    assert judged["x"].level is Level.QUIET


def test_values_never_seen_before_are_novel_and_drift() -> None:
    judged = judge_drift(REFERENCE, window(3000, values=("a", "b", "c", "zz")))
    assert judged["c"].novel_share == pytest.approx(0.25, abs=0.03)
    assert judged["c"].level is Level.ALARM
    assert judged["c"].ks is None


def test_a_column_that_turns_null_drifts() -> None:
    random = np.random.default_rng(1)
    x = np.where(random.random(2000) < 0.4, np.nan, random.normal(size=2000))
    drift = judge_drift(
        REFERENCE,
        REFERENCE.count(
            {
                "x": x,
                "y": random.normal(size=2000),
                "c": random.choice(np.array(["a", "b", "c"], object), 2000),
            }
        ),
    )["x"]
    assert drift.level is Level.ALARM
    assert drift.null_share == pytest.approx(0.4, abs=0.04)


def test_counts_of_other_bins_are_refused() -> None:
    with pytest.raises(BadInput, match="bins"):
        judge_drift(REFERENCE, Counts(10, {"x": np.ones(3, dtype=np.int64)}))
    with pytest.raises(BadInput):
        psi([1, 2], [1, 2, 3])
