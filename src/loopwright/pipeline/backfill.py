"""Backfill: after silver changed (rows released, corrected, rebuilt), what was computed from it is computed anew.

Exactly the days of the gold table that the changed rows can reach are built again, and of these only the files whose
rows came out other are written; then the online store is given the views concerned. The outcome is that of computing
everything anew (a property of the tests). Nothing is lost when it is cut short: the next one starts from the same
difference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from loopwright.data.incidents import store as incident_store
from loopwright.data.incidents.model import Incident, State, after
from loopwright.data.incidents.record import move
from loopwright.data.lake import Lake
from loopwright.data.snapshot import Snapshot, take_snapshot
from loopwright.features.frame import Frame
from loopwright.features.module import FeatureModule, load_features
from loopwright.features.offline import build_frame
from loopwright.kernel.actor import Actor, Role, require
from loopwright.kernel.clock import Clock, iso, to_us
from loopwright.kernel.errors import BadInput, Conflict
from loopwright.kernel.progress import Progress, Silent
from loopwright.pipeline.affected import Affected, affected
from loopwright.pipeline.frames import frame_of
from loopwright.pipeline.gold import Gold, GoldReport, definition_of, last_gold, spans, write_gold
from loopwright.pipeline.intake import pinned_tables
from loopwright.project.spec import Project

Online = Callable[[Sequence[str], Mapping[str, list[dict[str, Any]] | None]], list[dict[str, Any]]]
"""Brings the named views' newest rows to the online store, of these entities where known; tells what it did."""


@dataclass(frozen=True, slots=True)
class BackfillReport:
    """`considered`: days built anew (None: all). `written`: days (or months) whose files came out other."""

    model: str
    snapshot: str
    before: str | None
    changes: tuple[dict[str, Any], ...]
    considered: tuple[str, ...] | None
    why: str
    written: tuple[str, ...]
    unchanged: int
    rows: int
    gold_version: int | None
    online: tuple[dict[str, Any], ...] = ()
    incident: str | None = None
    dry_run: bool = False
    views: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "snapshot": self.snapshot,
            "before": self.before,
            "changes": list(self.changes),
            "considered": None if self.considered is None else list(self.considered),
            "why": self.why,
            "written": list(self.written),
            "unchanged": self.unchanged,
            "rows": self.rows,
            "gold_version": self.gold_version,
            "views": list(self.views),
            "online": list(self.online),
            "incident": self.incident,
            "dry_run": self.dry_run,
        }


def backfill(
    *,
    project: Project,
    lake: Lake,
    actor: Actor,
    clock: Clock,
    incident: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    dry_run: bool = False,
    online: Online | None = None,
    progress: Progress | None = None,
) -> BackfillReport:
    """Bring what is downstream of the silver tables up to them; is idempotent and safe to kill.

    `since`, `until` (exclusive): days that are built again in any case, beside those that changes reach. `incident`:
    the incident that this is for; it must be resolved, and is backfilled afterwards. Raises Conflict where it is not
    resolved, and BadInput for a span that ends before it begins.
    """
    model, watch = project.spec.model, progress or Silent()
    require(actor, Role.DEVELOPER, "backfill", model=model, team=project.spec.team)
    if since is not None and until is not None and until <= since:
        raise BadInput("a span that ends before it begins", got=f"{iso(since)} to {iso(until)}")
    worked_on = _resolved(lake, incident, model) if incident else None
    module = load_features(project)
    watch.step("What changed, and what it reaches")
    snapshot = take_snapshot(
        lake, model=model, tables=list(project.spec.data.sources), now=clock(), actor=actor
    )
    tables = {name: int(entry["version"]) for name, entry in snapshot.tables.items()}
    last = last_gold(lake, model)
    found = _affected(project, lake, module, last, tables)
    days = _days(lake, model, module, found, last, since, until)
    watch.done(_said(found, days))
    changed = tuple(view for view in found.entities)
    report = BackfillReport(
        model=model,
        snapshot=snapshot.digest,
        before=last.snapshot if last else None,
        changes=tuple(change.to_json() for change in found.changes),
        considered=None if days is None else tuple(day.isoformat() for day in sorted(days)),
        why=found.why,
        written=(),
        unchanged=0,
        rows=0,
        gold_version=last.version if last else None,
        incident=worked_on.id if worked_on else None,
        dry_run=dry_run,
        views=changed,
    )
    if dry_run:
        return report
    gold = _recompute(project, lake, module, snapshot, tables, days, last, actor, clock, watch)
    done = tuple(online(changed, found.entities)) if online is not None and found.changes else ()
    report = replace(
        report,
        written=gold.days,
        unchanged=gold.unchanged,
        rows=gold.rows,
        gold_version=gold.version,
        online=done,
    )
    if worked_on is not None:
        _note(lake, worked_on, report, actor, clock())
    return report


def recompute(
    project: Project, lake: Lake, module: FeatureModule, snapshot: str, days: Sequence[tuple[date, date]]
) -> Frame:
    """The frame's rows of the spans [first, next), as the frame of all rows has them."""
    spine = module.spine
    if not spine.event_time:
        raise BadInput("rows without event time lie on no day", where=module.where, wanted="spine.event_time")
    moment = f"epoch_us(CAST(({spine.event_time}) AS TIMESTAMPTZ))"
    within = " OR ".join(
        f"({moment} >= {_micros(first)} AND {moment} < {_micros(following)})"
        for first, following in _merged(days)
    )
    where = f"({spine.where or 'true'}) AND ({within or 'false'})"
    # Rows that `where` leaves out are still the history that the others are told from.
    part = replace(module, spine=replace(spine, where=where))
    return build_frame(
        part,
        pinned_tables(lake, snapshot, module.tables()),
        label_available_after=project.spec.data.label.available_after,
    )


def _affected(
    project: Project, lake: Lake, module: FeatureModule, last: Gold | None, tables: Mapping[str, int]
) -> Affected:
    found = Affected()
    if last is None:
        found.everything("no gold table is known yet")
        return found
    with lake.workspace() as work:
        found = affected(
            lake, module, project.spec.model, last.tables, tables,
            label_available_after=project.spec.data.label.available_after, work=work,
        )  # fmt: skip
    if last.definition != definition_of(project, module):
        found.everything("the features changed since")
    return found


def _days(
    lake: Lake,
    model: str,
    module: FeatureModule,
    found: Affected,
    last: Gold | None,
    since: datetime | None,
    until: datetime | None,
) -> set[date] | None:
    """The days to build again; None for all of them."""
    if found.days is None or last is None:
        return None
    days = set(found.days)
    if since is None and until is None:
        return days
    if not module.spine.event_time:
        return None
    held = lake.files("gold", model, "frame", version=last.version).table(["_day"]).column("_day")
    known = [day for day in held.unique().to_pylist() if day is not None]
    first = since.astimezone(UTC).date() if since else min(known, default=date.max)
    final = until.astimezone(UTC).date() if until else max(known, default=date.min)
    ends_within = until is None or until.astimezone(UTC).time().replace(tzinfo=None) != datetime.min.time()
    return days | {day for day in known if first <= day and (day < final or (day == final and ends_within))}


def _recompute(
    project: Project,
    lake: Lake,
    module: FeatureModule,
    snapshot: Snapshot,
    tables: Mapping[str, int],
    days: set[date] | None,
    last: Gold | None,
    actor: Actor,
    clock: Clock,
    watch: Progress,
) -> GoldReport:
    model = project.spec.model
    watch.step("Features of the days concerned, as known at each moment")
    made: dict[str, Any] = {
        "snapshot": snapshot.digest, "definition": definition_of(project, module), "tables": tables, "actor": actor,
        "now": clock(),
    }  # fmt: skip
    if days is None:
        frame = frame_of(project, module, lake, snapshot.digest, cache=None)
        report = write_gold(lake, model, frame.table, **made)
    else:
        assert last is not None
        wide = spans(lake, model, sorted(days))
        frame = recompute(project, lake, module, snapshot.digest, wide)
        every = [first + timedelta(days=n) for first, end in wide for n in range((end - first).days)]
        report = write_gold(lake, model, frame.table, only=every, **made)
    watch.done(
        f"{frame.rows:,} rows built; {len(report.days)} written anew, {report.unchanged} files left alone"
    )
    return report


def _resolved(lake: Lake, name: str, model: str) -> Incident:
    with lake.ledger.read() as conn:
        incident = incident_store.get_incident(conn, name)
    if incident.model != model:
        raise BadInput("the incident is another model's", where=f"incident {incident.id}", got=incident.model,
                       wanted=model)  # fmt: skip
    if incident.state in (State.OPEN, State.ACKNOWLEDGED):
        raise Conflict(
            "nothing is mended yet", where=f"incident {incident.id}", got=incident.state.value, wanted="resolved",
            next=f"When the data is right: loopwright data incident resolve {incident.id} --reason TEXT",
        )  # fmt: skip
    after(incident, "backfill")
    return incident


def _note(lake: Lake, incident: Incident, report: BackfillReport, actor: Actor, now: datetime) -> None:
    facts = {
        "snapshot": report.snapshot, "gold_version": report.gold_version, "written": len(report.written),
        "first": report.written[0] if report.written else None,
        "last": report.written[-1] if report.written else None,
        "online": [one.get("view") for one in report.online],
    }  # fmt: skip
    with lake.ledger.write() as conn:
        move(
            conn,
            incident_store.get_incident(conn, incident.id),
            "backfill",
            actor=actor,
            now=now,
            facts=facts,
        )


def _said(found: Affected, days: set[date] | None) -> str:
    what = "; ".join(f"{c.table}: {c.came:,} rows came, {c.gone:,} are gone" for c in found.changes)
    reach = f"all days ({found.why})" if days is None else f"{len(days)} days"
    return f"{what or 'no rows changed'}; {reach} to build again"


def _merged(days: Sequence[tuple[date, date]]) -> list[tuple[date, date]]:
    """Spans that touch become one: a hundred days in a row are one condition."""
    joined: list[tuple[date, date]] = []
    for first, following in sorted(days):
        if joined and joined[-1][1] >= first:
            joined[-1] = (joined[-1][0], max(joined[-1][1], following))
        else:
            joined.append((first, following))
    return joined


def _micros(day: date) -> int:
    return to_us(datetime(day.year, day.month, day.day, tzinfo=UTC))
