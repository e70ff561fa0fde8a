"""Users and tokens."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from loopwright.control import access, store
from loopwright.control.access import Token, User
from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.kernel.actor import Role
from loopwright.kernel.errors import BadInput, NotFound, Refused
from loopwright.ledger import store as ledger_store


@operation("access.users", "GET", "/users")
def users(ctx: Context) -> list[dict[str, Any]]:
    """List users and their roles."""
    with ctx.ledger.read() as conn:
        return [_told(user) for user in store.list_users(conn)]


@operation("access.whoami", "GET", "/whoami")
def whoami(ctx: Context) -> dict[str, Any]:
    """Say who the caller is."""
    return {"name": ctx.actor.name, "role": ctx.actor.role}


@operation("access.add_user", "POST", "/users", role=Role.ADMIN)
def add_user(ctx: Context, name: str, role: str = "developer") -> dict[str, Any]:
    """Add a user with a role: viewer, developer, approver or admin."""
    wanted = Role.parse(role)
    access.check_user_name(name)
    with ctx.ledger.write() as conn:
        user = store.add_user(conn, name, wanted, ctx.now)
        _note(ctx, conn, "user.added", name, {"role": wanted.name.lower()})
    return _told(user)


@operation("access.set_user", "POST", "/users/{name}", role=Role.ADMIN)
def set_user(
    ctx: Context, name: str, role: str | None = None, disabled: bool | None = None
) -> dict[str, Any]:
    """Change a user's role, or disable or enable them. Their tokens stop working with them."""
    wanted = None if role is None else Role.parse(role)
    with ctx.ledger.write() as conn:
        before = store.get_user(conn, name)
        after_role = wanted or before.role
        after_disabled = before.disabled_at is not None if disabled is None else disabled
        access.check_last_admin(store.list_users(conn), name, role=after_role, disabled=after_disabled)
        since = (before.disabled_at or ctx.now) if after_disabled else None
        user = store.change_user(conn, name, role=after_role, disabled_at=since)
        change = {"role": after_role.name.lower(), "disabled": after_disabled}
        _note(ctx, conn, "user.changed", name, change)
    return _told(user)


@operation("access.tokens", "GET", "/tokens")
def tokens(ctx: Context, user: str | None = None) -> list[dict[str, Any]]:
    """List tokens (never their secrets): one's own, or as admin everybody's."""
    if ctx.actor.role < Role.ADMIN:
        if user not in (None, ctx.actor.name):
            raise Refused("only an admin sees other people's tokens", got=user)
        user = ctx.actor.name
    with ctx.ledger.read() as conn:
        return [_of_token(token, ctx.now) for token in store.list_tokens(conn, user)]


@operation("access.create_token", "POST", "/tokens")
def create_token(ctx: Context, user: str, days: float | None = None) -> dict[str, Any]:
    """Make a token for oneself, or as admin for anybody. The answer is the only time it is shown."""
    if user != ctx.actor.name and ctx.actor.role < Role.ADMIN:
        raise Refused("only an admin makes tokens for others", got=user, wanted=ctx.actor.name)
    if days is not None and not 0 < days <= 36_500:
        raise BadInput("`days` is out of range", got=days, wanted="more than 0, at most 36500")
    expires = None if days is None else ctx.now + timedelta(days=days)
    token_id, whole, hashed = access.mint()
    with ctx.ledger.write() as conn:
        owner = store.get_user(conn, user)
        if owner.disabled_at is not None:
            raise Refused(f"the user {user} is disabled", next=f"loopwright user enable {user}")
        store.add_token(conn, token_id, user, hashed, ctx.now, expires)
        _note(ctx, conn, "token.created", user, {"token": token_id, "expires_at": _iso(expires)})
    return {"id": token_id, "user": user, "token": whole, "expires_at": expires}


@operation("access.revoke_token", "DELETE", "/tokens/{id}")
def revoke_token(ctx: Context, id: str) -> dict[str, Any]:
    """Revoke a token by its id (or by the token itself); is idempotent."""
    token_id = access.parse(id)[0] if id.startswith("lw_") else id
    with ctx.ledger.write() as conn:
        found = store.find_token(conn, token_id)
        if found is None or (found[1].name != ctx.actor.name and ctx.actor.role < Role.ADMIN):
            raise NotFound("no such token", got=token_id, next="loopwright token list")
        if found[0].revoked_at is None:
            store.revoke_token(conn, token_id, ctx.now)
            _note(ctx, conn, "token.revoked", found[1].name, {"token": token_id})
    return {"id": token_id, "user": found[1].name, "state": "revoked"}


def _note(ctx: Context, conn: Connection, action: str, subject: str, payload: Mapping[str, Any]) -> None:
    ledger_store.append(
        conn, at=ctx.now, actor=ctx.actor.name, action=action, subject=f"user/{subject}", payload=payload
    )


def _told(user: User) -> dict[str, Any]:
    return {
        "name": user.name, "role": user.role, "created_at": user.created_at,
        "state": "disabled" if user.disabled_at else "active",
    }  # fmt: skip


def _of_token(token: Token, now: datetime) -> dict[str, Any]:
    state = "revoked" if token.revoked_at else "active"
    if state == "active" and token.expires_at is not None and token.expires_at <= now:
        state = "expired"
    return {
        "id": token.id, "user": token.user, "state": state, "created_at": token.created_at,
        "expires_at": token.expires_at, "last_used_at": token.last_used_at,
    }  # fmt: skip


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
