"""Asks for, approves, rejects and takes back promotions. A promotion takes effect by itself when policy is satisfied.

Each act writes its rows, the stage here and in MLflow, and its audit row in the caller's one transaction.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from loopwright.kernel.actor import SYSTEM, Actor, Role
from loopwright.kernel.clock import iso
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Refused, Tampered
from loopwright.kernel.ids import new_id
from loopwright.kernel.stage import Stage
from loopwright.ledger import store as ledger
from loopwright.ledger.audit import AuditRow
from loopwright.registry import store
from loopwright.registry.assess import Assessment, Overdue, assess, check_reviewer
from loopwright.registry.authority import require_on, role_on
from loopwright.registry.policies import governing, policy_of
from loopwright.registry.policy import Policy, Promotion
from loopwright.registry.records import Approval, Decision, Version
from loopwright.registry.tiers.store import find_reviews
from loopwright.registry.versions import current

PRODUCTION_ALIASES = ("champion", "production")
STAGING_ALIASES = ("staging",)
RESERVED_ALIASES = frozenset(
    (*PRODUCTION_ALIASES, *STAGING_ALIASES, "prod", "live", "stable", "canary", "challenger", "shadow")
)
"""Aliases that say where a version stands: they follow governance, no client may set or delete them."""


def request_promotion(
    conn: Connection,
    *,
    model: str,
    version: int,
    stage: Stage,
    actor: Actor,
    reason: str,
    now: datetime,
) -> Promotion:
    """Ask to move a version to Staging or Production; may come back effective when policy wants no approval.

    Raises Refused (no role, no sealed bundle, a review of the model overdue), BadInput (stage), Conflict (asked
    already, or there already).
    """
    require_on(conn, actor, Role.DEVELOPER, f"request a promotion of {model}/{version}", model=model)
    found = store.get_version(conn, model, version)
    if stage not in (Stage.STAGING, Stage.PRODUCTION):
        raise BadInput(
            "not a stage to promote to", where=found.subject, got=stage.value, wanted="Staging or Production"
        )
    if found.stage is stage:
        raise Conflict(f"the version is in {stage.value} already", where=found.subject)
    rules = policy_of(conn, model)
    if found.bundle is None:
        missing = assess(found, None, (), rules, stage, now=now)
        raise Refused(f"cannot be promoted to {stage.value}: missing {missing}", where=found.subject)
    check_reviews(conn, model, now)
    if store.find_promotions(conn, model=model, version=version, stage=stage, state="pending"):
        raise Conflict(
            f"a promotion to {stage.value} is waiting already",
            where=found.subject,
            next=_how_to_approve(found),
        )
    promotion = Promotion(
        new_id("pr"), model, version, stage, found.bundle, actor.name, now, reason, "pending", None, rules,
        rules.digest,
    )  # fmt: skip
    noted = {"reason": reason, "policy": rules.digest}
    row = note(conn, promotion, now, actor, "promotion.requested", noted)
    promotion = replace(promotion, seq=row.seq)
    store.insert_promotion(conn, promotion)
    return settle(conn, promotion, now=now, actor=actor)


def approve(
    conn: Connection,
    *,
    model: str,
    version: int,
    reviewer: Actor,
    now: datetime,
    comment: str = "",
    bundle: str | None = None,
    promotion: str | None = None,
) -> Promotion:
    """Record one reviewer's yes; the promotion takes effect when nothing is missing any more.

    `bundle` is the digest the reviewer looked at. Raises Refused for the author, the requester, a second word by one
    person, a missing role or other bytes; NotFound when nothing waits.
    """
    return _speak(conn, "approve", model, version, reviewer, now, comment, bundle, promotion)


def reject(
    conn: Connection,
    *,
    model: str,
    version: int,
    reviewer: Actor,
    now: datetime,
    comment: str = "",
    bundle: str | None = None,
    promotion: str | None = None,
) -> Promotion:
    """Record one reviewer's no; it ends the promotion. Raises like `approve`."""
    return _speak(conn, "reject", model, version, reviewer, now, comment, bundle, promotion)


def withdraw(
    conn: Connection,
    *,
    model: str,
    version: int,
    actor: Actor,
    now: datetime,
    reason: str = "",
    promotion: str | None = None,
) -> Promotion:
    """Take a waiting request back: by who made it, or an admin. Raises Conflict for one that was decided."""
    waiting = _pending(conn, model, version, promotion)
    needed = Role.DEVELOPER if actor.name == waiting.requested_by else Role.ADMIN
    require_on(conn, actor, needed, f"withdraw {waiting.requested_by}'s request", model=model)
    if waiting.state != "pending":
        raise Conflict(f"the promotion is {waiting.state} already", where=f"{model}/{version}")
    return _withdrawn(conn, waiting, actor, now, reason)


def withdraw_for(
    conn: Connection, *, model: str, version: int, actor: Actor, now: datetime, why: str
) -> None:
    """Withdraw every waiting request to Production of a version that goes there another way."""
    for promotion in store.find_promotions(
        conn, model=model, version=version, stage=Stage.PRODUCTION, state="pending"
    ):
        _withdrawn(conn, promotion, actor, now, why)


def settle(conn: Connection, promotion: Promotion, *, now: datetime, actor: Actor) -> Promotion:
    """Make a pending promotion effective if nothing is missing; return it as it then stands.

    Raises Conflict for Staging when the version is in Production (it may be serving), Tampered when MLflow's row names
    other bytes than the version's.
    """
    version = store.get_version(conn, promotion.model, promotion.version)
    if (
        promotion.state == "pending"
        and promotion.stage is Stage.STAGING
        and version.stage is Stage.PRODUCTION
    ):
        raise Conflict(
            "a version leaves Production only by a rollback or when its successor has taken over",
            where=version.subject, got="a promotion to Staging", next=f"loopwright rollback {promotion.model}",
        )  # fmt: skip
    if promotion.state != "pending":
        return promotion
    policy = governing(conn, promotion)
    verdict = _assess(conn, version, promotion, policy, promotion.stage, now)
    if not verdict.satisfied:
        return promotion
    return make_effective(conn, version, promotion, policy, now=now, actor=actor, evidence=verdict.evidence)


def make_effective(
    conn: Connection,
    version: Version,
    promotion: Promotion,
    policy: Policy,
    *,
    now: datetime,
    actor: Actor,
    evidence: Sequence[str] = (),
) -> Promotion:
    """Move the version to the stage, here and in MLflow. Whoever calls has made sure that it may.

    Raises Tampered when MLflow's row names other bytes than the version's.
    """
    source = store.ml_source(conn, version.model, version.version)
    if source != version.source:
        raise Tampered(
            "MLflow's row names other bytes than the registered bundle; nothing was promoted",
            where=version.subject, got=source, wanted=version.source or "",
        )  # fmt: skip
    broken = {"emergency": promotion.emergency} if promotion.emergency is not None else {}
    row = note(
        conn, promotion, now, actor, "promotion.effective",
        {
            "from": version.stage.value, "approved_by": list(promotion.approved_by),
            "requested_by": promotion.requested_by, "policy": policy.digest, "evidence": list(evidence), **broken,
        },
    )  # fmt: skip
    store.decide_promotion(conn, promotion.id, "effective", now, seq=row.seq, policy=policy)
    store.set_stage(conn, version.model, version.version, promotion.stage, now)
    _point_aliases(conn, version.model)
    return replace(
        promotion, state="effective", decided_at=now, decided_seq=row.seq, policy=policy, policy_digest=policy.digest
    )  # fmt: skip


def ready(conn: Connection, now: datetime) -> list[Promotion]:
    """Pending promotions that lack nothing any more: a freeze is over, or evidence came after the last approval."""
    found = []
    for promotion in store.find_promotions(conn, state="pending"):
        version = store.get_version(conn, promotion.model, promotion.version)
        if promotion.stage is Stage.STAGING and version.stage is Stage.PRODUCTION:
            continue  # it may be serving; whoever asked can withdraw the request
        policy = governing(conn, promotion)
        if _assess(conn, version, promotion, policy, promotion.stage, now).satisfied:
            found.append(promotion)
    return found


def check_reviews(conn: Connection, model: str, now: datetime) -> None:
    """Refuse while a review of `model` is overdue: who breaks the glass answers for it before the next promotion."""
    if (late := _overdue(conn, model, now)) is not None:
        raise Refused(
            f"the glass was broken for version {late.version} and its review is overdue; nothing is promoted before it",
            where=model, wanted=f"the review that was due {iso(late.since)}",
            next=f"loopwright review {model} {late.version} --uphold --comment TEXT (or --revoke)",
        )  # fmt: skip


def assessment(
    conn: Connection,
    *,
    model: str,
    version: int,
    stage: Stage,
    now: datetime,
    policy: Policy | None = None,
) -> Assessment:
    """Say what the version lacks for `stage` at `now`, by the policy that governs it or by another `policy`."""
    found = store.get_version(conn, model, version)
    waiting = store.find_promotions(conn, model=model, version=version, stage=stage, state="pending")
    promotion = waiting[-1] if waiting else None
    if policy is None:
        policy = governing(conn, promotion) if promotion else policy_of(conn, model)
    return _assess(conn, found, promotion, policy, stage, now)


def list_promotions(
    conn: Connection,
    *,
    model: str | None = None,
    version: int | None = None,
    state: str | None = None,
    between: tuple[int, int] | None = None,
) -> list[Promotion]:
    """Promotions that match, in the order of their requests, with what reviewers said.

    `between`: of versions from the first number to the last.
    """
    return store.find_promotions(conn, model=model, version=version, state=state, between=between)


def archive(
    conn: Connection, *, model: str, version: int, why: str, now: datetime, actor: Actor = SYSTEM
) -> Version:
    """Move a version to Archived; delivery does so when a newer one has all traffic.

    Raises Conflict for the version that governance wants in Production: only a rollback takes that away. Other
    versions there are delivery's alone to archive: during a rollout the one that answers is not the wanted one.
    """
    require_on(conn, actor, Role.DEVELOPER, f"archive {model}/{version}", model=model)
    found = store.get_version(conn, model, version)
    wanted = current(conn, model=model)
    if found.stage is Stage.PRODUCTION and (
        actor.name != SYSTEM.name or (wanted is not None and wanted.version == version)
    ):
        raise _serves(found)
    return _restage(conn, found, Stage.ARCHIVED, actor, now, "version.archived", {"why": why})


def demote(conn: Connection, *, model: str, version: int, why: str, now: datetime, actor: Actor) -> Version:
    """Move a Staging or Archived version back to None. Raises Conflict for one in Production."""
    require_on(conn, actor, Role.DEVELOPER, f"demote {model}/{version}", model=model)
    found = store.get_version(conn, model, version)
    if found.stage is Stage.PRODUCTION:
        raise _serves(found)
    return _restage(conn, found, Stage.NONE, actor, now, "version.demoted", {"why": why})


def revert(
    conn: Connection,
    *,
    model: str,
    version: int,
    to_version: int | None,
    why: str,
    now: datetime,
    evidence: Sequence[str] = (),
    actor: Actor = SYSTEM,
) -> Version | None:
    """Take `version` out of Production and leave exactly `to_version` there (None: nothing).

    `version` is archived and its promotion reverted, so that it needs new approvals to come back. A request that
    waits for `to_version` to come to Production is withdrawn: it is there. Returns the version now in Production.
    Raises Conflict when `version` is not in Production, Refused when `to_version` was never approved for it.
    """
    found = store.get_version(conn, model, version)
    if found.stage is not Stage.PRODUCTION or version == to_version:
        raise Conflict(
            "not a version to revert",
            where=found.subject,
            got=f"stage {found.stage.value}",
            wanted="Production",
        )
    effective = store.effective_productions(conn, model)
    target = _approved_before(conn, effective, model, to_version) if to_version is not None else None
    ledger.append(
        conn, at=now, actor=actor.name, action="version.reverted", subject=found.subject,
        payload={"to": to_version, "why": why, "evidence": list(evidence), "bundle": found.bundle},
    )  # fmt: skip
    for promotion in effective:
        if promotion.version == version:
            store.decide_promotion(conn, promotion.id, "reverted", now)
    for other in store.list_versions(conn, model, stage=Stage.PRODUCTION):
        if other.version != to_version:
            store.set_stage(conn, model, other.version, Stage.ARCHIVED, now)
    if target is not None:
        store.set_stage(conn, model, target.version, Stage.PRODUCTION, now)
        target = replace(target, stage=Stage.PRODUCTION)
        withdraw_for(
            conn, model=model, version=target.version, actor=actor, now=now, why="it is in Production again"
        )
    _point_aliases(conn, model)
    return target


def returnable(conn: Connection, model: str) -> Iterator[Promotion]:
    """The promotions to Production by which versions may come back without new approvals, the latest first.

    Those that stand, of exactly the bytes of a version that is still there; without broken glass that was revoked.
    """
    revoked = {review.promotion_id for review in find_reviews(conn, model=model, state="revoked")}
    for promotion in store.effective_productions(conn, model):
        version = store.find_version(conn, model, promotion.version)
        if version is not None and version.bundle == promotion.bundle and promotion.id not in revoked:
            yield promotion


def rollback_target(conn: Connection, *, model: str) -> Version | None:
    """The version that was promoted before the current one and may come back, None when there is none."""
    wanted = current(conn, model=model)
    for promotion in returnable(conn, model):
        if wanted is None or promotion.version != wanted.version:
            return store.get_version(conn, model, promotion.version)
    return None


def rollback(
    conn: Connection, *, model: str, actor: Actor, reason: str, now: datetime, to_version: int | None = None
) -> Version:
    """Put the previous approved version (or `to_version`) back in Production and archive the current one.

    Needs the role approver and no new approval: going back to approved bytes must take seconds.
    """
    require_on(conn, actor, Role.APPROVER, f"roll back {model}", model=model)
    wanted = current(conn, model=model)
    if wanted is None:
        store.get_version(conn, model, to_version or 1)
        raise Conflict("no version is in Production", where=model)
    target = to_version
    if target is None:
        previous = rollback_target(conn, model=model)
        if previous is None:
            raise Refused("there is no earlier approved version to go back to", where=wanted.subject)
        target = previous.version
    _approved_before(conn, list(returnable(conn, model)), model, target)
    back = revert(
        conn, model=model, version=wanted.version, to_version=target, why=reason, now=now, actor=actor
    )
    if back is None:
        raise NotFound("the version to go back to is gone", where=model, got=target)
    return back


def _speak(
    conn: Connection,
    decision: Decision,
    model: str,
    version: int,
    reviewer: Actor,
    now: datetime,
    comment: str,
    reviewed: str | None,
    promotion_id: str | None,
) -> Promotion:
    found = store.get_version(conn, model, version)
    promotion = dated(conn, _pending(conn, model, version, promotion_id), now)
    policy, role = governing(conn, promotion), role_on(conn, reviewer, model=model)
    check_reviewer(reviewer, found, promotion, policy, reviewed=reviewed, now=now, role=role)
    approval = Approval(reviewer.name, decision, comment, now, promotion.bundle, role, policy.digest)
    action = "approval.given" if decision == "approve" else "promotion.rejected"
    noted = {"comment": comment, "policy": policy.digest, "role": role.name.lower()}
    row = note(conn, promotion, now, reviewer, action, noted)
    said = replace(promotion, approvals=(*promotion.approvals, replace(approval, seq=row.seq)))
    store.insert_approval(conn, promotion.id, approval, row.seq)
    if decision == "reject":
        store.decide_promotion(conn, said.id, "rejected", now, seq=row.seq, policy=policy)
        return replace(
            said, state="rejected", decided_at=now, decided_seq=row.seq, policy=policy, policy_digest=policy.digest
        )  # fmt: skip
    return settle(conn, said, now=now, actor=reviewer)


def _withdrawn(conn: Connection, promotion: Promotion, actor: Actor, now: datetime, reason: str) -> Promotion:
    noted = {"reason": reason, "policy": promotion.policy_digest}
    row = note(conn, promotion, now, actor, "promotion.withdrawn", noted)
    store.decide_promotion(conn, promotion.id, "withdrawn", now, seq=row.seq)
    return replace(promotion, state="withdrawn", decided_at=now, decided_seq=row.seq)


def _pending(conn: Connection, model: str, version: int, promotion_id: str | None) -> Promotion:
    found = store.get_version(conn, model, version)
    if promotion_id is not None:
        named = store.find_promotions(conn, model=model, version=version, id=promotion_id)
        if not named:
            raise NotFound("no such promotion", where=found.subject, got=promotion_id)
        return named[0]
    waiting = store.find_promotions(conn, model=model, version=version, state="pending")
    if not waiting:
        decided = store.find_promotions(conn, model=model, version=version)
        last = decided[-1] if decided else None
        what = f"the last one is {last.state}" if last else "nobody has requested one"
        raise NotFound(
            f"no promotion waits for a decision ({what})", where=found.subject,
            next=f"Request it: loopwright promote {model} {version} --to production",
        )  # fmt: skip
    return waiting[-1]


def _assess(
    conn: Connection,
    version: Version,
    promotion: Promotion | None,
    policy: Policy,
    stage: Stage,
    now: datetime,
) -> Assessment:
    recorded = (
        store.find_evidence(conn, model=version.model, bundle=version.bundle)
        if version.bundle is not None
        else []
    )
    if _set_back(conn, now):
        recorded = [replace(item, passed=ledger.latest(conn, after=item.seq)) for item in recorded]
        promotion = dated(conn, promotion, now) if promotion is not None else None
    late = _overdue(conn, version.model, now)
    return assess(version, promotion, recorded, policy, stage, now=now, overdue=late)


def dated(conn: Connection, promotion: Promotion, now: datetime) -> Promotion:
    """The promotion with what time the log shows to have passed since each approval.

    Time that has passed once has passed: a clock that is set back makes no approval count again. Nor does a clock that
    was wrong for an hour spoil later ones: only rows after the approval tell about it.
    """
    if not _set_back(conn, now):
        return promotion
    said = tuple(replace(each, passed=ledger.latest(conn, after=each.seq)) for each in promotion.approvals)
    return replace(promotion, approvals=said)


def _set_back(conn: Connection, now: datetime) -> bool:
    last = ledger.latest(conn)
    return last is not None and last > now


def _overdue(conn: Connection, model: str, now: datetime) -> Overdue | None:
    waiting = find_reviews(conn, model=model, state="open")
    if waiting and _set_back(conn, now):
        late = [one for one in waiting if one.overdue(max(now, ledger.latest(conn, after=one.seq) or now))]
    else:
        late = [one for one in waiting if one.overdue(now)]
    return Overdue(late[0].version, late[0].due_at) if late else None


def _approved_before(conn: Connection, effective: list[Promotion], model: str, version: int) -> Version:
    target = store.get_version(conn, model, version)
    if not any(p.version == version and p.bundle == target.bundle for p in effective):
        raise Refused(
            "was never approved for Production, or its approval was reverted or revoked", where=target.subject,
            next=f"Request it: loopwright promote {model} {version} --to production",
        )  # fmt: skip
    return target


def _restage(
    conn: Connection,
    found: Version,
    stage: Stage,
    actor: Actor,
    now: datetime,
    action: str,
    payload: dict[str, Any],
) -> Version:
    if found.stage is stage:
        return found
    store.set_stage(conn, found.model, found.version, stage, now)
    _point_aliases(conn, found.model)
    ledger.append(
        conn, at=now, actor=actor.name, action=action, subject=found.subject,
        payload={"from": found.stage.value, **payload},
    )  # fmt: skip
    return replace(found, stage=stage)


def _point_aliases(conn: Connection, model: str) -> None:
    for stage, aliases in ((Stage.PRODUCTION, PRODUCTION_ALIASES), (Stage.STAGING, STAGING_ALIASES)):
        wanted = current(conn, model=model, stage=stage)
        for alias in aliases:
            store.point_alias(conn, model, alias, wanted.version if wanted else None)


def note(
    conn: Connection, promotion: Promotion, now: datetime, actor: Actor, action: str, payload: dict[str, Any]
) -> AuditRow:
    """Write the audit row of an act on `promotion`."""
    return ledger.append(
        conn, at=now, actor=actor.name, action=action, subject=f"{promotion.model}/{promotion.version}",
        payload={"promotion": promotion.id, "stage": promotion.stage.value, "bundle": promotion.bundle, **payload},
    )  # fmt: skip


def _serves(version: Version) -> Conflict:
    return Conflict(
        "a version leaves Production only by a rollback or when its successor has taken over",
        where=version.subject, next=f"loopwright rollback {version.model}",
    )  # fmt: skip


def _how_to_approve(version: Version) -> str:
    return f"Approve it: loopwright approve {version.model} {version.version}"
