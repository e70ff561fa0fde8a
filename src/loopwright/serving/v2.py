"""Open Inference Protocol V2 over HTTP: JSON requests and answers, with the binary tensor extension.

A request brings one tensor per input, [rows] or [rows, 1]; for a model all of whose inputs are numbers also one tensor
of any name, [rows, inputs], whose columns are the inputs in the order of the metadata.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from loopwright import __version__
from loopwright.bundle.signature import Field, Schema
from loopwright.kernel.errors import BadInput, did_you_mean
from loopwright.serving.http import Malformed, TooLarge
from loopwright.serving.rows import (
    ENTITY,
    MAX_INT,
    MAX_TEXT,
    RESERVED,
    NamesEntities,
    PartialRows,
    Reader,
    Rows,
    Value,
    check_entity,
    check_event_time,
    check_id,
    check_names,
    check_values,
    v2_datatype,
)

_BINARY: dict[str, str] = {
    "BOOL": "?",
    **{f"{u}INT{8 * size}": f"<{'u' if u else 'i'}{size}" for u in ("", "U") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": f"<f{size}" for size in (2, 4, 8)},
    # The upper half of a float32, which numpy has no type for.
    "BF16": "<u2",
}
EXTENSIONS = ("binary_tensor_data", "model_repository")
MAX_VALUES = 1 << 24
"""Values of one binary tensor, whatever its shape says."""


class Tensor(msgspec.Struct, gc=False):
    """A V2 tensor in a request."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class WantedOutput(msgspec.Struct, gc=False):
    """An output the client asks for."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct, gc=False):
    """A V2 inference request."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[WantedOutput] | None = None


class OutTensor(msgspec.Struct, omit_defaults=True, gc=False):
    """A V2 tensor in an answer."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class InferResponse(msgspec.Struct, gc=False):
    """A V2 answer. parameters: arm, request_id, and fallback when stable answered for a failing canary."""

    model_name: str
    model_version: str
    id: str
    parameters: dict[str, Any]
    outputs: list[OutTensor]


_request_decoder = msgspec.json.Decoder(InferRequest)
encode = msgspec.json.Encoder().encode


def parse_request(body: bytes, json_length: int | None, *, max_rows: int = MAX_VALUES) -> InferRequest:
    """Parse a body; json_length: the binary extension's header, or None. Raises Malformed, BadInput, TooLarge."""
    head = body
    if json_length is not None:
        if not 0 < json_length <= len(body):
            raise Malformed(
                "longer than the body",
                where="Inference-Header-Content-Length",
                got=json_length,
                wanted=f"at most {len(body)}",
            )
        head = body[:json_length]
    try:
        request = _request_decoder.decode(head)
    except msgspec.ValidationError as error:
        raise BadInput(f"not a V2 inference request ({error})", where="body") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Malformed(f"not JSON ({reason})", where="body") from None
    if json_length is not None:
        _attach_binary(request, memoryview(body)[json_length:], max_rows)
    return request


def read_rows(request: InferRequest, reader: Reader, *, max_rows: int) -> Rows:
    """Check a request against the schema; raises BadInput or TooLarge saying which tensor and row is wrong.

    NamesEntities: read it with `read_partial`.
    """
    tensors = {tensor.name: tensor for tensor in request.inputs}
    if len(tensors) != len(request.inputs) or tensors.keys() != reader.names:
        if any(name.startswith(ENTITY) for name in tensors):
            raise NamesEntities("entities are not looked up here", where="inputs", wanted="every input")
        matrix = _matrix(request, reader.schema)
        if matrix is not None:
            return _matrix_rows(request, matrix, tensors, reader, max_rows)
        check_names([tensor.name for tensor in request.inputs], reader.schema)
    n = -1
    columns: list[list[Value]] = []
    for field, name, dtype in reader.fields:
        tensor = tensors[name]
        data = tensor.data
        if n == 1 and data is not None and len(data) == 1 and tensor.shape in _ONE_ROW:
            value = data[0]
            # What nearly every request brings; only finite floats give exactly 0 here.
            if (
                type(value) is float
                and dtype == "float64"
                and tensor.datatype == "FP64"
                and value - value == 0.0
            ):
                columns.append(data)
                continue
        else:
            data = _flat(tensor, request, n, max_rows)
            n = len(data)
            if not data:
                raise BadInput(
                    f"tensor `{name}` has no rows", where="inputs", got=tensor.shape, wanted="at least one"
                )
            value = data[0]
        if n == 1 and is_plain(value, tensor.datatype, dtype):
            columns.append(data)
        else:
            if type(value) is list:  # shape [1, 1], written as a row of its own
                data = _flat(tensor, request, n, max_rows)
            columns.append(check_values(data, field, tensor.datatype, _where(request, tensor)))
    values: list[list[Value]] = (
        [[column[0] for column in columns]] if n == 1 else [list(row) for row in zip(*columns, strict=True)]
    )
    return with_reserved(request, tensors, n, values)


def read_partial(request: InferRequest, reader: Reader, *, max_rows: int) -> PartialRows:
    """Check a request that names entities (tensors `_entity.KEY`) and may leave inputs out; raises as `read_rows`."""
    tensors = {tensor.name: tensor for tensor in request.inputs}
    check_names([tensor.name for tensor in request.inputs], reader.schema, partial=True)
    n = -1
    entities: dict[str, list[Value]] = {}
    for name, tensor in tensors.items():
        if name.startswith(ENTITY):
            where = _where(request, tensor)
            if tensor.datatype not in _KEYS:
                raise BadInput(
                    "not a key", where=f"{where}.datatype", got=tensor.datatype, wanted=" or ".join(_KEYS)
                )
            data = _flat(tensor, request, n, max_rows)
            n = len(data)
            entities[name.removeprefix(ENTITY)] = [
                check_entity(value, f"{where}.data[{row}]") for row, value in enumerate(data)
            ]
    if n == 0:
        raise BadInput("no rows", where="inputs", wanted="at least one")
    given = {
        name: check_values(
            _flat(tensors[name], request, n, max_rows),
            field,
            tensors[name].datatype,
            _where(request, tensors[name]),
        )
        for field, name, _ in reader.fields
        if name in tensors
    }
    about = with_reserved(request, tensors, n, [])
    return PartialRows(
        about.request_id,
        n,
        [{name: column[row] for name, column in given.items()} for row in range(n)],
        [{name: column[row] for name, column in entities.items()} for row in range(n)],
        about.ids,
        about.units,
        about.event_times,
    )


_KEYS = ("BYTES", "INT64", "FP64", "BOOL")
_ONE_ROW = ([1], [1, 1])


def is_plain(value: Any, datatype: str, dtype: str) -> bool:
    """True for single values that need no closer look; all others take the slower way with its exact messages."""
    kind = type(value)
    if kind is float:
        return datatype == "FP64" and dtype == "float64" and value - value == 0.0
    if kind is str:
        return datatype == "BYTES" and dtype == "string" and len(value) <= MAX_TEXT
    if kind is int:
        return (
            datatype in ("INT64", "FP64") and dtype in ("int64", "float64") and -MAX_INT <= value <= MAX_INT
        )
    return False


def _where(request: InferRequest, tensor: Tensor) -> str:
    return f"inputs[{next(i for i, other in enumerate(request.inputs) if other is tensor)}]"


def with_reserved(
    request: InferRequest, tensors: Mapping[str, Tensor], n: int, values: list[list[Value]]
) -> Rows:
    """Rows with the ids, units and times that a request gives them; raises BadInput."""
    request_id = check_id(request.id, "id") if request.id else ""
    parameters = request.parameters or {}
    ids, units, times = [""] * n, [""] * n, [0] * n
    if n == 1:
        ids[0] = request_id
    if parameters:
        if parameters.get("unit") is not None:
            units = [check_id(parameters["unit"], "parameters.unit")] * n
        if parameters.get("event_time") is not None:
            times = [check_event_time(parameters["event_time"], "parameters.event_time")] * n
    for name in RESERVED if len(tensors) > 1 else ():
        if name not in tensors:
            continue
        tensor = tensors[name]
        where = _where(request, tensor)
        data = _flat(tensor, request, n, n)
        if name == "_event_time":
            if tensor.datatype not in ("BYTES", "INT64"):
                raise BadInput(
                    "not a time", where=f"{where}.datatype", got=tensor.datatype, wanted="BYTES or INT64"
                )
            times = [check_event_time(value, f"{where}.data[{row}]") for row, value in enumerate(data)]
            continue
        checked = [check_id(value, f"{where}.data[{row}]") for row, value in enumerate(data)]
        if name == "_id":
            ids = checked
        else:
            units = checked
    return Rows(request_id, n, values, ids, units, times)


def _flat(tensor: Tensor, request: InferRequest, n: int, max_rows: int) -> list[Any]:
    """Return the tensor's data as one value per row; `n` is -1 for the first tensor."""
    where = _where(request, tensor)
    data = tensor.data
    if data is None:
        raise _no_data(tensor, where, "one value per row")
    shape = tensor.shape
    if not 1 <= len(shape) <= 2 or shape[0] < 0 or (len(shape) == 2 and shape[1] != 1):
        raise BadInput(
            f"tensor `{tensor.name}` has another shape",
            where=f"{where}.shape",
            got=shape,
            wanted="[rows] or [rows, 1]: one tensor per input",
        )
    if shape[0] > max_rows and n < 0:
        raise TooLarge("too many rows", where=f"{where}.shape", got=shape[0], wanted=f"at most {max_rows}")
    if data and type(data[0]) is list:
        if any(type(row) is not list or len(row) != 1 for row in data):
            raise BadInput("rows of another length", where=f"{where}.data", wanted="one value per row")
        data = [row[0] for row in data]
    if len(data) != shape[0]:
        raise BadInput(
            "data and shape differ", where=f"{where}.data", got=f"{len(data)} values", wanted=f"{shape[0]}"
        )
    if n >= 0 and len(data) != n:
        raise BadInput(
            f"tensor `{tensor.name}` has another number of rows",
            where=f"{where}.shape",
            got=len(data),
            wanted=f"{n}",
        )
    return data


# One tensor of all inputs.


def _matrix(request: InferRequest, schema: Schema) -> Tensor | None:
    """The tensor that holds all inputs at once, when the request is of that form."""
    given = [tensor for tensor in request.inputs if tensor.name not in RESERVED]
    if len(given) != 1 or len(schema.inputs) < 2 or len(given[0].shape) != 2 or given[0].shape[1] < 2:
        return None
    texts = [field.name for field in schema.inputs if field.dtype == "string"]
    if texts:
        raise BadInput(
            f"one tensor of all inputs is for numbers, and input `{texts[0]}` is text",
            where="inputs",
            got=given[0].shape,
            wanted="one tensor of shape [rows] per input",
        )
    return given[0]


def _matrix_rows(
    request: InferRequest, tensor: Tensor, tensors: Mapping[str, Tensor], reader: Reader, max_rows: int
) -> Rows:
    where = _where(request, tensor)
    n, width = tensor.shape
    if width != len(reader.fields):
        raise BadInput(
            "another number of inputs", where=f"{where}.shape", got=tensor.shape,
            wanted=f"[rows, {len(reader.fields)}]: " + ", ".join(name for _, name, _ in reader.fields),
        )  # fmt: skip
    _check_rows(n, tensor.name, where, max_rows)
    data = tensor.data
    if data is None:
        raise _no_data(tensor, where, f"{n * width} values")
    if data and type(data[0]) is list:
        if any(type(row) is not list or len(row) != width for row in data):
            raise BadInput("rows of another length", where=f"{where}.data", wanted=f"{width} values each")
        data = [value for row in data for value in row]
    if len(data) != n * width:
        raise BadInput(
            "data and shape differ", where=f"{where}.data", got=f"{len(data)} values", wanted=f"{n * width}"
        )
    columns = [
        check_values(data[i::width], field, tensor.datatype, f"{where} column {i}")
        for i, (field, _, _) in enumerate(reader.fields)
    ]
    return with_reserved(request, tensors, n, [list(row) for row in zip(*columns, strict=True)])


def _check_rows(n: int, name: str, where: str, max_rows: int) -> None:
    if n > max_rows:
        raise TooLarge("too many rows", where=f"{where}.shape", got=n, wanted=f"at most {max_rows}")
    if n < 1:
        raise BadInput(f"tensor `{name}` has no rows", where=f"{where}.shape", got=n, wanted="at least one")


def _no_data(tensor: Tensor, where: str, wanted: str) -> BadInput:
    shared = "shared_memory_region" in (tensor.parameters or {})
    return BadInput(
        f"tensor `{tensor.name}` has no data", where=f"{where}.data", wanted=wanted,
        next="Shared memory is not read here: send the values." if shared else "",
    )  # fmt: skip


# The binary tensor extension: tensors follow the JSON, in order, little-endian; BYTES as 4-byte length + UTF-8.


def _attach_binary(request: InferRequest, payload: memoryview, max_rows: int) -> None:
    offset = 0
    for position, tensor in enumerate(request.inputs):
        size = (tensor.parameters or {}).get("binary_data_size")
        if size is None:
            continue
        where = f"inputs[{position}].parameters.binary_data_size"
        if type(size) is not int or not 0 <= size <= len(payload) - offset:
            raise BadInput(
                "more than the body holds", where=where, got=size, wanted=f"{len(payload) - offset}"
            )
        if tensor.data is not None:
            raise BadInput("data in JSON and in binary", where=where, got=size, wanted="one of them")
        tensor.data = unpack_tensor(
            payload[offset : offset + size], tensor.datatype, f"inputs[{position}]",
            shape=tensor.shape, max_rows=max_rows,
        )  # fmt: skip
        offset += size
    if offset != len(payload):
        raise BadInput("bytes after the last tensor", where="body", got=len(payload) - offset)


def unpack_tensor(
    payload: memoryview | bytes,
    datatype: str,
    where: str,
    *,
    shape: Sequence[int],
    max_rows: int = MAX_VALUES,
) -> list[Any]:
    """Return a binary tensor's values, as many as `shape` says; raises BadInput, TooLarge, before it unpacks."""
    if not shape or min(shape) < 0:
        raise BadInput("not a shape", where=f"{where}.shape", got=list(shape), wanted="[rows]")
    if shape[0] > max_rows:
        raise TooLarge("too many rows", where=f"{where}.shape", got=shape[0], wanted=f"at most {max_rows}")
    count = math.prod(shape)
    if count > MAX_VALUES:
        raise TooLarge("too many values", where=f"{where}.shape", got=list(shape), wanted=f"{MAX_VALUES}")
    if datatype == "BYTES":
        return _unpack_texts(bytes(payload), count, where)
    if datatype not in _BINARY:
        near = did_you_mean(datatype, [*_BINARY, "BYTES"])
        raise BadInput("no such datatype", where=f"{where}.datatype", got=datatype, next=near)
    layout = np.dtype(_BINARY[datatype])
    if len(payload) % layout.itemsize:
        raise BadInput(f"not a whole number of {datatype}", where=where, got=f"{len(payload)} bytes")
    if len(payload) != count * layout.itemsize:
        raise BadInput(
            "data and shape differ",
            where=f"{where}.data",
            got=f"{len(payload) // layout.itemsize} values",
            wanted=f"{count}",
        )
    array: NDArray[Any] = np.frombuffer(payload, dtype=layout)
    if datatype == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    values: list[Any] = array.tolist()
    return values


def _unpack_texts(payload: bytes, count: int, where: str) -> list[str]:
    texts: list[str] = []
    offset = 0
    while offset < len(payload) and len(texts) < count:
        if offset + 4 > len(payload):
            raise BadInput("text cut off", where=where)
        (length,) = struct.unpack_from("<I", payload, offset)
        offset += 4 + length
        if offset > len(payload):
            raise BadInput("text cut off", where=where)
        try:
            texts.append(payload[offset - length : offset].decode())
        except UnicodeDecodeError:
            raise BadInput("not UTF-8", where=f"{where}.data[{len(texts)}]") from None
    if offset < len(payload) or len(texts) < count:
        got = f"{len(texts)} texts" + (f" and {len(payload) - offset} bytes" if offset < len(payload) else "")
        raise BadInput("data and shape differ", where=f"{where}.data", got=got, wanted=f"{count} texts")
    return texts


def pack_tensor(values: Sequence[Any], datatype: str) -> bytes:
    """The inverse of `unpack_tensor`."""
    if datatype == "BYTES":
        encoded = [value.encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
    return np.asarray(values, dtype=_BINARY[datatype]).tobytes()


def respond(
    request: InferRequest,
    *,
    model: str,
    version: int,
    parameters: dict[str, Any],
    outputs: Sequence[str],
    result: Sequence[Sequence[float]],
    extra: Mapping[str, list[str]],
) -> tuple[bytes, int | None]:
    """Return an answer's body, and the length of its JSON part when tensors follow it in binary.

    result: one row of outputs per request row. extra: BYTES tensors by name, such as _version and _arm.
    """
    n = len(result)
    tensors = [
        OutTensor(name, "FP64", [n], [row[i] for row in result] if n > 1 else [result[0][i]])
        for i, name in enumerate(outputs)
    ]
    tensors += [OutTensor(name, "BYTES", [n], texts) for name, texts in extra.items()]
    if request.outputs:
        tensors = _select(request.outputs, tensors)
    answer = InferResponse(model, str(version), request.id or "", parameters, tensors)
    binary = _binary_names(request, tensors)
    if not binary:
        return encode(answer), None
    payload = []
    for tensor in tensors:
        if tensor.name in binary:
            packed = pack_tensor(tensor.data or [], tensor.datatype)
            tensor.data, tensor.parameters = None, {"binary_data_size": len(packed)}
            payload.append(packed)
    head = encode(answer)
    return b"".join((head, *payload)), len(head)


def check_outputs(request: InferRequest, schema: Schema) -> None:
    """Raise BadInput when the client asks for an output the model does not have, for one twice, or for classes."""
    known = (*schema.outputs, "_version", "_arm")
    seen: set[str] = set()
    for position, wanted in enumerate(request.outputs or ()):
        for option in ("classification", "shared_memory_region"):
            if option in (wanted.parameters or {}):
                raise BadInput(
                    "not offered here",
                    where=f"outputs[{position}].parameters",
                    got=option,
                    wanted="the output's values, in JSON or in binary",
                )
        if wanted.name in seen:
            # A small request could otherwise ask for an answer of any size.
            raise BadInput("an output asked for twice", where=f"outputs[{position}].name", got=wanted.name)
        seen.add(wanted.name)
        if wanted.name not in known:
            raise BadInput(
                f"the model has no output `{wanted.name}`",
                where=f"outputs[{position}].name",
                wanted=", ".join(schema.outputs),
                next=did_you_mean(wanted.name, known),
            )


def _select(wanted: Sequence[WantedOutput], tensors: list[OutTensor]) -> list[OutTensor]:
    by_name = {tensor.name: tensor for tensor in tensors}
    return [by_name[want.name] for want in wanted if want.name in by_name]


def _binary_names(request: InferRequest, tensors: Sequence[OutTensor]) -> set[str]:
    everything = (request.parameters or {}).get("binary_data_output") is True
    said = {
        want.name: want.parameters["binary_data"]
        for want in request.outputs or ()
        if want.parameters and "binary_data" in want.parameters
    }
    if not everything and not said:
        return set()
    return {tensor.name for tensor in tensors if said.get(tensor.name, everything) is True}


def server_metadata() -> dict[str, Any]:
    """Return V2 server metadata."""
    return {"name": "loopwright", "version": __version__, "extensions": list(EXTENSIONS)}


def metadata(name: str, versions: Sequence[int], schema: Schema) -> dict[str, Any]:
    """Return V2 model metadata."""

    def tensor(name: str, datatype: str) -> dict[str, Any]:
        return {"name": name, "datatype": datatype, "shape": [-1]}

    def describe(field: Field) -> dict[str, Any]:
        return {**tensor(field.name, v2_datatype(field)), "parameters": {"nullable": field.nullable}}

    return {
        "name": name,
        "versions": [str(version) for version in versions],
        "platform": "loopwright-onnx",
        "inputs": [describe(field) for field in schema.inputs],
        "outputs": [tensor(output, "FP64") for output in schema.outputs],
    }
