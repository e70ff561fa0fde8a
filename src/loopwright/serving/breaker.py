"""Leaves an arm alone that fails or lags: closed → open → half-open → closed.

Counts lie in ten slices of the window, so that what is old falls away by itself. A success in the closed state costs
some 300 ns. Not safe to share between threads.
"""

from collections.abc import Callable
from typing import Literal

from loopwright.bundle.routes import Breaker as Policy

State = Literal["closed", "open", "half_open"]

SLICES = 10
PROBES = 3
"""Answers in a row that close a half-open breaker."""

LONGEST_US = 60_000_000


class Breaker:
    """One arm's. Times are microseconds of any clock, which may be put right; changed(state): told of every change."""

    __slots__ = (
        "_changed", "_failed", "_n", "_open_us", "_policy", "_probes", "_probing_until", "_slice", "_slice_us", "_slow",
        "_slow_us", "_until", "opened", "state",
    )  # fmt: skip

    def __init__(self, policy: Policy, changed: Callable[[State], None] = lambda state: None) -> None:
        self._changed = changed
        self._policy = policy
        self._slice_us = max(1, int(policy.window_s * 1_000_000 / SLICES))
        self._slow_us = float("inf") if policy.slow_ms is None else policy.slow_ms * 1000
        self._open_us = int(policy.open_s * 1_000_000)
        self.state: State = "closed"
        self.opened = 0
        """How often it has opened."""
        self._until = self._probing_until = 0
        self._clear()

    def allows(self, now: int) -> bool:
        """Whether the arm may be asked. An open breaker lets one request through when its time is over."""
        if self.state == "closed":
            return True
        if self.state == "open":
            if self._ahead(self._until, now):
                return False
            self.state, self._probes, self._probing_until = "half_open", 0, 0
            self._changed("half_open")
        if self._ahead(self._probing_until, now):
            return False
        # One at a time; a probe that is never reported does not hold the arm for ever.
        self._probing_until = now + self._open_us
        return True

    def wait(self, now: int) -> float:
        """Seconds until it may be asked again."""
        until = self._until if self.state == "open" else self._probing_until
        return (until - now) / 1_000_000 if self._ahead(until, now) else 0.0

    def _ahead(self, until: int, now: int) -> bool:
        """Whether `until` is still to come; no pause is longer than the last, so a clock that was put back ends it."""
        return 0 < until - now <= self._open_us

    def record(self, ok: bool, took_us: int, now: int) -> None:
        """Count an answer, or a failure, of the arm."""
        if self.state != "closed":
            self._record_probe(ok and took_us <= self._slow_us, now)
            return
        place = now // self._slice_us
        if place != self._slice:
            self._advance(place)
        at = place % SLICES
        self._n[at] += 1
        slow = took_us > self._slow_us
        if ok and not slow:
            return
        if slow:
            self._slow[at] += 1
        if not ok:
            self._failed[at] += 1
        n = sum(self._n)
        if n >= self._policy.requests and (
            sum(self._failed) > self._policy.error_rate * n or sum(self._slow) > 0.5 * n
        ):
            self._open(now)

    def _record_probe(self, ok: bool, now: int) -> None:
        if self.state == "open":  # an answer that was under way when it opened
            return
        self._probing_until = 0
        if not ok:
            self._open_us = min(2 * self._open_us, LONGEST_US)
            self._open(now)
            return
        self._probes += 1
        if self._probes >= PROBES:
            self.state = "closed"
            self._open_us = int(self._policy.open_s * 1_000_000)
            self._clear()
            self._changed("closed")

    def _open(self, now: int) -> None:
        self.state, self._until = "open", now + self._open_us
        self.opened += 1
        self._changed("open")

    def _clear(self) -> None:
        self._slice, self._probes = -1, 0
        self._n, self._failed, self._slow = [0] * SLICES, [0] * SLICES, [0] * SLICES

    def _advance(self, place: int) -> None:
        gone = SLICES if self._slice < 0 else min(SLICES, abs(place - self._slice))
        for back in range(gone):
            at = (place - back) % SLICES
            self._n[at] = self._failed[at] = self._slow[at] = 0
        self._slice = place
