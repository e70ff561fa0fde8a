"""Keeps the online store up to date where projects ask for it (`online: {every: 15m}`).

Each materialisation is a process of its own, one at a time: a project's code does not run beside the keys, and one that
is killed goes on where it was when the next begins.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from loopwright.control.context import Context
from loopwright.control.controllers.retraining import NOT_INHERITED
from loopwright.features import store as feature_store
from loopwright.pipeline import store as pipeline_store
from loopwright.project.spec import Spec

LOOK_EVERY = 5.0
"""Seconds between two looks at what is due."""
RETRY_AFTER = timedelta(minutes=1)
"""A materialisation that failed is not tried again sooner; every further failure doubles the wait."""
MOST_RETRY_AFTER = timedelta(hours=1)

log = logging.getLogger("loopwright.control")

Command = Callable[[Context, str], list[str]]


def materialize_command(ctx: Context, model: str) -> list[str]:
    """The command line that brings `model` up to date."""
    return [
        sys.executable,
        "-m",
        "loopwright",
        "features",
        "materialize",
        model,
        "--home",
        str(ctx.home.root),
        "--json",
    ]


@dataclass
class OnlineController:
    """Owns the child process at work."""

    command: Command = materialize_command
    timer: Callable[[], float] = time.monotonic
    _looked: float | None = None
    _tried: dict[str, datetime] = field(default_factory=dict)
    _failures: dict[str, int] = field(default_factory=dict)
    _child: tuple[str, subprocess.Popen[bytes], Path] | None = None

    def tick(self, ctx: Context) -> list[dict[str, Any]]:
        """One round; see `loop.Tick`."""
        did = self._ended()
        if self._child is not None or (self._looked is not None and self.timer() - self._looked < LOOK_EVERY):
            return did
        self._looked = self.timer()
        model = self._due(ctx)
        if model is not None:
            self._start(ctx, model)
            did.append({"model": model, "started": "materialisation"})
        return did

    def _due(self, ctx: Context) -> str | None:
        """The model that has waited longest, if one is due."""
        waiting: list[tuple[datetime, str]] = []
        with ctx.ledger.read() as conn:
            for model in pipeline_store.online_models(conn):
                found = pipeline_store.find_project(conn, model)
                online = Spec.from_json(found["spec"]).online if found else None
                if online is None or online.every is None:
                    continue
                tried = self._tried.get(model)
                if tried is not None and ctx.now - tried < self._pause(model, online.every):
                    continue
                last = feature_store.last_as_of(conn, model)
                if last is None or ctx.now - last >= online.every:
                    waiting.append((last or datetime.min.replace(tzinfo=ctx.now.tzinfo), model))
        return min(waiting)[1] if waiting else None

    def _pause(self, model: str, every: timedelta) -> timedelta:
        """How long after a try the next may come: what keeps failing is tried less and less often."""
        again = min(max(self._failures.get(model, 0) - 1, 0), 20)
        return min(min(every, RETRY_AFTER) * (1 << again), max(MOST_RETRY_AFTER, every))

    def _start(self, ctx: Context, model: str) -> None:
        self._tried[model] = ctx.now
        path = ctx.home.logs / "features" / f"{model}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as output:
            child = subprocess.Popen(
                self.command(ctx, model), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,  # ^C at the control plane does not cut it short
                env={name: value for name, value in os.environ.items() if name not in NOT_INHERITED},
            )  # fmt: skip
        self._child = (model, child, path)

    def _ended(self) -> list[dict[str, Any]]:
        if self._child is None or self._child[1].poll() is None:
            return []
        (model, child, path), self._child = self._child, None
        if child.returncode:
            self._failures[model] = self._failures.get(model, 0) + 1
            lines = path.read_text(errors="replace").strip().splitlines()
            why = lines[-1][:500] if lines else f"exit code {child.returncode}"
            log.error("features of %s: %s", model, why)
            return [{"model": model, "failed": why}]
        self._failures.pop(model, None)
        return [{"model": model, "materialised": True}]
