"""From desired to actual: every promotion to Production that took effect gets its rollout."""

from sqlalchemy import Connection

from loopwright.control.context import Context
from loopwright.control.signals import event_time_of
from loopwright.delivery import conduct
from loopwright.delivery import store as delivery_store
from loopwright.delivery.plan import Plan
from loopwright.delivery.store import Rollout
from loopwright.monitoring.store import load_spec
from loopwright.project.sections import Delivery


def deliver_due(ctx: Context, conn: Connection, model: str) -> list[Rollout]:
    """Begin the rollout that a promotion of `model` asks for, inside the caller's write transaction. Is idempotent.

    A model that is being rolled out already, or experimented on, waits: one at a time. Other models are left to the
    controllers: what is wrong with one must not undo an approval of another.
    """
    begun = []
    for due in delivery_store.due_promotions(conn, model):
        if delivery_store.active_rollout(conn, model) or delivery_store.active_experiment(conn, model):
            break
        moment = event_time_of(conn, due.model, ctx.now)
        plan = plan_of(conn, due.model)
        begun.append(conduct.start_due(conn, due, plan, key=ctx.key, now=ctx.now, event_time=moment))
    return begun


def plan_of(conn: Connection, model: str) -> Plan:
    """How the model's project wants it delivered; the safe default for a model without a project."""
    spec = load_spec(conn, model)
    return Plan.from_spec(spec.delivery if spec is not None else Delivery())
