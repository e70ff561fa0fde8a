"""What is written down when a delivery does not come in: the refusal, and the incident it opens or joins."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

import duckdb
from deltalake.exceptions import DeltaError
from sqlalchemy import Connection

from loopwright.data.check import CheckReport, RuleResult
from loopwright.data.contract import Contract
from loopwright.data.duck import connect
from loopwright.data.incidents import store
from loopwright.data.incidents.failures import Failures, Rows, find_failures
from loopwright.data.incidents.model import Incident, Kind, cause_of
from loopwright.data.incidents.record import record_incident
from loopwright.data.incidents.store import Delivery
from loopwright.data.incidents.triage import Before, Upstream, headline, triage
from loopwright.data.lake import Lake
from loopwright.data.source import public_uri
from loopwright.kernel.actor import Actor
from loopwright.kernel.clock import iso
from loopwright.kernel.errors import LoopwrightError
from loopwright.ledger import store as ledger_store

UNUSUAL_SHARE = 0.05
"""A landing that sets aside more than this, and more than twice what its table usually does, is an incident."""


class Delivered(Protocol):
    """A source, or what it was staged into: all that a refusal asks of it is where it came from."""

    @property
    def uri(self) -> str: ...


def record_refusal(
    lake: Lake,
    name: str,
    source: Delivered,
    report: CheckReport,
    actor: Actor,
    now: datetime,
    *,
    contract: Contract | None = None,
    rows: Rows | None = None,
    refs: Mapping[str, Rows] | None = None,
    landed: Rows | None = None,
    batch: str | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Incident:
    """Record that `source` was refused as a batch of the table `name` (MODEL/TABLE), and open or join its incident.

    Both in one transaction. `rows`, with what they were judged by (`contract`, `refs`, `landed`), are looked at once
    more to tell where the failures lie; without them the triage says less. `batch`: the delivery's name.
    """
    uri, batch = public_uri(source.uri), batch or getattr(source, "digest", None)
    blocking = report.blocked_by
    kind: Kind = "error" if any(rule.state == "ERROR" for rule in blocking) else "blocked"
    names = tuple(rule.name for rule in blocking)
    failures = Failures()
    if rows is not None and contract is not None:
        # What set too many rows aside is behind "too many bad rows".
        # What could not be evaluated would not be now.
        failing = {rule.name for rule in blocking if rule.state != "ERROR"}
        failing |= {rule.name for rule in report.rules if rule.failed and rule.state != "PASS"}
        failures = find_failures(rows, contract, tuple(sorted(failing)), refs=refs, landed=landed)
    with lake.ledger.read() as conn:
        history = store.deliveries(conn, name)
        upstream = _upstream(conn, name, blocking, contract)
    why = "; ".join(f"{rule.name}: {rule.why}" for rule in blocking)
    told = triage(
        kind=kind,
        uri=uri,
        batch=batch,
        rules=[rule for rule in report.rules if rule.state not in ("PASS", "WARN")],
        input_rows=report.input_rows,
        bad_rows=report.bad_rows,
        why=why,
        now=now,
        contract=contract,
        failures=failures,
        before=_before(lake, name, history, failures),
        upstream=upstream,
        origin=origin,
    )
    payload = {
        "uri": uri,
        "source_digest": batch,
        "input_rows": report.input_rows,
        "blocked_by": {rule.name: rule.why for rule in blocking},
    }
    with lake.ledger.write() as conn:
        incident = record_incident(
            conn, table=name, cause=cause_of(kind, names), title=headline(name, kind, blocking, why), triage=told,
            actor=actor, now=now, owner=str(getattr(contract, "owner", "") or ""),
        )  # fmt: skip
        payload["incident"] = incident.id
        ledger_store.append(
            conn, at=now, actor=actor.name, action="data.refused", subject=name, payload=payload
        )
    return incident


def record_unreadable(
    lake: Lake,
    name: str,
    uri: str,
    error: LoopwrightError,
    actor: Actor,
    now: datetime,
    *,
    contract: Contract | None = None,
) -> Incident | None:
    """Record that the source of a table that has landed before could not be read, and open or join its incident.

    None, and nothing is written, for a table that never had a delivery: that is a mistake in a new project, told to
    whoever makes it.
    """
    with lake.ledger.read() as conn:
        history = store.deliveries(conn, name)
    if not history:
        return None
    # Not `str(error)`: its words may quote the address with what it was reached by.
    why = error.what
    told = triage(
        kind="unreadable", uri=public_uri(uri), batch=None, rules=(), input_rows=0, bad_rows=0, why=why, now=now,
        contract=contract, before=Before(history[0]),
    )  # fmt: skip
    told["changes"] = []
    with lake.ledger.write() as conn:
        incident = record_incident(
            conn, table=name, cause=cause_of("unreadable", [type(error).__name__]),
            title=headline(name, "unreadable", (), why), triage=told, actor=actor, now=now,
            owner=str(getattr(contract, "owner", "") or ""),
        )  # fmt: skip
        ledger_store.append(
            conn, at=now, actor=actor.name, action="data.unreadable", subject=name,
            payload={"uri": public_uri(uri), "why": why, "incident": incident.id},
        )  # fmt: skip
    return incident


def record_unusual_share(
    lake: Lake,
    name: str,
    *,
    uri: str,
    batch: str,
    input_rows: int,
    bad_rows: int,
    rules: tuple[RuleResult, ...],
    actor: Actor,
    now: datetime,
    contract: Contract | None = None,
) -> Incident | None:
    """Open or join an incident when a delivery that landed set aside far more rows than the table's deliveries do.

    It keeps nobody from training: the good rows are good. None when nothing is unusual, and for a first delivery,
    which nothing can be compared with.
    """
    share = bad_rows / input_rows if input_rows else 0.0
    with lake.ledger.read() as conn:
        history = [one for one in store.deliveries(conn, name) if one.batch != batch and one.rows]
    if share <= UNUSUAL_SHARE or not history:
        return None
    shares = sorted(one.bad / one.rows for one in history)
    usual = shares[len(shares) // 2]
    if share <= 2 * usual:
        return None
    broken = [rule for rule in rules if rule.state == "FAIL"]
    why = f"{share:.1%} of {input_rows:,} rows were set aside, usually {usual:.1%}"
    told = triage(
        kind="quarantine", uri=public_uri(uri), batch=batch, rules=broken, input_rows=input_rows, bad_rows=bad_rows,
        why=why, now=now, contract=contract, before=Before(history[0]),
    )  # fmt: skip
    with lake.ledger.write() as conn:
        return record_incident(
            conn, table=name, cause=cause_of("quarantine", [rule.name for rule in broken]),
            title=headline(name, "quarantine", broken, why), triage=told, actor=actor, now=now,
            owner=str(getattr(contract, "owner", "") or ""),
        )  # fmt: skip


def _upstream(
    conn: Connection, name: str, blocking: tuple[RuleResult, ...], contract: Contract | None
) -> list[Upstream]:
    """Tables that the broken relationships point to, with what is known about them."""
    if contract is None:
        return []
    model = name.partition("/")[0]
    broken = {rule.name for rule in blocking}
    tables = dict.fromkeys(
        str(rule.arguments["table"])
        for rule in contract.rules
        if rule.kind == "relationship" and rule.name in broken
    )
    newest = next(iter(store.deliveries(conn, name, 1)), None)
    found = []
    for table in tables:
        there = f"{model}/{table}"
        last = next(iter(store.deliveries(conn, there, 1)), None)
        stands = [one for one in store.list_incidents(conn, tables=[there]) if one.standing]
        if stands:
            found.append(Upstream(table, f"it has an incident of its own: {stands[0].id}, {stands[0].title}"))
        elif last is None:
            found.append(Upstream(table, "nothing has ever landed in it"))
        elif newest is not None and last.at < newest.at:
            found.append(
                Upstream(table, f"its newest delivery is of {iso(last.at)}, older than this table's own")
            )
        else:
            found.append(
                Upstream(table, f"rows point to keys it lacks; its newest delivery is of {iso(last.at)}")
            )
    return found


def _before(lake: Lake, name: str, history: list[Delivery], failures: Failures) -> Before | None:
    """The newest delivery that landed, with its columns and nulls as bronze has them."""
    if not history:
        return None
    last = history[0]
    model, _, table = name.partition("/")
    if not failures.columns or not lake.exists("bronze", model, table):
        return Before(last)
    try:
        version = last.report.get("bronze_version")
        files = lake.files("bronze", model, table, version=version)
        names = [column for column in files.schema.names if not column.startswith("_")]
        with connect() as engine:
            files.view(engine, "_lw_bronze", [*names, "_batch"])
            quoted = ['"' + column.replace('"', '""') + '"' for column in names]
            held = engine.execute(
                f"SELECT count(*), {', '.join(f'count({column})' for column in quoted)} FROM _lw_bronze"
                " WHERE _batch = ?", [last.batch],
            ).fetchall()[0]  # fmt: skip
    except (LoopwrightError, DeltaError, duckdb.Error, OSError, ValueError):
        return Before(last)  # bronze of long ago may be gone; the triage says less then
    if not held[0]:
        return Before(last)
    # Bronze has every column that ever came; one that the delivery had nothing in was not in it.
    had = {column: 1 - count / held[0] for column, count in zip(names, held[1:], strict=True)}
    columns = tuple(column for column, nulls in had.items() if nulls < 1 or column in failures.columns)
    return Before(last, columns, {column: had[column] for column in columns})
