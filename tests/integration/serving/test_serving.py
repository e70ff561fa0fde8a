"""Real servers: what they answer, what they refuse, and what they never lose."""

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from loopwright.bundle.keys import SigningKey
from loopwright.bundle.routes import Arm, ModelRoute, VersionRoute
from loopwright.bundle.testing import STRICT, TOLERANT, approval_for, route_for, tiny_answer
from loopwright.demo.processes import free_port

from .conftest import Control, Server, eventually, request

Serve = Callable[..., Server]
STABLE = Arm("stable", 1, 1.0)

HANGING = "def transform(inputs, state):\n    while True:\n        pass\n"
NOT_FINITE = """
import numpy as np
def transform(inputs, state):
    n = len(inputs["hour"])
    bad = np.where(inputs["distance"] > 9000, np.nan, 0.0)
    return {"distance": bad, "hour": np.zeros(n), "carrier": np.zeros(n)}
"""


def test_an_answer_carries_version_and_arm_and_is_logged_with_its_inputs(
    control: Control, serve: Serve
) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    server = serve(workers=2)
    answer = server.predict(
        500.0, "UA", id="flight-1", parameters={"event_time": "2013-04-01T05:00:00Z", "unit": "N14228"}
    ).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("late", "1", "flight-1")
    assert answer["parameters"] == {"arm": "stable", "request_id": "flight-1"}
    assert answer["outputs"][0]["data"][0] == pytest.approx(tiny_answer(500.0, 6, "UA"), abs=1e-6)
    flushed = server.admin("flush").json()
    assert flushed["acknowledged"] is True
    (event,) = control.events
    assert (event.id, event.unit, event.version, event.arm, event.status) == (
        "flight-1",
        "N14228",
        1,
        "stable",
        "ok",
    )
    assert event.event_time == 1364792400 * 1_000_000
    assert event.inputs == [500.0, 6, "UA"]
    assert event.outputs == answer["outputs"][0]["data"]
    (fold,) = control.folds
    assert (fold.n, fold.errors, fold.bucket) == (1, 0, 1364792400 * 1_000_000)
    assert fold.profile is not None
    assert sum(fold.profile["columns"]["@prediction"]) == 1


def test_killing_a_worker_under_load_loses_no_acknowledged_prediction(control: Control, serve: Serve) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    server = serve(workers=2)
    acknowledged: list[str] = []
    stop = threading.Event()

    def client(number: int) -> None:
        with httpx.Client(base_url=server.http.base_url, timeout=30) as http:
            turn = 0
            while not stop.is_set():
                turn += 1
                name = f"{number}-{turn}"
                try:
                    answer = http.post("/v2/models/late/infer", json=request(id=name))
                except httpx.TransportError:
                    continue  # its worker died before it answered
                assert answer.status_code == 200
                acknowledged.append(answer.json()["id"])

    clients = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in clients:
        thread.start()
    reached = 0

    def go_on() -> None:
        nonlocal reached
        reached = len(acknowledged) + 30
        eventually(lambda: len(acknowledged) >= reached, 60)

    try:
        for _ in range(3):
            go_on()
            killed = server.workers()[0]
            os.kill(killed, signal.SIGKILL)
            eventually(lambda: killed not in server.workers() and len(server.workers()) == 2, 60)  # noqa: B023
        go_on()
    finally:
        stop.set()
        for thread in clients:
            thread.join()
    assert server.admin("flush").status_code == 200
    logged = [event.id for event in control.events]
    assert len(acknowledged) > 100
    assert set(acknowledged) - set(logged) == set()
    assert len(logged) == len(set(logged))


def test_counters_survive_a_killed_worker_and_add_up_over_workers(control: Control, serve: Serve) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    server = serve(workers=2)

    def total() -> int:
        metric = 'loopwright_predictions_total{model="late",version="1",arm="stable",status="ok"} '
        lines = httpx.get(f"http://127.0.0.1:{server.port}/metrics", timeout=30).text.splitlines()
        return sum(int(line.removeprefix(metric)) for line in lines if line.startswith(metric))

    for _ in range(20):  # each on a connection of its own, so that both workers get some
        httpx.post(f"http://127.0.0.1:{server.port}/v2/models/late/infer", json=request(), timeout=30)
    assert total() == 20
    for pid in server.workers():
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: httpx.get(f"http://127.0.0.1:{server.port}/readyz", timeout=30).status_code == 200, 60)
    url = f"http://127.0.0.1:{server.port}/v2/models/late/infer"
    assert httpx.post(url, json=request(), timeout=30).status_code == 200
    assert total() == 21


def test_a_failing_canary_is_counted_and_the_user_gets_stables_answer(control: Control, serve: Serve) -> None:
    control.route(
        {1: control.bundle("one"), 2: control.bundle("strict", transform=STRICT)},
        Arm("canary", 2, 1.0),
        Arm("stable", 1, 0.0),
    )
    server = serve()
    good, bad = server.predict(carrier="UA", id="a").json(), server.predict(carrier="ZZ", id="b").json()
    assert (good["model_version"], good["parameters"]["arm"]) == ("2", "canary")
    assert (bad["model_version"], bad["parameters"]["arm"]) == ("1", "stable")
    assert bad["parameters"]["fallback"] is True
    server.admin("flush")
    story = [(event.id, event.arm, event.version, event.status) for event in control.events]
    assert story == [("a", "canary", 2, "ok"), ("b", "canary", 2, "error"), ("b", "stable", 1, "fallback")]
    assert "KeyError: 'ZZ'" in control.events[1].error
    counts: Counter[tuple[str, str]] = Counter()
    for fold in control.folds:  # as many as there were shipments
        counts[fold.arm, "n"] += fold.n
        counts[fold.arm, "errors"] += fold.errors
        counts[fold.arm, "instead"] += fold.fallbacks
    assert +counts == Counter(
        {("canary", "n"): 2, ("canary", "errors"): 1, ("stable", "n"): 1, ("stable", "instead"): 1}
    )


def test_one_bad_row_of_a_batch_spoils_no_other(control: Control, serve: Serve) -> None:
    control.route(
        {1: control.bundle("one"), 2: control.bundle("strict", transform=STRICT)},
        Arm("canary", 2, 1.0),
        Arm("stable", 1, 0.0),
    )
    server = serve()
    carriers = ["UA", "ZZ", "B6"]
    body = {
        "id": "batch",
        "inputs": [
            {"name": "distance", "datatype": "FP64", "shape": [3], "data": [100.0, 200.0, None]},
            {"name": "hour", "datatype": "INT64", "shape": [3], "data": [1, 2, 3]},
            {"name": "carrier", "datatype": "BYTES", "shape": [3, 1], "data": [[c] for c in carriers]},
            {"name": "_id", "datatype": "BYTES", "shape": [3], "data": ["r0", "r1", "r2"]},
        ],
    }
    answer = server.http.post("/v2/models/late/infer", json=body).json()
    outputs = {tensor["name"]: tensor["data"] for tensor in answer["outputs"]}
    rows = zip([100.0, 200.0, None], [1, 2, 3], carriers, strict=True)
    assert outputs["probability"] == pytest.approx([tiny_answer(*row) for row in rows], abs=1e-6)
    assert outputs["_version"] == ["2", "1", "2"]
    assert outputs["_arm"] == ["canary", "stable", "canary"]
    server.admin("flush")
    errors = [(event.id, event.arm) for event in control.events if event.status == "error"]
    assert errors == [("r1", "canary")]


@pytest.mark.parametrize(("source", "why"), [(HANGING, "PredictionTimeout"), (NOT_FINITE, "not finite")])
def test_a_canary_that_hangs_or_gives_nonsense_is_an_error_of_the_canary(
    control: Control, serve: Serve, source: str, why: str
) -> None:
    control.route(
        {1: control.bundle("one"), 2: control.bundle("bad", transform=_golden_first(source))},
        Arm("canary", 2, 1.0),
        Arm("stable", 1, 0.0),
    )
    server = serve(timeout=0.3)
    answer = server.predict(distance=9999.0).json()
    assert answer["parameters"].get("fallback") is True
    server.admin("flush")
    assert why in control.events[0].error


def _golden_first(source: str) -> str:
    """Behave on golden rows, so that the version is loaded, and as `source` on impossible distances."""
    good = TOLERANT.replace("def transform", "def good")
    bad = source.replace("def transform", "def bad")
    return (
        good
        + bad
        + (
            "def transform(inputs, state):\n"
            "    return bad(inputs, state) if (inputs['distance'] > 9000).any() else good(inputs, state)\n"
        )
    )


def test_a_shadow_sees_copies_and_never_answers(control: Control, serve: Serve) -> None:
    control.route(
        {1: control.bundle("one"), 2: control.bundle("two", bias=1.0)}, STABLE, Arm("shadow", 2, 1.0)
    )
    server = serve(workers=2)
    for number in range(30):
        assert server.predict(id=f"r{number}").json()["model_version"] == "1"
    server.admin("flush")
    shadow = {event.id: event for event in control.events if event.arm == "shadow"}
    stable = {event.id: event for event in control.events if event.arm == "stable"}
    assert len(stable) == 30
    assert shadow.keys() == stable.keys()
    assert all(
        event.version == 2 and event.outputs[0] > stable[name].outputs[0] for name, event in shadow.items()
    )


def test_a_unit_stays_in_a_growing_canary_on_every_worker(control: Control, serve: Serve) -> None:
    bundles = {1: control.bundle("one"), 2: control.bundle("two", bias=1.0)}
    server = serve(workers=2)
    inside: set[str] = set()
    for weight in (0.2, 0.5):
        control.route(bundles, STABLE, Arm("canary", 2, weight))
        assert server.admin("refresh").json()["serial"] == control.serial
        now = set()
        for number in range(60):
            answer = httpx.post(
                f"http://127.0.0.1:{server.port}/v2/models/late/infer",
                json=request(parameters={"unit": f"u{number}"}),
            ).json()
            if answer["model_version"] == "2":
                now.add(f"u{number}")
        assert inside <= now
        inside = now
    assert 15 < len(inside) < 45


def test_serving_goes_on_and_restarts_from_disk_without_the_control_plane(
    control: Control, serve: Serve
) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    first = serve()
    assert first.predict(id="before").status_code == 200
    control.stop()
    assert first.predict(id="during").status_code == 200
    assert first.admin("flush").status_code == 503
    assert first.stop() == 0
    second = serve()
    assert second.predict(id="after").status_code == 200
    control.start()
    eventually(lambda: second.admin("flush").status_code == 200)
    assert sorted(event.id for event in control.events) == ["after", "before", "during"]


def test_a_lost_answer_of_the_control_plane_duplicates_nothing(control: Control, serve: Serve) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    server = serve(ship=60.0)
    for number in range(5):
        server.predict(id=f"r{number}")
    control.lose_answers = 2
    eventually(lambda: server.admin("flush").status_code == 200)
    assert [event.id for event in control.events] == [f"r{number}" for number in range(5)]


def test_a_version_without_a_valid_approval_is_refused(control: Control, serve: Serve) -> None:
    one, two = control.bundle("one"), control.bundle("two", bias=1.0)
    control.route({1: one}, STABLE)
    server = serve()
    for record in (
        approval_for(control.key, "late", 2, two, stage="Staging"),
        approval_for(control.key, "late", 1, one),
        approval_for(control.key, "late", 2, one),
        approval_for(SigningKey.generate(), "late", 2, two),
    ):
        good = VersionRoute(one, approval_for(control.key, "late", 1, one))
        control.publish(
            ModelRoute("late", "s", (Arm("stable", 2, 1.0),), {"1": good, "2": VersionRoute(two, record)})
        )
        assert server.admin("refresh").status_code == 200
        assert server.predict().json()["model_version"] == "1"
        refused = server.http.get("/v2/models").json()["models"][0]["refused"]
        assert refused.keys() == {"2"}
    assert "late version 2 is refused" in server.log.read_text()


def test_a_tampered_bundle_is_never_loaded(control: Control, serve: Serve, tmp_path: Path) -> None:
    digest = control.bundle("one")
    model = control.depot.path(digest) / "transform.py"
    good = model.read_text()
    model.write_text(good + "\nprint('evil')\n")
    control.route({1: digest}, STABLE)
    server = serve()
    assert server.http.get("/readyz").status_code == 503
    answer = server.predict()
    assert answer.status_code == 503
    assert "transform.py does not match the manifest" in answer.json()["error"]
    assert "evil" not in server.log.read_text()
    model.write_text(good)
    eventually(lambda: server.predict().status_code == 200)


def test_a_bundle_damaged_in_the_disk_cache_is_fetched_again(
    control: Control, serve: Serve, tmp_path: Path
) -> None:
    digest = control.bundle("one")
    control.route({1: digest}, STABLE)
    serve().stop()
    cached = tmp_path / "serving" / "bundles" / digest / "model.onnx"
    cached.write_bytes(cached.read_bytes()[:-1] + b"\0")
    server = serve()
    assert server.predict().status_code == 200


def test_a_bundle_damaged_under_a_running_server_is_fetched_again_when_a_worker_needs_it(
    control: Control, serve: Serve, tmp_path: Path
) -> None:
    digest = control.bundle("one")
    control.route({1: digest}, STABLE)
    server = serve()
    (tmp_path / "serving" / "bundles" / digest / "transform.py").write_text("print('evil')\n")
    assert server.predict().status_code == 200, "what is loaded goes on answering"
    for pid in server.workers():
        os.kill(pid, signal.SIGKILL)

    def answers() -> bool:
        with httpx.Client(base_url=server.http.base_url, timeout=30) as http:
            return http.post("/v2/models/late/infer", json=request()).status_code == 200

    eventually(answers)
    assert "evil" not in server.log.read_text()


def test_a_damaged_cache_without_the_control_plane_is_refused(
    control: Control, serve: Serve, tmp_path: Path
) -> None:
    digest = control.bundle("one")
    control.route({1: digest}, STABLE)
    serve().stop()
    (tmp_path / "serving" / "bundles" / digest / "extra.py").write_text("")
    control.stop()
    server = serve()
    assert server.predict().status_code == 503
    assert "extra.py" in server.predict().json()["error"]


def test_another_control_planes_key_is_not_followed(control: Control, serve: Serve, serve_fails: Any) -> None:
    bundle = control.bundle("one")
    control.route({1: bundle}, STABLE)
    server = serve()
    control.key = SigningKey.generate()
    control.publish(route_for(control.key, {1: bundle}, [STABLE]))
    answer = server.admin("refresh")
    assert answer.status_code == 503
    assert "a key this process does not trust" in answer.json()["error"]
    assert server.predict().status_code == 200


def test_a_full_disk_gives_no_answer_that_is_not_logged(
    control: Control, serve: Serve, tmp_path: Path
) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    server = serve()
    server.predict(id="first")
    segments = tmp_path / "serving" / "segments"
    for path in segments.glob("*.seg"):
        path.unlink()
    segments.rename(tmp_path / "away")
    for pid in server.workers():
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: httpx.get(f"http://127.0.0.1:{server.port}/readyz", timeout=30).status_code == 200, 60)
    with httpx.Client(base_url=server.http.base_url, timeout=30) as http:
        answer = http.post("/v2/models/late/infer", json=request(id="second"))
        assert answer.status_code == 503
        assert "cannot be logged" in answer.json()["error"]
        (tmp_path / "away").rename(segments)
        assert http.post("/v2/models/late/infer", json=request(id="third")).status_code == 200


def test_what_keeps_a_server_from_starting_is_said_in_one_paragraph(
    control: Control, serve: Serve, serve_fails: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, said = serve_fails(port=taken.getsockname()[1])
    assert code == 2
    assert "cannot listen (Address already in use)" in said
    assert "--port" in said

    server = serve(home=str(tmp_path / "other"))
    code, said = serve_fails(port=server.port)
    assert (code, "Address already in use" in said) == (2, True)
    code, said = serve_fails(home=str(tmp_path / "other"))
    assert (code, "another `loopwright serve` uses this folder" in said) == (1, True)

    control.token = "secret"
    code, said = serve_fails(home=str(tmp_path / "third"), token="wrong")
    assert (code, "does not accept the token" in said) == (2, True)

    code, said = serve_fails(home=str(tmp_path / "fourth"), control="http://127.0.0.1:1")
    assert (code, "the control plane does not answer" in said) == (2, True)
    assert all("Traceback" not in line for line in said.splitlines())


def test_requests_under_way_are_answered_before_the_server_stops(control: Control, serve: Serve) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    server = serve()
    body = json.dumps(request(id="last")).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(
            b"POST /v2/models/late/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            + body[:10]
        )
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        client.sendall(body[10:])
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200")
    assert server.process.wait(30) == 0
    assert [event.id for event in control.events] == ["last"]


def test_workers_stop_when_their_supervisor_is_killed(control: Control, serve: Serve) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    server = serve(workers=2)
    workers = server.workers()
    server.process.kill()
    server.process.wait()
    eventually(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in workers))


def test_tritons_client_works_with_its_binary_default(control: Control, serve: Serve) -> None:
    import numpy as np
    import tritonclient.http as triton

    control.route({1: control.bundle("one")}, STABLE)
    server = serve()
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("late")
    assert client.get_model_metadata("late")["inputs"][0]["name"] == "distance"
    inputs = []
    for name, values, kind in (
        ("distance", np.array([500.0, np.nan]), "FP64"),
        ("hour", np.array([6, 7]), "INT64"),
        ("carrier", np.array(["UA", "Zürich"], dtype=object), "BYTES"),
    ):
        tensor = triton.InferInput(name, [2], kind)
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    answer = client.infer("late", inputs).as_numpy("probability")
    assert answer.tolist() == pytest.approx(
        [tiny_answer(500.0, 6, "UA"), tiny_answer(None, 7, "?")], abs=1e-6
    )


def test_grpc_answers_as_rest_does(control: Control, serve: Serve) -> None:
    import numpy as np
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    control.route(
        {1: control.bundle("one"), 2: control.bundle("strict", transform=STRICT)},
        Arm("canary", 2, 1.0),
        Arm("stable", 1, 0.0),
    )
    port = free_port()
    server = serve(grpc_port=port)
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("late")
    assert [tensor.name for tensor in client.get_model_metadata("late").inputs] == [
        "distance",
        "hour",
        "carrier",
    ]

    def infer(carriers: list[str], model: str = "late", **options: Any) -> Any:
        inputs = []
        for name, values, kind in (
            ("distance", np.full(len(carriers), 500.0), "FP64"),
            ("hour", np.full(len(carriers), 6), "INT64"),
            ("carrier", np.array(carriers, dtype=object), "BYTES"),
        ):
            tensor = triton.InferInput(name, [len(carriers)], kind)
            tensor.set_data_from_numpy(values)
            inputs.append(tensor)
        return client.infer(model, inputs, **options)

    answer = infer(["UA"], request_id="g1", parameters={"unit": "N1"})
    assert answer.as_numpy("probability").tolist() == pytest.approx([tiny_answer(500.0, 6, "UA")], abs=1e-6)
    assert answer.get_response().parameters["arm"].string_param == "canary"
    mixed = infer(["UA", "ZZ"])
    assert mixed.as_numpy("_arm").tolist() == [b"canary", b"stable"]
    with pytest.raises(InferenceServerException, match="no model `early` is served here; wanted late"):
        infer(["UA"], model="early")
    with pytest.raises(InferenceServerException, match="version 7 of late is not served here"):
        infer(["UA"], model_version="7")
    server.admin("flush")
    assert [event.unit for event in control.events if event.id == "g1"] == ["N1"]
    assert len(control.events) == 4
    text = server.http.get("/metrics").text
    assert 'arm="canary",status="error"} 1' in text


def test_a_slow_body_and_a_large_one_are_turned_away(control: Control, serve: Serve) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    server = serve(max_body=10_000)
    large = server.http.post("/v2/models/late/infer", content=b"x" * 10_001)
    assert large.status_code == 413

    def chunks() -> Any:
        for _ in range(20):
            yield b"x" * 1000

    assert server.http.post("/v2/models/late/infer", content=chunks()).status_code == 413
    assert server.predict().status_code == 200


def test_many_connections_at_once_are_all_answered(control: Control, serve: Serve) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    server = serve(workers=2)

    async def all_at_once() -> list[int]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=server.http.base_url, limits=limits, timeout=60) as http:
            answers = await asyncio.gather(
                *(http.post("/v2/models/late/infer", json=request(id=f"r{i}")) for i in range(400))
            )
        return [answer.status_code for answer in answers]

    assert asyncio.run(all_at_once()) == [200] * 400
    server.admin("flush")
    assert len({event.id for event in control.events}) == 400
