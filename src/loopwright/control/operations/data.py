"""Data: check sources without landing them, land and pin them, look at tables and quarantine."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from loopwright.control.context import Context
from loopwright.control.incidents import noticing
from loopwright.control.operation import operation
from loopwright.control.projects import lies_in, open_project
from loopwright.data import quarantine as held
from loopwright.data import store as data_store
from loopwright.data.contract import Contract
from loopwright.data.duck import MEMORY
from loopwright.data.lake import Lake
from loopwright.data.snapshot import load_snapshot, verify_snapshot
from loopwright.data.versions.store import tables_of
from loopwright.kernel.actor import Role
from loopwright.kernel.errors import BadInput, NotFound, Refused, did_you_mean
from loopwright.kernel.progress import Silent, watching
from loopwright.pipeline import store as pipeline_store
from loopwright.pipeline.gold import TABLE as GOLD
from loopwright.pipeline.gold import last_gold
from loopwright.pipeline.intake import bring_in
from loopwright.pipeline.trial import Trials

ROWS = 10_000


@operation("data.check", "POST", "/data/check", role=Role.DEVELOPER)
def check(
    ctx: Context,
    project: str,
    tables: list[str] | None = None,
    memory: str = MEMORY,
    rows: int = 0,
    engine: str | None = None,
) -> dict[str, Any]:
    """Check a project's sources against their contracts; nothing is landed.

    `project` is a folder on the machine that does the work. `memory`: what DuckDB may take. `rows`: so many of the
    rows that would be set aside are shown. `engine`: "duckdb" or a Spark's URL; else what loop.yaml names, or the home.
    """
    opened = open_project(ctx, project)
    _all_known(tables, list(opened.spec.data.sources))
    chosen = engine or opened.spec.data.engine
    found = [trial.to_json() for trial in _trials(ctx, memory, rows, chosen).project(opened, tables)]
    return {"model": opened.spec.model, "project": str(opened.dir), "tables": found}


@operation("data.check_source", "POST", "/data/check/source", role=Role.DEVELOPER)
def check_source(
    ctx: Context,
    uri: str,
    contract: str,
    model: str | None = None,
    memory: str = MEMORY,
    rows: int = 0,
    engine: str | None = None,
) -> dict[str, Any]:
    """Check what lies at a URI against a contract; nothing is landed.

    Paths are of the machine that does the work. `model`: whose tables the contract's relationships point to.
    """
    for named in (uri, contract):
        _require_outside(ctx, named)
    read = Contract.load(Path(contract))
    trial = _trials(ctx, memory, rows, engine).uri(uri, read, Path.cwd(), model=model)
    return {"model": model, "project": None, "tables": [trial.to_json()]}


@operation("data.check_table", "POST", "/data/{model}/{table}/check", role=Role.DEVELOPER)
def check_table(
    ctx: Context,
    model: str,
    table: str,
    contract: str | None = None,
    memory: str = MEMORY,
    rows: int = 0,
    engine: str | None = None,
) -> dict[str, Any]:
    """Check the rows of a table as they stand, against the contract in force or another one.

    `contract` is a file on the machine that does the work.
    """
    if contract is not None:
        _require_outside(ctx, contract)
    read = Contract.load(Path(contract)) if contract is not None else None
    trial = _trials(ctx, memory, rows, engine).table(model, table, read)
    return {"model": model, "project": None, "tables": [trial.to_json()]}


@operation("data.snapshot", "POST", "/data/snapshot", role=Role.DEVELOPER)
def snapshot(ctx: Context, project: str) -> dict[str, Any]:
    """Land a project's sources, check them, and pin the good rows under one digest. Is idempotent."""
    opened = open_project(ctx, project)
    with noticing(ctx):
        reports, pinned = bring_in(opened, _lake(ctx), ctx.actor, ctx.clock, Silent())
    return {
        "model": opened.spec.model, "digest": pinned.digest, "rows": pinned.rows,
        "manifest": dict(pinned.manifest), "ingests": [report.to_json() for report in reports],
    }  # fmt: skip


@operation("data.show_snapshot", "GET", "/snapshots/{digest}")
def show_snapshot(ctx: Context, digest: str, verify: bool = False) -> dict[str, Any]:
    """Show what a snapshot pins; with `verify`, read every row again and compare the content."""
    lake = _lake(ctx)
    found = verify_snapshot(lake, digest) if verify else load_snapshot(lake, digest)
    return {"digest": found.digest, "rows": found.rows, "manifest": dict(found.manifest), "verified": verify}


@operation("data.tables", "GET", "/data/tables")
def tables(ctx: Context, model: str | None = None) -> list[dict[str, Any]]:
    """List tables with their last batch: rows in, good, set aside, and their versions."""
    with ctx.ledger.read() as conn:
        landed = tables_of(conn, model)
        if model is not None and not landed:
            pipeline_store.load_project_row(conn, model)  # an unknown model names the nearest
        listed = [
            _table(owner, table, data_store.list_batches(conn, f"{owner}/{table}")) for owner, table in landed
        ]
    lake = _lake(ctx)
    for owner in dict.fromkeys(one["model"] for one in listed):
        listed += _gold(lake, owner)
    return listed


@operation("data.quarantine", "GET", "/data/{model}/{table}/quarantine", role=Role.DEVELOPER)
def quarantine(ctx: Context, model: str, table: str, limit: int = 20) -> dict[str, Any]:
    """Show rows that were set aside, newest batch last, with the rules they broke.

    Rows of data are for those who work on the model.
    """
    if not 1 <= limit <= 10_000:
        raise BadInput("`limit` is out of range", got=limit, wanted="1 to 10000")
    with ctx.ledger.read() as conn:
        known = [name for _, name in tables_of(conn, model)]
        row = (
            pipeline_store.find_project(conn, model)
            if known
            else pipeline_store.load_project_row(conn, model)
        )
    known = list(dict.fromkeys([*known, *(row["spec"]["data"]["sources"] if row else ())]))
    if table not in known:
        raise NotFound(f"{model} has no table of this name", got=table, wanted=", ".join(known),
                       next=did_you_mean(table, known))  # fmt: skip
    lake = _lake(ctx)
    standing = held.summary(lake, model, table)
    total, rows = held.look(lake, model, table, held.Choice(), limit)
    return {"model": model, "table": table, "rows": total, "reasons": standing["reasons"], "examples": rows}


def _table(model: str, table: str, batches: list[data_store.Batch]) -> dict[str, Any]:
    last = batches[-1]
    return {
        "model": model, "table": table, "batches": len(batches), "at": last.at, "state": last.report["state"],
        "input_rows": sum(batch.report["input_rows"] for batch in batches),
        "good_rows": sum(batch.report["good_rows"] for batch in batches),
        "bad_rows": sum(batch.report["bad_rows"] for batch in batches),
        "bronze_version": last.bronze_version, "silver_version": last.silver_version,
    }  # fmt: skip


def _gold(lake: Lake, model: str) -> list[dict[str, Any]]:
    """The model's training frame, once a run has written it."""
    made = last_gold(lake, model)
    if made is None:
        return []
    files = pa.table(lake.open("gold", model, GOLD).get_add_actions(flatten=True))
    rows = sum(int(n or 0) for n in files.column("num_records").to_pylist())
    nothing = dict.fromkeys(
        ("batches", "at", "state", "input_rows", "bad_rows", "bronze_version", "silver_version")
    )
    return [
        {**nothing, "model": model, "table": GOLD, "good_rows": rows, "gold_version": made.version,
         "snapshot": made.snapshot}
    ]  # fmt: skip


def _all_known(names: list[str] | None, known: list[str]) -> None:
    for name in names or []:
        if name not in known:
            raise NotFound("the project has no such source", got=name, wanted=", ".join(known),
                           next=did_you_mean(name, known))  # fmt: skip


def _trials(ctx: Context, memory: str, rows: int, engine: str | None) -> Trials:
    if not 0 <= rows <= ROWS:
        raise BadInput("`rows` is out of range", got=rows, wanted=f"0 to {ROWS}")
    watch = watching.get() or Silent()
    chosen = engine or ctx.home.data_engine
    return Trials(_lake(ctx), ctx.home.staging, ctx.now, rows=rows, memory=memory, engine=chosen, watch=watch)


def _require_outside(ctx: Context, named: str) -> None:
    """Refuse files of the home itself: what is wrong in rows is shown, and keys and uploaded files are not for that."""
    scheme, split, rest = named.partition("://")
    if split and scheme != "file":
        return
    if lies_in(ctx.home.root, rest if split else named.partition("#")[0]):
        raise Refused("the home's own files are no source", where=named, wanted="a file outside the home")


def _lake(ctx: Context) -> Lake:
    return Lake.of(ctx.home, ctx.ledger)
