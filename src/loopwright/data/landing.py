"""What a landing writes, as streams: bronze rows as they came, silver rows typed, quarantined rows with reasons."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.data.checking import Examination
from loopwright.data.contract import Contract
from loopwright.data.duck import connect
from loopwright.data.files import Files
from loopwright.data.lake import Lake, batch_bounds
from loopwright.data.parts import cast_batches, storable, total, write_parts
from loopwright.data.sql import quote as quote
from loopwright.data.sql import text as text
from loopwright.data.staged import MALFORMED, Staged
from loopwright.data.storage import Storage
from loopwright.kernel.clock import from_us, iso, to_us

MEMORY = "160MB"
TIME = pa.timestamp("us", "UTC")
BRONZE = [
    pa.field("_row", pa.int64()),
    pa.field("_batch", pa.string()),
    pa.field("_raw", pa.string()),
    pa.field("_malformed", pa.string()),
    pa.field("_ingested_at", TIME),
    pa.field("_source", pa.string()),
]
QUARANTINE = [
    pa.field("_row", pa.int64()),
    pa.field("_batch", pa.string()),
    pa.field("_raw", pa.string()),
    pa.field("_reasons", pa.list_(pa.string())),
    pa.field("_at", TIME),
]
"""The lake's own columns, behind those of the source. `_raw`: the text of a line that is no row; `_malformed`: why."""


def spilling(folder: Path, memory: str = MEMORY) -> duckdb.DuckDBPyConnection:
    """An engine with bounded memory that goes on in files below `folder`."""
    return connect(memory_limit=memory, spill=folder / "spill")


def bronze(staged: Staged, now: datetime) -> pa.RecordBatchReader:
    """Rows as they came, then malformed lines."""
    columns = storable(staged.rows.schema, widen=True)
    schema = pa.schema([*columns, *BRONZE])

    def batches() -> Iterator[pa.RecordBatch]:
        for rows in staged.rows.batches():
            yield _with(rows, _batch=staged.batch_id, _ingested_at=now, _source=staged.uri)
        for lines in staged.malformed.batches():
            told = _lines(lines).append_column("_malformed", pa.array(_faults(lines), pa.string()))
            yield _with(told, _batch=staged.batch_id, _ingested_at=now, _source=staged.uri)

    return pa.RecordBatchReader.from_batches(schema, cast_batches(batches(), schema))


def quarantine(
    staged: Staged,
    found: Examination,
    holders: "Holders",
    now: datetime,
    set_aside: Mapping[int, Sequence[str]] | None = None,
) -> pa.RecordBatchReader:
    """Rows that were set aside, then malformed lines. `set_aside`: more rows, by `_row`, with the rules they broke."""
    bad = found.bad()
    own = {"_row", "_reasons"}
    columns = storable(pa.schema([field for field in bad.schema if field.name not in own]), widen=True)
    schema = pa.schema([*columns, *QUARANTINE])

    def batches() -> Iterator[pa.RecordBatch]:
        broken = {rule.name for rule in found.report.rules if rule.failed}
        raw = pa.schema([*columns, *(field for field in bad.schema if field.name in own)])
        reader = pa.RecordBatchReader.from_batches(raw, cast_batches(bad, raw))
        for rows in holders.named(reader, broken):
            yield _with(rows, _batch=staged.batch_id, _at=now)
        if set_aside:
            for rows in staged.rows.batches():
                yield _with(_chosen(rows, set_aside), _batch=staged.batch_id, _at=now)
        for lines in staged.malformed.batches():
            reasons = pa.array([[f"malformed {fault}"] for fault in _faults(lines)], pa.list_(pa.string()))
            yield _with(_lines(lines).append_column("_reasons", reasons), _batch=staged.batch_id, _at=now)

    return pa.RecordBatchReader.from_batches(schema, cast_batches(batches(), schema))


def _chosen(rows: pa.RecordBatch, reasons: Mapping[int, Sequence[str]]) -> pa.RecordBatch:
    chosen = rows.filter(pc.is_in(rows.column("_row"), pa.array(list(reasons), pa.int64())))
    told = [list(reasons[row]) for row in chosen.column("_row").to_pylist()]
    return chosen.append_column("_reasons", pa.array(told, pa.list_(pa.string())))


def _faults(lines: pa.RecordBatch) -> list[str]:
    return [
        f"line{f' {line}' if line else ''}: {why}"
        for line, why in zip(lines.column("line").to_pylist(), lines.column("why").to_pylist(), strict=True)
    ]


class Times:
    """Counts rows that happened before what the table holds already, and rows of the future."""

    def __init__(self, column: str | None, newest: datetime | None, now: datetime) -> None:
        self.column = column
        self.late = 0
        self.future = 0
        self._newest, self._now = newest, now

    def see(self, rows: pa.RecordBatch) -> None:
        if self.column is None or self.column not in rows.schema.names:
            return
        times = rows.column(self.column)
        if pa.types.is_date(times.type):
            times = times.cast(pa.timestamp("us"))
        if not pa.types.is_timestamp(times.type):
            return
        micros = times.cast(pa.timestamp("us", times.type.tz)).cast(pa.int64())
        if self._newest is not None:
            self.late += pc.sum(pc.less(micros, to_us(self._newest))).as_py() or 0
        self.future += pc.sum(pc.greater(micros, to_us(self._now))).as_py() or 0

    def notes(self) -> list[str]:
        return (
            [f"{self.future:,} rows have a `{self.column}` after the time of ingestion, {iso(self._now)}"]
            if self.future
            else []
        )


def good(found: Examination, batch: str, times: Times) -> pa.RecordBatchReader:
    """Rows that keep the contract, typed, with their batch."""
    rows = found.good()
    schema = storable(pa.schema([*rows.schema, pa.field("_batch", pa.string())]))

    def batches() -> Iterator[pa.RecordBatch]:
        for each in rows:
            times.see(each)
            yield _with(each, _batch=batch)

    return pa.RecordBatchReader.from_batches(schema, cast_batches(batches(), schema))


def newest(found: Files | None, column: str | None, folder: Path) -> datetime | None:
    """The greatest value of a time column; None without rows."""
    if found is None or column is None or column not in found.schema.names:
        return None
    kind = found.schema.field(column).type
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        return None
    with spilling(folder) as engine:
        found.view(engine, "held", [column])
        ((value,),) = engine.execute(f"SELECT epoch_us(max({quote(column)})) FROM held").fetchall()
    return None if value is None else from_us(value)


def key_columns(contract: Contract) -> list[str]:
    """Columns that a rule wants unique over the whole table."""
    return sorted({column for rule in contract.rules if rule.over_table for column in rule.columns})


def others(
    lake: Lake, model: str, table: str, columns: Sequence[str], batch: str, folder: Path
) -> Files | None:
    """`columns` and `_batch` of the rows that other batches put into silver; None when there are none."""
    if not columns or not lake.exists("silver", model, table):
        return None
    known = lake.open("silver", model, table)
    silver = pa.schema(known.schema())
    schema = pa.schema([silver.field(name) for name in (*columns, "_batch") if name in silver.names])
    clean, mixed = [], []
    for uri, (least, greatest) in sorted(batch_bounds(known).items()):
        if least is None or greatest is None or least <= batch <= greatest:
            if not (least == greatest == batch):
                mixed.append(uri)
        else:
            clean.append(uri)
    if mixed:
        rows = (
            b.filter(pc.not_equal(b.column("_batch"), batch)) for b in Files(tuple(mixed), schema).batches()
        )
        reader = pa.RecordBatchReader.from_batches(schema, rows)
        clean += on_disk(folder, "others", reader).uris
    return Files(tuple(clean), schema) if clean else None


@dataclass(frozen=True, slots=True)
class Holders:
    """Names the batch that holds the key of a row that was set aside as a duplicate.

    `landed`: keys and `_batch` of the other batches' rows.
    """

    landed: Files | None
    contract: Contract
    folder: Path

    def named(self, bad: pa.RecordBatchReader, broken: Set[str]) -> Iterator[pa.RecordBatch]:
        """`bad` with one more reason for each key that another batch holds: "id unique: batch 3f2a90c1b2d4 holds it".

        `broken`: the rules that rows broke.
        """
        names = set(bad.schema.names)
        held = set(self.landed.schema.names) if self.landed is not None else set()
        rules = [
            rule
            for rule in self.contract.rules
            if rule.over_table and rule.name in broken and set(rule.columns) <= names & held
        ]
        if self.landed is None or not rules:
            yield from bad
            return
        rows = on_disk(self.folder, "bad", bad)
        with spilling(self.folder) as engine:
            rows.view(engine, "bad")
            self.landed.view(engine, "landed")
            types = {name: kind for name, kind, *_ in engine.execute("DESCRIBE landed").fetchall()}
            joins, reasons = [], "bad._reasons"
            for i, rule in enumerate(rules):
                keys = ", ".join(f"{quote(column)} AS k{j}" for j, column in enumerate(rule.columns))
                # A cell that does not fit its column's type has no key that another row could hold.
                same = " AND ".join(
                    f"TRY_CAST(bad.{quote(column)} AS {types[column]}) = h{i}.k{j}"
                    for j, column in enumerate(rule.columns)
                )
                grouped = ", ".join(f"k{j}" for j in range(len(rule.columns)))
                joins.append(
                    f"LEFT JOIN (SELECT {grouped}, min(_batch) AS batch FROM (SELECT {keys}, _batch FROM landed)"
                    f" GROUP BY {grouped}) AS h{i} ON {same} AND list_contains(bad._reasons, {text(rule.name)})"
                )
                told = f"{text(rule.name + ': batch ')} || left(h{i}.batch, 12) || ' holds it'"
                reasons = (
                    f"CASE WHEN h{i}.batch IS NULL THEN {reasons} ELSE list_append({reasons}, {told}) END"
                )
            columns = ", ".join(f"bad.{quote(name)}" for name in rows.names if name != "_reasons")
            query = f"SELECT {columns}, {reasons} AS _reasons FROM bad {' '.join(joins)} ORDER BY bad._row"
            yield from engine.sql(query).to_arrow_reader(64 * 1024)


def on_disk(folder: Path, name: str, rows: pa.RecordBatchReader) -> Files:
    """`rows` as files below `folder`."""
    here = Storage.at(folder / name)
    parts = write_parts(here, here.root, rows.schema, rows)
    return Files(tuple(here.path(part.path) for part in parts), rows.schema, total(parts))


def _lines(lines: pa.RecordBatch) -> pa.RecordBatch:
    """Malformed lines as rows of nothing but `_raw`."""
    assert lines.schema.names == MALFORMED.names
    return pa.RecordBatch.from_arrays([lines.column("text")], names=["_raw"])


def _with(rows: pa.RecordBatch, **constants: object) -> pa.RecordBatch:
    """`rows` and columns that have one value throughout."""
    for name, value in constants.items():
        kind = TIME if isinstance(value, datetime) else pa.string()
        rows = rows.append_column(name, pa.repeat(pa.scalar(value, kind), rows.num_rows))
    return rows
