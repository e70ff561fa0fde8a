"""data check: a project, a file with a contract, a table as it stands."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from loopwright.control.access import LOCAL
from loopwright.control.context import open_context
from loopwright.data.contract import Contract
from loopwright.data.ingest import ingest
from loopwright.data.lake import Lake
from loopwright.data.source import resolve
from loopwright.kernel.actor import Actor, Role
from tests.unit.cli.conftest import Type

PORTS = """apiVersion: v3.1.0
kind: DataContract
id: ports
schema:
  - name: ports
    properties:
      - {name: code, required: true, unique: true, logicalTypeOptions: {pattern: '^[A-Z]{3}$'}}
      - {name: height, logicalType: integer}
    quality: [{metric: rowCount, mustBeGreaterThan: 2}]
    customProperties: [{property: maxBadShare, value: 0.9}]
"""
TRIPS = """apiVersion: v3.1.0
kind: DataContract
id: trips
schema:
  - name: trips
    properties:
      - {name: origin, required: true, relationships: [{to: ports.code}]}
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
    (folder / "ports.csv").write_text("code,height\nJFK,4\nLGA,x\nEWR,9\nJFK,1\nbos,2\n")
    (folder / "trips.csv").write_text("origin,late\nJFK,true\nLGA,false\nEWR,maybe\n,true\n")
    return folder


def test_a_file_is_checked_by_a_contract(loopwright: Type, project: Path) -> None:
    answer = loopwright(
        "data", "check", str(project / "ports.csv"), "--contract", str(project / "ports.yaml")
    )
    assert answer.code == 0, answer.err
    head, *lines = answer.out.splitlines()
    assert head == "ports: 5 rows = 2 good + 3 bad · FAIL"
    assert [line.strip().split("  ")[0] for line in lines[1:4]] == [
        "code matches ^[A-Z]{3}$", "code unique", "height is an integer"
    ]  # fmt: skip
    assert lines[-1].strip() == "6 rules: 3 PASS, 3 FAIL"


def test_broken_rows_are_shown_with_what_they_broke(loopwright: Type, project: Path) -> None:
    words = ("data", "check", str(project / "ports.csv"), "--contract", str(project / "ports.yaml"), "--rows")
    shown = [line.strip() for line in loopwright(*words).out.splitlines() if " row " in f" {line}"]
    assert shown[-3:] == [
        "row 2: height is an integer · height=x, code=LGA", "row 4: code unique · code=JFK, height=1",
        "row 5: code matches ^[A-Z]{3}$ · code=bos, height=2",
    ]  # fmt: skip
    assert "… 2 more" in loopwright(*words, "--limit", "1").out


def test_a_batch_that_its_contract_blocks_exits_with_1(loopwright: Type, project: Path) -> None:
    (project / "ports.csv").write_text("code,height\nJFK,4\n")
    answer = loopwright(
        "data", "check", str(project / "ports.csv"), "--contract", str(project / "ports.yaml")
    )
    assert answer.code == 1 and "blocked by row count" in answer.out and "measured 1" in answer.out


def test_a_project_s_tables_are_checked_against_the_good_rows_of_those_they_point_to(
    loopwright: Type, project: Path
) -> None:
    answer = loopwright("data", "check", str(project), "--json")
    tables = {one["table"]: one for one in json.loads(answer.out)["tables"]}
    assert list(tables) == ["ports", "trips"]
    # LGA's height does not fit, so the row is none to point to.
    assert tables["trips"]["reasons"] == {
        "origin present": 1, "origin in ports.code": 1, "late is a boolean": 1
    }  # fmt: skip
    assert [one["table"] for one in json.loads(
        loopwright("data", "check", str(project), "--table", "trips", "--json").out
    )["tables"]] == ["trips"]  # fmt: skip


def test_a_table_is_checked_as_it_stands(loopwright: Type, project: Path, tmp_path: Path) -> None:
    ctx = open_context(tmp_path / "home", LOCAL, create=True)
    lake = Lake.of(ctx.home, ctx.ledger)
    ingest(
        lake, model="late", table="ports", source=resolve("ports.csv", project),
        contract=Contract.load(project / "ports.yaml"), actor=Actor("dora", Role.DEVELOPER),
        now=datetime(2013, 7, 1, tzinfo=UTC),
    )  # fmt: skip
    ctx.ledger.dispose()
    first = loopwright("data", "check", "late/ports")
    # What landed is good, but the good rows alone are fewer than the contract wants.
    assert (first.code, first.out.splitlines()[0]) == (
        1,
        "ports: 2 rows = 2 good + 0 bad · blocked by row count",
    )
    stricter = project / "stricter.yaml"
    stricter.write_text(PORTS.replace("integer}", "integer, logicalTypeOptions: {maximum: 5}}"))
    answer = loopwright("data", "check", "late/ports", "--contract", str(stricter), "--json")
    (table,) = json.loads(answer.out)["tables"]
    assert table["reasons"] == {"height <= 5": 1}
    assert loopwright("data", "check", "late/nothing").code == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere.csv"], "there is nothing to check here"),
        (["ports.csv"], "by which contract?"),
        (["ports.csv", "--contract", "ports.yaml", "--memory", "1MB"], "not a memory limit"),
        (["ports.csv", "--contract", "nowhere.yaml"], "nowhere.yaml"),
        (["trips.csv", "--contract", "trips.yaml"], "points to a table that is not there"),
        (
            ["ports.csv", "--contract", "ports.yaml", "--table", "ports"],
            "--table is for the sources of a project",
        ),
    ],
)
def test_what_cannot_be_checked_says_what_to_do(
    loopwright: Type, project: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    monkeypatch.chdir(project)
    answer = loopwright("data", "check", *words)
    assert answer.code == 2 and told in answer.err


@pytest.mark.parametrize("named", ["ledger.db", "keys/control.key", "artifacts/1/rows.csv"])
def test_the_home_s_own_files_are_no_source(
    loopwright: Type, project: Path, tmp_path: Path, named: str
) -> None:
    open_context(tmp_path / "home", LOCAL, create=True).ledger.dispose()
    secret = tmp_path / "home" / named
    secret.parent.mkdir(parents=True, exist_ok=True)
    if not secret.exists():
        secret.write_text("code\nsecret\n")
    linked = tmp_path / "linked.csv"
    linked.symlink_to(secret)
    for uri in (str(secret), str(linked), f"file://{secret}"):
        answer = loopwright("data", "check", uri, "--contract", str(project / "ports.yaml"), "--rows")
        assert answer.code == 1 and "the home's own files are no source" in answer.err
