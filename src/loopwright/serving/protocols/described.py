"""What the addresses of a server are for, and what they answer: all of OpenAPI that does not depend on models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

ERRORS = {
    400: "The body is not of the format it says it is.",
    401: "No token, or one nobody knows.",
    403: "Not allowed, or no arm of this name.",
    404: "No such model or version.",
    406: "No answer of a type that is accepted.",
    408: "The body came too slowly.",
    409: "It is already so, or something else is doing it.",
    413: "More bytes or rows than one request may bring.",
    415: "A body of another type, or compressed.",
    422: "A value, a name or a shape that does not fit; the answer says where.",
    429: "Too many requests of this caller.",
    500: "The model gave no answer.",
    503: "Nothing may answer now, or too much is waiting.",
    504: "No answer within the time the caller gave.",
}
assert all(HTTPStatus(status) for status in ERRORS)

_TEXT = {"type": "string"}
_NAME = {**_TEXT, "maxLength": 256, "pattern": "^[ -~]*$"}
HEADERS: dict[str, Any] = {
    "x-loopwright-model": {"schema": _TEXT},
    "x-loopwright-version": {"schema": {"type": "integer"}, "description": "Of a mixed answer, stable's."},
    "x-loopwright-arm": {"schema": _TEXT, "description": "stable, canary, a variant's name, mixed …"},
    "x-loopwright-request-id": {"schema": _TEXT},
    "x-loopwright-fallback": {"schema": {"const": "true"}, "description": "Another stood in for an arm that failed."},
}  # fmt: skip

PARAMETERS: dict[str, Any] = {
    "arm": {
        "name": "X-Loopwright-Arm", "in": "header", "schema": _TEXT,
        "description": "Answer by this arm; for callers with the right to override.",
    },
    "timeout": {
        "name": "X-Loopwright-Timeout-Ms", "in": "header",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 86_400_000},
        "description": "How long the answer is waited for.",
    },
    "request_id": {
        "name": "X-Request-Id", "in": "header", "schema": _NAME,
        "description": "What the request is called where its body does not say: in the answer and in the log.",
    },
    "unit": {
        "name": "X-Loopwright-Unit", "in": "header", "schema": _NAME,
        "description": "The unit of all rows that name none: the same unit always gets the same arm.",
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Described:
    """An operation. body: "row" and "table" are a model's own (see `schemas`), "infer" is Open Inference's; content and
    responses of others stand here. right: what a caller needs. values: schemas of the path's names."""

    summary: str
    tag: str
    responses: Mapping[str, Any] = field(default_factory=dict)
    body: Literal["", "row", "table", "infer"] = ""
    content: Mapping[str, Any] = field(default_factory=dict)
    errors: tuple[int, ...] = ()
    right: Literal["", "predict", "admin"] = ""
    parameters: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


def _json(description: str, schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "description": description, "content": {"application/json": {"schema": schema or {"type": "object"}}}
    }  # fmt: skip


def _is(name: str, *, error: bool = True) -> dict[str, Any]:
    """An object that says whether something is so."""
    properties: dict[str, Any] = {name: {"type": "boolean"}}
    if error:
        properties["error"] = _TEXT
    return {"type": "object", "properties": properties, "required": [name]}


_PREDICTS = (400, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504)
_CALL = ("arm", "timeout", "request_id", "unit")
_VERSION = {"version": {"type": "integer", "minimum": 0, "maximum": 999_999_999}}
_V2 = "Open Inference"

_INFERRED = {
    "description": "A tensor per output.",
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/InferResponse"}},
        "application/octet-stream": {
            "schema": {"description": "JSON, then tensors in binary: see Inference-Header-Content-Length."}
        },
    },
}
_MODEL = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "versions": {"type": "array", "items": _TEXT},
        "platform": _TEXT,
        "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/TensorMetadata"}},
        "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/TensorMetadata"}},
        "parameters": {"type": "object"},
    },
    "required": ["name", "versions", "platform", "inputs", "outputs"],
}
_SERVER = {
    "type": "object",
    "properties": {"name": _TEXT, "version": _TEXT, "extensions": {"type": "array", "items": _TEXT}},
    "required": ["name", "version", "extensions"],
}
_MODELS = {
    "type": "object",
    "properties": {"models": {"type": "array", "items": {"type": "object"}}},
    "required": ["models"],
}

_NUMBERS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_PARAMETERS = {"type": ["object", "null"]}

V2_SCHEMAS: dict[str, Any] = {
    "TensorMetadata": {
        "type": "object",
        "properties": {
            "name": _TEXT,
            "datatype": _TEXT,
            "shape": {"type": "array", "items": {"type": "integer"}},
            "parameters": {"type": "object"},
        },
        "required": ["name", "datatype", "shape"],
    },
    "InferRequest": {
        "type": "object",
        "properties": {
            "id": {"$ref": "#/components/schemas/Id"},
            "parameters": {
                **_PARAMETERS,
                "properties": {
                    "unit": {"$ref": "#/components/schemas/Id"},
                    "event_time": {"$ref": "#/components/schemas/EventTime"},
                    "binary_data_output": {"type": "boolean"},
                },
            },
            "inputs": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {
                        "name": _TEXT,
                        "datatype": {
                            "enum": [
                                "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
                                "FP16", "BF16", "FP32", "FP64", "BYTES",
                            ]
                        },
                        "shape": {**_NUMBERS, "minItems": 1, "maxItems": 2, "description": "[rows] or [rows, 1]."},
                        "data": {"type": ["array", "null"], "description": "One value per row."},
                        "parameters": _PARAMETERS,
                    },
                    "required": ["name", "datatype", "shape"],
                },
            },
            "outputs": {
                "type": ["array", "null"],
                "items": {
                    "type": "object",
                    "properties": {"name": _TEXT, "parameters": _PARAMETERS},
                    "required": ["name"],
                },
            },
        },
        "required": ["inputs"],
    },
    "InferResponse": {
        "type": "object",
        "properties": {
            "model_name": _TEXT,
            "model_version": _TEXT,
            "id": _TEXT,
            "parameters": {"type": "object"},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "name": _TEXT,
                        "datatype": _TEXT,
                        "shape": _NUMBERS,
                        "data": {"type": "array"},
                        "parameters": {"type": "object"},
                    },
                    "required": ["name", "datatype", "shape"],
                },
            },
        },
        "required": ["model_name", "model_version", "outputs"],
    },
}  # fmt: skip

_LIVE = Described("The process answers", "Health", {"200": _json("It does.", _is("live", error=False))})
_READY = Described(
    "Whether traffic may come", "Health",
    {"200": _json("It may.", _is("ready")), "503": _json("It may not; says why.", _is("ready"))},
)  # fmt: skip
_PING = Described(
    "Whether traffic may come, as MLflow asks", "MLflow",
    {
        "200": {"description": "It may.", "content": {"text/plain": {"schema": _TEXT}}},
        "503": _json("It may not; says why.", {"$ref": "#/components/schemas/Error"}),
    },
)  # fmt: skip
_ABOUT = Described("Who answers, and what it understands", _V2, {"200": _json("This.", _SERVER)})


def _predicts(summary: str, tag: str, body: Literal["row", "table", "infer"], **more: Any) -> Described:
    return Described(
        summary, tag, body=body, errors=_PREDICTS, right="predict", parameters=_CALL, **more
    )  # fmt: skip


DESCRIBED: dict[tuple[str, str], Described] = {
    ("GET", "/healthz"): _LIVE,
    ("GET", "/v2/health/live"): _LIVE,
    ("GET", "/readyz"): _READY,
    ("GET", "/v2/health/ready"): _READY,
    ("GET", "/startupz"): Described(
        "Whether it has begun to serve", "Health",
        {"200": _json("It has.", _is("started")), "503": _json("Not yet; says why.", _is("started"))},
    ),
    ("GET", "/metrics"): Described(
        "Counters of all workers, for Prometheus", "Health",
        {"200": {"description": "Text.", "content": {"text/plain": {"schema": _TEXT}}}},
    ),
    ("GET", "/"): _ABOUT,
    ("GET", "/v2"): _ABOUT,
    ("POST", "/admin/flush"): Described(
        "Ship the log now", "Administration", {"200": _json("Done.")}, errors=(403, 409, 500, 503), right="admin"
    ),
    ("POST", "/admin/refresh"): Described(
        "Ask for routes now", "Administration", {"200": _json("Done.")}, errors=(403, 409, 500, 503), right="admin"
    ),
    ("GET", "/v2/models"): Described("All that is served, with its routes", _V2, {"200": _json("Models.", _MODELS)}),
    ("GET", "/openapi.json"): Described("This document", "Documents", {"200": _json("OpenAPI 3.1.")}),
    ("GET", "/docs"): Described(
        "A page for people: the models", "Documents",
        {"200": {"description": "HTML.", "content": {"text/html": {"schema": _TEXT}}}},
    ),
    ("GET", "/docs/{model}"): Described(
        "A page for people: a model's inputs, and how to ask it", "Documents",
        {"200": {"description": "HTML.", "content": {"text/html": {"schema": _TEXT}}}}, errors=(404, 503),
    ),
    ("POST", "/models/{model}/predict"): _predicts("Predict a row, or many", "Models", "row"),
    ("POST", "/models/{model}/versions/{version}/predict"): _predicts(
        "Predict by one version, and no other", "Models", "row"
    ),
    ("POST", "/invocations"): _predicts("Score a table by the one model served here", "MLflow", "table"),
    ("POST", "/models/{model}/invocations"): _predicts("Score a table", "MLflow", "table"),
    ("POST", "/models/{model}/versions/{version}/invocations"): _predicts(
        "Score a table by one version, and no other", "MLflow", "table"
    ),
    ("GET", "/ping"): _PING,
    ("GET", "/health"): _PING,
    ("GET", "/version"): Described(
        "This program's version", "MLflow",
        {"200": {"description": "Bare text.", "content": {"text/plain": {"schema": _TEXT}}}},
    ),
}  # fmt: skip

_ROWS = {"application/x-ndjson": {"schema": _TEXT}, "application/vnd.apache.arrow.stream": {"schema": {}}}
_LINE = {
    **_ROWS,
    "application/x-ndjson": {
        "schema": {**_TEXT, "description": "A row a line: an object of inputs by name."}
    },
}
_FLAG = {
    "type": "object",
    "properties": {
        "key": _TEXT, "value": _TEXT, "variant": _TEXT, "reason": _TEXT, "metadata": {"type": "object"},
        "errorCode": _TEXT, "errorDetails": _TEXT,
    },
}  # fmt: skip
_CONTEXT = {
    "type": "object",
    "properties": {
        "context": {
            "type": ["object", "null"],
            "properties": {"targetingKey": {"$ref": "#/components/schemas/Id"}},
        }
    },
}
_FLAGS = "Feature flags"
_TOLD = {str(status): _json(ERRORS[status], _FLAG) for status in (400, 403, 404, 408, 413, 415, 429, 503)}
_INDEX = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"name": _TEXT, "version": _TEXT, "state": _TEXT, "reason": _TEXT},
        "required": ["name", "version", "state", "reason"],
    },
}
_HOLDS = {"application/json": {"schema": {"type": "object", "properties": {"parameters": _PARAMETERS}}}}
_READY_ONLY = {
    "application/json": {"schema": {"type": "object", "properties": {"ready": {"type": "boolean"}}}}
}

DESCRIBED |= {
    ("POST", "/ofrep/v1/evaluate/flags"): Described(
        "Which arm of every model answers a user (OpenFeature remote evaluation)", _FLAGS,
        {
            "200": _json("Flags.", {"type": "object", "properties": {"flags": {"type": "array", "items": _FLAG}}}),
            "304": {"description": "What the client has."}, **_TOLD,
        },
        content={"application/json": {"schema": _CONTEXT}}, right="predict",
    ),
    ("POST", "/ofrep/v1/evaluate/flags/{key}"): Described(
        "Which arm of a model answers a user (OpenFeature remote evaluation)", _FLAGS,
        {"200": _json("A flag.", _FLAG), **_TOLD}, content={"application/json": {"schema": _CONTEXT}},
        right="predict", parameters=("arm",),
    ),
    ("POST", "/v2/repository/index"): Described(
        "Which versions are in memory", _V2, {"200": _json("Versions.", _INDEX)},
        errors=(400, 403, 408, 413, 415, 422), content=_READY_ONLY, right="predict",
    ),
}  # fmt: skip
for _act in ("load", "unload"):
    DESCRIBED["POST", f"/v2/repository/models/{{model}}/{_act}"] = Described(
        f"{_act.capitalize()} a model, as far as its routes allow", _V2, {"200": _json("Done.")}, content=_HOLDS,
        errors=(400, 403, 404, 408, 409, 413, 415, 422, 500, 503), right="admin",
    )  # fmt: skip

for _prefix, _which, _values in (
    ("/models/{model}", "a model", {}),
    ("/models/{model}/versions/{version}", "one version", _VERSION),
):
    DESCRIBED["POST", f"{_prefix}/bulk"] = Described(
        f"Many rows by {_which}, read and answered in parts", "Models",
        {"200": {"description": "A row for each, in order; those without an answer say why.", "content": _ROWS}},
        content=_LINE, errors=(400, 403, 404, 406, 408, 413, 415, 422, 429, 500, 503, 504), right="predict",
        parameters=_CALL, values=_values,
    )  # fmt: skip

for _prefix, _which, _values in (
    ("/v2/models/{model}", "a model", {}),
    ("/v2/models/{model}/versions/{version}", "one version", _VERSION),
):
    DESCRIBED |= {
        ("POST", f"{_prefix}/infer"): _predicts(
            f"Predict rows by {_which}", _V2, "infer", responses={"200": _INFERRED}, values=_values
        ),
        ("GET", f"{_prefix}/ready"): Described(
            f"Whether {_which} answers", _V2,
            {"200": _json("It does.", _is("ready")), "503": _json("It does not; says why.", _is("ready"))},
            errors=(404,), values=_values,
        ),
        ("GET", _prefix): Described(
            f"Inputs and outputs of {_which}", _V2, {"200": _json("Tensors.", _MODEL)},
            errors=(404, 503), values=_values,
        ),
    }  # fmt: skip

UNDESCRIBED = Described("Not described yet", "Other", {"default": _json("An answer.", {})})
"""What is said of an address that is missing above."""
