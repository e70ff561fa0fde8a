"""`loopwright up` as a process: ready, closed to strangers, the same answers, and no loss by `kill -9`."""

import hashlib
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from loopwright.bundle.keys import PublicKey
from loopwright.bundle.routes import open_routes
from loopwright.control.access import LOCAL
from loopwright.control.client import Client, HttpClient, connect
from loopwright.control.context import open_context
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import to_us
from loopwright.kernel.errors import Refused, Unauthenticated, Unavailable
from loopwright.registry.versions import register_version
from loopwright.serving.events import Event, frame
from loopwright.serving.fold import fold_events
from loopwright.serving.wire import CONTENT_TYPE, BatchHeader, pack_batch
from tests.governing import vouch

Start = Callable[..., Any]
MORNING = datetime(2013, 4, 1, 5, tzinfo=UTC)
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def got(url: str) -> bytes:
    """What is answered there, with 200."""
    with _open(url, timeout=20) as answer:
        assert answer.status == 200
        return bytes(answer.read())


def loopwright(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loopwright", *words], capture_output=True, text=True, timeout=120
    )


def register(home: Path, count: int) -> None:
    ctx = open_context(home, LOCAL)
    dora = Actor("dora", Role.DEVELOPER)
    with ctx.ledger.write() as conn:
        for number in range(count):
            bundle = hashlib.sha256(str(number).encode()).hexdigest()
            vouch(conn, "late", bundle, at=ctx.now)
            register_version(
                conn,
                model="late",
                bundle=bundle,
                run_id=None,
                snapshot=None,
                author=dora,
                metrics={},
                now=ctx.now,
            )
    ctx.ledger.dispose()


def people(client: Client) -> dict[str, str]:
    """Make two approvers and a developer; returns their tokens."""
    roles = {"ada": "approver", "bob": "approver", "dora": "developer"}
    for name, role in roles.items():
        client.call("access.add_user", name=name, role=role)
    return {name: client.call("access.create_token", user=name)["token"] for name in roles}


def to_production(up: Any, tokens: dict[str, str], version: int) -> None:
    up.client(tokens["dora"]).call("models.promote", model="late", version=version)
    for name in ("ada", "bob"):
        up.client(tokens[name]).call("models.approve", model="late", version=version)


class Traffic:
    """Stands in for a serving host: ships events of both arms, hour after hour."""

    def __init__(self, url: str) -> None:
        self.url, self.offset, self.count, self.moment = url, 0, 0, MORNING

    def body(self, counts: dict[tuple[int, str], int]) -> bytes:
        sent = []
        for (version, arm), count in counts.items():
            for _ in range(count):
                self.count += 1
                moment = to_us(self.moment)
                sent.append(
                    Event(
                        f"e{self.count}",
                        "u",
                        moment,
                        moment,
                        "late",
                        version,
                        arm,
                        900,
                        "ok",
                        "",
                        [1.0],
                        [0.2],
                    )
                )
        frames = b"".join(frame(event) for event in sent)
        header = BatchHeader(
            source="sv_test", segment="w0-1", start=self.offset, end=self.offset + len(frames), events=len(sent),
            crc32=zlib.crc32(frames), event_times={"late": to_us(self.moment)},
            folds=fold_events(sent, lambda *_: None),
        )  # fmt: skip
        return pack_batch(header, frames)

    def post(self, body: bytes) -> int:
        request = urllib.request.Request(f"{self.url}/api/v1/events", body, {"Content-Type": CONTENT_TYPE})
        with _open(request, timeout=60) as answer:
            self.offset = int(json.load(answer)["accepted"])
        return self.offset

    def hour(self, counts: dict[tuple[int, str], int]) -> None:
        self.moment += timedelta(hours=1)
        self.post(self.body(counts))


def test_a_control_plane_comes_up_answers_and_goes_when_told(start: Start, home: Path) -> None:
    up = start()
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/mlflow/"):
        assert got(f"{up.url}{path}")
    assert "you are `local`, an admin" in "".join(up.said)
    resident = next(
        line
        for line in Path(f"/proc/{up.process.pid}/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    assert int(resident.split()[1]) < 450 * 1024
    keys = json.loads(got(f"{up.url}/api/v1/keys"))["keys"]
    table = open_routes(got(f"{up.url}/api/v1/routes"), [PublicKey.from_text(keys[0]["public"])])
    assert table.models == {}
    assert up.stop() == 0


def test_a_folder_and_its_control_plane_give_the_same_answers(start: Start, home: Path) -> None:
    up = start()
    register(home, 2)
    tokens = people(up.client())
    to_production(up, tokens, 1)
    to_production(up, tokens, 2)
    # With event time standing still the controllers come to rest, and nothing changes between two questions.
    Traffic(up.url).hour({(1, "stable"): 1})
    here, there = connect(home), up.client()
    there.call("system.tick")
    for name, arguments in (
        ("models.list", {}), ("models.show", {"model": "late"}), ("models.show", {"model": "late", "version": 2}),
        ("delivery.show", {"model": "late"}), ("delivery.list", {"active": True}), ("system.status", {}),
        ("audit.verify", {}), ("audit.show", {"limit": 100, "actor": None}), ("access.users", {}),
        ("retrains.list", {}),
        ("monitoring.alerts", {}), ("models.lineage", {"model": "late", "version": 1}), ("data.tables", {}),
    ):  # fmt: skip
        assert here.call(name, **arguments) == there.call(name, **arguments), name
    with pytest.raises(Refused) as folder:
        connect(home, token=tokens["dora"]).call("models.rollback", model="late")
    with pytest.raises(Refused) as server:
        up.client(tokens["dora"]).call("models.rollback", model="late")
    assert str(folder.value) == str(server.value)
    printed = [
        loopwright("models", "list", *where).stdout for where in (("--home", str(home)), ("--url", up.url))
    ]
    assert printed[0] == printed[1]
    assert "late" in printed[0]


def test_strangers_stay_out(start: Start, home: Path) -> None:
    connect(home).call("access.add_user", name="ada", role="viewer")
    token = connect(home).call("access.create_token", user="ada")["token"]
    up = start("--require-token")
    with pytest.raises(Unauthenticated):
        up.client().call("access.whoami")
    with pytest.raises(Unauthenticated, match="wrong token"):
        up.client(token + "x").call("access.whoami")
    told = up.client(token).call("access.whoami")
    assert (told["name"], told["role"]) == ("ada", "viewer")
    with pytest.raises(urllib.error.HTTPError) as stranger:
        _open(f"{up.url}/mlflow/api/2.0/mlflow/experiments/search?max_results=1", timeout=20)
    with stranger.value as answered:
        assert answered.code == 401
    answer = loopwright("status", "--url", up.url, "--token", "lw_0123456789ab_b")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "wrong token" in answer.stderr


def test_a_plain_mlflow_client_cannot_promote_what_nobody_approved(
    start: Start, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import RestException

    up = start()
    register(home, 1)
    tokens = people(up.client())
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", tokens["dora"])
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    client = MlflowClient(tracking_uri=f"{up.url}/mlflow", registry_uri=f"{up.url}/mlflow")
    with pytest.raises(RestException, match="approval"):
        client.transition_model_version_stage("late", "1", "Production")
    to_production(up, tokens, 1)
    assert [version.version for version in client.get_latest_versions("late", ["Production"])] == ["1"]
    refused = up.client().call("audit.show", action="registry.refused")
    assert [row["actor"] for row in refused] == ["dora"]


def test_kill_9_during_a_canary_loses_nothing_and_the_rollout_goes_on(start: Start, home: Path) -> None:
    up = start()
    register(home, 2)
    tokens = people(up.client())
    to_production(up, tokens, 1)
    traffic = Traffic(up.url)
    traffic.hour({(1, "stable"): 50})
    to_production(up, tokens, 2)
    for _ in range(4):
        traffic.hour({(1, "stable"): 200, (2, "shadow"): 200})
        up.client().call("system.tick")
        if up.client().call("delivery.show", model="late")["at"].startswith("canary"):
            break
    traffic.hour({(1, "stable"): 100, (2, "canary"): 30})
    before = up.client().call("delivery.show", model="late")
    assert before["at"].startswith("canary")
    unanswered = traffic.body({(1, "stable"): 40, (2, "canary"): 30})
    up.kill()
    with pytest.raises(Unavailable):
        up.client().call("system.status")

    again = start()
    traffic.url = again.url
    reached = traffic.offset
    assert traffic.post(unanswered) > reached
    end = traffic.offset
    assert traffic.post(unanswered) == end  # a retry after a lost answer
    after = again.client().call("delivery.show", model="late")
    assert (after["id"], after["version"]) == (before["id"], 2)
    seen = {event["kind"] for event in after["events"]}
    assert "started" in seen
    for _ in range(80):
        traffic.hour({(1, "stable"): 300, (2, "canary"): 300})
        again.client().call("system.tick")
        after = again.client().call("delivery.show", model="late")
        if after["status"] != "running":
            break
    assert after["status"] == "completed", after["reason"]
    assert again.client().call("system.status")[0]["stable"] == 2
    assert again.client().call("audit.verify")["ok"]


def test_a_port_in_use_is_told_in_one_paragraph(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        answer = loopwright("up", "--home", str(home), "--port", str(taken.getsockname()[1]))
    assert answer.returncode == 1
    assert "is in use" in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


def test_an_open_address_is_refused_while_there_is_no_token(home: Path) -> None:
    answer = loopwright("up", "--home", str(home), "--host", "0.0.0.0", "--port", "0")
    assert answer.returncode == 1
    assert "no token yet" in answer.stderr


def test_a_home_that_cannot_be_written_is_told_in_one_paragraph(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for words in (("up", "--port", "0"), ("user", "add", "ada")):
        answer = loopwright(*words, "--home", str(tmp_path / "file" / "home"))
        assert answer.returncode == 2
        assert len(answer.stderr.strip().splitlines()) == 1
        assert "cannot create a home" in answer.stderr


def test_a_full_disk_is_told_in_one_paragraph_and_nothing_is_half_written(home: Path) -> None:
    before = loopwright("audit", "verify", "--home", str(home)).stdout
    # A file that may not grow fails like a full disk, without needing a disk of one's own.
    words = f"ulimit -f 0; exec {sys.executable} -m loopwright user add ada --home {home}"
    answer = subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 2
    assert len(answer.stderr.strip().splitlines()) == 1
    assert "unexpected" not in answer.stderr
    assert loopwright("audit", "verify", "--home", str(home)).stdout == before
    assert loopwright("user", "add", "ada", "--home", str(home)).returncode == 0


def test_a_server_that_is_not_there_is_told_so() -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        HttpClient("http://127.0.0.1:9", None).call("system.status")
