"""Which windows of event time may be judged, and what a judged window says. Pure.

Windows lie on a fixed grid that begins on Mondays at midnight UTC, so that every process sees the same ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np

from loopwright.kernel.verdict import Verdict
from loopwright.monitoring.labels import Outcomes
from loopwright.stats.histogram import LatencyHistogram
from loopwright.stats.metrics import Metric

MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)

LATENESS = HOUR
"""How long after a window's end (event time) predictions for it may still come in."""

MIN_LABELLED = 500
"""Labelled rows a quality verdict needs."""

LATEST = 3
SUSTAINED = 2
"""An alert wants SUSTAINED of the LATEST judged windows to be bad."""


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """A span [start, end) of event time."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class StableHour:
    """What became in one hour of the requests that stable was the last model for.

    errors: those that it did not answer. stood_in: those that were given a kept or the default answer. latency: of
    predictions, where it was measured.
    """

    hour: datetime
    version: int
    n: int
    errors: int
    stood_in: int = 0
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)


@dataclass(frozen=True, slots=True)
class QualityLimits:
    """What quality is judged by: `expected` is the metric's value when the version was registered."""

    metric: Metric
    expected: float | None
    drop: float

    @property
    def limit(self) -> float | None:
        """The worst tolerated value: `drop` (a share) below what was expected, or above it for errors."""
        if self.expected is None:
            return None
        worse = abs(self.expected) * self.drop
        return self.expected - worse if self.metric.direction == "maximize" else self.expected + worse


@dataclass(frozen=True, slots=True)
class QualityWindow:
    """Quality over one span: `value` with one-sided 95 % bounds `low` and `high`. NaN where undefined.

    `coverage` is the labelled share of all answers, `prediction` and `label` are means of the first output
    and of the label (for binary: predicted and true rate).
    """

    metric: str
    value: float
    low: float
    high: float
    answered: int
    labelled: int
    coverage: float
    prediction: float
    label: float
    verdict: Verdict
    why: str
    expected: float | None = None
    limit: float | None = None

    def to_json(self) -> dict[str, object]:
        """NaN becomes null."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {
            name: None
            if isinstance(value, float) and math.isnan(value)
            else str(value)
            if name == "verdict"
            else value
            for name, value in fields.items()
        }


def whole_hours(length: timedelta) -> timedelta:
    """Round a window's length up to whole hours: profiles are kept by the hour."""
    return max(1, math.ceil(length / HOUR)) * HOUR


def window_of(moment: datetime, length: timedelta) -> Window:
    """The window of the grid that holds `moment`."""
    length = whole_hours(length)
    start = MONDAY + ((moment - MONDAY) // length) * length
    return Window(start, start + length)


def complete_windows(
    after: datetime, watermark: datetime, length: timedelta, wait: timedelta
) -> list[Window]:
    """The windows that end later than `after` and at least `wait` before the watermark, oldest first."""
    length = whole_hours(length)
    window = window_of(after, length)
    found = []
    while window.end + wait <= watermark:
        found.append(window)
        window = Window(window.end, window.end + length)
    return found


def sustained(bad: Sequence[bool]) -> bool | None:
    """Whether enough of the latest judged windows (oldest first) are bad; None while that is open.

    Two bad ones of the last three raise. What was raised ends with two good ones in a row.
    """
    latest = list(bad)[-LATEST:]
    if sum(latest) >= SUSTAINED:
        return True
    if len(latest) >= SUSTAINED and not any(latest[-SUSTAINED:]):
        return False
    return None


def labels_are_in(
    outcomes: Outcomes, window: Window, watermark: datetime, available_after: timedelta
) -> bool:
    """Whether a window's quality may be judged: nine tenths are labelled, or a month's patience is over.

    Labels that come early are not a fair sample (a flight that lands late is labelled late), hence not
    before. Some never come: after `available_after` and 30 days the window is judged on what there is.
    """
    if outcomes.coverage >= 0.9 or outcomes.answered < MIN_LABELLED:
        return True
    return watermark >= window.end + available_after + timedelta(days=30)


def judge_quality(outcomes: Outcomes, limits: QualityLimits, *, seed: int = 0) -> QualityWindow:
    """Measure and judge. FAIL wants effect and significance: the value is beyond the limit, and even its
    better 95 % bound is worse than expected. Too few labels, or nothing to compare with, is INCONCLUSIVE.
    """
    metric, n = limits.metric, outcomes.labelled
    value = metric(outcomes.y, outcomes.p)
    low, high = _bounds(outcomes, metric, seed) if n >= 2 and not math.isnan(value) else (math.nan, math.nan)
    verdict, why = _quality_verdict(value, low, high, n, limits)
    return QualityWindow(
        metric=metric.name,
        value=value,
        low=low,
        high=high,
        answered=outcomes.answered,
        labelled=n,
        coverage=outcomes.coverage,
        prediction=float(outcomes.p[:, 0].mean()) if n else math.nan,
        label=float(outcomes.y.mean()) if n else math.nan,
        verdict=verdict,
        why=why,
        expected=limits.expected,
        limit=limits.limit,
    )


def _quality_verdict(
    value: float, low: float, high: float, n: int, limits: QualityLimits
) -> tuple[Verdict, str]:
    name = limits.metric.name
    if n < MIN_LABELLED:
        return Verdict.INCONCLUSIVE, f"{n} labelled rows, {MIN_LABELLED} wanted"
    if math.isnan(value):
        return Verdict.INCONCLUSIVE, f"{name} is undefined on these labels (a single class?)"
    if limits.expected is None or limits.limit is None:
        return (
            Verdict.INCONCLUSIVE,
            f"{name} {value:.4f}; the version has no registered {name} to compare with",
        )
    higher_is_better = limits.metric.direction == "maximize"
    beyond = value < limits.limit if higher_is_better else value > limits.limit
    surely = high < limits.expected if higher_is_better else low > limits.expected
    told = (
        f"{name} {value:.4f} [{low:.4f}, {high:.4f}] on {n} labels; "
        f"expected {limits.expected:.4f}, limit {limits.limit:.4f}"
    )
    if not beyond:
        return Verdict.PASS, told
    return (Verdict.FAIL, told) if surely else (Verdict.INCONCLUSIVE, f"{told}; the difference may be chance")


def _bounds(outcomes: Outcomes, metric: Metric, seed: int, resamples: int = 200) -> tuple[float, float]:
    """One-sided 95 % percentile bounds by bootstrap."""
    random = np.random.default_rng(seed)
    p = outcomes.p[:, 0] if outcomes.p.shape[1] == 1 else outcomes.p
    of = metric.prepare(outcomes.y, p)
    n = outcomes.labelled
    values = np.array(
        [of(np.bincount(random.integers(0, n, n), minlength=n).astype(np.float64)) for _ in range(resamples)]
    )
    known = values[~np.isnan(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [0.05, 0.95])
    return float(low), float(high)
