"""Step 10: the first run repeats, the audit chain holds and shows tampering, and the picture is of real figures."""

import calendar
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import matplotlib.image
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from loopwright.demo.processes import Process, free_port
from loopwright.kernel.home import Home
from loopwright.ledger.engine import Ledger
from loopwright.ledger.store import verify
from tests.lifecycle.conftest import Played

MONTHS = {number: calendar.month_name[number] for number in range(4, 13)}


def test_the_first_run_repeats(played: Played) -> None:
    told = played.figures["reproduce"]
    row = played.row("lw_versions", 1)
    assert told["run_id"] == row["run_id"]
    assert (told["snapshot"], told["rows"]) == (row["snapshot"], 367_667)
    assert told["verdict"] in ("bitwise", "within tolerance")
    recorded = json.loads(row["metrics"])
    assert {pair["name"]: pair["first"] for pair in told["metrics"]} == recorded
    for pair in told["metrics"]:
        assert pair["again"] == pytest.approx(pair["first"], rel=1e-6)
    if told["verdict"] == "bitwise":
        assert all(pair["again"] == pair["first"] for pair in told["metrics"])
    assert f"loopwright reproduce {row['run_id']}: {told['verdict']}" in played.text


def test_the_chain_of_the_audit_log_holds_when_walked_by_hand(played: Played) -> None:
    rows = played.sql("SELECT * FROM lw_audit ORDER BY seq")
    previous = rows[0]["prev_hash"]
    for number, row in enumerate(rows, start=1):
        assert row["seq"] == number
        assert row["prev_hash"] == previous
        fields = [
            row["seq"], row["at"], row["actor"], row["action"], row["subject"],
            json.loads(row["payload"]), row["prev_hash"],
        ]  # fmt: skip
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        previous = hashlib.sha256(text.encode()).hexdigest()
        assert row["hash"] == previous
    told = played.figures["audit"]
    assert told["ok"] is True
    assert told["rows"] <= len(rows)
    assert rows[told["rows"] - 1]["hash"] == told["head"]


@pytest.fixture
def copy(played: Played, tmp_path: Path) -> Path:
    """A home with a copy of the ledger, and nothing else but the keys."""
    home = tmp_path / "home"
    Home.at(home).create()
    shutil.copytree(played.home.keys, home / "keys", dirs_exist_ok=True)
    with (
        sqlite3.connect(played.home.root / "ledger.db") as ledger,
        sqlite3.connect(home / "ledger.db") as other,
    ):
        ledger.backup(other)
    return home


def audit_verify(home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loopwright", "audit", "verify", "--home", str(home), "--json"],
        capture_output=True,
        text=True,
    )


def test_the_log_cannot_be_changed_in_passing(copy: Path) -> None:
    ledger = sqlite3.connect(copy / "ledger.db")
    for statement in (
        "UPDATE lw_audit SET actor = 'bo' WHERE seq = 17",
        "DELETE FROM lw_audit WHERE seq = 17",
    ):
        with pytest.raises(sqlite3.DatabaseError, match="audit"):
            ledger.execute(statement)
    ledger.close()
    whole = audit_verify(copy)
    assert whole.returncode == 0
    assert json.loads(whole.stdout)["ok"] is True


@pytest.mark.parametrize(
    ("change", "broken_at"),
    [
        ("UPDATE lw_audit SET actor = 'mallory' WHERE seq = 17", 17),
        ("DELETE FROM lw_audit WHERE seq = 15", 15),
        ("DELETE FROM lw_audit WHERE seq = (SELECT max(seq) FROM lw_audit)", None),
    ],
    ids=["an approver's name changed", "the refusal removed", "the last row removed"],
)
def test_a_tampered_copy_is_found_out(copy: Path, change: str, broken_at: int | None) -> None:
    ledger = sqlite3.connect(copy / "ledger.db")
    guards = [
        name
        for (name,) in ledger.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'lw_audit'"
        )
    ]
    assert guards
    for name in guards:
        ledger.execute(f'DROP TRIGGER "{name}"')
    ledger.execute(change)
    ledger.commit()
    rows = ledger.execute("SELECT count(*) FROM lw_audit").fetchone()[0]
    ledger.close()

    found = audit_verify(copy)
    assert found.returncode == 1
    report = json.loads(found.stdout)
    assert report["ok"] is False
    assert report["broken_at"] == (broken_at or rows + 1)
    opened = Ledger.open(f"sqlite:///{copy / 'ledger.db'}")
    with opened.read() as conn:
        assert verify(conn).why == report["why"]
    opened.dispose()


def test_the_table_has_every_month_with_both_qualities(
    played: Played, source: duckdb.DuckDBPyConnection
) -> None:
    months = {month["month"]: month for month in played.figures["quality"]["months"]}
    assert list(months) == list(MONTHS)
    answered = dict(
        played.predictions(
            "SELECT month(event_time), count(*) FROM log WHERE arm <> 'shadow' AND status <> 'error' "
            "AND event_time < '2014-01-01' GROUP BY 1"
        )
    )
    assert {number: month["flights"] for number, month in months.items()} == answered
    for number, month in months.items():
        assert f"{MONTHS[number]}" in played.text
        assert f"{month['flights']:,}" in played.text
        assert f"{month['frozen']:.4f}" in played.text
        assert f"{month['maintained']:.4f}" in played.text
        assert sum(month["versions"].values()) == month["flights"]
        if number > 4:
            pairs = played.predictions(
                "SELECT label, outputs[1] FROM log JOIN labels USING (id) WHERE arm <> 'shadow' AND status <> 'error' "
                f"AND month(event_time) = {number} AND year(event_time) = 2013"
            )
            y, p = np.array(pairs).T
            assert month["maintained"] == pytest.approx(roc_auc_score(y, p), abs=2e-3)


def test_the_frozen_models_quality_is_that_of_version_1_on_the_same_flights(played: Played) -> None:
    months = {month["month"]: month for month in played.figures["quality"]["months"]}
    assert months[4]["versions"] == {"1": months[4]["flights"]}
    assert months[4]["maintained"] == pytest.approx(months[4]["frozen"], abs=2e-3)
    bundle = played.bundle(1)
    for number in (8, 10):
        logged = played.predictions(
            "SELECT label, inputs FROM log JOIN labels USING (id) WHERE arm <> 'shadow' AND status <> 'error' "
            f"AND month(event_time) = {number}"
        )
        columns = zip(*(json.loads(inputs) for _, inputs in logged), strict=True)
        inputs = {
            field.name: np.array(column, dtype=object)
            for field, column in zip(bundle.schema.inputs, columns, strict=True)
        }
        auc = roc_auc_score([label for label, _ in logged], bundle.predict(inputs)[:, 0])
        assert months[number]["frozen"] == pytest.approx(auc, abs=2e-3)


def test_the_loop_was_worth_it(played: Played) -> None:
    months = played.figures["quality"]["months"]
    gains = [month["maintained"] - month["frozen"] for month in months if month["month"] > 5]
    assert float(np.mean(gains)) > 0


def test_the_picture_is_a_picture(played: Played) -> None:
    path = Path(played.figures["quality"]["picture"])
    assert path.parent == played.home.root
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 600
    green = np.array([0x0B, 0x6E, 0x4F]) / 255
    drawn = np.abs(pixels[..., :3] - green).max(axis=-1) < 0.02
    assert drawn.sum() > 200  # the maintained line
    assert str(path) in played.text


def test_the_final_table_names_versions_stages_and_approvers(played: Played) -> None:
    told = {row["version"]: row for row in played.figures["versions"]["versions"]}
    stages = {row["version"]: row["stage"] for row in played.sql("SELECT version, stage FROM lw_versions")}
    assert {version: row["stage"] for version, row in told.items()} == stages
    assert list(stages.values()).count("Production") == 1
    for promotion in played.sql("SELECT * FROM lw_promotions"):
        reviewers = played.sql(
            f"SELECT reviewer FROM lw_approvals WHERE promotion_id = '{promotion['id']}' ORDER BY at"
        )
        assert told[promotion["version"]]["approvers"] == [row["reviewer"] for row in reviewers]


def test_the_kept_home_answers_to_all_commands(played: Played) -> None:
    def told(*words: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "loopwright", *words, "--home", str(played.home.root), "--json"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    (status,) = told("status")
    assert status["model"] == "flight-late"
    versions = told("models", "show", "flight-late")
    assert len(versions["versions"]) == len(played.sql("SELECT * FROM lw_versions"))
    runs = told("runs", "list")
    assert len(runs) == len(played.sql("SELECT * FROM lw_runs"))


PLAIN_MLFLOW = """
import sys, mlflow
from mlflow import MlflowClient
(version,) = MlflowClient().get_latest_versions("flight-late", ["Production"])
model = mlflow.pyfunc.load_model("models:/flight-late/Production")
print(version.version, version.source, model.metadata.metadata["loopwright_model"])
"""


def test_up_serves_the_kept_home_to_plain_mlflow(played: Played, copy: Path, tmp_path: Path) -> None:
    shutil.copytree(played.home.bundles, copy / "artifacts" / "bundles", dirs_exist_ok=True)
    with sqlite3.connect(copy / "ledger.db") as ledger:
        # The copy must not retrain behind the test's back.
        ledger.execute("UPDATE lw_projects SET path = '/nowhere'")
    url = f"http://127.0.0.1:{free_port()}"
    up = Process(["up", "--home", str(copy), "--port", url.rpartition(":")[2]], log=tmp_path / "up.log")
    with up:
        up.wait_ready(f"{url}/readyz")
        client = {"MLFLOW_TRACKING_URI": f"{url}/mlflow", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PLAIN_MLFLOW],
            env={**os.environ, **client, "NO_PROXY": "127.0.0.1"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    (live,) = played.sql("SELECT version, bundle FROM lw_versions WHERE stage = 'Production'")
    assert done.stdout.split() == [
        str(live["version"]),
        f"mlflow-artifacts:/bundles/{live['bundle']}",
        "flight-late",
    ]


def test_the_story_was_told_in_its_ten_steps(played: Played) -> None:
    for words in (
        "Ingest and check", "Register and promote", "Serve with 2 workers", "Deliver version 2",
        "roll back by itself", "Monitor the following months", "Prove it",
    ):  # fmt: skip
        assert words in played.text
