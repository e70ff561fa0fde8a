"""Rows of a file or a request as a model takes them: checked column by column, with what is wrong told by its row.

What does not fit as a whole (a column that is missing, or of another kind) is an error. What does not fit in a row is
that row's problem: with `bad_rows: report` it is told in the result, and the other rows are answered.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from loopwright.bundle.signature import Field, Schema
from loopwright.jobs.request import Request
from loopwright.kernel.errors import BadInput, did_you_mean
from loopwright.serving.rows import (
    EARLIEST_US,
    LATEST_US,
    MAX_TEXT,
    Columns,
    Value,
    check_event_time,
    check_id,
    check_values,
    v2_datatype,
)

Problems = dict[int, tuple[str, str]]
"""Position in the batch → (column, what is wrong)."""

_TRUTH = {"true": True, "false": False, "1": True, "0": False}


@dataclass(slots=True)
class Checked:
    """A batch. `columns`: as transforms take them, all rows; `values`: a row in schema order, None for null.

    ids, units: "" and times: 0 where the rows say nothing. problems: rows that are not to be answered.
    """

    n: int
    columns: Columns
    values: list[list[Value]]
    ids: list[str]
    units: list[str]
    times: list[int]
    problems: Problems = field(default_factory=dict)

    def of(self, positions: Sequence[int]) -> Columns:
        """Fresh columns of some rows: a transform may write into what it is given."""
        index = np.asarray(positions, dtype=np.intp)
        return {name: column[index] for name, column in self.columns.items()}


def columns_wanted(names: Sequence[str], schema: Schema, request: Request, where: str) -> list[str]:
    """Which of a file's columns are read; raises BadInput for an input that is missing, or a named column."""
    for wanted in schema.inputs:
        if wanted.name not in names:
            raise BadInput(
                f"no column `{wanted.name}`, which is an input of the model", where=where, got=", ".join(names)[:300],
                next=did_you_mean(wanted.name, names) or "Rename the file's column, or deliver it.",
            )  # fmt: skip
    defaults = Request().named_columns
    for option, name, default in zip(
        ("id_column", "unit_column", "event_time_column"), request.named_columns, defaults, strict=True
    ):
        if name not in names and name != default:
            raise BadInput(
                f"no column `{name}`", where=f"{where}: {option}", got=", ".join(names)[:300],
                next=did_you_mean(name, names),
            )  # fmt: skip
    inputs = [one.name for one in schema.inputs]
    return inputs + [name for name in request.named_columns if name in names and name not in inputs]


def check_batch(batch: pa.RecordBatch, schema: Schema, request: Request, where: str) -> Checked:
    """Check a file's rows. Raises BadInput for a column of a kind that the model does not take."""
    problems: Problems = {}
    columns: Columns = {}
    logged: list[list[Value]] = []
    for one in schema.inputs:
        array = _plain(batch.column(one.name))
        reader = _texts if one.dtype == "string" else _numbers
        columns[one.name], values = reader(array, one, problems, f"{where}: column `{one.name}`")
        logged.append(values)
    n = batch.num_rows
    names = [
        _plain(batch.column(name)) if name in batch.schema.names else None for name in request.named_columns
    ]
    ids = _each(names[0], request.id_column, _name, "", n, problems)
    units = _each(names[1], request.unit_column, _name, "", n, problems)
    times = _times(names[2], request.event_time_column, n, problems, where)
    return Checked(n, columns, list(map(list, zip(*logged, strict=True))), ids, units, times, problems)


def check_rows(rows: Sequence[Mapping[str, Any]], schema: Schema, request: Request) -> Checked:
    """Check a request's rows, names included. Raises BadInput for a row with a name missing or unknown."""
    inputs = [one.name for one in schema.inputs]
    known = {*inputs, *request.named_columns}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise BadInput("not a row", where=f"row {number}", got=row, wanted='{"input": value, …}')
        for name in row:
            if name not in known:
                raise BadInput(
                    f"the model has no input `{name}`", where=f"row {number}", wanted=", ".join(inputs),
                    next=did_you_mean(str(name), known),
                )  # fmt: skip
        missing = [name for name in inputs if name not in row]
        if missing:
            raise BadInput(
                f"input `{missing[0]}` is missing", where=f"row {number}", wanted=", ".join(inputs),
                next="Send null where a nullable value is unknown.",
            )  # fmt: skip
    problems: Problems = {}
    columns: Columns = {}
    logged: list[list[Value]] = []
    for one in schema.inputs:
        values = _checked([row[one.name] for row in rows], one, problems)
        columns[one.name] = _array(values, one)
        logged.append(values)
    named = [[row.get(name) for row in rows] for name in request.named_columns]
    ids = _each(named[0], request.id_column, _name, "", len(rows), problems)
    units = _each(named[1], request.unit_column, _name, "", len(rows), problems)
    times = _each(named[2], request.event_time_column, _time, 0, len(rows), problems)
    return Checked(
        len(rows), columns, list(map(list, zip(*logged, strict=True))), ids, units, times, problems
    )


def _plain(array: pa.Array) -> pa.Array:
    """Dictionaries unpacked, the many kinds of text as one."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        array = array.cast(pa.string())
    if pa.types.is_decimal(array.type) or pa.types.is_float16(array.type):
        array = array.cast(pa.float64())
    return array


def _texts(array: pa.Array, one: Field, problems: Problems, where: str) -> tuple[NDArray[Any], list[Value]]:
    if pa.types.is_null(array.type):
        array = array.cast(pa.string())
    if not pa.types.is_string(array.type):
        raise BadInput(
            "a column of another kind", where=where, got=str(array.type), wanted="text",
            next="Write it as text: what 007 means, numbers forget.",
        )  # fmt: skip
    values: list[Value] = array.to_pylist()
    if array.null_count and not one.nullable:
        _nulls(array, one, problems)
    longest = pc.max(pc.utf8_length(array)).as_py()
    if longest is not None and longest > MAX_TEXT:
        values = _checked(values, one, problems)
    return _array(values, one), values


def _numbers(array: pa.Array, one: Field, problems: Problems, where: str) -> tuple[NDArray[Any], list[Value]]:
    kind = array.type
    if pa.types.is_string(kind):
        return _parsed(array, one, problems)
    if pa.types.is_null(kind):
        array = array.cast(pa.float64())
    elif not (
        pa.types.is_floating(kind)
        or pa.types.is_integer(kind)
        or (pa.types.is_boolean(kind) and one.dtype == "bool")
    ):
        raise BadInput("a column of another kind", where=where, got=str(kind), wanted=one.dtype)
    numbers = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
    null = np.isnan(numbers)
    bad = np.isinf(numbers)
    if one.dtype == "int64":
        with np.errstate(invalid="ignore"):
            bad |= ~null & ((np.floor(numbers) != numbers) | (np.abs(numbers) >= 2.0**63))
    elif one.dtype == "bool":
        bad |= ~null & (numbers != 0) & (numbers != 1)
    if not one.nullable:
        bad |= null
    if pa.types.is_integer(kind) and one.dtype != "bool" and not bad.any():
        return numbers, array.to_pylist()  # whole numbers beyond 2^53 are logged as they came
    if bad.any():
        # The rare way round: each value says in words what is wrong with it.
        values = _checked(
            [None if n else float(v) for n, v in zip(null, numbers, strict=True)], one, problems
        )
    else:
        values = [None if n else v for n, v in zip(null.tolist(), numbers.tolist(), strict=True)]
    if one.dtype != "float64":
        exact: Callable[[Any], Value] = bool if one.dtype == "bool" else int
        values = [value if value is None else exact(value) for value in values]
    return numbers, values


def _parsed(array: pa.Array, one: Field, problems: Problems) -> tuple[NDArray[Any], list[Value]]:
    """Text of a CSV as numbers: what is not a number is its row's problem."""
    if one.dtype == "float64":
        try:
            return _numbers(pc.utf8_trim_whitespace(array).cast(pa.float64()), one, problems, "")
        except pa.ArrowInvalid:
            pass  # one of them is no number; below it is found
    values: list[Any] = []
    for position, text in enumerate(array.to_pylist()):
        try:
            values.append(None if text is None else _number(text.strip(), one))
        except ValueError:
            problems.setdefault(position, (one.name, f"not {_a(one.dtype)}: `{text[:80]}`"))
            values.append(0 if one.dtype != "bool" else False)
    values = _checked(values, one, problems)
    return _array(values, one), values


def _number(text: str, one: Field) -> Value:
    if one.dtype == "bool":
        if text.lower() not in _TRUTH:
            raise ValueError(text)
        return _TRUTH[text.lower()]
    if "_" in text:
        raise ValueError(text)  # Python reads 1_000 as a number
    if one.dtype == "int64":
        try:
            return int(text)
        except ValueError:
            number = float(text)
            if number.is_integer():
                return int(number)
            raise
    return float(text)


def _checked(values: list[Any], one: Field, problems: Problems) -> list[Value]:
    """The values as logged; what does not fit becomes a problem and stands as null."""
    datatype = v2_datatype(one)
    try:
        return check_values(values, one, datatype, one.name)
    except BadInput:
        pass
    found: list[Value] = []
    for position, value in enumerate(values):
        try:
            found += check_values([value], one, datatype, one.name)
        except BadInput as error:
            told = BadInput(error.what, got=error.got, wanted=error.wanted)
            problems.setdefault(position, (one.name, str(told)))
            found.append(None)
    return found


def _nulls(array: pa.Array, one: Field, problems: Problems) -> None:
    for position in np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)):
        problems.setdefault(int(position), (one.name, f"input `{one.name}` may not be null"))


def _array(values: Sequence[Value], one: Field) -> NDArray[Any]:
    if one.dtype == "string":
        texts = np.empty(len(values), dtype=object)
        texts[:] = values
        return texts
    return np.array(values, dtype=np.float64)  # None becomes NaN


def _each(
    values: Any, column: str, check: Callable[[Any, str], Any], absent: Any, n: int, problems: Problems
) -> list[Any]:
    if values is None:
        return [absent] * n
    found = []
    for position, value in enumerate(values.to_pylist() if isinstance(values, pa.Array) else values):
        if value is None or value == "":
            found.append(absent)
            continue
        try:
            found.append(check(value, column))
        except BadInput as error:
            told = BadInput(error.what, got=error.got, wanted=error.wanted)
            problems.setdefault(position, (column, str(told)))
            found.append(absent)
    return found


def _name(value: Any, column: str) -> str:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return check_id(str(value) if whole else value, column)


def _time(value: Any, column: str) -> int:
    return check_event_time(value, column)


def _times(values: pa.Array | None, column: str, n: int, problems: Problems, where: str) -> list[int]:
    if values is None or not pa.types.is_temporal(values.type):
        return _each(values, column, _time, 0, n, problems)
    if not pa.types.is_timestamp(values.type) or values.type.tz is None:
        raise BadInput(
            "times without a zone", where=f"{where}: column `{column}`", got=str(values.type),
            wanted="timestamps with a zone, ISO 8601 text with an offset, or microseconds since 1970 UTC",
        )  # fmt: skip
    whole = values.cast(pa.timestamp("us", tz=values.type.tz), safe=False).cast(pa.int64()).to_pylist()
    moments: list[int] = []
    for position, moment in enumerate(whole):
        if moment is not None and not EARLIEST_US <= moment < LATEST_US:
            problems.setdefault(position, (column, "a time outside 1900 to 2200"))
            moment = None
        moments.append(moment or 0)
    return moments


def _a(dtype: str) -> str:
    return {"float64": "a number", "int64": "a whole number", "bool": "true or false"}[dtype]
