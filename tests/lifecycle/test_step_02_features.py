"""Step 2: every input is what was known at its moment. Sampled answers are worked out again by brute force."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import duckdb
import numpy as np
import pytest

from loopwright.pipeline.fit import Parts
from loopwright.project.spec import Project
from tests.lifecycle.conftest import Played

SAMPLED = 250
WINDOWS = {
    "late_origin_12h": (timedelta(hours=12), ("origin",)),
    "late_dest_6h": (timedelta(hours=6), ("dest",)),
    "late_flight_30d": (timedelta(days=30), ("carrier", "flight")),
    "late_origin_carrier_2d": (timedelta(days=2), ("origin", "carrier")),
    "late_carrier_14d": (timedelta(days=14), ("carrier",)),
    "late_dest_14d": (timedelta(days=14), ("dest",)),
}
WEATHER = ("temp", "humid", "wind_speed", "precip", "pressure", "visib")
PLAUSIBLE_WIND = 254
HOUR = np.timedelta64(1, "h")


@dataclass(frozen=True)
class Asked:
    """A logged question: the flight it names, its moment, and what it brought."""

    flight: dict[str, Any]
    moment: np.datetime64
    inputs: dict[str, Any]
    answer: float


@dataclass(frozen=True)
class History:
    """Everything that ever happened, as published: flights with the moment each one's lateness became known."""

    columns: dict[str, np.ndarray[Any, Any]]
    late: np.ndarray[Any, Any]
    known_at: np.ndarray[Any, Any]
    weather: dict[str, tuple[np.ndarray[Any, Any], list[dict[str, Any]]]]
    planes: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def history(source: duckdb.DuckDBPyConnection) -> History:
    flown: dict[str, Any] = source.execute(
        "SELECT *, epoch_us(time_hour) AS moment FROM flights WHERE arr_delay IS NOT NULL"
    ).fetchnumpy()
    moment = flown["moment"].astype("datetime64[us]")
    minutes = (flown["minute"] + flown["dep_delay"] + flown["air_time"] + 45).astype("timedelta64[m]")
    known_at = np.maximum(moment + minutes, moment + 6 * HOUR)
    weather = {}
    for origin in ("EWR", "JFK", "LGA"):
        readings = rows(
            source,
            f"SELECT *, epoch_us(time_hour) AS us FROM weather WHERE origin = '{origin}' ORDER BY time_hour",
        )
        kept = [row for row in readings if row["wind_speed"] is None or row["wind_speed"] <= PLAUSIBLE_WIND]
        weather[origin] = np.array([row["us"] for row in kept], dtype="datetime64[us]"), kept
    planes = {row["tailnum"]: row for row in rows(source, "SELECT * FROM planes")}
    named = {name: np.asarray(flown[name]) for name in ("origin", "dest", "carrier", "flight")}
    return History(named, flown["arr_delay"] > 15, known_at, weather, planes)


def rows(source: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    found = source.execute(query)
    assert found.description is not None
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


@pytest.fixture(scope="module")
def asked(played: Played, source: duckdb.DuckDBPyConnection) -> list[Asked]:
    names = [field.name for field in played.bundle(1).schema.inputs]
    logged = played.predictions(
        "SELECT id, epoch_us(event_time), inputs, outputs[1] FROM log WHERE arm = 'stable' AND status = 'ok' "
        f"ORDER BY md5(id) LIMIT {SAMPLED}"
    )
    found = []
    for name, moment, inputs, answer in logged:
        year, month, day, carrier, number, origin, sched = name.split("-")
        (flight,) = rows(
            source,
            "SELECT *, epoch_us(time_hour) AS us FROM flights "
            f"WHERE year = {year} AND month = {month} AND day = {day} AND carrier = '{carrier}' "
            f"AND flight = {number} AND origin = '{origin}' AND sched_dep_time = {sched}",
        )
        assert flight["us"] == moment
        brought = dict(zip(names, json.loads(inputs), strict=True))
        found.append(Asked(flight, np.datetime64(moment, "us"), brought, answer))
    assert len(found) == SAMPLED
    return found


@pytest.mark.parametrize("name", WINDOWS)
def test_late_rates_count_only_flights_whose_lateness_was_known(
    asked: list[Asked], history: History, name: str
) -> None:
    window, keys = WINDOWS[name]
    counted = 0
    for question in asked:
        seen = (history.known_at <= question.moment) & (
            history.known_at > question.moment - np.timedelta64(window)
        )
        for key in keys:
            seen &= history.columns[key] == question.flight[key]
        expected = (np.count_nonzero(history.late[seen]) + 0.2 * 5) / (np.count_nonzero(seen) + 5)
        assert question.inputs[name] == pytest.approx(expected, abs=1e-9), question.flight
        counted += int(np.count_nonzero(seen))
    assert counted > SAMPLED  # or the windows would be empty, and the test with them


def test_weather_is_the_newest_reading_that_is_at_least_an_hour_old(
    asked: list[Asked], history: History
) -> None:
    with_weather = 0
    for question in asked:
        times, readings = history.weather[question.flight["origin"]]
        old_enough = np.flatnonzero((times > question.moment - 6 * HOUR) & (times <= question.moment - HOUR))
        newest = readings[old_enough[-1]] if len(old_enough) else dict.fromkeys(WEATHER)
        with_weather += len(old_enough) > 0
        assert {name: question.inputs[name] for name in WEATHER} == {name: newest[name] for name in WEATHER}
    assert with_weather > 0.98 * SAMPLED


def test_a_plane_nobody_knows_is_null_and_the_others_are_looked_up(
    asked: list[Asked], history: History
) -> None:
    unknown = 0
    for question in asked:
        plane = history.planes.get(question.flight["tailnum"])
        unknown += plane is None
        assert question.inputs["plane_year"] == (plane["year"] if plane else None)
        assert question.inputs["plane_seats"] == (plane["seats"] if plane else None)
    assert 0 < unknown < SAMPLED / 2


def test_the_schedule_is_the_flights_own(asked: list[Asked]) -> None:
    for question in asked:
        flight, inputs = question.flight, question.inputs
        assert [inputs[name] for name in ("carrier", "origin", "dest", "distance")] == [
            flight[name] for name in ("carrier", "origin", "dest", "distance")
        ]
        assert (
            inputs["sched_dep_minute"]
            == flight["sched_dep_time"] // 100 * 60 + flight["sched_dep_time"] % 100
        )


def test_no_label_was_trained_on_before_it_was_known(
    played: Played, learned: Callable[[int], tuple[Project, Parts]], history: History
) -> None:
    for version in (1, 2):
        project, parts = learned(version)
        as_of = project.spec.data.as_of
        assert as_of is not None
        moment = np.datetime64(as_of.replace(tzinfo=None), "us")
        expected = int(np.count_nonzero(history.known_at <= moment))
        trained = parts.train.rows + parts.holdout.rows
        assert trained == expected
        assert parts.holdout.label_times().max() <= moment
        assert parts.train.event_times().max() <= parts.holdout.event_times().min()
    assert "77,469 labelled rows, 21 inputs" in played.text


def test_one_transform_serves_training_and_requests(played: Played, asked: list[Asked]) -> None:
    bundle = played.bundle(1)
    own = played.home.root / "projects" / "flight-late" / "transform.py"
    assert (played.bundle_path(1) / "transform.py").read_bytes() == own.read_bytes()
    (by_first,) = [
        [q for q in asked if q.moment < np.datetime64("2013-05-01")],
    ]
    columns = {
        field.name: np.array([q.inputs[field.name] for q in by_first], dtype=object)
        for field in bundle.schema.inputs
    }
    features = bundle.features(columns)
    assert features.dtype == np.float32
    assert features.shape == (len(by_first), 21)
    again = bundle.predict(columns)[:, 0]
    np.testing.assert_allclose(again, [q.answer for q in by_first], atol=1e-7)
