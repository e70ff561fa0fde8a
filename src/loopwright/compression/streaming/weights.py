"""Weights of an ONNX model read and written a slab at a time, by their place in a file."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from loopwright.compression.artefact import MAX_SINGLE, Artefact, external_files
from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.kernel.files import written_whole

Array = npt.NDArray[Any]

SLAB = 32_000_000
"""Bytes that are read at once."""
INLINE = 1024
"""Tensors below this many bytes stay in the graph file: shapes and constants that ONNX Runtime folds."""
LARGE = 1 << 20
"""Tensors from this many bytes on begin at a page, so that they may be mapped; others at a cache line."""
_PAGE, _LINE = 4096, 64
# Field number and kind (2: of given length) of ModelProto.graph, GraphProto.initializer and TensorProto.raw_data.
_GRAPH, _INITIALIZER, _RAW_DATA = bytes([7 << 3 | 2]), bytes([5 << 3 | 2]), bytes([9 << 3 | 2])
_ITEM: dict[int, float] = {TensorProto.INT4: 0.5, TensorProto.UINT4: 0.5}


@dataclass(frozen=True, slots=True)
class Weights:
    """The graph of the model at `path`, and its weights where they lie. What is external stays on disk until asked for.

    What the graph file itself holds (at most 2 GB, a protobuf's limit) is in memory.
    """

    path: Path
    model: onnx.ModelProto
    tensors: dict[str, TensorProto]

    @staticmethod
    def open(path: Path) -> "Weights":
        """The model at `path`; raises what `Artefact.open` raises, and BadInput for external data that is cut short."""
        Artefact.open(path, numbers=False)  # `slabs` checks them
        model = onnx.load(str(path), load_external_data=False)
        _constants_as_weights(model)
        found = Weights(path, model, {tensor.name: tensor for tensor in model.graph.initializer})
        for name, tensor in found.tensors.items():
            if uses_external_data(tensor):
                found._place(name)
        return found

    def dims(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensor(name).dims)

    def bytes(self, name: str) -> int:
        """Of the tensor as it is stored."""
        tensor = self._tensor(name)
        return _size(tensor.data_type, tuple(tensor.dims))

    def slabs(self, name: str, rows: int | None = None) -> Iterator[Array]:
        """The tensor as consecutive runs of `rows` rows (its first axis), or of about 32 MB.

        FLOAT only. Raises BadInput for NaN and infinite numbers: nothing made of them would answer.
        """
        dims = self.dims(name)
        width = int(np.prod(dims[1:]))
        rows = rows or max(1, SLAB // (4 * max(width, 1)))
        file = self._file(name)
        whole = None if file else numpy_helper.to_array(self._tensor(name)).reshape(dims)
        for first in range(0, dims[0], rows):
            count = min(rows, dims[0] - first)
            if whole is not None:
                slab = whole[first : first + count]
            else:
                path, offset = file or (Path(), 0)
                slab = _read(path, np.dtype("<f4"), count * width, offset + 4 * first * width)
                slab = slab.reshape(count, *dims[1:])
            if not np.isfinite(slab).all():
                raise BadInput(
                    "weights that are no numbers", where=f"{self.path}: {name}", wanted="finite weights",
                    next="Train again; such a model answers nothing of use.",
                )  # fmt: skip
            yield slab

    def read(self, name: str) -> Array:
        """The whole tensor, FLOAT; raises BadInput as `slabs` does."""
        dims = self.dims(name)
        rows = max(1, dims[0]) if dims else 1
        if not dims:
            return np.asarray(numpy_helper.to_array(self._tensor(name)))
        return next(self.slabs(name, rows)) if dims[0] else np.zeros(dims, "<f4")

    def raw(self, name: str) -> Iterator[Array]:
        """The tensor's stored bytes, of any type, in runs of about 32 MB; of external tensors only."""
        path, offset = self._place(name)
        left = self.bytes(name)
        while left:
            part = _read(path, np.dtype(np.uint8), min(left, SLAB), offset)
            offset, left = offset + part.size, left - part.size
            yield part

    def _tensor(self, name: str) -> TensorProto:
        if name not in self.tensors:
            raise BadInput("the model has no such weights", where=str(self.path), got=name)
        return self.tensors[name]

    def _file(self, name: str) -> tuple[Path, int] | None:
        return self._place(name) if uses_external_data(self._tensor(name)) else None

    def _place(self, name: str) -> tuple[Path, int]:
        said = ExternalDataInfo(self._tensor(name))
        file, offset, wanted = self.path.parent / said.location, int(said.offset or 0), self.bytes(name)
        length: int | None = said.length  # None: to the end of the file
        held = file.stat().st_size - offset
        if held < wanted or (length is not None and length != wanted):
            raise BadInput(
                "the file of weights is cut short, or of another model", where=f"{file}: {name}",
                got=f"{held if length is None else min(held, length)} bytes", wanted=f"{wanted} bytes",
                next="Copy or export the model again.",
            )  # fmt: skip
        return file, offset


class Written:
    """A model being written: weights go to `path` + ".data" as they come, the graph last.

    A graph that stands at `path` is whole and has its own weights beside it, whenever this process dies. An error
    inside the block leaves what was at `path` untouched and nothing else behind.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path, self.beside = path, path.with_name(path.name + ".data")
        self._graph, self._data = (
            file.with_name(f".{file.name}.partial") for file in (self.path, self.beside)
        )
        self._durable = durable
        self._model: onnx.ModelProto | None = None

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._data.open("wb")
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def add(self, name: str, kind: int, dims: tuple[int, ...], parts: Iterable[Array]) -> TensorProto:
        """Write the tensor's bytes, given in order as `parts`, and return what the graph says of it.

        Raises Unavailable for a full disk, ValueError for parts that are not the tensor's size.
        """
        size = _size(kind, dims)
        if size < INLINE:
            data = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
            _check_size(name, size, len(data))
            return helper.make_tensor(name, kind, dims, data, raw=True)
        self._put(bytes(-self._stream.tell() % (_PAGE if size >= LARGE else _LINE)))
        offset = self._stream.tell()
        for part in parts:
            self._put(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        _check_size(name, size, self._stream.tell() - offset)
        tensor = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.beside.name), ("offset", offset), ("length", size)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        return tensor

    def finish(self, model: onnx.ModelProto) -> None:
        """The graph that the weights belong to; it appears at `path` when the block ends."""
        self._model = model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._model is not None:
                self._appear(self._model)
        except OSError as found:
            raise self._unwritable(found) from found
        finally:
            with suppress(OSError):  # all that counts was flushed; what cannot be is thrown away below
                self._stream.close()
            for file in (self._graph, self._data):
                file.unlink(missing_ok=True)

    def _appear(self, model: onnx.ModelProto) -> None:
        with self._graph.open("wb") as graph:
            graph.write(model.SerializeToString(deterministic=True))
            graph.flush()
            self._stream.flush()
            if self._durable:
                os.fsync(graph.fileno())
                os.fsync(self._stream.fileno())
        # In this order no graph ever stands beside another's weights.
        self.path.unlink(missing_ok=True)
        self._data.replace(self.beside)
        self._graph.replace(self.path)

    def _put(self, data: bytes | memoryview) -> None:
        try:
            self._stream.write(data)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> Unavailable:
        return Unavailable(
            f"cannot write ({error.strerror or error})", where=str(self.beside),
            next="Check free space and permissions.",
        )  # fmt: skip


def padded(size: int) -> int:
    """The most bytes that a tensor of `size` takes in a file of weights, with what is left empty before it."""
    return size + (_PAGE if size >= LARGE else _LINE)


def refuse_same(weights: Weights, target: Path) -> None:
    """Raise BadInput where a model written at `target` would overwrite the one it is read from."""
    written = {target.resolve(), target.with_name(f"{target.name}.data").resolve()}
    read = {weights.path.resolve(), *(file.resolve() for file in external_files(weights.model, weights.path))}
    if written & read:
        raise BadInput(
            "a model cannot be written onto itself", where=str(weights.path), got=str(target),
            wanted="another file as target",
        )  # fmt: skip


def in_one_file(path: Path) -> Artefact:
    """The model at `path` with its external weights in the graph file itself, in the memory of the graph alone.

    Parts of one message that follow each other in a file are one message (protobuf's encoding), so weights are appended
    as they are read. Raises BadInput above 2 GB, a protobuf's limit. Whole or as it was, whenever this process dies.
    """
    found = Artefact.open(path, numbers=False)
    if found.size > MAX_SINGLE:
        raise BadInput(
            "too large for one file", where=str(path), got=f"{found.size} bytes", wanted=f"{MAX_SINGLE}"
        )
    weights = Weights.open(path)
    outside = [tensor for tensor in weights.tensors.values() if uses_external_data(tensor)]
    inside = [tensor for tensor in weights.tensors.values() if not uses_external_data(tensor)]
    model = onnx.ModelProto()
    model.CopyFrom(weights.model)
    del model.graph.initializer[:]
    model.graph.initializer.extend(inside)
    with written_whole(path) as stream:
        stream.write(model.SerializeToString(deterministic=True))
        for tensor in outside:
            bare = TensorProto(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims
            ).SerializeToString()
            size = weights.bytes(tensor.name)
            head = bare + _RAW_DATA + _varint(size)
            part = _INITIALIZER + _varint(len(head) + size) + head
            stream.write(_GRAPH + _varint(len(part) + size) + part)
            for data in weights.raw(tensor.name):
                stream.write(data.data)
    for file in external_files(weights.model, path):
        file.unlink()
    return Artefact.open(path)


def _varint(number: int) -> bytes:
    """As protobuf writes a length: 7 bits a byte, the lowest first."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _read(path: Path, kind: "np.dtype[Any]", count: int, offset: int) -> Array:
    # Read, not mapped: mapped pages would count as this process's memory for as long as nobody else needs them.
    found = np.fromfile(path, kind, count, offset=offset)
    if found.size != count:
        raise BadInput("the file of weights became shorter while it was read", where=str(path))
    return found


def _size(kind: int, dims: tuple[int, ...]) -> int:
    item = _ITEM.get(kind) or helper.tensor_dtype_to_np_dtype(kind).itemsize
    return int(np.ceil(np.prod(dims, dtype=np.int64) * item))


def _check_size(name: str, wanted: int, got: int) -> None:
    if got != wanted:
        raise ValueError(f"{name}: {got} bytes written, its shape takes {wanted}")


def _constants_as_weights(model: onnx.ModelProto) -> None:
    """Matrices that an exporter wrote as Constant nodes become initializers, which is what they are."""
    kept = []
    for node in model.graph.node:
        values = (
            [one.t for one in node.attribute if one.name == "value"] if node.op_type == "Constant" else []
        )
        if values and len(values[0].dims) > 1:
            weight = model.graph.initializer.add()
            weight.CopyFrom(values[0])
            weight.name = node.output[0]
        else:
            kept.append(node)
    if len(kept) != len(model.graph.node):
        nodes = list(kept)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
