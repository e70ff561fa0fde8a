"""The circuit breaker, on a clock that the test moves."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.bundle.routes import Breaker as Policy
from loopwright.serving.breaker import PROBES, Breaker

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
POLICY = Policy(error_rate=0.5, requests=10, window_s=10.0, open_s=5.0)


def opened(policy: Policy = POLICY) -> Breaker:
    breaker = Breaker(policy)
    for _ in range(policy.requests):
        breaker.record(False, 100, START)
    assert breaker.state == "open"
    return breaker


def test_it_opens_when_more_than_the_rate_failed_and_not_before() -> None:
    breaker = Breaker(POLICY)
    for _ in range(5):
        breaker.record(True, 100, START)
        breaker.record(False, 100, START)
    assert breaker.state == "closed"  # half, not more
    breaker.record(False, 100, START)
    assert breaker.state == "open"
    assert not breaker.allows(START + SECOND)
    assert breaker.wait(START + SECOND) == pytest.approx(4.0)


def test_too_few_requests_open_nothing() -> None:
    breaker = Breaker(POLICY)
    for _ in range(9):
        breaker.record(False, 100, START)
    assert breaker.state == "closed"


def test_failures_older_than_the_window_count_no_more() -> None:
    breaker = Breaker(POLICY)
    for second in range(40):
        breaker.record(False, 100, START + 2 * second * SECOND)  # five within any ten seconds
    assert breaker.state == "closed"


def test_slow_answers_open_it_where_the_policy_says_so() -> None:
    fast_enough, too_slow = Breaker(POLICY), Breaker(Policy(slow_ms=50, requests=10))
    for _ in range(20):
        fast_enough.record(True, 60_000, START)
        too_slow.record(True, 60_000, START)
    assert fast_enough.state == "closed"
    assert too_slow.state == "open"


def test_half_open_it_lets_one_through_at_a_time_and_closes_after_several_answers() -> None:
    breaker = opened()
    now = START + 5 * SECOND
    for _ in range(PROBES):
        assert breaker.allows(now)
        assert breaker.state == "half_open"
        assert not breaker.allows(now)
        breaker.record(True, 100, now)
    assert breaker.state == "closed"
    breaker.record(False, 100, now)
    assert breaker.state == "closed"  # what was counted before is forgotten


def test_a_failing_probe_opens_it_for_twice_as_long() -> None:
    breaker = opened()
    now = START + 5 * SECOND
    assert breaker.allows(now)
    breaker.record(False, 100, now)
    assert not breaker.allows(now + 9 * SECOND)
    assert breaker.allows(now + 10 * SECOND)
    assert breaker.opened == 2


def test_a_probe_that_is_never_reported_holds_nobody_for_ever() -> None:
    breaker = opened()
    assert breaker.allows(START + 5 * SECOND)
    assert not breaker.allows(START + 9 * SECOND)
    assert breaker.allows(START + 10 * SECOND)


def test_an_answer_that_was_under_way_when_it_opened_changes_nothing() -> None:
    breaker = opened()
    breaker.record(True, 100, START + SECOND)
    assert breaker.state == "open"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3_000_000)), max_size=200))
@settings(max_examples=100, deadline=None)
def test_it_never_opens_on_fewer_failures_than_asked_nor_stays_closed_beyond(
    steps: list[tuple[bool, int]],
) -> None:
    breaker, now = Breaker(POLICY), START
    recent: list[tuple[int, bool]] = []
    for ok, pause in steps:
        now += pause
        breaker.record(ok, 100, now)
        recent.append((now, ok))
        # A slice more or less is the price of counting in slices.
        widest = [good for at, good in recent if now - at <= 10 * SECOND]
        narrowest = [good for at, good in recent if now - at <= 9 * SECOND]
        if breaker.state == "open":
            assert len(widest) >= POLICY.requests
            assert widest.count(False) > 0
            return
        if len(narrowest) == len(widest) >= POLICY.requests and not ok:
            assert widest.count(False) <= 0.5 * len(widest)
