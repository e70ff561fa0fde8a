"""A frame: rows in event-time order, each with what was known about it at its moment."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.features.module import Dtype
from loopwright.features.viewtests import ViewTestResult, results_of
from loopwright.kernel.clock import to_us
from loopwright.kernel.errors import BadInput

Array = np.ndarray[Any, Any]
LARGEST = 2**53
"""Whole numbers up to here are floats without loss."""


@dataclass(frozen=True, slots=True)
class Frame:
    """`table` holds `_id`, `_unit`, `_event_time`, `_label`, `_label_at` and the inputs, sorted by event
    time, then id.

    `_label` is float64: 0/1 for binary, the value for regression, the index into `classes` for multiclass;
    null while (or because) it is not known. `dtypes` names the inputs in order.
    """

    table: pa.Table
    dtypes: Mapping[str, Dtype]
    classes: tuple[str, ...] = ()
    _cache: dict[str, Array] = field(default_factory=dict, repr=False, compare=False)

    @property
    def rows(self) -> int:
        return int(self.table.num_rows)

    def __len__(self) -> int:
        return self.rows

    @property
    def tests(self) -> tuple[ViewTestResult, ...]:
        """How the views' tests went when the frame was built."""
        return results_of(self.table)

    def inputs(self) -> dict[str, Array]:
        """Input name → array of shape (rows,): float64 with NaN for null, strings as object with None."""
        return {name: self._column(name, dtype == "string") for name, dtype in self.dtypes.items()}

    def labels(self) -> Array:
        """float64 (rows,), NaN where not known."""
        return self._column("_label", False)

    def ids(self) -> Array:
        """Unique text per row, object (rows,)."""
        return self._column("_id", True)

    def units(self) -> Array:
        """Whom each row is about, object (rows,)."""
        return self._column("_unit", True)

    def event_times(self) -> Array:
        """datetime64[us] in UTC (rows,), NaT where the data has no time."""
        return self._times("_event_time")

    def label_times(self) -> Array:
        """When each label became (or will become) known: datetime64[us] in UTC, NaT where unknown."""
        return self._times("_label_at")

    def take(self, keep: Array) -> "Frame":
        """The rows where the boolean mask `keep` holds, or those at its integer positions, in frame order."""
        chosen = np.asarray(keep)
        table = (
            self.table.filter(pa.array(chosen)) if chosen.dtype == bool else self.table.take(pa.array(chosen))
        )
        return Frame(table, self.dtypes, self.classes)

    def slice(self, since: datetime | None = None, until: datetime | None = None) -> "Frame":
        """Rows with since <= event time < until; None leaves that side open."""
        times = self.event_times()
        keep = np.ones(self.rows, dtype=bool)
        if since is not None:
            keep &= times >= np.datetime64(to_us(since), "us")
        if until is not None:
            keep &= times < np.datetime64(to_us(until), "us")
        return self.take(keep)

    def labelled(self) -> "Frame":
        """Rows whose label is known."""
        return self.take(~np.isnan(self.labels()))

    def split(self, holdout: float | timedelta) -> tuple["Frame", "Frame"]:
        """Cut off the last part by event time: a share of the rows, or a span of time. Rows of one moment
        stay together.

        Without event time the part is chosen by a hash of the id, so that a row stays on its side as data
        grows.
        """
        if isinstance(holdout, timedelta):
            if holdout <= timedelta(0) or not self._has_time():
                raise BadInput(
                    "cannot hold out a span of time",
                    got=holdout,
                    wanted="a positive span and rows with event times",
                )
            times = self.event_times()
            late = times > times.max() - np.timedelta64(int(holdout / timedelta(microseconds=1)), "us")
            return self.take(~late), self.take(late)
        if not 0 < holdout < 1:
            raise BadInput("cannot hold out this share", got=holdout, wanted="a number between 0 and 1")
        if not self.rows:
            return self, self
        if self._has_time():
            order = self.event_times().astype(np.int64)
            cut = np.sort(order)[min(int(np.ceil(self.rows * (1 - holdout))), self.rows - 1)]
        else:
            order = _hashes(self.ids())
            cut = np.sort(order)[min(int(np.ceil(self.rows * (1 - holdout))), self.rows - 1)]
        late = order >= cut
        return self.take(~late), self.take(late)

    def _has_time(self) -> bool:
        return bool(self.rows) and self.table.column("_event_time").null_count == 0

    def _column(self, name: str, text: bool) -> Array:
        if name not in self._cache:
            column = self.table.column(name)
            if text:
                values = np.array(column.to_pylist(), dtype=object)
            else:
                values = self._numbers(name).to_numpy(zero_copy_only=False).copy()
            values.flags.writeable = False
            self._cache[name] = values
        return self._cache[name]

    def _numbers(self, name: str) -> pa.ChunkedArray:
        """A column as float64; raises BadInput for whole numbers that it cannot hold exactly."""
        column = self.table.column(name)
        try:
            return pc.cast(column, pa.float64())
        except pa.ArrowInvalid:
            beyond = pc.filter(
                column, pc.greater(pc.abs_checked(pc.cast(column, pa.decimal128(38))), LARGEST)
            )
            raise BadInput(
                f"whole numbers of `{name}` are too large for a model: neighbours would become one number",
                where=f"INPUTS: {name}", got=str(beyond[0]), wanted=f"at most {LARGEST:,} (2^53) either way",
                next="An identifier is a text: say logicalType: string in its contract, or CAST it to VARCHAR, and "
                'declare the input as "string".',
            ) from None  # fmt: skip

    def _times(self, name: str) -> Array:
        column = pc.cast(self.table.column(name), pa.timestamp("us"))
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype="datetime64[us]")


def _hashes(ids: Array) -> Array:
    digests = b"".join(hashlib.blake2b(str(value).encode(), digest_size=8).digest() for value in ids)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)
