"""Step 1: four files land, are checked, and are pinned. Counts are taken again from the files as published."""

import json
from typing import Any

import duckdb
import pytest

from tests.lifecycle.conftest import Played

ROWS = {"airports": 1_458, "planes": 3_322, "weather": 26_115, "flights": 336_776}
BAD = {"airports": 3, "planes": 0, "weather": 1, "flights": 0}


def one(source: duckdb.DuckDBPyConnection, query: str) -> Any:
    ((found,),) = source.execute(query).fetchall()
    return found


def rules(played: Played, table: str) -> dict[str, dict[str, Any]]:
    (batch,) = played.sql(f"SELECT report FROM lw_batches WHERE table_name = 'flight-late/{table}'")
    return {rule["name"]: rule for rule in json.loads(batch["report"])["rules"]}


@pytest.mark.parametrize("table", ROWS)
def test_good_and_bad_rows_are_all_rows(
    played: Played, source: duckdb.DuckDBPyConnection, table: str
) -> None:
    published = one(source, f"SELECT count(*) FROM {table}")
    (batch,) = played.sql(f"SELECT * FROM lw_batches WHERE table_name = 'flight-late/{table}'")
    quarantined = played.table("quarantine", table).num_rows if BAD[table] else 0

    assert published == batch["rows"] == played.table("bronze", table).num_rows == ROWS[table]
    assert (batch["good"], batch["bad"]) == (ROWS[table] - BAD[table], BAD[table])
    assert (played.table("silver", table).num_rows, quarantined) == (batch["good"], batch["bad"])
    told = played.figures["data"]["tables"][table]
    assert (told["input"], told["good"], told["bad"]) == (batch["rows"], batch["good"], batch["bad"])
    assert f"{batch['rows']:,} rows = {batch['good']:,} good + {batch['bad']:,} quarantined" in played.text


def test_each_quarantined_row_stands_there_whole_with_its_reasons(played: Played) -> None:
    (wind,) = played.table("quarantine", "weather").to_pylist()
    assert round(float(wind["wind_speed"])) == 1_048
    assert (wind["origin"], wind["time_hour"], wind["_row"]) == ("EWR", "2013-02-12T08:00:00Z", 1010)
    assert wind["_reasons"] == ["wind_speed <= 254"]
    airports = {row["faa"]: row for row in played.table("quarantine", "airports").to_pylist()}
    assert {faa: round(float(row["lon"])) for faa, row in airports.items()} == {
        "DVT": 112,
        "EEN": 43,
        "MYF": 118,
    }
    assert all("longitude lies in the United States" in row["_reasons"] for row in airports.values())
    assert set(airports).isdisjoint(played.table("silver", "airports")["faa"].to_pylist())


def test_the_defects_of_the_data_are_counted_exactly(
    played: Played, source: duckdb.DuckDBPyConnection
) -> None:
    without_weather = """
        SELECT count(*) FROM flights f WHERE NOT EXISTS (
            SELECT 1 FROM weather w WHERE w.origin = f.origin AND w.time_hour = f.time_hour
            AND w.wind_speed IS DISTINCT FROM 1048.36058
        )"""
    recounted = {
        "tailnum in planes.tailnum": one(
            source,
            "SELECT count(*) FROM flights WHERE tailnum IS NOT NULL AND tailnum NOT IN (SELECT tailnum FROM planes)",
        ),
        "dest in airports.faa": one(
            source, "SELECT count(*) FROM flights WHERE dest NOT IN (SELECT faa FROM airports)"
        ),
        "origin, time_hour in weather.origin, time_hour": one(source, without_weather),
        "dep_time is not written 2400": one(source, "SELECT count(*) FROM flights WHERE dep_time = 2400"),
        "arr_time is not written 2400": one(source, "SELECT count(*) FROM flights WHERE arr_time = 2400"),
    }
    found = rules(played, "flights")
    assert {name: found[name]["failed"] for name in recounted} == recounted
    assert recounted["tailnum in planes.tailnum"] == 50_094
    assert recounted["dest in airports.faa"] == 7_602
    # One of them only because the reading it would have had is the wind of 1,048 mph, which is set aside.
    assert recounted["origin, time_hour in weather.origin, time_hour"] >= 1_556
    assert {found[name]["severity"] for name in recounted} == {"warn"}
    assert rules(played, "weather")["the local hour names one reading"]["failed"] == 3
    assert "50,094" in played.text
    assert "7,602" in played.text


def test_cancelled_flights_are_no_defects(played: Played, source: duckdb.DuckDBPyConnection) -> None:
    assert one(source, "SELECT count(*) FROM flights WHERE dep_time IS NULL") == 8_255
    assert played.table("silver", "flights")["dep_time"].null_count == 8_255


def test_silver_holds_what_was_published_cell_by_cell(
    played: Played, source: duckdb.DuckDBPyConnection
) -> None:
    silver = played.table("silver", "flights")
    kept = [name for name in silver.column_names if not name.startswith("_")]
    source.register("silver_flights", silver.select(kept))
    named = ", ".join(kept)
    published, landed = f"SELECT {named} FROM flights", f"SELECT {named} FROM silver_flights"
    try:
        for one, other in ((published, landed), (landed, published)):
            left = source.execute(f"SELECT count(*) FROM ({one} EXCEPT ALL {other})")
            assert left.fetchall() == [(0,)]
    finally:
        source.unregister("silver_flights")


def test_the_snapshot_pins_table_versions_and_their_whole_content(played: Played) -> None:
    from loopwright.data.lake import Lake
    from loopwright.data.snapshot import content_digest, verify_snapshot

    (row,) = played.sql("SELECT * FROM lw_snapshots")
    assert row["digest"] == played.figures["data"]["snapshot"]
    tables = json.loads(row["manifest"])["tables"]
    assert {name: entry["rows"] for name, entry in tables.items()} == {n: ROWS[n] - BAD[n] for n in ROWS}
    assert row["rows"] == sum(ROWS.values()) - sum(BAD.values())
    assert verify_snapshot(Lake(played.home.lake, played.ledger), row["digest"]).rows == row["rows"]

    weather = played.table("silver", "weather")
    assert content_digest(weather) == tables["weather"]["content_digest"]
    temperatures = weather["temp"].to_pylist()
    temperatures[17] += 0.01
    index = weather.column_names.index("temp")
    touched = weather.set_column(index, "temp", [temperatures])
    assert content_digest(touched) != tables["weather"]["content_digest"]


def test_later_runs_find_the_same_files_landed_and_land_nothing_twice(played: Played) -> None:
    runs = played.sql("SELECT snapshot FROM lw_runs")
    assert len(runs) >= 4
    assert {run["snapshot"] for run in runs} == {played.figures["data"]["snapshot"]}
    assert len(played.sql("SELECT * FROM lw_batches")) == len(ROWS)
    assert [len(played.audit(f"flight-late/{table}", "data.ingest")) for table in ROWS] == [1] * len(ROWS)


def test_the_audit_log_says_what_landed_and_why_rows_were_set_aside(played: Played) -> None:
    (ingest,) = played.audit("flight-late/weather", "data.ingest")
    assert ingest["actor"] == "ana"
    assert (ingest["payload"]["input_rows"], ingest["payload"]["bad_rows"]) == (26_115, 1)
    assert ingest["payload"]["reasons"] == {"wind_speed <= 254": 1}
    (snapshot,) = played.audit("flight-late", "data.snapshot")
    assert snapshot["seq"] > ingest["seq"]
