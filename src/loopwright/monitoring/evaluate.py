"""Judges what has become complete in event time, and raises or ends alerts. Cheap when nothing has.

A tick reads two small rows per model. Only when an hour or a window of event time is complete does it read
that window's folds (a few kilobytes an hour, however much traffic there was); raw predictions are read once
per window, to join labels.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from loopwright.bundle.depot import BundleDepot
from loopwright.kernel.actor import SYSTEM
from loopwright.kernel.clock import from_us, iso, to_us
from loopwright.kernel.errors import LoopwrightError, NotFound
from loopwright.kernel.home import Home
from loopwright.kernel.verdict import Verdict
from loopwright.ledger.engine import Ledger
from loopwright.ledger.store import append
from loopwright.monitoring import store
from loopwright.monitoring.alerts import Alert, Condition, Open, Renew, Resolve, changes
from loopwright.monitoring.conditions import (
    availability_conditions,
    drift_condition,
    latency_conditions,
    prediction_condition,
    quality_condition,
)
from loopwright.monitoring.labels import LabelLog, outcomes
from loopwright.monitoring.log import PredictionLog
from loopwright.monitoring.store import JudgedWindow
from loopwright.monitoring.windows import (
    HOUR,
    LATENESS,
    LATEST,
    QualityLimits,
    StableHour,
    Window,
    complete_windows,
    judge_quality,
    labels_are_in,
    window_of,
)
from loopwright.project.spec import Spec
from loopwright.registry.versions import get_version
from loopwright.stats.drift import judge_drift
from loopwright.stats.metrics import metric
from loopwright.stats.profile import PREDICTION, Counts, Reference

SETTLE = timedelta(hours=12)
"""Beyond the label's `available_after`: what a fair share of labels takes to be sent."""

CONCLUSIVE = (Verdict.PASS, Verdict.FAIL)


@dataclass(frozen=True, slots=True)
class Watched:
    """What a version is judged against. None: unknown, and then that judgement is not made."""

    reference: Reference | None
    quality: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one look at a model decided. Empty when nothing had become complete."""

    model: str
    event_time: datetime
    windows: tuple[JudgedWindow, ...] = ()
    opened: tuple[Alert, ...] = ()
    resolved: tuple[Alert, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "event_time": iso(self.event_time),
            "windows": [
                {
                    "kind": each.kind,
                    "version": each.version,
                    "start": iso(each.start),
                    "verdict": each.verdict.value,
                }
                for each in self.windows
            ],
            "opened": [alert.to_json() for alert in self.opened],
            "resolved": [alert.to_json() for alert in self.resolved],
        }


Watch = Callable[[int], Watched]


def tick(ledger: Ledger, *, home: Home, now: datetime) -> list[Evaluation]:
    """Look at every model that has answered anything; returns those where something was decided.

    A model that no project of this home describes is left alone: nothing says how it should be judged.
    """
    with ledger.read() as conn:
        specs = [store.load_spec(conn, model) for model, _ in store.monitored_models(conn)]
    log, labels = PredictionLog(home.predictions), LabelLog(home.labels)
    found = [
        evaluate(ledger, spec=spec, watch=watcher(ledger, home, spec), log=log, labels=labels, now=now)
        for spec in specs
        if spec is not None
    ]
    return [each for each in found if each.windows or each.opened or each.resolved]


def watcher(ledger: Ledger, home: Home, spec: Spec) -> Watch:
    """How to find what a version of the spec's model is judged against: its bundle's profile, its registered
    metric.
    """

    def watch(version: int) -> Watched:
        with ledger.read() as conn:
            try:
                registered = get_version(conn, model=spec.model, version=version)
            except NotFound:
                return Watched(None, None)
        reference = None
        if registered.bundle is not None:
            path = BundleDepot(home.bundles).path(registered.bundle) / "reference.json"
            reference = _reference(path) if path.is_file() else None
        return Watched(reference, registered.metrics.get(spec.quality_metric))

    return watch


@lru_cache(maxsize=64)
def _reference(path: Path) -> Reference | None:
    # Content-addressed, so a path's content never changes.
    document = json.loads(path.read_bytes())
    return Reference.from_json(document) if document else None


def evaluate(
    ledger: Ledger, *, spec: Spec, watch: Watch, log: PredictionLog, labels: LabelLog, now: datetime
) -> Evaluation:
    """Judge every window of `spec.model` that is complete at its watermark and was not judged before.

    Drift waits an hour of event time after a window's end; quality waits for nine tenths of the labels. Is
    idempotent: windows, alerts and how far it came are recorded in one transaction.
    """
    with ledger.read() as conn:
        reached = store.watermark(conn, spec.model)
        if reached is None:
            return Evaluation(spec.model, now)
        look = _Look(conn, spec, watch, log, labels, reached, now)
        if not look.anything_due():
            return Evaluation(spec.model, reached)
        judged = [*look.drift(), *look.quality()]
        hours = look.new_hours()
    with ledger.write() as conn:
        fresh = [each for each in judged if store.record_window(conn, each)]
        conditions = _conditions(conn, spec, fresh)
        conditions += availability_conditions(hours, spec.monitoring.slo.availability)
        conditions += latency_conditions(hours, spec.monitoring.slo.latency_p99_ms)
        opened, resolved = apply_conditions(conn, spec.model, conditions, now)
        store.save_progress(conn, spec.model, look.progress)
    return Evaluation(spec.model, reached, tuple(fresh), tuple(opened), tuple(resolved))


class _Look:
    """One look at one model: what is due, and the verdicts on it. Reads only."""

    def __init__(
        self,
        conn: Connection,
        spec: Spec,
        watch: Watch,
        log: PredictionLog,
        labels: LabelLog,
        reached: datetime,
        now: datetime,
    ) -> None:
        self.conn, self.spec, self.watch = conn, spec, watch
        self.log, self.labels, self.reached, self.now = log, labels, reached, now
        self.progress = store.load_progress(conn, spec.model)
        self.length = spec.monitoring.window
        self.quality_wait = spec.data.label.available_after + SETTLE

    def anything_due(self) -> bool:
        if "began" not in self.progress:
            began = store.first_hour(self.conn, self.spec.model)
            if began is None:
                return False
            start = to_us(window_of(began, self.length).start)
            self.progress = {"began": start, "drift": start, "quality": start, "hour": start, "tried": None}
        self.drift_windows = complete_windows(self._at("drift"), self.reached, self.length, LATENESS)
        self.quality_windows = complete_windows(
            self._at("quality"), self.reached, self.length, self.quality_wait
        )
        self.hour = window_of(self.reached, HOUR).start
        self.attempt = [
            store.label_batch_count(self.conn, self.spec.model) if self.quality_windows else 0,
            len(self.quality_windows),
            to_us(self.reached) // 86_400_000_000,
        ]
        try_quality = bool(self.quality_windows) and self.attempt != self.progress["tried"]
        if not try_quality:
            self.quality_windows = []
        return bool(self.drift_windows) or try_quality or to_us(self.hour) > self.progress["hour"]

    def drift(self) -> list[JudgedWindow]:
        """Drift of features and of predictions, per version, for each window that has become complete."""
        judged = []
        for window, version in self._served(self.drift_windows):
            judged += self._drift_of(window, version)
        if self.drift_windows:
            self.progress["drift"] = to_us(self.drift_windows[-1].end)
        return judged

    def _drift_of(self, window: Window, version: int) -> list[JudgedWindow]:
        reference = self.watch(version).reference
        if reference is None:
            return []
        settings = self.spec.monitoring.drift
        days = store.daily_counts(self.conn, self.spec.model, version, window.start, window.end)
        counts = sum(days, store.FoldCounts())
        try:
            columns = judge_drift(
                _comparable(reference, counts.profile),
                counts.profile,
                warn=min(0.1, settings.psi),
                alarm=settings.psi,
                days=[day.profile for day in days],
            )
        except LoopwrightError as error:
            payload: dict[str, Any] = {"rows": counts.profile.rows, "columns": {}, "error": str(error)}
            return [self._judged(version, "drift", window, Verdict.ERROR, payload)]
        watched = set(reference.columns) if settings.features == "all" else set(settings.features)
        features = {name: drift for name, drift in columns.items() if name != PREDICTION and name in watched}
        figures = {"rows": counts.profile.rows, "unprofiled": counts.unprofiled, "n": counts.n}
        judged = []
        for kind, chosen in (
            ("drift", features),
            ("prediction", {k: v for k, v in columns.items() if k == PREDICTION}),
        ):
            if chosen:
                payload = {**figures, "columns": {name: drift.to_json() for name, drift in chosen.items()}}
                verdicts = {drift.verdict for drift in chosen.values()}
                judged.append(self._judged(version, kind, window, _worst(verdicts), payload))
        return judged

    def quality(self) -> list[JudgedWindow]:
        """Quality per version for each complete window whose labels are in; the others are tried again
        later.
        """
        judged: list[JudgedWindow] = []
        waiting: list[Window] = []
        already = {
            (each.window, each.version)
            for each in store.list_windows(
                self.conn, self.spec.model, kind="quality", since=self._at("quality")
            )
        }
        for window, version in self._served(self.quality_windows):
            if (window, version) in already:
                continue
            joined = outcomes(
                self.log,
                self.labels,
                model=self.spec.model,
                version=version,
                start=window.start,
                end=window.end,
                until=self.reached,
            )
            if not labels_are_in(joined, window, self.reached, self.spec.data.label.available_after):
                waiting.append(window)
                continue
            limits = QualityLimits(
                metric(self.spec.quality_metric),
                self.watch(version).quality,
                self.spec.monitoring.quality.drop,
            )
            result = judge_quality(joined, limits)
            judged.append(self._judged(version, "quality", window, result.verdict, result.to_json()))
        if self.quality_windows:
            done = min(waiting).start if waiting else self.quality_windows[-1].end
            self.progress["quality"] = to_us(done)
            left = complete_windows(done, self.reached, self.length, self.quality_wait)
            self.progress["tried"] = [self.attempt[0], len(left), self.attempt[2]]
        return judged

    def new_hours(self) -> list[StableHour]:
        """The stable arm's last day of complete hours, when another hour has become complete."""
        if to_us(self.hour) <= self.progress["hour"]:
            return []
        self.progress["hour"] = to_us(self.hour)
        return store.stable_hours(self.conn, self.spec.model, self.hour - timedelta(days=1), self.hour)

    def _served(self, windows: list[Window]) -> list[tuple[Window, int]]:
        if not windows:
            return []
        hours = store.served_hours(self.conn, self.spec.model, windows[0].start, windows[-1].end)
        return sorted({(window_of(hour, self.length), version) for hour, version in hours})

    def _judged(
        self, version: int, kind: str, window: Window, verdict: Verdict, payload: dict[str, Any]
    ) -> JudgedWindow:
        return JudgedWindow(self.spec.model, version, kind, window, verdict, payload, self.now)

    def _at(self, what: str) -> datetime:
        return from_us(self.progress[what])


def _comparable(reference: Reference, profile: Counts) -> Reference:
    """The reference less columns that cannot be compared: a reference whose own rows have no predictions says nothing
    about predictions, and an input that is not to be logged is in no profile.
    """
    empty = {name for name, counts in reference.counts.columns.items() if not counts.sum()}
    if profile.columns:
        empty |= set(reference.columns) - set(profile.columns)
    return reference.without(empty) if empty else reference


def _worst(verdicts: set[Verdict]) -> Verdict:
    order = (Verdict.ERROR, Verdict.FAIL, Verdict.PASS, Verdict.INCONCLUSIVE)
    return next(verdict for verdict in order if verdict in verdicts)


def _conditions(conn: Connection, spec: Spec, fresh: list[JudgedWindow]) -> list[Condition]:
    """The conditions of the version in service, for each kind that has a new verdict."""
    found: list[Condition | None] = []
    for kind, of in (
        ("drift", drift_condition),
        ("prediction", prediction_condition),
        ("quality", quality_condition),
    ):
        new = [each for each in fresh if each.kind == kind and each.verdict in CONCLUSIVE]
        if not new:
            continue
        newest = max(each.window for each in new)
        size = "answered" if kind == "quality" else "rows"
        # While a rollout runs, several versions answer: the one that answers most is the one in service.
        main = max((each for each in new if each.window == newest), key=lambda each: each.payload[size])
        latest = store.list_windows(
            conn, spec.model, kind=kind, version=main.version, verdicts=CONCLUSIVE, limit=LATEST
        )
        found.append(of(latest))
    return [condition for condition in found if condition is not None]


def apply_conditions(
    conn: Connection, model: str, conditions: list[Condition], now: datetime
) -> tuple[list[Alert], list[Alert]]:
    """Open, renew and resolve the model's alerts as `conditions` ask, with audit rows; return (opened, resolved)."""
    opened, resolved = [], []
    for change in changes(store.list_alerts(conn, model, standing=True), conditions):
        match change:
            case Open(raised, key):
                alert = store.open_alert(conn, model, raised, key, now)
                if alert is not None:
                    opened.append(alert)
                    append(
                        conn,
                        at=now,
                        actor=SYSTEM.name,
                        action="alert.open",
                        subject=model,
                        payload={
                            "alert": alert.id,
                            "tier": alert.tier.value,
                            "title": alert.title,
                            "key": key,
                        },
                    )
            case Renew(alert, raised):
                store.renew_alert(conn, alert, raised, now)
            case Resolve(alert, why):
                store.resolve_alert(conn, alert, why, now)
                resolved.append(alert)
                append(
                    conn,
                    at=now,
                    actor=SYSTEM.name,
                    action="alert.resolve",
                    subject=model,
                    payload={"alert": alert.id, "tier": alert.tier.value, "why": why},
                )
    return opened, resolved
