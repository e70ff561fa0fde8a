"""Answers rows: picks the arm, predicts, counts an arm's error before another answer stands in, logs and shadows.

Knows no protocol and no socket. Every answer is in the log before it is returned.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns
from typing import Any, Protocol

from loopwright.kernel.errors import LoopwrightError, NotFound, Refused, Unavailable
from loopwright.kernel.ids import new_id
from loopwright.serving.answers import PLAIN, Answer, Call, ModelFailed, Source
from loopwright.serving.breakers import Breakers
from loopwright.serving.counters import Counters
from loopwright.serving.events import Event, SegmentWriter, Status, count_frames, frame
from loopwright.serving.fit import Fit
from loopwright.serving.kept import Kept
from loopwright.serving.lanes import CHUNK, FIRST, DeadlinePassed, Lane, Limit, Outcome, Overloaded
from loopwright.serving.logrule import LogRule
from loopwright.serving.models import Model, Served
from loopwright.serving.router import assign, is_shadowed
from loopwright.serving.rows import PartialRows, Rows, Value

__all__ = ["PLAIN", "SHADOW_QUEUE", "Answer", "Call", "Engine", "Model", "ModelFailed", "Served"]

HOLD_US = 10_000
"""How long the rows of one request may hold the event loop at once."""

SHADOW_QUEUE = 4096
SHADOW_BATCH = 64
SHADOW_HOLD_US = 200
"""How long copies may hold the event loop at once."""

SHADOW_CREDIT_US = 200_000
"""The most unspent time that copies may save up."""

DIRECT = "direct"


class Warmer(Protocol):
    """Brings versions into memory."""

    async def warm(self, served: Served) -> None:
        """Return when `served.bundle` is there; raises Unavailable."""

    def touch(self, served: Served) -> None:
        """Note that it was used."""


@dataclass(slots=True)
class _Copy:
    served: Served
    model: Model
    id: str
    unit: str
    event_time: int
    values: list[Value]


@dataclass(slots=True)
class _Batch:
    model: Model
    values: list[list[Value]]
    ids: list[str]
    units: list[str]
    times: list[int]
    now: int
    until: float
    answer: Answer
    fits: Mapping[int, Fit]
    unfit: Mapping[int, str] | None = None


class Engine:
    """Serves models from one event loop. Not safe to share between threads.

    now_us: microseconds since 1970. stuck(why): the process had better be replaced. warmer: for versions that are not
    in memory; without one, all are.
    """

    def __init__(
        self,
        log: SegmentWriter,
        counters: Counters,
        *,
        now_us: Callable[[], int],
        limit: Limit,
        timeout: float = 2.0,
        stuck: Callable[[str], None] = lambda why: None,
        warmer: Warmer | None = None,
    ) -> None:
        self.models: dict[str, Model] = {}
        self._log = log
        self._counters = counters
        self._now_us = now_us
        self._limit = limit
        self._timeout = timeout
        self._stuck = stuck
        self.warmer = warmer
        self._copies: deque[_Copy] = deque()
        self._copied = self._handled = 0
        self._draining: asyncio.Task[None] | None = None
        self._shadow_credit, self._shadow_at = float(SHADOW_CREDIT_US), 0
        self._kept = Kept()
        self.breakers = Breakers(counters)
        self._closing: set[asyncio.Task[None]] = set()
        self._queues: set[tuple[str, str]] = set()
        # Unique, and a tenth of the cost of a new random id per request.
        self._prefix, self._requests = new_id("rq"), itertools.count()

    # What is served.

    def serve(self, models: dict[str, Model]) -> None:
        """Answer with these from now on; what only the former models held is let go of when it is no longer used."""
        before = {served for model in self.models.values() for served in _all(model)}
        former, self.models = self.models, models
        stays = {served for model in models.values() for served in _all(model)}
        for served in before - stays:
            self._let_go(served)
        for name, model in models.items():
            if name in former and former[name].policy != model.policy:
                self._renew(model)
        for model in models.values():
            for served in _all(model):
                served.rule = LogRule.of(model.policy.log, served.schema)
        known = {(name, version) for name, model in models.items() for version in model.versions}
        self.breakers.drop(lambda key: key[:2] not in known)
        self._kept.review(former, models)

    def model(self, name: str) -> Model:
        """Return the model; raises NotFound naming what is served."""
        model = self.models.get(name)
        if model is None:
            served = ", ".join(sorted(self.models)) or "no model yet"
            raise NotFound(f"no model `{name}` is served here", wanted=served)
        return model

    def target(self, model: Model, version: int | None) -> Served:
        """Return the version whose schema a request must meet: the asked one, or stable."""
        if version is not None and version in model.versions:
            return model.versions[version]
        if version is not None and version not in model.refused:
            served = ", ".join(map(str, sorted(model.versions))) or "none"
            raise NotFound(f"version {version} of {model.name} is not served here", wanted=served)
        stable = model.stable
        if version is None and stable is not None:
            return stable
        reasons = "; ".join(f"version {number}: {why}" for number, why in sorted(model.refused.items()))
        raise Unavailable(f"{model.name} has no version that may answer ({reasons})")

    # Answers.

    async def infer(self, model: Model, rows: Rows, call: Call = PLAIN) -> Answer:
        """Answer every row that can be answered; see `Answer.errors` for the others.

        Raises Unavailable when the answer cannot be logged, Overloaded when nothing could be tried in time,
        DeadlinePassed, Refused for an arm that there is not. What was tried is counted and logged in any case.
        """
        begun = self.start(model, rows, call)
        return begun if isinstance(begun, Answer) else await begun

    def start(self, model: Model, rows: Rows, call: Call = PLAIN) -> Answer | Coroutine[Any, Any, Answer]:
        """`infer`, at once where that is possible: one row for a model that is fast and well. Else what to await."""
        now = self._now_us()
        if call.request_id or call.unit:
            call.name(rows)
        if rows.n != 1 or rows.unfit:
            request_id = rows.request_id or self._new_id()
            ids = [given or f"{request_id}/{row}" for row, given in enumerate(rows.ids)]
            units = [given or ids[row] for row, given in enumerate(rows.units)]
            return self._answer(self._batch(model, rows, call, request_id, ids, units, now), call)
        row_id = rows.ids[0] or rows.request_id or self._new_id()
        unit = rows.units[0] or row_id
        request_id = rows.request_id or row_id
        served, arm = self._choose(model, call, unit)
        lane = served.lane
        if lane is None or lane.bundle is not served.bundle:
            lane = self._lane(model, served)
        breaker = self.breakers.of(model, served.version, arm)
        if (
            lane is None
            or not lane.inline
            or breaker.state != "closed"
            or (model.fits and served.version in model.fits and call.version is None)
        ):
            return self._answer(self._batch(model, rows, call, request_id, [row_id], [unit], now), call)
        values = rows.values[0]
        served.used = now
        outcome = lane.now(values)
        outputs, why, took = outcome
        breaker.record(outputs is not None, took, now)
        event_time = rows.event_times[0] or now
        event = Event(
            row_id, unit, event_time, now, model.name, served.version, arm, took, "ok", "", served.rule.inputs(values),
            outputs or [],
        )  # fmt: skip
        if outputs is None:
            event.status, event.error = "error", served.rule.error(why)
            batch = self._batch(model, rows, call, request_id, [row_id], [unit], now)
            self._write(model, self._frame(event))
            return self._answer(batch, call, {0: (served, why)})
        self._write(model, self._frame(event))
        if call.version is None:
            self._copy_to_shadow(model, unit, row_id, event_time, values)
            if model.policy.cached_answers:
                self._kept.keep(model, values, served.version, outputs)
        return Answer(request_id, [row_id], [outputs], [served.version], [arm], ["model"], [""])

    def _batch(
        self,
        model: Model,
        rows: Rows,
        call: Call,
        request_id: str,
        ids: list[str],
        units: list[str],
        now: int,
    ) -> _Batch:
        n = rows.n
        answer = Answer(request_id, ids, [[]] * n, [0] * n, [""] * n, ["model"] * n, [""] * n)
        times = [given or now for given in rows.event_times]
        fits = model.fits if call.version is None else {}
        limit = asyncio.get_running_loop().time() + 2 * self._seconds(model) * (1 + n / 100)
        return _Batch(
            model, rows.values, ids, units, times, now, min(call.until, limit), answer, fits, rows.unfit
        )

    async def _answer(
        self, batch: _Batch, call: Call, failed: dict[int, tuple[Served, str]] | None = None
    ) -> Answer:
        """Go down the ladder: the row's arm, stable, an earlier answer, the configured one. failed: tried before."""
        model = batch.model
        if failed is None:
            failed = {}
            groups: dict[tuple[Served, str], list[int]] = {}
            for row, unit in enumerate(batch.units):
                groups.setdefault(self._choose(model, call, unit), []).append(row)
            for (served, arm), members in groups.items():
                failed.update(await self._attempt(batch, served, arm, members, "model"))
        stable = model.stable
        if failed and stable is not None and call.version is None:
            left = sorted(row for row, (served, _) in failed.items() if served is not stable)
            if left:
                for row in left:
                    failed.pop(row)
                failed.update(await self._attempt(batch, stable, "stable", left, "stable"))
        if failed and call.version is None:
            self._stand_in(batch, failed)
        for row, (served, why) in failed.items():
            batch.answer.errors[row] = why
            batch.answer.versions[row] = served.version
        if call.version is None:
            for row, unit in enumerate(batch.units):
                if batch.answer.outputs[row]:
                    self._copy_to_shadow(
                        model, unit, batch.ids[row], batch.times[row], batch.values[row], batch.unfit
                    )
        return batch.answer

    async def _attempt(
        self, batch: _Batch, served: Served, arm: str, members: list[int], source: Source
    ) -> dict[int, tuple[Served, str]]:
        """Predict and log `members`, fill the answer, and return the rows that failed with the reason."""
        model = batch.model
        failed: dict[int, tuple[Served, str]] = {}
        loop, start = asyncio.get_running_loop(), 0
        while start < len(members):
            if start and loop.time() >= batch.until:
                raise DeadlinePassed("the caller's time was over before all rows had an answer")
            lane = self._lane(model, served)
            most = lane.rows_within(HOLD_US, CHUNK) if lane is not None else FIRST
            chunk = members[start : start + most]
            start += most
            values = [batch.values[row] for row in chunk]
            fit = batch.fits.get(served.version)
            try:
                outcomes = await (
                    self._predict(model, served, arm, values, batch)
                    if fit is None
                    else self._predict_fitted(model, served, arm, fit, values, batch)
                )
            except DeadlinePassed as error:
                if error.tried:  # whoever judges the arm must see that it did not answer in time
                    why = f"DeadlinePassed: {error}"
                    lost = [self._row_frame(batch, row, served, arm, "error", why, [], 0) for row in chunk]
                    self._write(model, b"".join(lost))
                raise
            frames = []
            for row, (outputs, why, took) in zip(chunk, outcomes, strict=True):
                status: Status = "error" if outputs is None else "ok" if source == "model" else "fallback"
                took = took if len(members) == 1 else 0
                frames.append(self._row_frame(batch, row, served, arm, status, why, outputs or [], took))
                if outputs is None:
                    failed[row] = (served, why)
                    continue
                told = outputs if fit is None else fit.answer(outputs)
                self._fill(batch, row, told, served.version, arm, source)
                if source == "model" and model.policy.cached_answers:
                    self._kept.keep(model, batch.values[row], served.version, outputs)
            self._write(model, b"".join(frames))
            await asyncio.sleep(0)
        return failed

    async def _predict_fitted(
        self, model: Model, served: Served, arm: str, fit: Fit, values: list[list[Value]], batch: _Batch
    ) -> Sequence[Outcome]:
        """`_predict` rows of stable's schema by a version that has another; outputs are in the version's order."""
        rows = [fit.row(row) for row in values]
        reasons = [fit.misfit(row) for row in rows]
        good = [row for row, why in zip(rows, reasons, strict=True) if not why]
        outcomes = iter(await self._predict(model, served, arm, good, batch) if good else ())
        return [Outcome(None, why, 0) if why else next(outcomes) for why in reasons]

    async def _predict(
        self, model: Model, served: Served, arm: str, values: list[list[Value]], batch: _Batch
    ) -> Sequence[Outcome]:
        if batch.unfit and served.version in batch.unfit:
            # Its error all the same: whoever judges an arm must see that it could not answer.
            return [Outcome(None, batch.unfit[served.version], 0)] * len(values)
        breaker = self.breakers.of(model, served.version, arm)
        if not breaker.allows(batch.now):
            batch.answer.retry_after = pause = max(0.1, breaker.wait(batch.now))
            why = f"the circuit is open for another {pause:.3g} s: too many predictions failed or lagged"
            return [Outcome(None, why, 0)] * len(values)
        try:
            lane = self._lane(model, served) or await self._warm(model, served, batch.until)
        except Overloaded:
            raise
        except LoopwrightError as error:
            breaker.record(False, 0, batch.now)
            batch.answer.retry_after = batch.answer.retry_after or 1.0  # nothing was predicted: 503, not 500
            return [Outcome(None, str(error)[:500], 0)] * len(values)
        if self.warmer is not None:
            self.warmer.touch(served)

        def note(outcomes: Sequence[Outcome]) -> None:
            now = self._now_us()
            for outputs, _, took in outcomes:
                breaker.record(outputs is not None, took if len(outcomes) == 1 else 0, now)

        outcomes = (
            ([lane.now(values[0])] if len(values) == 1 else lane.many_now(values))
            if lane.inline
            else await lane.predict(values, batch.until, note)
        )
        note(outcomes)
        return outcomes

    def _stand_in(self, batch: _Batch, failed: dict[int, tuple[Served, str]]) -> None:
        """Answer rows that no version answered with what is kept or configured, and take them out of `failed`."""
        model = batch.model
        frames = []
        for row in sorted(failed):
            served, why = failed[row]
            source: Source
            kept = None if batch.unfit else self._kept.find(model, batch.values[row])
            default = model.default_for(model.stable or served)
            if kept is not None:
                version, outputs = kept
                by, source, fit = model.versions[version], "cache", batch.fits.get(version)
                told = outputs if fit is None else fit.answer(outputs)
            elif default is not None:
                by, source, told = served, "default", default
                outputs = model.default_for(served) or default
            else:
                continue
            frames.append(self._row_frame(batch, row, by, source, "fallback", why, outputs, 0))
            self._fill(batch, row, told, by.version, source, source)
            del failed[row]
        if frames:
            self._write(model, b"".join(frames))

    def _fill(
        self, batch: _Batch, row: int, outputs: list[float], version: int, arm: str, source: Source
    ) -> None:
        answer = batch.answer
        answer.outputs[row] = outputs
        answer.versions[row] = version
        answer.arms[row] = arm
        answer.sources[row] = source

    def place(self, model: Model, rows: PartialRows, call: Call) -> list[Served]:
        """Name the rows that have no id yet, and return the version that each of them goes to. Raises Refused."""
        call.name(rows)
        if rows.n == 1:
            rows.ids[0] = rows.ids[0] or rows.request_id or self._new_id()
        rows.request_id = rows.request_id or (rows.ids[0] if rows.n == 1 else self._new_id())
        rows.ids = [given or f"{rows.request_id}/{row}" for row, given in enumerate(rows.ids)]
        return [
            self._choose(model, call, unit or row_id)[0]
            for unit, row_id in zip(rows.units, rows.ids, strict=True)
        ]

    def _new_id(self) -> str:
        return f"{self._prefix}-{next(self._requests)}"

    def _choose(self, model: Model, call: Call, unit: str) -> tuple[Served, str]:
        if call.version is not None:
            served = self.target(model, call.version)
            return served, "stable" if served is model.stable else DIRECT
        arms = model.arms
        if call.arm:
            forced = next((arm for arm in arms if arm.name == call.arm and arm.name != "shadow"), None)
            if forced is None:
                there = ", ".join(arm.name for arm in arms if arm.name != "shadow")
                raise Refused(f"{model.name} has no arm of this name now", got=call.arm, wanted=there)
            return model.versions[forced.version], forced.name
        if not arms:
            return self.target(model, None), "stable"
        arm = assign(model.salt, unit, arms)
        return model.versions[arm.version], arm.name

    # What stands behind an arm.

    def _seconds(self, model: Model) -> float:
        return min(self._timeout, model.policy.timeout_ms / 1000)

    def _lane(self, model: Model, served: Served) -> Lane | None:
        """The version's lane; None while it is not in memory."""
        bundle = served.bundle
        if served.lane is not None and served.lane.bundle is bundle:
            return served.lane
        self._let_go(served)
        if bundle is None:
            return None
        labels = ("batch", model.name, str(served.version))
        served.lane = Lane(
            bundle, served.reader, model.policy.batching, limit=self._limit, timeout=self._seconds(model),
            stuck=self._stuck, batched=partial(self._counters.observe_size, labels),
        )  # fmt: skip
        return served.lane

    async def _warm(self, model: Model, served: Served, until: float) -> Lane:
        if self.warmer is None:
            raise Unavailable(f"version {served.version} of {model.name} is not in memory")
        try:
            async with asyncio.timeout_at(until):
                await self.warmer.warm(served)
        except TimeoutError:
            raise Unavailable(f"version {served.version} of {model.name} is not in memory yet") from None
        lane = self._lane(model, served)
        if lane is None:
            raise Unavailable(f"version {served.version} of {model.name} has left memory again")
        return lane

    def _let_go(self, served: Served) -> None:
        lane, served.lane = served.lane, None
        if lane is not None:
            task = asyncio.get_running_loop().create_task(lane.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _renew(self, model: Model) -> None:
        """Take over another policy: lanes and breakers are made anew as they are needed."""
        for served in _all(model):
            self._let_go(served)
        self.breakers.drop(lambda key: key[0] == model.name)

    def measure(self) -> None:
        """Note for the metrics what waits now."""
        waiting = {
            (model.name, str(version)): served.lane.waiting
            for model in self.models.values()
            for version, served in model.versions.items()
            if served.lane is not None and not served.lane.inline
        }
        for key in self._queues | waiting.keys():
            self._counters.put(("queue_rows", *key), waiting.get(key, 0))
        self._queues = set(waiting)

    # The log.

    def _frame(self, event: Event) -> bytes:
        self._counters.add(("predictions", event.model, str(event.version), event.arm, event.status))
        return frame(event)

    def _row_frame(
        self, batch: _Batch, row: int, served: Served, arm: str, status: Status, why: str, outputs: list[float],
        took: int,
    ) -> bytes:  # fmt: skip
        rule, values, fit = served.rule, batch.values[row], batch.fits.get(served.version)
        return self._frame(
            Event(
                batch.ids[row], batch.units[row], batch.times[row], batch.now, batch.model.name,
                served.version, arm, took, status, rule.error(why),
                rule.inputs(values if fit is None else fit.row(values)), outputs,
            )
        )  # fmt: skip

    def _write(self, model: Model, frames: bytes) -> None:
        try:
            self._log.append(frames)
        except Unavailable:
            refused = model.policy.log.disk_full == "refuse"
            self._counters.add(
                ("log_refused" if refused else "log_dropped", model.name), count_frames(frames)
            )
            if refused:
                raise

    # Shadows are predicted between requests, from copies, in small batches; when too many wait, copies are dropped.

    def _copy_to_shadow(
        self, model: Model, unit: str, row_id: str, time: int, values: list[Value],
        unfit: Mapping[int, str] | None = None,
    ) -> None:  # fmt: skip
        if model.policy.shadow_share <= 0.0:
            return
        for arm in model.arms:
            if arm.name != "shadow" or not is_shadowed(model.salt, unit, arm.weight):
                continue
            if len(self._copies) >= SHADOW_QUEUE or (unfit and arm.version in unfit):
                self._counters.add(("shadow_dropped", model.name, str(arm.version)))
                return
            self._copies.append(_Copy(model.versions[arm.version], model, row_id, unit, time, values))
            self._copied += 1
            if self._draining is None or self._draining.done():
                self._draining = asyncio.get_running_loop().create_task(self._drain_shadow())

    async def drained(self) -> None:
        """Return when every copy made so far has been predicted and logged."""
        last = self._copied
        while self._handled < last and self._draining is not None:
            if self._draining.done():
                return await self._draining
            await asyncio.wait({self._draining}, timeout=0.005)
        return None

    async def _drain_shadow(self) -> None:
        while self._copies:
            # Lets the answer that made the copy leave first.
            await asyncio.sleep(max(0.0005, self._pause()))
            first = self._copies[0]
            most = first.served.lane.rows_within(SHADOW_HOLD_US, SHADOW_BATCH) if first.served.lane else 1
            batch = [self._copies.popleft()]
            while self._copies and len(batch) < most and self._copies[0].served is first.served:
                batch.append(self._copies.popleft())
            started = perf_counter_ns()
            try:
                await self._shadow(batch)
            except LoopwrightError:
                self._counters.add(
                    ("shadow_dropped", first.model.name, str(first.served.version)), len(batch)
                )
            finally:
                self._handled += len(batch)
            self._shadow_credit -= (perf_counter_ns() - started) / 1000

    def _pause(self) -> float:
        """Seconds until copies have earned the time they spent."""
        share = self._copies[0].model.policy.shadow_share
        now = perf_counter_ns() // 1000
        earned = (now - self._shadow_at) * share if self._shadow_at else 0.0
        self._shadow_at = now
        self._shadow_credit = min(SHADOW_CREDIT_US, self._shadow_credit + earned)
        if self._shadow_credit >= 0:
            return 0.0
        return min(1.0, -self._shadow_credit / 1e6 / share) if share > 0 else 1.0

    async def _shadow(self, batch: list[_Copy]) -> None:
        model, served = batch[0].model, batch[0].served
        now = self._now_us()
        fit = model.fits.get(served.version)
        values = [copy.values if fit is None else fit.row(copy.values) for copy in batch]
        reasons = [""] * len(batch) if fit is None else [fit.misfit(row) for row in values]
        good = [row for row, why in zip(values, reasons, strict=True) if not why]
        until = asyncio.get_running_loop().time() + 2 * self._seconds(model) * (1 + len(batch) / 100)
        lane = self._lane(model, served) or await self._warm(model, served, until)
        predicted: Sequence[Outcome]
        if not good:
            predicted = []
        elif not lane.inline:
            predicted = await lane.predict(good, until)
        elif len(good) == 1:
            predicted = [lane.now(good[0])]
        else:
            predicted = lane.many_now(good)
        outcomes = iter(predicted)
        told = [Outcome(None, why, 0) if why else next(outcomes) for why in reasons]
        frames = [
            self._frame(
                Event(
                    copy.id, copy.unit, copy.event_time, now, model.name, served.version, "shadow",
                    took if len(batch) == 1 else 0, "error" if outputs is None else "ok", served.rule.error(why),
                    served.rule.inputs(row), outputs or [],
                )
            )
            for copy, row, (outputs, why, took) in zip(batch, values, told, strict=True)
        ]  # fmt: skip
        self._write(model, b"".join(frames))


def _all(model: Model) -> Iterable[Served]:
    return (*model.versions.values(), *model.standby.values())
