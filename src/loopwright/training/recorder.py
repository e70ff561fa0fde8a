"""Records a run on a tracking server from a thread of its own: training neither waits for it nor fails with
it.

What is recorded is queued, sent in batches, and, when the server does not answer, written to a spool folder
from which `replay` sends it later. Nothing that was recorded is dropped without a word: `Recorder.spooled`
names the journal.
"""

import json
import logging
import math
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput, LoopwrightError, Unavailable
from loopwright.kernel.files import write_atomic
from loopwright.kernel.ids import new_id

log = logging.getLogger(__name__)

Metric = tuple[str, float, int, int]
"""Key, value, milliseconds since 1970, step."""

BATCH = 1000  # metrics in one call, as MLflow's protocol allows
RETRY_SECONDS = 5.0
_MAX_TEXT = 6000  # characters of one parameter's value that MLflow keeps


class Tracker(Protocol):
    """A tracking server. Each method raises Unavailable when it does not answer, BadInput when it never will
    take this.

    Repeating a call does no harm.
    """

    def create_run(self, experiment: str, name: str, tags: Mapping[str, str], started_ms: int) -> str: ...

    def log(
        self, run_id: str, metrics: Sequence[Metric], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None: ...

    def artifact(self, run_id: str, file: Path, name: str) -> None: ...

    def end_run(self, run_id: str, status: str, ended_ms: int) -> None: ...


def start_run(
    tracking_uri: str,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    spool: Path,
    artifact_location: str | None = None,
    grace: float = 20.0,
) -> "Recorder":
    """Start a run over MLflow's protocol; use it as a context manager. Never raises because tracking is down.

    `artifact_location`: where a newly created experiment keeps artifacts. `grace`: seconds that ending the
    run waits for what is still queued, before the rest is spooled.
    """
    from loopwright.training.tracker_mlflow import MlflowTracker  # mlflow takes 2 s to import

    return Recorder(
        MlflowTracker(tracking_uri, artifact_location), experiment, name, tags, spool, grace=grace
    )


class Recorder:
    """One run. Methods return at once and may be called from any thread; `run_id` never changes.

    It is the server's id, or "offline_…" when the server was down at the start; `replay` then starts the run
    there with the tag `loopwright.offline_run_id`.
    """

    def __init__(
        self,
        tracker: Tracker,
        experiment: str,
        name: str,
        tags: Mapping[str, str],
        spool: Path,
        *,
        grace: float = 20.0,
    ) -> None:
        self._tracker, self._spool, self._grace = tracker, spool, grace
        self._start = {
            "kind": "start",
            "experiment": experiment,
            "name": name,
            "tags": {str(key): str(value) for key, value in tags.items()},
            "at": _now_ms(),
        }
        self._remote: str | None = None
        try:
            self._remote = tracker.create_run(experiment, name, self._start["tags"], self._start["at"])  # type: ignore[arg-type]
        except Unavailable as error:
            log.warning("tracking does not answer; the run is spooled to %s: %s", spool, error)
        self.run_id = self._remote or new_id("offline")
        self._folder = spool / self.run_id
        self._queue: list[dict[str, Any]] = []
        self._params: dict[str, str] = {}
        self._files = 0
        self._closing = self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name=f"recorder-{self.run_id}", daemon=True)
        self._worker.start()

    @property
    def spooled(self) -> Path | None:
        """The journal of what could not be sent; None when everything was. Final once the run has ended."""
        journal = self._folder / "journal.jsonl"
        return journal if journal.is_file() else None

    def params(self, values: Mapping[str, Any]) -> None:
        """Record parameters; nested ones as "a.b". A parameter keeps its first value: another one is
        BadInput."""
        flat = dict(_flat(values))
        with self._changed:
            for name, value in flat.items():
                if self._params.get(name, value) != value:
                    raise BadInput(
                        f"parameter `{name}` has a value already",
                        where=f"run {self.run_id}",
                        got=value,
                        wanted=self._params[name],
                        next="Record it under another name.",
                    )
            self._params |= flat
        self._put({"kind": "params", "values": flat})

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record numbers at a step; NaN and infinities are kept as such."""
        now = _now_ms()
        self._put(
            {
                "kind": "metrics",
                "values": [(str(name), float(value), now, int(step)) for name, value in values.items()],
            }
        )

    def tags(self, values: Mapping[str, str]) -> None:
        """Record tags; a later value replaces an earlier one."""
        self._put({"kind": "tags", "values": {str(key): str(value) for key, value in values.items()}})

    def artifact(self, content: Path | bytes, name: str) -> None:
        """Keep a file (copied now, so it may change afterwards) or bytes under `name`, like
        "plots/roc.png"."""
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts:
            raise BadInput("not a name for an artifact", got=name, wanted="a relative path without `..`")
        with self._changed:
            self._files += 1
            file = self._folder / f"files-{self._files}" / parts[-1]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                file.write_bytes(content)
            else:
                shutil.copyfile(content, file)
        except OSError as error:
            # A full disk must not end hours of training; the record says what it lacks.
            log.error("artifact %s is not recorded: %s", name, error)
            self.tags({f"loopwright.lost.{parts[-1]}": str(error)[:200]})
            return
        self._put({"kind": "artifact", "file": str(file.relative_to(self._folder)), "name": name})

    def text(self, content: str, name: str) -> None:
        """Keep text as an artifact, in UTF-8."""
        self.artifact(content.encode(), name)

    def artifact_json(self, value: object, name: str) -> None:
        """Keep a JSON value as an artifact: canonical, so that equal values are equal bytes."""
        self.artifact(canonical_json(value), name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, KeyboardInterrupt):
            self.tags({"loopwright.error": f"{type(error).__name__}: {error}"[:_MAX_TEXT]})
        killed = isinstance(error, KeyboardInterrupt)
        self.end("FINISHED" if error is None else "KILLED" if killed else "FAILED")

    def flush(self, seconds: float = 20.0) -> bool:
        """Wait until all is sent; False when that took longer than `seconds` or the server does not
        answer."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._changed.notify_all()
            while self._queue and self._worker.is_alive() and time.monotonic() < deadline:
                self._changed.wait(0.05)
            return not self._queue

    def end(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED. Waits at most `grace` seconds, then spools. Is
        idempotent."""
        with self._changed:
            if self._closing:
                return
            self._queue.append({"kind": "end", "status": status, "at": _now_ms()})
            self._closing = True
            self._changed.notify_all()
        self._worker.join(self._grace)
        with self._changed:
            self._closed = True  # a worker still stuck in a call may finish it, and takes nothing more
            left = list(self._queue)
        if left:
            self._write_journal(left)
        else:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _put(self, item: dict[str, Any]) -> None:
        with self._changed:
            if self._closing:
                raise BadInput(
                    "the run has ended", where=f"run {self.run_id}", next="Record inside its `with` block."
                )
            self._queue.append(item)
            self._changed.notify_all()

    def _work(self) -> None:
        one_by_one = 0  # records of a rejected batch, sent singly to find the one at fault
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue or self._is_closed():
                    return
                batch, taken = _next_batch(self._queue[:1] if one_by_one else self._queue)
            try:
                if self._remote is None:
                    self._remote = _create(self._tracker, self._start, self.run_id)
                _send(self._tracker, self._remote, batch, self._folder)
            except BadInput as error:
                if taken > 1:
                    one_by_one = taken
                    continue
                log.error("run %s: a record is left out: %s", self.run_id, error)
            except LoopwrightError as error:
                with self._changed:
                    if self._closing:
                        return
                    log.warning("tracking does not answer, trying again in %g s: %s", RETRY_SECONDS, error)
                    self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)
                continue
            with self._changed:
                if self._is_closed():
                    return
                one_by_one = max(0, one_by_one - 1)
                del self._queue[:taken]
                self._changed.notify_all()

    def _is_closed(self) -> bool:
        return self._closed

    def _write_journal(self, left: list[dict[str, Any]]) -> None:
        head = {**self._start, "run_id": self._remote, "offline_run_id": self.run_id}
        lines = [json.dumps(item, allow_nan=True) for item in (head, *left)]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self._folder / "journal.jsonl", ("\n".join(lines) + "\n").encode())
            log.warning("%d records of run %s wait in %s", len(left), self.run_id, self._folder)
        except OSError as error:
            log.error(
                "%d records of run %s are lost, the spool cannot be written: %s",
                len(left),
                self.run_id,
                error,
            )


@dataclass(frozen=True, slots=True)
class Replayed:
    """A spooled run that is on the server now, under `run_id`."""

    run_id: str
    offline_run_id: str
    records: int


def replay(spool: Path, tracker: Tracker) -> list[Replayed]:
    """Send every journal in `spool`, oldest first, and remove what was sent. Is safe to repeat after a
    failure.

    Raises Unavailable when the server does not answer; what was not sent stays.
    """
    sent = []
    for journal in sorted(spool.glob("*/journal.jsonl"), key=lambda path: path.stat().st_mtime):
        head, *items = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
        run_id = head["run_id"] or _create(tracker, head, head["offline_run_id"])
        count = len(items)
        while items:
            # The journal says how far it got before each call, so an interruption starts no second run.
            write_atomic(
                journal,
                "".join(json.dumps(line) + "\n" for line in ({**head, "run_id": run_id}, *items)).encode(),
            )
            batch, taken = _next_batch(items)
            try:
                _send(tracker, run_id, batch, journal.parent)
            except BadInput as error:
                log.error("run %s: %d records are left out: %s", run_id, taken, error)
            del items[:taken]
        shutil.rmtree(journal.parent)
        sent.append(Replayed(run_id, head["offline_run_id"], count))
    return sent


def _create(tracker: Tracker, start: Mapping[str, Any], offline: str) -> str:
    tags = {**start["tags"], "loopwright.offline_run_id": offline}
    return tracker.create_run(start["experiment"], start["name"], tags, start["at"])


def _next_batch(queue: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], int]:
    """What one call can carry from the head of the queue, and how many records that is."""
    first = queue[0]
    if first["kind"] in ("artifact", "end"):
        return dict(first), 1
    metrics: list[Any] = []
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    taken = 0
    for item in queue:
        kind, values = item["kind"], item.get("values", ())
        size = len(metrics) + len(params) + len(tags) + len(values)
        if kind in ("artifact", "end") or (taken and size > BATCH):
            break
        if kind == "metrics":
            metrics += [tuple(value) for value in values]
        else:
            (params if kind == "params" else tags).update(values)
        taken += 1
    return {"kind": "log", "metrics": metrics, "params": params, "tags": tags}, taken


def _send(tracker: Tracker, run_id: str, batch: Mapping[str, Any], folder: Path) -> None:
    if batch["kind"] == "artifact":
        file = folder / batch["file"]
        tracker.artifact(run_id, file, batch["name"])
        shutil.rmtree(file.parent, ignore_errors=True)
    elif batch["kind"] == "end":
        tracker.end_run(run_id, batch["status"], batch["at"])
    else:
        tracker.log(run_id, batch["metrics"], batch["params"], batch["tags"])


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str, allow_nan=True)
            found.append((f"{prefix}{name}", text[:_MAX_TEXT]))
    return found


def _now_ms() -> int:
    return math.floor(time.time() * 1000)
