"""Open Inference Protocol V2 over HTTP: where it answers, and the way from a body to an answer's body."""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import replace
from time import perf_counter_ns
from typing import Any

from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.serving import v2
from loopwright.serving.engine import Answer, Call
from loopwright.serving.front import LONGEST_MS, Front, Target, answer_parameters
from loopwright.serving.http import Reply, Request, Route, json_reply
from loopwright.serving.rows import NamesEntities
from loopwright.serving.single import Template, read_single

BINARY = "application/octet-stream"
JSON_LENGTH = b"inference-header-content-length"
TEMPLATES = 4096
"""Prepared answers that are kept: one per version and arm."""


class OpenInference:
    """The protocol's addresses."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._templates: dict[tuple[str, int, str, tuple[str, ...]], Template] = {}

    def routes(self) -> Iterable[Route]:
        """Where it answers."""
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            yield Route("POST", f"{model}/infer", self.infer)
            yield Route("GET", f"{model}/ready", self.ready)
            yield Route("GET", model, self.metadata)
        yield Route("GET", "/v2/models", self.models)
        yield Route("GET", "/v2", self.server)

    async def infer(self, request: Request, names: Mapping[str, str]) -> Reply:
        """Answer rows."""
        target = self._front.find(names["model"], names.get("version"))
        return await self.infer_at(target, request)

    async def infer_at(self, target: Target, request: Request) -> Reply:
        """`infer` for a target at hand."""
        call = self._front.call(target, request.headers, request.client)
        reply = self.start(target, await request.body(), request.header(JSON_LENGTH), call)
        return reply if isinstance(reply, Reply) else await reply

    def start(
        self, target: Target, body: bytes, json_length: str | None, call: Call
    ) -> Reply | Coroutine[Any, Any, Reply]:
        """Answer a body at once where the engine can, else return what to await. Raises as `Engine.infer` does."""
        started = perf_counter_ns()
        single = read_single(body, target.served.reader) if json_length is None else None
        if single is not None:
            asked, rows = single
            begun = self._front.engine.start(target.model, rows, call)
            if not isinstance(begun, Answer):
                return self._later(target, asked, begun, started)
            if begun.errors[0] or begun.sources[0] != "model":
                return self._reply(target, asked, begun, started)
            body = self._template(target, begun).fill(asked.id or "", begun.request_id, begun.outputs[0])
            self._front.observe(target.model, begun, (perf_counter_ns() - started) // 1000)
            return Reply(200, body)
        length = None
        if json_length is not None:
            length = int(json_length) if json_length.isdecimal() and len(json_length) < 20 else -1
        asked = v2.parse_request(body, length, max_rows=self._front.bounds.rows)
        reader = target.served.reader
        if asked.outputs:
            v2.check_outputs(asked, reader.schema)
        begun = self.ask(target, asked, call)
        if isinstance(begun, Answer):
            return self._reply(target, asked, begun, started)
        return self._later(target, asked, begun, started)

    def ask(self, target: Target, asked: v2.InferRequest, call: Call) -> Answer | Coroutine[Any, Any, Answer]:
        """Check what a request brings and ask the engine, which answers at once where it can."""
        if asked.parameters and "timeout" in asked.parameters:
            call = _in_time(call, asked.parameters["timeout"])
        reader, max_rows = target.served.reader, self._front.bounds.rows
        try:
            rows = v2.read_rows(asked, reader, max_rows=max_rows)
        except NamesEntities:
            partial = v2.read_partial(asked, reader, max_rows=max_rows)
            return self._front.answer_entities(target, partial, call)
        return self._front.engine.start(target.model, rows, call)

    def _template(self, target: Target, answer: Answer) -> Template:
        outputs = target.served.schema.outputs
        key = (target.model.name, answer.versions[0], answer.arms[0], outputs)
        found = self._templates.get(key)
        if found is None:
            if len(self._templates) >= TEMPLATES:
                self._templates.clear()
            found = self._templates[key] = Template(*key)
        return found

    async def _later(
        self, target: Target, asked: v2.InferRequest, begun: Coroutine[Any, Any, Answer], started: int
    ) -> Reply:
        return self._reply(target, asked, await begun, started)

    def _reply(self, target: Target, asked: v2.InferRequest, answer: Answer, started: int) -> Reply:
        model = target.model
        answer.raise_for_rows(model)
        version, parameters, extra = answer_parameters(model, answer)
        body, json_length = v2.respond(
            asked,
            model=model.name,
            version=version,
            parameters=parameters,
            outputs=target.served.schema.outputs,
            result=answer.outputs,
            extra=extra,
        )
        self._front.observe(model, answer, (perf_counter_ns() - started) // 1000)
        if json_length is None:
            return Reply(200, body)
        return Reply(200, body, BINARY, [(JSON_LENGTH, b"%d" % json_length)])

    async def ready(self, request: Request, names: Mapping[str, str]) -> Reply:
        """Whether this model, or version, answers."""
        name = self._front.engine.model(names["model"]).name
        try:
            self._front.find(name, names.get("version"))
        except Unavailable as error:
            return json_reply({"name": name, "ready": False, "error": str(error)}, 503)
        return json_reply({"name": name, "ready": True})

    async def metadata(self, request: Request, names: Mapping[str, str]) -> Reply:
        """Inputs and outputs of a model."""
        target = self._front.find(names["model"], names.get("version"))
        model = target.model
        versions = sorted(model.versions) if target.version is None else [target.version]
        described = v2.metadata(model.name, versions, target.served.schema)
        online = {
            view.name: {"entity": view.entity, "inputs": list(view.inputs)}
            for view in target.served.manifest.views
            if self._front.entities is not None
        }
        parameters = {**self._front.describe(model), **({"online": online} if online else {})}
        return json_reply({**described, "parameters": parameters})

    async def models(self, request: Request, names: Mapping[str, str]) -> Reply:
        """All that is served, with its routes."""
        return json_reply(
            {"models": [self._front.describe(model) for _, model in sorted(self._front.models.items())]}
        )

    async def server(self, request: Request, names: Mapping[str, str]) -> Reply:
        """Who answers, and what it understands."""
        return json_reply(v2.server_metadata())


def _in_time(call: Call, microseconds: object) -> Call:
    """The call with the protocol's own time limit, which is 0 where there is none."""
    if type(microseconds) is not int or not 0 <= microseconds <= 1000 * LONGEST_MS:
        raise BadInput(
            "not a time to wait", where="parameters.timeout", got=microseconds, wanted="microseconds above 0"
        )
    if not microseconds:
        return call
    until = asyncio.get_running_loop().time() + microseconds / 1e6
    return replace(call, until=min(call.until, until))
