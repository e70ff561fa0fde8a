"""What the protocol files share: a request whose body is bounded, a reply, routes, and the errors only HTTP has."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import msgspec

from loopwright.kernel.errors import LoopwrightError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = "application/json"
encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one request may bring. body: bytes; body_seconds: how long a client may take to send it.

    stream: bytes of a whole bulk request, which is read and answered in parts. unfinished: bytes of all bodies together
    that have not come whole yet.
    """

    body: int = 8 << 20
    rows: int = 10_000
    body_seconds: float = 30.0
    stream: int = 1 << 30
    unfinished: int = 256 << 20


class HttpError(LoopwrightError):
    """A request that reached no model: unknown path, wrong method, a body too slow."""

    def __init__(self, status: int, what: str, **fields: Any) -> None:
        super().__init__(what, **fields)
        self.status = status


class Malformed(LoopwrightError):
    """The body is not of the format it says it is."""

    http_status = 400


class TooLarge(LoopwrightError):
    """More bytes or rows than one request may bring."""

    http_status = 413


class Busy(HttpError):
    """The process has no room for one more. `retry_after`: seconds."""

    def __init__(self, what: str, *, retry_after: float) -> None:
        super().__init__(503, what, next="Send it again after a pause, or to another server.")
        self.retry_after = retry_after


class Budget:
    """Bytes of bodies that have not come whole yet, over all requests of a process: each may be within its bound, and
    ten thousand of them be more than there is memory."""

    __slots__ = ("left",)

    def __init__(self, most: int) -> None:
        self.left = most

    def take(self, bytes: int) -> None:
        """Raise Busy, and take nothing, when there is not so much left."""
        if bytes > self.left:
            raise Busy("too many large bodies are on their way", retry_after=1.0)
        self.left -= bytes

    def give(self, bytes: int) -> None:
        """Give back what was taken."""
        self.left += bytes


class ClientGone(Exception):
    """The client went away before its request was whole; there is nobody to answer."""


class Request:
    """One HTTP request. Its body is read once, by `body` or by `chunks`."""

    __slots__ = ("_budget", "_receive", "bounds", "headers", "scope")

    def __init__(self, scope: Scope, receive: Receive, bounds: Bounds, budget: Budget | None = None) -> None:
        self.scope = scope
        self.bounds = bounds
        self._budget = budget or Budget(bounds.unfinished)
        self.headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
        self._receive = receive

    @property
    def method(self) -> str:
        """GET, POST …"""
        method: str = self.scope["method"]
        return method

    @property
    def path(self) -> str:
        """Decoded, without the query."""
        path: str = self.scope["path"]
        return path

    @property
    def client(self) -> str:
        """The address of the peer; "" when it is not known."""
        return (self.scope.get("client") or ("",))[0] or ""

    def header(self, name: bytes) -> str | None:
        """The first header of this name (lower case), or None."""
        return next((value.decode("latin-1") for given, value in self.headers if given == name), None)

    @property
    def content_type(self) -> str:
        """The media type without parameters, in lower case; "" when none is given."""
        return (self.header(b"content-type") or "").partition(";")[0].strip().lower()

    async def body(self) -> bytes:
        """The whole body. Raises TooLarge, HttpError (408: too slow, 415: compressed), Busy, ClientGone."""
        self._check_encoding()
        self._check_length(self.bounds.body)
        parts = bytearray()
        try:
            # From the first byte on: a client that sends a head and nothing more would be waited for without end.
            async with asyncio.timeout(self.bounds.body_seconds):
                message = await self._receive()
                if message["type"] == "http.request" and not message.get("more_body"):
                    body: bytes = message.get("body", b"")
                    if len(body) > self.bounds.body:  # a chunked body that came at once names no length
                        raise too_large(len(body), self.bounds.body)
                    return body
                while True:
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    part = message.get("body", b"")
                    if len(parts) + len(part) > self.bounds.body:
                        raise too_large(len(parts) + len(part), self.bounds.body)
                    self._budget.take(len(part))
                    parts += part
                    if not message.get("more_body"):
                        return bytes(parts)
                    message = await self._receive()
        except TimeoutError:
            raise too_slow(self.bounds.body_seconds) from None
        finally:
            self._budget.give(len(parts))

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, at most `bounds.stream` bytes, each part in `bounds.body_seconds`. Raises as `body`."""
        self._check_encoding()
        self._check_length(self.bounds.stream)
        total = 0
        while True:
            try:
                async with asyncio.timeout(self.bounds.body_seconds):
                    message = await self._receive()
            except TimeoutError:
                raise too_slow(self.bounds.body_seconds) from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            part: bytes = message.get("body", b"")
            total += len(part)
            if total > self.bounds.stream:
                raise too_large(total, self.bounds.stream)
            if part:
                yield part
            if not message.get("more_body"):
                return

    def _check_encoding(self) -> None:
        encoding = self.header(b"content-encoding")
        if encoding not in (None, "identity"):
            raise HttpError(415, "compressed bodies are not read", got=encoding, wanted="identity")

    def _check_length(self, limit: int) -> None:
        length = self.header(b"content-length")
        if length is not None and length.isdecimal() and int(length) > limit:
            raise too_large(int(length), limit)


def too_large(got: int, limit: int) -> TooLarge:
    """The error for a body beyond its bound."""
    return TooLarge("the body is too large", got=got, wanted=f"at most {limit} bytes")


def too_slow(seconds: float) -> HttpError:
    """The error for a body that does not come."""
    return HttpError(408, "the body came too slowly", wanted=f"all of it within {seconds:g} s")


@dataclass(slots=True)
class Reply:
    """An answer. A body that is an iterator is sent in parts as they come."""

    status: int
    body: bytes | AsyncIterator[bytes]
    content_type: str = JSON
    headers: Headers = field(default_factory=list)


def json_reply(document: Any, status: int = 200) -> Reply:
    """An answer in JSON."""
    return Reply(status, encode(document))


def error_reply(error: LoopwrightError) -> Reply:
    """What a caller is told: {"error": one paragraph, "where"?: the place in the request}."""
    status = error.status if isinstance(error, HttpError) else error.http_status
    body: dict[str, Any] = {"error": str(error)}
    if error.where and status in (400, 413, 422):
        body["where"] = error.where
    reply = json_reply(body, status)
    pause = getattr(error, "retry_after", None)
    if pause is not None:
        reply.headers.append((b"retry-after", b"%d" % max(1, ceil(pause))))
    if status in (408, 413):
        # The rest of such a body is not worth reading.
        reply.headers.append((b"connection", b"close"))
    if status == 401:
        reply.headers.append((b"www-authenticate", b"Bearer"))
    return reply


Handler = Callable[[Request, Mapping[str, str]], Awaitable[Reply]]
"""Answers a request; the second argument holds the values of the template's names."""

Socket = Callable[[Scope, Receive, Send, Mapping[str, str]], Awaitable[None]]
"""Talks over a WebSocket until it is closed."""


@dataclass(frozen=True, slots=True)
class Route:
    """A place a protocol answers at. template: "/models/{model}/predict"; method "WEBSOCKET" takes a `Socket`."""

    method: str
    template: str
    handler: Any


class Router:
    """Finds the handler of a path. Templates are matched segment by segment; a name takes one segment, never empty."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._by_length: dict[int, list[tuple[tuple[str, ...], dict[str, Any]]]] = {}
        for route in routes:
            parts = tuple(route.template.strip("/").split("/"))
            level = self._by_length.setdefault(len(parts), [])
            found = next((handlers for known, handlers in level if known == parts), None)
            if found is None:
                found = {}
                level.append((parts, found))
                # Plain segments before names, so that the narrower template is met first.
                level.sort(key=lambda entry: [part.startswith("{") for part in entry[0]])
            found[route.method] = route.handler

    def find(self, path: str) -> tuple[Mapping[str, Any], dict[str, str]] | None:
        """Return handlers by method and the names' values; None where nothing answers."""
        given = path.strip("/").split("/")
        for parts, handlers in self._by_length.get(len(given), ()):
            names = {}
            for part, value in zip(parts, given, strict=True):
                if part.startswith("{"):
                    if not value:
                        break
                    names[part[1:-1]] = value
                elif part != value:
                    break
            else:
                return handlers, names
        return None
