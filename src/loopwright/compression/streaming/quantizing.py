"""Quantizes a graph of any size in the memory of one matrix: weights are read, encoded and written as they come.

bits=8: MatMul and Gemm as integer products of activations that are quantized as they come (unsigned, one scale a
tensor) and weights with one scale per output channel; tables of Gather with one scale per row. Standard operators only.
bits=4: weights in blocks along the inputs with one scale each (MatMulNBits, GatherBlockQuantized of ONNX Runtime).
Zero points are zero. What is not FP32, not constant, or used in another way as well, stays as it is.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import uses_external_data

from loopwright.compression.artefact import Artefact
from loopwright.compression.streaming.weights import INLINE, SLAB, Array, Weights, Written
from loopwright.kernel.errors import BadInput
from loopwright.kernel.progress import Progress, Silent

Floats = npt.NDArray[np.float32]

OLDEST = 13
"""Operator set from which on everything used here means the same."""
MICROSOFT = "com.microsoft"


class Use(StrEnum):
    """How a weight is used by all the nodes that have it."""

    MATRIX = "matrix"
    """(inputs, outputs), second factor of a product."""
    TURNED = "turned matrix"
    """(outputs, inputs), as Gemm takes it with transB."""
    TABLE = "table"
    """Rows that are looked up."""


def quantize_streamed(
    source: Path,
    target: Path,
    *,
    bits: int = 8,
    block: int = 32,
    tables: bool = True,
    exclude: Collection[str] = (),
    reduce_range: bool = False,
    durable: bool = True,
    watch: Progress | None = None,
) -> Artefact:
    """Write the quantized form of the graph at `source` at `target`, its weights at `target` + ".data".

    Holds a few slabs (32 MB each) and, for 4 bits and turned matrices, one encoded matrix, beside the graph itself; so
    the model may be larger than memory. Answers of bits=8 are those of ONNX Runtime's `quantize_dynamic` per channel,
    except that tables have a scale per row, not per table. `block`: weights that share a scale with 4 bits, a power of
    two from 16 on. `tables`: look-up tables too. `exclude`: weights, by name, that stay. `reduce_range`: 7 bits in 8,
    for processors without VNNI, whose 8-bit products may overflow. `durable`: on disk, not only in the system's cache,
    on return.

    Raises BadInput for settings out of range, weights that are no numbers or absent, an operator set below 13, a model
    with nothing to quantize, and `target` being `source`; Unavailable for a full disk. Leaves `target` whole or as it
    was.
    """
    settings = Settings(bits, block, tables, frozenset(exclude), reduce_range)
    if source.resolve() == target.resolve():
        raise BadInput(
            "a model cannot be quantized onto itself", where=str(source), wanted="another file as target"
        )
    weights = Weights.open(source)
    versions = {one.domain: one.version for one in weights.model.opset_import}
    if versions.get("", versions.get("ai.onnx", 0)) < OLDEST:
        raise BadInput(
            "the model is of an old operator set", where=str(source), got=versions.get("", 0),
            wanted=f"{OLDEST} or later", next="Export it again, or convert it: onnx.version_converter.",
        )  # fmt: skip
    chosen = _chosen(weights, settings, watch or Silent())
    if not chosen:
        raise BadInput(
            "nothing to quantize", where=str(source), wanted="FP32 weights of MatMul, Gemm or Gather",
            next="Other operators (Conv, trees) have steps of their own: int8-static, tree-rounding.",
        )  # fmt: skip
    with Written(target, durable=durable) as written:
        _write(weights, chosen, settings, written, watch or Silent())
    return Artefact.open(target)


@dataclass(frozen=True, slots=True)
class Settings:
    """As `quantize_streamed` takes them."""

    bits: int = 8
    block: int = 32
    tables: bool = True
    exclude: frozenset[str] = frozenset()
    reduce_range: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise BadInput("bits of a weight", where="quantize_streamed", got=self.bits, wanted="4 or 8")
        if self.block < 16 or self.block & (self.block - 1):
            raise BadInput(
                "weights in a block", where="quantize_streamed", got=self.block, wanted="16, 32, 64, …"
            )

    @property
    def largest(self) -> int:
        """Of an 8-bit weight."""
        return 63 if self.reduce_range else 127


@dataclass(slots=True)
class _Encoded:
    """A weight's encoded form, by the names that the graph gives its parts."""

    use: Use
    dims: tuple[int, int]
    """(inputs, outputs) of a matrix, however it was stored; (rows, width) of a table."""
    tensors: list[TensorProto] = field(default_factory=list)


def encode_columns(slabs: Iterable[Floats], scales: Floats, largest: int) -> Iterator[Array]:
    """Runs of rows as INT8, each column by its scale, rounded half to even."""
    for slab in slabs:
        yield np.clip(np.rint(slab / scales), -largest, largest).astype(np.int8)


def scales_of(largest_values: Floats, largest: int) -> Floats:
    """What one step is worth; 1 where all is zero."""
    scales = (largest_values / np.float32(largest)).astype(np.float32)
    # A scale that is not a normal number would round everything to infinity.
    return np.where(scales < np.finfo(np.float32).tiny, np.float32(1), scales)


def encode_blocks(values: Floats, block: int) -> tuple[npt.NDArray[np.uint8], Floats]:
    """(codes 0 to 15, scales) of rows in blocks of `block` numbers: (rows, blocks, block) and (rows, blocks).

    The number that is largest without its sign becomes code 0, that is −8 steps, so that all 16 codes are of use; the
    last block is filled up with zeros.
    """
    rows, width = values.shape
    blocks = -(-width // block)
    filled = np.zeros((rows, blocks * block), np.float32)
    filled[:, :width] = values
    parts = filled.reshape(rows, blocks, block)
    place = np.abs(parts).argmax(-1)[..., None]
    scales = (np.take_along_axis(parts, place, -1)[..., 0] / np.float32(-8)).astype(np.float32)
    scales = np.where(np.abs(scales) < np.finfo(np.float32).tiny, np.float32(1), scales)
    codes = np.clip(np.rint(parts / scales[..., None]) + 8, 0, 15).astype(np.uint8)
    return codes, scales


def packed(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Two codes a byte along the last axis, the first in the lower half."""
    return np.asarray(codes[..., ::2] | codes[..., 1::2] << np.uint8(4), np.uint8)


def _chosen(weights: Weights, settings: Settings, watch: Progress) -> dict[str, Use]:
    uses: dict[str, set[Use | None]] = defaultdict(set)
    graph = weights.model.graph
    for node in graph.node:
        for position, name in enumerate(node.input):
            uses[name].add(_use(node, position))
        for name in inner_names(node):
            uses[name].add(None)
    for value in (*graph.input, *graph.output):
        uses[value.name].add(None)
    chosen = {}
    for name, found in uses.items():
        tensor = weights.tensors.get(name)
        use = next(iter(found)) if len(found) == 1 else None
        if tensor is None or len(tensor.dims) != 2 or name in settings.exclude or 0 in tensor.dims:
            continue
        if use is None or tensor.data_type != TensorProto.FLOAT:
            if weights.bytes(name) > INLINE:
                why = "it is used in several ways" if None not in found else "of how it is used"
                why = why if tensor.data_type == TensorProto.FLOAT else "it is not FP32"
                watch.note(f"{name} stays as it is because {why} ({weights.bytes(name) / 1e6:.1f} MB)")
            continue
        if use is Use.TABLE and not settings.tables:
            continue
        chosen[name] = use
    absent = settings.exclude - set(weights.tensors)
    if absent:
        raise BadInput(
            "weights to exclude that the model does not have",
            where=str(weights.path),
            got=", ".join(sorted(absent)),
        )
    return chosen


def _use(node: onnx.NodeProto, position: int) -> Use | None:
    said = {one.name: one for one in node.attribute}
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "MatMul" and position == 1:
        return Use.MATRIX
    if node.op_type == "Gather" and position == 0 and ("axis" not in said or said["axis"].i == 0):
        return Use.TABLE
    if node.op_type == "Gemm" and position == 1:
        plain = all(name not in said or said[name].f == 1.0 for name in ("alpha", "beta"))
        if plain and not ("transA" in said and said["transA"].i):
            return Use.TURNED if "transB" in said and said["transB"].i else Use.MATRIX
    return None


def inner_names(node: onnx.NodeProto) -> Iterator[str]:
    """What graphs inside a node (If, Loop) may take from outside."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from inner_names(inner)
            yield from (value.name for value in graph.output)


def _write(
    weights: Weights, chosen: dict[str, Use], settings: Settings, written: Written, watch: Progress
) -> None:
    total = sum(weights.bytes(name) for name in weights.tensors) or 1
    stored: list[TensorProto] = []
    encoded: dict[str, _Encoded] = {}
    done = 0
    for name, tensor in weights.tensors.items():
        if name in chosen:
            encoded[name] = _encode(weights, name, chosen[name], settings, written)
            stored += encoded[name].tensors
        elif uses_external_data(tensor):
            stored.append(written.add(name, tensor.data_type, tuple(tensor.dims), weights.raw(name)))
        else:
            stored.append(tensor)
        done += weights.bytes(name)
        watch.update(done / total, f"{done / 1e6:.0f} of {total / 1e6:.0f} MB")
    written.finish(_rewritten(weights.model, encoded, stored, settings))


def _encode(weights: Weights, name: str, use: Use, settings: Settings, written: Written) -> _Encoded:
    rows, width = weights.dims(name)
    if settings.bits == 4:
        return _encode_4(weights, name, use, settings, written)
    kind, largest = TensorProto.INT8, settings.largest
    if use is Use.MATRIX:
        tops = np.zeros(width, np.float32)
        for slab in weights.slabs(name):
            np.maximum(tops, np.abs(slab).max(0), out=tops)
        scales = scales_of(tops, largest)
        codes = written.add(
            f"{name}_quantized", kind, (rows, width), encode_columns(weights.slabs(name), scales, largest)
        )
        found = _Encoded(use, (rows, width))
    else:
        tops = np.concatenate([np.abs(slab).max(1) for slab in weights.slabs(name)])
        scales = scales_of(tops, largest)
        parts = _encoded_rows(weights.slabs(name), scales, largest)
        if use is Use.TABLE:
            codes = written.add(f"{name}_quantized", kind, (rows, width), parts)
            found = _Encoded(use, (rows, width))
        else:
            turned = np.ascontiguousarray(np.concatenate(list(parts)).T)
            codes = written.add(f"{name}_quantized", kind, (width, rows), [turned])
            found = _Encoded(use, (width, rows))
    shape = (rows, 1) if use is Use.TABLE else (scales.size,)
    found.tensors = [codes, written.add(f"{name}_scale", TensorProto.FLOAT, shape, [scales])]
    if use is not Use.TABLE:
        zeros = np.zeros(scales.size, np.int8)
        found.tensors.append(written.add(f"{name}_zero_point", kind, (scales.size,), [zeros]))
    return found


def _encoded_rows(slabs: Iterable[Floats], scales: Floats, largest: int) -> Iterator[Array]:
    first = 0
    for slab in slabs:
        yield from encode_columns([slab], scales[first : first + len(slab), None], largest)
        first += len(slab)


def _encode_4(weights: Weights, name: str, use: Use, settings: Settings, written: Written) -> _Encoded:
    rows, width = weights.dims(name)
    block = settings.block
    inputs, outputs = (rows, width) if use is Use.MATRIX else (width, rows)
    blocks = -(-inputs // block)
    codes = np.zeros((outputs, blocks, block // 2), np.uint8)
    scales = np.zeros((outputs, blocks), np.float32)
    if use is Use.MATRIX:  # blocks run down the columns: as many rows at once as make whole blocks
        first, step = 0, block * max(1, SLAB // (4 * width * block))
        for slab in weights.slabs(name, step):
            part, steps = encode_blocks(np.ascontiguousarray(slab.T), block)
            codes[:, first : first + part.shape[1]] = packed(part)
            scales[:, first : first + part.shape[1]] = steps
            first += part.shape[1]
    else:
        first = 0
        for slab in weights.slabs(name):
            part, steps = encode_blocks(slab, block)
            codes[first : first + len(slab)] = packed(part)
            scales[first : first + len(slab)] = steps
            first += len(slab)
    found = _Encoded(use, (rows, width) if use is Use.TABLE else (inputs, outputs))
    if use is Use.TABLE:
        # Codes 0 to 15 less 8 in two's complement: the upper bit of each half turned. The table keeps its width.
        signed = (codes ^ np.uint8(0x88)).reshape(rows, -1)[:, : -(-width // 2)]
        held = written.add(f"{name}_quantized", TensorProto.INT4, (rows, width), [signed])
    else:
        held = written.add(f"{name}_quantized", TensorProto.UINT8, codes.shape, [codes])
    found.tensors = [held, written.add(f"{name}_scale", TensorProto.FLOAT, scales.shape, [scales])]
    return found


def _rewritten(
    model: onnx.ModelProto, encoded: dict[str, _Encoded], stored: list[TensorProto], settings: Settings
) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(_without_weights(model))
    nodes: list[onnx.NodeProto] = []
    activations: set[str] = set()
    for node in model.graph.node:
        name = next((name for name in node.input[:2] if name in encoded), None)
        if name is None:
            nodes.append(node)
        elif settings.bits == 4:
            nodes += _node_4(node, name, encoded[name], settings)
        else:
            nodes += _node_8(node, name, encoded[name], activations)
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(stored)
    if settings.bits == 4 and MICROSOFT not in {one.domain for one in made.opset_import}:
        made.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return made


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    bare = onnx.ModelProto(
        ir_version=max(model.ir_version, 10),  # which knows 4-bit numbers
        producer_name=model.producer_name, producer_version=model.producer_version, domain=model.domain,
        model_version=model.model_version, doc_string=model.doc_string, opset_import=model.opset_import,
        metadata_props=model.metadata_props, functions=model.functions,
    )  # fmt: skip
    bare.graph.name = model.graph.name
    for part in ("input", "output", "sparse_initializer", "metadata_props"):
        getattr(bare.graph, part).extend(getattr(model.graph, part))
    return bare


def _node_8(
    node: onnx.NodeProto, name: str, weight: _Encoded, activations: set[str]
) -> Iterator[onnx.NodeProto]:
    out = node.output[0]
    if weight.use is Use.TABLE:
        axis: dict[str, Any] = {"axis": 0}
        yield helper.make_node("Gather", [f"{name}_quantized", node.input[1]], [f"{out}_codes"], **axis)
        yield helper.make_node("Gather", [f"{name}_scale", node.input[1]], [f"{out}_scales"], **axis)
        yield helper.make_node("Cast", [f"{out}_codes"], [f"{out}_steps"], to=TensorProto.FLOAT)
        yield helper.make_node("Mul", [f"{out}_steps", f"{out}_scales"], [out], node.name)
        return
    x = node.input[0]
    if x not in activations:  # once for all products that share it
        activations.add(x)
        parts = [f"{x}_quantized", f"{x}_scale", f"{x}_zero_point"]
        yield helper.make_node("DynamicQuantizeLinear", [x], parts, f"{x}_QuantizeLinear")
    factors = [f"{x}_quantized", f"{name}_quantized", f"{x}_zero_point", f"{name}_zero_point"]
    added = node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]
    product = f"{out}_product" if added else out
    # The order of nodes that ONNX Runtime fuses to one.
    yield helper.make_node("MatMulInteger", factors, [f"{out}_integer"])
    yield helper.make_node("Cast", [f"{out}_integer"], [f"{out}_cast"], to=TensorProto.FLOAT)
    yield helper.make_node("Mul", [f"{x}_scale", f"{name}_scale"], [f"{out}_scales"])
    yield helper.make_node("Mul", [f"{out}_cast", f"{out}_scales"], [product])
    if added:
        yield helper.make_node("Add", [product, node.input[2]], [out])


def _node_4(
    node: onnx.NodeProto, name: str, weight: _Encoded, settings: Settings
) -> Iterator[onnx.NodeProto]:
    out, parts = node.output[0], [f"{name}_quantized", f"{name}_scale"]
    if weight.use is Use.TABLE:
        yield helper.make_node(
            "GatherBlockQuantized", [parts[0], node.input[1], parts[1]], [out], node.name, domain=MICROSOFT,
            gather_axis=0, quantize_axis=1, block_size=settings.block,
        )  # fmt: skip
        return
    added = node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]
    product = f"{out}_product" if added else out
    inputs, outputs = weight.dims
    yield helper.make_node(
        "MatMulNBits", [node.input[0], *parts], [product], node.name, domain=MICROSOFT,
        K=inputs, N=outputs, bits=4, block_size=settings.block, accuracy_level=4,
    )  # fmt: skip
    if added:
        yield helper.make_node("Add", [product, node.input[2]], [out])
