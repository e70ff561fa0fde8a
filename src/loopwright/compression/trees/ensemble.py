"""Trees of an ONNX model as arrays: read from every form of the operator, asked in numpy, changed without side effects.

A branch has two children: a number from 0 on is a branch, ~number a leaf. A leaf may be the child of several branches.
Operators: TreeEnsembleRegressor and TreeEnsembleClassifier (ai.onnx.ml 1 and 3), TreeEnsemble (ai.onnx.ml 5).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from loopwright.compression.steps import CannotExport

Array = np.ndarray[Any, Any]

DOMAIN = "ai.onnx.ml"
OPERATORS = ("TreeEnsembleRegressor", "TreeEnsembleClassifier", "TreeEnsemble")
MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
"""By their number in ai.onnx.ml 5; 6, membership of a set, is not taken."""
NOT_EQUAL = 5
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
CELLS = 4_000_000
"""Rows × trees that are walked at once."""


@dataclass(frozen=True, slots=True)
class Ensemble:
    """One operator's trees.

    Per branch: feature, threshold, mode (place in MODES), true and false (children), missing (1: NaN goes to `true`).
    roots: one child per tree. Per stored weight, in the order of the leaves: leaf, target, weight; a leaf may have
    several. base: added per target, or once, or empty.
    """

    feature: Array
    threshold: Array
    mode: Array
    true: Array
    false: Array
    missing: Array
    roots: Array
    leaf: Array
    target: Array
    weight: Array
    leaves: int
    targets: int
    base: Array
    aggregate: str
    transform: str

    @property
    def branches(self) -> int:
        return len(self.feature)

    @property
    def trees(self) -> int:
        return len(self.roots)

    @property
    def single(self) -> bool:
        """Whether every leaf has one weight, as in boosted models."""
        return len(self.leaf) == self.leaves and bool((self.leaf == np.arange(self.leaves)).all())

    def walk(self, x: Array) -> Array:
        """Where rows `x` (n, features) end: int32 (n, trees), leaf by number."""
        parts = max(1, CELLS // max(1, self.trees))
        found = [self._walk(x[at : at + parts]) for at in range(0, len(x), parts)]
        return np.concatenate(found) if found else np.empty((0, self.trees), np.int32)

    def _walk(self, x: Array) -> Array:
        at = np.tile(self.roots, len(x))
        moving = np.flatnonzero(at >= 0)
        for _ in range(self.branches + 1):
            if not len(moving):
                return (~at).astype(np.int32).reshape(len(x), self.trees)
            branch = at[moving]
            values = x[moving // self.trees, self.feature[branch]]
            at[moving] = np.where(self._passes(branch, values), self.true[branch], self.false[branch])
            moving = moving[at[moving] >= 0]
        raise CannotExport("a tree that comes back to itself", where="tree ensemble")

    def _passes(self, branch: Array, values: Array) -> Array:
        threshold, mode = self.threshold[branch], self.mode[branch]
        answers = values <= threshold
        for number, test in (
            (1, np.less), (2, np.greater_equal), (3, np.greater), (4, np.equal), (5, np.not_equal)
        ):  # fmt: skip
            chosen = mode == number
            if chosen.any():
                answers[chosen] = test(values[chosen], threshold[chosen])
        blank = np.isnan(values)
        if not blank.any():
            return answers
        # NaN differs from every threshold, whatever is said about missing values.
        return np.where(blank, (self.missing[branch] > 0) | (mode == NOT_EQUAL), answers)

    def visits(self, x: Array) -> tuple[Array, Array]:
        """How often rows `x` come by each branch's `true` and `false` side: two of int64 (branches,)."""
        counts = np.zeros((2, self.branches), np.int64)
        parts = max(1, CELLS // max(1, self.trees))
        for start in range(0, len(x), parts):
            rows = x[start : start + parts]
            at = np.tile(self.roots, len(rows))
            moving = np.flatnonzero(at >= 0)
            while len(moving):
                branch = at[moving]
                passes = self._passes(branch, rows[moving // self.trees, self.feature[branch]])
                counts[0] += np.bincount(branch[passes], minlength=self.branches)
                counts[1] += np.bincount(branch[~passes], minlength=self.branches)
                at[moving] = np.where(passes, self.true[branch], self.false[branch])
                moving = moving[at[moving] >= 0]
        return counts[0], counts[1]

    def sums(self, ends: Array) -> Array:
        """Weights summed over the trees of `ends` (n, trees), leaf by number: float64 (n, targets), no base."""
        first = np.searchsorted(self.leaf, np.arange(self.leaves + 1))
        flat = ends.ravel().astype(np.int64)
        count = first[flat + 1] - first[flat]
        stored = (
            np.repeat(first[flat], count)
            + np.arange(count.sum())
            - np.repeat(np.cumsum(count) - count, count)
        )
        row = np.repeat(np.repeat(np.arange(len(ends)), ends.shape[1]), count)
        totals = np.bincount(
            row * self.targets + self.target[stored], self.weight[stored], minlength=len(ends) * self.targets
        )
        return np.asarray(totals.reshape(len(ends), self.targets))

    def tree_targets(self) -> Array:
        """Per tree the one target its leaves write to, -1 for several: what tells rounds of boosting apart."""
        lowest = np.full(self.leaves, self.targets, np.int64)
        highest = np.full(self.leaves, -1, np.int64)
        np.minimum.at(lowest, self.leaf, self.target)
        np.maximum.at(highest, self.leaf, self.target)
        found = np.full(self.trees, -1, np.int64)
        for number, reached in enumerate(self._reached()):
            low, high = lowest[reached].min(), highest[reached].max()
            found[number] = low if low == high else -1
        return found

    def _reached(self) -> list[Array]:
        """Per tree its leaves."""
        found = []
        for root in self.roots:
            level, leaves = np.array([root]), []
            while len(level):
                leaves.append(~level[level < 0])
                inner = np.unique(level[level >= 0])
                level = np.concatenate([self.true[inner], self.false[inner]])
            found.append(np.unique(np.concatenate(leaves)))
        return found

    def with_trees(self, kept: Array) -> "Ensemble":
        """Only the trees at `kept`, without what no other tree uses."""
        return replace(self, roots=self.roots[kept]).trimmed()

    def trimmed(self) -> "Ensemble":
        """Without branches and leaves that no root leads to; children keep their order."""
        used = np.zeros(self.branches, bool)
        level = np.unique(self.roots[self.roots >= 0])
        while len(level):
            used[level] = True
            below = np.unique(np.concatenate([self.true[level], self.false[level]]))
            below = below[below >= 0]
            level = below[~used[below]]
        ends = np.concatenate([self.roots, self.true[used], self.false[used]])
        held = np.zeros(self.leaves, bool)
        held[~ends[ends < 0]] = True
        branch_at, leaf_at = np.cumsum(used) - 1, np.cumsum(held) - 1
        stays = held[self.leaf]

        def moved(child: Array) -> Array:
            inner = child >= 0
            at = np.empty(len(child), np.int64)
            at[inner], at[~inner] = branch_at[child[inner]], ~leaf_at[~child[~inner]]
            return at

        return replace(
            self, feature=self.feature[used], threshold=self.threshold[used], mode=self.mode[used],
            true=moved(self.true[used]), false=moved(self.false[used]), missing=self.missing[used],
            roots=moved(self.roots), leaf=leaf_at[self.leaf[stays]], target=self.target[stays],
            weight=self.weight[stays], leaves=int(held.sum()),
        )  # fmt: skip


def nodes_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The model's tree operators. Raises CannotExport where there is none."""
    found = [node for node in model.graph.node if node.domain == DOMAIN and node.op_type in OPERATORS]
    if not found:
        raise CannotExport(
            "the model holds no trees", where="tree ensemble",
            got=", ".join(sorted({node.op_type for node in model.graph.node})), wanted=" or ".join(OPERATORS),
        )  # fmt: skip
    return found


def read(node: onnx.NodeProto) -> Ensemble:
    """The trees of one operator. Raises CannotExport for sets, thresholds wider than float32, and broken trees."""
    said = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return _read_flat(said) if node.op_type == "TreeEnsemble" else _read_listed(node, said)


def _read_listed(node: onnx.NodeProto, said: dict[str, Any]) -> Ensemble:
    """Of ai.onnx.ml 1 and 3: branches and leaves in one list, named by tree and number."""
    if wide := [name for name in said if name.endswith("_as_tensor")]:
        raise CannotExport("trees of float64", where=node.op_type, got=", ".join(wide), wanted="float32")
    classifier = node.op_type == "TreeEnsembleClassifier"
    prefix = "class" if classifier else "target"
    kinds = np.array([mode.decode() for mode in said.get("nodes_modes", ())])
    inner = kinds != "LEAF"
    if foreign := sorted(set(kinds[inner]) - set(MODES)):
        raise CannotExport("a split of an unknown kind", where=node.op_type, got=", ".join(foreign))
    tree, number = _ints(said, "nodes_treeids"), _ints(said, "nodes_nodeids")
    width = int(number.max(initial=0)) + 1
    key = tree * width + number
    order = np.argsort(key, kind="stable")
    branch_at, leaf_at = np.cumsum(inner) - 1, np.cumsum(~inner) - 1
    names = np.where(inner, branch_at, ~leaf_at)

    def named(trees: Array, numbers: Array) -> Array:
        wanted = trees * width + numbers
        place = np.minimum(np.searchsorted(key[order], wanted), len(key) - 1)
        if len(wanted) and (not len(key) or (key[order][place] != wanted).any()):
            raise CannotExport("a tree refers to nodes that are not there", where=node.op_type)
        return np.asarray(order[place])

    true = named(tree[inner], _ints(said, "nodes_truenodeids")[inner])
    false = named(tree[inner], _ints(said, "nodes_falsenodeids")[inner])
    root = np.ones(len(key), bool)
    root[true] = root[false] = False
    if len(np.unique(tree[root])) != root.sum() or root.sum() != len(np.unique(tree)):
        raise CannotExport("a tree without exactly one root", where=node.op_type)
    if (np.bincount(np.concatenate([true, false]), minlength=len(key)) > 1).any():
        raise CannotExport("a node with two parents", where=node.op_type)
    leaf = leaf_at[named(_ints(said, f"{prefix}_treeids"), _ints(said, f"{prefix}_nodeids"))]
    by_leaf = np.argsort(leaf, kind="stable")
    missing = _ints(said, "nodes_missing_value_tracks_true")
    labels = said.get("classlabels_int64s") or said.get("classlabels_strings") or ()
    roots = np.flatnonzero(root)
    return Ensemble(
        feature=_ints(said, "nodes_featureids")[inner],
        threshold=np.array(said.get("nodes_values", ()), np.float32)[inner],
        mode=np.array([MODES.index(kind) for kind in kinds[inner]], np.uint8),
        true=names[true], false=names[false],
        missing=(missing[inner] if len(missing) else np.zeros(inner.sum())).astype(np.uint8),
        roots=names[roots[np.argsort(tree[roots], kind="stable")]],
        leaf=leaf[by_leaf], target=_ints(said, f"{prefix}_ids")[by_leaf],
        weight=np.array(said.get(f"{prefix}_weights", ()), np.float32)[by_leaf],
        leaves=int((~inner).sum()),
        targets=len(labels) if classifier else int(said.get("n_targets", 1)),
        base=np.array(said.get("base_values", ()), np.float32),
        aggregate=said.get("aggregate_function", b"SUM").decode(),
        transform=said.get("post_transform", b"NONE").decode(),
    )  # fmt: skip


def _read_flat(said: dict[str, Any]) -> Ensemble:
    """Of ai.onnx.ml 5: branches and leaves in two lists, named by their places."""
    splits, weights = (numpy_helper.to_array(said[name]) for name in ("nodes_splits", "leaf_weights"))
    mode = numpy_helper.to_array(said["nodes_modes"]).astype(np.uint8)
    if splits.dtype != np.float32:
        raise CannotExport(f"trees of {splits.dtype}", where="TreeEnsemble", wanted="float32")
    if (mode >= len(MODES)).any():
        raise CannotExport("splits by a set of values", where="TreeEnsemble", wanted=", ".join(MODES))
    children = [
        np.where(_ints(said, f"nodes_{side}leafs") > 0, ~at, at)
        for side, at in (
            (side, _ints(said, f"nodes_{side}nodeids")) for side in ("true", "false")
        )
    ]  # fmt: skip
    missing = _ints(said, "nodes_missing_value_tracks_true")
    return Ensemble(
        feature=_ints(said, "nodes_featureids"), threshold=splits, mode=mode,
        true=children[0], false=children[1],
        missing=(missing if len(missing) else np.zeros(len(mode))).astype(np.uint8),
        roots=_ints(said, "tree_roots"),
        leaf=np.arange(len(weights)), target=_ints(said, "leaf_targetids"), weight=weights,
        leaves=len(weights), targets=int(said.get("n_targets", 1)), base=np.empty(0, np.float32),
        aggregate=AGGREGATES[said.get("aggregate_function", 1)],
        transform=TRANSFORMS[said.get("post_transform", 0)],
    )  # fmt: skip


def _ints(said: dict[str, Any], name: str) -> Array:
    return np.array(said.get(name, ()), np.int64)
