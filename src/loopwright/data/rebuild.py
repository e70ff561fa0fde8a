"""Judges what bronze holds under another contract, and puts the outcome in the place of silver and quarantine.

Bronze has every row that ever came, batch by batch, as it came. Each batch that landed is judged again, in the order
in which it landed first. Nothing is committed until the last one is judged; killed anywhere, the tables are as they
were, or the next attempt finishes what is missing. Older versions of the tables stay readable.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from loopwright.data import landing, store
from loopwright.data.checking import examination
from loopwright.data.contract import Contract
from loopwright.data.evolution import Evolution, classified, record_contract
from loopwright.data.files import Files
from loopwright.data.lake import Lake, batch_bounds
from loopwright.data.landing import on_disk
from loopwright.data.merging import with_outcome, without_unique
from loopwright.data.parts import Part, cast_batches
from loopwright.data.report import BatchBlocked, IngestReport, record_batch
from loopwright.data.staged import MALFORMED, Staged
from loopwright.data.upsert import Upserted, upsert
from loopwright.kernel.actor import Actor, Role, require
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import NotFound
from loopwright.ledger import store as ledger_store

Told = Callable[[str, int, int | None], None]
OWN = ("_row", "_batch", "_raw", "_malformed", "_ingested_at")


def rebuild(
    lake: Lake,
    *,
    model: str,
    table: str,
    contract: Contract,
    actor: Actor,
    now: datetime,
    refs: Mapping[str, Files | pa.Table] | None = None,
    told: Told | None = None,
) -> list[IngestReport]:
    """Judge every batch of the table anew under `contract`; returns a report for each, in landing order.

    Raises NotFound when nothing has landed, BatchBlocked (and changes nothing) when the contract keeps a batch out.
    """
    require(actor, Role.DEVELOPER, "ingest data")
    with lake.locked(model, table), lake.workspace() as folder:
        evolution = classified(lake, model, table, contract)
        return rebuilt(
            lake, model, table, contract, actor=actor, now=now, refs=refs, evolution=evolution, folder=folder,
            told=told or (lambda phase, done, of: None),
        )  # fmt: skip


def silver_refs(lake: Lake, model: str, contract: Contract) -> dict[str, Files]:
    """The silver tables that the contract's relationships point to, as far as they are there."""
    return {
        name: bare(lake.files("silver", model, name))
        for name in contract.references()
        if lake.exists("silver", model, name)
    }


def bare(found: Files) -> Files:
    """`found` without the lake's own columns."""
    return replace(found, schema=pa.schema([f for f in found.schema if not f.name.startswith("_")]))


def rebuilt(
    lake: Lake,
    model: str,
    table: str,
    contract: Contract,
    *,
    actor: Actor,
    now: datetime,
    refs: Mapping[str, Files | pa.Table] | None,
    evolution: Evolution,
    folder: Path,
    told: Told,
) -> list[IngestReport]:
    """`rebuild` for whoever holds the table's lock."""
    name = f"{model}/{table}"
    with lake.ledger.read() as conn:
        batches = store.landed_batches(conn, name)
        number = store.last_landing(conn, name)
        newest = store.latest_batch(conn, name)
    if not batches or newest is None:
        raise NotFound("nothing has landed in the table", where=name, next="Land it: loopwright data land")
    if contract.loading == "full":
        batches = [(batch, uri) for batch, uri in batches if batch == newest.id]
    refs = silver_refs(lake, model, contract) if refs is None else refs
    once = digest_json(["rebuild", contract.digest, number])
    bronze = lake.open("bronze", model, table)
    work = _Work(lake, model, table, contract, refs, folder, told)
    try:
        for index, (batch, uri) in enumerate(batches):
            work.judge(*from_bronze(bronze, batch, uri, folder / f"batch{index}"))
    except BaseException:
        work.drop()
        raise
    assert work.schema is not None
    silver = lake.commit("silver", model, table, work.schema, work.silver, once=once, whole=True)
    quarantine = lake.version("quarantine", model, table)
    if work.quarantined or quarantine is not None:
        schema = quarantine_schema(bronze)
        quarantine = lake.commit("quarantine", model, table, schema, work.quarantined, once=once, whole=True)
    reports = [
        replace(report, bronze_version=bronze.version(), silver_version=silver, quarantine_version=quarantine)
        for report in work.reports
    ]
    with lake.ledger.write() as conn:
        record_contract(conn, name, contract, evolution, actor.name, now)
        for report, (_, uri) in zip(reports, batches, strict=True):
            record_batch(conn, name, report, uri=uri, loading=contract.loading, actor=actor.name, at=now)
        payload = {
            "contract_digest": contract.digest, "batches": len(reports), "silver_version": silver,
            "input_rows": sum(r.input_rows for r in reports), "good_rows": sum(r.good_rows for r in reports),
            "bad_rows": sum(r.bad_rows for r in reports),
        }  # fmt: skip
        ledger_store.append(
            conn, at=now, actor=actor.name, action="data.rebuild", subject=name, payload=payload
        )
    return reports


@dataclass(slots=True)
class _Work:
    """Files of the new tables as they grow; nothing of them is committed."""

    lake: Lake
    model: str
    table: str
    contract: Contract
    refs: Mapping[str, Files | pa.Table]
    folder: Path
    told: Told
    schema: pa.Schema | None = None
    silver: list[Part] = field(default_factory=list)
    quarantined: list[Part] = field(default_factory=list)
    reports: list[IngestReport] = field(default_factory=list)

    def judge(self, staged: Staged, ingested: datetime) -> None:
        """Judge one batch as of when it came, with the rows of those before it."""
        contract, upserting = self.contract, self.contract.loading == "upsert"
        judged = _lenient(without_unique(contract) if upserting else contract, staged)
        standing = self._standing()
        landed = None if upserting or standing is None else _keys(standing, contract)
        with examination(
            staged, judged, refs=self.refs, landed=landed, reference=_no_reference, now=ingested,
            memory_limit=landing.MEMORY, spill=self.folder,
        ) as found:  # fmt: skip
            times = landing.Times(None, None, ingested)
            good = landing.good(found, staged.batch_id, times)
            self.schema = self.schema or good.schema
            check, done = found.report, None
            if not check.blocked_by:
                done = self._merge(standing, good, staged.batch_id)
            if done is not None:
                check = with_outcome(check, contract, done)
            if check.blocked_by:
                raise BatchBlocked(check, where=staged.uri, contract=contract.source)
            if check.bad_rows:
                holders = landing.Holders(landed, contract, self.folder)
                aside = None if done is None else done.set_aside
                rows = landing.quarantine(staged, found, holders, ingested, aside)
                schema = quarantine_schema(self.lake.open("bronze", self.model, self.table))
                writer = self.lake.writer("quarantine", self.model, self.table, schema)
                for batch in cast_batches(iter(rows), schema):
                    writer.add(batch)
                self.quarantined += writer.close()
        self.reports.append(
            IngestReport(
                table=self.table, batch_id=staged.batch_id, input_rows=check.input_rows,
                good_rows=check.good_rows, bad_rows=check.bad_rows, already_landed=False, bronze_version=0,
                silver_version=0, quarantine_version=None, rules=check.rules, reasons=check.reasons,
                state=check.state, contract_digest=contract.digest,
                inserted=done.inserted if done else None, updated=done.updated if done else None,
                ignored_late=done.ignored if done else None,
            )
        )  # fmt: skip

    def drop(self) -> None:
        """Delete the files."""
        self.lake.drop("silver", self.model, self.table, self.silver)
        self.lake.drop("quarantine", self.model, self.table, self.quarantined)

    def _standing(self) -> Files | None:
        if self.schema is None or not self.silver:
            return None
        return self.lake.part_files("silver", self.model, self.table, self.silver, self.schema)

    def _merge(self, standing: Files | None, good: pa.RecordBatchReader, batch: str) -> Upserted | None:
        assert self.schema is not None
        before = sum(part.rows for part in self.silver)
        writer = self.lake.writer(
            "silver",
            self.model,
            self.table,
            self.schema,
            lambda rows: self.told("silver", before + rows, None),
        )
        try:
            if self.contract.loading != "upsert":
                writer.write(good)
                self.silver += writer.close()
                return None
            new = on_disk(self.folder, f"good-{batch[:16]}", good)
            done = upsert(standing, new, self.contract, writer, self.folder)
            parts = writer.close()
        except BaseException:
            writer.drop()
            raise
        going = {uri.rpartition("/")[2] for uri in done.gone}
        self.lake.drop("silver", self.model, self.table, [p for p in self.silver if p.path in going])
        self.silver = [part for part in self.silver if part.path not in going] + parts
        return done


def _lenient(contract: Contract, staged: Staged) -> Contract:
    """Columns younger than a delivery are null in it, as they are for rows that have landed; `required` still asks."""
    held = set(staged.rows.schema.names)
    columns = tuple(c if c.name in held else replace(c, optional=True) for c in contract.columns)
    return replace(contract, columns=columns)


def _no_reference(snapshot: str) -> None:
    """What a batch of long ago was compared with is not asked again."""


def _keys(standing: Files, contract: Contract) -> Files:
    names = [name for name in landing.key_columns(contract) if name in standing.schema.names]
    return replace(standing, schema=pa.schema([standing.schema.field(n) for n in (*names, "_batch")]))


def quarantine_schema(bronze: DeltaTable) -> pa.Schema:
    """Every column that ever came, and the quarantine's own."""
    raw = [field for field in pa.schema(bronze.schema()) if not field.name.startswith("_")]
    return pa.schema([*raw, *landing.QUARANTINE])


def from_bronze(bronze: DeltaTable, batch: str, uri: str, folder: Path) -> tuple[Staged, datetime]:
    """A batch as it came, and when. A column that its source lacked is not there."""
    schema = pa.schema(bronze.schema())
    uris = tuple(
        uri
        for uri, (least, greatest) in sorted(batch_bounds(bronze).items())
        if least is None or greatest is None or least <= batch <= greatest
    )
    held = Files(uris, schema).held()
    names = [name for name in schema.names if name in held and not name.startswith("_")]
    files = Files(uris, pa.schema([schema.field(n) for n in (*names, *OWN) if n in schema.names]))
    came: list[datetime] = []

    def of_batch() -> Iterator[pa.RecordBatch]:
        for rows in files.batches():
            mine = rows.filter(pc.equal(rows.column("_batch"), batch))
            if mine.num_rows:
                if not came and "_ingested_at" in mine.schema.names:
                    came.append(mine.column("_ingested_at")[0].as_py())
                yield mine

    columns = pa.schema([*(schema.field(name) for name in names), pa.field("_row", pa.int64())])
    rows = on_disk(
        folder, "rows",
        pa.RecordBatchReader.from_batches(
            columns,
            (b.filter(pc.is_valid(b.column("_row"))).select(columns.names) for b in of_batch()),
        ),
    )  # fmt: skip
    lines = on_disk(
        folder, "malformed", pa.RecordBatchReader.from_batches(MALFORMED, map(_lines, of_batch()))
    )
    staged = Staged(uri, batch, rows, lines)
    return staged, came[0] if came else datetime.now(UTC)


def _lines(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The malformed lines among bronze rows, as they were staged."""
    rows = rows.filter(pc.is_null(rows.column("_row")))
    told = (
        rows.column("_malformed").to_pylist() if "_malformed" in rows.schema.names else [None] * rows.num_rows
    )
    parts = [re.fullmatch(r"line(?: (\d+))?: (.*)", each or "", re.DOTALL) for each in told]
    return pa.RecordBatch.from_arrays(
        [
            pa.array([int(p[1]) if p and p[1] else None for p in parts], pa.int64()),
            rows.column("_raw"),
            pa.array([p[2] if p else "not a row" for p in parts], pa.string()),
        ],
        schema=MALFORMED,
    )
