"""A graph of named things, how it is walked, and how it is made small enough to read. Pure.

A node is a mapping with `id`, `kind` and `label`, and what else is known. Ids are stable: the same thing has the same
key in every answer.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loopwright.kernel.digest import sha256_bytes

Node = dict[str, Any]

COMPRESSED = "compressed into"
"""From a version to the smaller one made of its weights."""
DERIVES = frozenset({
    "landed as", "in", "carried into", "has", "read by", "fed", "pinned in", "trained", "ran as", "configured",
    "packed into", "registered as", COMPRESSED,
})  # fmt: skip
"""Kinds of edges along which data and code flow into a version; the others say what was decided or caused."""

KEEP = 5
"""So many alike stand each for themselves; more are counted in one node."""
WIDE = 40
"""The same for features and columns, whose names are what one looks for."""
_MANY = {"feature": WIDE, "column": WIDE}
# Whatever brought them, these are alike when they went the same way.
_BY_WAY = frozenset({"batch", "source", "feature", "column"})


@dataclass(frozen=True, slots=True)
class Edge:
    source: str
    target: str
    kind: str

    def to_json(self) -> dict[str, str]:
        return {"from": self.source, "to": self.target, "kind": self.kind}


@dataclass(slots=True)
class Graph:
    """Nodes by key and edges without doubles, in the order they were added."""

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: dict[Edge, None] = field(default_factory=dict)

    def add(self, key: str, kind: str, label: str, **about: Any) -> str:
        """Add a node and return its key; what is None or empty is left out. The first word on an key stands."""
        told = {name: value for name, value in about.items() if value not in (None, "", [], {}, ())}
        self.nodes.setdefault(key, {"id": key, "kind": kind, "label": label, **told})
        return key

    def link(self, source: str, target: str, kind: str) -> None:
        """Add an edge between nodes; one to itself, or to what is not there, is none."""
        if source != target and source in self.nodes and target in self.nodes:
            self.edges.setdefault(Edge(source, target, kind))

    def within(self, kept: Iterable[str]) -> "Graph":
        """The part of the graph between the nodes in `kept`."""
        wanted = set(kept)
        nodes = {key: node for key, node in self.nodes.items() if key in wanted}
        return Graph(
            nodes, {edge: None for edge in self.edges if edge.source in wanted and edge.target in wanted}
        )

    def out(self) -> dict[str, list[Edge]]:
        found: dict[str, list[Edge]] = defaultdict(list)
        for edge in self.edges:
            found[edge.source].append(edge)
        return found

    def into(self) -> dict[str, list[Edge]]:
        found: dict[str, list[Edge]] = defaultdict(list)
        for edge in self.edges:
            found[edge.target].append(edge)
        return found

    def to_json(self) -> dict[str, Any]:
        return {"nodes": list(self.nodes.values()), "edges": [edge.to_json() for edge in self.edges]}


def reach(
    graph: Graph,
    start: Iterable[str],
    *,
    forward: bool,
    follow: Callable[[Edge], bool] = lambda edge: True,
    through: Callable[[str], bool] = lambda key: True,
) -> set[str]:
    """Everything that `start` leads to (or comes from), `start` included.

    follow: which edges count. through: whether to go on from a node; it is reached all the same.
    """
    ways = graph.out() if forward else graph.into()
    seen = {key for key in start if key in graph.nodes}
    waiting = deque(seen)
    first = set(seen)
    while waiting:
        here = waiting.popleft()
        if here not in first and not through(here):
            continue
        for edge in ways.get(here, ()):
            there = edge.target if forward else edge.source
            if there not in seen and follow(edge):
                seen.add(there)
                waiting.append(there)
    return seen


def fold(graph: Graph, *, focus: Iterable[str] = (), keep: int = KEEP) -> tuple[Graph, list[str]]:
    """A graph in which many alike are one counted node, and sentences that say what was folded.

    Alike are nodes of one kind with the same neighbours. Versions of a table that only pass their rows on are passed
    over, and a long row of earlier (or later) versions becomes one node. Nodes in `focus` always stay.
    """
    stay = frozenset(focus)
    said: list[str] = []
    graph, passed = _without_carriers(graph, stay)
    if passed:
        some = "version" if passed == 1 else "versions"
        said.append(f"{passed:,} earlier table {some}, not pinned by what is shown, passed over")
    graph, strung = _versions_strung(graph, stay, keep)
    said += strung
    for _ in range(4):
        graph, counted = _twins(graph, stay, keep)
        if not counted:
            break
        said += counted
    return graph, said


def _rewired(graph: Graph, place: Mapping[str, str], nodes: dict[str, Node]) -> Graph:
    """The graph with every node in `place` replaced by the one it names."""
    made = Graph(nodes)
    for edge in graph.edges:
        made.link(place.get(edge.source, edge.source), place.get(edge.target, edge.target), edge.kind)
    return made


def _without_carriers(graph: Graph, stay: frozenset[str]) -> tuple[Graph, int]:
    out = graph.out()
    onward = {
        key: out[key][0].target
        for key, node in graph.nodes.items()
        if node["kind"] == "table"
        and key not in stay
        and len(out.get(key, ())) == 1
        and out[key][0].kind == "carried into"
    }
    place = {}
    for key in onward:
        last, steps = onward[key], 0
        while last in onward and steps < len(onward):
            last, steps = onward[last], steps + 1
        place[key] = last
    return _rewired(graph, place, {i: n for i, n in graph.nodes.items() if i not in place}), len(place)


def _versions_strung(graph: Graph, stay: frozenset[str], keep: int) -> tuple[Graph, list[str]]:
    """Versions that are here only as the baseline of others: all but the nearest `keep` become one node."""
    plain: dict[str, list[str]] = defaultdict(list)
    busy = {key for edge in graph.edges if edge.kind != "baseline of" for key in (edge.source, edge.target)}
    for key, node in graph.nodes.items():
        if node["kind"] == "version" and key not in stay and key not in busy and not node.get("live"):
            plain[node["model"]].append(key)
    said: list[str] = []
    place: dict[str, str] = {}
    nodes = dict(graph.nodes)
    for model, members in plain.items():
        if len(members) <= keep:
            continue
        members.sort(key=lambda key: graph.nodes[key]["version"])
        centre = [
            node["version"] for key, node in graph.nodes.items() if key in stay and node["kind"] == "version"
        ]
        near = min(centre, default=graph.nodes[members[-1]]["version"])
        members.sort(key=lambda key: abs(graph.nodes[key]["version"] - near))
        far = members[keep - 1 :]
        numbers = sorted(graph.nodes[key]["version"] for key in far)
        made = _counted(
            graph, far, f"{len(far):,} more versions", model=model, first=numbers[0], last=numbers[-1]
        )
        _swap(nodes, far, made)
        place |= dict.fromkeys(far, str(made["id"]))
        said.append(f"{len(far):,} versions of {model} between {numbers[0]} and {numbers[-1]} are one node")
    return (_rewired(graph, place, nodes), said) if place else (graph, [])


def _twins(graph: Graph, stay: frozenset[str], keep: int) -> tuple[Graph, list[str]]:
    into, out = graph.into(), graph.out()
    groups: dict[Any, list[str]] = defaultdict(list)
    for key, node in graph.nodes.items():
        if key in stay or node.get("live") or node["kind"] == "version":
            continue
        ways = frozenset((edge.target, edge.kind) for edge in out.get(key, ()))
        came = into.get(key, ())
        if node["kind"] in _BY_WAY and ways:
            alike: frozenset[Any] = frozenset(graph.nodes[edge.source]["kind"] for edge in came)
        else:
            alike = frozenset((edge.source, edge.kind) for edge in came)
        groups[node["kind"], alike, ways].append(key)
    place: dict[str, str] = {}
    nodes = dict(graph.nodes)
    said: list[str] = []
    for (kind, _, _), members in groups.items():
        if len(members) <= max(keep, _MANY.get(kind, 0)):
            continue
        count = sum(int(graph.nodes[key].get("count", 1)) for key in members)
        made = _counted(graph, members, f"{count:,} {plural(kind)}", count=count)
        _swap(nodes, members, made)
        place |= dict.fromkeys(members, str(made["id"]))
        said.append(f"{count:,} {plural(kind)} are one node")
    return (_rewired(graph, place, nodes), said) if place else (graph, [])


def _swap(nodes: dict[str, Node], members: Iterable[str], made: Node) -> None:
    for key in members:
        del nodes[key]
    nodes[made["id"]] = made


def _counted(graph: Graph, members: list[str], label: str, **about: Any) -> Node:
    """One node for many: its key is made from theirs, so that it is stable too."""
    name = sha256_bytes("\n".join(sorted(members)).encode())[:12]
    kind = graph.nodes[members[0]]["kind"]
    times = sorted(str(graph.nodes[key]["at"]) for key in members if graph.nodes[key].get("at"))
    rows = [int(graph.nodes[key]["rows"]) for key in members if graph.nodes[key].get("rows") is not None]
    told: Node = {
        "id": f"{kind}s:{name}",
        "kind": kind,
        "label": label,
        "count": len(members),
        "folded": True,
    }
    told |= {"rows": sum(rows)} if rows else {}
    told |= {"from": times[0], "until": times[-1]} if times else {}
    return told | about | {"members": sorted(members)[:10]}


def plural(kind: str) -> str:
    """The kind as a word for many."""
    if kind in ("evidence", "predictions", "labels", "windows", "code"):
        return {"evidence": "pieces of evidence", "code": "states of code"}.get(kind, kind)
    return f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}es" if kind.endswith("ch") else f"{kind}s"
