"""Real clients of each protocol against one running server: Triton's over HTTP and gRPC, OpenFeature's, a WebSocket
client, pyarrow."""

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from tritonclient.utils import InferenceServerException
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from loopwright.bundle.manifest import Golden
from loopwright.bundle.routes import Arm
from loopwright.bundle.seal import build_bundle
from loopwright.bundle.signature import Field, Schema
from loopwright.bundle.testing import CREATED, logistic_onnx, route_for, tiny_answer
from loopwright.demo.processes import free_port

from .conftest import Control, Server, launch

WEIGHTS = np.array([[0.5], [-0.25], [1.0]])
TRANSFORM = "def transform(inputs, state):\n    return {name: inputs[name] for name in ('a', 'b', 'c')}\n"


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    plane = Control(tmp_path_factory.mktemp("control"))
    plane.start()
    late = {1: plane.bundle("one"), 2: plane.bundle("two", bias=1.0), 3: plane.bundle("three", bias=2.0)}
    arms = (Arm("stable", 1, 0.4), Arm("blue", 2, 0.3), Arm("red", 3, 0.3))
    numbers = plane.depot.add(numeric_bundle(plane))
    plane.publish(
        route_for(plane.key, late, arms),
        route_for(plane.key, {1: numbers}, [Arm("stable", 1, 1.0)], model="numbers"),
    )
    yield plane
    plane.stop()


@pytest.fixture(scope="module")
def grpc_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, control: Control, grpc_port: int) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serving")
    found = Server(*launch(folder, control, workers=2, grpc_port=grpc_port, idle_unload=3600.0))
    yield found
    assert found.stop() == 0


def numeric_bundle(plane: Control) -> Path:
    schema = Schema(
        inputs=(Field("a", "float64"), Field("b", "float64"), Field("c", "int64", nullable=False)),
        features=("a", "b", "c"), outputs=("probability",), task="binary",
    )  # fmt: skip
    rows = {"a": [1.0, -2.0], "b": [0.5, 4.0], "c": [1, 0]}
    right = numeric(np.array([*rows.values()]).T)
    return build_bundle(
        plane.folder / "built" / "numbers", model="numbers", onnx=logistic_onnx(WEIGHTS, 0.0), schema=schema,
        transform=TRANSFORM, state={}, golden=Golden(rows, [[value] for value in right]),
        reference={}, card="# numbers\n", provenance={"run_id": "run-1"}, created_at=CREATED, key=plane.key,
    ).path  # fmt: skip


def numeric(rows: np.ndarray[Any, Any]) -> list[float]:
    found: list[float] = (1 / (1 + np.exp(-(rows.astype(float) @ WEIGHTS[:, 0])))).tolist()
    return found


def tensors(kind: Any, n: int, **options: Any) -> list[Any]:
    """Inputs of `late` for a Triton client: n rows of 500 miles at 6 with UA."""
    found = []
    for name, values, datatype in (
        ("distance", np.full((n, 1), 500.0, dtype=np.float32), "FP32"),
        ("hour", np.full((n, 1), 6, dtype=np.int32), "INT32"),
        ("carrier", np.full((n, 1), "UA", dtype=object), "BYTES"),
    ):
        tensor = kind(name, [n, 1], datatype)
        tensor.set_data_from_numpy(values, **options)
        found.append(tensor)
    return found


BIAS = {"stable": 0.0, "blue": 1.0, "red": 2.0}


@pytest.mark.parametrize("binary", [True, False])
def test_triton_over_http(server: Server, binary: bool) -> None:
    with triton_http.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("late", "2")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        assert [each["name"] for each in client.get_model_metadata("late")["inputs"]] == [
            "distance",
            "hour",
            "carrier",
        ]
        outputs = [triton_http.InferRequestedOutput("probability", binary_data=binary)]
        for asked in (outputs, None) if binary else (outputs,):
            inputs = tensors(triton_http.InferInput, 3, binary_data=binary)
            answer = client.infer("late", inputs, outputs=asked, request_id="t1", parameters={"unit": "u1"})
            document = answer.get_response()
            arm = document["parameters"]["arm"]
            assert (document["id"], document["model_name"]) == ("t1", "late")
            assert ("binary_data_size" in document["outputs"][0].get("parameters", {})) is binary
            right = tiny_answer(500.0, 6, "UA", bias=BIAS[arm])
            assert answer.as_numpy("probability").tolist() == pytest.approx([right] * 3, abs=1e-6)
        with pytest.raises(InferenceServerException, match="input `distance` is missing"):
            client.infer("late", tensors(triton_http.InferInput, 3, binary_data=binary)[1:])


@pytest.mark.parametrize("datatype", ["FP64", "FP32", "FP16", "INT64"])
def test_triton_sends_one_matrix(server: Server, grpc_port: int, datatype: str) -> None:
    rows = np.array([[1, 2, 3], [-4, 0, 1]]).astype(
        np.dtype({"FP": "f", "IN": "i"}[datatype[:2]] + str(int(datatype[-2:]) // 8))
    )
    for module, port in ((triton_http, server.port), (triton_grpc, grpc_port)):
        with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
            tensor = module.InferInput("x", [2, 3], datatype)
            tensor.set_data_from_numpy(rows)
            answer = client.infer("numbers", [tensor])
            assert answer.as_numpy("probability").tolist() == pytest.approx(numeric(rows), abs=1e-6)


def test_triton_over_grpc(server: Server, grpc_port: int) -> None:
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}") as client:
        assert client.is_server_ready()
        assert list(client.get_server_metadata().extensions) == ["binary_tensor_data", "model_repository"]
        answer = client.infer(
            "late",
            tensors(triton_grpc.InferInput, 2),
            headers={"x-loopwright-arm": "red"},
            client_timeout=5.0,
        )
        assert answer.get_response().parameters["arm"].string_param == "red"
        right = tiny_answer(500.0, 6, "UA", bias=2.0)
        assert answer.as_numpy("probability").tolist() == pytest.approx([right] * 2, abs=1e-6)
        with socket.create_connection(("127.0.0.1", grpc_port), timeout=5) as raw:
            raw.sendall(b"\xff" * 4000)
        with pytest.raises(InferenceServerException, match="no arm of this name"):
            client.infer("late", tensors(triton_grpc.InferInput, 2), headers={"x-loopwright-arm": "green"})


def test_triton_loads_and_unloads_in_every_worker(server: Server, grpc_port: int) -> None:
    def states(index: Any) -> dict[tuple[str, str], str]:
        return {(entry["name"], entry["version"]): entry["state"] for entry in index}

    url = f"127.0.0.1:{server.port}"
    with (
        triton_http.InferenceServerClient(url) as http,
        triton_grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}") as grpc,
    ):
        everything = {("late", "1"), ("late", "2"), ("late", "3"), ("numbers", "1")}
        assert states(http.get_model_repository_index()).keys() == everything
        http.load_model("numbers")
        for _ in range(6):  # each time another connection, so another worker may answer
            assert states(httpx.post(f"http://{url}/v2/repository/index").json())["numbers", "1"] == "READY"
        grpc.unload_model("numbers")
        for _ in range(6):
            index = states(httpx.post(f"http://{url}/v2/repository/index").json())
            assert index["numbers", "1"] == "UNAVAILABLE"
            assert index["late", "1"] == "READY"  # an experiment runs on it
        assert (
            states(grpc.get_model_repository_index(as_json=True)["models"])["numbers", "1"] == "UNAVAILABLE"
        )
        tensor = triton_http.InferInput("x", [1, 3], "FP64")
        tensor.set_data_from_numpy(np.ones((1, 3)))
        assert http.infer("numbers", [tensor]).as_numpy("probability")[0] == pytest.approx(
            numeric(np.ones((1, 3)))[0]
        )
        grpc.load_model("numbers")
        for _ in range(6):
            assert states(httpx.post(f"http://{url}/v2/repository/index").json())["numbers", "1"] == "READY"
        for client in (http, grpc):
            with pytest.raises(InferenceServerException, match="no model `early`"):
                client.load_model("early")
            with pytest.raises(InferenceServerException, match="decided by promotion"):
                client.load_model("late", config='{"backend": "python"}')


def test_openfeature_says_which_arm_will_answer_and_the_log_agrees(server: Server, control: Control) -> None:
    api.set_provider(OFREPProvider(f"http://127.0.0.1:{server.port}"), domain="routing")
    flags = api.get_client(domain="routing")
    told = {}
    for unit in (f"user-{number}" for number in range(25)):
        details = flags.get_string_details("late", "none", EvaluationContext(unit, {"plan": "gold"}))
        assert (details.error_code, details.reason, details.variant) == (None, "SPLIT", details.value)
        answer = server.predict(parameters={"unit": unit}, id=f"of-{unit}").json()
        assert answer["parameters"]["arm"] == details.value
        assert details.flag_metadata["version"] == int(answer["model_version"])
        told[f"of-{unit}"] = details.value
    assert set(told.values()) == {"stable", "blue", "red"}
    assert flags.get_string_value("numbers", "none") == "stable"
    missing = flags.get_string_details("late", "none")
    assert (missing.value, missing.error_code) == ("none", "TARGETING_KEY_MISSING")
    assert flags.get_string_details("early", "none").error_code == "FLAG_NOT_FOUND"
    assert flags.get_boolean_details("late", True, EvaluationContext("u")).error_code == "TYPE_MISMATCH"
    server.admin("flush")
    logged = {event.id: (event.arm, event.version) for event in control.events if event.id in told}
    assert logged == {row: (arm, {"stable": 1, "blue": 2, "red": 3}[arm]) for row, arm in told.items()}


def test_a_websocket_client_is_answered_in_order_and_survives_its_mistakes(server: Server) -> None:
    url = f"ws://127.0.0.1:{server.port}/models"
    row = {"distance": 500.0, "hour": 6, "carrier": "UA"}
    with connect(f"{url}/late/versions/1/stream", compression="deflate") as talk:
        for number in range(300):
            talk.send(json.dumps({"inputs": row, "id": f"w{number}"}))
        answers = [json.loads(talk.recv(10)) for _ in range(300)]
        assert [answer["request_id"] for answer in answers] == [f"w{number}" for number in range(300)]
        assert answers[7]["predictions"][0]["outputs"]["probability"] == pytest.approx(
            tiny_answer(500.0, 6, "UA"), abs=1e-6
        )
        for message, error in (("{", "not JSON"), (b"\0", "binary message"), ("x" * (2 << 20), "too large")):
            talk.send(message)
            assert error in json.loads(talk.recv(10))["error"]
        talk.send(json.dumps({"inputs": row, "id": "last"}))
        assert json.loads(talk.recv(10))["request_id"] == "last"
        talk.ping().wait(10)
        with pytest.raises(ConnectionClosedError, match="1009"):
            talk.send("x" * (9 << 20))
            talk.recv(10)
    with pytest.raises(InvalidStatus) as caught, connect(f"{url}/early/stream"):
        pass
    assert caught.value.response.status_code == 404
    assert b"no model `early`" in (caught.value.response.body or b"")


def resident(server: Server) -> int:
    return max(
        int(line.split()[1]) for pid in server.workers()
        for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")
    )  # fmt: skip


def test_pyarrow_sends_more_than_a_worker_would_hold(server: Server) -> None:
    n, batches = 3000, 10
    table = pa.table({
        "a": np.linspace(-3, 3, n), "b": np.linspace(0, 1, n).astype("f4"), "c": np.arange(n) % 5,
        "_id": [f"{number:09d}" * 28 for number in range(n)],
    })  # fmt: skip
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for _ in range(batches):
            writer.write_table(table)
    headers = {"content-type": "application/vnd.apache.arrow.stream"}
    before = resident(server)
    # All is sent before anything is read.
    reply = server.http.post("/models/numbers/bulk", content=sink.getvalue(), headers=headers)
    assert reply.status_code == 200
    told = pa.ipc.open_stream(reply.content).read_all()
    assert told.num_rows == n * batches
    assert told["_error"].null_count == n * batches
    rows = np.stack([table["a"], table["b"], table["c"]], axis=1)
    assert told["probability"].to_numpy() == pytest.approx(np.tile(numeric(rows), batches), abs=1e-5)
    assert len(sink.getvalue()) > 8_000_000
    assert resident(server) - before < 60_000  # kB; the body and its answer together are some 20 MB each


def test_lines_are_streamed_both_ways(server: Server) -> None:
    def lines() -> Iterator[bytes]:
        for number in range(2000):
            yield (
                json.dumps({"a": number / 1000, "b": 0.5, "c": number % 3, "_id": f"l{number}"}).encode()
                + b"\n"
            )
        yield b"nonsense\n"

    headers = {"content-type": "application/x-ndjson", "x-loopwright-timeout-ms": "20000"}
    with server.http.stream("POST", "/models/numbers/bulk", content=lines(), headers=headers) as reply:
        told = [json.loads(line) for line in reply.iter_lines()]
    assert [each.get("id") for each in told] == [*(f"l{number}" for number in range(2000)), None]
    assert told[-1]["line"] == 2001
