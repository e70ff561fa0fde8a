"""Examines rows against a contract on DuckDB: a report, the good rows typed, the bad rows as they came with reasons.

One query measures every rule; outlier rules need one for their bounds first, queries of the contract and drift their
own. A second one names the bad rows, and is asked only when rows must be set aside. Nothing but counts, examples and
one mark for each row comes into Python's memory; the engine stays under its limit and spills to disk.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from loopwright.data.check_cells import quote
from loopwright.data.check_drift import Reference, measure_drift
from loopwright.data.check_input import finite, numbered, plain, require_columns, top, view
from loopwright.data.check_queries import BITS, EXAMPLES
from loopwright.data.check_report import CheckReport, RuleResult, State
from loopwright.data.check_sql import Harmful, require_condition, require_query
from loopwright.data.compiling import WHOLE, compile_rules
from loopwright.data.contract import Contract, Rule, Scope, Severity
from loopwright.data.duck import MEMORY, connect, lock, memory_bytes
from loopwright.data.files import BATCH_ROWS, Files
from loopwright.data.staged import Staged
from loopwright.data.time_limit import Overdue, seconds_for, within
from loopwright.data.workspace import workspace
from loopwright.kernel.errors import BadInput, NotFound, Unavailable

__all__ = ["Examination", "Reference", "examination", "plain", "require_columns"]

MALFORMED = "malformed line"
LINES = 2048
_SHOWN = 8


def examination(
    rows: Staged | Files | pa.Table,
    contract: Contract,
    *,
    refs: Mapping[str, Files | pa.Table] | None = None,
    landed: Files | pa.Table | None = None,
    reference: Reference | None = None,
    now: datetime | None = None,
    memory_limit: str = MEMORY,
    spill: Path | None = None,
    malformed: int = 0,
) -> "Examination":
    """Judge `rows` against `contract`; use as `with examination(…) as found`.

    `refs`: the tables that relationships point to. `landed`: what the table holds from other batches (uniqueness is
    judged with it). `reference`: what a snapshot, named by the first letters of its digest or "previous", holds of the
    table; it returns None when there is no previous one yet, and raises NotFound for one nobody took. `now`: against
    what freshness is measured (default: the clock). `memory_limit`: what the engine may take; more goes to files in
    `spill` (default: the system's folder for temporary files). `malformed`: lines that are no rows (those of a `Staged`
    are counted without it).

    Entering raises BadInput when a column vanished or a table that a relationship needs is not there, and Unavailable
    when the memory limit is too small or the disk is full.
    """
    if isinstance(rows, Staged):
        malformed += rows.malformed.rows or 0
        rows = rows.rows
    return Examination(
        rows,
        contract,
        dict(refs or {}),
        landed,
        reference,
        now or datetime.now(UTC),
        memory_limit,
        spill,
        malformed,
    )


class Examination:
    """`report` stands when the block is entered; `good` and `bad` read on demand, in input order, bounded in memory.

    One stream at a time: asking for the next one ends the one before. Malformed lines are counted in the report; they
    are no rows, so `bad` does not give them. For one thread.
    """

    report: CheckReport

    def __init__(
        self,
        rows: Files | pa.Table,
        contract: Contract,
        refs: Mapping[str, Files | pa.Table],
        landed: Files | pa.Table | None,
        reference: Reference | None,
        now: datetime,
        memory_limit: str,
        spill: Path | None,
        malformed: int,
    ) -> None:
        self._rows = numbered(rows)
        self._ordered = isinstance(self._rows, Files) and self._rows.numbered
        self._contract = contract
        self._refs = {name: ref for name, ref in refs.items() if name != contract.name}
        self._landed = landed
        self._reference = reference
        self._now = now
        self._limit = memory_limit
        self._spill = spill
        self._malformed = malformed
        self._errors: dict[str, str] = {}
        self._masked: tuple[str, ...] | None = None
        self._stream = 0
        self._reader: pa.RecordBatchReader | None = None

    def __enter__(self) -> Self:
        schema = self._rows.schema
        require_columns(schema.names, self._contract, self._contract.name)
        for table in sorted(self._contract.references()):
            if table not in self._refs:
                raise BadInput(
                    f"the contract of {self._contract.name} points to a table that is not there",
                    where=self._contract.source,
                    got=table,
                    wanted="it ingested before",
                    next=f"Ingest {table} first, or add it to data.sources",
                )
        self._ending = ExitStack()
        folder = self._spill or self._ending.enter_context(workspace(None))
        self._engine = self._connect(folder / f"spill-{id(self)}")
        try:
            self._judge()
        except duckdb.OutOfMemoryException as error:
            self.close()
            raise Unavailable(
                "the check does not fit in its memory",
                where=self._contract.name,
                got=f"a limit of {self._limit}; {_short(error)}",
                wanted="more memory, or more room for temporary files",
                next="Give it more: --memory 1GB",
            ) from error
        except duckdb.IOException as error:
            self.close()
            raise Unavailable(
                "cannot read the rows, or spill them", where=self._contract.name, got=_short(error),
                next="Check free space and permissions",
            ) from error  # fmt: skip
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free memory and disk."""
        self._stream += 1
        self._engine.close()
        if self._spill is not None:
            shutil.rmtree(self._spill / f"spill-{id(self)}", ignore_errors=True)
        self._ending.close()

    # Streams.

    def good(self) -> pa.RecordBatchReader:
        """Rows that keep the contract: columns in their types, and `_row` (from 1)."""
        broken = self._bad_bits()
        names = ", ".join(quote(c.name) for c in self._contract.columns)
        found = self._read(f"SELECT {names}, _row FROM _lw_typed")
        read = self._batches(found)

        def batches() -> Iterator[pa.RecordBatch]:
            for batch in read:
                numbers = batch.column(batch.num_columns - 1).to_numpy()
                keep = ~broken[numbers - 1] if broken is not None else None
                yield batch if keep is None or keep.all() else batch.filter(pa.array(keep))

        return pa.RecordBatchReader.from_batches(found.schema, batches())

    def bad(self) -> pa.RecordBatchReader:
        """Rows to be set aside: columns as they came, `_row` (from 1), and `_reasons`, the names of broken rules."""
        names = [name for name in self._rows.schema.names if name != "_row"]
        schema = pa.schema([
            *(self._rows.schema.field(name) for name in names),
            pa.field("_row", pa.int64()), pa.field("_reasons", pa.list_(pa.string())),
        ])  # fmt: skip
        stopping = self._stopping
        if not stopping:
            return schema.empty_table().to_reader()
        self._mask()
        raw = "".join(f"_lw_raw.{quote(name)}, " for name in names)
        found = self._read(
            f"SELECT {raw}_lw_raw._row, {self._compiled.reasons(stopping)} AS _reasons"
            " FROM _lw_raw JOIN _lw_bad ON _lw_raw._row = _lw_bad._row ORDER BY _lw_raw._row"
        )
        read = self._batches(found)

        def batches() -> Iterator[pa.RecordBatch]:
            for batch in read:
                yield batch.cast(schema) if batch.schema != schema else batch

        return pa.RecordBatchReader.from_batches(schema, batches())

    def _read(self, query: str) -> pa.RecordBatchReader:
        self._stream += 1
        if self._reader is not None:
            self._reader.close()  # an open result would keep the connection from the next one
        self._reader = self._engine.sql(query).to_arrow_reader(BATCH_ROWS)
        return self._reader

    def _batches(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        mine = self._stream

        def batches() -> Iterator[pa.RecordBatch]:
            while True:
                if mine != self._stream:
                    raise RuntimeError(
                        "this stream ended when another one was asked for, or the examination was closed"
                    )
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    return
                yield batch

        return batches()

    def _bad_bits(self) -> NDArray[np.bool_] | None:
        """By position, whether a row is bad; None when none is."""
        if not self._stopping:
            return None
        self._mask()
        (top,) = self._all("SELECT max(_row) FROM _lw_bad")[0]
        # One byte a row only while it is filled; a row behind the last bad one is good.
        bits = np.zeros(max(self._count, int(top or 0)), dtype=np.bool_)
        for batch in self._batches(self._read("SELECT _row FROM _lw_bad")):
            bits[batch.column(0).to_numpy() - 1] = True
        return bits

    def _mask(self) -> None:
        """Make the table `_lw_bad` of bad rows; once."""
        if self._masked is None:
            self._masked = self._stopping
            self._engine.execute(f"CREATE TEMP TABLE _lw_bad AS {self._compiled.bad_rows(self._masked)}")

    # The engine; others than DuckDB answer as its connection does.

    def _connect(self, folder: Path) -> Any:
        """Open the engine, and what parses SQL as DuckDB does. `folder`: where it may spill to."""
        self._parser = connect(memory_limit=self._limit, spill=folder)
        return self._parser

    def _relation(self, name: str, rows: Files | pa.Table) -> Sequence[str]:
        """Make the rows a relation called `name`; return the files it reads."""
        return view(self._engine, name, rows)

    def _lock(self, paths: Sequence[str]) -> None:
        """From here on the engine reads `paths` and its relations, and nothing else."""
        lock(self._engine, paths)

    def _limited(self) -> AbstractContextManager[None]:
        """For how long SQL that the contract brings may run; Overdue beyond."""
        return within(self._engine, seconds_for(self._count))

    # The judgement.

    def _judge(self) -> None:
        engine, contract = self._engine, self._contract
        paths = [*self._relation("_lw_raw", self._rows)]
        for name, ref in self._refs.items():
            paths += self._relation(name, ref)
        landed: Sequence[str] = ()
        if self._landed is not None:
            landed = self._landed.schema.names
            paths += self._relation("_lw_landed", self._landed)
        references = self._references(paths)
        self._lock(paths)

        self._count = self._rows.rows if isinstance(self._rows, Files) and self._rows.rows is not None else -1
        if self._count < 0:
            ((self._count,),) = self._all("SELECT count(*) FROM _lw_raw")
        sorting = sum(rule.kind in ("quantile", "outlier") for rule in contract.rules)
        in_memory = self._count * 8 * max(1, sorting) <= memory_bytes(self._limit) // 8
        self._compiled = compile_rules(
            contract, self._rows.schema, landed=landed, in_memory=in_memory, finite=finite(self._rows),
            now=self._now,
        )  # fmt: skip
        self._errors |= self._compiled.errors
        self._refuse_harmful()
        engine.execute(f"CREATE TEMP VIEW _lw_typed AS {self._compiled.typed}")
        names = ", ".join(quote(c.name) for c in contract.columns)
        engine.execute(f"CREATE OR REPLACE TEMP VIEW {quote(contract.name)} AS SELECT {names} FROM _lw_typed")
        self._bound_outliers()
        self._measure()
        self._report(references)

    def _references(self, paths: list[str]) -> dict[str, str | None]:
        """By snapshot that a drift rule names, the view of its rows; None: there is no previous one yet."""
        views: dict[str, str | None] = {}
        missing: dict[str, str] = {}
        for rule in self._contract.rules:
            snapshot = str(rule.arguments.get("snapshot", ""))
            if rule.kind != "drift":
                continue
            if snapshot not in views and snapshot not in missing:
                try:
                    rows = self._reference(snapshot) if self._reference is not None else None
                except NotFound as error:
                    missing[snapshot] = str(error)
                else:
                    views[snapshot] = None if rows is None else f"_lw_ref{len(views)}"
                    if rows is not None:
                        paths += self._relation(f"_lw_ref{len(views) - 1}", rows)
            if self._reference is None:
                self._errors[rule.name] = "there are no snapshots to compare with here"
            elif snapshot in missing:
                self._errors[rule.name] = missing[snapshot]
        return views

    def _refuse_harmful(self) -> None:
        tables = {self._contract.name, *self._refs}
        for rule in self._contract.rules:
            if rule.kind == "condition":
                try:
                    require_condition(self._parser, str(rule.arguments["condition"]), tables)
                except (Harmful, duckdb.Error) as error:
                    self._errors[rule.name] = _short(error)

    def _bound_outliers(self) -> None:
        """Make `_lw_bounds`, the one row of what each outlier rule lets pass."""
        bounds = []
        for outlier in self._compiled.outliers:
            low, high = self._bounds(outlier)
            bounds += [f"{low} AS low{outlier.index}", f"{high} AS high{outlier.index}"]
        if bounds:
            self._engine.execute(f"CREATE TEMP TABLE _lw_bounds AS SELECT {', '.join(bounds)}")

    def _bounds(self, outlier: Any) -> tuple[str, str]:
        threshold = float(outlier.rule.arguments["threshold"])
        ((first,),) = self._all(f"SELECT {outlier.first}")
        if first is None:
            return "CAST(NULL AS DOUBLE)", "CAST(NULL AS DOUBLE)"
        ((second,),) = self._all(f"SELECT {outlier.second.format(center=repr(float(first)))}")
        if outlier.fallback is None:
            spread = threshold * (second - first)
            return repr(float(first - spread)), repr(float(second + spread))
        spread = 1.4826 * second
        if not spread:
            # More than half of the values are one: the mean distance says more than a median of 0.
            ((mean,),) = self._all(f"SELECT {outlier.fallback.format(center=repr(float(first)))}")
            spread = 1.2533 * mean
        return repr(float(first - threshold * spread)), repr(float(first + threshold * spread))

    def _measure(self) -> None:
        """Fill `_measured` (rule → number), `_first` (rule → numbers of rows) and `_bad` (how many rows are bad)."""
        compiled = self._compiled
        self._measured: dict[str, Any] = dict.fromkeys(compiled.unbroken, 0)
        self._first: dict[str, list[int]] = {}
        known = {*compiled.measures, *compiled.conditions} - compiled.unbroken
        names = [
            rule.name for rule in self._contract.rules if rule.name in known and rule.name not in self._errors
        ]
        own = {rule.name for rule in self._contract.rules if rule.kind == "condition"}
        try:
            local = self._own_pass(names) if own & set(names) else self._pass(names)
        except (duckdb.OutOfMemoryException, duckdb.IOException):
            raise
        except Overdue:
            names = self._without_failing(names, own)
            local = self._pass(names)
        except duckdb.Error:
            names = self._without_failing(names, set(names))
            local = self._pass(names)
        aside = self._aside
        self._stopping = tuple(
            n for n in names if n in aside and n in compiled.conditions and self._measured[n]
        )
        if len(self._stopping) == 1:
            self._bad = int(self._measured[self._stopping[0]])
        elif any(name in compiled.joins for name in self._stopping):
            self._mask()
            ((self._bad,),) = self._all("SELECT count(*) FROM _lw_bad")
        else:
            self._bad = local

    @property
    def _aside(self) -> set[str]:
        return {rule.name for rule in self._contract.rules if rule.severity is Severity.QUARANTINE}

    def _pass(self, names: Sequence[str]) -> int:
        """Measure the rules; return how many rows break one that sets rows aside, as far as no join tells."""
        compiled, aside = self._compiled, self._aside
        broken = [name for name in names if name not in compiled.measures]
        measured = [name for name in names if name in compiled.measures]
        masks = max(1, -(-len(broken) // BITS))
        bad = 0
        self._measured |= dict.fromkeys(broken, 0)
        first: dict[str, list[int]] = {name: [] for name in broken}
        found = self._engine.execute(compiled.aggregate(broken, measured))
        while lines := found.fetchmany(LINES):
            for line in lines:
                count, rows = int(line[masks] or 0), line[masks + 1] or ()
                hit = [n for i, n in enumerate(broken) if count and line[i // BITS] >> i % BITS & 1]
                bad += count if any(name in aside for name in hit) else 0
                for name in hit:
                    self._measured[name] += count
                    first[name] = sorted([*first[name], *rows])[:EXAMPLES]
            self._count = int(lines[0][masks + 2])
            self._measured |= dict(zip(measured, lines[0][masks + 3 :], strict=True))
        self._first |= first
        return bad

    def _own_pass(self, names: Sequence[str]) -> int:
        """`_pass` with conditions that the contract brings: for as long as those may take."""
        with self._limited():
            return self._pass(names)

    def _without_failing(self, names: Sequence[str], doubted: Set[str]) -> list[str]:
        """The rules that can be evaluated. The others, found by asking one by one, become errors that name them."""
        kept = []
        for name in names:
            if name not in doubted:
                kept.append(name)
                continue
            try:
                self._own_pass([name])
            except (duckdb.OutOfMemoryException, duckdb.IOException):
                raise
            except duckdb.Error as error:
                self._errors[name] = _short(error)
            else:
                kept.append(name)
        if names and not kept:
            self._pass([])  # raises when it is the rows that cannot be read
        return kept

    # The report.

    def _report(self, references: Mapping[str, str | None]) -> None:
        found = [self._result(rule, references) for rule in self._contract.rules]
        results = self._with_examples(found)
        reasons = {name: int(self._measured[name]) for name in self._stopping}
        if self._malformed:
            reasons[MALFORMED] = self._malformed
            results.append(RuleResult(MALFORMED, "", Severity.QUARANTINE, Scope.ROW, "FAIL", self._malformed))
        states = {result.state for result in results}
        self.report = CheckReport(
            state="ERROR" if "ERROR" in states else "FAIL" if "FAIL" in states else "PASS",
            input_rows=self._count + self._malformed,
            good_rows=self._count - self._bad,
            bad_rows=self._bad + self._malformed,
            rules=tuple(results),
            reasons=reasons,
        )

    def _result(self, rule: Rule, references: Mapping[str, str | None]) -> RuleResult:
        if rule.name in self._errors:
            return self._error(rule)
        if rule.name in self._compiled.conditions:
            failed = int(self._measured[rule.name])
            holds = rule.limit.holds(failed, self._count)
            limited = "" if str(rule.limit) == "== 0" else f", wanted {rule.limit}"
            why = "" if holds else f"{failed} of {self._count} rows{limited}"
            return _result(rule, holds, failed, why)
        try:
            measured = self._number(rule, references)
        except duckdb.OutOfMemoryException:
            raise
        except (duckdb.Error, ValueError, TypeError) as error:
            self._errors[rule.name] = _short(error)
            return self._error(rule)
        rows = self._count + (self._malformed if rule.kind in WHOLE else 0)
        if measured is None:
            if rule.kind == "drift":
                return _result(rule, True, 0, "no snapshot to compare with yet")
            kind = "moments before now" if rule.kind == "freshness" else "values"
            return _result(rule, False, 0, f"there are no {kind} to measure, wanted {rule.limit}")
        holds = rule.limit.holds(measured, rows)
        why = "" if holds else f"measured {measured:.6g} of {rows} rows, wanted {rule.limit}"
        if rule.kind not in (*WHOLE, "category_share", "distinct") and not rule.limit.percent:
            why = why.replace(f" of {rows} rows", "")
        return replace(_result(rule, holds, int(measured), why), measured=measured)

    def _number(self, rule: Rule, references: Mapping[str, str | None]) -> float | None:
        """The one number that a rule on the batch is about; None when there is nothing to measure."""
        if rule.kind == "count":
            return self._count + self._malformed
        if rule.kind == "bad rows":
            return self._bad + self._malformed
        if rule.kind == "drift":
            view = references[str(rule.arguments["snapshot"])]
            return None if view is None else measure_drift(self._engine, rule, self._contract, view)
        if rule.kind == "query":
            query = str(rule.arguments["query"]).replace("{object}", quote(self._contract.name))
            query = require_query(self._parser, query, {self._contract.name, *self._refs})
            with self._limited():
                rows = self._all(f"SELECT * FROM (\n{query}\n) AS _lw_q LIMIT 2")
            if len(rows) != 1 or len(rows[0]) != 1:
                raise ValueError(
                    f"a query must give one number, got {len(rows)} rows of {len(rows[0]) if rows else 0}"
                )
            if rows[0][0] is None:
                raise ValueError("the query gave null")
            return float(rows[0][0])
        found = self._measured[rule.name]
        if rule.kind == "freshness" and found is not None:
            return self._now.timestamp() - float(found)
        return None if found is None else float(found)

    def _with_examples(self, results: list[RuleResult]) -> list[RuleResult]:
        """Add the cells of the first rows that break each rule."""
        shown: dict[str, list[str]] = {}
        held = [name for name in self._rows.schema.names if name != "_row"]
        for result, rule in zip(results, self._contract.rules, strict=True):
            if not result.failed or rule.name not in self._compiled.conditions or rule.name in self._errors:
                continue
            if rule.name in self._compiled.joins:
                self._first[rule.name] = [row for (row,) in self._all(self._compiled.first_rows(rule.name))]
            named = dict.fromkeys(top(name, held) for name in (*rule.columns, *self._contract.key))
            shown[rule.name] = [n for n in named if n] or [
                c.name for c in self._contract.columns if c.name in held
            ][:_SHOWN]
        cells = self._cells(shown)
        return [
            replace(
                result,
                examples=tuple(
                    {"row": row, **{name: cells[row][name] for name in shown[result.name]}}
                    for row in self._first[result.name][:EXAMPLES]
                ),
            )
            if result.name in shown
            else result
            for result in results
        ]

    def _cells(self, shown: Mapping[str, Sequence[str]]) -> dict[int, dict[str, Any]]:
        numbers = sorted({row for name in shown for row in self._first[name][:EXAMPLES]})
        names = list(dict.fromkeys(column for columns in shown.values() for column in columns))
        if not numbers:
            return {}
        listed = ", ".join(quote(name) for name in names)
        # Rows are in order, so what lies behind the last one wanted need not be read.
        first = f"SELECT _row, {listed} FROM _lw_raw" + (f" LIMIT {numbers[-1]}" if self._ordered else "")
        found = self._all(f"SELECT * FROM ({first}) AS _lw_r WHERE _row IN ({', '.join(map(str, numbers))})")
        return {
            row[0]: {name: plain(value) for name, value in zip(names, row[1:], strict=True)} for row in found
        }

    def _error(self, rule: Rule) -> RuleResult:
        why = f"cannot be evaluated: {self._errors[rule.name]}"
        return RuleResult(rule.name, ", ".join(rule.columns), rule.severity, rule.scope, "ERROR", 0, (), why)

    def _all(self, query: str) -> list[tuple[Any, ...]]:
        """All rows of a query; a result left half-read would block the connection."""
        found: list[tuple[Any, ...]] = self._engine.execute(query).fetchall()
        return found


def _result(rule: Rule, holds: bool, failed: int, why: str) -> RuleResult:
    state: State = "PASS" if holds else "WARN" if rule.severity is Severity.WARN else "FAIL"
    return RuleResult(rule.name, ", ".join(rule.columns), rule.severity, rule.scope, state, failed, (), why)


def _short(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]
