"""The audit log: look, verify, export."""

from datetime import datetime
from typing import Any

from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.kernel.errors import BadInput
from loopwright.ledger import store as ledger_store


@operation("audit.show", "GET", "/audit")
def show(
    ctx: Context,
    subject: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Return audit rows, oldest first: the newest `limit` of those that fit."""
    if not 1 <= limit <= 10_000:
        raise BadInput("`limit` is out of range", got=limit, wanted="1 to 10000; `audit export` gives all")
    with ctx.ledger.read() as conn:
        rows = ledger_store.rows(
            conn, subject=subject, actor=actor, action=action, since=since, until=until, limit=limit
        )
    return [row.to_json() for row in rows]


@operation("audit.verify", "GET", "/audit/verify")
def verify(ctx: Context) -> dict[str, Any]:
    """Walk the whole chain and say whether every row follows the one before."""
    with ctx.ledger.read() as conn:
        return ledger_store.verify(conn).to_json()


@operation("audit.export", "GET", "/audit/export")
def export(
    ctx: Context, since: datetime | None = None, until: datetime | None = None
) -> list[dict[str, Any]]:
    """Return every audit row with its hashes, oldest first, so that others can verify the chain."""
    with ctx.ledger.read() as conn:
        return [row.to_json() for row in ledger_store.rows(conn, since=since, until=until)]
