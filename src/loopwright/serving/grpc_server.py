"""Open Inference Protocol V2 over gRPC, in a worker process of its own: the same engine, log and counters as REST."""

from collections.abc import Awaitable, Callable
from time import perf_counter_ns
from typing import Any

import grpc
import grpc.aio

from loopwright.kernel.errors import BadInput, LoopwrightError, NotFound, Unavailable
from loopwright.serving import inference_pb2 as pb
from loopwright.serving import v2
from loopwright.serving.engine import Answer, Call, Engine
from loopwright.serving.front import answer_parameters
from loopwright.serving.models import Model
from loopwright.serving.worker import GRACE_SECONDS, Worker

SERVICE = "inference.GRPCInferenceService"

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
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", config.max_body)])
    server.add_generic_rpc_handlers((Calls(worker).handlers(),))
    host = f"[{config.host}]" if ":" in config.host else config.host
    server.add_insecure_port(f"{host}:{config.grpc_port}")
    await server.start()
    await worker.stopping.wait()
    await server.stop(GRACE_SECONDS)


class Calls:
    """The protocol's calls, each from request message to answer message."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._engine: Engine = worker.engine

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return what a gRPC server needs to route the protocol's calls here."""
        calls: dict[str, tuple[Callable[[Any], Awaitable[Any]], Any]] = {
            "ServerLive": (self.server_live, pb.ServerLiveRequest),
            "ServerReady": (self.server_ready, pb.ServerReadyRequest),
            "ModelReady": (self.model_ready, pb.ModelReadyRequest),
            "ServerMetadata": (self.server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": (self.model_metadata, pb.ModelMetadataRequest),
            "ModelInfer": (self.model_infer, pb.ModelInferRequest),
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                self._guarded(call),
                request_deserializer=message.FromString,
                response_serializer=lambda answer: answer.SerializeToString(),
            )
            for name, (call, message) in calls.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _guarded(self, call: Callable[[Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def run(request: Any, context: Any) -> Any:
            try:
                return await call(request)
            except LoopwrightError as error:
                await context.abort(_status(error), str(error))

        return run

    async def server_live(self, request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        """The process answers."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        """Every model has a version that may answer."""
        return pb.ServerReadyResponse(ready=not self._worker.not_ready())

    async def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """This model, or version, answers."""
        model = self._engine.model(request.name)
        try:
            self._engine.target(model, _version(request.version))
        except Unavailable:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def server_metadata(self, request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        """Who answers."""
        return pb.ServerMetadataResponse(name="loopwright", version="2", extensions=[])

    async def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """Inputs and outputs of a model."""
        model = self._engine.model(request.name)
        version = _version(request.version)
        target = self._engine.target(model, version)
        versions = sorted(model.versions) if version is None else [version]
        document = v2.metadata(model.name, versions, target.reader.schema)
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

    async def model_infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """Answer rows, exactly as REST does."""
        started = perf_counter_ns()
        model = self._engine.model(request.model_name)
        version = _version(request.model_version)
        target = self._engine.target(model, version)
        asked = _to_v2(request)
        v2.check_outputs(asked, target.reader.schema)
        rows = v2.read_rows(asked, target.reader, max_rows=self._worker.bounds.rows)
        answer = await self._engine.infer(model, rows, Call(version))
        answer.raise_for_rows(model)
        response = _from_answer(request, asked, model, answer, target.reader.schema.outputs)
        self._worker.counters.observe(("latency", model.name), (perf_counter_ns() - started) // 1000)
        return response


def _to_v2(request: pb.ModelInferRequest) -> v2.InferRequest:
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
        data = v2.unpack_tensor(raw[position], tensor.datatype, where) if raw else _contents(tensor, where)
        tensors.append(v2.Tensor(tensor.name, tensor.datatype, list(tensor.shape), data))
    return v2.InferRequest(
        inputs=tensors,
        id=request.id or None,
        parameters={name: _parameter(value) for name, value in request.parameters.items()},
        outputs=[v2.WantedOutput(output.name) for output in request.outputs] or None,
    )


def _contents(tensor: pb.ModelInferRequest.InferInputTensor, where: str) -> list[Any]:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        wanted = ", ".join(_CONTENTS)
        raise BadInput("no such datatype", where=f"{where}.datatype", got=tensor.datatype, wanted=wanted)
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


def _version(text: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise NotFound("not a version", got=text, wanted="a whole number")
    return int(text)


def _status(error: LoopwrightError) -> grpc.StatusCode:
    codes = {
        400: grpc.StatusCode.INVALID_ARGUMENT,
        404: grpc.StatusCode.NOT_FOUND,
        413: grpc.StatusCode.RESOURCE_EXHAUSTED,
        422: grpc.StatusCode.INVALID_ARGUMENT,
        503: grpc.StatusCode.UNAVAILABLE,
    }
    return codes.get(error.http_status, grpc.StatusCode.INTERNAL)
