"""Places a graph in columns from left to right, so that it can be read. Pure.

The usual four steps of layered drawing (Sugiyama, Tagawa, Toda 1981): break cycles, rank by the longest path, order
each column by the barycentres of its neighbours, and give heights - here by isotonic regression, which puts every box
as near to the mean of its neighbours as the order and the gaps allow. A long edge gets a place of its own in every
column it crosses, so no edge runs over a box.
"""

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 196, 44
GAP_X, GAP_Y = 76, 14
THREAD = 8
"""Height that a passing edge takes."""
SWEEPS = 12
"""Passes over the columns; fewer where a graph is so large that nobody would see the difference."""
_WORK = 600_000
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Placed:
    """Boxes by their upper left corner; edges as the points they pass; the size of the whole."""

    boxes: Mapping[str, Point]
    edges: Mapping[tuple[str, str], tuple[Point, ...]]
    width: float
    height: float


def place(nodes: Sequence[str], edges: Iterable[tuple[str, str]]) -> Placed:
    """Place nodes and edges; edges to oneself or to unknown nodes are left out. Deterministic."""
    known = set(nodes)
    wanted = [edge for edge in dict.fromkeys(edges) if edge[0] != edge[1] and known.issuperset(edge)]
    turned = _back_edges(nodes, wanted)
    forward = list(dict.fromkeys((b, a) if (a, b) in turned else (a, b) for a, b in wanted))
    rank = _ranks(nodes, forward)
    columns, chains = _columns(nodes, forward, rank)
    _order(columns, chains)
    middle = _heights(columns, chains)
    top = min((middle[key] - _height(key) / 2 for column in columns for key in column), default=0.0)
    boxes = {
        key: (x * (WIDTH + GAP_X), middle[key] - HEIGHT / 2 - top)
        for x, column in enumerate(columns)
        for key in column
        if isinstance(key, str)
    }
    paths = {}
    for a, b in wanted:
        back = (a, b) in turned
        chain = chains[(b, a) if back else (a, b)]
        points = _points(chain, rank, middle, top)
        paths[a, b] = tuple(reversed(points)) if back else points
    height = max((y + HEIGHT for _, y in boxes.values()), default=0.0)
    threads = max((y for path in paths.values() for _, y in path), default=0.0)
    return Placed(
        boxes, paths, max(0.0, len(columns) * (WIDTH + GAP_X) - GAP_X), max(height, threads + THREAD / 2)
    )


Thread = tuple[str, str, int]
"""Where an edge (from, to) crosses a column."""
Key = str | Thread


def _back_edges(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Edges that close a cycle, met on a walk in the given order."""
    out = defaultdict(list)
    for a, b in edges:
        out[a].append(b)
    back: set[tuple[str, str]] = set()
    state: dict[str, int] = {}
    for root in nodes:
        if root in state:
            continue
        state[root] = 1
        stack = [(root, iter(out[root]))]
        while stack:
            here, ways = stack[-1]
            there = next(ways, None)
            if there is None:
                state[here] = 2
                stack.pop()
            elif state.get(there) == 1:
                back.add((here, there))
            elif there not in state:
                state[there] = 1
                stack.append((there, iter(out[there])))
    return back


def _ranks(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Longest path from the left, then every node with nothing before it moved up to what it leads to."""
    into, out = defaultdict(list), defaultdict(list)
    for a, b in edges:
        out[a].append(b)
        into[b].append(a)
    open_ = {key: len(into[key]) for key in nodes}
    ready = [key for key in nodes if not open_[key]]
    order = []
    rank = dict.fromkeys(nodes, 0)
    while ready:
        here = ready.pop(0)
        order.append(here)
        for there in out[here]:
            rank[there] = max(rank[there], rank[here] + 1)
            open_[there] -= 1
            if not open_[there]:
                ready.append(there)
    for here in reversed(order):
        if out[here] and not into[here]:
            rank[here] = min(rank[there] for there in out[here]) - 1
        elif out[here] and len(out[here]) >= len(into[here]):
            rank[here] = max(rank[here], min(rank[there] for there in out[here]) - 1)
    low = min(rank.values(), default=0)
    return {key: rank[key] - low for key in nodes}


def _columns(
    nodes: Sequence[str], edges: Sequence[tuple[str, str]], rank: Mapping[str, int]
) -> tuple[list[list[Key]], dict[tuple[str, str], list[Key]]]:
    columns: list[list[Key]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for key in nodes:
        columns[rank[key]].append(key)
    chains: dict[tuple[str, str], list[Key]] = {}
    for a, b in edges:
        crossed = range(rank[a] + 1, rank[b])
        for x in crossed:
            columns[x].append((a, b, x))
        chains[a, b] = [a, *((a, b, x) for x in crossed), b]
    return columns, chains


def _neighbours(
    chains: Mapping[tuple[str, str], list[Key]],
) -> tuple[dict[Key, list[Key]], dict[Key, list[Key]]]:
    left, right = defaultdict(list), defaultdict(list)
    for chain in chains.values():
        for a, b in pairwise(chain):
            right[a].append(b)
            left[b].append(a)
    return left, right


def _order(columns: list[list[Key]], chains: Mapping[tuple[str, str], list[Key]]) -> None:
    """Sort every column by the mean place of its neighbours, left and right in turn; the best of all sweeps stays."""
    left, right = _neighbours(chains)
    best, fewest = [list(column) for column in columns], _crossings(columns, right)
    for sweep in range(_sweeps(columns)):
        near, turn = (
            (left, range(1, len(columns))) if sweep % 2 == 0 else (right, range(len(columns) - 2, -1, -1))
        )
        for x in turn:
            side = columns[x - 1] if sweep % 2 == 0 else columns[x + 1]
            at = {key: y for y, key in enumerate(side)}
            now = {key: y for y, key in enumerate(columns[x])}
            scale = len(side) / max(1, len(columns[x]))
            columns[x].sort(
                key=lambda key: (
                    sum(at[other] for other in near[key]) / len(near[key]) if near[key] else now[key] * scale,
                    now[key],
                )
            )
        crossed = _crossings(columns, right)
        if crossed < fewest:
            best, fewest = [list(column) for column in columns], crossed
    columns[:] = best


def _sweeps(columns: Sequence[Sequence[Key]]) -> int:
    return max(2, min(SWEEPS, _WORK // max(1, sum(map(len, columns)))))


def _crossings(columns: Sequence[Sequence[Key]], right: Mapping[Key, Sequence[Key]]) -> int:
    total = 0
    for x in range(len(columns) - 1):
        at = {key: y for y, key in enumerate(columns[x + 1])}
        seen: list[int] = []  # in order, so that what ends below is counted, not looked for
        for key in columns[x]:
            ends = sorted(at[other] for other in right.get(key, ()))
            total += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return total


def _height(key: Key) -> float:
    return HEIGHT if isinstance(key, str) else THREAD


def _heights(
    columns: Sequence[Sequence[Key]], chains: Mapping[tuple[str, str], list[Key]]
) -> dict[Key, float]:
    """The middle of every box and thread."""
    left, right = _neighbours(chains)
    middle: dict[Key, float] = {}
    for column in columns:
        y = 0.0
        for key in column:
            middle[key] = y + _height(key) / 2
            y += _height(key) + GAP_Y
    for sweep in range(_sweeps(columns)):
        turn = range(len(columns)) if sweep % 2 == 0 else range(len(columns) - 1, -1, -1)
        for x in turn:
            column = columns[x]
            wanted = []
            for key in column:
                near = [(middle[other], _pull(key, other)) for other in (*left[key], *right[key])]
                total = sum(pull for _, pull in near)
                wanted.append(sum(y * pull for y, pull in near) / total if near else middle[key])
            for key, y in zip(column, _apart(column, wanted), strict=True):
                middle[key] = y
    return middle


def _pull(key: Key, other: Key) -> int:
    """How hard two neighbours pull at each other: the parts of a long edge hardest, so that it runs straight."""
    return {0: 1, 1: 2, 2: 12}[isinstance(key, tuple) + isinstance(other, tuple)]


def _apart(column: Sequence[Key], wanted: Sequence[float]) -> list[float]:
    """The places nearest to `wanted` (least squares) that keep the order and the gaps: pool adjacent violators."""
    offsets, y = [], 0.0
    for before, key in zip([None, *column], column, strict=False):
        y += 0.0 if before is None else (_height(before) + _height(key)) / 2 + GAP_Y
        offsets.append(y)
    blocks: list[tuple[float, int]] = []
    for want, offset in zip(wanted, offsets, strict=True):
        mean, size = want - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, count = blocks.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        blocks.append((mean, size))
    level = [mean for mean, size in blocks for _ in range(size)]
    return [mean + offset for mean, offset in zip(level, offsets, strict=True)]


def _points(
    chain: Sequence[Key], rank: Mapping[str, int], middle: Mapping[Key, float], top: float
) -> tuple[Point, ...]:
    step = WIDTH + GAP_X
    start, *threads, end = chain
    points: list[Point] = [(rank[str(start)] * step + WIDTH, middle[start] - top)]
    for thread in threads:
        x = int(thread[2]) * step
        points += [(x, middle[thread] - top), (x + WIDTH, middle[thread] - top)]
    return (*points, (rank[str(end)] * step, middle[end] - top))
