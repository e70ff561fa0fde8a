import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from loopwright.data import store
from loopwright.data.contract import Contract
from loopwright.data.files import Files
from loopwright.data.ingest import BatchBlocked, IngestReport, ingest
from loopwright.data.lake import Lake
from loopwright.data.snapshot import silver
from loopwright.data.source import Source, public_uri, resolve
from loopwright.data.staged import MALFORMED, Staged
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, Refused, Unavailable
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger
from loopwright.registry.lineage.store import load
from tests.integration.data.conftest import contract

ADA = Actor("ada", Role.DEVELOPER)
NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
KEYED = contract(
    "{name: id, logicalType: integer, primaryKey: true}", "{name: x, logicalType: number}",
    custom="{property: maxBadShare, value: 1}",
)  # fmt: skip
FULL = contract("{name: x, logicalType: integer}", custom="{property: load, value: full}")
Csv = Callable[[str], Source]


def land(lake: Lake, source: Source, rules: Contract = KEYED, hours: int = 0) -> IngestReport:
    return ingest(
        lake,
        model="m",
        table="t",
        source=source,
        contract=rules,
        actor=ADA,
        now=NOON + timedelta(hours=hours),
    )


def actions(lake: Lake) -> list[str]:
    with lake.ledger.read() as conn:
        return [row.action for row in ledger_store.rows(conn)]


def test_good_rows_go_to_silver_bad_ones_to_quarantine_with_reasons(lake: Lake, csv: Csv) -> None:
    report = land(lake, csv("id,x\n1,0.5\n2,oops\n1,7\nA,b\n3\n4,\n"))
    assert (report.input_rows, report.good_rows, report.bad_rows) == (6, 2, 4)
    assert silver(lake, "m", "t").to_pydict() == {"id": [1, 4], "x": [0.5, None]}
    quarantine = lake.read("quarantine", "m", "t").to_pylist()
    assert [(row["_row"], row["id"], row["x"], row["_reasons"]) for row in quarantine] == [
        (2, "2", "oops", ["x is a number"]),
        (3, "1", "7", ["id unique"]),
        (4, "A", "b", ["id is an integer", "x is a number"]),
        (None, None, None, ["malformed line 6: 1 fields, wanted 2"]),
    ]
    assert quarantine[3]["_raw"] == "3"
    assert report.reasons == {"x is a number": 2, "id unique": 1, "id is an integer": 1, "malformed line": 1}
    assert lake.read("bronze", "m", "t").num_rows == 6


def test_keys_that_are_unique_in_each_delivery_may_come_again_in_another(lake: Lake, csv: Csv) -> None:
    rules = contract(
        "{name: id, logicalType: integer, unique: true, customProperties: [{property: scope, value: batch}]}",
        "{name: x, logicalType: number}", custom="{property: maxBadShare, value: 1}",
    )  # fmt: skip
    assert land(lake, csv("id,x\n1,1\n1,2\n2,3\n"), rules).bad_rows == 1
    report = land(lake, csv("id,x\n1,4\n2,5\n2,6\n"), rules)
    assert (report.good_rows, report.reasons) == (2, {"id unique": 1})
    assert sorted(silver(lake, "m", "t").column("x").to_pylist()) == [1, 3, 4, 5]


def test_the_ledger_remembers_batch_and_act_together(lake: Lake, csv: Csv) -> None:
    report = land(lake, csv("id,x\n1,1\n"))
    with lake.ledger.read() as conn:
        batch = store.find_batch(conn, "m/t", report.batch_id)
        audit = [row for row in ledger_store.rows(conn) if row.action == "data.ingest"]
    assert batch is not None
    assert batch.report == report.to_json()
    assert [(row.actor, row.subject, row.payload["good_rows"]) for row in audit] == [("ada", "m/t", 1)]


TEXT = contract(
    "{name: id, logicalType: integer, primaryKey: true}", "{name: x, logicalType: number, description: d}",
    custom="{property: maxBadShare, value: 1}",
)  # fmt: skip


def test_every_landing_is_remembered_with_the_version_it_made(lake: Lake, csv: Csv) -> None:
    first = land(lake, csv("id,x\n1,1\n2,x\n"))
    land(lake, csv("id,x\n3,3\n"))
    land(lake, csv("id,x\n3,3\n"))
    again = land(lake, csv("id,x\n1,1\n2,x\n"), TEXT, hours=5)
    with lake.ledger.read() as conn:
        landed = load(conn, "m").landings
    assert [(each.batch, each.silver) for each in landed] == [
        (first.batch_id, first.silver_version), (landed[1].batch, 1), (first.batch_id, again.silver_version),
    ]  # fmt: skip
    assert again.silver_version == 2 and {each.table for each in landed} == {"t"}
    assert [(each.good, each.bad, each.loading, each.actor) for each in landed] == [
        (1, 1, "append", "ada"), (1, 0, "append", "ada"), (1, 1, "append", "ada"),
    ]  # fmt: skip


def test_landing_the_same_source_again_does_nothing(lake: Lake, csv: Csv) -> None:
    first = land(lake, csv("id,x\n1,1\n2,x\n"))
    again = land(lake, csv("id,x\n1,1\n2,x\n"), hours=5)
    assert again.already_landed
    assert (again.input_rows, again.silver_version, again.rules) == (2, first.silver_version, first.rules)
    assert silver(lake, "m", "t").num_rows == 1
    assert actions(lake).count("data.ingest") == 1


def test_uniqueness_holds_over_all_batches(lake: Lake, csv: Csv) -> None:
    land(lake, csv("id,x\n1,1\n2,2\n"))
    second = land(lake, csv("id,x\n2,2\n3,3\n"))
    assert second.reasons == {"id unique": 1}
    assert sorted(silver(lake, "m", "t").column("id").to_pylist()) == [1, 2, 3]


def test_a_changed_contract_judges_the_batch_anew_and_replaces_its_rows(lake: Lake, csv: Csv) -> None:
    other = land(lake, csv("id,x\n9,9\n"))
    land(lake, csv("id,x\n1,1\n2,-2\n"))
    stricter = contract(
        "{name: id, logicalType: integer, primaryKey: true}",
        "{name: x, logicalType: number, logicalTypeOptions: {minimum: 0}}",
    )
    strict = land(lake, csv("id,x\n1,1\n2,-2\n"), stricter, hours=1)
    assert (strict.good_rows, strict.bad_rows) == (1, 1)
    assert sorted(silver(lake, "m", "t").column("id").to_pylist()) == [1, 9]
    back = land(lake, csv("id,x\n1,1\n2,-2\n"), hours=2)
    assert (back.good_rows, back.bad_rows) == (2, 0)
    assert sorted(silver(lake, "m", "t").column("id").to_pylist()) == [1, 2, 9]
    assert lake.read("quarantine", "m", "t").num_rows == 0
    assert lake.read("bronze", "m", "t").num_rows == 3
    assert other.bad_rows == 0


def test_a_full_load_replaces_the_table_and_may_come_back(lake: Lake, csv: Csv) -> None:
    for hours, text in enumerate(["x\n1\n2\n", "x\n3\n", "x\n1\n2\n", "x\n3\n"]):
        report = land(lake, csv(text), FULL, hours)
        assert not report.already_landed
        assert silver(lake, "m", "t").column("x").to_pylist() == [int(v) for v in text.split()[1:]]
    assert land(lake, csv("x\n3\n"), FULL, 9).already_landed


def test_a_full_load_replaces_what_is_quarantined_too(lake: Lake, csv: Csv) -> None:
    land(lake, csv("x\n1\noops\n"), FULL)
    assert lake.read("quarantine", "m", "t").column("x").to_pylist() == ["oops"]
    land(lake, csv("x\n1\n2\n"), FULL, 1)
    assert lake.read("quarantine", "m", "t").num_rows == 0
    assert lake.read("quarantine", "m", "t", version=0).num_rows == 1


def test_a_full_load_may_change_its_columns(lake: Lake, csv: Csv) -> None:
    land(lake, csv("x\n1\n"), FULL)
    land(lake, csv("x,y\na,b\n"), contract("{name: x}", "{name: y}", custom="{property: load, value: full}"))
    assert silver(lake, "m", "t").to_pydict() == {"x": ["a"], "y": ["b"]}


def test_a_new_column_is_null_in_older_rows(lake: Lake, csv: Csv) -> None:
    land(lake, csv("x\n1\n"), contract("{name: x, logicalType: integer}"))
    land(lake, csv("x,y\n2,b\n"), contract("{name: x, logicalType: integer}", "{name: y}"))
    assert sorted(silver(lake, "m", "t").to_pylist(), key=lambda r: r["x"]) == [
        {"x": 1, "y": None},
        {"x": 2, "y": "b"},
    ]


def test_a_blocked_batch_leaves_silver_alone_and_is_on_record(lake: Lake, csv: Csv) -> None:
    short = contract("{name: x, logicalType: integer}", quality="{metric: rowCount, mustBeGreaterThan: 2}")
    land(lake, csv("x\n1\n2\n3\n"), short)
    with pytest.raises(BatchBlocked, match="row count: measured 1") as caught:
        land(lake, csv("x\n4\n"), short)
    assert caught.value.report.state == "FAIL"
    assert isinstance(caught.value, Refused)
    assert silver(lake, "m", "t").num_rows == 3
    assert actions(lake)[-1] == "data.refused"
    lenient = contract("{name: x, logicalType: integer}")
    assert land(lake, csv("x\n4\n"), lenient).good_rows == 1
    assert lake.read("bronze", "m", "t").num_rows == 4


def test_a_rule_that_cannot_be_evaluated_blocks(lake: Lake, csv: Csv) -> None:
    broken = contract("{name: x}", quality="{type: custom, engine: loopwright, implementation: nope = 1}")
    with pytest.raises(BatchBlocked, match="cannot be evaluated"):
        land(lake, csv("x\n1\n"), broken)
    assert not lake.exists("silver", "m", "t")


@pytest.mark.parametrize("text", ["y\n1\n", "", "x\n", "x,x\n1,2\n"])
def test_what_cannot_be_read_leaves_nothing_behind(lake: Lake, csv: Csv, text: str) -> None:
    with pytest.raises(BadInput):
        land(lake, csv(text), FULL)
    assert not any(lake.exists(layer, "m", "t") for layer in ("bronze", "silver", "quarantine"))
    assert actions(lake) == []


def test_only_developers_ingest(lake: Lake, csv: Csv) -> None:
    with pytest.raises(Refused, match="may not ingest data"):
        ingest(
            lake,
            model="m",
            table="t",
            source=csv("x\n1\n"),
            contract=FULL,
            actor=Actor("eve", Role.VIEWER),
            now=NOON,
        )


def test_relationships_use_the_tables_that_landed_before(lake: Lake, csv: Csv) -> None:
    child = contract(
        "{name: x, logicalType: integer, relationships: [{to: parent.x}]}",
        custom="{property: maxBadShare, value: 1}",
    )
    with pytest.raises(BadInput, match="Ingest parent first"):
        land(lake, csv("x\n1\n"), child)
    ingest(lake, model="m", table="parent", source=csv("x\n1\n"), contract=FULL, actor=ADA, now=NOON)
    assert land(lake, csv("x\n1\n2\n"), child).reasons == {"x in parent.x": 1}


def test_two_processes_landing_one_source_land_it_once(lake: Lake, csv: Csv) -> None:
    source = csv("id,x\n" + "".join(f"{n},{n}\n" for n in range(500)))
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: land(lake, source), range(4)))
    assert [r.already_landed for r in reports].count(False) == 1
    assert silver(lake, "m", "t").num_rows == 500
    assert lake.read("bronze", "m", "t").num_rows == 500


def test_many_batches_land_side_by_side(lake: Lake, tmp_path: Path) -> None:
    def one(n: int) -> IngestReport:
        path = tmp_path / f"{n}.csv"
        path.write_text(f"id,x\n{n},1\n{n + 100},1\n")
        return land(lake, resolve(str(path), Path()))

    with ThreadPoolExecutor(4) as pool:
        assert sum(r.good_rows for r in pool.map(one, range(8))) == 16
    assert silver(lake, "m", "t").num_rows == 16


def test_a_lake_that_cannot_be_written_says_so(tmp_path: Path, csv: Csv) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.migrate()
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Unavailable, match="cannot"):
        land(Lake(tmp_path / "file" / "lake", ledger), csv("x\n1\n"), FULL)
    ledger.dispose()


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden"])
def test_a_table_stays_inside_its_lake(lake: Lake, name: str) -> None:
    with pytest.raises(BadInput, match="not a name"):
        lake.path("silver", "m", name)


def test_history_is_kept_for_seven_years(lake: Lake, csv: Csv) -> None:
    land(lake, csv("x\n1\n"), FULL)
    configuration = lake.open("silver", "m", "t").metadata().configuration
    assert configuration["delta.logRetentionDuration"] == "interval 2557 days"
    assert configuration["delta.deletedFileRetentionDuration"] == "interval 2557 days"


def test_a_write_with_a_name_happens_once(lake: Lake) -> None:
    rows = pa.table({"x": [1]})
    versions = [lake.write("gold", "m", "t", rows, once="landing") for _ in range(3)]
    assert versions == [0, 0, 0]
    assert lake.read("gold", "m", "t").num_rows == 1


def parquet(path: Path, **columns: object) -> Source:
    pa_parquet.write_table(pa.table(columns), path)
    return resolve(str(path), Path())


def test_a_parquet_file_of_other_types_is_kept_as_text_beside_text(
    lake: Lake, csv: Csv, tmp_path: Path
) -> None:
    land(lake, csv("id,x\n1,1\n"))
    report = land(lake, parquet(tmp_path / "b.parquet", id=[2, 3], x=[2.5, None]), hours=1)
    assert (report.good_rows, report.bad_rows) == (2, 0)
    assert sorted(lake.read("bronze", "m", "t").column("x").to_pylist(), key=str) == ["1", "2.5", None]
    assert sorted(silver(lake, "m", "t").column("id").to_pylist()) == [1, 2, 3]


def test_a_parquet_file_whose_types_bronze_cannot_hold_is_refused_by_column(
    lake: Lake, tmp_path: Path
) -> None:
    land(lake, parquet(tmp_path / "a.parquet", id=pa.array([1], pa.int16()), x=[1.5]))
    land(
        lake,
        parquet(tmp_path / "b.parquet", id=pa.array([2], pa.int64()), x=pa.array([1], pa.int32())),
        hours=1,
    )
    with pytest.raises(
        BadInput, match="the column `x` of bronze/m/t changed its type; got string, wanted double"
    ):
        land(lake, parquet(tmp_path / "c.parquet", id=[3], x=["1.5"]), hours=2)
    assert sorted(silver(lake, "m", "t").column("id").to_pylist()) == [1, 2]
    assert lake.read("bronze", "m", "t").num_rows == 2


TIMED = contract(
    "{name: id, logicalType: integer}", "{name: at, logicalType: timestamp}",
    custom="{property: maxBadShare, value: 1}, {property: eventTime, value: at}",
)  # fmt: skip


def test_rows_that_happened_before_earlier_batches_are_counted_as_late(lake: Lake, csv: Csv) -> None:
    first = land(lake, csv("id,at\n1,2013-07-01T05:00:00Z\n2,2013-07-01T09:00:00Z\n"), TIMED)
    second = land(
        lake, csv("id,at\n3,2013-07-01T08:59:59Z\n4,2013-07-01T10:00:00Z\n5,2013-06-01T00:00:00Z\n"), TIMED, 1
    )
    assert (first.late_rows, second.late_rows) == (0, 2)
    assert silver(lake, "m", "t").num_rows == 5


def test_clocks_that_disagree_are_told(lake: Lake, csv: Csv) -> None:
    report = land(lake, csv("id,at\n1,2013-07-01T13:00:00Z\n2,2013-07-01T11:00:00Z\n"), TIMED)
    assert report.notes == ("1 rows have a `at` after the time of ingestion, 2013-07-01T12:00:00Z",)
    back = land(lake, csv("id,at\n3,2013-07-01T01:00:00Z\n"), TIMED, hours=-3)
    assert back.notes == (
        "the clock says 2013-07-01T09:00:00Z, earlier than the newest ingestion of this table, 2013-07-01T12:00:00Z",
    )
    assert not back.already_landed and silver(lake, "m", "t").num_rows == 3


def test_a_clock_that_goes_back_does_not_bring_an_old_full_load_back(lake: Lake, csv: Csv) -> None:
    land(lake, csv("x\n1\n"), FULL)
    land(lake, csv("x\n2\n"), FULL, hours=-1)
    assert silver(lake, "m", "t").column("x").to_pylist() == [2]
    assert land(lake, csv("x\n2\n"), FULL, hours=1).already_landed
    assert not land(lake, csv("x\n1\n"), FULL, hours=2).already_landed


def test_bronze_says_where_a_row_came_from_and_when(lake: Lake, csv: Csv) -> None:
    report = land(lake, csv("id,x\n1,1\n2\n"))
    rows = lake.read("bronze", "m", "t").sort_by("_row").to_pylist()
    assert [(row["_row"], row["id"], row["_raw"], row["_malformed"]) for row in rows] == [
        (1, "1", None, None), (None, None, "2", "line 3: 1 fields, wanted 2"),
    ]  # fmt: skip
    assert {(row["_batch"], row["_ingested_at"]) for row in rows} == {(report.batch_id, NOON)}
    assert all(row["_source"].endswith("source.csv") for row in rows)


def test_bronze_keeps_all_that_a_full_load_ever_brought(lake: Lake, csv: Csv) -> None:
    for hours, text in enumerate(["x\n1\n2\n", "x\n3\n", "x\n1\n2\n"]):
        land(lake, csv(text), FULL, hours)
    assert sorted(lake.read("bronze", "m", "t").column("x").to_pylist()) == ["1", "2", "3"]


MANY = contract(
    "{name: id, logicalType: integer, primaryKey: true}", "{name: x, logicalType: number}",
    quality="{metric: rowCount, mustBeGreaterThan: 5}",
)  # fmt: skip
SHOP = pa.schema([("id", pa.int64()), ("x", pa.float64())])


@dataclass(frozen=True)
class Query:
    """An incremental source as `ingest` sees one: no digest before it is read, a cursor after."""

    rows: pa.Table
    cursor: Mapping[str, int]
    uri: str = "postgresql://ada:secret@db/shop?table=orders"
    digest: str | None = None

    def stage(self, into: Path, nulls: Sequence[str], *, progress: object = None) -> Staged:
        path = into / "rows.parquet"
        pa_parquet.write_table(self.rows, path)
        batch = hashlib.sha256(repr(self.rows.to_pydict()).encode()).hexdigest()
        rows = Files((str(path),), self.rows.schema, self.rows.num_rows, numbered=True)
        return Staged(public_uri(self.uri), batch, rows, Files((), MALFORMED, 0), self.cursor)


def test_the_cursor_is_written_with_the_landing_and_not_without(lake: Lake) -> None:
    def read(ids: list[int], value: int, rules: Contract = KEYED) -> IngestReport:
        source = Query(pa.table({"id": ids, "x": [1.0] * len(ids)}, schema=SHOP), {"id": value})
        return land(lake, source, rules)  # type: ignore[arg-type]

    def cursor() -> Mapping[str, object] | None:
        with lake.ledger.read() as conn:
            return store.find_cursor(conn, "m/t", public_uri(Query.uri))

    with pytest.raises(BadInput, match="holds no rows"):
        read([], 0)
    assert cursor() is None
    assert read([1, 2], 2).good_rows == 2
    assert cursor() == {"id": 2}
    assert read([], 2).already_landed
    with pytest.raises(BatchBlocked):
        read([3], 3, MANY)
    assert cursor() == {"id": 2}
    assert read([3], 3).good_rows == 1
    assert cursor() == {"id": 3}
    assert "secret" not in str(lake.read("bronze", "m", "t").to_pydict())


def test_memory_does_not_grow_with_the_source(lake: Lake, tmp_path: Path) -> None:
    """Arrow's own count of what it holds; 1.5 million rows of 90 MB pass through."""
    path, rows = tmp_path / "many.parquet", 100_000
    with pa_parquet.ParquetWriter(path, SHOP.append(pa.field("t", pa.string()))) as writer:
        for n in range(15):
            ids = pa.array(range(n * rows, (n + 1) * rows))
            writer.write_table(
                pa.table(
                    {
                        "id": ids,
                        "x": pa.array([0.5] * rows),
                        "t": pa.array([f"{n}-{i:040}" for i in range(rows)]),
                    }
                )
            )
    before, most = pa.total_allocated_bytes(), 0

    def told(phase: str, done: int, of: int | None) -> None:
        nonlocal most
        most = max(most, pa.total_allocated_bytes() - before)

    report = ingest(
        lake, model="m", table="t", source=resolve(str(path), Path()),
        contract=contract("{name: id, logicalType: integer}", "{name: x, logicalType: number}", "{name: t}"),
        actor=ADA, now=NOON, told=told,
    )  # fmt: skip
    assert report.good_rows == 15 * rows
    assert 0 < most < 90 << 20
