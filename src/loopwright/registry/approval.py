"""The statement serving asks for before it answers with a version."""

from sqlalchemy import Connection

from loopwright.bundle.approval import ApprovalRecord
from loopwright.kernel.clock import iso
from loopwright.kernel.errors import Refused
from loopwright.kernel.stage import Stage
from loopwright.registry import store
from loopwright.registry.promotion import returnable


def approval_record(conn: Connection, *, model: str, version: int, back: bool = False) -> ApprovalRecord:
    """Return who approved exactly this version's bytes for Production, under which policy.

    Raises Refused unless the version is in Production by an effective promotion of those bytes. back: or may come back
    there without a new approval, as in a rollback (see `promotion.returnable`).
    """
    found = store.get_version(conn, model, version)
    granted = [
        p
        for p in (returnable(conn, model) if back else store.effective_productions(conn, model))
        if p.version == version and p.bundle == found.bundle
    ]
    if not granted or not (back or found.stage is Stage.PRODUCTION):
        raise Refused(
            "may not be served: it is not in Production by an effective promotion",
            where=found.subject, got=f"stage {found.stage.value}",
            next=f"Request it: loopwright promote {model} {version} --to production",
        )  # fmt: skip
    promotion = granted[0]
    given = tuple((a.reviewer, iso(a.at)) for a in promotion.approvals if a.decision == "approve")
    earliest = min(
        (
            p
            for p in store.find_promotions(conn, model=model, stage=Stage.PRODUCTION)
            if p.state in ("effective", "reverted")
        ),
        key=lambda p: p.decided_seq or p.seq,
        default=promotion,
    )
    return ApprovalRecord(
        model=model, version=version, bundle=promotion.bundle, stage=Stage.PRODUCTION.value,
        promotion_id=promotion.id, policy_digest=promotion.policy_digest, requested_by=promotion.requested_by,
        approvals=given, first=earliest.id == promotion.id, emergency=promotion.emergency is not None,
        tier=promotion.policy.tier,
        issued_at=iso(promotion.decided_at or promotion.requested_at),
    )  # fmt: skip
