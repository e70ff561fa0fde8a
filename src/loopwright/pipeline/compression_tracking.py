"""Candidates as child runs of the run that compresses, and what a killed one left is closed."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopwright.kernel.errors import LoopwrightError
from loopwright.kernel.files import write_atomic
from loopwright.ledger.engine import Ledger
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
        end_left(self._uri, run_id)


def end_left(tracking_uri: str, run_id: str, status: str = "KILLED") -> None:
    """Show a run as killed, or as `status`; a server that does not answer shows it as running, and the log says so."""
    if not run_id or run_id.startswith("offline_"):
        return
    from loopwright.training.tracker_mlflow import MlflowTracker

    try:
        MlflowTracker(tracking_uri).end_run(run_id, status, int(time.time() * 1000))
    except LoopwrightError as error:
        log.warning("run %s is still shown as running: %s", run_id, error)


def end_registered(ledger: Ledger, model: str, tracking_uri: str, folder: Path) -> None:
    """End the run in `folder` that was killed after its outcome was in the ledger, and before it was shown as ended.

    To be called by whoever holds the folder's lock.
    """
    run_id, status = _marked(ledger, model, folder)
    if status in ("FINISHED", "REFUSED"):
        end_left(tracking_uri, run_id, "FINISHED")
        unmark(folder)


def close_interrupted(setting: Setting, tracking_uri: str, folder: Path) -> str:
    """Close the run that a killed compression in `folder` left open; its id, "" when there is none.

    To be called by whoever holds the folder's lock: then nobody works at it.
    """
    run_id, status = _marked(setting.ledger, setting.project.spec.model, folder)
    if status == "RUNNING":
        close_failed(setting, run_id, "interrupted; what it measured is taken over")
        end_left(tracking_uri, run_id)
    unmark(folder)
    return run_id if status == "RUNNING" else ""


def _marked(ledger: Ledger, model: str, folder: Path) -> tuple[str, str]:
    """The run that works in `folder`, or was killed there, and its state in the ledger; ("", "") for none."""
    mark = folder / "running.json"
    try:
        run_id = str(json.loads(mark.read_bytes())["run_id"])
    except FileNotFoundError:
        return "", ""
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s says nothing (%s)", mark, error)
        unmark(folder)
        return "", ""
    with ledger.read() as conn:
        known = store.list_runs(conn, model, limit=1000)
    return run_id, next((str(one["status"]) for one in known if one["run_id"] == run_id), "")


def mark_running(folder: Path, run_id: str) -> None:
    """Say that `run_id` works in `folder`."""
    write_atomic(folder / "running.json", json.dumps({"run_id": run_id}).encode())


def unmark(folder: Path) -> None:
    """Nobody works in `folder` any more."""
    (folder / "running.json").unlink(missing_ok=True)
