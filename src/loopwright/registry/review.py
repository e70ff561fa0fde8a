"""Breaking the glass: to Production without approvals, in an emergency; and the review that must follow.

What is passed over: approvals, freezes, documents. What is never: the seal, MLflow's row naming the same bytes, and,
unless the policy says so, gates that failed. Until an overdue review is made, nothing of the model is promoted.
"""

from dataclasses import replace
from datetime import datetime
from typing import Literal

from sqlalchemy import Connection

from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import iso
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Refused
from loopwright.kernel.ids import new_id
from loopwright.kernel.stage import Stage
from loopwright.kernel.verdict import Verdict
from loopwright.ledger import store as ledger
from loopwright.registry import store
from loopwright.registry.authority import require_on
from loopwright.registry.evidence import evidence_of
from loopwright.registry.policies import check_reason, policy_of
from loopwright.registry.policy import Policy, Promotion
from loopwright.registry.promotion import assessment, check_reviews, make_effective, note, withdraw_for
from loopwright.registry.records import Review, Version
from loopwright.registry.tiers.store import decide_review, find_reviews, insert_review

Outcome = Literal["uphold", "revoke"]


def break_glass(
    conn: Connection, *, model: str, version: int, actor: Actor, reason: str, now: datetime
) -> tuple[Promotion, Review]:
    """Move a version to Production at once and open the review that must follow.

    A request that waits for this version is withdrawn. Raises Refused (policy, role, service account, no seal, failed
    gates, an overdue review of this model), BadInput for a reason that says nothing, Conflict when it is there already.
    """
    found = store.get_version(conn, model, version)
    policy = policy_of(conn, model)
    if not policy.emergency.allowed:
        raise Refused(
            f"the policy of {model} (tier {policy.tier}) knows no emergency", where=found.subject,
            next=f"Request it: loopwright promote {model} {version} --to production",
        )  # fmt: skip
    require_on(conn, actor, policy.emergency.role, f"break the glass for {model}/{version}", model=model)
    if actor.service:
        raise Refused(f"{actor.name} is a service account; only people break the glass", where=found.subject)
    check_reason(reason, f"Say why: loopwright promote {model} {version} --break-glass --reason TEXT")
    if found.stage is Stage.PRODUCTION:
        raise Conflict("the version is in Production already", where=found.subject)
    check_reviews(conn, model, now)
    lacking = assessment(conn, model=model, version=version, stage=Stage.PRODUCTION, now=now, policy=policy)
    if found.bundle is None:
        raise Refused(f"no emergency passes over {lacking}", where=found.subject)
    _check_gates(conn, found, policy)

    withdraw_for(conn, model=model, version=version, actor=actor, now=now, why="the glass was broken for it")
    promotion = Promotion(
        new_id("pr"), model, version, Stage.PRODUCTION, found.bundle, actor.name, now, reason, "pending", None, policy,
        policy.digest, emergency=reason,
    )  # fmt: skip
    review = Review(promotion.id, model, version, actor.name, reason, now + policy.emergency.review_within)
    review = replace(review, policy_digest=policy.digest)
    row = note(
        conn, promotion, now, actor, "promotion.break_glass",
        {
            "reason": reason, "policy": policy.digest, "passed_over": list(lacking.missing),
            "review_due": iso(review.due_at), "evidence": list(lacking.evidence),
        },
    )  # fmt: skip
    promotion = replace(promotion, seq=row.seq)
    store.insert_promotion(conn, promotion)
    insert_review(conn, review)
    done = make_effective(conn, found, promotion, policy, now=now, actor=actor, evidence=lacking.evidence)
    return done, review


def decide(
    conn: Connection,
    *,
    model: str,
    version: int,
    reviewer: Actor,
    outcome: Outcome,
    comment: str,
    now: datetime,
) -> Review:
    """Record what a reviewer makes of broken glass. Who takes a revoked version out of traffic is delivery.

    Raises Refused for who broke it, the author (unless the policy lets authors approve), a service account or too
    small a role; NotFound when no review is open; BadInput for a comment that says nothing.
    """
    found = store.get_version(conn, model, version)
    policy = policy_of(conn, model)
    review = open_review(conn, model=model, version=version)
    role = max(Role.APPROVER, policy.rules(Stage.PRODUCTION).reviewer)
    require_on(conn, reviewer, role, f"review the broken glass of {model}/{version}", model=model)
    if reviewer.service:
        raise Refused(f"{reviewer.name} is a service account; machines review nothing", where=found.subject)
    if reviewer.name == review.broken_by:
        raise Refused(
            f"{reviewer.name} broke the glass; somebody else reviews it", where=found.subject,
            wanted=f"another person with the role {role.name.lower()}",
        )  # fmt: skip
    if reviewer.name == found.author and not policy.author_may_approve:
        raise Refused(
            f"{reviewer.name} is the author of this version; authors do not review their own work",
            where=found.subject, wanted=f"another person with the role {role.name.lower()}",
        )  # fmt: skip
    if outcome not in ("uphold", "revoke"):
        raise BadInput("not a decision", got=outcome, wanted="uphold or revoke")
    check_reason(comment, "Say what you looked at: --comment TEXT")
    decided = replace(
        review, state="upheld" if outcome == "uphold" else "revoked", reviewer=reviewer.name, comment=comment,
        decided_at=now, policy_digest=policy.digest,
    )  # fmt: skip
    decide_review(conn, decided)
    ledger.append(
        conn, at=now, actor=reviewer.name, action=f"review.{decided.state}", subject=found.subject,
        payload={
            "promotion": review.promotion_id, "broken_by": review.broken_by, "reason": review.reason,
            "comment": comment, "due": iso(review.due_at), "overdue": review.overdue(now), "policy": policy.digest,
        },
    )  # fmt: skip
    return decided


def open_review(conn: Connection, *, model: str, version: int) -> Review:
    """The review of this version that waits; raises NotFound naming those that do."""
    waiting = find_reviews(conn, model=model, version=version, state="open")
    if waiting:
        return waiting[0]
    others = ", ".join(str(review.version) for review in find_reviews(conn, model=model, state="open"))
    raise NotFound(
        "no review of this version is open", where=f"{model}/{version}",
        wanted=f"version {others}" if others else "", next="See: loopwright review list",
    )  # fmt: skip


def list_reviews(conn: Connection, *, model: str | None = None, state: str | None = None) -> list[Review]:
    """Reviews of broken glass, the first due first."""
    return find_reviews(conn, model=model, state=state)


def _check_gates(conn: Connection, found: Version, policy: Policy) -> None:
    gates = evidence_of(conn, model=found.model, version=found.version, kind="gates")
    mine = [item for item in gates if item.bundle == found.bundle]
    if mine and mine[-1].verdict is Verdict.FAIL and not policy.emergency.failed_gates:
        raise Refused(
            "its gates said no, and no emergency passes over that", where=found.subject,
            got=f"gates FAIL, {iso(mine[-1].at)}", wanted="gates that pass, or `emergency.failed_gates` in the policy",
            next=f"Go back instead: loopwright rollback {found.model}",
        )  # fmt: skip
