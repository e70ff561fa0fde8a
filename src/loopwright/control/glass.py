"""Alerts about broken glass: one when it is broken, another while its review is overdue, both gone once it is made."""

from datetime import datetime

from sqlalchemy import Connection

from loopwright.kernel.clock import iso
from loopwright.monitoring import store
from loopwright.monitoring.alerts import GOVERNANCE, Alert, Kind, Raised
from loopwright.registry.records import Review


def tell_broken(conn: Connection, review: Review, event_time: datetime, now: datetime) -> Alert | None:
    """Open the alert that says who passed over the approvals of which version, and why."""
    title = f"{review.broken_by} broke the glass for version {review.version}: {review.reason}"
    return _open(conn, Kind.BROKEN_GLASS, title, review, event_time, now)


def tell_overdue(conn: Connection, review: Review, event_time: datetime, now: datetime) -> Alert | None:
    """Open the alert that the review of broken glass is late; None when it was told before."""
    title = f"the review of version {review.version}, for which the glass was broken, was due {iso(review.due_at)}"
    return _open(conn, Kind.REVIEW, title, review, event_time, now)


def settle_alerts(conn: Connection, review: Review, now: datetime) -> None:
    """Resolve what was told about a review that has been made."""
    for alert in store.list_alerts(conn, review.model, standing=True):
        if alert.kind in GOVERNANCE and alert.detail.get("promotion") == review.promotion_id:
            store.resolve_alert(conn, alert, f"{review.state} by {review.reviewer}: {review.comment}", now)


def _open(
    conn: Connection, kind: Kind, title: str, review: Review, event_time: datetime, now: datetime
) -> Alert | None:
    detail = {
        "promotion": review.promotion_id, "by": review.broken_by, "reason": review.reason,
        "review_due": iso(review.due_at),
    }  # fmt: skip
    raised = Raised(kind, review.version, event_time, title, detail)
    return store.open_alert(conn, review.model, raised, f"{kind}@{review.promotion_id}", now)
