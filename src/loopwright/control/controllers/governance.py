"""Settles what governance has waited for: freezes that are over, evidence that came last, reviews that are late."""

from datetime import datetime, timedelta
from typing import Any

from loopwright.control import glass
from loopwright.control.context import Context
from loopwright.control.desired import deliver_due
from loopwright.control.signals import event_time_of
from loopwright.delivery.store import active_rollout
from loopwright.kernel.actor import SYSTEM
from loopwright.kernel.stage import Stage
from loopwright.ledger.store import get_meta
from loopwright.registry import promotion, review
from loopwright.registry.policy import Promotion

AT_LEAST_EVERY = timedelta(seconds=5)
"""Time alone ends freezes and makes reviews late; whatever else counts leaves a row in the audit log."""


class GovernanceController:
    """Looks only when the audit log has grown or some time has passed: an idle round costs one read."""

    def __init__(self) -> None:
        self._seen: str | None = None
        self._looked: datetime | None = None

    def tick(self, ctx: Context) -> list[dict[str, Any]]:
        """One round; see `loop.Tick`. One promotion that fails does not keep the others from settling."""
        now = ctx.now
        with ctx.ledger.read() as conn:
            head = get_meta(conn, "audit.head")
            # A clock set back is a reason to look, not to wait until it has caught up.
            recent = self._looked is not None and timedelta() <= now - self._looked < AT_LEAST_EVERY
            if head == self._seen and recent:
                return []
            ready = promotion.ready(conn, now)
            late = [each for each in review.list_reviews(conn, state="open") if each.overdue(now)]
        self._seen, self._looked = head, now
        done: list[dict[str, Any]] = []
        errors: list[Exception] = []
        for one in ready:
            try:
                done += _settle(ctx, one, now)
            except Exception as error:  # noqa: BLE001 - told when the others are done
                errors.append(error)
        for each in late:
            with ctx.ledger.write() as conn:
                moment = event_time_of(conn, each.model, now)
                if glass.tell_overdue(conn, each, moment, now) is not None:
                    done.append({"model": each.model, "version": each.version, "overdue": "review"})
        if errors:
            raise errors[0]
        return done


def _settle(ctx: Context, one: Promotion, now: datetime) -> list[dict[str, Any]]:
    with ctx.ledger.write() as conn:
        standing = [
            p for p in promotion.list_promotions(conn, model=one.model, state="pending") if p.id == one.id
        ]
        if not standing or (one.stage is Stage.PRODUCTION and active_rollout(conn, one.model) is not None):
            return []
        settled = promotion.settle(conn, standing[0], now=now, actor=SYSTEM)
        if settled.state != "effective":
            return []
        deliver_due(ctx, conn, one.model)
    return [{"model": one.model, "version": one.version, "promoted": one.stage.value}]
