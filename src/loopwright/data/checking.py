"""Examines rows against a contract on DuckDB: a report, the good rows typed, the bad rows as they came with reasons."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from loopwright.data.check import Checked, CheckReport, examine
from loopwright.data.contract import Contract
from loopwright.data.files import BATCH_ROWS, Files
from loopwright.data.staged import Staged

Rows: TypeAlias = Files | pa.Table
Reference: TypeAlias = Callable[[str], Rows | None]
"""What a snapshot (digest prefix, or "previous") holds of the table; None: there is no previous one yet."""


class Examination:
    """`report` stands when the block is entered; `good` and `bad` read on demand, in input order, bounded in memory.

    Malformed lines are counted in the report; they are no rows, so `bad` does not give them.
    """

    def __init__(self, rows: pa.Table, checked: Checked) -> None:
        self.report: CheckReport = checked.report
        self._rows = rows
        self._checked = checked

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def good(self) -> pa.RecordBatchReader:
        """Rows that keep the contract: columns in their types, and `_row` (from 1)."""
        good = self._checked.good
        at = good.column_names.index("_row")
        return _reader(good.set_column(at, "_row", pc.add(good.column("_row"), 1)))

    def bad(self) -> pa.RecordBatchReader:
        """Rows to be set aside: columns as they came, `_row` (from 1), and `_reasons`, the names of broken rules."""
        bad = self._checked.bad
        rows = self._rows.take(pa.array(list(bad), pa.int64()))
        rows = rows.append_column("_row", pa.array([n + 1 for n in bad], pa.int64()))
        reasons = pa.array([list(names) for names in bad.values()], pa.list_(pa.string()))
        return _reader(rows.append_column("_reasons", reasons))


def examination(
    rows: Staged | Rows,
    contract: Contract,
    *,
    refs: Mapping[str, Rows] | None = None,
    landed: Rows | None = None,
    reference: Reference | None = None,
    now: datetime | None = None,
    memory_limit: str = "256MB",
    spill: Path | None = None,
    malformed: int = 0,
) -> Examination:
    """Judge `rows` against `contract`; use as `with examination(…) as found`.

    `refs`: the tables that relationships point to. `landed`: what the table holds from other batches (uniqueness is
    judged with it). `now`: against what freshness is measured (default: the clock). `memory_limit`: what the engine
    may take; more goes to files in `spill`. `malformed`: lines that are no rows (those of a `Staged` are counted
    without it). Raises BadInput when a column vanished or a table that a relationship needs is not there.
    """
    if isinstance(rows, Staged):
        malformed += rows.malformed.rows or 0
        rows = rows.rows
    table = _table(rows)
    checked = examine(
        table,
        contract,
        {name: _table(ref) for name, ref in (refs or {}).items()},
        landed=None if landed is None else _table(landed),
        malformed=malformed,
    )
    return Examination(table, checked)


def _table(rows: Rows) -> pa.Table:
    return rows.table(rows.schema.names) if isinstance(rows, Files) else rows


def _reader(rows: pa.Table) -> pa.RecordBatchReader:
    def batches() -> Iterator[pa.RecordBatch]:
        yield from rows.to_batches(max_chunksize=BATCH_ROWS)

    return pa.RecordBatchReader.from_batches(rows.schema, batches())
