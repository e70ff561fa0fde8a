"""Finds out who acts: by token, by folder, or as the owner of this machine."""

import contextlib
from datetime import timedelta

from loopwright.control import access, store
from loopwright.control.access import LOCAL
from loopwright.control.context import Context
from loopwright.kernel.actor import Actor
from loopwright.kernel.clock import Clock
from loopwright.kernel.errors import Unauthenticated, Unavailable
from loopwright.ledger.engine import Ledger

AS_HEADER = "X-Loopwright-As"
_TOUCH_EVERY = timedelta(minutes=1)

__all__ = ["AS_HEADER", "LOCAL", "by_name", "by_token", "on_folder"]


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


def by_name(ledger: Ledger, name: str) -> Actor:
    """Return the user of this name; raises NotFound, or Unauthenticated when disabled."""
    if name == LOCAL.name:
        return LOCAL
    with ledger.read() as conn:
        user = store.get_user(conn, name)
    if user.disabled_at is not None:
        raise Unauthenticated(f"the user {name} is disabled", next=f"loopwright user enable {name}")
    return Actor(user.name, user.role)


def on_folder(context: Context, token: str | None, as_user: str | None) -> Context:
    """Return the folder in the hands of the token's user, of `as_user`, or of the folder's owner."""
    if token:
        return context.acting_as(by_token(context.ledger, token, context.clock))
    if as_user and as_user != LOCAL.name:
        return context.acting_as(by_name(context.ledger, as_user), assumed_by=LOCAL)
    return context
