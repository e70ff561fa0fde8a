"""Lets requests in: pure ASGI, around the API and the MLflow app alike. Deny by default."""

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote

from anyio import to_thread

from loopwright.control import identify
from loopwright.control.access import LOCAL, holds_token, redacted
from loopwright.control.caller import Caller, Network, check_query, is_loopback
from loopwright.control.denials import Denial, Denials
from loopwright.control.faults import explain
from loopwright.control.limits import API_BODY, EVENTS_BODY, SIGN_IN_BODY, Limits
from loopwright.control.sessions import CSRF_HEADER, check_csrf
from loopwright.kernel.actor import SYSTEM, Actor, Role, require
from loopwright.kernel.clock import Clock
from loopwright.kernel.errors import BadInput, Lapsed, LoopwrightError, Refused, TooMany, Unauthenticated
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger
from loopwright.registry.identity import current_actor

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PROBES = frozenset({"/healthz", "/readyz"})
SIGN_IN = frozenset({"/login", "/login/oidc", "/auth/callback", "/logout"})
"""Where people without a session may come: the pages that make and end one."""
_ASSUMED_ANEW = timedelta(minutes=1)


class Doorkeeper:
    """Finds out who sends a request and tells the app behind it; answers 401, 403, 413 and 429 itself.

    `local`: requests of this machine without a token act as `local` (admin). Such a request must come from a
    loopback address, name a loopback host and carry no proxy's header, so that neither a web page in the owner's
    browser nor a proxy in front opens the door to others. `own_token`: shown by processes that this one started.
    `proxies`: whose forwarded headers count.
    """

    def __init__(
        self,
        app: App,
        ledger: Ledger,
        clock: Clock,
        *,
        local: bool,
        limits: Limits,
        denials: Denials,
        own_token: str | None = None,
        proxies: Sequence[Network] = (),
    ) -> None:
        self.app = app
        self.ledger = ledger
        self.clock = clock
        self.local = local
        self.own_token = own_token
        self.limits = limits
        self.denials = denials
        self.proxies = tuple(proxies)
        self._assumed: dict[str, datetime] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in PROBES):
            await self.app(scope, receive, send)
            return
        door = _Passage(scope, receive, send, self.denials)
        try:
            caller = Caller.of(scope, self.proxies)
            door.address = caller.address
            check_query(scope.get("query_string", b""))
            if scope["path"] in SIGN_IN:
                # Whoever signs in has no session whose token they could send: their page's origin must speak for it.
                if caller.unsafe:
                    caller.check_same_origin(proven=True)
                scope.setdefault("state", {})["caller"] = caller
                await door.run(self.app)
                return
            actor, assumed_by = await self.identify(scope, caller)
            door.actor = actor
            await self._check(scope, caller, actor, assumed_by)
            counted = actor not in (SYSTEM, LOCAL)
            if counted:
                self.limits.begin(actor.name)
        except LoopwrightError as error:
            await self._turn_away(door, error)
            return
        except Exception as error:
            known = explain(error)
            if known is None:
                raise
            await self._turn_away(door, known)
            return
        state = scope.setdefault("state", {})
        state["actor"], state["assumed_by"], state["caller"] = actor, assumed_by, caller
        token = current_actor.set(actor)
        try:
            await door.run(self.app)
        finally:
            current_actor.reset(token)
            if counted:
                self.limits.end(actor.name)

    async def identify(self, scope: Scope, caller: Caller | None = None) -> tuple[Actor, Actor | None]:
        """Return (who acts, who assumed that name or None).

        A token in the Authorization header comes before a session's cookie, and that before being on this machine.
        Raises Unauthenticated, Refused for a change without proof of its origin, TooMany after too many wrong tokens.
        """
        caller = caller or Caller.of(scope, self.proxies)
        if caller.unsafe:
            caller.check_same_origin()
        secret = caller.token()
        if secret is not None:
            if self.own_token is not None and hmac.compare_digest(secret.encode(), self.own_token.encode()):
                return SYSTEM, None
            return await self._known(identify.by_token, secret, caller), None
        if _below(scope, "/api") or not caller.follows_link:
            # No script of another site's page has a question for us, and some answers take work: running kept code,
            # say. MLflow's own rules would let any page of this machine read along.
            caller.check_same_origin()
        cookie = caller.cookie()
        if cookie is not None:
            actor, session = await self._known(identify.by_session, cookie, caller)
            if caller.unsafe and _below(scope, "/mlflow"):
                # MLflow's own pages cannot send our header: that the page is ours must be proven by the browser.
                caller.check_same_origin(proven=True)
            elif caller.unsafe:
                check_csrf(session, caller.headers.get(CSRF_HEADER))
            return actor, None
        # HTTP/1.0 is nginx unless told otherwise: no header of its own, and our own address as the host.
        if not (self.local and caller.of_this_machine and scope.get("http_version") != "1.0"):
            raise Unauthenticated(
                "who are you?",
                wanted="a token",
                next="Send `Authorization: Bearer lw_…`; LOOPWRIGHT_TOKEN does. With a browser: /login.",
            )
        name = caller.headers.get(identify.AS_HEADER.lower())
        if name and name != LOCAL.name:
            return await to_thread.run_sync(identify.by_name, self.ledger, name), LOCAL
        return LOCAL, None

    async def _known(self, find: Callable[..., Any], credential: str, caller: Caller) -> Any:
        self.limits.check_address(caller.address, credential)
        try:
            found = await to_thread.run_sync(find, self.ledger, credential, self.clock)
        except Lapsed:
            raise  # an old page that still asks is no attack, and must not keep its owner from signing in again
        except Unauthenticated:
            self.limits.note_failure(caller.address)
            raise
        self.limits.note_success(credential)
        return found

    async def _check(self, scope: Scope, caller: Caller, actor: Actor, assumed_by: Actor | None) -> None:
        if actor not in (SYSTEM, LOCAL):
            self.limits.count_request(actor.name)
        if not (_below(scope, "/api") or _below(scope, "/mlflow")):
            # Operations and MLflow's routes name a role of their own.
            require(actor, Role.VIEWER, f"look at {scope['path']}")
        if assumed_by is not None and caller.unsafe and _below(scope, "/mlflow"):
            # Operations write this row themselves.
            await to_thread.run_sync(self._note_assumed, actor, assumed_by)

    def _note_assumed(self, actor: Actor, by: Actor) -> None:
        now, last = self.clock(), self._assumed.get(actor.name)
        # Once a minute and name: a training run logs a thousand numbers.
        if last is not None and timedelta() <= now - last < _ASSUMED_ANEW:
            return
        with self.ledger.write() as conn:
            ledger_store.append(
                conn,
                at=now,
                actor=by.name,
                action="user.assumed",
                subject=actor.name,
                payload={"through": "mlflow"},
            )
        self._assumed[actor.name] = now

    async def _turn_away(self, door: "_Passage", error: LoopwrightError) -> None:
        caller_wants_page = isinstance(error, Unauthenticated) and door.wants_page
        if caller_wants_page and door.scope["type"] == "http":
            door.note(error.http_status, error.what)
            place = door.scope["path"] + (f"?{query}" if (query := _query(door.scope)) else "")
            # An address with a token in it is refused at the sign-in page, too.
            after = "" if holds_token(unquote(unquote(place))) else f"?next={quote(place, safe='')}"
            await _redirect(door.send, f"/login{after}")
            return
        await refuse(door.give, error, door.scope)


class _Passage:
    """One request on its way through: its body is counted, and what turns it away is noted."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, denials: Denials) -> None:
        self.scope, self.receive, self.send, self.denials = scope, receive, send, denials
        self.actor: Actor | None = None
        self.address = ""
        self.limit = _body_limit(scope)
        self._seen = 0
        self._too_large = False
        self._status = 0
        self._body = b""

    @property
    def wants_page(self) -> bool:
        """Whether a person waits for a page, who can be sent to sign in."""
        accepted = any(name == b"accept" and b"text/html" in value for name, value in self.scope["headers"])
        asked = any(name == b"authorization" for name, _ in self.scope["headers"])
        return self.scope.get("method") == "GET" and accepted and not asked

    async def run(self, app: App) -> None:
        declared = _declared(self.scope)
        if self.limit is not None and declared > self.limit:
            await self._refuse_size()
            return
        try:
            await app(self.scope, self._take, self.give)
        except _TooLarge:
            await self._refuse_size()

    async def _take(self) -> Message:
        message = await self.receive()
        self._seen += len(message.get("body", b""))
        if self.limit is not None and self._seen > self.limit:
            self._too_large = True
            raise _TooLarge
        return message

    async def give(self, message: Message) -> None:
        """Send on what the app answers; a refusal's reason is read from its body."""
        if self._too_large:
            if self._status == 0:
                await self._refuse_size()
            return
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif message["type"] == "http.response.body" and self._status in (401, 403, 429):
            if len(self._body) < 4096:
                self._body += message.get("body", b"")
            if not message.get("more_body"):
                # The sign-in pages answer people, and tell us apart what was wrong.
                self.note(self._status, self.scope.get("state", {}).get("why") or _reason(self._body))
        await self.send(message)

    def note(self, status: int, why: str) -> None:
        """Have it written down that this request was turned away."""
        actor = self.actor.name if self.actor is not None else "nobody"
        act = f"{self.scope.get('method', self.scope['type'])} {redacted(self.scope['path'])[:160]}"
        self.denials.note(Denial(actor, act, why[:200], status, self.address))

    async def _refuse_size(self) -> None:
        if self._status == 0:
            self._status = 413
            error = BadInput(
                "too large", where=self.scope["path"][:160], wanted=f"at most {self.limit} bytes"
            )
            await refuse(self.send, error, self.scope, status=413)


class _TooLarge(Exception):
    """The body grew past its limit; what the app answers is dropped."""


async def refuse(send: Send, error: LoopwrightError, scope: Scope, *, status: int | None = None) -> None:
    """Answer an error as JSON that both our client and MLflow's understand."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    status = status or error.http_status
    document = error.to_json()
    if _below(scope, "/mlflow"):
        document["error_code"] = _MLFLOW_CODES.get(
            status, "TEMPORARILY_UNAVAILABLE" if status >= 500 else "INVALID_PARAMETER_VALUE"
        )
    body = json.dumps(document).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in extra_headers(error).items()]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
        if not any(name == b"sec-fetch-mode" for name, _ in scope["headers"]):
            # For programs that ask for a name and a password (the token). Browsers of today, which say how they
            # fetch, have /login; a script's 401 must not open their password window.
            headers.append((b"www-authenticate", b'Basic realm="loopwright"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


_MLFLOW_CODES = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 429: "REQUEST_LIMIT_EXCEEDED"}


def extra_headers(error: LoopwrightError) -> dict[str, str]:
    """Headers that belong to an error beside its body."""
    return {"Retry-After": f"{error.retry_after:.0f}"} if isinstance(error, TooMany) else {}


async def _redirect(send: Send, place: str) -> None:
    headers = [(b"location", place.encode()), (b"content-length", b"0"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _below(scope: Scope, place: str) -> bool:
    path: str = scope["path"]
    return path == place or path.startswith(f"{place}/")


def _body_limit(scope: Scope) -> int | None:
    if _below(scope, "/mlflow"):
        return None  # its guard knows which of its routes take files
    if scope["path"] in SIGN_IN:
        return SIGN_IN_BODY
    return EVENTS_BODY if scope["path"] == "/api/v1/events" else API_BODY


def _declared(scope: Scope) -> int:
    lengths = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    return max((int(value) for value in lengths if value.isdigit()), default=0)


def _query(scope: Scope) -> str:
    text: str = scope.get("query_string", b"").decode("latin-1")
    return text


def _reason(body: bytes) -> str:
    try:
        document = json.loads(body)
        return str(document.get("what") or document.get("message") or "")
    except (ValueError, AttributeError):
        return ""


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
