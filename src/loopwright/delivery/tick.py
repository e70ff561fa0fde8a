"""One round of the rollout controller: begin what was promoted, move what runs. Safe to repeat and to kill."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from loopwright.bundle.keys import SigningKey
from loopwright.delivery.conduct import start_due, step_rollout
from loopwright.delivery.evidence import gather
from loopwright.delivery.plan import Plan
from loopwright.delivery.rollout import Smoke, advance, describe
from loopwright.delivery.store import Rollout, active_rollout, due_promotions, list_rollouts
from loopwright.kernel.clock import iso
from loopwright.kernel.verdict import Verdict
from loopwright.ledger.engine import Ledger
from loopwright.monitoring.store import watermark


@dataclass(frozen=True, slots=True)
class Happened:
    """Something a tick did, for logs and answers."""

    model: str
    version: int
    rollout: str
    at: str
    why: str
    event_time: datetime

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "version": self.version,
            "rollout": self.rollout,
            "at": self.at,
            "why": self.why,
            "event_time": iso(self.event_time),
        }


def tick(
    ledger: Ledger,
    *,
    key: SigningKey,
    now: datetime,
    plan_for: Callable[[str], Plan],
    smoke: Callable[[Rollout], Verdict] | None = None,
    agreement: Callable[[Rollout, datetime], Mapping[str, Any] | None] | None = None,
) -> list[Happened]:
    """Start due rollouts and step running ones; each in a transaction of its own, opened only when something
    changes.

    plan_for: the model's plan (from its project). smoke: runs the golden smoke of a blue-green rollout's
    bundle.
    agreement: figures of stable against shadow up to an event time, read once, when shadow ends. Event time
    is the model's watermark, or `now` before its first prediction.
    """
    happened: list[Happened] = []
    with ledger.read() as conn:
        due = due_promotions(conn)
    for promotion in due:
        plan = plan_for(promotion.model)
        with ledger.write() as conn:
            if active_rollout(conn, promotion.model) is not None:
                continue
            time = watermark(conn, promotion.model) or now
            rollout = start_due(conn, promotion, plan, key=key, now=now, event_time=time)
        happened.append(_told(rollout, describe(rollout.state), rollout.reason, time))

    with ledger.read() as conn:
        running = list_rollouts(conn, active=True, limit=1000)
    for rollout in running:
        done = _step(ledger, rollout, key=key, now=now, smoke=smoke, agreement=agreement)
        happened += [done] if done else []
    return happened


def _step(
    ledger: Ledger,
    rollout: Rollout,
    *,
    key: SigningKey,
    now: datetime,
    smoke: Callable[[Rollout], Verdict] | None,
    agreement: Callable[[Rollout, datetime], Mapping[str, Any] | None] | None,
) -> Happened | None:
    tested = smoke(rollout) if smoke is not None and isinstance(rollout.state, Smoke) else None
    with ledger.read() as conn:
        time = watermark(conn, rollout.model) or now
        evidence = gather(conn, rollout, until=time, smoke=tested)
    # Deciding costs nothing and needs no lock; most ticks end here.
    foreseen = advance(rollout.plan, rollout.state, evidence, time)
    if foreseen.state == rollout.state and foreseen.why == rollout.reason:
        return None
    figures = agreement(rollout, time) if foreseen.changed and agreement is not None else None
    with ledger.write() as conn:
        # Decided again on the counts and the state as they stand under the lock.
        evidence = gather(conn, rollout, until=time, smoke=tested, agreement=figures)
        move = step_rollout(conn, rollout.id, evidence=evidence, event_time=time, now=now, key=key)
    return _told(rollout, describe(move.state), move.why, time) if move.changed else None


def _told(rollout: Rollout, at: str, why: str, event_time: datetime) -> Happened:
    return Happened(rollout.model, rollout.version, rollout.id, at, why, event_time)
