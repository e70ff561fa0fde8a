import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import insert

from loopwright.data.ingest import ingest
from loopwright.data.lake import Lake
from loopwright.data.snapshot import Snapshot, read_snapshot, silver, take_snapshot, verify_snapshot
from loopwright.data.source import Source
from loopwright.data.versions.log import read_log
from loopwright.data.versions.vacuum import Plan, tables_in, vacuum
from loopwright.kernel.actor import SYSTEM
from loopwright.kernel.clock import to_us
from loopwright.kernel.errors import BadInput, Conflict, Tampered
from loopwright.ledger.schema import materializations, runs, versions
from loopwright.ledger.store import put_meta
from tests.integration.data.conftest import contract

FULL = contract(
    "{name: id, logicalType: integer, unique: true}", "{name: s}", custom="{property: load, value: full}"
)
Csv = Callable[[str], Source]
YEARS = timedelta(days=7 * 365.25)


def land(lake: Lake, source: Source, table: str = "t") -> Snapshot:
    now = datetime.now(UTC)
    ingest(lake, model="m", table=table, source=source, contract=FULL, actor=SYSTEM, now=now)
    return take_snapshot(lake, model="m", tables=[table], now=now)


def run_on(lake: Lake, snapshot: Snapshot, *, started: datetime, ended: bool = True) -> None:
    with lake.ledger.write() as conn:
        conn.execute(
            insert(runs).values(
                run_id=f"run-{snapshot.digest[:8]}", model="m", project="p", experiment="e", status="finished",
                started_at=to_us(started), ended_at=to_us(started) if ended else None, actor="ann",
                snapshot=snapshot.digest, params="{}", metrics="{}", context="{}", reason="test",
            )
        )  # fmt: skip


def register(lake: Lake, snapshot: Snapshot, *, deleted: bool = False) -> None:
    with lake.ledger.write() as conn:
        conn.execute(
            insert(versions).values(
                model="m", version=1, snapshot=snapshot.digest, stage="None", author="ann", created_at=0,
                metrics="{}", annotations="{}", deleted_at=1 if deleted else None,
            )
        )  # fmt: skip


def clear(
    lake: Lake,
    *,
    retain: timedelta = timedelta(),
    runs_for: timedelta = YEARS,
    later: timedelta = timedelta(days=1),
) -> dict[str, Plan]:
    told: list[Plan] = []
    plans = vacuum(
        lake, model="m", now=datetime.now(UTC) + later, retain=retain, runs_for=runs_for, announce=told.append
    )
    assert [plan for plan in plans if plan.files] == told
    return {f"{plan.layer}/{plan.table}": plan for plan in plans}


def parquet(lake: Lake, layer: str = "silver") -> set[str]:
    return {path.name for path in Path(lake.root, layer, "m", "t").glob("*.parquet")}


def test_what_a_run_rests_on_is_read_back_and_what_nobody_rests_on_is_gone(lake: Lake, csv: Csv) -> None:
    first = land(lake, csv("id,s\n1,a\n"))
    second = land(lake, csv("id,s\n2,b\n"))
    third = land(lake, csv("id,s\n3,c\n"))
    run_on(lake, first, started=datetime.now(UTC))
    before = parquet(lake)
    done = clear(lake)["silver/t"]
    assert verify_snapshot(lake, first.digest) == first
    assert read_snapshot(lake, first.digest, "t").to_pydict() == {"id": [1], "s": ["a"]}
    assert verify_snapshot(lake, third.digest) == third
    with pytest.raises(Tampered, match="vanished"):
        read_snapshot(lake, second.digest, "t")
    assert before - parquet(lake) == set(done.files) != set()
    assert done.bytes > 0
    assert [kept.why for kept in done.kept if kept.version == first.tables["t"]["version"]] == [
        (f"snapshot {first.digest[:12]}: run run-{first.digest[:8]}",)
    ]
    assert not clear(lake)["silver/t"].files


def test_a_registered_version_keeps_its_rows_for_ever_a_deleted_one_does_not(lake: Lake, csv: Csv) -> None:
    first = land(lake, csv("id,s\n1,a\n"))
    land(lake, csv("id,s\n2,b\n"))
    register(lake, first)
    clear(lake, later=timedelta(days=20_000))
    assert verify_snapshot(lake, first.digest) == first
    with lake.ledger.write() as conn:
        conn.execute(versions.update().values(deleted_at=1))
    clear(lake, later=timedelta(days=20_000))
    with pytest.raises(Tampered):
        verify_snapshot(lake, first.digest)


def test_a_run_keeps_its_rows_for_the_retention_and_while_it_runs(lake: Lake, csv: Csv) -> None:
    first, second = land(lake, csv("id,s\n1,a\n")), land(lake, csv("id,s\n2,b\n"))
    land(lake, csv("id,s\n3,c\n"))
    long_ago = datetime.now(UTC) - YEARS - timedelta(days=2)
    run_on(lake, first, started=long_ago)
    run_on(lake, second, started=long_ago, ended=False)
    clear(lake)
    with pytest.raises(Tampered):
        verify_snapshot(lake, first.digest)
    assert verify_snapshot(lake, second.digest) == second


def test_what_an_online_store_was_filled_from_stays(lake: Lake, csv: Csv) -> None:
    first = land(lake, csv("id,s\n1,a\n"))
    land(lake, csv("id,s\n2,b\n"))
    with lake.ledger.write() as conn:
        conn.execute(
            insert(materializations).values(
                id="x", model="m", view="v", store="sqlite", definition="d",
                table_version=first.tables["t"]["version"], as_of=0, kind="full", state="done", rows=1,
                progress="{}", started_at=0,
            )
        )  # fmt: skip
    clear(lake)
    assert verify_snapshot(lake, first.digest) == first


def test_what_the_gold_table_was_made_of_stays(lake: Lake, csv: Csv) -> None:
    first, second = land(lake, csv("id,s\n1,a\n")), land(lake, csv("id,s\n2,b\n"))
    land(lake, csv("id,s\n3,c\n"))
    with lake.ledger.write() as conn:
        put_meta(conn, "gold.m", json.dumps({"tables": {"t": first.tables["t"]["version"]}}))
    clear(lake)
    assert verify_snapshot(lake, first.digest) == first
    with pytest.raises(Tampered):
        verify_snapshot(lake, second.digest)


def test_within_the_retention_every_version_stays(lake: Lake, csv: Csv) -> None:
    first = land(lake, csv("id,s\n1,a\n"))
    land(lake, csv("id,s\n2,b\n"))
    before = parquet(lake)
    plans = clear(lake, retain=YEARS)
    assert not any(plan.files for plan in plans.values())
    assert parquet(lake) == before
    assert verify_snapshot(lake, first.digest) == first
    assert set(plans) == {"bronze/t", "silver/t"}


def test_files_of_writes_that_were_cut_short_go_once_no_writer_can_be_at_work(lake: Lake, csv: Csv) -> None:
    land(lake, csv("id,s\n1,a\n"))
    place = Path(lake.root, "silver", "m", "t")
    for name, days in (("old", 8), ("young", 6)):
        pq.write_table(pa.table({"id": [9]}), place / f"part-{name}.parquet")
        then = time.time() - days * 86400
        os.utime(place / f"part-{name}.parquet", (then, then))
    (place / "notes.txt").write_text("somebody's")
    done = clear(lake, retain=YEARS, later=timedelta())["silver/t"]
    assert (done.files, done.unnamed) == (("part-old.parquet",), 1)
    assert (place / "part-young.parquet").exists()
    assert (place / "notes.txt").exists()
    assert silver(lake, "m", "t").num_rows == 1


def test_listing_deletes_nothing(lake: Lake, csv: Csv) -> None:
    for text in ("1,a", "2,b"):
        land(lake, csv(f"id,s\n{text}\n"))
    before = parquet(lake)
    now = datetime.now(UTC) + timedelta(days=1)
    plans = vacuum(lake, model="m", now=now, retain=timedelta(), runs_for=YEARS)
    assert sum(len(plan.files) for plan in plans) == 1
    assert parquet(lake) == before
    with pytest.raises(BadInput, match="negative"):
        vacuum(lake, model="m", now=now, retain=-timedelta(days=1), runs_for=YEARS)


def test_a_log_with_a_gap_deletes_nothing(lake: Lake, csv: Csv) -> None:
    for text in ("1,a", "2,b", "3,c"):
        land(lake, csv(f"id,s\n{text}\n"))
    before = parquet(lake)
    (Path(lake.root, "silver", "m", "t", "_delta_log") / f"{1:020}.json").unlink()
    with pytest.raises(Conflict, match="the log of the table has gaps"):
        vacuum(
            lake, model="m", now=datetime.now(UTC), retain=timedelta(), runs_for=YEARS,
            announce=lambda plan: None,
        )  # fmt: skip
    assert parquet(lake) == before


def test_the_log_agrees_with_delta_about_every_version(lake: Lake, csv: Csv) -> None:
    for text in ("1,a", "2,b\n3,c", "4,d"):
        land(lake, csv(f"id,s\n{text}\n"))
    log = read_log(lake, "silver", "m", "t")
    for version in log.at:
        uris = {uri.rsplit("/", 1)[-1] for uri in lake.open("silver", "m", "t", version).file_uris()}
        assert {name for name in log.spans if log.holds(name, [version])} == uris


KILLED = """
import sys, time
from dataclasses import replace
from pathlib import Path
from loopwright.data.versions.vacuum import carry_out
from loopwright.ledger.engine import Ledger
from tests.integration.data.test_vacuum import *
lake = Lake(Path(sys.argv[1]), Ledger.open(sys.argv[2]))
def stop(plan):
    carry_out(lake, replace(plan, files=plan.files[: len(plan.files) // 2]))
    print("half", flush=True)
    time.sleep(60)
vacuum(lake, model="m", now=datetime.now(UTC) + timedelta(days=1), retain=timedelta(), runs_for=YEARS, announce=stop)
"""


def test_killed_half_way_the_next_call_deletes_the_rest(lake: Lake, csv: Csv, tmp_path: Path) -> None:
    snapshots = [land(lake, csv(f"id,s\n{n},x\n")) for n in range(5)]
    run_on(lake, snapshots[2], started=datetime.now(UTC))
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    killed = subprocess.Popen([sys.executable, "-c", KILLED, str(lake.root), url], stdout=subprocess.PIPE)
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"half\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert verify_snapshot(lake, snapshots[2].digest) == snapshots[2]
    left = clear(lake)
    assert sum(len(plan.files) for plan in left.values()) > 0
    assert not any(plan.files for plan in clear(lake).values())
    for kept in (snapshots[2], snapshots[4]):
        assert verify_snapshot(lake, kept.digest) == kept
    assert len(parquet(lake)) == 2


LANDING = """
import sys
from pathlib import Path
from loopwright.data.source import resolve
from loopwright.ledger.engine import Ledger
from tests.integration.data.test_vacuum import *
lake = Lake(Path(sys.argv[1]), Ledger.open(sys.argv[2]))
for n in range(12):
    path = Path(sys.argv[3]) / f"{n}.csv"
    path.write_text(f"id,s\\n{n},x\\n")
    land(lake, resolve(str(path), Path()))
"""


def test_landings_at_the_same_time_are_not_harmed(lake: Lake, csv: Csv, tmp_path: Path) -> None:
    land(lake, csv("id,s\n100,x\n"))
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    landing = subprocess.Popen([sys.executable, "-c", LANDING, str(lake.root), url, str(tmp_path)])
    rounds = 0
    while landing.poll() is None:
        clear(lake)
        rounds += 1
    assert landing.returncode == 0
    assert rounds > 1
    clear(lake)
    assert silver(lake, "m", "t").to_pydict() == {"id": [11], "s": ["x"]}
    assert len(parquet(lake)) == 1
    assert [each[:2] for each in tables_in(lake)] == [("bronze", "m"), ("silver", "m")]


def test_on_s3_the_same_stays_and_the_same_goes(lake: Lake, csv: Csv, s3_bucket: str) -> None:
    there = Lake(f"s3://{s3_bucket}/lake", lake.ledger)
    first, second, third = (land(there, csv(f"id,s\n{n},x\n")) for n in range(3))
    run_on(there, first, started=datetime.now(UTC))
    done = clear(there)["silver/t"]
    assert (len(done.files), done.bytes > 0) == (1, True)
    for kept in (first, third):
        assert verify_snapshot(there, kept.digest) == kept
    with pytest.raises(Tampered, match="vanished"):
        verify_snapshot(there, second.digest)
    assert not clear(there)["silver/t"].files
