"""Graphs to quantize, made without torch: an MLP and a CNN with a trained head, a transformer with tied tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge

from loopwright.compression.artefact import save
from loopwright.compression.graphs.running import answers
from loopwright.compression.subject import Array, Rows, Samples, Subject

PIXELS, WORDS, WIDTH, TOKENS = 64, 3000, 64, 12


class Writer:
    """Writes nodes one after the other; each call answers with the name of what it computed."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, Array] = {}

    def weight(self, values: Any, name: str = "") -> str:
        name = name or f"weight_{len(self.weights)}"
        self.weights[name] = np.asarray(values)
        return name

    def then(self, kind: str, *inputs: str, out: str = "", **settings: Any) -> str:
        out = out or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], f"{kind}_{len(self.nodes)}", **settings))
        return out

    def model(self, inputs: Mapping[str, tuple[int, list[Any]]], output: str, opset: int = 18) -> ModelProto:
        graph = helper.make_graph(
            self.nodes, "graph",
            [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(values, name) for name, values in self.weights.items()],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def digits() -> tuple[Array, Array]:
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


def parts(feeds: Mapping[str, Array], y: Array) -> Samples:
    """Two thirds to learn from, a sixth to choose by, a sixth to report."""
    rows, cut, end = Rows(feeds, y), 4 * len(y) // 6, 5 * len(y) // 6
    places = np.arange(len(y))
    return Samples(rows.take(places[:cut]), rows.take(places[cut:end]), rows.take(places[end:]))


def mlp(folder: Path) -> Subject:
    """Digits by two layers of random weights and a head trained on them, all Gemm: 85 thousand weights."""
    x, y = digits()
    random, one, value = np.random.default_rng(3), Writer(), "x"
    inputs = {"x": (TensorProto.FLOAT, ["rows", PIXELS])}
    for before in (PIXELS, 256):
        matrix = random.normal(size=(256, before)) * np.sqrt(2 / before)
        bias = random.normal(size=256).astype(np.float32) * 0.1
        value = one.then("Gemm", value, one.weight(matrix.astype(np.float32)), one.weight(bias), transB=1)
        value = one.then("Relu", value)
    value = headed(one, one.model(inputs, value), value, x, y, folder)
    one.then("Softmax", value, out="y", axis=-1)
    save(one.model(inputs, "y"), folder / "mlp.onnx")
    return Subject.of("mlp", folder / "mlp.onnx", parts({"x": x}, y), "accuracy")


def headed(one: Writer, model: ModelProto, value: str, x: Array, y: Array, folder: Path) -> str:
    """A Gemm behind `value`, fitted by least squares on the first two thirds of the digits; ten scores."""
    head = Ridge(alpha=3.0).fit(answers(model, {"x": x}, folder)[:1198], 10 * np.eye(10)[y[:1198]])
    matrix, bias = head.coef_.T.astype(np.float32), head.intercept_.astype(np.float32)
    return one.then("Gemm", value, one.weight(matrix), one.weight(bias))


def cnn(folder: Path) -> Subject:
    """Digits by two convolutions of random filters and a head trained on what they see; 16 × 8 × 8 inside."""
    x, y = digits()
    random, one = np.random.default_rng(5), Writer()
    value = one.then("Reshape", "x", one.weight(np.array([-1, 1, 8, 8])))
    for before, after in ((1, 32), (32, 64)):
        filters = random.normal(size=(after, before, 3, 3)) / np.sqrt(9 * before)
        bias = one.weight(random.normal(size=after).astype(np.float32) * 0.1)
        value = one.then("Conv", value, one.weight(filters.astype(np.float32)), bias, pads=[1, 1, 1, 1])
        value = one.then("Relu", value)
        value = one.then("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2])
    value = one.then("Flatten", value)
    inputs = {"x": (TensorProto.FLOAT, ["rows", PIXELS])}
    value = headed(one, one.model(inputs, value), value, x, y, folder)
    one.then("Softmax", value, out="y", axis=-1)
    save(one.model(inputs, "y"), folder / "cnn.onnx")
    return Subject.of("cnn", folder / "cnn.onnx", parts({"x": x}, y), "accuracy")


def transformer(folder: Path, *, tied: bool = True, outliers: float = 1.0, width: int = WIDTH) -> Subject:
    """Two blocks of attention and FFN over a table of 3000 words, answering with a score per word.

    tied: the scores are products with the same table. outliers: two channels behind each normalisation are so many
    times larger, and what reads them so many times smaller: the answers stay the same. The truth of a row is what the
    graph itself scores highest, so that its accuracy is 1 and every disagreement is a loss.
    """
    random, one = np.random.default_rng(11), Writer()
    table = one.weight(random.normal(size=(WORDS, width)).astype(np.float32), "table")
    stretch = np.ones(width, np.float32)
    stretch[[3, width - 7]] = outliers

    def dense(rows: int, columns: int, by: Array | None = None) -> str:
        values = random.normal(size=(rows, columns)) / np.sqrt(rows)
        return one.weight((values if by is None else values / by[:, None]).astype(np.float32))

    def normal(value: str) -> str:
        bias = random.normal(size=width).astype(np.float32) * 0.1
        return one.then("LayerNormalization", value, one.weight(stretch), one.weight(bias * stretch), axis=-1)

    def heads(value: str, order: list[int]) -> str:
        shape = one.weight(np.array([0, 0, 4, width // 4]))
        return one.then("Transpose", one.then("Reshape", value, shape), perm=order)

    value = one.then("Gather", table, "ids")
    for _ in range(2):
        seen = normal(value)
        query, key, mixed = (one.then("MatMul", seen, dense(width, width, stretch)) for _ in range(3))
        scores = one.then("MatMul", heads(query, [0, 2, 1, 3]), heads(key, [0, 2, 3, 1]))
        scores = one.then("Mul", scores, one.weight(np.array(0.25, np.float32)))
        mixed = one.then("MatMul", one.then("Softmax", scores, axis=-1), heads(mixed, [0, 2, 1, 3]))
        mixed = one.then("Transpose", mixed, perm=[0, 2, 1, 3])
        mixed = one.then("Reshape", mixed, one.weight(np.array([0, 0, width])))
        value = one.then("Add", value, one.then("MatMul", mixed, dense(width, width)))
        inner = one.then("Relu", one.then("MatMul", normal(value), dense(width, 4 * width, stretch)))
        value = one.then("Add", value, one.then("MatMul", inner, dense(4 * width, width)))
    value = one.then("ReduceMean", value, one.weight(np.array([1])), keepdims=0)
    across = one.then("Transpose", table, perm=[1, 0]) if tied else dense(width, WORDS)
    one.then("MatMul", value, across, out="y")
    model = one.model({"ids": (TensorProto.INT64, ["rows", "tokens"])}, "y")
    ids = random.integers(0, WORDS, size=(600, TOKENS))
    truth = answers(model, {"ids": ids}, folder).argmax(axis=1)
    path = folder / f"transformer-{tied}-{outliers:g}-{width}.onnx"
    save(model, path)
    return Subject.of("transformer", path, parts({"ids": ids}, truth), "accuracy")


def recurrent(folder: Path) -> Subject:
    """Digits read row by row by an LSTM in both directions, of random weights, and a head trained on its last state."""
    x, y = digits()
    random, one = np.random.default_rng(4), Writer()
    seen = one.then("Reshape", "x", one.weight(np.array([-1, 8, 8])))
    seen = one.then("Transpose", seen, perm=[1, 0, 2])
    shapes = (2, 4 * 96, 8), (2, 4 * 96, 96), (2, 8 * 96)
    parts_of = [one.weight((random.normal(size=shape) / np.sqrt(24)).astype(np.float32)) for shape in shapes]
    one.nodes.append(
        helper.make_node("LSTM", [seen, *parts_of], ["all", "last"], "LSTM", hidden_size=96, direction="bidirectional")
    )  # fmt: skip
    last = one.then("Transpose", "last", perm=[1, 0, 2])
    last = one.then("Reshape", last, one.weight(np.array([0, 192])))
    inputs = {"x": (TensorProto.FLOAT, ["rows", PIXELS])}
    value = headed(one, one.model(inputs, last), last, x, y, folder)
    one.then("Softmax", value, out="y", axis=-1)
    save(one.model(inputs, "y"), folder / "recurrent.onnx")
    return Subject.of("recurrent", folder / "recurrent.onnx", parts({"x": x}, y), "accuracy")
