"""SmoothQuant: outliers of activations are moved into the weights before both are rounded (Xiao et al. 2022)."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from loopwright.compression.artefact import Artefact
from loopwright.compression.graphs.calibrating import Channels, channels, check_method, ranges
from loopwright.compression.graphs.encoding import (
    FULL,
    REDUCED,
    activations,
    encode_products,
    encode_static,
    encode_tables,
    split_gemms,
)
from loopwright.compression.graphs.preparing import (
    Layer,
    add_weight,
    drop_unused,
    finish,
    infer_types,
    layers,
    nothing_to,
    prepare,
    replace_nodes,
    scratch,
    transposed_twins,
    uses,
    weights,
)
from loopwright.compression.graphs.running import check_rows, sample
from loopwright.compression.steps import Work
from loopwright.compression.subject import Array
from loopwright.kernel.errors import BadInput

NORMS = frozenset(("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"))
OUTLYING = 4.0
"""Largest channel over the median channel from which a multiplication of its own is worth its time."""


@dataclass(frozen=True)
class Smooth:
    """Inputs of MatMul and Gemm are divided, channel by channel, by what their weights are multiplied with:
    s = max|x|^alpha / max|w|^(1-alpha), over `rows` training rows. Then INT8 as in `base`: "dynamic" or "static".

    The division goes into the normalisation, linear layer or scaling that the input comes from, through a ReLU too.
    Where there is none it becomes a multiplication, if `insert` and some channel stands out by a factor of 4. Before
    rounding the answers are the same. Weights that are stored once for two uses (tied) are left as they are.
    """

    name: ClassVar[str] = "int8-smooth"
    alpha: float = 0.5
    base: str = "dynamic"
    insert: bool = True
    rows: int = 128
    calibration: str = "minmax"
    percentile: float = 99.99
    embeddings: bool = True
    reduce_range: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise BadInput("alpha has to be between 0 and 1", where=self.name, got=self.alpha)
        check_base(self.base, self.name)
        check_method(self.calibration, self.percentile, self.name)
        check_rows(self.rows, self.name)

    @property
    def bits(self) -> float:
        return 8.0

    @property
    def batch_free(self) -> bool:
        return self.base == "static"

    def encode(self, source: Artefact, target: Path, work: Work) -> Artefact:
        """Raises CannotExport where there is no product with a weight, BadInput for rows that do not fit."""
        rows = sample(source, work, self.rows)
        largest = REDUCED if self.reduce_range else FULL
        with scratch(work) as folder:
            model = prepare(source, folder, self.name)
            split_gemms(model)
            products = layers(model, ["MatMul"])
            if not products:
                raise nothing_to(
                    self.name, source, "MatMul or Gemm with a constant weight", "Try int8-static."
                )
            names = list(dict.fromkeys(one.source for one in products))
            work.watch.update(0.1, f"calibrating on {len(rows)} rows")
            seen = channels(model, names, rows.feeds, folder, work.threads)
            folded, inserted = smooth(model, seen, self.alpha, self.insert)
            work.check_time()
            tables = layers(model, ["Gather"] if self.embeddings else [])
            if self.base == "dynamic":
                encode_products(model, layers(model, ["MatMul"]), largest)
                encode_tables(model, tables)
            else:
                infer_types(model)
                found = ranges(
                    model, activations(model), rows.feeds, folder, self.calibration, self.percentile,
                    work.threads,
                )  # fmt: skip
                model = encode_static(model, found, tables, largest=largest)
            made = finish(model, target, self.name)
        work.notes.params({"alpha": self.alpha, "calibration_rows": len(rows)})
        work.notes.metrics(
            {
                "quantized_layers": len(products) + len(tables), "smoothed_inputs": folded + inserted,
                "inserted_products": inserted, "bytes": made.size,
            }
        )  # fmt: skip
        return made


def check_base(base: str, step: str) -> None:
    """Raise BadInput for an unknown way of rounding activations."""
    if base not in ("dynamic", "static"):
        raise BadInput("unknown base", where=step, got=base, wanted="dynamic, static")


def smooth(
    model: ModelProto, seen: dict[str, Channels], alpha: float, insert: bool = True
) -> tuple[int, int]:
    """Move outliers of the inputs in `seen` into the weights, in place; how many were folded, how many inserted.

    The graph answers as before, within float32.
    """
    tied = set(transposed_twins(model))
    groups: dict[str, list[Layer]] = {}
    for layer in layers(model, ["MatMul"]):
        groups.setdefault(layer.source, []).append(layer)
    folded = inserted = 0
    for name, group in groups.items():
        read = uses(model.graph)
        own = all(read[one.weight] == 1 and one.weight not in tied for one in group)
        if not own or name not in seen:
            continue
        scales = scales_of(model, seen[name], group, alpha)
        if scales is None:
            continue
        if read[name] == len(group) and fold(model, name, (1 / scales).astype(np.float32)):
            folded += 1
        elif insert and _outlying(seen[name]):
            _insert(model, name, (1 / scales).astype(np.float32), group)
            inserted += 1
        else:
            continue
        for one in group:
            _rescale(model, one.weight, scales.reshape(-1, 1))
    drop_unused(model)
    return folded, inserted


def scales_of(model: ModelProto, seen: Channels, group: list[Layer], alpha: float) -> Array | None:
    """s per channel, 1 where a channel or its weights are all zero; None where the input's last axis is not theirs."""
    known = weights(model)
    held = [np.abs(numpy_helper.to_array(known[one.weight])).max(axis=1) for one in group]
    if any(len(one) != len(seen.largest) for one in held):
        return None
    weight = np.max(held, axis=0).astype(np.float64)
    found = seen.largest**alpha / np.maximum(weight, 1e-12) ** (1 - alpha)
    usable = (seen.largest > 0) & (weight > 0)
    return np.where(usable, np.clip(found, 1e-4, 1e4), 1.0).astype(np.float32)


def fold(model: ModelProto, name: str, factor: Array) -> bool:
    """Multiply the tensor `name` by `factor` (its last axis) within what computes it; False where that cannot be."""
    producer = {out: node for node in model.graph.node for out in node.output}
    found = _constants(model, name, producer, len(factor))
    if found is None:
        return False
    for node, place in found:
        values = numpy_helper.to_array(weights(model)[node.input[place]])
        node.input[place] = add_weight(
            model, f"{node.input[place]}::smooth_{node.name}", (values * factor).astype(np.float32)
        )
    return True


def _constants(
    model: ModelProto, name: str, producer: dict[str, NodeProto], width: int
) -> list[tuple[NodeProto, int]] | None:
    """The constants (node, input) that scale `name` channel by channel when they are scaled; None: there are none."""
    node, known, read = producer.get(name), weights(model), uses(model.graph)
    if node is None:
        return None

    def channelwise(place: int) -> bool:
        stored = known.get(node.input[place]) if len(node.input) > place else None
        return stored is not None and stored.data_type == TensorProto.FLOAT and stored.dims[-1:] == [width]

    if node.op_type in NORMS:
        places = [place for place in (1, 2) if len(node.input) > place and node.input[place]]
        return [(node, place) for place in places] if all(map(channelwise, places)) else None
    if node.op_type == "Relu":
        return _constants(model, node.input[0], producer, width) if read[node.input[0]] == 1 else None
    if node.op_type == "MatMul":
        return [(node, 1)] if channelwise(1) and len(known[node.input[1]].dims) == 2 else None
    if node.op_type in ("Add", "Mul"):
        for place in (0, 1):
            if not channelwise(place):
                continue
            if node.op_type == "Mul":
                return [(node, place)]
            rest = node.input[1 - place]
            deeper = _constants(model, rest, producer, width) if read[rest] == 1 else None
            return None if deeper is None else [*deeper, (node, place)]
    return None


def _outlying(seen: Channels) -> bool:
    middle = float(np.median(seen.largest))
    return float(seen.largest.max()) > OUTLYING * middle


def _insert(model: ModelProto, name: str, factor: Array, group: list[Layer]) -> None:
    """Put a multiplication between the tensor `name` and the layers of `group`."""
    scaled, readers = f"{name}::smooth", {one.name for one in group}
    by = add_weight(model, f"{name}::smooth_by", factor)
    nodes = list(model.graph.node)
    first = next(place for place, node in enumerate(nodes) if node.name in readers)
    for node in nodes:
        if node.name in readers:
            node.input[0] = scaled
    nodes.insert(first, helper.make_node("Mul", [name, by], [scaled], f"{scaled}::product"))
    replace_nodes(model, nodes)


def _rescale(model: ModelProto, name: str, factor: Array) -> None:
    tensor = weights(model)[name]
    values = (numpy_helper.to_array(tensor) * factor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
