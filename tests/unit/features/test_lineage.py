"""Which columns a feature reads: told from SQL, and shown by taking the others away."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import loopwright.examples
from loopwright.features.lineage import columns_read, feature_lineage
from loopwright.features.module import FeatureModule, load_features
from loopwright.features.offline import build_frame
from loopwright.features.view import Aggregate, FeatureView, Spine, WindowedRate
from loopwright.kernel.errors import BadInput
from loopwright.project.spec import load_project

SCHEMAS = {
    "flights": [
        "year", "month", "day", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time", "arr_delay", "carrier",
        "flight", "tailnum", "origin", "dest", "air_time", "distance", "hour", "minute", "time_hour",
    ],
    "weather": ["origin", "temp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib", "time_hour"],
    "planes": ["tailnum", "year", "type", "seats"],
}  # fmt: skip


@pytest.fixture(scope="module")
def flights() -> FeatureModule:
    return load_features(load_project(Path(loopwright.examples.__path__[0]) / "flights"))


def values(part: dict[str, Any], how: str = "value") -> set[str]:
    return {f"{read['table']}.{read['column']}" for read in part["reads"] if how in read["for"]}


LANDED = {"flights.time_hour", "flights.minute", "flights.dep_delay", "flights.air_time"}
JOINED = {
    "late_origin_12h": {"flights.origin"},
    "late_dest_6h": {"flights.dest"},
    "late_flight_30d": {"flights.carrier", "flights.flight"},
    "late_origin_carrier_2d": {"flights.origin", "flights.carrier"},
    "late_carrier_14d": {"flights.carrier"},
    "late_dest_14d": {"flights.dest"},
}


def test_every_feature_of_the_flights_example_maps_to_its_columns(flights: FeatureModule) -> None:
    told = feature_lineage(flights, SCHEMAS)
    parts = {part["name"]: part for part in told["inputs"]}
    assert list(parts) == list(flights.inputs)
    assert {part["level"] for part in parts.values()} == {"column"}
    for name in ("carrier", "origin", "dest", "distance"):
        assert values(parts[name]) == {f"flights.{name}"} and len(parts[name]["reads"]) == 1
    assert values(parts["weekday"]) == {"flights.year", "flights.month", "flights.day"}
    assert values(parts["sched_dep_minute"]) == {"flights.hour", "flights.minute"}
    assert values(parts["sched_arr_minute"]) == {"flights.sched_arr_time"}
    for name in ("temp", "humid", "wind_speed", "precip", "pressure", "visib"):
        assert values(parts[name]) == {f"weather.{name}"}
        assert values(parts[name], "joined on") == {"flights.origin", "weather.origin"}
        assert values(parts[name], "as of") == {"flights.time_hour", "weather.time_hour"}
    assert values(parts["plane_year"]) == {"planes.year"} and values(parts["plane_seats"]) == {"planes.seats"}
    assert values(parts["plane_year"], "joined on") == {"flights.tailnum", "planes.tailnum"}
    for name, on in JOINED.items():
        assert values(parts[name]) == {"flights.arr_delay"}
        assert values(parts[name], "joined on") == on
        assert values(parts[name], "known at") == LANDED
        assert values(parts[name], "as of") == {"flights.time_hour"}
    assert values(told["label"]) == {"flights.arr_delay"} and values(told["label"], "known at") == LANDED
    key = ("year", "month", "day", "carrier", "flight", "origin", "sched_dep_time", "tailnum")
    assert values(told["rows"], "named by") == {f"flights.{name}" for name in key}
    assert told["transform"]["level"] == "table" and told["transform"]["reads"] == list(flights.inputs)


def some_rows(rows: int = 400) -> dict[str, pa.Table]:
    random = np.random.default_rng(7)
    start = datetime(2013, 1, 1, tzinfo=UTC)
    hours = [start + timedelta(hours=int(h)) for h in np.sort(random.integers(0, 24 * 40, rows))]

    def column(name: str) -> list[Any]:
        match name:
            case "time_hour":
                return list(hours)
            case "carrier" | "origin" | "dest" | "tailnum" | "type":
                return [f"{name[0]}{n}" for n in random.integers(0, 4, rows)]
            case "flight":
                return list(range(rows))
            case "year" | "month" | "day" | "hour" | "minute":
                return [getattr(hour, name) for hour in hours]
        return [float(n) for n in random.integers(0, 60, rows)]

    return {
        table: pa.table({name: column(name) for name in names}) for table, names in SCHEMAS.items()
    }  # fmt: skip


def test_the_columns_told_are_enough_and_none_is_told_for_nothing(flights: FeatureModule) -> None:
    told = feature_lineage(flights, SCHEMAS)
    read: dict[str, set[str]] = {table: set() for table in SCHEMAS}
    for part in (*told["inputs"], told["label"], told["rows"]):
        for each in part["reads"]:
            read[each["table"]].add(each["column"])
    tables = some_rows()
    few = {
        name: table.select([c for c in table.column_names if c in read[name]])
        for name, table in tables.items()
    }
    assert any(few[name].num_columns < tables[name].num_columns for name in tables)
    after = timedelta(hours=6)
    whole = build_frame(flights, tables, label_available_after=after)
    assert build_frame(flights, few, label_available_after=after).table.equals(whole.table)
    for name, columns in read.items():
        for column in columns:
            with pytest.raises(BadInput, match=column):
                build_frame(
                    flights, {**few, name: few[name].drop_columns([column])}, label_available_after=after
                )


@pytest.mark.parametrize(
    ("sql", "read"),
    [
        ("DISTANCE + 1", {"flights.distance"}),
        ('"distance" * flights.hour', {"flights.distance", "flights.hour"}),
        ("CASE WHEN arr_delay > 15 THEN 1 ELSE 0 END", {"flights.arr_delay"}),
        ("list_transform([distance], x -> x + hour)", {"flights.distance", "flights.hour"}),
        (
            "date_diff('hour', time_hour, make_timestamp(year, 1, 1, 0, 0, 0))",
            {"flights.time_hour", "flights.year"},
        ),
        ("1", set()),
        ("'distance'", set()),
        (
            "(SELECT max(p.seats) FROM planes p WHERE p.tailnum = flights.tailnum)",
            {"planes.seats", "planes.tailnum", "flights.tailnum"},
        ),
        ("(SELECT avg(seats) FROM planes WHERE type = 'jet')", {"planes.seats", "planes.type"}),
        (
            "(WITH old AS (SELECT year AS built, tailnum FROM planes) SELECT built FROM old "
            "WHERE old.tailnum = flights.tailnum)",
            {"planes.year", "planes.tailnum", "flights.tailnum"},
        ),
        ("(SELECT max(z) FROM (SELECT seats AS z FROM planes) q)", {"planes.seats"}),
        (
            "(SELECT max(p.year) FROM planes p JOIN weather w ON w.origin = p.type)",
            {"planes.year", "planes.type", "weather.origin"},
        ),
        ("origin.code", {"flights.origin"}),
    ],
)
def test_an_expression_reads_its_columns(sql: str, read: set[str]) -> None:
    found = columns_read(sql, "flights", SCHEMAS)
    assert {f"{table}.{column}" for table, column in found.columns} == read
    assert found.why == ""


@pytest.mark.parametrize(
    ("sql", "table", "why"),
    [
        ("hash(flights)", "flights", "whole rows"),
        ("COLUMNS('.*delay')", "flights", "whole rows"),
        ("(SELECT count(*) FROM planes)", "planes", "whole rows"),
        ("SELECT FROM WHERE", "flights", "could not be parsed"),
        ("distance) FROM planes; SELECT (1", "flights", "not one expression"),
        ("no_such_column", "flights", "nothing says where `no_such_column` comes from"),
    ],
)
def test_where_sql_does_not_tell_the_answer_is_the_table_and_says_why(sql: str, table: str, why: str) -> None:
    found = columns_read(sql, "flights", SCHEMAS)
    assert (table, "*") in found.columns
    assert why in found.why


def test_a_rate_over_its_own_value_and_time_does_not_read_the_label() -> None:
    module = FeatureModule(
        spine=Spine(table="flights", event_time="time_hour", label="arr_delay > 15", inputs=("distance",)),
        views=(
            WindowedRate("delay_1d", timedelta(days=1), ("origin",), "dep_delay", "time_hour", count="seen"),
            FeatureView("plane", "planes", {"upper(tailnum)": "upper(tailnum)"}, {"age": "2013 - year"}),
        ),
        inputs={"distance": "float64", "delay_1d": "float64", "seen": "int64", "age": "float64"},
    )
    told = feature_lineage(module, SCHEMAS)
    parts = {part["name"]: part for part in told["inputs"]}
    assert values(parts["delay_1d"]) == {"flights.dep_delay"} == values(parts["seen"])
    assert values(parts["delay_1d"], "known at") == {"flights.time_hour"}
    assert values(parts["age"]) == {"planes.year"}
    assert values(parts["age"], "joined on") == {"flights.tailnum", "planes.tailnum"}


def test_a_model_without_label_or_time_has_lineage_too() -> None:
    module = FeatureModule(
        spine=Spine(table="flights", inputs=("distance",), where="origin = 'JFK'"), views=(),
        inputs={"distance": "float64"},
    )  # fmt: skip
    told = feature_lineage(module, SCHEMAS)
    assert told["label"] is None
    assert values(told["rows"], "filtered by") == {"flights.origin"}


def view_parts(**said: Any) -> dict[str, dict[str, Any]]:
    view = FeatureView("v", "weather", ("origin",), event_time="time_hour", **said)
    module = FeatureModule(
        spine=Spine(table="flights", event_time="time_hour", inputs=("distance",)), views=(view,),
        inputs=dict.fromkeys(["distance", *view.names()], "float64"),
    )  # fmt: skip
    return {part["name"]: part for part in feature_lineage(module, SCHEMAS)["inputs"]}


def test_an_aggregation_reads_its_value_its_condition_and_when_rows_were_known() -> None:
    parts = view_parts(
        columns=("temp",), available_at="time_hour + INTERVAL 1 HOUR",
        aggregations={"wet": Aggregate("count", None, timedelta(hours=6), "precip > 0"),
                      "gust": Aggregate("max", "wind_gust + 1", timedelta(hours=6))},
    )  # fmt: skip
    assert values(parts["wet"]) == set() and values(parts["wet"], "filtered by") == {"weather.precip"}
    assert (
        values(parts["gust"]) == {"weather.wind_gust"}
        and parts["gust"]["sql"] == "max of wind_gust + 1 over 6h"
    )
    for part in (parts["wet"], parts["gust"], parts["temp"]):
        assert values(part, "known at") == {"weather.time_hour"}
        assert values(part, "joined on") == {"flights.origin", "weather.origin"}
        assert part["level"] == "column"


@pytest.mark.parametrize(
    ("source", "read"),
    [
        ("SELECT origin, time_hour, temp * 2 AS m FROM weather", {"weather.temp"}),
        (
            "SELECT origin, time_hour, avg(temp) AS m FROM weather WHERE humid > 5 GROUP BY ALL",
            {"weather.temp", "weather.humid", "weather.origin", "weather.time_hour"},
        ),
        (
            "SELECT w.origin, w.time_hour, f.distance AS m FROM weather w JOIN flights f USING (origin)",
            {"flights.distance", "flights.origin", "weather.origin"},
        ),
        (
            "SELECT origin, time_hour, count(*) AS m FROM weather GROUP BY 1, 2",
            {"weather.origin", "weather.time_hour"},
        ),
        (
            "WITH d AS (SELECT origin, time_hour, max(temp) AS q FROM weather GROUP BY ALL) "
            "SELECT origin, time_hour, q + 1 AS m FROM d",
            {"weather.temp", "weather.origin", "weather.time_hour"},
        ),
    ],
)
def test_a_source_in_sql_is_looked_through(source: str, read: set[str]) -> None:
    part = view_parts(columns=("m",), source=source, reads=("flights",))["m"]
    assert values(part) == read and part["level"] == "column"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("SELECT *, temp AS m FROM weather", "does not tell its columns"),
        (lambda weather, flights: weather, "a Python function stands between"),
        ("SELECT origin, time_hour, 1 AS n FROM weather", "does not tell its columns"),
    ],
)
def test_a_source_that_does_not_tell_reads_its_tables_whole(source: Any, why: str) -> None:
    part = view_parts(columns=("m",), source=source, reads=("flights",))["m"]
    assert part["level"] == "table" and why in part["why"]
    assert values(part) >= {"weather.*", "flights.*"}
