"""A table's contract over time: what is compatible goes on, what breaks asks, and bronze can be judged anew."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from loopwright.data import store
from loopwright.data.contract import Contract
from loopwright.data.ingest import BatchBlocked, IngestReport, ingest
from loopwright.data.lake import Lake
from loopwright.data.rebuild import rebuild
from loopwright.data.snapshot import silver
from loopwright.data.source import Source
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, NotFound, Refused
from loopwright.ledger import store as ledger_store
from tests.integration.data.conftest import contract

ADA = Actor("ada", Role.DEVELOPER)
NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
LENIENT = "{property: maxBadShare, value: 1}"
PLAIN = contract("{name: id, logicalType: integer}", "{name: x, logicalType: integer}", custom=LENIENT)
Csv = Callable[[str], Source]


def land(lake: Lake, source: Source, rules: Contract = PLAIN, hours: int = 0) -> IngestReport:
    return ingest(
        lake,
        model="m",
        table="t",
        source=source,
        contract=rules,
        actor=ADA,
        now=NOON + timedelta(hours=hours),
    )


def anew(lake: Lake, rules: Contract) -> list[IngestReport]:
    return rebuild(lake, model="m", table="t", contract=rules, actor=ADA, now=NOON + timedelta(days=1))


def history(lake: Lake) -> list[tuple[int, str]]:
    with lake.ledger.read() as conn:
        return [(each.number, each.change) for each in store.contract_history(conn, "m/t")]


def standing(lake: Lake) -> list[dict[str, object]]:
    return sorted(silver(lake, "m", "t").to_pylist(), key=lambda row: row["id"])


def test_every_contract_a_table_was_judged_by_is_on_record(lake: Lake, csv: Csv) -> None:
    land(lake, csv("id,x\n1,1\n"))
    more = contract(
        "{name: id, logicalType: integer}", "{name: x, logicalType: integer}", "{name: y}", custom=LENIENT
    )
    land(lake, csv("id,x,y\n2,2,b\n"), more, hours=1)
    land(lake, csv("id,x\n3,3\n"), PLAIN, hours=2)
    assert history(lake) == [(1, "first"), (2, "compatible")]
    with lake.ledger.read() as conn:
        (first, second) = store.contract_history(conn, "m/t")
        assert store.contract_in_force(conn, "m/t") == first
    assert second.actor == "ada"
    assert [d["where"] for d in second.differences if d["kind"] == "compatible"] == ["y"]
    assert Contract.from_json(second.document).digest == more.digest


def test_a_contract_in_other_words_is_on_record_by_its_newest(lake: Lake, csv: Csv) -> None:
    def called(version: str) -> Contract:
        return Contract.from_json({**PLAIN.document, "version": version}, "t.odcs.yaml")

    for hours, version in enumerate(("1.0.0", "1.0.1", "1.0.1")):
        land(lake, csv(f"id,x\n{hours},1\n"), called(version), hours)
    with lake.ledger.read() as conn:
        (known,) = store.contract_history(conn, "m/t")
        told = [row for row in ledger_store.rows(conn) if row.action == "data.contract_version"]
    assert (known.number, known.version, known.document["version"]) == (1, "1.0.1", "1.0.1")
    assert [(row.subject, row.payload["before"], row.payload["version"]) for row in told] == [
        ("m/t", "1.0.0", "1.0.1")
    ]


def test_a_younger_column_is_null_in_older_rows(lake: Lake, csv: Csv) -> None:
    land(lake, csv("id,x\n1,1\n"))
    more = contract(
        "{name: id, logicalType: integer}", "{name: x, logicalType: integer}", "{name: y}", custom=LENIENT
    )
    land(lake, csv("id,x,y\n2,2,b\n"), more, hours=1)
    assert standing(lake) == [{"id": 1, "x": 1, "y": None}, {"id": 2, "x": 2, "y": "b"}]


def test_a_wider_type_takes_the_older_rows_along(lake: Lake, csv: Csv) -> None:
    land(lake, csv("id,x\n1,1\n"))
    wider = contract("{name: id, logicalType: integer}", "{name: x, logicalType: number}", custom=LENIENT)
    land(lake, csv("id,x\n2,2.5\n"), wider, hours=1)
    assert standing(lake) == [{"id": 1, "x": 1.0}, {"id": 2, "x": 2.5}]
    assert lake.read("silver", "m", "t", version=0, bare=True).to_pydict() == {"id": [1], "x": [1]}
    assert history(lake) == [(1, "first"), (2, "compatible")]


def test_a_whole_number_that_no_real_one_equals_stops_the_widening(lake: Lake, csv: Csv) -> None:
    land(lake, csv(f"id,x\n1,{2**53 + 1}\n"))
    wider = contract("{name: id, logicalType: integer}", "{name: x, logicalType: number}", custom=LENIENT)
    with pytest.raises(BadInput, match="the column `x` of silver/m/t cannot become double"):
        land(lake, csv("id,x\n2,2.5\n"), wider, hours=1)
    assert standing(lake) == [{"id": 1, "x": 2**53 + 1}]


BREAKING = [
    pytest.param(
        contract("{name: id, logicalType: integer}", "{name: x, logicalType: string}", custom=LENIENT),
        "x: the type is another: string, was integer", id="another type",
    ),
    pytest.param(
        contract("{name: id, logicalType: integer}", "{name: x, logicalType: integer, required: true}", custom=LENIENT),
        "x: newly promised", id="required",
    ),
    pytest.param(
        contract(
            "{name: id, logicalType: integer, primaryKey: true}", "{name: x, logicalType: integer}", custom=LENIENT
        ),
        "key: rows are named by id now", id="a key",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "why"), BREAKING)
def test_a_break_with_landed_rows_is_refused_with_the_ways_out(
    lake: Lake, csv: Csv, broken: Contract, why: str
) -> None:
    land(lake, csv("id,x\n1,1\n1,\n"))
    versions = {layer: lake.version(layer, "m", "t") for layer in ("bronze", "silver")}  # type: ignore[arg-type]
    with pytest.raises(Refused, match=f"{why}.*--rebuild t.*new name.*load: full"):
        land(lake, csv("id,x\n2,2\n"), broken, hours=1)
    assert versions == {layer: lake.version(layer, "m", "t") for layer in versions}  # type: ignore[arg-type]
    assert history(lake) == [(1, "first")]


@pytest.mark.parametrize(("broken", "why"), BREAKING)
def test_after_a_rebuild_deliveries_go_on(lake: Lake, csv: Csv, broken: Contract, why: str) -> None:
    land(lake, csv("id,x\n1,1\n1,\n"))
    anew(lake, broken)
    assert land(lake, csv("id,x\n2,2\n"), broken, hours=30).good_rows == 1
    assert history(lake) == [(1, "first"), (2, "breaking")]


def test_a_full_load_may_break_with_what_it_replaces(lake: Lake, csv: Csv) -> None:
    full = LENIENT + ", {property: load, value: full}"
    land(lake, csv("id,x\n1,1\n"), contract("{name: id, logicalType: integer}", "{name: x}", custom=full))
    whole = contract("{name: id, logicalType: integer}", "{name: x, logicalType: integer}", custom=full)
    land(lake, csv("id,x\n2,2\n"), whole, hours=1)
    assert standing(lake) == [{"id": 2, "x": 2}]
    assert lake.read("bronze", "m", "t").num_rows == 2


STRICT = contract(
    "{name: id, logicalType: integer, primaryKey: true}",
    "{name: x, logicalType: integer, logicalTypeOptions: {minimum: 0}}", custom=LENIENT,
)  # fmt: skip


def test_bronze_is_judged_anew_batch_by_batch(lake: Lake, csv: Csv) -> None:
    first = land(lake, csv("id,x\n1,1\n2,-2\n3,oops\n9\n"))
    second = land(lake, csv("id,x\n1,5\n4,4\n"), hours=1)
    bronze = lake.version("bronze", "m", "t")
    reports = anew(lake, STRICT)
    assert [(r.batch_id, r.input_rows, r.good_rows, r.bad_rows) for r in reports] == [
        (first.batch_id, 4, 1, 3), (second.batch_id, 2, 1, 1),
    ]  # fmt: skip
    assert standing(lake) == [{"id": 1, "x": 1}, {"id": 4, "x": 4}]
    held = lake.read("quarantine", "m", "t").to_pylist()
    assert sorted((row["id"] or "", row["_reasons"]) for row in held) == [
        ("", ["malformed line 5: 1 fields, wanted 2"]),
        ("1", ["id unique", f"id unique: batch {first.batch_id[:12]} holds it"]),
        ("2", ["x >= 0"]),
        ("3", ["x is an integer"]),
    ]
    assert lake.version("bronze", "m", "t") == bronze
    assert {row["_at"] for row in held} == {NOON, NOON + timedelta(hours=1)}
    with lake.ledger.read() as conn:
        assert [row.action for row in ledger_store.rows(conn)].count("data.rebuild") == 1
        assert [batch.report["good_rows"] for batch in store.list_batches(conn, "m/t")] == [1, 1]
    assert land(lake, csv("id,x\n1,5\n4,4\n"), STRICT, hours=40).already_landed


def test_what_the_new_contract_keeps_out_leaves_all_as_it_was(lake: Lake, csv: Csv) -> None:
    land(lake, csv("id,x\n1,1\n"))
    land(lake, csv("id,x\n2,oops\n"), hours=1)
    versions = [lake.version(layer, "m", "t") for layer in ("silver", "quarantine")]  # type: ignore[arg-type]
    hard = contract(
        "{name: id, logicalType: integer}", "{name: x, logicalType: integer}",
        custom="{property: maxBadShare, value: 0}",
    )  # fmt: skip
    with pytest.raises(BatchBlocked, match="share of bad rows"):
        anew(lake, hard)
    assert [lake.version(layer, "m", "t") for layer in ("silver", "quarantine")] == versions  # type: ignore[arg-type]
    assert history(lake) == [(1, "first")]


def test_a_column_younger_than_a_batch_is_null_in_it(lake: Lake, csv: Csv) -> None:
    land(lake, csv("id,x\n1,1\n"))
    more = contract(
        "{name: id, logicalType: integer}", "{name: x, logicalType: integer}", "{name: y}", custom=LENIENT
    )  # fmt: skip
    land(lake, csv("id,x,y\n2,2,b\n"), more, hours=1)
    before = standing(lake)
    anew(lake, more)
    assert standing(lake) == before == [{"id": 1, "x": 1, "y": None}, {"id": 2, "x": 2, "y": "b"}]
    needed = contract(
        "{name: id, logicalType: integer}", "{name: x, logicalType: integer}", "{name: y, required: true}",
        custom=LENIENT,
    )  # fmt: skip
    assert [report.bad_rows for report in anew(lake, needed)] == [1, 0]


def test_nothing_is_judged_anew_where_nothing_landed(lake: Lake) -> None:
    with pytest.raises(NotFound, match="nothing has landed"):
        anew(lake, PLAIN)
