"""Values that a column is held against: bounds, lists of what is valid, patterns. Each is read in the column's type."""

import math
import re
import warnings
from collections.abc import Sequence
from datetime import date, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

from loopwright.data.odcs.draft import Draft
from loopwright.data.odcs.shape import Path
from loopwright.data.terms import Column

# DuckDB and Spark's RE2-like engines know neither; a rule that cannot be evaluated would block every delivery.
_BEYOND_RE2 = re.compile(r"\(\?(?:=|!|<=|<!|>|P=)|\\[1-9]")


def read_bound(draft: Draft, value: Any, column: Column, path: Path) -> Any:
    """A bound in the column's type: a number, or ISO 8601 text (in the column's time zone where it names none)."""
    found = _value(value, column)
    if found is None or isinstance(found, bool):
        wanted = {"integer": "a number", "number": "a number"}.get(
            column.type, f"a {column.type} in ISO 8601"
        )
        if column.type in ("boolean", "object", "array", "string"):
            raise draft.fail(f"a {column.type} has no range", path, value)
        raise draft.fail(f"not {wanted.removesuffix(' in ISO 8601')}", path, value, wanted)
    return found


def valid_values(draft: Draft, values: Sequence[Any], column: Column | None, path: Path) -> list[Any]:
    """What is valid, in the column's type; null is left out, since a null passes such a rule."""
    found: list[Any] = []
    for i, value in enumerate(values):
        if value is None:
            continue
        if isinstance(value, dict | list):
            raise draft.fail("not one value", (*path, i), value)
        typed = value if column is None else _value(value, column)
        if typed is None:
            assert column is not None
            raise draft.fail(f"no value that a column of type {column.type} can have", (*path, i), value)
        if typed not in found or type(typed) is bool:
            found.append(typed)
    if not found:
        raise draft.fail("no value is valid", path, list(values), "at least one")
    return found


def read_pattern(draft: Draft, value: Any, path: Path) -> str:
    """A regular expression that Python and DuckDB (RE2) both know."""
    text = str(value)
    try:
        compiled(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise draft.fail(f"not a regular expression ({error})", path, text) from None
    if _BEYOND_RE2.search(text.replace("\\\\", "")):
        raise draft.fail(
            "a regular expression that needs look-around or back-references", path, text,
            "one that matches in a single pass (RE2)", "Say it as a condition in SQL, or with two patterns",
        )  # fmt: skip
    return text


def compiled(pattern: str) -> re.Pattern[str]:
    """Python's reading of a pattern; raises re.error. What a later Python may read otherwise is no news to a user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return re.compile(pattern)


def check_number(
    draft: Draft, value: Any, path: Path, *, least: float = -math.inf, most: float = math.inf
) -> float:
    """A finite number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        wanted = "a number" + (f" from {least:g} to {most:g}" if math.isfinite(least + most) else "")
        raise draft.fail("not a number in range", path, value, wanted)
    return float(value)


def _value(value: Any, column: Column) -> Any:
    """`value` in the column's type; None when it has none there."""
    match column.type:
        case "integer" | "number":
            return _number(value)
        case "boolean":
            if isinstance(value, bool):
                return value
            return {"true": True, "false": False}.get(str(value).lower())
        case "string":
            return str(value).lower() if isinstance(value, bool) else str(value)
        case "date" | "timestamp" | "time":
            return _moment(str(value), column)
        case _:
            return None


def _number(value: Any) -> int | float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                return None
    if isinstance(value, int):
        return value if abs(value) < 2**128 else None
    return value if isinstance(value, float) and math.isfinite(value) else None


def _moment(text: str, column: Column) -> str | None:
    try:
        if column.type == "time":
            return time.fromisoformat(text).isoformat()
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            if not column.format:
                return None
            found = datetime.strptime(text, column.format.replace("%-", "%").replace("%g", "%f"))  # noqa: DTZ007  # a zone follows
        if column.type == "date":
            return date(found.year, found.month, found.day).isoformat()
        if found.tzinfo is None and column.timezone != "UTC":
            found = found.replace(tzinfo=ZoneInfo(column.timezone))
        return found.isoformat(sep=" ")
    except (ValueError, OverflowError):
        return None
