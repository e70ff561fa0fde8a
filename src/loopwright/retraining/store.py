"""SQL of retrains, and of what else keeps a model busy. Every function works in the caller's transaction."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from loopwright.kernel.clock import from_us, iso, to_us
from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput, NotFound
from loopwright.kernel.ids import new_id
from loopwright.ledger.schema import alerts, batches, promotions, retrains, rollouts, versions
from loopwright.ledger.store import get_meta, put_meta
from loopwright.retraining.policy import AskPerson, Cause, Decision, Past, Run, Trigger

STATES = ("proposed", "running", "succeeded", "failed", "suppressed", "waiting")


@dataclass(frozen=True, slots=True)
class Retrain:
    """What was decided on a trigger, and what came of it.

    decision: run, suppress or ask. state: proposed → running → succeeded | failed; suppressed; waiting (for a
    person). plan: `as_of` (train on what was known then), `reason` and the evidence.
    """

    id: str
    model: str
    cause: str
    key: str
    event_time: datetime
    decision: str
    why: str
    state: str
    run_id: str | None
    version: int | None
    plan: Mapping[str, Any]
    created_at: datetime
    updated_at: datetime

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "model": self.model,
            "cause": self.cause,
            "key": self.key,
            "event_time": iso(self.event_time),
            "decision": self.decision,
            "why": self.why,
            "state": self.state,
            "run_id": self.run_id,
            "version": self.version,
            "plan": dict(self.plan),
            "created_at": iso(self.created_at),
            "updated_at": iso(self.updated_at),
        }


def record(
    conn: Connection, model: str, trigger: Trigger, decision: Decision, plan: Mapping[str, Any], now: datetime
) -> Retrain | None:
    """Record a decision; one row per trigger's key. None when nothing has changed since it was last decided.

    What was suppressed or asked may be decided again; what ran stays.
    """
    found = conn.execute(
        select(retrains).where(retrains.c.model == model, retrains.c.key == trigger.key)
    ).one_or_none()
    word, state = _words(decision)
    document = {**plan, "rule": decision.rule}
    values = {
        "event_time": to_us(trigger.at),
        "decision": word,
        "why": decision.why,
        "state": state,
        "plan": canonical_json(document).decode(),
        "updated_at": to_us(now),
    }
    if found is None:
        fresh = new_id("rt")
        conn.execute(
            insert(retrains).values(
                id=fresh,
                model=model,
                cause=trigger.cause.value,
                key=trigger.key,
                created_at=to_us(now),
                **values,
            )
        )
        return get_retrain(conn, fresh)
    decided_before = (found.decision, json.loads(found.plan).get("rule"))
    if found.decision == "run" or decided_before == (word, decision.rule):
        return None
    conn.execute(update(retrains).where(retrains.c.id == found.id).values(**values))
    return get_retrain(conn, found.id)


def mark(
    conn: Connection,
    id: str,
    state: str,
    *,
    run_id: str | None = None,
    version: int | None = None,
    now: datetime,
) -> Retrain:
    """Note what became of a retrain; run_id and version stay when None. Raises NotFound or BadInput."""
    if state not in STATES:
        raise BadInput("no such state of a retrain", got=state, wanted=", ".join(STATES))
    values: dict[str, Any] = {"state": state, "updated_at": to_us(now)}
    if run_id is not None:
        values["run_id"] = run_id
    if version is not None:
        values["version"] = version
    conn.execute(update(retrains).where(retrains.c.id == id).values(**values))
    return get_retrain(conn, id)


def get_retrain(conn: Connection, id: str) -> Retrain:
    """Raises NotFound."""
    row = conn.execute(select(retrains).where(retrains.c.id == id)).one_or_none()
    if row is None:
        raise NotFound(f"no retrain has the id {id}", next="See: loopwright retrains list")
    return _retrain(row)


def list_retrains(
    conn: Connection, *, model: str | None = None, state: str | None = None, limit: int | None = None
) -> list[Retrain]:
    """Retrains, newest first."""
    query = select(retrains).order_by(retrains.c.created_at.desc(), retrains.c.id.desc())
    if model is not None:
        query = query.where(retrains.c.model == model)
    if state is not None:
        query = query.where(retrains.c.state == state)
    if limit is not None:
        query = query.limit(limit)
    return [_retrain(row) for row in conn.execute(query)]


def past_runs(conn: Connection, model: str) -> list[Past]:
    """The triggers of the model that led to runs, failed ones included: a failing run must not be tried for
    ever.
    """
    query = select(retrains.c.key, retrains.c.event_time).where(
        retrains.c.model == model, retrains.c.decision == "run"
    )
    return [Past(row.key, from_us(row.event_time)) for row in conn.execute(query)]


def newest_run(conn: Connection, model: str) -> datetime | None:
    """The event time of the newest retrain that ran."""
    newest = conn.execute(
        select(func.max(retrains.c.event_time)).where(retrains.c.model == model, retrains.c.decision == "run")
    ).scalar_one_or_none()
    return None if newest is None else from_us(newest)


def busy_with(conn: Connection, model: str) -> str | None:
    """Why a new version of the model would only be in the way; None when it would not."""
    under_way = conn.execute(
        select(retrains.c.id).where(retrains.c.model == model, retrains.c.state.in_(["proposed", "running"]))
    ).first()
    if under_way is not None:
        return f"run {under_way.id} is under way"
    pending = conn.execute(
        select(promotions.c.version).where(promotions.c.model == model, promotions.c.state == "pending")
    ).first()
    if pending is not None:
        return f"version {pending.version} waits for approval"
    rolling = conn.execute(
        select(rollouts.c.version).where(
            rollouts.c.model == model, rollouts.c.status.in_(["running", "paused"])
        )
    ).first()
    return f"version {rolling.version} is being rolled out" if rolling is not None else None


def batches_of(conn: Connection, model: str, tables: list[str]) -> list[Row[Any]]:
    """(table_name, batch_id, good, at) of the model's tables, oldest first."""
    return list(
        conn.execute(
            select(batches.c.table_name, batches.c.batch_id, batches.c.good, batches.c.at)
            .where(batches.c.table_name.in_([f"{model}/{table}" for table in tables]))
            .order_by(batches.c.at)
        )
    )


def fingerprint(conn: Connection, model: str, reached: datetime) -> str:
    """Changes whenever a proposal for the model might: cheap to ask at every tick. Time alone counts by the
    day.
    """
    parts = [
        str(to_us(reached) // 86_400_000_000),
        *(
            str(conn.execute(query).scalar_one_or_none())
            for query in (
                select(func.max(alerts.c.changed_at)).where(alerts.c.model == model),
                select(func.max(versions.c.version)).where(versions.c.model == model),
                select(func.max(batches.c.at)).where(
                    batches.c.table_name.startswith(f"{model}/", autoescape=True)
                ),
                select(func.max(retrains.c.updated_at)).where(retrains.c.model == model),
            )
        ),
        busy_with(conn, model) or "",
    ]
    return "|".join(parts)


def last_fingerprint(conn: Connection, model: str) -> str | None:
    return get_meta(conn, f"retraining.{model}")


def keep_fingerprint(conn: Connection, model: str, text: str) -> None:
    put_meta(conn, f"retraining.{model}", text)


def _words(decision: Decision) -> tuple[str, str]:
    match decision:
        case Run():
            return "run", "proposed"
        case AskPerson():
            return "ask", "waiting"
        case _:
            return "suppress", "suppressed"


def _retrain(row: Row[Any]) -> Retrain:
    return Retrain(
        id=row.id,
        model=row.model,
        cause=str(Cause(row.cause)),
        key=row.key,
        event_time=from_us(row.event_time),
        decision=row.decision,
        why=row.why,
        state=row.state,
        run_id=row.run_id,
        version=row.version,
        plan=json.loads(row.plan),
        created_at=from_us(row.created_at),
        updated_at=from_us(row.updated_at),
    )
