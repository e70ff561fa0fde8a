"""Retraining runs: started once, recorded whatever becomes of them, found again after a crash."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from loopwright.control.context import Context
from loopwright.control.controllers.retraining import Command, Paths, RetrainingController, training_command
from loopwright.pipeline import store as pipeline_store
from loopwright.retraining import propose
from loopwright.retraining import store as retraining_store
from loopwright.retraining.store import Retrain


@pytest.fixture
def proposed(ctx: Context, tmp_path: Path) -> Retrain:
    """A run somebody asked for; its project is a folder with a loop.yaml nobody reads here."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "loop.yaml").write_text("model: late\n")
    with ctx.ledger.write() as conn:
        pipeline_store.save_project(conn, "late", str(folder), {}, "0", ctx.now)
        return propose.retrain_now(
            conn, model="late", actor=ctx.actor, why="test", event_time=ctx.now, now=ctx.now
        )


def says(report: object, *, code: int = 0, after: Path | None = None) -> Command:
    """A run that waits for a file, prints `report` and ends."""
    wait = f"[time.sleep(0.02) for _ in range(3000) if not os.path.exists({str(after)!r})]" if after else ""
    script = f"import os, sys, time\n{wait}\nsys.stdout.write({json.dumps(report)!r}); sys.exit({code})"

    def command(ctx: Context, retrain: Retrain, project: Path) -> list[str]:
        return [sys.executable, "-c", script, retrain.id]

    return command


def until_settled(
    ctx: Context, controller: RetrainingController, retrain: Retrain
) -> tuple[Retrain, list[Any]]:
    did: list[Any] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        did += controller.tick(ctx)
        with ctx.ledger.read() as conn:
            found = retraining_store.get_retrain(conn, retrain.id)
        if found.state in ("succeeded", "failed"):
            return found, did
        time.sleep(0.05)
    raise AssertionError("the retraining did not settle")


def test_a_run_that_registered_a_version_succeeded(ctx: Context, proposed: Retrain) -> None:
    controller = RetrainingController(command=says({"run_id": "r1", "version": 4}))
    found, did = until_settled(ctx, controller, proposed)
    assert (found.state, found.run_id, found.version) == ("succeeded", "r1", 4)
    assert [one["state"] for one in did] == ["running", "succeeded"]


def test_a_run_whose_gates_said_no_failed_and_says_why(ctx: Context, proposed: Retrain) -> None:
    report = {"run_id": "r1", "version": None, "refused": "roc_auc too low"}
    found, did = until_settled(ctx, RetrainingController(command=says(report, code=1)), proposed)
    assert (found.state, found.run_id) == ("failed", "r1")
    assert did[-1]["why"] == "roc_auc too low"


def test_a_run_that_died_failed_with_the_end_of_its_log(ctx: Context, proposed: Retrain) -> None:
    def dies(ctx: Context, retrain: Retrain, project: Path) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit('the data is gone')", retrain.id]

    found, did = until_settled(ctx, RetrainingController(command=dies), proposed)
    assert found.state == "failed"
    assert "the data is gone" in did[-1]["why"]


def test_after_a_crash_the_next_control_plane_finds_the_run_at_work(
    ctx: Context, proposed: Retrain, tmp_path: Path
) -> None:
    command = says({"run_id": "r1", "version": 2}, after=tmp_path / "go")
    RetrainingController(command=command).tick(ctx)
    heir = RetrainingController(command=says({"run_id": "wrong", "version": 9}))
    did = heir.tick(ctx)
    (tmp_path / "go").touch()
    assert did == []
    found, _ = until_settled(ctx, heir, proposed)
    assert (found.state, found.run_id, found.version) == ("succeeded", "r1", 2)


def test_a_run_that_vanished_with_the_machine_is_failed_not_forgotten(
    ctx: Context, proposed: Retrain
) -> None:
    with ctx.ledger.write() as conn:
        retraining_store.mark(conn, proposed.id, "running", now=ctx.now)
    (did,) = RetrainingController().tick(ctx)
    assert did["state"] == "failed"
    assert "without a report" in did["why"]


def test_a_project_that_is_gone_fails_the_run(ctx: Context, proposed: Retrain, tmp_path: Path) -> None:
    (tmp_path / "project" / "loop.yaml").unlink()
    (did,) = RetrainingController().tick(ctx)
    assert (did["state"], "project is gone" in did["why"]) == ("failed", True)


def test_one_run_at_a_time(ctx: Context, proposed: Retrain, tmp_path: Path) -> None:
    controller = RetrainingController(command=says({"version": 1}, after=tmp_path / "go"))
    did = [controller.tick(ctx) for _ in range(2)]
    (tmp_path / "go").touch()
    assert [len(one) for one in did] == [1, 0]
    until_settled(ctx, controller, proposed)


def test_the_run_trains_on_what_was_known_then_and_says_why(
    ctx: Context, proposed: Retrain, tmp_path: Path
) -> None:
    command = training_command(ctx, proposed, tmp_path)
    assert command[1:4] == ["-m", "loopwright", "run"]
    assert f"data.as_of={proposed.plan['as_of']}" in command
    assert command[command.index("--retrain") + 1] == proposed.id
    assert Paths.of(ctx, proposed).report.parent == ctx.home.logs / "retrains"
