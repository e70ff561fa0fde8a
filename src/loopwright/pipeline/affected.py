"""Which days of a training frame can have changed when rows of its tables did: times, entities, each view's reach.

A row matters to questions from the moment it was known until its view has forgotten it, or until a newer row of the
same entity took its place, and to questions about its own entity only. Where that cannot be told (a view over a source
of its own, a subquery in the spine) every day counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from loopwright.data.duck import connect
from loopwright.data.files import Files
from loopwright.data.lake import Lake
from loopwright.data.sql import text as _text
from loopwright.features.module import FeatureModule
from loopwright.features.view import FeatureView, WindowedRate, as_mapping, quoted
from loopwright.kernel.errors import BadInput

_US = timedelta(microseconds=1)
DAY = timedelta(days=1) // _US
FOREVER = 2**62
MEMORY = "512MB"
ENTITIES = 10_000
"""Entities that are told by name; of more only their number is."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a silver table between two versions: rows that are gone, rows that came (a corrected row is both).

    `first`, `last`: event times (of the spine or the view) among them; None where the table has none.
    """

    table: str
    before: int | None
    after: int
    gone: int
    came: int
    first: datetime | None = None
    last: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "table": self.table, "before": self.before, "after": self.after, "gone": self.gone, "came": self.came,
            "first": self.first, "last": self.last,
        }  # fmt: skip


@dataclass(slots=True)
class Affected:
    """`days` None: all of them. `why` says so. `entities`: view → changed entities (None: too many to name)."""

    changes: list[Change] = field(default_factory=list)
    days: set[date] | None = field(default_factory=set)
    why: str = ""
    entities: dict[str, list[dict[str, Any]] | None] = field(default_factory=dict)

    def everything(self, why: str) -> None:
        self.days, self.why = None, self.why or why


def affected(
    lake: Lake,
    module: FeatureModule,
    model: str,
    before: Mapping[str, int],
    after: Mapping[str, int],
    *,
    label_available_after: timedelta,
    work: Path,
) -> Affected:
    """Compare the tables of `module` between versions `before` and `after`: what changed, and which days that reaches.

    `work`: a folder to spill to. Raises NotFound for a version that is gone.
    """
    found = Affected()
    with connect() as engine:
        engine.execute(f"SET memory_limit = '{MEMORY}'")
        engine.execute(f"SET temp_directory = {_text(str(work))}")
        changed = []
        for table in module.tables():
            if before.get(table) == after[table]:
                continue
            if table not in before:
                _view(engine, lake, model, table, after[table], "_new")
                found.changes.append(Change(table, None, after[table], 0, _count(engine, "_new")))
                found.everything(f"`{table}` was not among the tables before")
                continue
            change = _compare(engine, lake, model, table, before[table], after[table])
            if change.gone or change.came:
                changed.append(table)
                found.changes.append(_timed(engine, module, change))
        if not changed or found.days is None:
            return found
        opaque = _opaque(module, changed)
        if opaque:
            found.everything(opaque)
            return found
        if not module.spine.event_time:
            found.everything("the spine has no event time")
            return found
        _questions(engine, lake, model, module, after)
        floor = max(label_available_after // _US, 1)
        for index, view in enumerate(module.views):
            _reached(engine, lake, model, module, view, index, changed, (before, after), floor, found)
        if module.spine.table in changed:
            _own_days(engine, module, found)
    return found


def _compare(
    engine: duckdb.DuckDBPyConnection, lake: Lake, model: str, table: str, before: int, after: int
) -> Change:
    """Create `gone_TABLE` and `came_TABLE`: rows of one version that the other lacks; only files that differ are read.

    The lake's own columns do not count: a row that a later delivery brought again is the same row.
    """
    old = lake.files("silver", model, table, version=before)
    new = lake.files("silver", model, table, version=after)
    names = [n for n in new.schema.names if not n.startswith("_")]
    names += [n for n in old.schema.names if not n.startswith("_") and n not in names]
    schema = pa.schema([new.schema.field(n) if n in new.schema.names else old.schema.field(n) for n in names])
    left, right = set(old.uris) - set(new.uris), set(new.uris) - set(old.uris)
    Files(tuple(sorted(left)), schema).view(engine, "_left")
    Files(tuple(sorted(right)), schema).view(engine, "_right")
    gone, came = _named("gone", table), _named("came", table)
    engine.execute(
        f"CREATE OR REPLACE TEMP TABLE {gone} AS SELECT * FROM _left EXCEPT ALL SELECT * FROM _right"
    )
    engine.execute(
        f"CREATE OR REPLACE TEMP TABLE {came} AS SELECT * FROM _right EXCEPT ALL SELECT * FROM _left"
    )
    return Change(table, before, after, _count(engine, gone), _count(engine, came))


def _timed(engine: duckdb.DuckDBPyConnection, module: FeatureModule, change: Change) -> Change:
    """`change` with the first and last event time of its rows."""
    event = module.spine.event_time if change.table == module.spine.table else None
    for view in module.views:
        if isinstance(view, FeatureView) and view.table == change.table and view.source is None:
            event = event or view.event_time
    if event is None:
        return change
    both = " UNION ALL ".join(
        f"SELECT {_micros(event)} AS t FROM {_named(side, change.table)} AS _t" for side in ("gone", "came")
    )
    first, last = engine.execute(f"SELECT min(t), max(t) FROM ({both})").fetchall()[0]
    return Change(
        change.table, change.before, change.after, change.gone, change.came, _moment(first), _moment(last)
    )


def _questions(
    engine: duckdb.DuckDBPyConnection, lake: Lake, model: str, module: FeatureModule, after: Mapping[str, int]
) -> None:
    """Create `_questions`: the spine's rows as they stand, their event times and what each view looks them up by."""
    spine = module.spine
    assert spine.event_time is not None
    _view(engine, lake, model, spine.table, after[spine.table], "_spine")
    columns = [f"{_micros(spine.event_time)} AS _e"]
    for index, view in enumerate(module.views):
        columns += [f"({sql}) AS _q{index}_{n}" for n, sql in enumerate(_asked(view))]
    engine.execute(
        f"CREATE TEMP VIEW _questions AS SELECT {', '.join(columns)} FROM _spine AS _t"
        f" WHERE coalesce(CAST(({spine.where or 'true'}) AS BOOLEAN), FALSE)"
    )


def _reached(
    engine: duckdb.DuckDBPyConnection,
    lake: Lake,
    model: str,
    module: FeatureModule,
    view: FeatureView | WindowedRate,
    index: int,
    changed: Sequence[str],
    versions: tuple[Mapping[str, int], Mapping[str, int]],
    floor: int,
    found: Affected,
) -> None:
    """Add the days on which a question can see another answer of `view`."""
    table = view.table if isinstance(view, FeatureView) else module.spine.table
    if table not in changed:
        return
    keys = len(_asked(view))
    spans = []
    for side, version in (("gone", versions[0][table]), ("came", versions[1][table])):
        if isinstance(view, WindowedRate):
            spans.append(_rate_spans(module, view, _named(side, table), floor))
        else:
            _view(engine, lake, model, table, version, f"_all_{side}")
            spans.append(_view_spans(view, _named(side, table), f"_all_{side}"))
    grouped = ", ".join(f"_k{n}" for n in range(keys))
    # Spans that begin on one day are one: their number stays that of entities and days.
    engine.execute(
        f"CREATE OR REPLACE TEMP TABLE _spans AS SELECT {grouped}{', ' if grouped else ''}min(_lo) AS _lo,"
        f" max(_hi) AS _hi FROM ({' UNION ALL '.join(spans)}) WHERE _lo IS NOT NULL AND _hi > _lo"
        f" GROUP BY {grouped}{', ' if grouped else ''}_lo // {DAY}"
    )
    same = "".join(f" AND q._q{index}_{n} = s._k{n}" for n in range(keys))
    days = engine.execute(
        "SELECT DISTINCT CAST(make_timestamp(q._e) AS DATE) FROM _questions q"
        f" JOIN _spans s ON q._e >= s._lo AND q._e < s._hi{same}"
    ).fetchall()
    assert found.days is not None
    found.days |= {day for (day,) in days}
    if isinstance(view, WindowedRate) or isinstance(view.entity, Mapping):
        found.entities[view.name] = None  # looked up by expressions: nobody can name them in words
        return
    names = list(as_mapping(view.entity))
    rows = engine.execute(f"SELECT DISTINCT {grouped} FROM _spans LIMIT {ENTITIES + 1}").fetchall()
    few = len(rows) <= ENTITIES
    found.entities[view.name] = [dict(zip(names, row, strict=True)) for row in rows] if few else None


def _view_spans(view: FeatureView, rows: str, everything: str) -> str:
    """SQL of (_k…, _lo, _hi) for the changed `rows` of a view's table: when each could be the answer, or part of it."""
    entity = list(as_mapping(view.entity).values())
    keys = [f"({sql}) AS _k{n}" for n, sql in enumerate(entity)]
    if view.event_time is None:
        return f"SELECT {', '.join(keys)}, {-FOREVER} AS _lo, {FOREVER} AS _hi FROM {rows} AS _t"
    after = view.available_after // _US
    happened = _micros(view.event_time)
    known = f"{happened} + {after}"
    if view.available_at is not None:
        known = f"greatest({_micros(view.available_at)}, {known})"
    inner = f"SELECT {', '.join(keys)}, {happened} AS _h, {known} AS _lo FROM {rows} AS _t"
    names = [f"_k{n}" for n in range(len(entity))]
    endings = [
        f"{FOREVER}" if a.window is None
        else f"{'_lo' if a.over == 'available_at' else '_h'} + {a.window // _US}"
        for a in view.aggregations.values()
    ]  # fmt: skip
    if as_mapping(view.columns):
        lasting = f"_h + {view.ttl // _US}" if view.ttl is not None else f"{FOREVER}"
        if view.available_at is None:
            # The next row of the entity takes over once it is known; with a moment of its own it may never be.
            others = ", ".join([*keys, f"{happened} AS _h"])
            inner = (
                f"SELECT a.*, min(b._h) AS _next FROM ({inner}) a LEFT JOIN (SELECT DISTINCT {others} FROM {everything}"
                f" AS _t) b ON b._h > a._h{''.join(f' AND a.{n} = b.{n}' for n in names)}"
                f" GROUP BY {', '.join(f'a.{n}' for n in [*names, '_h', '_lo'])}"
            )
            lasting = f"least({lasting}, coalesce(_next + {after}, {FOREVER}))"
        endings.append(lasting)
    return f"SELECT {', '.join(names)}, _lo, greatest({', '.join(endings)}) AS _hi FROM ({inner})"


def _rate_spans(module: FeatureModule, view: WindowedRate, rows: str, floor: int) -> str:
    spine = module.spine
    assert spine.event_time is not None
    event = _micros(spine.event_time)
    known = view.available_at or spine.label_available_at
    known_at = f"{event} + {floor}"
    if known is not None:
        known_at = f"CASE WHEN {_micros(known)} IS NOT NULL THEN greatest({_micros(known)}, {known_at}) END"
    keys = [f"({sql}) AS _k{n}" for n, sql in enumerate(as_mapping(view.on).values())]
    selected = ", ".join([*keys, f"{known_at} AS _lo"])
    names = "".join(f"_k{n}, " for n in range(len(keys)))
    return f"SELECT {names}_lo, _lo + {view.window // _US} AS _hi FROM (SELECT {selected} FROM {rows} AS _t)"


def _own_days(engine: duckdb.DuckDBPyConnection, module: FeatureModule, found: Affected) -> None:
    """Add the days of questions that came or went themselves."""
    spine = module.spine
    assert spine.event_time is not None and found.days is not None
    for side in ("gone", "came"):
        days = engine.execute(
            f"SELECT DISTINCT CAST(make_timestamp({_micros(spine.event_time)}) AS DATE)"
            f" FROM {_named(side, spine.table)} AS _t WHERE coalesce(CAST(({spine.where or 'true'}) AS BOOLEAN), FALSE)"
        ).fetchall()
        found.days |= {day for (day,) in days if day is not None}


def _asked(view: FeatureView | WindowedRate) -> list[str]:
    """What a question is looked up by: SQL over the spine's table."""
    if isinstance(view, WindowedRate):
        return list(as_mapping(view.on).values())
    plain = not isinstance(view.entity, Mapping)
    return [quoted(name) if plain else name for name in as_mapping(view.entity)]


def _opaque(module: FeatureModule, changed: Sequence[str]) -> str:
    """Why it cannot be told what a change reaches; "" when it can."""
    spine = module.spine
    for view in module.views:
        if isinstance(view, FeatureView) and view.source is not None and set(view.tables()) & set(changed):
            return f"the view {view.name} makes rows of its own from {', '.join(view.tables())}"
    texts = {"label": spine.label, "event_time": spine.event_time, "where": spine.where, "unit": spine.unit,
             "label_available_at": spine.label_available_at}  # fmt: skip
    texts |= as_mapping(spine.key) | as_mapping(spine.inputs)
    for view in module.views:
        named = view.entity if isinstance(view, FeatureView) else view.on
        moment = view.event_time if isinstance(view, FeatureView) else view.value
        given = [moment, view.available_at, *_asked(view), *as_mapping(named).values()]
        if isinstance(view, FeatureView):
            given += as_mapping(view.columns).values()
            given += [text for a in view.aggregations.values() for text in (a.value, a.where)]
        texts |= {f"view {view.name}, {n}": text for n, text in enumerate(given)}
    for name, text in texts.items():
        if text is not None and not _looks_at_its_row_only(text):
            return f"`{name}` of the features looks beyond its own row"
    if module.task == "multiclass" and not module.classes and spine.table in changed:
        return "the classes are read off the labels"
    return ""


def _looks_at_its_row_only(sql: str) -> bool:
    try:
        tree = sqlglot.parse_one(sql, read="duckdb")
    except (SqlglotError, RecursionError):
        return False
    return tree.find(exp.Window, exp.Select, exp.Subquery, exp.AggFunc) is None


def _view(
    engine: duckdb.DuckDBPyConnection, lake: Lake, model: str, table: str, version: int, name: str
) -> None:
    files = lake.files("silver", model, table, version=version)
    files.view(engine, name, [n for n in files.schema.names if not n.startswith("_")])


def _micros(sql: str) -> str:
    return f"epoch_us(CAST(({sql}) AS TIMESTAMPTZ))"


def _named(side: str, table: str) -> str:
    return quoted(f"_{side}_{table}")


def _count(engine: duckdb.DuckDBPyConnection, name: str) -> int:
    return int(engine.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0])


def _moment(micros: int | None) -> datetime | None:
    if micros is None:
        return None
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(micros))
    except OverflowError:
        raise BadInput("a time that no calendar holds", got=micros) from None
