"""Rollouts: show, pause, resume, abort, promote."""

from typing import Any

from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.control.signals import event_time_of
from loopwright.delivery import conduct
from loopwright.delivery import store as delivery_store
from loopwright.delivery.evidence import gather
from loopwright.kernel.actor import Role
from loopwright.kernel.errors import NotFound
from loopwright.registry import versions


@operation("delivery.list", "GET", "/rollouts")
def list_rollouts(ctx: Context, model: str | None = None, active: bool = False) -> list[dict[str, Any]]:
    """List rollouts, newest first."""
    with ctx.ledger.read() as conn:
        if model is not None:
            versions.check_model(conn, model)
        return [rollout.to_json() for rollout in delivery_store.list_rollouts(conn, model, active=active)]


@operation("delivery.show", "GET", "/models/{model}/rollout")
def show(ctx: Context, model: str) -> dict[str, Any]:
    """Show the running rollout of a model, or else the last one, with everything that happened to it."""
    with ctx.ledger.read() as conn:
        versions.check_model(conn, model)
        found = delivery_store.active_rollout(conn, model)
        if found is None:
            newest = delivery_store.list_rollouts(conn, model, limit=1)
            if not newest:
                raise NotFound(
                    f"{model} has had no rollout yet",
                    next=f"Promote a version: loopwright promote {model} VERSION",
                )
            found = newest[0]
        return {**found.to_json(), "events": delivery_store.list_events(conn, found.id)}


@operation("delivery.pause", "POST", "/models/{model}/rollout/pause", role=Role.APPROVER)
def pause(ctx: Context, model: str, reason: str = "") -> dict[str, Any]:
    """Keep traffic as it is until it is resumed; harm still rolls back."""
    with ctx.ledger.write() as conn:
        versions.check_model(conn, model)
        return conduct.pause_rollout(
            conn, model, actor=ctx.actor, why=reason or f"paused by {ctx.actor.name}",
            event_time=event_time_of(conn, model, ctx.now), now=ctx.now,
        ).to_json()  # fmt: skip


@operation("delivery.resume", "POST", "/models/{model}/rollout/resume", role=Role.APPROVER)
def resume(ctx: Context, model: str, reason: str = "") -> dict[str, Any]:
    """Go on where it was paused; the pause does not count towards the hold."""
    with ctx.ledger.write() as conn:
        versions.check_model(conn, model)
        return conduct.resume_rollout(
            conn, model, actor=ctx.actor, why=reason or f"resumed by {ctx.actor.name}",
            event_time=event_time_of(conn, model, ctx.now), now=ctx.now,
        ).to_json()  # fmt: skip


@operation("delivery.abort", "POST", "/models/{model}/rollout/abort", role=Role.APPROVER)
def abort(ctx: Context, model: str, reason: str = "") -> dict[str, Any]:
    """Send all traffic back to the baseline now, and take the version's stage away."""
    with ctx.ledger.write() as conn:
        versions.check_model(conn, model)
        return conduct.abort_rollout(
            conn, model, actor=ctx.actor, why=reason or f"aborted by {ctx.actor.name}",
            event_time=event_time_of(conn, model, ctx.now), now=ctx.now, key=ctx.key,
        ).to_json()  # fmt: skip


@operation("delivery.promote", "POST", "/models/{model}/rollout/promote", role=Role.APPROVER)
def promote(ctx: Context, model: str, reason: str = "") -> dict[str, Any]:
    """Send all traffic to the candidate now, on a person's word; refused when the judge says FAIL."""
    with ctx.ledger.write() as conn:
        versions.check_model(conn, model)
        running = delivery_store.active_rollout(conn, model)
        if running is None:
            raise NotFound(
                f"no rollout of {model} is running", next=f"To start one: loopwright promote {model} VERSION"
            )
        event_time = event_time_of(conn, model, ctx.now)
        return conduct.promote_rollout(
            conn, model, evidence=gather(conn, running, until=event_time), actor=ctx.actor,
            why=reason or "on a person's word", event_time=event_time, now=ctx.now, key=ctx.key,
        ).to_json()  # fmt: skip
