"""Which policy governs a model: the document of its tier, with what its project says; and how documents change.

A document is set by an admin and numbered; until one is, the built-in file of the tier is in force. A project's
`policy:` section only tightens it. What an admin lets through although it is looser is waived, point by point; that
a model is of a lower tier than high is such a point.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from loopwright.kernel.actor import SYSTEM, Actor, Role, require
from loopwright.kernel.clock import iso
from loopwright.kernel.errors import BadInput, Refused, did_you_mean
from loopwright.ledger import store as ledger
from loopwright.project.policy import TIERS, read_policy
from loopwright.project.policy import Policy as Section
from loopwright.registry.policy import Policy, Promotion
from loopwright.registry.tiers import store

FILES = Path(__file__).parent / "tiers"
HIGHEST = TIERS[-1]
SHORTEST_REASON = 10


@dataclass(frozen=True, slots=True)
class Document:
    """What a tier asks. Number 0 is the built-in file, which nobody set."""

    tier: str
    number: int
    policy: Policy
    by: str = ""
    reason: str = ""
    at: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """Return all fields, JSON-able."""
        return {
            "tier": self.tier, "number": self.number, "digest": self.policy.digest, "by": self.by or None,
            "reason": self.reason, "at": iso(self.at) if self.at else None, "document": self.policy.to_json(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """A document and the one it replaces, and in which points it asks for less and for more."""

    before: Document
    after: Document
    looser: tuple[str, ...]
    stricter: tuple[str, ...]

    @property
    def changed(self) -> bool:
        return self.before.policy != self.after.policy

    def to_json(self) -> dict[str, Any]:
        """Return what changes, JSON-able."""
        return {
            **self.after.to_json(), "changed": self.changed, "before": self.before.policy.digest,
            "before_number": self.before.number, "looser": list(self.looser), "stricter": list(self.stricter),
        }  # fmt: skip


def check_tier(tier: str) -> str:
    """Return the tier's name; raises BadInput with the nearest one."""
    if tier not in TIERS:
        raise BadInput("unknown tier", got=tier, wanted=", ".join(TIERS), next=did_you_mean(tier, TIERS))
    return tier


@lru_cache(maxsize=len(TIERS))
def builtin(tier: str) -> Policy:
    """What the tier's own file says."""
    return Policy.from_json(read_policy(FILES / f"{check_tier(tier)}.yaml").to_json())


def in_force(conn: Connection, tier: str) -> Document:
    """The document that governs the tier now."""
    rows = store.documents(conn, check_tier(tier), latest=True)
    return _document(rows[0]) if rows else Document(tier, 0, builtin(tier))


def history(conn: Connection, tier: str) -> list[Document]:
    """Every document the tier has had, the built-in one first."""
    first = Document(tier, 0, builtin(tier))
    return [first, *(_document(row) for row in store.documents(conn, tier))]


def set_document(
    conn: Connection,
    document: Mapping[str, Any],
    *,
    actor: Actor,
    reason: str,
    now: datetime,
    dry_run: bool = False,
) -> Change:
    """Put `document` into force for its tier under the next number, with the audit row; what it leaves out is as the
    built-in file of the tier says. The same document again changes nothing.

    `dry_run` only says what would change. Raises Refused unless the actor is an admin, BadInput for a document that
    does not read or a reason that says nothing.
    """
    section = Section.from_json(dict(document))
    before = in_force(conn, section.tier)
    wanted = builtin(section.tier).replaced_by(section.to_json())
    after = Document(section.tier, before.number + 1, wanted, actor.name, reason, now)
    change = Change(
        before, after, wanted.looser_than(before.policy), before.policy.looser_than(wanted)
    )  # fmt: skip
    if dry_run:
        return change
    require(actor, Role.ADMIN, f"set the policy of tier {section.tier}")
    check_reason(reason, "Say why: loopwright policy set FILE --reason TEXT")
    if not change.changed:
        return Change(before, before, (), ())
    store.insert_document(conn, section.tier, after.number, wanted, actor.name, reason, now)
    ledger.append(
        conn, at=now, actor=actor.name, action="policy.set", subject=f"policy {section.tier}",
        payload={
            "number": after.number, "before": before.policy.digest, "after": wanted.digest, "reason": reason,
            "looser": list(change.looser), "stricter": list(change.stricter),
        },
    )  # fmt: skip
    return change


def policy_of(conn: Connection, model: str) -> Policy:
    """What governs `model` now; a model is of tier high until an admin says otherwise."""
    section, waived = store.policy_section(conn, model) or ({}, [])
    tier = str(section.get("tier") or HIGHEST) if "tier" in waived else HIGHEST
    return in_force(conn, tier).policy.within(section, waived)


def governing(conn: Connection, promotion: Promotion) -> Policy:
    """What decides on a pending promotion: in every point the stricter of the policy it was requested under and the
    one in force now. So nobody waits for a policy to be loosened, and nobody slips through before it is tightened.
    """
    return promotion.policy.stricter(policy_of(conn, promotion.model))


def admit(
    conn: Connection,
    *,
    model: str,
    section: Mapping[str, Any],
    actor: Actor,
    where: str = "",
    deliberate: bool = False,
) -> tuple[str, ...]:
    """Return the points of a project's `policy:` section that stay, or become, waived; hand them to `waive`.

    A section that is as it was keeps the waivers it had, so that a document tightened since binds it, unless the act
    is `deliberate` (`loopwright apply`). Who is no admin of the home waives nothing: a first project is governed by
    tier high until an admin applies it, and a changed one that asks for less than what governs the model now raises
    Refused. An admin of the model's team is none: the tiers bind teams. Retraining on nobody's word never loosens
    anything.
    """
    found = store.policy_section(conn, model)
    standing, waived = found or ({}, [])
    document = in_force(conn, str(section.get("tier") or HIGHEST)).policy
    loosened = _loosened(document, section)
    kept = tuple(point for point in loosened if point in waived)
    unchanged = found is not None and _said(standing) == _said(section)
    if unchanged and not deliberate:
        return kept
    may = actor.name != SYSTEM.name and actor.role_on(model=model) >= Role.ADMIN
    if may:
        return loosened
    looser = document.within(section, loosened).looser_than(policy_of(conn, model))
    if looser and (deliberate or (found is not None and not unchanged)):
        raise Refused(
            f"{actor.name} may not loosen the policy of {model}", where=where, got="; ".join(looser),
            wanted="the role admin", next="Ask an admin to apply it: loopwright apply",
        )  # fmt: skip
    return kept


def ungranted(conn: Connection, model: str) -> tuple[str, ...]:
    """In which points the model's project asks for less than governs it: what an admin could apply."""
    section, waived = store.policy_section(conn, model) or ({}, [])
    document = in_force(conn, str(section.get("tier") or HIGHEST)).policy
    if set(_loosened(document, section)) <= set(waived):
        return ()
    return document.within(section, document.loosened_by(section)).looser_than(policy_of(conn, model))


def waive(conn: Connection, model: str, points: tuple[str, ...], *, actor: Actor, now: datetime) -> None:
    """Keep what `admit` returned, once the project is saved; a change of what is waived is audited."""
    found = store.policy_section(conn, model)
    if found is None or tuple(found[1]) == points:
        return
    store.waive(conn, model, points)
    ledger.append(
        conn, at=now, actor=actor.name, action="policy.waived", subject=model,
        payload={"points": list(points), "before": found[1], "policy": policy_of(conn, model).digest},
    )  # fmt: skip


def check_reason(reason: str, remedy: str) -> None:
    """Raise BadInput for a reason that is too short to be one."""
    if len(reason.strip()) < SHORTEST_REASON:
        raise BadInput(
            "the reason is too short" if reason.strip() else "no reason is given",
            got=reason,
            wanted=f"at least {SHORTEST_REASON} characters",
            next=remedy,
        )


def _document(row: Mapping[str, Any]) -> Document:
    return Document(
        row["tier"], row["number"], Policy.from_json(row["document"]), row["by"], row["reason"], row["at"]
    )


def _loosened(document: Policy, section: Mapping[str, Any]) -> tuple[str, ...]:
    """What takes an admin: a tier below the highest, and what is looser than the tier's document."""
    lower = ("tier",) if (section.get("tier") or HIGHEST) != HIGHEST else ()
    return (*lower, *document.loosened_by(section))


def _said(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section without what says nothing."""
    whole = {key: _said(value) if isinstance(value, Mapping) else value for key, value in section.items()}
    return {key: value for key, value in whole.items() if value not in (None, {}, [], "")}
