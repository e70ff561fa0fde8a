"""Paired bootstrap: whether a new model is not worse than the old one, on the same rows.

"New >= old" on one holdout blocks nearly half of all models that are just as good; an interval around the
difference and a tolerance agreed beforehand do not (non-inferiority, as in clinical trials; Efron &
Tibshirani 1993, ch. 13).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from loopwright.kernel.errors import BadInput
from loopwright.kernel.verdict import Verdict
from loopwright.stats.metrics import Metric, as_arrays
from loopwright.stats.metrics import metric as by_name


@dataclass(frozen=True, slots=True)
class BootstrapResult:
    """The gain of new over old: positive is better whatever the metric's direction.

    `low` and `high` are one-sided bounds, each at `confidence` (0.95: a two-sided 90 % interval).
    """

    metric: str
    new: float
    old: float
    difference: float
    low: float
    high: float
    confidence: float
    rows: int
    resamples: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def paired_bootstrap(
    metric: str | Metric | Callable[[ArrayLike, ArrayLike], float],
    y: ArrayLike,
    new: ArrayLike,
    old: ArrayLike,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int,
) -> BootstrapResult:
    """Resample rows with replacement, the same ones for both models, and take percentiles of the difference.

    `metric` is a name in METRICS, a Metric, or any function (y, prediction) -> number where more is better.
    The same seed gives the same result. Raises BadInput for fewer than two rows or shapes that do not match.
    """
    if not 0.5 < confidence < 1:
        raise BadInput("a confidence lies between 0.5 and 1", where="bootstrap", got=confidence)
    if resamples < 100:
        raise BadInput(
            "too few resamples for a bound", where="bootstrap", got=resamples, wanted="at least 100"
        )
    truth, fresh = as_arrays(y, new)
    _, previous = as_arrays(y, old)
    rows = len(truth)
    if rows < 2:
        raise BadInput("too few rows to resample", where="bootstrap", got=rows, wanted="at least 2")

    random = np.random.default_rng(seed)
    gains = np.empty(resamples)
    if isinstance(metric, str):
        metric = by_name(metric)
    if isinstance(metric, Metric):
        name, of_new, of_old = metric.name, metric.prepare(truth, fresh), metric.prepare(truth, previous)
        everything = np.ones(rows)
        value, before = of_new(everything), of_old(everything)
        difference = metric.gain(value, before)
        for i in range(resamples):
            weights = np.bincount(random.integers(0, rows, rows), minlength=rows).astype(np.float64)
            gains[i] = metric.gain(of_new(weights), of_old(weights))
    else:
        name, value, before = (
            getattr(metric, "__name__", "metric"),
            metric(truth, fresh),
            metric(truth, previous),
        )
        difference = value - before
        for i in range(resamples):
            chosen = random.integers(0, rows, rows)
            gains[i] = metric(truth[chosen], fresh[chosen]) - metric(truth[chosen], previous[chosen])

    # A resample can hold a single class, where AUC is undefined; it says nothing either way.
    known = gains[~np.isnan(gains)]
    low, high = np.quantile(known, [1 - confidence, confidence]) if len(known) else (math.nan, math.nan)
    return BootstrapResult(
        name,
        float(value),
        float(before),
        float(difference),
        float(low),
        float(high),
        confidence,
        rows,
        len(known),
    )


def non_inferior(result: BootstrapResult, tolerance: float) -> Verdict:
    """PASS when the gain is surely above -tolerance, FAIL when surely below, else INCONCLUSIVE.

    `tolerance` is in the metric's unit, at least 0. An undefined metric is ERROR, never a pass.
    """
    if not tolerance >= 0:
        raise BadInput("a tolerance cannot be negative", where="non-inferiority", got=tolerance)
    if math.isnan(result.low) or math.isnan(result.difference):
        return Verdict.ERROR
    if result.low >= -tolerance:
        return Verdict.PASS
    return Verdict.FAIL if result.high < -tolerance else Verdict.INCONCLUSIVE
