"""How long one command takes to bring all traffic back to the version before, under load.

Measured from the start of `loopwright rollback` to the last answer of the version that was rolled back, with the
product's own control plane and two serving workers, and four clients that ask all the time. The limit is two seconds;
the floor beside it is the same act called over HTTP, without starting a command. Run:
.venv/bin/python benchmarks/rollback.py [--rounds 5]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.testing import tiny_bundle
from loopwright.control.access import LOCAL
from loopwright.control.client import HttpClient
from loopwright.control.context import open_context
from loopwright.demo.processes import Process, free_port
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.verdict import Verdict
from loopwright.registry.evidence import record_evidence
from loopwright.registry.versions import register_version

LIMIT = 2.0
MODEL = "late"
BODY = (
    b'{"inputs": [{"name": "distance", "shape": [1], "datatype": "FP64", "data": [500.0]},'
    b' {"name": "hour", "shape": [1], "datatype": "INT64", "data": [6]},'
    b' {"name": "carrier", "shape": [1], "datatype": "BYTES", "data": ["UA"]}]}'
)
SECTION = "Told in a sentence that is long enough to count as one."
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        register(home, Path(folder))
        control, serving = free_port(), free_port()
        up = ["up", "--home", str(home), "--port", str(control)]
        url = f"http://127.0.0.1:{control}"
        serve = ["serve", "--control", url, "--port", str(serving), "--workers", "2"]
        serve += ["--home", str(Path(folder) / "serving")]
        with Process(up, log=Path(folder) / "up.log") as plane:
            plane.wait_ready(f"{url}/readyz")
            admin = HttpClient(url, None)
            tokens = people(admin)
            promote(url, tokens, admin, 1)
            with Process(serve, log=Path(folder) / "serve.log") as data_plane:
                data_plane.wait_ready(f"http://127.0.0.1:{serving}/v2/health/ready")
                by_command, by_call, failed = measure(url, serving, tokens, admin, rounds)
    print(f"{'':44}{'median s':>10}{'worst s':>10}{'limit s':>10}")
    row("`loopwright rollback` to the last old answer", by_command)
    row("the same act called over HTTP (floor)", by_call)
    print(f"requests that failed meanwhile: {failed}")
    return int(failed > 0 or max(by_command) > LIMIT)


def row(name: str, seconds: list[float]) -> None:
    over = "" if max(seconds) <= LIMIT else "   OVER THE LIMIT"
    print(f"{name:44}{statistics.median(seconds):10.2f}{max(seconds):10.2f}{LIMIT:10.2f}{over}", flush=True)


def register(home: Path, folder: Path) -> None:
    """Two sealed versions with the evidence that a high tier wants."""
    context = open_context(home, LOCAL, create=True)
    from loopwright.registry.mlflow_tables import ensure_mlflow_tables

    ensure_mlflow_tables(context.ledger)
    depot = BundleDepot(context.home.bundles)
    card = {"sections": dict.fromkeys(("intended_use", "limitations", "training_data", "risks"), SECTION)}
    payloads: dict[str, dict[str, object]] = {"gates": {}, "fairness": {}, "explainability": {}, "card": card}
    for number in (1, 2):
        digest = depot.add(tiny_bundle(folder / str(number), context.key, model=MODEL, bias=number / 10).path)
        with context.ledger.write() as conn:
            for kind, payload in payloads.items():
                record_evidence(
                    conn, kind=kind, model=MODEL, version=None, bundle=digest, verdict=Verdict.PASS, payload=payload,
                    at=context.now,
                )  # fmt: skip
            register_version(
                conn, model=MODEL, bundle=digest, run_id=None, snapshot=None,
                author=Actor("dora", Role.DEVELOPER), metrics={}, now=context.now,
            )  # fmt: skip
    context.ledger.dispose()


def people(admin: HttpClient) -> dict[str, str]:
    for name, role in (("dora", "developer"), ("ada", "approver"), ("bob", "approver")):
        admin.call("access.add_user", name=name, role=role)
    return {
        name: str(admin.call("access.create_token", user=name)["token"]) for name in ("dora", "ada", "bob")
    }


def promote(url: str, tokens: dict[str, str], admin: HttpClient, version: int) -> None:
    HttpClient(url, tokens["dora"]).call("models.promote", model=MODEL, version=version)
    for name in ("ada", "bob"):
        HttpClient(url, tokens[name]).call("models.approve", model=MODEL, version=version)
    if version != 1:
        admin.call("delivery.promote", model=MODEL, reason="benchmark")


def measure(
    url: str, port: int, tokens: dict[str, str], admin: HttpClient, rounds: int
) -> tuple[list[float], list[float], int]:
    """(seconds by command, seconds by HTTP call, failed requests)."""

    def command() -> None:
        words = [sys.executable, "-m", "loopwright", "rollback", MODEL, "--url", url]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

    def call() -> None:
        admin.call("models.rollback", model=MODEL)

    clients = Clients(port)
    took: dict[Callable[[], None], list[float]] = {command: [], call: []}
    try:
        for _ in range(rounds):
            for act, seconds in took.items():
                promote(url, tokens, admin, 2)
                clients.wait_for(2)
                began = time.perf_counter()
                act()
                clients.wait_for(1)
                seconds.append(clients.last[2] - began)
    finally:
        clients.stop()
    return took[command], took[call], clients.failed


class Clients:
    """Four threads that ask without pause and remember when each version answered last."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v2/models/{MODEL}/infer"
        self.last = {1: 0.0, 2: 0.0}
        self.failed = 0
        self._going = True
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while self._going:
            try:
                request = urllib.request.Request(self.url, BODY, {"Content-Type": "application/json"})
                with _open(request, timeout=10) as answer:
                    said = answer.read()
            except OSError:
                self.failed += 1
                continue
            self.last[2 if b'"model_version":"2"' in said else 1] = time.perf_counter()

    def wait_for(self, version: int) -> None:
        """Return once only `version` has answered for half a second."""
        other = 3 - version
        deadline = time.perf_counter() + 60
        while time.perf_counter() < deadline:
            if self.last[version] - self.last[other] > 0.5:
                return
            time.sleep(0.01)
        raise SystemExit(f"version {version} never answered alone")

    def stop(self) -> None:
        self._going = False
        for thread in self._threads:
            thread.join()


if __name__ == "__main__":
    sys.exit(main())
