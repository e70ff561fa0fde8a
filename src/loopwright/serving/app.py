"""The worker's ASGI application: V2 inference on a hot path, other protocols by their routes, health and metrics."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from loopwright.kernel.errors import LoopwrightError
from loopwright.serving.callers import Callers
from loopwright.serving.counters import Counters
from loopwright.serving.engine import Engine
from loopwright.serving.exposition import render
from loopwright.serving.front import Front, Host, Target
from loopwright.serving.http import (
    Bounds,
    Budget,
    ClientGone,
    Headers,
    HttpError,
    Receive,
    Reply,
    Request,
    Route,
    Router,
    Scope,
    Send,
    error_reply,
    json_reply,
)
from loopwright.serving.protocols.bulk import Bulk
from loopwright.serving.protocols.docs import Docs
from loopwright.serving.protocols.inference import OpenInference
from loopwright.serving.protocols.mlflow import Mlflow
from loopwright.serving.protocols.ofrep import OpenFeature
from loopwright.serving.protocols.openapi import OpenApi
from loopwright.serving.protocols.repository import Repository
from loopwright.serving.protocols.stream import Stream
from loopwright.serving.protocols.typed import Typed
from loopwright.serving.watching import Asked, answered, caller

__all__ = ["App", "Bounds", "Host"]

TEXT = "text/plain; charset=utf-8"
_logger = logging.getLogger("uvicorn.error")
"""Where errors of our own go that happen on the way to an answer."""


class App:
    """One worker's HTTP side. `publish` is called whenever the engine's models change."""

    def __init__(
        self,
        engine: Engine,
        counters: Counters,
        host: Host,
        folder: Path,
        bounds: Bounds,
        callers: Callers | None = None,
    ) -> None:
        self.front = Front(engine, counters, host, bounds, callers)
        self.inference = OpenInference(self.front)
        self._counters = counters
        self._host = host
        self._folder = folder
        self.bounds = bounds
        self.budget = Budget(max(bounds.unfinished, 2 * bounds.body))
        self.routes = [*self._own(), *self._protocols()]
        self._router = Router(self.routes)
        self.hot: dict[str, Target] = {}
        """Targets by the path of their V2 inference; empty while somebody watches, who must see every request."""
        self.by_path: dict[bytes, Target] = {}
        """The same, by the path as it stands in a request."""

    def _protocols(self) -> Iterable[Route]:
        """Everything that predicts."""
        yield from self.inference.routes()
        yield from Mlflow(self.front).routes()
        typed = Typed(self.front)
        yield from typed.routes()
        yield from Bulk(self.front).routes()
        yield from Stream(self.front, typed).routes()
        yield from OpenFeature(self.front).routes()
        yield from Repository(self.front).routes()
        yield from OpenApi(self.front, lambda: self.routes).routes()
        yield from Docs(self.front).routes()

    def publish(self) -> None:
        """Make the engine's current models reachable."""
        hot: dict[str, Target] = {}
        for name, model in self.front.models.items() if not self.front.watchers else ():
            with suppress(LoopwrightError):  # no version of it may answer: the slow way says so
                hot[f"/v2/models/{name}/infer"] = self.front.target(model, None)
            for version in model.versions:
                hot[f"/v2/models/{name}/versions/{version}/infer"] = self.front.target(model, version)
        self.hot = hot
        self.by_path = {path.encode(): target for path, target in hot.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._talk(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        if self.front.watchers:
            await self._watched(scope, receive, send)
            return
        reply = await self._reply(scope, receive)
        if reply is not None:
            await self.send(reply, scope["method"], send)

    async def _reply(self, scope: Scope, receive: Receive) -> Reply | None:
        """What to answer; None when there is nobody left to answer."""
        try:
            request = Request(scope, receive, self.bounds, self.budget)
            target = self.hot.get(scope["path"])
            if target is not None and scope["method"] == "POST":
                return await self.inference.infer_at(target, request)
            return await self._other(request)
        except LoopwrightError as error:
            return error_reply(error)
        except ClientGone:
            return None
        except Exception:
            _logger.exception("a request failed")
            return Reply(500, b"Internal Server Error", TEXT, [(b"connection", b"close")])

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer while everyone in `front.watchers` looks on."""
        started = perf_counter_ns()
        client = (scope.get("client") or ("",))[0] or ""
        asked = Asked("http", scope["method"], scope["path"], client, scope["headers"])
        begun = [(watcher, watcher.begin(asked)) for watcher in self.front.watchers]
        answered.set(None)
        caller.set("")
        reply = None
        try:
            reply = await self._reply(scope, receive)
            if reply is not None:
                await self.send(reply, scope["method"], send)
        finally:
            # Also of an answer that broke off: who looks on is told of every request that began.
            status, size = (499, 0) if reply is None else (reply.status, _size(reply))
            took = (perf_counter_ns() - started) // 1000
            for watcher, what in begun:
                watcher.end(what, asked, status, size, took, answered.get())

    def count(self, status: int) -> None:
        """Count an answer that leaves with this status."""
        self._counters.add(("http", str(status)))

    async def send(self, reply: Reply, method: str, send: Send) -> None:
        """Send an answer and count it."""
        headers: Headers = [(b"content-type", reply.content_type.encode()), *reply.headers]
        self.count(reply.status)
        body = reply.body
        if isinstance(body, bytes):
            headers.append((b"content-length", b"%d" % len(body)))
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})
            return
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await _stream(body, send)

    async def _other(self, request: Request) -> Reply:
        found = self._router.find(request.path)
        if found is None:
            raise HttpError(
                404, "no such path", got=request.path,
                wanted="/v2/models/MODEL/infer, /models/MODEL/predict, /docs, /healthz, /readyz, /metrics",
            )  # fmt: skip
        handlers, names = found
        method = "GET" if request.method == "HEAD" and "HEAD" not in handlers else request.method
        handler = handlers.get(method)
        if handler is None or method == "WEBSOCKET":
            allowed = sorted({*handlers, *(("HEAD",) if "GET" in handlers else ())} - {"WEBSOCKET"})
            reply = error_reply(
                HttpError(
                    405,
                    "this path does not take that method",
                    got=request.method,
                    wanted=" or ".join(allowed),
                )
            )
            reply.headers.append((b"allow", ", ".join(allowed).encode()))
            return reply
        reply = await handler(request, names)
        assert isinstance(reply, Reply)
        return reply

    async def _talk(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._router.find(scope["path"])
        handler = found[0].get("WEBSOCKET") if found else None
        if found is None or handler is None:
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        await handler(scope, receive, send, found[1])

    # The process itself.

    def _own(self) -> Iterable[Route]:
        for path in ("/healthz", "/v2/health/live"):
            yield Route("GET", path, self._live)
        for path in ("/readyz", "/v2/health/ready"):
            yield Route("GET", path, self._ready)
        yield Route("GET", "/startupz", self._started)
        yield Route("GET", "/metrics", self._metrics)
        yield Route("GET", "/", self.inference.server)
        for what in ("flush", "refresh"):
            yield Route("POST", f"/admin/{what}", self._admin)

    async def _live(self, request: Request, names: Mapping[str, str]) -> Reply:
        return json_reply({"live": True})

    async def _ready(self, request: Request, names: Mapping[str, str]) -> Reply:
        why, warnings = self._host.not_ready(), self._host.warnings()
        said: dict[str, Any] = {
            **({"error": why} if why else {}),
            **({"warnings": warnings} if warnings else {}),
        }
        return json_reply({"ready": not why, **said}, 503 if why else 200)

    async def _started(self, request: Request, names: Mapping[str, str]) -> Reply:
        why = self._host.not_started()
        return json_reply({"started": not why, **({"error": why} if why else {})}, 503 if why else 200)

    async def _metrics(self, request: Request, names: Mapping[str, str]) -> Reply:
        text = await asyncio.to_thread(render, self._folder, self._host.gauges())
        return Reply(200, text.encode(), "text/plain; version=0.0.4; charset=utf-8")

    async def _admin(self, request: Request, names: Mapping[str, str]) -> Reply:
        self.front.allow("admin", request.headers, request.client)
        status, answer = await self._host.ask(request.path.strip("/").removeprefix("admin/"))
        return json_reply(answer, status)


def _size(reply: Reply) -> int:
    return len(reply.body) if isinstance(reply.body, bytes) else -1


async def _stream(body: AsyncIterator[bytes], send: Send) -> None:
    """Send parts as they come. Once the first has left, an error can only end the connection before its time."""
    try:
        async for part in body:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        if isinstance(body, AsyncGenerator):
            await body.aclose()
