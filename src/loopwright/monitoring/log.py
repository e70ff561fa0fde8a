"""The prediction log: every answer as a row of Parquet, in one folder per model and day of event time.

    root/<model>/day=2013-04-01/<batch>.parquet

Appending a batch again under the same name writes the same files over: nothing is there twice. Files appear
whole or not at all. Reads name the days they need, so a query over a week opens a week's files.
"""

import io
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from loopwright.kernel.clock import to_us
from loopwright.kernel.errors import BadInput
from loopwright.kernel.files import write_atomic
from loopwright.serving.events import Event

_DAY_US = 86_400_000_000
_MOMENT = pa.timestamp("us", tz="UTC")

MERGED = "day.parquet"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("unit", pa.string()),
        ("event_time", _MOMENT),
        ("at", _MOMENT),
        ("version", pa.int32()),
        ("arm", pa.string()),
        ("latency_us", pa.int64()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("inputs", pa.string()),
        ("outputs", pa.list_(pa.float64())),
        ("uid", pa.string()),
    ]
)
"""`inputs` is a JSON list in the order of the bundle's schema, null in place of what is not logged. `uid` is an event's
one name in every sink; null in files of before it had one."""


@dataclass(frozen=True, slots=True)
class PredictionLog:
    """The log under one folder. Any number of readers; writers must not share batch names."""

    root: Path

    def append(self, events: Iterable[Event], name: str, uids: Iterable[str] | None = None) -> int:
        """Write `events` as the batch `name` and return how many there were. Is idempotent.

        uids: one for each event; left out, they are named by the batch and their place in it.
        """
        parts: dict[tuple[str, int], list[tuple[Event, str]]] = defaultdict(list)
        named = (f"{name}/{place}" for place in itertools.count()) if uids is None else uids
        for event, uid in zip(events, named, strict=uids is not None):
            parts[event.model, event.event_time // _DAY_US].append((event, uid))
        for (model, day), members in parts.items():
            folder = self.root / plain_name(model) / f"day={_day(day).isoformat()}"
            write_atomic(folder / f"{plain_name(name)}.parquet", _parquet(members))
        return sum(len(members) for members in parts.values())

    def files(self, model: str, start: datetime, end: datetime) -> list[Path]:
        """The files that hold event times in [start, end), oldest day first."""
        first, last = to_us(start) // _DAY_US, (to_us(end) - 1) // _DAY_US
        days = (
            {f"day={_day(day).isoformat()}" for day in range(first, last + 1)}
            if last - first < 4000
            else None
        )
        folder = self.root / plain_name(model)
        if not folder.is_dir():
            return []
        found = (
            each
            for each in folder.iterdir()
            if each.name.startswith("day=") and (days is None or each.name in days)
        )
        return sorted(file for each in found for file in each.glob("[!.]*.parquet"))

    def compact(self, model: str, day: date, *, least: int = 64) -> int:
        """Merge a day's files into one when there are at least `least`; returns how many were merged.

        A crash in between leaves rows in two files for a while; readers take one event per id, version and
        arm.
        """
        folder = self.root / plain_name(model) / f"day={day.isoformat()}"
        files = sorted(folder.glob("[!.]*.parquet")) if folder.is_dir() else []
        if len(files) < least:
            return 0
        merged = pa.concat_tables([pq.read_table(file, schema=SCHEMA, partitioning=None) for file in files])
        whole = folder / MERGED
        write_atomic(whole, _bytes(merged.sort_by([("event_time", "ascending"), ("id", "ascending")])))
        for file in files:
            if file != whole:
                file.unlink(missing_ok=True)
        return len(files)


def plain_name(name: str) -> str:
    """Return `name` when it may be a file's name; raises BadInput for anything that could leave its
    folder.
    """
    if not name or name.startswith(".") or not set("/\\\0").isdisjoint(name):
        raise BadInput(
            "not a plain name", where="prediction log", got=name, wanted="letters, digits and . _ -"
        )
    return name


def _day(number: int) -> date:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=number)).date()


def _parquet(members: Sequence[tuple[Event, str]]) -> bytes:
    encode = msgspec.json.Encoder().encode
    events = [event for event, _ in members]
    columns = [
        [e.id for e in events],
        [e.unit for e in events],
        [e.event_time for e in events],
        [e.at for e in events],
        [e.version for e in events],
        [e.arm for e in events],
        [e.latency_us for e in events],
        [e.status for e in events],
        [e.error for e in events],
        [encode(e.inputs).decode() for e in events],
        [e.outputs for e in events],
        [uid for _, uid in members],
    ]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return _bytes(pa.Table.from_arrays(arrays, schema=SCHEMA))


def _bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
