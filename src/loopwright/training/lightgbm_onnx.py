"""LightGBM's model text → one ONNX tree ensemble that answers as LightGBM does for float32 features.

Two things differ from the usual converters. LightGBM's thresholds are doubles: for a float32 x, x ≤ t holds
exactly when x ≤ the largest float32 not above t, so thresholds are rounded down, never to nearest (a row that
sits on a split would go the wrong way). And a split that saw no missing value in training treats NaN as 0, as
LightGBM does.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from loopwright.kernel.errors import BadInput

Array = np.ndarray[Any, Any]

_CATEGORICAL, _DEFAULT_LEFT = 1, 2
_MISSING_NONE, _MISSING_ZERO, _MISSING_NAN = 0, 1, 2
_IDENTITY = frozenset(
    {"regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "custom"}
)
_EXPONENTIAL = frozenset({"poisson", "gamma", "tweedie"})


def float32_not_above(values: Array) -> Array:
    """The largest float32 not above each double, as float32; infinities stay."""
    wide = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        near = wide.astype(np.float32)
        return np.where(near.astype(np.float64) > wide, np.nextafter(near, np.float32(-np.inf)), near)


def lightgbm_to_onnx(booster: Any) -> ModelProto:
    """Graph with input `features` float32 (n, f) and output `outputs` float32 (n, 1 or classes), opset 17 /
    ml 3.

    Binary answers the probability of class 1, multiclass one probability per class. Uses the booster's best
    iteration where it has one, as its own `predict` does. Raises BadInput for what the graph cannot hold:
    categorical splits, linear trees, zero_as_missing, unknown objectives.
    """
    header, trees = _parse(booster.model_to_string())
    outputs = int(header["num_tree_per_iteration"])
    scale = outputs / max(len(trees), 1) if "average_output" in header else 1.0
    attributes = _ensemble([_Tree.read(tree) for tree in trees], outputs, scale)
    ensemble = helper.make_node(
        "TreeEnsembleRegressor",
        ["features"],
        ["scores"],
        domain="ai.onnx.ml",
        n_targets=outputs,
        **attributes,
    )
    nodes = [ensemble, *_link(header.get("objective", "custom"))]
    graph = helper.make_graph(
        nodes,
        "lightgbm",
        [
            helper.make_tensor_value_info(
                "features", TensorProto.FLOAT, ["n", int(header["max_feature_idx"]) + 1]
            )
        ],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["n", outputs])],
        [helper.make_tensor("slope", TensorProto.FLOAT, [1], [_slope(header.get("objective", ""))])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="loopwright")


@dataclass(frozen=True, slots=True)
class _Tree:
    """Internal nodes by index; children ≥ 0 are internal nodes, ~i is leaf i. `below[i]`: NaN goes left."""

    feature: Array
    threshold: Array
    below: Array
    left: Array
    right: Array
    leaves: Array

    @classmethod
    def read(cls, lines: Mapping[str, str]) -> "_Tree":
        if lines.get("is_linear", "0") != "0":
            raise _unsupported("linear trees", "Train without linear_tree.")
        leaves = _numbers(lines["leaf_value"], np.float64)
        if int(lines["num_leaves"]) == 1:
            empty = np.empty(0, dtype=np.int64)
            return cls(empty, empty.astype(np.float32), empty.astype(bool), empty, empty, leaves)
        kinds = _numbers(lines["decision_type"], np.int64)
        missing = (kinds >> 2) & 3
        if (kinds & _CATEGORICAL).any():
            raise _unsupported("categorical splits", "Encode categories as numbers in the transform.")
        if (missing == _MISSING_ZERO).any():
            raise _unsupported("zero_as_missing", "Train without it.")
        threshold = float32_not_above(_numbers(lines["threshold"], np.float64))
        default_left = (kinds & _DEFAULT_LEFT) > 0
        return cls(
            feature=_numbers(lines["split_feature"], np.int64),
            threshold=threshold,
            below=np.where(missing == _MISSING_NAN, default_left, threshold >= 0),
            left=_numbers(lines["left_child"], np.int64),
            right=_numbers(lines["right_child"], np.int64),
            leaves=leaves,
        )


def _parse(text: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    head, *rest = re.split(r"^Tree=\d+\n", text.split("\nend of trees")[0], flags=re.MULTILINE)
    return _pairs(head), [_pairs(part) for part in rest]


def _pairs(text: str) -> dict[str, str]:
    return {key: value for key, _, value in (line.partition("=") for line in text.splitlines() if line)}


def _numbers(text: str, dtype: Any) -> Array:
    return np.array(text.split(), dtype=np.float64).astype(dtype)


def _ensemble(trees: list[_Tree], outputs: int, scale: float) -> dict[str, Any]:
    """Attributes of TreeEnsembleRegressor; within a tree, internal nodes come first, then leaves."""
    nodes: dict[str, list[Array]] = {}
    targets: dict[str, list[Array]] = {}
    modes: list[str] = []
    for number, tree in enumerate(trees):
        inner, leaves = len(tree.feature), len(tree.leaves)
        blank = np.zeros(leaves, dtype=np.int64)

        def place(child: Array, inner: int = inner) -> Array:
            return np.where(child >= 0, child, inner + ~child)

        columns = {
            "nodes_treeids": np.full(inner + leaves, number),
            "nodes_nodeids": np.arange(inner + leaves),
            "nodes_featureids": np.concatenate([tree.feature, blank]),
            "nodes_values": np.concatenate([tree.threshold, blank.astype(np.float32)]),
            "nodes_hitrates": np.ones(inner + leaves, dtype=np.float32),
            "nodes_truenodeids": np.concatenate([place(tree.left), blank]),
            "nodes_falsenodeids": np.concatenate([place(tree.right), blank]),
            "nodes_missing_value_tracks_true": np.concatenate([tree.below.astype(np.int64), blank]),
        }
        modes += ["BRANCH_LEQ"] * inner + ["LEAF"] * leaves
        for name, values in columns.items():
            nodes.setdefault(name, []).append(values)
        answers = {
            "target_treeids": np.full(leaves, number),
            "target_nodeids": inner + np.arange(leaves),
            "target_ids": np.full(leaves, number % outputs),
            "target_weights": (tree.leaves * scale).astype(np.float32),
        }
        for name, values in answers.items():
            targets.setdefault(name, []).append(values)
    joined = {name: np.concatenate(parts).tolist() for name, parts in {**nodes, **targets}.items()}
    return {**joined, "nodes_modes": modes, "aggregate_function": "SUM", "post_transform": "NONE"}


def _link(objective: str) -> list[Any]:
    """Nodes from raw scores to outputs; LightGBM names the objective first, then its settings."""
    kind = objective.split(" ")[0]
    if kind in ("binary", "multiclassova", "cross_entropy"):
        scaled = helper.make_node("Mul", ["scores", "slope"], ["scaled"])
        return [scaled, helper.make_node("Sigmoid", ["scaled"], ["outputs"])]
    if kind == "multiclass":
        return [helper.make_node("Softmax", ["scores"], ["outputs"], axis=1)]
    if kind in _EXPONENTIAL:
        return [helper.make_node("Exp", ["scores"], ["outputs"])]
    if kind in _IDENTITY and "sqrt" not in objective.split(" "):
        return [helper.make_node("Identity", ["scores"], ["outputs"])]
    raise _unsupported(f"the objective `{objective}`", "Return an onnx.ModelProto from train() instead.")


def _slope(objective: str) -> float:
    found = re.search(r"sigmoid:([0-9.eE+-]+)", objective)
    return float(found.group(1)) if found else 1.0


def _unsupported(what: str, next: str) -> BadInput:
    return BadInput(f"cannot export {what}", where="LightGBM to ONNX", next=next)
