"""What an expectation adds to a contract, and how its arguments are read."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loopwright.data.expectations.suite import Expectation


class Unmapped(Exception):  # it is an answer, no error
    """Why an expectation has no rule here."""


@dataclass
class Effect:
    """What it adds: keys of properties, options of their types, quality entries (column "": the table's)."""

    columns: list[str] = field(default_factory=list)
    properties: dict[str, dict[str, Any]] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    quality: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    note: str = ""


MAPPINGS: dict[str, Callable[[Expectation], Effect]] = {}
"""Type of expectation → what says it in a contract's words."""
BATCH = [{"property": "scope", "value": "batch"}]


def maps(*types: str) -> Callable[[Callable[[Expectation], Effect]], Callable[[Expectation], Effect]]:
    def register(function: Callable[[Expectation], Effect]) -> Callable[[Expectation], Effect]:
        for type_ in types:
            MAPPINGS[type_] = function
        return function

    return register


def condition_effect(one: Expectation, columns: Sequence[str], sql: str) -> Effect:
    implementation: Any = sql
    note = shared(one)
    if mostly_of(one) != 1:
        # The standard has no place for a limit beside a custom rule's engine.
        implementation = {"condition": sql, **{k: v for k, v in bad_rows(one).items() if k != "unit"}}
        entry = {
            "type": "custom",
            "engine": "loopwright",
            "unit": "percent",
            "implementation": implementation,
        }
    else:
        entry = {"type": "custom", "engine": "loopwright", "implementation": implementation}
    return Effect(list(columns), quality=[(columns[0] if len(columns) == 1 else "", entry)], note=note)


def custom(implementation: dict[str, Any]) -> dict[str, Any]:
    return {"type": "custom", "engine": "loopwright", "implementation": implementation}


def bad_rows(one: Expectation) -> dict[str, Any]:
    """The limit of a rule on rows."""
    mostly = mostly_of(one)
    if mostly == 1:
        return {"mustBe": 0}
    return {"mustBeLessOrEqualTo": percent(1 - mostly), "unit": "percent"}


def shared(one: Expectation) -> str:
    return (
        ""
        if mostly_of(one) == 1
        else "`mostly` is a share of the values that are there, the limit one of all rows"
    )


def limits(kwargs: Mapping[str, Any]) -> list[dict[str, Any]]:
    low, high = kwargs.get("min_value"), kwargs.get("max_value")
    strict_low, strict_high = kwargs.get("strict_min"), kwargs.get("strict_max")
    if low is None and high is None:
        raise Unmapped("it has neither min_value nor max_value")
    for value in (low, high):
        if value is not None:
            number(value)
    if low is not None and high is not None and not strict_low and not strict_high:
        return [{"mustBe": low} if low == high else {"mustBeBetween": [low, high]}]
    found = []
    if low is not None:
        found.append({"mustBeGreaterThan" if strict_low else "mustBeGreaterOrEqualTo": low})
    if high is not None:
        found.append({"mustBeLessThan" if strict_high else "mustBeLessOrEqualTo": high})
    return found


def column_of(one: Expectation) -> str:
    return text_of(one, "column")


def pair_of(one: Expectation) -> list[str]:
    return [text_of(one, "column_A"), text_of(one, "column_B")]


def text_of(one: Expectation, key: str) -> str:
    value = one.kwargs.get(key)
    if not isinstance(value, str) or not value:
        raise Unmapped(f"it has no {key}")
    return value


def texts_of(one: Expectation, key: str) -> list[str]:
    value = one.kwargs.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v for v in value):
        raise Unmapped(f"it has no {key}")
    return list(value)


def values_of(one: Expectation) -> list[Any]:
    value = one.kwargs.get("value_set")
    if not isinstance(value, list) or not [v for v in value if v is not None]:
        raise Unmapped("it has no value_set")
    return [v for v in value if v is not None]


def mostly_of(one: Expectation) -> float:
    value = one.kwargs.get("mostly")
    found = 1.0 if value is None else number(value)
    if not 0 <= found <= 1:
        raise Unmapped(f"mostly is no share: {found:g}")
    return found


def number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unmapped(f"{value!r} is no number")
    return float(value)


def percent(share: float) -> float:
    return round(100 * share, 9)


def type_of(column: str, values: Sequence[Any], *, ordered: bool = False) -> dict[str, str]:
    if not values:
        return {}
    if all(isinstance(v, bool) for v in values):
        return {column: "boolean"}
    if all(isinstance(v, int) and not isinstance(v, bool) for v in values) and not ordered:
        return {column: "integer"}
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return {column: "number"}
    return {column: "timestamp" if ordered else "string"}


_NAMES = (
    (r"^(u?int|u?int(8|16|32|64)|(integer|long|short|byte|bigint|smallint|tinyint)(type)?)$", "integer"),
    (
        r"^(float(16|32|64)|(double|float|decimal|real|numeric|number)(type)?|double_?precision)(\(.*\))?$",
        "number",
    ),
    (r"^(bool|bool_|boolean)(type)?$", "boolean"),
    (r"^(timestamp|datetime|datetime64)(type|ntztype|tz)?(\[.*\])?$", "timestamp"),
    (r"^date(type)?$", "date"),
    (r"^(str|string|object|text|varchar|nvarchar|char|unicode)(type|dtype)?(\(.*\))?$", "string"),
)


def logical(name: str) -> str | None:
    return next((type_ for pattern, type_ in _NAMES if re.match(pattern, name.strip().lower())), None)


def literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).upper()
    return str(value) if isinstance(value, int | float) else "'" + str(value).replace("'", "''") + "'"


def listed(values: Sequence[Any]) -> str:
    return ", ".join(literal(value) for value in values)
