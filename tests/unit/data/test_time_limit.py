"""SQL that a contract brings ends when its time is over, and its rule says so; the others are judged all the same."""

import time
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import yaml

from loopwright.data import time_limit
from loopwright.data.checking import examination
from loopwright.data.contract import Contract

ENDLESS = (
    "(SELECT count(*) FROM range(10000000) AS a, range(10000000) AS b WHERE (a.range * b.range) % 7 = 3)"
)


def contract(*quality: dict[str, Any]) -> Contract:
    table = {
        "name": "t",
        "properties": [{"name": "n", "logicalType": "integer", "required": True}],
        "quality": list(quality),
        "customProperties": [{"property": "maxBadShare", "value": 1}],
    }
    document = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": "t", "schema": [table]}
    return Contract.parse(yaml.safe_dump(document, sort_keys=False), "t.odcs.yaml")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "SECONDS", 2.0)


ROWS = pa.table({"n": pa.array([1, 2, None, -4], pa.int64())})


@pytest.mark.usefixtures("hurried")
def test_a_condition_that_does_not_end_is_an_error_and_the_others_are_judged() -> None:
    endless = {
        "name": "endless",
        "type": "custom",
        "engine": "loopwright",
        "implementation": f"n > 0 OR {ENDLESS} = n",
    }
    sane = {"name": "positive", "type": "custom", "engine": "loopwright", "implementation": "n > 0"}
    began = time.monotonic()
    with examination(ROWS, contract(endless, sane)) as found:
        states = {rule.name: (rule.state, rule.failed, rule.why) for rule in found.report.rules}
        assert states["endless"][0] == "ERROR" and "took longer than 2 s" in states["endless"][2]
        assert states["positive"][:2] == ("FAIL", 1)
        assert states["n present"][:2] == ("FAIL", 1)
        assert found.good().read_all().column("n").to_pylist() == [1, 2]
    assert time.monotonic() - began < 60


@pytest.mark.usefixtures("hurried")
def test_a_query_that_does_not_end_is_an_error() -> None:
    query = {"name": "endless", "type": "sql", "query": f"SELECT {ENDLESS}", "mustBe": 0}
    with examination(ROWS, contract(query)) as found:
        (result,) = [rule for rule in found.report.rules if rule.name == "endless"]
        assert result.state == "ERROR" and "took longer" in result.why
        assert found.report.state == "ERROR" and found.report.blocked_by


def test_an_engine_that_was_interrupted_goes_on_and_other_errors_stay_what_they_are() -> None:
    engine = duckdb.connect()
    with pytest.raises(time_limit.Overdue), time_limit.within(engine, 0.2):
        engine.execute(f"SELECT {ENDLESS}")
    assert engine.execute("SELECT 1").fetchall() == [(1,)]
    with pytest.raises(duckdb.CatalogException), time_limit.within(engine, 5):
        engine.execute("FROM nothing")
    with time_limit.within(engine, 5):
        assert engine.execute("SELECT 2").fetchall() == [(2,)]


def test_what_contracts_may_take_grows_with_the_rows() -> None:
    assert time_limit.seconds_for(0) == 60
    assert time_limit.seconds_for(2_000_000) == 160
