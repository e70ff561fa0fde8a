"""What became of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from loopwright.data import store
from loopwright.data.check_report import CheckReport, RuleResult
from loopwright.data.contract import Scope, Severity
from loopwright.kernel.errors import Refused


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What became of a batch: `input_rows == good_rows + bad_rows`. `reasons` counts bad rows per rule they broke.

    Of an upsert, `inserted + updated + ignored_late == good_rows`. `late_rows`: good rows that happened before the
    newest one that the table held. `notes`: sentences about clocks and times.
    """

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
    inserted: int | None = None
    updated: int | None = None
    ignored_late: int | None = None
    late_rows: int = 0
    notes: tuple[str, ...] = ()

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
            "inserted": self.inserted,
            "updated": self.updated,
            "ignored_late": self.ignored_late,
            "late_rows": self.late_rows,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, report: Mapping[str, Any], *, already_landed: bool) -> "IngestReport":
        """The report that `to_json` gave."""
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
                r.get("measured"),
            )
            for r in report["rules"]
        )
        notes = tuple(report.get("notes", ()))
        return cls(**{**report, "rules": rules, "notes": notes, "already_landed": already_landed})

    def summary(self) -> dict[str, Any]:
        """What the audit log keeps."""
        told: dict[str, Any] = {
            "contract_digest": self.contract_digest,
            "state": self.state,
            "input_rows": self.input_rows,
            "good_rows": self.good_rows,
            "bad_rows": self.bad_rows,
            "reasons": dict(self.reasons),
            "warnings": {rule.name: rule.failed for rule in self.warnings},
            "silver_version": self.silver_version,
        }
        if self.inserted is not None:
            told |= {"inserted": self.inserted, "updated": self.updated, "ignored_late": self.ignored_late}
        return told


def record_batch(
    conn: Connection, table: str, report: IngestReport, *, uri: str, loading: str, actor: str, at: datetime
) -> None:
    """Write down that a batch landed, and its landing."""
    store.save_batch(
        conn, table=table, batch_id=report.batch_id, rows=report.input_rows, good=report.good_rows,
        bad=report.bad_rows, bronze_version=report.bronze_version, silver_version=report.silver_version,
        report=report.to_json(), at=at,
    )  # fmt: skip
    store.add_landing(
        conn, table=table, silver_version=report.silver_version, batch_id=report.batch_id, uri=uri,
        loading=loading, good=report.good_rows, bad=report.bad_rows, contract=report.contract_digest,
        actor=actor, at=at,
    )  # fmt: skip


class BatchBlocked(Refused):
    """A batch that its contract keeps out: a blocking rule failed, or a rule could not be evaluated.

    `report` is the whole check; silver and quarantine are as they were before. `incident`: what was opened or joined.
    """

    def __init__(self, report: CheckReport, *, where: str, contract: str, incident: str = "") -> None:
        rules = "; ".join(f"{rule.name}: {rule.why}" for rule in report.blocked_by)
        super().__init__(
            "the batch is blocked by its contract",
            where=where,
            got=rules,
            wanted=f"what {contract} promises",
            next="Mend the source or the contract, then ingest again"
            + (f"; what is known: loopwright data incident show {incident}" if incident else ""),
        )
        self.report = report
        self.incident = incident
