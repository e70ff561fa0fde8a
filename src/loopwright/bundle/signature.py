"""What goes into a model and what comes out of it."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from loopwright.kernel.errors import BadInput, did_you_mean

Dtype = Literal["float64", "int64", "bool", "string"]
Task = Literal["binary", "multiclass", "regression"]


class Field(msgspec.Struct, frozen=True):
    """One input a request brings."""

    name: str
    dtype: Dtype
    nullable: bool = True


class Schema(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs (in logged order), features (the model's columns, in order) and outputs of a model.

    outputs: binary → ("probability",), regression → ("prediction",), multiclass → one per class.
    """

    inputs: tuple[Field, ...]
    features: tuple[str, ...]
    outputs: tuple[str, ...]
    task: Task
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, names in (
            ("input", [field.name for field in self.inputs]),
            ("feature", list(self.features)),
            ("output", list(self.outputs)),
        ):
            if not names:
                raise BadInput(f"a schema without {what}s", where="schema")
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise BadInput(f"{what} named twice", where="schema", got=", ".join(twice))
            reserved = [name for name in names if not name or (what == "input" and name.startswith("_"))]
            if reserved:
                raise BadInput(
                    f"{what} name is reserved",
                    where="schema",
                    got=reserved[0],
                    wanted="a name that is not empty and does not begin with _",
                )
        if self.task == "multiclass" and len(self.classes) != len(self.outputs):
            raise BadInput(
                "one output per class", where="schema", got=len(self.outputs), wanted=f"{len(self.classes)}"
            )
        if self.task != "multiclass" and len(self.outputs) != 1:
            raise BadInput(f"a {self.task} model has one output", where="schema", got=list(self.outputs))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON-able form."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @classmethod
    def from_json(cls, plain: object) -> "Schema":
        """The inverse of `to_json`; raises BadInput."""
        try:
            return msgspec.convert(plain, cls)
        except msgspec.ValidationError as error:
            raise BadInput(f"not a schema ({error})", where="schema") from None


def default_outputs(task: Task, classes: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the output names every model of `task` has."""
    if task == "multiclass":
        return classes
    return ("probability",) if task == "binary" else ("prediction",)


def as_columns(inputs: Mapping[str, Any], schema: Schema) -> dict[str, NDArray[Any]]:
    """Return exactly the schema's inputs as transforms see them, all of one length.

    Numbers and booleans become float64 with NaN for null, text becomes object with None for null.
    Raises BadInput for a missing column, another length or a value of another kind.
    """
    columns: dict[str, NDArray[Any]] = {}
    length = -1
    for field in schema.inputs:
        if field.name not in inputs:
            raise BadInput(
                f"input `{field.name}` is missing",
                got=sorted(inputs),
                next=did_you_mean(field.name, inputs),
            )
        column = _column(inputs[field.name], field)
        if column.ndim != 1 or (length >= 0 and len(column) != length):
            raise BadInput(
                "another length", where=field.name, got=column.shape, wanted=f"({max(length, 0)},)"
            )
        length = len(column)
        columns[field.name] = column
    return columns


def _column(values: Any, field: Field) -> NDArray[Any]:
    array = np.asarray(values)
    if field.dtype == "string":
        if array.dtype.kind == "O":
            return array
        if array.dtype.kind in "UT":
            return array.astype(object)
        raise BadInput("not text", where=field.name, got=str(array.dtype), wanted="text or null")
    if array.dtype == np.float64:
        return array
    if array.dtype.kind in "fiub":
        return array.astype(np.float64)
    if array.dtype.kind == "O" and not any(isinstance(value, str) for value in array):
        try:
            return np.array([np.nan if value is None else value for value in array], dtype=np.float64)
        except (TypeError, ValueError):
            pass
    raise BadInput("not numbers", where=field.name, got=str(array.dtype), wanted=f"{field.dtype} or null")
