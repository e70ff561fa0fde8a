"""SQL of what the documents tell: batches over time, incidents, landings."""

import json
from typing import Any

from sqlalchemy import Connection, func, select

from loopwright.kernel.clock import from_us, iso
from loopwright.ledger.schema import batches, incidents, landings

MOST_BATCHES = 200


def newest_batches(conn: Connection, table: str) -> list[dict[str, Any]]:
    """The 200 newest batches of MODEL/TABLE with their reports, oldest first."""
    query = (
        select(batches)
        .where(batches.c.table_name == table)
        .order_by(batches.c.at.desc(), batches.c.silver_version.desc())
        .limit(MOST_BATCHES)
    )
    rows = conn.execute(query).all()
    return [
        {
            "id": row.batch_id, "at": iso(from_us(row.at)), "rows": row.rows, "good": row.good, "bad": row.bad,
            "version": row.silver_version, "report": json.loads(row.report),
        }
        for row in reversed(rows)
    ]  # fmt: skip


def count_batches(conn: Connection, table: str) -> int:
    """How many batches have landed in MODEL/TABLE."""
    query = select(func.count()).select_from(batches).where(batches.c.table_name == table)
    return int(conn.execute(query).scalar_one())


def newest_landings(conn: Connection, table: str, limit: int = 30) -> list[dict[str, Any]]:
    """What was brought in last, newest first."""
    query = select(landings).where(landings.c.table_name == table).order_by(landings.c.id.desc()).limit(limit)
    return [
        {
            "at": iso(from_us(row.at)), "version": row.silver_version, "batch": row.batch_id, "uri": row.uri,
            "loading": row.loading, "good": row.good, "bad": row.bad, "by": row.actor,
        }
        for row in conn.execute(query)
    ]  # fmt: skip


def table_incidents(conn: Connection, table: str, limit: int = 50) -> list[dict[str, Any]]:
    """Incidents of MODEL/TABLE, those that are not closed first, then the newest."""
    query = (
        select(incidents)
        .where(incidents.c.table_name.in_((table, table.partition("/")[2])))
        .where(incidents.c.model == table.partition("/")[0])
        .order_by((incidents.c.state == "closed"), incidents.c.opened_at.desc())
        .limit(limit)
    )
    return [
        {
            "id": row.id, "state": row.state, "title": row.title, "owner": row.owner,
            "opened_at": iso(from_us(row.opened_at)), "changed_at": iso(from_us(row.changed_at)),
        }
        for row in conn.execute(query)
    ]  # fmt: skip
