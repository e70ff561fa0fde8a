"""Users, teams and tokens."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from loopwright.control import access, store
from loopwright.control.access import Token, User
from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.kernel.actor import Role, require
from loopwright.kernel.errors import BadInput, NotFound, Refused, did_you_mean
from loopwright.ledger import store as ledger_store

_LONGEST_NOTE = 200


@operation("access.users", "GET", "/users")
def users(ctx: Context) -> list[dict[str, Any]]:
    """List users, their roles and their teams."""
    with ctx.ledger.read() as conn:
        return [_told(user) for user in store.list_users(conn)]


@operation("access.whoami", "GET", "/whoami", role=Role.NOBODY)
def whoami(ctx: Context) -> dict[str, Any]:
    """Say who the caller is: role, teams, what their token is for, and how they came in."""
    actor = ctx.actor
    return {
        "name": actor.name, "role": actor.role, "teams": dict(actor.teams), "service": actor.service,
        "scopes": None if actor.scopes is None else [str(scope) for scope in actor.scopes], "via": actor.via,
    }  # fmt: skip


@operation("access.add_user", "POST", "/users", role=Role.ADMIN)
def add_user(
    ctx: Context, name: str, role: str = "developer", service: bool = False, identity: str | None = None
) -> dict[str, Any]:
    """Add a user with a role: viewer, developer, approver or admin.

    A service account is a machine's: it signs in with tokens only and reviews nothing. `identity` is "ISSUER SUBJECT"
    of somebody who signs in at the OIDC provider.
    """
    wanted = Role.parse(role)
    access.check_user_name(name)
    _check_identity(identity, service=service)
    with ctx.ledger.write() as conn:
        user = store.add_user(conn, name, wanted, ctx.now, service=service, identity=identity)
        payload: dict[str, Any] = {"role": wanted.name.lower()}
        payload |= {"service": True} if service else {}
        payload |= {"identity": identity} if identity else {}
        _note(ctx, conn, "user.added", name, payload)
    return _told(user)


@operation("access.set_user", "POST", "/users/{name}", role=Role.ADMIN)
def set_user(
    ctx: Context,
    name: str,
    role: str | None = None,
    disabled: bool | None = None,
    identity: str | None = None,
) -> dict[str, Any]:
    """Change a user's role, disable or enable them, or say who they are at the OIDC provider.

    The tokens of a disabled user stop working; their sessions end for good.
    """
    wanted = None if role is None else Role.parse(role)
    with ctx.ledger.write() as conn:
        before = store.get_user(conn, name)
        _check_identity(identity, service=before.service)
        after_role = wanted or before.role
        after_disabled = before.disabled_at is not None if disabled is None else disabled
        access.check_last_admin(store.list_users(conn), name, role=after_role, disabled=after_disabled)
        since = (before.disabled_at or ctx.now) if after_disabled else None
        store.change_user(conn, name, role=after_role, disabled_at=since)
        change: dict[str, Any] = {"role": after_role.name.lower(), "disabled": after_disabled}
        if after_disabled:
            store.revoke_sessions(conn, ctx.now, user=name)
        if identity is not None:
            store.link_user(conn, name, identity)
            change["identity"] = identity
        _note(ctx, conn, "user.changed", name, change)
        return _told(store.get_user(conn, name))


@operation("access.teams", "GET", "/teams")
def teams(ctx: Context) -> list[dict[str, Any]]:
    """List teams: their people with their roles, and the models their projects make."""
    with ctx.ledger.read() as conn:
        found = store.list_teams(conn)
    return [
        {"team": team, "people": dict(people), "models": models} for team, (people, models) in found.items()
    ]


@operation("access.grant_team", "POST", "/teams/{team}/{user}", role=Role.VIEWER)
def grant_team(ctx: Context, team: str, user: str, role: str) -> dict[str, Any]:
    """Give a user a role on the models of a team; an admin of the team may, up to their own role."""
    wanted = Role.parse(role)
    access.check_team_name(team)
    require(ctx.actor, Role.ADMIN, f"say who works in the team {team}", team=team)
    if wanted > ctx.actor.role_on(team=team):  # only an admin gets here today; the rule stands by itself
        raise Refused("nobody grants more than they have", got=wanted.name.lower())
    return _set_team(ctx, team, user, wanted)


@operation("access.revoke_team", "DELETE", "/teams/{team}/{user}", role=Role.VIEWER)
def revoke_team(ctx: Context, team: str, user: str) -> dict[str, Any]:
    """Take a user's role in a team away; their role everywhere stays. Raises NotFound when they have none there."""
    access.check_team_name(team)
    require(ctx.actor, Role.ADMIN, f"say who works in the team {team}", team=team)
    with ctx.ledger.read() as conn:
        held, known = dict(store.get_user(conn, user).teams), store.list_teams(conn)
    if team not in known:
        raise NotFound("no such team", got=team, next=did_you_mean(team, known) or "loopwright team list")
    if team not in held:
        raise NotFound(
            f"{user} has no role in the team {team}", where=f"user/{user}",
            got=", ".join(held) or "no team", next="Their role everywhere: loopwright user set",
        )  # fmt: skip
    return _set_team(ctx, team, user, None)


@operation("access.tokens", "GET", "/tokens")
def tokens(ctx: Context, user: str | None = None) -> list[dict[str, Any]]:
    """List tokens (never their secrets): one's own, or as admin everybody's."""
    if ctx.actor.role_on() < Role.ADMIN:
        if user not in (None, ctx.actor.name):
            raise Refused("only an admin sees other people's tokens", got=user)
        user = ctx.actor.name
    with ctx.ledger.read() as conn:
        if user not in (None, ctx.actor.name):
            store.get_user(conn, user)  # an empty list would say that they have none
        return [_of_token(token, ctx.now) for token in store.list_tokens(conn, user)]


@operation("access.create_token", "POST", "/tokens")
def create_token(
    ctx: Context,
    user: str,
    days: float | None = None,
    forever: bool = False,
    scopes: list[str] | None = None,
    note: str = "",
) -> dict[str, Any]:
    """Make a token for oneself, or as admin for anybody. The answer is the only time it is shown.

    It works for 90 days unless `days` or `forever` says otherwise. Scopes say what it is for (serve, read, write,
    approve, admin; "approve:MODEL" for one model); without them it may do what its user may. One that is made with a
    token has at most that token's scopes, and ends no later.
    """
    if user != ctx.actor.name and ctx.actor.role_on() < Role.ADMIN:
        raise Refused("only an admin makes tokens for others", got=user, wanted=ctx.actor.name)
    if len(note) > _LONGEST_NOTE or not (note.isprintable()):
        raise BadInput(
            "`note` is too long or not plain text", got=note, wanted=f"at most {_LONGEST_NOTE} signs"
        )
    expires = access.end_for(ctx.actor, ctx.now, days=days, forever=forever)
    wanted = access.scopes_for(ctx.actor, scopes)
    token_id, whole, hashed = access.mint()
    with ctx.ledger.write() as conn:
        owner = store.get_user(conn, user)
        if owner.disabled_at is not None:
            raise Refused(f"the user {user} is disabled", next=f"loopwright user enable {user}")
        made = Token(token_id, user, hashed, ctx.now, expires, None, None, wanted, note)
        store.add_token(conn, made)
        told = {name: value for name, value in _of_token(made, ctx.now).items() if name in ("scopes", "note")}
        payload = {"token": token_id, "expires_at": _iso(expires), "with": ctx.actor.via, **told}
        _note(ctx, conn, "token.created", user, payload)
        named = sorted({scope.model for scope in wanted or () if scope.model})
        unknown = [model for model in named if not store.is_known_model(conn, model)]
    return {
        "id": token_id,
        "user": user,
        "token": whole,
        "expires_at": expires,
        **told,
        "unknown_models": unknown,
    }


@operation("access.revoke_token", "DELETE", "/tokens/{id}")
def revoke_token(ctx: Context, id: str) -> dict[str, Any]:
    """Revoke a token by its id (or by the token itself), and the sessions opened with it; is idempotent."""
    token_id = access.parse(id)[0] if id.startswith("lw_") else id
    with ctx.ledger.write() as conn:
        found = store.find_token(conn, token_id)
        if found is None or (found[1].name != ctx.actor.name and ctx.actor.role_on() < Role.ADMIN):
            raise NotFound("no such token", got=token_id, next="loopwright token list")
        if found[0].revoked_at is None:
            store.revoke_token(conn, token_id, ctx.now)
            _note(ctx, conn, "token.revoked", found[1].name, {"token": token_id})
    return {"id": token_id, "user": found[1].name, "state": "revoked"}


def _set_team(ctx: Context, team: str, user: str, role: Role | None) -> dict[str, Any]:
    with ctx.ledger.write() as conn:
        before = dict(store.get_user(conn, user).teams).get(team)
        if before is not role:
            store.set_team_role(conn, team, user, role)
            given = None if role is None else role.name.lower()
            _note(ctx, conn, "team.changed", user, {"team": team, "role": given})
        return _told(store.get_user(conn, user))


def _check_identity(identity: str | None, *, service: bool) -> None:
    if identity is None:
        return
    issuer, _, subject = identity.partition(" ")
    if not issuer.startswith(("https://", "http://")) or not subject.strip():
        raise BadInput("not an identity at an OIDC provider", got=identity, wanted="ISSUER SUBJECT")
    if service:
        raise BadInput("a service account signs in with tokens only", got=identity, wanted="no identity")


def _note(ctx: Context, conn: Connection, action: str, subject: str, payload: Mapping[str, Any]) -> None:
    ledger_store.append(
        conn, at=ctx.now, actor=ctx.actor.name, action=action, subject=f"user/{subject}", payload=payload
    )


def _told(user: User) -> dict[str, Any]:
    return {
        "name": user.name, "role": user.role, "teams": dict(user.teams), "service": user.service,
        "identity": user.identity, "created_at": user.created_at,
        "state": "disabled" if user.disabled_at else "active",
    }  # fmt: skip


def _of_token(token: Token, now: datetime) -> dict[str, Any]:
    state = "revoked" if token.revoked_at else "active"
    if state == "active" and token.expires_at is not None and token.expires_at <= now:
        state = "expired"
    return {
        "id": token.id, "user": token.user, "state": state, "created_at": token.created_at,
        "expires_at": token.expires_at, "last_used_at": token.last_used_at, "note": token.note,
        "scopes": None if token.scopes is None else [str(scope) for scope in token.scopes],
    }  # fmt: skip


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
