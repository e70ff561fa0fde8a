"""What is known about every entity at one moment: the rows that an online store holds, made by DuckDB from Parquet.

For each entity this is exactly what a frame holds for a question asked at that moment. Memory is bounded: what does
not fit lies in files beside the result. Times are whole microseconds since 1970 (UTC); names with `_` first are ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from loopwright.data.files import Files
from loopwright.features.definition import definition_digest
from loopwright.features.duck import DuckEngine, check_source, engine, register, rows_of, run
from loopwright.features.lookup import ZERO, look_up
from loopwright.features.module import FeatureModule, View
from loopwright.features.view import FeatureView, Spine, WindowedRate, as_mapping, quoted
from loopwright.kernel.clock import to_us
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput

MEMORY_LIMIT = "256MB"
_MICROSECOND = timedelta(microseconds=1)
_SQL_TYPES = {"float64": "DOUBLE", "int64": "BIGINT", "bool": "BOOLEAN", "string": "VARCHAR"}


@dataclass(frozen=True, slots=True)
class Layout:
    """What a view's packed rows mean, but for the types of the key, which only the rows tell.

    `names`: what the model's inputs take from the view, in the view's order. `lasting`: those that the TTL does not
    concern. `absent`: the values of an entity without a row. `definition`: digest of all that decides the rows;
    `basis`: of all that decides a value, whichever of the view's names the model takes.
    """

    view: str
    entity: tuple[str, ...]
    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    lasting: tuple[str, ...]
    ttl: int | None
    timed: bool
    static: bool
    absent: tuple[Any, ...]
    definition: str
    basis: str


@dataclass(frozen=True, slots=True)
class Change:
    """What may have changed since an earlier moment: `since`, and the files that came and went, by table.

    `event_since`: also the entities with a row that happened then or later.
    """

    since: datetime
    added: Mapping[str, Files] = field(default_factory=dict)
    removed: Mapping[str, Files] = field(default_factory=dict)
    event_since: datetime | None = None


def layout_of(module: FeatureModule, view: View, label_available_after: timedelta) -> Layout:
    """How rows of `view` are packed for this model."""
    if isinstance(view, WindowedRate):
        given = [view.name, *([view.count] if view.count else [])]
        nothing = {view.name: None if view.prior is None else float(view.prior.rate), view.count: 0}
        lasting, ttl, timed, static = given, None, False, False
        entity = list(as_mapping(view.on))
    else:
        given = list(view.names())
        nothing = {name: 0 for name, each in view.aggregations.items() if each.function in ZERO}
        lasting = list(view.aggregations)
        ttl = None if view.ttl is None else view.ttl // _MICROSECOND
        static = view.event_time is None
        timed = bool(as_mapping(view.columns)) and not static
        entity = [name.strip() for name in as_mapping(view.entity)]
    names = tuple(name for name in given if name in module.inputs)
    dtypes = tuple(module.inputs[name] for name in names)
    about: dict[str, Any] = {"view": definition_digest(view)}
    if isinstance(view, WindowedRate):
        spine = module.spine
        about["spine"] = [spine.table, spine.event_time, spine.label, spine.label_available_at]
        about["label_available_after"] = label_available_after / _MICROSECOND
    absent = tuple(_as_dtype(nothing.get(name), dtype) for name, dtype in zip(names, dtypes, strict=True))
    return Layout(
        view.name, tuple(entity), names, dtypes, tuple(n for n in names if n in lasting), ttl if timed else None, timed,
        static, absent, digest_json({**about, "names": list(zip(names, dtypes, strict=True))}), digest_json(about),
    )  # fmt: skip


def tables_of(module: FeatureModule, view: View) -> tuple[str, ...]:
    """The tables that a view is made from, its own first."""
    return view.tables() if isinstance(view, FeatureView) else (module.spine.table,)


class Newest:
    """One view of `files` (by table) at `as_of`, in a DuckDB of its own that spills into `spill`.

    Raises BadInput, naming the view, for SQL that fails.
    """

    def __init__(
        self,
        module: FeatureModule,
        view: View,
        files: Mapping[str, Files],
        *,
        as_of: datetime,
        label_available_after: timedelta,
        duck: DuckEngine,
    ) -> None:
        self.module, self.view, self.files = module, view, files
        self.duck, self.engine = duck, duck.con
        self.as_of = to_us(as_of)
        self.floor = max(label_available_after // _MICROSECOND, 1)
        self.where = f"{module.where}: view {view.name}"
        self.layout = layout_of(module, view, label_available_after)
        self.keys = [f"_key{n}" for n in range(len(self.layout.entity))]
        for name in tables_of(module, view):
            register(self.engine, name, files[name])
        self._rows = quoted(module.spine.table)
        if isinstance(view, FeatureView):
            self._rows = rows_of(self.engine, view, 0, files, self.where)
            check_source(self.engine, view, 0, self.where)
        self._lookups = 0

    def changed(self, change: Change) -> int:
        """Restrict what follows to the entities that `change` may concern; return how many."""
        keys = ", ".join(self.keys) or "1 AS _one"
        self._run(f"CREATE OR REPLACE TEMP VIEW _now AS {self._facts(self._rows)}")
        low, high = to_us(change.since), self.as_of
        passed = [f"_known > {low} AND _known <= {high}"]
        passed += [f"{time} > {low - width} AND {time} <= {high - width}" for time, width in self._windows()]
        if change.event_since is not None:
            passed.append(f"_t >= {to_us(change.event_since)}")
        parts = [f"SELECT {keys} FROM _now WHERE {' OR '.join(f'({one})' for one in passed)}"]
        if self._static:
            parts = []
        for kind, by_table in (("added", change.added), ("removed", change.removed)):
            for files in by_table.values():
                files.view(self.engine, f"_{kind}")
                self._run(f"CREATE OR REPLACE TEMP VIEW _{kind}_facts AS {self._facts(f'_{kind}')}")
                parts.append(f"SELECT {keys} FROM _{kind}_facts")
        rows = " UNION ALL ".join(parts) or f"SELECT {keys} FROM _now WHERE false"
        present = " AND ".join(f"{key} IS NOT NULL" for key in self.keys) or "true"
        self._run(f"CREATE OR REPLACE TEMP TABLE _changed AS SELECT DISTINCT * FROM ({rows}) WHERE {present}")
        return int(self.engine.execute("SELECT count(*) FROM _changed").fetchall()[0][0])

    def named(self, entities: Sequence[Sequence[Any]]) -> int:
        """Restrict what follows to these entities (values of the key's parts, in order); return how many."""
        self._run(f"CREATE OR REPLACE TEMP VIEW _now AS {self._facts(self._rows)}")
        keys = ", ".join(self.keys) or "1 AS _one"
        self._run(f"CREATE OR REPLACE TEMP TABLE _changed AS SELECT {keys} FROM _now LIMIT 0")
        if entities:
            marks = ", ".join("?" * max(len(self.keys), 1))
            try:
                self.engine.executemany(
                    f"INSERT INTO _changed VALUES ({marks})", [list(one) or [1] for one in entities]
                )
            except duckdb.Error as error:
                types = [str(row[1]) for row in self.engine.execute("DESCRIBE _changed").fetchall()]
                raise BadInput(
                    "an entity of another type than the rows'", where=self.where, got=str(error).splitlines()[0][:200],
                    wanted=", ".join(f"{n}: {t}" for n, t in zip(self.layout.entity, types, strict=False)),
                ) from None  # fmt: skip
        return len(entities)

    def count(self) -> int:
        """How many entities there are at `as_of`."""
        self._run(f"CREATE OR REPLACE TEMP VIEW _all AS {self._answer(restricted=False)}")
        return int(self.engine.execute("SELECT count(*) FROM _all").fetchall()[0][0])

    def write(self, into: Path, *, restricted: bool = False) -> int:
        """Write one row per entity to the Parquet file `into`: `_gone`, keys, `_t`, `_known`, values; return how many.

        `restricted`: of the changed entities only; those that have no row any more are `_gone`.
        """
        answer = self._answer(restricted=restricted)
        self._run(f"CREATE OR REPLACE TEMP VIEW _out AS {answer}")
        types = {row[0]: str(row[1]) for row in self.engine.execute("DESCRIBE _out").fetchall()}
        keys = [f"{_key_sql(key, types[key])} AS {key}" for key in self.keys]
        values = [
            f"CAST({quoted(name)} AS {_SQL_TYPES[dtype]}) AS {quoted(name)}"
            for name, dtype in zip(self.layout.names, self.layout.dtypes, strict=True)
        ]
        # Where rows lie in the order of their packed keys, a B-tree grows at its end only.
        order = ", ".join(
            f"octet_length(encode({key})), {key}" if "CAST" in _key_sql(key, types[key]) or types[key] == "VARCHAR"
            else key for key in self.keys
        )  # fmt: skip
        select = f"SELECT _gone, {', '.join([*keys, '_t', '_known', *values])} FROM _out"
        ordered = f"SELECT * FROM ({select}){f' ORDER BY {order}' if order else ''}"
        target = str(into).replace("'", "''")
        self._run(f"COPY ({ordered}) TO '{target}' (FORMAT parquet, ROW_GROUP_SIZE 50000, COMPRESSION lz4)")
        return int(self.engine.execute(f"SELECT count(*) FROM read_parquet('{target}')").fetchall()[0][0])

    @property
    def _static(self) -> bool:
        return isinstance(self.view, FeatureView) and self.view.event_time is None

    def _answer(self, *, restricted: bool) -> str:
        """SQL: `_gone`, keys, `_t`, `_known`, and what the view gives, one row per entity."""
        self._run(f"CREATE OR REPLACE TEMP VIEW _facts AS {self._facts(self._rows)}")
        facts = "_facts"
        if restricted:
            same = " AND ".join(f"_f.{key} = _c.{key}" for key in self.keys) or "true"
            facts = f"(SELECT _f.* FROM _facts AS _f SEMI JOIN _changed AS _c ON {same})"
        answer = self._rates(facts) if isinstance(self.view, WindowedRate) else self._newest(facts)
        if not restricted:
            return f"SELECT false AS _gone, * FROM ({answer})"
        same = " AND ".join(f"_c.{key} = _a.{key}" for key in self.keys) or "true"
        taken = ", ".join([*(f"_c.{key}" for key in self.keys), f"_a.* EXCLUDE ({', '.join(self.keys)})"])
        if not self.keys:
            taken = "_a.*"
        return (
            f"SELECT _a._here IS NULL AS _gone, {taken} FROM _changed AS _c "
            f"LEFT JOIN (SELECT true AS _here, * FROM ({answer})) AS _a ON {same}"
        )

    def _newest(self, facts: str) -> str:
        view = self.view
        assert isinstance(view, FeatureView)
        columns = [quoted(name) for name in as_mapping(view.columns)]
        keys = ", ".join(self.keys)
        known = f"SELECT * FROM {facts} WHERE _known <= {self.as_of}"
        if self._static:
            known = f"SELECT * FROM {facts}"
        if columns:
            times = [] if self._static else ["_t DESC", "_known DESC"]
            best = ", ".join([*times, *(f"{column} DESC NULLS LAST" for column in columns)])
            taken = ", ".join([keys, "_t", "_known", *columns])
            first = f"row_number() OVER (PARTITION BY {keys} ORDER BY {best}) = 1"
            newest = f"SELECT {taken} FROM ({known}) QUALIFY {first}"
            if not view.aggregations:
                return newest
        else:
            nothing = "CAST(NULL AS BIGINT)"
            newest = f"SELECT DISTINCT {keys}, {nothing} AS _t, {nothing} AS _known FROM ({known})"
        return self._with_aggregations(view, newest)

    def _with_aggregations(self, view: FeatureView, newest: str) -> str:
        """The aggregates are looked up by what builds frames, at one question per entity."""
        self._lookups += 1
        n = self._lookups
        self._run(f"CREATE TEMP TABLE _newest{n} AS {newest}")
        asked = ", ".join([*self.keys, f"CAST({self.as_of} AS BIGINT) AS _e"])
        self._run(f"CREATE TEMP TABLE _p{n} AS SELECT {asked} FROM _newest{n}")
        only = replace(view, columns=(), ttl=None, tests={})
        look_up(self.duck, only, n, self._rows, where=self.where)
        same = " AND ".join(f"_n.{key} = _g.{key}" for key in self.keys)
        given = ", ".join(f"_g.{quoted(name)}" for name in view.aggregations)
        return f"SELECT _n.*, {given} FROM _newest{n} AS _n JOIN _f{n} AS _g ON {same}"

    def _rates(self, facts: str) -> str:
        view = self.view
        assert isinstance(view, WindowedRate)
        keys = "".join(f"{key}, " for key in self.keys)
        inside = f"FILTER (WHERE _known > {self.as_of - view.window // _MICROSECOND})"
        total, count = f"coalesce(sum(_v) {inside}, 0)", f"count(*) {inside}"
        if view.prior is None:
            rate = f"CASE WHEN {count} > 0 THEN CAST({total} AS DOUBLE) / {count} END"
        else:
            weight = float(view.prior.weight)
            rate = f"(CAST({total} AS DOUBLE) + {float(view.prior.rate) * weight!r}) / ({count} + {weight!r})"
        counted = f", {count} AS {quoted(view.count)}" if view.count else ""
        grouped = f"GROUP BY {', '.join(self.keys)}" if self.keys else "HAVING count(*) > 0"
        return (
            f"SELECT {keys}CAST(NULL AS BIGINT) AS _t, CAST(NULL AS BIGINT) AS _known, {rate} AS {quoted(view.name)}"
            f"{counted} FROM {facts} WHERE _known <= {self.as_of} {grouped}"
        )

    def _windows(self) -> Iterator[tuple[str, int]]:
        """(time, width) of each window whose end a row passes when it falls out of it."""
        if isinstance(self.view, WindowedRate):
            yield "_known", self.view.window // _MICROSECOND
            return
        for aggregate in self.view.aggregations.values():
            if aggregate.window is not None:
                time = "_known" if aggregate.over == "available_at" else "_t"
                yield time, aggregate.window // _MICROSECOND

    def _facts(self, rows: str) -> str:
        """SQL: keys, `_t`, `_known` and values of the rows that can count; those with a null key cannot."""
        if isinstance(self.view, WindowedRate):
            return self._rate_facts(self.view, self.module.spine, rows)
        view = self.view
        entity = as_mapping(view.entity).values()
        selected = [f"({sql}) AS {key}" for sql, key in zip(entity, self.keys, strict=True)]
        selected += [f"({sql}) AS {quoted(name)}" for name, sql in as_mapping(view.columns).items()]
        present = [f"{key} IS NOT NULL" for key in self.keys]
        known = "CAST(NULL AS BIGINT)"
        if view.event_time is None:
            selected.append("CAST(NULL AS BIGINT) AS _t")
        else:
            after = view.available_after // _MICROSECOND
            selected.append(f"{_micros(view.event_time)} AS _t")
            present.append("_t IS NOT NULL")
            known = f"_t + {after}"
            if view.available_at is not None:
                selected.append(f"{_micros(view.available_at)} AS _a")
                known = f"CASE WHEN _a IS NOT NULL THEN greatest(_a, _t + {after}) END"
        return (
            f"SELECT *, {known} AS _known FROM (SELECT {', '.join(selected)} FROM {rows} AS {quoted(view.table)}) "
            f"WHERE {' AND '.join(present)}"
        )

    def _rate_facts(self, view: WindowedRate, spine: Spine, rows: str) -> str:
        if spine.event_time is None:
            raise BadInput(
                "a view in time needs a spine in time", where=self.where, wanted="spine.event_time"
            )
        value = spine.label if view.value is None else view.value
        at = view.available_at or (spine.label_available_at if view.available_at is None else None)
        selected = [
            f"({sql}) AS {key}" for sql, key in zip(as_mapping(view.on).values(), self.keys, strict=True)
        ]
        selected += [f"{_micros(spine.event_time)} AS _t", f"({value}) AS _value"]
        selected.append(f"{_micros(at)} AS _a" if at else f"{_micros(spine.event_time)} AS _a")
        present = "".join(f" AND {key} IS NOT NULL" for key in self.keys)
        keys = "".join(f"{key}, " for key in self.keys)
        return (
            f"SELECT {keys}_t, CASE WHEN _a IS NOT NULL THEN greatest(_a, _t + {self.floor}) END AS _known, "
            f"CAST(_value AS DECIMAL(38, 9)) AS _v FROM (SELECT {', '.join(selected)} FROM {rows} AS _t) "
            f"WHERE _value IS NOT NULL AND NOT isnan(CAST(_value AS DOUBLE)) AND _a IS NOT NULL{present}"
        )

    def _run(self, sql: str) -> None:
        run(self.engine, sql, self.where)


@contextmanager
def bounded(spill: Path, memory_limit: str = MEMORY_LIMIT) -> Iterator[DuckEngine]:
    """An engine that holds at most `memory_limit` and puts the rest into the folder `spill`."""
    with engine() as duck:
        spill.mkdir(parents=True, exist_ok=True)
        duck.con.execute(f"SET memory_limit = '{memory_limit}'")
        duck.con.execute("SET temp_directory = '" + str(spill).replace("'", "''") + "'")
        duck.con.execute("SET preserve_insertion_order = false")
        yield duck


def _micros(sql: str) -> str:
    return f"epoch_us(CAST(({sql}) AS TIMESTAMPTZ))"


def _key_sql(key: str, kind: str) -> str:
    """A part of the key as one of the four types that stores know."""
    if kind == "BOOLEAN" or kind == "VARCHAR":
        return key
    if kind in ("DOUBLE", "FLOAT") or kind.startswith("DECIMAL"):
        return f"{key}::DOUBLE + 0.0"
    if kind in (
        "TINYINT",
        "SMALLINT",
        "INTEGER",
        "BIGINT",
        "UTINYINT",
        "USMALLINT",
        "UINTEGER",
        "UBIGINT",
        "HUGEINT",
    ):
        return f"{key}::BIGINT"
    return f"CAST({key} AS VARCHAR)"


def _as_dtype(value: Any, dtype: str) -> Any:
    if value is None:
        return None
    return {"float64": float, "int64": int, "bool": bool, "string": str}[dtype](value)
