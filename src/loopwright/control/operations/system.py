"""The whole home at a glance: status, doctor, and one round of the controllers."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection

from loopwright.control.context import Context
from loopwright.control.controllers.standard import standard_controllers
from loopwright.control.health import examine
from loopwright.control.operation import operation
from loopwright.delivery import store as delivery_store
from loopwright.delivery.rollout import canary_weight
from loopwright.delivery.store import Rollout
from loopwright.kernel.actor import Role
from loopwright.monitoring import store as monitoring_store
from loopwright.monitoring.alerts import GOVERNANCE, Alert
from loopwright.registry import promotion, review, versions
from loopwright.registry.policy import Promotion
from loopwright.registry.records import Review
from loopwright.registry.versions import Overview


@operation("system.status", "GET", "/status")
def status(ctx: Context, model: str | None = None) -> list[dict[str, Any]]:
    """One row per model: stage, traffic, health, drift, open alerts, what waits for a person, open reviews."""
    with ctx.ledger.read() as conn:
        if model is not None:
            versions.check_model(conn, model)
        found = _Home.seen(conn, model)
        return [_of_model(conn, found, name, ctx.now) for name in found.models]


@operation("system.doctor", "GET", "/doctor", role=Role.ADMIN)
def doctor(ctx: Context) -> list[dict[str, Any]]:
    """Check the machine and the home: what is well, what is not, and what to do about it.

    It names folders, the database and whose tokens are about to end: for admins, as the owner of a folder is.
    """
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
        # What they hold with the token they came with: a run acts with no more.
        "role": ctx.actor.role_on(),
    }


@dataclass(frozen=True, slots=True)
class _Home:
    """What there is of all models, read at once: a hundred models must not cost a thousand queries."""

    models: dict[str, Overview]
    stable: dict[str, int]
    running: dict[str, Rollout]
    alerts: dict[str, list[Alert]]
    pending: dict[str, list[Promotion]]
    reviews: dict[str, list[Review]]
    judged: frozenset[str]
    event_times: dict[str, datetime]

    @classmethod
    def seen(cls, conn: Connection, model: str | None) -> "_Home":
        rollouts = delivery_store.list_rollouts(conn, model, active=True, limit=10_000)
        return cls(
            versions.overviews(conn, model=model),
            delivery_store.standing_versions(conn, model),
            {one.model: one for one in rollouts},
            _by_model(monitoring_store.list_alerts(conn, model, standing=True)),
            _by_model(promotion.list_promotions(conn, model=model, state="pending")),
            _by_model(review.list_reviews(conn, model=model, state="open")),
            frozenset(monitoring_store.models_judged(conn)),
            monitoring_store.all_watermarks(conn),
        )


class _OfModel(Protocol):
    @property
    def model(self) -> str: ...


_One = TypeVar("_One", bound=_OfModel)


def _by_model(things: Iterable[_One]) -> dict[str, list[_One]]:
    sorted_out: dict[str, list[_One]] = {}
    for thing in things:
        sorted_out.setdefault(thing.model, []).append(thing)
    return sorted_out


def _of_model(conn: Connection, home: _Home, model: str, now: datetime) -> dict[str, Any]:
    found, stable, running = home.models[model], home.stable.get(model), home.running.get(model)
    standing, pending = home.alerts.get(model, []), home.pending.get(model, [])
    open_reviews = home.reviews.get(model, [])
    drift, quality = (
        monitoring_store.list_windows(conn, model, kind=kind, limit=1) if model in home.judged else []
        for kind in ("drift", "quality")
    )
    tiers = sorted({alert.tier.value for alert in standing})
    ailing = sorted({alert.tier.value for alert in standing if alert.kind not in GOVERNANCE})
    return {
        "model": model,
        "versions": found.versions,
        "production": found.production,
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
        "event_time": home.event_times.get(model),
    }  # fmt: skip


def _health(stable: int | None, tiers: list[str]) -> str:
    if stable is None:
        return "not serving"
    if "P0" in tiers:
        return "not answering"
    return "degraded" if "P1" in tiers else "ok"
