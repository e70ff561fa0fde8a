"""kill -9 of a release or a drop, anywhere: doing it again finishes it, no row is in both tables or in neither."""

import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from loopwright.data.contract import Contract
from loopwright.data.incidents import store
from loopwright.data.ingest import ingest
from loopwright.data.lake import Lake
from loopwright.data.quarantine import Choice, drop, release
from loopwright.data.source import resolve
from loopwright.kernel.actor import SYSTEM
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger

ROWS, BAD = 400, 40
NOW = datetime(2013, 7, 1, tzinfo=UTC)
CONTRACT = """
apiVersion: v3.1.0
kind: DataContract
id: t
schema:
  - name: t
    properties:
      - {name: id, logicalType: integer, primaryKey: true}
      - {name: x, logicalType: number, logicalTypeOptions: {maximum: MAXIMUM}}
    customProperties: [{property: maxBadShare, value: 1}]
"""
CHILD = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from loopwright.data import quarantine as module
from loopwright.data.contract import Contract
from loopwright.data.lake import Lake
from loopwright.kernel.actor import SYSTEM
from loopwright.ledger.engine import Ledger

root, act, deadly = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
ledger = Ledger.open(f"sqlite:///{root / 'ledger.db'}")

def die(moment):
    if deadly == moment:
        os.kill(os.getpid(), signal.SIGKILL)

class Fragile(Lake):
    def write(self, layer, *args, **named):
        die(f"before {layer}")
        version = super().write(layer, *args, **named)
        die(f"after {layer}")
        return version

def append(*args, **named):
    die("in the ledger")
    return real(*args, **named)

def decide(*args, **named):
    real_add(*args, **named)
    die("deciding")

real, module.ledger_store.append = module.ledger_store.append, append
real_add, module.store.add_decision = module.store.add_decision, decide
lake, now = Fragile(root / "lake", ledger), datetime(2013, 7, 2, tzinfo=UTC)
if act == "release":
    contract = Contract.load(root / "wide.odcs.yaml")
    module.release(lake, model="m", table="t", contract=contract, choice=module.Choice(), actor=SYSTEM, now=now)
else:
    module.drop(lake, model="m", table="t", choice=module.Choice(), actor=SYSTEM, now=now, reason="no use")
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    lines = [f"{n},{999 if n % (ROWS // BAD) == 0 else 1}" for n in range(ROWS)]
    (tmp_path / "rows.csv").write_text("id,x\n" + "\n".join(lines) + "\n")
    (tmp_path / "t.odcs.yaml").write_text(CONTRACT.replace("MAXIMUM", "10"))
    (tmp_path / "wide.odcs.yaml").write_text(CONTRACT.replace("MAXIMUM", "1000"))
    (tmp_path / "child.py").write_text(CHILD)
    lake = opened(tmp_path)
    ingest(
        lake, model="m", table="t", source=resolve("rows.csv", tmp_path),
        contract=Contract.load(tmp_path / "t.odcs.yaml"), actor=SYSTEM, now=NOW,
    )  # fmt: skip
    assert (len(ids(lake, "silver")), len(ids(lake, "quarantine"))) == (ROWS - BAD, BAD)
    lake.ledger.dispose()
    return tmp_path


def opened(root: Path) -> Lake:
    ledger = Ledger.open(f"sqlite:///{root / 'ledger.db'}")
    ledger.migrate()
    return Lake(root / "lake", ledger)


def ids(lake: Lake, layer: str) -> list[int]:
    return [int(one) for one in lake.read(layer, "m", "t").column("id").to_pylist()]  # type: ignore[arg-type]


def killed(root: Path, act: str, deadly: str) -> None:
    child = subprocess.run(
        [sys.executable, root / "child.py", root, act, deadly], capture_output=True, text=True
    )
    assert child.returncode == -signal.SIGKILL, child.stderr


MOMENTS = [
    "deciding",
    "before silver",
    "after silver",
    "before quarantine",
    "after quarantine",
    "in the ledger",
]


@pytest.mark.parametrize("deadly", MOMENTS)
def test_a_release_killed_anywhere_lets_each_row_in_once(root: Path, deadly: str) -> None:
    killed(root, "release", deadly)
    lake = opened(root)
    contract = Contract.load(root / "wide.odcs.yaml")
    for _ in range(2):
        release(lake, model="m", table="t", contract=contract, choice=Choice(), actor=SYSTEM, now=NOW)
    assert sorted(ids(lake, "silver")) == list(range(ROWS))
    assert ids(lake, "quarantine") == []
    with lake.ledger.read() as conn:
        (batch,) = store.deliveries(conn, "m/t")
        told = [d for d in store.decisions(conn, "m/t") if (d.outcome or {}).get("released")]
        audited = ledger_store.rows(conn, action="data.released")
        assert store.pending_decisions(conn, "m/t") == []
    assert (batch.good, batch.bad) == (ROWS, 0)
    assert sum((d.outcome or {})["released"] for d in told) == BAD
    assert sum(row.payload["released"] for row in audited) == BAD
    lake.ledger.dispose()


@pytest.mark.parametrize("deadly", ["deciding", "after quarantine"])
def test_a_drop_killed_anywhere_counts_once(root: Path, deadly: str) -> None:
    killed(root, "drop", deadly)
    lake = opened(root)
    for _ in range(2):
        drop(lake, model="m", table="t", choice=Choice(), actor=SYSTEM, now=NOW, reason="no use")
    assert (len(ids(lake, "silver")), ids(lake, "quarantine")) == (ROWS - BAD, [])
    with lake.ledger.read() as conn:
        (batch,) = store.deliveries(conn, "m/t")
        audited = ledger_store.rows(conn, action="data.dropped")
        assert store.pending_decisions(conn, "m/t") == []
    assert (batch.good, batch.bad) == (ROWS - BAD, 0)
    assert sum(row.payload["dropped"] for row in audited) == BAD
    lake.ledger.dispose()


def test_a_contract_that_changed_after_the_kill_does_not_keep_a_row_in_both(root: Path) -> None:
    killed(root, "release", "after silver")
    lake = opened(root)
    strict = Contract.load(root / "t.odcs.yaml")
    release(lake, model="m", table="t", contract=strict, choice=Choice(), actor=SYSTEM, now=NOW)
    assert sorted(ids(lake, "silver")) == list(range(ROWS))
    assert ids(lake, "quarantine") == []
    lake.ledger.dispose()
