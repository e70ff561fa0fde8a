"""Intervals that may be looked at at any time: how often they are wrong, and how wide they are."""

import math

import numpy as np
import pytest

from loopwright.kernel.errors import BadInput
from loopwright.stats.confidence import LEAST, mean_difference, mean_sequence
from loopwright.stats.proportions import normal

LOOKS = np.unique(np.geomspace(LEAST, 5000, 60).astype(int))


def paths(rng: np.random.Generator, rate: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances of `count` runs of coin throws at every look: (count, looks) each."""
    sums = (rng.random((count, LOOKS[-1])) < rate).cumsum(axis=1)[:, LOOKS - 1]
    means = sums / LOOKS
    return means, means * (1 - means) * LOOKS / (LOOKS - 1)


def test_looking_at_every_moment_is_wrong_no_more_often_than_said() -> None:
    means, variances = paths(np.random.default_rng(1), 0.2, 400)
    wrong = peeked = 0
    for mean, variance in zip(means, variances, strict=True):
        found = [mean_sequence(int(n), m, v) for n, m, v in zip(LOOKS, mean, variance, strict=True)]
        fixed = [normal(m, math.sqrt(v / n)) for n, m, v in zip(LOOKS, mean, variance, strict=True)]
        wrong += any(not each.low <= 0.2 <= each.high for each in found if each)
        peeked += any(not each.low <= 0.2 <= each.high for each in fixed)
    assert wrong <= 0.05 * 400
    assert peeked > 0.15 * 400  # what a plain interval does to those who look


def test_two_equal_arms_are_told_apart_no_more_often_than_said() -> None:
    rng = np.random.default_rng(2)
    (one, spread), (other, its) = paths(rng, 0.1, 300), paths(rng, 0.1, 300)
    wrong = 0
    for path in range(300):
        gaps = [
            mean_difference((int(n), one[path, k], spread[path, k]), (int(n), other[path, k], its[path, k]))
            for k, n in enumerate(LOOKS)
        ]
        wrong += any(not gap.low <= 0 <= gap.high for gap in gaps if gap)
    assert wrong <= 0.05 * 300


def test_it_narrows_and_costs_less_than_twice_a_plain_interval() -> None:
    widths = [mean_sequence(n, 0.5, 0.25) for n in (100, 1000, 10_000)]
    halves = [each.high - each.value for each in widths if each]
    assert halves == sorted(halves, reverse=True)
    plain = normal(0.5, math.sqrt(0.25 / 1000))
    assert 1 < halves[1] / (plain.high - plain.value) < 1.6


def test_few_values_say_nothing() -> None:
    assert mean_sequence(LEAST - 1, 0.5, 0.25) is None
    assert mean_difference((LEAST - 1, 0.5, 0.25), (1000, 0.5, 0.25)) is None
    with pytest.raises(BadInput):
        mean_sequence(100, 0.5, 0.25, confidence=1.0)
