"""Who somebody is: users, tokens, and the decision on a request. Pure but for the random secrets."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime

from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, Refused, Unauthenticated

LOCAL = Actor("local", Role.ADMIN)
"""Who works on a folder of their own, or on a control plane of their own machine, without a token."""

RESERVED = frozenset({"local", "loopwright"})
_WRONG = "Get one with: loopwright token create USER"


@dataclass(frozen=True, slots=True)
class User:
    """A user of this home; `disabled_at` set means: nobody gets in by this name."""

    name: str
    role: Role
    created_at: datetime
    disabled_at: datetime | None


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the ledger keeps it: never its secret, only the secret's hash."""

    id: str
    user: str
    hash: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


def mint() -> tuple[str, str, str]:
    """Return (id, whole token, hash to keep). The token reads lw_<id>_<secret>: 256 random bits."""
    token_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return token_id, f"lw_{token_id}_{secret}", _hash(secret)


def parse(text: str) -> tuple[str, str]:
    """Return (id, secret) of a token; raises Unauthenticated when it does not even look like one."""
    parts = text.strip().split("_", 2)
    if len(parts) != 3 or parts[0] != "lw" or not parts[1] or not parts[2]:
        raise Unauthenticated("this is not a token of ours", wanted="lw_…", next=_WRONG)
    return parts[1], parts[2]


def admit(secret: str, token: Token | None, user: User | None, now: datetime) -> Actor:
    """Return the actor a token stands for, or raise Unauthenticated.

    A wrong secret and an unknown id say the same, and take the same time.
    """
    expected = token.hash if token is not None else "0" * 64
    right = hmac.compare_digest(_hash(secret), expected)
    if token is None or user is None or not right:
        raise Unauthenticated("wrong token", next=_WRONG)
    if token.revoked_at is not None:
        raise Unauthenticated("this token was revoked", next=_WRONG)
    if token.expires_at is not None and token.expires_at <= now:
        raise Unauthenticated("this token has expired", next=_WRONG)
    if user.disabled_at is not None:
        raise Unauthenticated(f"the user {user.name} is disabled", next="An admin can change that.")
    return Actor(user.name, user.role)


def check_user_name(name: str) -> str:
    """Return `name` when it may be a user's; raises BadInput otherwise."""
    allowed = all(letter.isalnum() or letter in "._@-" for letter in name)
    if not name or len(name) > 64 or not allowed or not name[0].isalnum():
        raise BadInput("not a user name", got=name, wanted="up to 64 letters, digits and . _ @ -")
    if name.lower() in RESERVED:
        raise BadInput("this name is taken by the product itself", got=name, wanted="another name")
    return name


def check_last_admin(users: list[User], name: str, *, role: Role | None, disabled: bool) -> None:
    """Refuse a change after which no enabled admin would be left."""
    enabled = [user for user in users if user.disabled_at is None and user.role is Role.ADMIN]
    stays = not disabled and role is Role.ADMIN
    if [user.name for user in enabled] == [name] and not stays:
        raise Refused(
            f"{name} is the last admin", next="Make another one first: loopwright user add NAME --role admin"
        )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
