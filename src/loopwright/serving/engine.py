"""Answers rows: picks the arm, predicts, counts a canary's error before stable answers, logs, copies to shadows.

Knows no protocol and no socket. Every answer is in the log before it is returned.
"""

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Protocol, TypeVar

import numpy as np

from loopwright.kernel.errors import LoopwrightError, NotFound, Unavailable
from loopwright.kernel.ids import new_id
from loopwright.serving.counters import Counters
from loopwright.serving.deadline import PredictionTimeout
from loopwright.serving.events import Event, SegmentWriter, Status, frame
from loopwright.serving.models import Model, Served
from loopwright.serving.router import is_shadowed, pick, position
from loopwright.serving.rows import Columns, Rows, Value

T = TypeVar("T")
A = TypeVar("A")

CHUNK = 512
"""Rows predicted at once; between chunks of a large request other requests get their turn."""

SHADOW_QUEUE = 4096
SHADOW_BATCH = 64
DIRECT = "direct"


class Limit(Protocol):
    """What stops a prediction that takes too long."""

    def run(self, function: Callable[[A], T], argument: A, seconds: float) -> T: ...


class ModelFailed(LoopwrightError):
    """No version gave an answer for a row."""

    http_status = 500


@dataclass(slots=True)
class Answer:
    """Answered rows: per row the outputs, the version, the arm, and whether stable stood in for a canary."""

    request_id: str
    ids: list[str]
    outputs: list[list[float]]
    versions: list[int]
    arms: list[str]
    fallbacks: list[bool]


@dataclass(slots=True)
class _Copy:
    served: Served
    model: str
    id: str
    unit: str
    event_time: int
    values: list[Value]


class Engine:
    """Serves models from one event loop. Not safe to share between threads."""

    def __init__(
        self,
        log: SegmentWriter,
        counters: Counters,
        *,
        now_us: Callable[[], int],
        limit: Limit,
        timeout: float = 2.0,
    ) -> None:
        self.models: dict[str, Model] = {}
        self._log = log
        self._counters = counters
        self._now_us = now_us
        self._limit = limit
        self._timeout = timeout
        self._copies: deque[_Copy] = deque()
        self._draining: asyncio.Task[None] | None = None
        # Unique, and a tenth of the cost of a new random id per request.
        self._prefix, self._requests = new_id("rq"), itertools.count()

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

    async def infer(self, model: Model, version: int | None, rows: Rows) -> Answer:
        """Answer every row, or raise ModelFailed naming the rows no version could answer.

        Raises Unavailable when the answer cannot be logged. Either way what was tried is counted and logged.
        """
        if rows.n == 1:
            return self._one(model, version, rows)
        request_id = rows.request_id or self._new_id()
        now = self._now_us()
        ids = [given or f"{request_id}/{row}" for row, given in enumerate(rows.ids)]
        units = [given or ids[row] for row, given in enumerate(rows.units)]
        times = [given or now for given in rows.event_times]
        groups: dict[str, tuple[Served, list[int]]] = {}
        for row, unit in enumerate(units):
            served, arm = self._choose(model, version, unit)
            groups.setdefault(arm, (served, []))[1].append(row)
        answer = Answer(request_id, ids, [[]] * rows.n, [0] * rows.n, [""] * rows.n, [False] * rows.n)
        batch = _Batch(model.name, rows.values, ids, units, times, now, answer)
        failed: dict[int, str] = {}
        for arm, (served, members) in groups.items():
            for start in range(0, len(members), CHUNK):
                wrong = self._chunk(batch, served, arm, members[start : start + CHUNK], fallback=False)
                stable = model.stable
                if wrong and arm == "canary" and stable is not None and stable is not served:
                    wrong = self._chunk(batch, stable, "stable", sorted(wrong), fallback=True)
                failed.update(wrong)
                await asyncio.sleep(0)
        if failed:
            row, why = min(failed.items())
            raise ModelFailed(
                f"{model.name} gave no answer for {len(failed)} of {rows.n} rows", where=f"row {row}", got=why
            )
        if version is None:
            for row, unit in enumerate(units):
                self._copy_to_shadow(model, unit, ids[row], times[row], rows.values[row])
        return answer

    def _one(self, model: Model, version: int | None, rows: Rows) -> Answer:
        values = rows.values[0]
        now = self._now_us()
        row_id = rows.ids[0] or rows.request_id or self._new_id()
        unit = rows.units[0] or row_id
        event_time = rows.event_times[0] or now
        served, arm = self._choose(model, version, unit)
        started = perf_counter_ns()
        outputs, why = self._predict_one(served, values)
        took = (perf_counter_ns() - started) // 1000 or 1
        frames = b""
        status: Status = "ok"
        if (
            outputs is None
            and arm == "canary"
            and (stable := model.stable) is not None
            and stable is not served
        ):
            # The canary's error is on record before stable answers: the judge must see what the user does not.
            frames = self._frame(
                Event(
                    row_id,
                    unit,
                    event_time,
                    now,
                    model.name,
                    served.version,
                    arm,
                    took,
                    "error",
                    why,
                    values,
                    [],
                )
            )
            served, arm, status = stable, "stable", "fallback"
            started = perf_counter_ns()
            outputs, why = self._predict_one(served, values)
            took = (perf_counter_ns() - started) // 1000 or 1
        if outputs is None:
            event = Event(
                row_id, unit, event_time, now, model.name, served.version, arm, took, "error", why, values, []
            )
            self._log.append(frames + self._frame(event))
            raise ModelFailed(f"version {served.version} of {model.name} gave no answer", got=why)
        event = Event(
            row_id, unit, event_time, now, model.name, served.version, arm, took, status, "", values, outputs
        )
        self._log.append(frames + self._frame(event))
        if version is None:
            self._copy_to_shadow(model, unit, row_id, event_time, values)
        return Answer(
            rows.request_id or row_id, [row_id], [outputs], [served.version], [arm], [status == "fallback"]
        )

    def _new_id(self) -> str:
        return f"{self._prefix}-{next(self._requests)}"

    def _choose(self, model: Model, version: int | None, unit: str) -> tuple[Served, str]:
        if version is not None:
            served = self.target(model, version)
            return served, "stable" if served is model.stable else DIRECT
        arms = model.arms
        arm = arms[0] if len(arms) == 1 else pick(position(model.salt, unit), arms)
        return model.versions[arm.version], arm.name

    def _predict_one(self, served: Served, values: list[Value]) -> tuple[list[float] | None, str]:
        try:
            columns = served.reader.columns([values])
            result = self._limit.run(served.loaded.predict_columns, columns, self._timeout)
            outputs: list[float] = result[0].tolist()
        except Exception as error:  # noqa: BLE001 - whatever a model raises is the model's error, on record and answered for
            return None, _why(error)
        if not all(map(math.isfinite, outputs)):
            return None, f"gave a value that is not finite: {outputs}"
        return outputs, ""

    def _predict_many(
        self, served: Served, values: Sequence[list[Value]]
    ) -> tuple[list[list[float] | None], list[str]]:
        """Predict rows together; when that raises, each alone, so that one bad row spoils no other."""
        try:
            columns: Columns = served.reader.columns(values)
            result = self._limit.run(
                served.loaded.predict_columns, columns, self._timeout * (1 + len(values) / 100)
            )
        except PredictionTimeout as error:
            # Alone they may be no faster, and the loop has waited long enough.
            return [None] * len(values), [_why(error)] * len(values)
        except Exception:  # noqa: BLE001 - each row is tried alone, where its own error is kept
            alone = [self._predict_one(served, row) for row in values]
            return [outputs for outputs, _ in alone], [why for _, why in alone]
        finite = np.isfinite(result).all(axis=1)
        outputs: list[list[float] | None] = result.tolist()
        whys = [""] * len(values)
        for row in np.flatnonzero(~finite).tolist():
            whys[row] = f"gave a value that is not finite: {outputs[row]}"
            outputs[row] = None
        return outputs, whys

    def _chunk(
        self, batch: "_Batch", served: Served, arm: str, members: list[int], *, fallback: bool
    ) -> dict[int, str]:
        """Predict and log `members`, fill the answer, and return the rows that failed with the reason."""
        results, whys = self._predict_many(served, [batch.values[row] for row in members])
        failed: dict[int, str] = {}
        frames = []
        answered: Status = "fallback" if fallback else "ok"
        for row, outputs, why in zip(members, results, whys, strict=True):
            event = Event(
                batch.ids[row],
                batch.units[row],
                batch.times[row],
                batch.now,
                batch.model,
                served.version,
                arm,
                0,
                "error" if outputs is None else answered,
                why,
                batch.values[row],
                outputs or [],
            )
            frames.append(self._frame(event))
            if outputs is None:
                failed[row] = why
                continue
            batch.answer.outputs[row] = outputs
            batch.answer.versions[row] = served.version
            batch.answer.arms[row] = arm
            batch.answer.fallbacks[row] = fallback
        self._log.append(b"".join(frames))
        return failed

    def _frame(self, event: Event) -> bytes:
        self._counters.add(("predictions", event.model, str(event.version), event.arm, event.status))
        return frame(event)

    # Shadows are predicted between requests, from copies, in small batches; when too many wait, copies are dropped.

    def _copy_to_shadow(self, model: Model, unit: str, row_id: str, time: int, values: list[Value]) -> None:
        for arm in model.arms:
            if arm.name != "shadow" or not is_shadowed(model.salt, unit, arm.weight):
                continue
            if len(self._copies) >= SHADOW_QUEUE:
                self._counters.add(("shadow_dropped", model.name, str(arm.version)))
                return
            self._copies.append(_Copy(model.versions[arm.version], model.name, row_id, unit, time, values))
            if self._draining is None or self._draining.done():
                self._draining = asyncio.get_running_loop().create_task(self._drain_shadow())

    async def drained(self) -> None:
        """Return when every copy made so far has been predicted and logged."""
        if self._draining is not None:
            await self._draining

    async def _drain_shadow(self) -> None:
        while self._copies:
            # Lets the answer that made the copy leave first.
            await asyncio.sleep(0.0005)
            batch = [self._copies.popleft()]
            while self._copies and len(batch) < SHADOW_BATCH and self._copies[0].served is batch[0].served:
                batch.append(self._copies.popleft())
            try:
                self._shadow(batch)
            except Unavailable:
                self._counters.add(
                    ("shadow_dropped", batch[0].model, str(batch[0].served.version)), len(batch)
                )

    def _shadow(self, batch: list[_Copy]) -> None:
        served = batch[0].served
        now = self._now_us()
        started = perf_counter_ns()
        results, whys = self._predict_many(served, [copy.values for copy in batch])
        took = ((perf_counter_ns() - started) // 1000 or 1) if len(batch) == 1 else 0
        frames = [
            self._frame(
                Event(
                    copy.id,
                    copy.unit,
                    copy.event_time,
                    now,
                    copy.model,
                    served.version,
                    "shadow",
                    took,
                    "error" if outputs is None else "ok",
                    why,
                    copy.values,
                    outputs or [],
                )
            )
            for copy, outputs, why in zip(batch, results, whys, strict=True)
        ]
        self._log.append(b"".join(frames))


@dataclass(slots=True)
class _Batch:
    model: str
    values: list[list[Value]]
    ids: list[str]
    units: list[str]
    times: list[int]
    now: int
    answer: Answer


def _why(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]
