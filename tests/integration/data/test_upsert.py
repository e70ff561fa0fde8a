"""Late and corrected records: what stands in silver is the latest version of each record; bronze has all that came."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopwright.data.contract import Contract
from loopwright.data.ingest import BatchBlocked, IngestReport, ingest
from loopwright.data.lake import Lake
from loopwright.data.snapshot import silver
from loopwright.data.source import Source, resolve
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.ids import new_id
from tests.integration.data.conftest import contract

ADA = Actor("ada", Role.DEVELOPER)
NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
UPSERT = "{property: load, value: upsert}, {property: maxBadShare, value: 1}"
COLUMNS = (
    "{name: id, logicalType: integer, primaryKey: true}", "{name: x}", "{name: v, logicalType: integer}",
)  # fmt: skip
VERSIONED = contract(*COLUMNS, custom=UPSERT + ", {property: versionColumn, value: v}")
ARRIVAL = contract(*COLUMNS, custom=UPSERT)
Csv = Callable[[str], Source]


def land(lake: Lake, source: Source, rules: Contract = VERSIONED, hours: int = 0) -> IngestReport:
    return ingest(
        lake,
        model="m",
        table="t",
        source=source,
        contract=rules,
        actor=ADA,
        now=NOON + timedelta(hours=hours),
    )


def outcome(report: IngestReport) -> tuple[int | None, int | None, int | None]:
    return report.inserted, report.updated, report.ignored_late


def standing(lake: Lake) -> dict[int, Any]:
    return {row["id"]: row["x"] for row in silver(lake, "m", "t").to_pylist()}


def test_the_later_version_of_a_record_stands(lake: Lake, csv: Csv) -> None:
    assert outcome(land(lake, csv("id,x,v\n1,a,1\n2,b,1\n3,c,5\n"))) == (3, 0, 0)
    second = land(lake, csv("id,x,v\n1,A,2\n3,old,4\n4,d,1\n"), hours=1)
    assert outcome(second) == (1, 1, 1)
    assert standing(lake) == {1: "A", 2: "b", 3: "c", 4: "d"}
    assert lake.read("bronze", "m", "t").num_rows == 6
    assert (second.good_rows, second.bad_rows) == (3, 0)


def test_of_equal_versions_the_later_arrival_stands(lake: Lake, csv: Csv) -> None:
    land(lake, csv("id,x,v\n1,a,1\n"))
    assert outcome(land(lake, csv("id,x,v\n1,b,1\n"), hours=1)) == (0, 1, 0)
    assert standing(lake) == {1: "b"}


def test_a_record_without_a_version_is_older_than_any(lake: Lake, csv: Csv) -> None:
    land(lake, csv("id,x,v\n1,a,1\n2,b,\n"))
    assert outcome(land(lake, csv("id,x,v\n1,A,\n2,B,\n"), hours=1)) == (0, 1, 1)
    assert standing(lake) == {1: "a", 2: "B"}


def test_without_a_version_column_arrival_decides(lake: Lake, csv: Csv) -> None:
    land(lake, csv("id,x,v\n1,a,9\n"), ARRIVAL)
    land(lake, csv("id,x,v\n1,b,1\n1,c,0\n"), ARRIVAL, hours=1)
    assert standing(lake) == {1: "c"}


def test_versions_of_a_record_in_one_batch_are_no_duplicates(lake: Lake, csv: Csv) -> None:
    report = land(lake, csv("id,x,v\n1,new,2\n1,old,1\n"))
    assert (outcome(report), report.bad_rows) == ((1, 0, 1), 0)
    assert standing(lake) == {1: "new"}


def test_a_quarantined_record_supersedes_nothing(lake: Lake, csv: Csv) -> None:
    land(lake, csv("id,x,v\n1,a,1\n"))
    report = land(lake, csv("id,x,v\n1,b,many\n"), hours=1)
    assert (outcome(report), report.bad_rows) == ((0, 0, 0), 1)
    assert standing(lake) == {1: "a"}
    assert lake.read("quarantine", "m", "t").column("x").to_pylist() == ["b"]


MAILED = (*COLUMNS, "{name: mail, unique: true}")
UNIQUE = contract(*MAILED, custom=UPSERT + ", {property: versionColumn, value: v}")


def test_what_another_record_holds_is_set_aside_but_not_what_the_record_itself_held(
    lake: Lake, csv: Csv
) -> None:
    land(lake, csv("id,x,v,mail\n1,a,1,a@\n2,b,1,b@\n"), UNIQUE)
    report = land(
        lake, csv("id,x,v,mail\n1,A,2,a@\n2,B,2,a@\n3,c,1,c@\n3,C,2,c@\n4,d,1,c@\n"), UNIQUE, hours=1
    )
    assert outcome(report) == (1, 1, 1)
    assert (report.input_rows, report.good_rows, report.bad_rows, report.reasons) == (
        5,
        3,
        2,
        {"mail unique": 2},
    )
    assert standing(lake) == {1: "A", 2: "b", 3: "C"}
    held = lake.read("quarantine", "m", "t").to_pylist()
    assert [(row["_row"], row["x"], row["_reasons"]) for row in held] == [
        (2, "B", ["mail unique"]), (5, "d", ["mail unique"]),
    ]  # fmt: skip


def test_too_many_records_set_aside_block_the_batch_and_leave_silver_alone(lake: Lake, csv: Csv) -> None:
    strict = contract(*MAILED, custom="{property: load, value: upsert}, {property: maxBadShare, value: 0.1}")
    land(lake, csv("id,x,v,mail\n1,a,1,a@\n"), strict)
    version = lake.version("silver", "m", "t")
    with pytest.raises(BatchBlocked, match="share of bad rows"):
        land(lake, csv("id,x,v,mail\n2,b,1,a@\n"), strict, hours=1)
    assert lake.version("silver", "m", "t") == version
    assert standing(lake) == {1: "a"}


def test_a_batch_that_comes_again_under_another_contract_gives_back_what_it_superseded(
    lake: Lake, csv: Csv
) -> None:
    land(lake, csv("id,x,v\n1,a,1\n2,b,1\n"))
    land(lake, csv("id,x,v\n1,A,2\n"), hours=1)
    short = contract(
        *COLUMNS[:1], "{name: x, logicalTypeOptions: {pattern: '[a-z]'}}", *COLUMNS[2:],
        custom=UPSERT + ", {property: versionColumn, value: v}",
    )  # fmt: skip
    report = land(lake, csv("id,x,v\n1,A,2\n"), short, hours=2)
    assert (report.good_rows, report.bad_rows) == (0, 1)
    assert standing(lake) == {1: "a", 2: "b"}


def test_only_files_that_hold_a_superseded_record_are_written_anew(lake: Lake, csv: Csv) -> None:
    for hour in range(3):
        land(lake, csv(f"id,x,v\n{hour},a,1\n{hour + 10},a,1\n"), hours=hour)
    before = set(lake.files("silver", "m", "t").uris)
    land(lake, csv("id,x,v\n1,b,2\n"), hours=4)
    assert len(before & set(lake.files("silver", "m", "t").uris)) == 2
    assert standing(lake) == {0: "a", 1: "b", 2: "a", 10: "a", 11: "a", 12: "a"}


RECORD = st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 3)))


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(RECORD, min_size=1, max_size=8), min_size=1, max_size=4))
def test_any_history_ends_like_one_record_after_the_other(
    lake: Lake, tmp_path: Path, batches: list[list[tuple[int, int | None]]]
) -> None:
    table, stands = new_id("t"), dict[int, tuple[int, str]]()
    for hour, batch in enumerate(batches):
        lines, changed = [], dict[int, tuple[int, str]]()
        for n, (key, version) in enumerate(batch):
            value = f"{hour}.{n}"
            lines.append(f"{key},{value},{'' if version is None else version}")
            order = -1 if version is None else version
            if key not in changed or order >= changed[key][0]:
                changed[key] = (order, value)
        for key, (order, value) in changed.items():
            if key not in stands or order >= stands[key][0]:
                stands[key] = (order, value)
        path = tmp_path / "batch.csv"
        path.write_text("id,x,v\n" + "\n".join(lines) + "\n")
        report = ingest(
            lake, model="m", table=table, source=resolve(str(path), Path()), contract=VERSIONED, actor=ADA,
            now=NOON + timedelta(hours=hour),
        )  # fmt: skip
        assert sum(n or 0 for n in outcome(report)) == len(batch)
    found = {row["id"]: row["x"] for row in silver(lake, "m", table).to_pylist()}
    assert found == {key: value for key, (_, value) in stands.items()}
