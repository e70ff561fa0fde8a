"""Weights and activations as 8-bit integers, written as ONNX nodes: what dynamic, static, mixed and smooth share.

Weights are signed, symmetric, with a scale per output channel; activations unsigned with a zero point per tensor.
Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference" (2018).
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

from loopwright.compression.graphs.calibrating import Ranges
from loopwright.compression.graphs.preparing import (
    Layer,
    add_weight,
    attribute,
    infer_types,
    name_nodes,
    replace_nodes,
    transposed_twins,
    weights,
)
from loopwright.compression.graphs.running import float_tensors
from loopwright.compression.steps import CannotExport
from loopwright.compression.subject import Array

FULL, REDUCED = 127, 64
"""Largest absolute integer of a weight; the smaller one keeps sums of pairs in 16 bits on CPUs without VNNI."""
CHAIN = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool",
    "GlobalAveragePool", "Concat", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Resize", "Pad", "Split",
    "Slice",
)  # fmt: skip
"""What ONNX Runtime computes on 8-bit numbers from end to end in a convolutional network."""
ALONE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""What is worth it where normalisations and attention lie between: only products with weights."""
EXACT = frozenset(("Softmax", "LogSoftmax", "Sigmoid", "Tanh", "ArgMax"))
"""Answers come out of these: what goes in is not rounded once more."""


def by_channel(values: Array, axis: int, largest: int = FULL) -> tuple[Array, Array]:
    """`values` as int8 and the scale (float32) of each place on `axis`: values ≈ integers × scale."""
    others = tuple(one for one in range(values.ndim) if one != axis % values.ndim)
    top = np.abs(values).max(axis=others, keepdims=True).astype(np.float64)
    scale = np.where(top > 0, top / largest, 1.0)
    whole = np.clip(np.rint(values / scale), -largest, largest).astype(np.int8)
    return whole, scale.reshape(-1).astype(np.float32)


def split_gemms(model: ModelProto) -> None:
    """Write each Gemm with a constant weight as MatMul and Add, alpha and beta within its constants."""
    known, nodes = weights(model), list[NodeProto]()
    made: dict[tuple[str, int, float], str] = {}
    for node in model.graph.node:
        weight = known.get(node.input[1]) if node.op_type == "Gemm" else None
        if weight is None or weight.data_type != TensorProto.FLOAT or attribute(node, "transA", 0):
            nodes.append(node)
            continue
        alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
        key = (weight.name, attribute(node, "transB", 0), alpha)
        if key not in made:
            values = numpy_helper.to_array(weight)
            values = np.float32(alpha) * (values.T if key[1] else values)
            plain = not key[1] and alpha == 1.0
            made[key] = weight.name if plain else add_weight(model, f"{weight.name}::by_{len(made)}", values)
        biased = len(node.input) > 2 and bool(node.input[2])
        product = f"{node.output[0]}::product" if biased else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], made[key]], [product], node.name))
        if not biased:
            continue
        bias = node.input[2]
        if beta != 1.0:
            factor = add_weight(model, f"{node.name}::beta", np.array(beta, np.float32))
            nodes.append(
                helper.make_node("Mul", [bias, factor], [f"{bias}::{node.name}"], f"{node.name}::beta")
            )
            bias = f"{bias}::{node.name}"
        nodes.append(helper.make_node("Add", [product, bias], [node.output[0]], f"{node.name}::bias"))
    replace_nodes(model, nodes)
    name_nodes(model)
    infer_types(model)


def encode_products(model: ModelProto, chosen: Collection[Layer], largest: int = FULL) -> None:
    """Make the MatMul of each of `chosen` a product of integers; the range of what comes in is found at each call.

    That range is one per tensor: an answer depends, within the rounding, on what else is in the batch.
    """
    names = {one.name for one in chosen}
    known, stored, rounded, nodes = weights(model), {}, set(), []
    for node in model.graph.node:
        if node.name not in names:
            nodes.append(node)
            continue
        given, weight = node.input[0], node.input[1]
        if weight not in stored:
            whole, scale = by_channel(numpy_helper.to_array(known[weight]), 1, largest)
            stored[weight] = (
                add_weight(model, f"{weight}::int8", whole), add_weight(model, f"{weight}::scale", scale),
                add_weight(model, f"{weight}::zero", np.zeros(len(scale), np.int8)),
            )  # fmt: skip
        whole_name, scale_name, zero_name = stored[weight]
        if given not in rounded:
            rounded.add(given)
            parts = [f"{given}::uint8", f"{given}::delta", f"{given}::origin"]
            nodes.append(helper.make_node("DynamicQuantizeLinear", [given], parts, f"{given}::rounding"))
        out, name = node.output[0], node.name
        nodes += [
            helper.make_node("Mul", [f"{given}::delta", scale_name], [f"{out}::steps"], f"{name}::steps"),
            helper.make_node(
                "MatMulInteger", [f"{given}::uint8", whole_name, f"{given}::origin", zero_name], [f"{out}::whole"], name
            ),
            helper.make_node("Cast", [f"{out}::whole"], [f"{out}::float"], f"{name}::cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{out}::float", f"{out}::steps"], [out], f"{name}::scaled"),
        ]  # fmt: skip
    replace_nodes(model, nodes)


def encode_recurrent(model: ModelProto, chosen: Collection[Layer], largest: int = FULL) -> None:
    """Make each LSTM of `chosen` one on integers, with a scale per gate and unit; ranges are found at each call."""
    names = {one.name for one in chosen}
    known, nodes = weights(model), list[NodeProto]()
    for node in model.graph.node:
        if node.name not in names:
            nodes.append(node)
            continue
        encoded, extra = [], []
        for place in (1, 2):
            values = numpy_helper.to_array(known[node.input[place]])
            directions, units, width = values.shape
            whole, scale = by_channel(values.reshape(directions * units, width), 0, largest)
            name = f"{node.name}::{place}"
            turned = whole.reshape(values.shape).transpose(0, 2, 1)
            encoded.append(add_weight(model, f"{name}::int8", turned))
            extra += [
                add_weight(model, f"{name}::scale", scale.reshape(directions, units)),
                add_weight(model, f"{name}::zero", np.zeros((directions, units), np.int8)),
            ]
        given = [*node.input, *[""] * (8 - len(node.input))]
        made = helper.make_node(
            "DynamicQuantizeLSTM", [given[0], *encoded, *given[3:8], *extra], list(node.output), node.name,
            domain="com.microsoft",
        )  # fmt: skip
        made.attribute.extend(item for item in node.attribute if item.name != "layout")
        nodes.append(made)
    replace_nodes(model, nodes)


def encode_tables(model: ModelProto, chosen: Collection[Layer]) -> None:
    """Store the table of each Gather of `chosen` as int8 with a scale per row; rows are scaled after the look-up."""
    names = {one.name for one in chosen}
    known, stored, nodes = weights(model), {}, []
    for node in model.graph.node:
        if node.name not in names:
            nodes.append(node)
            continue
        table = node.input[0]
        if table not in stored:
            whole, scale = by_channel(numpy_helper.to_array(known[table]), 0)
            stored[table] = (
                add_weight(model, f"{table}::rows_int8", whole),
                add_weight(model, f"{table}::row_scale", scale.reshape(-1, 1)),
            )
        out, name = node.output[0], node.name
        nodes += [
            helper.make_node("Gather", [stored[table][0], node.input[1]], [f"{out}::whole"], name, axis=0),
            helper.make_node("Gather", [stored[table][1], node.input[1]], [f"{out}::step"], f"{name}::step", axis=0),
            helper.make_node("Cast", [f"{out}::whole"], [f"{out}::float"], f"{name}::cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{out}::float", f"{out}::step"], [out], f"{name}::scaled"),
        ]  # fmt: skip
    replace_nodes(model, nodes)


def is_chain(model: ModelProto) -> bool:
    """Whether 8-bit numbers may flow from layer to layer: no normalisation and no attention in between."""
    kinds, known = {node.op_type for node in model.graph.node}, weights(model)
    if any(node.op_type == "MatMul" and not known.keys() & set(node.input) for node in model.graph.node):
        return False
    return not kinds & {
        "LayerNormalization",
        "SimplifiedLayerNormalization",
        "RMSNormalization",
        "Erf",
        "Gelu",
    }


def activations(model: ModelProto) -> list[str]:
    """The tensors whose ranges `encode_static` needs, in the graph's order. Needs inferred types."""
    kinds = CHAIN if is_chain(model) else ALONE
    read = {
        name for node in model.graph.node if node.op_type in kinds for name in (*node.input, *node.output)
    }
    return [name for name in float_tensors(model) if name in read]


def encode_static(
    model: ModelProto, found: Ranges, tables: Collection[Layer], kept: Sequence[str] = (), largest: int = FULL
) -> ModelProto:
    """The graph with QuantizeLinear and DequantizeLinear around what is computed on 8-bit numbers.

    found: range of each activation. tables: look-ups to encode as well. kept: nodes to leave as they are. What leaves
    the graph, and what a softmax is taken of, stays in full precision. `model` itself is used up.
    """
    _part_axes(model)
    chain, ties = is_chain(model), _ties(model)
    encode_tables(model, tables)
    infer_types(model)
    known = weights(model)
    loose = [
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] not in known
    ]
    tensors = TensorsData(
        CalibrationMethod.MinMax,
        {name: (np.float32(low), np.float32(high)) for name, (low, high) in found.items()},
    )
    mark = model.metadata_props.add()
    # Without it the quantizer would write the model to /tmp to infer types once more.
    mark.key, mark.value = "onnx.infer", "onnxruntime.quant"
    options = {} if chain else {"OpTypesToExcludeOutputQuantization": list(ALONE)}
    try:
        quantizer = QDQQuantizer(
            model, True, largest == REDUCED, QuantType.QInt8, QuantType.QUInt8, tensors, [], [*kept, *loose],
            list(CHAIN if chain else ALONE), options,
        )  # fmt: skip
        quantizer.quantize_model()
    except Exception as error:  # its errors share no base class
        raise CannotExport(
            f"ONNX Runtime's quantizer does not take the graph ({str(error)[:500]})"
        ) from error
    made: ModelProto = quantizer.model.model
    kept_props = [one for one in made.metadata_props if one.key != "onnx.infer"]
    del made.metadata_props[:]
    made.metadata_props.extend(kept_props)
    _tie(made, ties)
    _free_answers(made)
    return made


def _part_axes(model: ModelProto) -> None:
    """Copy a weight that is multiplied with both as it stands and transposed.

    Its channels are other ones each time, and the quantizer would give it the scales of one.
    """
    by_row = {
        node.input[1] for node in model.graph.node if node.op_type == "Gemm" and attribute(node, "transB", 0)
    }
    known = weights(model)
    for node in model.graph.node:
        turned = node.op_type == "Gemm" and attribute(node, "transB", 0)
        if node.op_type not in ("MatMul", "Gemm") or turned or node.input[1] not in by_row:
            continue
        name = f"{node.input[1]}::columns"
        if name not in known:
            add_weight(model, name, numpy_helper.to_array(known[node.input[1]]))
            known = weights(model)
        node.input[1] = name


def _ties(model: ModelProto) -> dict[str, str]:
    """Weights of products → the table whose rows are the product's channels: equal to it, or it transposed."""
    twins = transposed_twins(model)
    tables = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    found = {}
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        weight, turned = node.input[1], bool(attribute(node, "transB", 0))
        if weight in twins and not turned:
            found[weight] = twins[weight]
        elif weight in tables and turned:
            found[weight] = weight
    return found


def _tie(model: ModelProto, ties: Mapping[str, str]) -> None:
    """Give tables the integers that the quantizer chose for the same weight in a product, so that they are stored once.

    ties: as `_ties` finds them.
    """
    known = weights(model)
    axes = {
        node.input[0]: attribute(node, "axis", 1)
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }
    for weight, table in ties.items():
        names = f"{weight}_quantized", f"{weight}_scale", f"{table}::rows_int8", f"{table}::row_scale"
        by_row = axes.get(names[0]) == (0 if weight == table else 1)
        if not by_row or not all(name in known for name in names):
            continue
        whole = numpy_helper.to_array(known[names[0]])
        whole = whole if weight == table else whole.T
        scale = numpy_helper.to_array(known[names[1]]).reshape(-1, 1)
        assert list(scale.shape) == list(
            known[names[3]].dims
        )  # a channel of the product is a row of the table
        known[names[2]].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(whole), names[2]))
        known[names[3]].CopyFrom(numpy_helper.from_array(scale, names[3]))


def _free_answers(model: ModelProto) -> None:
    """Take the rounding away from the graph's outputs and from what a softmax is taken of."""
    producer = {name: node for node in model.graph.node for name in node.output}
    asked = {value.name for value in model.graph.output}
    ends = asked | {name for node in model.graph.node if node.op_type in EXACT for name in node.input if name}
    gone: list[NodeProto] = []
    renamed: dict[str, str] = {}
    for name in sorted(ends):
        dequantize = producer.get(name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        quantize = producer.get(dequantize.input[0])
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        gone.append(dequantize)
        readers = [node for node in model.graph.node if dequantize.input[0] in node.input]
        if len(readers) == 1:
            gone.append(quantize)
        if name in asked:
            renamed[quantize.input[0]] = name
        else:
            renamed[name] = quantize.input[0]
    left = {id(node) for node in gone}
    nodes = [node for node in model.graph.node if id(node) not in left]
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        for place, name in enumerate(node.output):
            node.output[place] = renamed.get(name, name)
    replace_nodes(model, nodes)
