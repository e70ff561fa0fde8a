"""SQL for the audit log, its anchors, leases and meta. Every function works inside the caller's transaction."""

import json
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, func, insert, or_, select, update
from sqlalchemy.exc import OperationalError

from loopwright.kernel.clock import from_us, to_us
from loopwright.kernel.digest import canonical_json
from loopwright.ledger.audit import START, AuditRow, ChainReport, Stored, Walk, conclude, follow, next_row
from loopwright.ledger.engine import become_writer
from loopwright.ledger.schema import anchors, audit, leases, meta

PAGE = 5_000
"""Rows fetched at once by whatever walks the log: memory stays flat, and a query's cost is spread."""

_HEAD = "audit.head"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which audit rows are asked for; what is None does not matter. `until` is exclusive.

    `model`: whatever was done to it or to one of its versions, and what names it in its payload.
    """

    subject: str | None = None
    actor: str | None = None
    action: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    model: str | None = None

    def admits(self, row: Stored) -> bool:
        """Whether a row that the database found is really about the model: there it is looked for as text."""
        subject, payload = row[4], row[5]
        if self.model is None or subject == self.model or subject.startswith(f"{self.model}/"):
            return True
        document = json.loads(payload)
        return isinstance(document, dict) and document.get("model") == self.model


def append(
    conn: Connection, *, at: datetime, actor: str, action: str, subject: str, payload: Mapping[str, Any]
) -> AuditRow:
    """Add one row to the audit log; it exists exactly when the transaction of `conn` commits.

    The row keeps what the clock said; rows are in the order of their numbers. Raises BadInput for a payload that is
    not JSON (NaN included).
    """
    become_writer(conn)
    # Hash what will be read back: tuples become lists, keys become text.
    document = canonical_json(dict(payload)).decode()
    row = next_row(
        head(conn), at=at, actor=actor, action=action, subject=subject, payload=json.loads(document)
    )
    conn.execute(
        insert(audit).values(
            seq=row.seq, at=to_us(at), actor=actor, action=action, subject=subject,
            payload=document, prev_hash=row.prev_hash, hash=row.hash,
        )
    )  # fmt: skip
    put_meta(conn, _HEAD, f"{row.seq} {row.hash}")
    return row


def verify(
    conn: Connection,
    *,
    since: Walk = START,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> ChainReport:
    """Walk the audit log in flat memory; the report says where it breaks first.

    It goes on from `since`, and ends after `limit` rows or at the log's end: `done` says which. `progress` is called
    with the number of the row reached, page by page.
    """
    upto = None if limit is None else since.seq + limit
    reached, broken = follow(_walked(conn, since.seq, upto, progress), since)
    last = head(conn)
    if broken is None and reached.seq == upto and last is not None and last[0] > upto:
        why = f"{reached.seq} rows, each following the one before, and more to walk"
        return ChainReport(reached.seq, True, None, why, reached.hash, reached, done=False)
    return conclude(reached, broken, last)


def head(conn: Connection) -> tuple[int, str] | None:
    """What is recorded apart as the last row's (seq, hash); None for an empty log."""
    recorded = get_meta(conn, _HEAD)
    if recorded is None:
        return None
    seq, _, digest = recorded.partition(" ")
    return int(seq), digest


def latest(conn: Connection, *, after: int = 0) -> datetime | None:
    """The latest time that a row numbered over `after` tells, by whatever clock; None when there is no such row."""
    query = select(audit.c.at).where(audit.c.seq + 0 > after).order_by(audit.c.at.desc()).limit(1)
    moment = conn.execute(query).scalar_one_or_none()
    return None if moment is None else from_us(moment)


def hash_at(conn: Connection, seq: int) -> str | None:
    """The hash of the row with this number; None when there is none."""
    return conn.execute(select(audit.c.hash).where(audit.c.seq == seq)).scalar_one_or_none()


def hashes_at(conn: Connection, seqs: Set[int]) -> dict[int, str]:
    """The hashes of the rows with these numbers; those that are not there are left out."""
    ordered = sorted(seqs)
    found: dict[int, str] = {}
    for start in range(0, len(ordered), 500):
        query = select(audit.c.seq, audit.c.hash).where(audit.c.seq.in_(ordered[start : start + 500]))
        found |= {row.seq: row.hash for row in conn.execute(query)}
    return found


def rows(
    conn: Connection,
    *,
    subject: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int | None = None,
    model: str | None = None,
) -> list[AuditRow]:
    """Return audit rows, oldest first; with `limit`, the newest `limit` of them.

    `model`: what was done to it or to one of its versions; `iterate` also finds what names it.
    """
    wanted = Wanted(subject, actor, action, since, until)
    after, upto = span(conn, wanted)
    if model is None:
        found = _stored(conn, _matching(wanted, after, upto).order_by(audit.c.seq.desc()).limit(limit))
        return [AuditRow.of(row) for row in found[::-1]]
    # A busy model has enough among the newest; one that has not is found by the index over subjects ("+ 0" lets no
    # other be used), and what little there is, sorted.
    lately = max(after, upto - 10 * PAGE)
    about = _done_to(conn, model)
    found = _stored(
        conn, _matching(wanted, lately, upto).where(about).order_by(audit.c.seq.desc()).limit(limit)
    )
    if after < lately and (limit is None or len(found) < limit):
        rest = None if limit is None else limit - len(found)
        older = _matching(wanted, after, lately, by=audit.c.seq + 0).where(about)
        found += _stored(conn, older.order_by((audit.c.seq + 0).desc()).limit(rest))
    return [AuditRow.of(row) for row in found[::-1]]


def iterate(
    conn: Connection,
    *,
    subject: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    model: str | None = None,
) -> Iterator[AuditRow]:
    """Yield audit rows, oldest first, in flat memory. See `Wanted`."""
    wanted = Wanted(subject, actor, action, since, until, model)
    after, upto = span(conn, wanted)
    while page := stored_page(conn, wanted, after, upto):
        yield from map(AuditRow.of, page)
        after = page[-1][0]


def known(conn: Connection, column: str) -> list[str]:
    """Every value that a column of the log has, sorted: its actions or its actors."""
    return list(conn.execute(select(audit.c[column]).distinct().order_by(audit.c[column])).scalars())


def span(conn: Connection, wanted: Wanted) -> tuple[int, int]:
    """Numbers (after, upto) between which all wanted rows lie; equal when there are none.

    Times are asked for here, once, by the index over them: a page then needs only the order of the numbers, and the
    clock may have gone backwards.
    """
    when = [audit.c.at >= to_us(wanted.since)] if wanted.since is not None else []
    when += [audit.c.at < to_us(wanted.until)] if wanted.until is not None else []
    if not when:
        return 0, conn.execute(select(func.max(audit.c.seq))).scalar() or 0
    # "+ 0": PostgreSQL would else walk the rows by number until a time fits, which may be all of them.
    seq = audit.c.seq + 0
    first, final = conn.execute(select(func.min(seq), func.max(seq)).where(*when)).one()
    return (first - 1, final) if first is not None else (0, 0)


def stored_page(conn: Connection, wanted: Wanted, after: int, upto: int, limit: int = PAGE) -> list[Stored]:
    """Return the next wanted rows as they are kept, oldest first, none when there are no more.

    They have numbers over `after`, up to `upto`; there may be fewer than `limit` and more to come.
    """
    while after < upto:
        page = _stored(conn, _matching(wanted, after, upto).order_by(audit.c.seq).limit(limit))
        found = [row for row in page if wanted.admits(row)]
        if found or len(page) < limit:
            return found
        after = page[-1][0]
    return []


def unanchored_since(conn: Connection, seq: int, *, but: str) -> int | None:
    """When (in microseconds) the first row after `seq` was written that is not of the action `but`."""
    query = select(audit.c.at).where(audit.c.seq > seq, audit.c.action != but).order_by(audit.c.seq).limit(1)
    return conn.execute(query).scalar_one_or_none()


def add_anchor(
    conn: Connection, *, seq: int, head: str, at: datetime, document: str, places: Mapping[str, str]
) -> None:
    """Keep the signed statement, and for each place it was written to "" or why it could not be."""
    conn.execute(delete(anchors).where(anchors.c.seq == seq))
    conn.execute(
        insert(anchors).values(
            seq=seq, head=head, at=to_us(at), document=document, places=canonical_json(dict(places)).decode()
        )
    )


def anchor_documents(conn: Connection) -> list[str]:
    """Every signed statement that is kept here, oldest first."""
    return list(conn.execute(select(anchors.c.document).order_by(anchors.c.seq)).scalars())


def last_anchor(conn: Connection) -> tuple[str, dict[str, str]] | None:
    """The newest signed statement and where it was written to; None before the first."""
    query = select(anchors.c.document, anchors.c.places).order_by(anchors.c.seq.desc()).limit(1)
    found = conn.execute(query).one_or_none()
    return None if found is None else (found.document, json.loads(found.places))


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


def _walked(
    conn: Connection, after: int, upto: int | None, progress: Callable[[int], None] | None
) -> Iterator[Stored]:
    """Yield the rows after `after` as they are kept. One that cannot be read is yielded with nothing in it."""
    size = PAGE
    while upto is None or after < upto:
        query = select(audit).where(audit.c.seq > after).order_by(audit.c.seq)
        try:
            page = _stored(conn, query.limit(size if upto is None else min(size, upto - after)))
        except OperationalError as error:
            # SQLite would keep bytes that are no text where text should be, and then stumble over them.
            if "decode" not in str(error.orig).lower():
                raise
            if size == 1:
                seq = conn.execute(select(func.min(audit.c.seq)).where(audit.c.seq > after)).scalar_one()
                yield (seq, None, None, None, None, None, None, None)  # type: ignore[misc]
                return
            size = 1
            continue
        if not page:
            return
        yield from page
        after = page[-1][0]
        if progress is not None:
            progress(after)


def _matching(wanted: Wanted, after: int, upto: int, by: ColumnElement[int] = audit.c.seq) -> Select[Any]:
    """Rows with a number over `after`, up to `upto`, that match; a payload's model is looked for as text."""
    query = select(audit).where(by > after, by <= upto)
    for name in ("subject", "actor", "action"):
        value = getattr(wanted, name)
        if value is not None:
            query = query.where(audit.c[name] == value)
    # "+ 0": the index over times would find the rows in another order than they are wanted in, and sort them all.
    if wanted.since is not None:
        query = query.where(audit.c.at + 0 >= to_us(wanted.since))
    if wanted.until is not None:
        query = query.where(audit.c.at + 0 < to_us(wanted.until))
    if wanted.model is not None:
        below, named = f"{wanted.model}/", f'"model":{canonical_json(wanted.model).decode()}'
        query = query.where(
            or_(
                audit.c.subject == wanted.model,
                func.substr(audit.c.subject, 1, len(below)) == below,
                audit.c.payload.contains(named, autoescape=True),
            )
        )
    return query


def _done_to(conn: Connection, model: str) -> ColumnElement[bool]:
    below = f"{model}/"
    versions = func.substr(audit.c.subject, 1, len(below)) == below
    if conn.dialect.name == "sqlite":
        # Found by the index, since text is compared byte by byte here; PostgreSQL's order of text may be another.
        versions = and_(versions, audit.c.subject >= below, audit.c.subject < f"{model}0")
    return or_(audit.c.subject == model, versions)


def _stored(conn: Connection, query: Select[Any]) -> list[Stored]:
    return conn.execute(query).all()  # type: ignore[return-value]  # its rows are tuples
