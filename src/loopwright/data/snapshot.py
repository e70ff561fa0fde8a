"""Pins what a run trains on: table versions, and a digest over every row of them (see `content`).

A snapshot can be read as long as its versions are kept; `versions.vacuum` keeps those that runs and versions rest on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from loopwright.data import store
from loopwright.data.bounded import bounded
from loopwright.data.content import ALGORITHM, content
from loopwright.data.content import content_digest as content_digest
from loopwright.data.files import Files
from loopwright.data.lake import Lake
from loopwright.data.versions import store as versions_store
from loopwright.kernel.actor import SYSTEM, Actor
from loopwright.kernel.clock import iso
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput, NotFound, Tampered, Unavailable, did_you_mean
from loopwright.ledger import store as ledger_store


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`manifest`: {model, created_at, tables: {name: {version, rows, content_digest, schema, sources, …}}}.

    `sources`: where the rows came from, per URI: batches, rows, contract, origin (a DVC or lakeFS revision, …).

    `digest` covers the model's name and, for each table, rows, content and schema: equal data, equal digest.
    """

    digest: str
    manifest: Mapping[str, Any]
    rows: int

    @property
    def tables(self) -> Mapping[str, Any]:
        return dict(self.manifest["tables"])


def silver(lake: Lake, model: str, table: str) -> pa.Table:
    """The rows of a silver table as they stand now, in the order they came, without the lake's own columns."""
    return lake.read("silver", model, table, bare=True)


def take_snapshot(
    lake: Lake, *, model: str, tables: Sequence[str], now: datetime, actor: Actor = SYSTEM
) -> Snapshot:
    """Pin the newest versions of silver `tables`. Taking it again over unchanged data gives the same digest.

    What was read before is not read again: the ledger remembers what a set of files says. Reads in bounded memory.
    """
    if not tables:
        raise BadInput("a snapshot of no tables", where=f"snapshot of {model}", wanted="at least one table")
    entries = {table: _pin(lake, model, table, now) for table in sorted(set(tables))}
    stated = ("rows", "content_digest", "schema")
    content = {name: {key: entry[key] for key in stated} for name, entry in entries.items()}
    digest = digest_json({"model": model, "tables": content})
    total = sum(entry["rows"] for entry in entries.values())
    manifest = {"model": model, "created_at": iso(now), "tables": entries}
    at = {name: entry["version"] for name, entry in entries.items()}
    with lake.ledger.write() as conn:
        if store.save_snapshot(conn, digest, manifest, total, now):
            payload = {"digest": digest, "rows": total, "tables": at}
            ledger_store.append(
                conn, at=now, actor=actor.name, action="data.snapshot", subject=model, payload=payload
            )
        elif _elsewhere(store.find_snapshots(conn, digest)[0][1]["tables"], entries):
            # Equal rows, but in a table that was made anew: the versions named before are of the one that is gone.
            versions_store.move_snapshot(conn, digest, manifest)
            ledger_store.append(
                conn, at=now, actor=actor.name, action="data.snapshot_moved", subject=model,
                payload={"digest": digest, "tables": at},
            )  # fmt: skip
    return load_snapshot(lake, digest)


def load_snapshot(lake: Lake, digest: str) -> Snapshot:
    """Find a snapshot by its digest or the start of it (at least 6 digits); raises NotFound or BadInput."""
    with lake.ledger.read() as conn:
        found = store.find_snapshots(conn, digest) if len(digest) >= 6 else []
        known = [] if found else store.known_snapshots(conn)
    if len(found) > 1:
        raise BadInput(
            "more than one snapshot starts so", where="snapshots", got=digest, next="Give more digits"
        )
    if not found:
        raise NotFound("no such snapshot", where="snapshots", got=digest, next=did_you_mean(digest, known))
    return Snapshot(*found[0])


def snapshot_files(lake: Lake, digest: str, table: str) -> Files:
    """The files of a table as the snapshot pins it, the lake's own columns included; `rows` is known.

    Raises NotFound for a table not in it, Tampered when files or rows vanished or others lie in their place.
    """
    snapshot = load_snapshot(lake, digest)
    return _files(lake, snapshot, table)


def read_snapshot(lake: Lake, digest: str, table: str) -> pa.Table:
    """Read a table as the snapshot pins it, in the order it came; raises as `snapshot_files` does."""
    snapshot = load_snapshot(lake, digest)
    _files(lake, snapshot, table)
    version = snapshot.tables[table]["version"]
    return lake.read("silver", snapshot.manifest["model"], table, version=version, bare=True)


def verify_snapshot(lake: Lake, digest: str) -> Snapshot:
    """Read every pinned row again, in bounded memory; raises Tampered when a table's content is not what was pinned."""
    snapshot = load_snapshot(lake, digest)
    for table, entry in snapshot.tables.items():
        where = f"snapshot {snapshot.digest[:12]}, {table}"
        try:
            with lake.workspace() as folder:
                found = content_digest(_files(lake, snapshot, table), spill=folder)
        except Unavailable:
            raise
        except (duckdb.Error, OSError) as error:
            raise _tampered(
                "the content of a snapshot cannot be read", where, str(error).split("\n")[0]
            ) from error
        if found != entry["content_digest"]:
            raise _tampered("the content of a snapshot changed", where, found, entry["content_digest"])
    return snapshot


def _pin(lake: Lake, model: str, table: str, now: datetime) -> dict[str, Any]:
    """What a manifest says about the newest version of a table."""
    known = lake.open("silver", model, table)
    files = lake.files("silver", model, table, version=known.version())
    name, key = f"{model}/{table}", files_digest(known)
    with lake.ledger.read() as conn:
        said = versions_store.find_content(conn, name, key)
        sources = versions_store.sources_until(conn, name, known.version())
    if said is None:
        with lake.workspace() as folder:
            read = content(files, spill=folder)
        said = (read.digest, read.rows)
        with lake.ledger.write() as conn:
            versions_store.save_content(conn, name, key, digest=read.digest, rows=read.rows, at=now)
    return {
        "version": known.version(),
        "rows": said[1],
        "content_digest": said[0],
        "schema": {field.name: str(field.type) for field in files.schema if not field.name.startswith("_")},
        "algorithm": ALGORITHM,
        "table_id": str(known.metadata().id),
        "files": key,
        "sources": sources,
    }


def files_digest(table: DeltaTable) -> str:
    """Names a table version by what it consists of: the table's id, its columns, its files. Reads no rows."""
    schema = pa.schema(table.schema())
    return digest_json({
        "algorithm": ALGORITHM,
        "table": str(table.metadata().id),
        "columns": {field.name: str(field.type) for field in schema},
        "files": sorted(uri.rsplit("/", 1)[-1] for uri in table.file_uris()),
    })  # fmt: skip


def _elsewhere(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    ids = [
        (before[name].get("table_id"), entry["table_id"]) for name, entry in after.items() if name in before
    ]
    return any(old is not None and old != new for old, new in ids)


def _files(lake: Lake, snapshot: Snapshot, table: str) -> Files:
    entry = _entry(snapshot, table)
    where = f"snapshot {snapshot.digest[:12]}, {table}"
    model, version = snapshot.manifest["model"], entry["version"]
    try:
        known = lake.open("silver", model, table, version)
    except NotFound as error:
        raise _tampered("a table of a snapshot vanished", where, str(error), f"version {version}") from error
    # Manifests written before these were kept lack them.
    if entry.get("table_id", known.metadata().id) != known.metadata().id:
        raise _tampered(
            "another table lies in a snapshot's place", where, known.metadata().id, entry["table_id"]
        )
    if "files" in entry and entry["files"] != files_digest(known):
        raise _tampered("the files of a snapshot are others", where, files_digest(known), entry["files"])
    files = lake.files("silver", model, table, version=version)
    try:
        with bounded() as engine:
            files.view(engine, "rows")
            counted = engine.sql("SELECT count(*) FROM rows").fetchall()[0][0]
    except Unavailable:
        raise
    except (duckdb.Error, OSError) as error:
        raise _tampered(
            "files of a snapshot vanished or cannot be read", where, str(error).split("\n")[0]
        ) from error
    if counted != entry["rows"]:
        raise _tampered("rows of a snapshot are missing", where, counted, str(entry["rows"]))
    return replace(files, rows=counted)


def _tampered(what: str, where: str, got: object, wanted: str = "") -> Tampered:
    return Tampered(
        what, where=where, got=got, wanted=wanted, next="Bring the files back from a backup of the lake"
    )


def _entry(snapshot: Snapshot, table: str) -> Mapping[str, Any]:
    try:
        entry: Mapping[str, Any] = snapshot.tables[table]
    except KeyError:
        raise NotFound(
            "the snapshot holds no such table",
            where=f"snapshot {snapshot.digest[:12]}",
            got=table,
            wanted=", ".join(snapshot.tables),
            next=did_you_mean(table, snapshot.tables),
        ) from None
    return entry
