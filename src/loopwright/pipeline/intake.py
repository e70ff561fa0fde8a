"""Brings a project's sources into the lake and pins what a run trains on."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import pyarrow as pa

from loopwright.data import store
from loopwright.data.contract import Contract
from loopwright.data.incidents.record import settle
from loopwright.data.ingest import IngestReport, ingest
from loopwright.data.lake import Lake
from loopwright.data.rebuild import rebuild as rebuild_table
from loopwright.data.reference import snapshot_reference
from loopwright.data.refusal import record_unreadable
from loopwright.data.snapshot import Snapshot, read_snapshot, take_snapshot
from loopwright.data.source import public_uri, resolve_declared
from loopwright.kernel.actor import Actor
from loopwright.kernel.clock import Clock
from loopwright.kernel.errors import BadInput, NotFound, Unavailable, did_you_mean
from loopwright.kernel.progress import Progress
from loopwright.project.spec import Project


class Refers(Protocol):
    """A contract, as far as order is concerned."""

    def references(self) -> set[str]: ...


def in_reference_order(contracts: Mapping[str, Refers]) -> list[str]:
    """Table names such that a table comes after the tables its contract refers to; raises BadInput for a circle."""
    waiting = {
        name: {t for t in c.references() if t in contracts and t != name} for name, c in contracts.items()
    }
    ordered: list[str] = []
    while waiting:
        ready = [name for name, needs in waiting.items() if needs <= set(ordered)]
        if not ready:
            raise BadInput(
                "the contracts refer to each other in a circle",
                where="data.sources",
                got=", ".join(sorted(waiting)),
                wanted="relationships without a circle",
                next="Remove one of the relationships.",
            )
        ordered += ready
        for name in ready:
            del waiting[name]
    return ordered


def land(
    project: Project,
    lake: Lake,
    actor: Actor,
    clock: Clock,
    watch: Progress,
    *,
    tables: Sequence[str] = (),
    rebuild: Sequence[str] = (),
) -> list[IngestReport]:
    """Ingest and check sources, in the order in which they refer to each other; one that has landed is not read twice.

    `tables`: only these (none: all). `rebuild`: tables whose landed batches are judged anew under their contract first.
    Raises NotFound for a table that is no source of the project.
    """
    sources = project.spec.data.sources
    for name in (*tables, *rebuild):
        if name not in sources:
            raise NotFound("the project has no such source", where=str(project.dir), got=name,
                           wanted=", ".join(sources), next=did_you_mean(name, sources))  # fmt: skip
    contracts = {name: Contract.load(project.path(source.contract)) for name, source in sources.items()}
    wanted = set(tables or sources) | set(rebuild)
    order = [name for name in in_reference_order(contracts) if name in wanted]
    reports: list[IngestReport] = []
    for index, name in enumerate(order):
        watch.update(index / len(order), name)
        told = _Told(watch, name, index, len(order))
        if name in rebuild:
            anew = rebuild_table(
                lake, model=project.spec.model, table=name, contract=contracts[name], actor=actor, now=clock(),
                told=told,
            )  # fmt: skip
            watch.note(
                f"{name}: judged anew, batches: {len(anew)}, good rows: {sum(r.good_rows for r in anew):,}"
            )
        report = _land_one(project, lake, name, contracts[name], actor, clock, told)
        reports.append(report)
        if not report.already_landed:
            watch.note(outcome(report))
        for note in report.notes:
            watch.note(f"{name}: {note}")
    return reports


def outcome(report: IngestReport) -> str:
    """One line: how many rows came and what became of them."""
    text = (
        f"{report.table}: {report.input_rows:,} rows = {report.good_rows:,} good"
        f" + {report.bad_rows:,} quarantined"
    )
    if report.inserted is not None:
        text += (
            f" ({report.inserted:,} inserted, {report.updated:,} updated,"
            f" {report.ignored_late:,} ignored as late)"
        )
    return text + (
        f"; {report.late_rows:,} happened before rows of earlier batches" if report.late_rows else ""
    )


def _land_one(
    project: Project,
    lake: Lake,
    name: str,
    contract: Contract,
    actor: Actor,
    clock: Clock,
    told: "_Told",
) -> IngestReport:
    spec = project.spec.data.sources[name]
    model = project.spec.model
    cursor = None
    if spec.cursor is not None:
        with lake.ledger.read() as conn:
            cursor = store.find_cursor(conn, f"{model}/{name}", public_uri(spec.uri))
    try:
        source = resolve_declared(spec, project.dir, cursor=cursor)
    except (NotFound, Unavailable, BadInput) as error:
        record_unreadable(lake, f"{model}/{name}", spec.uri, error, actor, clock(), contract=contract)
        raise
    report = ingest(
        lake,
        model=model,
        table=name,
        source=source,
        contract=contract,
        actor=actor,
        now=clock(),
        reference=snapshot_reference(lake, model, name),
        event_time=spec.event_time,
        told=told,
    )
    settle(
        lake.ledger, f"{model}/{name}", {public_uri(spec.uri), public_uri(source.uri)}, batch=report.batch_id,
        actor=actor, now=clock(),
    )  # fmt: skip
    return report


class _Told:
    """Passes on how far a table is, a few times a second."""

    def __init__(self, watch: Progress, name: str, index: int, of: int) -> None:
        self.watch, self.name, self.index, self.of = watch, name, index, of
        self._next = 0.0

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + 0.1
        if phase == "read":
            share = 0.5 * done / total if total else 0.25
            note = f"{self.name}: {done / 1e6:,.0f} MB read"
        else:
            share, note = 0.75, f"{self.name}: {done:,} rows in {phase}"
        self.watch.update((self.index + share) / self.of, note)


def bring_in(
    project: Project, lake: Lake, actor: Actor, clock: Clock, watch: Progress
) -> tuple[list[IngestReport], Snapshot]:
    """Ingest and check every source, then pin the silver tables. Landed sources are not read twice."""
    watch.step("Ingest and check the data")
    reports = land(project, lake, actor, clock, watch)
    tables = list(project.spec.data.sources)
    snapshot = take_snapshot(lake, model=project.spec.model, tables=tables, now=clock())
    landed = "; all of it had landed before" if all(report.already_landed for report in reports) else ""
    watch.done(f"{sum(r.good_rows for r in reports):,} good rows; snapshot {snapshot.digest[:12]}{landed}")
    return reports, snapshot


def pinned_tables(lake: Lake, snapshot: str, tables: Iterable[str]) -> dict[str, pa.Table]:
    """The named tables as the snapshot pins them."""
    return {name: read_snapshot(lake, snapshot, name) for name in tables}
