"""Leaves of the trees that are kept, fitted to what all trees answer together."""

from dataclasses import replace

import numpy as np

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

    By damped least squares (CGLS, Hestenes & Stiefel 1952); ends: where the n rows end in all trees. The truth is not
    asked.
    """
    fresh = weight.astype(np.float64)
    ours = ends[:, kept].astype(np.int64)
    for target in range(ensemble.targets):
        place = np.full(ensemble.leaves, -1, np.int64)
        mine = np.flatnonzero(ensemble.target == target)
        place[ensemble.leaf[mine]] = np.arange(len(mine))
        columns = np.where(place[ours] < 0, len(mine), place[ours])
        gap = wanted[:, target] - np.append(fresh[mine], 0.0)[columns].sum(axis=1)
        fresh[mine] += _moved(columns, len(mine), gap)
    return fresh.astype(np.float32)


def _moved(columns: Array, size: int, gap: Array) -> Array:
    """The (size,) numbers whose sums over `columns` (n, trees) come near `gap` (n,); column `size` stands for none."""
    flat, trees = columns.ravel(), columns.shape[1]

    def back(rows: Array) -> Array:
        return np.bincount(flat, np.repeat(rows, trees), minlength=size + 1)[:size]

    found, rest = np.zeros(size), gap
    slope = back(rest)
    way, length = slope, float(slope @ slope)
    enough = 1e-14 * length
    for _ in range(ITERATIONS):
        if length <= enough:
            break
        ahead = np.append(way, 0.0)[columns].sum(axis=1)
        step = length / (float(ahead @ ahead) + DAMP**2 * float(way @ way))
        found, rest = found + step * way, rest - step * ahead
        slope = back(rest) - DAMP**2 * found
        before, length = length, float(slope @ slope)
        way = slope + length / before * way
    return found
