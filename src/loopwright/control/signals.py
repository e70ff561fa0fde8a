"""Where a model stands in event time."""

from datetime import datetime

from sqlalchemy import Connection

from loopwright.monitoring.store import watermark


def event_time_of(conn: Connection, model: str, now: datetime) -> datetime:
    """The latest event time seen for the model; `now` before its first prediction."""
    return watermark(conn, model) or now
