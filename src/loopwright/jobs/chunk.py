"""Rows of a job that were answered and are published together."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from loopwright.jobs import job as life
from loopwright.jobs.job import Job
from loopwright.jobs.predict import Predicted
from loopwright.jobs.results import result_table
from loopwright.jobs.rows import Checked
from loopwright.jobs.versions import Answering
from loopwright.serving.events import Event
from loopwright.serving.fold import fold_events
from loopwright.serving.wire import Fold

ARM = "job"
"""Under which a job's predictions are logged: they are the version's answers, and no traffic that a canary shares."""


class Chunk:
    """Consecutive rows from `first` (counted from 0) on."""

    def __init__(self, job: Job, answering: Answering, first: int) -> None:
        self._job, self.answering, self.first = job, answering, first
        self._began = time.monotonic()
        self._ids: list[str] = []
        self._outputs: list[NDArray[np.float64]] = []
        self._errors: dict[int, str] = {}
        self._events: list[Event] = []
        self._uids: list[str] = []

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def age(self) -> float:
        """Seconds since it was begun."""
        return time.monotonic() - self._began

    @property
    def name(self) -> str:
        """Of its batch in the prediction log: another attempt at the same rows writes the same file."""
        return f"{self._job.id}_{self.first:012d}"

    def add(self, checked: Checked, predicted: Predicted, now_us: int) -> None:
        """Append a batch. Rows without an id get the job's and their number; without an event time, now."""
        model, version, rule = self._job.model, self.answering.version, self.answering.rule
        start = len(self._ids)
        outputs = predicted.outputs.tolist()
        for position in range(checked.n):
            number = self.first + start + position + 1
            identity = checked.ids[position] or f"{self._job.id}/{number}"
            self._ids.append(identity)
            if position in checked.problems:
                column, why = checked.problems[position]
                self._errors[start + position] = f"column `{column}`: {why}"
                continue  # nobody asked the model
            why = predicted.errors.get(position, "")
            if why:
                self._errors[start + position] = why
            self._events.append(
                Event(
                    identity, checked.units[position] or identity, checked.times[position] or now_us, now_us, model,
                    version, ARM, 0, "error" if why else "ok", rule.error(why), rule.inputs(checked.values[position]),
                    [] if why else outputs[position],
                )
            )  # fmt: skip
            self._uids.append(f"{self._job.id}/{number}")
        self._outputs.append(predicted.outputs)

    def table(self) -> pa.Table:
        """The part of the result."""
        outputs = np.concatenate(self._outputs) if self._outputs else np.empty((0, 1))
        return result_table(
            self.answering.served.schema, self.first, self._ids, self.answering.version, outputs, self._errors
        )

    def to_record(self) -> tuple[list[Event], list[str], list[Fold]]:
        """Events for the prediction log with their names, sampled as policy asks, and the counts of all of them."""
        rule, profiler = self.answering.rule, self.answering.profiler
        hidden = frozenset(self.answering.served.schema.inputs[place].name for place in rule.redacted)
        folds = fold_events(self._events, lambda *_: profiler, lambda *_: hidden)
        kept = [
            (event, uid)
            for event, uid in zip(self._events, self._uids, strict=True)
            if event.status != "ok" or rule.keep(event.id)
        ]
        return [event for event, _ in kept], [uid for _, uid in kept], folds

    def published(self, now: datetime, lease: timedelta) -> Callable[[Job], Job]:
        """The step of the job's life that says these rows are done."""
        latest = max((event.event_time for event in self._events), default=None)
        return lambda job: life.publish(
            job, self._job.fence, now, lease, first=self.first, rows=len(self), failed=len(self._errors), latest=latest
        )  # fmt: skip
