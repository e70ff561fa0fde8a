"""Finds out who acts: by token, by session, by folder, or as the owner of this machine."""

import contextlib
from datetime import timedelta

from loopwright.control import access, sessions, store
from loopwright.control.access import LOCAL
from loopwright.control.client import AS_HEADER
from loopwright.control.context import Context
from loopwright.control.sessions import Session
from loopwright.kernel.actor import Actor
from loopwright.kernel.clock import Clock
from loopwright.kernel.errors import Unavailable
from loopwright.ledger.engine import Ledger

_TOUCH_EVERY = timedelta(minutes=1)

__all__ = ["AS_HEADER", "LOCAL", "by_name", "by_session", "by_token", "on_folder"]


def by_token(ledger: Ledger, text: str, clock: Clock) -> Actor:
    """Return whom the token stands for; raises Unauthenticated.

    Notes the moment of use at most once a minute, so that reading stays reading.
    """
    now = clock()
    token_id, secret = access.parse(text)
    with ledger.read() as conn:
        found = store.find_token(conn, token_id)
    token, user = found if found is not None else (None, None)
    actor = access.admit(secret, token, user, now)
    if token is not None and (token.last_used_at is None or now - token.last_used_at > _TOUCH_EVERY):
        # A full disk or a busy ledger must not lock out those who only want to read.
        with contextlib.suppress(Unavailable), ledger.write() as conn:
            store.touch_token(conn, token_id, now)
    return actor


def by_session(ledger: Ledger, secret: str, clock: Clock) -> tuple[Actor, Session]:
    """Return whom the cookie's secret stands for, and the session; raises Unauthenticated."""
    now = clock()
    with ledger.read() as conn:
        found = store.find_session(conn, access.hash_secret(secret))
    session, user, token = found if found is not None else (None, None, None)
    actor = sessions.admit(session, user, token, now)
    assert session is not None
    if now - session.last_used_at > sessions.TOUCH_EVERY:
        with contextlib.suppress(Unavailable), ledger.write() as conn:
            store.touch_session(conn, session.hash, now)
    return actor, session


def by_name(ledger: Ledger, name: str) -> Actor:
    """Return the user of this name; raises NotFound, or Unauthenticated when disabled."""
    if name == LOCAL.name:
        return LOCAL
    with ledger.read() as conn:
        user = store.get_user(conn, name)
    access.check_enabled(user)
    return user.actor(via=f"assumed by {LOCAL.name}")


def on_folder(context: Context, token: str | None, as_user: str | None) -> Context:
    """Return the folder in the hands of the token's user, of `as_user`, or of the folder's owner."""
    if token:
        return context.acting_as(by_token(context.ledger, token, context.clock))
    if as_user and as_user != LOCAL.name:
        return context.acting_as(by_name(context.ledger, as_user), assumed_by=LOCAL)
    return context
