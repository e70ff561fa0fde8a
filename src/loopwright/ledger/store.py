"""SQL for the audit log, leases and meta. Every function works inside the caller's transaction."""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from loopwright.kernel.clock import from_us, to_us
from loopwright.kernel.digest import canonical_json
from loopwright.ledger.audit import AuditRow, ChainReport, check_chain, next_row
from loopwright.ledger.engine import become_writer
from loopwright.ledger.schema import audit, leases, meta

_HEAD = "audit.head"


def append(
    conn: Connection, *, at: datetime, actor: str, action: str, subject: str, payload: Mapping[str, Any]
) -> AuditRow:
    """Add one row to the audit log; it exists exactly when the transaction of `conn` commits.

    Raises BadInput for a payload that is not JSON (NaN included).
    """
    become_writer(conn)
    # Hash what will be read back: tuples become lists, keys become text.
    document = canonical_json(dict(payload)).decode()
    head = _head(conn)
    row = next_row(head, at=at, actor=actor, action=action, subject=subject, payload=json.loads(document))
    conn.execute(
        insert(audit).values(
            seq=row.seq, at=to_us(at), actor=actor, action=action, subject=subject,
            payload=document, prev_hash=row.prev_hash, hash=row.hash,
        )
    )  # fmt: skip
    put_meta(conn, _HEAD, f"{row.seq} {row.hash}")
    return row


def verify(conn: Connection) -> ChainReport:
    """Walk the whole audit log, streaming; the report says where it breaks first."""
    return check_chain(_stream(conn), _head(conn))


def rows(
    conn: Connection,
    *,
    subject: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int | None = None,
) -> list[AuditRow]:
    """Return audit rows, oldest first; with `limit`, the newest `limit` of them. `until` is exclusive."""
    query = select(audit).order_by(audit.c.seq.desc())
    if subject is not None:
        query = query.where(audit.c.subject == subject)
    if actor is not None:
        query = query.where(audit.c.actor == actor)
    if action is not None:
        query = query.where(audit.c.action == action)
    if since is not None:
        query = query.where(audit.c.at >= to_us(since))
    if until is not None:
        query = query.where(audit.c.at < to_us(until))
    if limit is not None:
        query = query.limit(limit)
    return [_row(found) for found in conn.execute(query)][::-1]


def acquire(conn: Connection, name: str, holder: str, ttl: timedelta, now: datetime) -> bool:
    """Take or renew the lease `name` until `now + ttl`. False while another holder's lease runs.

    Needs a write transaction; `now` must come from clocks that agree better than `ttl`.
    """
    become_writer(conn)
    standing = conn.execute(select(leases).where(leases.c.name == name)).one_or_none()
    values = {"holder": holder, "expires_at": to_us(now + ttl)}
    if standing is None:
        conn.execute(insert(leases).values(name=name, **values))
        return True
    if standing.holder != holder and standing.expires_at > to_us(now):
        return False
    conn.execute(update(leases).where(leases.c.name == name).values(**values))
    return True


def release(conn: Connection, name: str, holder: str) -> None:
    """Give the lease back if `holder` still has it; is idempotent."""
    conn.execute(delete(leases).where(leases.c.name == name, leases.c.holder == holder))


def holder_of(conn: Connection, name: str, now: datetime) -> str | None:
    """Return who holds the lease `name` at `now`."""
    query = select(leases.c.holder).where(leases.c.name == name, leases.c.expires_at > to_us(now))
    return conn.execute(query).scalar_one_or_none()


def get_meta(conn: Connection, key: str) -> str | None:
    """Return the value kept under `key`."""
    return conn.execute(select(meta.c.value).where(meta.c.key == key)).scalar_one_or_none()


def put_meta(conn: Connection, key: str, value: str) -> None:
    """Keep `value` under `key`, replacing what was there."""
    done = conn.execute(update(meta).where(meta.c.key == key).values(value=value))
    if done.rowcount == 0:
        conn.execute(insert(meta).values(key=key, value=value))


def _head(conn: Connection) -> tuple[int, str] | None:
    recorded = get_meta(conn, _HEAD)
    if recorded is None:
        return None
    seq, _, digest = recorded.partition(" ")
    return int(seq), digest


def _stream(conn: Connection) -> Iterator[AuditRow]:
    found = conn.execution_options(stream_results=True, yield_per=1000).execute(
        select(audit).order_by(audit.c.seq)
    )
    for row in found:
        yield _row(row)


def _row(found: Row[Any]) -> AuditRow:
    return AuditRow(
        seq=found.seq, at=from_us(found.at), actor=found.actor, action=found.action, subject=found.subject,
        payload=json.loads(found.payload), prev_hash=found.prev_hash, hash=found.hash,
    )  # fmt: skip
