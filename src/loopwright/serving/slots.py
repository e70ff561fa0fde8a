"""Worker processes in their places: started, watched, replaced when they die, hang, grow too large or ask for it.

A slot keeps its SO_REUSEPORT socket while processes come and go, so connections made meanwhile wait in the socket's
queue. A worker that still answers is replaced without a failed request: its successor is started on the same socket and
loaded first; only then does the old one stop accepting, finish what is under way and go.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import msgspec

from loopwright.kernel.errors import LoopwrightError, Unavailable
from loopwright.kernel.ids import new_id
from loopwright.serving.channel import Channel
from loopwright.serving.complaints import Complaints, in_words
from loopwright.serving.counters import disown
from loopwright.serving.memory import Ceiling, resident
from loopwright.serving.options import ServeOptions
from loopwright.serving.sinks.address import parse_sink
from loopwright.serving.worker import GRACE_SECONDS, ONLINE, WorkerConfig

EARLY_DEATHS = 5
EARLY_SECONDS = 5.0
LINGER_SECONDS = 5.0
"""How long a replaced worker keeps idle connections, each of whose next answers is its last."""

STOP_LINGER_SECONDS = 1.0
RETRY_SECONDS = 30.0
"""After a replacement that did not come up, before the next try."""

REASONS = ("asked", "crash", "hang", "memory", "start")

# One thread each and few malloc arenas: a worker's share of the machine is one core and some 100 MB.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """One process. place: names its counters file. log: names its segments. missed: pings since the last answer.

    fresh: bytes it took when it came up. cause: why the supervisor ended it, "" when it did not.
    """

    place: str
    log: str
    process: asyncio.subprocess.Process
    channel: Channel
    born: float
    up: asyncio.Event = field(default_factory=asyncio.Event)
    serial: int | None = None
    missed: int = 0
    drained: int = -1
    fresh: int = 0
    cause: str = ""
    ended: asyncio.Future[int] = field(init=False)

    @property
    def ready(self) -> bool:
        """Loaded what there was to load, and has not ended."""
        return self.up.is_set() and not self.ended.done()


@dataclass(slots=True, eq=False)
class Slot:
    """A worker's place. worker: who answers; coming, leaving: its successor and its predecessor while there is one."""

    name: str
    listener: socket.socket | None
    grpc_port: int = 0
    worker: WorkerProcess | None = None
    coming: WorkerProcess | None = None
    leaving: WorkerProcess | None = None
    started: bool = False
    early_deaths: int = 0
    wanted: asyncio.Queue[tuple[WorkerProcess, str, str]] = field(default_factory=partial(asyncio.Queue, 1))

    @property
    def ready(self) -> bool:
        """Has a worker that answers."""
        return self.worker is not None and self.worker.ready

    def processes(self) -> Iterator[WorkerProcess]:
        """Every process that is in the slot now."""
        return (each for each in (self.worker, self.coming, self.leaving) if each is not None)


class Workers:
    """All slots of a server.

    configure: what a worker is to be told, given (slot, its place, its log). greet: messages for a worker that has just
    come up. heard: told every message that is not about the worker itself. writing: logs that living workers append to.
    """

    def __init__(
        self,
        options: ServeOptions,
        sockets: list[socket.socket],
        *,
        counters: Path,
        configure: Callable[[Slot, str, str], WorkerConfig],
        greet: Callable[[], list[dict[str, Any]]],
        heard: Callable[[WorkerProcess, dict[str, Any]], None],
    ) -> None:
        self.slots = [Slot(f"w{i}", listener) for i, listener in enumerate(sockets)]
        if options.grpc_port:
            self.slots.append(Slot("grpc", None, grpc_port=options.grpc_port))
        self.writing: set[str] = set()
        self.failure: LoopwrightError | None = None
        self.failed = asyncio.Event()
        self.gauges: dict[str, float] = {}
        self._drains = -1
        """The newest number of {"drain": number}; -1 before the first."""
        self._options = options
        self._counters = counters
        self._configure, self._greet, self._heard = configure, greet, heard
        self._say = options.say
        self._complain = Complaints(options.say)
        self._ceiling = Ceiling(options.max_memory, rest=options.rest_seconds) if options.max_memory else None
        self._restarts = dict.fromkeys(REASONS, 0)
        self._stopping = False
        # One replacement at a time: however many want one, the others keep answering.
        self._turn = asyncio.Lock()
        self._seeing_off: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> int:
        """How many slots answer."""
        return sum(slot.ready for slot in self.slots)

    def not_started(self) -> str:
        """Why the server has not started yet, or "" from the moment that every slot had a worker that was ready."""
        waiting = [slot.name for slot in self.slots if not slot.started]
        if not waiting:
            return ""
        return f"{len(self.slots) - len(waiting)} of {len(self.slots)} workers have come up"

    def restarts(self) -> dict[str, float]:
        """Counters of replaced workers, by reason."""
        return {f'worker_restarts_total{{reason="{why}"}}': float(n) for why, n in self._restarts.items()}

    def tell(self, message: dict[str, Any]) -> None:
        """Send `message` to every worker."""
        for slot in self.slots:
            for worker in slot.processes():
                worker.channel.send(message)

    def all_at(self, serial: int) -> bool:
        """Whether every worker that answers has applied this route table, or a newer one."""
        return all((each.serial or 0) >= serial for each in self._answering())

    def ask_to_drain(self) -> int:
        """Ask every worker, and each that comes up later, to say when what it has done is in its log; the number of
        this time, for `all_drained`."""
        self._drains += 1
        self.tell({"drain": self._drains})
        return self._drains

    def all_drained(self, number: int) -> bool:
        """Whether every worker that answers, or answers its last, has said so."""
        every = (each for slot in self.slots for each in slot.processes())
        return all(each.drained >= number for each in every if each.ready)

    def _answering(self) -> Iterator[WorkerProcess]:
        return (slot.worker for slot in self.slots if slot.worker is not None and slot.worker.ready)

    # A slot's life.

    async def keep_alive(self, slot: Slot) -> None:
        """Run a worker in `slot`, and another when it ends, until stopping."""
        loop = asyncio.get_running_loop()
        while True:
            born = loop.time()
            try:
                ended = await self._reign(slot)
                born, reason, ending = ended.born, ended.cause or "crash", _ending(ended.ended.result())
            except OSError as error:  # no memory or no descriptors for another process, perhaps for a moment
                reason, ending = "start", f"cannot be started: {in_words(error)}"
            if self._stopping:
                return
            lived = loop.time() - born
            self._restarts[reason] += 1
            self._say(f"worker {slot.name} ended ({ending}) after {lived:.1f} s; starting another")
            slot.early_deaths = slot.early_deaths + 1 if lived < EARLY_SECONDS else 0
            if slot.early_deaths >= EARLY_DEATHS and not self.ready:
                self.failure = Unavailable(
                    f"workers die as they start ({ending})",
                    where="loopwright serve",
                    next="The lines above say why.",
                )
                self.failed.set()
                return
            await asyncio.sleep(min(5.0, 0.2 * 2**slot.early_deaths) if slot.early_deaths > 1 else 0)

    async def _reign(self, slot: Slot) -> WorkerProcess:
        """Keep a worker in `slot`, replacing it as often as that is asked for; return the one that ended by itself."""
        if slot.worker is None:
            slot.worker = await self._begin(slot)
        while not slot.worker.ended.done():
            asked = asyncio.create_task(slot.wanted.get())
            await _first(slot.worker.ended, asked)
            if asked.done():
                await self._replace(slot, *asked.result())
            asked.cancel()
        ended, slot.worker = slot.worker, slot.coming
        slot.coming = None
        return ended

    def recycle(self, slot: Slot, worker: WorkerProcess, reason: str, why: str) -> None:
        """Have `worker` replaced by a fresh one, which starts first. Asked again meanwhile, nothing is added."""
        if worker is slot.worker and slot.wanted.empty() and slot.coming is None:
            slot.wanted.put_nowait((worker, reason, why))

    def recycle_all(self, why: str) -> None:
        """Have every worker replaced, one after another."""
        for slot in self.slots:
            if slot.worker is not None:
                self.recycle(slot, slot.worker, "asked", why)

    async def _replace(self, slot: Slot, old: WorkerProcess, reason: str, why: str) -> None:
        if old is not slot.worker:
            return
        turn = asyncio.create_task(self._turn.acquire())
        await _first(old.ended, turn)
        if not turn.done():
            turn.cancel()
            return
        try:
            if slot.leaving is not None:
                await slot.leaving.ended  # never more than two: a slot has two places
            if old.ended.done() or self._stopping:
                return
            self._say(f"worker {slot.name} {why}; starting its replacement")
            try:
                fresh = slot.coming = await self._begin(slot)
            except OSError as error:
                self._stays(slot, old, reason, why, f"cannot be started: {in_words(error)}")
                return
            up = asyncio.create_task(fresh.up.wait())
            await _first(up, fresh.ended, old.ended)
            up.cancel()
            if not fresh.ready:
                if fresh.ended.done():
                    slot.coming = None
                    self._stays(
                        slot, old, reason, why, f"ended as it started ({_ending(fresh.ended.result())})"
                    )
                return
            slot.worker, slot.coming, slot.leaving = fresh, None, old
            self._restarts[reason] += 1
        finally:
            self._turn.release()
        task = asyncio.create_task(self._see_off(slot, old))
        self._seeing_off.add(task)
        task.add_done_callback(self._seeing_off.discard)

    def _stays(self, slot: Slot, old: WorkerProcess, reason: str, why: str, ending: str) -> None:
        self._say(f"worker {slot.name} stays for now: its replacement {ending}")
        asyncio.get_running_loop().call_later(RETRY_SECONDS, self.recycle, slot, old, reason, why)

    async def _see_off(self, slot: Slot, old: WorkerProcess) -> None:
        old.channel.send({"leave": LINGER_SECONDS})
        await _first(old.ended, timeout=LINGER_SECONDS + GRACE_SECONDS + 5)
        if not old.ended.done():
            self._say(f"worker {slot.name} was replaced and does not go; killing it")
            _kill(old)
            await old.ended
        slot.leaving = None

    async def _begin(self, slot: Slot) -> WorkerProcess:
        """Start a process in `slot`; raises OSError when the machine has no room for one."""
        taken = {each.place for each in slot.processes() if not each.ended.done()}
        place = next(name for name in (slot.name, f"{slot.name}b", f"{slot.name}c") if name not in taken)
        log = f"{slot.name}-{new_id('w')}"
        ours, theirs = socket.socketpair()
        self.writing.add(log)
        try:
            with theirs:
                config = msgspec.structs.replace(self._configure(slot, place, log), channel=theirs.fileno())
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "loopwright.serving.worker",
                    msgspec.json.encode(config).decode(),
                    pass_fds=[theirs.fileno(), *([slot.listener.fileno()] if slot.listener else [])],
                    start_new_session=True,
                    env={**_inherited(self._options), **_ENVIRONMENT, ONLINE: self._options.online},
                )
        except OSError:
            ours.close()
            self.writing.discard(log)
            raise
        worker = WorkerProcess(
            place, log, process, await Channel.open(ours), asyncio.get_running_loop().time()
        )
        worker.ended = asyncio.ensure_future(self._run(slot, worker))
        if self._stopping:  # was told while the process was made
            _end(worker, signal.SIGTERM)
        return worker

    async def _run(self, slot: Slot, worker: WorkerProcess) -> int:
        listening = asyncio.create_task(self._listen(slot, worker))
        try:
            return await worker.process.wait()
        finally:
            listening.cancel()
            worker.channel.close()
            self.writing.discard(worker.log)
            disown(self._counters / f"{worker.place}.counters")

    async def _listen(self, slot: Slot, worker: WorkerProcess) -> None:
        async for message in worker.channel.messages():
            if "ready" in message:
                worker.serial, slot.started = message["serial"], True
                worker.fresh = resident(worker.process.pid)
                worker.up.set()
                if self._drains >= 0:
                    worker.channel.send({"drain": self._drains})
                for greeting in self._greet():
                    worker.channel.send(greeting)
            elif "applied" in message:
                worker.serial = message["applied"]
            elif "drained" in message:
                worker.drained = message["drained"]
            elif "pong" in message:
                worker.missed = 0
            elif "recycle" in message:
                self.recycle(slot, worker, "asked", f"asks to be replaced: {message['recycle']}")
            self._heard(worker, message)

    # Watching.

    async def watch(self) -> None:
        """Ping every worker, and end or replace those that hang, never come up, or are too large. Until cancelled."""
        every = min(1.0, self._options.hang_seconds / 10)
        allowed = ceil(self._options.hang_seconds / every)
        looks = 0.0
        while True:
            now = asyncio.get_running_loop().time()
            for slot in self.slots:
                for worker in slot.processes():
                    self._look(slot, worker, allowed, now)
            if self._ceiling is not None and now >= looks:
                looks = now + 1.0
                self._weigh(self._ceiling, now)
            await asyncio.sleep(every)

    def _look(self, slot: Slot, worker: WorkerProcess, allowed: int, now: float) -> None:
        if worker.ended.done() or worker.cause:
            return
        if not worker.up.is_set():
            if now - worker.born > self._options.start_seconds:
                self._say(
                    f"worker {slot.name} did not come up within {self._options.start_seconds:g} s; killing it"
                )
                worker.cause = "start"
                _kill(worker)
            return
        # Rounds are counted, not seconds: a supervisor that was stopped itself blames no worker for it.
        worker.missed += 1
        if worker.missed > allowed:
            self._say(f"worker {slot.name} hangs; killing it")
            worker.cause = "hang"
            _kill(worker)
        else:
            worker.channel.send({"ping": self.gauges})

    def _weigh(self, ceiling: Ceiling, now: float) -> None:
        busy = self._turn.locked() or any(slot.leaving or slot.coming for slot in self.slots)
        if busy:
            return
        answering = {slot.name: (slot, slot.worker) for slot in self.slots if slot.worker and slot.ready}
        sizes = {
            name: (worker.process.pid, worker.fresh, resident(worker.process.pid))
            for name, (_, worker) in answering.items()
        }
        judged = ceiling.judge(sizes, now)
        if judged is not None:
            name, why = judged
            self.recycle(*answering[name], "memory", why)
        hopeless = ceiling.hopeless()
        if hopeless:
            self._complain("memory", hopeless)
        else:
            self._complain.over("memory")

    # The end.

    async def stop(self) -> None:
        """Let every worker finish what is under way, then be gone; those that do not go are killed."""
        self._stopping = True
        running = [each for slot in self.slots for each in slot.processes() if not each.ended.done()]
        for worker in running:
            if worker.up.is_set():
                worker.channel.send({"leave": STOP_LINGER_SECONDS})
            else:
                _end(worker, signal.SIGTERM)
        if running:
            await asyncio.wait(
                {worker.ended for worker in running}, timeout=STOP_LINGER_SECONDS + GRACE_SECONDS + 5
            )
        for worker in running:
            _kill(worker)


def _inherited(options: ServeOptions) -> dict[str, str]:
    """The environment without what only the supervisor needs: a worker, where models run, calls nobody with it."""
    secret = {"LOOPWRIGHT_TOKEN", *(parse_sink(url).password_env for url in options.log_to)}
    return {name: value for name, value in os.environ.items() if name not in secret}


async def _first(*waiting: asyncio.Future[Any], timeout: float | None = None) -> None:
    """Wait until one of them is done; none is cancelled."""
    await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


def _kill(worker: WorkerProcess) -> None:
    _end(worker, signal.SIGKILL)


def _end(worker: WorkerProcess, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.process.send_signal(number)


def _ending(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
