"""From desired to actual: every promotion to Production that took effect gets its rollout."""

from typing import Any

from sqlalchemy import Connection

from loopwright.control.context import Context
from loopwright.control.signals import event_time_of
from loopwright.delivery import conduct
from loopwright.delivery import store as delivery_store
from loopwright.delivery.plan import Plan
from loopwright.delivery.store import Rollout
from loopwright.kernel.errors import NotFound
from loopwright.pipeline import store as pipeline_store
from loopwright.project.sections import Delivery
from loopwright.project.spec import Spec


def deliver_due(ctx: Context, conn: Connection) -> list[Rollout]:
    """Begin the rollouts that promotions ask for, inside the caller's write transaction. Is idempotent.

    A model that is being rolled out already waits: one at a time.
    """
    begun = []
    for due in delivery_store.due_promotions(conn):
        if delivery_store.active_rollout(conn, due.model) is not None:
            continue
        moment = event_time_of(conn, due.model, ctx.now)
        plan = plan_of(conn, due.model)
        begun.append(conduct.start_due(conn, due, plan, key=ctx.key, now=ctx.now, event_time=moment))
    return begun


def plan_of(conn: Connection, model: str) -> Plan:
    """How the model's project wants it delivered; the safe default for a model without a project."""
    spec = spec_of(conn, model)
    return Plan.from_spec(spec.delivery if spec is not None else Delivery())


def spec_of(conn: Connection, model: str) -> Spec | None:
    """The project's spec as it was when it last ran; None for a model that came without a project."""
    try:
        row: dict[str, Any] = pipeline_store.load_project_row(conn, model)
    except NotFound:
        return None
    return Spec.from_json(row["spec"])
