"""Landings: bring a project's sources into their tables, and judge again what has landed."""

from typing import Any

from loopwright.control.context import Context
from loopwright.control.incidents import noticing
from loopwright.control.operation import operation
from loopwright.control.projects import open_project
from loopwright.data import store
from loopwright.data.lake import Lake
from loopwright.kernel.actor import Role
from loopwright.kernel.clock import iso
from loopwright.kernel.errors import NotFound
from loopwright.kernel.progress import Silent, watching
from loopwright.pipeline.intake import land as land_project


@operation("landings.land", "POST", "/data/land", role=Role.DEVELOPER)
def land(
    ctx: Context, project: str, tables: list[str] | None = None, rebuild: list[str] | None = None
) -> dict[str, Any]:
    """Land a project's sources and check them; nothing is pinned. Is idempotent: what has landed is not read again.

    `project` is a folder on the machine that does the work. `tables`: only these sources. `rebuild`: tables whose
    landed batches are judged anew under the contract as it is now; silver and quarantine are replaced, bronze and the
    tables' older versions stay.
    """
    opened = open_project(ctx, project)
    with noticing(ctx):
        reports = land_project(
            opened, Lake.of(ctx.home, ctx.ledger), ctx.actor, ctx.clock, watching.get() or Silent(),
            tables=tables or (), rebuild=rebuild or (),
        )  # fmt: skip
    return {
        "model": opened.spec.model, "project": str(opened.dir), "tables": [r.to_json() for r in reports],
    }  # fmt: skip


@operation("landings.contracts", "GET", "/data/{model}/{table}/contracts")
def contracts(ctx: Context, model: str, table: str) -> list[dict[str, Any]]:
    """List the contracts that a table was judged by, oldest first, each with what it changed."""
    with ctx.ledger.read() as conn:
        found = store.contract_history(conn, f"{model}/{table}")
    if not found:
        raise NotFound(
            "no contract is on record for this table", where=f"{model}/{table}",
            next="They are written down when the table lands; see: loopwright data tables",
        )  # fmt: skip
    return [
        {
            "number": each.number, "digest": each.digest, "version": each.version, "change": each.change,
            "differences": each.differences, "actor": each.actor, "at": iso(each.at),
        }
        for each in found
    ]  # fmt: skip
