"""JSON Schema (2020-12) of what models take and give, made from their signatures, with golden rows as examples."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from loopwright.bundle.signature import Dtype, Schema
from loopwright.kernel.digest import sha256_bytes
from loopwright.serving.front import MIXED
from loopwright.serving.models import Model, Served
from loopwright.serving.protocols.typed import Predicted, Prediction, label
from loopwright.serving.rows import EARLIEST_US, LATEST_US, MAX_ID, MAX_INT, MAX_TEXT, RESERVED, v2_datatype

PRINTABLE = "printable-text"
"""The format of ids: no control characters, no separators but the space."""

_VALUES: dict[Dtype, dict[str, Any]] = {
    "float64": {"type": "number"},
    "int64": {"type": "integer", "minimum": -MAX_INT, "maximum": MAX_INT},
    "bool": {"type": "boolean"},
    "string": {"type": "string", "maxLength": MAX_TEXT},
}
_INVENTED: dict[Dtype, Any] = {"float64": 1.0, "int64": 1, "bool": True, "string": "text"}

SHARED: dict[str, Any] = {
    "Id": {
        "type": ["string", "null"], "maxLength": MAX_ID, "format": PRINTABLE,
        "description": "Text a person can read, up to 256 characters.",
    },
    "EventTime": {
        "description": "When it happened: ISO 8601 with a zone, or microseconds since 1970; between 1900 and 2200.",
        "oneOf": [
            {"type": "string", "format": "date-time"},
            {"type": "integer", "minimum": EARLIEST_US, "exclusiveMaximum": LATEST_US},
            {"type": "null"},
        ],
    },
    "Error": {
        "type": "object",
        "properties": {
            "error": {"type": "string", "description": "What is wrong, what was found, what was wanted."},
            "where": {"type": "string", "description": "The place in the request."},
        },
        "required": ["error"],
    },
    "MlflowError": {
        "type": "object",
        "properties": {
            "error_code": {"type": "string"},
            "message": {"type": "string"},
            "error": {"type": "string"},
            "where": {"type": "string"},
        },
        "required": ["error_code", "message", "error"],
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Example:
    """A row of a version and what it answers. golden: it is one of the bundle's; else it is made up from the types."""

    inputs: dict[str, Any]
    outputs: list[float] | None
    golden: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A version of a model, as documents show it."""

    model: Model
    version: int
    served: Served
    example: Example

    @property
    def schema(self) -> Schema:
        """Inputs and outputs."""
        return self.served.schema

    @property
    def key(self) -> str:
        """The name of its schemas, in the letters that names of schemas may have."""
        name = self.model.name
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)
        return (
            f"{plain}.v{self.version}"
            if plain == name
            else f"{plain}.{sha256_bytes(name.encode())[:8]}.v{self.version}"
        )

    @property
    def path(self) -> str:
        """The address of its model."""
        return f"/models/{quote(self.model.name, safe='')}"


def example_of(served: Served, *, golden: bool) -> Example:
    """Return a golden row when it is known and may be shown, else one made up from the types."""
    if served.example is None or not golden:
        return Example({field.name: _INVENTED[field.dtype] for field in served.schema.inputs}, None, False)
    given, outputs = served.example
    return Example({field.name: given[field.name] for field in served.schema.inputs}, outputs, True)


def shown(models: Iterable[Model], *, golden: bool) -> list[Shown]:
    """Return every version that may answer, by model and version."""
    return [
        Shown(model, version, served, example_of(served, golden=golden))
        for model in sorted(models, key=lambda model: model.name)
        for version, served in sorted(model.versions.items())
    ]


def field_schemas(schema: Schema) -> dict[str, Any]:
    """Return the schema of each input."""
    schemas: dict[str, Any] = {}
    for field in schema.inputs:
        one = dict(_VALUES[field.dtype])
        if field.nullable:
            one["type"] = [one["type"], "null"]
        schemas[field.name] = one
    return schemas


def row_schema(schema: Schema) -> dict[str, Any]:
    """Return the schema of a row of the typed route."""
    return {
        "type": "object",
        "properties": {
            **field_schemas(schema),
            RESERVED[0]: ref("Id"),
            RESERVED[1]: ref("Id"),
            RESERVED[2]: ref("EventTime"),
        },
        "required": [field.name for field in schema.inputs],
        "additionalProperties": False,
    }


def record_schema(schema: Schema) -> dict[str, Any]:
    """Return the schema of a record of MLflow's protocol: nullable inputs may be left out, others are left aside."""
    row = row_schema(schema)
    needed = [field.name for field in schema.inputs if not field.nullable]
    return {"type": "object", "properties": row["properties"], "required": needed}


def body_schema(shown: Shown, max_rows: int) -> dict[str, Any]:
    """Return the schema of a body of the typed route."""

    def one_or_many(one: Mapping[str, Any]) -> dict[str, Any]:
        return {"oneOf": [one, {"type": "array", "minItems": 1, "maxItems": max_rows, "items": one}]}

    about = {"unit": ref("Id"), "event_time": ref("EventTime"), "id": ref("Id")}
    whole = {
        "type": "object",
        "properties": {"inputs": one_or_many(ref(f"{shown.key}.Row")), **about},
        "required": ["inputs"],
        "additionalProperties": False,
    }
    if not shown.served.manifest.views:
        return whole
    row = row_schema(shown.schema)
    by_entity = {
        "type": "object",
        "description": "What online views give may be left out where entities are named.",
        "properties": {
            "inputs": one_or_many({key: value for key, value in row.items() if key != "required"}),
            "entities": one_or_many(entity_schema(shown.served)),
            **about,
        },
        "required": ["entities"],
        "additionalProperties": False,
    }
    return {"oneOf": [whole, by_entity]}


def entity_schema(served: Served) -> dict[str, Any]:
    """Return the schema of the keys that a version's online views are looked up by."""
    kinds = {
        part: kind
        for view in served.manifest.views
        for part, kind in zip(view.entity, view.kinds, strict=True)
    }
    views = "; ".join(
        f"{view.name} ({', '.join(view.entity) or 'no key'}) gives {', '.join(view.inputs)}"
        for view in served.manifest.views
    )
    parts: dict[str, dict[str, Any]] = {}
    for part, kind in kinds.items():
        known = _VALUES.get(kind)  # type: ignore[call-overload]  # a kind is a dtype or ""
        parts[part] = {**known, "type": [known["type"], "null"]} if known else {}
    return {"type": "object", "description": views, "properties": parts, "additionalProperties": False}


def outputs_schema(schema: Schema) -> dict[str, Any]:
    """Return the schema of a row's outputs by name."""
    return {
        "type": "object",
        "properties": {name: {"type": "number"} for name in schema.outputs},
        "required": list(schema.outputs),
        "additionalProperties": False,
    }


def predicted_schema(schema: Schema) -> dict[str, Any]:
    """Return the schema of an answer of the typed route."""
    row = {"id": {"type": "string"}, "version": {"type": "integer"}, "arm": {"type": "string"}}
    answered: dict[str, Any] = {
        **row,
        "outputs": outputs_schema(schema),
        "source": {"enum": ["stable", "cache", "default"], "description": "What stood in for a failing arm."},
        "features": {
            "description": "By online view: the age in seconds of what was looked up there, and how it stands.",
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {"status": {"type": "string"}, "age": {"type": ["number", "null"]}},
                "required": ["status", "age"],
            },
        },
    }
    if schema.task == "multiclass":
        answered["label"] = {"enum": list(schema.classes), "description": "The likeliest class."}
    return {
        "type": "object",
        "properties": {
            "model": {"type": "string"},
            "version": {"type": "integer"},
            "arm": {"type": "string", "description": f'"{MIXED}" where rows were answered by several.'},
            "request_id": {"type": "string"},
            "predictions": {
                "type": "array",
                "items": {
                    "oneOf": [
                        {
                            "type": "object",
                            "properties": answered,
                            "required": [*row, "outputs"],
                            "additionalProperties": False,
                        },
                        {
                            "type": "object",
                            "properties": {**row, "error": {"type": "string"}},
                            "required": [*row, "error"],
                            "additionalProperties": False,
                        },
                    ]
                },
            },
            "fallback": {"type": "boolean"},
            "errors": {"type": "integer", "description": "How many rows got no answer."},
        },
        "required": ["model", "version", "arm", "request_id", "predictions"],
        "additionalProperties": False,
    }


def predicted_example(shown: Shown) -> Predicted | None:
    """Return the answer to the golden row; None where none is known."""
    outputs = shown.example.outputs
    if outputs is None:
        return None
    row = Prediction(
        "rq-1", shown.version, "stable", dict(zip(shown.schema.outputs, outputs, strict=True)),
        label(shown.schema, outputs),
    )  # fmt: skip
    return Predicted(shown.model.name, shown.version, "stable", "rq-1", [row])


def table_schema(shown: Shown, max_rows: int) -> dict[str, Any]:
    """Return the schema of a JSON body of MLflow's protocol."""
    schema = shown.schema
    records = {"type": "array", "minItems": 1, "maxItems": max_rows, "items": ref(f"{shown.key}.Record")}
    rows = {
        "type": "array",
        "minItems": 1,
        "maxItems": max_rows,
        "items": {"type": "array", "minItems": len(schema.inputs), "maxItems": len(schema.inputs)},
        "description": f"Values in the order {', '.join(field.name for field in schema.inputs)}.",
    }
    columns = {
        "type": "object",
        "minProperties": 1,
        "description": "A list of values, all of one length, by input; or one value by input, which is one row.",
    }
    split = {
        "type": "object",
        "properties": {
            "columns": {"type": ["array", "null"], "items": {"type": "string"}, "uniqueItems": True},
            "data": {"type": "array", "minItems": 1, "maxItems": max_rows, "items": {"type": "array"}},
            "index": {"description": "Not read."},
        },
        "required": ["data"],
        "additionalProperties": False,
        "description": "`DataFrame.to_dict(orient='split')`: rows as long as `columns`.",
    }
    params = {
        "type": ["object", "null"],
        "properties": {"id": ref("Id"), "unit": ref("Id"), "event_time": ref("EventTime")},
        "additionalProperties": False,
    }
    anyhow = {"anyOf": [records, rows, columns]}
    forms = {"dataframe_split": split, "dataframe_records": records, "instances": anyhow, "inputs": anyhow}
    return {
        "oneOf": [
            {
                "type": "object",
                "properties": {name: form, "params": params},
                "required": [name],
                "additionalProperties": False,
            }
            for name, form in forms.items()
        ]
    }


def scored_schema(schema: Schema) -> dict[str, Any]:
    """Return the schema of an answer of MLflow's protocol."""
    one = {"type": "number"} if len(schema.outputs) == 1 else outputs_schema(schema)
    return {
        "type": "object",
        "properties": {"predictions": {"type": "array", "items": one}},
        "required": ["predictions"],
        "additionalProperties": False,
    }


def table_examples(shown: Shown) -> dict[str, Any]:
    """Return a row in the forms that MLflow's clients send."""
    inputs = shown.example.inputs
    return {
        "dataframe_split": {
            "value": {"dataframe_split": {"columns": list(inputs), "data": [list(inputs.values())]}}
        },
        "dataframe_records": {"value": {"dataframe_records": [inputs]}},
        "inputs": {"value": {"inputs": {name: [value] for name, value in inputs.items()}}},
    }


def infer_example(shown: Shown) -> dict[str, Any]:
    """Return a row as an Open Inference request."""
    return {
        "inputs": [
            {
                "name": field.name,
                "datatype": v2_datatype(field),
                "shape": [1],
                "data": [shown.example.inputs[field.name]],
            }
            for field in shown.schema.inputs
        ]
    }


def ref(name: str) -> Mapping[str, str]:
    """Return a reference to a shared schema."""
    return {"$ref": f"#/components/schemas/{name}"}
