import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.errors import BadInput
from loopwright.kernel.verdict import Verdict
from loopwright.stats.sequential import error_rate_judgement, exceedance_judgement

KNOWN = 10**9
"""So many baseline requests that its rate is as good as known."""


def against_half_a_per_cent(n: int, errors: int) -> Verdict:
    return error_rate_judgement(KNOWN, KNOWN // 200, n, errors).verdict


def first_verdict(rate: float, most: int, seed: int, every: int = 1) -> tuple[int, Verdict]:
    """Peek after every error (only errors raise the evidence against) and at the end."""
    errors = np.cumsum(np.random.default_rng(seed).random(most) < rate)
    for n in np.flatnonzero(np.diff(errors, prepend=0)) + 1:
        if against_half_a_per_cent(int(n), int(errors[n - 1])) is Verdict.FAIL:
            return int(n), Verdict.FAIL
    return most, against_half_a_per_cent(most, int(errors[-1]))


@pytest.mark.parametrize(("rate", "within"), [(0.10, 100), (0.025, 400), (0.01, 3850)])
def test_a_bad_canary_fails_within(rate: float, within: int) -> None:
    times = [first_verdict(rate, 4 * within, seed)[0] for seed in range(41)]
    assert np.median(times) <= within


def test_an_equal_canary_passes_after_about_43_000_requests() -> None:
    assert against_half_a_per_cent(30_000, 150) is Verdict.INCONCLUSIVE
    assert against_half_a_per_cent(46_000, 230) is Verdict.PASS


@pytest.mark.parametrize("share", [1, 3, 99])
def test_a_canary_without_errors_passes_after_three_to_four_thousand(share: int) -> None:
    assert error_rate_judgement(share * 3000, 0, 3000, 0).verdict is Verdict.INCONCLUSIVE
    assert error_rate_judgement(share * 4000, 0, 4000, 0).verdict is Verdict.PASS


def test_nothing_seen_is_never_a_pass() -> None:
    assert error_rate_judgement(0, 0, 10_000, 0).verdict is Verdict.INCONCLUSIVE
    assert error_rate_judgement(10_000, 0, 0, 0).verdict is Verdict.INCONCLUSIVE
    assert exceedance_judgement(0, 0).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("canary_share", [0.05, 0.5])
def test_peeking_at_every_error_of_equal_arms_fails_at_most_alpha_of_them(canary_share: float) -> None:
    wrong, trials, alpha = 0, 100, 0.05
    for seed in range(trials):
        random = np.random.default_rng(seed)
        canary = random.random(8000) < canary_share
        error = random.random(8000) < 0.01
        n1, k1 = np.cumsum(canary), np.cumsum(canary & error)
        n0, k0 = np.cumsum(~canary), np.cumsum(~canary & error)
        for i in np.flatnonzero(canary & error):
            if (
                error_rate_judgement(int(n0[i]), int(k0[i]), int(n1[i]), int(k1[i]), alpha=alpha).verdict
                is Verdict.FAIL
            ):
                wrong += 1
                break
    assert wrong <= alpha * trials


def test_peeking_at_a_canary_at_the_margin_passes_at_most_alpha_of_them() -> None:
    wrong, trials, alpha = 0, 100, 0.05
    for seed in range(trials):
        random = np.random.default_rng(seed)
        k1 = np.cumsum(random.random(20_000) < 0.003)
        k0 = np.cumsum(random.random(20_000) < 0.001)
        looks = range(500, 20_001, 500)
        wrong += any(
            error_rate_judgement(n, int(k0[n - 1]), n, int(k1[n - 1]), margin=0.002, alpha=alpha).verdict
            is Verdict.PASS
            for n in looks
        )
    assert wrong <= alpha * trials


def test_a_baseline_of_few_requests_does_not_pass_for_a_known_rate() -> None:
    assert error_rate_judgement(KNOWN, 0, 1000, 20).verdict is Verdict.FAIL
    assert error_rate_judgement(20, 0, 1000, 20).verdict is Verdict.INCONCLUSIVE


def test_latency_needs_at_least_299_requests_to_pass() -> None:
    passed = [n for n in range(1, 600) if exceedance_judgement(n, 0).verdict is Verdict.PASS]
    assert 299 <= passed[0] <= 400
    assert exceedance_judgement(200, 20).verdict is Verdict.FAIL
    assert exceedance_judgement(100, 1).verdict is Verdict.INCONCLUSIVE


def test_peeking_at_latencies_on_the_limit_fails_at_most_alpha_of_them() -> None:
    wrong = 0
    for seed in range(300):
        above = np.cumsum(np.random.default_rng(seed).random(5000) < 0.01)
        events = np.flatnonzero(np.diff(above, prepend=0)) + 1
        wrong += any(exceedance_judgement(int(n), int(above[n - 1])).verdict is Verdict.FAIL for n in events)
    assert wrong <= 0.05 * 300


@given(st.data())
def test_any_counts_give_a_finite_answer_and_more_errors_never_look_better(data: st.DataObject) -> None:
    n0, n1 = data.draw(st.integers(1, 10**6)), data.draw(st.integers(1, 10**6))
    k0, k1 = data.draw(st.integers(0, n0)), data.draw(st.integers(0, n1 - 1))
    fewer, more = error_rate_judgement(n0, k0, n1, k1), error_rate_judgement(n0, k0, n1, k1 + 1)
    assert all(math.isfinite(e) and e >= 0 for r in (fewer, more) for e in (r.e_fail, r.e_pass))
    assert more.e_fail >= fewer.e_fail * (1 - 1e-3)
    assert more.e_pass <= fewer.e_pass * (1 + 1e-3)


@given(st.integers(1, 5000), st.data())
def test_verdicts_for_and_against_exclude_each_other(n: int, data: st.DataObject) -> None:
    result = exceedance_judgement(n, data.draw(st.integers(0, n)))
    assert min(result.e_fail, result.e_pass) < 20


def test_impossible_counts_are_refused() -> None:
    for counts in ((10, 11, 5, 0), (10, -1, 5, 0), (10, 0, 5, 6)):
        with pytest.raises(BadInput):
            error_rate_judgement(*counts)
    with pytest.raises(BadInput):
        exceedance_judgement(10, 11)
    with pytest.raises(BadInput):
        error_rate_judgement(10, 0, 10, 0, alpha=0)
