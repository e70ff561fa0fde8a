"""A worker's HTTP protocol over real sockets, with the worker's inside and the clients on one event loop."""

import asyncio
import json
import socket
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import httptools
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from loopwright.serving.app import App
from loopwright.serving.connections import Connections, Limits
from loopwright.serving.hot import HotProtocol

T = TypeVar("T")
SECONDS = 10.0


@dataclass
class Said:
    """One answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _Reader:
    def __init__(self) -> None:
        self.answers: list[Said] = []
        self.now = Said()
        self.parser = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        self.now = Said()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.now.headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.now.body += body

    def on_message_complete(self) -> None:
        self.now.status = self.parser.get_status_code()
        if self.now.status != 100:
            self.answers.append(self.now)


class Client:
    """One connection to a `Wire`."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.end = end
        self.raw = b""
        self.ended = False
        self._reader = _Reader()
        self._taken = 0

    async def send(self, *parts: bytes) -> None:
        """Send parts, each arriving by itself."""
        loop = asyncio.get_running_loop()
        for part in parts:
            try:
                await loop.sock_sendall(self.end, part)
            except (BrokenPipeError, ConnectionResetError):
                return
            for _ in range(3):
                await asyncio.sleep(0)

    async def answers(self, count: int) -> list[Said]:
        """The next `count` answers, or as many as come before the connection ends."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(SECONDS):
            while len(self._reader.answers) < self._taken + count and not self.ended:
                try:
                    data = await loop.sock_recv(self.end, 1 << 16)
                except ConnectionResetError:
                    data = b""
                self.raw += data
                self.ended = not data
                if data:
                    self._reader.parser.feed_data(data)
        said = self._reader.answers[self._taken : self._taken + count]
        self._taken += len(said)
        return said

    async def answer(self) -> Said:
        """The next answer."""
        (said,) = await self.answers(1)
        return said

    async def end_of_answers(self) -> bool:
        """Whether the server ends the connection without another word."""
        before = len(self._reader.answers)
        await self.answers(1)
        return self.ended and len(self._reader.answers) == before

    def done_sending(self) -> None:
        self.end.shutdown(socket.SHUT_WR)


class Wire:
    """Where clients connect. hot: over our protocol; else over uvicorn's own."""

    def __init__(self, app: App, limits: Limits | None = None, *, hot: bool = True) -> None:
        config = uvicorn.Config(
            app, loop="none", ws="none", lifespan="off", interface="asgi3", access_log=False, log_config=None,
            proxy_headers=False, server_header=False, date_header=False,
        )  # fmt: skip
        config.load()
        self.state = ServerState()
        self.connections = Connections(limits or Limits())
        kind: Any = partial(HotProtocol, app, self.connections) if hot else HttpToolsProtocol
        self._kind = partial(kind, config=config, server_state=self.state, app_state={})

    async def open(self, *, buffer: int = 0) -> Client:
        """Connect. buffer: of the kernel, in bytes, so that it is soon full."""
        ours, theirs = socket.socketpair()
        if buffer:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(partial(self._kind, _loop=loop), ours)
        return Client(theirs)

    async def say(self, parts: Sequence[bytes], count: int = 1) -> list[Said]:
        """Send parts over a connection of their own and return the answers."""
        client = await self.open()
        await client.send(*parts)
        said = await client.answers(count)
        client.end.close()
        return said

    def later(self, seconds: float) -> None:
        """Look for what is overdue as if so much time had passed."""
        self.connections.sweep(asyncio.get_running_loop().time() + seconds)


def run(what: Coroutine[Any, Any, T]) -> T:
    """Run on the loop that workers run on."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(what)


def post(path: str, body: bytes, *headers: tuple[str, str], version: str = "1.1") -> bytes:
    """A request with its length."""
    lines = [f"POST {path} HTTP/{version}", "Host: x", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
