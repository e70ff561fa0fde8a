"""Brings the online store up to what is known at a moment: everything anew, or what can have changed since.

Of each view, the rows to be written are first worked out into one file (`newest`), then put into the store batch by
batch, then published at once. Whatever is killed in between goes on from there: the file stays, the position lies with
the rows in the store. What stands is told by the store's own head; the ledger records what was done.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from loopwright.data.files import Files
from loopwright.data.lake import Lake
from loopwright.features import store as feature_store
from loopwright.features.definition import definition_digest
from loopwright.features.lease import Lease
from loopwright.features.module import FeatureModule, View
from loopwright.features.newest import MEMORY_LIMIT, Change, Layout, Newest, bounded, layout_of, tables_of
from loopwright.features.online import Head, OnlineStore
from loopwright.features.registry import remember_views
from loopwright.features.store import Materialization
from loopwright.features.view import FeatureView
from loopwright.kernel.actor import Actor
from loopwright.kernel.clock import Clock, from_us, iso, to_us
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput, LoopwrightError, NotFound, did_you_mean
from loopwright.kernel.ids import new_id
from loopwright.ledger import store as ledger_store

BATCH_ROWS = 10_000
_TOLD_EVERY = 2.0
_GIVEN_UP = 86_400.0
_KINDS = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64", pa.bool_(): "bool"}

Kind = Literal["full", "increment", "none"]


class Watch(Protocol):
    """Who hears how far it is; see `pipeline.progress`."""

    def step(self, name: str) -> None: ...

    def update(self, fraction: float, note: str = "") -> None: ...

    def done(self, summary: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Done:
    """What was done about one view, or would be. `entities`: written or deleted; `why`: of the kind."""

    view: str
    kind: Kind
    why: str
    as_of: datetime
    entities: int
    rows_online: int
    seconds: float = 0.0
    resumed: bool = False
    id: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON of the fields; times as datetimes."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Work:
    """What a materialisation works with. `staging`: a folder for files that outlive a killed process."""

    module: FeatureModule
    model: str
    lake: Lake
    store: OnlineStore
    actor: Actor
    clock: Clock
    staging: Path
    label_available_after: timedelta
    watch: Watch | None = None
    batch_rows: int = BATCH_ROWS
    memory_limit: str = MEMORY_LIMIT


@dataclass(frozen=True, slots=True)
class _Plan:
    kind: Kind
    why: str
    as_of: datetime
    change: Change | None = None
    named: tuple[tuple[Any, ...], ...] | None = None
    tables: Mapping[str, int] = field(default_factory=dict)


def materialize(
    work: Work,
    *,
    as_of: datetime | None = None,
    views: Sequence[str] | None = None,
    full: bool = False,
    since: datetime | None = None,
    entities: Sequence[Mapping[str, Any]] | None = None,
    dry_run: bool = False,
) -> list[Done]:
    """Bring the store up to what is known at `as_of` (now). Is idempotent, and may be killed at any moment.

    A view is written anew (`full`) when that is asked for, when it is not there yet, when its definition changed or
    `as_of` lies before what stands; else only the entities whose row can have changed are: by rows that became known
    or fell out of a window since, and by rows of the table that came or went. `since`: also entities with a row that
    happened then or later. `entities`: these alone, where a view's key is named in them, at the moment that stands.

    Raises NotFound for a view or a table that is not there, Conflict while another materialises the same view, and
    what the engines raise; what stands online stays as it was then.
    """
    known = {view.name: view for view in work.module.views}
    for name in views or ():
        if name not in known:
            raise NotFound(f"{work.model} has no view of this name", where=work.module.where, got=name,
                           wanted=", ".join(known), next=did_you_mean(name, known))  # fmt: skip
    moment = as_of or work.clock()
    if not dry_run:
        remember_views(
            work.module, model=work.model, ledger=work.lake.ledger, actor=work.actor, clock=work.clock
        )
    wanted = [known[name] for name in (views or known)]
    return [
        _one(work, view, moment, full=full, since=since, entities=entities, dry_run=dry_run)
        for view in wanted
        if layout_of(work.module, view, work.label_available_after).names
    ]


def _one(
    work: Work,
    view: View,
    as_of: datetime,
    *,
    full: bool,
    since: datetime | None,
    entities: Sequence[Mapping[str, Any]] | None,
    dry_run: bool,
) -> Done:
    layout = layout_of(work.module, view, work.label_available_after)
    if dry_run:
        head = work.store.heads(work.model).get(view.name)
        plan = _plan(work, view, layout, head, as_of, full, since, entities)
        return _foreseen(work, view, layout, head, plan)
    if work.watch:
        work.watch.step(f"{view.name} online")
    with Lease(work.lake.ledger, f"materialize {work.model}/{view.name}", work.clock):
        began = time.monotonic()
        left = _finish_left(work, view, layout, full=full)
        head = work.store.heads(work.model).get(view.name)
        plan = _plan(work, view, layout, head, as_of, full, since, entities)
        if left is not None and plan.kind == "none":
            done = left
        elif plan.kind == "none":
            assert head is not None
            done = Done(view.name, "none", plan.why, from_us(head.as_of), 0, head.rows)
        else:
            done = _build(work, view, layout, head, plan)
        seconds = time.monotonic() - began
    done = Done(
        done.view,
        done.kind,
        done.why,
        done.as_of,
        done.entities,
        done.rows_online,
        seconds,
        left is not None,
        done.id,
    )
    if work.watch:
        work.watch.done(_told(done))
    return done


def _told(done: Done) -> str:
    if done.kind == "none":
        return done.why
    speed = f", {done.entities / done.seconds:,.0f}/s" if done.seconds and done.entities > 10_000 else ""
    what = "full" if done.kind == "full" else "increment"
    return f"{done.entities:,} entities written ({what}: {done.why}{speed}); {done.rows_online:,} online"


def _plan(
    work: Work,
    view: View,
    layout: Layout,
    head: Head | None,
    as_of: datetime,
    full: bool,
    since: datetime | None,
    entities: Sequence[Mapping[str, Any]] | None,
) -> _Plan:
    tables = {}
    for name in tables_of(work.module, view):
        version = work.lake.version("silver", work.model, name)
        if version is None:
            raise NotFound(f"no table silver/{work.model}/{name}", where=f"view {view.name}",
                           next="Bring the data in first: loopwright run DIR")  # fmt: skip
        tables[name] = version
    whole = _why_whole(view, layout, head, as_of, full, tables)
    if whole or head is None:
        return _Plan("full", whole or "nothing is there yet", as_of, tables=tables)
    if entities is not None:
        names = layout.entity
        named = tuple(dict.fromkeys(
            tuple(one[name] for name in names) for one in entities if all(n in one for n in names)
        ))  # fmt: skip
        if not named:
            return _Plan("none", "no entity is named by its key", from_us(head.as_of), tables=tables)
        why = f"{len(named):,} entities asked for"
        return _Plan("increment", why, from_us(head.as_of), named=named, tables=tables)
    if tables == head.tables and to_us(as_of) == head.as_of and since is None:
        return _Plan("none", "nothing has changed", as_of, tables=tables)
    try:
        added, removed = _moved(work, head.tables, tables)
    except NotFound:
        return _Plan("full", "the table version that stands is gone", as_of, tables=tables)
    change = Change(from_us(head.as_of), added, removed, since)
    return _Plan("increment", "what can have changed since", as_of, change, tables=tables)


def _why_whole(
    view: View, layout: Layout, head: Head | None, as_of: datetime, full: bool, tables: Mapping[str, int]
) -> str:
    """Why a view is written anew; "" when it need not be."""
    if head is None:
        return "nothing is there yet"
    if full:
        return "asked for"
    if head.definition != layout.definition:
        return "the definition changed"
    if to_us(as_of) < head.as_of:
        return "an earlier moment than what stands"
    if isinstance(view, FeatureView) and view.source is not None and tables != head.tables:
        return "its source read changed tables"
    if set(tables) != set(head.tables):
        return "it reads other tables"
    return ""


def _moved(
    work: Work, before: Mapping[str, int], after: Mapping[str, int]
) -> tuple[dict[str, Files], dict[str, Files]]:
    """Files that came and went between table versions; raises NotFound where what went cannot be read any more."""
    added, removed = {}, {}
    for name, version in after.items():
        if version == before[name]:
            continue
        old = work.lake.files("silver", work.model, name, version=before[name])
        new = work.lake.files("silver", work.model, name, version=version)
        came = tuple(uri for uri in new.uris if uri not in set(old.uris))
        went = tuple(uri for uri in old.uris if uri not in set(new.uris))
        if lost := [uri for uri in went if "://" not in uri and not Path(uri).exists()]:
            raise NotFound("a file of an older version is gone", where=name, got=lost[0])
        if came:
            added[name] = Files(came, new.schema)
        if went:
            removed[name] = Files(went, new.schema)
    return added, removed


def _foreseen(work: Work, view: View, layout: Layout, head: Head | None, plan: _Plan) -> Done:
    rows = head.rows if head else 0
    if plan.kind == "none":
        return Done(view.name, "none", plan.why, plan.as_of, 0, rows)
    with bounded(work.staging / "spill", work.memory_limit) as duck:
        newest = _newest(work, view, plan, duck)
        count = newest.count() if plan.kind == "full" else _restrict(newest, plan)
    return Done(view.name, plan.kind, plan.why, plan.as_of, count, count if plan.kind == "full" else rows)


def _newest(work: Work, view: View, plan: _Plan, duck: Any) -> Newest:
    files = {
        name: work.lake.files("silver", work.model, name, version=version)
        for name, version in plan.tables.items()
    }
    return Newest(
        work.module,
        view,
        files,
        as_of=plan.as_of,
        label_available_after=work.label_available_after,
        duck=duck,
    )


def _restrict(newest: Newest, plan: _Plan) -> int:
    if plan.named is not None:
        return newest.named(plan.named)
    assert plan.change is not None
    return newest.changed(plan.change)


def _build(work: Work, view: View, layout: Layout, head: Head | None, plan: _Plan) -> Done:
    """Work out the rows, put them into the store and publish them."""
    one = Materialization(
        id=new_id("mat"), model=work.model, view=view.name, store=work.store.url, definition=layout.definition,
        table_version=next(iter(plan.tables.values())), as_of=plan.as_of, kind=plan.kind, state="running", rows=0,
        progress={
            "why": plan.why, "tables": dict(plan.tables), "actor": work.actor.name, "named": plan.named is not None,
            "view": definition_digest(view),
            "onto": head.generation if head is not None and plan.kind == "increment" else None,
        }, started_at=work.clock(), ended_at=None,
    )  # fmt: skip
    with work.lake.ledger.write() as conn:
        feature_store.start(conn, one)
    with _recorded(work, one):
        stage = _stage(work, one.id)
        partial = stage.with_suffix(".partial")
        with bounded(work.staging / "spill", work.memory_limit) as duck:
            newest = _newest(work, view, plan, duck)
            if plan.kind == "increment":
                _restrict(newest, plan)
            newest.write(partial, restricted=plan.kind == "increment")
        partial.replace(stage)
        return _put(work, layout, one, stage)


def _finish_left(work: Work, view: View, layout: Layout, *, full: bool) -> Done | None:
    """Go on with what was cut short, if it still fits; None when nothing was, or it is given up."""
    ledger = work.lake.ledger
    with ledger.read() as conn:
        one = feature_store.last(conn, work.model, view.name, work.store.url)
    if one is None or one.state == "done":
        _tidy(work, one)
        return None
    head = work.store.heads(work.model).get(view.name)
    if head is not None and head.build == one.id:  # it was published, and only its record is missing
        with ledger.write() as conn:
            feature_store.finish(conn, one.id, state="done", at=work.clock(), rows=one.rows)
        _stage(work, one.id).unlink(missing_ok=True)
        return Done(
            view.name, _kind(one), str(one.progress["why"]), one.as_of, one.rows, head.rows, id=one.id
        )
    onto = one.progress.get("onto")
    fits = (
        one.definition == layout.definition
        and _stage(work, one.id).exists()
        and (one.kind == "full" or not full)
    )
    if not fits or (onto is not None and (head is None or head.generation != onto)):
        with ledger.write() as conn:
            feature_store.finish(conn, one.id, state="failed", at=work.clock())
        _stage(work, one.id).unlink(missing_ok=True)
        return None
    with _recorded(work, one):
        return _put(work, layout, one, _stage(work, one.id))


def _kind(one: Materialization) -> Kind:
    return "full" if one.kind == "full" else "increment"


def _put(work: Work, layout: Layout, one: Materialization, stage: Path) -> Done:
    """Put the staged rows into the store from where it stands, publish them and close the record."""
    file = pq.ParquetFile(stage)
    total = int(file.metadata.num_rows)
    kinds = tuple(_KINDS[file.schema_arrow.field(f"_key{n}").type] for n in range(len(layout.entity)))
    head = work.store.heads(work.model).get(one.view)
    onto = one.progress.get("onto")
    if onto is not None and head is not None and head.kinds != kinds and total:
        raise BadInput(
            "the entity's type changed", where=f"view {one.view}", got=", ".join(kinds), wanted=", ".join(head.kinds),
            next=f"Write the view anew: loopwright features materialize {work.model} --view {one.view} --full",
        )  # fmt: skip
    if onto is not None and head is not None:
        kinds = head.kinds
    schema = int(digest_json({"definition": layout.definition, "kinds": kinds})[:8], 16)
    writing = work.store.begin(work.model, one.view, one.id, onto=onto)
    told = time.monotonic()
    for rows, gone, position in _packed(file, layout, schema, writing.position, work.batch_rows):
        writing.put(rows, gone, position)
        if work.watch:
            work.watch.update(position / max(total, 1), f"{position:,} of {total:,}")
        if time.monotonic() - told > _TOLD_EVERY:
            told = time.monotonic()
            with work.lake.ledger.write() as conn:
                feature_store.set_progress(conn, one.id, position, {**one.progress, "of": total})
    tables = dict(one.progress["tables"])
    if one.progress.get("named") and head is not None:
        tables = dict(head.tables)  # only some entities have been read at these versions
    writing.publish(
        Head(
            definition=layout.definition, schema=schema, generation=writing.generation, change=0, entity=layout.entity,
            kinds=kinds, columns=layout.names, dtypes=layout.dtypes, as_of=to_us(one.as_of), ttl=layout.ttl,
            lasting=layout.lasting, timed=layout.timed, static=layout.static, absent=layout.absent, tables=tables,
            written_at=to_us(work.clock()), build=one.id, view=str(one.progress["view"]),
            basis=layout.basis,
        )
    )  # fmt: skip
    now = work.clock()
    with work.lake.ledger.write() as conn:
        feature_store.finish(
            conn, one.id, state="done", at=now, rows=total, progress={**one.progress, "of": total}
        )
        ledger_store.append(
            conn, at=now, actor=work.actor.name, action="features.materialized", subject=f"{work.model}/{one.view}",
            payload={
                "id": one.id, "kind": one.kind, "rows": total, "as_of": iso(one.as_of), "store": one.store,
                "definition": one.definition, "tables": tables,
            },
        )  # fmt: skip
    stage.unlink(missing_ok=True)
    online = work.store.heads(work.model)[one.view].rows
    return Done(one.view, _kind(one), str(one.progress["why"]), one.as_of, total, online, id=one.id)


def _packed(
    file: pq.ParquetFile, layout: Layout, schema: int, start: int, batch_rows: int
) -> Iterator[tuple[list[tuple[bytes, bytes]], list[bytes], int]]:
    """(packed rows, keys to delete, position after them), from the row `start` on."""
    encode = msgspec.msgpack.Encoder().encode
    keys = [f"_key{n}" for n in range(len(layout.entity))]
    position = 0
    for batch in file.iter_batches(batch_rows):
        if position + batch.num_rows <= start:
            position += batch.num_rows
            continue
        skipped, position = max(start - position, 0), position + batch.num_rows
        batch = batch.slice(skipped)
        parts = [_plain(batch.column(name)) for name in keys]
        packed_keys = list(map(encode, zip(*parts, strict=True))) if parts else [encode(())] * batch.num_rows
        values = [_plain(batch.column(name)) for name in ("_t", "_known", *layout.names)]
        packed = map(encode, zip(repeat(schema, batch.num_rows), *values, strict=True))
        if not batch.column("_gone").true_count:
            yield list(zip(packed_keys, packed, strict=True)), [], position
            continue
        gone = batch.column("_gone").to_pylist()
        rows = [(key, row) for key, row, g in zip(packed_keys, packed, gone, strict=True) if not g]
        yield rows, [key for key, g in zip(packed_keys, gone, strict=True) if g], position


def _plain(column: pa.Array) -> list[Any]:
    """The values as Python's own; numbers go through numpy, which is several times faster."""
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        values = column.fill_null(0).to_numpy(zero_copy_only=False).tolist() if column.null_count else None
        if values is None:
            return list(column.to_numpy(zero_copy_only=False).tolist())
        for place in column.is_null().to_numpy(zero_copy_only=False).nonzero()[0].tolist():
            values[place] = None
        return list(values)
    return list(column.to_pylist())


class _recorded:  # noqa: N801 - reads as a word at its call site: with _recorded(...)
    """The record in the ledger: closed as failed, with the reason, when the body raises."""

    def __init__(self, work: Work, one: Materialization) -> None:
        self.work, self.one = work, one

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, Exception):
            why = str(error) if isinstance(error, LoopwrightError) else f"{type(error).__name__}: {error}"
            with self.work.lake.ledger.write() as conn:
                feature_store.finish(
                    conn, self.one.id, state="failed", at=self.work.clock(),
                    progress={**self.one.progress, "error": why[:500]},
                )  # fmt: skip


def _stage(work: Work, id: str) -> Path:
    return work.staging / f"{id}.parquet"


def _tidy(work: Work, last: Materialization | None) -> None:
    """Remove what the last one left when it was killed after its record was closed, and half-written files."""
    if last is not None:
        _stage(work, last.id).unlink(missing_ok=True)
    for path in work.staging.glob("*.partial"):
        if time.time() - path.stat().st_mtime > _GIVEN_UP:
            path.unlink(missing_ok=True)
