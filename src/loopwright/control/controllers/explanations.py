"""Explains every logged prediction of the models that ask for it (`explain: {log: all}`), a bounded portion a round.

What is done is on disk, beside the log (see `monitoring.explanations`); a killed one starts its file again.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from loopwright.control.context import Context
from loopwright.control.explaining import Explainable, columns_of, open_version
from loopwright.control.faults import explain as in_words
from loopwright.kernel.errors import LoopwrightError
from loopwright.monitoring import store as monitoring_store
from loopwright.monitoring.explanations import (
    SCHEMA,
    About,
    ExplanationLog,
    explanation_rows,
)
from loopwright.monitoring.log import MERGED
from loopwright.monitoring.log import SCHEMA as LOGGED
from loopwright.monitoring.store import STAND_INS
from loopwright.pipeline import store as pipeline_store

ROWS_A_ROUND = 20_000
SECONDS_A_ROUND = 1.0
"""Rollouts are judged by the same thread: they wait no longer than this and one chunk."""
CHUNK = 500
OPEN_VERSIONS = 8

log = logging.getLogger("loopwright.control")


@dataclass
class _Work:
    """A log file being explained. `rows` are the answers in it that are not explained yet; `at` says how far it is."""

    model: str
    source: Path
    moment: int
    rows: pa.Table
    at: int = 0
    done: list[pa.Table] = field(default_factory=list)
    features: dict[str, list[str]] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)

    def still_there(self) -> bool:
        """Whether the log file is what it was when it was read."""
        try:
            return self.source.stat().st_mtime_ns == self.moment
        except FileNotFoundError:
            return False


class ExplanationsController:
    """Keeps the opened versions of the models it explains, and the file at work."""

    def __init__(
        self,
        rows: int = ROWS_A_ROUND,
        seconds: float = SECONDS_A_ROUND,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rows, self.seconds, self._timer = rows, seconds, timer
        self._log: ExplanationLog | None = None
        self._work: _Work | None = None
        self._open: OrderedDict[tuple[str, int], Explainable | str] = OrderedDict()
        self._told: set[tuple[str, int, str]] = set()

    def tick(self, ctx: Context) -> list[dict[str, Any]]:
        """One round; see `loop.Tick`."""
        with ctx.ledger.read() as conn:
            models = pipeline_store.explained_models(conn)
        if not models:
            self._work = None
            self._open.clear()
            return []
        if self._log is None:
            self._log = ExplanationLog(ctx.home.explanations, ctx.home.predictions)
        until, left = self._timer() + self.seconds, self.rows
        files: dict[str, int] = {}
        explained: dict[str, int] = {}
        if self._work is not None and not (self._work.model in models and self._work.still_there()):
            self._work = None  # merged into its day or shipped again meanwhile, or no longer asked for
        waiting = [(model, file) for model in models for file in self._log.waiting(model)]
        while left > 0 and self._timer() < until:
            if self._work is None:
                self._work = self._begin(self._log, waiting)
                if self._work is None:
                    break
            work = self._work
            left -= self._advance(ctx, work, min(CHUNK, left))
            if work.at >= work.rows.num_rows:
                rows = pa.concat_tables([SCHEMA.empty_table(), *work.done])
                about = About(rows.num_rows, work.features, work.methods, work.skipped)
                self._log.write(work.model, work.source, work.moment, rows, about)
                waiting = [one for one in waiting if one != (work.model, work.source)]
                files[work.model] = files.get(work.model, 0) + 1
                explained[work.model] = explained.get(work.model, 0) + rows.num_rows
                self._work = None
        return [{"model": model, "files": files[model], "explained": explained[model]} for model in files]

    def _begin(self, explanations: ExplanationLog, waiting: list[tuple[str, Path]]) -> _Work | None:
        """Read the first file that is still there; one that was merged away meanwhile comes again with its day."""
        while waiting:
            model, source = waiting[0]
            try:
                moment = source.stat().st_mtime_ns
                rows = pq.read_table(source, schema=LOGGED, partitioning=None)
            except FileNotFoundError:
                waiting.pop(0)
                continue
            # A kept or default answer is no model's to explain.
            given = zip(rows.column("outputs").to_pylist(), rows.column("arm").to_pylist(), strict=True)
            answered = [bool(outputs) and arm not in STAND_INS for outputs, arm in given]
            if source.name == MERGED:
                known = explanations.known(model, source)
                keys = zip(*(rows.column(name).to_pylist() for name in ("id", "version", "arm")), strict=True)
                answered = [told and key not in known for told, key in zip(answered, keys, strict=True)]
            return _Work(model, source, moment, rows.filter(pa.array(answered, pa.bool_())))
        return None

    def _advance(self, ctx: Context, work: _Work, rows: int) -> int:
        """Explain the next rows, version by version; returns how many were taken."""
        chunk = work.rows.slice(work.at, rows)
        work.at += max(rows, 1) if chunk.num_rows == 0 else chunk.num_rows
        numbers = chunk.column("version").to_pylist()
        for version in sorted(set(numbers)):
            taken = chunk.filter(pa.array([number == version for number in numbers], pa.bool_()))
            try:
                opened = self._version(ctx, work.model, version)
                if isinstance(opened, str):
                    raise LoopwrightError(opened)
                work.done.append(_explained(opened, taken))
            except Exception as error:  # noqa: BLE001 - the transform is the project's: anything may come out of it
                self._skip(
                    work, version, taken.num_rows, str(in_words(error) or f"{type(error).__name__}: {error}")
                )
                continue
            work.features[str(version)] = list(opened.bundle.schema.features)
            work.methods[str(version)] = opened.explainer.method
        return int(chunk.num_rows)

    def _version(self, ctx: Context, model: str, version: int) -> Explainable | str:
        """The opened version, or why it cannot be; asked for once."""
        with ctx.ledger.read() as conn:
            spec = monitoring_store.load_spec(conn, model)
        if spec is not None and spec.serving.log.redact:
            return f"inputs are not logged (serving.log.redact: {', '.join(spec.serving.log.redact)})"
        key = (model, version)
        if key not in self._open:
            try:
                self._open[key] = open_version(ctx, model, version)
            except LoopwrightError as error:
                self._open[key] = str(error)
        self._open.move_to_end(key)
        while len(self._open) > OPEN_VERSIONS:
            self._open.popitem(last=False)
        return self._open[key]

    def _skip(self, work: _Work, version: int, rows: int, why: str) -> None:
        reason = f"version {version}: {why}"
        work.skipped[reason] = work.skipped.get(reason, 0) + rows
        told = (work.model, version, why)
        if told not in self._told:
            self._told.add(told)
            log.warning("%s: predictions are not explained: %s", work.model, reason)


def _explained(opened: Explainable, rows: pa.Table) -> pa.Table:
    schema = opened.bundle.schema
    inputs = [msgspec.json.decode(text) for text in rows.column("inputs").to_pylist()]
    found = opened.explainer.explain(opened.bundle.features(columns_of(inputs, schema.inputs)))
    return explanation_rows({
        **{name: rows.column(name).to_pylist() for name in ("id", "version", "arm", "event_time")},
        "output": [schema.outputs[place] for place in found.output],
        "base": found.base.tolist(),
        "raw": found.raw.tolist(),
        "contributions": found.values.tolist(),
    })  # fmt: skip
