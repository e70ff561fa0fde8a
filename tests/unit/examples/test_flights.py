"""The flights example: its own tests hold, and its late rates see nothing from the future."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

import loopwright
from loopwright.features.module import import_project_file, load_features
from loopwright.features.offline import build_frame
from loopwright.project.spec import load_project

FLIGHTS = Path(loopwright.__file__).parent / "examples" / "flights"
OWN = import_project_file(FLIGHTS / "tests" / "test_features.py", FLIGHTS)
START = datetime(2013, 1, 5, 12, tzinfo=UTC)
AFTER = timedelta(hours=6)


@pytest.mark.parametrize("own", [value for name, value in vars(OWN).items() if name.startswith("test_")])
def test_the_projects_own_test_holds(own: Callable[[], None]) -> None:
    own()


@pytest.mark.parametrize("features", ["features.py", "features_strict.py"])
def test_both_feature_files_bring_the_same_inputs(features: str) -> None:
    project = load_project(FLIGHTS, [f"features={features}"])
    project.check_files()
    module = load_features(project)
    assert list(module.inputs) == list(load_features(load_project(FLIGHTS)).inputs)
    assert ("__getitem__" in module.transform_source) == (features == "features_strict.py")


def flight(number: int, hour: int, delay: int | None, air_time: int | None = 60) -> dict[str, object]:
    moment = START + timedelta(hours=hour)
    return {
        "year": moment.year, "month": moment.month, "day": moment.day, "carrier": "UA", "flight": number,
        "origin": "EWR", "dest": "ORD", "sched_dep_time": moment.hour * 100, "sched_arr_time": 100, "distance": 700,
        "hour": moment.hour, "minute": 0, "time_hour": moment, "tailnum": None, "dep_delay": delay,
        "arr_delay": delay, "air_time": air_time,
    }  # fmt: skip


def frame(*rows: dict[str, object]) -> dict[str, dict[str, object]]:
    project = load_project(FLIGHTS)
    weather = pa.table({
        "origin": ["EWR"] * 3, "time_hour": [START + timedelta(hours=h) for h in (-1, 0, 1)],
        "temp": [30.0, 40.0, 50.0],
        **{name: [1.0] * 3 for name in ("humid", "wind_speed", "precip", "pressure", "visib")},
    })  # fmt: skip
    planes = pa.table({"tailnum": ["N1"], "year": [2000], "seats": [100]})
    tables = {"flights": pa.Table.from_pylist(list(rows)), "weather": weather, "planes": planes}
    built = build_frame(load_features(project), tables, label_available_after=AFTER)
    return {row["_id"].split("-")[4]: row for row in built.table.to_pylist()}


def test_a_late_flight_counts_only_from_six_hours_on() -> None:
    rows = frame(flight(1, 0, 60), flight(2, 5, 0), flight(3, 6, 0))
    prior, seen = 0.2, (1 + 0.2 * 5) / 6
    assert rows["2"]["late_origin_12h"] == prior
    assert rows["3"]["late_origin_12h"] == pytest.approx(seen)


def test_a_flight_still_in_the_air_after_six_hours_does_not_count_yet() -> None:
    rows = frame(flight(1, 0, 300, air_time=120), flight(2, 7, 0), flight(3, 8, 0))
    assert rows["2"]["late_origin_12h"] == 0.2
    assert rows["3"]["late_origin_12h"] > 0.2


def test_a_cancelled_flight_is_asked_about_and_has_no_label() -> None:
    rows = frame(flight(1, 0, None, air_time=None), flight(2, 8, 0))
    assert rows["1"]["_label"] is None
    assert rows["2"]["late_origin_12h"] == 0.2


def test_the_weather_is_at_least_an_hour_old() -> None:
    rows = frame(flight(1, 0, 0), flight(2, 1, 0), flight(3, 12, 0))
    assert [rows[number]["temp"] for number in "123"] == [30.0, 40.0, None]


def test_a_flight_without_a_known_aircraft_is_its_own_unit() -> None:
    assert frame(flight(1, 0, 0))["1"]["_unit"] == "2013-1-5-UA-1-EWR-1200"
