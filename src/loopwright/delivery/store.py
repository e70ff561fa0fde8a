"""SQL for rollouts, their events and route tables. Every function works inside the caller's transaction."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, exists, func, insert, select, update

from loopwright.bundle.routes import Arm
from loopwright.delivery.plan import Plan
from loopwright.delivery.rollout import (
    Aborted,
    Done,
    Paused,
    RolledBack,
    State,
    canary_weight,
    describe,
    state_from_json,
    state_to_json,
)
from loopwright.kernel.actor import Actor
from loopwright.kernel.clock import from_us, iso, to_us
from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import NotFound
from loopwright.kernel.stage import Stage
from loopwright.ledger.engine import become_writer
from loopwright.ledger.schema import (
    experiments,
    promotions,
    rollout_events,
    rollouts,
    route_tables,
    segments,
    versions,
)
from loopwright.ledger.store import append

_ACTIVE = ("running", "paused")


@dataclass(frozen=True, slots=True)
class Rollout:
    """One way of a version to traffic, as recorded. Times are wall-clock; event times are in `state`."""

    id: str
    model: str
    version: int
    baseline: int | None
    promotion_id: str | None
    plan: Plan
    state: State
    started_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    reason: str

    @property
    def status(self) -> str:
        return status_of(self.state)

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "model": self.model,
            "version": self.version,
            "baseline": self.baseline,
            "promotion_id": self.promotion_id,
            "strategy": self.plan.strategy.value,
            "status": self.status,
            "at": describe(self.state),
            "weight": canary_weight(self.state),
            "plan": self.plan.to_json(),
            "state": state_to_json(self.state),
            "started_at": iso(self.started_at),
            "updated_at": iso(self.updated_at),
            "ended_at": iso(self.ended_at) if self.ended_at else None,
            "reason": self.reason,
        }


def status_of(state: State) -> str:
    match state:
        case Paused():
            return "paused"
        case Done():
            return "completed"
        case RolledBack():
            return "rolled_back"
        case Aborted():
            return "aborted"
        case _:
            return "running"


def add_rollout(conn: Connection, rollout: Rollout) -> None:
    """Record a new rollout."""
    become_writer(conn)
    conn.execute(
        insert(rollouts).values(
            id=rollout.id,
            model=rollout.model,
            version=rollout.version,
            baseline=rollout.baseline,
            promotion_id=rollout.promotion_id,
            plan=_json(rollout.plan.to_json()),
            state=_json(state_to_json(rollout.state)),
            status=rollout.status,
            started_at=to_us(rollout.started_at),
            updated_at=to_us(rollout.updated_at),
            ended_at=to_us(rollout.ended_at) if rollout.ended_at else None,
            reason=rollout.reason,
        )
    )


def set_state(conn: Connection, rollout_id: str, state: State, reason: str, now: datetime) -> None:
    """Record where the rollout is now; ends it when `state` is an end."""
    status = status_of(state)
    conn.execute(
        update(rollouts)
        .where(rollouts.c.id == rollout_id)
        .values(
            state=_json(state_to_json(state)),
            status=status,
            reason=reason,
            updated_at=to_us(now),
            ended_at=None if status in _ACTIVE else to_us(now),
        )
    )


def get_rollout(conn: Connection, rollout_id: str, *, for_change: bool = False) -> Rollout:
    """Return the rollout with this id; raises NotFound. `for_change` becomes the only writer first."""
    if for_change:
        become_writer(conn)
    found = conn.execute(select(rollouts).where(rollouts.c.id == rollout_id)).one_or_none()
    if found is None:
        raise NotFound("no such rollout", got=rollout_id, next="loopwright rollout show MODEL")
    return _rollout(found)


def active_rollout(conn: Connection, model: str) -> Rollout | None:
    """Return the rollout of `model` that has not ended; there is at most one."""
    query = select(rollouts).where(rollouts.c.model == model, rollouts.c.status.in_(_ACTIVE))
    found = conn.execute(query).one_or_none()
    return _rollout(found) if found else None


def rollout_of_promotion(conn: Connection, promotion_id: str) -> Rollout | None:
    """Return the rollout a promotion led to; there is at most one."""
    found = conn.execute(select(rollouts).where(rollouts.c.promotion_id == promotion_id)).one_or_none()
    return _rollout(found) if found else None


def list_rollouts(
    conn: Connection, model: str | None = None, *, active: bool = False, limit: int = 50
) -> list[Rollout]:
    """The newest `limit` rollouts, newest first."""
    query = select(rollouts).order_by(rollouts.c.started_at.desc(), rollouts.c.id.desc()).limit(limit)
    if model is not None:
        query = query.where(rollouts.c.model == model)
    if active:
        query = query.where(rollouts.c.status.in_(_ACTIVE))
    return [_rollout(found) for found in conn.execute(query)]


def models_with_rollouts(conn: Connection) -> list[str]:
    """Models that have had a rollout, sorted: those a route table may name."""
    return list(conn.execute(select(rollouts.c.model).distinct().order_by(rollouts.c.model)).scalars())


def add_event(
    conn: Connection,
    rollout_id: str,
    kind: str,
    payload: Mapping[str, Any],
    *,
    now: datetime,
    event_time: datetime | None,
) -> None:
    """Append what happened to the rollout."""
    conn.execute(
        insert(rollout_events).values(
            rollout_id=rollout_id,
            at=to_us(now),
            event_time=to_us(event_time) if event_time else None,
            kind=kind,
            payload=_json(dict(payload)),
        )
    )


def list_events(conn: Connection, rollout_id: str) -> list[dict[str, Any]]:
    """What happened to the rollout, oldest first."""
    query = (
        select(rollout_events).where(rollout_events.c.rollout_id == rollout_id).order_by(rollout_events.c.id)
    )
    return [
        {
            "at": iso(from_us(row.at)),
            "event_time": iso(from_us(row.event_time)) if row.event_time is not None else None,
            "kind": row.kind,
            "payload": json.loads(row.payload),
        }
        for row in conn.execute(query)
    ]


def completions(conn: Connection, model: str) -> list[tuple[Rollout, bool]]:
    """Rollouts that brought a version to all traffic, in that order, and whether each was a rollback."""
    query = (
        select(rollouts, rollout_events.c.payload.label("event"))
        .join(rollout_events, rollout_events.c.rollout_id == rollouts.c.id)
        .where(rollouts.c.model == model, rollout_events.c.kind == "completed")
        .order_by(rollout_events.c.id)
    )
    return [(_rollout(row), bool(json.loads(row.event).get("rollback"))) for row in conn.execute(query)]


def standing_versions(conn: Connection, model: str | None = None) -> dict[str, int]:
    """For every model (or only `model`) the version that was brought to all traffic last."""
    done = (
        select(func.max(rollout_events.c.id))
        .join(rollouts, rollout_events.c.rollout_id == rollouts.c.id)
        .where(rollout_events.c.kind == "completed")
        .group_by(rollouts.c.model)
    )
    if model is not None:
        done = done.where(rollouts.c.model == model)
    query = (
        select(rollouts.c.model, rollouts.c.version)
        .join(rollout_events, rollout_events.c.rollout_id == rollouts.c.id)
        .where(rollout_events.c.id.in_(done))
    )
    return {str(name): int(version) for name, version in conn.execute(query)}


@dataclass(frozen=True, slots=True)
class DuePromotion:
    """A promotion to Production that took effect and has had no rollout yet."""

    id: str
    model: str
    version: int
    requested_by: str
    reason: str


def due_promotions(conn: Connection, model: str | None = None) -> list[DuePromotion]:
    """Effective promotions (of `model`) to Production without a rollout, in the order they took effect.

    A version that has left Production since (an earlier rollout failed and took it along) waits for a new
    request; the promotion that follows on it is the one that is due then.
    """
    later = promotions.alias()
    of_version = (versions.c.model == promotions.c.model) & (versions.c.version == promotions.c.version)
    query = (
        select(promotions)
        .join(versions, of_version)
        .where(
            versions.c.stage == Stage.PRODUCTION.value,
            promotions.c.stage == Stage.PRODUCTION.value,
            promotions.c.state == "effective",
            ~exists().where(rollouts.c.promotion_id == promotions.c.id),
            ~exists().where(
                later.c.model == promotions.c.model,
                later.c.version == promotions.c.version,
                later.c.stage == promotions.c.stage,
                later.c.state == promotions.c.state,
                later.c.decided_seq > promotions.c.decided_seq,
            ),
        )
        .order_by(promotions.c.decided_seq, promotions.c.id)
    )
    if model is not None:
        query = query.where(versions.c.model == model)
    return [
        DuePromotion(row.id, row.model, row.version, row.requested_by, row.reason)
        for row in conn.execute(query)
    ]


@dataclass(frozen=True, slots=True)
class Experiment:
    """A split of traffic, as recorded. `variants` beside `stable`. began, until: in event time."""

    id: str
    model: str
    stable: int
    variants: tuple[Arm, ...]
    salt: str
    status: str
    started_at: datetime
    began: datetime
    ended_at: datetime | None
    until: datetime | None
    actor: str
    reason: str
    ended_why: str

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All arms, as routes have them."""
        rest = max(0.0, 1.0 - sum(arm.weight for arm in self.variants))
        return (Arm("stable", self.stable, rest), *self.variants)

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id, "model": self.model, "status": self.status, "salt": self.salt,
            "arms": [{"arm": arm.name, "version": arm.version, "weight": arm.weight} for arm in self.arms],
            "started_at": iso(self.started_at), "began": iso(self.began),
            "ended_at": iso(self.ended_at) if self.ended_at else None,
            "until": iso(self.until) if self.until else None,
            "by": self.actor, "reason": self.reason, "ended_why": self.ended_why,
        }  # fmt: skip


def add_experiment(conn: Connection, experiment: Experiment) -> None:
    """Record a new experiment."""
    variants = [[arm.name, arm.version, arm.weight] for arm in experiment.variants]
    conn.execute(
        insert(experiments).values(
            id=experiment.id, model=experiment.model, stable=experiment.stable, variants=_json(variants),
            salt=experiment.salt, status=experiment.status, started_at=to_us(experiment.started_at),
            began=to_us(experiment.began), actor=experiment.actor, reason=experiment.reason, ended_why="",
        )
    )  # fmt: skip


def active_experiment(conn: Connection, model: str) -> Experiment | None:
    """The experiment on `model` that runs; there is at most one."""
    query = select(experiments).where(experiments.c.model == model, experiments.c.status == "running")
    found = conn.execute(query).one_or_none()
    return _experiment(found) if found else None


def list_experiments(conn: Connection, model: str | None = None, limit: int = 50) -> list[Experiment]:
    """The newest `limit` experiments, newest first."""
    query = (
        select(experiments).order_by(experiments.c.started_at.desc(), experiments.c.id.desc()).limit(limit)
    )
    if model is not None:
        query = query.where(experiments.c.model == model)
    return [_experiment(found) for found in conn.execute(query)]


def end_experiment(
    conn: Connection, running: Experiment, *, why: str, now: datetime, event_time: datetime, actor: Actor
) -> Experiment:
    """Record that it has ended, and in the audit log why."""
    conn.execute(
        update(experiments)
        .where(experiments.c.id == running.id)
        .values(status="stopped", ended_at=to_us(now), until=to_us(event_time), ended_why=why)
    )
    append(
        conn, at=now, actor=actor.name, action="experiment.stopped", subject=running.model,
        payload={"experiment": running.id, "why": why},
    )  # fmt: skip
    return replace(running, status="stopped", ended_at=now, until=event_time, ended_why=why)


def _experiment(row: Row[Any]) -> Experiment:
    return Experiment(
        row.id, row.model, row.stable, tuple(Arm(*variant) for variant in json.loads(row.variants)), row.salt,
        row.status, from_us(row.started_at), from_us(row.began),
        from_us(row.ended_at) if row.ended_at is not None else None,
        from_us(row.until) if row.until is not None else None, row.actor, row.reason, row.ended_why,
    )  # fmt: skip


def received_bytes(conn: Connection) -> int:
    """How much serving has shipped in all; grows with every batch of events."""
    return int(conn.execute(select(func.coalesce(func.sum(segments.c.shipped), 0))).scalar_one())


def last_routes(conn: Connection) -> tuple[int, str, str] | None:
    """The newest route table: serial, signed text, digest of its content; None before the first."""
    found = conn.execute(select(route_tables).order_by(route_tables.c.serial.desc()).limit(1)).one_or_none()
    if found is None:
        return None
    document = json.loads(found.document)
    return found.serial, document["signed"], document["content"]


def add_routes(
    conn: Connection, serial: int, signed: str, content: str, signature: str, now: datetime
) -> None:
    """Record a route table. `signed` is the exact text servers get."""
    document = _json({"signed": signed, "content": content})
    conn.execute(
        insert(route_tables).values(serial=serial, document=document, signature=signature, at=to_us(now))
    )


def _json(value: object) -> str:
    return canonical_json(value).decode()


def _rollout(row: Row[Any]) -> Rollout:
    return Rollout(
        id=row.id,
        model=row.model,
        version=row.version,
        baseline=row.baseline,
        promotion_id=row.promotion_id,
        plan=Plan.from_json(json.loads(row.plan)),
        state=state_from_json(json.loads(row.state)),
        started_at=from_us(row.started_at),
        updated_at=from_us(row.updated_at),
        ended_at=from_us(row.ended_at) if row.ended_at is not None else None,
        reason=row.reason,
    )
