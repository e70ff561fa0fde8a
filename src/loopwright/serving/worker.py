"""A serving worker: one process, one event loop, its own log segment and counters file. Started by the supervisor."""

import asyncio
import gc
import itertools
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import msgspec
import uvicorn
import uvloop

from loopwright.bundle.keys import PublicKey
from loopwright.kernel.errors import Tampered
from loopwright.serving.access_log import AccessLog
from loopwright.serving.app import App, Bounds
from loopwright.serving.cache import Cache
from loopwright.serving.callers import Callers
from loopwright.serving.channel import Channel
from loopwright.serving.connections import Connections, Limits, allow_files
from loopwright.serving.counters import Counters
from loopwright.serving.deadline import Deadline
from loopwright.serving.engine import Engine
from loopwright.serving.entities import EntityFeatures
from loopwright.serving.events import SegmentWriter
from loopwright.serving.hot import HotProtocol
from loopwright.serving.leaving import see_off
from loopwright.serving.log_health import log_warnings
from loopwright.serving.models import Model
from loopwright.serving.orphan import end_with
from loopwright.serving.protocols.repository import carry_out
from loopwright.serving.residency import Residency
from loopwright.serving.segments import claim
from loopwright.serving.tracing import Tracing

GRACE_SECONDS = 20
ORPHAN_SECONDS = 30.0
"""How long a worker may outlive its supervisor; longer than it takes to answer what is under way."""

DRAIN_SECONDS = 3.0
"""For copies to shadows that wait when the last request is answered."""

LOOK_SECONDS = 5.0
"""Between two looks at whether what is online is what the served versions know."""

ONLINE = "LOOPWRIGHT_ONLINE"
"""Where the environment names the online store. Command lines are read by everybody on a machine."""


class WorkerConfig(msgspec.Struct, kw_only=True):
    """What the supervisor tells a worker. listen, channel: inherited descriptors; log: the name of its segments;
    grpc_port: 0 for an HTTP worker; unstarted, gauges: what probes and /metrics are told until the supervisor says
    more, because the first connection may already wait when the worker begins to accept."""

    home: str
    slot: str
    listen: int
    channel: int
    keys: list[str]
    log: str
    host: str = "127.0.0.1"
    grpc_port: int = 0
    timeout: float = 2.0
    max_body: int = 8 << 20
    max_rows: int = 10_000
    max_connections: int = 10_000
    durable: bool = False
    callers: str = ""
    model_memory: int = 0
    idle_unload: float = 0.0
    access_log: str = ""
    otlp: str = ""
    trace_share: float = 1.0
    unstarted: str = ""
    gauges: dict[str, float] = {}


class Worker:
    """The process around an engine; is the `Host` of its HTTP application."""

    def __init__(self, config: WorkerConfig, channel: Channel) -> None:
        self.config = config
        self._channel = channel
        self._cache = Cache(Path(config.home))
        self._keys = [PublicKey.from_text(text) for text in config.keys]
        self.counters = Counters(self._cache.counters / f"{config.slot}.counters")
        self._deadline = Deadline()
        claim(self._cache.segments, config.log)
        self._log = SegmentWriter(self._cache.segments, config.log, durable=config.durable)
        self.residency = Residency(
            self._cache.depot,
            now_us=lambda: time.time_ns() // 1000,
            budget=config.model_memory,
            idle=config.idle_unload,
            timeout=config.timeout,
            stuck=self.recycle,
        )
        self.engine = Engine(
            self._log,
            self.counters,
            now_us=lambda: time.time_ns() // 1000,
            limit=self._deadline,
            timeout=config.timeout,
            stuck=lambda why: self._channel.send({"recycle": why}),
            warmer=self.residency,
        )
        self.bounds = Bounds(body=config.max_body, rows=config.max_rows)
        callers = Callers.read(Path(config.callers)) if config.callers else Callers()
        self.app = App(self.engine, self.counters, self, self._cache.counters, self.bounds, callers)
        online = os.environ.pop(ONLINE, "")
        self._entities = EntityFeatures.open(online, self.counters) if online else None
        self.app.front.entities = self._entities
        self._access = AccessLog(config.access_log) if config.access_log else None
        if self._access is not None:
            self.app.front.watchers.append(self._access)
        if config.otlp:
            self.app.front.watchers.append(Tracing(config.otlp, share=config.trace_share))
        self.stopping = asyncio.Event()
        self.linger = 0.0
        self._unready = ""
        self._unstarted = config.unstarted
        self._applying: set[asyncio.Task[None]] = set()
        self._serial: int | None = None
        self._gauges: dict[str, float] = dict(config.gauges)
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count()

    def not_ready(self) -> str:
        """Why no traffic should come, or ""."""
        if self._unready:
            return self._unready
        if self._serial is None:
            return "no route table yet"
        for name, model in sorted(self.engine.models.items()):
            if model.stable is None:
                reasons = "; ".join(model.refused.values())
                return f"{name} has no version that may answer: {reasons}"
        return ""

    def not_started(self) -> str:
        """Why the server has not started yet, or "" from then on: for a startup probe."""
        if self._unstarted:
            return self._unstarted
        return "no route table yet" if self._serial is None else ""

    def recycle(self, why: str) -> None:
        """Ask to be replaced: a fresh worker is started and loaded first, then this one is told to go."""
        self._channel.send({"recycle": why})

    def warnings(self) -> list[str]:
        """What a person should know though all answers are right."""
        found = log_warnings(self._gauges, self._log.failing)
        if self._entities is not None:
            found = [*found, *self._entities.warnings()]
        missing = int(self._gauges.get("bundles_missing", 0))
        if not missing:
            return found
        return [
            *found,
            f"{missing} bundles that routes need are not whole on disk and could not be fetched again: what is loaded "
            "answers from memory, a worker that starts now cannot load them",
        ]

    def gauges(self) -> Mapping[str, float]:
        """What the supervisor said last, and this worker's own."""
        return {
            **self._gauges,
            **self.residency.gauges(),
            **({"online_store_up": float(not self._entities.lookups.why)} if self._entities else {}),
            "route_serial": float(self._serial or 0),
            "models": float(len(self.engine.models)),
        }

    async def ask(self, what: str) -> tuple[int, dict[str, Any]]:
        """Ask the supervisor and wait for its answer."""
        number = next(self._numbers)
        future = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        self._channel.send({"ask": what, "number": number})
        try:
            answer = await future
        finally:
            del self._asked[number]
        return answer["status"], answer["body"]

    async def run(self, serve: Callable[["Worker"], Awaitable[None]]) -> None:
        """Load what the cache holds, then serve until told to stop or the supervisor is gone."""
        self._deadline.install()
        # A server that starts waits for slow models: there is nothing else that could answer meanwhile.
        await self._apply({}, patience=self.residency.load_seconds + 5)
        # What is loaded now stays: the collector need not walk it again and again.
        gc.collect()
        gc.freeze()
        listening = asyncio.create_task(self._listen())
        beside = [asyncio.create_task(self.residency.run()), asyncio.create_task(self._look())]
        self._channel.send({"ready": os.getpid(), "serial": self._serial, "refused": self._refused()})
        try:
            await serve(self)
        finally:
            # Copies that a slow shadow has not come to are given up: who waits for the end has answers to give.
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    await self.engine.drained()
            listening.cancel()
            for task in beside:
                task.cancel()
            if self._entities is not None:
                self._entities.lookups.close()
            await self.residency.close()
            self._log.close()
            for watcher in self.app.front.watchers:
                await asyncio.to_thread(watcher.close)

    async def _look(self) -> None:
        while self._entities is not None:
            await self._entities.look(self.engine.models)
            await asyncio.sleep(LOOK_SECONDS)

    def begin_stop(self, linger: float = 0.0) -> None:
        """Accept no more connections. Requests under way are answered; idle connections stay `linger` seconds, and the
        next answer on each is its last."""
        self.linger = linger
        self.stopping.set()

    async def _listen(self) -> None:
        async for message in self._channel.messages():
            if "keys" in message:
                self._keys = [PublicKey.from_text(text) for text in message["keys"]]
            elif "apply" in message:
                # Beside this loop: a version that hangs while it loads must not make the whole worker look dead.
                self._begin(self._apply_and_tell(message["apply"]))
            elif "reside" in message:
                self._begin(self._reside(message))
            elif "drain" in message:
                # Nor must copies for a slow shadow, which may come as fast as they are predicted.
                self._begin(self._drain(message["drain"]))
            elif "ping" in message:
                self._gauges = message["ping"]
                self.engine.measure()
                if self._access is not None:
                    self._access.flush()
                self._channel.send({"pong": True})
            elif "leave" in message:
                self.begin_stop(message["leave"])
            elif "not_ready" in message:
                self._unready = message["not_ready"]
            elif "not_started" in message:
                self._unstarted = message["not_started"]
            elif "answer" in message:
                future = self._asked.get(message["answer"])
                if future is not None and not future.done():
                    future.set_result(message)
        # Without a supervisor nobody ships the log or follows routes: an orphan must not hold the port.
        self._unready = self._unready or "shutting down"
        self.begin_stop()

    def _begin(self, act: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(act)
        self._applying.add(task)
        task.add_done_callback(self._applying.discard)

    async def _drain(self, number: int) -> None:
        await self.engine.drained()
        self._channel.send({"drained": number})

    async def _apply_and_tell(self, unfetched: Mapping[str, str]) -> None:
        slow = await self._apply(unfetched)
        self._channel.send({"applied": self._serial, "refused": self._refused()})
        if slow:
            # Routes have changed without what loads slowly; once it is there, they change again.
            await asyncio.wait(slow)
            await self._apply_and_tell(unfetched)

    async def _reside(self, message: Mapping[str, Any]) -> None:
        status, why = await carry_out(self.residency, message["reside"], message["model"])
        self._channel.send({"resided": message["number"], "status": status, "error": why})

    async def _apply(
        self, unfetched: Mapping[str, str], patience: float | None = None
    ) -> set[asyncio.Task[Any]]:
        """Follow the kept route table; returns the loads that took longer than `patience`."""
        try:
            table = self._cache.routes(self._keys)
        except Tampered:
            # Signed by a key that counts no more: the supervisor is about to bring another.
            return set()
        if table is None or (self._serial is not None and table.serial < self._serial):
            return set()
        serial = table.serial

        def install(models: dict[str, Model]) -> None:
            self.engine.serve(models)
            self.app.publish()
            self._serial = serial

        return await self.residency.apply(table, self._keys, unfetched, install, patience=patience)

    def _refused(self) -> dict[str, str]:
        return {
            f"{name} version {version}": why
            for name, model in self.engine.models.items()
            for version, why in model.refused.items()
        }


async def _serve_http(worker: Worker) -> None:
    connections = Connections(
        Limits(
            connections=allow_files(worker.config.max_connections), body_seconds=worker.bounds.body_seconds
        )
    )
    config = uvicorn.Config(
        worker.app,
        loop="none",
        http=cast(type[asyncio.Protocol], partial(HotProtocol, worker.app, connections)),
        ws="wsproto",
        ws_max_size=worker.config.max_body,
        ws_per_message_deflate=False,  # a few bytes of it may become any number
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=2048,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = uvicorn.Server(config)
    listener = socket.socket(fileno=worker.config.listen)

    async def stop_when_told() -> None:
        await worker.stopping.wait()
        await see_off(server, worker.linger)
        server.should_exit = True

    beside = [asyncio.create_task(stop_when_told()), asyncio.create_task(connections.watch())]
    await server.serve(sockets=[listener])
    for task in beside:
        task.cancel()


async def _main(config: WorkerConfig) -> None:
    end_with(config.channel, ORPHAN_SECONDS)
    channel = await Channel.open(socket.socket(fileno=config.channel))
    worker = Worker(config, channel)
    if config.grpc_port:
        from loopwright.serving.grpc_server import (
            serve_grpc,
        )  # an extra, and 30 MB: only where it is asked for

        await worker.run(serve_grpc)
    else:
        await worker.run(_serve_http)


def main() -> NoReturn:
    """Run a worker from its configuration (JSON) in argv[1]."""
    config = msgspec.json.decode(sys.argv[1], type=WorkerConfig)
    # Only the supervisor decides when to stop; it gets the terminal's Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.set_threshold(50_000, 20, 20)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(config))
        # What had to be finished is. Threads that hang in a model would keep the process: nobody waits for them.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
