"""Lets requests in: pure ASGI, around the API and the MLflow app alike. Deny by default."""

import base64
import binascii
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from anyio import to_thread

from loopwright.control import identify
from loopwright.control.access import LOCAL
from loopwright.control.faults import explain
from loopwright.kernel.actor import SYSTEM, Actor
from loopwright.kernel.clock import Clock
from loopwright.kernel.errors import BadInput, LoopwrightError, Refused, Unauthenticated
from loopwright.ledger.engine import Ledger
from loopwright.registry.identity import current_actor

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/healthz", "/readyz"})
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_PROXYS = frozenset({"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"})
"""Headers that proxies add, beside all that begin with x-forwarded-."""


class Doorkeeper:
    """Finds out who sends a request and tells the app behind it; answers 401 or 403 itself.

    `local`: requests of this machine without a token act as `local` (admin). Such a request must come from a
    loopback address, name a loopback host and carry no proxy's header, so that neither a web page in the owner's
    browser nor a proxy in front opens the door to others. `own_token`: shown by processes that this one started.
    """

    def __init__(
        self, app: App, ledger: Ledger, clock: Clock, *, local: bool, own_token: str | None = None
    ) -> None:
        self.app = app
        self.ledger = ledger
        self.clock = clock
        self.local = local
        self.own_token = own_token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in OPEN):
            await self.app(scope, receive, send)
            return
        try:
            actor, assumed_by = await self.identify(scope)
        except LoopwrightError as error:
            await refuse(send, error, scope)
            return
        except Exception as error:
            known = explain(error)
            if known is None:
                raise
            await refuse(send, known, scope)
            return
        state = scope.setdefault("state", {})
        state["actor"], state["assumed_by"] = actor, assumed_by
        token = current_actor.set(actor)
        try:
            await self.app(scope, receive, send)
        finally:
            current_actor.reset(token)

    async def identify(self, scope: Scope) -> tuple[Actor, Actor | None]:
        """Return (who acts, who assumed that name or None); raises Unauthenticated or Refused."""
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        if scope.get("method", "GET") not in _READS:
            _same_origin(headers)
        given = headers.get("authorization")
        if given is not None:
            secret = _token_of(given)
            if self.own_token is not None and hmac.compare_digest(secret.encode(), self.own_token.encode()):
                return SYSTEM, None
            return await to_thread.run_sync(identify.by_token, self.ledger, secret, self.clock), None
        if not (self.local and _of_this_machine(scope, headers)):
            raise Unauthenticated(
                "who are you?",
                wanted="a token",
                next="Send `Authorization: Bearer lw_…`; LOOPWRIGHT_TOKEN does.",
            )
        name = headers.get(identify.AS_HEADER.lower())
        if name and name != LOCAL.name:
            return await to_thread.run_sync(identify.by_name, self.ledger, name), LOCAL
        return LOCAL, None


async def refuse(send: Send, error: LoopwrightError, scope: Scope) -> None:
    """Answer an error as JSON that both our client and MLflow's understand."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    document = error.to_json()
    if scope["path"].startswith("/mlflow"):
        code = "UNAUTHENTICATED" if error.http_status == 401 else "PERMISSION_DENIED"
        document["error_code"] = "TEMPORARILY_UNAVAILABLE" if error.http_status >= 500 else code
    body = json.dumps(document).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.http_status == 401:
        # Basic lets a browser ask for the token (as the password) to open /docs and /mlflow.
        headers += [(b"www-authenticate", b"Bearer"), (b"www-authenticate", b'Basic realm="loopwright"')]
    await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _token_of(header: str) -> str:
    kind, _, value = header.partition(" ")
    if kind.lower() == "bearer":
        return value
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            raise Unauthenticated("the Authorization header cannot be read") from None
    raise Unauthenticated("unknown kind of Authorization", got=kind, wanted="Bearer or Basic")


def _same_origin(headers: dict[str, str]) -> None:
    """Refuse a browser's request that comes from another site's page."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        raise Refused("a page of another site may not act here", got=origin)


def _of_this_machine(scope: Scope, headers: dict[str, str]) -> bool:
    if any(name in _PROXYS or name.startswith("x-forwarded-") for name in headers):
        return False
    if scope.get("http_version") == "1.0":
        return False  # nginx, unless told otherwise: no header of its own, and our own address as the host
    client = scope.get("client")
    host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    return client is not None and is_loopback(client[0]) and is_loopback(host)


def is_loopback(host: str) -> bool:
    """Whether `host` is a name or address of this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_binding(host: str, *, anyone: bool, local: bool) -> None:
    """Refuse to listen to other machines while nobody could be told apart from anybody.

    Raises Refused when `host` is no loopback address and no token exists, BadInput when local mode is wanted there.
    """
    if is_loopback(host):
        return
    if local:
        raise BadInput("local mode listens to this machine only", got=host, wanted="127.0.0.1")
    if not anyone:
        raise Refused(
            f"will not listen on {host}: there is no token yet, so nobody could get in, or everybody",
            next="First: loopwright user add NAME --role admin, then loopwright token create NAME.",
        )
