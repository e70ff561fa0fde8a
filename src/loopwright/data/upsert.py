"""Row by row through the key: of two rows with one key the one with the greater version stays.

Files of silver that hold a superseded row are written anew without it, and the new rows come beside them, all in one
commit. Equal versions: the later arrival stays; an older record that arrives late changes nothing. A null version is
older than any other. Without a version column the later arrival always stays. Bronze keeps every row that ever came.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from loopwright.data.check_report import RuleResult, State
from loopwright.data.contract import Contract, Rule, Severity
from loopwright.data.files import Files
from loopwright.data.landing import quote, spilling
from loopwright.data.parts import PartWriter, cast_batches


@dataclass(frozen=True, slots=True)
class Upserted:
    """`inserted + updated + ignored + set_aside` is the number of rows that came.

    `ignored`: a row with the same key and a later version was there, or came in the same batch. `set_aside`: rows
    (by `_row`) whose unique columns belong to another record, with the rules they broke. `gone`: URIs of the files
    that the new ones stand for.
    """

    inserted: int
    updated: int
    ignored: int
    set_aside: dict[int, tuple[str, ...]]
    rules: tuple[RuleResult, ...]
    gone: tuple[str, ...]


def judged_later(contract: Contract) -> tuple[Rule, ...]:
    """The rules that an upsert judges on its outcome: uniqueness of a record that comes again is no fault."""
    return tuple(rule for rule in contract.rules if rule.over_table)


def upsert(
    current: Files | None, new: Files, contract: Contract, writer: PartWriter, folder: Path
) -> Upserted:
    """Write to `writer` what stands in the place of the files `gone`, once `new` has met `current`."""
    with spilling(folder) as engine:
        new.view(engine, "new")
        if current is None:
            empty = Files((), pa.schema([f for f in new.schema if f.name != "_row"]))
            empty.view(engine, "held", origin="_file")
        else:
            current.view(engine, "held", origin="_file")
        _settle(engine, contract, current)
        broken, rules = _uniqueness(engine, contract)
        inserted, updated, ignored = _counts(engine)
        gone = [
            row[0] for row in engine.execute(
                "SELECT DISTINCT _file FROM fates WHERE wins AND _file IS NOT NULL ORDER BY 1"
            ).fetchall()
        ]  # fmt: skip
        if gone:
            assert current is not None
            Files(tuple(gone), current.schema).view(engine, "touched")
            same = " AND ".join(f"fates.{_k(i)} = touched.{quote(c)}" for i, c in enumerate(contract.key))
            _stream(
                engine, writer,
                f"SELECT * FROM touched WHERE NOT EXISTS (SELECT 1 FROM fates WHERE wins AND {same})",
            )  # fmt: skip
        _stream(
            engine,
            writer,
            "SELECT new.* FROM new SEMI JOIN (FROM fates WHERE wins) AS w ON new._row = w._row",
        )
    return Upserted(inserted, updated, ignored, broken, rules, tuple(gone))


def _settle(engine: duckdb.DuckDBPyConnection, contract: Contract, current: Files | None) -> None:
    """Create `fates`: one row for each key that came, with the row that counts and whether it supersedes.

    A key with a null is nobody's: each such row is a record of its own.
    """
    named = ", ".join(f"{quote(column)} AS {_k(i)}" for i, column in enumerate(contract.key))
    keys = ", ".join(_k(i) for i in range(len(contract.key)))
    whole = " AND ".join(f"{_k(i)} IS NOT NULL" for i in range(len(contract.key)))
    version = quote(contract.version_column) if contract.version_column else "NULL::BIGINT"
    older = (
        version
        if current is not None
        and (contract.version_column is None or contract.version_column in current.schema.names)
        else "NULL"
    )
    engine.execute(
        f"CREATE TEMP TABLE winners AS SELECT {keys}, version, _row FROM ("
        f" SELECT {keys}, version, _row, row_number() OVER ("
        f"  PARTITION BY {keys}, CASE WHEN {whole} THEN NULL ELSE _row END"
        "   ORDER BY version DESC NULLS LAST, _row DESC) AS place"
        f" FROM (SELECT {named}, {version} AS version, _row FROM new)) WHERE place = 1"
    )
    missing = [c for c in contract.key if current is not None and c not in current.schema.names]
    held = (
        f"(SELECT {named}, {older} AS version, _file FROM held)"
        if not missing
        else f"(SELECT {keys}, version, NULL::VARCHAR AS _file FROM winners LIMIT 0)"
    )
    same = " AND ".join(f"w.{_k(i)} = h.{_k(i)}" for i in range(len(contract.key)))
    later = "h.version IS NULL OR w.version >= h.version" if contract.version_column else "TRUE"
    engine.execute(
        f"CREATE TEMP TABLE fates AS SELECT w.*, h._file, h._file IS NULL OR coalesce({later}, FALSE) AS wins"
        f" FROM winners AS w LEFT JOIN {held} AS h ON {same}"
    )


def _uniqueness(
    engine: duckdb.DuckDBPyConnection, contract: Contract
) -> tuple[dict[int, tuple[str, ...]], tuple[RuleResult, ...]]:
    """Judge the unique rules on what would stand; rows that break a quarantining one lose."""
    broken: dict[int, tuple[str, ...]] = {}
    results = []
    different = " OR ".join(f"n.{quote(c)} IS DISTINCT FROM h.{quote(c)}" for c in contract.key)
    for rule in judged_later(contract):
        if rule.columns == contract.key:
            results.append(_result(rule, []))
            continue
        columns = ", ".join(f"n.{quote(c)}" for c in rule.columns)
        whole = " AND ".join(f"n.{quote(c)} IS NOT NULL" for c in rule.columns)
        same = " AND ".join(f"h.{quote(c)} = n.{quote(c)}" for c in rule.columns)
        found = [
            int(row[0]) for row in engine.execute(
                "SELECT _row FROM (SELECT n._row,"
                f" row_number() OVER (PARTITION BY {columns} ORDER BY n._row) > 1"
                f" OR EXISTS (SELECT 1 FROM held AS h WHERE {same} AND ({different})) AS twice"
                f" FROM new AS n SEMI JOIN (FROM fates WHERE wins) AS w ON n._row = w._row WHERE {whole})"
                " WHERE twice ORDER BY 1"
            ).fetchall()
        ]  # fmt: skip
        results.append(_result(rule, found))
        if rule.severity is Severity.QUARANTINE:
            for row in found:
                broken[row] = (*broken.get(row, ()), rule.name)
    if broken:
        engine.register("losers", pa.table({"_row": pa.array(list(broken), pa.int64())}))
        engine.execute("DELETE FROM fates WHERE _row IN (SELECT _row FROM losers)")
    return broken, tuple(results)


def _result(rule: Rule, found: Sequence[int]) -> RuleResult:
    state: State = "PASS" if not found else "WARN" if rule.severity is Severity.WARN else "FAIL"
    why = f"{len(found)} rows hold what another record holds" if found else ""
    examples = tuple({"row": row} for row in found[:3])
    return RuleResult(
        rule.name, ", ".join(rule.columns), rule.severity, rule.scope, state, len(found), examples, why
    )


def _counts(engine: duckdb.DuckDBPyConnection) -> tuple[int, int, int]:
    ((inserted, updated, late),) = engine.execute(
        "SELECT count(*) FILTER (_file IS NULL), count(*) FILTER (wins AND _file IS NOT NULL),"
        " count(*) FILTER (NOT wins) FROM fates"
    ).fetchall()
    ((came,),) = engine.execute("SELECT count(*) FROM new").fetchall()
    ((keys,),) = engine.execute("SELECT count(*) FROM winners").fetchall()
    return int(inserted), int(updated), int(late) + int(came) - int(keys)


def _stream(engine: duckdb.DuckDBPyConnection, writer: PartWriter, query: str) -> None:
    rows: pa.RecordBatchReader = engine.sql(query).to_arrow_reader(64 * 1024)
    for batch in cast_batches(rows, writer.schema):
        writer.add(batch)


def _k(index: int) -> str:
    return f"_k{index}"
