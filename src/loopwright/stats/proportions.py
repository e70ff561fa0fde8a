"""Intervals and tests for groups: of shares, of means, and of their differences, in closed form.

Closed forms need no seed and cost nothing per group. For a mean they are the bootstrap's limit; for shares near 0
or 1 the score interval keeps its coverage where percentiles of resamples do not (Brown, Cai & DasGupta 2001).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopwright.kernel.errors import BadInput

Floats = NDArray[np.float64]

_NORMAL = NormalDist()
_FEW = 5
"""An expected count below this makes the normal approximation of a 2 x 2 table doubtful (Cochran 1954)."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its two-sided interval."""

    value: float
    low: float
    high: float


def z_of(confidence: float) -> float:
    """The two-sided normal quantile, 1.96 at 0.95. Raises BadInput outside (0, 1)."""
    if not 0 < confidence < 1:
        raise BadInput("a confidence lies between 0 and 1", where="interval", got=confidence)
    return _NORMAL.inv_cdf((1 + confidence) / 2)


def two_sided(z: float) -> float:
    """P(|Z| >= |z|) for a standard normal Z."""
    return math.erfc(abs(z) / math.sqrt(2))


def wilson(successes: float, total: float, confidence: float = 0.95) -> Estimate:
    """The share and its score interval (Wilson 1927); the whole [0, 1] when `total` is 0."""
    if total <= 0:
        return Estimate(math.nan, 0.0, 1.0)
    z = z_of(confidence)
    share = successes / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    # At 0 and 1 the bound is the share itself; rounding must not put it beyond.
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == total else min(1.0, middle + half)
    return Estimate(share, min(low, share), max(high, share))


def normal(value: float, error: float, confidence: float = 0.95) -> Estimate:
    """The value ± z times its standard error."""
    half = z_of(confidence) * error
    return Estimate(value, value - half, value + half)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b with an interval from the two intervals: square and add.

    Newcombe 1998 (method 10) for shares with Wilson intervals; Zou & Donner 2008 for any two estimates.
    """
    gap = a.value - b.value
    low = gap - math.hypot(a.value - a.low, b.high - b.value)
    high = gap + math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(gap, low, high)


def widest(estimates: Sequence[Estimate]) -> Estimate:
    """The largest difference between any two of at least two estimates.

    The bounds hold for all pairs at once when the intervals handed in are at `simultaneous` confidence: `low` is the
    largest lower bound of any pair (at least 0), `high` the largest upper bound.
    """
    value = np.array([each.value for each in estimates])
    down = value - np.array([each.low for each in estimates])
    up = np.array([each.high for each in estimates]) - value
    gaps = value[:, None] - value[None, :]
    low = gaps - np.hypot(down[:, None], up[None, :])
    high = gaps + np.hypot(up[:, None], down[None, :])
    np.fill_diagonal(low, -np.inf)
    np.fill_diagonal(high, -np.inf)
    return Estimate(float(gaps.max()), max(0.0, float(low.max())), float(high.max()))


def simultaneous(confidence: float, groups: int) -> float:
    """The confidence each pair of `groups` needs so that all pairs together have `confidence` (Bonferroni)."""
    return 1 - (1 - confidence) / max(1, groups * (groups - 1) // 2)


def two_shares(k1: int, n1: int, k2: int, n2: int) -> float:
    """The two-sided p-value of "both shares are one": the pooled z test, Fisher's exact test for small counts."""
    if n1 == 0 or n2 == 0:
        return 1.0
    pooled = (k1 + k2) / (n1 + n2)
    if pooled in (0.0, 1.0):
        return 1.0
    if min(n1, n2) * min(pooled, 1 - pooled) < _FEW:
        return fisher(k1, n1, k2, n2)
    error = math.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n2))
    return two_sided((k1 / n1 - k2 / n2) / error)


def fisher(k1: int, n1: int, k2: int, n2: int) -> float:
    """Fisher's exact test, two-sided: the probability of all tables no likelier than the one seen."""
    total = k1 + k2
    lowest, highest = max(0, total - n2), min(n1, total)
    logs = np.array(
        [
            _choose(n1, k) + _choose(n2, total - k) - _choose(n1 + n2, total)
            for k in range(lowest, highest + 1)
        ]
    )
    seen = logs[k1 - lowest]
    return min(1.0, float(np.exp(logs[logs <= seen + 1e-7]).sum()))


def two_means(mean1: float, error1: float, mean2: float, error2: float) -> float:
    """The two-sided p-value of "both means are one", from independent standard errors; 1 when both are 0."""
    error = math.hypot(error1, error2)
    return two_sided((mean1 - mean2) / error) if error > 0 else 1.0


def holm(pvalues: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: those <= alpha are found with a family-wise error of at most alpha.

    Holm 1979; valid whatever the dependence between the tests.
    """
    p = np.asarray(pvalues, dtype=np.float64)
    if not len(p):
        return []
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]


def auc_with_error(y: NDArray[Any], scores: NDArray[Any]) -> tuple[float, float]:
    """Area under the ROC curve (ties half) and its standard error; (NaN, NaN) unless both classes have two rows.

    DeLong, DeLong & Clarke-Pearson 1988, by midranks (Sun & Xu 2014).
    """
    positive = np.asarray(y) > 0.5
    up, down = np.asarray(scores)[positive], np.asarray(scores)[~positive]
    if len(up) < 2 or len(down) < 2:
        return math.nan, math.nan
    everyone = _midranks(np.concatenate([up, down]))
    of_up = (everyone[: len(up)] - _midranks(up)) / len(down)
    of_down = 1 - (everyone[len(up) :] - _midranks(down)) / len(up)
    error = math.sqrt(of_up.var(ddof=1) / len(up) + of_down.var(ddof=1) / len(down))
    return float(of_up.mean()), error


def auc_interval(auc: float, error: float, confidence: float = 0.95) -> Estimate:
    """The interval on the logit scale, which stays inside [0, 1]; an area of exactly 0 or 1 has no width."""
    if not 0 < auc < 1:
        return Estimate(auc, auc, auc)
    middle, half = math.log(auc / (1 - auc)), z_of(confidence) * error / (auc * (1 - auc))
    return Estimate(auc, _logistic(middle - half), _logistic(middle + half))


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _midranks(values: Floats) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place], dtype=np.float64)


def _choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
