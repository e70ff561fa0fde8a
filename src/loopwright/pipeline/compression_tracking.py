"""Candidates as child runs of the run that compresses, and what a killed one left is closed."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopwright.kernel.errors import LoopwrightError
from loopwright.kernel.files import write_atomic
from loopwright.pipeline import store
from loopwright.pipeline.tracked import Setting, close_failed, tracked
from loopwright.training.recorder import Recorder

log = logging.getLogger(__name__)

PARENT = "mlflow.parentRunId"
"""The tag by which MLflow shows a run below another."""


class Children:
    """Starts child runs of `run_id`; a `compression.attempts.Tracking`."""

    def __init__(self, setting: Setting, tracking_uri: str, run_id: str) -> None:
        self._setting, self._uri, self._parent = setting, tracking_uri, run_id

    def start(self, name: str, params: Mapping[str, Any]) -> Recorder:
        """A run called `name` with the recipe's settings."""
        run = tracked(
            self._setting,
            self._uri,
            f"{self._setting.project.spec.model} {name}",
            {PARENT: self._parent, "loopwright.candidate": name},
        )
        run.params(params)
        return run

    def add(self, run_id: str, figures: Mapping[str, float]) -> None:
        """Figures that came after the run had ended; the parent's report has them in any case."""
        if not run_id or run_id.startswith("offline_"):
            return
        from loopwright.training.tracker_mlflow import MlflowTracker

        now = int(time.time() * 1000)
        try:
            MlflowTracker(self._uri).log(
                run_id, [(name, value, now, 0) for name, value in figures.items()], {}, {}
            )
        except LoopwrightError as error:
            log.warning("test figures are not in run %s, only in its parent's report: %s", run_id, error)

    def killed(self, run_id: str) -> None:
        """End a run that was killed with its process."""
        end_killed(self._uri, run_id)


def end_killed(tracking_uri: str, run_id: str) -> None:
    """Show a run as killed; a server that does not answer shows it as running, and the log says so."""
    if not run_id or run_id.startswith("offline_"):
        return
    from loopwright.training.tracker_mlflow import MlflowTracker

    try:
        MlflowTracker(tracking_uri).end_run(run_id, "KILLED", int(time.time() * 1000))
    except LoopwrightError as error:
        log.warning("run %s is still shown as running: %s", run_id, error)


def close_interrupted(setting: Setting, tracking_uri: str, folder: Path) -> str:
    """Close the run that a killed compression in `folder` left open; its id, "" when there is none.

    To be called by whoever holds the folder's lock: then nobody works at it.
    """
    mark = folder / "running.json"
    try:
        run_id = str(json.loads(mark.read_bytes())["run_id"])
    except FileNotFoundError:
        return ""
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s says nothing (%s)", mark, error)
        mark.unlink()
        return ""
    with setting.ledger.read() as conn:
        open_ = [one for one in store.list_runs(conn, setting.project.spec.model, limit=1000)
                 if one["run_id"] == run_id and one["status"] == "RUNNING"]  # fmt: skip
    if open_:
        close_failed(setting, run_id, "interrupted; what it measured is taken over")
        end_killed(tracking_uri, run_id)
    mark.unlink(missing_ok=True)
    return run_id if open_ else ""


def mark_running(folder: Path, run_id: str) -> None:
    """Say that `run_id` works in `folder`."""
    write_atomic(folder / "running.json", json.dumps({"run_id": run_id}).encode())


def unmark(folder: Path) -> None:
    """Nobody works in `folder` any more."""
    (folder / "running.json").unlink(missing_ok=True)
