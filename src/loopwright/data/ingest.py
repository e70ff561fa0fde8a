"""Lands a source in the lake: bronze as it came, then checked into silver and quarantine.

A batch is named by the digest of its source. Landing it again does nothing; landing it after its contract changed
judges it anew and replaces its rows. Each table takes its part in one commit that remembers the landing's name, and
the ledger's row comes last: killed anywhere, the next attempt finishes the work without a row twice or missing. Rows
pass through in batches: memory does not grow with the source.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from loopwright.data import landing, store
from loopwright.data.attempts import begin, withdraw
from loopwright.data.check_report import CheckReport
from loopwright.data.checking import Reference, examination, require_columns
from loopwright.data.contract import Contract
from loopwright.data.evolution import Evolution, record_contract, require_evolution
from loopwright.data.files import Files
from loopwright.data.lake import Lake
from loopwright.data.merging import Place, merge, without_unique
from loopwright.data.rebuild import rebuilt, silver_refs
from loopwright.data.refusal import record_refusal, record_unreadable, record_unusual_share
from loopwright.data.report import BatchBlocked, IngestReport, record_batch
from loopwright.data.source import Source, public_uri
from loopwright.data.staged import Staged
from loopwright.kernel.actor import Actor, Role, require
from loopwright.kernel.clock import iso
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput, NotFound, Unavailable
from loopwright.ledger import store as ledger_store

__all__ = ["BatchBlocked", "IngestReport", "Told", "ingest"]

Told = Callable[[str, int, int | None], None]
"""Hears what is being done ("read": in bytes; "bronze", "silver", "quarantine": in rows), how far, and of how much."""


@dataclass(frozen=True, slots=True)
class _Landing:
    """One attempt: who lands what where, and how it stood before."""

    lake: Lake
    model: str
    table: str
    contract: Contract
    actor: Actor
    now: datetime
    refs: Mapping[str, Files | pa.Table] | None
    reference: Reference | None
    event_time: str | None
    told: Told

    @property
    def name(self) -> str:
        return f"{self.model}/{self.table}"

    def of(self, phase: str) -> Callable[[int], None]:
        return lambda rows: self.told(phase, rows, None)


def ingest(
    lake: Lake,
    *,
    model: str,
    table: str,
    source: Source,
    contract: Contract,
    actor: Actor,
    now: datetime,
    refs: Mapping[str, Files | pa.Table] | None = None,
    reference: Reference | None = None,
    event_time: str | None = None,
    told: Told | None = None,
) -> IngestReport:
    """Land `source` in the table. Is idempotent and safe to kill.

    `refs`: tables that relationships point to (None: the model's silver tables). `reference`: what a snapshot holds of
    the table, for drift. `event_time`: the column that says when a row happened, where the contract does not.

    Raises BadInput for what cannot be read or lacks a column, Refused when the contract broke with the one that the
    table stands under, BatchBlocked when the contract keeps the batch out; nothing reaches silver then.
    """
    require(actor, Role.DEVELOPER, "ingest data")
    work = _Landing(
        lake, model, table, contract, actor, now, refs, reference, contract.event_time or event_time,
        told or (lambda phase, done, of: None),
    )  # fmt: skip
    with lake.locked(model, table):
        known = _landed_before(work, source.digest)
        if known is not None:
            return known
        evolution = require_evolution(lake, model, table, contract, batch=source.digest)
        with lake.workspace() as folder:
            staged = _staged(work, source, folder)
            if staged.input_rows == 0:
                return _nothing_new(work, source)
            known = _landed_before(work, staged.batch_id)
            return known or _land(work, staged, evolution, folder)


def _landed_before(work: _Landing, batch: str | None) -> IngestReport | None:
    """The report of the batch if it landed, was judged by this very contract, and still stands."""
    if batch is None:
        return None
    with work.lake.ledger.read() as conn:
        landed = store.find_batch(conn, work.name, batch)
        newest = store.latest_batch(conn, work.name) if work.contract.loading == "full" else landed
    if landed is None or newest is None or newest.id != landed.id:
        return None
    if landed.report["contract_digest"] != work.contract.digest or landed.silver_version is None:
        return None
    version = work.lake.version("silver", work.model, work.table)
    if version is None or version < landed.silver_version:
        return None
    return IngestReport.from_json(landed.report, already_landed=True)


def _staged(work: _Landing, source: Source, folder: Path) -> Staged:
    try:
        return source.stage(
            folder, work.contract.nulls, progress=lambda done, of: work.told("read", done, of)
        )
    except (BadInput, NotFound, Unavailable) as error:
        record_unreadable(
            work.lake, work.name, source.uri, error, work.actor, work.now, contract=work.contract
        )
        raise


def _nothing_new(work: _Landing, source: Source) -> IngestReport:
    """What to say when an incremental source has no rows behind its cursor."""
    with work.lake.ledger.read() as conn:
        newest = store.latest_batch(conn, work.name)
    if newest is None:
        raise BadInput(
            "holds no rows", where=public_uri(source.uri), wanted="at least one",
            next="Check how it was written",
        )  # fmt: skip
    return IngestReport.from_json(newest.report, already_landed=True)


def _land(work: _Landing, staged: Staged, evolution: Evolution, folder: Path) -> IngestReport:
    lake, model, table, contract = work.lake, work.model, work.table, work.contract
    try:
        require_columns(staged.rows.schema.names, contract, staged.uri)
    except BadInput as error:
        record_unreadable(lake, work.name, staged.uri, error, work.actor, work.now, contract=contract)
        raise
    begin(lake, model, table, contract, staged, work.now)
    refs = silver_refs(lake, model, contract) if work.refs is None else work.refs
    with lake.ledger.read() as conn:
        number = store.last_landing(conn, work.name)
        landed = store.find_batch(conn, work.name, staged.batch_id)
        newest = store.latest_batch(conn, work.name)
    if contract.loading == "upsert" and landed is not None:
        # Rows of this batch took the place of others: only bronze can tell what stood there.
        reports = rebuilt(
            lake, model, table, contract, actor=work.actor, now=work.now, refs=refs, evolution=evolution,
            folder=folder, told=work.told,
        )  # fmt: skip
        return next(report for report in reports if report.batch_id == staged.batch_id)
    # The same landing has the same name until the ledger knows it; a later landing of the same source has another.
    once = digest_json([staged.batch_id, contract.digest, number])
    others = None
    if contract.loading == "append":
        columns = landing.key_columns(contract)
        others = landing.others(lake, model, table, columns, staged.batch_id, folder)
    times = landing.Times(work.event_time, _newest_event(work, folder), work.now)
    judged = without_unique(contract) if contract.loading == "upsert" else contract
    with ThreadPoolExecutor(1) as beside:
        written = beside.submit(_bronze, work, staged)
        with examination(
            staged, judged, refs=refs, landed=others, reference=work.reference, now=work.now,
            memory_limit=landing.MEMORY, spill=folder,
        ) as found:  # fmt: skip
            bronze = written.result()

            def admit(check: CheckReport) -> None:
                if check.blocked_by:
                    incident = record_refusal(
                        lake, work.name, source=staged, report=check, actor=work.actor, now=work.now,
                        contract=judged, rows=staged.rows, refs=refs, landed=others, batch=staged.batch_id,
                        origin=staged.origin,
                    )  # fmt: skip
                    withdraw(lake, model, table, staged, work.now)
                    raise BatchBlocked(
                        check, where=staged.uri, contract=contract.source, incident=incident.id
                    )

            admit(found.report)
            place = Place(lake, model, table, contract, folder)
            merged = merge(place, staged, found, times, once=once, admit=admit, told=work.of("silver"))
            quarantine = lake.version("quarantine", model, table)
            if merged.check.bad_rows or quarantine is not None:
                rows = landing.quarantine(
                    staged, found, landing.Holders(others, contract, folder), work.now, merged.set_aside
                )
                quarantine = lake.write(
                    "quarantine", model, table, rows, once=once, replace=staged.batch_id,
                    whole=contract.loading == "full", told=work.of("quarantine"),
                )  # fmt: skip
    check = merged.check
    report = IngestReport(
        table=table, batch_id=staged.batch_id, input_rows=check.input_rows, good_rows=check.good_rows,
        bad_rows=check.bad_rows, already_landed=False, bronze_version=bronze, silver_version=merged.version,
        quarantine_version=quarantine, rules=check.rules, reasons=check.reasons, state=check.state,
        contract_digest=contract.digest, inserted=merged.inserted, updated=merged.updated,
        ignored_late=merged.ignored, late_rows=times.late, notes=_notes(work, times, newest),
    )  # fmt: skip
    # Before the ledger knows the batch: a process killed in between comes back here, and joins what it opened.
    record_unusual_share(
        lake, work.name, uri=staged.uri, batch=staged.batch_id, input_rows=report.input_rows,
        bad_rows=report.bad_rows, rules=report.rules, actor=work.actor, now=work.now, contract=contract,
    )  # fmt: skip
    _record(work, staged, report, evolution)
    return report


def _bronze(work: _Landing, staged: Staged) -> int:
    """Keep the rows as they came, once for each batch, whatever the contract says of them.

    A table that is loaded whole may change a column's type: its bronze begins anew then, and the older rows stay in
    the older versions.
    """
    lake, rows = work.lake, landing.bronze(staged, work.now)
    anew = False
    if work.contract.loading == "full":
        try:
            lake.fitting("bronze", work.model, work.table, rows.schema)
        except BadInput:
            anew = True
    return lake.write(
        "bronze", work.model, work.table, rows, once=f"{staged.batch_id}:bronze", whole=anew,
        told=work.of("bronze"),
    )  # fmt: skip


def _newest_event(work: _Landing, folder: Path) -> datetime | None:
    if work.contract.loading == "full" or not work.event_time:
        return None
    if not work.lake.exists("silver", work.model, work.table):
        return None
    return landing.newest(work.lake.files("silver", work.model, work.table), work.event_time, folder)


def _notes(work: _Landing, times: landing.Times, newest: store.Batch | None) -> tuple[str, ...]:
    notes = times.notes()
    if newest is not None and work.now < newest.at:
        notes.append(
            f"the clock says {iso(work.now)}, earlier than the newest ingestion of this table, {iso(newest.at)}"
        )
    return tuple(notes)


def _record(work: _Landing, staged: Staged, report: IngestReport, evolution: Evolution) -> None:
    """Write down what landed, by which contract, and how far the source was read: all or nothing."""
    name, at, actor = work.name, work.now, work.actor.name
    with work.lake.ledger.write() as conn:
        record_contract(conn, name, work.contract, evolution, actor, at)
        record_batch(conn, name, report, uri=staged.uri, loading=work.contract.loading, actor=actor, at=at)
        if staged.cursor is not None:
            store.save_cursor(
                conn, table=name, uri=staged.uri, value=staged.cursor, batch_id=staged.batch_id, at=at
            )
        payload = {"uri": staged.uri, "source_digest": staged.batch_id, **report.summary()}
        if staged.origin:
            payload["origin"] = dict(staged.origin)
        ledger_store.append(conn, at=at, actor=actor, action="data.ingest", subject=name, payload=payload)
