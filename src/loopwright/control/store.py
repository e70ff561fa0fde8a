"""SQL of users, tokens and shipped event segments. Every function works inside the caller's transaction."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from loopwright.control.access import Token, User
from loopwright.kernel.actor import Role
from loopwright.kernel.clock import from_us, to_us
from loopwright.kernel.errors import Conflict, NotFound, did_you_mean
from loopwright.ledger.schema import audit, label_batches, segments, tokens, users, versions, watermarks


def list_users(conn: Connection) -> list[User]:
    """All users by name."""
    return [_user(row) for row in conn.execute(select(users).order_by(users.c.name))]


def get_user(conn: Connection, name: str) -> User:
    """The user; raises NotFound with the nearest name."""
    row = conn.execute(select(users).where(users.c.name == name)).one_or_none()
    if row is None:
        known = [user.name for user in list_users(conn)]
        raise NotFound(
            "no such user", got=name, next=did_you_mean(name, known) or f"Add one: loopwright user add {name}"
        )
    return _user(row)


def add_user(conn: Connection, name: str, role: Role, now: datetime) -> User:
    """Add a user; raises Conflict when the name is taken."""
    if conn.execute(select(users.c.name).where(users.c.name == name)).first():
        raise Conflict("there is a user of this name already", got=name)
    conn.execute(insert(users).values(name=name, role=role.name.lower(), created_at=to_us(now)))
    return get_user(conn, name)


def change_user(conn: Connection, name: str, *, role: Role, disabled_at: datetime | None) -> User:
    """Set role and disabled moment of a user that exists."""
    conn.execute(update(users).where(users.c.name == name).values(
        role=role.name.lower(), disabled_at=None if disabled_at is None else to_us(disabled_at)
    ))  # fmt: skip
    return get_user(conn, name)


def anyone(conn: Connection) -> bool:
    """Whether any token was ever made that could still let somebody in."""
    return bool(
        conn.execute(select(func.count()).select_from(tokens).where(tokens.c.revoked_at.is_(None))).scalar()
    )


def add_token(
    conn: Connection, token_id: str, user: str, hash: str, now: datetime, expires_at: datetime | None
) -> None:
    conn.execute(insert(tokens).values(
        id=token_id, user=user, hash=hash, created_at=to_us(now),
        expires_at=None if expires_at is None else to_us(expires_at),
    ))  # fmt: skip


def find_token(conn: Connection, token_id: str) -> tuple[Token, User] | None:
    """The token and its user, or None."""
    row = conn.execute(select(tokens).where(tokens.c.id == token_id)).one_or_none()
    if row is None:
        return None
    return _token(row), get_user(conn, row.user)


def list_tokens(conn: Connection, user: str | None = None) -> list[Token]:
    """Tokens, oldest first; of one user when given."""
    query = select(tokens).order_by(tokens.c.created_at, tokens.c.id)
    if user is not None:
        query = query.where(tokens.c.user == user)
    return [_token(row) for row in conn.execute(query)]


def revoke_token(conn: Connection, token_id: str, now: datetime) -> None:
    conn.execute(
        update(tokens)
        .where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None))
        .values(revoked_at=to_us(now))
    )


def touch_token(conn: Connection, token_id: str, now: datetime) -> None:
    conn.execute(update(tokens).where(tokens.c.id == token_id).values(last_used_at=to_us(now)))


def shipped(conn: Connection, source: str, segment: str) -> int:
    """How many bytes of the segment have been taken in; 0 when none."""
    query = select(segments.c.shipped).where(segments.c.source == source, segments.c.segment == segment)
    return int(conn.execute(query).scalar() or 0)


def set_shipped(conn: Connection, source: str, segment: str, offset: int) -> None:
    where = (segments.c.source == source) & (segments.c.segment == segment)
    if conn.execute(update(segments).where(where).values(shipped=offset)).rowcount == 0:
        conn.execute(insert(segments).values(source=source, segment=segment, shipped=offset))


def audit_rows(conn: Connection) -> int:
    """How many rows the audit log has."""
    return int(conn.execute(select(func.count()).select_from(audit)).scalar() or 0)


def _user(row: Row[Any]) -> User:
    return User(row.name, Role.parse(row.role), from_us(row.created_at), _moment(row.disabled_at))


def _token(row: Row[Any]) -> Token:
    return Token(
        row.id, row.user, row.hash, from_us(row.created_at), _moment(row.expires_at),
        _moment(row.last_used_at), _moment(row.revoked_at),
    )  # fmt: skip


def _moment(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else from_us(microseconds)


def stage_counts(conn: Connection) -> list[tuple[str, str, int]]:
    """(model, stage, versions) for /metrics."""
    query = select(versions.c.model, versions.c.stage, func.count()).group_by(
        versions.c.model, versions.c.stage
    )
    return [
        (row[0], row[1], int(row[2]))
        for row in conn.execute(query.order_by(versions.c.model, versions.c.stage))
    ]


def monitoring_state(conn: Connection) -> tuple[object, ...]:
    """A value that changes when monitoring could have something new to judge: traffic, labels, versions."""
    marks = conn.execute(
        select(watermarks.c.model, watermarks.c.event_time).order_by(watermarks.c.model)
    ).all()
    labelled = conn.execute(
        select(func.count(), func.max(label_batches.c.at)).select_from(label_batches)
    ).one()
    known = conn.execute(select(func.count()).select_from(versions)).scalar()
    return (*map(tuple, marks), tuple(labelled), known)
