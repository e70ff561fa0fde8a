"""A real server with room for some of its models, and models in processes of their own that end with their worker."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from loopwright.bundle.routes import Arm
from loopwright.bundle.testing import route_for

from .conftest import Control, Server, eventually, request
from .test_trust import pickled

Serve = Callable[..., Server]
STABLE = Arm("stable", 1, 1.0)


def publish(control: Control, versions: dict[str, tuple[int, str]]) -> None:
    control.publish(
        *(
            route_for(control.key, {version: digest}, [Arm("stable", version, 1.0)], model=name)
            for name, (version, digest) in versions.items()
        )
    )


def metric(server: Server, name: str) -> float:
    lines = server.http.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"loopwright_{name}"))


def test_models_come_and_go_within_the_budget_and_a_swap_fails_no_request(
    control: Control, serve: Serve
) -> None:
    names = [f"model{number}" for number in range(6)]
    versions = {name: (1, control.bundle(name, model=name)) for name in names}
    publish(control, versions)
    server = serve(model_memory=700_000, timeout=10.0)
    assert metric(server, "versions_in_memory") == 0, "nothing was loaded to start"

    def answer(name: str) -> tuple[int, str]:
        got = server.http.post(f"/v2/models/{name}/infer", json=request())
        return got.status_code, got.json()["model_version"]

    assert [answer(name) for name in [*names, *names]] == [(200, "1")] * 12
    loaded = metric(server, "versions_in_memory")
    assert 1 <= loaded < 6 and metric(server, "model_memory_bytes") <= 700_000
    assert metric(server, "model_evictions_total") >= 6

    answers: list[tuple[int, str]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(answer("model0"))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        publish(control, versions | {"model0": (2, control.bundle("later", model="model0", bias=1.0))})
        server.admin("refresh")
        eventually(lambda: bool(answers) and answers[-1] == (200, "2"))
    finally:
        stop.set()
        asking.join()
    assert {status for status, _ in answers} == {200}


def test_a_models_process_is_replaced_when_it_dies_and_ends_with_its_worker(
    control: Control, serve: Serve
) -> None:
    digest, trusted = pickled(control, "pickled")
    control.trusted = (trusted,)
    control.route({1: digest}, STABLE)
    server = serve(timeout=20.0)
    (worker,) = server.workers()
    process = _model_process(worker)
    assert server.predict().status_code == 200
    os.kill(process, signal.SIGKILL)
    eventually(lambda: server.predict().status_code == 200)
    successor = _model_process(worker)
    assert successor != process and server.workers() == [worker], "the worker went on"
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{successor}").exists())


def _model_process(worker: int) -> int:
    found = [
        int(child)
        for thread in Path(f"/proc/{worker}/task").iterdir()
        for child in (thread / "children").read_text().split()
        if b"loopwright.bundle.model_process" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    assert len(found) == 1, found
    return found[0]
