"""Open Inference Protocol V2 over gRPC, in a worker process of its own: the same engine, log and counters as REST."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from time import perf_counter_ns
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from loopwright.kernel.errors import BadInput, LoopwrightError, NotFound, Unavailable
from loopwright.serving import inference_pb2 as pb
from loopwright.serving import v2
from loopwright.serving.engine import Answer, Call
from loopwright.serving.front import Front, Target, answer_parameters
from loopwright.serving.http import Headers, HttpError, Malformed
from loopwright.serving.models import Model
from loopwright.serving.protocols.inference import OpenInference
from loopwright.serving.protocols.repository import Act, Repository
from loopwright.serving.watching import Asked, answered, caller
from loopwright.serving.worker import GRACE_SECONDS, Worker

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
MAX_METADATA = 16 << 10
MAX_CALLS = 4096
"""Calls under way at once."""

MAX_DETAILS = 2000
WATCH_SECONDS = 0.5

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


async def serve_grpc(worker: Worker) -> None:
    """Serve on the worker's gRPC port until it is told to stop; calls under way are answered."""
    config = worker.config
    server = server_of(worker.app.front, worker.stopping)
    host = f"[{config.host}]" if ":" in config.host else config.host
    server.add_insecure_port(f"{host}:{config.grpc_port}")
    await server.start()
    await worker.stopping.wait()
    await server.stop(GRACE_SECONDS)


def server_of(front: Front, stopping: asyncio.Event | None = None) -> grpc.aio.Server:
    """A server without a port yet. stopping: ends calls that would otherwise last for ever."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", front.bounds.body),
            ("grpc.max_metadata_size", MAX_METADATA),
        ],
        maximum_concurrent_rpcs=MAX_CALLS,
    )
    server.add_generic_rpc_handlers(Calls(front, stopping).handlers())
    return server


class Calls:
    """The protocol's calls, each from request message and context to answer message."""

    def __init__(self, front: Front, stopping: asyncio.Event | None = None) -> None:
        self._front = front
        self._stopping = stopping or asyncio.Event()
        self._inference = OpenInference(front)
        self._repository = Repository(front)

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Return what a gRPC server needs to route calls here."""
        inference = {
            "ServerLive": self._handler(SERVICE, self.server_live, pb.ServerLiveRequest),
            "ServerReady": self._handler(SERVICE, self.server_ready, pb.ServerReadyRequest),
            "ModelReady": self._handler(SERVICE, self.model_ready, pb.ModelReadyRequest),
            "ServerMetadata": self._handler(SERVICE, self.server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": self._handler(SERVICE, self.model_metadata, pb.ModelMetadataRequest),
            "ModelInfer": self._handler(SERVICE, self.model_infer, pb.ModelInferRequest),
            "RepositoryIndex": self._handler(SERVICE, self.index, pb.RepositoryIndexRequest),
            "RepositoryModelLoad": self._handler(SERVICE, self.load, pb.RepositoryModelLoadRequest),
            "RepositoryModelUnload": self._handler(SERVICE, self.unload, pb.RepositoryModelUnloadRequest),
        }
        health = {
            "Check": self._handler(HEALTH, self.check, pb.HealthCheckRequest),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self.watch,
                request_deserializer=_reader(pb.HealthCheckRequest),
                response_serializer=_serialize,
            ),
        }
        return (
            grpc.method_handlers_generic_handler(SERVICE, inference),
            grpc.method_handlers_generic_handler(HEALTH, health),
        )

    def _handler(self, service: str, call: Callable[[Any, Any], Awaitable[Any]], message: Any) -> Any:
        name = f"/{service}/{message.__name__.removesuffix('Request')}"
        return grpc.unary_unary_rpc_method_handler(
            self._guarded(call, name), request_deserializer=_reader(message), response_serializer=_serialize
        )

    def _guarded(
        self, call: Callable[[Any, Any], Awaitable[Any]], name: str
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def run(request: Any, context: Any) -> Any:
            try:
                answer = await call(_readable(request), context)
                self._count(grpc.StatusCode.OK)
                return answer
            except LoopwrightError as error:
                self._count(_status(error))
                pause = getattr(error, "retry_after", None)
                trailing = (("retry-after", f"{max(1, round(pause))}"),) if pause is not None else ()
                await context.abort(_status(error), str(error)[:MAX_DETAILS], trailing)
            except Exception:
                self._count(grpc.StatusCode.UNKNOWN)
                raise

        async def watched(request: Any, context: Any) -> Any:
            watchers = self._front.watchers
            if not watchers:
                return await run(request, context)
            started = perf_counter_ns()
            asked = Asked("grpc", name.rpartition("/")[2], name, _client(context), _headers(context))
            begun = [(watcher, watcher.begin(asked)) for watcher in watchers]
            answered.set(None)
            caller.set("")
            size = 0
            try:
                answer = await run(request, context)
                size = answer.ByteSize()
            finally:
                took = (perf_counter_ns() - started) // 1000
                status = (context.code() or grpc.StatusCode.OK).name
                for watcher, what in begun:
                    watcher.end(what, asked, status, size, took, answered.get())
            return answer

        return watched

    def _count(self, status: grpc.StatusCode) -> None:
        self._front.counters.add(("grpc", status.name))

    async def server_live(self, request: pb.ServerLiveRequest, context: Any) -> pb.ServerLiveResponse:
        """The process answers."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest, context: Any) -> pb.ServerReadyResponse:
        """Every model has a version that may answer."""
        return pb.ServerReadyResponse(ready=not self._front.host.not_ready())

    async def model_ready(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:
        """This model, or version, answers."""
        try:
            self._front.find(request.name, request.version or None)
        except Unavailable:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def server_metadata(
        self, request: pb.ServerMetadataRequest, context: Any
    ) -> pb.ServerMetadataResponse:
        """Who answers, and what it understands."""
        return pb.ServerMetadataResponse(**v2.server_metadata())

    async def model_metadata(
        self, request: pb.ModelMetadataRequest, context: Any
    ) -> pb.ModelMetadataResponse:
        """Inputs and outputs of a model."""
        target = self._front.find(request.name, request.version or None)
        model = target.model
        versions = sorted(model.versions) if target.version is None else [target.version]
        document = v2.metadata(model.name, versions, target.served.schema)
        tensors = {
            side: [
                pb.ModelMetadataResponse.TensorMetadata(
                    name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"]
                )
                for tensor in document[side]
            ]
            for side in ("inputs", "outputs")
        }
        return pb.ModelMetadataResponse(
            name=model.name, versions=document["versions"], platform=document["platform"], **tensors
        )

    async def model_infer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        """Answer rows, exactly as REST does."""
        started = perf_counter_ns()
        target = self._front.find(request.model_name, request.model_version or None)
        call = self._call(target, context)
        asked = _to_v2(request, self._front.bounds.rows)
        schema = target.served.schema
        v2.check_outputs(asked, schema)
        begun = self._inference.ask(target, asked, call)
        answer = begun if isinstance(begun, Answer) else await begun
        answer.raise_for_rows(target.model)
        response = _from_answer(request, asked, target.model, answer, schema.outputs)
        self._front.observe(target.model, answer, (perf_counter_ns() - started) // 1000)
        return response

    def _call(self, target: Target, context: Any) -> Call:
        """Who asks, by the call's metadata, and until when they wait, by its deadline."""
        call = self._front.call(target, _headers(context), _client(context))
        left = context.time_remaining()
        if left is None:
            return call
        return replace(call, until=min(call.until, asyncio.get_running_loop().time() + left))

    # The model repository extension.

    async def index(self, request: pb.RepositoryIndexRequest, context: Any) -> pb.RepositoryIndexResponse:
        """Which versions are in memory."""
        self._front.allow("predict", _headers(context), _client(context))
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
                )
                for entry in self._repository.index(ready=request.ready)
            ]
        )

    async def load(
        self, request: pb.RepositoryModelLoadRequest, context: Any
    ) -> pb.RepositoryModelLoadResponse:
        """Bring a model's versions into memory."""
        await self._act("load", request, context)
        return pb.RepositoryModelLoadResponse()

    async def unload(
        self, request: pb.RepositoryModelUnloadRequest, context: Any
    ) -> pb.RepositoryModelUnloadResponse:
        """Let go of a model's versions."""
        await self._act("unload", request, context)
        return pb.RepositoryModelUnloadResponse()

    async def _act(self, act: Act, request: Any, context: Any) -> None:
        self._front.allow("admin", _headers(context), _client(context))
        await self._repository.act(act, request.model_name, dict(request.parameters))

    # gRPC's health checking. A service is this server ("" or the protocol's name), or a model.

    async def check(self, request: pb.HealthCheckRequest, context: Any) -> pb.HealthCheckResponse:
        """Whether traffic should come."""
        status = self._health(request.service)
        if status == pb.HealthCheckResponse.SERVICE_UNKNOWN:
            raise NotFound("no such service", got=request.service, wanted=f"{SERVICE}, or a model's name")
        return pb.HealthCheckResponse(status=status)

    async def watch(self, request: pb.HealthCheckRequest, context: Any) -> AsyncIterator[Any]:
        """The same, again whenever it changes."""
        told = None
        if isinstance(request, DecodeError):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(request)[:MAX_DETAILS])
        while not self._stopping.is_set():
            status = self._health(request.service)
            if status != told:
                told = status
                yield pb.HealthCheckResponse(status=status)
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_SECONDS):
                    await self._stopping.wait()
        # A server waits for calls that are under way, and nobody who looks on ends this one.
        yield pb.HealthCheckResponse(status=pb.HealthCheckResponse.NOT_SERVING)

    def _health(self, service: str) -> "pb.HealthCheckResponse.ServingStatus":
        if service in ("", SERVICE):
            well = not self._front.host.not_ready()
        else:
            try:
                self._front.find(service)
                well = True
            except NotFound:
                return pb.HealthCheckResponse.SERVICE_UNKNOWN
            except Unavailable:
                well = False
        return pb.HealthCheckResponse.SERVING if well else pb.HealthCheckResponse.NOT_SERVING


def _reader(message: Any) -> Callable[[bytes], Any]:
    """Parses requests. What cannot be parsed becomes its error: raised here, gRPC would call it the server's."""

    def read(data: bytes) -> Any:
        try:
            return message.FromString(data)
        except DecodeError as error:
            return error

    return read


def _readable(request: Any) -> Any:
    if isinstance(request, DecodeError):
        raise Malformed(f"not a message of this call ({request})", where="request")
    return request


def _serialize(answer: Any) -> bytes:
    data: bytes = answer.SerializeToString()
    return data


def _headers(context: Any) -> Headers:
    return [
        (name.encode(), value if isinstance(value, bytes) else value.encode("latin-1", "replace"))
        for name, value in context.invocation_metadata() or ()
    ]


def _client(context: Any) -> str:
    """The address of the peer, which gRPC writes as ipv4:127.0.0.1:5001 or ipv6:%5B::1%5D:5001."""
    peer = unquote(context.peer())
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else peer


def _to_v2(request: pb.ModelInferRequest, max_rows: int) -> v2.InferRequest:
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise BadInput(
            "not one for each input",
            where="raw_input_contents",
            got=len(raw),
            wanted=str(len(request.inputs)),
        )
    tensors = []
    for position, tensor in enumerate(request.inputs):
        where = f"inputs[{position}]"
        shape = list(tensor.shape)
        if raw:
            data = v2.unpack_tensor(raw[position], tensor.datatype, where, shape=shape, max_rows=max_rows)
        else:
            data = _contents(tensor, where)
        parameters = {name: _parameter(value) for name, value in tensor.parameters.items()}
        tensors.append(v2.Tensor(tensor.name, tensor.datatype, shape, data, parameters or None))
    return v2.InferRequest(
        inputs=tensors,
        id=request.id or None,
        parameters={name: _parameter(value) for name, value in request.parameters.items()},
        outputs=[
            v2.WantedOutput(
                output.name, {name: _parameter(value) for name, value in output.parameters.items()}
            )
            for output in request.outputs
        ]
        or None,
    )


def _contents(tensor: pb.ModelInferRequest.InferInputTensor, where: str) -> list[Any]:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        halves = tensor.datatype in ("FP16", "BF16")
        raise BadInput(
            "halves have no contents of their own" if halves else "no such datatype",
            where=f"{where}.datatype", got=tensor.datatype,
            wanted="raw_input_contents" if halves else ", ".join(_CONTENTS),
        )  # fmt: skip
    values = list(getattr(tensor.contents, field))
    if tensor.datatype != "BYTES":
        return values
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError:
        raise BadInput("not UTF-8", where=f"{where}.contents") from None


def _parameter(value: pb.InferParameter) -> Any:
    choice = value.WhichOneof("parameter_choice")
    return getattr(value, choice) if choice else None


def _from_answer(
    request: pb.ModelInferRequest,
    asked: v2.InferRequest,
    model: Model,
    answer: Answer,
    outputs: tuple[str, ...],
) -> pb.ModelInferResponse:
    version, parameters, extra = answer_parameters(model, answer)
    response = pb.ModelInferResponse(
        model_name=model.name, model_version=str(version), id=request.id or answer.request_id
    )
    for name, value in parameters.items():
        if isinstance(value, bool):
            response.parameters[name].bool_param = value
        else:
            response.parameters[name].string_param = str(value)
    columns: list[tuple[str, str, list[Any]]] = [
        (name, "FP64", [row[i] for row in answer.outputs]) for i, name in enumerate(outputs)
    ]
    columns += [(name, "BYTES", list(texts)) for name, texts in extra.items()]
    wanted = [output.name for output in asked.outputs or ()]
    # The protocol wants raw contents for all tensors or for none; answers come the way requests did.
    raw = bool(request.raw_input_contents)
    for name, datatype, values in columns:
        if wanted and name not in wanted:
            continue
        tensor = response.outputs.add(name=name, datatype=datatype, shape=[len(values)])
        if raw:
            response.raw_output_contents.append(v2.pack_tensor(values, datatype))
        elif datatype == "BYTES":
            tensor.contents.bytes_contents.extend(text.encode() for text in values)
        else:
            tensor.contents.fp64_contents.extend(values)
    return response


_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def _status(error: LoopwrightError) -> grpc.StatusCode:
    status = error.status if isinstance(error, HttpError) else error.http_status
    return _CODES.get(status, grpc.StatusCode.INTERNAL)
