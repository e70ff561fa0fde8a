"""A perceptron for scikit-learn's digits as ONNX, in half a second and without torch."""

import os
import signal
import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from loopwright.compression.constraints import Constraints
from loopwright.compression.ladder import climb
from loopwright.compression.plan import Family, Rung
from loopwright.compression.subject import Rows, Samples, Subject
from loopwright.kernel.progress import Silent

HIDDEN = 256


@cache
def samples() -> Samples:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32), y[order]
    parts = slice(0, 900), slice(900, 1350), slice(1350, None)
    return Samples(*(Rows({"x": x[part]}, y[part]) for part in parts))


def write(path: Path) -> None:
    """Two random layers and a fitted one (Huang et al. 2006), about 100 thousand weights, 0.97 accurate."""
    random, train = np.random.default_rng(1), samples().train
    layers = [
        (random.normal(0, 0.25, (64, HIDDEN)), random.normal(0, 0.1, HIDDEN)),
        (random.normal(0, 0.09, (HIDDEN, HIDDEN)), random.normal(0, 0.1, HIDDEN)),
    ]
    hidden = train.feeds["x"]
    for weights, bias in layers:
        hidden = np.maximum(hidden @ weights + bias, 0)
    last = LogisticRegression(max_iter=200, C=0.1).fit(hidden, train.y)
    layers.append((last.coef_.T, last.intercept_))
    stored, nodes, now = [], [], "x"
    for number, (weights, bias) in enumerate(layers):
        for name, values in ((f"w{number}", weights), (f"b{number}", bias)):
            stored.append(numpy_helper.from_array(values.astype(np.float32), name))
        nodes.append(helper.make_node("Gemm", [now, f"w{number}", f"b{number}"], [f"h{number}"]))
        now = f"h{number}"
        if number < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [now], [f"r{number}"]))
            now = f"r{number}"
    nodes.append(helper.make_node("Softmax", [now], ["p"]))
    onnx.save(_model(nodes, stored), path)


def _model(nodes: list[NodeProto], stored: list[TensorProto]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "digits", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["rows", 10])], stored,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def subject(path: Path) -> Subject:
    return Subject.of("digits", path, samples(), "accuracy")


RUNGS = (
    Rung("fp16", Family.PTQ, ({"step": "fp16"},), 16.0),
    Rung("int8", Family.PTQ, ({"step": "int8-static"},), 8.0),
    Rung("int4", Family.PTQ, ({"step": "weights", "bits": 4},), 4.0),
)


class KilledAt(Silent):
    """A watcher with which the process dies, as by the out-of-memory killer, when the step of this name begins."""

    def __init__(self, name: str) -> None:
        self.name = name

    def step(self, name: str) -> None:
        if self.name in name:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    graph, folder, dies = sys.argv[1:]
    climb(subject(Path(graph)), Constraints(50_000), Path(folder), rungs=RUNGS, watch=KilledAt(dies))
