"""How a version's predictions are carried out: on the event loop when they take microseconds, else in a thread.

Handing a prediction to a thread costs some 100 µs, so a small tree model is predicted where the request was parsed. A
model that takes milliseconds would hold up every other request there: its rows go to a thread of its own, and what
arrives while a batch runs forms the next one. Nothing waits for company, rows never change their order, and a lane
serves one version only. Which way is taken follows from what predictions are measured to take.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from loopwright.bundle.open import Bundle
from loopwright.bundle.routes import Batching
from loopwright.kernel.errors import LoopwrightError, Unavailable
from loopwright.serving.deadline import PredictionTimeout
from loopwright.serving.rows import Reader, Value

T = TypeVar("T")
A = TypeVar("A")

SLOW_US = 1_000
"""A row that takes longer is better predicted in a thread."""

VERY_SLOW_US = 50_000
SLOW_ROWS = 5
"""Slow rows, more than fast ones, after which the way is changed: one hiccup of the machine is none of the model's."""

CHUNK = 512
"""Rows predicted at once; between chunks of a large request other requests get their turn."""

FIRST = 8
"""Rows predicted at once by a version that is not in memory yet: nobody knows how long they take."""

WAITING = 4096
"""Rows that may wait for one lane."""

STUCK = 2
"""Threads that may hang in a model before the worker asks to be replaced."""


class Limit(Protocol):
    """What stops a prediction that takes too long."""

    def run(self, function: Callable[[A], T], argument: A, seconds: float) -> T: ...


class Outcome(NamedTuple):
    """What became of one row: its outputs, or None and why; took_us: the time of its batch, 0 within a request of many
    rows."""

    outputs: list[float] | None
    why: str
    took_us: int


class Overloaded(Unavailable):
    """More waits than can be answered in time; nothing of the request was done. `retry_after`: seconds."""

    def __init__(self, what: str, *, retry_after: float, wanted: str = "") -> None:
        super().__init__(what, wanted=wanted, next="Send it again after a pause, or to another server.")
        self.retry_after = retry_after


class DeadlinePassed(LoopwrightError):
    """The caller's time was over before there was an answer. tried: a version had been asked by then."""

    http_status = 504

    def __init__(self, what: str, *, tried: bool = False) -> None:
        super().__init__(what)
        self.tried = tried


@dataclass(slots=True, eq=False)
class _Waiting:
    rows: list[list[Value]]
    until: float
    answered: asyncio.Future[list[Outcome]]
    late: Callable[[Sequence[Outcome]], None]


def _nobody(outcomes: Sequence[Outcome]) -> None:
    """Nobody is told what came too late."""


class Lane:
    """One version's. Not safe to share between threads but for what it hands to its own.

    limit: stops predictions on the event loop's thread. stuck(why): called when threads hang in the model.
    """

    def __init__(
        self,
        bundle: Bundle,
        reader: Reader,
        batching: Batching,
        *,
        limit: Limit,
        timeout: float,
        stuck: Callable[[str], None] = lambda why: None,
        batched: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self.bundle = bundle
        self._reader = reader
        self._limit, self._timeout = limit, timeout
        self._stuck, self._batched = stuck, batched
        isolated = getattr(bundle, "isolated", False)
        self._direct = getattr(bundle, "direct", False)
        self.inline = batching.mode != "on" and not isolated
        self._adapts = self.inline
        self._max_rows = 1 if batching.mode == "off" else batching.max_rows
        self._slow = 0
        self._queue: deque[_Waiting] = deque()
        self.waiting = 0
        """Rows that wait or run in the thread."""
        self._row_us = 0.0
        self._pool: ThreadPoolExecutor | None = None
        self._running: asyncio.Task[None] | None = None
        self._hung = 0
        self._closed = False

    # On the event loop.

    def now(self, values: list[Value]) -> Outcome:
        """Predict one row here; whatever goes wrong is in the outcome."""
        started = perf_counter_ns()
        try:
            outputs: list[float]
            if self._direct:
                features = np.array((values,), dtype=np.float64).astype(np.float32)
                outputs = self._limit.run(self.bundle.predict_one, features, self._timeout)
            else:
                columns = self._reader.columns((values,))
                outputs = self._limit.run(self.bundle.predict_columns, columns, self._timeout)[0].tolist()
        except Exception as error:  # noqa: BLE001 - whatever a model raises is the model's error, on record and answered for
            took = (perf_counter_ns() - started) // 1000 or 1
            self._measured(took)
            return Outcome(None, _why(error), took)
        took = (perf_counter_ns() - started) // 1000 or 1
        if took > SLOW_US or self._slow:
            self._measured(took)
        if len(outputs) == 1:
            if outputs[0] - outputs[0] != 0.0:
                return Outcome(None, f"gave a value that is not finite: {outputs}", took)
        elif not all(map(math.isfinite, outputs)):
            return Outcome(None, f"gave a value that is not finite: {outputs}", took)
        return Outcome(outputs, "", took)

    def many_now(self, values: Sequence[list[Value]]) -> list[Outcome]:
        """Predict rows together here; when that raises, each alone, so that one bad row spoils no other."""
        started = perf_counter_ns()
        outcomes = _together(self.bundle, self._reader, values, self._limit, self._timeout)
        took = perf_counter_ns() - started
        self._learn(took, len(values))
        each = took // 1000 // len(values)
        if each > SLOW_US:
            self._measured(took // 1000)  # all of them held up the others
        elif self._slow:
            self._measured(each)
        return outcomes

    def rows_within(self, hold_us: int, most: int) -> int:
        """How many rows may be predicted at once without holding the event loop longer than `hold_us`."""
        return most if not self.inline else max(1, min(most, int(hold_us / (self._row_us or hold_us / 8))))

    def _learn(self, took_ns: int, rows: int) -> None:
        per_row = took_ns / 1000 / rows
        self._row_us = per_row if self._row_us == 0.0 else 0.8 * self._row_us + 0.2 * per_row

    def _measured(self, took: int) -> None:
        if not self._adapts:
            return
        if took > SLOW_US:
            # Not at once even when it held up everything: on a busy machine a process may wait so long for its turn.
            self._slow += SLOW_ROWS // 2 + 1 if took > VERY_SLOW_US else 1
            if self._slow >= SLOW_ROWS:
                self.inline = False
        elif self._slow:
            self._slow -= 1
            if self._slow == 0:
                self.inline = True

    # In the thread.

    async def predict(
        self,
        rows: list[list[Value]],
        until: float,
        late: Callable[[Sequence[Outcome]], None] = _nobody,
    ) -> list[Outcome]:
        """Predict rows in the lane's thread, together with others that wait. `until`: the loop's time that counts.
        late: told what became of them when nobody waits for it any more.

        Raises Overloaded when they could not be answered by then, DeadlinePassed when they were not.
        """
        loop = asyncio.get_running_loop()
        left = until - loop.time()
        expected = (self.waiting + len(rows)) * self._row_us / 1e6
        if left <= 0:
            raise DeadlinePassed("the caller's time was over before the prediction began")
        if self.waiting and (self.waiting + len(rows) > max(WAITING, len(rows)) or expected > left):
            raise Overloaded(
                f"{self.waiting} rows wait already", retry_after=max(0.1, expected - left),
                wanted=f"at most {WAITING}, and an answer within {left:.2g} s",
            )  # fmt: skip
        item = _Waiting(rows, until, loop.create_future(), late)
        self._queue.append(item)
        self.waiting += len(rows)
        if self._running is None or self._running.done():
            self._running = loop.create_task(self._run())
        try:
            async with asyncio.timeout_at(until):
                return await item.answered
        except TimeoutError:
            raise DeadlinePassed(
                "the caller's time was over before there was an answer", tried=True
            ) from None

    async def close(self) -> None:
        """Answer what waits, then let go of the thread; the bundle is its owner's to close."""
        self._closed = True
        if self._running is not None:
            with suppress(Exception):
                await self._running
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            batch = self._next(loop.time())
            if not batch:
                continue
            rows = [row for item in batch for row in item.rows]
            try:
                outcomes = await self._in_thread(rows)
            except Exception as error:  # noqa: BLE001 - each waiting request gets the reason
                outcomes = [Outcome(None, _why(error), 0)] * len(rows)
            finally:
                self.waiting -= len(rows)
            start = 0
            for item in batch:
                end = start + len(item.rows)
                if item.answered.done():
                    item.late(outcomes[start:end])
                else:
                    item.answered.set_result(outcomes[start:end])
                start = end

    def _next(self, now: float) -> list[_Waiting]:
        """The requests that are predicted together next; those whose time is over are left out."""
        batch: list[_Waiting] = []
        size = 0
        while self._queue:
            item = self._queue[0]
            if item.answered.done() or item.until <= now:
                self._queue.popleft()
                self.waiting -= len(item.rows)
                continue
            if batch and size + len(item.rows) > self._max_rows:
                break
            batch.append(self._queue.popleft())
            size += len(item.rows)
        return batch

    async def _in_thread(self, rows: list[list[Value]]) -> list[Outcome]:
        loop = asyncio.get_running_loop()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="lane")
        limit = self._timeout * (1 + len(rows) / 100)
        started = perf_counter_ns()
        work = loop.run_in_executor(self._pool, _timed, self.bundle, self._reader, rows, limit)
        done, _ = await asyncio.wait((work,), timeout=limit)
        if not done:
            # The thread cannot be stopped; the next batch gets a fresh one.
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
            self._hung += 1
            work.add_done_callback(self._came_back)
            if self._hung >= STUCK:
                self._stuck(f"{self._hung} threads hang in {self.bundle.name}")
            return [
                Outcome(None, f"PredictionTimeout: took longer than {limit:g} s", int(limit * 1e6))
            ] * len(rows)
        took = (perf_counter_ns() - started) // 1000 or 1
        self._batched(len(rows))
        self._learn(1000 * took, len(rows))
        outcomes, inside = work.result()
        if len(rows) == 1 or inside <= SLOW_US:  # what is fast with company is fast alone
            self._measured(inside)
        return [outcome._replace(took_us=took) for outcome in outcomes]

    def _came_back(self, work: asyncio.Future[Any]) -> None:
        self._hung -= 1
        if not work.cancelled():
            work.exception()


class _Unlimited:
    def run(self, function: Callable[[A], T], argument: A, seconds: float) -> T:
        return function(argument)


_UNLIMITED = _Unlimited()


def _timed(
    bundle: Bundle, reader: Reader, values: Sequence[list[Value]], timeout: float
) -> tuple[list[Outcome], int]:
    """`_together`, and the µs that it took in its thread, without the wait for the thread to get its turn."""
    started = perf_counter_ns()
    outcomes = _together(bundle, reader, values, _UNLIMITED, timeout)
    return outcomes, (perf_counter_ns() - started) // 1000


def _together(
    bundle: Bundle, reader: Reader, values: Sequence[list[Value]], limit: Limit, timeout: float
) -> list[Outcome]:
    try:
        columns = reader.columns(values)
        result = limit.run(bundle.predict_columns, columns, timeout * (1 + len(values) / 100))
    except PredictionTimeout as error:
        # Alone they may be no faster, and others have waited long enough.
        return [Outcome(None, _why(error), 0)] * len(values)
    except Exception as error:  # noqa: BLE001 - each row is tried alone, where its own error is kept
        if len(values) == 1:
            return [Outcome(None, _why(error), 0)]
        return [one for row in values for one in _together(bundle, reader, [row], limit, timeout)]
    outputs: list[list[float]] = result.tolist()
    if np.isfinite(result).all():
        return [Outcome(row, "", 0) for row in outputs]
    return [
        Outcome(row, "", 0)
        if all(map(math.isfinite, row))
        else Outcome(None, f"gave a value that is not finite: {row}", 0)
        for row in outputs
    ]


def _why(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]
