"""SQL of the ledger's `batches`, `landings`, `snapshots`, `contracts` and `cursors`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from loopwright.kernel.clock import from_us, to_us
from loopwright.kernel.digest import canonical_json
from loopwright.ledger.schema import batches, contracts, cursors, landings, snapshots


@dataclass(frozen=True, slots=True)
class Batch:
    """A source that has landed in a table, and the report of its ingestion."""

    table: str
    id: str
    at: datetime
    bronze_version: int | None
    silver_version: int | None
    report: Mapping[str, Any]


def find_batch(conn: Connection, table: str, batch_id: str) -> Batch | None:
    row = conn.execute(
        select(batches).where(batches.c.table_name == table, batches.c.batch_id == batch_id)
    ).one_or_none()
    return _batch(row) if row is not None else None


def latest_batch(conn: Connection, table: str) -> Batch | None:
    """The batch that landed last in `table`, whatever the clock said then."""
    newest = select(landings.c.batch_id).where(landings.c.table_name == table).order_by(landings.c.id.desc())
    batch = conn.execute(newest.limit(1)).scalar_one_or_none()
    return None if batch is None else find_batch(conn, table, batch)


def list_batches(conn: Connection, table: str) -> list[Batch]:
    """All batches of `table`, oldest first."""
    rows = conn.execute(
        select(batches).where(batches.c.table_name == table).order_by(batches.c.at, batches.c.silver_version)
    )
    return [_batch(row) for row in rows]


def save_batch(
    conn: Connection,
    *,
    table: str,
    batch_id: str,
    rows: int,
    good: int,
    bad: int,
    bronze_version: int,
    silver_version: int,
    report: Mapping[str, Any],
    at: datetime,
) -> None:
    """Remember that a batch has landed; landing again (under another contract) replaces what was remembered."""
    values = {
        "source_digest": batch_id,
        "rows": rows,
        "good": good,
        "bad": bad,
        "bronze_version": bronze_version,
        "silver_version": silver_version,
        "report": canonical_json(report).decode(),
        "at": to_us(at),
    }
    here = (batches.c.table_name == table, batches.c.batch_id == batch_id)
    if conn.execute(update(batches).where(*here).values(**values)).rowcount == 0:
        conn.execute(insert(batches).values(table_name=table, batch_id=batch_id, **values))


def add_landing(
    conn: Connection,
    *,
    table: str,
    silver_version: int,
    batch_id: str,
    uri: str,
    loading: str,
    good: int,
    bad: int,
    contract: str,
    actor: str,
    at: datetime,
) -> None:
    """Note which version of a table a batch came into; `uri` must carry no credentials."""
    conn.execute(
        insert(landings).values(
            table_name=table, silver_version=silver_version, batch_id=batch_id, uri=uri, loading=loading, good=good,
            bad=bad, contract=contract, actor=actor, at=to_us(at),
        )
    )  # fmt: skip


def last_landing(conn: Connection, table: str) -> int:
    """The number of the newest landing of `table`; 0 before the first."""
    query = select(func.max(landings.c.id)).where(landings.c.table_name == table)
    return int(conn.execute(query).scalar_one() or 0)


def landed_batches(conn: Connection, table: str) -> list[tuple[str, str]]:
    """(batch id, uri) of every batch in `table`, in the order in which they landed first."""
    query = (
        select(landings.c.batch_id, landings.c.uri)
        .where(landings.c.table_name == table)
        .order_by(landings.c.id)
    )
    found: dict[str, str] = {}
    for batch, uri in conn.execute(query):
        found.setdefault(batch, uri)
    return list(found.items())


@dataclass(frozen=True, slots=True)
class Registered:
    """A contract that a table was judged by. `change`: against the one before: first, same, compatible, breaking."""

    table: str
    digest: str
    number: int
    version: str
    document: Mapping[str, Any]
    change: str
    differences: list[Any]
    actor: str
    at: datetime


def contract_history(conn: Connection, table: str) -> list[Registered]:
    """Every contract that `table` was judged by, oldest first. One that came back stands where it stood first."""
    rows = conn.execute(select(contracts).where(contracts.c.table_name == table).order_by(contracts.c.number))
    return [
        Registered(
            row.table_name, row.digest, row.number, row.version, json.loads(row.document), row.change,
            json.loads(row.differences), row.actor, from_us(row.at),
        )
        for row in rows
    ]  # fmt: skip


def contract_tables(conn: Connection) -> list[str]:
    """Names (model/table) of the tables that were ever judged by a contract, sorted."""
    query = select(contracts.c.table_name).distinct().order_by(contracts.c.table_name)
    return list(conn.execute(query).scalars())


def contract_in_force(conn: Connection, table: str) -> Registered | None:
    """The contract that the newest landing of `table` was judged by; None when nothing landed or none is known."""
    query = (
        select(landings.c.contract)
        .where(landings.c.table_name == table)
        .order_by(landings.c.id.desc())
        .limit(1)
    )
    digest = conn.execute(query).scalar_one_or_none()
    return next((each for each in contract_history(conn, table) if each.digest == digest), None)


def register_contract(
    conn: Connection,
    *,
    table: str,
    digest: str,
    version: str,
    document: Mapping[str, Any],
    change: str,
    differences: Sequence[Any],
    actor: str,
    at: datetime,
) -> str | None:
    """Remember the contract that `table` is judged by; one that is known keeps its number.

    Of one that says the same in other words (its version, who to ask) the newest words are kept. Returns the version
    that it was called by before, where that changed.
    """
    here = (contracts.c.table_name == table, contracts.c.digest == digest)
    words = canonical_json(document).decode()
    known = conn.execute(select(contracts.c.version, contracts.c.document).where(*here)).one_or_none()
    if known is not None:
        if (known.version, known.document) != (version, words):
            conn.execute(update(contracts).where(*here).values(version=version, document=words))
        return str(known.version) if known.version != version else None
    newest = conn.execute(select(func.max(contracts.c.number)).where(contracts.c.table_name == table))
    conn.execute(
        insert(contracts).values(
            table_name=table, digest=digest, number=int(newest.scalar_one() or 0) + 1, version=version,
            document=words, change=change,
            differences=canonical_json(list(differences)).decode(), actor=actor, at=to_us(at),
        )
    )  # fmt: skip
    return None


def find_cursor(conn: Connection, table: str, uri: str) -> Mapping[str, Any] | None:
    """How far the incremental source `uri` (without credentials) was read into `table`; None: not yet."""
    query = select(cursors.c.value).where(cursors.c.table_name == table, cursors.c.uri == uri)
    found = conn.execute(query).scalar_one_or_none()
    return None if found is None else dict(json.loads(found))


def save_cursor(
    conn: Connection, *, table: str, uri: str, value: Mapping[str, Any], batch_id: str, at: datetime
) -> None:
    """Remember how far a source was read; belongs into the transaction of the landing."""
    values = {"value": canonical_json(value).decode(), "batch_id": batch_id, "at": to_us(at)}
    here = (cursors.c.table_name == table, cursors.c.uri == uri)
    if conn.execute(update(cursors).where(*here).values(**values)).rowcount == 0:
        conn.execute(insert(cursors).values(table_name=table, uri=uri, **values))


def save_snapshot(
    conn: Connection, digest: str, manifest: Mapping[str, Any], rows: int, at: datetime
) -> bool:
    """Remember a snapshot; False when it is known already (the first manifest stays)."""
    if conn.execute(select(snapshots.c.digest).where(snapshots.c.digest == digest)).one_or_none() is not None:
        return False
    conn.execute(
        insert(snapshots).values(
            digest=digest,
            model=manifest["model"],
            manifest=canonical_json(manifest).decode(),
            rows=rows,
            created_at=to_us(at),
        )
    )
    return True


def find_snapshots(conn: Connection, prefix: str) -> list[tuple[str, dict[str, Any], int]]:
    """(digest, manifest, rows) of snapshots whose digest starts with `prefix`, at most ten."""
    query = (
        select(snapshots)
        .where(snapshots.c.digest.startswith(prefix, autoescape=True))
        .order_by(snapshots.c.digest)
        .limit(10)
    )
    return [(row.digest, json.loads(row.manifest), row.rows) for row in conn.execute(query)]


def known_snapshots(conn: Connection) -> list[str]:
    """Digests of the newest 200 snapshots."""
    return list(
        conn.execute(select(snapshots.c.digest).order_by(snapshots.c.created_at.desc()).limit(200)).scalars()
    )


def _batch(row: Row[Any]) -> Batch:
    return Batch(
        row.table_name,
        row.batch_id,
        from_us(row.at),
        row.bronze_version,
        row.silver_version,
        json.loads(row.report),
    )
