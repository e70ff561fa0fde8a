"""SQL of folds, watermarks, label batches, windows and alerts. Every function works in the caller's
transaction.
"""

import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, insert, select, update

from loopwright.kernel.actor import Actor
from loopwright.kernel.clock import from_us, iso, to_us
from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput, Conflict, NotFound
from loopwright.kernel.ids import new_id
from loopwright.kernel.verdict import Verdict
from loopwright.ledger.schema import alerts, folds, label_batches, projects, watermarks, windows
from loopwright.ledger.store import get_meta, put_meta
from loopwright.monitoring.alerts import TIERS, Alert, AlertState, Kind, Raised, Tier
from loopwright.monitoring.windows import StableHour, Window
from loopwright.project.spec import Spec
from loopwright.serving.fold import STAND_INS as _STAND_INS
from loopwright.serving.wire import Fold
from loopwright.stats.histogram import LatencyHistogram
from loopwright.stats.profile import EMPTY, Counts

SHADOW = "shadow"
STAND_INS = tuple(sorted(_STAND_INS))
NOT_ITS_ANSWERS = (SHADOW, *STAND_INS)
"""Arms under which nobody was given an answer of the version: copies that nobody saw, and answers of no model."""
MAX_COLUMNS = 20_000
_pack, _unpack = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode


@dataclass(frozen=True, slots=True)
class FoldCounts:
    """What a version answered in a span of event time. Adds up.

    errors: its own failures, before another arm stood in. fallbacks: answers it gave in place of another.
    unprofiled: answers that are in `n` but not in `profile`, because they did not fit the reference.
    """

    n: int = 0
    errors: int = 0
    fallbacks: int = 0
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    profile: Counts = EMPTY
    unprofiled: int = 0

    def __add__(self, other: "FoldCounts") -> "FoldCounts":
        try:
            profile, lost = self.profile + other.profile, 0
            if len(profile.columns) > MAX_COLUMNS:
                raise BadInput(
                    "more columns than a profile has", where="profile merge", got=len(profile.columns)
                )
        except BadInput:
            # Counted on another reference. Its rows cannot be compared, and refusing the batch would make
            # serving send it for ever.
            profile, lost = self.profile, other.profile.rows
        return FoldCounts(
            self.n + other.n,
            self.errors + other.errors,
            self.fallbacks + other.fallbacks,
            self.latency + other.latency,
            profile,
            self.unprofiled + other.unprofiled + lost,
        )


def apply_fold(conn: Connection, fold: Fold) -> None:
    """Add a shipped fold to what is recorded for its version, arm and hour. The caller applies each once."""
    profile = Counts.from_json(fold.profile) if fold.profile is not None else EMPTY
    latency = LatencyHistogram.from_json(fold.latency)
    brought = FoldCounts(
        fold.n, fold.errors, fold.fallbacks, latency, profile, max(0, fold.n - fold.errors - profile.rows)
    )
    place = (
        (folds.c.model == fold.model)
        & (folds.c.version == fold.version)
        & (folds.c.arm == fold.arm)
        & (folds.c.bucket == fold.bucket)
    )
    recorded = conn.execute(select(folds.c.payload).where(place)).scalar_one_or_none()
    if recorded is None:
        conn.execute(
            insert(folds).values(
                model=fold.model,
                version=fold.version,
                arm=fold.arm,
                bucket=fold.bucket,
                answers=brought.n,
                errors=brought.errors,
                payload=_blob(brought),
            )
        )
    else:
        total = _counts(recorded) + brought
        conn.execute(
            update(folds).where(place).values(answers=total.n, errors=total.errors, payload=_blob(total))
        )


def arm_counts(
    conn: Connection, model: str, version: int, arm: str | None, since: datetime, until: datetime
) -> FoldCounts:
    """Sum the folds of hours that begin in [since, until). arm None: every arm whose answers are the version's."""
    query = select(folds.c.payload).where(
        folds.c.model == model,
        folds.c.version == version,
        folds.c.arm.not_in(NOT_ITS_ANSWERS) if arm is None else folds.c.arm == arm,
        folds.c.bucket >= to_us(since),
        folds.c.bucket < to_us(until),
    )
    return sum((_counts(payload) for payload in conn.execute(query).scalars()), FoldCounts())


def arm_tally(
    conn: Connection, model: str, version: int, arm: str, since: datetime, until: datetime
) -> tuple[int, int, LatencyHistogram]:
    """(n, errors, latency) of hours that begin in [since, until): `arm_counts` without profiles, ten times
    cheaper.

    The rollout controller reads this twice a second over the whole rollout.
    """
    query = select(folds.c.payload).where(
        folds.c.model == model,
        folds.c.version == version,
        folds.c.arm == arm,
        folds.c.bucket >= to_us(since),
        folds.c.bucket < to_us(until),
    )
    n, errors, total_us = 0, 0, 0.0
    latency: Counter[str] = Counter()
    growth = None
    for payload in conn.execute(query).scalars():
        document = _unpack(zlib.decompress(payload))
        n, errors = n + document["n"], errors + document["errors"]
        latency.update(document["latency"]["counts"])
        total_us += document["latency"]["total_us"]
        growth = document["latency"]["growth"]
    if growth is None:
        return n, errors, LatencyHistogram()
    merged = {"growth": growth, "total_us": total_us, "counts": latency}
    return n, errors, LatencyHistogram.from_json(merged)


def daily_counts(
    conn: Connection, model: str, version: int, since: datetime, until: datetime
) -> list[FoldCounts]:
    """What `arm_counts` without an arm sums, day by day (UTC), oldest first; days without answers are absent."""
    query = (
        select(folds.c.bucket, folds.c.payload)
        .where(
            folds.c.model == model,
            folds.c.version == version,
            folds.c.arm.not_in(NOT_ITS_ANSWERS),
            folds.c.bucket >= to_us(since),
            folds.c.bucket < to_us(until),
        )
        .order_by(folds.c.bucket)
    )
    days: dict[int, FoldCounts] = {}
    for bucket, payload in conn.execute(query):
        day = bucket // 86_400_000_000
        days[day] = days.get(day, FoldCounts()) + _counts(payload)
    return list(days.values())


def stable_hours(conn: Connection, model: str, since: datetime, until: datetime) -> list[StableHour]:
    """The stable arm's hours in [since, until), oldest first.

    A stand-in's answer follows an error of stable, unless stable was not even asked (its breaker was open).
    """
    query = (
        select(folds.c.bucket, folds.c.version, folds.c.arm, folds.c.payload)
        .where(
            folds.c.model == model,
            folds.c.arm.in_(("stable", *STAND_INS)),
            folds.c.bucket >= to_us(since),
            folds.c.bucket < to_us(until),
        )
        .order_by(folds.c.bucket)
    )
    asked: dict[int, list[tuple[int, FoldCounts]]] = {}
    stood_in: Counter[int] = Counter()
    for bucket, version, arm, payload in conn.execute(query):
        counts = _counts(payload)
        if arm == "stable":
            asked.setdefault(bucket, []).append((version, counts))
        else:
            stood_in[bucket] += counts.n
            asked.setdefault(bucket, [])
    hours = []
    for bucket, versions in sorted(asked.items()):
        left = stood_in[bucket]
        for version, counts in versions:
            covered = min(left, counts.errors)
            left -= covered
            hours.append(
                StableHour(from_us(bucket), version, counts.n, counts.errors, covered, counts.latency)
            )
        if left:
            # Nobody asked stable for these.
            version = (
                max(number for number, _ in versions) if versions else (hours[-1].version if hours else 0)
            )
            hours.append(StableHour(from_us(bucket), version, left, left, left))
    return hours


def served_hours(
    conn: Connection, model: str, since: datetime, until: datetime
) -> list[tuple[datetime, int]]:
    """Distinct (hour, version) in which the version answered somebody in [since, until), oldest first."""
    query = (
        select(folds.c.bucket, folds.c.version)
        .distinct()
        .where(
            folds.c.model == model,
            folds.c.arm.not_in(NOT_ITS_ANSWERS),
            folds.c.bucket >= to_us(since),
            folds.c.bucket < to_us(until),
        )
        .order_by(folds.c.bucket, folds.c.version)
    )
    return [(from_us(bucket), version) for bucket, version in conn.execute(query)]


def first_hour(conn: Connection, model: str, *, version: int | None = None) -> datetime | None:
    """The earliest hour the model, or one version of it (shadow traffic aside), answered in."""
    query = select(func.min(folds.c.bucket)).where(folds.c.model == model)
    if version is not None:
        query = query.where(folds.c.version == version, folds.c.arm.not_in(NOT_ITS_ANSWERS))
    earliest = conn.execute(query).scalar_one_or_none()
    return None if earliest is None else from_us(earliest)


def raise_watermark(conn: Connection, model: str, moment: datetime) -> None:
    """Note that event time of `model` has reached `moment`; it never goes back."""
    place = watermarks.c.model == model
    reached = conn.execute(select(watermarks.c.event_time).where(place)).scalar_one_or_none()
    if reached is None:
        conn.execute(insert(watermarks).values(model=model, event_time=to_us(moment)))
    elif reached < to_us(moment):
        conn.execute(update(watermarks).where(place).values(event_time=to_us(moment)))


def watermark(conn: Connection, model: str) -> datetime | None:
    """How far the event time of `model` has come; None before its first prediction."""
    reached = conn.execute(
        select(watermarks.c.event_time).where(watermarks.c.model == model)
    ).scalar_one_or_none()
    return None if reached is None else from_us(reached)


def all_watermarks(conn: Connection) -> dict[str, datetime]:
    """How far the event time of every model has come that has had a prediction."""
    return {row.model: from_us(row.event_time) for row in conn.execute(select(watermarks))}


def record_label_batch(
    conn: Connection,
    *,
    batch_id: str,
    model: str,
    rows: int,
    available_from: datetime | None,
    available_to: datetime | None,
    path: str,
    now: datetime,
) -> bool:
    """Note a batch of the label log; False when it was noted before."""
    if conn.execute(select(label_batches.c.id).where(label_batches.c.id == batch_id)).first() is not None:
        return False
    conn.execute(
        insert(label_batches).values(
            id=batch_id,
            model=model,
            rows=rows,
            event_from=to_us(available_from) if available_from else None,
            event_to=to_us(available_to) if available_to else None,
            path=path,
            at=to_us(now),
        )
    )
    return True


def label_batch_count(conn: Connection, model: str) -> int:
    """How many batches of labels the model has had."""
    return int(conn.execute(select(func.count()).where(label_batches.c.model == model)).scalar_one())


@dataclass(frozen=True, slots=True)
class JudgedWindow:
    """A recorded verdict on one version in one window."""

    model: str
    version: int
    kind: str
    window: Window
    verdict: Verdict
    payload: Mapping[str, Any]
    at: datetime

    @property
    def start(self) -> datetime:
        return self.window.start

    @property
    def end(self) -> datetime:
        return self.window.end

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "version": self.version,
            "kind": self.kind,
            "start": iso(self.window.start),
            "end": iso(self.window.end),
            "verdict": self.verdict.value,
            "payload": dict(self.payload),
            "at": iso(self.at),
        }


def record_window(conn: Connection, judged: JudgedWindow) -> bool:
    """Record a verdict; the first one on a window stands: False when there is one already."""
    place = (
        (windows.c.model == judged.model)
        & (windows.c.version == judged.version)
        & (windows.c.kind == judged.kind)
        & (windows.c.start == to_us(judged.window.start))
        & (windows.c.end == to_us(judged.window.end))
    )
    if conn.execute(select(windows.c.id).where(place)).first() is not None:
        return False
    conn.execute(
        insert(windows).values(
            id=new_id("wi"),
            model=judged.model,
            version=judged.version,
            kind=judged.kind,
            start=to_us(judged.window.start),
            end=to_us(judged.window.end),
            verdict=judged.verdict.value,
            payload=_json(judged.payload),
            at=to_us(judged.at),
        )
    )
    return True


def models_judged(conn: Connection) -> list[str]:
    """The models that have a judged window."""
    return list(conn.execute(select(windows.c.model).distinct()).scalars())


def list_windows(
    conn: Connection,
    model: str,
    *,
    kind: str | None = None,
    version: int | None = None,
    verdicts: Sequence[Verdict] | None = None,
    since: datetime | None = None,
    limit: int | None = None,
) -> list[JudgedWindow]:
    """Judged windows, oldest first; with `limit`, the newest `limit` of them."""
    query = (
        select(windows)
        .where(windows.c.model == model)
        .order_by(windows.c.start.desc(), windows.c.version.desc())
    )
    if kind is not None:
        query = query.where(windows.c.kind == kind)
    if version is not None:
        query = query.where(windows.c.version == version)
    if verdicts is not None:
        query = query.where(windows.c.verdict.in_([verdict.value for verdict in verdicts]))
    if since is not None:
        query = query.where(windows.c.start >= to_us(since))
    if limit is not None:
        query = query.limit(limit)
    return [_window(row) for row in conn.execute(query)][::-1]


def open_alert(conn: Connection, model: str, raised: Raised, key: str, now: datetime) -> Alert | None:
    """Record a new alert; None when the same condition with the same beginning was recorded before."""
    if (
        conn.execute(select(alerts.c.id).where(alerts.c.model == model, alerts.c.key == key)).first()
        is not None
    ):
        return None
    alert = Alert(
        id=new_id("al"),
        model=model,
        version=raised.version,
        tier=TIERS[raised.kind],
        kind=raised.kind,
        key=key,
        title=raised.title,
        detail=dict(raised.detail),
        event_time=raised.event_time,
        opened_at=now,
        state=AlertState.OPEN,
        by=None,
        changed_at=now,
    )
    conn.execute(
        insert(alerts).values(
            id=alert.id,
            model=model,
            version=alert.version,
            tier=alert.tier.value,
            kind=alert.kind.value,
            key=key,
            title=alert.title,
            detail=_json(alert.detail),
            event_time=to_us(alert.event_time),
            opened_at=to_us(now),
            state=alert.state.value,
            by=None,
            changed_at=to_us(now),
        )
    )
    return alert


def renew_alert(conn: Connection, alert: Alert, raised: Raised, now: datetime) -> None:
    """Write what the condition looks like now; its beginning and state stay."""
    conn.execute(
        update(alerts)
        .where(alerts.c.id == alert.id)
        .values(
            version=raised.version, title=raised.title, detail=_json(raised.detail), changed_at=to_us(now)
        )
    )


def resolve_alert(conn: Connection, alert: Alert, why: str, now: datetime) -> None:
    """End an alert, keeping why."""
    detail = _json({**alert.detail, "resolved": why})
    conn.execute(
        update(alerts)
        .where(alerts.c.id == alert.id)
        .values(state=AlertState.RESOLVED.value, detail=detail, changed_at=to_us(now))
    )


def acknowledge(conn: Connection, alert_id: str, actor: Actor, now: datetime) -> Alert:
    """Note that `actor` looks after the alert. Raises NotFound, or Conflict for one that is resolved."""
    alert = get_alert(conn, alert_id)
    if alert.state is AlertState.RESOLVED:
        raise Conflict("the alert is resolved already", where=f"alert {alert_id}", got=alert.title)
    conn.execute(
        update(alerts)
        .where(alerts.c.id == alert_id)
        .values(state=AlertState.ACKNOWLEDGED.value, by=actor.name, changed_at=to_us(now))
    )
    return get_alert(conn, alert_id)


def get_alert(conn: Connection, alert_id: str) -> Alert:
    """Raises NotFound."""
    row = conn.execute(select(alerts).where(alerts.c.id == alert_id)).one_or_none()
    if row is None:
        raise NotFound(f"no alert has the id {alert_id}", next="See: loopwright alerts")
    return _alert(row)


def list_alerts(
    conn: Connection,
    model: str | None = None,
    *,
    state: str | None = None,
    standing: bool = False,
    limit: int | None = None,
) -> list[Alert]:
    """Alerts, newest event time first; all models and states unless told otherwise.

    standing: only those that are open or acknowledged.
    """
    query = select(alerts).order_by(alerts.c.event_time.desc(), alerts.c.id.desc())
    if model is not None:
        query = query.where(alerts.c.model == model)
    if state is not None:
        query = query.where(alerts.c.state == str(state))
    if standing:
        query = query.where(alerts.c.state != AlertState.RESOLVED.value)
    if limit is not None:
        query = query.limit(limit)
    return [_alert(row) for row in conn.execute(query)]


def load_progress(conn: Connection, model: str) -> dict[str, Any]:
    """How far monitoring of `model` has come; {} at first."""
    text = get_meta(conn, f"monitoring.{model}")
    return dict(json.loads(text)) if text else {}


def save_progress(conn: Connection, model: str, progress: Mapping[str, Any]) -> None:
    put_meta(conn, f"monitoring.{model}", _json(progress))


def monitored_models(conn: Connection) -> Iterator[tuple[str, datetime]]:
    """(model, watermark) of every model that has answered anything."""
    for row in conn.execute(select(watermarks).order_by(watermarks.c.model)).all():
        yield row.model, from_us(row.event_time)


def load_spec(conn: Connection, model: str) -> Spec | None:
    """The newest spec of the project that makes `model`; None when this home has none."""
    text = conn.execute(select(projects.c.spec).where(projects.c.model == model)).scalar_one_or_none()
    return _spec(text) if text else None


@lru_cache(maxsize=128)
def _spec(text: str) -> Spec:
    return Spec.from_json(json.loads(text))


def _json(document: Mapping[str, Any]) -> str:
    return canonical_json(dict(document)).decode()


def _blob(counts: FoldCounts) -> bytes:
    document = {
        "n": counts.n,
        "errors": counts.errors,
        "fallbacks": counts.fallbacks,
        "latency": counts.latency.to_json(),
        "profile": counts.profile.to_json(),
        "unprofiled": counts.unprofiled,
    }
    return zlib.compress(_pack(document), 1)


def _counts(blob: bytes) -> FoldCounts:
    document = _unpack(zlib.decompress(blob))
    return FoldCounts(
        document["n"],
        document["errors"],
        document["fallbacks"],
        LatencyHistogram.from_json(document["latency"]),
        Counts.from_json(document["profile"]),
        document["unprofiled"],
    )


def _window(row: Row[Any]) -> JudgedWindow:
    return JudgedWindow(
        row.model,
        row.version,
        row.kind,
        Window(from_us(row.start), from_us(row.end)),
        Verdict(row.verdict),
        json.loads(row.payload),
        from_us(row.at),
    )


def _alert(row: Row[Any]) -> Alert:
    return Alert(
        id=row.id,
        model=row.model,
        version=row.version,
        tier=Tier(row.tier),
        kind=Kind(row.kind),
        key=row.key,
        title=row.title,
        detail=json.loads(row.detail),
        event_time=from_us(row.event_time),
        opened_at=from_us(row.opened_at),
        state=AlertState(row.state),
        by=row.by,
        changed_at=from_us(row.changed_at),
    )
