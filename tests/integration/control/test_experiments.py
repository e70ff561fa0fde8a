"""An experiment on a real control plane and a real server: users stay with their variant; outcomes are compared."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.routes import Arm
from loopwright.bundle.testing import tiny_answer, tiny_bundle
from loopwright.control.access import LOCAL
from loopwright.control.context import open_context
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import Refused
from loopwright.registry.versions import register_version
from loopwright.serving.router import assign
from tests.governing import vouch

Start = Callable[..., Any]
USERS = 200


def bundles(home: Path, folder: Path) -> None:
    """Two versions that answer differently, their gates passed."""
    ctx = open_context(home, LOCAL)
    with ctx.ledger.write() as conn:
        for number in (1, 2):
            sealed = tiny_bundle(folder / f"b{number}", ctx.key, bias=float(number))
            digest = BundleDepot(ctx.home.bundles).add(sealed.path)
            vouch(conn, "late", digest, at=ctx.now)
            register_version(conn, model="late", bundle=digest, run_id=None, snapshot=None,
                             author=Actor("dora", Role.DEVELOPER), metrics={}, now=ctx.now)  # fmt: skip
    ctx.ledger.dispose()


def to_traffic(up: Any, tokens: dict[str, str], version: int) -> None:
    up.client(tokens["dora"]).call("models.promote", model="late", version=version)
    for name in ("ada", "bob"):
        up.client(tokens[name]).call("models.approve", model="late", version=version)
    if version > 1:
        up.client(tokens["ada"]).call("delivery.promote", model="late")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[str], httpx.Client]]:
    """Starts `loopwright serve` against a control plane."""
    started: list[subprocess.Popen[bytes]] = []

    def go(url: str) -> httpx.Client:
        log = tmp_path / "serve.log"
        words = ["serve", "--control", url, "--port", "0", "--home", str(tmp_path / "data-plane")]
        with log.open("wb") as stream:
            started.append(subprocess.Popen([sys.executable, "-m", "loopwright", *words], stderr=stream))
        until = time.monotonic() + 60
        while not (found := re.search(r"serving late at (http://[^/\s]+)", log.read_text())):
            assert time.monotonic() < until and started[-1].poll() is None, log.read_text()
            time.sleep(0.05)
        return httpx.Client(base_url=found.group(1), timeout=30)

    yield go
    for process in started:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def typed(url: str, token: str, *words: str) -> tuple[int, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "loopwright", "experiment", *words, "--url", url, "--json"],
        capture_output=True, text=True, timeout=120, env={**os.environ, "LOOPWRIGHT_TOKEN": token},
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


def answers(server: httpx.Client, prefix: str) -> dict[str, tuple[str, int, float]]:
    """User → arm, version and probability."""
    out = {}
    for n in range(USERS):
        answer = server.post(
            "/models/late/predict",
            json={"inputs": {"distance": 500.0, "hour": 6, "carrier": "UA"}, "unit": f"u{n}", "id": f"{prefix}{n}"},
        )  # fmt: skip
        (row,) = answer.raise_for_status().json()["predictions"]
        out[f"u{n}"] = row["arm"], row["version"], row["outputs"]["probability"]
    return out


def test_users_stay_with_their_variant_and_their_outcomes_are_compared(
    start: Start, home: Path, tmp_path: Path, serve: Callable[[str], httpx.Client]
) -> None:
    bundles(home, tmp_path)
    up = start()
    for name, role in {"ada": "approver", "bob": "approver", "dora": "developer"}.items():
        up.client().call("access.add_user", name=name, role=role)
    tokens = {
        name: up.client().call("access.create_token", user=name)["token"] for name in ("ada", "bob", "dora")
    }
    for version in (1, 2):
        to_traffic(up, tokens, version)
    with pytest.raises(Refused, match="dora may not"):
        up.client(tokens["dora"]).call("experiments.start", model="late", variants=["b=1:40%"])
    server = serve(up.url)
    code, began = typed(
        up.url, tokens["ada"], "start", "late", "--variant", "b=1:40%", "--reason", "ask users", "--salt", "spring",
    )  # fmt: skip
    assert code == 0, began
    assert server.post("/admin/refresh").status_code == 200

    arms = [Arm("stable", 2, 0.6), Arm("b", 1, 0.4)]
    wanted = {f"u{n}": assign(began["salt"], f"u{n}", arms).name for n in range(USERS)}
    first = answers(server, "a")
    assert {user: arm for user, (arm, _, _) in first.items()} == wanted
    assert answers(server, "b") == first  # whoever comes back gets the same
    for arm, version, probability in set(first.values()):
        assert (arm, version) in (("stable", 2), ("b", 1))
        assert probability == pytest.approx(tiny_answer(500.0, 6, "UA", bias=float(version)))
    flag = server.post("/ofrep/v1/evaluate/flags/late", json={"context": {"targetingKey": "u7"}}).json()
    assert flag["variant"] == wanted["u7"]
    forced = server.post(
        "/models/late/predict", headers={"X-Loopwright-Arm": "b"},
        json={"inputs": {"distance": 500.0, "hour": 6, "carrier": "UA"}, "unit": "u0"},
    ).json()  # fmt: skip
    assert forced["predictions"][0]["version"] == 1

    assert server.post("/admin/flush").status_code == 200
    outcomes = [
        {"id": f"a{n}", "label": float(n % 10 < (6 if wanted[f"u{n}"] == "b" else 1))} for n in range(USERS)
    ]
    up.client(tokens["dora"]).call("monitoring.add_labels", model="late", labels=outcomes)
    code, shown = typed(up.url, tokens["ada"], "show", "late")
    assert code == 0, shown
    counted = Counter(wanted.values())
    stable, b = shown["arms"]
    assert (stable["units"], b["units"]) == (counted["stable"], counted["b"])
    assert (stable["answers"], b["answers"]) == (2 * counted["stable"], 2 * counted["b"] + 1)
    assert shown["sample_ratio"]["sound"] is True
    assert (b["labelled"], b["crossed"] + stable["crossed"]) == (counted["b"], int(wanted["u0"] != "b"))
    assert b["against_stable"]["label"]["low"] > 0
    assert b["output"]["value"] == pytest.approx(tiny_answer(500.0, 6, "UA", bias=1.0))

    ended = up.client(tokens["bob"]).call("experiments.stop", model="late", reason="b it is")
    assert (ended["status"], ended["ended_why"]) == ("stopped", "b it is")
    assert server.post("/admin/refresh").status_code == 200
    assert {arm for arm, _, _ in answers(server, "c").values()} == {"stable"}
