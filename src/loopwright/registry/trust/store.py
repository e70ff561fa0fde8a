"""SQL of trust in pickled models. Every function works inside the caller's transaction."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from loopwright.kernel.clock import from_us, iso, to_us
from loopwright.kernel.errors import NotFound
from loopwright.ledger.schema import trusts


@dataclass(frozen=True, slots=True)
class Trust:
    """A file of pickled objects by its digest, and whether it may be loaded.

    globals: what it may import. state: pending, approved, rejected or revoked. record: the last signed statement.
    """

    digest: str
    name: str
    globals: tuple[str, ...]
    requested_by: str
    requested_at: datetime
    reason: str
    state: str
    decided_by: str | None
    decided_at: datetime | None
    record: dict[str, str] | None

    def to_json(self) -> dict[str, Any]:
        """The fields in JSON's own types."""
        return {
            "digest": self.digest, "name": self.name, "globals": list(self.globals), "state": self.state,
            "requested_by": self.requested_by, "requested_at": iso(self.requested_at), "reason": self.reason,
            "decided_by": self.decided_by, "decided_at": iso(self.decided_at) if self.decided_at else None,
            "record": self.record,
        }  # fmt: skip


def find_trust(conn: Connection, digest: str) -> Trust | None:
    row = conn.execute(select(trusts).where(trusts.c.digest == digest)).one_or_none()
    return None if row is None else _trust(row)


def get_trust(conn: Connection, digest: str) -> Trust:
    """The trust whose digest begins with `digest` (at least 8 digits); raises NotFound for none or several."""
    query = select(trusts).where(trusts.c.digest.startswith(digest, autoescape=True)).limit(2)
    rows = conn.execute(query).all() if len(digest) >= 8 else []
    if len(rows) != 1:
        raise NotFound(
            "several files begin so" if rows else "nobody asked for trust in this file", got=digest,
            wanted="a digest, or the beginning of one (8 digits or more)", next="loopwright trust list",
        )  # fmt: skip
    return _trust(rows[0])


def list_trusts(conn: Connection, state: str | None = None) -> list[Trust]:
    """All of them, newest request first."""
    query = select(trusts).order_by(trusts.c.requested_at.desc(), trusts.c.digest)
    if state is not None:
        query = query.where(trusts.c.state == state)
    return [_trust(row) for row in conn.execute(query)]


def approved(conn: Connection) -> list[str]:
    """Digests of the files that may be loaded, sorted."""
    query = select(trusts.c.digest).where(trusts.c.state == "approved").order_by(trusts.c.digest)
    return list(conn.execute(query).scalars())


def put_request(
    conn: Connection, digest: str, *, name: str, allowed: Sequence[str], by: str, reason: str, now: datetime
) -> Trust:
    """Record a request, in the place of one that was turned down or revoked."""
    values = {
        "name": name, "globals": json.dumps(sorted(allowed)), "requested_by": by, "requested_at": to_us(now),
        "reason": reason, "state": "pending", "decided_by": None, "decided_at": None,
    }  # fmt: skip
    if conn.execute(update(trusts).where(trusts.c.digest == digest).values(**values)).rowcount == 0:
        conn.execute(insert(trusts).values(digest=digest, record=None, **values))
    return get_trust(conn, digest)


def decide(
    conn: Connection, digest: str, state: str, *, by: str, now: datetime, record: dict[str, str] | None = None
) -> Trust:
    """Record what was decided; a record that was signed before stays for the audit's sake."""
    values: dict[str, Any] = {"state": state, "decided_by": by, "decided_at": to_us(now)}
    if record is not None:
        values["record"] = json.dumps(record, sort_keys=True)
    conn.execute(update(trusts).where(trusts.c.digest == digest).values(**values))
    return get_trust(conn, digest)


def _trust(row: Row[Any]) -> Trust:
    return Trust(
        row.digest, row.name, tuple(json.loads(row.globals)), row.requested_by, from_us(row.requested_at), row.reason,
        row.state, row.decided_by, None if row.decided_at is None else from_us(row.decided_at),
        json.loads(row.record) if row.record else None,
    )  # fmt: skip
