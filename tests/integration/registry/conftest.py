"""A real server process with the mounted MLflow app, a sealed bundle in its depot, and a way to act on its ledger."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.manifest import Golden
from loopwright.bundle.seal import build_bundle
from loopwright.demo.processes import free_port
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import utc_now
from loopwright.kernel.home import Home
from loopwright.ledger.engine import Ledger
from loopwright.registry import versions
from tests.governing import vouch
from tests.integration.registry.plane import SCHEMA, Plane, linear, start

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Running:
    """The server: its MLflow URL, its home, and its ledger as another process of the same home opens it."""

    url: str
    home: Home
    ledger: Ledger

    def seal(self, tmp: Path, weights: tuple[float, float]) -> str:
        """Put a sealed bundle in the depot; return its digest."""
        key = SigningKey.load_or_create(self.home.keys / "signing.key")
        built = build_bundle(
            tmp / f"bundle{weights[0]}", model="late", onnx=linear(weights), schema=SCHEMA, transform=None, state={},
            golden=Golden({"distance": [1.0], "hour": [1.0]}, [[sum(weights)]]), reference={}, card="# late",
            provenance={}, created_at=NOON, key=key,
        )  # fmt: skip
        return BundleDepot(self.home.bundles).add(built.path)

    def register(self, model: str, bundle: str, *, run_id: str | None = None, gates: bool = True) -> int:
        with self.ledger.write() as conn:
            if gates:
                vouch(conn, model, bundle, at=utc_now())
            return versions.register_version(
                conn, model=model, bundle=bundle, run_id=run_id, snapshot=None, author=Actor("ana", Role.DEVELOPER),
                metrics={}, now=utc_now(), card="Predicts.",
            ).version  # fmt: skip


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("home")
    port = free_port()
    log = (root.parent / "server.log").open("w")
    script = Path(__file__).with_name("server.py")
    process = subprocess.Popen([sys.executable, str(script), str(root), str(port)], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/mlflow"
    try:
        _wait(url, process, Path(log.name))
        home = Home.at(root)
        ledger = Ledger.open(home.ledger_url)
        yield Running(url, home, ledger)
        ledger.dispose()
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            with urlopen(Request(f"{url}/health", headers={"Authorization": "Bearer vi:viewer"}), timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the server did not start:\n{log.read_text()}")


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A control plane as users start it."""
    running = start(tmp_path_factory.mktemp("plane") / "home")
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def as_ana(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain clients come as ana, developer, and do not wait for a server that answers 5xx."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "ana:developer")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")
