"""Reads the online store on behalf of a worker's event loop, in bounded time, and leaves it alone while it is away."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any, TypeVar

import msgspec

from loopwright.features.online import Head, OnlineFeatures, OnlineStore, Reading, open_store
from loopwright.kernel.errors import NotFound, Unavailable
from loopwright.serving.lanes import DeadlinePassed, Overloaded

T = TypeVar("T")
Asks = Mapping[str, tuple[Sequence[Mapping[str, Any]], Sequence[int]]]
"""View → entities and the moment (µs) that each is asked about."""

STORE_SECONDS = 1.0
"""After which a thread gives a store up. Requests have left by then; this only frees the thread."""

INLINE_KEYS = 64
"""So many rows of a file are read on the event loop, at some 10 µs each; more in a thread."""

THREADS = 4
WAITING = 512
"""Lookups that may wait for a thread."""

TIMEOUTS = 5
"""So many in a row, and the store counts as away; fewer are slow requests."""

PER_KEYS = 5000
"""So many keys may take once more what a lookup may take."""

PAUSES = (0.5, 8.0)
"""Seconds for which a store that does not answer is left alone: at first, and at most."""

_FOREVER = float("inf")


class Away(Unavailable):
    """The store did not answer; `retry_after`: seconds after which it is asked again."""

    def __init__(self, what: str, *, retry_after: float) -> None:
        super().__init__(what)
        self.retry_after = retry_after


@dataclass(slots=True)
class Found:
    """By view: readings with the head they were made under, or why there are none. away: the store did not answer."""

    readings: dict[str, tuple[Head, list[Reading]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    away: Away | None = None
    took_us: int = 0


class Lookups:
    """One event loop's. inline: the store is a file on this machine, which few keys are read from at once.

    `why`: what it said when it did not answer; "" while it does.
    """

    def __init__(self, store: OnlineStore, *, inline: bool) -> None:
        self.why = ""
        self._store = store
        self._features = OnlineFeatures(store)
        self._inline = inline
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="features")
        self._waiting = self._timeouts = 0
        self._pause, self._again = 0.0, 0.0

    @classmethod
    def open(cls, url: str) -> "Lookups":
        """Open the store at `url`; connects when first used. Raises BadInput, Unavailable."""
        return cls(open_store(url, seconds=STORE_SECONDS), inline=url.startswith("sqlite:"))

    async def read(self, model: str, asks: Asks, seconds: float, until: float) -> Found:
        """Read views in one round trip, in `seconds` and by the loop's time `until`.

        A store that does not answer, or views that are not there, are in what is found. Raises BadInput for a key of
        another type, Overloaded, DeadlinePassed.
        """
        loop = asyncio.get_running_loop()
        if until <= loop.time():
            raise DeadlinePassed("the caller's time was over before its features were looked up")
        started = perf_counter_ns()
        found = await self._read(model, asks, seconds, until)
        found.took_us = (perf_counter_ns() - started) // 1000
        return found

    async def _read(self, model: str, asks: Asks, seconds: float, until: float) -> Found:
        missing: dict[str, str] = {}
        try:
            try:
                return Found(await self._readings(model, asks, seconds, until))
            except NotFound:
                # Seldom: something was never materialised, or is so no more. The others are read all the same.
                heads = await self._run(lambda: self._store.heads(model), 0, seconds, until)
                gone = [view for view in asks if view not in heads]
                missing = dict.fromkeys(gone, f"nothing is online for {', '.join(gone)}")
                asks = {view: ask for view, ask in asks.items() if view in heads}
                return Found(await self._readings(model, asks, seconds, until) if asks else {}, missing)
        except NotFound as error:  # what was there a moment ago went
            return Found({}, {**missing, **dict.fromkeys(asks, str(error))})
        except Away as away:
            return Found({}, {**missing, **dict.fromkeys(asks, str(away))}, away)

    async def _readings(
        self, model: str, asks: Asks, seconds: float, until: float
    ) -> dict[str, tuple[Head, list[Reading]]]:
        keys = sum(len(entities) for entities, _ in asks.values())
        return await self._run(lambda: self._features.read_each(model, asks), keys, seconds, until)

    async def heads(self, model: str) -> dict[str, Head] | None:
        """The heads that stand, by view; None while the store is away."""
        try:
            return await self._run(lambda: self._store.heads(model), 0, STORE_SECONDS, _FOREVER)
        except (Away, Overloaded):
            return None

    async def _run(self, work: Callable[[], T], keys: int, seconds: float, until: float) -> T:
        loop = asyncio.get_running_loop()
        if loop.time() < self._again:
            raise Away(self.why, retry_after=self._again - loop.time())
        if self._inline and keys <= INLINE_KEYS:
            try:
                found = work()
            except (Unavailable, msgspec.MsgspecError) as error:
                raise self._away(str(error)) from None
        else:
            found = await self._in_thread(work, seconds * (1 + keys / PER_KEYS), until)
        self.why, self._pause, self._timeouts = "", 0.0, 0
        return found

    async def _in_thread(self, work: Callable[[], T], seconds: float, until: float) -> T:
        loop = asyncio.get_running_loop()
        if self._waiting >= WAITING:
            raise Overloaded(f"{self._waiting} lookups wait already", retry_after=1.0)
        self._waiting += 1
        running = loop.run_in_executor(self._pool, work)
        running.add_done_callback(self._ended)
        left = until - loop.time()
        done, _ = await asyncio.wait((running,), timeout=min(seconds, left))
        if not done:
            running.cancel()  # of no effect once its thread has begun
            if left < seconds:
                raise DeadlinePassed("the caller's time was over before its features were there")
            self._timeouts += 1
            why = f"it did not answer within {seconds:.3g} s"
            raise self._away(why) if self._timeouts >= TIMEOUTS else Away(why, retry_after=PAUSES[0])
        try:
            return running.result()
        except (Unavailable, msgspec.MsgspecError) as error:
            raise self._away(str(error)) from None

    def _ended(self, running: "asyncio.Future[Any]") -> None:
        self._waiting -= 1
        if not running.cancelled():
            running.exception()  # whoever waited has been told

    def _away(self, why: str) -> Away:
        self.why = why
        self._pause = min(PAUSES[1], 2 * self._pause or PAUSES[0])
        self._again = asyncio.get_running_loop().time() + self._pause
        return Away(self.why, retry_after=self._pause)

    def close(self) -> None:
        """Let go of the store and its threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._store.close()
