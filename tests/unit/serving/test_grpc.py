"""V2 over gRPC: a real server and channel on one event loop."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from hashlib import sha256
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.bundle.open import Bundle
from loopwright.bundle.routes import Arm
from loopwright.bundle.testing import tiny_answer
from loopwright.serving import inference_pb2 as pb
from loopwright.serving import v2
from loopwright.serving.callers import Caller, Callers
from loopwright.serving.counters import read_counters
from loopwright.serving.grpc_server import HEALTH, SERVICE, Calls, server_of
from loopwright.serving.http import Bounds
from loopwright.serving.models import Model
from tests.unit.serving.inside import Inside, model_of, tiny

RIGHT = [tiny_answer(500.0, 6, "UA"), tiny_answer(None, 23, "AA")]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {1: tiny(folder / "one"), 2: tiny(folder / "two", bias=1.0)}


class Port:
    """A gRPC server over `inside`, and calls to it."""

    def __init__(self, inside: Inside) -> None:
        self.inside = inside
        self.run(self._start())

    async def _start(self) -> None:
        self.server = server_of(self.inside.app.front)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")

    def run(self, act: Awaitable[Any]) -> Any:
        return self.inside._runner.run(act)  # type: ignore[arg-type]

    async def ask(self, call: str, request: Any, answer: Any, **options: Any) -> Any:
        method = self.channel.unary_unary(
            f"/{options.pop('service', SERVICE)}/{call}",
            request_serializer=lambda each: each if isinstance(each, bytes) else each.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return await method(request, **options)

    def infer(self, request: pb.ModelInferRequest | bytes, **options: Any) -> pb.ModelInferResponse:
        found: pb.ModelInferResponse = self.run(
            self.ask("ModelInfer", request, pb.ModelInferResponse, **options)
        )
        return found

    def close(self) -> None:
        async def stop() -> None:
            await self.channel.close()
            await self.server.stop(None)

        self.run(stop())
        self.inside.close()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, bundles: dict[int, Bundle]) -> Iterator[Port]:
    arms = (Arm("stable", 1, 1.0), Arm("canary", 2, 0.0))
    refused = Model("none", "salt", (), {}, {2: "one wrong byte"})
    site = Inside(
        tmp_path_factory.mktemp("site"),
        model_of("late", bundles, *arms),
        refused,
        bounds=Bounds(body=100_000),
    )
    found = Port(site)
    yield found
    found.close()


def request(raw: bool = True, **more: Any) -> pb.ModelInferRequest:
    asked = pb.ModelInferRequest(model_name=more.pop("model", "late"), **more)
    columns: list[tuple[str, str, list[Any]]] = [
        ("distance", "FP64", [500.0, float("nan")]), ("hour", "INT64", [6, 23]), ("carrier", "BYTES", ["UA", "AA"]),
    ]  # fmt: skip
    for name, datatype, values in columns:
        tensor = asked.inputs.add(name=name, datatype=datatype, shape=[2, 1])
        if raw:
            asked.raw_input_contents.append(v2.pack_tensor(values, datatype))
        elif datatype == "FP64":
            tensor.contents.fp64_contents.extend(values)
        elif datatype == "INT64":
            tensor.contents.int64_contents.extend(values)
        else:
            tensor.contents.bytes_contents.extend(value.encode() for value in values)
    return asked


@pytest.mark.parametrize("raw", [True, False])
def test_rows_are_answered_the_way_they_came(port: Port, raw: bool) -> None:
    asked = request(raw, id="r1")
    asked.parameters["unit"].string_param = "u"
    answer = port.infer(asked)
    assert (answer.model_name, answer.model_version, answer.id) == ("late", "1", "r1")
    assert answer.parameters["arm"].string_param == "stable"
    if raw:
        values = np.frombuffer(answer.raw_output_contents[0]).tolist()
    else:
        values = list(answer.outputs[0].contents.fp64_contents)
    assert values == pytest.approx(RIGHT, abs=1e-6)
    assert [(event.id, event.unit) for event in port.inside.events()[-2:]] == [("r1/0", "u"), ("r1/1", "u")]


def test_halves_come_as_raw_contents(port: Port) -> None:
    asked = request()
    asked.inputs[0].datatype = "BF16"
    asked.raw_input_contents[0] = (np.array([500.0, np.nan], "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    values = np.frombuffer(port.infer(asked).raw_output_contents[0]).tolist()
    assert values == pytest.approx(RIGHT, abs=1e-6)


def test_metadata_names_an_arm_a_request_and_a_time_limit(port: Port) -> None:
    asked = request()
    metadata = (("x-loopwright-arm", "canary"), ("x-request-id", "mine"))
    answer = port.infer(asked, metadata=metadata)
    assert (answer.model_version, answer.parameters["arm"].string_param, answer.id) == ("2", "canary", "mine")


def test_the_calls_deadline_is_the_requests(port: Port) -> None:
    class Context:
        left: float | None = 0.5

        def time_remaining(self) -> float | None:
            return self.left

        def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
            return (("x-loopwright-timeout-ms", "60000"),)

        def peer(self) -> str:
            return "ipv6:%5B::1%5D:4711"

    async def read() -> tuple[float, float]:
        calls, target = Calls(port.inside.app.front), port.inside.app.front.find("late")
        context, now = Context(), asyncio.get_running_loop().time()
        with_deadline = calls._call(target, context).until - now
        context.left = None
        return with_deadline, calls._call(target, context).until - now

    short, long = port.run(read())
    assert short == pytest.approx(0.5, abs=0.2)
    assert long == pytest.approx(60, abs=0.2)


def broken(**changes: Any) -> pb.ModelInferRequest:
    asked = request()
    for name, value in changes.items():
        setattr(asked.inputs[0], name, value) if name != "shape" else asked.inputs[0].shape.__setitem__(
            0, value
        )
    return asked


def with_output(name: str) -> pb.ModelInferRequest:
    asked = request()
    asked.outputs.add(name=name)
    return asked


@pytest.mark.parametrize(
    ("asked", "code", "details"),
    [
        (request(model="early"), "NOT_FOUND", "no model `early` is served here"),
        (request(model_version="7"), "NOT_FOUND", "version 7 of late"),
        (request(model_version="x"), "NOT_FOUND", "not a version"),
        (request(model="none"), "UNAVAILABLE", "one wrong byte"),
        (broken(name="distanc"), "INVALID_ARGUMENT", "did you mean `distance`?"),
        (broken(datatype="FP65"), "INVALID_ARGUMENT", "inputs[0].datatype: no such datatype"),
        (broken(shape=3), "INVALID_ARGUMENT", "data and shape differ"),
        (broken(shape=2**62), "RESOURCE_EXHAUSTED", "too many rows"),
        (broken(shape=-1), "INVALID_ARGUMENT", "not a shape"),
        (with_output("nothing"), "INVALID_ARGUMENT", "no output `nothing`"),
        (
            pb.ModelInferRequest(model_name="late", raw_input_contents=[b""]),
            "INVALID_ARGUMENT",
            "raw_input_contents",
        ),
        (b"\xff\xff\xff", "INVALID_ARGUMENT", "not a message of this call"),
        (pb.ModelInferRequest(model_name="x" * 200_000), "RESOURCE_EXHAUSTED", "larger than max"),
    ],
)
def test_a_mistake_has_a_status_and_says_where(port: Port, asked: Any, code: str, details: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        port.infer(asked)
    assert caught.value.code().name == code
    assert details in (caught.value.details() or "")


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # 1e300 is a number, if not a near one
@settings(max_examples=60)
@given(
    data=st.binary(max_size=60)
    | st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=4)).map(
        lambda change: (lambda good: good[: change[0]] + change[1] + good[change[0] + len(change[1]) :])(
            request().SerializeToString()
        )
    )
)
def test_no_bytes_are_the_servers_fault(port: Port, data: bytes) -> None:
    code = "OK"
    try:
        port.infer(data)
    except grpc.aio.AioRpcError as error:
        code = error.code().name
    assert code in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE", "RESOURCE_EXHAUSTED")


def test_calls_are_counted_by_what_they_were_told(port: Port) -> None:
    def told() -> dict[str, int]:
        return {
            key[1]: one.count for key, one in read_counters(port.inside.folder).items() if key[0] == "grpc"
        }

    before = told()
    port.infer(request())
    with pytest.raises(grpc.aio.AioRpcError):
        port.infer(request(model="nothing"))
    after = told()
    assert [after[code] - before.get(code, 0) for code in ("OK", "NOT_FOUND")] == [1, 1]


def test_garbage_on_the_port_harms_nobody(port: Port) -> None:
    async def garble() -> None:
        for noise in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 5000, bytes(range(256)) * 40):
            with socket.create_connection(("127.0.0.1", port.port), timeout=5) as raw:
                raw.sendall(noise)
                await asyncio.sleep(0.02)

    port.run(garble())
    assert port.infer(request()).model_version == "1"


def test_only_callers_are_answered(
    tmp_path_factory: pytest.TempPathFactory, bundles: dict[int, Bundle]
) -> None:
    shop = Caller("shop", sha256(b"secret").hexdigest())
    callers = Callers((shop, Caller("hurried", sha256(b"slowly").hexdigest(), per_second=0.01)))
    port = Port(Inside(tmp_path_factory.mktemp("closed"), model_of("late", bundles), callers=callers))
    token = ("authorization", "Bearer secret")

    def refused(*metadata: tuple[str, str], call: Callable[..., Any] = port.infer, asked: Any = None) -> Any:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            call(asked or request(), metadata=metadata)
        return caught.value

    assert refused().code().name == "UNAUTHENTICATED"
    assert refused(("authorization", "Bearer guess")).code().name == "UNAUTHENTICATED"
    assert port.infer(request(), metadata=(token,)).model_version == "1"
    assert refused(token, ("x-loopwright-arm", "canary")).code().name == "PERMISSION_DENIED"
    slowly = ("authorization", "Bearer slowly")
    assert port.infer(request(), metadata=(slowly,)).model_version == "1"
    hurried = refused(slowly)
    assert hurried.code().name == "RESOURCE_EXHAUSTED"
    assert 90 < int(dict(hurried.trailing_metadata())["retry-after"]) <= 100
    load = pb.RepositoryModelLoadRequest(model_name="late")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        port.run(port.ask("RepositoryModelLoad", load, pb.RepositoryModelLoadResponse, metadata=(token,)))
    assert caught.value.code().name == "PERMISSION_DENIED"
    port.close()


def test_the_repository_is_there_too(port: Port) -> None:
    index = port.run(port.ask("RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse))
    assert [(entry.name, entry.version, entry.state, entry.reason) for entry in index.models] == [
        ("late", "1", "READY", ""), ("late", "2", "READY", ""), ("none", "2", "UNAVAILABLE", "one wrong byte"),
    ]  # fmt: skip
    ready = pb.RepositoryIndexRequest(ready=True)
    assert len(port.run(port.ask("RepositoryIndex", ready, pb.RepositoryIndexResponse)).models) == 2
    for act, kind, answer in (
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest, pb.RepositoryModelLoadResponse),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest, pb.RepositoryModelUnloadResponse),
    ):
        port.run(port.ask(act, kind(model_name="late"), answer))
        sneaky = kind(model_name="late")
        sneaky.parameters["config"].string_param = "{}"
        with pytest.raises(grpc.aio.AioRpcError, match="decided by promotion"):
            port.run(port.ask(act, sneaky, answer))


def test_balancers_ask_for_health(port: Port) -> None:
    def health(service: str) -> int:
        asked = pb.HealthCheckRequest(service=service)
        status: int = port.run(port.ask("Check", asked, pb.HealthCheckResponse, service=HEALTH)).status
        return status

    serving, not_serving = pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING
    assert [health(service) for service in ("", SERVICE, "late", "none")] == [
        serving,
        serving,
        serving,
        not_serving,
    ]
    with pytest.raises(grpc.aio.AioRpcError, match="no such service"):
        health("early")

    async def watch() -> list[int]:
        method = port.channel.unary_stream(
            f"/{HEALTH}/Watch",
            request_serializer=pb.HealthCheckRequest.SerializeToString,
            response_deserializer=pb.HealthCheckResponse.FromString,
        )
        call, seen = method(pb.HealthCheckRequest()), []
        async for told in call:
            seen.append(told.status)
            port.inside.host.reason = "shutting down"
            if len(seen) == 2:
                call.cancel()
                break
        port.inside.host.reason = ""
        return seen

    assert port.run(watch()) == [serving, not_serving]


def test_who_watches_does_not_keep_a_server_that_is_to_stop(port: Port) -> None:
    async def stop() -> tuple[list[int], float]:
        stopping = asyncio.Event()
        server = server_of(port.inside.app.front, stopping)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        async with grpc.aio.insecure_channel(address) as channel:
            method = channel.unary_stream(
                f"/{HEALTH}/Watch",
                request_serializer=pb.HealthCheckRequest.SerializeToString,
                response_deserializer=pb.HealthCheckResponse.FromString,
            )
            call = method(pb.HealthCheckRequest())
            seen = [(await call.read()).status]
            began = time.monotonic()
            stopping.set()
            await server.stop(20)
            took = time.monotonic() - began
            seen.append((await call.read()).status)
        return seen, took

    seen, took = port.run(stop())
    assert seen == [pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING]
    assert took < 10


def test_everybody_may_ask_who_is_there(port: Port) -> None:
    server = port.run(port.ask("ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse))
    assert (server.name, list(server.extensions)) == (
        "loopwright",
        ["binary_tensor_data", "model_repository"],
    )
    asked = pb.ModelMetadataRequest(name="late")
    model = port.run(port.ask("ModelMetadata", asked, pb.ModelMetadataResponse))
    assert [(tensor.name, tensor.datatype) for tensor in model.inputs] == [
        ("distance", "FP64"), ("hour", "INT64"), ("carrier", "BYTES"),
    ]  # fmt: skip
    for name, ready in (("late", True), ("none", False)):
        asked_ready = pb.ModelReadyRequest(name=name)
        assert port.run(port.ask("ModelReady", asked_ready, pb.ModelReadyResponse)).ready is ready
