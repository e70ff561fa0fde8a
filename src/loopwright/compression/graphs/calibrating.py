"""Ranges of activations from a sample: by extremes, by entropy, by percentile; and how large each channel gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from loopwright.compression.graphs.running import observe
from loopwright.compression.subject import Array, Feeds
from loopwright.kernel.errors import BadInput

METHODS = ("minmax", "entropy", "percentile")
BINS = 2048
STEP = 16
"""Bins between two thresholds that the entropy is compared at."""

Ranges = dict[str, tuple[float, float]]


def check_method(method: str, percentile: float, step: str) -> None:
    """Raise BadInput for an unknown way of calibrating."""
    if method not in METHODS:
        raise BadInput("unknown calibration", where=step, got=method, wanted=", ".join(METHODS))
    if not 50 < percentile <= 100:
        raise BadInput("not a percentile of use", where=step, got=percentile, wanted="above 50, at most 100")


def ranges(
    model: ModelProto, names: Sequence[str], feeds: Feeds, folder: Path, method: str, percentile: float = 99.99,
    threads: int = 1,
) -> Ranges:  # fmt: skip
    """Lowest and highest value to represent, per tensor of `names`. Runs once for "minmax", twice for the others."""
    low: dict[str, float] = dict.fromkeys(names, np.inf)
    high: dict[str, float] = dict.fromkeys(names, -np.inf)

    def extremes(name: str, values: Array) -> None:
        if values.size:
            low[name] = min(low[name], float(values.min()))
            high[name] = max(high[name], float(values.max()))

    observe(model, names, feeds, folder, extremes, threads)
    seen = [name for name in names if high[name] >= low[name]]
    found = {name: (low[name], high[name]) for name in seen}
    if method == "minmax":
        return found
    counts: dict[str, Array] = {name: np.zeros(BINS, np.int64) for name in seen}
    spans = {name: _span(found[name], method) for name in seen}

    def count(name: str, values: Array) -> None:
        if name not in counts:
            return
        flat = values.reshape(-1)
        if method == "entropy":  # zero is represented exactly by any range: it says nothing about which
            flat = np.abs(flat[flat != 0])
        counts[name] += np.histogram(flat, BINS, range=spans[name])[0]

    observe(model, names, feeds, folder, count, threads)
    for name in seen:
        if method == "entropy":
            two_sided = found[name][0] < 0 < found[name][1]
            limit = entropy_limit(counts[name], spans[name][1], 128 if two_sided else 256)
            found[name] = max(found[name][0], -limit), min(found[name][1], limit)
        else:
            found[name] = percentile_limits(counts[name], spans[name], percentile)
    return found


def entropy_limit(counts: Array, top: float, levels: int) -> float:
    """Where to cut |values|, so that what is rounded to `levels` steps tells most of what was there.

    counts (bins,): histogram of |values| over [0, top]. Smallest Kullback-Leibler divergence of the clipped from the
    rounded distribution (Migacz, "8-bit inference with TensorRT", 2017).
    """
    if counts.sum() == 0 or len(counts) <= levels:
        return top
    best, limit = np.inf, top
    for end in range(len(counts), levels - 1, -STEP):
        part = counts[:end].astype(np.float64)
        clipped = part.copy()
        clipped[-1] += counts[end:].sum()
        group = np.arange(end) * levels // end
        filled = part > 0
        share = np.bincount(group, filled, levels)
        total = np.bincount(group, part, levels)
        rounded = np.where(filled, (total / np.maximum(share, 1))[group], 0.0)
        if rounded.sum() == 0:
            continue
        divergence = _divergence(clipped / clipped.sum(), rounded / rounded.sum())
        if divergence < best:
            best, limit = divergence, top * end / len(counts)
    return limit


def percentile_limits(counts: Array, span: tuple[float, float], percentile: float) -> tuple[float, float]:
    """The range that holds `percentile` of the values, as much cut on either side."""
    edges = np.linspace(span[0], span[1], len(counts) + 1)
    share = np.cumsum(counts) / max(1, counts.sum())
    cut = (100 - percentile) / 200
    first = int(np.searchsorted(share, cut, side="right"))
    last = int(np.searchsorted(share, 1 - cut))
    return float(edges[min(first, len(counts) - 1)]), float(edges[min(last + 1, len(counts))])


@dataclass(slots=True)
class Channels:
    """Per channel (last axis) of one tensor: the largest absolute value, and the mean square."""

    largest: Array
    square: Array
    rows: int


def channels(
    model: ModelProto, names: Sequence[str], feeds: Feeds, folder: Path, threads: int = 1
) -> dict[str, Channels]:
    """How large the last axis of each tensor gets, place by place."""
    found: dict[str, Channels] = {}

    def see(name: str, values: Array) -> None:
        flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
        if not len(flat):
            return
        largest, square = np.abs(flat).max(axis=0), (flat**2).sum(axis=0)
        if name in found:
            one = found[name]
            one.largest, one.square = np.maximum(one.largest, largest), one.square + square
            one.rows += len(flat)
        else:
            found[name] = Channels(largest, square, len(flat))

    observe(model, names, feeds, folder, see, threads)
    for one in found.values():
        one.square = one.square / one.rows
    return found


def _span(extremes: tuple[float, float], method: str) -> tuple[float, float]:
    if method == "entropy":
        return 0.0, max(abs(extremes[0]), abs(extremes[1])) or 1.0
    return extremes if extremes[1] > extremes[0] else (extremes[0], extremes[0] + 1.0)


def _divergence(p: Array, q: Array) -> float:
    """Of `q` from `p` in nats, with a little of everything everywhere so that it stays finite."""
    tiny = 1e-4 / len(p)
    p, q = (p + tiny) / (1 + 1e-4), (q + tiny) / (1 + 1e-4)
    return float(np.sum(p * np.log(p / q)))
