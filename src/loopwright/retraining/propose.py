"""Looks at a model, decides whether it should be trained again, and records the decision with its reason.

Starting the run is the control plane's work: it takes what stands as "proposed".
"""

import json
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.manifest import MANIFEST
from loopwright.kernel.actor import SYSTEM, Actor, Role
from loopwright.kernel.clock import from_us, iso, parse_time
from loopwright.kernel.errors import Conflict
from loopwright.kernel.home import Home
from loopwright.kernel.ids import new_id
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger
from loopwright.monitoring import store as monitoring_store
from loopwright.monitoring.labels import LabelLog
from loopwright.project.spec import Spec
from loopwright.registry.authority import require_on
from loopwright.registry.versions import list_versions
from loopwright.retraining import store
from loopwright.retraining.policy import Cause, Policy, Run, Trigger, decide
from loopwright.retraining.store import Retrain
from loopwright.retraining.triggers import Broken, Landed, Situation, triggers

FRESH_SHARE = 0.1
"""Drift alone is worth a run once fresh labels are this share of the rows the newest version was trained
on.
"""


@dataclass(frozen=True, slots=True)
class Learned:
    """What the newest version has learned from: data known by `until` (event time), `rows` of it."""

    version: int
    until: datetime | None
    rows: int
    created_at: datetime


def tick(ledger: Ledger, *, home: Home, now: datetime) -> list[Retrain]:
    """Look at every model that answers and whose project has a `retraining` section.

    Returns the decisions that are new or have changed. Cheap when nothing has happened to a model since the
    last look.
    """
    decided: list[Retrain] = []
    with ledger.read() as conn:
        due: list[tuple[Spec, datetime, str]] = []
        for model, reached in monitoring_store.monitored_models(conn):
            spec = monitoring_store.load_spec(conn, model)
            if spec is None or spec.retraining is None:
                continue
            now_known = store.fingerprint(conn, model, reached)
            if now_known != store.last_fingerprint(conn, model):
                due.append((spec, reached, now_known))
        found = [
            (spec, _situation(conn, spec, home, reached), known, store.busy_with(conn, spec.model))
            for spec, reached, known in due
        ]
    if not found:
        return []
    with ledger.write() as conn:
        for spec, (situation, rows), known, busy in found:
            if situation is not None:
                decided += propose(
                    conn, spec=spec, situation=situation, trained_rows=rows, busy=busy, now=now
                )
            store.keep_fingerprint(conn, spec.model, known)
    return decided


def propose(
    conn: Connection, *, spec: Spec, situation: Situation, trained_rows: int, busy: str | None, now: datetime
) -> list[Retrain]:
    """Decide on every trigger of `situation` and record what is new, with its audit row. Starts at most one
    run.

    While the model is busy with a version on its way, only questions to a person are recorded; the rest is
    decided when it is free.
    """
    section = spec.retraining
    if section is None:
        return []
    policy = Policy(
        section.cooldown, section.budget.runs_per_week, max(1000, round(FRESH_SHARE * trained_rows))
    )
    decided: list[Retrain] = []
    for trigger in triggers(situation, every=section.every, on=section.on):
        if busy and trigger.cause is not Cause.CONTRACT_BROKEN:
            continue
        decision = decide(trigger, store.past_runs(conn, spec.model), policy)
        retrain = store.record(conn, spec.model, trigger, decision, _plan(trigger, situation), now)
        if retrain is None:
            continue
        decided.append(retrain)
        _audit(conn, retrain, SYSTEM, now)
        if isinstance(decision, Run):
            busy = f"run {retrain.id} is under way"
    return decided


def retrain_now(
    conn: Connection, *, model: str, actor: Actor, why: str, event_time: datetime, now: datetime
) -> Retrain:
    """Propose a run because a person says so; no cooldown, no budget. Raises Refused without the role, and
    Conflict while another run of the model is under way.
    """
    require_on(conn, actor, Role.DEVELOPER, "ask for a training run", model=model)
    running = [
        each for each in store.list_retrains(conn, model=model) if each.state in ("proposed", "running")
    ]
    if running:
        raise Conflict(
            f"run {running[0].id} of {model} is under way", where=model, next="Wait for it to end."
        )
    trigger = Trigger(Cause.PERSON, event_time, f"person:{new_id('ask')}", f"{actor.name}: {why}")
    plan = {"as_of": iso(event_time), "reason": trigger.story, "cause": trigger.cause.value}
    retrain = store.record(conn, model, trigger, Run(trigger.story), plan, now)
    assert retrain is not None  # a new key is always recorded
    _audit(conn, retrain, actor, now)
    return retrain


def _plan(trigger: Trigger, situation: Situation) -> dict[str, Any]:
    return {
        "as_of": iso(trigger.at),
        "reason": f"{trigger.cause}: {trigger.story}",
        "cause": trigger.cause.value,
        "fresh_labels": trigger.fresh_labels,
        "confirmed_loss": trigger.confirmed_loss,
        "learned_until": iso(situation.learned_until),
        "alerts": [alert.id for alert in situation.alerts],
    }


def _audit(conn: Connection, retrain: Retrain, actor: Actor, now: datetime) -> None:
    ledger_store.append(
        conn,
        at=now,
        actor=actor.name,
        action=f"retrain.{retrain.decision}",
        subject=retrain.model,
        payload={
            "retrain": retrain.id,
            "cause": retrain.cause,
            "key": retrain.key,
            "why": retrain.why,
            "plan": dict(retrain.plan),
        },
    )


def _situation(conn: Connection, spec: Spec, home: Home, reached: datetime) -> tuple[Situation | None, int]:
    """What is known about the model, and how many rows its newest version was trained on."""
    learned = _learned(conn, spec.model, home)
    if learned is None:
        return None, 0
    # A version that says nothing of its data's end has learned nothing from what it has answered itself.
    first = monitoring_store.first_hour(conn, spec.model, version=learned.version)
    known = [
        moment for moment in (learned.until, first, store.newest_run(conn, spec.model)) if moment is not None
    ]
    until = min(max(known, default=reached), reached)
    landed, broken = _sources(conn, spec, learned.created_at)
    alerts = monitoring_store.list_alerts(conn, spec.model, standing=True)
    situation = Situation(reached, until, alerts, landed, broken)
    if spec.retraining is None or not triggers(situation, every=spec.retraining.every, on=spec.retraining.on):
        return situation, learned.rows
    # Counting opens files, so it is left until something depends on it.
    fresh = LabelLog(home.labels).count(spec.model, until, reached)
    return replace(situation, fresh_labels=fresh), learned.rows


def _learned(conn: Connection, model: str, home: Home) -> Learned | None:
    sealed = [version for version in list_versions(conn, model=model) if version.bundle is not None]
    if not sealed:
        return None
    newest = max(sealed, key=lambda version: version.version)
    path = BundleDepot(home.bundles).path(str(newest.bundle)) / MANIFEST
    origin = _provenance(path) if path.is_file() else {}
    until = origin.get("as_of") or origin.get("trained_until")
    rows = dict(origin.get("split_sizes") or {}).get("train", 0)
    return Learned(newest.version, parse_time(until) if until else None, int(rows), newest.created_at)


@lru_cache(maxsize=64)
def _provenance(path: Path) -> dict[str, Any]:
    # Content-addressed, so a path's content never changes.
    return dict(json.loads(path.read_bytes()).get("provenance") or {})


def _sources(conn: Connection, spec: Spec, since: datetime) -> tuple[list[Landed], list[Broken]]:
    landed, had = [], dict.fromkeys(spec.data.sources, 0)
    for row in store.batches_of(conn, spec.model, list(spec.data.sources)):
        table = row.table_name.rpartition("/")[2]
        if from_us(row.at) > since and row.good:
            landed.append(Landed(table, row.batch_id, row.good, had[table]))
        had[table] += row.good
    refused = [
        Broken(
            row.subject.rpartition("/")[2],
            str(row.payload.get("source_digest", row.seq)),
            "; ".join(f"{rule}: {why}" for rule, why in dict(row.payload.get("blocked_by") or {}).items())
            or "the batch was refused",
        )
        for row in ledger_store.rows(conn, action="data.refused", since=since)
        if row.subject.startswith(f"{spec.model}/")
    ]
    return landed, refused
