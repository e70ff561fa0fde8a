"""Where a version comes from and what became of it, as a graph: source → snapshot → run → version → stage."""

from typing import Any

from sqlalchemy import Connection

from loopwright.kernel.clock import iso
from loopwright.registry import store
from loopwright.registry.records import Version

Node = dict[str, Any]
Edge = dict[str, str]


def lineage(conn: Connection, *, model: str, version: int) -> dict[str, Any]:
    """Return {"nodes": [{id, kind, label, …}], "edges": [{from, to, kind}]}, parents up to the first version included.

    Raises NotFound for an unknown model or version.
    """
    nodes: dict[str, Node] = {}
    edges: list[Edge] = []
    pending: list[int] = [version]
    while pending:
        found = store.get_version(conn, model, pending.pop())
        if found.subject in nodes:
            continue
        _add_version(conn, found, nodes, edges)
        if found.parent is not None:
            edges.append({"from": f"{model}/{found.parent}", "to": found.subject, "kind": "parent of"})
            pending.append(found.parent)
    return {"model": model, "version": version, "nodes": list(nodes.values()), "edges": edges}


def _add_version(conn: Connection, found: Version, nodes: dict[str, Node], edges: list[Edge]) -> None:
    nodes[found.subject] = {
        "id": found.subject, "kind": "version", "label": found.subject, "stage": found.stage.value,
        "author": found.author, "at": iso(found.created_at), "metrics": dict(found.metrics), "semver": found.semver,
    }  # fmt: skip
    if found.run_id:
        _add_run(conn, found, nodes, edges)
    if found.bundle:
        nodes.setdefault(found.bundle, {"id": found.bundle, "kind": "bundle", "label": found.bundle[:12]})
        edges.append({"from": found.bundle, "to": found.subject, "kind": "registered as"})
        if found.run_id:
            edges.append({"from": found.run_id, "to": found.bundle, "kind": "packed into"})
        for item in store.find_evidence(conn, model=found.model, version=found.version, bundle=found.bundle):
            label = f"{item.kind}: {item.verdict.value}"
            nodes[item.digest] = {"id": item.digest, "kind": "evidence", "label": label, "at": iso(item.at)}
            edges.append({"from": found.subject, "to": item.digest, "kind": "judged by"})
    for promotion in store.find_promotions(conn, model=found.model, version=found.version):
        nodes[promotion.id] = {
            "id": promotion.id, "kind": "promotion", "label": f"{promotion.stage.value} ({promotion.state})",
            "requested_by": promotion.requested_by, "approved_by": list(promotion.approved_by),
            "at": iso(promotion.decided_at or promotion.requested_at),
        }  # fmt: skip
        edges.append({"from": found.subject, "to": promotion.id, "kind": "promoted by"})


def _add_run(conn: Connection, found: Version, nodes: dict[str, Node], edges: list[Edge]) -> None:
    run_id = str(found.run_id)
    run = store.find_run(conn, run_id)
    commit = ((run or {}).get("git") or {}).get("commit") if run else None
    nodes[run_id] = {"id": run_id, "kind": "run", "label": f"run {run_id[:12]}", **(run or {})}
    if commit:
        nodes[commit] = {"id": commit, "kind": "code", "label": f"commit {commit[:12]}"}
        edges.append({"from": commit, "to": run_id, "kind": "ran as"})
    if not found.snapshot:
        return
    nodes[found.snapshot] = {
        "id": found.snapshot,
        "kind": "snapshot",
        "label": f"snapshot {found.snapshot[:12]}",
    }
    edges.append({"from": found.snapshot, "to": run_id, "kind": "trained"})
    tables = (store.snapshot_manifest(conn, found.snapshot) or {}).get("tables") or {}
    for name, table in tables.items():
        number = table.get("version")
        pinned = f"table:{found.model}/{name}@{number}"
        nodes[pinned] = {
            "id": pinned,
            "kind": "table",
            "label": f"{name} @ {number}",
            "rows": table.get("rows"),
        }
        edges.append({"from": pinned, "to": found.snapshot, "kind": "pinned in"})
