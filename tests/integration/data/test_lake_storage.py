"""The lake keeps its promises wherever it lies: one class of tests over a folder and over a real S3 server."""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from loopwright.data import lease
from loopwright.data.duck import connect
from loopwright.data.files import Files
from loopwright.data.ingest import ingest
from loopwright.data.lake import Lake
from loopwright.data.parts import ROW_GROUP
from loopwright.data.rebuild import rebuild
from loopwright.data.snapshot import silver, take_snapshot, verify_snapshot
from loopwright.data.source import Source
from loopwright.kernel.actor import SYSTEM
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Unavailable
from loopwright.ledger.engine import Ledger
from tests.integration.data.conftest import contract
from tests.integration.data.test_killed import JOBS, Landings, outcome, prepare
from tests.object_store import S3Server

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
KEYED = contract(
    "{name: id, logicalType: integer, primaryKey: true}", "{name: x, logicalType: number}",
    custom="{property: maxBadShare, value: 1}",
)  # fmt: skip
Csv = Callable[[str], Source]


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "lake")
    return f"s3://{request.getfixturevalue('s3_bucket')}/lake"


@pytest.fixture
def lake(root: str, tmp_path: Path) -> Iterator[Lake]:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.migrate()
    yield Lake(root, ledger, staging=tmp_path / "staging")
    ledger.dispose()


def rows(*values: int, batch: str = "a") -> pa.Table:
    return pa.table(
        {"x": list(values), "_batch": [batch] * len(values), "_row": list(range(1, len(values) + 1))}
    )


def append(root: str, ledger: str, first: int) -> None:
    lake = Lake(root, Ledger.open(ledger))
    for n in range(first, first + 5):
        lake.write("gold", "m", "t", pa.table({"x": [n]}), once=f"write {n}")


class TestLake:
    def test_what_is_written_can_be_read_at_every_version(self, lake: Lake) -> None:
        assert not lake.exists("silver", "m", "t")
        assert lake.version("silver", "m", "t") is None
        assert lake.write("silver", "m", "t", rows(1, 2)) == 0
        assert lake.write("silver", "m", "t", rows(3, batch="b")) == 1
        assert lake.read("silver", "m", "t", columns=["x"]).select(["x"]).to_pydict() == {"x": [1, 2, 3]}
        assert lake.read("silver", "m", "t", version=0, bare=True).to_pydict() == {"x": [1, 2]}
        with pytest.raises(NotFound, match="has no version 9"):
            lake.open("silver", "m", "t", 9)
        with pytest.raises(NotFound, match="no table silver/m/u"):
            lake.open("silver", "m", "u")

    def test_a_named_write_happens_once(self, lake: Lake) -> None:
        assert [lake.write("gold", "m", "t", rows(1), once="this") for _ in range(3)] == [0, 0, 0]
        assert len(lake.files("gold", "m", "t").uris) == 1

    def test_a_batch_is_replaced_and_its_neighbours_stay(self, lake: Lake) -> None:
        lake.write("silver", "m", "t", pa.concat_tables([rows(1, 2), rows(3, batch="b")]))
        lake.write("silver", "m", "t", rows(4, batch="c"))
        untouched = lake.files("silver", "m", "t").uris
        lake.write("silver", "m", "t", rows(9), replace="a")
        assert sorted(lake.read("silver", "m", "t", columns=["x"]).column("x").to_pylist()) == [3, 4, 9]
        assert set(lake.files("silver", "m", "t").uris) & set(untouched)

    def test_a_younger_column_is_null_in_older_rows(self, lake: Lake) -> None:
        lake.write("silver", "m", "t", pa.table({"x": [1]}))
        lake.write("silver", "m", "t", pa.table({"x": [2], "y": ["b"]}))
        assert sorted(lake.read("silver", "m", "t").to_pylist(), key=lambda r: r["x"]) == [
            {"x": 1, "y": None}, {"x": 2, "y": "b"},
        ]  # fmt: skip

    def test_no_value_changes_its_type_silently(self, lake: Lake) -> None:
        lake.write("silver", "m", "t", pa.table({"x": [1]}))
        with pytest.raises(BadInput, match="the column `x` of silver/m/t changed its type"):
            lake.write("silver", "m", "t", pa.table({"x": [2.5]}))
        with pytest.raises(BadInput, match="spelled otherwise"):
            lake.write("silver", "m", "t", pa.table({"X": [2]}))
        lake.write("bronze", "m", "t", pa.table({"x": ["1"]}))
        lake.write("bronze", "m", "t", pa.table({"x": [2.5]}))
        assert sorted(lake.read("bronze", "m", "t").column("x").to_pylist()) == ["1", "2.5"]

    def test_duckdb_reads_what_lies_there(self, lake: Lake) -> None:
        lake.write("silver", "m", "t", rows(1, 2))
        lake.write("silver", "m", "t", pa.table({"x": [3], "y": ["b"], "_batch": ["b"], "_row": [1]}))
        found = lake.files("silver", "m", "t")
        with connect() as engine:
            found.view(engine, "t", origin="file")
            assert engine.execute("SELECT sum(x), count(y), count(DISTINCT file) FROM t").fetchall() == [
                (6, 1, 2)
            ]
            files = engine.execute("SELECT DISTINCT file FROM t ORDER BY 1").fetchall()
        assert tuple(file for (file,) in files) == found.uris
        assert pa.Table.from_batches(found.batches(["x"])).column("x").to_pylist() in ([1, 2, 3], [3, 1, 2])

    def test_files_carry_statistics_and_row_groups_of_a_sane_size(self, lake: Lake) -> None:
        many = ROW_GROUP + 10
        lake.write("gold", "m", "t", pa.table({"x": range(many), "s": ["a"] * many}))
        (uri,) = lake.files("gold", "m", "t").uris
        assert Files((uri,), pa.schema([("x", pa.int64())])).table().num_rows == many
        actions = pa.table(lake.open("gold", "m", "t").get_add_actions(flatten=True))
        (told,) = actions.select(["num_records", "min.x", "max.x", "max.s", "null_count.x"]).to_pylist()
        assert told == {"num_records": many, "min.x": 0, "max.x": many - 1, "max.s": "a", "null_count.x": 0}

    def test_processes_that_write_at_once_lose_nothing(self, lake: Lake, root: str) -> None:
        lake.write("gold", "m", "t", pa.table({"x": [-1]}))
        context = multiprocessing.get_context("spawn")
        writers = [context.Process(target=append, args=(root, lake.ledger.url, 10 * n)) for n in range(2)]
        for writer in writers:
            writer.start()
        append(root, lake.ledger.url, 50)
        for writer in writers:
            writer.join(180)
            assert writer.exitcode == 0
        found = sorted(lake.read("gold", "m", "t").column("x").to_pylist())
        assert found == [-1, *range(5), *range(10, 15), *range(50, 55)]

    def test_only_one_at_a_time_holds_a_table(self, lake: Lake, root: str) -> None:
        other = Lake(root, Ledger.open(lake.ledger.url))
        order: list[str] = []

        def second() -> None:
            with other.locked("m", "t"):
                order.append("second")

        with lake.locked("m", "t"):
            waiting = threading.Thread(target=second)
            waiting.start()
            time.sleep(0.4)
            order.append("first")
        waiting.join(30)
        assert order == ["first", "second"]

    def test_a_batch_lands_once_and_a_second_beside_it(self, lake: Lake, csv: Csv) -> None:
        def land(text: str, hours: int = 0) -> int:
            report = ingest(
                lake, model="m", table="t", source=csv(text), contract=KEYED, actor=SYSTEM,
                now=NOON + timedelta(hours=hours),
            )  # fmt: skip
            return 0 if report.already_landed else report.good_rows

        assert [land("id,x\n1,1\n2,oops\n"), land("id,x\n1,1\n2,oops\n"), land("id,x\n1,7\n3,3\n", 1)] == [
            1,
            0,
            1,
        ]
        held = lake.read("quarantine", "m", "t").to_pylist()
        assert sorted(row["_reasons"][0] for row in held) == ["id unique", "x is a number"]
        (named,) = [row["_reasons"][1:] for row in held if row["_reasons"][0] == "id unique"]
        (first,) = [row["_batch"] for row in held if row["_reasons"] == ["x is a number"]]
        assert named == [f"id unique: batch {first[:12]} holds it"]
        snapshot = take_snapshot(lake, model="m", tables=["t"], now=NOON)
        assert verify_snapshot(lake, snapshot.digest).rows == 2
        anew = rebuild(
            lake, model="m", table="t", contract=KEYED, actor=SYSTEM, now=NOON + timedelta(hours=2)
        )
        assert [report.good_rows for report in anew] == [1, 1]
        assert sorted(silver(lake, "m", "t").column("id").to_pylist()) == [1, 3]
        assert verify_snapshot(lake, snapshot.digest).rows == 2


class TestS3:
    @pytest.fixture
    def root(self, s3_bucket: str) -> str:
        return f"s3://{s3_bucket}/deep/in/it"

    def test_two_processes_landing_one_source_land_it_once(self, lake: Lake, csv: Csv) -> None:
        source = csv("id,x\n" + "".join(f"{n},{n}\n" for n in range(100)))

        def land(_: int) -> bool:
            return ingest(
                lake, model="m", table="t", source=source, contract=KEYED, actor=SYSTEM, now=NOON
            ).already_landed

        with ThreadPoolExecutor(3) as pool:
            assert sorted(pool.map(land, range(3))) == [False, True, True]
        assert silver(lake, "m", "t").num_rows == 100

    def test_a_dead_holder_keeps_others_out_for_a_while_only(self, lake: Lake) -> None:
        holder = lease.leased(lake.ledger, f"lake:{lake.root}/m/t", ttl=timedelta(seconds=0.5))
        dead = holder.__enter__()
        dead._stop.set()  # as kill -9 does: nobody renews, nobody gives it back
        began = time.monotonic()
        with lake.locked("m", "t"):
            assert time.monotonic() - began < 20
            with pytest.raises(Conflict, match="the right to write was lost"):
                dead.require()

    def test_who_lost_the_right_to_write_writes_nothing_more(self, lake: Lake) -> None:
        with lake.locked("m", "t"):
            (held,) = lake._leases.values()
            held.lost = "another process took it"
            with pytest.raises(Conflict, match="lost on the way"):
                lake.write("silver", "m", "t", rows(1))
        assert not lake.exists("silver", "m", "t")
        below = fs.FileSelector(lake.storage.inner(lake.root), recursive=True, allow_not_found=True)
        found = lake.storage.filesystem().get_file_info(below)
        assert [each.path for each in found if each.type is fs.FileType.File] == []

    def test_a_server_that_does_not_answer_is_told_with_what_to_check(
        self, lake: Lake, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        with pytest.raises(
            Unavailable, match=r"the storage of the tables does not answer.*AWS_ENDPOINT_URL_S3"
        ):
            Lake(lake.root, lake.ledger).exists("silver", "m", "t")

    def test_killed_while_it_lands_on_s3(self, s3_server: S3Server, root: str, tmp_path: Path) -> None:
        landings = Landings(s3_server.environment)
        calm, wild = prepare(tmp_path / "calm"), prepare(tmp_path / "wild")
        assert landings.run({"root": str(calm), "lake": f"{root}/calm", "steps": JOBS["upsert"]}) == 0
        job = {"root": str(wild), "lake": f"{root}/wild", "steps": JOBS["upsert"]}
        ends = [landings.run({**job, "deadly": f"{side} silver"}) for side in ("before", "after")]
        assert landings.run(job) == 0
        landings.close()
        assert ends == [-9, -9]
        assert outcome(wild, f"{root}/wild") == outcome(calm, f"{root}/calm")
