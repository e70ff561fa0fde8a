"""Keeps the audit log up with the keys: they are files, and a process may die between the file and the log."""

from typing import Any

from sqlalchemy import Connection

from loopwright.control.context import Context
from loopwright.kernel.actor import SYSTEM
from loopwright.ledger import store as ledger_store

_CUT_SHORT = "found in the list of keys: the act that did it was cut short before its row was written"


class KeysController:
    """Looks at the log only when the list of keys has changed, and once at the start."""

    def __init__(self) -> None:
        self._seen = 0

    def tick(self, ctx: Context) -> list[dict[str, Any]]:
        """One round; see `loop.Tick`."""
        serial = ctx.keyring.ring.serial
        if serial == self._seen:
            return []
        with ctx.ledger.read() as conn:
            missing = bool(_unnoted(ctx, conn))
        found = []
        if missing:
            with ctx.ledger.write() as conn:
                found = note_key_acts(ctx, conn)
        self._seen = serial
        return [{"key": key_id, "noted": action} for action, key_id in found]


def note_key_acts(ctx: Context, conn: Connection) -> list[tuple[str, str]]:
    """Write the row of each rotation and revocation that the list of keys shows and the log does not.

    Returns (action, key id) of what was written. Is idempotent.
    """
    found = _unnoted(ctx, conn)
    for action, key_id, payload in found:
        ledger_store.append(
            conn, at=ctx.now, actor=SYSTEM.name, action=action, subject=f"key/{key_id}",
            payload={**payload, "reason": _CUT_SHORT},
        )  # fmt: skip
    return [(action, key_id) for action, key_id, _ in found]


def _unnoted(ctx: Context, conn: Connection) -> list[tuple[str, str, dict[str, Any]]]:
    noted = {
        (row.action, row.subject)
        for action in ("key.rotated", "key.revoked")
        for row in ledger_store.rows(conn, action=action)
    }
    acts: list[tuple[str, str, dict[str, Any]]] = []
    keys = ctx.keyring.ring.keys
    for before, entry in zip((None, *keys), keys, strict=False):
        if before is not None:
            acts.append(("key.rotated", entry.key_id, {"from": before.key_id, "to": entry.key_id}))
        if entry.revoked_at:
            acts.append(("key.revoked", entry.key_id, {"key_id": entry.key_id, "why": entry.reason}))
    return [act for act in acts if (act[0], f"key/{act[1]}") not in noted]
