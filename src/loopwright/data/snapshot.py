"""Pins what a run trains on: table versions, and a digest over every row of them.

The digest of a table is SHA-256 over the sorted SHA-256 digests of its rows, so it does not depend on the order of
rows, on files or on batches; a row counts as often as it stands there. The lake's own columns do not count.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from loopwright.data import store
from loopwright.data.duck import connect
from loopwright.data.lake import Lake
from loopwright.kernel.actor import SYSTEM, Actor
from loopwright.kernel.clock import iso
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput, NotFound, Tampered, did_you_mean
from loopwright.ledger import store as ledger_store


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`manifest`: {model, created_at, tables: {name: {version, rows, content_digest, schema}}}.

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
    """Pin the newest versions of silver `tables`. Taking it again over unchanged data gives the same digest."""
    if not tables:
        raise BadInput("a snapshot of no tables", where=f"snapshot of {model}", wanted="at least one table")
    entries: dict[str, Any] = {}
    for table in sorted(tables):
        version = lake.open("silver", model, table).version()
        rows = lake.read("silver", model, table, version=version, bare=True)
        entries[table] = {
            "version": version,
            "rows": rows.num_rows,
            "content_digest": content_digest(rows),
            "schema": {field.name: str(field.type) for field in rows.schema},
        }
    content = {name: {k: v for k, v in entry.items() if k != "version"} for name, entry in entries.items()}
    digest = digest_json({"model": model, "tables": content})
    total = sum(entry["rows"] for entry in entries.values())
    manifest = {"model": model, "created_at": iso(now), "tables": entries}
    with lake.ledger.write() as conn:
        if store.save_snapshot(conn, digest, manifest, total, now):
            payload = {
                "digest": digest,
                "rows": total,
                "tables": {name: e["version"] for name, e in entries.items()},
            }
            ledger_store.append(
                conn, at=now, actor=actor.name, action="data.snapshot", subject=model, payload=payload
            )
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


def read_snapshot(lake: Lake, digest: str, table: str) -> pa.Table:
    """Read a table as the snapshot pins it; raises NotFound for a table not in it, Tampered when rows are missing."""
    snapshot = load_snapshot(lake, digest)
    entry = _entry(snapshot, table)
    rows = lake.read("silver", snapshot.manifest["model"], table, version=entry["version"], bare=True)
    if rows.num_rows != entry["rows"]:
        raise Tampered(
            "rows of a snapshot are missing",
            where=f"snapshot {digest[:12]}, {table}",
            got=rows.num_rows,
            wanted=str(entry["rows"]),
        )
    return rows


def verify_snapshot(lake: Lake, digest: str) -> Snapshot:
    """Read every pinned row again; raises Tampered when a table's content is not what was pinned."""
    snapshot = load_snapshot(lake, digest)
    for table, entry in snapshot.tables.items():
        found = content_digest(read_snapshot(lake, snapshot.digest, table))
        if found != entry["content_digest"]:
            raise Tampered(
                "the content of a snapshot changed",
                where=f"snapshot {digest[:12]}, {table}",
                got=found,
                wanted=entry["content_digest"],
            )
    return snapshot


def content_digest(rows: pa.Table) -> str:
    """SHA-256 over all rows, whatever their order. Names of columns count; null, "" and 0 differ."""
    names = sorted(name for name in rows.column_names if not name.startswith("_"))
    digest = hashlib.sha256("\x1f".join(names).encode())
    if not names or not rows.num_rows:
        return digest.hexdigest()
    # Each cell as "length:text" (null as "-"), so that no two different rows have the same spelling.
    cells = [
        f"coalesce(strlen({cell}) || ':' || {cell}, '-')"
        for cell in (_text(name, rows.schema.field(name).type) for name in names)
    ]
    with connect() as engine:
        engine.register("rows", rows)
        found = engine.sql(
            f"SELECT sha256(concat({', '.join(cells)})) AS h FROM rows ORDER BY h"
        ).to_arrow_table()
    for chunk in found.column("h").chunks:
        digest.update(_bytes(chunk))
    return digest.hexdigest()


def _bytes(chunk: pa.Array) -> bytes:
    """The concatenated texts of a string array without nulls, each of 64 characters: no separator is needed."""
    values = chunk.cast(pa.string())
    start, end = values.offset * 64, (values.offset + len(values)) * 64
    return memoryview(values.buffers()[2])[start:end].tobytes()


def _text(name: str, kind: pa.DataType) -> str:
    cell = '"' + name.replace('"', '""') + '"'
    if pa.types.is_timestamp(kind):
        return f"epoch_us({cell})::VARCHAR"
    if pa.types.is_floating(kind):
        # -0.0 and 0.0 are equal numbers.
        return f"(CASE WHEN {cell} = 0 THEN 0.0 ELSE {cell} END)::VARCHAR"
    return f"{cell}::VARCHAR"


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
