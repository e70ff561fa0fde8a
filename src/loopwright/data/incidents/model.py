"""An incident and the states it goes through. Pure.

    open → acknowledged → resolved → backfilled → closed

An incident may be resolved without anybody having acknowledged it, and closed without a backfill when nothing
downstream had to be computed anew; what was closed or resolved may be opened again, by a person or because the same
cause came back. One cause has at most one standing incident: what happens while it stands is counted on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from loopwright.kernel.clock import iso
from loopwright.kernel.errors import BadInput, Conflict, Refused


class State(StrEnum):
    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"
    BACKFILLED = "backfilled"
    CLOSED = "closed"


Act = Literal["ack", "resolve", "backfill", "close", "reopen"]

TRANSITIONS: Mapping[Act, Mapping[State, State]] = {
    "ack": {State.OPEN: State.ACKNOWLEDGED},
    "resolve": {State.OPEN: State.RESOLVED, State.ACKNOWLEDGED: State.RESOLVED},
    "backfill": {State.RESOLVED: State.BACKFILLED, State.BACKFILLED: State.BACKFILLED},
    "close": {State.RESOLVED: State.CLOSED, State.BACKFILLED: State.CLOSED},
    "reopen": {
        State.RESOLVED: State.OPEN,
        State.BACKFILLED: State.OPEN,
        State.CLOSED: State.OPEN,
    },
}
DONE: Mapping[Act, str] = {
    "ack": "acknowledged",
    "resolve": "resolved",
    "backfill": "backfilled",
    "close": "closed",
    "reopen": "reopened",
}
"""The event that each act leaves in the timeline."""

STANDING = (State.OPEN, State.ACKNOWLEDGED)
"""The cause lasts, or nobody has said that it does not."""

Kind = Literal["blocked", "error", "quarantine", "unreadable"]
"""blocked: a contract kept a delivery out. error: a rule could not be evaluated, so neither could the delivery.
unreadable: the source is away, cut off, or lacks a column. quarantine: more rows were set aside than is normal."""

BLOCKING: tuple[Kind, ...] = ("blocked", "error", "unreadable")
"""Kinds that leave a table without the delivery: nobody trains on it meanwhile without saying so."""

ASKED = "_To be written by whoever closes the incident._"
"""What stands in the draft of a post-mortem where only people know what to say."""

Impact = Literal["high", "low"]


@dataclass(frozen=True, slots=True)
class Event:
    """One line of an incident's timeline."""

    id: int
    at: datetime
    actor: str
    event: str
    payload: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "at": iso(self.at), "actor": self.actor, "event": self.event,
                "payload": dict(self.payload)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Incident:
    """`table`: MODEL/TABLE. `triage`: see `triage.Triage`. `consumers`: None until somebody has looked for them."""

    id: str
    model: str
    table: str
    cause: str
    state: State
    title: str
    triage: Mapping[str, Any]
    consumers: Mapping[str, Any] | None
    owner: str
    post_mortem: str
    opened_at: datetime
    changed_at: datetime
    closed_at: datetime | None

    @property
    def standing(self) -> bool:
        return self.state in STANDING

    @property
    def blocking(self) -> bool:
        """Whether training on the table is refused because of it."""
        return self.standing and self.triage.get("kind") in BLOCKING

    @property
    def impact(self) -> Impact:
        """high: a version that answers requests was trained on the table. Such an incident is not closed in silence."""
        return "high" if (self.consumers or {}).get("live") else "low"

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "model": self.model,
            "table": self.table,
            "cause": self.cause,
            "kind": self.triage.get("kind", ""),
            "state": self.state.value,
            "blocking": self.blocking,
            "impact": self.impact,
            "title": self.title,
            "triage": dict(self.triage),
            "consumers": None if self.consumers is None else dict(self.consumers),
            "owner": self.owner,
            "post_mortem": self.post_mortem,
            "count": int(self.triage.get("count", 1)),
            "last_seen": self.triage.get("last_seen"),
            "opened_at": iso(self.opened_at),
            "changed_at": iso(self.changed_at),
            "closed_at": iso(self.closed_at) if self.closed_at else None,
        }


def cause_of(kind: Kind, rules: Sequence[str]) -> str:
    """What makes two failures of one table the same: how it failed, and the set of rules that were broken."""
    return ": ".join([kind, " & ".join(sorted(set(rules)))]) if rules else kind


def after(incident: Incident, act: Act) -> State:
    """The state that `act` leads to; raises Conflict, naming what can be done, where it leads nowhere."""
    there = TRANSITIONS[act].get(incident.state)
    if there is None:
        ways = [name for name, moves in TRANSITIONS.items() if incident.state in moves]
        raise Conflict(
            f"the incident is {incident.state}",
            where=f"incident {incident.id}",
            got=act,
            wanted=" or ".join(sorted(state.value for state in TRANSITIONS[act])),
            next=f"What can be done now: {', '.join(ways)}.",
        )
    return there


def require_closing(incident: Incident, post_mortem: str) -> None:
    """Raise Refused for an incident of high impact that would be closed without a word about it, or with the draft."""
    text = (post_mortem or incident.post_mortem).strip()
    if incident.impact == "high" and ASKED in text:
        raise Refused(
            "the post-mortem is a draft yet",
            where=f"incident {incident.id}",
            got=f"“{ASKED.strip('_')}” in {text.count(ASKED)} places",
            wanted="the cause, and what keeps it from happening again",
            next="Write there what you know, or take the line out",
        )
    if incident.impact == "high" and not text:
        live = ", ".join(str(one) for one in (incident.consumers or {}).get("live", ()))
        raise Refused(
            "an incident that reached a version in service is not closed without a post-mortem",
            where=f"incident {incident.id}",
            got=f"no text; it hit {live}",
            wanted="what happened, and what keeps it from happening again",
            next=f"Begin with: loopwright data incident post-mortem {incident.id} --out post-mortem.md; "
            "then close with --post-mortem FILE",
        )


def require_reason(reason: str, act: str) -> str:
    """The reason without blanks around it; raises BadInput for an empty one."""
    if not reason.strip():
        raise BadInput(f"no reason is given to {act}", wanted="a sentence that others will read later",
                       next="--reason TEXT")  # fmt: skip
    return reason.strip()
