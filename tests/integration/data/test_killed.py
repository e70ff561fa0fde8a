"""kill -9 of an ingestion, anywhere: running it again finishes the work, with no row twice and none missing."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.compute as pc
import pytest

from loopwright.data import store
from loopwright.data.lake import Lake
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger

ROWS, BAD = 40_000, 400

CHILD = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from loopwright.data import ingest as module
from loopwright.data.contract import Contract
from loopwright.data.lake import Lake
from loopwright.data.source import resolve
from loopwright.kernel.actor import SYSTEM
from loopwright.ledger.engine import Ledger

root, deadly = Path(sys.argv[1]), sys.argv[2]
ledger = Ledger.open(f"sqlite:///{root / 'ledger.db'}")

class Fragile(Lake):
    def write(self, layer, *args, **named):
        if deadly == f"before {layer}":
            os.kill(os.getpid(), signal.SIGKILL)
        version = super().write(layer, *args, **named)
        if deadly == f"after {layer}":
            os.kill(os.getpid(), signal.SIGKILL)
        return version

def append(*args, **named):
    if deadly == "in the ledger":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **named)

real, module.ledger_store.append = module.ledger_store.append, append
print("ready", flush=True)
report = module.ingest(
    Fragile(root / "lake", ledger), model="m", table="t", source=resolve("rows.csv", root),
    contract=Contract.load(root / "t.odcs.yaml"), actor=SYSTEM, now=datetime(2013, 7, 1, tzinfo=UTC),
)
print(report.input_rows, report.good_rows, report.bad_rows, flush=True)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    lines = [f"{n},{'oops' if n % (ROWS // BAD) == 0 else n * 0.5}" for n in range(ROWS)]
    (tmp_path / "rows.csv").write_text("id,x\n" + "\n".join(lines) + "\n")
    (tmp_path / "t.odcs.yaml").write_text(
        "apiVersion: v3.1.0\nkind: DataContract\nid: t\nschema:\n  - name: t\n    properties:\n"
        "      - {name: id, logicalType: integer, primaryKey: true}\n      - {name: x, logicalType: number}\n"
    )
    (tmp_path / "child.py").write_text(CHILD)
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.migrate()
    ledger.dispose()
    return tmp_path


def start(root: Path, deadly: str = "") -> "subprocess.Popen[str]":
    child = subprocess.Popen(
        [sys.executable, root / "child.py", root, deadly], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def finish(root: Path) -> str:
    out, _ = start(root).communicate(timeout=120)
    return out.strip()


def assert_whole(root: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{root / 'ledger.db'}")
    lake = Lake(root / "lake", ledger)
    silver = lake.read("silver", "m", "t")
    assert silver.num_rows == ROWS - BAD
    assert pc.count_distinct(silver.column("id")).as_py() == ROWS - BAD
    assert lake.read("quarantine", "m", "t").num_rows == BAD
    assert lake.read("bronze", "m", "t").num_rows == ROWS
    with ledger.read() as conn:
        assert len(store.list_batches(conn, "m/t")) == 1
        assert [row.action for row in ledger_store.rows(conn)] == ["data.ingest"]
        assert ledger_store.verify(conn).ok
    ledger.dispose()


@pytest.mark.parametrize(
    "deadly",
    [
        "before bronze",
        "after bronze",
        "before quarantine",
        "after quarantine",
        "before silver",
        "after silver",
        "in the ledger",
    ],
)
def test_killed_between_two_steps(root: Path, deadly: str) -> None:
    child = start(root, deadly)
    assert child.wait(timeout=120) == -signal.SIGKILL
    assert finish(root) == f"{ROWS} {ROWS - BAD} {BAD}"
    assert_whole(root)


def test_killed_at_random_moments(root: Path) -> None:
    seed = int(os.environ.get("LOOPWRIGHT_TEST_SEED", "7"))
    moments = random.Random(seed)
    killed = 0
    for _ in range(6):
        child = start(root)
        time.sleep(moments.uniform(0.0, 0.5))
        child.kill()
        killed += child.wait(timeout=60) == -signal.SIGKILL
    assert killed
    assert finish(root) == f"{ROWS} {ROWS - BAD} {BAD}"
    assert_whole(root)
