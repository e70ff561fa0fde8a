"""Says how long a version is kept, and deletes it afterwards: the one function behind MLflow, API and command line.

A deleted version leaves every list. Its row, number, promotions, evidence and audit rows stay; its bundle goes when no
other version has the same bytes.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import Connection

from loopwright.bundle.depot import BundleDepot
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import format_duration, iso
from loopwright.kernel.errors import BadInput, Refused
from loopwright.kernel.stage import Stage
from loopwright.ledger import store as ledger
from loopwright.ledger.engine import Ledger
from loopwright.registry import promotion
from loopwright.registry import store as registry
from loopwright.registry.authority import require_on
from loopwright.registry.policies import policy_of
from loopwright.registry.records import Version
from loopwright.registry.retention import store


@dataclass(frozen=True, slots=True)
class Standing:
    """How long a version is kept and what else stands in the way; nothing and a day that has come: it may go."""

    version: Version
    retain: timedelta
    kept_until: datetime
    needed_by: tuple[str, ...]

    def may_go(self, now: datetime) -> bool:
        return not self.needed_by and now >= self.kept_until

    def to_json(self) -> dict[str, Any]:
        """Return all fields, JSON-able."""
        return {
            "model": self.version.model, "version": self.version.version, "stage": self.version.stage.value,
            "bundle": self.version.bundle, "created_at": iso(self.version.created_at),
            "retain": format_duration(self.retain), "kept_until": iso(self.kept_until),
            "needed_by": list(self.needed_by),
        }  # fmt: skip


def standing(conn: Connection, *, model: str, version: int) -> Standing:
    """Say how long one version is kept; raises NotFound."""
    found, retain = registry.get_version(conn, model, version), policy_of(conn, model).retain
    return _standing(conn, found, retain, _ways_back(conn, model))


def standings(conn: Connection, *, model: str | None = None) -> list[Standing]:
    """The same for all versions of `model`, or of all models; oldest first."""
    found = []
    for name in [model] if model is not None else registry.list_models(conn):
        retain, back = policy_of(conn, name).retain, _ways_back(conn, name)
        found += [_standing(conn, version, retain, back) for version in registry.list_versions(conn, name)]
    return found


def deleted_at(conn: Connection, *, model: str, version: int) -> datetime | None:
    """When the version was deleted; None for one that is there, or never was."""
    return registry.deleted_at(conn, model, version)


def delete_version(
    conn: Connection, *, model: str, version: int, actor: Actor, now: datetime, reason: str
) -> Version:
    """Delete a version whose retention is over; returns what it was. The bytes go afterwards: `drop_bytes`.

    Admins of the model only. Raises Refused inside retention (naming the day), for Staging and Production, and while
    a rollout, request, review or rollback may need it; NotFound for one that is gone; BadInput without a reason.
    """
    require_on(conn, actor, Role.ADMIN, f"delete {model}/{version}", model=model)
    if not reason.strip():
        raise BadInput("a deletion needs a reason", where=f"{model}/{version}", next="Say why: --reason")
    found = standing(conn, model=model, version=version)
    subject = found.version.subject
    if found.needed_by:
        raise Refused(f"versions that are in use are kept: {'; '.join(found.needed_by)}", where=subject)
    if now < found.kept_until:
        raise Refused(
            f"versions are kept: this one is under retention until {found.kept_until:%Y-%m-%d %H:%M} UTC",
            where=subject,
            got=f"{now:%Y-%m-%d %H:%M}", wanted=f"{format_duration(found.retain)} after its last use",
        )  # fmt: skip
    store.mark_deleted(conn, model, version, now)
    ledger.append(
        conn, at=now, actor=actor.name, action="version.deleted", subject=subject,
        payload={
            "reason": reason, "bundle": found.version.bundle, "run_id": found.version.run_id,
            "snapshot": found.version.snapshot, "kept_until": iso(found.kept_until),
            "retain": format_duration(found.retain),
        },
    )  # fmt: skip
    return found.version


def drop_bytes(books: Ledger, depot: BundleDepot) -> list[str]:
    """Remove the bundles that only deleted versions had; returns their digests.

    Killed half-way it leaves a bundle whole or under a name that no digest has; called again it finishes. Decided and
    renamed as the only writer, so that nobody registers the same bytes meanwhile.
    """
    with books.write() as conn:
        gone = [digest for digest in store.unused_bundles(conn) if depot.has(digest)]
        for digest in gone:
            depot.withdraw(digest)
    depot.sweep()
    return gone


def _standing(conn: Connection, version: Version, retain: timedelta, back: Set[int]) -> Standing:
    moved = store.last_moved(conn, version.subject)
    used = max(version.created_at, moved) if moved else version.created_at
    return Standing(version, retain, _later(used, retain), tuple(_needed_by(conn, version, back)))


def _later(moment: datetime, retain: timedelta) -> datetime:
    try:
        return moment + retain
    except OverflowError:
        return datetime.max.replace(tzinfo=moment.tzinfo)


def _ways_back(conn: Connection, model: str) -> frozenset[int]:
    """What a rollback would bring back: the version promoted before, and the one that answered before."""
    approved = {one.version for one in promotion.returnable(conn, model)}
    before = (one for one in store.answered(conn, model)[1:] if one in approved)
    target = promotion.rollback_target(conn, model=model)
    return frozenset([*([target.version] if target else []), *islice(before, 1)])


def _needed_by(conn: Connection, version: Version, back: Set[int]) -> Sequence[str]:
    model, number = version.model, version.version
    reasons = []
    if version.stage in (Stage.STAGING, Stage.PRODUCTION):
        reasons.append(f"it is in {version.stage.value}")
    if number in store.routed(conn, model):
        reasons.append("servers answer with it")
    reasons += [f"the rollout {one} needs it" for one in store.rollouts_with(conn, model, number)]
    if registry.find_promotions(conn, model=model, version=number, state="pending"):
        reasons.append("a promotion waits for a decision")
    reasons += [
        f"the emergency promotion {one} waits for its review"
        for one in store.open_reviews(conn, model, number)
    ]
    if number in back:
        reasons.append("a rollback would go back to it")
    return reasons
