"""What is counted about a feature in a span of event time. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from loopwright.bundle.signature import Dtype
from loopwright.kernel.clock import iso
from loopwright.monitoring.windows import Window

Source = Literal["offline", "requests"]
"""offline: what models are trained on (the gold frame). requests: what they were asked with (the prediction log)."""
TOP = 5
MAX_VALUE = 200
"""Characters kept of a text that is shown as one of the most frequent values."""


@dataclass(frozen=True, slots=True)
class FeatureStatistics:
    """One feature in one window. Counts are of rows; a NaN is a null.

    distinct: how many different values, nulls aside. minimum, maximum, mean, deviation (of the population): over finite
    numbers, None for texts and where there are none. top: the most frequent values of a text or truth value with their
    counts. newest: the event time of the newest row of the view's table known at the window's end, where that could be
    told; `age` follows from it.
    """

    feature: str
    view: str
    source: Source
    window: Window
    rows: int
    nulls: int
    distinct: int
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    deviation: float | None = None
    infinite: int = 0
    top: tuple[tuple[str, int], ...] = ()
    newest: datetime | None = None

    @property
    def null_rate(self) -> float | None:
        """The share of nulls; None without rows."""
        return self.nulls / self.rows if self.rows else None

    @property
    def age(self) -> float | None:
        """Seconds from the newest row known to the window's end; None where no time is known."""
        return None if self.newest is None else (self.window.end - self.newest).total_seconds()

    def payload(self) -> dict[str, Any]:
        """What is kept beside the counts of rows and nulls."""
        return {
            "distinct": self.distinct, "minimum": self.minimum, "maximum": self.maximum, "mean": self.mean,
            "deviation": self.deviation, "infinite": self.infinite, "top": [list(pair) for pair in self.top],
            "newest": iso(self.newest) if self.newest else None,
        }  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return {
            "feature": self.feature, "view": self.view, "source": self.source, "start": iso(self.window.start),
            "end": iso(self.window.end), "rows": self.rows, "nulls": self.nulls, "null_rate": self.null_rate,
            "age_seconds": self.age, **self.payload(),
        }  # fmt: skip


def statistics_of(
    columns: Mapping[str, NDArray[Any]],
    dtypes: Mapping[str, Dtype],
    *,
    views: Mapping[str, str],
    source: Source,
    window: Window,
    newest: Mapping[str, datetime] | None = None,
) -> list[FeatureStatistics]:
    """Statistics of every column named in `dtypes`.

    Numbers are float64 with NaN for null, texts objects with None. `views`: feature → view; `newest`: view → event time
    of its newest row.
    """
    return [
        _of(name, columns[name], dtype, views.get(name, ""), source, window, (newest or {}).get(views.get(name, "")))
        for name, dtype in dtypes.items()
    ]  # fmt: skip


def _of(
    name: str,
    values: NDArray[Any],
    dtype: Dtype,
    view: str,
    source: Source,
    window: Window,
    newest: datetime | None,
) -> FeatureStatistics:
    rows = len(values)
    if dtype == "string":
        texts = Counter(str(value) for value in values if value is not None)
        nulls = rows - texts.total()
        return FeatureStatistics(
            name, view, source, window, rows, nulls, len(texts), top=_top(texts), newest=newest
        )
    numbers = np.asarray(values, dtype=np.float64)
    present = numbers[~np.isnan(numbers)]
    finite = present[np.isfinite(present)]
    distinct, counts = np.unique(present, return_counts=True)
    top: tuple[tuple[str, int], ...] = ()
    if dtype == "bool":
        top = _top({str(bool(v)).lower(): int(c) for v, c in zip(distinct, counts, strict=True)})
    return FeatureStatistics(
        feature=name,
        view=view,
        source=source,
        window=window,
        rows=rows,
        nulls=rows - len(present),
        distinct=len(distinct),
        minimum=float(finite.min()) if len(finite) else None,
        maximum=float(finite.max()) if len(finite) else None,
        mean=float(finite.mean()) if len(finite) else None,
        deviation=float(finite.std()) if len(finite) else None,
        infinite=len(present) - len(finite),
        top=top,
        newest=newest,
    )


def _top(counts: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:TOP]
    return tuple((text[:MAX_VALUE], count) for text, count in most)
