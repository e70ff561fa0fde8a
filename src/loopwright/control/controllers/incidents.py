"""Looks for who is hit by new incidents, keeps their alerts, and tells the webhook what becomes of them."""

from typing import Any

from loopwright.control.context import Context
from loopwright.control.incidents import notice
from loopwright.control.webhook import Webhook


class IncidentsController:
    """An idle round costs three reads; posting has a thread of its own."""

    def __init__(self, webhook: Webhook | None = None) -> None:
        self._webhook = webhook or Webhook()

    def tick(self, ctx: Context) -> list[dict[str, Any]]:
        """One round; see `loop.Tick`."""
        new = notice(ctx)
        self._webhook.catch_up(ctx)
        return [{"incident": one.id, "title": one.title} for one in new]
