"""Latencies in fixed logarithmic buckets: mergeable, constant in size, quantiles within 3 %."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loopwright.kernel.errors import BadInput

GROWTH = 1.03
LONGEST_US = 100e6
_LOG = math.log(GROWTH)
_INNER = math.ceil(math.log(LONGEST_US) / _LOG)
BUCKETS = _INNER + 2
"""Bucket 0 holds everything up to 1 µs, the last one everything over 100 s."""


class LatencyHistogram:
    """Counts of latencies in microseconds. Bucket i holds (1.03^(i-1), 1.03^i] µs."""

    __slots__ = ("counts", "total_us")

    def __init__(self) -> None:
        self.counts = np.zeros(BUCKETS, dtype=np.int64)
        self.total_us = 0.0

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    @property
    def mean_us(self) -> float:
        """NaN without latencies."""
        return self.total_us / self.n if self.n else math.nan

    def add(self, us: ArrayLike) -> None:
        """Count latencies (microseconds, any shape). Raises BadInput for one that is negative or NaN."""
        values = np.asarray(us, dtype=np.float64).ravel()
        if not len(values):
            return
        if not (values >= 0).all():
            raise BadInput("a latency cannot be negative or NaN", where="latency", got=float(values.min()))
        self.counts += np.bincount(_bucket(values), minlength=BUCKETS)
        self.total_us += float(np.minimum(values, LONGEST_US).sum())

    def __add__(self, other: "LatencyHistogram") -> "LatencyHistogram":
        both = LatencyHistogram()
        both.counts = self.counts + other.counts
        both.total_us = self.total_us + other.total_us
        return both

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LatencyHistogram) and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]  # mutable

    def quantile(self, q: float) -> float:
        """The nearest-rank quantile in µs, rounded up to its bucket's end (at most 3 % more). NaN when
        empty.
        """
        if not 0 <= q <= 1:
            raise BadInput("a quantile lies between 0 and 1", where="latency", got=q)
        n = self.n
        if not n:
            return math.nan
        rank = max(1, math.ceil(q * n))
        return _end(int(np.searchsorted(np.cumsum(self.counts), rank)))

    def above(self, us: float) -> int:
        """How many latencies lie above `us`. Those in the bucket that holds `us` (3 % wide) do not count."""
        return int(self.counts[int(_bucket(np.array([us]))[0]) + 1 :].sum())

    def to_json(self) -> dict[str, Any]:
        """Only the buckets in use."""
        used = np.flatnonzero(self.counts)
        return {
            "growth": GROWTH,
            "total_us": self.total_us,
            "counts": {str(i): int(self.counts[i]) for i in used},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "LatencyHistogram":
        """Raises BadInput for a document that `to_json` did not write."""
        histogram = cls()
        try:
            if document["growth"] != GROWTH:
                raise ValueError(f"buckets grow by {document['growth']}, not {GROWTH}")
            for bucket, count in document["counts"].items():
                if not 0 <= int(bucket) < BUCKETS or not 0 <= int(count) < 2**53:
                    raise ValueError(f"bucket {bucket}: {count}")
                histogram.counts[int(bucket)] = int(count)
            histogram.total_us = float(document["total_us"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as wrong:
            raise BadInput(f"not a latency histogram: {wrong!r}", where="latency") from wrong
        return histogram


def _bucket(us: NDArray[np.float64]) -> NDArray[np.int64]:
    # The tiny subtraction keeps a bucket's own end inside it in spite of rounding.
    place = np.ceil(np.log(np.maximum(us, 1.0)) / _LOG - 1e-9)
    buckets: NDArray[np.int64] = np.minimum(place, BUCKETS - 1).astype(np.int64)
    return buckets


def _end(bucket: int) -> float:
    return LONGEST_US if bucket > _INNER else min(GROWTH**bucket, LONGEST_US)
