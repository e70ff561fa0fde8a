"""`loopwright demo flights`: the whole loop on a year of real flights, with the product's own processes.

The demo is a user: it copies the example project, starts `loopwright up` and `loopwright serve`, and from then on only
speaks to them as anybody could (HTTP, plain MLflow, `run_project` as `loopwright run` does).
"""

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.console import Console

from loopwright.control.client import HttpClient
from loopwright.control.context import Context, open_context
from loopwright.data.lake import Lake
from loopwright.demo import chapters
from loopwright.demo.narrator import Narrator
from loopwright.demo.processes import Process, free_port
from loopwright.demo.setting import MODEL, SERVER
from loopwright.demo.traffic import Port
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import Conflict, LoopwrightError
from loopwright.kernel.files import write_atomic
from loopwright.pipeline.lifecycle import RunReport, run_project
from loopwright.project.spec import load_project

REPORT = "demo.json"
PEOPLE = {"ana": "developer", "bo": "approver", "chen": "approver"}


@dataclass
class Stage:
    """What every chapter works with. `clients` holds one client per person, and `admin`."""

    context: Context
    project_dir: Path
    control_url: str
    clients: dict[str, HttpClient]
    tokens: dict[str, str]
    port: Port
    narrator: Narrator
    up: Process

    @property
    def home(self) -> Path:
        """The home's folder."""
        return self.context.home.root

    @property
    def lake(self) -> Lake:
        """The home's tables."""
        return Lake.of(self.context.home, self.context.ledger)

    def train(self, *, as_of: datetime, reason: str, overrides: tuple[str, ...] = ()) -> RunReport:
        """What `loopwright run` does, as ana; tracked through the control plane's MLflow."""
        stamp = as_of.strftime("%Y-%m-%dT%H:%M:%SZ")
        # Until its own chapter the loop does not retrain by itself, so that the story stays in order.
        project = load_project(self.project_dir, [f"data.as_of={stamp}", "retraining=null", *overrides])
        return run_project(
            project=project,
            home=self.context.home,
            ledger=self.context.ledger,
            actor=Actor("ana", Role.DEVELOPER),
            clock=self.context.clock,
            key=self.context.key,
            trusted=self.context.keyring.public,
            tracking_uri=f"{self.control_url}/mlflow",
            reason=reason,
            progress=self.narrator,
        )

    def approve(self, version: int, reason: str) -> dict[str, Any]:
        """ana asks, bo and chen agree; returns the promotion as it then stands."""
        self.clients["ana"].call(
            "models.promote", model=MODEL, version=version, to="production", reason=reason
        )
        self.clients["bo"].call("models.approve", model=MODEL, version=version, comment="gates and card read")
        answer = self.clients["chen"].call("models.approve", model=MODEL, version=version, comment="agreed")
        return dict(answer)


def run(keep: Path | None = None, *, console: Console | None = None) -> int:
    """Play the whole story; returns 0 when every chapter held, 1 when one did not.

    keep: the folder to leave the home in (must be empty or missing); without it everything is removed afterwards.
    Raises Conflict when `keep` holds something already.
    """
    with Narrator(console) as narrator, ExitStack() as stack:
        home = _home(keep, stack)
        stage = _open(home, narrator, stack)
        held = chapters.tell(stage, stack)
        write_atomic(home / REPORT, json.dumps(narrator.figures, indent=1, default=str).encode())
        narrator.say("")
        if keep is not None:
            narrator.say(f"Everything is kept in {home}. Look around:")
            narrator.say(f"  loopwright up --home {home}")
            narrator.say(f"  loopwright status --home {home}")
            narrator.say(f"  loopwright models show {MODEL} --home {home}")
        else:
            narrator.say("Nothing was kept. To look around afterwards: loopwright demo flights --keep DIR")
        return 0 if held else 1


def _home(keep: Path | None, stack: ExitStack) -> Path:
    if keep is None:
        return Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="loopwright-demo-", ignore_cleanup_errors=True)
            )
        )
    folder = keep.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Conflict(
            "the folder is not empty",
            where=str(folder),
            wanted="an empty or a new folder",
            next="Choose another --keep DIR.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _open(home: Path, narrator: Narrator, stack: ExitStack) -> Stage:
    """Create the home, copy the project, start the control plane, and make the people."""
    context = open_context(home, Actor("local", Role.ADMIN), create=True)
    project_dir = _copy_project(home)
    control_port, serving_port = free_port(), free_port()
    control_url = f"http://127.0.0.1:{control_port}"
    up = Process(
        ["up", "--home", str(home), "--host", "127.0.0.1", "--port", str(control_port)],
        log=context.home.logs / "up.log",
    )
    stack.enter_context(up)
    seconds = up.wait_ready(f"{control_url}/readyz")
    narrator.say(f"control plane ready at {control_url} after {seconds:.1f} s")
    admin = HttpClient(control_url, None)
    tokens = {}
    for name, role in PEOPLE.items():
        admin.call("access.add_user", name=name, role=role)
        tokens[name] = str(admin.call("access.create_token", user=name)["token"])
    admin.call("access.add_user", name=SERVER, role="developer", service=True)
    tokens[SERVER] = str(admin.call("access.create_token", user=SERVER, scopes=["serve"])["token"])
    # The control plane answers on loopback only; a proxy of the environment must not stand between.
    os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
    os.environ["MLFLOW_TRACKING_TOKEN"] = tokens["ana"]
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    clients = {"admin": admin, **{name: HttpClient(control_url, tokens[name]) for name in PEOPLE}}
    narrator.found("processes", {"control_ready_seconds": seconds})
    return Stage(
        context, project_dir, control_url, clients, tokens, Port("127.0.0.1", serving_port), narrator, up
    )


def _copy_project(home: Path) -> Path:
    target = home / "projects" / MODEL
    with as_file(files("loopwright.examples") / "flights") as source:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    _put_under_git(target)
    return target


def _put_under_git(folder: Path) -> None:
    """A project is usually in git; runs then record its commit. Without git the runs say that there is none."""
    if shutil.which("git") is None:
        return
    who = ["-c", "user.name=ana", "-c", "user.email=ana@example.com", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "Predict late flights"]):
        done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LoopwrightError("git refused", where=str(folder), got=done.stderr.strip()[:300])
