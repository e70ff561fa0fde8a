"""Leaves of the trees that are kept, fitted to what all trees answer together."""

from dataclasses import replace

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import lsqr

from loopwright.compression.trees.ensemble import Array, Ensemble

DAMP = 3.0
"""A leaf that n rows reach goes about n / (n + DAMP²) of the way: what few rows saw stays as it was."""
ITERATIONS = 30


def unshared(ensemble: Ensemble) -> Ensemble:
    """The same trees, each place of a leaf with a leaf of its own, so that they can be changed one by one."""
    parts = [ensemble.roots, ensemble.true, ensemble.false]
    ends = [~part[part < 0] for part in parts]
    first = np.searchsorted(ensemble.leaf, np.arange(ensemble.leaves + 1))
    old = np.concatenate(ends)
    count = first[old + 1] - first[old]
    stored = np.repeat(first[old] - np.cumsum(count) + count, count) + np.arange(count.sum())
    fresh, at = [], 0
    for part, end in zip(parts, ends, strict=True):
        moved = part.copy()
        moved[part < 0] = ~np.arange(at, at + len(end))
        at += len(end)
        fresh.append(moved)
    return replace(
        ensemble, roots=fresh[0], true=fresh[1], false=fresh[2], leaf=np.repeat(np.arange(len(old)), count),
        target=ensemble.target[stored], weight=ensemble.weight[stored], leaves=len(old),
    )  # fmt: skip


def refitted(ensemble: Ensemble, kept: Array, weight: Array, ends: Array, wanted: Array) -> Array:
    """`weight` moved so that the trees at `kept` alone come near the sums `wanted` (n, targets).

    By damped least squares (LSQR, Paige & Saunders 1982); ends: where the n rows end in all trees. The truth is not
    asked.
    """
    fresh = weight.astype(np.float64)
    ours = ends[:, kept].astype(np.int64)
    for target in range(ensemble.targets):
        place = np.full(ensemble.leaves, -1, np.int64)
        mine = np.flatnonzero(ensemble.target == target)
        place[ensemble.leaf[mine]] = np.arange(len(mine))
        columns = place[ours]
        held = columns >= 0
        begins = np.concatenate([[0], np.cumsum(held.sum(axis=1))])
        reached = sparse.csr_matrix(
            (np.ones(int(begins[-1])), columns[held], begins), shape=(len(ours), len(mine))
        )
        gap = wanted[:, target] - reached @ fresh[mine]
        fresh[mine] += lsqr(reached, gap, damp=DAMP, iter_lim=ITERATIONS)[0]
    return fresh.astype(np.float32)
