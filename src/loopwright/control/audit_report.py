"""What was governed in a month, read from the audit log alone. Pure: rows in, a report out."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from loopwright.kernel.clock import iso
from loopwright.ledger.audit import AuditRow

_OUTCOMES = {
    "promotion.effective": "effective",
    "promotion.rejected": "rejected",
    "promotion.withdrawn": "withdrawn",
}
_REFUSALS = ("registry.refused", "access.denied")
_VERSIONS = {
    "version.registered": "registered",
    "version.archived": "archived",
    "version.demoted": "moved back to None",
    "version.deleted": "deleted",
    "version.restored": "restored",
}
_FAMILIES = {
    "policy": "policy", "key": "keys", "trust": "keys", "bundle": "keys", "user": "access", "token": "access",
    "team": "access",
}  # fmt: skip
"""Part of an action before the dot → the section its rows stand in, one by one."""


@dataclass(slots=True)
class Report:
    """One month's acts. Every entry is JSON-able and names who, when and, by `seq`, the row it was read from."""

    month: str
    model: str | None = None
    rows: int = 0
    first: int | None = None
    last: int | None = None
    head: str | None = None
    promotions: dict[str, dict[str, Any]] = field(default_factory=dict)
    emergencies: dict[str, dict[str, Any]] = field(default_factory=dict)
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    refusals: dict[str, dict[str, Any]] = field(default_factory=dict)
    policy: list[dict[str, Any]] = field(default_factory=list)
    keys: list[dict[str, Any]] = field(default_factory=list)
    access: list[dict[str, Any]] = field(default_factory=list)
    assumed: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    versions: list[dict[str, Any]] = field(default_factory=list)
    anchors: list[dict[str, Any]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    backwards: int = 0
    furthest: timedelta = timedelta()

    def to_json(self) -> dict[str, Any]:
        return {
            "month": self.month, "model": self.model, "rows": self.rows, "first": self.first, "last": self.last,
            "head": self.head, "promotions": list(self.promotions.values()),
            "emergencies": list(self.emergencies.values()), "rollbacks": self.rollbacks,
            "refusals": sorted(self.refusals.values(), key=lambda one: (-one["count"], one["actor"])),
            "policy": self.policy, "keys": self.keys, "access": self.access, "versions": self.versions,
            "assumed": list(self.assumed.values()), "anchors": self.anchors,
            "others": dict(sorted(self.others.items())),
            "clock_backwards": {"rows": self.backwards, "most_seconds": self.furthest.total_seconds()},
        }  # fmt: skip


def report_on(rows: Iterable[AuditRow], *, month: str, model: str | None = None) -> Report:
    """Sort the rows of a month (those of `model` only, when it is named) into a report, in the order of the log."""
    report = Report(month, model)
    before: datetime | None = None
    for row in rows:
        report.rows += 1
        report.first = report.first or row.seq
        report.last, report.head = row.seq, row.hash
        if before is not None and row.at < before:
            report.backwards += 1
            report.furthest = max(report.furthest, before - row.at)
        before = row.at
        _sort(report, row)
    return report


def _sort(report: Report, row: AuditRow) -> None:
    family = row.action.partition(".")[0]
    if (
        row.action in ("promotion.requested", "promotion.break_glass", "approval.given")
        or row.action in _OUTCOMES
    ):
        _promoted(report, row)
    elif family == "review":
        _reviewed(report, row)
    elif row.action == "version.reverted":
        report.rollbacks.append(_entry(row, to=row.payload.get("to"), why=row.payload.get("why", "")))
    elif row.action in _REFUSALS:
        _refused(report, row)
    elif row.action == "user.assumed":
        _assumed(report, row)
    elif row.action in _VERSIONS:
        report.versions.append(_entry(row, what=_VERSIONS[row.action], subject=_version_of(row)))
    elif row.action == "audit.anchored":
        failed = {place: why for place, why in row.payload.get("places", {}).items() if why}
        report.anchors.append(
            _entry(row, to=row.payload.get("seq"), hash=row.payload.get("hash"), failed=failed)
        )
    elif family in _FAMILIES:
        getattr(report, _FAMILIES[family]).append(_entry(row, what=row.action, why=_told(row)))
    else:
        report.others[row.action] += 1


def _promoted(report: Report, row: AuditRow) -> None:
    number = str(row.payload.get("promotion"))
    one = report.promotions.setdefault(
        number,
        {
            "promotion": number, "subject": row.subject, "stage": row.payload.get("stage"),
            "policy": row.payload.get("policy"), "requested": None, "approvals": [], "outcome": None,
            "emergency": False,
        },
    )  # fmt: skip
    said = _entry(row, why=row.payload.get("reason") or row.payload.get("comment") or "")
    if row.action == "approval.given":
        one["approvals"].append(said)
    elif row.action in _OUTCOMES:
        one["outcome"] = said | {"state": _OUTCOMES[row.action]}
        if row.action == "promotion.effective":
            one["approved_by"] = list(row.payload.get("approved_by", []))
            one["requested_by"] = row.payload.get("requested_by")
        one["policy"] = row.payload.get("policy", one["policy"])
    else:
        one["requested"] = said
    if row.action == "promotion.break_glass":
        one["emergency"] = True
        report.emergencies[number] = said | {
            "promotion": number, "due": row.payload.get("review_due"),
            "passed_over": list(row.payload.get("passed_over", [])), "review": None,
        }  # fmt: skip


def _reviewed(report: Report, row: AuditRow) -> None:
    number = str(row.payload.get("promotion"))
    # The glass may have been broken in an earlier month.
    one = report.emergencies.setdefault(
        number,
        {
            "seq": None, "at": None, "by": row.payload.get("broken_by"), "subject": row.subject, "promotion": number,
            "why": row.payload.get("reason", ""), "due": row.payload.get("due"), "passed_over": [], "review": None,
        },
    )  # fmt: skip
    state = row.action.partition(".")[2]
    one["review"] = _entry(
        row, state=state, why=row.payload.get("comment", ""), overdue=bool(row.payload.get("overdue"))
    )


def _refused(report: Report, row: AuditRow) -> None:
    one = report.refusals.setdefault(
        row.actor,
        {"actor": row.actor, "count": 0, "acts": Counter(), "first": iso(row.at), "last": "", "why": ""},
    )
    times = int(row.payload.get("count") or row.payload.get("again") or 1)
    one["count"] += times
    one["acts"][str(row.payload.get("act", row.action))] += times
    one["last"], one["why"] = iso(row.at), str(row.payload.get("why", ""))


def _assumed(report: Report, row: AuditRow) -> None:
    """Counted, not listed: whoever works so does with every act."""
    one = report.assumed.setdefault(
        (row.actor, row.subject),
        {
            "by": row.actor,
            "subject": row.subject,
            "count": 0,
            "acts": Counter(),
            "first": iso(row.at),
            "last": "",
        },
    )
    one["count"] += 1
    one["acts"][str(row.payload.get("operation") or row.payload.get("through", ""))] += 1
    one["last"] = iso(row.at)


def _entry(row: AuditRow, **more: Any) -> dict[str, Any]:
    return {"seq": row.seq, "at": iso(row.at), "by": row.actor, "subject": row.subject, **more}


def _version_of(row: AuditRow) -> str:
    # What a plain MLflow client registers is audited under the model's name, with the number it was given.
    number = row.payload.get("version")
    return f"{row.subject}/{number}" if number is not None and "/" not in row.subject else row.subject


def _told(row: AuditRow) -> str:
    """The payload in a line: what was changed, and why."""
    parts = []
    for name, value in row.payload.items():
        if value in (None, "", [], {}):
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        parts.append(f"{name} {shown if len(shown) <= 80 else shown[:79] + '…'}")
    return "; ".join(parts)
