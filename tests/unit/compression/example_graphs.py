"""Small ONNX graphs and rows for them, made without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from loopwright.compression.artefact import Artefact, save
from loopwright.compression.steps import Work
from loopwright.compression.subject import Rows, Samples, Subject

Array = np.ndarray[Any, Any]

WIDTH, CLASSES = 20, 4


def model_of(
    nodes: Sequence[NodeProto], weights: dict[str, Array], inputs: dict[str, Sequence[int | str]] | None = None,
    output: Sequence[int | str] = ("rows", "numbers"), functions: Sequence[Any] = (), domains: Sequence[str] = (),
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:  # fmt: skip
    """A model whose inputs are of `kind`, `x` (rows, 20) when left out, and whose output is `y`."""
    inputs = inputs or {"x": ("rows", WIDTH)}
    graph = helper.make_graph(
        list(nodes), "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=list(functions))


def linear(weights: Array, *, softmax: bool = True, rows: int | str = "rows") -> onnx.ModelProto:
    """x @ weights, and the softmax of it."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z" if softmax else "y"])]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["z"], ["y"]))
    return model_of(nodes, {"w": weights}, {"x": (rows, len(weights))}, (rows, weights.shape[1]))


def constant(name: str, values: Array) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values))


def branches(then: Sequence[NodeProto], otherwise: Sequence[NodeProto]) -> NodeProto:
    """An `If` on the input `flag`, whose branches answer `then` and `otherwise`."""

    def branch(nodes: Sequence[NodeProto], output: str) -> GraphProto:
        return helper.make_graph(
            list(nodes), output, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
        )

    return helper.make_node(
        "If", ["flag"], ["y"], then_branch=branch(then, "then"), else_branch=branch(otherwise, "otherwise")
    )


def attention(width: int = 8, words: int = 30) -> onnx.ModelProto:
    """Looks tokens up, lets them attend to each other once, and answers with two numbers per row."""
    random = np.random.default_rng(3)
    weights = {
        "table": random.normal(size=(words, width)).astype(np.float32),
        **{name: random.normal(size=(width, width)).astype(np.float32) for name in ("wq", "wk", "wv")},
        "head": random.normal(size=(width, 2)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["h"]),
        *(helper.make_node("MatMul", ["h", f"w{one}"], [one]) for one in "qkv"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"]),
        helper.make_node("MatMul", ["shares", "v"], ["mixed"]),
        helper.make_node("MatMul", ["mixed", "head"], ["each"]),
        constant("axes", np.array([1])),
        helper.make_node("ReduceMean", ["each", "axes"], ["y"], keepdims=0),
    ]
    return model_of(nodes, weights, {"ids": ("rows", "tokens")}, kind=TensorProto.INT64)


def trees() -> onnx.ModelProto:
    """Two stumps on two features: 2 thresholds and 4 leaves."""
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=[0, 0, 0, 1, 1, 1], nodes_nodeids=[0, 1, 2, 0, 1, 2],
        nodes_featureids=[0, 0, 0, 1, 0, 0], nodes_values=[0.5, 0, 0, -0.5, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"] * 2, nodes_truenodeids=[1, 0, 0] * 2,
        nodes_falsenodeids=[2, 0, 0] * 2, nodes_hitrates=[1.0] * 6,
        target_treeids=[0, 0, 1, 1], target_nodeids=[1, 2, 1, 2], target_ids=[0] * 4,
        target_weights=[1.0, 2.0, 3.0, 4.0],
    )  # fmt: skip
    return model_of([node], {}, {"x": ("rows", 2)}, domains=["ai.onnx.ml"])


def linear_samples(rows: int = 300, seed: int = 5) -> tuple[Array, Samples]:
    """Weights (20, 4), and three parts of `rows` rows whose class is the largest of x @ weights for nine of ten."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=(WIDTH, CLASSES)).astype(np.float32)
    x = random.normal(size=(3 * rows, WIDTH)).astype(np.float32)
    y = (x @ weights).argmax(1)
    wrong = random.random(len(y)) < 0.1
    y[wrong] = (y[wrong] + 1) % CLASSES
    parts = [Rows({"x": x[at : at + rows]}, y[at : at + rows]) for at in range(0, 3 * rows, rows)]
    return weights, Samples(*parts)


def linear_subject(folder: Path, **rest: Any) -> Subject:
    """The true weights' subject, judged by accuracy; equal in every process."""
    weights, samples = linear_samples()
    save(linear(weights), folder / "original.onnx")
    return Subject.of("linear", folder / "original.onnx", samples, "accuracy", **rest)


@dataclass(frozen=True)
class Blur:
    """Adds noise to the weights: a step that costs quality."""

    name: ClassVar[str] = "blur"
    size: float = 0.0

    @property
    def bits(self) -> float:
        return 32.0

    def encode(self, source: Artefact, target: Path, work: Work) -> Artefact:
        (work.folder / "scratch").mkdir(exist_ok=True)
        (work.folder / "scratch" / "left.bin").write_bytes(b"left")
        (work.shared / "cooked").open("a").write("once\n")
        work.notes.params({"size": self.size, "kind": "noise"})
        for step in range(3):
            work.notes.metrics({"loss": 1.0 / (step + 1)}, step)
        model = source.load()
        weights = numpy_helper.to_array(model.graph.initializer[0])
        noise = np.random.default_rng(work.seed).normal(size=weights.shape) * self.size
        blurred = numpy_helper.from_array(
            (weights + noise).astype(np.float32), model.graph.initializer[0].name
        )
        model.graph.initializer[0].CopyFrom(blurred)
        return save(model, target)
