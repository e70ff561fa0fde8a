"""An ONNX model as it lies on disk: all of its bytes, external data too."""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from loopwright.kernel.digest import sha256_bytes, sha256_file
from loopwright.kernel.errors import BadInput

STANDARD = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
"""Operator sets that ONNX Runtime answers without a library of the user's."""
MAX_SINGLE = 2_000_000_000
"""Larger models keep their weights beside the graph: a protobuf message ends at 2 GiB."""

_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16))
_WEIGHTS = _FLOATS | {
    TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4, TensorProto.INT32,
}  # fmt: skip
"""What weights are stored as; 64-bit integers are shapes and places."""
_PACKED = frozenset(("MatMulNBits", "GatherBlockQuantized"))
_LEARNED = frozenset((
    "Attention", "BatchNormalization", "Conv", "ConvTranspose", "DequantizeLinear", "DequantizeBFP", "Gemm", "GRU",
    "InstanceNormalization", "LayerNormalization", "LSTM", "MatMul", "MatMulInteger", "QuantizeLinear", "RNN",
    "SkipLayerNormalization",
))  # fmt: skip
"""Operators whose stored inputs are learned: infinity has no place there. Elsewhere it may be a mask."""
_CHUNK = 4_000_000  # numbers read at once: 32 MB of doubles


@dataclass(frozen=True, slots=True)
class Port:
    """An input: `dtype` as numpy calls it ("str" for text, "" for what is no tensor); `shape`: sizes, or names of
    those that vary, "" for one without a name; None where the graph does not say.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True, slots=True)
class Artefact:
    """A checked model file. `size` is bytes on disk with its external data; `parameters` counts stored weights:
    initializers, constants and the thresholds and leaves of trees; a number packed in 4 bits is one.
    """

    path: Path
    size: int
    parameters: int
    digest: str
    """SHA-256 of the graph file's bytes."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: frozenset[str]
    ports: tuple[Port, ...] = ()

    @staticmethod
    def open(path: Path, *, numbers: bool = True) -> "Artefact":
        """Read what lies at `path` and check it; external weights are read in parts of 32 MB.

        numbers: False leaves external weights unread, for who reads and checks them anyway.

        Raises BadInput for a file that is no ONNX model, lacks its external data or a part of it, names data outside
        its folder, has operators of the user's own, or weights that are not numbers.
        """
        try:
            if path.stat().st_size >= 2**31:
                raise BadInput(
                    "a graph of over 2 GiB in one file", where=str(path), got=f"{path.stat().st_size} bytes",
                    wanted="weights beside the graph",
                    next="Export with external data (onnx.save_model(..., save_as_external_data=True)).",
                )  # fmt: skip
            data = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            raise BadInput("there is no such model file", where=str(path), wanted="an ONNX file") from None
        try:
            model = onnx.load_from_string(data)
        except Exception as error:  # protobuf's own errors share no base class
            raise BadInput(f"not an ONNX model ({error})", where=str(path)) from error
        if not model.graph.node:
            raise BadInput("a model without a graph", where=str(path), wanted="an ONNX file")
        _check_operators(model, path)
        beside = external_files(model, path)
        parameters = 0
        for body in bodies_of(model):
            users, paired = _users(body), _paired(body)
            for name, tensor in _stored(body):
                if numbers or not uses_external_data(tensor):
                    _check_numbers(name, tensor, users.get(name, frozenset()), path)
                parameters += _count(tensor, name in paired)
            for node in body.node:
                parameters += _count_attributes(node, path)
        weights = {tensor.name for tensor in model.graph.initializer}
        return Artefact(
            path,
            len(data) + sum(file.stat().st_size for file in beside),
            parameters,
            sha256_bytes(data),
            tuple(value.name for value in model.graph.input if value.name not in weights),
            tuple(value.name for value in model.graph.output),
            frozenset(node.op_type for body in bodies_of(model) for node in body.node),
            tuple(_port(value) for value in model.graph.input if value.name not in weights),
        )

    def load(self) -> onnx.ModelProto:
        """The whole model in memory, external weights too."""
        return onnx.load(str(self.path))

    def beside(self) -> tuple[Path, ...]:
        """The files of external data."""
        return external_files(onnx.load(str(self.path), load_external_data=False), self.path)

    def whole_digest(self) -> str:
        """SHA-256 of the graph and of its external data: equal for equal models; `digest` where there is none."""
        beside = self.beside()
        if not beside:
            return self.digest
        digest = hashlib.sha256(self.digest.encode())
        for file in beside:
            digest.update(sha256_file(file).encode())
        return digest.hexdigest()


def save(model: onnx.ModelProto, path: Path, most: int = MAX_SINGLE) -> Artefact:
    """Write `model` at `path`, with weights beside it when it passes `most` bytes, and open it.

    Replaces what was there. `model` gives up its weights when they are written beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".data")
    beside.unlink(missing_ok=True)
    if _bytes(model) > most:
        onnx.save_model(model, str(path), save_as_external_data=True, location=beside.name)
    else:
        path.write_bytes(model.SerializeToString(deterministic=True))
    return Artefact.open(path)


def copy(artefact: Artefact, path: Path) -> Artefact:
    """The same bytes at `path`, in a folder of its own or one without files of these names, external data beside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for file in artefact.beside():
        target = path.parent / file.relative_to(artefact.path.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    shutil.copyfile(artefact.path, path)
    return Artefact.open(path)


def external_files(model: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """The files beside `path` that hold the model's weights; raises BadInput for one outside its folder or absent."""
    names = {
        ExternalDataInfo(tensor).location
        for body in bodies_of(model)
        for _, tensor in _stored(body)
        if uses_external_data(tensor)
    }
    found = []
    for name in sorted(names):
        file = path.parent / name
        if not file.resolve().is_relative_to(path.parent.resolve()):
            raise BadInput("weights outside the model's folder", where=str(path), got=name)
        if not file.is_file():
            raise BadInput("the model's weights are missing", where=str(path), wanted=str(file))
        found.append(file)
    return tuple(found)


def bodies_of(model: onnx.ModelProto) -> Iterator[GraphProto | FunctionProto]:
    """The graph, the graphs inside its nodes, and the functions that the model brings."""
    waiting: list[GraphProto | FunctionProto] = [model.graph, *model.functions]
    while waiting:
        body = waiting.pop(0)
        yield body
        for node in body.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.GRAPH:
                    waiting.append(attribute.g)
                elif attribute.type == AttributeProto.GRAPHS:
                    waiting.extend(attribute.graphs)


def tensors_of(model: onnx.ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Every stored tensor and the name it has in its graph: initializers, sparse ones' values, constants."""
    for body in bodies_of(model):
        yield from _stored(body)


def _stored(body: GraphProto | FunctionProto) -> Iterator[tuple[str, TensorProto]]:
    if isinstance(body, GraphProto):
        for tensor in body.initializer:
            yield tensor.name, tensor
        for sparse in body.sparse_initializer:
            yield sparse.values.name, sparse.values
    for node in body.node:
        for attribute in node.attribute:
            name = (
                node.output[0]
                if node.op_type == "Constant"
                else f"{node.name or node.op_type}.{attribute.name}"
            )
            if attribute.type == AttributeProto.TENSOR:
                yield name, attribute.t
            elif attribute.type == AttributeProto.SPARSE_TENSOR:
                yield name, attribute.sparse_tensor.values
            elif attribute.type == AttributeProto.TENSORS:
                for tensor in attribute.tensors:
                    yield name, tensor


def _users(body: GraphProto | FunctionProto) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for node in body.node:
        for name in node.input:
            found.setdefault(name, set()).add(node.op_type)
    return {name: frozenset(kinds) for name, kinds in found.items()}


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    brought = {(one.domain, one.name) for one in model.functions}
    foreign = sorted({
        f"{node.domain}.{node.op_type}"
        for body in bodies_of(model) for node in body.node
        if node.domain not in STANDARD and (node.domain, node.op_type) not in brought
    })  # fmt: skip
    if foreign:
        raise BadInput(
            "operators that ONNX Runtime does not know", where=str(path), got=", ".join(foreign),
            wanted="operators of ONNX or ONNX Runtime",
            next="Replace the custom operators by standard ones before exporting.",
        )  # fmt: skip


def _check_numbers(name: str, tensor: TensorProto, users: frozenset[str], path: Path) -> None:
    """A lone number may be NaN or infinite by intent, and a mask infinite; what an operator learned may not."""
    if tensor.data_type not in _FLOATS:
        return
    learned = bool(users & _LEARNED)
    total = missing = infinite = 0
    for part in _parts(name, tensor, path):
        total += part.size
        missing += int(np.isnan(part).sum())
        infinite += int(np.isinf(part).sum())
    wrong = (missing if total > 1 or learned else 0) + (infinite if learned else 0)
    if wrong:
        _refuse_numbers(f"{path}: {name}", wrong, total)


def _refuse_numbers(where: str, wrong: int, total: int) -> None:
    raise BadInput(
        "weights that are no numbers", where=where, got=f"{wrong} of {total} NaN or infinite",
        wanted="finite weights", next="Train again; such a model answers nothing of use.",
    )  # fmt: skip


def _parts(name: str, tensor: TensorProto, path: Path) -> Iterator[np.ndarray[Any, Any]]:
    """The tensor's numbers, flat; from external data a part at a time."""
    if not uses_external_data(tensor):
        yield numpy_helper.to_array(tensor).reshape(-1)
        return
    info = ExternalDataInfo(tensor)
    file = path.parent / info.location
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    count, start = int(np.prod(tensor.dims, dtype=np.int64)), info.offset or 0
    if file.stat().st_size < start + count * kind.itemsize:
        raise BadInput(
            "the model's weights are cut short", where=f"{file}: {name}", got=f"{file.stat().st_size} bytes",
            wanted=f"at least {start + count * kind.itemsize}", next="Copy the file again; its end is missing.",
        )  # fmt: skip
    with file.open("rb") as stream:
        stream.seek(start)
        for at in range(0, count, _CHUNK):
            yield np.frombuffer(stream.read(min(_CHUNK, count - at) * kind.itemsize), kind)


def _paired(body: GraphProto | FunctionProto) -> set[str]:
    """Tensors whose bytes hold two numbers of 4 bits each, as their operators say; given to them as they lie, or in
    another shape.
    """
    shaped = {node.output[0]: node.input[0] for node in body.node if node.op_type == "Reshape"}
    return {
        shaped.get(name, name)
        for node in body.node
        if node.op_type in _PACKED
        and next((item.i for item in node.attribute if item.name == "bits"), 4) == 4
        for name in node.input
    }


def _count(tensor: TensorProto, paired: bool) -> int:
    if tensor.data_type not in _WEIGHTS:
        return 0
    numbers = int(np.prod(tensor.dims, dtype=np.int64))
    return (
        2 * numbers if paired and tensor.data_type == TensorProto.UINT8 and len(tensor.dims) > 1 else numbers
    )


def _count_attributes(node: NodeProto, path: Path) -> int:
    """Weights that classical models keep in lists; raises BadInput for NaN among them."""
    if node.domain != "ai.onnx.ml" and node.op_type != "Constant":
        return 0
    total = 0
    for attribute in node.attribute:
        if attribute.type == AttributeProto.FLOATS and "hitrates" not in attribute.name:
            values = np.asarray(attribute.floats, np.float32)
            total += len(values)
            if wrong := int(np.isnan(values).sum()):
                _refuse_numbers(f"{path}: {node.name or node.op_type}.{attribute.name}", wrong, len(values))
    return total


def _port(value: onnx.ValueInfoProto) -> Port:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return Port(value.name, "", None)
    dtype = (
        "str"
        if kind.elem_type == TensorProto.STRING
        else helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    )
    if not kind.HasField("shape"):
        return Port(value.name, dtype, None)
    return Port(
        value.name,
        dtype,
        tuple(one.dim_value if one.HasField("dim_value") else one.dim_param for one in kind.shape.dim),
    )


def _bytes(model: onnx.ModelProto) -> int:
    """What the weights take; counted one by one, since a message of over 2 GiB cannot tell its own size."""
    return sum(
        len(tensor.raw_data) if tensor.HasField("raw_data") else tensor.ByteSize()
        for _, tensor in tensors_of(model)
    )
