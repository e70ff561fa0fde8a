"""Builds frames: every spine row with what was known at its moment, never later. On DuckDB.

Times are held as whole microseconds since 1970 (UTC) throughout, so comparisons are exact. Each view is
looked up once per distinct (keys, event time), see `lookup`; a windowed rate is the difference of two
points on the running sum of its values, ordered by when they became known. Internal relations and columns
start with `_`.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import duckdb
import pyarrow as pa

from loopwright.features.duck import (
    DuckEngine,
    Tables,
    check_source,
    engine,
    register,
    require_tables,
    rows_of,
    run,
)
from loopwright.features.frame import Frame
from loopwright.features.lookup import answers, asked_side, look_up
from loopwright.features.module import FeatureModule, check_inputs, load_features
from loopwright.features.view import FeatureView, WindowedRate, as_mapping, quoted
from loopwright.features.viewtests import ViewTestResult, require_passed, run_tests, with_results
from loopwright.kernel.clock import to_us
from loopwright.kernel.errors import BadInput

__all__ = ["FeatureModule", "Frame", "build_frame", "load_features"]

_MICROSECOND = timedelta(microseconds=1)
_SQL_TYPES = {"float64": "DOUBLE", "int64": "BIGINT", "bool": "BOOLEAN", "string": "VARCHAR"}
_ARROW_TYPES = {"float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_(), "string": pa.string()}


def build_frame(
    module: FeatureModule,
    tables: Tables,
    *,
    label_available_after: timedelta,
    until: datetime | None = None,
    since: datetime | None = None,
    require_label: bool = False,
    classes: Sequence[str] = (),
    failed_tests: Literal["refuse", "tell"] = "refuse",
    memory_limit: str | None = None,
) -> Frame:
    """One row per spine row with since <= event time < until, in event-time order; nothing in it comes from
    later.

    A label is known from max(label_available_at, event time + `label_available_after`, one microsecond after
    the event) on. Labels not known by `until` are null; `require_label` leaves such rows out. Rows before
    `since` still serve as history. `classes`: the classes of an existing model; a label outside them is an
    error. Raises BadInput for tables or columns that are missing, ids that are not unique and event times
    that are null; Refused where a view fails a test that blocks, unless `failed_tests` is "tell": results are
    in `Frame.tests` either way. Tables that are `Files` are read as far as they are needed; what of them does
    not fit in `memory_limit` ("512MB") goes to files.
    """
    check_inputs(module)
    require_tables(module.tables(), tables, module.where)
    with engine(memory_limit=memory_limit) as duck:
        con = duck.con
        for name in module.tables():
            register(con, name, tables[name], ordered=name == module.spine.table and not module.spine.key)
        floor = max(label_available_after // _MICROSECOND, 1)
        label_type = _spine_rows(con, module, floor, since, until)
        joins = [_join_view(duck, module, tables, index, floor) for index in range(len(module.views))]
        tested = _test_views(con, module, joins)
        if failed_tests == "refuse":
            require_passed(tested, module.where)
        labels, known = _encode_labels(con, module, label_type, tuple(classes) or module.classes)
        table = _collect(con, module, joins, labels, require_label)
    return Frame(with_results(table, tested), dict(module.inputs), known)


def run_view_tests(
    module: FeatureModule, tables: Tables, *, label_available_after: timedelta
) -> tuple[ViewTestResult, ...]:
    """How the tests of all views go over the frame of all rows; none of them raises."""
    frame = build_frame(module, tables, label_available_after=label_available_after, failed_tests="tell")
    return frame.tests


def _micros(sql: str) -> str:
    return f"epoch_us(CAST(({sql}) AS TIMESTAMPTZ))"


def _spine_rows(
    con: duckdb.DuckDBPyConnection,
    module: FeatureModule,
    floor: int,
    since: datetime | None,
    until: datetime | None,
) -> str:
    """Create `_rows`: every row of the spine's table, `_wanted` or history only. Return the label's type."""
    spine, where = module.spine, f"{module.where}: spine"
    columns = ", ".join(_raw_columns(module))
    run(con, f"CREATE TEMP TABLE _raw AS SELECT {columns} FROM {quoted(spine.table)} AS _t", where)
    if spine.event_time:
        lost = con.execute("SELECT count(*) FROM _raw WHERE _e IS NULL AND _wanted").fetchall()[0][0]
        if lost:
            raise BadInput(
                f"{lost} rows have no event time",
                where=where,
                wanted=f"`{spine.event_time}` never null",
                next="Make it required in the contract, or leave such rows out with `where`.",
            )
    limits = ["_wanted"]
    limits += [f"_e >= {to_us(since)}"] if since and spine.event_time else []
    limits += [f"_e < {to_us(until)}"] if until and spine.event_time else []
    # A label that nobody can date is never known; without event times there is nothing to date it by.
    at = (
        f"CASE WHEN _known IS NOT NULL THEN greatest(_known, _e + {floor}) END"
        if spine.event_time
        else "_known"
    )
    untimed = not spine.event_time and not spine.label_available_at
    seen = "true" if untimed else f"_at IS NOT NULL{f' AND _at <= {to_us(until)}' if until else ''}"
    kept = (
        "_id"
        if spine.key
        else (
            "_id || CASE WHEN row_number() OVER (PARTITION BY _id ORDER BY _n) > 1 "
            "THEN '-' || row_number() OVER (PARTITION BY _id ORDER BY _n) ELSE '' END AS _id"
        )
    )
    con.execute(
        f"CREATE TEMP TABLE _rows AS SELECT * EXCLUDE (_known, _wanted, _id), {kept}, {at} AS _at, "
        f"coalesce({' AND '.join(limits)}, false) AS _wanted, "
        f"_label IS NOT NULL AND lower(CAST(_label AS VARCHAR)) <> 'nan' AND ({seen}) AS _seen FROM _raw"
    )
    con.execute("DROP TABLE _raw")
    _check_unique(con, where)
    found = con.execute("SELECT typeof(_label) FROM _rows LIMIT 1").fetchone()
    return str(found[0]) if found else "DOUBLE"


def _raw_columns(module: FeatureModule) -> list[str]:
    """SELECT items: the row's number, times, id, unit and label, its inputs, and what the views ask of it."""
    spine = module.spine
    parts = [f"coalesce(CAST(({sql}) AS VARCHAR), '')" for sql in as_mapping(spine.key).values()]
    event = _micros(spine.event_time) if spine.event_time else "CAST(NULL AS BIGINT)"
    label = f"({spine.label})" if spine.label else "CAST(NULL AS DOUBLE)"
    known = _micros(spine.label_available_at) if spine.label_available_at else "_e"
    columns = [
        "row_number() OVER () AS _n",
        f"{event} AS _e",
        f"{' || chr(45) || '.join(parts) if parts else 'md5(CAST(_t AS VARCHAR))'} AS _id",
        f"{f'CAST(({spine.unit}) AS VARCHAR)' if spine.unit else 'CAST(NULL AS VARCHAR)'} AS _unit",
        f"{label} AS _label",
        f"{known} AS _known",
        f"coalesce(CAST(({spine.where or 'true'}) AS BOOLEAN), false) AS _wanted",
        *(f"({sql}) AS {quoted('_in_' + name)}" for name, sql in as_mapping(spine.inputs).items()),
    ]
    for index, view in enumerate(module.views):
        if isinstance(view, FeatureView):
            columns += [f"({sql}) AS _k{index}_{n}" for n, sql in enumerate(asked_side(view))]
            continue
        columns += [f"({sql}) AS _k{index}_{n}" for n, sql in enumerate(as_mapping(view.on).values())]
        if view.value is not None:
            columns.append(f"({view.value}) AS _v{index}")
        if view.available_at is not None:
            columns.append(f"{_micros(view.available_at)} AS _a{index}")
    return columns


def _check_unique(con: duckdb.DuckDBPyConnection, where: str) -> None:
    twice = con.execute(
        "SELECT _id, count(*) FROM _rows WHERE _wanted GROUP BY _id HAVING count(*) > 1 ORDER BY 1 LIMIT 3"
    ).fetchall()
    if twice:
        raise BadInput(
            "the key does not name rows uniquely",
            where=f"{where}.key",
            got=", ".join(f"{name} ({count} rows)" for name, count in twice),
            wanted="one row per key",
            next="Add a column to the key.",
        )


def _join_view(duck: DuckEngine, module: FeatureModule, tables: Tables, index: int, floor: int) -> str:
    """Create `_f{index}` with the view's columns per distinct (keys, event time); return the JOIN that adds
    it."""
    view, con = module.views[index], duck.con
    where = f"{module.where}: view {view.name}"
    timed = isinstance(view, WindowedRate) or view.event_time is not None
    if timed and not module.spine.event_time:
        raise BadInput(
            "a view in time needs a spine in time",
            where=where,
            wanted="spine.event_time",
            next="Give the spine one.",
        )
    names = [
        f"_k{index}_{n}"
        for n in range(len(as_mapping(view.entity if isinstance(view, FeatureView) else view.on)))
    ]
    probe = ", ".join([*(f"{name} AS {_k(n)}" for n, name in enumerate(names)), *(["_e"] if timed else [])])
    keys = [_k(n) for n in range(len(names))]
    con.execute(f"CREATE TEMP TABLE _p{index} AS SELECT DISTINCT {probe or '0'} FROM _rows WHERE _wanted")
    if isinstance(view, WindowedRate):
        _windowed_rate(con, view, index, keys, floor, where)
    else:
        rows = rows_of(con, view, index, tables, where)
        check_source(con, view, index, where)
        look_up(duck, view, index, rows, where=where, status=bool(view.tests))
    same = [f"_rows.{name} = _f{index}.{key}" for name, key in zip(names, keys, strict=True)]
    same += [f"_rows._e = _f{index}._e"] if timed else []
    # Rows with a null key find no partner here and get the view's answer for "nothing known" in `_collect`.
    return f"LEFT JOIN _f{index} ON {' AND '.join(same)}"


def _k(number: int) -> str:
    return f"_key{number}"


def _windowed_rate(
    con: duckdb.DuckDBPyConnection, view: WindowedRate, index: int, keys: list[str], floor: int, where: str
) -> None:
    value = "_label" if view.value is None else f"_v{index}"
    at = (
        "_at"
        if view.available_at is None
        else f"CASE WHEN _a{index} IS NOT NULL THEN greatest(_a{index}, _e + {floor}) END"
    )
    grouped = ", ".join(keys)
    columns = ", ".join(f"_k{index}_{n} AS {key}" for n, key in enumerate(keys))
    comma = ", " if keys else ""
    present = "".join(f" AND {key} IS NOT NULL" for key in keys)
    over = f"OVER ({f'PARTITION BY {grouped} ' if keys else ''}ORDER BY _at ROWS UNBOUNDED PRECEDING)"
    run(
        con,
        f"""CREATE TEMP TABLE _c{index} AS
        WITH seen AS (
            SELECT {columns}{comma} {at} AS _at, CAST({value} AS DECIMAL(38, 9)) AS _v FROM _rows
            WHERE {value} IS NOT NULL AND NOT isnan(CAST({value} AS DOUBLE))
        ), moments AS (
            SELECT {grouped}{comma} _at, sum(_v) AS _s, count(*) AS _n FROM seen
            WHERE _at IS NOT NULL{present} GROUP BY {grouped}{comma} _at
        )
        SELECT {grouped}{comma} _at, CAST(sum(_s) {over} AS DECIMAL(38, 9)) AS _s,
            CAST(sum(_n) {over} AS BIGINT) AS _n
        FROM moments""",
        where,
    )
    same = "".join(f" AND _p{index}.{key} = {{0}}.{key}" for key in keys)
    window = view.window // _MICROSECOND
    total, count = (
        "(coalesce(_new._s, 0) - coalesce(_old._s, 0))",
        "(coalesce(_new._n, 0) - coalesce(_old._n, 0))",
    )
    if view.prior is None:
        rate = f"CASE WHEN {count} > 0 THEN CAST({total} AS DOUBLE) / {count} END"
    else:
        weight = float(view.prior.weight)
        rate = f"(CAST({total} AS DOUBLE) + {float(view.prior.rate) * weight!r}) / ({count} + {weight!r})"
    con.execute(
        f"""CREATE TEMP TABLE _f{index} AS
        SELECT _p{index}.*, {rate} AS _rate, {count} AS _count FROM _p{index}
        ASOF LEFT JOIN _c{index} AS _new ON _p{index}._e >= _new._at{same.format("_new")}
        ASOF LEFT JOIN _c{index} AS _old ON _p{index}._e - {window} >= _old._at{same.format("_old")}"""
    )


def _test_views(
    con: duckdb.DuckDBPyConnection, module: FeatureModule, joins: Sequence[str]
) -> list[ViewTestResult]:
    results = []
    for index, view in enumerate(module.views):
        if isinstance(view, FeatureView) and view.tests:
            given = ", ".join(
                f"{sql} AS {quoted(name)}"
                for name, sql in zip(view.names(), answers(view, f"_f{index}"), strict=True)
            )
            rows = f"SELECT _rows._id AS _name, _rows._n AS _order, {given} FROM _rows {joins[index]} WHERE _wanted"
            results += run_tests(con, view, rows, f"{module.where}: view {view.name}")
    return results


def _encode_labels(
    con: duckdb.DuckDBPyConnection, module: FeatureModule, label_type: str, classes: tuple[str, ...]
) -> tuple[str, tuple[str, ...]]:
    """Return the SQL of the label as a number and the classes behind it (none for plain numbers)."""
    where = f"{module.where}: spine.label"
    text = label_type == "VARCHAR" or label_type.startswith("ENUM")
    if module.task == "regression" or (module.task == "binary" and not text and not classes):
        if text:
            raise BadInput("the label is text", where=where, wanted=f"a number for {module.task}")
        if module.task == "binary":
            odd = con.execute(
                "SELECT DISTINCT _label FROM _rows "
                "WHERE _seen AND CAST(_label AS DOUBLE) NOT IN (0, 1) LIMIT 3"
            )
            if others := [row[0] for row in odd.fetchall()]:
                raise BadInput(
                    "a binary label is neither 0 nor 1", where=where, got=others, wanted="0, 1, true or false"
                )
        return "CAST(_label AS DOUBLE)", ()
    found = [
        row[0]
        for row in con.execute("SELECT DISTINCT CAST(_label AS VARCHAR) FROM _rows WHERE _seen").fetchall()
    ]
    known = classes or tuple(sorted(found, key=_natural))
    if unknown := sorted(set(found) - set(known)):
        raise BadInput(
            "labels outside the model's classes",
            where=where,
            got=unknown[:3],
            wanted=f"one of {', '.join(known[:20])}",
            next="Add the class and train again.",
        )
    if module.task == "binary" and len(known) > 2:
        raise BadInput(
            "a binary label has more than two values", where=where, got=list(known[:5]), wanted="two values"
        )
    cases = " ".join(f"WHEN '{name.replace(chr(39), chr(39) * 2)}' THEN {i}" for i, name in enumerate(known))
    return (
        f"CAST(CASE CAST(_label AS VARCHAR) {cases} END AS DOUBLE)" if known else "CAST(NULL AS DOUBLE)"
    ), known


def _natural(name: str) -> tuple[int, float, str]:
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)


def _collect(
    con: duckdb.DuckDBPyConnection, module: FeatureModule, joins: list[str], label: str, require_label: bool
) -> pa.Table:
    sources = {name: f"_rows.{quoted('_in_' + name)}" for name in as_mapping(module.spine.inputs)}
    for index, view in enumerate(module.views):
        if isinstance(view, FeatureView):
            sources |= dict(zip(view.names(), answers(view, f"_f{index}"), strict=True))
            continue
        nothing = "NULL" if view.prior is None else repr(float(view.prior.rate))
        sources[view.name] = f"coalesce(_f{index}._rate, {nothing})"
        if view.count:
            sources[view.count] = f"coalesce(_f{index}._count, 0)"
    columns = [
        "_rows._id",
        "coalesce(_rows._unit, _rows._id) AS _unit",
        "_rows._e",
        f"CASE WHEN _rows._seen THEN {label} END AS _label",
        "_rows._at",
        *(
            f"CAST({sources[name]} AS {_SQL_TYPES[dtype]}) AS {quoted(name)}"
            for name, dtype in module.inputs.items()
        ),
    ]
    kept = "_rows._wanted AND _rows._seen" if require_label else "_rows._wanted"
    run(
        con,
        f"CREATE TEMP TABLE _frame AS SELECT {', '.join(columns)} FROM _rows {' '.join(joins)} WHERE {kept}",
        f"{module.where}: INPUTS",
    )
    found: Any = con.sql("SELECT * FROM _frame ORDER BY _e, _id").to_arrow_table()
    moment = pa.timestamp("us", tz="UTC")
    arrays = [
        found.column(0),
        found.column(1),
        found.column(2).cast(moment),
        found.column(3),
        found.column(4).cast(moment),
    ]
    arrays += [
        found.column(5 + n).cast(_ARROW_TYPES[dtype]) for n, dtype in enumerate(module.inputs.values())
    ]
    names = ["_id", "_unit", "_event_time", "_label", "_label_at", *module.inputs]
    return pa.table(dict(zip(names, arrays, strict=True)))
