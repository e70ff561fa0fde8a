"""What the columns of a table hold, many columns in one pass of DuckDB: how many, how far, which.

Up to 100,000 rows distinct values and quantiles are exact; above they are estimates (HyperLogLog, t-digest), and
say so.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Literal, TypeVar

import duckdb
import numpy as np
import pyarrow as pa

from loopwright.data.content import quote

_T = TypeVar("_T")
Kind = Literal["number", "time", "category"]
EXACT_ROWS = 100_000
COLUMNS, EXACT_COLUMNS = 24, 8
"""So many columns in one pass, which reads no others: an exact count of values takes megabytes from the start."""
TOP = 12
MANY = 200
"""Of so many rows a mean or a quantile tells nothing of one; it may be shown to who may not see rows."""
LONGEST = 120
"""Longer texts are cut before they are counted as categories."""
QUANTILES = (0.01, *(round(i / 20, 2) for i in range(1, 20)), 0.99)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Facts:
    """One column. Of times, numbers are microseconds since 1970. `exact`: `distinct` and `quantiles` are no estimates.

    `nulls` do not include `not_finite` (NaN, ±inf), which no other number counts. `top`: the most frequent values.
    """

    name: str
    type: str
    kind: Kind
    rows: int
    nulls: int
    distinct: int
    exact: bool
    not_finite: int = 0
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    deviation: float | None = None
    quantiles: Mapping[float, float] = field(default_factory=dict)
    top: tuple[str, ...] = ()

    def to_json(self, *, values: bool = True) -> dict[str, Any]:
        """Return all fields; without `values`, none that is a value of a row rather than a sum over many."""
        shown = values or self.rows - self.nulls >= MANY
        told: dict[str, Any] = {
            "type": self.type, "kind": self.kind, "rows": self.rows, "nulls": self.nulls,
            "null_share": self.nulls / self.rows if self.rows else None, "distinct": self.distinct,
            "exact": self.exact, "mean": self._shown(self.mean) if shown else None,
        }  # fmt: skip
        if self.kind == "number":
            told |= {"deviation": self.deviation if shown else None, "not_finite": self.not_finite}
        if self.kind != "category" and shown:
            told["quantiles"] = {
                str(q): self._shown(self.quantiles.get(q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)
            }
        if self.kind != "category" and values:
            told |= {"low": self._shown(self.low), "high": self._shown(self.high)}
        return told

    def _shown(self, value: float | None) -> Any:
        return time_text(value) if self.kind == "time" and value is not None else value


def time_text(microseconds: float) -> str:
    """A time as it is written; what no calendar holds as its number."""
    try:
        return (EPOCH + timedelta(microseconds=int(microseconds))).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return f"{microseconds:g} µs"


def describe(
    engine: duckdb.DuckDBPyConnection, view: str, schema: pa.Schema, names: Sequence[str]
) -> dict[str, Facts]:
    """Facts of the columns `names` of a view, 24 in a pass, 8 where they are exact."""
    if not names:
        return {}
    rows = int(engine.sql(f"SELECT count(*) FROM {quote(view)}").fetchall()[0][0])
    exact = rows <= EXACT_ROWS
    some = EXACT_COLUMNS if exact else COLUMNS
    return _in_passes(names, some, lambda part: _describe(engine, view, schema, part, rows, exact))


def _in_passes(
    names: Sequence[str], some: int, look: Callable[[Sequence[str]], dict[str, _T]]
) -> dict[str, _T]:
    """Look at `some` columns after the other, at fewer where memory does not suffice for so many."""
    found: dict[str, _T] = {}
    for start in range(0, len(names), some):
        part = names[start : start + some]
        try:
            found |= look(part)
        except duckdb.OutOfMemoryException:
            if len(part) == 1:
                raise
            found |= _in_passes(part, len(part) // 2, look)
    return found


def _describe(
    engine: duckdb.DuckDBPyConnection,
    view: str,
    schema: pa.Schema,
    names: Sequence[str],
    rows: int,
    exact: bool,
) -> dict[str, Facts]:
    listed = f"[{', '.join(map(str, QUANTILES))}]"
    picks = []
    for name in names:
        cell, kind = quote(name), kind_of(schema.field(name).type)
        known = f"count({cell})"
        # Of digests, since texts may be long.
        many = (
            f"count(DISTINCT hash({cell})) FILTER ({cell} IS NOT NULL)"
            if exact
            else f"approx_count_distinct({cell})"
        )
        if kind == "category":
            picks += [known, many, f"approx_top_k({_as_text(cell)}, {TOP})", *["NULL"] * 5]
        else:
            x = _as_number(cell, schema.field(name).type)
            quantile = f"quantile_disc({x}, {listed})" if exact else f"approx_quantile({x}, {listed})"
            picks += [
                known,
                many,
                quantile,
                f"min({x})",
                f"max({x})",
                f"avg({x})",
                _deviation(x),
                f"count({x})",
            ]
    found = engine.sql(f"SELECT {', '.join(picks)} FROM {quote(view)}").fetchall()[0]
    facts = {}
    for place, name in enumerate(names):
        known_, many_, listed_, low, high, mean, deviation, finite = found[place * 8 : place * 8 + 8]
        kind = kind_of(schema.field(name).type)
        facts[name] = Facts(
            name, str(schema.field(name).type), kind, rows, rows - known_, int(many_), exact,
            0 if kind == "category" else known_ - finite, low, high, mean, deviation,
            {} if kind == "category" or not listed_ else dict(zip(QUANTILES, map(float, listed_), strict=True)),
            tuple(listed_ or ()) if kind == "category" else (),
        )  # fmt: skip
    return facts


@dataclass(frozen=True, slots=True)
class Slots:
    """What rows of a column are counted by: (-inf, e0], (e0, e1], … (ek, inf) for numbers and times, else values."""

    edges: tuple[float, ...] = ()
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spread:
    """How many rows fell where. `counts`: one per interval or value; of values one more, for all others."""

    slots: Slots
    counts: tuple[int, ...]
    nulls: int


def count(
    engine: duckdb.DuckDBPyConnection, view: str, schema: pa.Schema, slots: Mapping[str, Slots]
) -> dict[str, Spread]:
    """Count the rows of a view by the given slots, 24 columns in a pass. NaN and ±inf count nowhere."""
    return _in_passes(
        list(slots), COLUMNS, lambda part: _count(engine, view, schema, {name: slots[name] for name in part})
    )


def _count(
    engine: duckdb.DuckDBPyConnection, view: str, schema: pa.Schema, slots: Mapping[str, Slots]
) -> dict[str, Spread]:
    picks: list[str] = []
    given: list[list[Any]] = []
    for name, slot in slots.items():
        kind, cell = schema.field(name).type, quote(name)
        if kind_of(kind) == "category":
            # By place in the list: a histogram of texts takes megabytes for each column.
            place_ = f"nullif(list_position(?::VARCHAR[], {_as_text(cell)}), 0)::DOUBLE"
            picks += [
                f"histogram({place_}, [{', '.join(f'{n}.0' for n in range(1, len(slot.values) + 2))}]::DOUBLE[])"
            ]
            given.append(list(slot.values))
            picks.append(f"count({cell})")
        else:
            x = _as_number(cell, kind)
            # It counts nothing without an edge.
            picks.append(f"histogram({x}, ?::DOUBLE[])")
            given.append(list(slot.edges or (0.0,)))
            picks.append(f"count({x})")
        picks.append(f"count(*) - count({cell})")
    found = engine.execute(f"SELECT {', '.join(picks)} FROM {quote(view)}", given).fetchall()[0]
    spreads = {}
    for place, (name, slot) in enumerate(slots.items()):
        held, known, nulls = found[place * 3 : place * 3 + 3]
        held = held or {}
        is_category = kind_of(schema.field(name).type) == "category"
        keys = range(1, len(slot.values) + 1) if is_category else slot.edges
        counts = [int(held.get(key, 0)) for key in keys]
        spreads[name] = Spread(slot, (*counts, int(known) - sum(counts)), int(nulls))
    return spreads


def even_slots(facts: Facts, bins: int = 24) -> Slots:
    """Slots to draw: intervals of equal width over the middle 98 %, or the most frequent values."""
    if facts.kind == "category":
        return Slots(values=facts.top)
    low, high = facts.quantiles.get(0.01), facts.quantiles.get(0.99)
    if low is None or high is None or not high > low:
        return Slots(edges=() if low is None else (low,))
    if facts.type.startswith(("int", "uint")) and facts.kind == "number":
        # Whole numbers in intervals of a whole width: others would hold now three of them and now four.
        start, end = math.floor(low), math.ceil(high)
        width = max(1, math.ceil((end - start) / (2 * bins if end - start <= 2 * bins else bins)))
        return Slots(edges=tuple(float(edge) for edge in range(start, end, width)))
    return Slots(edges=tuple(np.linspace(low, high, bins - 1).tolist()))


def quantile_slots(facts: Facts) -> Slots:
    """Slots to compare by: twenty intervals that hold equally many rows of these facts, or the most frequent values.

    A value that is two quantiles at once has an interval of its own.
    """
    if facts.kind == "category":
        return Slots(values=facts.top)
    inner = [v for q, v in facts.quantiles.items() if 0.05 <= q <= 0.95]
    edges = set(inner)
    edges |= {float(np.nextafter(a, -np.inf)) for a, b in pairwise(inner) if a == b}
    return Slots(edges=tuple(sorted(edges)))


def kind_of(kind: pa.DataType) -> Kind:
    """Whether a column is of numbers, of times, or of values that are told apart and no more."""
    types = pa.types
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    return "time" if types.is_timestamp(kind) or types.is_date(kind) else "category"


def _as_number(cell: str, kind: pa.DataType) -> str:
    if pa.types.is_date(kind):
        return f"epoch_us({cell}::TIMESTAMP)::DOUBLE"
    if pa.types.is_timestamp(kind):
        return f"epoch_us({cell})::DOUBLE"
    number = f"{cell}::DOUBLE"
    return f"(CASE WHEN isfinite({number}) THEN {number} END)"


def _deviation(x: str) -> str:
    # Squares of 1e200 are beyond a double, and no reason to tell nothing at all.
    return f"stddev_samp(CASE WHEN abs({x}) < 1e150 THEN {x} END)"


def _as_text(cell: str) -> str:
    return f"left({cell}::VARCHAR, {LONGEST})"
