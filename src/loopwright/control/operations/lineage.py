"""Lineage: where versions come from, what became of them, what data touched, and all of it for OpenLineage."""

from datetime import datetime
from typing import Any, Literal

from loopwright.control import openlineage
from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.data.lake import Lake
from loopwright.data.snapshot import load_snapshot
from loopwright.features.lineage import feature_lineage
from loopwright.features.module import load_features
from loopwright.kernel.actor import Role
from loopwright.kernel.errors import BadInput
from loopwright.pipeline import store as pipeline_store
from loopwright.pipeline.keep import kept_project
from loopwright.registry import lineage as registry_lineage
from loopwright.registry.authority import require_on


@operation("lineage.version", "GET", "/lineage/models/{model}/{version}")
def version(
    ctx: Context,
    model: str,
    version: int,
    direction: Literal["up", "down", "both"] = "up",
    generations: int = 1,
    whole: bool = False,
) -> dict[str, Any]:
    """Show what a version came from (up), what became of it (down), or both, as a graph."""
    with ctx.ledger.read() as conn:
        return registry_lineage.lineage(
            conn, model=model, version=version, direction=direction, generations=generations, whole=whole
        )


@operation("lineage.impact", "GET", "/lineage")
def impact(
    ctx: Context,
    batch: str | None = None,
    snapshot: str | None = None,
    source: str | None = None,
    run: str | None = None,
    column: str | None = None,
    model: str | None = None,
    whole: bool = False,
) -> dict[str, Any]:
    """Show what a batch, a snapshot, a source, a run or a column touched: versions, and which of them serve now."""
    with ctx.ledger.read() as conn:
        return registry_lineage.impact(
            conn,
            batch=batch,
            snapshot=snapshot,
            source=source,
            run=run,
            column=column,
            model=model,
            whole=whole,
        )


@operation("lineage.columns", "GET", "/lineage/runs/{run}/columns")
def columns(ctx: Context, run: str, recompute: bool = False) -> dict[str, Any]:
    """Show which columns each input of a run reads, as recorded with it.

    Told anew from the code that was kept with the run when it recorded none, or with `recompute`. That runs the
    project's features.py, which takes the role of a developer.
    """
    with ctx.ledger.read() as conn:
        found = pipeline_store.find_run(conn, run)
        recorded = found["context"].get("lineage")
        if recorded is not None and not recompute:
            return {
                "run": found["run_id"],
                "model": found["model"],
                "recorded": True,
                "agrees": None,
                **recorded,
            }
        require_on(conn, ctx.actor, Role.DEVELOPER, "run the code kept with a run", model=found["model"])
    if not found["snapshot"]:
        raise BadInput("the run pinned no snapshot", where=f"run {found['run_id']}")
    snapshot = load_snapshot(Lake.of(ctx.home, ctx.ledger), found["snapshot"])
    schemas = {name: list(table["schema"]) for name, table in snapshot.tables.items()}
    told = feature_lineage(load_features(kept_project(ctx.home, found["run_id"])), schemas)
    if recorded is not None:
        told["transform"] |= {k: v for k, v in recorded["transform"].items() if k == "gives"}
    agrees = None if recorded is None else told == recorded
    return {"run": found["run_id"], "model": found["model"], "recorded": False, "agrees": agrees, **told}


@operation("lineage.events", "GET", "/lineage/events")
def events(ctx: Context, since: datetime | None = None, after: int = 0, limit: int = 500) -> dict[str, Any]:
    """Make OpenLineage events anew from the ledger; `next` is what to give as `after` for the rest, null at the end."""
    if not 1 <= limit <= 5000:
        raise BadInput("`limit` is out of range", got=limit, wanted="1 to 5000")
    if since is not None and since.tzinfo is None:
        raise BadInput("a time without its zone", got=since.isoformat(), wanted="2013-07-01T12:00:00Z")
    namespace = openlineage.namespace_of(ctx.home)
    found, going = openlineage.told(ctx.ledger, namespace=namespace, after=after, since=since, limit=limit)
    return {"events": found, "next": going}
