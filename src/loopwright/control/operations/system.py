"""The whole home at a glance: status, doctor, and one round of the controllers."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from loopwright.control.context import Context
from loopwright.control.controllers.standard import standard_controllers
from loopwright.control.health import examine
from loopwright.control.operation import operation
from loopwright.delivery import store as delivery_store
from loopwright.delivery.rollout import canary_weight
from loopwright.delivery.routes import stable_version
from loopwright.kernel.actor import Role
from loopwright.kernel.stage import Stage
from loopwright.monitoring import store as monitoring_store
from loopwright.monitoring.alerts import GOVERNANCE
from loopwright.registry import promotion, review, versions


@operation("system.status", "GET", "/status")
def status(ctx: Context, model: str | None = None) -> list[dict[str, Any]]:
    """One row per model: stage, traffic, health, drift, open alerts, what waits for a person, open reviews."""
    with ctx.ledger.read() as conn:
        if model is not None:
            versions.check_model(conn, model)
        return [_of_model(conn, name, ctx.now) for name in versions.list_models(conn) if model in (None, name)]


@operation("system.doctor", "GET", "/doctor")
def doctor(ctx: Context) -> list[dict[str, Any]]:
    """Check the machine and the home: what is well, what is not, and what to do about it."""
    return examine(ctx)


@operation("system.tick", "POST", "/tick", role=Role.ADMIN)
def tick(ctx: Context) -> list[dict[str, Any]]:
    """Run one round of the controllers now (rollouts, monitoring, retraining) and say what was done."""
    ticker = ctx.ticker or standard_controllers(ctx)
    return ticker.tick()


@operation("system.where", "GET", "/where", role=Role.DEVELOPER)
def where(ctx: Context) -> dict[str, Any]:
    """Say where this home lives, so that a run on the same machine can find it."""
    return {
        "home": ctx.home.root,
        "key_id": ctx.key.public.key_id,
        "actor": ctx.actor.name,
        "role": ctx.actor.role,
    }


def _of_model(conn: Connection, model: str, now: datetime) -> dict[str, Any]:
    found = versions.list_versions(conn, model=model)
    stable = stable_version(conn, model)
    running = delivery_store.active_rollout(conn, model)
    standing = monitoring_store.list_alerts(conn, model, standing=True)
    drift = monitoring_store.list_windows(conn, model, kind="drift", limit=1)
    quality = monitoring_store.list_windows(conn, model, kind="quality", limit=1)
    pending = promotion.list_promotions(conn, model=model, state="pending")
    open_reviews = review.list_reviews(conn, model=model, state="open")
    tiers = sorted({alert.tier.value for alert in standing})
    ailing = sorted({alert.tier.value for alert in standing if alert.kind not in GOVERNANCE})
    return {
        "model": model,
        "versions": len(found),
        "production": [version.version for version in found if version.stage is Stage.PRODUCTION],
        "stable": stable,
        "canary": None if running is None else {
            "version": running.version, "weight": canary_weight(running.state), "at": running.to_json()["at"],
            "status": running.status, "why": running.reason,
        },
        "health": _health(stable, ailing),
        "drift": drift[-1].verdict if drift else None,
        "quality": quality[-1].to_json() if quality else None,
        "alerts": {tier: sum(alert.tier.value == tier for alert in standing) for tier in tiers},
        "waiting": [{"version": one.version, "stage": one.stage.value, "by": one.requested_by} for one in pending],
        "reviews": [
            {"version": one.version, "by": one.broken_by, "due_at": one.due_at, "overdue": one.overdue(now)}
            for one in open_reviews
        ],
        "event_time": monitoring_store.watermark(conn, model),
    }  # fmt: skip


def _health(stable: int | None, tiers: list[str]) -> str:
    if stable is None:
        return "not serving"
    if "P0" in tiers:
        return "not answering"
    return "degraded" if "P1" in tiers else "ok"
