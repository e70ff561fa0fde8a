"""The judge of a canary: figures from FIELD-NOTES, and what it must never do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.delivery.judge import ArmCounts, Limits, judge
from loopwright.kernel.errors import BadInput
from loopwright.kernel.verdict import Verdict
from loopwright.stats.histogram import LatencyHistogram


def arm(n: int, errors: int = 0, us: float = 200.0) -> ArmCounts:
    latency = LatencyHistogram()
    latency.add(np.full(n, us))
    return ArmCounts(n, errors, latency)


ERRORS_ONLY = Limits(latency_p99=None)


def test_no_requests_are_never_a_pass() -> None:
    for baseline, canary in ((arm(0), arm(0)), (arm(10_000), arm(0)), (arm(0), arm(10_000))):
        assert judge(baseline, canary, Limits()).verdict is Verdict.INCONCLUSIVE


def test_ten_per_cent_errors_fail_within_a_hundred_requests() -> None:
    verdict = judge(arm(10_000, 50), arm(100, 10), Limits())
    assert verdict.verdict is Verdict.FAIL
    assert "10 errors in 100 canary requests" in verdict.why


def test_an_error_free_canary_passes_after_a_few_thousand_requests_and_not_after_a_few_hundred() -> None:
    assert judge(arm(5_000), arm(400), Limits()).verdict is Verdict.INCONCLUSIVE
    assert judge(arm(20_000), arm(4_500), Limits()).verdict is Verdict.PASS


def test_a_faulty_transform_that_fails_for_seven_in_a_thousand_is_caught() -> None:
    assert judge(arm(20_000), arm(6_000, 42), Limits()).verdict is Verdict.FAIL


def test_a_canary_twice_as_slow_fails_on_latency_alone() -> None:
    verdict = judge(arm(2_000, us=10_000), arm(500, us=20_000), Limits())
    assert verdict.verdict is Verdict.FAIL
    assert verdict.reasons[0].startswith("latency too high")
    assert len(verdict.reasons) == 1


def test_a_slow_canary_below_the_floor_is_no_harm() -> None:
    assert judge(arm(20_000, us=200), arm(6_000, us=900), Limits()).verdict is Verdict.PASS


def test_latency_is_undecided_while_the_stable_arm_has_too_few_requests_for_a_p99() -> None:
    verdict = judge(arm(299), arm(20_000), Limits())
    assert verdict.verdict is Verdict.INCONCLUSIVE


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(BadInput):
        ArmCounts(3, 4)
    with pytest.raises(BadInput):
        Limits(error_rate=0.0)
    with pytest.raises(BadInput):
        Limits(latency_p99=0.9)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 5_000), errors=st.integers(0, 50), base=st.integers(1, 20_000))
def test_a_verdict_never_improves_when_the_same_requests_hold_more_errors(
    n: int, errors: int, base: int
) -> None:
    order = [Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS]
    fewer = judge(arm(base), ArmCounts(n, min(errors, n)), ERRORS_ONLY)
    more = judge(arm(base), ArmCounts(n, min(errors + 5, n)), ERRORS_ONLY)
    assert order.index(more.verdict) <= order.index(fewer.verdict)


def test_peeking_after_every_request_rarely_fails_a_good_canary() -> None:
    # 120 canaries as good as stable (0.5 %), looked at 20 times each; alpha = 5 % holds over all looks
    # together.
    rng = np.random.default_rng(7)
    failed = 0
    for _ in range(120):
        canary = np.cumsum(rng.random(2_000) < 0.005)
        stable = np.cumsum(rng.random(2_000) < 0.005)
        looks = range(99, 2_000, 100)
        failed += any(
            judge(ArmCounts(i + 1, int(stable[i])), ArmCounts(i + 1, int(canary[i])), ERRORS_ONLY).verdict
            is Verdict.FAIL
            for i in looks
        )
    assert failed / 120 <= 0.05
