"""/openapi.json: every address of this server with its bodies, answers and errors, each model's from its signature."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from loopwright import __version__
from loopwright.kernel.errors import LoopwrightError
from loopwright.serving.front import AUTHORIZATION, Front
from loopwright.serving.http import Bounds, Reply, Request, Route, encode
from loopwright.serving.protocols.described import (
    DESCRIBED,
    ERRORS,
    HEADERS,
    PARAMETERS,
    UNDESCRIBED,
    V2_SCHEMAS,
)
from loopwright.serving.protocols.schemas import (
    SHARED,
    Shown,
    body_schema,
    infer_example,
    predicted_example,
    predicted_schema,
    record_schema,
    ref,
    row_schema,
    scored_schema,
    shown,
    table_examples,
    table_schema,
)

_Key = tuple[tuple[str, int, str, bool], ...]
"""Of every version: model, number, digest, and whether it is the one that requests without a version are for."""


class OpenApi:
    """The document, made again when what is served has changed. routes: what the server answers at, all of it."""

    def __init__(self, front: Front, routes: Callable[[], Iterable[Route]]) -> None:
        self._front = front
        self._routes = routes
        self._made: dict[bool, tuple[_Key, bytes]] = {}

    def routes(self) -> Iterable[Route]:
        """Where it answers."""
        yield Route("GET", "/openapi.json", self.document)

    async def document(self, request: Request, names: Mapping[str, str]) -> Reply:
        """Return the document. Golden rows are shown to those who may predict."""
        golden = may_predict(self._front, request)
        key: _Key = tuple(
            (name, version, served.digest, served is model.stable)
            for name, model in sorted(self._front.models.items())
            for version, served in sorted(model.versions.items())
        )
        made = self._made.get(golden)
        if made is None or made[0] != key:
            versions = shown(list(self._front.models.values()), golden=golden)
            body = await asyncio.to_thread(self._build, versions)
            made = self._made[golden] = key, body
        return Reply(200, made[1])

    def _build(self, versions: Sequence[Shown]) -> bytes:
        bounds, open_to_all = self._front.bounds, self._front.callers.open
        return encode(document(versions, self._routes(), bounds, open_to_all=open_to_all))


def may_predict(front: Front, request: Request) -> bool:
    """Whether who asks may predict, and so may see what was predicted."""
    if front.callers.open:
        return True
    if request.header(AUTHORIZATION) is not None:
        with suppress(LoopwrightError):
            front.allow("predict", request.headers, request.client)
            return True
    return False


def document(
    versions: Sequence[Shown], routes: Iterable[Route], bounds: Bounds, *, open_to_all: bool
) -> dict[str, Any]:
    """Return an OpenAPI 3.1 document. versions: by model and version; open_to_all: nobody needs a token to predict."""
    paths: dict[str, dict[str, Any]] = {}
    newest = {one.model.name: one for one in versions if _answers_for_model(one)}
    models = sorted(newest)
    for route in routes:
        if route.method == "WEBSOCKET":
            continue
        told = DESCRIBED.get((route.method, route.template)) or UNDESCRIBED
        for path, one in _places(route.template, told.body, newest, versions):
            operation = _operation(told.summary, told.tag)
            if not open_to_all and told.right:
                operation["security"] = [{"token": []}]
            # An arm and a version at once are two answers to one question.
            asked = [name for name in told.parameters if name != "arm" or "{version}" not in route.template]
            parameters = [PARAMETERS[name] for name in asked]
            if "{model}" in path:
                parameters.append(_in_path("model", {"enum": models} if models else {"type": "string"}))
            for name in ("version", "key", "action"):
                if f"{{{name}}}" in path:
                    parameters.append(_in_path(name, told.values.get(name, {"type": "string"})))
            if parameters:
                operation["parameters"] = parameters
            responses = dict(told.responses)
            body = told.content
            if one is not None:
                body, responses = _of_model(told.body, one, bounds)
            if told.body == "infer":
                body = _inference_content(list(newest.values()))
            if body:
                operation["requestBody"] = {"required": told.body != "", "content": body}
            refused = [*told.errors, *((401,) if told.right and not open_to_all else ())]
            for status in sorted(refused):
                mlflow = told.body == "table"
                responses[str(status)] = {
                    "$ref": f"#/components/responses/{'Mlflow' if mlflow else 'Error'}{status}"
                }
            operation["responses"] = responses
            paths.setdefault(path, {})[route.method.lower()] = operation
    schemas = {**SHARED, **V2_SCHEMAS}
    for one in versions:
        schemas |= {
            f"{one.key}.Row": row_schema(one.schema),
            f"{one.key}.Record": record_schema(one.schema),
            f"{one.key}.Body": body_schema(one, bounds.rows),
            f"{one.key}.Predicted": predicted_schema(one.schema),
            f"{one.key}.Table": table_schema(one, bounds.rows),
            f"{one.key}.Scored": scored_schema(one.schema),
        }
    components: dict[str, Any] = {"schemas": schemas, "responses": _error_responses()}
    if not open_to_all:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "Models served by Loopwright",
            "version": __version__,
            "description": (
                "Predictions from approved versions, over one port. People read /docs. Beside what stands here, "
                "/models/{model}/stream is a WebSocket."
            ),
        },
        "paths": dict(sorted(paths.items())),
        "components": components,
    }


def _answers_for_model(one: Shown) -> bool:
    """Whether this version's schema is the one that requests without a version must meet."""
    return one.model.stable is one.served


def _places(
    template: str, body: str, newest: Mapping[str, Shown], versions: Sequence[Shown]
) -> Iterable[tuple[str, Shown | None]]:
    """Return the paths a template stands for, with the version whose schema holds there where bodies differ by it."""
    if body not in ("row", "table"):
        yield template, None
    elif "{version}" in template:
        for one in versions:
            yield template.replace("/models/{model}", one.path).replace("{version}", str(one.version)), one
    elif "{model}" in template:
        for one in newest.values():
            yield template.replace("/models/{model}", one.path), one
    elif len(newest) == 1:
        yield template, next(iter(newest.values()))


def _operation(summary: str, tag: str) -> dict[str, Any]:
    return {"summary": summary, "tags": [tag]}


def _in_path(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _of_model(body: str, one: Shown, bounds: Bounds) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return content and the good answer of a route whose body is a model's own."""
    title = "A golden row" if one.example.golden else "A row made up from the types"
    if body == "row":
        content: dict[str, Any] = {
            "application/json": {
                "schema": ref(f"{one.key}.Body"),
                "examples": {"row": {"summary": title, "value": {"inputs": one.example.inputs}}},
            }
        }
        answer: dict[str, Any] = {"schema": ref(f"{one.key}.Predicted")}
        example = predicted_example(one)
        if example is not None:
            answer["examples"] = {"row": {"summary": title, "value": example}}
    else:
        content = {
            "application/json": {"schema": ref(f"{one.key}.Table"), "examples": table_examples(one)},
            "text/csv": {
                "schema": {"type": "string", "description": "A header and a line per row, in UTF-8."}
            },
        }
        answer = {"schema": ref(f"{one.key}.Scored")}
        if one.example.outputs is not None:
            outputs = one.example.outputs
            row: Any = (
                outputs[0] if len(outputs) == 1 else dict(zip(one.schema.outputs, outputs, strict=True))
            )
            answer["examples"] = {"row": {"summary": title, "value": {"predictions": [row]}}}
    good = {"description": "Answers, in order.", "content": {"application/json": answer}, "headers": HEADERS}
    return content, {"200": good}


def _inference_content(models: Sequence[Shown]) -> dict[str, Any]:
    examples = {one.key: {"summary": one.model.name, "value": infer_example(one)} for one in models}
    return {
        "application/json": {"schema": ref("InferRequest"), **({"examples": examples} if examples else {})}
    }


def _error_responses() -> dict[str, Any]:
    """Return every error's description, once."""
    return {
        f"{kind}{status}": {
            "description": description,
            "content": {"application/json": {"schema": ref(schema)}},
            **({"headers": {"retry-after": _RETRY}} if status in (429, 503) else {}),
        }
        for kind, schema in (("Error", "Error"), ("Mlflow", "MlflowError"))
        for status, description in ERRORS.items()
    }


_RETRY = {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}
