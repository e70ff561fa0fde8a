"""Fewer layers, heads, FFN units and hidden dimensions of a transformer graph, chosen by magnitude, streamed.

Magnitudes of groups of weights that go together (Han et al. 2015, Li et al. 2017): a unit of an FFN weighs what it
reads times what it writes, so does a head (values × output); a layer the root of its heads' and units' squares; a
hidden dimension what is written to it times what is read from it. Nothing but weights is looked at: what remains is to
be trained again, see `loopwright.compression.networks`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto
from onnx.external_data_helper import uses_external_data

from loopwright.compression.artefact import Artefact
from loopwright.compression.streaming.quantizing import inner_names
from loopwright.compression.streaming.transformer import STEP, Shape, tensors
from loopwright.compression.streaming.weights import Weights, Written, padded, refuse_same
from loopwright.kernel.errors import BadInput
from loopwright.kernel.progress import Progress, Silent

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

AXES: Mapping[str, tuple[str, ...]] = {
    "tokens": ("vocabulary", "hidden"), "positions": ("positions", "hidden"), "norm": ("hidden",),
    "norm1": ("hidden",), "q": ("hidden", "wide"), "k": ("hidden", "wide"), "v": ("hidden", "wide"),
    "o": ("wide", "hidden"), "norm2": ("hidden",), "up": ("hidden", "ffn"), "down": ("ffn", "hidden"),
    "q_bias": ("wide",), "k_bias": ("wide",), "v_bias": ("wide",), "o_bias": ("hidden",), "up_bias": ("ffn",),
    "down_bias": ("hidden",),
}  # fmt: skip
"""Role of a weight → what its axes are; `wide` is heads × head."""
_ONCE = ("tokens", "positions", "norm")
_GAINS = ("norm", "norm1", "norm2")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a graph has the weights of a transformer: names by role, `{layer}` for the layer's number.

    `roles`: as in `AXES`, biases as far as there are any; matrices are (inputs, outputs), the second factor of a
    MatMul, and heads are split by a Reshape whose number of heads is −1. `residual`: name of the value that layer
    `{layer}` begins with; the one after the last layer is `{layer}` = layers.
    """

    roles: Mapping[str, str] = field(
        default_factory=lambda: {
            role: role if role in _ONCE else f"layer{{layer}}.{role}" for role in AXES if "_" not in role
        }
    )
    residual: str = "residual{layer}"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.roles) - set(AXES))
        lacking = sorted({role for role in AXES if "_" not in role} - set(self.roles))
        if unknown or lacking:
            raise BadInput(
                "roles of weights", where="layout", got=", ".join([*unknown, *(f"no {role}" for role in lacking)]),
                wanted=", ".join(AXES),
            )  # fmt: skip

    def weights(self, layers: int) -> Iterator[tuple[str, int, str]]:
        """(name, layer, role) of every weight; layer −1 for what there is once."""
        for role, name in self.roles.items():
            if role in _ONCE:
                yield name, -1, role
            else:
                yield from ((name.format(layer=layer), layer, role) for layer in range(layers))


@dataclass(frozen=True, slots=True)
class Kept:
    """Positions that stay, rising. `heads` and `ffn`: of each layer that stays, in order."""

    layers: Positions
    hidden: Positions
    heads: tuple[Positions, ...]
    ffn: tuple[Positions, ...]
    energy: float
    """Share of the residual's squared weights that the hidden dimensions that stay receive."""


_GRAPH, _LAYER = 30_000, 8_000
"""Bytes of the graph of a transformer of this package: without layers, and of each."""


def encoded_size(shape: Shape, bits: int, block: int = 32) -> int:
    """The most bytes on disk that a transformer of `shape` takes after `quantize_streamed`; nearly what it takes."""
    total = _GRAPH + _LAYER * shape.layers
    for name, dims in tensors(shape):
        if len(dims) == 1:
            total += padded(4 * dims[0])
            continue
        table = name in _ONCE
        inputs, outputs = (dims[1], dims[0]) if table else dims
        if bits == 8:
            sizes = (inputs * outputs, 4 * outputs) if table else (inputs * outputs, 4 * outputs, outputs)
        else:
            blocks = -(-inputs // block)
            sizes = (outputs * blocks * block // 2, 4 * outputs * blocks)
        total += sum(padded(size) for size in sizes)
    return total


def plan(shape: Shape, target: int, bits: int = 8) -> Shape:
    """A narrower shape that takes nearly `target` bytes once quantized, and no more.

    Layers, heads, hidden and FFN are cut by one share, and the FFN takes the room that whole steps leave.
    Raises BadInput when even the narrowest is too large: then the vocabulary has to become smaller first.
    """
    for share in np.arange(1.0, 0.0, -0.002):
        tried = replace(
            shape,
            layers=max(1, round(shape.layers * share)), heads=max(1, round(shape.heads * share)),
            hidden=_narrow(shape.hidden, share), ffn=_narrow(shape.ffn, share),
        )  # fmt: skip
        if encoded_size(tried, bits) > target:
            continue
        wider = tried
        while wider.ffn <= shape.ffn and encoded_size(wider, bits) <= target:
            tried, wider = wider, replace(wider, ffn=wider.ffn + STEP)
        return tried
    raise BadInput(
        "no narrower transformer is that small", where="plan", got=f"{target:,} bytes",
        wanted=f"at least {encoded_size(tried, bits):,} bytes, which a vocabulary of {shape.vocabulary:,} asks for",
    )  # fmt: skip


def narrow(
    source: Path,
    target: Path,
    shape: Shape,
    keep: Shape,
    *,
    layout: Layout | None = None,
    durable: bool = True,
    watch: Progress | None = None,
) -> tuple[Artefact, Kept]:
    """Write the transformer at `source`, of `shape`, narrowed to `keep` at `target`; returns it and what was kept.

    Holds one layer's two largest matrices at a time. What weighs nothing (all zero) is left out without a change in the
    answers: gains of the RMSNorms are corrected for the squares that left. Raises BadInput where the graph has not the
    weights that `layout` and `shape` say, where `keep` is larger than `shape` or differs in what cannot be narrowed,
    and what `Weights` raises.
    """
    layout, watch = layout or Layout(), watch or Silent()
    weights = Weights.open(source)
    refuse_same(weights, target)
    _check(weights, shape, keep, layout)
    kept = choose(weights, shape, keep, layout, watch)
    numbers = {int(layer): place for place, layer in enumerate(kept.layers)}
    gain = np.float32(np.sqrt(kept.energy * shape.hidden / keep.hidden))
    roles = {name: (layer, role) for name, layer, role in layout.weights(shape.layers)}
    stored: list[TensorProto] = []
    with Written(target, durable=durable) as written:
        for position, (name, tensor) in enumerate(weights.tensors.items()):
            if name not in roles:
                outside = uses_external_data(tensor)
                dims = tuple(tensor.dims)
                stored.append(
                    written.add(name, tensor.data_type, dims, weights.raw(name)) if outside else tensor
                )
                continue
            layer, role = roles[name]
            if layer >= 0 and layer not in numbers:
                continue
            axes = [_stay(axis, numbers.get(layer, -1), kept, shape) for axis in AXES[role]]
            dims = tuple(
                size if axis is None else len(axis)
                for size, axis in zip(weights.dims(name), axes, strict=True)
            )
            parts = _taken(weights, name, axes, gain if role in _GAINS else None)
            stored.append(written.add(name, TensorProto.FLOAT, dims, parts))
            watch.update(0.5 + 0.5 * position / len(weights.tensors), name)
        written.finish(_graph(weights.model, stored, layout, kept, shape))
    return Artefact.open(target, numbers=False), kept


def choose(
    weights: Weights, shape: Shape, keep: Shape, layout: Layout, watch: Progress | None = None
) -> Kept:
    """What stays, by the weights alone. Layers first, then heads and units of the layers that stay, then dimensions."""
    watch = watch or Silent()
    writes = np.zeros((shape.layers, shape.hidden))
    reads = np.zeros((shape.layers, shape.hidden))
    heads, units = np.zeros((shape.layers, shape.heads)), np.zeros((shape.layers, shape.ffn))
    for layer in range(shape.layers):

        def squares(role: str, layer: int = layer) -> npt.NDArray[np.float32]:
            values = weights.read(layout.roles[role].format(layer=layer))
            return np.asarray(np.square(values), np.float32)

        def by_head(values: Floats) -> Floats:
            return np.asarray(values.reshape(shape.heads, shape.head).sum(-1))

        gain1, gain2 = _sum(squares("norm1"), None), _sum(squares("norm2"), None)
        for role in ("q", "k"):
            reads[layer] += _sum(squares(role), 1) * gain1
        value, output = squares("v"), squares("o")
        reads[layer] += _sum(value, 1) * gain1
        writes[layer] += _sum(output, 0)
        heads[layer] = np.sqrt(by_head(_sum(value, 0)) * by_head(_sum(output, 1)))
        del value, output
        up, down = squares("up"), squares("down")
        reads[layer] += _sum(up, 1) * gain2
        writes[layer] += _sum(down, 0)
        units[layer] = np.sqrt(_sum(up, 0) * _sum(down, 1))
        watch.update(0.5 * (layer + 1) / shape.layers, f"magnitudes of layer {layer}")
    layers = _largest(np.square(heads).sum(1) + np.square(units).sum(1), keep.layers)
    written = writes[layers].sum(0) + _table_squares(weights, layout.roles["tokens"])
    written += _table_squares(weights, layout.roles["positions"])
    read = reads[layers].sum(0) + np.square(weights.read(layout.roles["norm"]).astype(np.float64))
    hidden = _largest(np.sqrt(written * read), keep.hidden)
    energy = float(written[hidden].sum() / written.sum()) if written.sum() else 1.0
    return Kept(
        layers, hidden, tuple(_largest(heads[layer], keep.heads) for layer in layers),
        tuple(_largest(units[layer], keep.ffn) for layer in layers), energy,
    )  # fmt: skip


def _sum(squares: npt.NDArray[np.float32], axis: int | None) -> Floats:
    return np.asarray(squares if axis is None else squares.sum(axis, dtype=np.float64), np.float64)


def _table_squares(weights: Weights, name: str) -> Floats:
    return np.asarray(sum(np.square(slab).sum(0, dtype=np.float64) for slab in weights.slabs(name)))


def _largest(scores: Floats, count: int) -> Positions:
    """The `count` largest, in their own order; of equals the earlier."""
    return np.sort(np.argsort(-scores, kind="stable")[:count]).astype(np.int64)


def _narrow(width: int, share: float) -> int:
    return min(width, max(STEP, STEP * round(width * share / STEP)))


def _stay(axis: str, layer: int, kept: Kept, shape: Shape) -> Positions | None:
    """Positions of an axis that stay; None for all. `layer`: counted among those that stay."""
    if axis == "hidden":
        return kept.hidden
    if axis == "ffn":
        return kept.ffn[layer]
    if axis == "wide":
        inside = np.arange(shape.head)
        return np.asarray((kept.heads[layer][:, None] * shape.head + inside).reshape(-1))
    return None


def _taken(
    weights: Weights, name: str, axes: list[Positions | None], factor: np.float32 | None
) -> Iterator[npt.NDArray[np.float32]]:
    """The part of a weight that stays, times `factor`, in order."""
    first = 0
    for slab in weights.slabs(name):
        here = slab
        if axes[0] is not None:
            here = slab[axes[0][(axes[0] >= first) & (axes[0] < first + len(slab))] - first]
        first += len(slab)
        if len(axes) > 1 and axes[1] is not None:
            here = np.take(here, axes[1], axis=1)
        yield here if factor is None else here * factor


def _graph(
    model: onnx.ModelProto, stored: list[TensorProto], layout: Layout, kept: Kept, shape: Shape
) -> onnx.ModelProto:
    """The graph in which a layer that left is passed by, and nodes that nobody asks any more are gone."""
    removed = sorted(set(range(shape.layers)) - set(kept.layers.tolist()))
    # What layer i would have given is what it was given; in a row of several, what the first was given.
    instead: dict[str, str] = {}
    for layer in removed:
        begin = layout.residual.format(layer=layer)
        instead[layout.residual.format(layer=layer + 1)] = instead.get(begin, begin)
    nodes = []
    for node in model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [instead.get(name, name) for name in node.input]
        nodes.append(copy)
    wanted = {value.name for value in model.graph.output}
    lost = wanted & set(instead)
    if lost:
        raise BadInput(
            "an answer of the model is what a layer that leaves gives", where="layout", got=", ".join(sorted(lost)),
            wanted="answers after the last residual",
        )  # fmt: skip
    needed = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= {*node.input, *inner_names(node)}
            needed.append(node)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for part in (made.graph.node, made.graph.initializer, made.graph.value_info):
        del part[:]
    made.graph.node.extend(reversed(needed))
    made.graph.initializer.extend(tensor for tensor in stored if tensor.name in wanted)
    return made


def _check(weights: Weights, shape: Shape, keep: Shape, layout: Layout) -> None:
    for name in ("vocabulary", "head", "positions"):
        if getattr(keep, name) != getattr(shape, name):
            raise BadInput(
                f"`{name}` cannot be narrowed",
                where="narrow",
                got=getattr(keep, name),
                wanted=str(getattr(shape, name)),
            )
    for name in ("layers", "hidden", "heads", "ffn"):
        if getattr(keep, name) > getattr(shape, name):
            raise BadInput(
                f"more `{name}` than there are", where="narrow", got=getattr(keep, name),
                wanted=f"at most {getattr(shape, name)}",
            )  # fmt: skip
    sizes: dict[str, Any] = {
        "vocabulary": shape.vocabulary, "positions": shape.positions, "hidden": shape.hidden, "ffn": shape.ffn,
        "wide": shape.heads * shape.head,
    }  # fmt: skip
    for name, _, role in layout.weights(shape.layers):
        wanted = tuple(sizes[axis] for axis in AXES[role])
        if weights.dims(name) != wanted:
            raise BadInput(
                "a weight of another shape", where=f"{weights.path}: {name}", got=weights.dims(name),
                wanted=f"{wanted} ({' × '.join(AXES[role])})",
            )  # fmt: skip
    values = {name for node in weights.model.graph.node for name in node.output}
    for layer in range(shape.layers + 1):
        name = layout.residual.format(layer=layer)
        if name not in values:
            raise BadInput(
                "the graph has no such value",
                where=f"{weights.path}: residual",
                got=name,
            )
