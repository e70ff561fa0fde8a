"""Values of the standard that need reading: date formats, durations, limits, references, physical types."""

import math
import re
from collections.abc import Mapping
from typing import Any

from loopwright.data.terms import Limit, Type

LIMITS = {
    "mustBe": "==",
    "mustNotBe": "!=",
    "mustBeGreaterThan": ">",
    "mustBeGreaterOrEqualTo": ">=",
    "mustBeLessThan": "<",
    "mustBeLessOrEqualTo": "<=",
    "mustBeBetween": "between",
    "mustNotBeBetween": "not between",
}
"""How a limit is written → `Limit.op`."""

_LETTERS = {
    "yyyy": "%Y", "uuuu": "%Y", "y": "%Y", "u": "%Y", "yy": "%y", "uu": "%y",
    "MMMM": "%B", "MMM": "%b", "MM": "%m", "M": "%-m", "LL": "%m", "L": "%-m",
    "dd": "%d", "d": "%-d", "DDD": "%j", "D": "%-j",
    "EEEE": "%A", "EEE": "%a", "EE": "%a", "E": "%a",
    "HH": "%H", "H": "%-H", "hh": "%I", "h": "%-I", "mm": "%M", "m": "%-M", "ss": "%S", "s": "%-S", "a": "%p",
    "SSS": "%g", "SSSSSS": "%f", "SSSSSSSSS": "%n",
    "XXX": "%z", "XX": "%z", "X": "%z", "xxx": "%z", "xx": "%z", "x": "%z", "Z": "%z", "ZZZZZ": "%z", "VV": "%Z",
}  # fmt: skip
_RUN = re.compile(r"'((?:[^']|'')*)'|([A-Za-z])\2*|[^A-Za-z']+")

SECONDS = {
    unit: size
    for names, size in (
        ("s sec secs second seconds", 1),
        ("m min mins minute minutes", 60),
        ("h hr hrs hour hours", 3600),
        ("d day days", 86_400),
        ("w wk week weeks", 7 * 86_400),
        ("mo month months", 30 * 86_400),
        ("y yr yrs year years", 365 * 86_400),
    )
    for unit in names.split()
}
"""Unit of time → seconds; a month counts 30 days and a year 365."""
_ISO = re.compile(
    r"P(?:([\d.]+)Y)?(?:([\d.]+)M)?(?:([\d.]+)W)?(?:([\d.]+)D)?(?:T(?:([\d.]+)H)?(?:([\d.]+)M)?(?:([\d.]+)S)?)?"
)

_PHYSICAL: tuple[tuple[str, Type], ...] = (
    (r"bool|bit$", "boolean"),
    (r"timestamp|datetime", "timestamp"),
    (r"date", "date"),
    (r"time", "time"),
    (r"(big|small|tiny|medium|u?)int(eger)?\b|u?int\d+|(big|small)?serial|long|short|byte", "integer"),
    (r"float|double|real|decimal|numeric|number|money", "number"),
    (r"struct|record|row|json|map|object|variant|super", "object"),
    (r"array|list|.*\[\]", "array"),
)
STRING_FORMATS = {
    "email": r"^[^@\s]+@[^@\s]+\.[^@\s]+$",
    "uuid": r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
    "uri": r"^[A-Za-z][A-Za-z0-9+.-]*:\S+$",
    "hostname": r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$",
    "ipv4": r"^((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])$",
    "ipv6": r"^[0-9A-Fa-f:]*:[0-9A-Fa-f:]*(:[0-9]{1,3}(\.[0-9]{1,3}){3})?$",
    "byte": r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
}
"""Formats of text that can be checked → a pattern. `password` and `binary` say nothing about the characters."""


def strptime(text: str) -> str | None:
    """A date format in strptime's codes, given those or the standard's (JDK) letters; None when not understood."""
    if "%" in text:
        return text
    out, end = [], 0
    for run in _RUN.finditer(text):
        if run.start() != end:
            return None
        end = run.end()
        if run.group().startswith("'"):
            out.append((run.group(1).replace("''", "'") or "'").replace("%", "%%"))
        elif run.group(2) is None:
            out.append(run.group())
        elif run.group() in _LETTERS:
            out.append(_LETTERS[run.group()])
        elif run.group() == "T":
            out.append("T")
        else:
            return None
    return "".join(out) if end == len(text) else None


def integers(format_: str) -> tuple[int, int] | None:
    """The least and the greatest integer of a format like i32 or u8; None for an unknown one."""
    known = re.fullmatch(r"([iu])(8|16|32|64|128)", format_)
    if known is None:
        return None
    bits = int(known.group(2))
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if known.group(1) == "i" else (0, 2**bits - 1)


def seconds(value: object, unit: str) -> float | None:
    """A duration: a number with a unit, or ISO 8601 like P1DT6H; None when it is none."""
    if isinstance(value, str):
        iso = _ISO.fullmatch(value.strip().upper())
        if iso and any(iso.groups()):
            sizes = (365 * 86_400, 30 * 86_400, 7 * 86_400, 86_400, 3600, 60, 1)
            try:
                return sum(float(n) * size for n, size in zip(iso.groups(), sizes, strict=True) if n)
            except ValueError:
                return None
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    size = SECONDS.get(unit.strip() if unit == "M" else unit.strip().lower())
    return None if size is None else float(value) * size


def logical(physical: str) -> Type:
    """The logical type that a physical one like DECIMAL(10,2) has; text when unknown."""
    found = physical.strip().lower()
    return next((type_ for pattern, type_ in _PHYSICAL if re.match(pattern, found)), "string")


def limit_of(entry: Mapping[str, Any], *, percent: bool) -> tuple[Limit | None, str]:
    """The limit in a mapping, and what is wrong with it ("" when nothing is); None when it holds none."""
    given = [key for key in LIMITS if key in entry]
    if not given:
        return None, ""
    if len(given) > 1:
        return None, f"two limits in one rule ({', '.join(given)}); write two rules"
    op, value = LIMITS[given[0]], entry[given[0]]
    pair = value if isinstance(value, list) else [value]
    if isinstance(value, bool) and op in ("==", "!="):
        pair = [int(value)]  # of a query that gives true or false
    numbers = [v for v in pair if isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 2**1000]
    wanted = 2 if "between" in op else 1
    if len(numbers) != wanted or len(pair) != wanted:
        return None, f"not a limit: {given[0]} wants {'two numbers' if wanted == 2 else 'a number'}"
    low, high = float(numbers[0]), float(numbers[-1])
    if low > high:
        return None, f"not a limit: {given[0]} wants the smaller number first"
    return Limit(op, low, high if wanted == 2 else 0.0, percent), ""


def reference(text: str) -> tuple[str, tuple[str, ...], bool]:
    """(table, path within it, by ids) of `table.column`, `schema/TABLE/properties/COLUMN`, or one of another contract.

    Raises ValueError when it is none.
    """
    inside = text.rpartition("#")[2].lstrip("/")
    if "/" in inside:
        parts = inside.split("/")
        kinds, names = parts[0::2], parts[1::2]
        if kinds[0] != "schema" or set(kinds[1:]) - {"properties", "items"} or len(kinds) != len(names):
            raise ValueError(text)
        if len(names) < 2 or not all(names):
            raise ValueError(text)
        return names[0], tuple(names[1:]), True
    parts = inside.split(".")
    if len(parts) < 2 or not all(part.strip() for part in parts):
        raise ValueError(text)
    return parts[0], tuple(parts[1:]), False
