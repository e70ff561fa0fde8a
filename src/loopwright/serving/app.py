"""The worker's ASGI application: V2 inference on a hot path without request objects, the rest beside it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Protocol

from loopwright.kernel.errors import BadInput, LoopwrightError, NotFound, Refused, Unavailable
from loopwright.serving import v2
from loopwright.serving.counters import Counters
from loopwright.serving.engine import Answer, Engine
from loopwright.serving.exposition import render
from loopwright.serving.models import Model

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_JSON = (b"content-type", b"application/json")
_LOOPBACK = ("127.", "::1", "::ffff:127.")


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one request may bring. body: bytes; body_seconds: how long a client may take to send it."""

    body: int = 8 << 20
    rows: int = 10_000
    body_seconds: float = 30.0


class Host(Protocol):
    """What the application needs from the process around it."""

    def not_ready(self) -> str:
        """Why no traffic should come, or ""."""
        ...

    def warnings(self) -> list[str]:
        """What a person should know though all answers are right."""
        ...

    def gauges(self) -> Mapping[str, float]:
        """Numbers for /metrics that are not counters."""
        ...

    async def ask(self, what: str) -> tuple[int, dict[str, Any]]:
        """Ask the supervisor ("flush" or "refresh"); return status and answer."""
        ...


class HttpError(LoopwrightError):
    """A request that reached no model: unknown path, wrong method, a body too slow."""

    def __init__(self, status: int, what: str, **fields: Any) -> None:
        super().__init__(what, **fields)
        self.status = status


class App:
    """One worker's HTTP side. `publish` is called whenever the engine's models change."""

    def __init__(self, engine: Engine, counters: Counters, host: Host, folder: Path, bounds: Bounds) -> None:
        self._engine = engine
        self._counters = counters
        self._host = host
        self._folder = folder
        self._bounds = bounds
        self._hot: dict[str, tuple[Model, int | None]] = {}

    def publish(self) -> None:
        """Make the engine's current models reachable."""
        hot: dict[str, tuple[Model, int | None]] = {}
        for name, model in self._engine.models.items():
            hot[f"/v2/models/{name}/infer"] = (model, None)
            for version in model.versions:
                hot[f"/v2/models/{name}/versions/{version}/infer"] = (model, version)
        self._hot = hot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        headers: Headers = [_JSON]
        try:
            hot = self._hot.get(scope["path"])
            if hot is not None and scope["method"] == "POST":
                status, body, json_length = await self._infer(*hot, scope, receive)
                if json_length is not None:
                    headers = [
                        (b"content-type", b"application/octet-stream"),
                        (b"inference-header-content-length", b"%d" % json_length),
                    ]
            else:
                status, body, headers = await self._other(scope, receive)
        except LoopwrightError as error:
            status, body = _refuse(error)
            if status in (408, 413):
                # The rest of such a body is not worth reading.
                headers = [_JSON, (b"connection", b"close")]
            if status == 405:
                headers = [_JSON, (b"allow", b"POST" if scope["path"] in self._hot else b"GET, POST")]
        except ClientGone:
            return
        headers.append((b"content-length", b"%d" % len(body)))
        self._counters.add(("http", str(status)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _infer(
        self, model: Model, version: int | None, scope: Scope, receive: Receive
    ) -> tuple[int, bytes, int | None]:
        started = perf_counter_ns()
        json_length = None
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self._bounds.body:
                raise v2.TooLarge(
                    "the body is too large", got=int(value), wanted=f"at most {self._bounds.body} bytes"
                )
            if name == b"inference-header-content-length":
                json_length = int(value) if value.isdigit() and len(value) < 20 else -1
            if name == b"content-encoding" and value != b"identity":
                raise HttpError(
                    415, "compressed bodies are not read", got=value.decode("latin-1"), wanted="identity"
                )
        message = await receive()
        body = message.get("body", b"")
        if message["type"] != "http.request" or message.get("more_body"):
            body = await self._rest(message, receive)
        if len(body) > self._bounds.body:  # a chunked body that came at once names no length
            raise v2.TooLarge(
                "the body is too large", got=len(body), wanted=f"at most {self._bounds.body} bytes"
            )
        target = self._engine.target(model, version)
        request = v2.parse_request(body, json_length)
        schema = target.reader.schema
        if request.outputs:
            v2.check_outputs(request, schema)
        rows = v2.read_rows(request, target.reader, max_rows=self._bounds.rows)
        answer = await self._engine.infer(model, version, rows)
        result = _respond(request, model, answer, schema.outputs)
        self._counters.observe(("latency", model.name), (perf_counter_ns() - started) // 1000)
        return 200, *result

    async def _rest(self, message: Message, receive: Receive) -> bytes:
        parts = bytearray()
        try:
            async with asyncio.timeout(self._bounds.body_seconds):
                while True:
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    parts += message.get("body", b"")
                    if len(parts) > self._bounds.body:
                        raise v2.TooLarge(
                            "the body is too large", wanted=f"at most {self._bounds.body} bytes"
                        )
                    if not message.get("more_body"):
                        return bytes(parts)
                    message = await receive()
        except TimeoutError:
            raise HttpError(
                408, "the body came too slowly", wanted=f"all of it within {self._bounds.body_seconds:g} s"
            ) from None

    async def _other(self, scope: Scope, receive: Receive) -> tuple[int, bytes, Headers]:
        method, path = scope["method"], scope["path"].rstrip("/") or "/"
        if path in ("/admin/flush", "/admin/refresh"):
            _allow(method, "POST")
            client = (scope.get("client") or ("",))[0]
            if not client.startswith(_LOOPBACK):
                raise Refused(
                    "admin calls are answered on this machine only", got=client, wanted="a loopback address"
                )
            status, answer = await self._host.ask(path.removeprefix("/admin/"))
            return status, v2.encode(answer), [_JSON]
        if path.startswith("/v2/models/") and path.endswith("/infer"):
            _allow(method, "POST")
            return await self._cold_infer(path, scope, receive)
        _allow(method, "GET", "HEAD")
        if path == "/metrics":
            text = render(self._folder, self._host.gauges())
            return 200, text.encode(), [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
        if path in ("/healthz", "/v2/health/live"):
            return 200, v2.encode({"live": True}), [_JSON]
        if path in ("/readyz", "/v2/health/ready"):
            why, warnings = self._host.not_ready(), self._host.warnings()
            said = {**({"error": why} if why else {}), **({"warnings": warnings} if warnings else {})}
            return 503 if why else 200, v2.encode({"ready": not why, **said}), [_JSON]
        if path in ("/", "/v2"):
            return 200, v2.encode(self._server()), [_JSON]
        if path == "/v2/models":
            models = [self._describe(model) for _, model in sorted(self._engine.models.items())]
            return 200, v2.encode({"models": models}), [_JSON]
        return self._model(path)

    async def _cold_infer(self, path: str, scope: Scope, receive: Receive) -> tuple[int, bytes, Headers]:
        """Reached by trailing slashes, and models or versions that are not served."""
        model, version, rest = self._find(path)
        if rest != ["infer"]:
            raise HttpError(404, "no such path", got=path)
        status, body, json_length = await self._infer(model, version, scope, receive)
        if json_length is None:
            return status, body, [_JSON]
        header = (b"inference-header-content-length", b"%d" % json_length)
        return status, body, [(b"content-type", b"application/octet-stream"), header]

    def _model(self, path: str) -> tuple[int, bytes, Headers]:
        if not path.startswith("/v2/models/"):
            raise HttpError(
                404, "no such path", got=path, wanted="/v2/models/MODEL/infer, /healthz, /readyz, /metrics"
            )
        model, version, rest = self._find(path)
        if rest == ["ready"]:
            try:
                self._engine.target(model, version)
            except Unavailable as error:
                return 503, v2.encode({"name": model.name, "ready": False, "error": str(error)}), [_JSON]
            return 200, v2.encode({"name": model.name, "ready": True}), [_JSON]
        if rest:
            raise HttpError(404, "no such path", got=path)
        target = self._engine.target(model, version)
        versions = sorted(model.versions) if version is None else [version]
        described = v2.metadata(model.name, versions, target.schema)
        return 200, v2.encode({**described, "parameters": self._describe(model)}), [_JSON]

    def _find(self, path: str) -> tuple[Model, int | None, list[str]]:
        name, *rest = path.removeprefix("/v2/models/").split("/")
        model = self._engine.model(name)
        if not rest or rest[0] != "versions":
            return model, None, rest
        if len(rest) < 2 or not rest[1].isdecimal() or len(rest[1]) > 9:
            raise NotFound("not a version", got="/".join(rest[1:2]), wanted="a whole number")
        return model, int(rest[1]), rest[2:]

    def _describe(self, model: Model) -> dict[str, Any]:
        return {
            "model": model.name,
            "arms": [{"arm": arm.name, "version": arm.version, "weight": arm.weight} for arm in model.arms],
            "bundles": {str(version): served.digest for version, served in model.versions.items()},
            "refused": {str(version): why for version, why in model.refused.items()},
        }

    def _server(self) -> dict[str, Any]:
        return {"name": "loopwright", "version": "0.1.0", "extensions": ["binary_tensor_data"]}


class ClientGone(Exception):
    """The client went away before its request was whole; there is nobody to answer."""


def answer_parameters(model: Model, answer: Answer) -> tuple[int, dict[str, Any], dict[str, list[str]]]:
    """Return an answer's version, its parameters, and the tensors _version and _arm when its rows differ in them.

    The version of a mixed answer is stable's.
    """
    arm, version = answer.arms[0], answer.versions[0]
    parameters: dict[str, Any] = {"arm": arm, "request_id": answer.request_id}
    if True in answer.fallbacks:
        parameters["fallback"] = True
    if len(answer.arms) == 1 or len(set(zip(answer.versions, answer.arms, strict=True))) == 1:
        return version, parameters, {}
    stable = model.stable
    parameters["arm"] = "mixed"
    extra = {"_version": list(map(str, answer.versions)), "_arm": answer.arms}
    return stable.version if stable else version, parameters, extra


def _respond(
    request: v2.InferRequest, model: Model, answer: Answer, outputs: tuple[str, ...]
) -> tuple[bytes, int | None]:
    version, parameters, extra = answer_parameters(model, answer)
    return v2.respond(
        request,
        model=model.name,
        version=version,
        parameters=parameters,
        outputs=outputs,
        result=answer.outputs,
        extra=extra,
    )


def _allow(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise HttpError(405, "this path does not take that method", got=method, wanted=" or ".join(allowed))


def _refuse(error: LoopwrightError) -> tuple[int, bytes]:
    status = error.status if isinstance(error, HttpError) else error.http_status
    body: dict[str, Any] = {"error": str(error)}
    if isinstance(error, BadInput) and error.where:
        body["where"] = error.where
    return status, v2.encode(body)
