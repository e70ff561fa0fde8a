"""Reads a source and says what its columns are, in bounded memory however many rows it has.

Inferred: types (of nested columns too), the texts that mean null, formats of dates, columns that name a row.
`inferred` makes a contract of it.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import duckdb
import pyarrow as pa

from loopwright.data.check import SQL_TYPES
from loopwright.data.contract import Type
from loopwright.data.duck import connect
from loopwright.data.inferred import infer_contract, to_yaml
from loopwright.data.source import Source
from loopwright.data.sql import quote as _quote
from loopwright.data.sql import text as _text

__all__ = ["Facts", "Inferred", "infer", "infer_contract", "to_yaml"]

FITS = 0.99
"""Share of a column's values that must read as a type for the column to have it; the others are defects."""
NULL_TOKENS = ("?", "-", "--", "N/A", "n/a", "#N/A", ".", "missing")
FORMATS = tuple(
    day + time
    for day in ("%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y/%m/%d", "%d-%m-%Y")
    for time in ("", " %H:%M", " %H:%M:%S")
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen in a column. `misfits`: values that do not read as `type`. `distinct` leaves null out.

    `format`: of dates, as strptime has it; `formats`: all that fit, when the values leave it open. `fields`, `items`:
    of objects and arrays, by their types alone.
    """

    name: str
    type: Type
    nulls: int
    distinct: int
    misfits: int
    unique: bool
    format: str | None = None
    values: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    deviation: float | None = None
    formats: tuple[str, ...] = ()
    fields: tuple["Facts", ...] = ()
    items: "Facts | None" = None


@dataclass(frozen=True, slots=True)
class Inferred:
    """A file's rows and columns. `null_tokens`: texts beyond the usual ones that mean null in it."""

    rows: int
    malformed: int
    columns: tuple[Facts, ...]
    null_tokens: tuple[str, ...]

    def column(self, name: str) -> Facts | None:
        return next((c for c in self.columns if c.name == name), None)


def infer(source: Source, *, memory_limit: str = "256MB") -> Inferred:
    """Look at every row of `source`. Raises what `Source.stage` raises."""
    with tempfile.TemporaryDirectory(prefix="loopwright-infer-") as folder:
        staged = source.stage(Path(folder) / "rows")
        schema = staged.rows.schema
        with connect(memory_limit=memory_limit, spill=Path(folder)) as engine:
            staged.rows.view(engine, "raw", schema.names)
            tokens = _null_tokens(engine, schema)
            if tokens:
                listed = ", ".join(_text(token) for token in tokens)
                cells = ", ".join(
                    f"CASE WHEN {_quote(f.name)} IN ({listed}) THEN NULL ELSE {_quote(f.name)} END AS {_quote(f.name)}"
                    if _is_text(f.type)
                    else _quote(f.name)
                    for f in schema
                )
                engine.execute(f"CREATE TEMP VIEW cleaned AS SELECT {cells} FROM raw")
            rows = staged.rows.rows or 0
            relation = "cleaned" if tokens else "raw"
            columns = tuple(_facts(engine, relation, f.name, f.type, rows) for f in schema)
        return Inferred(rows, staged.malformed.rows or 0, columns, tokens)


def _null_tokens(engine: duckdb.DuckDBPyConnection, schema: pa.Schema) -> tuple[str, ...]:
    """Tokens that stand in columns whose other values are all numbers."""
    listed = ", ".join(_text(token) for token in NULL_TOKENS)
    found: set[str] = set()
    for field in schema:
        if not _is_text(field.type):
            continue
        cell = _quote(field.name)
        tokens, numbers, others = engine.execute(
            f"SELECT list(DISTINCT {cell}) FILTER (WHERE {cell} IN ({listed})),"
            f" count(*) FILTER (WHERE TRY_CAST({cell} AS DOUBLE) IS NOT NULL),"
            f" count(*) FILTER (WHERE {cell} NOT IN ({listed}) AND TRY_CAST({cell} AS DOUBLE) IS NULL)"
            " FROM raw"
        ).fetchall()[0]
        if tokens and numbers and not others:
            found |= set(tokens)
    return tuple(sorted(found))


def _facts(
    engine: duckdb.DuckDBPyConnection, relation: str, name: str, arrow: pa.DataType, rows: int
) -> Facts:
    cell = _quote(name)
    (filled,) = _row(engine, f"SELECT count({cell}) FROM {relation}")
    type_, fits = _arrow_type(arrow), filled
    if type_ in ("object", "array"):
        nested = _nested(name, arrow)
        return Facts(name, type_, rows - filled, 0, 0, False, fields=nested.fields, items=nested.items)
    # A group-by spills to disk, a distinct aggregate does not.
    distinct_values = f"SELECT DISTINCT {cell} AS v FROM {relation} WHERE {cell} IS NOT NULL"
    (distinct,) = _row(engine, f"SELECT count(*) FROM ({distinct_values})")
    formats: tuple[str, ...] = ()
    if type_ is None:
        type_, fits, formats = _text_type(engine, relation, cell, filled)
    format_ = formats[0] if formats else None
    values: tuple[str, ...] = ()
    low = high = deviation = None
    if type_ in ("integer", "number"):
        low, high, deviation = _row(
            engine,
            "SELECT min(v), max(v), stddev_pop(v)"
            f" FROM (SELECT TRY_CAST({cell} AS DOUBLE) AS v FROM {relation}) WHERE isfinite(v)",
        )
    if 0 < distinct <= 100:
        shown = f"TRY_CAST({cell} AS {SQL_TYPES[type_]})" if format_ is None else cell
        found = engine.execute(
            f"SELECT DISTINCT ({shown})::VARCHAR FROM {relation} WHERE {shown} IS NOT NULL ORDER BY 1"
        )
        values = tuple(str(row[0]) for row in found.fetchall())
    unique = filled == rows == distinct
    return Facts(
        name,
        type_,
        rows - filled,
        distinct,
        filled - fits,
        unique,
        format_,
        values,
        low,
        high,
        deviation,
        formats,
    )


def _nested(name: str, kind: pa.DataType) -> Facts:
    """What the type of an object or an array says about its parts."""
    type_ = _arrow_type(kind) or "string"
    fields: tuple[Facts, ...] = ()
    items = None
    if pa.types.is_struct(kind):
        fields = tuple(_nested(field.name, field.type) for field in kind)
    elif type_ == "array":
        items = _nested("", kind.value_type)
    return Facts(name, type_, 0, 0, 0, False, fields=fields, items=items)


def _text_type(
    engine: duckdb.DuckDBPyConnection, relation: str, cell: str, filled: int
) -> tuple[Type, int, tuple[str, ...]]:
    """The narrowest type that nearly all texts of a column read as, how many do, and the formats of a date."""
    integer = (
        f"TRY_CAST({cell} AS BIGINT) IS NOT NULL AND TRY_CAST({cell} AS DOUBLE) = TRY_CAST({cell} AS BIGINT)"
    )
    counts = {
        "padded": f"regexp_matches({cell}, '^-?0[0-9]')",  # 00501 is a code, not a number
        "boolean": f"lower({cell}) IN ('true', 'false')",
        "integer": integer,
        "number": f"isfinite(TRY_CAST({cell} AS DOUBLE))",
        "timestamp": f"TRY_CAST({cell} AS TIMESTAMPTZ) IS NOT NULL AND length({cell}) >= 8",
    }
    measured = ", ".join(f"count(*) FILTER (WHERE {condition})" for condition in counts.values())
    found = dict(zip(counts, _row(engine, f"SELECT {measured} FROM {relation}"), strict=True))
    enough = max(FITS * filled, 1)
    order: tuple[Type, ...] = ("boolean", "integer", "number", "timestamp")
    for type_ in order:
        if found[type_] >= enough and not (found["padded"] and type_ in ("integer", "number")):
            return type_, found[type_], ()
    if not found["number"]:
        tried = ", ".join(f"count(try_strptime({cell}, {_text(format_)}))" for format_ in FORMATS)
        fits = dict(zip(FORMATS, _row(engine, f"SELECT {tried} FROM {relation}"), strict=True))
        formats = tuple(format_ for format_ in FORMATS if fits[format_] >= enough)
        if formats:
            return "timestamp", fits[formats[0]], formats
    return "string", filled, ()


def _arrow_type(kind: pa.DataType) -> Type | None:
    """The logical type of a typed file's column; None for text, which must be looked at."""
    if _is_text(kind):
        return None
    if pa.types.is_dictionary(kind):
        return _arrow_type(kind.value_type) or "string"
    for test, type_ in (
        (pa.types.is_boolean, "boolean"),
        (pa.types.is_integer, "integer"),
        (pa.types.is_floating, "number"),
        (pa.types.is_decimal, "number"),
        (pa.types.is_timestamp, "timestamp"),
        (pa.types.is_date, "date"),
        (pa.types.is_time, "time"),
        (pa.types.is_struct, "object"),
        (pa.types.is_map, "object"),
        (_is_list, "array"),
    ):
        if test(kind):
            return cast(Type, type_)
    return "string"


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _row(engine: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    found: tuple[Any, ...] = engine.execute(query).fetchall()[0]
    return found
