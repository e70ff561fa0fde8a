"""Lands a source in the lake: bronze as it came, then checked into silver and quarantine.

A batch is named by the digest of its source. Landing it again does nothing; landing it after its contract changed
judges it anew and replaces its rows. Each table takes its part in one commit that remembers the landing's name, and
the ledger's row comes last: killed anywhere, the next attempt finishes the work without a row twice or missing.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.data import store
from loopwright.data.check import Checked, CheckReport, RuleResult, examine, require_columns
from loopwright.data.contract import Contract, Scope, Severity
from loopwright.data.lake import Lake
from loopwright.data.refusal import record_refusal
from loopwright.data.snapshot import silver
from loopwright.data.source import Raw, Source, public_uri
from loopwright.kernel.actor import Actor, Role, require
from loopwright.kernel.clock import to_us
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import Refused
from loopwright.ledger import store as ledger_store


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What became of a batch: `input_rows == good_rows + bad_rows`. `reasons` counts bad rows per rule they broke."""

    table: str
    batch_id: str
    input_rows: int
    good_rows: int
    bad_rows: int
    already_landed: bool
    bronze_version: int
    silver_version: int
    quarantine_version: int | None
    rules: tuple[RuleResult, ...]
    reasons: Mapping[str, int]
    state: str
    contract_digest: str

    @property
    def warnings(self) -> tuple[RuleResult, ...]:
        """Rules that rows broke and that leave the rows in use."""
        return tuple(rule for rule in self.rules if rule.state == "WARN")

    def to_json(self) -> dict[str, Any]:
        return {
            "table": self.table,
            "batch_id": self.batch_id,
            "input_rows": self.input_rows,
            "good_rows": self.good_rows,
            "bad_rows": self.bad_rows,
            "already_landed": self.already_landed,
            "bronze_version": self.bronze_version,
            "silver_version": self.silver_version,
            "quarantine_version": self.quarantine_version,
            "rules": [rule.to_json() for rule in self.rules],
            "reasons": dict(self.reasons),
            "state": self.state,
            "contract_digest": self.contract_digest,
        }


class BatchBlocked(Refused):
    """A batch that its contract keeps out: a blocking rule failed, or a rule could not be evaluated.

    `report` is the whole check; silver and quarantine are as they were before.
    """

    def __init__(self, report: CheckReport, *, where: str, contract: str) -> None:
        rules = "; ".join(f"{rule.name}: {rule.why}" for rule in report.blocked_by)
        super().__init__(
            "the batch is blocked by its contract",
            where=where,
            got=rules,
            wanted=f"what {contract} promises",
            next="Mend the source or the contract, then ingest again",
        )
        self.report = report


def ingest(
    lake: Lake,
    *,
    model: str,
    table: str,
    source: Source,
    contract: Contract,
    actor: Actor,
    now: datetime,
    refs: Mapping[str, pa.Table] | None = None,
) -> IngestReport:
    """Land `source` in the table. Is idempotent and safe to kill.

    `refs`: tables that relationships point to (None: the model's silver tables). Raises BadInput for what
    cannot be read or lacks a column, BatchBlocked when the contract says so; nothing reaches silver then.
    """
    require(actor, Role.DEVELOPER, "ingest data")
    name = f"{model}/{table}"
    with lake.locked(model, table):
        with lake.ledger.read() as conn:
            landed = store.find_batch(conn, name, source.digest)
            latest = store.latest_batch(conn, name)
        standing = latest if contract.loading == "full" else landed
        if (
            landed is not None
            and standing is not None
            and standing.id == landed.id
            and _still_true(lake, model, table, landed, contract)
        ):
            return _from_json(landed.report, already_landed=True)

        raw = source.read(contract.nulls)
        require_columns(raw.rows.column_names, contract, source.uri)
        if refs is None:
            refs = {
                t: silver(lake, model, t) for t in contract.references() if lake.exists("silver", model, t)
            }
        # The same landing has the same name until the ledger knows it; a later landing of the same source has another.
        once = digest_json([source.digest, contract.digest, to_us(standing.at) if standing else 0])
        replacing = source.digest if landed is not None else None
        others = _others(lake, model, table, contract, source.digest)
        full = contract.loading == "full"
        raw_once = once if full else f"{source.digest}:bronze"
        with ThreadPoolExecutor(1) as beside:
            rows = _bronze(raw, source.digest)
            written = beside.submit(lake.write, "bronze", model, table, rows, once=raw_once, whole=full)
            checked = examine(raw.rows, contract, refs, landed=others, malformed=len(raw.malformed))
            bronze = written.result()
        if checked.report.blocked_by:
            record_refusal(
                lake, name, source, checked.report, actor, now,
                contract=contract, rows=raw.rows, refs=refs, landed=others,
            )  # fmt: skip
            raise BatchBlocked(checked.report, where=source.uri, contract=contract.source)

        good = _mark(checked.good, source.digest)
        version = lake.write("silver", model, table, good, once=once, replace=replacing, whole=full)
        quarantine = lake.version("quarantine", model, table)
        if checked.report.bad_rows or (quarantine is not None and (replacing or full)):
            bad = _quarantine(raw, checked, source.digest, now)
            quarantine = lake.write("quarantine", model, table, bad, once=once, replace=replacing, whole=full)
        report = _report(table, source, contract, checked.report, bronze, version, quarantine)
        with lake.ledger.write() as conn:
            store.save_batch(
                conn,
                table=name,
                batch_id=source.digest,
                rows=report.input_rows,
                good=report.good_rows,
                bad=report.bad_rows,
                bronze_version=bronze,
                silver_version=version,
                report=report.to_json(),
                at=now,
            )
            store.add_landing(
                conn,
                table=name,
                silver_version=version,
                batch_id=source.digest,
                uri=public_uri(source.uri),
                loading=contract.loading,
                good=report.good_rows,
                bad=report.bad_rows,
                contract=contract.digest,
                actor=actor.name,
                at=now,
            )
            ledger_store.append(
                conn,
                at=now,
                actor=actor.name,
                action="data.ingest",
                subject=name,
                payload=_summary(report, source),
            )
        return report


def _still_true(lake: Lake, model: str, table: str, batch: store.Batch, contract: Contract) -> bool:
    """Whether the batch was judged by this very contract and its table still stands."""
    version = lake.version("silver", model, table)
    judged = batch.report["contract_digest"] == contract.digest
    return (
        judged
        and version is not None
        and batch.silver_version is not None
        and version >= batch.silver_version
    )


def _others(lake: Lake, model: str, table: str, contract: Contract, batch: str) -> pa.Table | None:
    """Columns of the unique rules, from the rows that other batches put into silver; None when there are none."""
    names = {c for rule in contract.rules if rule.kind == "unique" for c in rule.columns}
    if contract.loading == "full" or not names or not lake.exists("silver", model, table):
        return None
    held = sorted(names & set(lake.columns("silver", model, table)))
    rows = lake.read("silver", model, table, columns=[*held, "_batch"])
    rows = rows.filter(pc.not_equal(rows.column("_batch"), batch))
    return rows.select(held) if rows.num_rows else None


def _bronze(raw: Raw, batch: str) -> pa.Table:
    rows = _numbered(raw.rows, batch)
    if raw.malformed:
        rows = pa.concat_tables([rows, _malformed(raw, batch)], promote_options="default")
    return rows


def _malformed(raw: Raw, batch: str) -> pa.Table:
    lines = len(raw.malformed)
    return pa.table(
        {
            "_row": pa.nulls(lines, pa.int64()),
            "_batch": pa.array([batch] * lines),
            "_raw": pa.array([m.text for m in raw.malformed]),
        }
    )


def _quarantine(raw: Raw, checked: Checked, batch: str, now: datetime) -> pa.Table:
    positions = list(checked.bad)
    rows = _numbered(raw.rows, batch).take(pa.array(positions, pa.int64()))
    reasons = [list(names) for names in checked.bad.values()]
    if raw.malformed:
        rows = pa.concat_tables([rows, _malformed(raw, batch)], promote_options="default")
        reasons += [[f"malformed line{f' {m.line}' if m.line else ''}: {m.why}"] for m in raw.malformed]
    rows = rows.append_column("_reasons", pa.array(reasons, pa.list_(pa.string())))
    return rows.append_column("_at", pa.array([now] * rows.num_rows, pa.timestamp("us", "UTC")))


def _numbered(rows: pa.Table, batch: str) -> pa.Table:
    rows = _storable(rows).append_column("_row", pa.array(np.arange(1, rows.num_rows + 1)))
    return rows.append_column("_batch", pa.repeat(pa.scalar(batch), rows.num_rows))


def _mark(good: pa.Table, batch: str) -> pa.Table:
    numbers = pc.add(good.column("_row"), 1)
    good = good.set_column(good.column_names.index("_row"), "_row", numbers)
    return good.append_column("_batch", pa.repeat(pa.scalar(batch), good.num_rows))


def _storable(rows: pa.Table) -> pa.Table:
    """`rows` in types that Delta has: null columns become text, unsigned and small times wider."""
    fields = []
    for field in rows.schema:
        kind = field.type
        if pa.types.is_null(kind):
            kind = pa.string()
        elif pa.types.is_timestamp(kind):
            kind = pa.timestamp("us", "UTC" if kind.tz else None)
        elif pa.types.is_unsigned_integer(kind) or pa.types.is_time(kind):
            kind = pa.int64() if pa.types.is_unsigned_integer(kind) else pa.string()
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        fields.append(pa.field(field.name, kind))
    return rows.cast(pa.schema(fields))


def _report(
    table: str,
    source: Source,
    contract: Contract,
    check: CheckReport,
    bronze: int,
    silver_version: int,
    quarantine: int | None,
) -> IngestReport:
    return IngestReport(
        table=table,
        batch_id=source.digest,
        input_rows=check.input_rows,
        good_rows=check.good_rows,
        bad_rows=check.bad_rows,
        already_landed=False,
        bronze_version=bronze,
        silver_version=silver_version,
        quarantine_version=quarantine,
        rules=check.rules,
        reasons=check.reasons,
        state=check.state,
        contract_digest=contract.digest,
    )


def _from_json(report: Mapping[str, Any], *, already_landed: bool) -> IngestReport:
    rules = tuple(
        RuleResult(
            r["name"],
            r["column"],
            Severity(r["severity"]),
            Scope(r["scope"]),
            r["state"],
            r["failed"],
            tuple(r["examples"]),
            r["why"],
        )
        for r in report["rules"]
    )
    return IngestReport(**{**report, "rules": rules, "already_landed": already_landed})


def _summary(report: IngestReport, source: Source) -> dict[str, Any]:
    return {
        "uri": public_uri(source.uri),
        "source_digest": source.digest,
        "contract_digest": report.contract_digest,
        "state": report.state,
        "input_rows": report.input_rows,
        "good_rows": report.good_rows,
        "bad_rows": report.bad_rows,
        "reasons": dict(report.reasons),
        "warnings": {rule.name: rule.failed for rule in report.warnings},
        "silver_version": report.silver_version,
    }
