"""Anchors the audit log on a schedule, while it grows: no row stays without an anchor for longer than that."""

from datetime import timedelta
from typing import Any

from loopwright.control import anchors
from loopwright.control.context import Context
from loopwright.kernel.clock import from_us
from loopwright.kernel.errors import Tampered
from loopwright.ledger import store as ledger_store
from loopwright.ledger.audit import Walk

ROWS_A_ROUND = 20_000
"""A fifth of a second of walking: the controllers' lease must not run out over a long log."""


class AnchoringController:
    """Walks on a little in each round while an anchor is due, and signs where it has come to the end."""

    def __init__(self) -> None:
        self._walk: Walk | None = None

    def tick(self, ctx: Context) -> list[dict[str, Any]]:
        """Anchor when it is due; see `loop.Tick`. Raises Tampered for a log that does not hold: nothing is signed."""
        with ctx.ledger.read() as conn:
            standing = anchors.last_anchor(conn)
            anchor = standing[0] if standing else None
            waiting = anchors.unanchored_since(conn, anchor)
            if waiting is None:
                return []
            age = ctx.now - from_us(waiting)
            # Less than nothing: the clock was set back; nobody can say how long the row has waited.
            if timedelta() <= age < anchors.schedule_of(ctx.home).every:
                return []
            walk = self._walk
            if walk is None or walk.seq < (anchor.seq if anchor else 0):
                walk = anchors.start_of(anchor)
            report = ledger_store.verify(conn, since=walk, limit=ROWS_A_ROUND)
        if not report.ok:
            self._walk = None
            raise Tampered(
                f"{report.why}; nothing was anchored", where="audit log", next="loopwright audit verify"
            )
        self._walk = report.reached
        if not report.done:
            return []
        made = anchors.anchor_now(ctx, reached=report.reached)
        self._walk = None
        return [{"anchor": made.seq, "hash": made.hash}]
