"""SQL of incidents, their timelines, and decisions about quarantined rows. Works in the caller's transaction."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from loopwright.data.incidents.model import STANDING, Event, Incident, State
from loopwright.kernel.clock import from_us, to_us
from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput, NotFound, did_you_mean
from loopwright.ledger.schema import batches, incident_events, incidents, landings, releases


def add_incident(conn: Connection, incident: Incident) -> None:
    conn.execute(
        insert(incidents).values(
            id=incident.id, model=incident.model, table_name=incident.table, cause=incident.cause,
            state=incident.state.value, title=incident.title, triage=_json(incident.triage),
            consumers=_json(incident.consumers), owner=incident.owner, post_mortem=incident.post_mortem,
            opened_at=to_us(incident.opened_at), changed_at=to_us(incident.changed_at),
            closed_at=to_us(incident.closed_at) if incident.closed_at else None,
        )
    )  # fmt: skip


def save_incident(conn: Connection, incident: Incident) -> None:
    """Write what may change of an incident; table, cause and beginning stay."""
    conn.execute(
        update(incidents)
        .where(incidents.c.id == incident.id)
        .values(
            state=incident.state.value, title=incident.title, triage=_json(incident.triage),
            consumers=_json(incident.consumers), owner=incident.owner, post_mortem=incident.post_mortem,
            changed_at=to_us(incident.changed_at),
            closed_at=to_us(incident.closed_at) if incident.closed_at else None,
        )
    )  # fmt: skip


def add_event(
    conn: Connection, incident: str, *, at: datetime, actor: str, event: str, payload: Mapping[str, Any]
) -> None:
    """Add a line to an incident's timeline; lines are never changed."""
    conn.execute(
        insert(incident_events).values(
            incident=incident, at=to_us(at), actor=actor, event=event, payload=_json(payload)
        )
    )


def events_of(conn: Connection, incident: str) -> list[Event]:
    """The timeline, oldest first."""
    query = select(incident_events).where(incident_events.c.incident == incident)
    return [_event(row) for row in conn.execute(query.order_by(incident_events.c.id))]


def last_event(conn: Connection) -> int:
    """The number of the newest event of all incidents; 0 when there is none."""
    return int(conn.execute(select(func.max(incident_events.c.id))).scalar() or 0)


def next_event(conn: Connection, after: int) -> tuple[Event, str] | None:
    """(event, incident) with the smallest number over `after`."""
    query = select(incident_events).where(incident_events.c.id > after).order_by(incident_events.c.id)
    row = conn.execute(query.limit(1)).one_or_none()
    return None if row is None else (_event(row), row.incident)


def get_incident(conn: Connection, name: str) -> Incident:
    """The incident with this id, or the one whose id begins or ends so (six characters at least).

    Raises NotFound, naming what is near, or BadInput where several are meant.
    """
    found = conn.execute(select(incidents).where(incidents.c.id == name)).all()
    if not found and len(name) >= 6:
        like = incidents.c.id.startswith(name, autoescape=True) | incidents.c.id.endswith(
            name, autoescape=True
        )
        found = conn.execute(select(incidents).where(like).limit(5)).all()
    if len(found) > 1:
        raise BadInput("more than one incident is called so", got=name, next="Give more of its id.")
    if not found:
        newest = select(incidents.c.id).order_by(incidents.c.opened_at.desc()).limit(50)
        near = did_you_mean(name, conn.execute(newest).scalars())
        raise NotFound("no such incident", got=name, next=near or "See: loopwright data incident list --all")
    return _incident(found[0])


def standing_incident(conn: Connection, table: str, cause: str) -> Incident | None:
    """The incident of this cause that is open or acknowledged."""
    query = select(incidents).where(
        incidents.c.table_name == table,
        incidents.c.cause == cause,
        incidents.c.state.in_([state.value for state in STANDING]),
    )
    row = conn.execute(query.order_by(incidents.c.opened_at.desc()).limit(1)).one_or_none()
    return None if row is None else _incident(row)


def list_incidents(
    conn: Connection,
    *,
    model: str | None = None,
    tables: Sequence[str] | None = None,
    states: Sequence[State] | None = None,
    limit: int | None = None,
) -> list[Incident]:
    """Incidents, the newest first. `tables`: MODEL/TABLE names."""
    query = select(incidents).order_by(incidents.c.opened_at.desc(), incidents.c.id.desc())
    if model is not None:
        query = query.where(incidents.c.model == model)
    if tables is not None:
        query = query.where(incidents.c.table_name.in_(list(tables)))
    if states is not None:
        query = query.where(incidents.c.state.in_([state.value for state in states]))
    if limit is not None:
        query = query.limit(limit)
    return [_incident(row) for row in conn.execute(query)]


def unnoticed(conn: Connection) -> list[Incident]:
    """Incidents whose consumers nobody has looked for."""
    query = select(incidents).where(incidents.c.consumers == "null").order_by(incidents.c.opened_at)
    return [_incident(row) for row in conn.execute(query)]


@dataclass(frozen=True, slots=True)
class Delivery:
    """A batch as the ledger remembers it."""

    batch: str
    at: datetime
    rows: int
    good: int
    bad: int
    silver_version: int | None
    uri: str
    contract: str
    report: Mapping[str, Any]


def deliveries(conn: Connection, table: str, limit: int = 20) -> list[Delivery]:
    """The newest deliveries that landed in `table` (MODEL/TABLE), the newest first."""
    query = (
        select(batches)
        .where(batches.c.table_name == table)
        .order_by(batches.c.at.desc(), batches.c.silver_version.desc())
        .limit(limit)
    )
    found = []
    for row in conn.execute(query).all():
        where = select(landings.c.uri, landings.c.contract).where(
            landings.c.table_name == table, landings.c.batch_id == row.batch_id
        )
        landed = conn.execute(where.order_by(landings.c.id.desc()).limit(1)).one_or_none()
        found.append(
            Delivery(
                row.batch_id, from_us(row.at), row.rows, row.good, row.bad, row.silver_version,
                landed.uri if landed else "", landed.contract if landed else "", json.loads(row.report),
            )
        )  # fmt: skip
    return found


def landed_tables(conn: Connection) -> list[str]:
    """MODEL/TABLE of everything that ever landed, in order."""
    return list(
        conn.execute(select(batches.c.table_name).distinct().order_by(batches.c.table_name)).scalars()
    )


def adjust_batch(
    conn: Connection,
    table: str,
    batch: str,
    *,
    good: int,
    bad: int,
    reasons: Mapping[str, int] | None,
    silver_version: int | None,
) -> None:
    """Change what is remembered of a batch by what was decided about its quarantined rows.

    `good`, `bad`: what comes to (or leaves) the counts. A batch that nobody knows any more is left alone.
    """
    here = (batches.c.table_name == table, batches.c.batch_id == batch)
    row = conn.execute(select(batches).where(*here)).one_or_none()
    if row is None:
        return
    report = json.loads(row.report)
    report |= {"good_rows": row.good + good, "bad_rows": row.bad + bad}
    if reasons is not None:
        report["reasons"] = dict(reasons)
    values: dict[str, Any] = {"good": row.good + good, "bad": row.bad + bad}
    if silver_version is not None:
        values["silver_version"] = report["silver_version"] = silver_version
    conn.execute(update(batches).where(*here).values(**values, report=_json(report)))


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about rows in quarantine. `outcome` is None until it has taken effect."""

    id: str
    table: str
    decision: str
    rows: int
    contract: str
    reason: str
    choice: Mapping[str, Any]
    outcome: Mapping[str, Any] | None
    silver_version: int | None
    quarantine_version: int | None
    actor: str
    at: datetime

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id, "table": self.table, "decision": self.decision, "rows": self.rows,
            "reason": self.reason, "choice": dict(self.choice),
            "outcome": None if self.outcome is None else dict(self.outcome),
            "silver_version": self.silver_version, "quarantine_version": self.quarantine_version,
            "actor": self.actor, "at": self.at,
        }  # fmt: skip


def add_decision(conn: Connection, decision: Decision) -> None:
    """Write down a decision before it takes effect; one that was taken back (`outcome` cancelled) stands again."""
    if conn.execute(select(releases.c.id).where(releases.c.id == decision.id)).one_or_none() is not None:
        again = {
            "outcome": None,
            "reason": decision.reason,
            "actor": decision.actor,
            "at": to_us(decision.at),
        }
        conn.execute(update(releases).where(releases.c.id == decision.id).values(**again))
        return
    conn.execute(
        insert(releases).values(
            id=decision.id, table_name=decision.table, batch_id=str(decision.choice.get("batch") or ""),
            decision=decision.decision, rows=decision.rows, contract=decision.contract, reason=decision.reason,
            choice=_json(decision.choice), outcome=None, silver_version=decision.silver_version,
            quarantine_version=decision.quarantine_version, actor=decision.actor, at=to_us(decision.at),
        )
    )  # fmt: skip


def conclude_decision(
    conn: Connection,
    id: str,
    *,
    outcome: Mapping[str, Any],
    rows: int,
    silver_version: int | None,
    quarantine_version: int | None,
) -> None:
    """Say what became of a decision."""
    conn.execute(
        update(releases)
        .where(releases.c.id == id)
        .values(
            outcome=_json(outcome), rows=rows, silver_version=silver_version, quarantine_version=quarantine_version
        )
    )  # fmt: skip


def pending_decisions(conn: Connection, table: str) -> list[Decision]:
    """Decisions about `table` (MODEL/TABLE) that were cut short, oldest first."""
    query = select(releases).where(releases.c.table_name == table, releases.c.outcome.is_(None))
    return [_decision(row) for row in conn.execute(query.order_by(releases.c.at))]


def decisions(conn: Connection, table: str, limit: int = 50) -> list[Decision]:
    """Decisions about `table`, the newest first."""
    query = select(releases).where(releases.c.table_name == table).order_by(releases.c.at.desc()).limit(limit)
    return [_decision(row) for row in conn.execute(query)]


def _json(document: Mapping[str, Any] | None) -> str:
    return canonical_json(None if document is None else dict(document)).decode()


def _incident(row: Row[Any]) -> Incident:
    return Incident(
        id=row.id,
        model=row.model,
        table=row.table_name,
        cause=row.cause,
        state=State(row.state),
        title=row.title,
        triage=json.loads(row.triage),
        consumers=json.loads(row.consumers),
        owner=row.owner,
        post_mortem=row.post_mortem,
        opened_at=from_us(row.opened_at),
        changed_at=from_us(row.changed_at),
        closed_at=None if row.closed_at is None else from_us(row.closed_at),
    )


def _event(row: Row[Any]) -> Event:
    return Event(row.id, from_us(row.at), row.actor, row.event, json.loads(row.payload))


def _decision(row: Row[Any]) -> Decision:
    return Decision(
        row.id, row.table_name, row.decision, row.rows, row.contract, row.reason, json.loads(row.choice),
        None if row.outcome is None else json.loads(row.outcome), row.silver_version, row.quarantine_version,
        row.actor, from_us(row.at),
    )  # fmt: skip
