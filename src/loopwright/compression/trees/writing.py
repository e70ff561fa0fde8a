"""Trees back into an ONNX model, in the form that takes the fewest bytes and answers the same.

Two things make the file small without touching a number. ai.onnx.ml 5 names a branch by its place (no tree and node
numbers, no names of modes as text, no list for leaves), so that parts may be shared. And lists of numbers are written
packed: onnx's own writer puts a tag before every number, while every protobuf reader takes both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from onnx import helper, numpy_helper

from loopwright.compression.artefact import MAX_SINGLE, Artefact, save
from loopwright.compression.session import answer_name, open_session, run
from loopwright.compression.subject import Feeds
from loopwright.compression.trees.ensemble import (
    AGGREGATES,
    DOMAIN,
    MODES,
    OPERATORS,
    TRANSFORMS,
    Array,
    Ensemble,
    nodes_of,
    read,
)
from loopwright.compression.trees.sharing import folded
from loopwright.compression.trees.tidying import tidy

SAME = 1e-5
"""Largest difference, relative to answers above 1, between two forms of the same trees: sums in another order."""
IR_OF_ML_5 = 10


@dataclass(frozen=True, slots=True)
class Written:
    """The file, and which form it took: "flat" (ai.onnx.ml 5) or "listed", as the trees came."""

    artefact: Artefact
    form: str


def write(model: onnx.ModelProto, trees: Sequence[Ensemble], target: Path, feeds: Feeds) -> Written:
    """Write `model` with `trees` in place of its own, one per operator in their order, at `target`.

    The flat form is taken when it is smaller and answers `feeds` as the listed one within SAME. Safe to repeat.
    """
    trees = [folded(one) for one in trees]
    listed = _listed_model(model, trees)
    plain = _packed(listed, target)
    flat = _flat_model(model, trees)
    if flat is None:
        return Written(plain, "listed")
    beside = target.with_name(f"{target.stem}-flat.onnx")
    smaller = _packed(flat, beside)
    if smaller.size < plain.size and _same(plain, smaller, feeds):
        beside.replace(target)
        return Written(Artefact.open(target), "flat")
    beside.unlink()
    return Written(plain, "listed")


def write_for_now(model: onnx.ModelProto, trees: Sequence[Ensemble], target: Path) -> Artefact:
    """As `write`, without looking for what is equal: for a file that is asked once. It answers the same."""
    flat = _flat_model(model, trees)
    return _packed(_listed_model(model, trees) if flat is None else flat, target)


def operator_flat(ensemble: Ensemble, name: str, takes: str, gives: str) -> onnx.NodeProto:
    """One TreeEnsemble of ai.onnx.ml 5; the base is added as trees of one leaf. What is referred to most
    comes first: small numbers take one byte."""
    ensemble = _by_use(_rooted(_with_base(ensemble)))
    told: dict[str, Any] = {}
    if ensemble.missing.any():
        told["nodes_missing_value_tracks_true"] = ensemble.missing.tolist()
    if ensemble.aggregate != "SUM":
        told["aggregate_function"] = AGGREGATES.index(ensemble.aggregate)
    if ensemble.transform != "NONE":
        told["post_transform"] = TRANSFORMS.index(ensemble.transform)
    return helper.make_node(
        "TreeEnsemble", [takes], [gives], name=name, domain=DOMAIN,
        n_targets=ensemble.targets,
        tree_roots=ensemble.roots.tolist(),
        nodes_featureids=ensemble.feature.tolist(),
        nodes_modes=numpy_helper.from_array(ensemble.mode.astype(np.uint8)),
        nodes_splits=numpy_helper.from_array(ensemble.threshold.astype(np.float32)),
        nodes_truenodeids=_place(ensemble.true), nodes_trueleafs=(ensemble.true < 0).astype(int).tolist(),
        nodes_falsenodeids=_place(ensemble.false), nodes_falseleafs=(ensemble.false < 0).astype(int).tolist(),
        leaf_targetids=ensemble.target.tolist(),
        leaf_weights=numpy_helper.from_array(ensemble.weight.astype(np.float32)),
        **told,
    )  # fmt: skip


def operator_listed(ensemble: Ensemble, node: onnx.NodeProto) -> onnx.NodeProto:
    """`node`, of ai.onnx.ml 1 or 3, with these trees: each written out in full, without what is never read."""
    classifier = node.op_type == "TreeEnsembleClassifier"
    prefix = "class" if classifier else "target"
    first = np.searchsorted(ensemble.leaf, np.arange(ensemble.leaves + 1)).tolist()
    true, false = ensemble.true.tolist(), ensemble.false.tolist()
    rows: list[tuple[int, int, int, int, int]] = []
    """tree, number, child (branch or ~leaf), number of true, number of false"""
    for tree, root in enumerate(ensemble.roots.tolist()):
        begin, waiting = len(rows), [(root, -1, 0)]
        while waiting:
            child, parent, side = waiting.pop()
            number = len(rows) - begin
            if parent >= 0:
                old = rows[begin + parent]
                rows[begin + parent] = (*old[:3], *((number, old[4]) if side else (old[3], number)))
            rows.append((tree, number, child, 0, 0))
            if child >= 0:
                waiting += [(false[child], number, 0), (true[child], number, 1)]
    table = np.array(rows, np.int64)
    inner = table[:, 2] >= 0
    branch = np.where(inner, table[:, 2], 0)

    def of(values: Array, blank: Any = 0) -> Array:
        return np.where(inner, values[branch], blank) if len(values) else np.full(len(table), blank)

    ends = table[~inner]
    held = [range(first[~child], first[~child + 1]) for child in ends[:, 2].tolist()]
    stored = np.array([place for part in held for place in part], np.int64)
    per_leaf = np.array([len(part) for part in held])
    told: dict[str, Array] = {
        "nodes_treeids": table[:, 0], "nodes_nodeids": table[:, 1],
        "nodes_truenodeids": table[:, 3], "nodes_falsenodeids": table[:, 4],
        "nodes_featureids": of(ensemble.feature), "nodes_values": of(ensemble.threshold).astype(np.float32),
        "nodes_modes": np.where(inner, np.array(MODES)[of(ensemble.mode)], "LEAF"),
        f"{prefix}_treeids": np.repeat(ends[:, 0], per_leaf), f"{prefix}_nodeids": np.repeat(ends[:, 1], per_leaf),
        f"{prefix}_ids": ensemble.target[stored], f"{prefix}_weights": ensemble.weight[stored].astype(np.float32),
    }  # fmt: skip
    if ensemble.missing.any():
        told["nodes_missing_value_tracks_true"] = of(ensemble.missing)
    fresh = onnx.NodeProto()
    fresh.CopyFrom(node)
    kept = [item for item in node.attribute if not item.name.startswith(("nodes_", f"{prefix}_"))]
    del fresh.attribute[:]
    fresh.attribute.extend(kept)
    for name, values in told.items():
        fresh.attribute.append(helper.make_attribute(name, values.tolist()))
    return fresh


def _by_use(ensemble: Ensemble) -> Ensemble:
    """The same trees, their branches and leaves numbered by how often they are referred to."""
    ends = np.concatenate([ensemble.true, ensemble.false])
    by_branch = np.argsort(-np.bincount(ends[ends >= 0], minlength=ensemble.branches), kind="stable")
    by_leaf = np.argsort(-np.bincount(~ends[ends < 0], minlength=ensemble.leaves), kind="stable")
    branch_at, leaf_at = np.argsort(by_branch), np.argsort(by_leaf)

    def moved(child: Array) -> Array:
        found = np.empty(len(child), np.int64)
        inner = child >= 0
        found[inner], found[~inner] = branch_at[child[inner]], ~leaf_at[~child[~inner]]
        return found

    return replace(
        ensemble, feature=ensemble.feature[by_branch], threshold=ensemble.threshold[by_branch],
        mode=ensemble.mode[by_branch], missing=ensemble.missing[by_branch],
        true=moved(ensemble.true)[by_branch], false=moved(ensemble.false)[by_branch], roots=moved(ensemble.roots),
        target=ensemble.target[by_leaf], weight=ensemble.weight[by_leaf],
    )  # fmt: skip


def _with_base(ensemble: Ensemble) -> Ensemble:
    """The base as one tree of one leaf per target."""
    at = np.flatnonzero(ensemble.base)
    if not len(at):
        return replace(ensemble, base=np.empty(0, np.float32))
    fresh = ensemble.leaves + np.arange(len(at))
    return replace(
        ensemble, roots=np.concatenate([ensemble.roots, ~fresh]), leaf=np.concatenate([ensemble.leaf, fresh]),
        target=np.concatenate([ensemble.target, at]),
        weight=np.concatenate([ensemble.weight, ensemble.base[at]]),
        leaves=ensemble.leaves + len(at), base=np.empty(0, np.float32),
    )  # fmt: skip


def _rooted(ensemble: Ensemble) -> Ensemble:
    """Trees of one leaf as branches with that leaf on both sides: a root has to be a branch."""
    alone = np.unique(ensemble.roots[ensemble.roots < 0])
    if not len(alone):
        return ensemble
    count, mode = len(alone), ensemble.mode[0] if ensemble.branches else 0
    place = {int(leaf): ensemble.branches + at for at, leaf in enumerate(alone)}
    return replace(
        ensemble,
        feature=np.concatenate([ensemble.feature, np.zeros(count, np.int64)]),
        threshold=np.concatenate([ensemble.threshold, np.zeros(count, np.float32)]),
        mode=np.concatenate([ensemble.mode, np.full(count, mode, np.uint8)]),
        missing=np.concatenate([ensemble.missing, np.zeros(count, np.uint8)]),
        true=np.concatenate([ensemble.true, alone]), false=np.concatenate([ensemble.false, alone]),
        roots=np.array([place.get(root, root) for root in ensemble.roots.tolist()], np.int64),
    )  # fmt: skip


def _place(child: Array) -> list[int]:
    return np.where(child >= 0, child, ~child).tolist()  # type: ignore[no-any-return]


def _listed_model(model: onnx.ModelProto, trees: Sequence[Ensemble]) -> onnx.ModelProto:
    fresh = onnx.ModelProto()
    fresh.CopyFrom(model)
    for node, ensemble in zip(nodes_of(fresh), trees, strict=True):
        node.CopyFrom(
            operator_flat(ensemble, node.name, node.input[0], node.output[0])
            if node.op_type == "TreeEnsemble" else operator_listed(ensemble, node)
        )  # fmt: skip
    return fresh


def _flat_model(model: onnx.ModelProto, trees: Sequence[Ensemble]) -> onnx.ModelProto | None:
    """The model with all its operators flat; None where one cannot be."""
    fresh = onnx.ModelProto()
    fresh.CopyFrom(model)
    made: dict[str, list[onnx.NodeProto]] = {}
    for node, ensemble in zip(nodes_of(fresh), trees, strict=True):
        nodes = _flat_nodes(fresh, node, ensemble)
        if nodes is None:
            return None
        made[node.output[-1]] = nodes
    before = list(fresh.graph.node)
    del fresh.graph.node[:]
    for node in before:
        is_trees = node.domain == DOMAIN and node.op_type in OPERATORS
        fresh.graph.node.extend(made[node.output[-1]] if is_trees else [node])
    for opset in fresh.opset_import:
        if opset.domain == DOMAIN:
            opset.version = max(opset.version, 5)
    fresh.ir_version = max(fresh.ir_version, IR_OF_ML_5)
    tidy(fresh)
    return fresh


def _flat_nodes(
    model: onnx.ModelProto, node: onnx.NodeProto, ensemble: Ensemble
) -> list[onnx.NodeProto] | None:
    classifier = node.op_type == "TreeEnsembleClassifier"
    if not ensemble.single:  # one leaf, one number: leaves of several would need a tree for each
        return None
    if ensemble.aggregate != "SUM" and ensemble.base.any():  # one tree more would be averaged with the others
        return None
    if node.op_type == "TreeEnsemble":
        return [operator_flat(ensemble, node.name, node.input[0], node.output[0])]
    if not classifier:
        return _flat_scores(node, ensemble, node.output[0])
    if node.output[0] and _asked(
        model, node.output[0]
    ):  # the label: argument of the largest, with rules of its own
        return None
    ids = np.unique(ensemble.target)
    if ensemble.targets != 2 or len(ids) != 1:
        return _flat_scores(node, ensemble, node.output[1])
    if len(ensemble.base) > 1 or ensemble.transform not in ("NONE", "LOGISTIC"):
        return None
    return _flat_binary(node, ensemble)


def _flat_scores(node: onnx.NodeProto, ensemble: Ensemble, gives: str) -> list[onnx.NodeProto] | None:
    """One number per target, and the transform as an operator behind it: ONNX Runtime 1.31 reads 1 and 2 of
    TreeEnsemble's post_transform the other way round than ONNX says them."""
    if len(ensemble.base) not in (0, ensemble.targets):
        return None
    if ensemble.transform == "NONE":
        return [operator_flat(ensemble, node.name, node.input[0], gives)]
    if ensemble.transform not in ("SOFTMAX", "LOGISTIC"):
        return None
    score = f"{gives}_score"
    behind = (
        helper.make_node("Softmax", [score], [gives], axis=1)
        if ensemble.transform == "SOFTMAX" else helper.make_node("Sigmoid", [score], [gives])
    )  # fmt: skip
    return [operator_flat(replace(ensemble, transform="NONE"), node.name, node.input[0], score), behind]


def _flat_binary(node: onnx.NodeProto, ensemble: Ensemble) -> list[onnx.NodeProto]:
    """Two classes told by one score: (1 - s, s) of shares, else (-s, s), through a sigmoid where there is one."""
    score, both = f"{node.output[1]}_score", f"{node.output[1]}_both"
    other, logistic = f"{node.output[1]}_other", ensemble.transform == "LOGISTIC"
    shares = not logistic and bool((ensemble.weight >= 0).all())
    one = replace(ensemble, target=np.zeros_like(ensemble.target), targets=1, transform="NONE")
    ones = f"{node.output[1]}_ones"
    turned = (
        [
            helper.make_node("Constant", [], [ones], value_floats=[1.0]),
            helper.make_node("Sub", [ones, score], [other]),
        ]
        if shares else [helper.make_node("Neg", [score], [other])]
    )  # fmt: skip
    joined = both if logistic else node.output[1]
    nodes = [
        operator_flat(one, node.name, node.input[0], score), *turned,
        helper.make_node("Concat", [other, score], [joined], axis=1),
    ]  # fmt: skip
    return [*nodes, helper.make_node("Sigmoid", [both], [node.output[1]])] if logistic else nodes


def _asked(model: onnx.ModelProto, name: str) -> bool:
    """Whether a node or the model's answer uses the value."""
    return any(name in node.input for node in model.graph.node) or any(
        value.name == name for value in model.graph.output
    )


def _same(one: Artefact, other: Artefact, feeds: Feeds) -> bool:
    answers = []
    for artefact in (one, other):
        session = open_session(artefact)
        answers.append(
            run(session, answer_name(session, str(artefact.path)), dict(feeds), str(artefact.path))
        )
    if answers[0].shape != answers[1].shape:
        return False
    distance = np.abs(answers[0] - answers[1]) / np.maximum(1.0, np.abs(answers[0]))
    return bool((distance <= SAME).all())


def _packed(model: onnx.ModelProto, path: Path) -> Artefact:
    """Write `model` with packed lists of numbers."""
    if model.ByteSize() > MAX_SINGLE:
        return save(model, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(model))
    return Artefact.open(path)


def packed(model: onnx.ModelProto) -> bytes:
    """The model's bytes with the attributes' numbers packed: without a tag before each."""
    message = _packing()()
    message.ParseFromString(model.SerializeToString())
    return bytes(message.SerializeToString(deterministic=True))


@cache
def _packing() -> Any:
    """ModelProto, of a schema in which the attributes' lists of numbers are packed."""
    schema = descriptor_pb2.FileDescriptorProto()
    onnx.AttributeProto.DESCRIPTOR.file.CopyToProto(schema)
    for message in schema.message_type:
        for one in message.field if message.name == "AttributeProto" else ():
            if one.name in ("ints", "floats"):
                one.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(schema.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("onnx.ModelProto"))


def trees_of(model: onnx.ModelProto) -> list[Ensemble]:
    """The trees of all the model's operators, in their order."""
    return [read(node) for node in nodes_of(model)]
