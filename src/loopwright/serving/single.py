"""The V2 request that nearly everybody sends, read and answered in one go: a row, one tensor per input in their order.

The JSON decoder itself checks the form, so little is left to do in Python. Whatever is not exactly of this form is left
to `v2.read_rows`, which answers the same for what is, and says what is wrong with what is not.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Any, Literal

import msgspec

from loopwright.serving import v2
from loopwright.serving.rows import Reader, Rows, Value


class _Tensor(msgspec.Struct, gc=False):
    name: str
    datatype: str
    shape: tuple[Literal[1]]
    data: tuple[Any]


class _Single(msgspec.Struct, gc=False):
    inputs: list[_Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: None = None


_decode = msgspec.json.Decoder(_Single).decode
_NAMING = frozenset(("unit", "event_time"))
_FLOAT, _FP64 = {float}, {"FP64"}


def read_single(body: bytes, reader: Reader) -> tuple[v2.InferRequest, Rows] | None:
    """Return the request, without its tensors, and its row; None for what is of another form. Raises as `read_rows`."""
    try:
        single = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    inputs = single.inputs
    if [tensor.name for tensor in inputs] != reader.order:
        return None
    values: list[Value] = [tensor.data[0] for tensor in inputs]
    # One look at all of them where every input is a number; a sum is finite only when everything in it is.
    alike = reader.floats and set(map(type, values)) == _FLOAT and isfinite(sum(values))  # type: ignore[arg-type]
    if not alike or {tensor.datatype for tensor in inputs} != _FP64:
        for value, tensor, dtype in zip(values, inputs, reader.dtypes, strict=True):
            if not v2.is_plain(value, tensor.datatype, dtype):
                return None
    parameters = single.parameters
    if parameters and not parameters.keys() <= _NAMING:
        return None
    request = v2.InferRequest([], single.id, parameters)
    if single.id is None and not parameters:
        return request, Rows("", 1, [values], [""], [""], [0])
    return request, v2.with_reserved(request, {}, 1, [values])


class Template:
    """The answer to one row by one version and arm, but for its ids and numbers: what `v2.respond` writes, cut up."""

    __slots__ = ("_after_id", "_before", "_end", "_numbers")

    def __init__(self, model: str, version: int, arm: str, outputs: Sequence[str]) -> None:
        numbers = [_PLACE + place for place in range(len(outputs))]
        whole, _ = v2.respond(
            v2.InferRequest([], _ID), model=model, version=version,
            parameters={"arm": arm, "request_id": _REQUEST_ID}, outputs=outputs, result=[numbers], extra={},
        )  # fmt: skip
        self._before, whole = _cut(whole, _ID)
        self._after_id, whole = _cut(whole, _REQUEST_ID)
        self._numbers: list[bytes] = []
        for number in numbers:
            before, whole = _cut(whole, number)
            self._numbers.append(before)
        self._end = whole

    def fill(self, id: str, request_id: str, numbers: list[float]) -> bytes:
        """Return an answer's body."""
        parts = [self._before, _encode(id), self._after_id, _encode(request_id)]
        for before, number in zip(self._numbers, numbers, strict=True):
            parts += (before, _encode(number))
        parts.append(self._end)
        return b"".join(parts)


_encode = v2.encode
_ID, _REQUEST_ID, _PLACE = "\x00id", "\x00request", 0.1234567890625
"""What stands for ids and numbers; \\x00 is in no name, and is written in a way of its own."""


def _cut(text: bytes, at: str | float) -> tuple[bytes, bytes]:
    before, _, after = text.partition(_encode(at))
    return before, after
