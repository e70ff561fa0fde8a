"""SQL of policy: documents of tiers, what projects say and what was waived, reviews of broken glass.

Every function works inside the caller's transaction.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from loopwright.kernel.clock import from_us, to_us
from loopwright.kernel.digest import canonical_json
from loopwright.ledger.schema import policies, projects, promotions, reviews
from loopwright.registry.policy import Policy
from loopwright.registry.records import Review


def policy_section(conn: Connection, model: str) -> tuple[dict[str, Any], list[str]] | None:
    """What the model's project says about policy, and what of it was waived; None without a project."""
    row = conn.execute(
        select(projects.c.spec, projects.c.waived).where(projects.c.model == model)
    ).one_or_none()
    return (json.loads(row.spec).get("policy") or {}, json.loads(row.waived)) if row else None


def waive(conn: Connection, model: str, points: Sequence[str]) -> None:
    """Remember in which points an admin let the project's policy be looser than its tier's document."""
    conn.execute(update(projects).where(projects.c.model == model).values(waived=_json(list(points))))


def insert_document(
    conn: Connection, tier: str, number: int, policy: Policy, by: str, reason: str, now: datetime
) -> None:
    conn.execute(
        insert(policies).values(
            tier=tier, number=number, digest=policy.digest, document=_json(policy.to_json()), by=by,
            reason=reason, at=to_us(now),
        )
    )  # fmt: skip


def documents(conn: Connection, tier: str | None = None, *, latest: bool = False) -> list[dict[str, Any]]:
    """The documents that were set, oldest first: tier, number, digest, document (JSON), by, reason, at.

    latest: only the one with the highest number.
    """
    query = select(policies).order_by(policies.c.tier, policies.c.number)
    if tier is not None:
        query = query.where(policies.c.tier == tier)
    if latest:
        query = query.order_by(None).order_by(policies.c.number.desc()).limit(1)
    return [
        {**row, "document": json.loads(row["document"]), "at": from_us(row["at"])}
        for row in conn.execute(query).mappings()
    ]


def insert_review(conn: Connection, review: Review) -> None:
    conn.execute(
        insert(reviews).values(
            promotion_id=review.promotion_id, model=review.model, version=review.version, broken_by=review.broken_by,
            due_at=to_us(review.due_at), state=review.state, policy_digest=review.policy_digest,
        )
    )  # fmt: skip


def decide_review(conn: Connection, review: Review) -> None:
    """Write what the reviewer of broken glass decided."""
    assert review.decided_at is not None  # whoever decides says when
    conn.execute(
        update(reviews)
        .where(reviews.c.promotion_id == review.promotion_id)
        .values(
            state=review.state, reviewer=review.reviewer, comment=review.comment, decided_at=to_us(review.decided_at),
            policy_digest=review.policy_digest,
        )
    )  # fmt: skip


def find_reviews(
    conn: Connection, *, model: str | None = None, version: int | None = None, state: str | None = None
) -> list[Review]:
    """Reviews of broken glass that match, the first due first, with why the glass was broken."""
    wanted = {"model": model, "version": version, "state": state}
    where = [reviews.c[name] == value for name, value in wanted.items() if value is not None]
    query = (
        select(reviews, promotions.c.emergency, promotions.c.seq)
        .join(promotions, promotions.c.id == reviews.c.promotion_id)
        .where(*where)
        .order_by(reviews.c.due_at, reviews.c.promotion_id)
    )
    return [
        Review(
            row.promotion_id, row.model, row.version, row.broken_by, row.emergency or "", from_us(row.due_at),
            row.state, row.policy_digest, row.reviewer, row.comment,
            from_us(row.decided_at) if row.decided_at is not None else None, row.seq,
        )
        for row in conn.execute(query)
    ]  # fmt: skip


def _json(value: object) -> str:
    return canonical_json(value).decode()
