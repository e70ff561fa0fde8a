"""Replays logged requests through the offline path, and tells feature by feature how far the two agree.

A request is found again by its id: where that is the key of a row of the spine's table, the offline path says what
would have been trained on at that moment, from the tables as they stand now. Of other requests those features are
looked up again whose views' entities the request itself names, in its inputs or as its unit. Rows that came late or
were corrected since then show as skew, because the model did not see them.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import sqlglot
from numpy.typing import NDArray
from sqlglot.errors import SqlglotError

from loopwright.bundle.open import Bundle
from loopwright.data.files import Files
from loopwright.data.lake import Lake
from loopwright.features.frame import LARGEST, Frame
from loopwright.features.module import FeatureModule
from loopwright.features.offline import build_frame
from loopwright.features.parity import ULPS, FeatureParity, compare
from loopwright.features.training_set import training_set
from loopwright.features.view import FeatureView, as_mapping, quoted
from loopwright.kernel.clock import from_us, iso
from loopwright.kernel.verdict import Verdict
from loopwright.monitoring.requests import Requests
from loopwright.pipeline.feature_watch import views_of
from loopwright.project.spec import Project

log = logging.getLogger("loopwright.parity")

_MOMENT = "lw_asked_at"
_UTC = pa.timestamp("us", tz="UTC")
ANSWERS_ALIKE = 1e-6
"""A logged answer this near to the recomputed one is the same answer."""


@dataclass(frozen=True, slots=True)
class Answers:
    """How logged answers agree with what the sealed bundle makes of the logged inputs: the transform and the model."""

    compared: int
    different: int
    max_difference: float | None

    @property
    def verdict(self) -> Verdict:
        if not self.compared:
            return Verdict.INCONCLUSIVE
        return Verdict.FAIL if self.different else Verdict.PASS

    def to_json(self) -> dict[str, Any]:
        return {
            "compared": self.compared, "different": self.different, "max_difference": self.max_difference,
            "tolerance": ANSWERS_ALIKE, "verdict": self.verdict.value,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class ParityReport:
    """`requests` were made, `replayed` of them were looked at; `matched` of these have a row in the spine's table, and
    `by_key` others name the entity of at least one view.

    moved: matched requests that came with another event time than their row has. tables: the versions read.
    sources: feature → the view (or "spine") that makes it.
    """

    model: str
    version: int
    start: datetime
    end: datetime
    requests: int
    replayed: int
    matched: int
    by_key: int
    moved: int
    features: tuple[FeatureParity, ...]
    answers: Answers
    sources: Mapping[str, str]
    tables: Mapping[str, int]

    @property
    def verdict(self) -> Verdict:
        """FAIL when one feature or one answer differs; INCONCLUSIVE when nothing could be compared."""
        verdicts = {each.verdict for each in self.features} | {self.answers.verdict}
        if Verdict.FAIL in verdicts:
            return Verdict.FAIL
        return Verdict.PASS if self.matched or self.by_key else Verdict.INCONCLUSIVE

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model, "version": self.version, "verdict": self.verdict.value, "start": iso(self.start),
            "end": iso(self.end), "requests": self.requests, "replayed": self.replayed,
            "matched": self.matched, "by_key": self.by_key, "moved": self.moved,
            "tables": dict(self.tables), "answers": self.answers.to_json(),
            "features": [each.to_json() | {"source": self.sources[each.name]} for each in self.features],
        }  # fmt: skip


def parity(
    project: Project,
    module: FeatureModule,
    lake: Lake,
    bundle: Bundle | None,
    requests: Requests,
    *,
    version: int,
    start: datetime,
    end: datetime,
    ulps: int = ULPS,
    unlogged: Collection[str] = (),
) -> ParityReport:
    """Compare `requests` (of one version, event times in [start, end)) with what the tables say now.

    `bundle`: what answered, to compare answers too; None: they are left out. `unlogged`: inputs that the log is to be
    without; nothing is said of them, nor of the answers that were made with them. Raises what `build_frame` raises.
    """
    if hidden := set(unlogged) & set(requests.inputs):
        told = {name: values for name, values in requests.inputs.items() if name not in hidden}
        requests, bundle = replace(requests, inputs=told), None
    model, names = project.spec.model, module.tables()
    files = {name: lake.files("silver", model, name) for name in names}
    rows, matched, moved = _matched(_frame(project, module, files, requests), requests)
    rest = np.setdiff1d(np.arange(len(requests)), matched)
    by_key = _by_key(module, files, requests, rest)
    features = []
    for name, dtype in module.inputs.items():
        if name not in requests.inputs:
            continue
        at = np.concatenate([matched, rest]) if name in by_key else matched
        offline = [rows.inputs()[name]] if rows is not None else []
        offline += [by_key[name]] if name in by_key else []
        made = np.concatenate(offline) if offline else np.empty(0)
        ids = [requests.ids[each] for each in at]
        features += compare({name: requests.inputs[name][at]}, {name: made}, {name: dtype}, ids, ulps=ulps)
    return ParityReport(
        model=model,
        version=version,
        start=start,
        end=end,
        requests=requests.total,
        replayed=len(requests),
        matched=len(matched),
        by_key=len(rest) if by_key else 0,
        moved=moved,
        features=tuple(sorted(features, key=lambda each: -each.different)),
        answers=_answers(bundle, requests),
        sources=views_of(module),
        tables={name: lake.open("silver", model, name).version() for name in names},
    )


def _by_key(
    module: FeatureModule, files: Mapping[str, Files], requests: Requests, rest: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Feature → values of the requests at `rest`, for views whose entity the requests themselves name."""
    if not len(rest):
        return {}
    named = _named(module, files[module.spine.table].schema, requests, rest)
    views, wanted = [], {_MOMENT: pa.array(requests.event_times[rest].astype(np.int64)).cast(_UTC)}
    for view in module.views:
        if isinstance(view, FeatureView) and set(read := _columns(view)) <= set(named):
            views.append(view)
            wanted |= {column: named[column] for column in read}
    if not views:
        return {}
    found = training_set(pa.table(wanted), views, files, _MOMENT, full_names=True, failed_tests="tell")
    made: dict[str, NDArray[Any]] = {}
    for view in views:
        for name in view.names():
            if name in module.inputs:
                column = found.select([f"{view.name}__{name}"]).rename_columns([name])
                made |= Frame(column, {name: module.inputs[name]}).inputs()
    return made


def _named(
    module: FeatureModule, schema: pa.Schema, requests: Requests, rest: NDArray[np.int64]
) -> dict[str, pa.Array]:
    """Column of the spine's table → what the requests at `rest` say it was, in the column's type.

    Only inputs that are a column, or one as text, tell: of any other expression nobody knows what it was made from.
    """
    named: dict[str, pa.Array] = {}

    def note(column: str, values: pa.Array) -> None:
        if column in named or column not in schema.names:
            return
        try:
            named[column] = values.cast(schema.field(column).type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            log.info("requests do not tell `%s`: %s", column, error)

    for name, sql in as_mapping(module.spine.inputs).items():
        if (column := _column_of(sql)) is None or name not in requests.inputs:
            continue
        values, dtype = requests.inputs[name][rest], module.inputs[name]
        note(column, pa.array(values.tolist(), pa.string()) if dtype == "string" else _numbers(values, dtype))
    if module.spine.unit is not None and (column := _column_of(module.spine.unit)) is not None:
        note(column, pa.array([requests.units[at] for at in rest], pa.string()))
    return named


def _column_of(sql: str) -> str | None:
    """The column that an expression is, as it stands or as text; None for any other."""
    try:
        tree = sqlglot.parse_one(sql, read="duckdb")
    except SqlglotError:
        return None
    if isinstance(tree, sqlglot.exp.Cast) and tree.is_type(*sqlglot.exp.DataType.TEXT_TYPES):
        tree = tree.this
    return tree.name if isinstance(tree, sqlglot.exp.Column) else None


def _numbers(values: NDArray[Any], dtype: str) -> pa.Array:
    """Logged numbers in their own type; null where a whole number was too large to be logged exactly."""
    if dtype == "float64":
        return pa.array([None if v != v else v for v in values.tolist()], pa.float64())
    whole = [int(v) if abs(v) <= LARGEST else None for v in values.tolist()]  # a NaN is no number
    return pa.array(whole, pa.int64()).cast(pa.bool_() if dtype == "bool" else pa.int64())


def _columns(view: FeatureView) -> set[str]:
    """The columns of a question that a view's entity is made of; a name that is none where that cannot be told."""
    named = not isinstance(view.entity, Mapping)
    found: set[str] = set()
    for sql in as_mapping(view.entity):
        try:
            tree = sqlglot.parse_one(quoted(sql) if named else sql, read="duckdb")
        except SqlglotError:
            return {""}
        found |= {column.name for column in tree.find_all(sqlglot.exp.Column)} or {""}
    return found


def _frame(
    project: Project, module: FeatureModule, files: Mapping[str, Files], requests: Requests
) -> Frame | None:
    if not len(requests):
        return None
    times = requests.event_times.astype(np.int64)
    timed = module.spine.event_time is not None
    # A day on either side: a request that came with another time than its row is found, and told.
    day = timedelta(days=1)
    return build_frame(
        module,
        files,
        label_available_after=project.spec.data.label.available_after,
        since=from_us(int(times.min())) - day if timed else None,
        until=from_us(int(times.max())) + day if timed else None,
    )


def _matched(frame: Frame | None, requests: Requests) -> tuple[Frame | None, NDArray[np.int64], int]:
    """The frame's rows of the requests that have one, these requests' positions, and how many have another time."""
    none = np.empty(0, np.int64)
    if frame is None:
        return None, none, 0
    places = {str(name): place for place, name in enumerate(frame.ids())}
    positions = np.array([at for at, name in enumerate(requests.ids) if name in places], np.int64)
    if not len(positions):
        return None, none, 0
    # `take` keeps the frame's order; the requests follow it.
    found = np.array([places[requests.ids[at]] for at in positions], np.int64)
    order = np.argsort(found, kind="stable")
    positions, rows = positions[order], frame.take(found[order])
    times = rows.event_times()
    moved = ~np.isnat(times) & (times != requests.event_times[positions])
    return rows, positions, int(moved.sum())


def _answers(bundle: Bundle | None, requests: Requests) -> Answers:
    if bundle is None:
        return Answers(0, 0, None)
    width = len(bundle.schema.outputs)
    answered = np.array([at for at, each in enumerate(requests.outputs) if len(each) == width], np.int64)
    if not len(answered):
        return Answers(0, 0, None)
    made = bundle.predict({name: column[answered] for name, column in requests.inputs.items()})
    logged = np.array([requests.outputs[at] for at in answered], np.float64)
    apart = np.abs(made - logged).max(axis=1)
    return Answers(
        len(answered), int((~(apart <= ANSWERS_ALIKE)).sum()), float(np.nanmax(apart, initial=0.0))
    )
