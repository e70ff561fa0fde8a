"""Operators around trees that change nothing, taken out: for one row they take as long as some trees."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

_SAME_SHAPE = frozenset(("Sigmoid", "Softmax", "Identity", "Exp", "Neg"))


def tidy(model: onnx.ModelProto) -> None:
    """Take out, in place, an Identity, a Mul by 1 and a Reshape to the shape that is there already; and of two joined
    columns of which only one is gathered, the other. Answers stay as they are; a graph with graphs inside, too."""
    if any(item.HasField("g") or item.graphs for node in model.graph.node for item in node.attribute):
        return
    while _one_less(model):
        pass
    _drop_unused(model)


def _one_less(model: onnx.ModelProto) -> bool:
    graph = model.graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    widths = _widths(model)
    for node in graph.node:
        source = node.input[0] if node.input else ""
        maker = makers.get(source)
        if maker is None or uses[source] != 1:
            continue
        column = _picked(node, constants) if node.op_type == "Gather" else None
        if column is not None:
            chosen = _before_concat(maker, makers, uses, column)
            if chosen is not None:
                _only(graph, node, maker, chosen)
                return True
        if _idle(node, constants, widths):
            place = list(maker.output).index(source)
            maker.output[place] = node.output[0]
            graph.node.remove(node)
            return True
    return False


def _idle(node: onnx.NodeProto, constants: dict[str, Any], widths: dict[str, int]) -> bool:
    if node.op_type == "Identity":
        return True
    other = constants.get(node.input[1]) if len(node.input) == 2 else None
    if other is None:
        return False
    if node.op_type == "Mul":
        return other.size == 1 and other.ndim <= 1 and bool((other == 1).all())
    width = widths.get(node.input[0])
    return node.op_type == "Reshape" and width is not None and other.tolist() == [-1, width]


def _widths(model: onnx.ModelProto) -> dict[str, int]:
    """Columns of the values that are known to be (rows, columns): the trees' scores and what follows from them."""
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type == "TreeEnsemble":
            said = {item.name: item.i for item in node.attribute if item.name == "n_targets"}
            found[node.output[0]] = said.get("n_targets", 1)
        elif node.op_type in _SAME_SHAPE and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _picked(node: onnx.NodeProto, constants: dict[str, Any]) -> int | None:
    """The one column that a Gather takes, kept as a column."""
    at = constants.get(node.input[1])
    axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
    return int(at[0]) if at is not None and axis == 1 and np.shape(at) == (1,) and at[0] >= 0 else None


def _before_concat(
    maker: onnx.NodeProto, makers: dict[str, onnx.NodeProto], uses: Counter[str], column: int
) -> str | None:
    """The column's own name, when `maker` joins single columns, or does so through one sigmoid."""
    joined = maker
    if maker.op_type == "Sigmoid":
        joined = makers.get(maker.input[0], maker)
        if uses[maker.input[0]] != 1:
            return None
    axis = next((item.i for item in joined.attribute if item.name == "axis"), None)
    if joined.op_type != "Concat" or axis != 1 or column >= len(joined.input):
        return None
    single = all((one := makers.get(name)) is not None and _is_column(one, makers) for name in joined.input)
    return str(joined.input[column]) if single else None


def _is_column(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> bool:
    """Whether `node` gives one column: trees of one target, or what is computed from such a column alone."""
    if node.op_type == "TreeEnsemble":
        return any(item.name == "n_targets" and item.i == 1 for item in node.attribute)
    if node.op_type not in ("Neg", "Sub"):
        return False
    before = makers.get(node.input[-1])
    return before is not None and _is_column(before, makers)


def _only(graph: onnx.GraphProto, gather: onnx.NodeProto, maker: onnx.NodeProto, chosen: str) -> None:
    """Let the gathered column be computed alone."""
    kind = "Sigmoid" if maker.op_type == "Sigmoid" else "Identity"
    place = list(graph.node).index(gather)
    graph.node.insert(place, helper.make_node(kind, [chosen], [gather.output[0]]))
    graph.node.remove(gather)


def _drop_unused(model: onnx.ModelProto) -> None:
    """Operators and stored tensors that no answer needs."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    stays = [one for one in graph.initializer if one.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(stays)
