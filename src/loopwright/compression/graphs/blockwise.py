"""Weights in 4 or 8 bits with a scale per block: small files; activations stay as they are in the graph."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from loopwright.compression.artefact import Artefact
from loopwright.compression.graphs.calibrating import Channels, channels
from loopwright.compression.graphs.encoding import split_gemms
from loopwright.compression.graphs.preparing import (
    RECURRENT,
    Layer,
    add_weight,
    finish,
    infer_types,
    layers,
    nothing_to,
    prepare,
    replace_nodes,
    scratch,
    transposed_twins,
    weights,
)
from loopwright.compression.graphs.running import check_rows, sample
from loopwright.compression.graphs.smooth import smooth
from loopwright.compression.steps import Work
from loopwright.compression.subject import Array
from loopwright.kernel.errors import BadInput

BLOCKS = (16, 32, 64, 128, 256)
METHODS = ("nearest", "search", "aware")
SHRINK = tuple(1 - 0.05 * part for part in range(1, 11))
"""How far a block's range is cut while looking for the least error."""
SMALLEST = 1024
"""Numbers from which a weight is worth it; scales and nodes weigh something too."""
ROWS_AT_ONCE = 1024
SMALLEST_HALF = 2.0**-14
"""Smaller scales lose digits in float16 and stay float32."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Integers (outputs, blocks, size), scales (outputs, blocks) and zero points (the same; None: half of the range).

    values ≈ (integers - zero points) × scales. Rows that are no multiple of `size` are filled up with zeros.
    """

    whole: Array
    scales: Array
    zeros: Array | None
    bits: int
    length: int

    def values(self) -> Array:
        """What is stored, as float32 (outputs, length)."""
        middle = 2 ** (self.bits - 1) if self.zeros is None else self.zeros[..., None].astype(np.float32)
        near = (self.whole.astype(np.float32) - middle) * self.scales[..., None]
        return near.reshape(len(near), -1)[:, : self.length]


@dataclass(frozen=True)
class Blockwise:
    """`bits` 4 or 8 per weight, a float16 scale per `block_size` weights of a row, a zero point unless `symmetric`.
    Left out, blocks are of 32 for 4 bits and of 128 for 8; rows that a smaller block fits better get one.

    MatMul and Gemm become MatMulNBits, look-up tables GatherBlockQuantized (`embeddings`); weights of convolutions
    (`convolutions`) and of recurrent layers are unpacked when the file is loaded. method: "nearest" rounds; "search"
    cuts each block's range where that lowers the squared error; "aware" weighs that error by how large the inputs of
    each weight are on `rows` training rows. alpha above 0 first moves outliers of activations into the weights, as
    int8-smooth does, so that channels that matter are not rounded away beside others (Lin et al. 2023, "AWQ", here with
    one alpha for all layers). compute: "int8" rounds activations per row and block within the kernel, which is faster
    than "float32".
    Nothing depends on the batch. Scales are widened by a Cast that ONNX Runtime folds when it loads the file: with all
    of its optimisations switched off (they are on by default), its MatMulNBits answers zeros.
    """

    name: ClassVar[str] = "weights"
    batch_free: ClassVar[bool] = True
    bits: int = 4
    block_size: int | None = None
    symmetric: bool = False
    method: str = "search"
    alpha: float = 0.0
    embeddings: bool = True
    convolutions: bool = True
    compute: str = "int8"
    rows: int = 128

    def __post_init__(self) -> None:
        choices = (
            ("bits", self.bits, (4, 8)), ("block_size", self.size, BLOCKS), ("method", self.method, METHODS),
            ("compute", self.compute, ("int8", "float32")),
        )  # fmt: skip
        for setting, value, known in choices:
            if value not in known:
                raise BadInput(
                    f"there is no such {setting}", where=self.name, got=value, wanted=", ".join(map(str, known))
                )  # fmt: skip
        if not 0 <= self.alpha < 1:
            raise BadInput("alpha has to be from 0 to under 1", where=self.name, got=self.alpha)
        check_rows(self.rows, self.name)

    @property
    def size(self) -> int:
        """Weights that share a scale."""
        return self.block_size or (32 if self.bits == 4 else 128)

    def encode(self, source: Artefact, target: Path, work: Work) -> Artefact:
        """Raises CannotExport where no weight is large enough to gain from it."""
        with scratch(work) as folder:
            model = prepare(source, folder, self.name)
            split_gemms(model)
            if self.alpha:
                smooth(model, self._seen(source, model, folder, work), self.alpha)
                infer_types(model)
            kinds = ["MatMul", *RECURRENT, *(["Gather"] if self.embeddings else [])]
            kinds += ["Conv", "ConvTranspose"] if self.convolutions else []
            chosen = [one for one in layers(model, kinds) if one.parameters >= SMALLEST]
            if not chosen:
                raise nothing_to(
                    self.name, source, f"weights of {SMALLEST} numbers or more in MatMul, Gemm, Conv, LSTM or Gather",
                    "For trees: tree-rounds, tree-rounding.",
                )  # fmt: skip
            whole = sum(one.parameters for one in layers(model))
            importance: dict[str, Array] = {}
            if self.method == "aware":
                seen = self._seen(source, model, folder, work)
                importance = {name: one.square for name, one in seen.items()}
            error = self._store(model, chosen, importance, work)
            made = finish(model, target, self.name)
        work.notes.metrics(
            {
                "quantized_layers": len(chosen), "quantized_share": sum(one.parameters for one in chosen) / whole,
                "weight_error": error, "bytes": made.size,
            }
        )  # fmt: skip
        return made

    def _seen(self, source: Artefact, model: ModelProto, folder: Path, work: Work) -> dict[str, Channels]:
        rows = sample(source, work, self.rows)
        names = list(dict.fromkeys(one.source for one in layers(model, ["MatMul"])))
        return channels(model, names, rows.feeds, folder, work.threads)

    def _store(
        self, model: ModelProto, chosen: list[Layer], importance: Mapping[str, Array], work: Work
    ) -> float:
        """Rewrite the nodes in `chosen`; the root mean square error of their weights, of the weights' own."""
        by_name: dict[str, list[Layer]] = {}
        for one in chosen:
            by_name.setdefault(one.name, []).append(one)
        known, twins = weights(model), transposed_twins(model)
        stored: dict[str, Stored] = {}
        lost = total = 0.0
        nodes: list[NodeProto] = []
        for done, node in enumerate(model.graph.node):
            found = by_name.get(node.name, [])
            if found:
                work.check_time()
                work.watch.update(done / len(model.graph.node), f"weights of {node.name}")
            elsewhere = NodeProto()
            elsewhere.CopyFrom(node)
            for layer in found:
                by_row = layer.kind != "MatMul"
                key = twins.get(layer.weight, layer.weight if by_row else f"{layer.weight}::columns")
                blocks = None
                if key not in stored:
                    values = numpy_helper.to_array(known[layer.weight])
                    rows = values.reshape(-1, _width(layer.kind, values)) if by_row else values.T
                    blocks = to_blocks(
                        rows, self.bits, fitting_size(rows.shape[1], self.bits, self.size), self.symmetric,
                        self.method != "nearest", importance.get(layer.source),
                    )  # fmt: skip
                    lost += float(np.sum((blocks.values() - rows) ** 2, dtype=np.float64))
                    total += float(np.sum(rows.astype(np.float64) ** 2))
                if layer.kind not in ("MatMul", "Gather"):
                    assert blocks is not None  # `stored` holds those of the other two only
                    name = f"{node.name}::weight_{layer.place}"
                    nodes += unpacked(model, name, blocks, list(known[layer.weight].dims))
                    elsewhere.input[layer.place] = f"{name}::unpacked"
                    continue
                if blocks is not None:
                    stored[key], casts = store(model, key, blocks)
                    nodes += casts
                if layer.kind == "MatMul":
                    nodes.append(product(node, stored[key], fast=self.compute == "int8"))
                else:
                    nodes += look_up(model, node, stored[key])
            if not found or found[0].kind not in ("MatMul", "Gather"):
                nodes.append(elsewhere)
        replace_nodes(model, nodes)
        return float(np.sqrt(lost / total)) if total else 0.0


@dataclass(frozen=True, slots=True)
class Stored:
    """Names of what lies in the graph for one weight: packed integers, scales, zero points ("" for none)."""

    packed: str
    scales: str
    zeros: str
    bits: int
    size: int
    shape: tuple[int, int, int]
    """Outputs, blocks, bytes per block."""
    length: int


def fitting_size(length: int, bits: int, wanted: int) -> int:
    """The block size up to `wanted` that takes the fewest bytes: rows are filled up to whole blocks."""
    sizes = [one for one in BLOCKS if one <= wanted]
    return min(reversed(sizes), key=lambda one: -(-length // one) * (one * bits / 8 + 2 + bits / 8))


def to_blocks(
    rows: Array, bits: int, size: int, symmetric: bool, search: bool, importance: Array | None = None
) -> Blocks:
    """Integers for `rows` (outputs, length), block by block along the length.

    search: among ranges cut by up to half and the scale refitted by least squares, take what loses least, weighted by
    `importance` (length,). The range by least squared error is Choukroun et al. 2019 ("OMSE").
    """
    count, length = rows.shape
    pad = -length % size
    weight = np.ones(length) if importance is None else importance / (importance.mean() or 1.0)
    weight = np.pad(weight, (0, pad)).reshape(-1, size).astype(np.float32) + np.float32(1e-6)
    parts = []
    for at in range(0, count, ROWS_AT_ONCE):
        part = np.pad(rows[at : at + ROWS_AT_ONCE].astype(np.float32), ((0, 0), (0, pad)))
        parts.append(_rounded(part.reshape(len(part), -1, size), weight, bits, symmetric, search))
    whole, scales, zeros = (np.concatenate(found) for found in zip(*parts, strict=True))
    return Blocks(whole, scales, None if symmetric else zeros, bits, length)


def _rounded(
    blocks: Array, weight: Array, bits: int, symmetric: bool, search: bool
) -> tuple[Array, Array, Array]:
    """Integers, scales and zero points of blocks (outputs, blocks, size) with the least weighted squared error."""
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    low, high = np.minimum(blocks.min(axis=-1), 0), np.maximum(blocks.max(axis=-1), 0)
    best: tuple[Array, Array, Array] | None = None
    least = np.empty(0)
    for share in (1.0, *(SHRINK if search else ())):
        if symmetric:
            outer = np.where(-low >= high, low, high) * share
            scale = outer / -middle
            zero = np.full(low.shape, middle, np.float32)
        else:
            scale = (high - low) * share / top
            zero = np.clip(np.rint(-low * share / np.where(scale == 0, 1, scale)), 0, top)
        scale = _as_stored(np.where(scale == 0, 1.0, scale))
        whole = _nearest(blocks, scale, zero, top)
        found = [(whole, scale)]
        if search:
            found.append((whole, _refitted(blocks, whole - zero[..., None], weight, scale)))
        for integers, step in found:
            error = (weight * (blocks - (integers - zero[..., None]) * step[..., None]) ** 2).sum(axis=-1)
            if best is None:
                best, least = (integers, step, zero), error
                continue
            better = error < least
            least = np.where(better, error, least)
            best = (
                np.where(better[..., None], integers, best[0]),
                np.where(better, step, best[1]),
                np.where(better, zero, best[2]),
            )
    assert best is not None
    return best[0].astype(np.uint8), best[1].astype(np.float32), best[2].astype(np.uint8)


def _nearest(blocks: Array, scale: Array, zero: Array, top: int) -> Array:
    near: Array = np.clip(np.rint(blocks / scale[..., None] + zero[..., None]), 0, top)
    return near


def _refitted(blocks: Array, centred: Array, weight: Array, scale: Array) -> Array:
    """The scale that loses least for these integers: weighted least squares through the origin."""
    below = (weight * centred**2).sum(axis=-1)
    fitted = (weight * blocks * centred).sum(axis=-1) / np.where(below == 0, 1, below)
    return _as_stored(np.where((below == 0) | (fitted == 0), scale, fitted))


def _as_stored(scale: Array) -> Array:
    """Rounded to float16 where that keeps its digits, so that integers are chosen for the scale they will meet."""
    near = scale.astype(np.float16).astype(np.float32)
    return np.where((np.abs(near) >= SMALLEST_HALF) & np.isfinite(near), near, scale).astype(np.float32)


def _fits_half(scales: Array) -> bool:
    return np.array_equal(scales.astype(np.float16).astype(np.float32), scales)


def packed(whole: Array, bits: int) -> Array:
    """Integers of `bits` as bytes along the last axis, the first in the low half."""
    if bits == 8:
        return whole
    if whole.shape[-1] % 2:
        whole = np.pad(whole, [(0, 0)] * (whole.ndim - 1) + [(0, 1)])
    halves: Array = whole[..., ::2] | (whole[..., 1::2] << 4)
    return halves


def store(model: ModelProto, name: str, blocks: Blocks) -> tuple[Stored, list[NodeProto]]:
    """Put `blocks` into the graph; also the nodes that widen its scales (folded when the file is loaded).

    Products and look-ups read the same bytes, so a table that is both is stored once.
    """
    data = packed(blocks.whole, blocks.bits)
    outputs, count, width = data.shape
    casts = []
    if _fits_half(blocks.scales):
        add_weight(model, f"{name}::scales_half", blocks.scales.astype(np.float16))
        casts.append(
            helper.make_node(
                "Cast", [f"{name}::scales_half"], [f"{name}::scales"], f"{name}::scales_cast", to=TensorProto.FLOAT
            )
        )  # fmt: skip
    else:
        add_weight(model, f"{name}::scales", blocks.scales)
    zeros = ""
    if blocks.zeros is not None:
        zeros = add_weight(model, f"{name}::zeros", packed(blocks.zeros, blocks.bits))
    made = Stored(
        add_weight(model, f"{name}::bits", data), f"{name}::scales", zeros, blocks.bits, blocks.whole.shape[-1],
        (outputs, count, width), blocks.length,
    )  # fmt: skip
    return made, casts


def product(node: NodeProto, one: Stored, fast: bool) -> NodeProto:
    """The MatMul `node` with its weight read from blocks; `fast`: on activations rounded per row and block."""
    made = helper.make_node(
        "MatMulNBits", [node.input[0], one.packed, one.scales, *([one.zeros] if one.zeros else [])], [node.output[0]],
        node.name, domain="com.microsoft", K=one.length, N=one.shape[0], bits=one.bits, block_size=one.size,
    )  # fmt: skip
    if fast:
        made.attribute.append(helper.make_attribute("accuracy_level", 4))
    return made


def look_up(model: ModelProto, node: NodeProto, one: Stored) -> list[NodeProto]:
    """The Gather `node` with its table read from blocks."""
    flat, name, rows, out = f"{node.name}::flat", node.name, node.input[1], node.output[0]
    shape = add_weight(model, f"{name}::width", np.array([0, -1], np.int64))
    filled = one.shape[1] * one.size > one.length
    whole = f"{out}::filled" if filled else out
    made = [
        helper.make_node("Reshape", [one.packed, shape], [flat], f"{name}::flat"),
        helper.make_node(
            "GatherBlockQuantized", [flat, rows, one.scales, *([one.zeros] if one.zeros else [])], [whole],
            name, domain="com.microsoft", bits=one.bits, block_size=one.size, gather_axis=0, quantize_axis=1,
        ),
    ]  # fmt: skip
    if filled:
        cut = [
            add_weight(model, f"{name}::{part}", np.array([value], np.int64))
            for part, value in (("first", 0), ("last", one.length), ("axis", -1))
        ]
        made.append(helper.make_node("Slice", [whole, *cut], [out], f"{name}::cut"))
    return made


def unpacked(model: ModelProto, name: str, blocks: Blocks, dims: list[int]) -> list[NodeProto]:
    """Nodes that unpack a weight of shape `dims` into `<name>_unpacked`; all constant, so folded at load.

    Only ONNX's own operators: ONNX Runtime folds those, and neither DequantizeLinear nor its own.
    """
    outputs, count, size = blocks.whole.shape
    made: list[NodeProto] = []

    def put(label: str, values: Array) -> str:
        return add_weight(model, f"{name}::{label}", values)

    def then(kind: str, label: str, *inputs: str, **settings: Any) -> str:
        made.append(helper.make_node(kind, inputs, [f"{name}::{label}"], f"{name}::{label}", **settings))
        return f"{name}::{label}"

    def numbers(label: str, *values: int) -> str:
        return put(label, np.array(values, np.int64))

    whole = put("bits", packed(blocks.whole, blocks.bits))
    if blocks.bits == 4:
        pairs = numbers("pairs", outputs, count, size // 2, 1)
        low = then("Mod", "low", whole, put("sixteen", np.array(16, np.uint8)))
        high = then("BitShift", "high", whole, put("four", np.array(4, np.uint8)), direction="RIGHT")
        low, high = then("Reshape", "first", low, pairs), then("Reshape", "second", high, pairs)
        both = then("Concat", "both", low, high, axis=3)
        whole = then("Reshape", "whole", both, numbers("blocks", outputs, count, size))
    zeros = np.uint8(2 ** (blocks.bits - 1)) if blocks.zeros is None else blocks.zeros[..., None]
    centre = then("Cast", "centre", put("zeros", np.asarray(zeros)), to=TensorProto.FLOAT)
    values = then("Sub", "centred", then("Cast", "float", whole, to=TensorProto.FLOAT), centre)
    scales = blocks.scales[..., None]
    if _fits_half(blocks.scales):
        factor = then("Cast", "scales", put("scales_half", scales.astype(np.float16)), to=TensorProto.FLOAT)
    else:
        factor = put("scales", scales)
    values = then("Mul", "scaled", values, factor)
    values = then("Reshape", "rows", values, numbers("filled", outputs, count * size))
    if count * size > blocks.length:
        cut = numbers("from", 0), numbers("to", blocks.length), numbers("axis", 1)
        values = then("Slice", "cut", values, *cut)
    then("Reshape", "unpacked", values, numbers("shape", *dims))
    return made


def _width(kind: str, values: Array) -> int:
    """Numbers in a row of a weight: all that make one output."""
    return int(values.shape[-1]) if kind in RECURRENT else int(np.prod(values.shape[1:]))
