"""Brings a project's sources into the lake and pins what a run trains on."""

from collections.abc import Iterable, Mapping
from typing import Protocol

import pyarrow as pa

from loopwright.data.contract import Contract
from loopwright.data.ingest import IngestReport, ingest
from loopwright.data.lake import Lake
from loopwright.data.snapshot import Snapshot, read_snapshot, silver, take_snapshot
from loopwright.data.source import resolve
from loopwright.kernel.actor import Actor
from loopwright.kernel.clock import Clock
from loopwright.kernel.errors import BadInput
from loopwright.pipeline.progress import Progress
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


def bring_in(
    project: Project, lake: Lake, actor: Actor, clock: Clock, watch: Progress
) -> tuple[list[IngestReport], Snapshot]:
    """Ingest and check every source, then pin the silver tables. Landed sources are not read twice."""
    spec = project.spec
    contracts = {
        name: Contract.load(project.path(source.contract)) for name, source in spec.data.sources.items()
    }
    watch.step("Ingest and check the data")
    reports: list[IngestReport] = []
    order = in_reference_order(contracts)
    for done, name in enumerate(order):
        watch.update(done / len(order), name)
        refs = {
            table: silver(lake, spec.model, table)
            for table in contracts[name].references()
            if table in order[:done]
        }
        source = resolve(spec.data.sources[name].uri, project.dir)
        report = ingest(
            lake,
            model=spec.model,
            table=name,
            source=source,
            contract=contracts[name],
            actor=actor,
            now=clock(),
            refs=refs,
        )
        reports.append(report)
        if not report.already_landed:
            watch.note(
                f"{name}: {report.input_rows:,} rows = {report.good_rows:,} good + {report.bad_rows:,} quarantined"
            )
    snapshot = take_snapshot(lake, model=spec.model, tables=list(contracts), now=clock())
    landed = "; all of it had landed before" if all(report.already_landed for report in reports) else ""
    watch.done(f"{sum(r.good_rows for r in reports):,} good rows; snapshot {snapshot.digest[:12]}{landed}")
    return reports, snapshot


def pinned_tables(lake: Lake, snapshot: str, tables: Iterable[str]) -> dict[str, pa.Table]:
    """The named tables as the snapshot pins them."""
    return {name: read_snapshot(lake, snapshot, name) for name in tables}
