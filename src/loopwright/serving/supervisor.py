"""`loopwright serve`: owns the port and the disk cache, keeps workers alive, follows the route table, ships the log.

Each worker accepts on its own SO_REUSEPORT socket, so the kernel spreads connections evenly; the supervisor holds those
sockets, so connections made while a worker is replaced wait in its queue instead of being refused.
"""

import asyncio
import contextlib
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from loopwright.bundle.keys import PublicKey
from loopwright.kernel.errors import LoopwrightError
from loopwright.serving.cache import Cache
from loopwright.serving.complaints import Complaints, in_words
from loopwright.serving.following import Following
from loopwright.serving.options import ServeOptions
from loopwright.serving.outflow import Outflow
from loopwright.serving.pinning import trusted_keys
from loopwright.serving.ports import listen
from loopwright.serving.profiles import Profiles
from loopwright.serving.recheck import Recheck
from loopwright.serving.reside import Reside
from loopwright.serving.segments import is_claimed
from loopwright.serving.slots import Slot, WorkerProcess, Workers
from loopwright.serving.upstream import Upstream
from loopwright.serving.worker import WorkerConfig

APPLY_SECONDS = 60.0
FLUSH_SECONDS = 30.0
OWN_FILES = 320
"""Descriptors a worker needs beside those of its clients."""


def serve(options: ServeOptions) -> int:
    """Serve until SIGTERM or SIGINT, then drain and return 0.

    SIGHUP replaces the workers, one after another; at a terminal it stops the server.

    Raises what keeps it from starting: Unavailable (control plane, port, disk), Unauthenticated, Refused (another key),
    Conflict (another server uses the folder), BadInput.
    """
    options.check()
    options = replace(options, say=_to_whoever_reads(options.say))
    cache = Cache(options.home)
    cache.create()
    with cache.owned():
        upstream = Upstream(options.control, options.token)
        keys = trusted_keys(options, cache, upstream)
        for stale in cache.counters.glob("*.counters"):
            stale.unlink()
        for claimed in cache.segments.glob(".*.writer"):
            is_claimed(cache.segments, claimed.name[1:].removesuffix(".writer"))
        check_files(options)
        sockets = listen(options.host, options.port, options.workers)
        try:
            return asyncio.run(Supervisor(options, cache, upstream, keys, sockets).run())
        finally:
            for listener in sockets:
                listener.close()


def check_files(options: ServeOptions) -> None:
    """Say so when the system does not let a worker hold as many connections as it was asked to."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if resource.RLIM_INFINITY != hard < options.max_connections + OWN_FILES:
        options.say(
            f"a worker may open {hard} files and cannot hold {options.max_connections} connections: "
            "raise the limit (ulimit -Hn), or lower --max-connections"
        )


class Supervisor:
    """One running server: its workers, what they serve, and their log."""

    def __init__(
        self,
        options: ServeOptions,
        cache: Cache,
        upstream: Upstream,
        keys: list[PublicKey],
        sockets: list[socket.socket],
    ) -> None:
        self._options = options
        self._say = options.say
        self._cache = cache
        self._complain = Complaints(options.say)
        self._told = asyncio.Event()
        self._told_again = asyncio.Event()
        self._not_ready = ""
        self._log_numbers: dict[str, float] = {}
        self._answers: set[asyncio.Task[None]] = set()
        self._shipping = asyncio.Lock()
        profiles = Profiles(cache, options.say)
        self.workers = Workers(
            options, sockets, counters=cache.counters, configure=self._configure, greet=self._greet,
            heard=self._heard,
        )  # fmt: skip
        self._reside = Reside(self.workers)
        self.following = Following(
            options, cache, upstream, keys, profiles, self._complain, self.workers.tell
        )
        self._recheck = Recheck(
            cache,
            every=options.verify_every,
            needed=self.following.needed,
            keys=lambda: self.following.keys,
            damaged=lambda _: self.following.doubt(),
            complain=self._complain,
        )
        # Its own connection: shipping and polling run in different threads.
        self._outflow = Outflow(
            options, cache, profiles, self._complain,
            send=Upstream(options.control, options.token).send, is_writing=self._is_writing,
        )  # fmt: skip
        self._shipper = self._outflow.shipper

    async def run(self) -> int:
        """Serve until told to stop; raises Unavailable when no worker comes up."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        # Of a terminal it says that it is gone, and nobody would find what went on serving.
        loop.add_signal_handler(signal.SIGHUP, self._stop if sys.stderr.isatty() else self._renew)
        await self.following.begin()
        jobs: list[Coroutine[Any, Any, None]] = [
            *(self.workers.keep_alive(slot) for slot in self.workers.slots),
            self.workers.watch(), self.following.poll_forever(), self.ship_forever(), self._measure(),
            self._announce(),
        ]  # fmt: skip
        tasks = [asyncio.create_task(job) for job in jobs]
        self._recheck.start()
        self._outflow.start()
        await _either(self._told, self.workers.failed)
        if not self.workers.failed.is_set():
            await self._drain()
        self._recheck.stop()
        self._say("stopping: answering what is under way")
        self.workers.tell({"not_ready": "shutting down"})
        await self.workers.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(self._last_shipment(), asyncio.to_thread(self._outflow.stop, 10.0))
        await asyncio.to_thread(self._shipper.tidy)
        if self.workers.failure is not None:
            raise self.workers.failure
        return 0

    def _stop(self) -> None:
        if self._told.is_set():
            self._told_again.set()
        self._told.set()

    def _renew(self) -> None:
        self.workers.recycle_all("is to be replaced (SIGHUP)")

    async def _drain(self) -> None:
        """Say not ready for a while and go on answering, so that who sends requests here sends them elsewhere."""
        seconds = self._options.drain_seconds
        if not seconds:
            return
        self._not_ready = "shutting down"
        self.workers.tell({"not_ready": self._not_ready})
        self._say(f"draining: not ready, and answering for another {seconds:g} s (a second signal ends that)")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._told_again.wait()

    # The log.

    def _is_writing(self, log: str) -> bool:
        # A killed supervisor's workers answer what was under way, and log it, while we have started already.
        return log in self.workers.writing or is_claimed(self._cache.segments, log)

    async def ship(self) -> int:
        """Send what is new to the control plane; return its bytes."""
        async with self._shipping:
            sent = await asyncio.to_thread(self._shipper.ship)
            self._complain.over("ship")
            return sent

    async def ship_forever(self) -> None:
        """Ship until cancelled."""
        delay = self._options.ship
        while True:
            await asyncio.sleep(delay)
            try:
                await self.ship()
                delay = self._options.ship
            except Exception as error:  # noqa: BLE001 - without this loop the log would fill the disk
                # A control plane that is down is asked less often; nothing is lost meanwhile.
                delay = min(delay * 2, 10.0)
                self._complain("ship", f"predictions are kept here for now: {in_words(error)}")

    async def _last_shipment(self) -> None:
        try:
            async with asyncio.timeout(10):
                await self.ship()
        except (LoopwrightError, OSError) as error:
            self._say(
                f"{self._shipper.backlog()} bytes of predictions stay in {self._cache.segments} ({in_words(error)})"
            )

    # The workers.

    def _configure(self, slot: Slot, place: str, log: str) -> WorkerConfig:
        options = self._options
        return WorkerConfig(
            home=str(options.home),
            slot=place,
            listen=slot.listener.fileno() if slot.listener else -1,
            channel=-1,
            keys=[key.to_text() for key in self.following.keys],
            log=log,
            host=options.host,
            grpc_port=slot.grpc_port,
            timeout=options.timeout,
            max_body=options.max_body,
            max_rows=options.max_rows,
            max_connections=options.max_connections,
            durable=options.durable,
            model_memory=options.model_memory,
            idle_unload=options.idle_unload,
            callers=str(options.callers.absolute()) if options.callers else "",
            access_log=options.access_log,
            otlp=options.otlp,
            trace_share=options.trace_share,
            unstarted=self.workers.not_started(),
            # Everybody on the machine reads a command line: not where the log goes.
            gauges={name: value for name, value in self._numbers().items() if "log_sink" not in name},
        )

    def _greet(self) -> list[dict[str, Any]]:
        greetings: list[dict[str, Any]] = [
            {"apply": self.following.unfetched},
            {"ping": self._numbers()},
        ]
        if self._not_ready:
            greetings.append({"not_ready": self._not_ready})
        self.workers.tell({"not_started": self.workers.not_started()})
        return greetings

    def _heard(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        if "ask" in message:
            task = asyncio.create_task(self._answer(worker, message["ask"], message["number"]))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)
        elif "resided" in message:
            self._reside.heard(worker, message)
        for name, why in message.get("refused", {}).items():
            # Its files may have been damaged after they were fetched: looked at again, once for each complaint.
            if self._complain(name, f"{name} is refused: {why}"):
                self.following.doubt()

    async def _answer(self, worker: WorkerProcess, ask: str, number: int) -> None:
        try:
            act, _, about = ask.partition(" ")
            if act in ("load", "unload"):
                status, body = await self._reside.ask(act, about)
            else:
                status, body = await (self._flush() if act == "flush" else self._refresh())
        except LoopwrightError as error:
            status, body = 503, {"error": str(error)}
        except TimeoutError:
            status, body = 503, {"error": f"{ask}: the workers did not finish in time"}
        except Exception as error:  # noqa: BLE001 - somebody waits for an answer
            status, body = 503, {"error": f"{ask}: {in_words(error)}"}
        worker.channel.send({"answer": number, "status": status, "body": body})

    async def _flush(self) -> tuple[int, dict[str, Any]]:
        number = self.workers.ask_to_drain()
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                while not self.workers.all_drained(number):
                    await asyncio.sleep(0.005)
        except TimeoutError:
            await self.ship()  # what there is
            raise
        return 200, {"acknowledged": True, "bytes": await self.ship()}

    async def _refresh(self) -> tuple[int, dict[str, Any]]:
        serial = await self.following.poll(keys=True)
        async with asyncio.timeout(APPLY_SECONDS):
            while not self.workers.all_at(serial):
                await asyncio.sleep(0.005)
        return 200, {"serial": serial}

    async def _measure(self) -> None:
        """Keep the numbers fresh that pings bring to the workers. Apart from pinging: a disk may hang."""
        while True:
            try:
                self._log_numbers = await asyncio.to_thread(self._outflow.gauges)
                self._complain.over("backlog")
            except OSError as error:
                self._complain("backlog", f"the log's folder cannot be read: {in_words(error)}")
            self.workers.gauges = self._numbers()
            await asyncio.sleep(1.0)

    def _numbers(self) -> dict[str, float]:
        """What /metrics says of the whole server; of the log, what was measured last."""
        return {
            **self._log_numbers,
            "control_up": float(self.following.control_up),
            "workers_ready": float(self.workers.ready),
            "refused_bundles": float(len(self.following.unfetched)),
            "bundles_missing": float(len(self.following.missing())),
            **self.workers.restarts(),
            **self._recheck.gauges(),
        }

    async def _announce(self) -> None:
        while self.workers.ready < len(self.workers.slots):
            await asyncio.sleep(0.02)
        listener = self.workers.slots[0].listener
        assert listener is not None
        host, port = listener.getsockname()[:2]
        table = self.following.table
        models = ", ".join(sorted(table.models)) if table and table.models else "no model yet"
        grpc = f", gRPC on port {self._options.grpc_port}" if self._options.grpc_port else ""
        self._say(f"serving {models} at http://{host}:{port}/v2 with {self._options.workers} workers{grpc}")


def _to_whoever_reads(say: Callable[[str], None]) -> Callable[[str], None]:
    def said(text: str) -> None:
        # A terminal or a pipe that is gone is no reason to serve no more.
        with contextlib.suppress(OSError):
            say(text)

    return said


async def _either(*events: asyncio.Event) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
