"""Which versions of tables are kept, and the one way the others' files go.

Kept are: the newest version; every version that was the newest at some time within the retention; what a registered
version, a run within its retention or a run under way was trained on; what stands in an online store. What none of
these holds may go. So may files that no commit names, once they are so old that no writer can be at work on them.

Nothing but files is deleted: the log stays whole, so that it tells of every version, also of those that are gone.
Killed half-way, the next call deletes the rest.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

from loopwright.data.lake import Lake, Layer
from loopwright.data.versions import store
from loopwright.data.versions.log import Log, read_log
from loopwright.kernel.clock import iso
from loopwright.kernel.errors import BadInput, Conflict
from loopwright.ledger import store as ledger_store

ORPHANS_AFTER = timedelta(days=7)
"""No write takes so long: a file that no commit names by then belongs to one that was cut short."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A version and why it stays."""

    version: int
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is deleted from one table, and what stays. `unnamed`: those of `files` that no commit names.

    `lost`: versions that somebody rests on and that the table does not have.
    """

    layer: Layer
    model: str
    table: str
    newest: int
    kept: tuple[Kept, ...]
    gone: tuple[int, ...]
    files: tuple[str, ...]
    unnamed: int
    bytes: int
    kept_bytes: int
    lost: tuple[Kept, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "layer": self.layer, "model": self.model, "table": self.table, "newest": self.newest,
            "kept": [{"version": one.version, "why": list(one.why)} for one in self.kept],
            "versions_gone": len(self.gone), "first_gone": list(self.gone[:20]), "files": len(self.files),
            "unnamed_files": self.unnamed, "bytes": self.bytes, "kept_bytes": self.kept_bytes,
            "lost": [{"version": one.version, "why": list(one.why)} for one in self.lost],
        }  # fmt: skip


def pinned(
    lake: Lake, model: str, *, now: datetime, retain: timedelta, runs_for: timedelta
) -> dict[tuple[str, int], tuple[str, ...]]:
    """(silver table, version) → who rests on it. Runs count for `runs_for`, snapshots nobody used for `retain`.

    Registered versions count as long as they are not deleted, runs under way always.
    """
    with lake.ledger.read() as conn:
        pins = store.pins(conn, model)
        standing, running = store.standing_snapshots(conn, model), store.running_snapshots(conn, model)
        online = store.materialized(conn, model)
        tables = [table for _, table in store.tables_of(conn, model)]
        gold = store.gold_versions(conn, model)
    found: dict[tuple[str, int], list[str]] = {}
    for pin in pins:
        used = pin.newest_use is not None and pin.newest_use >= _before(now, runs_for)
        if pin.snapshot in standing or pin.snapshot in running or used or pin.taken >= _before(now, retain):
            by = f": {_listed(pin.by)}" if pin.by else ""
            found.setdefault((pin.table, pin.version), []).append(f"snapshot {pin.snapshot[:12]}{by}")
    for table, version, view in online:
        for name in [table] if table is not None else tables:
            found.setdefault((name, version), []).append(f"online features of {view}")
    for table, version in gold.items():
        # A backfill compares it with the newest, to recompute no more than what changed.
        found.setdefault((table, version), []).append("the gold table")
    return {key: tuple(why) for key, why in found.items()}


def plan_vacuum(
    lake: Lake,
    layer: Layer,
    model: str,
    table: str,
    *,
    pins: Iterable[Kept],
    now: datetime,
    retain: timedelta,
    orphans_after: timedelta = ORPHANS_AFTER,
) -> Plan:
    """Say what may go from one table; deletes nothing. Raises Conflict when its log is not whole."""
    log = read_log(lake, layer, model, table)
    cutoff = _before(now, retain)
    kept = {log.newest: ["newest"]}
    for version in log.at:
        replaced = log.replaced_at(version)
        if replaced is not None and replaced >= cutoff:
            kept.setdefault(version, []).append("within the retention")
    lost = []
    for pin in pins:
        if pin.version in log.at:
            kept.setdefault(pin.version, []).extend(pin.why)
        else:
            lost.append(pin)
    versions = sorted(kept)
    there = _there(lake, layer, model, table)
    doomed, unnamed = [], 0
    for name, (_, changed) in there.items():
        if name in log.spans:
            if not log.holds(name, versions):
                doomed.append(name)
        elif changed < _before(now, orphans_after):
            doomed.append(name)
            unnamed += 1
    _cross_check(lake, layer, model, table, set(doomed), [log.newest, *(p.version for p in pins)], log)
    sizes = {name: size for name, (size, _) in there.items()}
    total = sum(sizes[name] for name in doomed)
    return Plan(
        layer, model, table, log.newest, tuple(Kept(v, tuple(kept[v])) for v in versions),
        tuple(v for v in sorted(log.at) if v not in kept), tuple(sorted(doomed)), unnamed, total,
        sum(sizes.values()) - total, tuple(lost),
    )  # fmt: skip


def carry_out(lake: Lake, plan: Plan) -> None:
    """Delete what the plan names; is idempotent. The caller holds the table's lock since before the plan was made."""
    files, root = lake.storage.filesystem(), _root(lake, plan.layer, plan.model, plan.table)
    for name in plan.files:
        try:
            files.delete_file(f"{root}/{name}")
        except FileNotFoundError:
            continue  # killed here before, or another vacuum was


def tables_in(lake: Lake, model: str | None = None) -> list[tuple[Layer, str, str]]:
    """(layer, model, table) of every table that lies in the lake."""
    from pyarrow import fs

    files = lake.storage.filesystem()
    found: list[tuple[Layer, str, str]] = []
    for layer in get_args(Layer):
        root = lake.storage.inner(lake.storage.path(layer))
        models = [model] if model is not None else _folders(files, fs, root)
        for name in models:
            found += [
                (layer, name, table)
                for table in _folders(files, fs, f"{root}/{name}")
                if lake.exists(layer, name, table)
            ]
    return sorted(found)


def vacuum(
    lake: Lake,
    *,
    model: str,
    now: datetime,
    retain: timedelta,
    runs_for: timedelta,
    announce: Callable[[Plan], None] | None = None,
    orphans_after: timedelta = ORPHANS_AFTER,
) -> list[Plan]:
    """Plan for every table of a model; with `announce`, delete too. It is told each plan before a file goes.

    `retain`: for how long a version is kept that nobody rests on. `runs_for`: for how long a run keeps what it was
    trained on. Raises BadInput for a negative time.
    """
    if retain < timedelta() or runs_for < timedelta() or orphans_after < timedelta(0):
        raise BadInput("a retention cannot be negative", where="vacuum", got=str(min(retain, runs_for)))
    plans = []
    for layer, name, table in tables_in(lake, model):
        with lake.locked(name, table):
            # Asked inside the lock: what was pinned while this waited counts.
            by_version = pinned(lake, name, now=now, retain=retain, runs_for=runs_for)
            pins = [Kept(v, why) for (t, v), why in by_version.items() if layer == "silver" and t == table]
            plan = plan_vacuum(
                lake, layer, name, table, pins=pins, now=now, retain=retain, orphans_after=orphans_after
            )
            if announce is not None and plan.files:
                announce(plan)
                carry_out(lake, plan)
        plans.append(plan)
    return plans


class Announce:
    """Writes the audit row of each plan that is carried out."""

    def __init__(self, lake: Lake, *, actor: str, now: datetime, retain: str) -> None:
        self.lake, self.actor, self.now, self.retain = lake, actor, now, retain

    def __call__(self, plan: Plan) -> None:
        payload = {
            "layer": plan.layer, "retain": self.retain, "files": len(plan.files), "bytes": plan.bytes,
            "unnamed_files": plan.unnamed, "versions_gone": len(plan.gone), "newest": plan.newest,
            "kept": [one.version for one in plan.kept][-200:], "at": iso(self.now),
        }  # fmt: skip
        with self.lake.ledger.write() as conn:
            ledger_store.append(
                conn, at=self.now, actor=self.actor, action="data.vacuum",
                subject=f"{plan.model}/{plan.table}", payload=payload,
            )  # fmt: skip


def _there(lake: Lake, layer: Layer, model: str, table: str) -> dict[str, tuple[int, datetime]]:
    """name → (bytes, last change) of the data files that lie in a table's place."""
    from pyarrow import fs

    root = _root(lake, layer, model, table)
    listed = lake.storage.filesystem().get_file_info(fs.FileSelector(root, recursive=True))
    found = {}
    for one in listed:
        name = one.path.removeprefix(root).lstrip("/")
        if one.type == fs.FileType.File and name.endswith(".parquet") and not name.startswith("_"):
            found[name] = (int(one.size), one.mtime.astimezone(UTC))
    return found


def _cross_check(
    lake: Lake, layer: Layer, model: str, table: str, doomed: set[str], versions: Sequence[int], log: Log
) -> None:
    """Ask Delta itself for the files of what must stay: two readings of the log have to agree before a file goes."""
    root = lake.path(layer, model, table)
    for version in sorted({v for v in versions if v in log.at}) if doomed else ():
        held = {
            uri.removeprefix("file://").removeprefix(root).lstrip("/")
            for uri in lake.open(layer, model, table, version).file_uris()
        }
        if held & doomed or not held <= set(log.spans):
            raise Conflict(
                "two readings of the table's log disagree; nothing was deleted", where=f"{layer}/{model}/{table}",
                got=f"version {version}", next="Report this, with the table's `_delta_log`",
            )  # fmt: skip


def _folders(files: Any, fs: Any, root: str) -> list[str]:
    listed = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    return sorted(one.base_name for one in listed if one.type == fs.FileType.Directory)


def _root(lake: Lake, layer: Layer, model: str, table: str) -> str:
    return lake.storage.inner(lake.path(layer, model, table))


def _before(now: datetime, span: timedelta) -> datetime:
    try:
        return now - span
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
