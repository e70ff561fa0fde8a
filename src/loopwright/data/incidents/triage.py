"""What is known about a failure when it is recorded: which upstream, since when, which rows, what changed. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from loopwright.data.check import RuleResult
from loopwright.data.contract import Contract
from loopwright.data.incidents.failures import Failures
from loopwright.data.incidents.model import Kind
from loopwright.data.incidents.store import Delivery
from loopwright.kernel.clock import iso

REMEMBERED = 20
"""Failing deliveries that a triage tells one by one; the rest is in its count."""
NOTABLE = 0.05
"""A share of nulls that moved by this much has changed."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A table that a broken relationship points to, and why it may be to blame."""

    table: str
    why: str

    def to_json(self) -> dict[str, Any]:
        return {"table": self.table, "why": self.why}


@dataclass(frozen=True, slots=True)
class Before:
    """The last delivery that was fine: its columns and shares of nulls, where they could be read."""

    delivery: Delivery
    columns: tuple[str, ...] = ()
    nulls: Mapping[str, float] = field(default_factory=dict)


def triage(
    *,
    kind: Kind,
    uri: str,
    batch: str | None,
    rules: Sequence[RuleResult],
    input_rows: int,
    bad_rows: int,
    why: str,
    now: datetime,
    contract: Contract | None = None,
    failures: Failures | None = None,
    before: Before | None = None,
    upstream: Sequence[Upstream] = (),
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The document of a triage (JSON):

    kind; why: one sentence; source {uri, batch, origin}; rules: what was broken, with examples; count, first_seen,
    last_seen, deliveries: how often and when; last_good: the delivery before; rows {input, failing, first, last,
    contiguous, spread, values}; changes: sentences; upstream: [{table, why}]; contract {source, version, digest}.
    """
    found = failures or Failures()
    return {
        "kind": kind,
        "why": why,
        "source": {"uri": uri, "batch": batch, "origin": dict(origin or {})},
        "rules": [{**rule.to_json(), **_terms(contract, rule.name)} for rule in rules],
        "count": 1,
        "first_seen": iso(now),
        "last_seen": iso(now),
        "deliveries": [_seen(uri, batch, input_rows, bad_rows, now)],
        "last_good": None if before is None else _good(before.delivery),
        "rows": {
            "input": input_rows,
            "bad": bad_rows,
            "failing": found.rows,
            "first": found.first,
            "last": found.last,
            "contiguous": found.contiguous,
            "spread": [dict(one) for one in found.spread],
            "values": {name: dict(values) for name, values in found.values.items()},
            **({"unknown": found.why} if found.why else {}),
        },
        "nulls": {name: list(both) for name, both in lost_values(found, before).items()},
        "changes": changes(input_rows, contract, found, before),
        "upstream": [one.to_json() for one in upstream],
        "contract": None
        if contract is None
        else {"source": contract.source, "version": contract.version, "digest": contract.digest},
    }


def joined(standing: Mapping[str, Any], again: Mapping[str, Any]) -> dict[str, Any]:
    """The triage of an incident whose cause came back: the newest facts, the first moment, all counted."""
    earlier = list(standing["deliveries"])
    return {
        **again,
        "count": int(standing["count"]) + 1,
        "first_seen": standing["first_seen"],
        "last_good": standing["last_good"] or again["last_good"],
        "changes": again["changes"] or standing["changes"],
        "deliveries": [*earlier, *again["deliveries"]][-REMEMBERED:],
    }


def changes(
    input_rows: int, contract: Contract | None, failures: Failures, before: Before | None
) -> list[str]:
    """Sentences about what is other than in the last good delivery."""
    if before is None:
        return []
    last, said = before.delivery, []
    if contract is not None and last.contract and last.contract != contract.digest:
        said.append(f"the contract changed since: {last.contract[:12]} then, {contract.digest[:12]} now")
    if last.rows and input_rows != last.rows:
        said.append(
            f"{input_rows:,} rows came, {last.rows:,} the time before ({input_rows / last.rows:.2f} ×)"
        )
    if before.columns and failures.columns:
        gone = [name for name in before.columns if name not in failures.columns]
        new = [name for name in failures.columns if name not in before.columns]
        said += [f"columns are gone: {', '.join(gone)}"] if gone else []
        said += [f"columns are new: {', '.join(new)}"] if new else []
    for name, (then, now) in lost_values(failures, before).items():
        said.append(f"`{name}` is null in {now:.1%} of the rows, {then:.1%} the time before")
    return said


def lost_values(failures: Failures, before: Before | None) -> dict[str, tuple[float, float]]:
    """Column → its share of nulls (then, now), where that moved."""
    if before is None:
        return {}
    return {
        name: (round(before.nulls[name], 4), round(now, 4))
        for name, now in failures.nulls.items()
        if name in before.nulls and abs(now - before.nulls[name]) >= NOTABLE
    }


def headline(table: str, kind: Kind, rules: Sequence[RuleResult], why: str) -> str:
    """One line that says what is wrong with which table."""
    if kind == "unreadable":
        return f"{table}: the source cannot be read: {why}"[:300]
    if kind == "quarantine":
        return f"{table}: {why}"[:300]
    verb = "cannot be judged by" if kind == "error" else "was refused by"
    return f"{table}: a delivery {verb} {', '.join(rule.name for rule in rules)}"[:300]


def _terms(contract: Contract | None, name: str) -> dict[str, Any]:
    """What the contract says of a rule, for whoever proposes another."""
    if contract is None:
        return {}
    for rule in contract.rules:
        if rule.name == name:
            return {"kind": rule.kind, "arguments": dict(rule.arguments), "limit": str(rule.limit)}
    return {}


def _seen(uri: str, batch: str | None, rows: int, bad: int, now: datetime) -> dict[str, Any]:
    return {"at": iso(now), "uri": uri, "batch": batch, "rows": rows, "bad": bad}


def _good(delivery: Delivery) -> dict[str, Any]:
    return {
        "batch": delivery.batch,
        "uri": delivery.uri,
        "at": iso(delivery.at),
        "rows": delivery.rows,
        "bad": delivery.bad,
        "silver_version": delivery.silver_version,
        "contract": delivery.contract,
    }
