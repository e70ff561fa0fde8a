"""Where in a delivery the failing rows lie: DuckDB over the delivery, bounded in memory."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import duckdb
import pyarrow as pa

from loopwright.data.checking import examination
from loopwright.data.contract import Contract, Scope, Severity
from loopwright.data.duck import connect
from loopwright.data.files import Files
from loopwright.data.sql import quote as _quote
from loopwright.kernel.errors import BadInput, Unavailable

Rows: TypeAlias = Files | pa.Table

FEW = 60
"""A column with at most so many values can single out where failures come from."""
COLUMNS = 40
SHOWN = 5
HALF, LIFT = 0.5, 1.5
"""A value is named when it holds half of the failures, and they are this much more frequent there than elsewhere."""


@dataclass(frozen=True, slots=True)
class Failures:
    """`rows`: how many fail. `spread`: values that hold most of them: {column, value, failing, share, of_all}.

    `values`: per rule about one column, its most frequent failing values. `nulls`: share of nulls per column of the
    whole delivery. `why`: what could not be found out.
    """

    rows: int = 0
    first: int | None = None
    last: int | None = None
    contiguous: bool = False
    spread: tuple[Mapping[str, Any], ...] = ()
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    nulls: Mapping[str, float] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    why: str = ""


def find_failures(
    rows: Rows,
    contract: Contract,
    rules: tuple[str, ...],
    *,
    refs: Mapping[str, Rows] | None = None,
    landed: Rows | None = None,
) -> Failures:
    """Look for the rows of a delivery that break one of `rules`, and for what they have in common.

    Never raises for data that cannot be judged again: the refusal that asks for it must be recorded all the same.
    """
    judged = judging(contract, rules)
    try:
        with connect() as engine:
            engine.execute("SET memory_limit = '512MB'")
            columns = _register(engine, rows)
            nulls = _nulls(engine, columns)
            if not judged.rules:
                return Failures(nulls=nulls, columns=tuple(columns))
            with examination(rows, judged, refs=refs, landed=landed) as found:
                engine.register("_lw_reader", found.bad())
                engine.execute("CREATE TEMP TABLE _lw_bad AS SELECT _row, _reasons FROM _lw_reader")
            return _described(engine, judged, columns, nulls)
    except (duckdb.Error, pa.ArrowException, BadInput, Unavailable) as error:
        return Failures(why=str(error).split("\n")[0][:300])


def judging(contract: Contract, rules: tuple[str, ...] | None = None) -> Contract:
    """`contract` with its rules about rows only (those named), each setting the row aside."""
    kept = tuple(
        replace(rule, severity=Severity.QUARANTINE)
        for rule in contract.rules
        if (rule.scope is not Scope.BATCH or rule.kind == "unique")
        and (rules is None or rule.name in rules)
        and rule.kind not in ("count", "query", "bad rows", "drift", "freshness")
    )
    return replace(contract, rules=kept)


def _register(engine: duckdb.DuckDBPyConnection, rows: Rows) -> list[str]:
    """Create the view `_lw_rows` with `_row` from 1; returns the delivery's own columns."""
    if isinstance(rows, Files):
        names = [name for name in rows.schema.names if not name.startswith("_")]
        rows.view(engine, "_lw_rows", [*names, *(["_row"] if "_row" in rows.names else [])])
        return names
    engine.register(
        "_lw_table", rows.append_column("_row", pa.array(range(1, rows.num_rows + 1), pa.int64()))
    )
    engine.execute("CREATE TEMP VIEW _lw_rows AS SELECT * FROM _lw_table")
    return [name for name in rows.column_names if not name.startswith("_")]


def _nulls(engine: duckdb.DuckDBPyConnection, columns: list[str]) -> dict[str, float]:
    if not columns:
        return {}
    counted = ", ".join(f"count({_quote(name)})" for name in columns)
    total, *held = engine.execute(f"SELECT count(*), {counted} FROM _lw_rows").fetchall()[0]
    return {name: 1 - count / total for name, count in zip(columns, held, strict=True)} if total else {}


def _described(
    engine: duckdb.DuckDBPyConnection, contract: Contract, columns: list[str], nulls: Mapping[str, float]
) -> Failures:
    rows, first, last = engine.execute("SELECT count(*), min(_row), max(_row) FROM _lw_bad").fetchall()[0]
    if not rows:
        return Failures(nulls=nulls, columns=tuple(columns))
    (total,) = engine.execute("SELECT count(*) FROM _lw_rows").fetchall()[0]
    engine.execute(
        "CREATE TEMP VIEW _lw_marked AS SELECT r.*, b._row IS NOT NULL AS _lw_fails"
        " FROM _lw_rows r LEFT JOIN _lw_bad b USING (_row)"
    )
    spread: list[Mapping[str, Any]] = []
    for name, sql in _cuts(engine, contract, columns):
        for value, count, failing in engine.execute(
            f"SELECT ({sql})::VARCHAR, count(*), count(*) FILTER (WHERE _lw_fails) FROM _lw_marked"
            f" GROUP BY 1 ORDER BY 3 DESC, 1 LIMIT 1"
        ).fetchall():
            share, of_all = failing / rows, count / total
            if share >= HALF and share >= LIFT * of_all:
                spread.append({"column": name, "value": value, "failing": failing, "share": round(share, 4),
                               "of_all": round(of_all, 4)})  # fmt: skip
    spread.sort(key=lambda one: (one["of_all"] - one["share"], one["column"]))
    values = {}
    for rule in contract.rules:
        known = [name for name in rule.columns if name in columns]
        if len(known) == 1:
            values[rule.name] = _values(engine, rule.name, known[0])
    return Failures(
        rows=rows,
        first=first,
        last=last,
        contiguous=rows > 1 and last - first + 1 == rows,
        spread=tuple(spread[:SHOWN]),
        values={name: found for name, found in values.items() if found},
        nulls=nulls,
        columns=tuple(columns),
    )


def _cuts(engine: duckdb.DuckDBPyConnection, contract: Contract, columns: list[str]) -> list[tuple[str, str]]:
    """(name, SQL) of what the delivery can be cut by: columns of few values, hours and days of its times."""
    considered = columns[:COLUMNS]
    if not considered:
        return []
    counted = ", ".join(f"approx_count_distinct({_quote(name)})" for name in considered)
    distinct = engine.execute(f"SELECT {counted} FROM _lw_rows").fetchall()[0]
    cuts = [
        (name, _quote(name)) for name, count in zip(considered, distinct, strict=True) if 2 <= count <= FEW
    ]
    kinds = {column.name: column.type for column in contract.columns}
    for name in considered:
        if kinds.get(name) == "timestamp":
            moment = f"TRY_CAST({_quote(name)} AS TIMESTAMP)"
            cuts += [(f"hour of {name}", f"hour({moment})"), (f"day of {name}", f"CAST({moment} AS DATE)")]
        elif kinds.get(name) == "date":
            cuts.append((f"day of {name}", _quote(name)))
    return cuts


def _values(engine: duckdb.DuckDBPyConnection, rule: str, column: str) -> dict[str, Any]:
    cell = _quote(column)
    broken = "FROM _lw_rows r JOIN _lw_bad b USING (_row) WHERE list_contains(b._reasons, ?)"
    top = engine.execute(
        f"SELECT r.{cell}::VARCHAR, count(*) {broken} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {SHOWN}", [rule]
    ).fetchall()
    number = f"TRY_CAST(r.{cell}::VARCHAR AS DOUBLE)"
    low, high = engine.execute(f"SELECT min({number}), max({number}) {broken}", [rule]).fetchall()[0]
    found: dict[str, Any] = {
        "column": column,
        "most": [{"value": None if v is None else v[:100], "rows": n} for v, n in top],
    }
    with contextlib.suppress(TypeError, ValueError):  # text has no bounds
        if abs(low) != float("inf") and abs(high) != float("inf") and low == low and high == high:
            found |= {"minimum": low, "maximum": high}
    return found
