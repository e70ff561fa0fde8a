"""Predictions over a WebSocket: each text message is a request as POST /models/MODEL/predict takes it, each answer one
message, in the order of the requests.

What is wrong with a message is said in its answer, {"error": …}; the connection stays. Several messages may be under
way at once, so that a slow model can predict them together, and no more are read while as many wait.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import msgspec

from loopwright.kernel.errors import BadInput, LoopwrightError
from loopwright.serving.engine import Call
from loopwright.serving.front import Front, Target
from loopwright.serving.http import (
    Receive,
    Reply,
    Route,
    Scope,
    Send,
    TooLarge,
    encode,
    error_reply,
    json_reply,
)
from loopwright.serving.lanes import Overloaded
from loopwright.serving.protocols.typed import Typed
from loopwright.serving.rows import MAX_ID

IN_FLIGHT = 32
"""Messages of one connection that are read and not answered yet."""

MAX_MESSAGE = 1 << 20
IDLE_SECONDS = 900.0
"""A connection without a message for so long is closed. Whether its client is alive at all, pings find out sooner."""

MAX_STREAMS = 2_000
"""Connections of one worker."""

GOING_AWAY, REFUSED = 1001, 1008
_logger = logging.getLogger("uvicorn.error")


class Stream:
    """The protocol's addresses. idle: seconds."""

    def __init__(self, front: Front, typed: Typed, *, idle: float = IDLE_SECONDS) -> None:
        self._front = front
        self._typed = typed
        self._idle = idle
        self._most = min(MAX_MESSAGE, front.bounds.body)
        self._open = 0

    def routes(self) -> Iterable[Route]:
        """Where it answers."""
        yield Route("WEBSOCKET", "/models/{model}/stream", self.talk)
        yield Route("WEBSOCKET", "/models/{model}/versions/{version}/stream", self.talk)

    async def talk(self, scope: Scope, receive: Receive, send: Send, names: Mapping[str, str]) -> None:
        """Answer messages until the client, or its silence, ends the connection."""
        await receive()  # the handshake
        peer = _Peer(scope["headers"], (scope.get("client") or ("",))[0] or "", names)
        try:
            self._asked(peer)
            if self._open >= MAX_STREAMS:
                raise Overloaded(f"{self._open} connections are open already", retry_after=1.0)
        except LoopwrightError as error:
            await _turn_away(error_reply(error), scope, send)
            return
        self._open += 1
        try:
            async with asyncio.TaskGroup() as tasks:
                await send({"type": "websocket.accept"})
                answers: _Answers = asyncio.Queue(IN_FLIGHT)
                writing = tasks.create_task(_write(answers, send))
                still_there = await self._read(receive, peer, answers, tasks)
                await answers.put(None)
                await writing
                if still_there:
                    silence = f"no message for {self._idle:g} s"
                    await send({"type": "websocket.close", "code": GOING_AWAY, "reason": silence})
        except* OSError:  # the client is gone: there is nobody to answer
            pass
        finally:
            self._open -= 1

    async def _read(
        self, receive: Receive, peer: "_Peer", answers: "_Answers", tasks: asyncio.TaskGroup
    ) -> bool:
        """Take messages until there are no more; True when the client is there and says nothing."""
        while True:
            try:
                async with asyncio.timeout(self._idle):
                    message = await receive()
            except TimeoutError:
                return True
            if message["type"] != "websocket.receive":
                return False
            # Waits while too many are under way; then nothing is read, and the client's own sending stops.
            await answers.put(tasks.create_task(self.answer(message.get("text"), peer)))

    async def answer(self, text: str | None, peer: "_Peer") -> str:
        """Return what is sent for a message; whatever is wrong with it is in there."""
        try:
            if text is None:
                raise BadInput("a binary message", where="message", wanted="a text message with JSON")
            body = text.encode()
            if len(body) > self._most:
                raise TooLarge(
                    "the message is too large", got=len(body), wanted=f"at most {self._most} bytes"
                )
            target, call = self._asked(peer)
            reply = await self._typed.answer(target, body, call)
        except LoopwrightError as error:
            reply = error_reply(error)
            reply.body = _with_id(reply, text, self._most)
        except Exception:
            # The other messages of this connection are answered all the same.
            _logger.exception("a message failed")
            reply = json_reply({"error": "Internal Server Error"}, 500)
            reply.body = _with_id(reply, text, self._most)
        assert isinstance(reply.body, bytes)
        return reply.body.decode()

    def _asked(self, peer: "_Peer") -> tuple[Target, Call]:
        # For every message anew: routes change while a connection lasts, and a caller's rate is one of requests.
        target = self._front.find(peer.names["model"], peer.names.get("version"))
        # An id of the connection would be the id of every message.
        return target, replace(self._front.call(target, peer.headers, peer.client), request_id="")


@dataclass(frozen=True, slots=True)
class _Peer:
    headers: list[tuple[bytes, bytes]]
    client: str
    names: Mapping[str, str]


_Answers = asyncio.Queue[asyncio.Task[str] | None]


async def _write(answers: "_Answers", send: Send) -> None:
    """Send answers in the order of their messages, until None. What nobody is there to read is still carried out."""
    gone = False
    while (task := await answers.get()) is not None:
        text = await task
        if not gone:
            try:
                await send({"type": "websocket.send", "text": text})
            except OSError:
                gone = True


def _with_id(reply: Reply, text: str | None, most: int) -> bytes:
    """The error's document with the id of the message it is about, where one can be made out."""
    assert isinstance(reply.body, bytes)
    if text is None or len(text) > most:
        return reply.body
    try:
        named = msgspec.json.decode(text, type=_Named).id
    except (msgspec.MsgspecError, RecursionError):
        return reply.body
    return encode({**msgspec.json.decode(reply.body), "request_id": named[:MAX_ID]}) if named else reply.body


class _Named(msgspec.Struct):
    id: str = ""


async def _turn_away(reply: Reply, scope: Scope, send: Send) -> None:
    """Answer a handshake with the error as HTTP has it, where the server can; else close."""
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": REFUSED})
        return
    headers = [(b"content-type", reply.content_type.encode()), *reply.headers]
    await send({"type": "websocket.http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": reply.body})
