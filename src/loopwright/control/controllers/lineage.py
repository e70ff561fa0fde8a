"""Tells OpenLineage what the audit log has got since the last round."""

from typing import Any

from loopwright.control.context import Context
from loopwright.control.openlineage import Emitter


class LineageController:
    """An idle round costs one read; posting has a thread of its own."""

    def __init__(self) -> None:
        self._emitter: Emitter | None = None

    def tick(self, ctx: Context) -> list[dict[str, Any]]:
        """One round; see `loop.Tick`."""
        self._emitter = self._emitter or Emitter(ctx.home, ctx.ledger)
        self._emitter.catch_up()
        self._emitter.post()
        return []
