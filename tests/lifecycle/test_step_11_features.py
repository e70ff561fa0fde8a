"""Step 11: features are watched week by week, and served as they are trained on: a planted skew shows."""

import json
import shutil
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from loopwright.bundle.routes import Arm
from loopwright.kernel.clock import from_us, iso
from loopwright.kernel.home import Home
from loopwright.serving.entities import EntityFeatures
from loopwright.serving.models import Model, Served
from tests.lifecycle.conftest import Played
from tests.unit.serving.inside import Inside

SINCE, UNTIL = datetime(2013, 4, 8, tzinfo=UTC), datetime(2013, 4, 11, tzinfo=UTC)


def loopwright(home: Path, *words: str) -> tuple[int, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "loopwright", *words, "--home", str(home), "--json"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def copy(played: Played, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The played home without its largest parts, to write on: evidence is recorded, and requests are changed."""
    home = tmp_path_factory.mktemp("skew") / "home"
    left = shutil.ignore_patterns("cache", "spool", "serving", "logs", "explanations")
    shutil.copytree(played.home.root, home, ignore=left)
    return home


def ask(home: Path) -> tuple[int, Any]:
    return loopwright(
        home, "features", "parity", "flight-late", "--version", "1", "--since", iso(SINCE), "--until", iso(UNTIL)
    )  # fmt: skip


@pytest.fixture(scope="module")
def agreed(copy: Path) -> tuple[int, Any]:
    return ask(copy)


@pytest.fixture(scope="module")
def skewed(copy: Path, agreed: tuple[int, Any]) -> tuple[int, Any]:
    """The same, once somebody has changed the unit of the temperature in the serving path alone, for a day."""
    manifest = json.loads(next((copy / "artifacts" / "bundles").glob("*/manifest.json")).read_text())
    place = [one["name"] for one in manifest["schema"]["inputs"]].index("temp")
    for file in sorted((copy / "predictions" / "flight-late").glob("day=2013-04-09/*.parquet")):
        rows = pq.read_table(file, partitioning=None)
        inputs = [json.loads(text) for text in rows.column("inputs").to_pylist()]
        for row in inputs:
            if row[place] is not None:
                row[place] = (row[place] - 32) / 1.8
        at = rows.column_names.index("inputs")
        pq.write_table(rows.set_column(at, "inputs", [[json.dumps(row) for row in inputs]]), file)
    return ask(copy)


def test_what_was_served_is_what_would_have_been_trained_on_to_the_last_bit(
    agreed: tuple[int, Any], played: Played
) -> None:
    code, found = agreed
    ((asked,),) = played.predictions(
        f"SELECT count(DISTINCT id) FROM log WHERE version = 1 AND arm <> 'shadow' "
        f"AND event_time >= '{SINCE}' AND event_time < '{UNTIL}'"
    )
    assert (code, found["verdict"]) == (0, "PASS")
    assert found["requests"] == found["replayed"] == found["matched"] == asked > 2_000
    assert {one["name"] for one in found["features"]} >= {"carrier", "temp", "plane_year", "late_origin_12h"}
    assert all(one["compared"] == asked and one["different"] == 0 for one in found["features"])
    assert found["answers"]["compared"] == asked
    assert found["answers"]["different"] == 0


def test_a_planted_skew_is_caught_in_the_feature_it_was_planted_in(
    agreed: tuple[int, Any], skewed: tuple[int, Any]
) -> None:
    code, found = skewed
    assert (code, found["verdict"]) == (1, "FAIL")
    (worst, *others) = found["features"]
    assert (worst["name"], worst["source"]) == ("temp", "weather")
    assert 500 < worst["different"] < worst["compared"]
    assert worst["max_difference"] > 5
    example = worst["examples"][0]
    assert example["request"] == pytest.approx((example["offline"] - 32) / 1.8)
    assert {one["name"] for one in others} == {one["name"] for one in agreed[1]["features"]} - {"temp"}
    assert all(one["different"] == 0 for one in others)
    assert found["answers"]["different"] > 0  # the model was not asked that


def test_what_was_found_is_evidence_of_the_version(
    copy: Path, agreed: tuple[int, Any], skewed: tuple[int, Any]
) -> None:
    with sqlite3.connect(copy / "ledger.db") as ledger:
        rows = [
            ledger.execute(
                "SELECT kind, version, verdict FROM lw_evidence WHERE digest = ?", [one["evidence"]]
            ).fetchall()
            for _, one in (agreed, skewed)
        ]
    assert rows == [[("parity", 1, "PASS")], [("parity", 1, "FAIL")]]


def test_every_feature_was_counted_in_every_week(played: Played) -> None:
    rows = played.sql("SELECT * FROM lw_feature_statistics WHERE source = 'requests'")
    weeks = sorted({row["start"] for row in rows})
    assert {from_us(later) - from_us(earlier) for earlier, later in pairwise(weeks)} == {timedelta(days=7)}
    assert len(weeks) >= 30
    assert len(rows) == 21 * len(weeks)


def test_counts_are_those_of_the_log(played: Played) -> None:
    row = played.sql(
        "SELECT * FROM lw_feature_statistics WHERE source = 'requests' AND feature = 'plane_year' "
        "ORDER BY start LIMIT 1 OFFSET 3"
    )[0]
    start, end = from_us(row["start"]), from_us(row["end"])
    version = played.predictions(
        f"SELECT version FROM log WHERE arm <> 'shadow' AND event_time >= '{start}' AND event_time < '{end}' "
        "GROUP BY 1 ORDER BY count(*) DESC LIMIT 1"
    )[0][0]
    schema = json.loads((played.bundle_path(version) / "manifest.json").read_text())["schema"]["inputs"]
    place = [one["name"] for one in schema].index("plane_year")
    inputs = played.predictions(
        "SELECT any_value(inputs) FROM log WHERE arm <> 'shadow' "
        f"AND version = {version} AND event_time >= '{start}' AND event_time < '{end}' GROUP BY id"
    )
    values = [json.loads(text)[place] for (text,) in inputs]
    known = [value for value in values if value is not None]
    payload = json.loads(row["payload"])
    assert (row["rows"], row["nulls"]) == (len(values), len(values) - len(known))
    assert (payload["minimum"], payload["maximum"]) == (min(known), max(known))
    assert payload["distinct"] == len(set(known))


def test_weather_was_never_older_than_its_time_to_live(played: Played) -> None:
    code, found = loopwright(
        Home.at(played.home.root).root, "features", "health", "flight-late", "--feature", "temp"
    )
    assert code == 0
    assert found["broken"] == []
    ages = [one["age_seconds"] for one in found["statistics"]]
    assert len(ages) >= 12
    assert all(3600 <= age <= 6 * 3600 for age in ages)


def test_an_hour_of_april_asked_for_by_its_entities_is_answered_as_it_was_by_its_values(
    copy: Path, played: Played, tmp_path: Path
) -> None:
    hour = datetime(2013, 4, 10, 17, tzinfo=UTC)
    code, _ = loopwright(copy, "features", "materialize", "flight-late", "--as-of", iso(hour))
    assert code == 0
    answered = played.predictions(
        "SELECT id, unit, inputs, outputs FROM log "
        f"WHERE version = 1 AND arm = 'stable' AND event_time = '{hour}' ORDER BY id"
    )
    assert len(answered) > 30
    bundle = played.bundle(1)
    names = [field.name for field in bundle.schema.inputs]
    looked_up = {name for view in bundle.manifest.views for name in view.inputs}
    assert len(looked_up) == 14
    inputs, entities = [], []
    for key, unit, text, _ in answered:
        row = dict(zip(names, json.loads(text), strict=True))
        inputs.append({name: row[name] for name in names if name not in looked_up} | {"_id": key})
        entities.append({"tailnum": None if unit == key else unit, "flight": int(key.split("-")[4])})
    model = Model("flight-late", "salt", (Arm("stable", 1, 1.0),), {1: Served.of(1, bundle)})
    inside = Inside(tmp_path / "inside", model)
    inside.app.front.entities = EntityFeatures.open(Home.at(copy).online_url, inside.app.front.counters)
    told = inside.post(
        "/models/flight-late/predict", {"inputs": inputs, "entities": entities, "event_time": iso(hour)}
    )
    assert told.status_code == 200, told.text
    assert [event.inputs for event in inside.events()] == [json.loads(text) for _, _, text, _ in answered]
    given = [row["outputs"]["probability"] for row in told.json()["predictions"]]
    assert given == pytest.approx([outputs[0] for *_, outputs in answered], abs=1e-6)
    inside.close()
