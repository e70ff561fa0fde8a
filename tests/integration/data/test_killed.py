"""kill -9 of a landing, anywhere: running it again ends where a landing that nobody disturbed ends."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from loopwright.data import store
from loopwright.data.lake import Lake
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger

ROWS = 400
KILLS = 50
CONTRACT = (
    "apiVersion: v3.1.0\nkind: DataContract\nid: t\nschema:\n  - name: t\n    properties:\n"
    "      - {{name: id, logicalType: integer, primaryKey: true}}\n"
    "      - {{name: x, logicalType: number, logicalTypeOptions: {{minimum: {least}}}}}\n"
    "      - {{name: at, logicalType: timestamp}}\n"
    "    customProperties: [{{property: load, value: {load}}}, {{property: maxBadShare, value: 1}}{more}]\n"
)
VERSIONED = ", {property: versionColumn, value: at}"
LAND = {
    load: [["land", "one.csv", f"{load}.yaml", 0], ["land", "two.csv", f"{load}.yaml", 1]]
    for load in ("append", "full", "upsert")
}
JOBS: dict[str, list[list[Any]]] = {
    **LAND,
    "append, judged anew": [*LAND["append"], ["rebuild", "append-strict.yaml", 2]],
    "upsert, judged anew": [*LAND["upsert"], ["rebuild", "upsert-strict.yaml", 2]],
}


class Landings:
    """A warm process that lands in forks."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        here = Path(__file__).parents[3]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.data.landing_child"], cwd=here, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **environment},
        )  # fmt: skip
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def run(self, job: Mapping[str, Any]) -> int:
        """Do a job; returns its exit code, -9 when it was killed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._read())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def landings() -> Iterator[Landings]:
    process = Landings({})
    yield process
    process.close()


def lines(first: int, hour: int) -> str:
    cells = (
        f"{n},{'oops' if n % 100 == 0 else n * 0.5},2013-07-01T{hour:02}:{n % 60:02}:00Z"
        for n in range(first, first + ROWS)
    )
    return "id,x,at\n" + "\n".join(cells) + "\n7\n"


def prepare(root: Path) -> Path:
    root.mkdir()
    (root / "one.csv").write_text(lines(0, 5))
    # Half of it has keys of the first: duplicates when appended, later versions when upserted.
    (root / "two.csv").write_text(lines(ROWS // 2, 6))
    for load, more in (("append", ""), ("full", ""), ("upsert", VERSIONED)):
        (root / f"{load}.yaml").write_text(CONTRACT.format(load=load, more=more, least=0))
        (root / f"{load}-strict.yaml").write_text(CONTRACT.format(load=load, more=more, least=100))
    ledger = Ledger.open(f"sqlite:///{root / 'ledger.db'}")
    ledger.migrate()
    ledger.dispose()
    return root


def acts(root: Path) -> list[tuple[str, int]]:
    """What was done to the data, as the audit log has it."""
    ledger = Ledger.open(f"sqlite:///{root / 'ledger.db'}")
    with ledger.read() as conn:
        rows = ledger_store.rows(conn)
    ledger.dispose()
    return [(row.action, row.payload["good_rows"]) for row in rows if row.action.startswith("data.")]


def outcome(root: Path, where: str) -> dict[str, Any]:
    """All that can be seen of the tables and the ledger, but for versions of tables."""
    ledger = Ledger.open(f"sqlite:///{root / 'ledger.db'}")
    lake = Lake(where, ledger)
    seen: dict[str, Any] = {}
    for layer in ("bronze", "silver", "quarantine"):
        rows = lake.read(layer, "m", "t").to_pylist()  # type: ignore[arg-type]
        seen[layer] = sorted((dict(sorted(row.items())) for row in rows), key=repr)
    with ledger.read() as conn:
        seen["batches"] = [
            (batch.id, batch.at, *(batch.report[k] for k in ("input_rows", "good_rows", "bad_rows", "reasons",
                                                             "inserted", "updated", "ignored_late")))
            for batch in store.list_batches(conn, "m/t")
        ]  # fmt: skip
        seen["landed"] = store.landed_batches(conn, "m/t")
        seen["contracts"] = [(c.digest, c.change) for c in store.contract_history(conn, "m/t")]
        assert ledger_store.verify(conn).ok
    ledger.dispose()
    return seen | {"acts": acts(root)}


@pytest.fixture(scope="module")
def undisturbed(landings: Landings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """How each job ends, how long it and its last step take, and a copy of how things stand before the last step."""
    found = {}
    for name, steps in JOBS.items():
        root = prepare(tmp_path_factory.mktemp("undisturbed") / "root")
        job = {"root": str(root), "lake": str(root / "lake"), "steps": steps}
        began = time.monotonic()
        assert landings.run({**job, "steps": steps[:-1]}) == 0
        before = shutil.copytree(root, root.with_name("before"))
        middle = time.monotonic()
        assert landings.run(job) == 0
        ended = time.monotonic()
        times = {"took": ended - began, "last": ended - middle, "before": before}
        found[name] = {"seen": outcome(root, job["lake"]), **times}
    return found


def test_an_undisturbed_landing_is_what_it_should_be(undisturbed: dict[str, dict[str, Any]]) -> None:
    bad = ROWS // 100 + 1  # the words, and a line that is no row
    appended, upserted = undisturbed["append"]["seen"], undisturbed["upsert"]["seen"]
    assert len(appended["bronze"]) == len(upserted["bronze"]) == 2 * (ROWS + 1)
    assert len(appended["silver"]) == ROWS * 3 // 2 * 99 // 100
    assert len(upserted["silver"]) == ROWS * 3 // 2 * 99 // 100
    assert [batch[2:5] for batch in upserted["batches"]] == [(ROWS + 1, ROWS + 1 - bad, bad)] * 2
    assert upserted["batches"][1][6:] == (ROWS // 2 * 99 // 100, ROWS // 2 * 99 // 100, 0)
    assert len(undisturbed["full"]["seen"]["silver"]) == ROWS + 1 - bad
    for mode in ("append", "upsert"):
        anew = undisturbed[f"{mode}, judged anew"]["seen"]
        assert min(row["x"] for row in anew["silver"]) == 100.5
        assert anew["bronze"] == undisturbed[mode]["seen"]["bronze"]
        assert [act for act, _ in anew["acts"]] == ["data.ingest", "data.ingest", "data.rebuild"]


@pytest.mark.parametrize("name", JOBS)
def test_killed_between_any_two_steps(
    name: str, landings: Landings, undisturbed: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    root = shutil.copytree(undisturbed[name]["before"], tmp_path / "root")
    job = {"root": str(root), "lake": str(root / "lake"), "steps": JOBS[name]}
    layers = ("silver", "quarantine") if "judged anew" in name else ("bronze", "silver", "quarantine")
    for deadly in (*(f"{side} {layer}" for layer in layers for side in ("before", "after")), "in the ledger"):
        assert landings.run({**job, "deadly": deadly}) == -signal.SIGKILL, deadly
    assert landings.run(job) == 0
    assert outcome(root, job["lake"]) == undisturbed[name]["seen"]


def test_killed_at_fifty_random_moments(
    landings: Landings, undisturbed: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    moments = random.Random(int(os.environ.get("LOOPWRIGHT_TEST_SEED", "7")))
    kills = lakes = 0
    # How long there is something to kill. Measured while the machine was slower, it shrinks.
    reach = {name: known["took" if name == "append" else "last"] for name, known in undisturbed.items()}
    while kills < KILLS:
        name = list(JOBS)[lakes % len(JOBS)]
        scratch, known = name == "append", undisturbed[name]
        root = (
            prepare(tmp_path / str(lakes))
            if scratch
            else shutil.copytree(known["before"], tmp_path / str(lakes))
        )
        job = {"root": str(root), "lake": str(root / "lake"), "steps": JOBS[name]}
        ended = -signal.SIGKILL
        for attempt in range(8):
            moment = moments.uniform(0.0, reach[name])
            ended = landings.run({**job, "kill_after": moment})
            if ended == 0:
                reach[name] *= 1.0 if attempt else 0.8
                break
            assert ended == -signal.SIGKILL
            kills += 1
            if len(acts(root)) == len(known["seen"]["acts"]):
                ended = 0  # killed behind its last write: there is nothing left to do
                break
        assert ended == 0 or landings.run(job) == 0
        assert outcome(root, job["lake"]) == undisturbed[name]["seen"], f"lake {lakes}, {name}"
        lakes += 1
    assert lakes < 80
