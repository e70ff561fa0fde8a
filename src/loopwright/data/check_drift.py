"""How far a column has moved from what a snapshot holds of it: the number that a drift rule limits.

`psi`: the population stability index over ten bins of equal share in the reference (texts and booleans: over its fifty
commonest values), nulls apart, less what chance alone gives. `ks`: the Kolmogorov-Smirnov distance, the largest gap
between the two distribution functions, exact; nulls aside. One query of bounded memory for each of its steps.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import duckdb
import pyarrow as pa

from loopwright.data.check_cells import epoch, literal, place, quote
from loopwright.data.contract import Column, Contract, Rule
from loopwright.data.files import Files
from loopwright.stats.drift import psi_corrected

Reference: TypeAlias = Callable[[str], Files | pa.Table | None]
"""What a snapshot (a digest's first letters, or "previous") holds of the table; None: there is no previous one yet."""

BINS = 10
VALUES = 50


def measure_drift(engine: duckdb.DuckDBPyConnection, rule: Rule, contract: Contract, reference: str) -> float:
    """The distance of `_lw_typed` from the view `reference`. Raises ValueError for what has none, duckdb.Error."""
    path = rule.columns[0]
    held = {row[0] for row in engine.execute(f"DESCRIBE {quote(reference)}").fetchall()}
    found = place(path, contract.columns, quote)
    if path.split(".")[0] not in held:
        raise ValueError(f"the snapshot has no column `{path}`")
    if not found.single:
        raise ValueError(f"`{path}` has several values in a row; drift wants one")
    metric = rule.arguments.get("metric", "psi")
    cell = _ordered(found.cell, found.column)
    if metric == "ks":
        if cell is None:
            raise ValueError(f"`{path}` is a {found.column.type}, which has no order; say metric: psi")
        return _ks(engine, cell, reference)
    if metric != "psi":
        raise ValueError(f"an unknown metric `{metric}`; known: psi, ks")
    slots = (
        _bins(engine, cell, reference)
        if cell is not None
        else _values(engine, found.cell, found.column, reference)
    )
    before, after = (_counts(engine, slots, source) for source in (reference, "_lw_typed"))
    return psi_corrected(before, after)


def _ordered(cell: str, column: Column) -> str | None:
    """The cell as a number; None when it has no order."""
    match column.type:
        case "integer" | "number":
            return f"CAST({cell} AS DOUBLE)"
        case "timestamp" | "date":
            return epoch(f"CAST({cell} AS TIMESTAMPTZ)")
    return None


def _bins(engine: duckdb.DuckDBPyConnection, cell: str, reference: str) -> list[str]:
    """Conditions, one of which is true of each row: the bins between the reference's deciles, and null."""
    tiles = f"SELECT {cell} AS v, ntile({BINS}) OVER (ORDER BY {cell}) AS t FROM {reference} WHERE {cell} IS NOT NULL"
    found = engine.execute(f"SELECT max(v) FROM ({tiles}) GROUP BY t ORDER BY t").fetchall()
    edges = sorted({float(edge) for (edge,) in found[:-1]})
    if not edges:
        return [f"{cell} IS NULL", f"{cell} IS NOT NULL"]
    between = [f"{cell} > {low!r} AND {cell} <= {high!r}" for low, high in pairwise(edges)]
    return [f"{cell} IS NULL", f"{cell} <= {edges[0]!r}", *between, f"{cell} > {edges[-1]!r}"]


def _values(engine: duckdb.DuckDBPyConnection, cell: str, column: Column, reference: str) -> list[str]:
    """The same for values without order: the reference's commonest, the others, and null."""
    found = engine.execute(
        f"SELECT {cell} FROM {reference} WHERE {cell} IS NOT NULL GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT {VALUES}"
    ).fetchall()
    common = [literal(value, column) for (value,) in found]
    slots = [f"{cell} IS NULL", *(f"{cell} = {value}" for value in common)]
    return [*slots, f"{cell} NOT IN ({', '.join(common)})" if common else f"{cell} IS NOT NULL"]


def _counts(engine: duckdb.DuckDBPyConnection, slots: list[str], source: str) -> list[int]:
    counted = ", ".join(f"count(*) FILTER (WHERE {slot})" for slot in slots)
    return [int(n) for n in engine.execute(f"SELECT {counted} FROM {source}").fetchall()[0]]


def _ks(engine: duckdb.DuckDBPyConnection, cell: str, reference: str) -> float:
    both = (
        f"SELECT {cell} AS v, 1 AS old, 0 AS new FROM {reference} WHERE {cell} IS NOT NULL UNION ALL"
        f" SELECT {cell}, 0, 1 FROM _lw_typed WHERE {cell} IS NOT NULL"
    )
    counted = f"SELECT v, sum(old) AS old, sum(new) AS new FROM ({both}) GROUP BY v"
    running = (
        "SELECT sum(old) OVER (ORDER BY v) AS old, sum(new) OVER (ORDER BY v) AS new,"
        f" sum(old) OVER () AS olds, sum(new) OVER () AS news FROM ({counted})"
    )
    ((gap,),) = engine.execute(
        f"SELECT max(abs(CAST(old AS DOUBLE) / olds - CAST(new AS DOUBLE) / news)) FROM ({running})"
        " WHERE olds > 0 AND news > 0"
    ).fetchall()
    return float(gap or 0.0)
