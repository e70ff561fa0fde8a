"""What every protocol turns a request into: checked rows of one model's inputs, in schema order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite, isinf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopwright.bundle.signature import Field, Schema
from loopwright.kernel.clock import parse_time, to_us
from loopwright.kernel.errors import BadInput, did_you_mean

Value = float | int | bool | str | None
Columns = dict[str, NDArray[Any]]
Place = str | Callable[[int], str]
"""Where values stand in a request: the V2 tensor ("inputs[0]"), or a function that tells where a row's value stands."""

RESERVED = ("_id", "_unit", "_event_time")
ENTITY = "_entity."
"""Goes before the name of a key's part, where inputs and entities stand side by side."""

MAX_TEXT = 4096
MAX_ID = 256
MAX_INT = 2**63 - 1
# Event times outside these years are mistakes; one of them would push every watermark to the end of time.
EARLIEST_US = to_us(datetime(1900, 1, 1, tzinfo=UTC))
LATEST_US = to_us(datetime(2200, 1, 1, tzinfo=UTC))

_INTEGERS = frozenset(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))
_FLOATS = frozenset(("FP16", "BF16", "FP32", "FP64"))
_DATATYPES: dict[str, frozenset[str]] = {
    "float64": _FLOATS | _INTEGERS,
    # Floats carry integers and booleans that may be null: NaN is the only null a binary tensor has.
    "int64": _INTEGERS | _FLOATS,
    "bool": frozenset(("BOOL",)) | _FLOATS,
    "string": frozenset(("BYTES",)),
}
_PYTHON: dict[str, frozenset[type]] = {
    "float64": frozenset((float, int)),
    "int64": frozenset((int, float)),
    "bool": frozenset((bool, float)),
    "string": frozenset((str,)),
}
_PREFERRED = {"float64": "FP64", "int64": "INT64", "bool": "BOOL", "string": "BYTES"}


@dataclass(slots=True)
class Rows:
    """Checked rows. `values[i]` is a row in schema order with None for null (what is logged).

    ids and units are "" and event_times 0 where the caller gave none. looked_up: of values that were not sent. unfit:
    versions that these rows must not be given to, with the reason: what was looked up is not what they were trained on.
    """

    request_id: str
    n: int
    values: list[list[Value]]
    ids: list[str]
    units: list[str]
    event_times: list[int]
    looked_up: "LookedUp | None" = None
    unfit: Mapping[int, str] | None = None


@dataclass(slots=True)
class PartialRows:
    """Rows that name entities in the place of inputs. given: checked inputs by name; entities: parts of keys."""

    request_id: str
    n: int
    given: list[dict[str, Value]]
    entities: list[dict[str, Value]]
    ids: list[str]
    units: list[str]
    event_times: list[int]


@dataclass(frozen=True, slots=True)
class LookedUp:
    """What online views said, by view, for each row: seconds since the fact, and how it stands. None: not asked."""

    ages: dict[str, list[float | None]]
    statuses: dict[str, list[str | None]]


class NamesEntities(BadInput):
    """A request brings entities, where every input is wanted."""


def v2_datatype(field: Field) -> str:
    """Return the datatype a client should send for `field`."""
    return _PREFERRED[field.dtype]


def check_values(values: Sequence[Any], field: Field, datatype: str, where: Place) -> list[Value]:
    """Return `values` as logged (NaN becomes None); raises BadInput naming the first row that does not fit."""
    if datatype not in _DATATYPES[field.dtype]:
        raise BadInput(
            f"input `{field.name}` is {field.dtype}",
            where=f"{where}.datatype",
            got=datatype,
            wanted=_PREFERRED[field.dtype],
        )
    allowed = _PYTHON[field.dtype]
    kinds = set(map(type, values))
    if not kinds <= allowed or field.dtype != "float64" or None in values:
        return [_check_value(value, field, allowed, where, row) for row, value in enumerate(values)]
    plain = float not in kinds or all(value - value == 0 for value in values)
    if not plain or (int in kinds and (min(values) < -MAX_INT or max(values) > MAX_INT)):
        return [_check_value(value, field, allowed, where, row) for row, value in enumerate(values)]
    return list(values)


def _check_value(value: Any, field: Field, allowed: frozenset[type], where: Place, row: int) -> Value:
    if value is None or value != value:
        if not field.nullable:
            raise BadInput(
                f"input `{field.name}` may not be null", where=_place(where, row), wanted=field.dtype
            )
        return None
    kind = type(value)
    if kind not in allowed:
        raise BadInput("a value of another kind", where=_place(where, row), got=value, wanted=field.dtype)
    if kind is str and len(value) > MAX_TEXT:
        raise BadInput(
            "text too long",
            where=_place(where, row),
            got=f"{len(value)} characters",
            wanted=f"at most {MAX_TEXT}",
        )
    if kind is float and isinf(value):
        raise BadInput("not finite", where=_place(where, row), got=value, wanted=field.dtype)
    if (kind is int or field.dtype == "int64") and abs(value) > MAX_INT:
        raise BadInput("a number too large", where=_place(where, row), wanted="at most 64 bits")
    if field.dtype == "int64" and kind is float and not value.is_integer():
        raise BadInput("not a whole number", where=_place(where, row), got=value, wanted="int64")
    if field.dtype == "bool" and kind is float and value not in (0.0, 1.0):
        raise BadInput("not a boolean", where=_place(where, row), got=value, wanted="true or false")
    checked: Value = value
    return checked


def _place(where: Place, row: int) -> str:
    return f"{where}.data[{row}]" if isinstance(where, str) else where(row)


class Reader:
    """A schema, prepared for the hot path."""

    __slots__ = ("_numbers", "_texts", "dtypes", "fields", "floats", "names", "order", "schema")

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.names = {field.name for field in schema.inputs}
        self.order = [field.name for field in schema.inputs]
        self.dtypes = [field.dtype for field in schema.inputs]
        self.floats = set(self.dtypes) == {"float64"}
        self.fields = [(field, field.name, field.dtype) for field in schema.inputs]
        places = list(enumerate(schema.inputs))
        self._numbers = [(field.name, i) for i, field in places if field.dtype != "string"]
        self._texts = [(field.name, i) for i, field in places if field.dtype == "string"]

    def columns(self, values: Sequence[Sequence[Value]]) -> Columns:
        """Return the transform's columns: numbers as float64 with NaN, text as object with None.

        Fresh arrays each time, so that a transform that writes into them spoils nothing.
        """
        if len(values) == 1:
            row = values[0]
            # One conversion for all numbers; each column is a view of it, which costs a tenth of an own array.
            if not self._texts:
                return dict(zip(self.order, np.array(row, dtype=np.float64).reshape(-1, 1), strict=True))
            numbers = np.array([row[i] for _, i in self._numbers], dtype=np.float64)
            columns: Columns = {name: numbers[k : k + 1] for k, (name, _) in enumerate(self._numbers)}
            for name, i in self._texts:
                columns[name] = np.array([row[i]], dtype=object)
            return columns
        by_input = list(zip(*values, strict=True))
        columns = {name: np.array(by_input[i], dtype=np.float64) for name, i in self._numbers}
        columns.update({name: np.array(by_input[i], dtype=object) for name, i in self._texts})
        return columns


def check_names(
    given: Sequence[str],
    schema: Schema,
    *,
    at: Callable[[str], str] | None = None,
    within: str = "inputs",
    partial: bool = False,
) -> None:
    """Raise BadInput unless `given` are the schema's inputs (reserved names aside), each once.

    at: tells where a name stands; without it, names are those of V2 tensors. within: what lacks a missing one. partial:
    inputs may be missing, and parts of entities' keys stand among them.
    """
    wanted = [field.name for field in schema.inputs]
    known = set(wanted)
    seen: set[str] = set()
    for position, name in enumerate(given):
        where = at(name) if at else f"inputs[{position}].name"
        if name in seen:
            raise BadInput("an input given twice", where=where, got=name)
        seen.add(name)
        if name not in known and name not in RESERVED and not (partial and name.startswith(ENTITY)):
            raise BadInput(
                f"the model has no input `{short_name(name)}`",
                where=where,
                wanted=", ".join(wanted),
                next=did_you_mean(name, [*wanted, *RESERVED]),
            )
    missing = [name for name in wanted if name not in seen]
    if missing and not partial:
        raise BadInput(
            f"input `{missing[0]}` is missing" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
            where=within,
            wanted=", ".join(wanted),
            next="Send null where a nullable value is unknown.",
        )


def short_name(name: str) -> str:
    """A name out of a request, for messages."""
    return name if len(name) <= MAX_ID else f"{name[:MAX_ID]}…"


def check_entity(value: object, where: str) -> Value:
    """Return a part of a key: text, a finite number, a boolean, or None; raises BadInput."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and len(value) <= MAX_TEXT:
        return value
    if isinstance(value, int) and abs(value) <= MAX_INT:
        return value
    if isinstance(value, float) and isfinite(value):
        return value
    raise BadInput(
        "not a key", where=where, got=value, wanted=f"text of at most {MAX_TEXT} characters, a number or null"
    )


def check_id(text: object, where: str) -> str:
    """Return a row's id or unit; raises BadInput for what is no short text."""
    if not isinstance(text, str):
        raise BadInput("not text", where=where, got=text, wanted="text (BYTES)")
    if len(text) > MAX_ID:
        raise BadInput("too long", where=where, got=f"{len(text)} characters", wanted=f"at most {MAX_ID}")
    if not text.isprintable():
        raise BadInput("holds characters that cannot be printed", where=where, got=text)
    return text


def check_event_time(value: object, where: str) -> int:
    """Return microseconds since 1970 from ISO text (with a zone) or an integer of microseconds; raises BadInput."""
    if isinstance(value, str):
        try:
            moment = to_us(parse_time(value))
        except (BadInput, OverflowError):
            raise BadInput(
                "not a time with a zone", where=where, got=value, wanted="ISO 8601, like 2013-04-01T05:00:00Z"
            ) from None
    elif isinstance(value, int) and not isinstance(value, bool):
        moment = value
    elif isinstance(value, float) and value.is_integer():  # JSON knows one kind of number
        moment = int(value)
    else:
        raise BadInput("not a time", where=where, got=value, wanted="ISO 8601 text or integer microseconds")
    if not EARLIEST_US <= moment < LATEST_US:
        raise BadInput(
            "a time outside 1900 to 2200", where=where, got=value, wanted="microseconds since 1970 UTC"
        )
    return moment
