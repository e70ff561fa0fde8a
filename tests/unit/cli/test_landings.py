"""data land and data contracts, as a person types them."""

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Type

PORTS = """apiVersion: v3.1.0
kind: DataContract
id: ports
version: 1.0.0
schema:
  - name: ports
    properties:
      - {name: code, primaryKey: true, logicalTypeOptions: {pattern: '[A-Z]{3}'}}
      - {name: height, logicalType: integer}
    customProperties: [{property: maxBadShare, value: 0.9}, {property: load, value: upsert}]
"""
TRIPS = """apiVersion: v3.1.0
kind: DataContract
id: trips
version: 1.0.0
schema:
  - name: trips
    properties:
      - {name: origin, relationships: [{to: ports.code}]}
      - {name: late, logicalType: boolean}
    customProperties: [{property: maxBadShare, value: 0.9}]
"""
SPEC = """model: late
task: binary
data:
  label: {name: late}
  sources:
    trips: {uri: trips.csv, contract: trips.yaml}
    ports: {uri: ports.csv, contract: ports.yaml}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "loop.yaml").write_text(SPEC)
    (folder / "ports.yaml").write_text(PORTS)
    (folder / "trips.yaml").write_text(TRIPS)
    (folder / "ports.csv").write_text("code,height\nJFK,4\nLGA,x\nEWR,9\n")
    (folder / "trips.csv").write_text("origin,late\nJFK,true\nBOS,false\n")
    return folder


def test_what_is_landed_once_is_not_read_again(loopwright: Type, project: Path) -> None:
    first = loopwright("data", "land", str(project))
    assert first.code == 0, first.err
    assert first.out.splitlines() == [
        "ports: 3 rows = 2 good + 1 quarantined · 2 inserted, 0 updated, 0 ignored as late",
        "trips: 2 rows = 1 good + 1 quarantined",
    ]
    again = loopwright("data", "land", str(project))
    assert [line.endswith("(landed before)") for line in again.out.splitlines()] == [True, True]


def test_one_table_alone_uses_what_landed_before(loopwright: Type, project: Path) -> None:
    assert "Ingest ports first" in loopwright("data", "land", str(project), "--table", "trips").err
    assert loopwright("data", "land", str(project), "--table", "ports").out.startswith("ports: 3 rows")
    assert loopwright("data", "land", str(project), "--table", "trips").out.startswith(
        "trips: 2 rows = 1 good"
    )
    unknown = loopwright("data", "land", str(project), "--table", "port")
    assert (unknown.code, "did you mean `ports`?" in unknown.err) == (2, True)


def test_a_break_is_refused_and_a_rebuild_is_the_way_out(loopwright: Type, project: Path) -> None:
    loopwright("data", "land", str(project))
    (project / "trips.yaml").write_text(
        TRIPS.replace("1.0.0", "2.0.0").replace(
            "{name: late, logicalType: boolean}", "{name: late, required: true}"
        )
    )
    (project / "trips.csv").write_text("origin,late\nEWR,maybe\n")
    refused = loopwright("data", "land", str(project))
    assert refused.code == 1
    assert "late: the type is another: string, was boolean" in refused.err
    assert "--rebuild trips" in refused.err
    rebuilt = loopwright("data", "land", str(project), "--rebuild", "trips")
    assert rebuilt.code == 0, rebuilt.err
    assert "trips: 1 rows = 1 good + 0 quarantined" in rebuilt.out
    listed = json.loads(loopwright("data", "contracts", "late", "trips", "--json").out)
    assert [(one["number"], one["version"], one["change"]) for one in listed] == [
        (1, "1.0.0", "first"), (2, "2.0.0", "breaking"),
    ]  # fmt: skip
    assert loopwright("data", "contracts", "late", "nothing").code == 2


def test_tables_that_no_model_was_trained_on_are_listed_all_the_same(loopwright: Type, project: Path) -> None:
    loopwright("data", "land", str(project))
    listed = json.loads(loopwright("data", "tables", "--json").out)
    assert [one["table"] for one in listed] == ["ports", "trips"]
    assert json.loads(loopwright("data", "tables", "late", "--json").out) == listed
