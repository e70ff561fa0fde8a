"""Takes jobs from the ledger and answers their rows: chunk by chunk, each published once, whoever is killed when.

A chunk is one Parquet file and one transaction: the fence is checked, the part is named, the predictions are counted
and logged, progress is written. Whoever takes the job up goes on behind the last chunk.
"""

import json
import os
import random
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from sqlalchemy import Connection

from loopwright.jobs import job as life
from loopwright.jobs import store
from loopwright.jobs.chunk import Chunk
from loopwright.jobs.hold import Cancelled, Draining, Hold
from loopwright.jobs.input import Input, open_input
from loopwright.jobs.job import Job, LeaseLost, State
from loopwright.jobs.predict import predict
from loopwright.jobs.request import MAX_INLINE_ROWS, Request
from loopwright.jobs.results import Results, delete_file
from loopwright.jobs.rows import Checked, check_batch, check_rows, columns_wanted
from loopwright.jobs.settings import Settings
from loopwright.jobs.stop import Stop
from loopwright.jobs.store import Part
from loopwright.jobs.versions import Answering, Versions
from loopwright.kernel.clock import Clock, iso, utc_now
from loopwright.kernel.errors import BadInput, Conflict, LoopwrightError, NotFound, Refused, Unavailable
from loopwright.kernel.ids import new_id
from loopwright.ledger.engine import Ledger
from loopwright.serving.events import Event
from loopwright.serving.wire import Fold

BATCH = 4096
CELLS = 1_000_000
"""Inputs held at once: a chunk of a wide model has fewer rows."""
SWEEP_EVERY = 600.0

Say = Callable[[dict[str, Any]], None]
"""Takes one line of progress: {"event": …, "job": …, …}."""


class Recorder(Protocol):
    """What monitoring does with predictions, in the caller's transaction."""

    def record(
        self, conn: Connection, events: Sequence[Event], name: str, uids: Sequence[str], folds: Sequence[Fold]
    ) -> None:
        """Count `folds` and write `events` into the prediction log as the batch `name`; the same name writes over."""
        ...

    def reached(self, conn: Connection, model: str, latest: int) -> None:
        """Event time of `model` has come to `latest` (microseconds)."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """lease: how long a killed worker keeps its job. A chunk is published after `chunk_rows` or `chunk_seconds`.

    stall: seconds without progress after which a worker is taken to hang. once: end when nothing is due.
    """

    lease: timedelta = timedelta(seconds=30)
    poll: float = 0.5
    chunk_rows: int = 20_000
    chunk_seconds: float = 20.0
    stall: float = 600.0
    once: bool = False
    models: Collection[str] | None = None


@dataclass
class Worker:
    """Works at one job at a time. `staging`: a folder on this machine for what is brought here."""

    ledger: Ledger
    versions: Versions
    settings: Callable[[], Settings]
    staging: Path
    recorder: Recorder
    options: Options = field(default_factory=Options)
    clock: Clock = utc_now
    say: Say = lambda _: None
    hung: Callable[[], None] = lambda: None
    name: str = field(default_factory=lambda: f"{socket.gethostname()}/{os.getpid()}/{new_id('wk')[-6:]}")
    draining: Stop = field(default_factory=Stop)
    died: int = 0
    _swept: float = field(default=float("-inf"), repr=False)

    def run(self) -> int:
        """Work until told to stop (`draining`), or with `once` until nothing is due; returns how many jobs died."""
        self.say({"event": "started", "worker": self.name})
        troubles = 0
        while not self.draining.is_set():
            try:
                job = self.take()
                troubles = 0
            except Unavailable as error:
                if self.options.once:
                    raise
                troubles += 1
                self.say({"event": "waiting", "worker": self.name, "why": str(error)})
                self.draining.wait(min(30.0, self.options.poll * 2.0 ** min(troubles, 10)))
                continue
            if job is not None:
                self.work(job)
                continue
            if self.options.once:
                break
            try:
                self.sweep()
            except LoopwrightError as error:  # work goes on without it
                self.say({"event": "waiting", "worker": self.name, "why": str(error)})
            self.draining.wait(self.options.poll * (0.5 + random.random()))  # noqa: S311 - spreads the polls
        self.say({"event": "stopped", "worker": self.name})
        return self.died

    def take(self) -> Job | None:
        """Take the next job that is due, if there is one."""
        now = self.clock()
        with self.ledger.read() as conn:
            if not store.any_due(conn, now, self.options.models):
                return None
        with self.ledger.beside() as conn:
            return store.claim_next(conn, self.name, now, self.options.lease, self.options.models)

    def work(self, job: Job) -> None:
        """Do what can be done of a job that was taken, and write down how it ended."""
        told = {"job": job.id, "model": job.model, "attempt": job.attempts, "done": job.done}
        self.say({"event": "taken", **told})
        hold = Hold(
            self.ledger, job, self.options.lease, self.clock, draining=self.draining, stall=self.options.stall,
            hung=self.hung,
        )  # fmt: skip
        try:
            try:
                with hold:
                    self._answer(job, hold)
            except Cancelled:
                self._step(job, lambda at, now: life.cancelled(at, job.fence, now))
            except Draining:
                self._step(job, lambda at, now: life.release(at, job.fence, now))
        except LeaseLost as error:
            self.say({"event": "lost", **told, "why": str(error)})
            return
        except Exception as error:  # noqa: BLE001 - whatever a file, a model or an engine does, the job's record says it
            self._failed(job, error)
        if self._standing(job).state.ended:
            shutil.rmtree(self.staging / job.id, ignore_errors=True)

    def sweep(self) -> None:
        """Forget what is older than it is kept, and free staged files of jobs that have ended. Seldom."""
        if time.monotonic() - self._swept < SWEEP_EVERY:
            return
        self._swept = time.monotonic()
        settings = self.settings()
        before = self.clock() - settings.keep
        with self.ledger.read() as conn:
            old = store.ended_before(conn, before)
        for job in old:
            try:
                # What lies elsewhere is not ours to delete.
                ours = Request.from_json(job.request).output is None
                results = Results(settings.output, job.id) if ours else None
                if results is not None:
                    results.reach()  # before anything is locked
                with self.ledger.beside() as conn:
                    forgotten = store.forget(conn, job.id, before)
                    # Under its lock: whoever takes the job up again wants what it has done so far.
                    if forgotten and results is not None:
                        results.delete()
            except LoopwrightError as error:
                self.say({"event": "kept", "job": job.id, "why": str(error)})
                continue
            if forgotten:
                self.say({"event": "forgotten", "job": job.id})
        for folder in self.staging.iterdir() if self.staging.is_dir() else ():
            with self.ledger.read() as conn:
                try:
                    ended = store.get(conn, folder.name).state.ended
                except NotFound:
                    ended = True
            if ended:
                shutil.rmtree(folder, ignore_errors=True)

    def _answer(self, job: Job, hold: Hold) -> None:
        request, settings = Request.from_json(job.request), self.settings()
        output = settings.output_at(request.output, anywhere=request.anywhere)
        with self.ledger.read() as conn:
            answering = self.versions.answering(
                conn, job.model, request.version, job.pinned if job.done else None
            )
            rows = store.rows_of(conn, job.id) if request.input is None else []
        hold.check()
        source = None
        if request.input is not None:
            source = open_input(job, request, self.staging / job.id, settings, hold.check)
        total = source.total if source is not None else len(rows)
        pinned = answering.pinned(source.digest if source is not None else None)
        job = self._step(job, lambda at, now: life.begin(at, job.fence, pinned=pinned, total=total))
        inline = total <= MAX_INLINE_ROWS and request.output is None
        results = None if inline else Results(output, job.id)
        schema = answering.served.schema
        most = min(self.options.chunk_rows, max(500, CELLS // len(schema.inputs)))
        name = source.name if source is not None else "rows"
        chunk, began = Chunk(job, answering, job.done), time.monotonic()
        for checked in self._batches(job, request, answering, source, rows, most):
            now_us = int(self.clock().timestamp() * 1e6)
            try:
                self._fit(chunk, checked, request, name, hold, now_us)
            except Draining:
                if results is not None and len(chunk):
                    self._publish(
                        job, chunk, results, hold
                    )  # the rows before these need not be answered again
                raise
            late = time.monotonic() - began > self.options.chunk_seconds
            if results is not None and (len(chunk) >= most or late):
                job = self._publish(job, chunk, results, hold)
                chunk, began = Chunk(job, answering, job.done), time.monotonic()
        if inline:
            self._publish_inline(job, chunk, hold)
            return
        assert results is not None
        if len(chunk):
            job = self._publish(job, chunk, results, hold)
        self._complete(job, answering, results, source, hold)

    def _batches(
        self,
        job: Job,
        request: Request,
        answering: Answering,
        source: Input | None,
        rows: Sequence[Any],
        most: int,
    ) -> Iterator[Checked]:
        schema = answering.served.schema
        if source is None:
            if rows[job.done :]:
                yield check_rows(rows[job.done :], schema, request)
            return
        wanted = columns_wanted(source.rows.schema.names, schema, request, source.name)
        try:
            for batch in source.rows.batches(wanted, rows=min(BATCH, most), skip=job.done):
                yield check_batch(batch, schema, request, source.name)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise BadInput(
                "cannot be read on", where=source.name, got=str(error).splitlines()[0][:300],
                next="Check that the file is whole.",
            ) from error  # fmt: skip

    def _fit(
        self, chunk: Chunk, checked: Checked, request: Request, name: str, hold: Hold, now_us: int
    ) -> None:  # fmt: skip
        """Answer a batch and put it into the chunk; without `bad_rows: report` the first bad row is an error."""
        first = chunk.first + len(chunk) + 1
        strict = request.bad_rows == "fail"
        if strict and checked.problems:
            position = min(checked.problems)
            column, why = checked.problems[position]
            raise BadInput(
                why, where=f"{name}, row {first + position}, column `{column}`",
                next="Mend the row, or submit with bad_rows: report to go on without it.",
            )  # fmt: skip
        hold.check()
        predicted = predict(chunk.answering.served, checked, hold.check, whole=strict)
        if strict and predicted.errors:
            position = min(predicted.errors)
            raise BadInput(
                f"version {chunk.answering.version} gives no answer", where=f"{name}, row {first + position}",
                got=predicted.errors[position],
                next="Mend the row or the transform, or submit with bad_rows: report to go on without it.",
            )  # fmt: skip
        chunk.add(checked, predicted, now_us)

    def _publish(self, job: Job, chunk: Chunk, results: Results, hold: Hold) -> Job:
        """One file, one transaction: all of the chunk or nothing."""
        hold.require()
        with self.ledger.read() as conn:
            self.versions.check(conn, chunk.answering)
        events, uids, folds = chunk.to_record()
        uri = results.write(chunk.first, job.fence, chunk.table())
        began, now = time.monotonic(), self.clock()
        try:
            hold.require()
            with self.ledger.write() as conn:
                _, after = store.change(conn, job.id, now, chunk.published(now, self.options.lease))
                number = len(store.parts(conn, job.id))
                store.add_part(conn, job.id, Part(number, chunk.first, len(chunk), uri))
                self.recorder.record(conn, events, chunk.name, uids, folds)
        except LeaseLost:
            delete_file(uri)
            raise
        hold.renewed(began)
        self.say({
            "event": "chunk", "job": job.id, "model": job.model, "done": after.done, "total": after.total,
            "failed_rows": after.failed_rows, "rows_per_second": round(len(chunk) / max(chunk.age, 1e-6)),
        })  # fmt: skip
        return after

    def _publish_inline(self, job: Job, chunk: Chunk, hold: Hold) -> None:
        """Few rows: the answers stand in the ledger, in the transaction that ends the job."""
        hold.check()
        with self.ledger.read() as conn:
            self.versions.check(conn, chunk.answering)
        events, uids, folds = chunk.to_record()
        table, now = chunk.table(), self.clock()
        result = {
            "rows": len(chunk), "version": chunk.answering.version, "columns": table.column_names,
            "answers": table.to_pylist(),
        }  # fmt: skip
        with self.ledger.write() as conn:
            _, after = store.change(conn, job.id, now, chunk.published(now, self.options.lease))
            store.change(conn, job.id, now, lambda at: life.complete(at, job.fence, now, result))
            self.recorder.record(conn, events, chunk.name, uids, folds)
            if after.latest_event is not None:
                self.recorder.reached(conn, job.model, after.latest_event)
        self.say(
            {
                "event": "succeeded",
                "job": job.id,
                "model": job.model,
                "done": after.done,
                "total": after.total,
            }
        )

    def _complete(
        self, job: Job, answering: Answering, results: Results, source: Input | None, hold: Hold
    ) -> None:  # fmt: skip
        if source is not None:
            source.check_unchanged()
        hold.check()
        with self.ledger.read() as conn:
            parts = store.parts(conn, job.id)
        results.finish(job.model, answering.version, job.fence, parts)
        result = {
            "rows": job.done, "version": answering.version, "uri": results.uri, "parts": len(parts),
            "malformed_lines": source.malformed if source is not None else 0,
        }  # fmt: skip
        now = self.clock()
        with self.ledger.write() as conn:
            store.change(conn, job.id, now, lambda at: life.complete(at, job.fence, now, result))
            if job.latest_event is not None:
                self.recorder.reached(conn, job.model, job.latest_event)
        self.say({
            "event": "succeeded", "job": job.id, "model": job.model, "done": job.done, "total": job.total,
            "failed_rows": job.failed_rows, "uri": results.uri,
        })  # fmt: skip

    def _step(self, job: Job, by: Callable[[Job, Any], Job]) -> Job:
        now = self.clock()
        with self.ledger.beside() as conn:
            _, after = store.change(conn, job.id, now, lambda at: by(at, now))
        if after.state is not State.RUNNING:
            self.say(
                {
                    "event": after.outcome or after.state.value,
                    "job": job.id,
                    "model": job.model,
                    "done": after.done,
                }
            )
        return after

    def _failed(self, job: Job, error: Exception) -> None:
        """Bad input stays bad; what an engine did may pass."""
        final = isinstance(error, BadInput | NotFound | Refused | Conflict)
        if isinstance(error, LoopwrightError):
            document = error.to_json()
        else:
            what = f"{type(error).__name__}: {error}"[:1000]
            document = {"error": type(error).__name__, "what": what, "message": what}
        jitter = random.random()  # noqa: S311 - spreads retries
        try:
            after = self._step(
                job, lambda at, now: life.fail(at, job.fence, now, document, final=final, jitter=jitter)
            )
        except LeaseLost as lost:
            self.say({"event": "lost", "job": job.id, "model": job.model, "why": str(lost)})
            return
        except Unavailable as gone:
            # The ledger is away too: the lease ends by itself, and whoever takes the job finds what failed.
            self.say({"event": "unrecorded", "job": job.id, "why": f"{document['message']} ({gone})"})
            return
        self.died += after.state is State.DEAD
        told: dict[str, Any] = {"event": "dead" if after.state is State.DEAD else "failed", "job": job.id}
        if after.due_at is not None:
            told["again_at"] = iso(after.due_at)
        self.say({**told, "model": job.model, "why": document["message"]})

    def _standing(self, job: Job) -> Job:
        try:
            with self.ledger.read() as conn:
                return store.get(conn, job.id)
        except LoopwrightError:
            return job


def as_line(told: dict[str, Any], clock: Clock = utc_now) -> str:
    """One line of JSON, for logs."""
    return json.dumps({"at": iso(clock()), **told}, ensure_ascii=False)
