"""Sessions of people in browsers: a cookie with 256 random bits, of which only the hash is kept.

A session begins only after somebody has shown who they are, always under a new secret, and never under one that the
browser brought: fixing somebody's session beforehand leads nowhere.
"""

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from loopwright.control.access import Token, User, check_enabled, hash_secret
from loopwright.kernel.actor import Actor
from loopwright.kernel.errors import Lapsed, Refused, Unauthenticated

COOKIE = "lw_session"
CSRF_COOKIE = "lw_csrf"
"""Readable by our own pages, which send its value back in `CSRF_HEADER`; other sites' pages cannot read it."""
CSRF_HEADER = "x-csrf-token"

LONGEST = timedelta(hours=12)
"""A session ends this long after signing in, whatever happens."""
IDLE = timedelta(hours=2)
"""And this long after it was last used."""
TOUCH_EVERY = timedelta(minutes=1)
FORGET_AFTER = timedelta(days=30)
_AGAIN = "Sign in again at /login."


@dataclass(frozen=True, slots=True)
class Session:
    """A session as the ledger keeps it. token: the id of the token it was opened with; None for an OIDC provider."""

    hash: str
    user: str
    csrf: str
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime
    revoked_at: datetime | None
    token: str | None


def begin(user: str, now: datetime, *, token: Token | None) -> tuple[str, Session]:
    """Return (the cookie's secret, the session to keep). It ends with the token it is opened with, at the latest."""
    secret = secrets.token_urlsafe(32)
    end = now + LONGEST
    if token is not None and token.expires_at is not None:
        end = min(end, token.expires_at)
    csrf = secrets.token_urlsafe(32)
    return secret, Session(
        hash_secret(secret), user, csrf, now, end, now, None, token.id if token is not None else None
    )


def admit(session: Session | None, user: User | None, token: Token | None, now: datetime) -> Actor:
    """Return whom a session stands for, or raise Unauthenticated, as Lapsed for one that is over.

    A session that was opened with a token may do what the token may.
    """
    if session is None or user is None:
        raise Unauthenticated("no such session", next=_AGAIN)
    if session.revoked_at is not None:
        raise Lapsed("this session was ended", next=_AGAIN)
    if session.expires_at <= now:
        raise Lapsed("this session is over", next=_AGAIN)
    if now - session.last_used_at > IDLE:
        raise Lapsed("this session was idle for too long", next=_AGAIN)
    check_enabled(user)
    if token is None:
        return user.actor(via="session")
    token.check_alive(now)
    return user.actor(scopes=token.scopes, via=f"session of token {token.id}", until=token.expires_at)


def check_csrf(session: Session, given: str | None) -> None:
    """Refuse a change that the browser may have sent on another page's behalf."""
    if given is None or not hmac.compare_digest(session.csrf.encode(), given.encode()):
        raise Refused(
            "a change under a session needs its CSRF token",
            wanted=f"the header X-CSRF-Token with the value of the cookie {CSRF_COOKIE}",
        )


def set_cookies(secret: str, session: Session, now: datetime, *, secure: bool) -> list[str]:
    """The Set-Cookie headers that give a browser this session."""
    age = int((session.expires_at - now).total_seconds())
    tail = f"; Path=/; Max-Age={age}; SameSite=Lax" + ("; Secure" if secure else "")
    return [f"{COOKIE}={secret}; HttpOnly{tail}", f"{CSRF_COOKIE}={session.csrf}{tail}"]


def clear_cookies(*, secure: bool, names: Iterable[str] = (COOKIE, CSRF_COOKIE)) -> list[str]:
    """The Set-Cookie headers that take it away again."""
    tail = "; Path=/; Max-Age=0; SameSite=Lax" + ("; Secure" if secure else "")
    return [f"{name}=; HttpOnly{tail}" for name in names]
