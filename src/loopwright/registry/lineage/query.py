"""Answers about lineage: where a version comes from, what became of it, and what a batch, a source, a snapshot, a run
or a column has touched - with the versions that serve now said first."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from sqlalchemy import Connection

from loopwright.data.source import public_uri
from loopwright.kernel.errors import BadInput, NotFound, did_you_mean
from loopwright.registry import store as registry_store
from loopwright.registry.lineage import store
from loopwright.registry.lineage.build import batch_id, build, source_id, version_id
from loopwright.registry.lineage.graph import (
    COMPRESSED,
    DERIVES,
    KEEP,
    Edge,
    Graph,
    Node,
    fold,
    plural,
    reach,
)

Direction = Literal["up", "down", "both"]
SHOWN = 8
"""Versions an impact's graph shows beside those that serve; the table beside it names them all."""


def lineage(
    conn: Connection,
    *,
    model: str,
    version: int,
    direction: Direction = "up",
    generations: int = 1,
    whole: bool = False,
) -> dict[str, Any]:
    """{"model", "version", "focus", "says", "nodes", "edges", "folded"}; versions on the way are named to the first.

    up: data, code, people, and what called for its training. down: promotions, traffic, labels, alerts, retrains.
    generations: so many versions deep; what lies behind further ones is not followed. whole: nothing is folded.
    Raises NotFound for an unknown model or version.
    """
    if generations < 1:
        raise BadInput("`generations` is out of range", got=generations, wanted="1 or more")
    registry_store.get_version(conn, model, version)
    graph = build(store.load(conn, model))
    focus = version_id(model, version)
    kept: set[str] = set()
    if direction in ("up", "both"):
        kept |= _back(graph, focus, generations)
    if direction in ("down", "both"):
        kept |= _through_versions(graph, focus, generations, forward=True)
    part = graph.within(kept)
    says = []
    if direction in ("up", "both"):
        says += _made_of(graph, part, focus)
    if direction in ("down", "both"):
        says += _became(graph, focus)
    told, folded = (part, []) if whole else fold(part, focus=[focus])
    return {
        "model": model,
        "version": version,
        "direction": direction,
        "focus": [focus],
        "says": says,
        **told.to_json(),
        "folded": folded,
    }


def impact(
    conn: Connection,
    *,
    batch: str | None = None,
    snapshot: str | None = None,
    source: str | None = None,
    run: str | None = None,
    column: str | None = None,
    model: str | None = None,
    whole: bool = False,
) -> dict[str, Any]:
    """What one thing touched: {"kind", "named", "says", "affected", "live", "snapshots", "runs", "nodes", …}.

    batch: [MODEL/]TABLE/ID, or the beginning of the id. source: a table's name or a URI. column: [MODEL/]TABLE.COLUMN.
    affected: every version whose training read it, those that serve now first. Exactly one thing is asked for; raises
    BadInput else, and NotFound, naming what is near, for what nobody knows.
    """
    asked = {"batch": batch, "snapshot": snapshot, "source": source, "run": run, "column": column}
    given = {kind: text for kind, text in asked.items() if text}
    if len(given) != 1:
        raise BadInput("name one thing to ask about", got=sorted(given) or "none", wanted=" or ".join(asked))
    ((kind, text),) = given.items()
    if model is not None and model not in (known := store.models(conn)):
        raise NotFound(f"no such model: {model}", next=did_you_mean(model, known))
    graph, focus = _FINDERS[kind](conn, text, model)

    def flows(edge: Edge) -> bool:
        return edge.kind in DERIVES and (edge.kind != "has" or kind == "column")

    touched = reach(graph, focus, forward=True, follow=flows)
    affected = sorted(
        (graph.nodes[key] for key in touched if graph.nodes[key]["kind"] == "version"),
        key=lambda node: (not node.get("live"), node["model"], -node["version"]),
    )
    named = focus[0] if len(focus) == 1 else text
    first = graph.nodes[focus[0]]
    told_as = first["uri"] if first["kind"] == "source" else first["label"]
    label = str(told_as) if len(focus) == 1 else text
    part, folded = _impact_part(graph, touched, focus, affected, whole=whole)
    # Of many at once, as all batches of a table, each is one of many.
    told, more = (part, []) if whole else fold(part, focus=focus if len(focus) <= KEEP else ())
    shown = [key for key in focus if key in told.nodes]
    shown += [key for key, node in told.nodes.items() if node.get("folded") and node["kind"] == first["kind"]]
    counts = {what: sum(graph.nodes[key]["kind"] == what for key in touched) for what in ("snapshot", "run")}
    return {
        "kind": kind,
        "named": named,
        "label": label,
        "focus": shown,
        "says": _touched(kind, label, affected, counts, graph, touched),
        "affected": [_brief(node) for node in affected],
        "live": [node["id"] for node in affected if node.get("live")],
        "snapshots": counts["snapshot"],
        "runs": counts["run"],
        **told.to_json(),
        "folded": folded + more,
    }


def _back(graph: Graph, focus: str, generations: int) -> set[str]:
    """What `focus` comes from, who let it through, and the versions before it."""
    kept = _through_versions(graph, focus, generations, forward=False)
    kept |= {edge.target for edge in graph.out().get(focus, ()) if edge.kind in ("judged by", "promoted by")}
    met = [key for key in kept if graph.nodes[key]["kind"] == "version"]
    return kept | reach(graph, met, forward=False, follow=lambda edge: edge.kind == "baseline of")


def _through_versions(graph: Graph, focus: str, generations: int, *, forward: bool) -> set[str]:
    """All that `focus` leads to or comes from, passing through fewer than `generations` other versions."""
    ways = graph.out() if forward else graph.into()
    passed = {focus: 0}
    waiting = deque([focus])  # what passes no version comes first, so every node is met on its shortest way
    while waiting:
        here = waiting.popleft()
        through = here != focus and graph.nodes[here]["kind"] == "version"
        depth = passed[here] + through
        if depth >= generations:
            continue
        for edge in ways.get(here, ()):
            there = edge.target if forward else edge.source
            if depth < passed.get(there, generations):
                passed[there] = depth
                (waiting.append if through else waiting.appendleft)(there)
    return set(passed)


def _impact_part(
    graph: Graph, touched: set[str], focus: Sequence[str], affected: Sequence[Node], *, whole: bool
) -> tuple[Graph, list[str]]:
    """What was touched, with what answers where it serves; of many versions that do not serve, the newest."""
    live = [node["id"] for node in affected if node.get("live")]
    shown = [
        *live,
        *[node["id"] for node in affected if not node.get("live")][: SHOWN if not whole else None],
    ]
    answers = {
        edge.target
        for key in live
        for edge in graph.out().get(key, ())
        if edge.kind in ("promoted by", "rolled out by", "answered")
    }
    traffic = reach(graph, answers, forward=True, follow=lambda e: e.kind in ("led to", "sent traffic to"))
    graph = Graph(graph.nodes, {edge: None for edge in graph.edges if edge.kind != "baseline of"})
    if len(shown) == len(affected):
        return graph.within(touched | traffic), []
    ways = reach(graph, shown, forward=False, follow=lambda edge: edge.source in touched) & touched
    part = graph.within(ways | traffic | set(focus))
    left = [node for node in affected if node["id"] not in set(shown)]
    more = part.add(
        f"versions:{len(left)}", "version", f"{len(left):,} more versions, none of them serves", model=left[0]["model"],
        version=left[0]["version"], count=len(left), folded=True, members=[node["id"] for node in left[:10]],
    )  # fmt: skip
    for key in focus:
        part.link(key, more, "reached")
    return part, [f"{len(left):,} more versions that do not serve, with their runs, are one node"]


# Sentences


def _made_of(graph: Graph, part: Graph, focus: str) -> list[str]:
    node = graph.nodes[focus]
    derived = reach(graph, [focus], forward=False, follow=lambda edge: edge.kind in DERIVES)
    kinds = {kind: [graph.nodes[key] for key in derived if graph.nodes[key]["kind"] == kind]
             for kind in ("snapshot", "batch", "source", "code", "table")}  # fmt: skip
    name = f"{node['model']} {node['version']}"
    # Of a compressed version the data are those of its parent; the run is its own.
    own = reach(
        graph, [focus], forward=False, follow=lambda edge: edge.kind in DERIVES and edge.kind != COMPRESSED
    )
    run = next((graph.nodes[key] for key in own if graph.nodes[key]["kind"] == "run"), None)
    if run is None:
        return [f"{name} was registered without a run that is known here."]
    parents = [edge.source for edge in graph.into().get(focus, ()) if edge.kind == COMPRESSED]
    how = f"compressed from version {graph.nodes[parents[0]]['version']}" if parents else "trained"
    text = f"{name} was {how} by {run['label']}" + (f" ({run['reason']})" if run.get("reason") else "")
    if kinds["snapshot"]:
        pinned = kinds["snapshot"][0]
        text += f" on {pinned['label']}" + (f", {pinned['rows']:,} rows" if pinned.get("rows") else "")
    if kinds["batch"]:
        text += f", which holds {_count(kinds['batch'], 'batch')} of {_count(kinds['source'], 'source')}"
    said = [text + "."]
    caused = [part.nodes[e.source] for e in part.into().get(run["id"], ()) if e.kind == "started"]
    said += [f"What called for it: {cause['why']}." for cause in caused if cause.get("why")]
    for edge in graph.out().get(focus, ()):
        asked = graph.nodes[edge.target]
        if edge.kind == "promoted by" and asked["state"] == "effective":
            yes = ", ".join(asked.get("approved_by", ())) or "nobody: its policy asks for no approval"
            said.append(f"{asked['stage']}: asked for by {asked['requested_by']}, approved by {yes}.")
    return said


def _became(graph: Graph, focus: str) -> list[str]:
    node = graph.nodes[focus]
    said = [f"It is in stage {node['stage']} and {serves(node)}."]
    if node.get("answers"):
        said.append(f"It has answered {node['answers']:,} requests in all.")
    smaller = [edge.target for edge in graph.out().get(focus, ()) if edge.kind == COMPRESSED]
    if smaller:
        numbers = sorted(graph.nodes[key]["version"] for key in smaller)
        said.append(f"It was compressed into version {', '.join(map(str, numbers))}.")
    causes = {"baseline of", COMPRESSED}
    later = reach(graph, [focus], forward=True, follow=lambda edge: edge.kind not in causes)
    born = sorted(
        graph.nodes[key]["version"] for key in later - {focus} if graph.nodes[key]["kind"] == "version"
    )
    if born:
        some = ", ".join(map(str, born[:10])) + (" …" if len(born) > 10 else "")
        said.append(f"What was seen of it led to {_count(born, 'later version')}: {some}.")
    return said


def _touched(
    kind: str, label: str, affected: Sequence[Node], counts: dict[str, int], graph: Graph, touched: set[str]
) -> list[str]:
    what = f"The {label}" if kind in label.split() else f"The {kind} {label}"
    verb = "is read by" if kind == "column" else "made" if kind == "run" else "went into"
    if not affected:
        into = [
            f"{_count(range(counts[each]), each)}"
            for each in ("snapshot", "run")
            if counts[each] and each != kind
        ]
        return [f"{what} {verb} {' and '.join(into) or 'nothing that was trained'}, but no version."]
    live = [node for node in affected if node.get("live")]
    if live:
        first = "; ".join(f"{node['label']} {serves(node)}" for node in live)
        said = [f"{_count(live, 'version')} that {'serves' if len(live) == 1 else 'serve'} now "
                f"{'was' if len(live) == 1 else 'were'} made with it: {first}."]  # fmt: skip
    else:
        said = ["No version that serves now was made with it."]
    numbers = ", ".join(node["label"] for node in affected[:10]) + (" …" if len(affected) > 10 else "")
    said.append(f"{what} {verb} {_count(affected, 'version')} in all: {numbers}.")
    if kind == "column":
        parts = sorted(
            {
                graph.nodes[key]["label"]
                for key in touched
                if graph.nodes[key]["kind"] in ("feature", "label", "rows")
            }
        )
        said.append(f"What reads it: {', '.join(parts)}.")
    answered = sum(int(node.get("answers") or 0) for node in affected)
    if answered:
        said.append(f"These versions have answered {answered:,} requests.")
    return said


def serves(node: Node) -> str:
    """How a version stands to traffic, as the rest of a sentence."""
    arms = [each for each in node.get("serving", ()) if each["arm"] != "shadow"]
    if arms:
        return "answers " + " and ".join(
            f"{each['weight']:.0%} of requests as {each['arm']}" for each in arms
        )
    if any(each["arm"] == "shadow" for each in node.get("serving", ())):
        return "answers in the shadow only"
    return (
        "is approved for production; no route table says what serves"
        if node.get("live")
        else "does not serve"
    )


def _brief(node: Node) -> dict[str, Any]:
    names = ("model", "version", "semver", "stage", "at", "author", "answers", "serving", "live")
    return {name: node.get(name) for name in names} | {"id": node["id"], "serves": serves(node)}


def _count(things: Iterable[object], kind: str) -> str:
    number = len(list(things))
    return f"{number:,} {kind if number == 1 else plural(kind)}"


# What is asked about


def _find_batch(conn: Connection, text: str, model: str | None) -> tuple[Graph, list[str]]:
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise BadInput("not the name of a batch", got=text, wanted="TABLE/ID or MODEL/TABLE/ID")
    known = [t for t in store.tables(conn) if model in (None, t.partition("/")[0])]
    wanted = "/".join(parts[:-1])
    tables = [t for t in known if t == wanted or (len(parts) == 2 and t.partition("/")[2] == wanted)]
    if not tables:
        short = [t if len(parts) == 3 else t.partition("/")[2] for t in known]
        raise NotFound("no batch has landed in such a table", got=wanted, wanted=", ".join(sorted(set(short))[:20]),
                       next=did_you_mean(wanted, short))  # fmt: skip
    found = [(table, batch) for table in tables for batch in store.batches_like(conn, table, parts[-1])]
    if not found:
        newest = [batch[:12] for table in tables for batch in store.newest_batches(conn, table)]
        raise NotFound(
            "no such batch", where=", ".join(tables), got=parts[-1], wanted=f"one of {', '.join(newest)} …"
        )
    if len({batch for _, batch in found}) > 1:
        raise BadInput("more than one batch begins so", got=parts[-1], next="Give more of its id.")
    names = [(*table.split("/", 1), batch) for table, batch in found]
    graph = _graph_of(conn, {name[0] for name in names})
    return graph, [batch_id(m, table, batch) for m, table, batch in names]


def _find_source(conn: Connection, text: str, model: str | None) -> tuple[Graph, list[str]]:
    known = store.uris(conn)
    uri = public_uri(text)
    here = [
        (table, place)
        for place, tables in known.items()
        for table in tables
        if model in (None, table.partition("/")[0])
    ]
    exact = [(t, place) for t, place in here if place == uri or text in (t, t.partition("/")[2])]
    # Else the end of a path or an address.
    matching = exact or [(table, place) for table, place in here if place.endswith(f"/{uri.lstrip('/')}")]
    found = [(table.partition("/")[0], place) for table, place in matching]
    if not found:
        names = [*known, *(table.partition("/")[2] for tables in known.values() for table in tables)]
        raise NotFound("nothing has landed from such a source", got=text, wanted="a table's name or a source's URI",
                       next=did_you_mean(text, names) or "loopwright data tables")  # fmt: skip
    graph = _graph_of(conn, {name for name, _ in found})
    return graph, list(dict.fromkeys(source_id(name, place) for name, place in found))


def _find_snapshot(conn: Connection, text: str, model: str | None) -> tuple[Graph, list[str]]:
    return _by_prefix(
        conn, "snapshot", text, model, store.snapshots_like(conn, text) if len(text) >= 6 else []
    )


def _find_run(conn: Connection, text: str, model: str | None) -> tuple[Graph, list[str]]:
    return _by_prefix(conn, "run", text, model, store.runs_like(conn, text))


def _by_prefix(
    conn: Connection, what: str, text: str, model: str | None, found: list[tuple[str, str]]
) -> tuple[Graph, list[str]]:
    found = [each for each in found if model in (None, each[1])]
    if len(found) > 1:
        raise BadInput(f"more than one {what} begins so", got=text, next="Give more of it.")
    if not found:
        near = did_you_mean(text, store.newest(conn, what))
        raise NotFound(f"no such {what}", got=text, wanted="six digits of it or more", next=near)
    name, owner = found[0]
    return _graph_of(conn, {owner}), [name]


def _find_column(conn: Connection, text: str, model: str | None) -> tuple[Graph, list[str]]:
    head, _, rest = text.rpartition("/")
    owner = head or model
    known: dict[str, set[str]] = {}
    for name in [owner] if owner else store.models(conn):
        for tables in store.schemas(conn, name):
            for table, held in tables.items():
                known.setdefault(name, set()).update(f"{table}.{column}" for column in held)
    owners = [name for name, columns in known.items() if rest in columns]
    if not owners:
        names = {column for columns in known.values() for column in columns}
        raise NotFound("no snapshot holds such a column", got=text, wanted="TABLE.COLUMN or MODEL/TABLE.COLUMN",
                       next=did_you_mean(rest, names))  # fmt: skip
    graph = _graph_of(conn, set(owners))
    focus = [
        key
        for key, node in graph.nodes.items()
        if node["kind"] == "column"
        and (
            rest == f"{node['table']}.{node['column']}"
            or (node["column"] == "*" and rest.startswith(f"{node['table']}."))
        )
    ]
    # A column that nobody reads is a thing all the same.
    return graph, focus or [graph.add(f"column:{owners[0]}/{rest}", "column", rest, model=owners[0])]


_FINDERS = {
    "batch": _find_batch,
    "snapshot": _find_snapshot,
    "source": _find_source,
    "run": _find_run,
    "column": _find_column,
}


def _graph_of(conn: Connection, models: Iterable[str]) -> Graph:
    """The graphs of several models as one; what they share (a source, code) is one node."""
    whole = Graph()
    for model in sorted(models):
        graph = build(store.load(conn, model))
        for key, node in graph.nodes.items():
            whole.nodes.setdefault(key, node)
        whole.edges |= graph.edges
    return whole
