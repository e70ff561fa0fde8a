"""SQL of cells in the types their contract gives them, and of "there was a value, and it does not fit".

Also the one place where SQL is written that engines spell differently; everything else in the compiled text is
arithmetic, comparisons, joins and plain aggregates. sqlglot renders it for Spark.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from loopwright.data.sql import quote as quote
from loopwright.data.sql import text as text
from loopwright.data.terms import Column

SQL_TYPES = {
    "string": "VARCHAR",
    "integer": "BIGINT",
    "number": "DOUBLE",
    "boolean": "BOOLEAN",
    "timestamp": "TIMESTAMPTZ",
    "date": "DATE",
    "time": "TIME",
}
_INFINITY = "CAST('Infinity' AS DOUBLE)"
_OFFSET = r":\d\d(\.\d+)?\s*(Z|[+-]\d\d(:?\d\d)?)$"


@dataclass(frozen=True, slots=True)
class Cell:
    """`typed`: the value in the contract's type, null where it does not fit. `unfit`: true there; None: all fit."""

    typed: str
    unfit: str | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a dotted path leads: SQL of the `cell`, its `column`; `wrap` turns a condition on cells into one on rows.

    `parent`: SQL of the object that holds the cell, if any. `single`: a row has one such cell (no list on the way).
    """

    cell: str
    column: Column
    wrap: Callable[[str], str]
    parent: str | None
    single: bool


def literal(value: Any, column: Column) -> str:
    """`value` as the contract wrote it, as SQL of the column's type."""
    if column.type in ("integer", "number"):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return repr(value)
        if re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", str(value).strip()):
            return str(value).strip()
    if column.type == "boolean" and isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if column.type in ("string", "object", "array"):
        return text(value)
    return f"CAST({text(value)} AS {SQL_TYPES[column.type]})"


def sql_type(column: Column) -> str:
    """The SQL type of a column; objects and arrays of whatever content are text."""
    if column.type == "object":
        return _struct(column, sql_type) if column.fields else "VARCHAR"
    if column.type == "array":
        return f"{sql_type(column.items)}[]" if column.items else "VARCHAR"
    return SQL_TYPES[column.type]


def any_of(items: str, name: str, condition: str) -> str:
    """True when an item of a list, called `name` in `condition`, meets it."""
    return f"len(list_filter({items}, lambda {name}: {condition})) > 0"


def matches(cell: str, pattern: str) -> str:
    return f"regexp_matches({cell}, {text(pattern)})"


def first_rows(limit: int) -> str:
    """An aggregate: the numbers of the first rows, as a list."""
    return f"min(_row, {limit})"


def epoch(time: str) -> str:
    """Seconds since 1970."""
    return f"epoch({time})"


def quantile(cell: str, source: str, q: float, *, in_memory: bool) -> str:
    """SQL of the exact, linearly interpolated quantile of a column of `source`, null without values.

    DuckDB's own aggregate keeps all values in memory, beside its limit; a sort spills.
    """
    if in_memory:
        return f"(SELECT quantile_cont({cell}, {q!r}) FROM {source})"
    ranked = (
        f"SELECT {cell} AS v, row_number() OVER (ORDER BY {cell}) - 1 AS i, count(*) OVER () AS n"
        f" FROM {source} WHERE {cell} IS NOT NULL"
    )
    at = f"({q!r} * (n - 1))"
    return (
        f"(SELECT sum(v * CASE WHEN i = floor({at}) THEN 1 - ({at} - floor({at})) ELSE {at} - floor({at}) END)"
        f" FROM ({ranked}) WHERE i = floor({at}) OR (i = floor({at}) + 1 AND {at} > floor({at})))"
    )


def place(path: str, columns: Sequence[Column], base: Callable[[str], str]) -> Place:
    """Follow a path through the contract's columns; `base` gives the SQL of a top column. KeyError: there is none."""
    named = {column.name: column for column in columns}
    if path in named:
        return Place(base(path), named[path], lambda condition: condition, None, True)
    lists: list[tuple[str, str]] = []
    cell, parent, column = "", None, None
    for step in re.findall(r"\[\]|[^.\[\]]+", path):
        if step == "[]":
            if column is None or column.items is None:
                raise KeyError(path)
            name = f"_lw_e{len(lists)}"
            lists.append((cell, name))
            cell, parent, column = name, None, column.items
        elif column is None:
            cell, column = base(step), named[step]
        else:
            parent, column = cell, {field.name: field for field in column.fields}[step]
            cell = f"{cell}.{quote(step)}"
    if column is None:
        raise KeyError(path)

    def wrap(condition: str) -> str:
        for items, name in reversed(lists):
            condition = any_of(items, name, condition)
        return condition

    return Place(cell, column, wrap, parent, not lists)


def cell(raw: str, column: Column, arrow: pa.DataType, depth: int = 0) -> Cell:
    """Type the raw cell `raw`, which comes as `arrow`. An object's unfit parts make the object unfit."""
    if pa.types.is_dictionary(arrow):
        raw, arrow = f"CAST({raw} AS {_name(arrow.value_type)})", arrow.value_type
    if column.type == "object":
        return _object(raw, column, arrow, depth)
    if column.type == "array":
        return _array(raw, column, arrow, depth)
    if pa.types.is_null(arrow):
        return Cell(f"CAST(NULL AS {SQL_TYPES[column.type]})", None)
    if pa.types.is_nested(arrow) and column.type == "string":
        # As it would stand in a text file; null would be a value that nobody misses.
        return Cell(f"CASE WHEN {raw} IS NOT NULL THEN CAST(to_json({raw}) AS VARCHAR) END", None)
    if pa.types.is_nested(arrow):
        return Cell(f"CAST(NULL AS {SQL_TYPES[column.type]})", f"{raw} IS NOT NULL")
    return _text_cell(raw, column) if _is_text(arrow) else _typed_cell(raw, column, arrow)


def _text_cell(raw: str, column: Column) -> Cell:
    if column.type == "string":
        return Cell(raw, None)
    typed = f"TRY_CAST({raw} AS {SQL_TYPES[column.type]})"
    zone = text(column.timezone)
    if column.type == "timestamp" and column.format:
        typed = f"TRY_CAST(try_strptime({raw}, {text(column.format)}) AS TIMESTAMP) AT TIME ZONE {zone}"
    elif column.type == "timestamp" and column.timezone != "UTC":
        local = f"TRY_CAST({raw} AS TIMESTAMP) AT TIME ZONE {zone}"
        typed = f"CASE WHEN {matches(raw, _OFFSET)} THEN {typed} ELSE {local} END"
    elif column.type == "date" and column.format:
        typed = f"TRY_CAST(try_strptime({raw}, {text(column.format)}) AS DATE)"
    unfit = f"({raw} IS NOT NULL AND {typed} IS NULL)"
    if column.type == "integer":
        # A cast rounds 1.5 to 2; only texts that could hold a fraction pay for the second look.
        rounded = f"TRY_CAST({raw} AS DOUBLE) IS DISTINCT FROM CAST({typed} AS DOUBLE)"
        unfit = f"({unfit} OR ({matches(raw, '[.eE]')} AND {rounded}))"
    elif column.type == "number":
        return _finite(typed, unfit)
    return Cell(typed, unfit)


def _typed_cell(raw: str, column: Column, arrow: pa.DataType) -> Cell:
    type_ = SQL_TYPES[column.type]
    plain = Cell(raw, None)
    cast = Cell(f"CAST({raw} AS {type_})", None)
    tried = f"TRY_CAST({raw} AS {type_})"
    careful = Cell(tried, f"({raw} IS NOT NULL AND {tried} IS NULL)")
    match column.type:
        case "string":
            return cast
        case "integer" if pa.types.is_integer(arrow):
            return plain if arrow == pa.int64() else careful if arrow == pa.uint64() else cast
        case "integer" if pa.types.is_floating(arrow):
            typed = f"TRY_CAST(nullif({raw}, CAST('nan' AS DOUBLE)) AS BIGINT)"
            return Cell(
                typed,
                f"({raw} IS NOT NULL AND NOT isnan({raw}) AND {raw} IS DISTINCT FROM CAST({typed} AS DOUBLE))",
            )
        case "integer" if pa.types.is_decimal(arrow):
            return Cell(tried, f"({raw} IS NOT NULL AND {raw} IS DISTINCT FROM {tried})")
        case "number" if pa.types.is_floating(arrow):
            return _finite(raw if arrow == pa.float64() else cast.typed, None)
        case "number" if pa.types.is_integer(arrow) or pa.types.is_decimal(arrow):
            return cast
        case "timestamp" if pa.types.is_timestamp(arrow):
            return plain if arrow.tz else Cell(f"{raw} AT TIME ZONE {text(column.timezone)}", None)
        case "boolean" if pa.types.is_boolean(arrow):
            return plain
        case "date" if pa.types.is_date(arrow):
            return plain
        case "time" if pa.types.is_time(arrow):
            return plain
    return careful


def _finite(typed: str, unfit: str | None) -> Cell:
    """Not a number is no value; infinity is a value that fits nowhere."""
    # Not a number is greater than all numbers, on every engine.
    infinite = f"abs({typed}) = {_INFINITY}"
    return Cell(
        f"(CASE WHEN abs({typed}) < {_INFINITY} THEN {typed} END)",
        f"({unfit} OR {infinite})" if unfit else infinite,
    )


def _object(raw: str, column: Column, arrow: pa.DataType, depth: int) -> Cell:
    if _is_text(arrow):
        return _from_json(raw, column, "OBJECT", depth)
    if not pa.types.is_struct(arrow):
        if pa.types.is_map(arrow) and not column.fields:
            return Cell(raw, None)
        return Cell(f"CAST(NULL AS {sql_type(column)})", _never(raw, arrow))
    if not column.fields:
        return Cell(raw, None)
    held = {field.name: field.type for field in arrow}
    parts, unfit, same = [], [], list(held) == [field.name for field in column.fields]
    for field in column.fields:
        if field.name not in held:
            parts.append(f"{quote(field.name)} := CAST(NULL AS {sql_type(field)})")
            continue
        inner = f"{raw}.{quote(field.name)}"
        part = cell(inner, field, held[field.name], depth)
        same = same and part.typed == inner
        parts.append(f"{quote(field.name)} := {part.typed}")
        if part.unfit:
            unfit.append(f"coalesce({part.unfit}, FALSE)")
    typed = raw if same else f"CASE WHEN {raw} IS NOT NULL THEN struct_pack({', '.join(parts)}) END"
    return Cell(typed, f"({' OR '.join(unfit)})" if unfit else None)


def _array(raw: str, column: Column, arrow: pa.DataType, depth: int) -> Cell:
    if _is_text(arrow):
        return _from_json(raw, column, "ARRAY", depth)
    if not (pa.types.is_list(arrow) or pa.types.is_large_list(arrow) or pa.types.is_fixed_size_list(arrow)):
        return Cell(f"CAST(NULL AS {sql_type(column)})", _never(raw, arrow))
    if column.items is None:
        return Cell(raw, None)
    name = f"_lw_i{depth}"
    item = cell(name, column.items, arrow.value_type, depth + 1)
    typed = raw if item.typed == name else f"list_transform({raw}, lambda {name}: {item.typed})"
    return Cell(typed, any_of(raw, name, item.unfit) if item.unfit else None)


def _from_json(raw: str, column: Column, kind: str, depth: int) -> Cell:
    """An object or an array written as JSON text, as cells of a CSV file are."""
    wrong = f"({raw} IS NOT NULL AND json_type(TRY_CAST({raw} AS JSON)) IS DISTINCT FROM '{kind}')"
    if not column.fields and column.items is None:
        return Cell(f"CASE WHEN NOT {wrong} THEN {raw} END", wrong)
    # A cast makes null of what has another shape inside.
    inside = _misshapen(f"TRY_CAST({raw} AS JSON)", column, depth)
    wrong = f"({' OR '.join([wrong, *inside])})" if inside else wrong
    shape = f"TRY_CAST(TRY_CAST({raw} AS JSON) AS {_texts(column)})"
    inner = cell(f"(CASE WHEN NOT {wrong} THEN {shape} END)", column, _text_shape(column), depth)
    return Cell(inner.typed, f"({wrong} OR {inner.unfit})" if inner.unfit else wrong)


def _misshapen(json: str, column: Column, depth: int) -> list[str]:
    """Conditions that are true where an object or an array inside a JSON value is something else."""
    if column.type == "object":
        found = []
        for field in column.fields:
            if field.type in ("object", "array"):
                pointer = "/" + field.name.replace("~", "~0").replace("/", "~1")
                inner = f"json_extract({json}, {text(pointer)})"
                found += [_other_kind(inner, field), *_misshapen(inner, field, depth)]
        return found
    if column.items is None or column.items.type not in ("object", "array"):
        return []
    name = f"_lw_n{depth}"
    conditions = [_other_kind(name, column.items), *_misshapen(name, column.items, depth + 1)]
    return [f"coalesce({any_of(f'TRY_CAST({json} AS JSON[])', name, ' OR '.join(conditions))}, FALSE)"]


def _other_kind(json: str, column: Column) -> str:
    return f"coalesce(json_type({json}) NOT IN ('{column.type.upper()}', 'NULL'), FALSE)"


def _texts(column: Column) -> str:
    if column.type == "object" and column.fields:
        return _struct(column, _texts)
    if column.type == "array" and column.items:
        return f"{_texts(column.items)}[]"
    return "VARCHAR"


def _text_shape(column: Column) -> pa.DataType:
    if column.type == "object" and column.fields:
        return pa.struct([pa.field(field.name, _text_shape(field)) for field in column.fields])
    if column.type == "array" and column.items:
        return pa.list_(_text_shape(column.items))
    return pa.string()


def _struct(column: Column, of: Callable[[Column], str]) -> str:
    return f"STRUCT({', '.join(f'{quote(field.name)} {of(field)}' for field in column.fields)})"


def _never(raw: str, arrow: pa.DataType) -> str | None:
    return None if pa.types.is_null(arrow) else f"{raw} IS NOT NULL"


def _name(arrow: pa.DataType) -> str:
    return (
        "VARCHAR" if _is_text(arrow) else {"int64": "BIGINT", "double": "DOUBLE"}.get(str(arrow), "VARCHAR")
    )


def _is_text(arrow: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(arrow) or pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow)
    )


def unfolded(raw: str, column: Column, arrow: pa.DataType) -> tuple[str, pa.DataType]:
    """A raw cell and its type such that paths can go into it: JSON text becomes an object or an array of texts."""
    if column.type in ("object", "array") and _is_text(arrow) and (column.fields or column.items):
        return f"TRY_CAST(TRY_CAST({raw} AS JSON) AS {_texts(column)})", _text_shape(column)
    return raw, arrow


def nested_type(arrow: pa.DataType, path: str) -> pa.DataType | None:
    """The type at a path below a column (".city", "[].name"); None where it leads nowhere."""
    for step in re.findall(r"\[\]|[^.\[\]]+", path):
        if step == "[]":
            if not (
                pa.types.is_list(arrow) or pa.types.is_large_list(arrow) or pa.types.is_fixed_size_list(arrow)
            ):
                return None
            arrow = arrow.value_type
        else:
            if not pa.types.is_struct(arrow) or arrow.get_field_index(step) < 0:
                return None
            arrow = arrow.field(step).type
    return arrow
