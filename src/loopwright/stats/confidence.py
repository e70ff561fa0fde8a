"""Intervals for a mean that hold at every moment at once, so that an experiment may be looked at while it runs.

The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas (2024, "Time-uniform central limit
theory and asymptotic confidence sequences"): Robbins' normal mixture around the running mean.
"""

import math

from loopwright.kernel.errors import BadInput
from loopwright.stats.proportions import Estimate

LEAST = 30
"""Below so many values a central limit has not begun to hold, and nothing is said."""


def mean_sequence(
    n: int, mean: float, variance: float, *, confidence: float = 0.95, tightest: int = 1000
) -> Estimate | None:
    """The mean of `n` independent values with an interval that covers the truth at all n together; None below LEAST.

    variance: the sample's. tightest: the n at which the interval is narrowest for its confidence. Raises BadInput.
    """
    if not 0 < confidence < 1:
        raise BadInput("a confidence lies between 0 and 1", where="interval", got=confidence)
    if n < LEAST:
        return None
    alpha = 1 - confidence
    spread = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / tightest
    grown = n * spread + 1
    half = math.sqrt(variance * 2 * grown / (n * n * spread) * math.log(math.sqrt(grown) / alpha))
    return Estimate(mean, mean - half, mean + half)


def mean_difference(
    a: tuple[int, float, float], b: tuple[int, float, float], *, confidence: float = 0.95
) -> Estimate | None:
    """The first mean less the second, each as (n, mean, variance), at every moment at once; None below LEAST of either.

    Each has half of the error; what both allow is the difference's interval, which is on the safe side.
    """
    one, other = (mean_sequence(*each, confidence=(1 + confidence) / 2) for each in (a, b))
    if one is None or other is None:
        return None
    return Estimate(one.value - other.value, one.low - other.high, one.high - other.low)
