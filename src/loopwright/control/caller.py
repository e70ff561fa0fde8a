"""What a request says of its sender: address, host, scheme, origin, credentials. Nothing in it is believed yet."""

import base64
import binascii
import ipaddress
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from loopwright.control import access
from loopwright.control.sessions import COOKIE
from loopwright.kernel.errors import BadInput, Refused, Unauthenticated

Scope = MutableMapping[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_ONCE = (
    "authorization",
    "host",
    "origin",
    "sec-fetch-site",
    "x-csrf-token",
    "x-loopwright-as",
    "content-type",
)
_PROXYS = frozenset({"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"})
"""Headers that proxies add, beside all that begin with x-forwarded-."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of one request. headers: by lower-case name. trusted: a proxy of ours vouches for the rest."""

    address: str
    host: str
    secure: bool
    method: str
    headers: dict[str, str]
    trusted: bool = False

    @classmethod
    def of(cls, scope: Scope, proxies: Sequence[Network] = ()) -> "Caller":
        """Read a request's head. Forwarded headers count only when the connection comes from one of `proxies`.

        Raises Unauthenticated for two Authorization headers and BadInput for another header that must stand once:
        two programs would read different ones.
        """
        headers = _read(scope["headers"])
        client = scope.get("client")
        address = str(client[0]) if client else ""
        host, secure = headers.get("host", ""), scope.get("scheme") in ("https", "wss")
        trusted = _within(address, proxies)
        if trusted:
            address = _nearest_stranger(headers.get("x-forwarded-for", ""), proxies) or address
            host = _last(headers.get("x-forwarded-host", "")) or host
            secure = secure or _last(headers.get("x-forwarded-proto", "")).lower() == "https"
        # A websocket has no method, and no page of another site may open one.
        return cls(address, host, secure, scope.get("method", "CONNECT"), headers, trusted)

    @property
    def url(self) -> str:
        """The scheme and host by which the sender knows us."""
        return f"{'https' if self.secure else 'http'}://{self.host}"

    @property
    def unsafe(self) -> bool:
        """Whether the request may change something."""
        return self.method not in SAFE

    @property
    def of_this_machine(self) -> bool:
        """Whether it came straight from this machine: a loopback address, by a loopback name, through no proxy."""
        if self.trusted or any(name in _PROXYS or name.startswith("x-forwarded-") for name in self.headers):
            return False
        return is_loopback(self.address) and is_loopback(_host_in(f"//{self.host}"))

    @property
    def follows_link(self) -> bool:
        """Whether a browser goes to a page, from wherever a person found it, and no script will read the answer."""
        return self.headers.get("sec-fetch-mode") == "navigate" and "origin" not in self.headers

    @property
    def by_person(self) -> bool:
        """Whether a browser asks for a page, which a person will look at."""
        return self.method == "GET" and "text/html" in self.headers.get("accept", "")

    def token(self) -> str | None:
        """The token in the Authorization header; raises Unauthenticated when it cannot be read."""
        given = self.headers.get("authorization")
        if given is None:
            return None
        kind, _, value = given.partition(" ")
        if kind.lower() == "bearer":
            return value
        if kind.lower() == "basic":
            try:
                return base64.b64decode(value, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                raise Unauthenticated("the Authorization header cannot be read") from None
        raise Unauthenticated("unknown kind of Authorization", got=kind, wanted="Bearer or Basic")

    def cookie(self, name: str = COOKIE) -> str | None:
        """A cookie's value. Raises Unauthenticated when it comes twice: another site of the domain may have set one."""
        parts = (part.strip().partition("=") for part in self.headers.get("cookie", "").split(";"))
        values = [value.strip('"') for key, _, value in parts if key == name]
        if len(values) > 1:
            raise Unauthenticated(
                f"the cookie {name} comes more than once", next="Clear this site's cookies."
            )
        return values[0] if values and values[0] else None

    def check_same_origin(self, *, proven: bool = False) -> None:
        """Refuse what a browser sends for another site's page; with `proven`, also what does not say for whom.

        Browsers name the page's origin with every request that is no GET, and no page can forge it.
        """
        origin, site = self.headers.get("origin"), self.headers.get("sec-fetch-site")
        foreign = origin is not None and _place_in(origin) != self.host.lower()
        if foreign or site in ("cross-site", "same-site"):
            raise Refused("a page of another site may not act here", got=origin or site)
        if proven and origin is None and site is None:
            raise Refused(
                "a change under a session must say which page it comes from", wanted="the header Origin",
                next="Programs use a token: Authorization: Bearer lw_…",
            )  # fmt: skip


def check_query(query: bytes) -> None:
    """Refuse a token in an address: proxies, logs and browsers' histories keep addresses."""
    if (b"lw_" in query or b"%" in query) and access.holds_token(unquote(query.decode("latin-1"))):
        raise Unauthenticated(
            "a token in an address is refused: addresses are logged",
            wanted="Authorization: Bearer lw_…",
            next="Revoke this one (loopwright token revoke ID) and make another.",
        )


def is_loopback(host: str) -> bool:
    """Whether `host` is a name or address of this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Read addresses and networks (10.0.0.0/8); raises BadInput for what is neither."""
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise BadInput(
                f"not an address or network ({error})", got=text, wanted="10.0.0.7 or 10.0.0.0/24"
            ) from None
    return tuple(found)


def _read(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for key, value in raw:
        name, text = key.decode("latin-1").lower(), value.decode("latin-1")
        if name not in headers:
            headers[name] = text
        elif name == "authorization":
            raise Unauthenticated("two Authorization headers", wanted="one")
        elif name in _ONCE:
            raise BadInput(f"the header {name} comes twice", wanted="once")
        else:
            headers[name] += ("; " if name == "cookie" else ", ") + text
    return headers


def _host_in(url: str) -> str:
    """The host an address names; "" for one that cannot be read."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises, too, for what is no number
        return parts.hostname or ""
    except ValueError:
        return ""


def _place_in(origin: str) -> str | None:
    """Host and port of an origin; None for one that cannot be read, or names none ("null")."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _within(address: str, networks: Sequence[Network]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in networks)


def _nearest_stranger(forwarded: str, proxies: Sequence[Network]) -> str:
    """The last address of X-Forwarded-For that no proxy of ours has; what stands before it anyone may have written."""
    chain = [part.strip() for part in forwarded.split(",") if part.strip()]
    for address in reversed(chain):
        if not _within(address, proxies):
            return address[:64]
    return ""


def _last(listed: str) -> str:
    return listed.rpartition(",")[2].strip()
