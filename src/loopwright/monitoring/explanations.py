"""The explanation log: beside each file of the prediction log one of the same name that says why.

    root/<model>/day=2013-04-01/<batch>.parquet

A file carries the modification time of the log file it explains: one that was shipped again, or merged into its day,
is told by that and explained anew. Files appear whole or not at all, so a kill loses work and never a row.
"""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from loopwright.kernel.clock import from_us
from loopwright.kernel.files import write_atomic
from loopwright.monitoring.log import MERGED, PredictionLog, plain_name

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("version", pa.int32()),
        ("arm", pa.string()),
        ("event_time", pa.timestamp("us", tz="UTC")),
        ("output", pa.string()),
        ("base", pa.float64()),
        ("raw", pa.float64()),
        ("contributions", pa.list_(pa.float64())),
    ]
)
"""`contributions` are in the order of the version's features, named in the file's metadata; raw = base + their sum."""

_ABOUT = b"loopwright"


class About(msgspec.Struct, frozen=True):
    """What a file says of itself. `features` and `methods` by version; `skipped` rows by reason."""

    explained: int = 0
    features: dict[str, list[str]] = {}
    methods: dict[str, str] = {}
    skipped: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the explanations of a model have come."""

    files: int
    waiting: int
    explained: int
    skipped: Mapping[str, int]
    methods: Mapping[str, str]
    newest: datetime | None


@dataclass(frozen=True, slots=True)
class ExplanationLog:
    """The explanations under `root` of the prediction log under `predictions`. One writer, any number of readers."""

    root: Path
    predictions: Path
    _settled: dict[Path, tuple[int, bool]] = field(default_factory=dict)

    def waiting(self, model: str, most: int = 200) -> list[Path]:
        """Log files without an explanation of what they hold now, oldest day first; a few more than `most` at most.

        Days in which nothing moved since they were found complete are passed by.
        """
        folder = PredictionLog(self.predictions).root / plain_name(model)
        found: list[Path] = []
        for name, moved in _days(folder):
            day = folder / name
            was, complete = self._settled.get(day, (0, False))
            if complete and was == moved:
                continue
            here = [file for file in sorted(day.glob("[!.]*.parquet")) if not self._is_done(model, file)]
            # Complete only when seen twice: a file may have come in the same tick of the file system's clock.
            self._settled[day] = (moved, not here and was == moved)
            found += here
            if not here:
                self._tidy(model, day)
            if len(found) >= most:
                break
        return found

    def write(self, model: str, source: Path, moment: int, rows: pa.Table, about: About) -> Path:
        """Keep `rows` as the explanations of `source` as it was at `moment` (its modification time in ns).

        Of a merged day, what was explained before is kept too, in this one file.
        """
        target = self._target(model, source)
        if source.name == MERGED:
            rows, about = self._with_earlier(target.parent, rows, about)
        told = {_ABOUT: msgspec.json.encode(msgspec.structs.replace(about, explained=rows.num_rows))}
        buffer = io.BytesIO()
        pq.write_table(rows.replace_schema_metadata(told), buffer, compression="zstd")
        write_atomic(target, buffer.getvalue())
        os.utime(target, ns=(moment, moment))
        if source.name == MERGED:
            self._tidy(model, source.parent)
        return target

    def known(self, model: str, source: Path) -> set[tuple[str, int, str]]:
        """(id, version, arm) explained in the day of `source` already; asked for merged days only."""
        found: set[tuple[str, int, str]] = set()
        for file in self._target(model, source).parent.glob("[!.]*.parquet"):
            table = pq.read_table(file, columns=["id", "version", "arm"], partitioning=None)
            found.update(
                zip(*(table.column(name).to_pylist() for name in ("id", "version", "arm")), strict=True)
            )
        return found

    def progress(self, model: str) -> Progress:
        """Counts over all files; reads their footers only."""
        folder = self.root / plain_name(model)
        logged = list((self.predictions / plain_name(model)).glob("day=*/[!.]*.parquet"))
        skipped: dict[str, int] = {}
        methods: dict[str, str] = {}
        explained, newest = 0, 0
        for file in folder.glob("day=*/[!.]*.parquet"):
            metadata = pq.read_metadata(file)
            about = _about(metadata.metadata)
            explained += about.explained
            methods |= about.methods
            for why, rows in about.skipped.items():
                skipped[why] = skipped.get(why, 0) + rows
            newest = max([newest, *_latest(metadata)])
        waiting = sum(not self._is_done(model, file) for file in logged)
        return Progress(
            len(logged), waiting, explained, skipped, dict(sorted(methods.items())), from_us(newest) if newest else None
        )  # fmt: skip

    def _target(self, model: str, source: Path) -> Path:
        return self.root / plain_name(model) / source.parent.name / source.name

    def _is_done(self, model: str, source: Path) -> bool:
        try:
            return self._target(model, source).stat().st_mtime_ns == source.stat().st_mtime_ns
        except FileNotFoundError:
            return not source.exists()

    def _with_earlier(self, folder: Path, rows: pa.Table, about: About) -> tuple[pa.Table, About]:
        tables, features, methods, skipped = (
            [rows],
            dict(about.features),
            dict(about.methods),
            dict(about.skipped),
        )
        for file in sorted(folder.glob("[!.]*.parquet")):
            table = pq.read_table(file, schema=SCHEMA, partitioning=None)
            earlier = _about(pq.read_metadata(file).metadata)
            features, methods = earlier.features | features, earlier.methods | methods
            tables.append(table)
        whole = pa.concat_tables([table.cast(SCHEMA) for table in tables])
        # After a crash in an earlier merge a row may stand in two files.
        keys = zip(*(whole.column(name).to_pylist() for name in ("id", "version", "arm")), strict=True)
        first: dict[tuple[Any, ...], int] = {}
        for place, key in enumerate(keys):
            first.setdefault(key, place)
        kept = (
            whole.take(pa.array(sorted(first.values()), pa.int64())) if len(first) < whole.num_rows else whole
        )
        return kept.sort_by([("event_time", "ascending"), ("id", "ascending")]), About(
            0, features, methods, skipped
        )

    def _tidy(self, model: str, day: Path) -> None:
        """Remove explanations of files that were merged into their day, once the day's own file has them."""
        merged = day / MERGED
        if not merged.exists() or not self._is_done(model, merged):
            return
        for file in self._target(model, merged).parent.glob("[!.]*.parquet"):
            if not (day / file.name).exists():
                file.unlink(missing_ok=True)


def explanation_rows(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """A table of SCHEMA from plain lists."""
    return pa.Table.from_arrays([pa.array(columns[one.name], type=one.type) for one in SCHEMA], schema=SCHEMA)


def _days(folder: Path) -> list[tuple[str, int]]:
    """(name, modification time in ns) of each day, oldest first. Asked twice a second, so without pathlib."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (one.name, one.stat().st_mtime_ns) for one in entries if one.name.startswith("day=")
            )
    except FileNotFoundError:
        return []


def _about(metadata: Mapping[bytes, bytes] | None) -> About:
    return msgspec.json.decode((metadata or {}).get(_ABOUT, b"{}"), type=About)


def _latest(metadata: Any) -> list[int]:
    """The largest event time of each row group, in microseconds, from the footer."""
    place = metadata.schema.names.index("event_time")
    found = []
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(place).statistics
        if statistics is not None and statistics.has_min_max:
            found.append(int(statistics.max.timestamp() * 1_000_000))
    return found
