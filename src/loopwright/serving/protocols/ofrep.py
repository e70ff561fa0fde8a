"""OpenFeature's remote evaluation protocol: tells feature-flag clients which arm a user of theirs gets.

A flag is a model, its variants are the model's arms. What is told is what the router does, for the same unit: a client
that asks here first and predicts afterwards with `unit` = `targetingKey` is answered by that arm.
"""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from loopwright.bundle.routes import Arm
from loopwright.kernel.errors import BadInput, LoopwrightError, NotFound, Refused
from loopwright.serving.front import Front
from loopwright.serving.http import Malformed, Reply, Request, Route, encode, error_reply, json_reply
from loopwright.serving.models import Model
from loopwright.serving.protocols.parsing import parse_json
from loopwright.serving.router import assign
from loopwright.serving.rows import check_id

PATH = "/ofrep/v1/evaluate/flags"
KEY = "context.targetingKey"


class _KeyMissing(BadInput):
    """The flag splits users and the client did not say which one it asks for."""

    http_status = 400


class OpenFeature:
    """The protocol's addresses."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def routes(self) -> Iterable[Route]:
        """Where it answers."""
        yield Route("POST", f"{PATH}/{{key}}", self.one)
        yield Route("POST", PATH, self.all)

    async def one(self, request: Request, names: Mapping[str, str]) -> Reply:
        """Which arm of the flag's model answers the user."""
        key = names["key"]
        try:
            target = self._front.find(key)
            forced = self._front.call(target, request.headers, request.client).arm
            return json_reply(_evaluated(target.model, _unit(await request.body()), forced))
        except LoopwrightError as error:
            return _failure(error, key)

    async def all(self, request: Request, names: Mapping[str, str]) -> Reply:
        """Which arm of every model answers the user. 304 when it is what the client has."""
        try:
            self._front.allow("predict", request.headers, request.client)
            unit = _unit(await request.body())
        except LoopwrightError as error:
            return _failure(error, None)
        flags = []
        for key, model in sorted(self._front.models.items()):
            try:
                self._front.target(model, None)
                flags.append(_evaluated(model, unit, ""))
            except LoopwrightError as error:
                flags.append(_told(error, key))
        body = encode({"flags": flags})
        tag = f'"{sha256(body).hexdigest()[:32]}"'
        if _has(request.header(b"if-none-match"), tag):
            return Reply(304, b"", headers=[(b"etag", tag.encode())])
        return Reply(200, body, headers=[(b"etag", tag.encode())])


def _unit(body: bytes) -> str | None:
    """The user asked for, None where none is named. Raises Malformed, BadInput."""
    document = parse_json(body) if body else {}
    if not isinstance(document, dict):
        raise BadInput("not an object", where="body", got=document, wanted='{"context": {…}}')
    context = document.get("context")
    if context is None:
        return None
    if not isinstance(context, dict):
        raise BadInput("not an object", where="context", got=context, wanted='{"targetingKey": "…"}')
    unit = context.get("targetingKey")
    return None if unit is None or unit == "" else check_id(unit, KEY)


def _evaluated(model: Model, unit: str | None, forced: str) -> dict[str, Any]:
    reason, arm = _arm(model, unit, forced)
    return {
        "key": model.name,
        "value": arm.name,
        "variant": arm.name,
        "reason": reason,
        "metadata": {"model": model.name, "version": arm.version},
    }


def _arm(model: Model, unit: str | None, forced: str) -> tuple[str, Arm]:
    answering = [arm for arm in model.arms if arm.name != "shadow"]
    if forced:
        found = next((arm for arm in answering if arm.name == forced), None)
        if found is None:
            raise Refused(
                f"{model.name} has no arm of this name now",
                got=forced,
                wanted=", ".join(arm.name for arm in answering),
            )
        return "TARGETING_MATCH", found
    if len(answering) == 1:
        return "STATIC", answering[0]
    if unit is None:
        raise _KeyMissing(
            f"{model.name} splits users", where=KEY, wanted="the id that requests bring as unit"
        )
    return "SPLIT", assign(model.salt, unit, model.arms)


def _has(header: str | None, tag: str) -> bool:
    given = [each.strip().removeprefix("W/") for each in (header or "").split(",")]
    return tag in given or "*" in given


def _failure(error: LoopwrightError, key: str | None) -> Reply:
    """What the protocol says of an error: its code, in words, under the status it has for it."""
    reply = error_reply(error)
    if isinstance(error, BadInput):
        reply.status = 400
    reply.body = encode(_told(error, key))
    return reply


def _told(error: LoopwrightError, key: str | None) -> dict[str, Any]:
    if isinstance(error, _KeyMissing):
        code = "TARGETING_KEY_MISSING"
    elif isinstance(error, Malformed):
        code = "PARSE_ERROR"
    elif isinstance(error, NotFound):
        code = "FLAG_NOT_FOUND"
    elif isinstance(error, BadInput):
        code = "INVALID_CONTEXT"
    else:
        code = "GENERAL"
    named = {} if key is None else {"key": key}
    return {**named, "errorCode": code, "errorDetails": str(error)}
