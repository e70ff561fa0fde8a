"""One round of the rollout controller: begin what was promoted, move what runs. Safe to repeat or kill."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from loopwright.bundle.keys import SigningKey
from loopwright.delivery.conduct import start_due, step_rollout
from loopwright.delivery.evidence import gather
from loopwright.delivery.plan import Plan
from loopwright.delivery.rollout import Smoke, State, advance, describe
from loopwright.delivery.store import (
    DuePromotion,
    Rollout,
    active_experiment,
    active_rollout,
    due_promotions,
    get_rollout,
    list_rollouts,
    received_bytes,
)
from loopwright.kernel.clock import iso
from loopwright.kernel.verdict import Verdict
from loopwright.ledger.engine import Ledger
from loopwright.monitoring.store import watermark

Seen = tuple[State, str, datetime, int]
"""What a decision to stay was based on: state, its sentence, event time and how much had been received."""


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
    memory: dict[str, Seen] | None = None,
) -> list[Happened]:
    """Start due rollouts and step running ones, each in a transaction of its own, opened only for a change.

    plan_for: the model's plan (from its project). smoke: runs the golden smoke of a blue-green rollout's bundle.
    agreement: figures of stable against shadow up to an event time, read once, when shadow ends. memory: a dict
    the caller keeps between rounds; rollouts about which nothing new was received are then not read again.
    Event time is the model's watermark, or `now` before its first prediction.
    One model's failure does not keep the others waiting: it is raised at the end (several as ExceptionGroup).
    """
    happened: list[Happened] = []
    errors: list[Exception] = []
    with ledger.read() as conn:
        due = due_promotions(conn)
    for promotion in due:
        try:
            happened += _begin(ledger, promotion, plan_for(promotion.model), key=key, now=now)
        except Exception as error:  # noqa: BLE001 - raised at the end: a harmful canary elsewhere must not wait
            errors.append(error)
    with ledger.read() as conn:
        running = list_rollouts(conn, active=True, limit=1000)
    for rollout in running:
        try:
            happened += _step(
                ledger, rollout, key=key, now=now, smoke=smoke, agreement=agreement, memory=memory
            )
        except Exception as error:  # noqa: BLE001 - as above
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup("rollouts that could not be moved", errors)
    return happened


def _begin(
    ledger: Ledger, promotion: DuePromotion, plan: Plan, *, key: SigningKey, now: datetime
) -> list[Happened]:
    with ledger.write() as conn:
        if active_rollout(conn, promotion.model) or active_experiment(conn, promotion.model):
            return []
        time = watermark(conn, promotion.model) or now
        rollout = start_due(conn, promotion, plan, key=key, now=now, event_time=time)
    return [_told(rollout, describe(rollout.state), rollout.reason, time)]


def _step(
    ledger: Ledger,
    rollout: Rollout,
    *,
    key: SigningKey,
    now: datetime,
    smoke: Callable[[Rollout], Verdict] | None,
    agreement: Callable[[Rollout, datetime], Mapping[str, Any] | None] | None,
    memory: dict[str, Seen] | None,
) -> list[Happened]:
    tested = smoke(rollout) if smoke is not None and isinstance(rollout.state, Smoke) else None
    memory = memory if memory is not None else {}
    with ledger.read() as conn:
        time = watermark(conn, rollout.model) or now
        seen: Seen = (rollout.state, rollout.reason, time, received_bytes(conn))
        if memory.get(rollout.id) == seen and tested is None:
            return []
        evidence = gather(conn, rollout, until=time, smoke=tested)
    # Deciding costs nothing and needs no lock; most ticks end here.
    foreseen = advance(rollout.plan, rollout.state, evidence, time)
    if foreseen.state == rollout.state and foreseen.why == rollout.reason:
        memory[rollout.id] = seen
        return []
    figures = agreement(rollout, time) if foreseen.changed and agreement is not None else None
    with ledger.write() as conn:
        # Decided again on the counts and the state as they stand under the lock.
        standing = get_rollout(conn, rollout.id, for_change=True)
        if standing.state != rollout.state:
            return []  # another controller or a person was faster; the next round looks anew
        evidence = gather(conn, standing, until=time, smoke=tested, agreement=figures)
        move = step_rollout(conn, rollout.id, evidence=evidence, event_time=time, now=now, key=key)
    return [_told(rollout, describe(move.state), move.why, time)] if move.changed else []


def _told(rollout: Rollout, at: str, why: str, event_time: datetime) -> Happened:
    return Happened(rollout.model, rollout.version, rollout.id, at, why, event_time)
