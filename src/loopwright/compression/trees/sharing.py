"""Parts of trees that need not be there: equal leaves, splits with equal sides, splits that are settled above them.

Branches stay apart even when they are equal: ONNX Runtime 1.31 takes a shared leaf, and refuses a shared branch.
"""

from dataclasses import replace

import numpy as np

from loopwright.compression.steps import CannotExport
from loopwright.compression.trees.ensemble import Array, Ensemble

_DOWN = {0: (1, True), 1: (0, True), 2: (0, False), 3: (1, False)}
"""Mode → whether a value that equals the threshold lies below the cut, and whether `true` is the side below."""


def folded(ensemble: Ensemble) -> Ensemble:
    """The same answers from fewer parts: equal leaves are one, branches with equal leaves on both sides are gone."""
    leaf_name = _leaf_names(ensemble)
    names = np.arange(ensemble.branches)
    for branch in bottom_up(ensemble):
        true, false = ensemble.true[branch], ensemble.false[branch]
        true = names[true] if true >= 0 else leaf_name[~true]
        if true < 0 and true == (names[false] if false >= 0 else leaf_name[~false]):
            names[branch] = true

    def renamed(child: Array) -> Array:
        inner = child >= 0
        found = np.empty(len(child), np.int64)
        found[inner], found[~inner] = names[child[inner]], leaf_name[~child[~inner]]
        return found

    return replace(
        ensemble, true=renamed(ensemble.true), false=renamed(ensemble.false), roots=renamed(ensemble.roots)
    ).trimmed()


def settled(ensemble: Ensemble) -> Ensemble:
    """The same answers without splits that an earlier one on the same feature has settled, as rounding makes them.

    A missing value counts: a split goes only if NaN cannot come to it, or would take the side that is left.
    """
    true_unused, false_unused = np.zeros((2, ensemble.branches), bool)
    columns = (
        ensemble.feature,
        ensemble.threshold,
        ensemble.mode,
        ensemble.missing,
        ensemble.true,
        ensemble.false,
    )
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    open_ended = (-np.inf, 0), (np.inf, 1), True
    waiting: list[tuple[int, dict[int, tuple[tuple[float, int], tuple[float, int], bool]]]]
    waiting = [(root, {}) for root in ensemble.roots.tolist() if root >= 0]
    while waiting:
        branch, known = waiting.pop()
        feature, threshold, mode, missing, true, false = rows[branch]
        sides = {True: known, False: known}
        if mode in _DOWN:
            equal_below, true_is_below = _DOWN[mode]
            cut = (threshold, equal_below)
            low, high, blank = known.get(feature, open_ended)
            always = true_is_below if cut >= high else not true_is_below if cut <= low else None
            if always is not None and (not blank or bool(missing) == always):
                (false_unused if always else true_unused)[branch] = True
            for side in (True, False):
                below = side == true_is_below
                bounds = (low, min(high, cut)) if below else (max(low, cut), high)
                sides[side] = {**known, feature: (*bounds, blank and bool(missing) == side)}
        for side, child in ((True, true), (False, false)):
            unused = true_unused if side else false_unused
            if child >= 0 and not unused[branch]:
                waiting.append((child, sides[side]))
    return without(ensemble, true_unused, false_unused) if (true_unused | false_unused).any() else ensemble


def without(ensemble: Ensemble, true_unused: Array, false_unused: Array) -> Ensemble:
    """Branches of which one side is never taken give way to the other side; both unused: the branch stays."""
    skip = true_unused ^ false_unused
    names = np.arange(ensemble.branches)
    for branch in bottom_up(ensemble):
        if skip[branch]:
            child = ensemble.false[branch] if true_unused[branch] else ensemble.true[branch]
            names[branch] = names[child] if child >= 0 else child

    def renamed(child: Array) -> Array:
        return np.where(child >= 0, names[np.maximum(child, 0)] if ensemble.branches else child, child)

    return replace(
        ensemble, true=renamed(ensemble.true), false=renamed(ensemble.false), roots=renamed(ensemble.roots)
    ).trimmed()


def bottom_up(ensemble: Ensemble) -> list[int]:
    """All branches, each after those below it. Raises CannotExport for a tree that comes back to itself."""
    done = np.zeros(ensemble.branches, bool)
    rest, order = np.arange(ensemble.branches), []
    while len(rest):
        true, false = ensemble.true[rest], ensemble.false[rest]
        ready = ((true < 0) | done[np.maximum(true, 0)]) & ((false < 0) | done[np.maximum(false, 0)])
        if not ready.any():
            raise CannotExport("a tree that comes back to itself", where="tree ensemble")
        order.append(rest[ready])
        done[rest[ready]] = True
        rest = rest[~ready]
    return np.concatenate(order).tolist() if order else []


def _leaf_names(ensemble: Ensemble) -> Array:
    """Per leaf `~` the first leaf with the same weights for the same targets."""
    if ensemble.single:
        rows = np.stack([ensemble.target, _bits(ensemble.weight)], axis=1)
        _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        return ~first[which.ravel()]
    bounds = np.searchsorted(ensemble.leaf, np.arange(ensemble.leaves + 1))
    known: dict[bytes, int] = {}
    names = np.empty(ensemble.leaves, np.int64)
    for leaf in range(ensemble.leaves):
        part = slice(bounds[leaf], bounds[leaf + 1])
        key = ensemble.target[part].tobytes() + _bits(ensemble.weight[part]).tobytes()
        names[leaf] = ~known.setdefault(key, leaf)
    return names


def _bits(weights: Array) -> Array:
    return np.where(weights == 0, np.float32(0), weights).astype(np.float32).view(np.int32).astype(np.int64)
