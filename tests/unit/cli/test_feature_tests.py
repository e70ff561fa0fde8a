"""features test and features training-set, from the command line, over a lake's tables."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
import pytest

from loopwright.control.access import LOCAL
from loopwright.control.context import open_context
from loopwright.data.lake import Lake
from tests.unit.cli.conftest import Type

START = datetime(2013, 7, 1, tzinfo=UTC)
LOOP = """
model: late
task: binary
owner: ops@example.com
data:
  sources:
    carriers: {uri: carriers.csv, contract: carriers.yaml}
    flights: {uri: flights.csv, contract: flights.yaml}
  label: {name: late}
"""
FEATURES = """
from datetime import timedelta
from loopwright.features import Aggregate, FeatureView, Spine, ViewTest

spine = Spine(table="flights", key="id", event_time="t", label="late", inputs=("hour",))
views = [
    FeatureView(
        "routes", "carriers", ("carrier",), ("distance",), "t", ttl=timedelta(hours=6),
        aggregations={"legs": Aggregate("count", window=timedelta(hours=6))},
        tests={"known": ViewTest("distance IS NOT NULL", "warn"), "few legs": "legs < LIMIT"},
    ),
]
INPUTS = {"hour": "int64", "distance": "float64", "legs": "int64"}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "loop.yaml").write_text(LOOP)
    (folder / "transform.py").write_text("def transform(inputs, state):\n    return inputs\n")
    ctx = open_context(tmp_path / "home", LOCAL, create=True)
    lake = Lake.of(ctx.home, ctx.ledger)

    def rows(**columns: list[object]) -> pa.Table:
        count = len(columns["t"])
        own = {"_batch": ["b"] * count, "_row": list(range(1, count + 1))}
        moments = [START + timedelta(hours=int(str(hour))) for hour in columns["t"]]
        return pa.table({**columns, **own, "t": pa.array(moments, pa.timestamp("us", "UTC"))})

    lake.write(
        "silver", "late", "carriers", rows(carrier=["UA", "UA", "AA"], t=[1, 2, 9], distance=[5.0, 7.0, 1.0])
    )
    lake.write(
        "silver", "late", "flights",
        rows(id=[1, 2, 3], carrier=["UA", "AA", "UA"], t=[3, 8, 12], hour=[3, 8, 12], late=[1, 0, 1]),
    )  # fmt: skip
    ctx.ledger.dispose()
    return folder


def test_views_are_tested_over_the_rows_that_are_there(project: Path, loopwright: Type) -> None:
    (project / "features.py").write_text(FEATURES.replace("LIMIT", "9"))
    passed = loopwright("features", "test", "late", "--project", str(project))
    assert passed.code == 0, passed.err
    assert re.search(r"routes +known +WARN +2 +3 +distance IS NOT NULL +2, 3", passed.out)
    assert re.search(r"routes +few legs +PASS +0 +3", passed.out)
    (project / "features.py").write_text(FEATURES.replace("LIMIT", "2"))
    failed = loopwright("features", "test", "late", "--project", str(project), "--json")
    assert failed.code == 1
    told = {one["name"]: one for one in json.loads(failed.out)["tests"]}
    assert told["few legs"]["state"] == "FAIL" and told["few legs"]["examples"] == ["1"]
    (project / "features.py").write_text(FEATURES.replace("legs < LIMIT", "lges < 2"))
    broken = loopwright("features", "test", "late", "--project", str(project))
    assert broken.code == 2 and "test `few legs`" in broken.err and "lges" in broken.err


def test_a_training_set_is_written_for_rows_of_a_file(
    project: Path, tmp_path: Path, loopwright: Type
) -> None:
    (project / "features.py").write_text(FEATURES.replace("LIMIT", "9"))
    asked = pa.table({"order": [3, 1, 3], "carrier": ["UA", "zz", "UA"], "at": ["2013-07-01T03:00:00Z"] * 3})
    pa_csv.write_csv(asked, tmp_path / "asked.csv")
    out = tmp_path / "set.parquet"
    done = loopwright(
        "features", "training-set", "late", "--project", str(project), "--entities", str(tmp_path / "asked.csv"),
        "--timestamp", "at", "--out", str(out), "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = pa_parquet.read_table(out)
    assert found.column("order").to_pylist() == [3, 1, 3]
    assert found.column("distance").to_pylist() == [7.0, None, 7.0]
    assert found.column("legs").to_pylist() == [2, 0, 2]
    assert json.loads(done.out)["statuses"] == {"routes": {"PRESENT": 2, "NOT_FOUND": 1}}
