"""HTTP/1.1 as a worker speaks it: uvicorn's protocol, with a short way for inference and bounds for every connection.

A POST to a path in `App.hot` is gathered, answered and written within the callback that brought its last byte: no task,
no scope and no messages, which cost more than a small model does. Everything else, and whatever is unusual about such a
POST, goes through the ASGI application; both ways give the same answers. Answers leave in the order of their requests.
"""

import asyncio
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from loopwright.kernel.errors import LoopwrightError
from loopwright.serving.app import App
from loopwright.serving.connections import SPARE, Connections, Waiting
from loopwright.serving.engine import PLAIN
from loopwright.serving.front import Target
from loopwright.serving.http import (
    JSON,
    Busy,
    HttpError,
    Malformed,
    Reply,
    error_reply,
    too_large,
    too_slow,
)
from loopwright.serving.protocols.inference import JSON_LENGTH

BETWEEN, HEAD, BODY = 0, 1, 2
"""What the next byte belongs to."""

TURN = 32
"""Requests that one arrival of bytes may bring to the short way; others wait for their turn meanwhile."""

DROPPED = 16 << 20
"""Bytes read of what follows the last request: a client that sends before it reads is to get as far as its answer."""

_UNUSUAL = frozenset((b"expect", b"upgrade", b"content-encoding"))
_LENGTH = b"content-length"
_FRAMES = frozenset((_LENGTH, b"transfer-encoding"))
_NOTED = _UNUSUAL | {_LENGTH, JSON_LENGTH}
_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_PLAIN_HEAD = _LINES[200] + f"content-type: {JSON}\r\ncontent-length: ".encode()
_FAILED = Reply(500, b"Internal Server Error", "text/plain; charset=utf-8", [(b"connection", b"close")])


class _Over(Exception):
    """Nothing more is read of this connection: ends the parser's run."""


class _Awaited:
    """A request on the short way whose answer is not there yet, with what uvicorn asks of its own requests."""

    __slots__ = ("disconnected", "keep_alive", "message_event", "response_complete")

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.response_complete = self.disconnected = False
        self.message_event = _UNHEARD


_UNHEARD = asyncio.Event()


class _Parting:
    """The transport of an ASGI request: to close it is to part, so that the client gets its answer."""

    __slots__ = ("_protocol", "close")

    def __init__(self, protocol: "HotProtocol") -> None:
        self._protocol = protocol
        self.close = protocol.part

    def write(self, data: bytes) -> None:
        if not self._protocol.gone:
            self._protocol.transport.write(data)

    def is_closing(self) -> bool:
        return self._protocol.gone or self._protocol.transport.is_closing()


class _Resumed:
    """Hears a parser in a protocol's place, all but the first head, which the protocol has heard already."""

    def __init__(self, protocol: "HotProtocol") -> None:
        self._protocol = protocol
        self._heard = True
        self.on_body = protocol.on_body

    def on_message_begin(self) -> None:
        if not self._heard:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._heard:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._heard:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self._heard:
            self._protocol.on_headers_complete()
        self._heard = False

    def on_message_complete(self) -> None:
        self._protocol.on_message_complete()


class HotProtocol(HttpToolsProtocol):
    """One connection of a worker. The ASGI cycle and WebSockets are uvicorn's; nearly all callbacks are not."""

    def __init__(
        self,
        app: App,
        connections: Connections,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._site = app
        self._all = connections
        self._place: Waiting | None = None
        self._last = False
        """No further request is read."""
        self.gone = False
        """The last answer is written, or none will be."""
        self._eof = False
        self._finishing = False
        """The next answer is the last."""
        self._refusal: Reply | None = None
        """What is said once all requests before it are answered."""
        # The request being read.
        self._stage = BETWEEN
        self._turn = 0
        """Requests read whole since bytes came last."""
        self._received = self._seen = 0
        """About how many bytes of it came, and how many of its body."""
        self._usual = True
        self._length: bytes | None = None
        self._json_length: str | None = None
        self._skipping = False
        """It was answered before it was whole."""
        self._upgrades = False
        """It begins a WebSocket."""
        self._framing: bytes | None = None
        """The lines that frame a body which the parser does not take for one."""
        self._target: Target | None = None
        """Set while it takes the short way."""
        self._call = PLAIN
        self._body: bytes | bytearray = b""
        self._held = 0

    # The connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._peer = self.client[0] if self.client else ""
        over = len(self.connections) - self._all.limits.connections
        if over <= 0 or self._all.make_room(self.loop.time()):
            self._move(self._all.idle)
        elif over <= SPARE:
            self._stage = HEAD  # something is on its way
            self._refuse(Busy("all connections of this server are at work", retry_after=1.0))
        else:
            self.cut()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._last = self.gone = True
        self._release()
        self._all.forget(self)

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that will say no more still gets the answers to what it said."""
        if self.gone or self._stage != BETWEEN or not self._busy():
            return False
        self._last = self._eof = True
        self.cycle.keep_alive = False
        return True

    def data_received(self, data: bytes) -> None:
        if self._last:
            self._received += len(data)
            if (self._busy() and not self.gone) or self._received > DROPPED:
                self.flow.pause_reading()
            return
        self._turn = 0
        self._received = len(data) + (self._received if self._stage != BETWEEN else 0)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._upgrades:
                self._all.forget(self)
                self.handle_websocket_upgrade()
                return
            self._decline(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            if not self._last:
                self._refuse(Malformed(f"not HTTP/1.1 ({error})"))
        if self._stage != BETWEEN or self._place is not self._all.idle or self.cycle is not None:
            self._settle()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._all.stalled(self, self.loop.time())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._all.reads(self)

    def shutdown(self) -> None:
        """Called when the server stops: a request that was begun is answered."""
        if self._busy() and not self.gone:
            self.cycle.keep_alive = False
        elif self._stage == BETWEEN or self._skipping or self.gone:
            self.transport.close()
        else:
            self._finishing = True

    def part(self) -> None:
        """End the connection once the client has its answers.

        While it may still be sending, only our side is closed at first: closing on bytes that nobody has read makes the
        kernel take back what the client has not received yet.
        """
        if self.gone or self.transport.is_closing():
            return
        self._last = self.gone = True
        self._received = 0
        self._release()
        self._move(self._all.parting)
        if self._eof or (self._stage == BETWEEN and not self.parser.should_keep_alive()):
            self.transport.close()
            return
        self.flow.resume_reading()
        self.transport.write_eof()

    # What is overdue; see `Connections`.

    def rested(self) -> None:
        self.part()

    def head_late(self) -> None:
        seconds = self._all.limits.head_seconds
        self._refuse(HttpError(408, "the head came too slowly", wanted=f"all of it within {seconds:g} s"))

    def body_late(self) -> None:
        if self._skipping or self._target is None:
            self.part()
        else:
            self._answer_early(error_reply(too_slow(self._all.limits.body_seconds)))

    def parted(self) -> None:
        if not self.unread():
            self.cut()
            return
        self._all.stalled(self, self.loop.time())
        self._move(self._all.parting)

    def unread(self) -> int:
        return int(self.transport.get_write_buffer_size())

    def cut(self) -> None:
        self._last = self.gone = True
        self.transport.abort()

    # A request, as the parser reads it.

    def on_message_begin(self) -> None:
        if self._last:
            raise _Over
        self._stage = HEAD
        self._seen = 0
        if self._turn:  # some of these bytes were another's, nobody knows how many
            self._received = 0
        self.url = b""
        self.headers = []
        self._usual = True
        self._length = self._json_length = None
        self._skipping = False

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _NOTED:
            if name == _LENGTH:
                self._length = value
            elif name == JSON_LENGTH:
                self._json_length = self._json_length or value.decode("latin-1")
            else:
                self._usual = False
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._stage = BODY
        headers, self.headers = self.headers, []  # what a chunked body's trailer says is no header
        self._check_head(headers)
        cycle = self.cycle
        if (
            self._usual
            and (target := self._site.by_path.get(self.url)) is not None
            and (cycle is None or cycle.response_complete)
            and self._turn < TURN
            and not self.flow.write_paused
            and self.parser.get_method() == b"POST"
        ):
            try:
                self._call = self._site.front.call(target, headers, self._peer)
                if self._length is not None and int(self._length) > self._site.bounds.body:
                    raise too_large(int(self._length), self._site.bounds.body)
            except LoopwrightError as error:
                self._answer_early(error_reply(error))
            else:
                self._target = target
        else:
            self._by_asgi(headers)

    def on_body(self, body: bytes) -> None:
        seen = self._seen = self._seen + len(body)
        if self._target is None:
            if self._last:
                raise _Over
            if not self._skipping:
                super().on_body(body)
            return
        if seen == len(body):
            self._body = body
        else:
            if type(self._body) is bytes:
                self._body = bytearray(self._body)
            self._body += body
        if seen > self._site.bounds.body:
            self._answer_early(error_reply(too_large(seen, self._site.bounds.body)))

    def on_message_complete(self) -> None:
        self._stage = BETWEEN
        self._turn += 1
        self._received = 0
        target = self._target
        if target is None:
            if self._framing is not None:
                self._stage = BODY
            elif not (self._skipping or self._upgrades):
                super().on_message_complete()
                if self.cycle is not None and not self.cycle.keep_alive:
                    self._last = True
            return
        body, self._body, self._target = bytes(self._body), b"", None
        if self._held:
            self._release()
        keep_alive = self._keeps_alive()
        try:
            begun = self._site.inference.start(target, body, self._json_length, self._call)
        except Exception as error:  # noqa: BLE001 - every request is answered; what is no client's mistake is logged
            begun = self._told(error)
        if type(begun) is Reply:
            self._write(begun, keep_alive)
            self.server_state.total_requests += 1
        else:
            self._await(cast(Coroutine[Any, Any, Reply], begun), keep_alive)

    def _check_head(self, headers: list[tuple[bytes, bytes]]) -> None:
        limits = self._all.limits
        if self._received > limits.head:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in headers)
            if size > limits.head:
                self._refuse(_large_head(f"{size} bytes", f"{limits.head} bytes"))
                raise _Over
        if len(headers) > limits.fields:
            self._refuse(_large_head(f"{len(headers)} headers", f"{limits.fields} headers"))
            raise _Over

    # Answers.

    def on_response_complete(self) -> None:
        """An answer that had to be waited for has been written."""
        self.server_state.total_requests += 1
        if self.gone or self.transport.is_closing():
            return
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self._refusal is not None:
            self._write(self._refusal, False)
        else:
            self.flow.resume_reading()
        self._settle()

    def _by_asgi(self, headers: list[tuple[bytes, bytes]]) -> None:
        url = self.url
        super().on_message_begin()
        self.url = url
        self.headers.extend(headers)
        self.expect_100_continue = (b"expect", b"100-continue") in (
            (name, value.lower()) for name, value in headers
        )
        super().on_headers_complete()
        offered = self.parser.should_upgrade()
        self._upgrades = offered and self._should_upgrade()  # which looks at the headers
        self.headers = []
        if self._upgrades:
            return
        if offered:
            fields = [field for field in headers if field[0] in _FRAMES]
            self._framing = b"".join(b"%b: %b\r\n" % field for field in fields) or None
        cycle = self.cycle
        cycle.transport = cast(asyncio.Transport, _Parting(self))
        if self._finishing or len(self.pipeline) >= self._all.limits.pipelined:
            cycle.keep_alive = False

    def _decline(self, rest: bytes) -> None:
        """Go on with HTTP/1.1 where another protocol was offered.

        The parser takes what follows such a head for the other protocol's, also the request's own body (Java's client
        offers HTTP/2 with its first POST): another parser is given the framing again, and then the body.
        """
        framing, self._framing = self._framing, None
        if framing is not None:
            self.parser = httptools.HttpRequestParser(_Resumed(self))
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % framing)
        if rest:
            self.data_received(rest)
        else:
            self._settle()

    def _await(self, begun: Coroutine[Any, Any, Reply], keep_alive: bool) -> None:
        waiting = _Awaited(keep_alive)
        self.cycle = cast(RequestResponseCycle, waiting)
        self._last = not keep_alive
        task = self.loop.create_task(self._later(begun, waiting))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    async def _later(self, begun: Coroutine[Any, Any, Reply], waiting: _Awaited) -> None:
        try:
            reply = await begun
        except Exception as error:  # noqa: BLE001 - as in on_message_complete
            reply = self._told(error)
        if self.flow.write_paused and not waiting.disconnected:
            await self.flow.drain()
        if waiting.disconnected or self.gone:
            self._site.count(reply.status)
            return
        waiting.response_complete = True
        self._write(reply, waiting.keep_alive)
        self.on_response_complete()

    def _told(self, error: Exception) -> Reply:
        if isinstance(error, LoopwrightError):
            return error_reply(error)
        self.logger.error("an inference request failed", exc_info=error)
        return _FAILED

    def _answer_early(self, reply: Reply) -> None:
        """Answer a request before it is whole; what is left of it is read and dropped."""
        self._skipping, self._target, self._body = True, None, b""
        self._release()
        self._write(reply, self._keeps_alive())
        self.server_state.total_requests += 1

    def _refuse(self, error: LoopwrightError) -> None:
        """Read no more, and say why after all answers that are due."""
        self._last = True
        self._target, self._body = None, b""
        self._release()
        reply = error_reply(error)
        cycle = self.cycle
        if not self._busy():
            self._write(reply, False)
        elif self._stage != BODY or self._skipping or not isinstance(cycle, RequestResponseCycle):
            self._refusal = reply
        elif self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()
            self._refusal = reply
        else:  # what is wrong is the body that the application is waiting for
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.cut()
            else:
                self._write(reply, False)

    def _write(self, reply: Reply, keep_alive: bool) -> None:
        """Send an answer, with the bytes that App.send gives by way of uvicorn."""
        body = reply.body
        assert isinstance(body, bytes)
        self._site.count(reply.status)
        always = self.server_state.default_headers
        if (
            keep_alive
            and reply.status == 200
            and reply.content_type == JSON
            and not (reply.headers or always)
        ):
            self.transport.write(b"%b%d\r\n\r\n%b" % (_PLAIN_HEAD, len(body), body))
            self._move(self._all.idle)
            return
        fields = [*always, (b"content-type", reply.content_type.encode()), *reply.headers]
        fields.append((b"content-length", b"%d" % len(body)))
        closing = any(name == b"connection" and value.lower() == b"close" for name, value in fields)
        if not keep_alive and not closing:
            fields.append((b"connection", b"close"))
        lines = [b"%b: %b\r\n" % field for field in fields]
        self.transport.write(b"".join((_LINES[reply.status], *lines, b"\r\n", body)))
        if keep_alive and not closing:
            self._move(self._all.idle)
        else:
            self.part()

    def _keeps_alive(self) -> bool:
        parser = self.parser
        return parser.should_keep_alive() and parser.get_http_version() != "1.0" and not self._finishing

    def _busy(self) -> bool:
        """Whether an answer is due to a request that was read."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete

    # Where it stands among all connections.

    def _settle(self) -> None:
        """See where the connection belongs after bytes came or an answer left, and how much it has brought."""
        if self.gone:
            return
        connections, stage = self._all, self._stage
        if stage == HEAD:
            place: Waiting | None = connections.heads
            if self._received > 2 * connections.limits.head:
                self._refuse(_large_head(f"{self._received} bytes", f"{connections.limits.head} bytes"))
                return
        elif stage == BODY:
            short = self._target is not None or self._skipping
            place = connections.bodies if short or not self._busy() else None
            # The size of a chunk may be told in more bytes than the chunk has, and a trailer has no end.
            if self._received > 2 * connections.limits.head + 16 * self._seen:
                self._refuse(Malformed("the chunks of the body are mostly something else than body"))
                return
            if self._target is not None:
                self._hold()
        else:
            place = None if self._busy() else connections.idle
        if place is not self._place:
            self._move(place)

    def _move(self, place: Waiting | None) -> None:
        if self._place is not None:
            self._place.pop(self, None)
        self._place = place
        if place is not None:
            place[self] = self.loop.time()

    def _hold(self) -> None:
        more = len(self._body) - self._held
        try:
            self._site.budget.take(more)
        except HttpError as error:
            self._answer_early(error_reply(error))
        else:
            self._held += more

    def _release(self) -> None:
        self._site.budget.give(self._held)
        self._held = 0


def _large_head(got: str, most: str) -> HttpError:
    return HttpError(431, "the head of the request is too large", got=got, wanted=f"at most {most}")
