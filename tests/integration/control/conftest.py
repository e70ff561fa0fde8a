"""A real `loopwright up` process on a real home."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from loopwright.control.access import LOCAL
from loopwright.control.client import HttpClient
from loopwright.control.context import open_context
from loopwright.registry.mlflow_tables import ensure_mlflow_tables

_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@dataclass
class Up:
    """The process and what it said. `url` is known once it is ready."""

    process: subprocess.Popen[str]
    url: str = ""
    said: list[str] = field(default_factory=list)

    def wait_ready(self, within: float = 90) -> None:
        until = time.monotonic() + within
        while time.monotonic() < until:
            found = re.search(r"ready at (http://\S+)", "".join(self.said))
            if found:
                self.url = found.group(1)
                with _open(f"{self.url}/readyz", timeout=10) as answer:
                    assert answer.status == 200
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"not ready: {''.join(self.said)}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def client(self, token: str | None = None) -> HttpClient:
        return HttpClient(self.url, token)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "home"
    ctx = open_context(folder, LOCAL, create=True)
    ensure_mlflow_tables(ctx.ledger)
    ctx.ledger.dispose()
    return folder


@pytest.fixture
def home(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "home"))


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., Up]]:
    """Start `loopwright up` on the home; whatever still runs at the end is killed."""
    started: list[Up] = []

    def go(*options: str, ready: bool = True) -> Up:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("LOOPWRIGHT_")
        }
        words = [sys.executable, "-m", "loopwright", "up", "--home", str(home), "--port", "0", *options]
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
        )
        up = Up(process)

        def listen() -> None:
            assert process.stderr is not None
            with process.stderr:
                up.said.extend(iter(process.stderr.readline, ""))

        threading.Thread(target=listen, daemon=True).start()
        started.append(up)
        if ready:
            up.wait_ready()
        return up

    yield go
    for up in started:
        if up.process.poll() is None:
            up.kill()
