"""Workers that hang, grow or are replaced, and servers that begin and leave: nobody's request fails for it."""

import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from loopwright.bundle.routes import Arm
from loopwright.bundle.testing import TOLERANT
from loopwright.serving.slots import LINGER_SECONDS

from .conftest import Control, Server, eventually, launch, request
from .load import Load

Serve = Callable[..., Server]
STABLE = Arm("stable", 1, 1.0)

# Slow enough for a thread of its own; for a distance above 9000 km it never comes back, and lets other threads run.
STUCK = TOLERANT.replace("def transform", "def good") + (
    "def transform(inputs, state):\n"
    "    many = np.arange(400_000.0)[::-1]\n"
    "    np.sort(many)\n"
    "    while (inputs['distance'] > 9000).any():\n"
    "        np.sort(many)\n"
    "    return good(inputs, state)\n"
)
CEILING = 400_000_000
TAKEN = 'loopwright_worker_resident_bytes{{worker="{}"}}'

# Keeps 30 MB of every request for a distance above 9000 km.
LEAKING = TOLERANT.replace("def transform", "def good") + (
    "kept = []\n"
    "def transform(inputs, state):\n"
    "    if (inputs['distance'] > 9000).any():\n"
    "        kept.append(bytes(bytearray(b'x' * 30_000_000)))\n"
    "    return good(inputs, state)\n"
)


def metrics(server: Server) -> dict[str, float]:
    """One answer of /metrics, on a connection of its own."""
    lines = httpx.get(f"http://127.0.0.1:{server.port}/metrics", timeout=30).text.splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if name[:1] != "#"
    }


def restarts(server: Server, reason: str) -> float:
    return metrics(server)[f'loopwright_worker_restarts_total{{reason="{reason}"}}']


def test_replacing_a_worker_under_load_fails_no_request_and_loses_no_count(
    control: Control, serve: Serve
) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    server = serve()
    with Load(server.port, per_second=100) as load:
        for turn in (1, 2):  # the second time it gets the first one's place
            here = server.workers()
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda: restarts(server, "asked") == turn, 40)  # noqa: B023 - called at once
            eventually(lambda: len(server.workers()) == 1 and server.workers() != here, 40)  # noqa: B023
    assert load.failures == []
    counted = metrics(server)[
        'loopwright_predictions_total{model="late",version="1",arm="stable",status="ok"}'
    ]
    assert counted == len(load.sent) > 100
    assert server.admin("flush").status_code == 200
    assert len({event.id for event in control.events}) == len(control.events) == len(load.sent)


def test_a_worker_that_grows_over_the_ceiling_is_replaced_before_it_goes(
    control: Control, serve: Serve
) -> None:
    control.route({1: control.bundle("leak", transform=LEAKING)}, STABLE)
    server = serve(max_memory=CEILING, rest_seconds=0.5)
    (before,) = server.workers()
    with Load(server.port, per_second=50) as load:
        with httpx.Client(base_url=server.http.base_url, timeout=30) as http:
            while metrics(server)[TAKEN.format("w0")] <= CEILING:
                answer = http.post("/v2/models/late/infer", json=request(distance=9999.0))
                assert answer.status_code == 200
        eventually(lambda: restarts(server, "memory") == 1, 40)
        eventually(lambda: len(server.workers()) == 1 and server.workers() != [before], 40)
    assert load.failures == []
    said = server.log.read_text()
    assert "over the ceiling of" in said
    assert said.count("starting its replacement") == 1
    assert metrics(server)[TAKEN.format("w0b")] < CEILING / 2


def test_a_ceiling_below_what_the_models_take_is_said_and_replaces_nothing(
    control: Control, serve: Serve
) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    server = serve(max_memory=64_000_000, rest_seconds=0.1)
    eventually(lambda: "frees nothing" in server.log.read_text())
    assert sum(restarts(server, why) for why in ("memory", "crash", "hang")) == 0
    assert server.log.read_text().count("--max-memory") == 1


def test_a_worker_whose_model_is_stuck_is_replaced_though_it_answers_pings(
    control: Control, serve: Serve
) -> None:
    control.route({1: control.bundle("stuck", transform=STUCK)}, STABLE)
    server = serve(timeout=1.0)
    (before,) = server.workers()
    for _ in range(20):
        assert server.predict().status_code == 200
    eventually(
        lambda: server.predict(9999.0).status_code != 200 and "asks to be replaced" in server.log.read_text(),
        40,
    )
    eventually(lambda: restarts(server, "asked") == 1, 40)
    with httpx.Client(base_url=server.http.base_url, timeout=30) as http:
        eventually(lambda: http.post("/v2/models/late/infer", json=request()).status_code == 200)
    assert restarts(server, "hang") == 0
    server.http.close()  # an idle connection would be waited for
    # Its threads never end, and do not keep it.
    eventually(lambda: before not in server.workers(), LINGER_SECONDS + 20)
    assert "does not go" not in server.log.read_text()


def test_a_worker_that_hangs_is_replaced_while_the_others_answer(control: Control, serve: Serve) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    server = serve(workers=2, hang_seconds=3.0)
    hung = server.workers()[0]
    os.kill(hung, signal.SIGSTOP)
    began, answered = time.monotonic(), 0
    with ExitStack() as stack:
        asked = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(16)]
        for each in asked:
            each.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        while hung in server.workers():
            assert time.monotonic() - began < 60
            for each in select.select(asked, [], [], 0.05)[0]:
                asked.remove(each)
                with suppress(ConnectionResetError):  # it was one of those that wait at the one that hangs
                    answered += each.recv(4096).startswith(b"HTTP/1.1 200") and hung in server.workers()
    assert answered > 0
    eventually(lambda: len(server.workers()) == 2)
    for _ in range(8):
        with httpx.Client(base_url=server.http.base_url, timeout=30) as http:
            assert http.post("/v2/models/late/infer", json=request()).status_code == 200
    # What /metrics says of the whole server is a second old.
    eventually(lambda: restarts(server, "hang") == 1)
    assert restarts(server, "crash") == 0
    assert "hangs; killing it" in server.log.read_text()


def test_a_server_told_to_stop_says_not_ready_and_answers_until_it_is_drained(
    control: Control, serve: Serve
) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    server = serve(drain_seconds=15.0)
    with Load(server.port, per_second=50) as load:
        time.sleep(0.3)
        told = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: httpx.get(f"http://127.0.0.1:{server.port}/readyz").status_code == 503, 6)
        # The balancer has noticed: no request comes any more.
    assert load.failures == []
    assert httpx.get(f"http://127.0.0.1:{server.port}/readyz").json()["error"] == "shutting down"
    assert httpx.get(f"http://127.0.0.1:{server.port}/healthz").status_code == 200
    assert server.predict(id="late").status_code == 200
    assert server.process.wait(30) == 0
    assert time.monotonic() - told > 15.0
    assert "late" in {event.id for event in control.events}


def test_a_connection_kept_open_is_told_that_an_answer_is_its_last_and_a_second_signal_ends_draining(
    control: Control, serve: Serve
) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    server = serve(drain_seconds=600.0)
    assert "connection" not in server.predict().headers
    server.process.send_signal(signal.SIGHUP)

    def last() -> bool:
        answer = server.predict()
        assert answer.status_code == 200
        return answer.headers.get("connection") == "close"

    eventually(last, 40)
    assert "connection" not in server.predict().headers, "the next one goes to the replacement"
    eventually(lambda: restarts(server, "asked") == 1)
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: server.http.get("/readyz").status_code == 503)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0


def test_a_server_goes_with_its_terminal(control: Control, tmp_path: Path) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    ours, terminal = os.openpty()
    process, log = launch(
        tmp_path, control, ("sh", "-c", f'exec "$@" 2>/dev/fd/{terminal}', "sh"), keep=(terminal,)
    )
    said = b""
    while b"serving late at" not in said:
        said += os.read(ours, 4096)
    os.close(ours)  # from now on what it says fails
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 0
    assert log.read_bytes() == b""
    os.close(terminal)


def test_a_server_has_started_when_every_worker_came_up_and_there_is_a_table(
    control: Control, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = control.get
    monkeypatch.setattr(
        control, "get", lambda path, token: (404, b"") if path.endswith("/routes") else answer(path, token)
    )
    server = serve(workers=2)
    probe = f"http://127.0.0.1:{server.port}/startupz"
    waiting = httpx.get(probe)
    assert (waiting.status_code, "no route table yet" in waiting.text) == (503, True)
    monkeypatch.undo()
    control.route({1: control.bundle("one")}, STABLE)
    eventually(lambda: httpx.get(probe).status_code == 200)
    for pid in server.workers():
        os.kill(pid, signal.SIGKILL)
    assert httpx.get(probe, timeout=30).status_code == 200, "a server starts once"
    eventually(lambda: restarts(server, "crash") == 2)


def test_connections_that_idle_keep_nobody_out(control: Control, serve: Serve) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096) if hard > 0 else 4096, hard))
    try:
        server = serve()
        with ExitStack() as stack:
            for number in range(2_200):
                idle = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                if number % 20 == 0:
                    idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert idle.recv(4096).startswith(b"HTTP/1.1 200")
            assert httpx.get(f"http://127.0.0.1:{server.port}/readyz").status_code == 200
            assert server.predict().status_code == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_children_of_a_worker_count_as_its_memory() -> None:
    from loopwright.serving.memory import resident

    alone = resident(os.getpid())
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        kept = bytearray(b"x" * 50_000_000)
        os.write(write, b"x")
        time.sleep(60)
        os._exit(len(kept) == 0)
    try:
        os.read(read, 1)
        assert resident(os.getpid()) - alone > 40_000_000
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
    assert resident(2**22 + 1) == 0
    assert Path(f"/proc/{os.getpid()}").exists()
