"""Quantizes a graph of any size in the memory of one matrix: weights are read, encoded and written as they come.

bits=8: MatMul and Gemm as integer products of activations that are quantized as they come (unsigned, one scale a
tensor) and weights with one scale per output channel; tables of Gather with one scale per row. Standard operators only.
bits=4: weights in blocks along the inputs with one scale each (MatMulNBits, GatherBlockQuantized of ONNX Runtime).
Zero points are zero. What is not FP32, not constant, or used in another way as well, stays as it is.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import uses_external_data

from loopwright.compression.artefact import Artefact
from loopwright.compression.streaming.encoding import Encoded, Settings, Use, encode
from loopwright.compression.streaming.weights import INLINE, Weights, Written, refuse_same
from loopwright.kernel.errors import BadInput
from loopwright.kernel.progress import Progress, Silent

OLDEST = 13
"""Operator set from which on everything used here means the same."""
MICROSOFT = "com.microsoft"
_PARTS = (
    "quantized",
    "scale",
    "zero_point",
    "codes",
    "steps",
    "integer",
    "cast",
    "product",
    "table",
    "turned",
)


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
    except that tables have a scale per row, not per table. A weight that is both table and matrix (tied) is written
    once for each. `block`: weights that share a scale with 4 bits, a power of two from 16 on. `tables`: look-up tables
    too. `exclude`: weights, by name, that stay. `reduce_range`: 7 bits in 8, for processors without VNNI, whose 8-bit
    products may overflow. `durable`: on disk, not only in the system's cache, on return.

    Raises BadInput for settings out of range, weights that are no numbers or absent, an operator set below 13, a model
    with nothing to quantize, and `target` being `source`; Unavailable for a full disk. Leaves `target` whole or as it
    was.
    """
    settings = Settings(bits, block, tables, frozenset(exclude), reduce_range)
    watch = watch or Silent()
    weights = Weights.open(source)
    refuse_same(weights, target)
    versions = {one.domain: one.version for one in weights.model.opset_import}
    if versions.get("", versions.get("ai.onnx", 0)) < OLDEST:
        raise BadInput(
            "the model is of an old operator set", where=str(source), got=versions.get("", 0),
            wanted=f"{OLDEST} or later", next="Export it again, or convert it: onnx.version_converter.",
        )  # fmt: skip
    absent = settings.exclude - set(weights.tensors)
    if absent:
        raise BadInput(
            "weights to exclude that the model does not have",
            where=str(source),
            got=", ".join(sorted(absent)),
        )
    roles = _roles(weights)
    chosen = _chosen(weights, roles, settings, watch)
    if not chosen:
        raise BadInput(
            "nothing to quantize", where=str(source), wanted="FP32 weights of MatMul, Gemm or Gather",
            next="Other operators (Conv, trees) have steps of their own: int8-static, tree-rounding.",
        )  # fmt: skip
    with Written(target, durable=durable) as written:
        _write(weights, roles, chosen, settings, written, watch)
    return Artefact.open(target)


class _Roles(NamedTuple):
    """`uses`: weight → how nodes use it, None in ways not known. `turned`: value → the weight that it turns."""

    uses: Mapping[str, set[Use | None]]
    turned: Mapping[str, str]

    def of(self, node: onnx.NodeProto) -> tuple[str, Use] | None:
        """The weight that the node uses, as far as it is one that may be encoded."""
        for position, name in enumerate(node.input[:2]):
            use = _use(node, position, name in self.turned)
            if use is not None:
                return self.turned.get(name, name), use
        return None


def _roles(weights: Weights) -> _Roles:
    graph = weights.model.graph
    turned = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Transpose"
        and node.input[0] in weights.tensors
        and len(weights.dims(node.input[0])) == 2
        and [list(one.ints) for one in node.attribute if one.name == "perm"] in ([], [[1, 0]])
    }
    uses: dict[str, set[Use | None]] = defaultdict(set)
    for node in graph.node:
        if node.output[0] in turned:
            continue
        for position, name in enumerate(node.input):
            uses[turned.get(name, name)].add(_use(node, position, name in turned))
        for name in inner_names(node):
            uses[turned.get(name, name)].add(None)
    for value in (*graph.input, *graph.output):
        uses[turned.get(value.name, value.name)].add(None)
    return _Roles(uses, turned)


def _use(node: onnx.NodeProto, position: int, turned: bool) -> Use | None:
    said = {one.name: one for one in node.attribute}
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "MatMul" and position == 1:
        return Use.TURNED if turned else Use.MATRIX
    if node.op_type == "Gather" and position == 0 and ("axis" not in said or said["axis"].i == 0):
        return None if turned else Use.TABLE
    if node.op_type == "Gemm" and position == 1:
        plain = all(name not in said or said[name].f == 1.0 for name in ("alpha", "beta"))
        if plain and not ("transA" in said and said["transA"].i):
            again = "transB" in said and bool(said["transB"].i)
            return Use.TURNED if again is not turned else Use.MATRIX
    return None


def inner_names(node: onnx.NodeProto) -> Iterator[str]:
    """What graphs inside a node (If, Loop) may take from outside."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from inner_names(inner)
            yield from (value.name for value in graph.output)


def _chosen(
    weights: Weights, roles: _Roles, settings: Settings, watch: Progress
) -> dict[str, tuple[Use, ...]]:
    """Weights whose every use can be encoded; why others of some size stay is noted."""
    chosen: dict[str, tuple[Use, ...]] = {}
    for name, tensor in weights.tensors.items():
        found = roles.uses.get(name, set())
        if len(tensor.dims) != 2 or 0 in tensor.dims or not found:
            continue
        uses = tuple(sorted(use for use in found if use is not None))
        why = ""
        if name in settings.exclude:
            why = "it is excluded"
        elif tensor.data_type != TensorProto.FLOAT:
            why = "it is not FP32"
        elif None in found:
            why = "of how it is used"
        elif Use.TABLE in uses and not settings.tables:
            why = "tables are to stay"
        elif Use.TABLE in uses and settings.bits == 4 and tensor.dims[1] % 2:
            why = "half bytes need rows of an even width"
        if not why:
            chosen[name] = uses
        elif weights.bytes(name) > INLINE:
            watch.note(f"{name} stays as it is because {why} ({weights.bytes(name) / 1e6:.1f} MB)")
    return chosen


def _write(
    weights: Weights,
    roles: _Roles,
    chosen: Mapping[str, tuple[Use, ...]],
    settings: Settings,
    written: Written,
    watch: Progress,
) -> None:
    total = sum(weights.bytes(name) for name in weights.tensors) or 1
    mark = _free_mark(weights)
    stored: list[TensorProto] = []
    encoded: dict[tuple[str, Use], Encoded] = {}
    done = 0
    for name, tensor in weights.tensors.items():
        for use in chosen.get(name, ()):
            label = f"{name}{mark}{use}{mark}" if len(chosen[name]) > 1 else f"{name}{mark}"
            encoded[name, use] = encode(weights, name, use, label, settings, written)
            stored += encoded[name, use].tensors
        if name not in chosen:
            outside, dims = uses_external_data(tensor), tuple(tensor.dims)
            stored.append(written.add(name, tensor.data_type, dims, weights.raw(name)) if outside else tensor)
        done += weights.bytes(name)
        watch.update(done / total, f"{done / 1e6:.0f} of {total / 1e6:.0f} MB")
    made = _without_weights(weights.model)
    quantized: set[str] = set()
    for node in weights.model.graph.node:
        role = roles.of(node)
        if role in encoded:
            made.graph.node.extend(_nodes(node, encoded[role], settings, mark, quantized))
        elif roles.turned.get(node.output[0]) not in chosen:
            made.graph.node.append(node)
    made.graph.initializer.extend(stored)
    if settings.bits == 4 and MICROSOFT not in {one.domain for one in made.opset_import}:
        made.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    written.finish(made)


def _free_mark(weights: Weights) -> str:
    """What goes between a name and what is added to it, such that the graph has no such name yet."""
    graph = weights.model.graph
    taken = {*weights.tensors, *(value.name for value in graph.input)}
    taken |= {name for node in graph.node for name in node.output}
    mark = "_"
    while any(f"{mark}{part}" in name for name in taken for part in _PARTS):
        mark += "_"
    return mark


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without nodes and weights, and without shapes of values in between, which may no longer hold."""
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


def _nodes(
    node: onnx.NodeProto, weight: Encoded, settings: Settings, mark: str, quantized: set[str]
) -> Iterator[onnx.NodeProto]:
    """What stands for a node that used the weight. `quantized`: activations that are; this node's are added."""
    if weight.use is Use.TABLE:
        yield from _looked_up(node, weight, settings, mark)
        return
    out = node.output[0]
    added = node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] != ""
    product = f"{out}{mark}product" if added else out
    if settings.bits == 4:
        inputs, outputs = weight.dims
        yield helper.make_node(
            "MatMulNBits", [node.input[0], *weight.names], [product], node.name, domain=MICROSOFT,
            K=inputs, N=outputs, bits=4, block_size=settings.block, accuracy_level=4,
        )  # fmt: skip
    else:
        yield from _integer_product(node, weight, product, mark, quantized)
    if added:
        yield helper.make_node("Add", [product, node.input[2]], [out])


def _looked_up(
    node: onnx.NodeProto, weight: Encoded, settings: Settings, mark: str
) -> Iterator[onnx.NodeProto]:
    out, places = node.output[0], node.input[1]
    codes, scales = weight.names
    if settings.bits == 4:
        yield helper.make_node(
            "GatherBlockQuantized", [codes, places, scales], [out], node.name, domain=MICROSOFT,
            gather_axis=0, quantize_axis=1, block_size=settings.block,
        )  # fmt: skip
        return
    yield helper.make_node("Gather", [codes, places], [f"{out}{mark}codes"])
    yield helper.make_node("Gather", [scales, places], [f"{out}{mark}scales"])
    yield helper.make_node("Cast", [f"{out}{mark}codes"], [f"{out}{mark}steps"], to=TensorProto.FLOAT)
    yield helper.make_node("Mul", [f"{out}{mark}steps", f"{out}{mark}scales"], [out], node.name)


def _integer_product(
    node: onnx.NodeProto, weight: Encoded, product: str, mark: str, quantized: set[str]
) -> Iterator[onnx.NodeProto]:
    """Nodes in the form that ONNX Runtime makes one of."""
    x, out = node.input[0], node.output[0]
    codes, scales, zeros = weight.names
    x_codes, x_scale, x_zero = (f"{x}{mark}{part}" for part in ("quantized", "scale", "zero_point"))
    if x not in quantized:  # once for all products that share it
        quantized.add(x)
        yield helper.make_node("DynamicQuantizeLinear", [x], [x_codes, x_scale, x_zero])
    yield helper.make_node(
        "MatMulInteger", [x_codes, codes, x_zero, zeros], [f"{out}{mark}integer"], node.name
    )
    yield helper.make_node("Cast", [f"{out}{mark}integer"], [f"{out}{mark}cast"], to=TensorProto.FLOAT)
    yield helper.make_node("Mul", [x_scale, scales], [f"{out}{mark}scales"])
    yield helper.make_node("Mul", [f"{out}{mark}cast", f"{out}{mark}scales"], [product])
