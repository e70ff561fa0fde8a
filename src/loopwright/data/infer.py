"""Reads a file and says what its columns are, as a contract a person can go on from.

Inferred: types, the texts that mean null, formats of dates, columns that name a row. Never inferred: ranges and lists
of values, since what has not been seen yet is no defect.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import duckdb
import pyarrow as pa
import yaml

from loopwright.data.check import SQL_TYPES
from loopwright.data.contract import Type
from loopwright.data.duck import connect
from loopwright.data.source import NULLS, Source

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
    """What was seen in a column. `misfits`: values that do not read as `type`. `distinct` leaves null out."""

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


@dataclass(frozen=True, slots=True)
class Inferred:
    """A file's rows and columns. `null_tokens`: texts beyond the usual ones that mean null in it."""

    rows: int
    malformed: int
    columns: tuple[Facts, ...]
    null_tokens: tuple[str, ...]

    def column(self, name: str) -> Facts | None:
        return next((c for c in self.columns if c.name == name), None)


def infer(source: Source) -> Inferred:
    """Look at every row of `source`. Raises what `Source.read` raises."""
    raw = source.read()
    rows = raw.rows
    with connect() as engine:
        engine.register("raw", rows)
        tokens = _null_tokens(engine, rows)
        if tokens:
            listed = ", ".join(_text(token) for token in tokens)
            cells = ", ".join(
                f"CASE WHEN {_quote(f.name)} IN ({listed}) THEN NULL ELSE {_quote(f.name)} END AS {_quote(f.name)}"
                if _is_text(f.type)
                else _quote(f.name)
                for f in rows.schema
            )
            rows = engine.sql(f"SELECT {cells} FROM raw").to_arrow_table()
            engine.register("raw", rows)
        columns = tuple(_facts(engine, f.name, f.type, rows.num_rows) for f in rows.schema)
    return Inferred(rows.num_rows, len(raw.malformed), columns, tokens)


def infer_contract(
    inferred: Inferred,
    *,
    table: str,
    key: Sequence[str] = (),
    required: Sequence[str] = (),
    full: bool = True,
) -> dict[str, Any]:
    """An ODCS 3.1 document for what was seen. `full`: each delivery of the file is the whole table."""
    properties = []
    for column in inferred.columns:
        entry: dict[str, Any] = {"name": column.name, "logicalType": column.type}
        if column.format:
            entry["logicalTypeOptions"] = {"format": column.format}
        if column.name in required or column.name in key:
            entry["required"] = True
        if column.name in key:
            entry |= {"primaryKey": True, "primaryKeyPosition": list(key).index(column.name) + 1}
        properties.append(entry)
    custom: list[dict[str, Any]] = [{"property": "load", "value": "full" if full else "append"}]
    if inferred.null_tokens:
        custom.append({"property": "nullValues", "value": [*NULLS, *inferred.null_tokens]})
    return {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": f"inferred/{table}",
        "name": table,
        "version": "0.1.0",
        "status": "draft",
        "schema": [
            {"name": table, "logicalType": "object", "properties": properties, "customProperties": custom}
        ],
    }


def to_yaml(document: dict[str, Any]) -> str:
    """The document as YAML, keys in their order."""
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)


def _null_tokens(engine: duckdb.DuckDBPyConnection, rows: pa.Table) -> tuple[str, ...]:
    """Tokens that stand in columns whose other values are all numbers."""
    listed = ", ".join(_text(token) for token in NULL_TOKENS)
    found: set[str] = set()
    for field in rows.schema:
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


def _facts(engine: duckdb.DuckDBPyConnection, name: str, arrow: pa.DataType, rows: int) -> Facts:
    cell = _quote(name)
    filled, distinct = _row(engine, f"SELECT count({cell}), count(DISTINCT {cell}) FROM raw")
    format_: str | None = None
    type_, fits = _arrow_type(arrow), filled
    if type_ is None:
        type_, fits, format_ = _text_type(engine, cell, filled)
    values: tuple[str, ...] = ()
    low = high = deviation = None
    if type_ in ("integer", "number"):
        low, high, deviation = _row(
            engine,
            "SELECT min(v), max(v), stddev_pop(v)"
            f" FROM (SELECT TRY_CAST({cell} AS DOUBLE) AS v FROM raw) WHERE isfinite(v)",
        )
    if 0 < distinct <= 100:
        shown = f"TRY_CAST({cell} AS {SQL_TYPES[type_]})" if format_ is None else cell
        found = engine.execute(
            f"SELECT DISTINCT ({shown})::VARCHAR FROM raw WHERE {shown} IS NOT NULL ORDER BY 1"
        )
        values = tuple(str(row[0]) for row in found.fetchall())
    unique = filled == rows == distinct
    return Facts(
        name, type_, rows - filled, distinct, filled - fits, unique, format_, values, low, high, deviation
    )


def _text_type(engine: duckdb.DuckDBPyConnection, cell: str, filled: int) -> tuple[Type, int, str | None]:
    """The narrowest type that nearly all texts of a column read as, how many do, and a date's format."""
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
    found = dict(zip(counts, _row(engine, f"SELECT {measured} FROM raw"), strict=True))
    enough = max(FITS * filled, 1)
    order: tuple[Type, ...] = ("boolean", "integer", "number", "timestamp")
    for type_ in order:
        if found[type_] >= enough and not (found["padded"] and type_ in ("integer", "number")):
            return type_, found[type_], None
    if not found["number"]:
        for format_ in FORMATS:
            (fits,) = _row(engine, f"SELECT count(try_strptime({cell}, {_text(format_)})) FROM raw")
            if fits >= enough:
                return "timestamp", fits, format_
    return "string", filled, None


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
        (pa.types.is_date, "timestamp"),
        (pa.types.is_time, "time"),
    ):
        if test(kind):
            return cast(Type, type_)
    return "string"


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _row(engine: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    found: tuple[Any, ...] = engine.execute(query).fetchall()[0]
    return found


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
