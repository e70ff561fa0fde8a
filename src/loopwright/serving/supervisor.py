"""`loopwright serve`: owns the port and the disk cache, keeps workers alive, follows the route table, ships the log.

Each worker accepts on its own SO_REUSEPORT socket, so the kernel spreads connections evenly; the supervisor holds those
sockets, so connections made while a worker is replaced wait in its queue instead of being refused.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any

import msgspec

from loopwright.bundle.keys import PublicKey
from loopwright.bundle.routes import RouteTable, open_routes, signer_of
from loopwright.kernel.errors import LoopwrightError, NotFound, Refused, Tampered, Unavailable
from loopwright.kernel.ids import new_id
from loopwright.serving.cache import Cache
from loopwright.serving.channel import Channel
from loopwright.serving.options import ServeOptions
from loopwright.serving.pinning import trusted_keys
from loopwright.serving.ports import listen
from loopwright.serving.profiles import Profiles
from loopwright.serving.recheck import Recheck
from loopwright.serving.shipping import Shipper
from loopwright.serving.upstream import Upstream
from loopwright.serving.worker import GRACE_SECONDS, WorkerConfig

MISSED_PINGS = 30
EARLY_DEATHS = 5
APPLY_SECONDS = 60.0


def serve(options: ServeOptions) -> int:
    """Serve until SIGTERM or SIGINT, then drain and return 0.

    Raises what keeps it from starting: Unavailable (control plane, port, disk), Unauthenticated, Refused (another key),
    Conflict (another server uses the folder), BadInput.
    """
    options.check()
    cache = Cache(options.home)
    cache.create()
    with cache.owned():
        upstream = Upstream(options.control, options.token)
        keys = trusted_keys(options, cache, upstream)
        for stale in cache.counters.glob("*.counters"):
            stale.unlink()
        sockets = listen(options.host, options.port, options.workers)
        try:
            return asyncio.run(_Supervisor(options, cache, upstream, keys, sockets).run())
        finally:
            for listener in sockets:
                listener.close()


@dataclass(slots=True)
class _Slot:
    """A worker's place: its socket stays while processes come and go."""

    name: str
    listener: socket.socket | None
    grpc_port: int = 0
    log: str = ""
    process: asyncio.subprocess.Process | None = None
    channel: Channel | None = None
    ready: bool = False
    serial: int | None = None
    missed: int = 0
    drained: int = -1
    early_deaths: int = 0


class _Supervisor:
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
        self._upstream = upstream
        self._keys = keys
        self._slots = [_Slot(f"w{i}", listener) for i, listener in enumerate(sockets)]
        if options.grpc_port:
            self._slots.append(_Slot("grpc", None, grpc_port=options.grpc_port))
        self._said: dict[str, str] = {}
        self._stopping = asyncio.Event()
        self._failure: LoopwrightError | None = None
        self._ring, self._keys_at = b"", 0.0
        self._following = bool(cache.followed())
        self._table: RouteTable | None = self._kept_table()
        self._document = b""
        self._unfetched: dict[str, str] = {}
        self._verified: set[str] = set()
        self._doubted = False
        self._writing: set[str] = set()
        self._polling, self._shipping = asyncio.Lock(), asyncio.Lock()
        self._drains = 0
        self._control_up = False
        self._recheck = Recheck(
            cache,
            every=options.verify_every,
            needed=self._needed_now,
            keys=lambda: self._keys,
            damaged=self._doubt,
            complain=self._complain,
        )
        self._profiles = Profiles(cache, options.say)
        # Its own connection: shipping and polling run in different threads.
        self._shipper = Shipper(
            cache.segments,
            cache.source(),
            send=Upstream(options.control, options.token).send,
            profiler=self._profiles.profiler,
            is_writing=self._writing.__contains__,
            complain=options.say,
        )

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        await self._first_table()
        tasks = [asyncio.create_task(self._keep_alive(slot)) for slot in self._slots]
        tasks += [
            asyncio.create_task(job()) for job in (self._poll_forever, self._ship_forever, self._ping_forever)
        ]
        announced = asyncio.create_task(self._announce())
        self._recheck.start()
        await self._stopping.wait()
        self._recheck.stop()
        self._say("stopping: answering what is under way")
        await self._stop_workers()
        for task in [*tasks, announced]:
            task.cancel()
        await asyncio.gather(*tasks, announced, return_exceptions=True)
        await self._last_shipment()
        if self._failure is not None:
            raise self._failure
        return 0

    # The route table.

    async def _first_table(self) -> None:
        """Get a table to start with; the kept one will do when the control plane is away."""
        try:
            await self._poll()
        except (Unavailable, NotFound) as error:
            if self._table is None and not isinstance(error, NotFound):
                raise
            self._complain("control", str(error))
            if self._table is not None:
                self._say(f"serving route table {self._table.serial} from {self._cache.folder}")
        except LoopwrightError as error:
            if self._table is None:
                raise
            self._complain("control", str(error))

    async def _poll(self) -> int:
        """Fetch the table once; when it is new, bring its bundles here and tell the workers. Return the serial."""
        async with self._polling:
            document = await asyncio.to_thread(self._upstream.routes)
            self._control_up = True
            self._said.pop("control", None)
            if asyncio.get_running_loop().time() >= self._keys_at:
                try:
                    await self._follow_keys()
                    self._said.pop("keys", None)
                except LoopwrightError as error:
                    # What is trusted stays, and so does what it signed.
                    self._complain("keys", f"the control plane's keys are not followed: {error}")
            if document == self._document and not self._unfetched and not self._doubted:
                return self._table.serial if self._table else 0
            try:
                table = self._opened(document)
            except Tampered:
                # Signed by a key that came after the last look, or by a stranger's.
                await self._follow_keys()
                table = self._opened(document)
            if self._table is not None and table.serial < self._table.serial:
                raise Refused(
                    "the control plane sent an older route table",
                    got=table.serial,
                    wanted=f"{self._table.serial}",
                )
            doubted, self._doubted = self._doubted, False
            if doubted:
                self._verified.clear()
            try:
                unfetched = await asyncio.to_thread(self._fetch_bundles, table)
            except LoopwrightError:
                self._doubted |= doubted
                raise
            if doubted or document != self._document or unfetched != self._unfetched:
                # What may fail on a full disk comes first: the next poll must find the table still new.
                self._cache.keep_routes(document)
                self._profiles.remember(table)
                self._table, self._document, self._unfetched = table, document, unfetched
                for slot in self._slots:
                    if slot.channel is not None:
                        slot.channel.send({"apply": unfetched})
            return table.serial

    def _opened(self, document: bytes) -> RouteTable:
        """The table, when the key that signs now has signed it; raises Tampered.

        A retired key vouches for what it sealed and for nothing new: who took it away rules nobody's traffic.
        """
        table = open_routes(document, self._keys)
        if self._following and signer_of(document) != self._keys[0].key_id:
            raise Tampered(
                "signed by a key that is retired", where="route table", got=signer_of(document),
                wanted=self._keys[0].key_id,
            )  # fmt: skip
        return table

    def _kept_table(self) -> RouteTable | None:
        """The table kept on disk; one that no trusted key signed (any more) is none."""
        try:
            return self._cache.routes(self._keys)
        except Tampered as error:
            self._complain("kept table", f"the kept route table is not used: {error}")
            return None

    async def _follow_keys(self) -> None:
        """Ask for the control plane's keys, and tell the workers when others are to be trusted from now on.

        Raises Refused or Tampered for keys that do not continue those trusted so far, which stay then.
        """
        self._keys_at = asyncio.get_running_loop().time() + self._options.keys_every
        _, document = await asyncio.to_thread(self._upstream.keys)
        if not document or document == self._ring:
            return
        trusted = await asyncio.to_thread(self._cache.follow, document)
        self._ring, self._following = document, True
        if trusted == self._keys:
            return
        self._say(f"trusting the control plane's keys {', '.join(key.key_id for key in trusted)} from now on")
        self._keys = trusted
        for slot in self._slots:
            if slot.channel is not None:
                slot.channel.send({"keys": [key.to_text() for key in trusted]})
        # What only a dropped key vouched for has to be sealed by another one now.
        self._doubted = True

    def _needed_now(self) -> set[str]:
        return _needed(self._table) if self._table is not None else set()

    def _doubt(self, digest: str) -> None:
        """Let the next poll look at every bundle again; called from the rechecking thread."""
        self._doubted = True

    def _fetch_bundles(self, table: RouteTable) -> dict[str, str]:
        """Bring what the table needs into the depot; return why by digest for bundles that cannot be trusted."""
        refused: dict[str, str] = {}
        needed = _needed(table)
        for digest in sorted(needed - self._verified):
            try:
                self._cache.fetch_bundle(digest, self._keys, self._upstream.bundle_file)
                self._verified.add(digest)
            except Unavailable:
                raise  # the old table stays until all of the new one is here
            except LoopwrightError as error:
                refused[digest] = str(error)
                self._complain(digest, f"bundle {digest[:12]} is refused: {error}")
        self._verified &= needed
        self._cache.prune(needed)
        return refused

    async def _poll_forever(self) -> None:
        while True:
            await asyncio.sleep(self._options.poll)
            try:
                await self._poll()
            except Exception as error:  # noqa: BLE001 - without this loop no rollback would ever arrive
                self._control_up = self._control_up and not isinstance(error, Unavailable)
                self._complain("control", f"{_said(error)} (serving goes on with the last route table)")

    def _missing(self) -> list[str]:
        """Digests that routes need and that are not on disk: a worker that starts now could not load them."""
        return sorted(digest for digest in self._needed_now() if not self._cache.depot.has(digest))

    async def _refresh(self) -> tuple[int, dict[str, Any]]:
        self._keys_at = 0.0
        serial = await self._poll()
        async with asyncio.timeout(APPLY_SECONDS):
            while any(slot.ready and (slot.serial or 0) < serial for slot in self._slots):
                await asyncio.sleep(0.005)
        return 200, {"serial": serial}

    # The log.

    async def _ship(self) -> int:
        async with self._shipping:
            sent = await asyncio.to_thread(self._shipper.ship)
            self._said.pop("ship", None)
            return sent

    async def _ship_forever(self) -> None:
        delay = self._options.ship
        while True:
            await asyncio.sleep(delay)
            try:
                await self._ship()
                delay = self._options.ship
            except Exception as error:  # noqa: BLE001 - without this loop the log would fill the disk
                # A control plane that is down is asked less often; nothing is lost meanwhile.
                delay = min(delay * 2, 10.0)
                self._complain("ship", f"predictions are kept here for now: {_said(error)}")

    async def _flush(self) -> tuple[int, dict[str, Any]]:
        self._drains += 1
        number = self._drains
        for slot in self._slots:
            if slot.channel is not None:
                slot.channel.send({"drain": number})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                while any(slot.ready and slot.drained < number for slot in self._slots):
                    await asyncio.sleep(0.005)
        return 200, {"acknowledged": True, "bytes": await self._ship()}

    async def _last_shipment(self) -> None:
        try:
            async with asyncio.timeout(10):
                await self._ship()
        except (LoopwrightError, OSError) as error:
            self._say(
                f"{self._shipper.backlog()} bytes of predictions stay in {self._cache.segments} ({_said(error)})"
            )

    # The workers.

    async def _keep_alive(self, slot: _Slot) -> None:
        """Run a worker in `slot`, and another when it dies, until stopping."""
        while not self._stopping.is_set():
            started = asyncio.get_running_loop().time()
            try:
                ending = _ending(await self._run_worker(slot))
            except OSError as error:  # no memory or no descriptors for another process, perhaps for a moment
                ending = f"cannot be started: {_said(error)}"
            if self._stopping.is_set():
                return
            lived = asyncio.get_running_loop().time() - started
            self._say(f"worker {slot.name} ended ({ending}) after {lived:.1f} s; starting another")
            slot.early_deaths = slot.early_deaths + 1 if lived < 5.0 else 0
            if slot.early_deaths >= EARLY_DEATHS and not any(other.ready for other in self._slots):
                self._failure = Unavailable(
                    f"workers die as they start ({ending})",
                    where="loopwright serve",
                    next="The lines above say why.",
                )
                self._stopping.set()
                return
            await asyncio.sleep(min(5.0, 0.2 * 2**slot.early_deaths) if slot.early_deaths > 1 else 0)

    async def _run_worker(self, slot: _Slot) -> int:
        options = self._options
        ours, theirs = socket.socketpair()
        slot.log = f"{slot.name}-{new_id('w')}"
        self._writing.add(slot.log)
        config = WorkerConfig(
            home=str(options.home),
            slot=slot.name,
            listen=slot.listener.fileno() if slot.listener else -1,
            channel=theirs.fileno(),
            keys=[key.to_text() for key in self._keys],
            log=slot.log,
            host=options.host,
            grpc_port=slot.grpc_port,
            timeout=options.timeout,
            max_body=options.max_body,
            max_rows=options.max_rows,
            durable=options.durable,
        )
        passed = [theirs.fileno()] + ([slot.listener.fileno()] if slot.listener else [])
        try:
            with theirs:
                slot.process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "loopwright.serving.worker",
                    msgspec.json.encode(config).decode(),
                    pass_fds=passed,
                    start_new_session=True,
                    env={**os.environ, **_ENVIRONMENT},
                )
        except OSError:
            ours.close()
            self._writing.discard(slot.log)
            raise
        slot.channel = await Channel.open(ours)
        listening = asyncio.create_task(self._listen(slot, slot.channel))
        try:
            code = await slot.process.wait()
        finally:
            slot.ready, slot.serial, slot.missed = False, None, 0
            listening.cancel()
            slot.channel.close()
            slot.channel = slot.process = None
        self._writing.discard(slot.log)
        return code

    async def _listen(self, slot: _Slot, channel: Channel) -> None:
        answers: set[asyncio.Task[None]] = set()
        async for message in channel.messages():
            if "ready" in message:
                slot.ready, slot.serial = True, message["serial"]
                channel.send({"apply": self._unfetched})
            elif "applied" in message:
                slot.serial = message["applied"]
            elif "drained" in message:
                slot.drained = message["drained"]
            elif "pong" in message:
                slot.missed = 0
            elif "ask" in message:
                task = asyncio.create_task(self._answer(channel, message["ask"], message["number"]))
                answers.add(task)
                task.add_done_callback(answers.discard)
            for name, why in message.get("refused", {}).items():
                # Its files may have been damaged after they were fetched: looked at again, once for each complaint.
                self._doubted |= self._complain(name, f"{name} is refused: {why}")

    async def _answer(self, channel: Channel, ask: str, number: int) -> None:
        try:
            status, body = await (self._flush() if ask == "flush" else self._refresh())
        except LoopwrightError as error:
            status, body = 503, {"error": str(error)}
        except TimeoutError:
            status, body = 503, {"error": f"{ask}: the workers did not finish in time"}
        except Exception as error:  # noqa: BLE001 - somebody waits for an answer
            status, body = 503, {"error": f"{ask}: {_said(error)}"}
        channel.send({"answer": number, "status": status, "body": body})

    async def _ping_forever(self) -> None:
        while True:
            backlog = await asyncio.to_thread(self._shipper.backlog)
            gauges = {
                "control_up": float(self._control_up),
                "unshipped_bytes": float(backlog),
                "workers_ready": float(sum(slot.ready for slot in self._slots)),
                "refused_bundles": float(len(self._unfetched)),
                "bundles_missing": float(len(self._missing())),
                **self._recheck.gauges(),
            }
            for slot in self._slots:
                if slot.channel is None or not slot.ready or slot.process is None:
                    continue
                slot.missed += 1
                if slot.missed > MISSED_PINGS:
                    self._say(f"worker {slot.name} hangs; killing it")
                    slot.process.kill()
                else:
                    slot.channel.send({"ping": gauges})
            await asyncio.sleep(1.0)

    async def _announce(self) -> None:
        while not all(slot.ready for slot in self._slots):
            await asyncio.sleep(0.02)
        listener = self._slots[0].listener
        assert listener is not None
        host, port = listener.getsockname()[:2]
        models = (
            ", ".join(sorted(self._table.models)) if self._table and self._table.models else "no model yet"
        )
        grpc = f", gRPC on port {self._options.grpc_port}" if self._options.grpc_port else ""
        self._say(f"serving {models} at http://{host}:{port}/v2 with {self._options.workers} workers{grpc}")

    async def _stop_workers(self) -> None:
        running = [slot.process for slot in self._slots if slot.process is not None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        try:
            async with asyncio.timeout(GRACE_SECONDS + 5):
                await asyncio.gather(*(process.wait() for process in running))
        except TimeoutError:
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()

    def _complain(self, about: str, text: str) -> bool:
        """Say `text` once, until it changes or is over; return whether it was said."""
        if self._said.get(about) == text:
            return False
        self._said[about] = text
        self._say(text)
        return True


# One thread each and few malloc arenas: a worker's share of the machine is one core and some 100 MB.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "PYTHONUNBUFFERED": "1",
}


def _needed(table: RouteTable) -> set[str]:
    return {route.versions[str(arm.version)].bundle for route in table.models.values() for arm in route.arms}


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, LoopwrightError) else f"{type(error).__name__}: {error}"


def _ending(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
