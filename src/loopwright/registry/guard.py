"""Stands before MLflow's app: who may come in, which routes and artifacts they may touch, how much they may send.

Pure ASGI, because MLflow serves artifacts by native routes that its own request hooks never see. Decisions rest on the
path as it is routed, decoded until nothing is left to decode, and on the table in `surface`; never on the body.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from urllib.parse import parse_qs, parse_qsl, unquote

import anyio.to_thread

from loopwright.kernel.actor import Actor, Role, beyond_token
from loopwright.kernel.errors import BadInput, LoopwrightError, NotFound, Refused, Unauthenticated
from loopwright.registry.authority import require_somewhere
from loopwright.registry.identity import current_actor
from loopwright.registry.surface import Route, plain_path, route_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Registered = Callable[[list[str], str], list[tuple[str, int]]]
"""Given artifact URIs and a prefix: which registered versions' files lie at or under them."""

Refusal = Callable[[Actor, str, str, Refused], None]
"""Told who was refused which act ("PUT"), on what, and why; keeps it in the audit log."""

API_LIMIT = 4 * 2**20
"""MLflow holds a call's whole body in memory, several times over once it is parsed."""
BULK_LIMIT = 32 * 2**20
"""Traces, data sets and logged models carry content."""
UPLOAD_LIMIT = 10 * 2**20 + 2**16
"""What MLflow's page may send as an artifact; it is held in memory, too."""
ARTIFACT_LIMIT = 8 * 2**30
"""An artifact that is streamed to disk."""
SEGMENT_LIMIT, PATH_LIMIT = 255, 2048
"""Bytes of a path's part and of the whole: what file systems take."""

_BULK = (
    "traces",
    "datasets",
    "logged-models",
    "/v1/traces",
    "runs/log-inputs",
    "runs/log-model",
    "runs/outputs",
)
_ROLES: dict[str, Role] = {
    "reads": Role.VIEWER,
    "governed": Role.VIEWER,  # the store asks for more, on the model
    "tracks": Role.DEVELOPER,
    "uploads": Role.DEVELOPER,
    "admins": Role.ADMIN,
}


@dataclass(frozen=True, slots=True)
class Passage:
    """What a request needs to pass: a role, a size, and, for an artifact write, the path below MLflow's root."""

    role: Role
    limit: int = API_LIMIT
    writes: str | None = None
    run: str | None = None
    """Set when `writes` lies below a run's artifacts instead of the root."""
    routed: str | None = None
    """`writes` before it was decoded: MLflow's own spelling."""
    reads: str | None = None
    """The path below MLflow's root of an artifact that is read."""


class Guard:
    """Wraps MLflow's app. `fallback` acts when authentication set nobody (local mode); None means 401."""

    def __init__(
        self,
        app: App,
        *,
        registered: Registered,
        fallback: Actor | None = None,
        refused: Refusal = lambda *_: None,
    ) -> None:
        self.app = app
        self.registered = registered
        self.fallback = fallback
        self.refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        path = below_mount(scope["path"], scope.get("root_path", ""))
        actor = current_actor.get() or self.fallback
        try:
            if actor is None:
                raise Unauthenticated(
                    "nobody is signed in", where="mlflow", next="Send a token: set MLFLOW_TRACKING_TOKEN."
                )
            passage = judge(scope["method"], path, scope.get("query_string", b"").decode("latin-1"))
            require_somewhere(actor, passage.role, f"{scope['method']} {path}")
            if passage.reads is not None and actor.role_on() < Role.VIEWER:
                await anyio.to_thread.run_sync(partial(self._check_read, passage.reads, actor))
            if passage.writes is not None:
                await anyio.to_thread.run_sync(partial(self._check_write, passage))
            bounded = _Bounded(receive, send, passage.limit, _declared_length(scope))
        except LoopwrightError as error:
            if isinstance(error, Refused) and actor is not None:
                note = partial(self.refused, actor, scope["method"], plain_path(path), error)
                await anyio.to_thread.run_sync(note)
            await _answer(send, error.http_status, error)
            return
        # MLflow's own checks (CORS, hosts) compare whole paths: it must see itself at the root.
        inner = dict(scope, path=path, raw_path=path.encode("utf-8"), root_path="")
        token = current_actor.set(actor)
        try:
            await bounded.run(self.app, inner)
        finally:
            current_actor.reset(token)

    def _check_write(self, passage: Passage) -> None:
        # As it is routed and as it reads once nothing is left to decode: a name may hold a % of its own.
        for path in dict.fromkeys((passage.routed or "", passage.writes or "")):
            self._check_path(passage, path)

    def _check_path(self, passage: Passage, path: str) -> None:
        segments = path.split("/")
        if passage.run is None and segments[0].casefold() == "bundles":
            raise Refused(
                "sealed bundles are immutable: nothing under bundles/ is written or deleted through this API",
                where=f"mlflow-artifacts:/{path}", next="Train and register a new version instead.",
            )  # fmt: skip
        in_run = passage.run is not None
        found = self.registered([], f"run:{passage.run}") if in_run else self._versions_at(path)
        if found:
            model, version = found[0]
            raise Refused(
                f"these files are what {model}/{version} was registered from; they stay as they are",
                where=f"mlflow-artifacts:/{path}",
            )

    def _check_read(self, path: str, actor: Actor) -> None:
        """Refuse a sealed bundle to a token that is for other models: it holds rows of data."""
        if path.split("/")[0].casefold() != "bundles":
            return
        models = {model for model, _ in self._versions_at(path)} if "/" in path else set()
        if not any(actor.role_on(model=model) >= Role.VIEWER for model in models):
            raise beyond_token(actor, "read this bundle", "a scope for its model")

    def _versions_at(self, path: str) -> list[tuple[str, int]]:
        segments = path.split("/")
        above = ["mlflow-artifacts:/" + "/".join(segments[: n + 1]) for n in range(len(segments))]
        return self.registered(above, f"mlflow-artifacts:/{path}/")


def below_mount(path: str, root_path: str) -> str:
    """The path as MLflow's routes see it: without the prefix the app is mounted under."""
    root = root_path.rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return path or "/"


def judge(method: str, path: str, query: str = "") -> Passage:
    """Say what a request needs. Raises NotFound for routes not offered here, BadInput for a path that hides another."""
    _check_query(query)
    route = route_of(method, path)
    spelled = plain_path(path)
    if route is None or route.treatment == "closed":
        raise NotFound("this part of MLflow is not offered here", where="mlflow", got=f"{method} {path}")
    if not spelled.startswith("/static-files/") and spelled != "/":
        clean_path(spelled.removeprefix("/"))
    role = _ROLES[route.treatment]
    if route.treatment != "uploads":
        return Passage(role, _limit(route), reads=_read(route, spelled, query))
    if route.path == "upload-artifact":
        named = parse_qs(query, keep_blank_values=True)
        runs, targets = named.get("run_uuid", []), named.get("path", [])
        if len(runs) != 1 or len(targets) != 1:
            # MLflow reads the first of several; whoever checks another one checks nothing.
            raise BadInput("wanted once each: run_uuid and path", where="mlflow", got=query)
        return Passage(role, UPLOAD_LIMIT, clean_path(targets[0]), clean_path(runs[0]), targets[0])
    # "/mlflow-artifacts/artifacts/PATH", "/mlflow-artifacts/mpu/create/PATH"
    fixed = route.path.partition("<")[0]
    limit = ARTIFACT_LIMIT if method == "PUT" else API_LIMIT
    routed = spelled.removeprefix(fixed)
    return Passage(role, limit, clean_path(routed), routed=routed)


def _read(route: Route, spelled: str, query: str) -> str | None:
    fixed = route.path.partition("<")[0]
    if not fixed.startswith("/mlflow-artifacts/"):
        return None
    if "<" in route.path:
        return clean_path(spelled.removeprefix(fixed))
    listed = parse_qs(query).get("path", [])
    if len(listed) > 1:
        raise BadInput("wanted once: path", where="mlflow", got=query)
    asked = listed[0].strip("/") if listed else ""
    return clean_path(asked) if asked else ""


def _limit(route: Route) -> int:
    return BULK_LIMIT if route.path.startswith(_BULK) else API_LIMIT


def _check_query(query: str) -> None:
    """Refuse what no name or path holds: MLflow would fail on some of it with a 500."""
    for name, value in parse_qsl(query, keep_blank_values=True):
        if len(value) > 64_000 or any(ord(sign) < 32 and sign not in "\t\n\r" for sign in name + value):
            raise BadInput("a query with control characters, or too long", where="mlflow", got=name)
        if name in ("path", "artifact_path") and value and _too_long(value):
            raise BadInput("a path too long for any file", where="mlflow", got=value)


def _too_long(path: str) -> bool:
    return len(path.encode()) > PATH_LIMIT or any(
        len(part.encode()) > SEGMENT_LIMIT for part in path.split("/")
    )


def clean_path(path: str) -> str:
    """Decode `path` until nothing is left to decode; raises BadInput for one that could name another place."""
    decoded = path
    for _ in range(8):
        once = unquote(decoded)
        if once == decoded:
            break
        decoded = once
    else:
        raise BadInput("a path encoded too many times", where="mlflow", got=path)
    strange = "\\" in decoded or any(ord(sign) < 32 or ord(sign) == 127 for sign in decoded)
    if strange or any(part in ("", ".", "..") for part in decoded.split("/")):
        raise BadInput(
            "a path that could name another place", where="mlflow", got=path, wanted="plain segments"
        )
    if _too_long(decoded):
        raise BadInput("a path too long for any file", where="mlflow", got=path)
    return decoded


def _declared_length(scope: Scope) -> int:
    values = {value for name, value in scope.get("headers", ()) if name.lower() == b"content-length"}
    if not values:
        return 0
    if len(values) > 1 or not (text := values.pop().decode("latin-1")).isdigit():
        raise BadInput("a length that is not one number", where="Content-Length")
    return int(text)


class _TooLarge(Exception):
    """The body grew past its limit; what the app answers is dropped."""


class _Bounded:
    """Counts the body as it streams and answers 413 instead of the app once it is too large."""

    def __init__(self, receive: Receive, send: Send, limit: int, declared: int) -> None:
        self._receive, self._send, self._limit, self._declared = receive, send, limit, declared
        self._seen = 0
        self._over = False
        self._state: Literal["open", "answering", "refused"] = "open"

    async def run(self, app: App, scope: Scope) -> None:
        if self._declared > self._limit:
            await self._refuse()
            return
        try:
            await app(scope, self._take, self._give)
        except _TooLarge:
            await self._refuse()
        except ExceptionGroup as group:
            if group.subgroup(_TooLarge) is None:
                raise
            await self._refuse()

    async def _take(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > self._limit:
            self._over = True
            raise _TooLarge
        return message

    async def _give(self, message: Message) -> None:
        # MLflow's app answers what it does not know with a 500 of its own, before the error gets here.
        if self._state == "refused" or (self._over and self._state == "open"):
            return
        self._state = "answering"
        await self._send(message)

    async def _refuse(self) -> None:
        if self._state == "open":
            await _answer(
                self._send, 413, BadInput("too large", where="mlflow", wanted=f"at most {self._limit} bytes")
            )
        self._state = "refused"


_CODES: dict[
    int, Literal["UNAUTHENTICATED", "PERMISSION_DENIED", "ENDPOINT_NOT_FOUND", "INVALID_PARAMETER_VALUE"]
] = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "ENDPOINT_NOT_FOUND",
}


async def _answer(send: Send, status: int, error: LoopwrightError) -> None:
    """Answer as MLflow's clients expect errors; our 422 is their 400."""
    status = 400 if status == 422 else status
    code = _CODES.get(status, "INVALID_PARAMETER_VALUE")
    body = json.dumps({"error_code": code, "message": str(error)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
