"""What incidents and decisions ask the ledger, on every engine."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from loopwright.data.incidents import store
from loopwright.data.incidents.model import Incident, State
from loopwright.data.incidents.record import (
    move,
    record_incident,
    require_no_incident,
    save_consumers,
    settle,
)
from loopwright.data.incidents.store import Decision
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import Conflict, NotFound, Refused
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger

ADA = Actor("ada", Role.DEVELOPER)
NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)


def opened(ledger: Ledger, cause: str = "blocked: x", *, kind: str = "blocked", hours: int = 0) -> Incident:
    at = NOON + timedelta(hours=hours)
    triage: dict[str, Any] = {
        "kind": kind, "count": 1, "first_seen": "a", "last_seen": "b", "last_good": None, "changes": [],
        "deliveries": [{"uri": "f.csv", "batch": "b", "rows": 5, "bad": 4}],
    }  # fmt: skip
    with ledger.write() as conn:
        return record_incident(
            conn, table="m/t", cause=cause, title=f"m/t: {cause}", triage=triage, actor=ADA, now=at
        )


def test_one_cause_has_one_standing_incident_and_a_new_one_after_it_was_resolved(any_ledger: Ledger) -> None:
    first = opened(any_ledger)
    assert opened(any_ledger, hours=1).id == first.id
    other = opened(any_ledger, "blocked: y", hours=2)
    with any_ledger.write() as conn:
        move(conn, store.get_incident(conn, first.id), "resolve", actor=ADA, now=NOON, reason="mended")
    third = opened(any_ledger, hours=3)
    assert len({first.id, other.id, third.id}) == 3
    with any_ledger.read() as conn:
        assert store.get_incident(conn, first.id).triage["count"] == 2
        assert [one.id for one in store.list_incidents(conn, model="m")] == [third.id, other.id, first.id]
        assert [e.event for e in store.events_of(conn, first.id)] == ["opened", "repeated", "resolved"]
        actions = [row.action for row in ledger_store.rows(conn)]
    assert actions == [
        "incident.opened", "incident.repeated", "incident.opened", "incident.resolved", "incident.opened",
    ]  # fmt: skip


def test_a_move_that_is_not_allowed_writes_nothing(any_ledger: Ledger) -> None:
    incident = opened(any_ledger)
    with pytest.raises(Conflict), any_ledger.write() as conn:
        move(conn, incident, "close", actor=ADA, now=NOON)
    with any_ledger.read() as conn:
        assert store.get_incident(conn, incident.id).state is State.OPEN
        assert len(store.events_of(conn, incident.id)) == 1


def test_an_incident_is_found_by_the_beginning_or_the_end_of_its_id(any_ledger: Ledger) -> None:
    incident = opened(any_ledger)
    with any_ledger.read() as conn:
        assert store.get_incident(conn, incident.id[-8:]).id == incident.id
        assert store.get_incident(conn, incident.id[:16]).id == incident.id
        with pytest.raises(NotFound):
            store.get_incident(conn, "in_%%%%%%")


def test_training_is_refused_while_a_blocking_incident_stands(any_ledger: Ledger) -> None:
    opened(any_ledger, "quarantine: x", kind="quarantine")
    with any_ledger.read() as conn:
        require_no_incident(conn, "m", ["t"])
    incident = opened(any_ledger)
    with any_ledger.read() as conn:
        require_no_incident(conn, "m", ["u"])
        with pytest.raises(Refused, match=incident.id):
            require_no_incident(conn, "m", ["u", "t"])
    assert settle(any_ledger, "m/t", {"other.csv"}, batch="c", actor=ADA, now=NOON) == []
    assert [one.id for one in settle(any_ledger, "m/t", {"f.csv"}, batch="c", actor=ADA, now=NOON)] == [
        incident.id
    ]
    assert settle(any_ledger, "m/t", {"f.csv"}, batch="c", actor=ADA, now=NOON) == []
    with any_ledger.read() as conn:
        require_no_incident(conn, "m", ["t"])


def test_consumers_are_looked_for_once(any_ledger: Ledger) -> None:
    incident = opened(any_ledger)
    with any_ledger.write() as conn:
        assert [one.id for one in store.unnoticed(conn)] == [incident.id]
        save_consumers(conn, incident, {"live": ["m/1"], "versions": ["m/1"]}, actor=ADA, now=NOON)
        assert store.unnoticed(conn) == []
        assert store.get_incident(conn, incident.id).impact == "high"


def test_events_come_in_order_for_whoever_tells_them(any_ledger: Ledger) -> None:
    incident = opened(any_ledger)
    opened(any_ledger, hours=1)
    with any_ledger.read() as conn:
        found = store.next_event(conn, 0)
        assert found is not None and (found[0].event, found[1]) == ("opened", incident.id)
        second = store.next_event(conn, found[0].id)
        assert second is not None and second[0].event == "repeated"
        assert store.next_event(conn, second[0].id) is None
        assert store.last_event(conn) == second[0].id


def test_a_decision_stands_until_it_has_taken_effect(any_ledger: Ledger) -> None:
    decision = Decision(
        "re_1", "m/t", "release", 5, "c", "right after all", {"asked": {}, "plan": {}, "batch": ""}, None, 1, 2,
        "ada", NOON,
    )  # fmt: skip
    with any_ledger.write() as conn:
        store.add_decision(conn, decision)
        assert [one.id for one in store.pending_decisions(conn, "m/t")] == ["re_1"]
        store.conclude_decision(
            conn, "re_1", outcome={"released": 5}, rows=5, silver_version=3, quarantine_version=4
        )
        assert store.pending_decisions(conn, "m/t") == []
        (known,) = store.decisions(conn, "m/t")
    assert (known.outcome, known.silver_version, known.reason) == ({"released": 5}, 3, "right after all")
