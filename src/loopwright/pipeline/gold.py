"""Gold: a model's training frame as the table gold/MODEL/frame, one row per question, one file per day.

Only the days whose rows are other than what lies there are written, in one commit; the files of all other days stay
the very files they were. Writing the same again writes nothing. The column `_day` is the date (UTC) of a row's event
time. A history of more than a thousand days is kept in a file per month.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from loopwright import __version__
from loopwright.data.duck import connect
from loopwright.data.files import Files
from loopwright.data.lake import Lake
from loopwright.data.parts import Part, storable
from loopwright.data.snapshot import Snapshot
from loopwright.features.definition import definition_digest
from loopwright.features.frame import Frame
from loopwright.features.module import FeatureModule
from loopwright.kernel.actor import Actor
from loopwright.kernel.clock import iso
from loopwright.kernel.digest import digest_json
from loopwright.ledger import store as ledger_store
from loopwright.project.spec import Project

TABLE = "frame"
DAYS = 1000
"""More days than this make a file per month."""
WRITERS = 4
MEMORY = "512MB"


@dataclass(frozen=True, slots=True)
class Gold:
    """What the table was made of last. `tables`: name → version of the silver table."""

    version: int
    snapshot: str
    definition: str
    tables: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return {"version": self.version, "snapshot": self.snapshot, "definition": self.definition,
                "tables": dict(self.tables)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GoldReport:
    """`rows` of the whole table; `days`: the days (or months) whose files were written or taken away, in order."""

    version: int
    rows: int
    days: tuple[str, ...]
    unchanged: int

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "rows": self.rows,
            "days": list(self.days),
            "unchanged": self.unchanged,
        }


def last_gold(lake: Lake, model: str) -> Gold | None:
    """What the model's gold table was made of; None when there is none, or nobody knows."""
    with lake.ledger.read() as conn:
        text = ledger_store.get_meta(conn, f"gold.{model}")
    version = lake.version("gold", model, TABLE)
    if text is None or version is None:
        return None
    known = json.loads(text)
    return Gold(version, known["snapshot"], known["definition"], known["tables"])


def definition_of(project: Project, module: FeatureModule) -> str:
    """Names what a frame is made of besides its data: spine, views and inputs, and when a label is known.

    The project's other files do not count: a changed contract or training script changes no row by itself.
    """
    spine = {field.name: _plain(getattr(module.spine, field.name)) for field in fields(module.spine)}
    return digest_json(
        {
            "spine": spine,
            "views": [definition_digest(view) for view in module.views],
            "inputs": list(module.inputs.items()),
            "task": module.task,
            "classes": list(module.classes),
            "label_after": project.spec.data.label.available_after.total_seconds(),
            "version": __version__,
        }
    )


def _plain(value: Any) -> Any:
    return (
        dict(value)
        if isinstance(value, Mapping)
        else list(value)
        if isinstance(value, tuple | list)
        else value
    )


def refresh_gold(
    project: Project,
    module: FeatureModule,
    lake: Lake,
    snapshot: Snapshot,
    frame: Frame,
    *,
    actor: Actor,
    now: datetime,
) -> GoldReport | None:
    """Make the frame of a snapshot the model's gold table; None when that is what it was made of last."""
    model, definition = project.spec.model, definition_of(project, module)
    last = last_gold(lake, model)
    if last is not None and (last.snapshot, last.definition) == (snapshot.digest, definition):
        return None
    tables = {name: int(entry["version"]) for name, entry in snapshot.tables.items()}
    return write_gold(
        lake, model, frame.table, snapshot=snapshot.digest, definition=definition, tables=tables, actor=actor, now=now
    )  # fmt: skip


def write_gold(
    lake: Lake,
    model: str,
    frame: pa.Table,
    *,
    snapshot: str,
    definition: str,
    tables: Mapping[str, int],
    actor: Actor,
    now: datetime,
    only: Sequence[date] | None = None,
) -> GoldReport:
    """Make `frame` the table's content; with `only`, its content of these days. Is idempotent and safe to kill.

    `frame`: as `Frame.table`, in event-time order; with `only`, all rows of `spans` of these days and no others.
    `definition` names the code that it was made by.
    """
    with lake.locked(model, TABLE):
        before = lake.version("gold", model, TABLE)
        rows = _with_day(frame)
        report = _write(lake, model, rows, before, only)
        made = Gold(report.version, snapshot, definition, tables)
        with lake.ledger.write() as conn:
            ledger_store.put_meta(conn, f"gold.{model}", json.dumps(made.to_json(), sort_keys=True))
            if report.version != before:
                ledger_store.append(
                    conn, at=now, actor=actor.name, action="data.gold", subject=f"{model}/{TABLE}",
                    payload={"model": model, "snapshot": snapshot, "version": report.version, "rows": report.rows,
                             "written": len(report.days), "unchanged": report.unchanged, "at": iso(now)},
                )  # fmt: skip
    return report


def spans(lake: Lake, model: str, days: Sequence[date]) -> list[tuple[date, date]]:
    """The whole files that `days` lie in, as spans [first, next): the days themselves, or their months."""
    known = lake.version("gold", model, TABLE)
    files = [] if known is None else list(_bounds(lake.open("gold", model, TABLE)))
    if not any(low != high for _, low, high in files):
        return [(day, day + timedelta(days=1)) for day in sorted(set(days))]
    firsts = sorted({day.replace(day=1) for day in days})
    return [(first, (first + timedelta(days=32)).replace(day=1)) for first in firsts]


def _write(
    lake: Lake, model: str, rows: pa.Table, before: int | None, only: Sequence[date] | None
) -> GoldReport:
    known = None if before is None else lake.open("gold", model, TABLE)
    files = [] if known is None else list(_bounds(known))
    monthly = len(_spans(rows, monthly=False)) > DAYS
    if only is not None and files:
        monthly = any(low != high for _, low, high in files)
    places = _places(files, monthly)
    if known is None or places is None or not pa.schema(known.schema()).equals(rows.schema):
        # There is nothing yet, or it has other columns or lies in other files: nothing of it stays.
        keys = list(_spans(rows, monthly))
        parts = _written(lake, model, rows, keys, monthly)
        version = lake.commit("gold", model, TABLE, rows.schema, parts, whole=True)
        return GoldReport(version, rows.num_rows, tuple(keys), 0)
    assert before is not None
    with connect() as engine:
        engine.execute(f"SET memory_limit = '{MEMORY}'")
        engine.register("new", rows)
        lake.files("gold", model, TABLE).view(engine, "old")
        new = _digests(engine, "new", rows.schema.names, monthly)
        old = _digests(engine, "old", rows.schema.names, monthly)
    if only is not None:
        considered = {_key(day, monthly) for day in only}
        new = {key: found for key, found in new.items() if key in considered} | {
            key: found for key, found in old.items() if key not in considered
        }
    changed = sorted(key for key in new.keys() | old.keys() if new.get(key) != old.get(key))
    total = sum(found[0] for found in new.values())
    if not changed:
        return GoldReport(before, total, (), len(old))
    parts = _written(lake, model, rows, changed, monthly)
    gone = [uri for key in changed for uri in places.get(key, ())]
    version = lake.commit("gold", model, TABLE, rows.schema, parts, remove=gone)
    return GoldReport(version, total, tuple(changed), len(old.keys() - set(changed)))


def _with_day(frame: pa.Table) -> pa.Table:
    """`frame` in types that Delta has, with `_day`."""
    day = pc.cast(frame.column("_event_time"), pa.date32())
    rows = frame.append_column("_day", day)
    # What a schema says besides names and types is not kept by the table, and would make every write seem new.
    plain = pa.schema([pa.field(f.name, f.type) for f in storable(rows.schema)])
    return rows.cast(plain)


def _key_sql(monthly: bool) -> str:
    return f"coalesce(strftime(_day, '{'%Y-%m' if monthly else '%Y-%m-%d'}'), '')"


def _key(day: date | None, monthly: bool) -> str:
    return "" if day is None else f"{day:%Y-%m}" if monthly else f"{day:%Y-%m-%d}"


def _digests(
    engine: duckdb.DuckDBPyConnection, view: str, names: Sequence[str], monthly: bool
) -> dict[str, tuple[Any, ...]]:
    """Per day: rows, and sums over two hashes of each row, which do not depend on the rows' order."""
    cells = ", ".join('"' + name.replace('"', '""') + '"' for name in sorted(names))
    found = engine.execute(
        f"SELECT {_key_sql(monthly)}, count(*), sum(hash({cells})::HUGEINT), sum(hash(1, {cells})::HUGEINT)"
        f" FROM {view} GROUP BY 1"
    ).fetchall()
    return {row[0]: tuple(row[1:]) for row in found}


def _places(
    files: Sequence[tuple[str, date | None, date | None]], monthly: bool
) -> dict[str, list[str]] | None:
    """Day (or month) → URIs of its files; None when a file holds more than one."""
    found: dict[str, list[str]] = {}
    for uri, low, high in files:
        least, most = _key(low, monthly), _key(high, monthly)
        if least != most:
            return None
        found.setdefault(least, []).append(uri)
    return found


def _bounds(table: DeltaTable) -> Iterator[tuple[str, date | None, date | None]]:
    actions = pa.table(table.get_add_actions(flatten=True))
    root = table.table_uri.rstrip("/").removeprefix("file://")
    names = actions.column_names
    nothing = [None] * actions.num_rows
    low = actions.column("min._day").to_pylist() if "min._day" in names else nothing
    high = actions.column("max._day").to_pylist() if "max._day" in names else nothing
    for path, least, most in zip(actions.column("path").to_pylist(), low, high, strict=True):
        yield f"{root}/{path}", least, most


def _written(lake: Lake, model: str, rows: pa.Table, keys: Sequence[str], monthly: bool) -> list[Part]:
    """New files with the rows of these days (or months), each of its own; on an error nothing is left of them."""
    spans = _spans(rows, monthly)
    writers = [(lake.writer("gold", model, TABLE, rows.schema), spans[key]) for key in keys if key in spans]

    def one(writer: Any, span: tuple[int, int]) -> list[Part]:
        writer.write(rows.slice(span[0], span[1] - span[0]))
        return list(writer.close())

    try:
        with ThreadPoolExecutor(WRITERS) as pool:
            return [part for parts in pool.map(lambda each: one(*each), writers) for part in parts]
    except BaseException:
        for writer, _ in writers:
            writer.drop()
        raise


def _spans(rows: pa.Table, monthly: bool) -> dict[str, tuple[int, int]]:
    """Where each day (or month) begins and ends; rows are in event-time order."""
    if not rows.num_rows:
        return {}
    column = rows.column("_day").combine_chunks()
    ends = column.run_end_encode() if hasattr(column, "run_end_encode") else pc.run_end_encode(column)
    found: dict[str, tuple[int, int]] = {}
    start = 0
    for day, end in zip(ends.values.to_pylist(), ends.run_ends.to_pylist(), strict=True):
        key = _key(day, monthly)
        found[key] = (found[key][0] if key in found else start, end)
        start = end
    return found


def gold_files(lake: Lake, model: str, version: int | None = None) -> Files:
    """The gold table's rows; raises NotFound when no run has written it yet."""
    return lake.files("gold", model, TABLE, version=version)
