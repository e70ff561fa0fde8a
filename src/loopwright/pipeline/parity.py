"""Replays logged requests through the offline path, and tells feature by feature how far the two agree.

A request is found again by its id: where that is the key of a row of the spine's table, the offline path says what
would have been trained on at that moment, from the tables as they stand now. Rows that came late or were corrected
since then show as skew, because the model did not see them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopwright.bundle.open import Bundle
from loopwright.data.lake import Lake
from loopwright.data.snapshot import silver
from loopwright.features.frame import Frame
from loopwright.features.module import FeatureModule
from loopwright.features.offline import build_frame
from loopwright.features.parity import ULPS, FeatureParity, compare
from loopwright.kernel.clock import from_us, iso
from loopwright.kernel.verdict import Verdict
from loopwright.monitoring.requests import Requests
from loopwright.pipeline.feature_watch import views_of
from loopwright.project.spec import Project

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
    """`requests` were made, `replayed` of them were looked at, and `matched` of these have a row in the spine's table.

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
        return Verdict.PASS if self.matched else Verdict.INCONCLUSIVE

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model, "version": self.version, "verdict": self.verdict.value, "start": iso(self.start),
            "end": iso(self.end), "requests": self.requests, "replayed": self.replayed, "matched": self.matched,
            "moved": self.moved, "tables": dict(self.tables), "answers": self.answers.to_json(),
            "features": [each.to_json() | {"source": self.sources[each.name]} for each in self.features],
        }  # fmt: skip


def parity(
    project: Project,
    module: FeatureModule,
    lake: Lake,
    bundle: Bundle,
    requests: Requests,
    *,
    version: int,
    start: datetime,
    end: datetime,
    ulps: int = ULPS,
) -> ParityReport:
    """Compare `requests` (of one version, event times in [start, end)) with the frame built from the tables now.

    Raises what `build_frame` raises.
    """
    names = module.tables()
    rows, positions, moved = _matched(_frame(project, module, lake, requests), requests)
    offline = rows.inputs() if rows is not None else {}
    logged = {name: column[positions] for name, column in requests.inputs.items()}
    features = compare(
        logged, offline, module.inputs, [requests.ids[at] for at in positions], ulps=ulps
    ) if rows is not None else []  # fmt: skip
    return ParityReport(
        model=project.spec.model,
        version=version,
        start=start,
        end=end,
        requests=requests.total,
        replayed=len(requests),
        matched=len(positions),
        moved=moved,
        features=tuple(features),
        answers=_answers(bundle, requests),
        sources=views_of(module),
        tables={name: lake.open("silver", project.spec.model, name).version() for name in names},
    )


def _frame(project: Project, module: FeatureModule, lake: Lake, requests: Requests) -> Frame | None:
    if not len(requests):
        return None
    times = requests.event_times.astype(np.int64)
    timed = module.spine.event_time is not None
    # A day on either side: a request that came with another time than its row is found, and told.
    day = timedelta(days=1)
    return build_frame(
        module,
        {name: silver(lake, project.spec.model, name) for name in module.tables()},
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


def _answers(bundle: Bundle, requests: Requests) -> Answers:
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
