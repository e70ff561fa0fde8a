"""Who somebody is: users, service accounts, tokens, and the decision on one. Pure but for the random secrets."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from loopwright.kernel.actor import Actor, Role, Scope
from loopwright.kernel.errors import BadInput, Lapsed, Refused, Unauthenticated

LOCAL = Actor("local", Role.ADMIN, via="this machine")
"""Who works on a folder of their own, or on a control plane of their own machine, without a token."""

RESERVED = frozenset({"local", "loopwright", "nobody"})
DEFAULT_LIFE = timedelta(days=90)
"""How long a token works when nobody says otherwise."""
LONGEST_LIFE = timedelta(days=36_500)
_WRONG = "Get one with: loopwright token create USER"
_TOKEN = re.compile(r"lw_([0-9a-f]{12})_[A-Za-z0-9_-]{16,}")
_SHAPE = re.compile(r"lw_([0-9a-f]{12})_([A-Za-z0-9_-]{1,128})", re.ASCII)


@dataclass(frozen=True, slots=True)
class User:
    """A user of this home; `disabled_at` set means: nobody gets in by this name.

    service: an account of a machine. identity: "ISSUER SUBJECT" of a person who signs in at an OIDC provider.
    """

    name: str
    role: Role
    created_at: datetime
    disabled_at: datetime | None
    teams: tuple[tuple[str, Role], ...] = ()
    service: bool = False
    identity: str | None = None

    def actor(
        self, *, scopes: tuple[Scope, ...] | None = None, via: str, until: datetime | None = None
    ) -> Actor:
        """The user at work, by whatever they came in with."""
        return Actor(self.name, self.role, self.teams, scopes, self.service, via, until)


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the ledger keeps it: never its secret, only the secret's hash. scopes: None for no limit."""

    id: str
    user: str
    hash: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    scopes: tuple[Scope, ...] | None = None
    note: str = ""

    def check_alive(self, now: datetime) -> None:
        """Raise Lapsed when it was revoked or has expired."""
        if self.revoked_at is not None:
            raise Lapsed("this token was revoked", next=_WRONG)
        if self.expires_at is not None and self.expires_at <= now:
            raise Lapsed("this token has expired", next=_WRONG)


def mint() -> tuple[str, str, str]:
    """Return (id, whole token, hash to keep). The token reads lw_<id>_<secret>: 256 random bits."""
    token_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return token_id, f"lw_{token_id}_{secret}", hash_secret(secret)


def parse(text: str) -> tuple[str, str]:
    """Return (id, secret) of a token; raises Unauthenticated when it does not even look like one."""
    found = _SHAPE.fullmatch(text.strip())
    if found is None:
        raise Unauthenticated("this is not a token of ours", wanted="lw_…", next=_WRONG)
    return found[1], found[2]


def holds_token(text: str) -> bool:
    """Whether a token stands anywhere in `text`."""
    return _TOKEN.search(text) is not None


def redacted(text: str) -> str:
    """`text` with the secrets of tokens taken out; their ids stay."""
    return _TOKEN.sub(r"lw_\1_…", text)


def admit(secret: str, token: Token | None, user: User | None, now: datetime) -> Actor:
    """Return the actor a token stands for, or raise Unauthenticated.

    A wrong secret and an unknown id say the same, and take the same time.
    """
    expected = token.hash if token is not None else "0" * 64
    right = hmac.compare_digest(hash_secret(secret), expected)
    if token is None or user is None or not right:
        raise Unauthenticated("wrong token", next=_WRONG)
    token.check_alive(now)
    check_enabled(user)
    return user.actor(scopes=token.scopes, via=f"token {token.id}", until=token.expires_at)


def check_enabled(user: User) -> None:
    """Raise Lapsed for a disabled user."""
    if user.disabled_at is not None:
        raise Lapsed(
            f"the user {user.name} is disabled",
            next=f"An admin can change that: loopwright user enable {user.name}",
        )


def check_user_name(name: str) -> str:
    """Return `name` when it may be a user's; raises BadInput otherwise."""
    allowed = all(letter.isalnum() or letter in "._@-" for letter in name)
    if not name or len(name) > 64 or not allowed or not name[0].isalnum():
        raise BadInput("not a user name", got=name, wanted="up to 64 letters, digits and . _ @ -")
    if name.lower() in RESERVED:
        raise BadInput("this name is taken by the product itself", got=name, wanted="another name")
    return name


def check_team_name(name: str) -> str:
    """Return `name` when it may be a team's (`team:` of a loop.yaml); raises BadInput otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise BadInput("not a team's name", got=name, wanted="letters, digits, '.', '_' and '-', at most 64")
    return name


def check_last_admin(users: Iterable[User], name: str, *, role: Role | None, disabled: bool) -> None:
    """Refuse a change after which no enabled admin would be left."""
    enabled = [user for user in users if user.disabled_at is None and user.role is Role.ADMIN]
    stays = not disabled and role is Role.ADMIN
    if [user.name for user in enabled] == [name] and not stays:
        raise Refused(
            f"{name} is the last admin", next="Make another one first: loopwright user add NAME --role admin"
        )


def scopes_for(maker: Actor, wanted: Iterable[str] | None) -> tuple[Scope, ...] | None:
    """Return what a token made by `maker` may be for; without `wanted` as much as the maker's own.

    Raises Refused for a scope that the token the maker came with does not cover.
    """
    asked = None if wanted is None else tuple(dict.fromkeys(Scope.parse(text) for text in wanted))
    if maker.scopes is None:
        return asked or None
    if not asked:
        return maker.scopes
    beyond = [scope for scope in asked if not any(own.covers(scope) for own in maker.scopes)]
    if beyond:
        raise Refused(
            "a token made with a token may not be for more than it",
            got=", ".join(map(str, beyond)),
            wanted=f"within {', '.join(map(str, maker.scopes)) or 'nothing'}",
        )
    return asked


def end_for(maker: Actor, now: datetime, *, days: float | None, forever: bool) -> datetime | None:
    """Return when a token made by `maker` ends; None for never.

    A token made with a token does not outlive it: else a stolen one could be renewed for ever. Raises BadInput for
    days out of range, Refused for an end after the maker's.
    """
    if days is not None and forever:
        raise BadInput("both a number of days and for ever", wanted="one of them")
    if days is not None and not 0 < days <= LONGEST_LIFE.days:
        raise BadInput("`days` is out of range", got=days, wanted=f"more than 0, at most {LONGEST_LIFE.days}")
    end = None if forever else now + (DEFAULT_LIFE if days is None else timedelta(days=days))
    if maker.until is None or (end is not None and end <= maker.until):
        return end
    if days is None and not forever:
        return maker.until
    raise Refused(
        "a token made with a token does not outlive it",
        got="for ever" if end is None else end.isoformat(),
        wanted=f"until {maker.until.isoformat()} at most",
    )


def hash_secret(secret: str) -> str:
    """SHA-256 in hex: enough for 256 random bits, which nobody guesses one by one."""
    return hashlib.sha256(secret.encode()).hexdigest()
