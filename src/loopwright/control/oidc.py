"""Signing in at an OpenID Connect provider: the authorization-code flow with PKCE, and who its people are here.

The protocol is authlib's and joserfc's; what is ours is what may go wrong: OpenID Connect Core 1.0 §3.1, RFC 7636.
"""

import hmac
import json
import os
import re
import secrets
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from cryptography.fernet import Fernet, InvalidToken
from sqlalchemy import Connection

from loopwright.control import access, store
from loopwright.control.access import User
from loopwright.control.caller import is_loopback
from loopwright.kernel.actor import SYSTEM, Role
from loopwright.kernel.clock import Clock
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput, Refused, Unauthenticated, Unavailable, did_you_mean
from loopwright.ledger import store as ledger_store

SECRET_VARIABLE = "LOOPWRIGHT_OIDC_SECRET"
ALGORITHMS = [
    f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512)
] + ["EdDSA", "Ed25519"]  # fmt: skip
"""Public-key signatures only: "none" signs nothing, and HS256 would take the provider's public key as a password."""
PATIENCE = timedelta(minutes=10)
LEEWAY = 60
_TIMEOUT = 10.0
_FRESH = timedelta(hours=1)
_KEYS_AGAIN = timedelta(seconds=30)
_AWAY = timedelta(seconds=5)
_START_AGAIN = "Start again at /login."


@dataclass(frozen=True, slots=True)
class Provider:
    """What home.json says under "oidc". roles: group → role everywhere. teams: group → team → role in it.

    default_role: for people none of whose groups is named; None keeps them out. claim: where the groups stand.
    """

    issuer: str
    client_id: str
    client_secret: str | None = None
    redirect: str | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)
    teams: Mapping[str, Mapping[str, Role]] = field(default_factory=dict)
    default_role: Role | None = None
    claim: str = "groups"
    scope: str = "openid profile email"

    @classmethod
    def read(cls, document: object, *, where: str, environment: Mapping[str, str] = os.environ) -> "Provider":
        """Read the section; the secret comes from a file or from the environment. Raises BadInput."""
        known = (set(cls.__dataclass_fields__) - {"client_secret"}) | {"client_secret_file"}
        if not isinstance(document, Mapping):
            raise BadInput("not an object", where=where, got=document, wanted='{"issuer": …, "client_id": …}')
        for name in document:
            if name not in known:
                raise BadInput("unknown", where=where, got=name, next=did_you_mean(str(name), known))
        for name in ("issuer", "client_id"):
            if not isinstance(document.get(name), str) or not document[name]:
                raise BadInput(f"`{name}` is missing", where=where)
        check_address(document["issuer"], where=where)
        file = document.get("client_secret_file")
        default = document.get("default_role")
        return cls(
            document["issuer"], document["client_id"],
            _secret_in(Path(file)) if file else environment.get(SECRET_VARIABLE) or None,
            document.get("redirect"),
            _roles(document.get("roles") or {}, f"{where}.roles"),
            {
                group: {access.check_team_name(team): role for team, role in _roles(found, f"{where}.teams").items()}
                for group, found in (document.get("teams") or {}).items()
            },
            None if default is None else Role.parse(default),
            document.get("claim") or "groups", document.get("scope") or "openid profile email",
        )  # fmt: skip

    def place(self, groups: frozenset[str]) -> tuple[Role | None, dict[str, Role]]:
        """Return (role everywhere, team → role) for a member of `groups`; no role keeps them out."""
        roles = [role for group, role in self.roles.items() if group in groups]
        teams: dict[str, Role] = {}
        for group, found in self.teams.items():
            for team, role in found.items() if group in groups else ():
                teams[team] = max(role, teams.get(team, Role.NOBODY))
        if roles:
            return max(roles), teams
        return self.default_role or (Role.VIEWER if teams else None), teams

    @property
    def governed_teams(self) -> frozenset[str]:
        """Teams whose people the provider's groups decide."""
        return frozenset(team for found in self.teams.values() for team in found)


@dataclass(frozen=True, slots=True)
class Person:
    """Whom the provider vouches for. identity: "ISSUER SUBJECT", never the e-mail, which people change and reuse."""

    identity: str
    name: str
    groups: frozenset[str]


class SignIn:
    """The flow with one provider. Begin and finish may happen in different threads, not in different processes."""

    def __init__(self, provider: Provider, clock: Clock) -> None:
        _library()
        self.provider = provider
        self._clock = clock
        # Known to this process only: nobody else can make a beginning that we would finish.
        self._seal = Fernet(Fernet.generate_key())
        self._used: dict[str, datetime] = {}
        self._metadata: tuple[datetime, dict[str, Any]] | None = None
        self._keys: tuple[datetime, Any] | None = None
        self._asking, self._away = threading.Lock(), cast("datetime | None", None)

    def begin(self, redirect: str, next_page: str) -> tuple[str, str]:
        """Return (where to send the browser, the cookie that ties the answer to it)."""
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        session = self._session(redirect)
        url, _ = session.create_authorization_url(
            self._endpoint("authorization_endpoint"), state=state, nonce=nonce, code_verifier=verifier
        )
        kept = {"state": state, "nonce": nonce, "verifier": verifier, "redirect": redirect, "next": next_page}
        sealed = self._seal.encrypt_at_time(json.dumps(kept).encode(), int(self._clock().timestamp()))
        return str(url), sealed.decode()

    def finish(self, answer: Mapping[str, str], sealed: str | None) -> tuple[Person, str]:
        """Return (who it is, which page they wanted), from the provider's answer and the cookie of `begin`.

        Raises Unauthenticated when anything does not fit, Unavailable when the provider does not answer.
        """
        kept = self._opened(sealed)
        if not hmac.compare_digest(answer.get("state", "").encode(), kept["state"].encode()):
            raise Unauthenticated("the answer belongs to another sign-in (state)", next=_START_AGAIN)
        self._only_once(kept["state"])
        if answer.get("iss", self.provider.issuer) != self.provider.issuer:
            raise Unauthenticated("the answer comes from another provider (iss)", next=_START_AGAIN)
        if "code" not in answer:
            why = re.sub(r"[^\w .,:-]", "", answer.get("error", ""))[:100]
            raise Unauthenticated(f"the provider said no ({why or 'no code'})", next=_START_AGAIN)
        session = self._session(kept["redirect"])
        try:
            token = session.fetch_token(
                self._endpoint("token_endpoint"), code=answer["code"], code_verifier=kept["verifier"],
                grant_type="authorization_code",
            )  # fmt: skip
        except _faults() as error:
            raise _said_no(error) from None
        claims = self._claims(token, kept["nonce"])
        if self.provider.claim.partition(".")[0] not in claims:
            claims = {**self._user_info(session, claims["sub"]), **claims}
        return _person(self.provider, claims), kept["next"]

    def _opened(self, sealed: str | None) -> dict[str, str]:
        now = int(self._clock().timestamp())
        try:
            text = self._seal.decrypt_at_time((sealed or "").encode(), int(PATIENCE.total_seconds()), now)
        except InvalidToken:
            raise Unauthenticated(
                "this browser has begun no sign-in here, or too long ago", next=_START_AGAIN
            ) from None
        return cast(dict[str, str], json.loads(text))

    def _only_once(self, state: str) -> None:
        now = self._clock()
        self._used = {used: at for used, at in self._used.items() if now - at < PATIENCE}
        if state in self._used:
            raise Unauthenticated("this sign-in was finished already", next=_START_AGAIN)
        self._used[state] = now

    def _claims(self, token: Mapping[str, Any], nonce: str) -> dict[str, Any]:
        """The id token's claims: signed by the provider, for us, for this sign-in, and not over."""
        from authlib.oidc.core import CodeIDToken
        from joserfc import jwt
        from joserfc.errors import JoseError
        from joserfc.jws import JWSRegistry

        text = token.get("id_token")
        if not isinstance(text, str):
            raise Unauthenticated("the provider sent no id token", next=_START_AGAIN)
        options = {
            "iss": {"essential": True, "value": self.provider.issuer},
            "aud": {"essential": True, "value": self.provider.client_id},
            "nonce": {"essential": True, "value": nonce},
            "sub": {"essential": True},
        }
        known = {
            "nonce": nonce,
            "client_id": self.provider.client_id,
            "access_token": token.get("access_token"),
        }
        registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        for fresh in (False, True):
            try:
                decoded = jwt.decode(
                    text, self._key_set(again=fresh), algorithms=ALGORITHMS, registry=registry
                )
                claims = CodeIDToken(decoded.claims, decoded.header, options, known)
                claims.validate(now=int(self._clock().timestamp()), leeway=LEEWAY)
                return dict(claims)
            except (JoseError, ValueError, TypeError, KeyError) as error:
                # A provider that changed its keys signs with one we have not seen.
                if fresh or not self._may_ask_again():
                    why = getattr(error, "description", "") or getattr(error, "error", "") or str(error)
                    raise Unauthenticated(f"the id token is not good ({why})", next=_START_AGAIN) from None
        raise AssertionError("both rounds end above")

    def _may_ask_again(self) -> bool:
        return self._keys is not None and self._clock() - self._keys[0] > _KEYS_AGAIN

    def _key_set(self, *, again: bool) -> Any:
        from joserfc.jwk import KeySet

        now = self._clock()
        if again or self._keys is None or now - self._keys[0] > _FRESH:
            self._keys = (now, KeySet.import_key_set(cast(Any, self._get(self._endpoint("jwks_uri")))))
        return self._keys[1]

    def _user_info(self, session: Any, subject: str) -> dict[str, Any]:
        if "userinfo_endpoint" not in self._described():
            return {}
        found = self._get(self._endpoint("userinfo_endpoint"), session)
        if found.get("sub") != subject:
            raise Unauthenticated("the provider's userinfo is about somebody else", next=_START_AGAIN)
        return found

    def _endpoint(self, name: str) -> str:
        address = self._described().get(name)
        if not isinstance(address, str):
            raise Unavailable("the provider does not name it", where=self.provider.issuer, wanted=name)
        return check_address(address, where=name)

    def _described(self) -> dict[str, Any]:
        now = self._clock()
        if self._metadata is None or now - self._metadata[0] > _FRESH:
            found = self._asked(f"{self.provider.issuer.rstrip('/')}/.well-known/openid-configuration", now)
            if found.get("issuer") != self.provider.issuer:
                raise Unavailable(
                    "the provider calls itself something else", where=self.provider.issuer, got=found.get("issuer"),
                    next='Write its own name as "issuer" into home.json.',
                )  # fmt: skip
            self._metadata = (now, found)
        return self._metadata[1]

    def _asked(self, url: str, now: datetime) -> dict[str, Any]:
        """What the provider says of itself, asked by one thread at a time, and not again at once when it was away.

        Anybody may come to the page that asks: a provider that is away must not take a thread of ours for each.
        """
        away = Unavailable("the provider does not answer just now", next="Try again in a moment.")
        if (self._away is not None and timedelta() <= now - self._away < _AWAY) or not self._asking.acquire(
            blocking=False
        ):
            raise away
        try:
            found = self._get(url)
            self._away = None
            return found
        except Unavailable:
            self._away = now
            raise
        finally:
            self._asking.release()

    def _get(self, url: str, session: Any = None) -> dict[str, Any]:
        try:
            # The provider's own pages need no token; userinfo needs the one that this sign-in brought.
            answer = session.get(url) if session else self._session("").get(url, withhold_token=True)
            answer.raise_for_status()
            found = answer.json()
        except _faults() as error:
            raise _said_no(error) from None
        if not isinstance(found, dict):
            raise Unavailable("the provider's answer is no JSON object", where=url)
        return found

    def _session(self, redirect: str) -> Any:
        return _library()(
            client_id=self.provider.client_id, client_secret=self.provider.client_secret, scope=self.provider.scope,
            redirect_uri=redirect, code_challenge_method="S256", default_timeout=_TIMEOUT,
        )  # fmt: skip


def welcome(conn: Connection, provider: Provider, person: Person, now: datetime) -> User:
    """Return the user whom `person` is here, added or brought up to date by their groups.

    People are known by issuer and subject only: a name or e-mail that equals a user's gives nobody that user's rights.
    Raises Refused for somebody with no place here, Unauthenticated for a disabled user.
    """
    role, teams = provider.place(person.groups)
    user = store.find_by_identity(conn, person.identity)
    if role is None and (user is None or provider.roles or provider.teams):
        raise Refused(
            f"{person.name} is nobody here: none of their groups is named in home.json",
            next="Ask an admin of this home.",
        )
    if user is None:
        assert role is not None
        name = _free_name(conn, person)
        user = store.add_user(conn, name, role, now, identity=person.identity)
        _note(conn, now, "user.added", user, {"role": role.name.lower(), "identity": person.identity})
    else:
        access.check_enabled(user)
        if (
            provider.roles
            and role is not None
            and role is not user.role
            and not _last_admin(conn, user, role)
        ):
            user = store.change_user(conn, user.name, role=role, disabled_at=None)
            _note(
                conn, now, "user.changed", user, {"role": role.name.lower(), "by": "groups of the provider"}
            )
    standing = dict(user.teams)
    for team in sorted(provider.governed_teams):
        if teams.get(team) is not standing.get(team):
            store.set_team_role(conn, team, user.name, teams.get(team))
            given = teams[team].name.lower() if team in teams else None
            _note(
                conn, now, "team.changed", user, {"team": team, "role": given, "by": "groups of the provider"}
            )
    return store.get_user(conn, user.name)


def check_address(url: str, *, where: str) -> str:
    """Return a provider's address; raises BadInput unless it is https, or http on this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return url
    if parts.scheme == "http" and is_loopback(parts.hostname or ""):
        return url
    raise BadInput("not a safe address", where=where, got=url, wanted="https://…")


def _library() -> Any:
    try:
        from authlib.integrations.requests_client import OAuth2Session
    except ModuleNotFoundError:
        raise Unavailable(
            "signing in at an OIDC provider needs authlib", next="Install it: pip install 'loopwright[oidc]'"
        ) from None
    return OAuth2Session


def _faults() -> tuple[type[Exception], ...]:
    """What authlib and requests raise when a provider does not play along."""
    from authlib.common.errors import AuthlibBaseError
    from requests import RequestException

    return AuthlibBaseError, RequestException, ValueError, KeyError


def _said_no(error: Exception) -> Unauthenticated | Unavailable:
    """What the provider's no means: an OAuth error is about this sign-in, anything else about the provider."""
    kind = getattr(error, "error", None)
    if isinstance(kind, str):
        return Unauthenticated(f"the provider said no ({kind[:60]})", next=_START_AGAIN)
    return Unavailable(
        f"the provider does not answer ({type(error).__name__})", next="Is it up, and is `issuer` right?"
    )


def _person(provider: Provider, claims: Mapping[str, Any]) -> Person:
    value: Any = claims.get(provider.claim)
    if value is None:
        value = claims
        for part in provider.claim.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    groups = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    hint = claims.get("preferred_username") or str(claims.get("email") or claims["sub"]).partition("@")[0]
    # Letters of one alphabet only: names in the audit log must not be mistaken for one another.
    name = re.sub(r"[^A-Za-z0-9._@-]", "", str(hint)).lstrip("._@-")[:48]
    return Person(f"{provider.issuer} {claims['sub']}", name or "person", frozenset(map(str, groups)))


def _free_name(conn: Connection, person: Person) -> str:
    taken = {user.name.lower() for user in store.list_users(conn)} | access.RESERVED
    if person.name.lower() not in taken:
        return access.check_user_name(person.name)
    return access.check_user_name(f"{person.name}-{digest_json(person.identity)[:8]}")


def _last_admin(conn: Connection, user: User, role: Role) -> bool:
    try:
        access.check_last_admin(store.list_users(conn), user.name, role=role, disabled=False)
    except Refused:
        return True
    return False


def _note(conn: Connection, now: datetime, action: str, user: User, payload: Mapping[str, Any]) -> None:
    ledger_store.append(
        conn, at=now, actor=SYSTEM.name, action=action, subject=f"user/{user.name}", payload=payload
    )


def _roles(document: object, where: str) -> dict[str, Role]:
    if not isinstance(document, Mapping):
        raise BadInput("not an object", where=where, got=document, wanted='{"GROUP": "approver"}')
    return {str(name): Role.parse(str(role)) for name, role in document.items()}


def _secret_in(path: Path) -> str:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise BadInput("others may read the client's secret", where=str(path), next=f"chmod 600 {path}")
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise Unavailable(
            f"cannot read the client's secret ({error.strerror or error})", where=str(path)
        ) from None
