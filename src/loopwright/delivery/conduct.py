"""Carries out what `rollout` decides: state, evidence, audit row, stages and route table in one transaction.

Every function needs a write transaction (`ledger.write()`): either all of it happened or none, so a crash at
any point leaves a rollout that the next `step_rollout` continues.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from loopwright.bundle.keys import SigningKey
from loopwright.delivery.plan import Plan, Step, Strategy
from loopwright.delivery.rollout import (
    Aborted,
    Done,
    Ended,
    Evidence,
    Move,
    RolledBack,
    Smoke,
    State,
    abort,
    advance,
    begin,
    canary_weight,
    describe,
    pause,
    promote,
    resume,
    state_to_json,
)
from loopwright.delivery.routes import rollback_targets, route_table, stable_version
from loopwright.delivery.store import (
    DuePromotion,
    Rollout,
    active_experiment,
    active_rollout,
    add_event,
    add_rollout,
    end_experiment,
    get_rollout,
    rollout_of_promotion,
    set_state,
)
from loopwright.kernel.actor import SYSTEM, Actor, Role
from loopwright.kernel.clock import iso
from loopwright.kernel.errors import BadInput, Conflict, NotFound
from loopwright.kernel.ids import new_id
from loopwright.kernel.verdict import Verdict
from loopwright.ledger.store import append
from loopwright.registry.authority import require_on
from loopwright.registry.evidence import record_evidence
from loopwright.registry.promotion import archive, revert
from loopwright.registry.versions import get_version

INSTANT = Plan(strategy=Strategy.INSTANT, steps=(Step(1.0),))


@dataclass(frozen=True, slots=True)
class _Act:
    """Who does it, and when by the wall and by the data."""

    actor: Actor
    now: datetime
    event_time: datetime


def refuse_while_rolling(conn: Connection, model: str) -> None:
    """Raise Conflict, saying what to do, while a rollout of `model` or an experiment on it runs; for use before a
    promotion.
    """
    tried = active_experiment(conn, model)
    if tried is not None:
        raise Conflict(
            f"an experiment has run on {model} since {iso(tried.started_at)}",
            where=model,
            wanted="no experiment in progress",
            next=f"Stop it first: loopwright experiment stop {model}",
        )
    running = active_rollout(conn, model)
    if running is not None:
        raise Conflict(
            f"version {running.version} of {model} is being rolled out ({describe(running.state)})",
            where=model,
            wanted="no rollout in progress",
            next=f"Wait for it, or: loopwright rollout promote {model}, loopwright rollout abort {model}.",
        )


def start_rollout(
    conn: Connection,
    *,
    model: str,
    version: int,
    plan: Plan,
    key: SigningKey,
    now: datetime,
    event_time: datetime,
    actor: Actor = SYSTEM,
    baseline: int | None = None,
    promotion_id: str | None = None,
    why: str = "",
) -> Rollout:
    """Begin to bring `version` to traffic; `baseline` defaults to the version that answers now.

    A first version, or strategy `instant`, gets all traffic at once. Called again for the same promotion it
    returns the rollout that exists. Raises Conflict while another rollout of the model runs.
    """
    earlier = rollout_of_promotion(conn, promotion_id) if promotion_id is not None else None
    if earlier is not None:
        return earlier
    refuse_while_rolling(conn, model)
    stable = stable_version(conn, model)
    if baseline is None:
        baseline = stable
    elif baseline != stable:
        raise BadInput("the baseline is not what answers now", where=model, got=baseline, wanted=str(stable))
    if baseline == version:
        baseline, plan = None, INSTANT
    state = begin(plan, baseline=baseline, event_time=event_time)
    reason = why or ("first version" if baseline is None else f"version {version} against {baseline}")
    rollout = Rollout(
        new_id("ro"), model, version, baseline, promotion_id, plan, state, now, now,
        now if isinstance(state, Ended) else None, reason,
    )  # fmt: skip
    add_rollout(conn, rollout)
    act = _Act(actor, now, event_time)
    payload = {
        "version": version,
        "baseline": baseline,
        "plan": plan.to_json(),
        "state": state_to_json(state),
    }
    _note(conn, rollout, "started", payload, act)
    if isinstance(state, Done):
        _complete(conn, rollout, act)
    route_table(conn, key, now)
    return rollout


def start_due(
    conn: Connection, due: DuePromotion, plan: Plan, *, key: SigningKey, now: datetime, event_time: datetime
) -> Rollout:
    """Begin the rollout a promotion asks for. Is idempotent."""
    return start_rollout(
        conn, model=due.model, version=due.version, plan=plan, key=key, now=now, event_time=event_time,
        promotion_id=due.id, why=due.reason,
    )  # fmt: skip


def step_rollout(
    conn: Connection,
    rollout_id: str,
    *,
    evidence: Evidence,
    event_time: datetime,
    now: datetime,
    key: SigningKey,
    actor: Actor = SYSTEM,
) -> Move:
    """Decide on `evidence` and carry the decision out. The same evidence again changes nothing more.

    A rollout that has ended stays as it is. Raises NotFound for an unknown rollout.
    """
    rollout = get_rollout(conn, rollout_id, for_change=True)
    if isinstance(rollout.state, Ended):
        return Move(rollout.state, rollout.reason, None, changed=False)
    move = advance(rollout.plan, rollout.state, evidence, event_time)
    if not move.changed:
        if move.state != rollout.state or move.why != rollout.reason:
            set_state(conn, rollout.id, move.state, move.why, now)
        return move
    act = _Act(actor, now, event_time)
    digest = _record(conn, rollout, move, evidence, act)
    _settle(conn, rollout, move.state, move.why, "moved", act, evidence=digest)
    route_table(conn, key, now)
    return move


def pause_rollout(
    conn: Connection, model: str, *, actor: Actor, why: str, event_time: datetime, now: datetime
) -> Rollout:
    """Keep traffic as it is until `resume_rollout`; a FAIL still rolls back."""
    require_on(conn, actor, Role.APPROVER, f"pause the rollout of {model}", model=model)
    rollout = _running(conn, model)
    state = pause(rollout.state, event_time)
    return _settle(conn, rollout, state, why, "paused", _Act(actor, now, event_time))


def resume_rollout(
    conn: Connection, model: str, *, actor: Actor, why: str, event_time: datetime, now: datetime
) -> Rollout:
    """Go on where it was paused; the pause does not count towards the hold."""
    require_on(conn, actor, Role.APPROVER, f"resume the rollout of {model}", model=model)
    rollout = _running(conn, model)
    state = resume(rollout.state, event_time)
    return _settle(conn, rollout, state, why, "resumed", _Act(actor, now, event_time))


def abort_rollout(
    conn: Connection,
    model: str,
    *,
    actor: Actor,
    why: str,
    event_time: datetime,
    now: datetime,
    key: SigningKey,
) -> Rollout:
    """All traffic back to the baseline now; the version's stage is reverted."""
    require_on(conn, actor, Role.APPROVER, f"abort the rollout of {model}", model=model)
    rollout = _running(conn, model)
    state = abort(rollout.state, why)
    settled = _settle(conn, rollout, state, why, "aborted", _Act(actor, now, event_time))
    route_table(conn, key, now)
    return settled


def promote_rollout(
    conn: Connection,
    model: str,
    *,
    evidence: Evidence,
    actor: Actor,
    why: str,
    event_time: datetime,
    now: datetime,
    key: SigningKey,
) -> Rollout:
    """All traffic to the candidate now, on a person's word. Raises Conflict when `evidence` says FAIL."""
    require_on(conn, actor, Role.APPROVER, f"finish the rollout of {model}", model=model)
    rollout = _running(conn, model)
    state, judgement = promote(rollout.plan, rollout.state, evidence)
    move = Move(state, f"promoted by {actor.name}: {why}", judgement, changed=True)
    act = _Act(actor, now, event_time)
    digest = _record(conn, rollout, move, evidence, act)
    settled = _settle(conn, rollout, state, move.why, "promoted", act, evidence=digest)
    route_table(conn, key, now)
    return settled


def rollback_now(
    conn: Connection,
    model: str,
    to_version: int | None = None,
    *,
    actor: Actor,
    why: str,
    event_time: datetime,
    now: datetime,
    key: SigningKey,
) -> Rollout:
    """Bring an earlier version back to all traffic at once; `to_version` defaults to the one before.

    While a rollout runs, "the one before" is its baseline: the rollout is aborted. Raises NotFound when there
    is nothing to go back to, or `to_version` never answered all traffic.
    """
    require_on(conn, actor, Role.APPROVER, f"roll back {model}", model=model)
    running = active_rollout(conn, model)
    if running is not None:
        aborted = abort_rollout(conn, model, actor=actor, why=why, event_time=event_time, now=now, key=key)
        if to_version is None or to_version == running.baseline:
            return aborted
    tried = active_experiment(conn, model)
    if tried is not None:
        end_experiment(conn, tried, why=f"rolled back: {why}", now=now, event_time=event_time, actor=actor)
    leaving = stable_version(conn, model)
    target = _target(conn, model, leaving, to_version)
    assert leaving is not None  # a target exists only beside a stable version
    rollout = Rollout(new_id("ro"), model, target, leaving, None, INSTANT, Done(), now, now, now, why)
    add_rollout(conn, rollout)
    digest = record_evidence(
        conn, kind="rollback", model=model, version=leaving, verdict=Verdict.FAIL, at=now, actor=actor,
        bundle=get_version(conn, model=model, version=leaving).bundle,
        payload={"rollout": rollout.id, "by": actor.name, "why": why, "to_version": target},
    )  # fmt: skip
    payload = {"rollback": True, "version": target, "from_version": leaving, "evidence": digest, "why": why}
    _note(conn, rollout, "completed", payload, _Act(actor, now, event_time), action="rolled_back")
    revert(
        conn, model=model, version=leaving, to_version=target, why=why, evidence=(digest,), actor=actor,
        now=now
    )  # fmt: skip
    route_table(conn, key, now)
    return rollout


def _target(conn: Connection, model: str, leaving: int | None, wanted: int | None) -> int:
    targets = rollback_targets(conn, model)
    if leaving is None or not targets:
        raise NotFound(
            "there is no earlier version to go back to", where=model,
            got=f"version {leaving}" if leaving else "no version in traffic",
            next=f"See: loopwright models show {model}",
        )  # fmt: skip
    if wanted is None:
        return targets[0]
    if wanted not in targets:
        raise NotFound(
            f"traffic cannot go back to version {wanted}", where=model, got=f"version {leaving} answers now",
            wanted=f"one of {', '.join(map(str, targets))}",
            next="Promote it instead, so that it is approved and rolled out.",
        )  # fmt: skip
    return wanted


def _running(conn: Connection, model: str) -> Rollout:
    rollout = active_rollout(conn, model)
    if rollout is None:
        raise NotFound(
            f"no rollout of {model} is running", where=model, next=f"See: loopwright rollout show {model}"
        )
    return get_rollout(conn, rollout.id, for_change=True)


def _record(conn: Connection, rollout: Rollout, move: Move, evidence: Evidence, act: _Act) -> str:
    """Store what the decision rests on; returns its digest."""
    assert move.judgement is not None  # `advance` and `promote` always judge
    kind = (
        "smoke"
        if isinstance(rollout.state, Smoke)
        else "shadow"
        if canary_weight(rollout.state) == 0
        else "canary"
    )
    payload: dict[str, Any] = {
        "rollout": rollout.id,
        "event_time": iso(act.event_time),
        "limits": rollout.plan.to_json()["limits"],
        "before": state_to_json(rollout.state),
        "after": state_to_json(move.state),
        "evidence": evidence.to_json(),
        "judgement": move.judgement.to_json(),
    }
    bundle = get_version(conn, model=rollout.model, version=rollout.version).bundle
    return record_evidence(
        conn, kind=kind, model=rollout.model, version=rollout.version, bundle=bundle,
        verdict=move.judgement.verdict, payload=payload, at=act.now, actor=act.actor,
    )  # fmt: skip


def _settle(
    conn: Connection,
    rollout: Rollout,
    state: State,
    why: str,
    kind: str,
    act: _Act,
    *,
    evidence: str | None = None,
) -> Rollout:
    """Record that the rollout is now in `state`, and what follows from it for stages."""
    set_state(conn, rollout.id, state, why, act.now)
    payload = {"from": describe(rollout.state), "to": describe(state), "why": why, "evidence": evidence}
    _note(conn, rollout, kind, payload, act)
    if isinstance(state, Done):
        _complete(conn, rollout, act)
    if isinstance(state, RolledBack | Aborted) and rollout.baseline is not None:
        revert(
            conn, model=rollout.model, version=rollout.version, to_version=rollout.baseline, why=why,
            evidence=(evidence,) if evidence else (), actor=act.actor, now=act.now,
        )  # fmt: skip
    ended = act.now if isinstance(state, Ended) else None
    return replace(rollout, state=state, reason=why, updated_at=act.now, ended_at=ended)


def _complete(conn: Connection, rollout: Rollout, act: _Act) -> None:
    payload = {"rollback": False, "version": rollout.version, "archived": rollout.baseline}
    _note(conn, rollout, "completed", payload, act)
    if rollout.baseline is not None:
        archive(
            conn,
            model=rollout.model,
            version=rollout.baseline,
            why=f"replaced by {rollout.version}",
            now=act.now,
        )


def _note(
    conn: Connection,
    rollout: Rollout,
    kind: str,
    payload: dict[str, Any],
    act: _Act,
    *,
    action: str | None = None,
) -> None:
    add_event(conn, rollout.id, kind, payload, now=act.now, event_time=act.event_time)
    append(
        conn, at=act.now, actor=act.actor.name, action=f"rollout.{action or kind}",
        subject=f"{rollout.model}/{rollout.version}", payload={"rollout": rollout.id, **payload},
    )  # fmt: skip
