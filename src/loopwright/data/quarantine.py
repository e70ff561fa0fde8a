"""Rows that were set aside: looked at, let into silver when they keep the contract in force, or dropped.

A decision is written down before it takes effect. Its id names the commits that carry it out (silver first, then
quarantine), so that a decision cut short anywhere is finished, or was never begun, when the next one is made: a row is
never in both tables for good, and never in neither. Memory stays flat: rows pass through files.

What was decided holds for the contract it was decided under: a delivery that is landed anew under another contract is
judged anew, whole. Dropped rows stay in bronze, and in the older versions of the quarantine table.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from loopwright.data.checking import examination
from loopwright.data.contract import Contract, Severity
from loopwright.data.duck import connect
from loopwright.data.files import Files
from loopwright.data.incidents import store
from loopwright.data.incidents.failures import judging
from loopwright.data.incidents.model import State, require_reason
from loopwright.data.incidents.store import Decision
from loopwright.data.lake import Lake
from loopwright.data.sql import quote as _quote
from loopwright.data.sql import text as _text
from loopwright.kernel.actor import Actor, Role, require
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput, NotFound, Refused, did_you_mean
from loopwright.ledger import store as ledger_store

MALFORMED = "malformed line"
MOST = 10_000
"""Rows that may be named one by one."""
MEMORY = "512MB"
UNWAIVABLE = ("type", "unique")
"""Kinds of rules that nobody can waive: a value of another type has no place in silver, and a key names one row."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which held rows are meant: those in all of the given sets. An empty set is no limit.

    `batches`: beginnings of batch ids. `rules`: rows that broke one of them. `rows`: row numbers of their source.
    """

    batches: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.rows) > MOST:
            raise BadInput("too many rows are named", got=len(self.rows), wanted=f"at most {MOST:,}",
                           next="Choose them by --rule or --batch.")  # fmt: skip

    @property
    def where(self) -> str:
        """The choice as a condition of SQL."""
        parts = []
        if self.batches:
            parts.append("(" + " OR ".join(f"starts_with(_batch, {_text(b)})" for b in self.batches) + ")")
        if self.rules:
            named = " OR ".join(
                f"len(list_filter(_reasons, lambda r: starts_with(r, {_text(MALFORMED)}))) > 0"
                if rule == MALFORMED
                else f"list_contains(_reasons, {_text(rule)})"
                for rule in self.rules
            )
            parts.append(f"({named})")
        if self.rows:
            parts.append(f"_row IN ({', '.join(str(int(row)) for row in self.rows)})")
        return " AND ".join(parts) or "TRUE"

    def to_json(self) -> dict[str, Any]:
        return {"batches": list(self.batches), "rules": list(self.rules), "rows": list(self.rows)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a decision did, or would do. `released + kept + dropped + malformed == chosen`.

    `kept`: rows that still break a rule; `malformed`: lines that are no rows and cannot be let in. `reasons`: what the
    rows that stay broke, by rule. `by_batch`: {batch: {released, dropped}}.
    """

    id: str
    decision: Literal["release", "drop"]
    chosen: int
    released: int = 0
    dropped: int = 0
    kept: int = 0
    malformed: int = 0
    waived: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    by_batch: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    held: int = 0
    silver_version: int | None = None
    quarantine_version: int | None = None
    dry_run: bool = False
    examples: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "decision": self.decision,
            "chosen": self.chosen,
            "released": self.released,
            "dropped": self.dropped,
            "kept": self.kept,
            "malformed": self.malformed,
            "waived": self.waived,
            "reasons": dict(self.reasons),
            "by_batch": {batch: dict(counts) for batch, counts in self.by_batch.items()},
            "held": self.held,
            "silver_version": self.silver_version,
            "quarantine_version": self.quarantine_version,
            "dry_run": self.dry_run,
            "examples": [dict(one) for one in self.examples],
        }


def summary(lake: Lake, model: str, table: str) -> dict[str, Any]:
    """{"rows", "reasons": {rule: rows}, "batches": [{"batch", "rows", "since"}]} of what is held now."""
    empty: dict[str, Any] = {"rows": 0, "reasons": {}, "batches": []}
    if not lake.exists("quarantine", model, table):
        return empty
    with _held(lake, model, table) as engine:
        batches = engine.execute(
            "SELECT _batch, count(*), epoch_us(min(_at)) FROM held GROUP BY 1 ORDER BY 3, 1"
        ).fetchall()
        return {
            "rows": sum(count for _, count, _ in batches),
            "reasons": _reasons(engine, "held"),
            "batches": [{"batch": b, "rows": n, "since": at} for b, n, at in batches],
        }


def look(lake: Lake, model: str, table: str, choice: Choice, limit: int) -> tuple[int, list[dict[str, Any]]]:
    """(how many rows are meant, the first `limit` of them by batch and row)."""
    if not lake.exists("quarantine", model, table):
        return 0, []
    with _held(lake, model, table) as engine:
        (count,) = engine.execute(f"SELECT count(*) FROM held WHERE {choice.where}").fetchall()[0]
        rows = engine.sql(
            f"SELECT * FROM held WHERE {choice.where} ORDER BY _batch, _row NULLS LAST LIMIT {int(limit)}"
        ).to_arrow_table()
    return int(count), rows.to_pylist()


def release(
    lake: Lake,
    *,
    model: str,
    table: str,
    contract: Contract,
    choice: Choice,
    actor: Actor,
    now: datetime,
    reason: str = "",
    force: bool = False,
    dry_run: bool = False,
) -> Outcome:
    """Judge held rows by `contract`; those that keep it go into silver, the others stay with what they break now.

    `force`: rows that break nothing but the rules of `choice.rules` go in as well. That takes an approver, a reason,
    and rules that set rows aside; types, keys and blocking rules are never waived. Is idempotent and safe to kill.
    """
    require(actor, Role.DEVELOPER, "release quarantined rows", model=model)
    if force:
        require(actor, Role.APPROVER, "release rows that break their contract", model=model)
        reason = require_reason(reason, "release rows that break their contract")
    judged = _waiving(contract, choice) if force else judging(contract)
    with (
        lake.locked(model, table),
        lake.workspace() as work,
    ):
        if not dry_run:
            finish(lake, model, table, now=now)
        with _held(lake, model, table) as engine:
            found = _judged(lake, engine, model, table, judged, choice, work)
            if dry_run or not found.released:
                # What stays may break other rules now; that alone is not worth a new version of the table.
                return replace(found, dry_run=dry_run)
            decision = _decide(lake, found, choice, model, table, contract, actor, now, reason, force=force)
            _carry_out(lake, engine, model, table, decision, work, contract)
        return _conclude(lake, model, table, decision, now=now)


def drop(
    lake: Lake,
    *,
    model: str,
    table: str,
    choice: Choice,
    actor: Actor,
    now: datetime,
    reason: str,
    dry_run: bool = False,
) -> Outcome:
    """Give held rows up: they leave quarantine for good reason, which is kept. Is idempotent and safe to kill."""
    require(actor, Role.DEVELOPER, "drop quarantined rows", model=model)
    reason = reason if dry_run else require_reason(reason, "drop rows")
    with lake.locked(model, table):
        if not dry_run:
            finish(lake, model, table, now=now)
        with _held(lake, model, table) as engine:
            chosen = engine.execute(
                f"SELECT _batch, count(*) FROM held WHERE {choice.where} GROUP BY 1 ORDER BY 1"
            ).fetchall()
            total = sum(count for _, count in chosen)
            engine.execute(
                f"CREATE TEMP VIEW rest AS SELECT * FROM held WHERE NOT coalesce({choice.where}, FALSE)"
            )
            found = Outcome(
                "", "drop", chosen=total, dropped=total, reasons=_reasons(engine, "rest"),
                by_batch={batch: {"released": 0, "dropped": count} for batch, count in chosen},
                held=_count(engine, "rest"), dry_run=dry_run,
            )  # fmt: skip
            if dry_run or not total:
                return found
            decision = _decide(lake, found, choice, model, table, None, actor, now, reason, force=False)
            _rewrite(lake, engine, model, table, decision.id)
        return _conclude(lake, model, table, decision, now=now)


def finish(lake: Lake, model: str, table: str, *, now: datetime) -> list[str]:
    """Finish decisions that were cut short, in the order they were made; those that changed nothing are taken back.

    The caller holds the table's lock. Returns their ids.
    """
    with lake.ledger.read() as conn:
        waiting = store.pending_decisions(conn, f"{model}/{table}")
    for decision in waiting:
        layer: Literal["silver", "quarantine"] = "silver" if decision.decision == "release" else "quarantine"
        if not _seen(lake, layer, model, table, decision.id):
            with lake.ledger.write() as conn:
                store.conclude_decision(
                    conn, decision.id, outcome={"cancelled": "cut short before anything was changed"}, rows=0,
                    silver_version=None, quarantine_version=None,
                )  # fmt: skip
            continue
        if not _seen(lake, "quarantine", model, table, decision.id):
            with _held(lake, model, table) as engine:
                # What went into silver is what silver has.
                lake.files("silver", model, table).view(engine, "landed", ["_batch", "_row"])
                engine.execute(
                    "CREATE TEMP VIEW rest AS SELECT * FROM held ANTI JOIN landed USING (_batch, _row)"
                )
                _rewrite(lake, engine, model, table, decision.id)
        _conclude(lake, model, table, decision, now=now)
    return [decision.id for decision in waiting]


@contextmanager
def _held(lake: Lake, model: str, table: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """An engine with the view `held`; raises NotFound where nothing was ever set aside."""
    if not lake.exists("quarantine", model, table):
        raise NotFound(
            "nothing was ever set aside", where=f"{model}/{table}", next="See: loopwright data tables"
        )
    with connect() as engine:
        engine.execute(f"SET memory_limit = '{MEMORY}'")
        lake.files("quarantine", model, table).view(engine, "held")
        yield engine


def _judged(
    lake: Lake,
    engine: duckdb.DuckDBPyConnection,
    model: str,
    table: str,
    contract: Contract,
    choice: Choice,
    work: Path,
) -> Outcome:
    """Judge the chosen rows; leaves `good.parquet` in `work` and the view `rest` in the engine."""
    held, good = work / "held.parquet", work / "good.parquet"
    engine.execute(
        f"COPY (SELECT * FROM held WHERE ({choice.where}) AND _row IS NOT NULL ORDER BY _batch, _row)"
        f" TO {_text(str(held))} (FORMAT parquet)"
    )
    (chosen,) = engine.execute(f"SELECT count(*) FROM held WHERE {choice.where}").fetchall()[0]
    known = pa_parquet.read_schema(held)
    rows = pa_parquet.read_metadata(held).num_rows
    raw = Files(
        (str(held),), pa.schema([f for f in known if not f.name.startswith("_")]), rows=rows, numbered=True
    )
    engine.execute(
        "CREATE TEMP VIEW places AS SELECT file_row_number + 1 AS _place, _batch AS _b, _row AS _r"
        f" FROM read_parquet({_text(str(held))}, file_row_number = true)"
    )
    engine.execute("CREATE TEMP TABLE broken (_b VARCHAR, _r BIGINT, _now VARCHAR[])")
    if rows:
        with examination(raw, contract, refs=_refs(lake, model, contract), landed=_landed(lake, model, table, contract),
                         spill=work) as examined:  # fmt: skip
            engine.register("_lw_good", examined.good())
            engine.execute(
                "COPY (SELECT g.* EXCLUDE (_row), p._r AS _row, p._b AS _batch FROM _lw_good g"
                f" JOIN places p ON g._row = p._place) TO {_text(str(good))} (FORMAT parquet)"
            )
            engine.unregister("_lw_good")
            engine.register("_lw_bad", examined.bad())
            engine.execute(
                "INSERT INTO broken SELECT p._b, p._r, b._reasons FROM _lw_bad b JOIN places p ON b._row = p._place"
            )
            engine.unregister("_lw_bad")
            waived = sum(r.failed for r in examined.report.rules if r.severity is Severity.WARN)
        engine.execute(f"CREATE TEMP VIEW good AS SELECT _batch, _row FROM read_parquet({_text(str(good))})")
    else:
        waived = 0
        engine.execute(
            "CREATE TEMP VIEW good AS SELECT NULL::VARCHAR AS _batch, NULL::BIGINT AS _row WHERE FALSE"
        )
    names = ", ".join(f"h.{_quote(n)}" for n in _names(engine) if n != "_reasons")
    ordered = ", ".join(_quote(n) for n in _names(engine))
    engine.execute(
        f"CREATE TEMP VIEW rest AS SELECT {ordered} FROM (SELECT {names}, coalesce(x._now, h._reasons) AS _reasons"
        " FROM (SELECT * FROM held ANTI JOIN good USING (_batch, _row)) h"
        " LEFT JOIN broken x ON x._b = h._batch AND x._r = h._row)"
    )
    released = engine.execute("SELECT _batch, count(*) FROM good GROUP BY 1 ORDER BY 1").fetchall()
    total = sum(count for _, count in released)
    examples = engine.execute("SELECT _b, _r, _now FROM broken ORDER BY _b, _r LIMIT 5").fetchall()
    return Outcome(
        "", "release", chosen=chosen, released=total, kept=rows - total, malformed=chosen - rows, waived=waived,
        reasons=_reasons(engine, "rest"), held=_count(engine, "rest"),
        by_batch={batch: {"released": count, "dropped": 0} for batch, count in released},
        examples=tuple({"batch": b, "row": r, "reasons": why} for b, r, why in examples),
    )  # fmt: skip


def _decide(
    lake: Lake,
    found: Outcome,
    choice: Choice,
    model: str,
    table: str,
    contract: Contract | None,
    actor: Actor,
    now: datetime,
    reason: str,
    *,
    force: bool,
) -> Decision:
    """Write the decision down. The same one about the same state of the table has the same id."""
    version = lake.version("quarantine", model, table)
    digest = contract.digest if contract else ""
    asked = choice.to_json() | {"force": force}
    named = digest_json([f"{model}/{table}", found.decision, version, asked, digest])
    batches = list(found.by_batch)
    plan = {k: v for k, v in found.to_json().items() if k not in ("examples", "dry_run", "id")}
    decision = Decision(
        id=f"re_{named[:32]}", table=f"{model}/{table}", decision=found.decision, rows=found.released + found.dropped,
        contract=digest, reason=reason,
        choice={"asked": asked, "plan": plan, "batch": batches[0] if len(batches) == 1 else ""},
        outcome=None, silver_version=lake.version("silver", model, table), quarantine_version=version,
        actor=actor.name, at=now,
    )  # fmt: skip
    with lake.ledger.write() as conn:
        store.add_decision(conn, decision)
    return decision


def _carry_out(
    lake: Lake,
    engine: duckdb.DuckDBPyConnection,
    model: str,
    table: str,
    decision: Decision,
    work: Path,
    contract: Contract,
) -> None:
    good = work / "good.parquet"
    come = pa_parquet.read_schema(good)
    silver = lake.files("silver", model, table).schema
    fields = [silver.field(f.name) if f.name in silver.names else f for f in come]
    rows = Files((str(good),), pa.schema(fields))
    lake.write("silver", model, table, rows.reader(), once=decision.id)
    _rewrite(lake, engine, model, table, decision.id)


def _rewrite(lake: Lake, engine: duckdb.DuckDBPyConnection, model: str, table: str, once: str) -> None:
    """Make the view `rest` the quarantine's content, in one commit called `once`."""
    schema = lake.files("quarantine", model, table).schema
    reader = engine.sql("SELECT * FROM rest ORDER BY _batch, _row NULLS LAST").to_arrow_reader(64 * 1024)
    cast = pa.RecordBatchReader.from_batches(
        schema, (batch.select(schema.names).cast(schema) for batch in reader)
    )
    lake.write("quarantine", model, table, cast, once=once, whole=True)


def _conclude(lake: Lake, model: str, table: str, decision: Decision, *, now: datetime) -> Outcome:
    """Write what became of a decision: counts of its batches, the audit log, and the timelines of incidents."""
    name = f"{model}/{table}"
    plan = dict(decision.choice["plan"])
    silver, quarantine = lake.version("silver", model, table), lake.version("quarantine", model, table)
    plan |= {"silver_version": silver, "quarantine_version": quarantine}
    left = _left_by_batch(lake, model, table, list(plan["by_batch"]))
    payload = {
        "model": model, "decision": decision.id, "reason": decision.reason, "released": plan["released"],
        "dropped": plan["dropped"], "kept": plan["kept"], "forced": bool(decision.choice["asked"]["force"]),
        "silver_version": silver, "quarantine_version": quarantine,
    }  # fmt: skip
    event = "released" if decision.decision == "release" else "dropped"
    with lake.ledger.write() as conn:
        if decision.id not in {one.id for one in store.pending_decisions(conn, name)}:
            return Outcome(id=decision.id, **plan)  # another process has finished it
        for batch, counts in plan["by_batch"].items():
            gone = counts["released"] + counts["dropped"]
            store.adjust_batch(
                conn, name, batch, good=counts["released"], bad=-gone, reasons=left.get(batch, {}),
                silver_version=silver if counts["released"] else None,
            )  # fmt: skip
        store.conclude_decision(
            conn, decision.id, outcome=plan, rows=decision.rows, silver_version=silver, quarantine_version=quarantine
        )  # fmt: skip
        for incident in store.list_incidents(conn, tables=[name]):
            if incident.state is not State.CLOSED:
                store.add_event(conn, incident.id, at=now, actor=decision.actor, event=event, payload=payload)
        ledger_store.append(
            conn, at=now, actor=decision.actor, action=f"data.{event}", subject=name, payload=payload
        )
    return Outcome(id=decision.id, **plan)


def _left_by_batch(lake: Lake, model: str, table: str, batches: Sequence[str]) -> dict[str, dict[str, int]]:
    with _held(lake, model, table) as engine:
        found: dict[str, dict[str, int]] = {}
        for batch, reason, count in engine.execute(
            f"SELECT _batch, {_REASON}, count(*) FROM (SELECT _batch, unnest(_reasons) AS r FROM held"
            " WHERE list_contains(?, _batch)) GROUP BY 1, 2 ORDER BY 1, 2", [list(batches)],
        ).fetchall():  # fmt: skip
            found.setdefault(batch, {})[reason] = count
    return found


_REASON = f"CASE WHEN starts_with(r, '{MALFORMED}') THEN '{MALFORMED}' ELSE r END"


def _reasons(engine: duckdb.DuckDBPyConnection, view: str) -> dict[str, int]:
    found = engine.execute(
        f"SELECT {_REASON}, count(*) FROM (SELECT unnest(_reasons) AS r FROM {view}) GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    return dict(found.fetchall())


def _count(engine: duckdb.DuckDBPyConnection, view: str) -> int:
    return int(engine.execute(f"SELECT count(*) FROM {view}").fetchall()[0][0])


def _names(engine: duckdb.DuckDBPyConnection) -> list[str]:
    return [str(row[0]) for row in engine.execute("DESCRIBE held").fetchall()]


def _waiving(contract: Contract, choice: Choice) -> Contract:
    """`contract` about rows, with the chosen rules only counted. Raises BadInput or Refused for what is not waived."""
    judged = judging(contract)
    own = {rule.name: rule for rule in contract.rules}
    if not choice.rules:
        raise BadInput("a forced release names no rule", where=contract.source,
                       wanted="the rules that are waived", next="--rule NAME, as often as needed")  # fmt: skip
    for name in choice.rules:
        rule = own.get(name)
        if rule is None:
            raise BadInput("the contract has no such rule", where=contract.source, got=name,
                           next=did_you_mean(name, own))  # fmt: skip
        key = rule.kind in ("required", "missing") and bool(set(rule.columns) & set(contract.key))
        if rule.kind in UNWAIVABLE or rule.severity is Severity.BLOCK or key:
            why = (
                "it blocks"
                if rule.severity is Severity.BLOCK
                else "it is about a key"
                if key
                else f"it is a {rule.kind}"
            )
            raise Refused(
                "this rule is not waived for anybody", where=contract.source, got=f"{name} ({why})",
                wanted="a rule that sets rows aside, about neither types nor keys",
                next="Change the contract, or have the source corrected.",
            )  # fmt: skip
    rules = tuple(
        replace(rule, severity=Severity.WARN) if rule.name in choice.rules else rule for rule in judged.rules
    )
    return replace(judged, rules=rules)


def _refs(lake: Lake, model: str, contract: Contract) -> dict[str, Files]:
    found = {}
    for table in contract.references():
        if lake.exists("silver", model, table):
            files = lake.files("silver", model, table)
            own = pa.schema([field for field in files.schema if not field.name.startswith("_")])
            found[table] = Files(files.uris, own)
    return found


def _landed(lake: Lake, model: str, table: str, contract: Contract) -> Files | None:
    """What silver holds of the columns that uniqueness is about."""
    names = {column for rule in contract.rules if rule.over_table for column in rule.columns}
    files = lake.files("silver", model, table)
    held = sorted(names & set(files.schema.names))
    return (
        Files(files.uris, pa.schema([files.schema.field(n) for n in held])) if held and files.uris else None
    )


def _seen(lake: Lake, layer: Literal["silver", "quarantine"], model: str, table: str, once: str) -> bool:
    return lake.exists(layer, model, table) and (
        lake.open(layer, model, table).transaction_version(once) is not None
    )
