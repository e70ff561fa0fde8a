"""Opens incidents, joins what recurs to the standing one, and moves them on: each in one ledger transaction."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from loopwright.data.incidents import store
from loopwright.data.incidents.model import (
    DONE,
    STANDING,
    Act,
    Incident,
    State,
    after,
    require_closing,
)
from loopwright.data.incidents.triage import joined
from loopwright.kernel.actor import Actor
from loopwright.kernel.clock import iso
from loopwright.kernel.errors import Refused
from loopwright.kernel.ids import new_id
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger


def record_incident(
    conn: Connection,
    *,
    table: str,
    cause: str,
    title: str,
    triage: Mapping[str, Any],
    actor: Actor,
    now: datetime,
    owner: str = "",
) -> Incident:
    """Open an incident about `table` (MODEL/TABLE), or count the failure on the one that stands for this cause.

    The same delivery refused again within one standing incident is counted, too: somebody tried.
    """
    standing = store.standing_incident(conn, table, cause)
    if standing is not None:
        again = replace(standing, triage=joined(standing.triage, triage), title=title, changed_at=now)
        store.save_incident(conn, again)
        _note(conn, again, "repeated", actor, now, _seen(again))
        return again
    opened = Incident(
        id=new_id("in"),
        model=table.partition("/")[0],
        table=table,
        cause=cause,
        state=State.OPEN,
        title=title,
        triage=dict(triage),
        consumers=None,
        owner=owner,
        post_mortem="",
        opened_at=now,
        changed_at=now,
        closed_at=None,
    )
    store.add_incident(conn, opened)
    _note(conn, opened, "opened", actor, now, _seen(opened))
    return opened


def move(
    conn: Connection,
    incident: Incident,
    act: Act,
    *,
    actor: Actor,
    now: datetime,
    reason: str = "",
    post_mortem: str = "",
    facts: Mapping[str, Any] | None = None,
) -> Incident:
    """Do `act` to an incident. Raises Conflict where its state does not allow it, Refused where words are missing."""
    state = after(incident, act)
    if act == "close":
        require_closing(incident, post_mortem)
    moved = replace(
        incident,
        state=state,
        changed_at=now,
        closed_at=now if state is State.CLOSED else None,
        owner=actor.name if act == "ack" else incident.owner,
        post_mortem=post_mortem or incident.post_mortem,
    )
    store.save_incident(conn, moved)
    payload: dict[str, Any] = {**({"reason": reason} if reason else {}), **(facts or {})}
    _note(conn, moved, DONE[act], actor, now, payload)
    return moved


def note(
    conn: Connection,
    incident: Incident,
    event: str,
    *,
    actor: Actor,
    now: datetime,
    payload: Mapping[str, Any],
) -> None:
    """Add a line to the timeline without moving the incident."""
    _note(conn, incident, event, actor, now, payload)


def save_consumers(
    conn: Connection, incident: Incident, consumers: Mapping[str, Any], *, actor: Actor, now: datetime
) -> Incident:
    """Write down who is hit; a line in the timeline when it is other than what was known."""
    if incident.consumers == consumers:
        return incident
    known = replace(incident, consumers=dict(consumers), changed_at=now)
    store.save_incident(conn, known)
    counted = {name: len(consumers.get(name, ())) for name in ("features", "versions", "live")}
    _note(conn, known, "consumers", actor, now, counted)
    return known


def standing_on(conn: Connection, tables: list[str]) -> list[Incident]:
    """Incidents on `tables` (MODEL/TABLE) that are open or acknowledged and keep training off, the newest first."""
    found = store.list_incidents(conn, tables=tables, states=STANDING)
    return [incident for incident in found if incident.blocking]


def settle(
    ledger: Ledger, table: str, uris: Collection[str], *, batch: str, actor: Actor, now: datetime
) -> list[Incident]:
    """Resolve what kept deliveries of these sources out of `table` (MODEL/TABLE): one of them keeps the contract now.

    Is idempotent. What broke a delivery of another source stands until somebody says what became of it, and so does
    what a person has opened again.
    """
    with ledger.read() as conn:
        standing = [
            one
            for one in standing_on(conn, [table])
            if _last_uri(one) in uris and not _insisted_on(conn, one)
        ]
    if not standing:
        return []
    with ledger.write() as conn:
        return [
            move(
                conn, again, "resolve", actor=actor, now=now, facts={"batch": batch},
                reason="the source delivers what the contract wants",
            )
            for one in standing
            if (again := store.get_incident(conn, one.id)).standing
        ]  # fmt: skip


def require_no_incident(conn: Connection, model: str, tables: Sequence[str]) -> None:
    """Raise Refused while an incident keeps deliveries out of one of the model's `tables`."""
    standing = standing_on(conn, [f"{model}/{table}" for table in tables])
    if not standing:
        return
    first = standing[0]
    more = f" and {len(standing) - 1} more" if len(standing) > 1 else ""
    good = str((first.triage.get("last_good") or {}).get("batch") or "none")[:12]
    raise Refused(
        f"an incident stands on data that this run needs: {first.title}",
        where=f"incident {first.id}{more}",
        got=f"{first.state.value} since {iso(first.opened_at)}; last good delivery {good}",
        wanted="no standing incident",
        next=f"Mend the source and run again, or: loopwright data incident show {first.id}; then ack and resolve it; "
        "or train on the last good data: loopwright run DIR --snapshot DIGEST",
    )


def _insisted_on(conn: Connection, incident: Incident) -> bool:
    """Whether a person has opened it again since the last failure."""
    counted = ("opened", "repeated", "reopened")
    last = [event.event for event in store.events_of(conn, incident.id) if event.event in counted]
    return last[-1:] == ["reopened"]


def _last_uri(incident: Incident) -> str:
    return str(incident.triage["deliveries"][-1]["uri"])


def _seen(incident: Incident) -> dict[str, Any]:
    last = incident.triage["deliveries"][-1]
    return {
        "cause": incident.cause,
        "uri": last["uri"],
        "batch": last["batch"],
        "rows": last["rows"],
        "bad": last["bad"],
        "count": incident.triage["count"],
    }


def _note(
    conn: Connection, incident: Incident, event: str, actor: Actor, now: datetime, payload: Mapping[str, Any]
) -> None:
    store.add_event(conn, incident.id, at=now, actor=actor.name, event=event, payload=payload)
    ledger_store.append(
        conn,
        at=now,
        actor=actor.name,
        action=f"incident.{event}",
        subject=incident.table,
        payload={"model": incident.model, "incident": incident.id, "state": incident.state.value, **payload},
    )
