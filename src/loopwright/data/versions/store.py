"""SQL about versions of tables: what their files say, who pins them, what brought them in."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from loopwright.kernel.clock import from_us, iso, to_us
from loopwright.kernel.digest import canonical_json
from loopwright.ledger import store as ledger_store
from loopwright.ledger.schema import (
    audit,
    batches,
    feature_views,
    landings,
    materializations,
    runs,
    snapshots,
    table_contents,
    versions,
)

MOST_LANDINGS = 10_000
MOST_SOURCES = 50


@dataclass(frozen=True, slots=True)
class Pin:
    """A table version that a snapshot names. `by`: runs and versions that rest on it, as a person reads them."""

    table: str
    version: int
    snapshot: str
    taken: datetime
    by: tuple[str, ...]
    newest_use: datetime | None


def find_content(conn: Connection, table: str, files: str) -> tuple[str, int] | None:
    """(content digest, rows) of this set of files, when it was read before."""
    query = select(table_contents.c.digest, table_contents.c.rows).where(
        table_contents.c.table_name == table, table_contents.c.files == files
    )
    row = conn.execute(query).one_or_none()
    return (str(row.digest), int(row.rows)) if row is not None else None


def save_content(conn: Connection, table: str, files: str, *, digest: str, rows: int, at: datetime) -> None:
    """Remember what a set of files says; is idempotent."""
    if find_content(conn, table, files) is None:
        conn.execute(
            insert(table_contents).values(
                table_name=table, files=files, digest=digest, rows=rows, at=to_us(at)
            )
        )


def move_snapshot(conn: Connection, digest: str, manifest: Mapping[str, Any]) -> None:
    """Let a snapshot name the versions that hold its rows now."""
    conn.execute(
        update(snapshots)
        .where(snapshots.c.digest == digest)
        .values(manifest=canonical_json(manifest).decode())
    )


def list_snapshots(conn: Connection, model: str | None, limit: int) -> list[dict[str, Any]]:
    """Snapshots, newest first, each with the runs and versions that rest on it."""
    query = select(snapshots).order_by(snapshots.c.created_at.desc(), snapshots.c.digest).limit(limit)
    if model is not None:
        query = query.where(snapshots.c.model == model)
    found = conn.execute(query).all()
    users = _users(conn, model)
    return [
        {
            "digest": row.digest, "model": row.model, "rows": row.rows, "at": iso(from_us(row.created_at)),
            "tables": {name: entry["version"] for name, entry in json.loads(row.manifest)["tables"].items()},
            "used_by": list(users.get(row.digest, ((), None))[0]),
        }
        for row in found
    ]  # fmt: skip


def pins(conn: Connection, model: str) -> list[Pin]:
    """Every silver version that a snapshot of the model names."""
    users = _users(conn, model)
    query = select(snapshots).where(snapshots.c.model == model).order_by(snapshots.c.created_at)
    return [
        Pin(table, int(entry["version"]), row.digest, from_us(row.created_at), *users.get(row.digest, ((), None)))
        for row in conn.execute(query)
        for table, entry in json.loads(row.manifest)["tables"].items()
    ]  # fmt: skip


def standing_snapshots(conn: Connection, model: str) -> set[str]:
    """Snapshots that registered versions, not deleted, rest on."""
    query = select(versions.c.snapshot).where(
        versions.c.model == model, versions.c.snapshot.is_not(None), versions.c.deleted_at.is_(None)
    )
    return {str(one) for one in conn.execute(query.distinct()).scalars()}


def running_snapshots(conn: Connection, model: str) -> set[str]:
    """Snapshots of runs that have not ended."""
    query = select(runs.c.snapshot).where(
        runs.c.model == model, runs.c.snapshot.is_not(None), runs.c.ended_at.is_(None)
    )
    return {str(one) for one in conn.execute(query.distinct()).scalars()}


def materialized(conn: Connection, model: str) -> list[tuple[str | None, int, str]]:
    """(table, version, view) of what stands in the online stores or is being brought there.

    The table is None where the view's definition is not known.
    """
    query = (
        select(materializations.c.view, materializations.c.store, materializations.c.table_version)
        .where(materializations.c.model == model, materializations.c.state != "failed")
        .order_by(materializations.c.started_at.desc())
    )
    rows = conn.execute(query).all()
    newest: dict[tuple[str, str], int] = {}
    for row in rows:
        newest.setdefault((row.view, row.store), int(row.table_version))
    running = select(materializations.c.view, materializations.c.table_version).where(
        materializations.c.model == model, materializations.c.state == "running"
    )
    found = {(view, version) for (view, _), version in newest.items()}
    found |= {(row.view, int(row.table_version)) for row in conn.execute(running)}
    tables = _view_tables(conn, model)
    return sorted(((tables.get(view), version, view) for view, version in found), key=str)


def gold_versions(conn: Connection, model: str) -> dict[str, int]:
    """The silver versions that the model's gold table was made of last."""
    text = ledger_store.get_meta(conn, f"gold.{model}")
    return {str(table): int(version) for table, version in json.loads(text)["tables"].items()} if text else {}


def sources_until(conn: Connection, table: str, version: int) -> list[dict[str, Any]]:
    """Where the rows of a table version came from: per source its batches, rows, contract and origin, newest first.

    `table` is MODEL/TABLE. At most 50 sources, of at most 10,000 landings.
    """
    query = (
        select(landings)
        .where(landings.c.table_name == table, landings.c.silver_version <= version)
        .order_by(landings.c.id.desc())
        .limit(MOST_LANDINGS)
    )
    seen: set[str] = set()
    found: dict[str, dict[str, Any]] = {}
    for row in conn.execute(query):
        if row.batch_id not in seen:
            seen.add(row.batch_id)
            one = found.setdefault(
                row.uri,
                {"uri": row.uri, "batches": 0, "rows": 0, "newest_batch": row.batch_id,
                 "contract": row.contract, "at": iso(from_us(row.at))},
            )  # fmt: skip
            one["batches"] += 1
            one["rows"] += int(row.good)
        if row.loading == "full":
            break
    listed = list(found.values())[:MOST_SOURCES]
    for one in listed:
        origin = _origin(conn, table, one["newest_batch"])
        if origin:
            one["origin"] = origin
    return listed


def _origin(conn: Connection, table: str, batch: str) -> Mapping[str, Any] | None:
    """What was written down with the batch when it landed: the revision it came from, …"""
    query = (
        select(audit.c.payload)
        .where(audit.c.subject == table, audit.c.action == "data.ingest")
        .order_by(audit.c.seq.desc())
        .limit(100)
    )
    for text in conn.execute(query).scalars():
        payload = json.loads(text)
        if payload.get("source_digest") == batch:
            origin: Mapping[str, Any] | None = payload.get("origin")
            return origin
    return None


def tables_of(conn: Connection, model: str | None = None) -> list[tuple[str, str]]:
    """(model, table) of every table that a batch has landed in."""
    names = conn.execute(select(batches.c.table_name).distinct().order_by(batches.c.table_name)).scalars()
    split = [str(name).partition("/") for name in names]
    return [(left, right) for left, _, right in split if right and model in (None, left)]


def _users(conn: Connection, model: str | None) -> dict[str, tuple[tuple[str, ...], datetime | None]]:
    """snapshot → (who rests on it, when the last run began)."""
    used: dict[str, list[str]] = {}
    newest: dict[str, datetime] = {}
    query = select(runs.c.run_id, runs.c.snapshot, runs.c.started_at).where(runs.c.snapshot.is_not(None))
    if model is not None:
        query = query.where(runs.c.model == model)
    for row in conn.execute(query.order_by(runs.c.started_at)):
        used.setdefault(row.snapshot, []).append(f"run {row.run_id}")
        newest[row.snapshot] = from_us(row.started_at)
    of_versions = select(versions.c.model, versions.c.version, versions.c.snapshot).where(
        versions.c.snapshot.is_not(None), versions.c.deleted_at.is_(None)
    )
    if model is not None:
        of_versions = of_versions.where(versions.c.model == model)
    for row in conn.execute(of_versions.order_by(versions.c.version)):
        used.setdefault(row.snapshot, []).append(f"{row.model}/{row.version}")
    return {digest: (tuple(names), newest.get(digest)) for digest, names in used.items()}


def _view_tables(conn: Connection, model: str) -> dict[str, str]:
    last = (
        select(feature_views.c.name, func.max(feature_views.c.number).label("number"))
        .where(feature_views.c.model == model)
        .group_by(feature_views.c.name)
        .subquery()
    )
    query = select(feature_views.c.name, feature_views.c.document).join(
        last, (feature_views.c.name == last.c.name) & (feature_views.c.number == last.c.number)
    ).where(feature_views.c.model == model)  # fmt: skip
    found = {}
    for row in conn.execute(query):
        table = json.loads(row.document).get("table")
        if isinstance(table, str):
            found[str(row.name)] = table
    return found
