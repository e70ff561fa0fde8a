"""Starts the runs that retraining asks for, one at a time, each as a process of its own, and records their outcome.

Everything needed to go on after `kill -9` is on disk: the row in the ledger, the process's pid and its report.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopwright.control.context import Context
from loopwright.kernel.errors import NotFound
from loopwright.kernel.files import write_atomic
from loopwright.ledger import store as ledger_store
from loopwright.pipeline import store as pipeline_store
from loopwright.retraining import propose
from loopwright.retraining import store as retraining_store
from loopwright.retraining.store import Retrain

# A retraining works on the home's folder as the product itself, whoever started the control plane; what it
# shows to the identity provider is no business of a project's code.
NOT_INHERITED = frozenset({"LOOPWRIGHT_URL", "LOOPWRIGHT_USER", "LOOPWRIGHT_TOKEN", "LOOPWRIGHT_OIDC_SECRET"})


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the process of a retraining leaves its traces."""

    pid: Path
    report: Path
    log: Path

    @classmethod
    def of(cls, ctx: Context, retrain: Retrain) -> "Paths":
        folder = ctx.home.logs / "retrains"
        return cls(folder / f"{retrain.id}.pid", folder / f"{retrain.id}.json", folder / f"{retrain.id}.log")


Command = Callable[[Context, Retrain, Path], list[str]]


def training_command(ctx: Context, retrain: Retrain, project: Path) -> list[str]:
    """The command line of the run that answers `retrain`, on what was known at its event time."""
    command = [
        sys.executable, "-m", "loopwright", "run", str(project), "--home", str(ctx.home.root),
        "--retrain", retrain.id, "--tracking-uri", ctx.tracking_uri, "--json",
    ]  # fmt: skip
    if retrain.plan.get("as_of"):
        command += ["--set", f"data.as_of={retrain.plan['as_of']}"]
    if retrain.plan.get("reason"):
        command += ["--reason", str(retrain.plan["reason"])]
    return command


class RetrainingController:
    """Owns the child processes. `token` is what they show to the tracking server."""

    def __init__(self, token: str | None = None, command: Command | None = None) -> None:
        self.token = token
        self.command = command or training_command
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def tick(self, ctx: Context) -> list[dict[str, Any]]:
        """Propose, finish what ended, start what is next; see `loop.Tick`."""
        did = [
            {"model": one.model, "retrain": one.id, "decision": one.decision, "why": one.why}
            for one in propose.tick(ctx.ledger, home=ctx.home, now=ctx.now)
        ]
        with ctx.ledger.read() as conn:
            waiting = retraining_store.list_retrains(conn, state="proposed")
            running = retraining_store.list_retrains(conn, state="running")
        for retrain in running:
            if not self._alive(ctx, retrain):
                did.append(self._finish(ctx, retrain))
                running = [other for other in running if other.id != retrain.id]
        if waiting and not running:
            did.append(self._start(ctx, min(waiting, key=lambda one: one.created_at)))
        return did

    def _start(self, ctx: Context, retrain: Retrain) -> dict[str, Any]:
        with ctx.ledger.read() as conn:
            try:
                folder = Path(pipeline_store.load_project_row(conn, retrain.model)["path"])
            except NotFound as error:
                return self._settle(ctx, retrain, "failed", {"why": str(error)})
        if not (folder / "loop.yaml").is_file():
            return self._settle(ctx, retrain, "failed", {"why": f"the project is gone: {folder}"})
        paths = Paths.of(ctx, retrain)
        paths.pid.parent.mkdir(parents=True, exist_ok=True)
        command = self.command(ctx, retrain, folder)
        environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        if self.token:
            environment["MLFLOW_TRACKING_TOKEN"] = self.token
        with ctx.ledger.write() as conn:
            retraining_store.mark(conn, retrain.id, "running", now=ctx.now)
            ledger_store.append(
                conn, at=ctx.now, actor=ctx.actor.name, action="retrain.started", subject=retrain.model,
                payload={"retrain": retrain.id, "why": retrain.why, "plan": retrain.plan},
            )  # fmt: skip
        with paths.report.open("wb") as report, paths.log.open("wb") as log:
            # A session of its own: stopping the control plane by ^C does not stop a training half-way.
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=report,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        write_atomic(paths.pid, str(child.pid).encode())
        self._children[retrain.id] = child
        return {"model": retrain.model, "retrain": retrain.id, "state": "running", "why": retrain.why}

    def _alive(self, ctx: Context, retrain: Retrain) -> bool:
        child = self._children.get(retrain.id)
        if child is not None:
            return child.poll() is None
        # Started by a control plane that is no more: the process may still be at work.
        try:
            pid = int(Paths.of(ctx, retrain).pid.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return False
        return retrain.id.encode() in command

    def _finish(self, ctx: Context, retrain: Retrain) -> dict[str, Any]:
        child = self._children.pop(retrain.id, None)
        paths = Paths.of(ctx, retrain)
        try:
            report = json.loads(paths.report.read_bytes())
        except (OSError, ValueError):
            report = None
        if isinstance(report, dict) and report.get("version") is not None:
            return self._settle(ctx, retrain, "succeeded", report)
        if isinstance(report, dict):
            return self._settle(
                ctx, retrain, "failed", {**report, "why": report.get("refused") or "the gates said no"}
            )
        code = "" if child is None else f" (exit code {child.returncode})"
        return self._settle(
            ctx, retrain, "failed", {"why": f"the run ended without a report{code}: {_tail(paths.log)}"}
        )

    def _settle(self, ctx: Context, retrain: Retrain, state: str, report: dict[str, Any]) -> dict[str, Any]:
        run_id, version, why = report.get("run_id"), report.get("version"), report.get("why", retrain.why)
        with ctx.ledger.write() as conn:
            retraining_store.mark(conn, retrain.id, state, run_id=run_id, version=version, now=ctx.now)
            ledger_store.append(
                conn, at=ctx.now, actor=ctx.actor.name, action=f"retrain.{state}", subject=retrain.model,
                payload={"retrain": retrain.id, "run_id": run_id, "version": version, "why": why},
            )  # fmt: skip
        return {
            "model": retrain.model, "retrain": retrain.id, "state": state, "run_id": run_id, "version": version,
            "why": why,
        }  # fmt: skip


def _tail(path: Path, limit: int = 500) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "no log"
    return (lines[-1] if lines else "nothing said")[-limit:]
