"""Tables and their versions: snapshots, what may be vacuumed."""

from datetime import timedelta
from typing import Any

from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.data.lake import Lake
from loopwright.data.versions import store as versions_store
from loopwright.data.versions.vacuum import Announce, tables_in, vacuum
from loopwright.kernel.actor import Role
from loopwright.kernel.clock import format_duration, parse_duration
from loopwright.kernel.errors import BadInput, NotFound, did_you_mean
from loopwright.registry.authority import require_on
from loopwright.registry.policies import policy_of


@operation("tables.snapshots", "GET", "/snapshots")
def snapshots(ctx: Context, model: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """List snapshots, newest first, with the runs and versions that rest on each."""
    if not 1 <= limit <= 10_000:
        raise BadInput("`limit` is out of range", got=limit, wanted="1 to 10000")
    with ctx.ledger.read() as conn:
        if model is not None:
            _known_model(model, {name for name, _ in versions_store.tables_of(conn)})
        return versions_store.list_snapshots(conn, model, limit)


@operation("tables.vacuum", "POST", "/data/vacuum", role=Role.DEVELOPER)
def vacuum_tables(
    ctx: Context, model: str | None = None, older_than: str | None = None, delete: bool = False
) -> dict[str, Any]:
    """List the files that no kept version of a table needs; with `delete`, delete them.

    Kept is what a registered version, a run or an online store rests on, the newest version, and every version that
    was in force within `older_than` (default: the policy's `retain`). Less than the policy says is an admin's to ask.
    """
    lake = Lake.of(ctx.home, ctx.ledger)
    listed = tables_in(lake)
    known = {name for _, name, _ in listed}
    if model is not None:
        _known_model(model, known)
    plans = []
    for name in sorted(known) if model is None else [model]:
        with ctx.ledger.read() as conn:
            retain = policy_of(conn, name).retain
            asked = retain if older_than is None else parse_duration(older_than)
            below = f" below its retention of {format_duration(retain)}" if asked < retain else ""
            if delete:
                least = Role.ADMIN if below else Role.DEVELOPER
                require_on(conn, ctx.actor, least, f"vacuum {name}{below}", model=name)
        if asked < timedelta():
            raise BadInput("a retention cannot be negative", got=older_than)
        announce = Announce(lake, actor=ctx.actor.name, now=ctx.now, retain=format_duration(asked))
        done = vacuum(
            lake,
            model=name,
            now=ctx.now,
            retain=asked,
            runs_for=retain,
            announce=announce if delete else None,
        )
        plans += [{**plan.to_json(), "retain": format_duration(asked)} for plan in done]
    return {
        "deleted": delete, "tables": plans, "files": sum(one["files"] for one in plans),
        "bytes": sum(one["bytes"] for one in plans),
    }  # fmt: skip


def _known_model(model: str, known: set[str]) -> None:
    if model not in known:
        raise NotFound(
            "no tables of this model", got=model, wanted=", ".join(sorted(known)) or "none yet",
            next=did_you_mean(model, known),
        )  # fmt: skip
