"""SQL of users, teams, tokens, sessions and shipped event segments, inside the caller's transaction."""

from collections import defaultdict
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from loopwright.control.access import Token, User
from loopwright.control.sessions import Session
from loopwright.kernel.actor import Role, Scope
from loopwright.kernel.clock import from_us, to_us
from loopwright.kernel.errors import Conflict, NotFound, did_you_mean
from loopwright.ledger.schema import (
    audit,
    label_batches,
    projects,
    segments,
    sessions,
    team_roles,
    tokens,
    users,
    versions,
    watermarks,
)  # fmt: skip


def list_users(conn: Connection) -> list[User]:
    """All users by name, with their teams."""
    teams: dict[str, list[tuple[str, Role]]] = defaultdict(list)
    for row in conn.execute(select(team_roles).order_by(team_roles.c.team)):
        teams[row.user].append((row.team, Role.parse(row.role)))
    return [_user(row, teams[row.name]) for row in conn.execute(select(users).order_by(users.c.name))]


def get_user(conn: Connection, name: str) -> User:
    """The user; raises NotFound with the nearest name."""
    row = conn.execute(select(users).where(users.c.name == name)).one_or_none()
    if row is None:
        known = conn.execute(select(users.c.name)).scalars().all()
        raise NotFound(
            "no such user", got=name, next=did_you_mean(name, known) or f"Add one: loopwright user add {name}"
        )
    return _user(row, _teams_of(conn, name))


def find_by_identity(conn: Connection, identity: str) -> User | None:
    """The user who signs in at an OIDC provider as `identity`."""
    row = conn.execute(select(users).where(users.c.identity == identity)).one_or_none()
    return None if row is None else _user(row, _teams_of(conn, row.name))


def add_user(
    conn: Connection,
    name: str,
    role: Role,
    now: datetime,
    *,
    service: bool = False,
    identity: str | None = None,
) -> User:
    """Add a user; raises Conflict when the name, in whatever case, or the identity is taken."""
    if conn.execute(select(users.c.name).where(func.lower(users.c.name) == name.lower())).first():
        raise Conflict("there is a user of this name already", got=name)
    _check_identity_free(conn, identity)
    conn.execute(insert(users).values(
        name=name, role=role.name.lower(), created_at=to_us(now), service=service, identity=identity
    ))  # fmt: skip
    return get_user(conn, name)


def change_user(conn: Connection, name: str, *, role: Role, disabled_at: datetime | None) -> User:
    """Set role and disabled moment of a user that exists."""
    conn.execute(update(users).where(users.c.name == name).values(
        role=role.name.lower(), disabled_at=None if disabled_at is None else to_us(disabled_at)
    ))  # fmt: skip
    return get_user(conn, name)


def link_user(conn: Connection, name: str, identity: str) -> None:
    """Let whom the provider calls `identity` in as `name`; raises Conflict when they are somebody else here."""
    _check_identity_free(conn, identity, but=name)
    conn.execute(update(users).where(users.c.name == name).values(identity=identity))


def set_team_role(conn: Connection, team: str, user: str, role: Role | None) -> None:
    """Give the user this role in the team, or with None take it away."""
    conn.execute(delete(team_roles).where(team_roles.c.team == team, team_roles.c.user == user))
    if role is not None:
        conn.execute(insert(team_roles).values(team=team, user=user, role=role.name.lower()))


def list_teams(conn: Connection) -> dict[str, tuple[list[tuple[str, Role]], list[str]]]:
    """Team → (its people with their roles, its models): every team that has either."""
    found: dict[str, tuple[list[tuple[str, Role]], list[str]]] = defaultdict(lambda: ([], []))
    for row in conn.execute(select(team_roles).order_by(team_roles.c.user)):
        found[row.team][0].append((row.user, Role.parse(row.role)))
    for row in conn.execute(select(projects.c.team, projects.c.model).order_by(projects.c.model)):
        if row.team is not None:
            found[row.team][1].append(row.model)
    return dict(sorted(found.items()))


def is_known_model(conn: Connection, model: str) -> bool:
    """Whether a project or a version has this model's name."""
    return any(
        conn.execute(select(table.c.model).where(table.c.model == model).limit(1)).first() is not None
        for table in (projects, versions)
    )


def anyone(conn: Connection) -> bool:
    """Whether any token was ever made that could still let somebody in."""
    return bool(
        conn.execute(select(func.count()).select_from(tokens).where(tokens.c.revoked_at.is_(None))).scalar()
    )


def add_token(conn: Connection, token: Token) -> None:
    """Keep a new token."""
    conn.execute(insert(tokens).values(
        id=token.id, user=token.user, hash=token.hash, created_at=to_us(token.created_at),
        expires_at=None if token.expires_at is None else to_us(token.expires_at), note=token.note,
        scopes=None if token.scopes is None else " ".join(map(str, token.scopes)),
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
    """Let nobody in by this token any more, nor by the sessions opened with it."""
    conn.execute(
        update(tokens)
        .where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None))
        .values(revoked_at=to_us(now))
    )
    conn.execute(
        update(sessions)
        .where(sessions.c.token == token_id, sessions.c.revoked_at.is_(None))
        .values(revoked_at=to_us(now))
    )


def touch_token(conn: Connection, token_id: str, now: datetime) -> None:
    conn.execute(update(tokens).where(tokens.c.id == token_id).values(last_used_at=to_us(now)))


def add_session(conn: Connection, session: Session, *, forget_before: datetime) -> None:
    """Keep a new session; those that ended before `forget_before` are forgotten."""
    conn.execute(delete(sessions).where(sessions.c.expires_at < to_us(forget_before)))
    conn.execute(insert(sessions).values(
        hash=session.hash, user=session.user, csrf=session.csrf, created_at=to_us(session.created_at),
        expires_at=to_us(session.expires_at), last_used_at=to_us(session.last_used_at), token=session.token,
    ))  # fmt: skip


def find_session(conn: Connection, hashed: str) -> tuple[Session, User, Token | None] | None:
    """The session, its user and the token it was opened with; None for an unknown one."""
    row = conn.execute(select(sessions).where(sessions.c.hash == hashed)).one_or_none()
    if row is None:
        return None
    session = Session(
        row.hash, row.user, row.csrf, from_us(row.created_at), from_us(row.expires_at), from_us(row.last_used_at),
        _moment(row.revoked_at), row.token,
    )  # fmt: skip
    token = None
    if row.token is not None:
        token = _token(conn.execute(select(tokens).where(tokens.c.id == row.token)).one())
    return session, get_user(conn, row.user), token


def touch_session(conn: Connection, hashed: str, now: datetime) -> None:
    conn.execute(update(sessions).where(sessions.c.hash == hashed).values(last_used_at=to_us(now)))


def revoke_sessions(
    conn: Connection, now: datetime, *, hashed: str | None = None, user: str | None = None
) -> int:
    """End one session, or all of a user's; returns how many were running."""
    which = sessions.c.hash == hashed if hashed is not None else sessions.c.user == user
    ended = update(sessions).where(which, sessions.c.revoked_at.is_(None), sessions.c.expires_at > to_us(now))
    return int(conn.execute(ended.values(revoked_at=to_us(now))).rowcount)


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


def _user(row: Row[Any], teams: list[tuple[str, Role]]) -> User:
    return User(
        row.name, Role.parse(row.role), from_us(row.created_at), _moment(row.disabled_at), tuple(teams),
        row.service, row.identity,
    )  # fmt: skip


def _teams_of(conn: Connection, name: str) -> list[tuple[str, Role]]:
    query = select(team_roles).where(team_roles.c.user == name).order_by(team_roles.c.team)
    return [(row.team, Role.parse(row.role)) for row in conn.execute(query)]


def _check_identity_free(conn: Connection, identity: str | None, *, but: str | None = None) -> None:
    holder = None if identity is None else find_by_identity(conn, identity)
    if holder is not None and holder.name != but:
        raise Conflict(f"this person signs in as {holder.name} already", got=identity)


def _token(row: Row[Any]) -> Token:
    return Token(
        row.id, row.user, row.hash, from_us(row.created_at), _moment(row.expires_at),
        _moment(row.last_used_at), _moment(row.revoked_at),
        None if row.scopes is None else tuple(Scope.parse(text) for text in row.scopes.split()), row.note,
    )  # fmt: skip


def _moment(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else from_us(microseconds)


def stage_counts(conn: Connection) -> list[tuple[str, str, int]]:
    """(model, stage, versions) for /metrics."""
    kept = versions.c.deleted_at.is_(None)
    query = (
        select(versions.c.model, versions.c.stage, func.count())
        .where(kept)
        .group_by(versions.c.model, versions.c.stage)
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
