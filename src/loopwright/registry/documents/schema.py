"""The JSON Schema (draft 2020-12) of a model card, so that other tools can read and check one.

A field that is added keeps `schema_version`'s first number; one that is taken away or means something else raises it.
"""

from collections.abc import Mapping
from typing import Any

from loopwright.registry.documents.card import SCHEMA_VERSION

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer"}
YES_NO: Schema = {"type": "boolean"}
DIGEST: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
TIME: Schema = {"type": "string", "format": "date-time"}
VERDICT: Schema = {"enum": ["PASS", "FAIL", "INCONCLUSIVE", "ERROR"]}
ANYTHING: Schema = {"type": "object"}


def _or_null(schema: Schema) -> Schema:
    if "type" in schema and "enum" not in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        return {**schema, "type": [*kinds, "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def _of(fields: Mapping[str, Schema]) -> Schema:
    """An object with exactly these fields, all of them there."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(fields),
        "properties": dict(fields),
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _each(schema: Schema, *names: str) -> dict[str, Schema]:
    return dict.fromkeys(names, schema)


_RESULT = {
    "type": "object",
    "required": ["name", "kind", "verdict", "value", "limit", "detail"],
    "properties": {
        **_each(TEXT, "name", "kind", "limit", "detail"),
        "verdict": VERDICT,
        "value": _or_null(NUMBER),
        "interval": _or_null({"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2}),
    },
}

_IDENTITY = _of({
    "model": TEXT, "version": WHOLE, **_each(_or_null(TEXT), "semver", "semver_reason", "task"),
    "stage": {"enum": ["None", "Staging", "Production", "Archived"]}, "serving": _or_null(YES_NO),
    "bundle": _or_null(DIGEST), "author": TEXT, **_each(_or_null(TEXT), "owner", "team", "project"),
    "registered_at": TIME, "parent": _or_null(WHOLE), "licence": _or_null(TEXT),
    "tags": _map(TEXT), "annotations": _map(TEXT),
})  # fmt: skip

_WRITTEN = _of({
    **_each(_or_null(TEXT), "file", "digest", "by"), "at": _or_null(TIME), "revision": WHOLE,
    "sections": _list(_of({
        **_each(TEXT, "name", "title"), "text": _or_null(TEXT), **_each(YES_NO, "filled", "required"),
    })),
})  # fmt: skip

_DATA = _of({
    "snapshot": _or_null(TEXT), "rows": _or_null(WHOLE),
    "tables": _list(_of({
        "name": TEXT, "source": _or_null(TEXT), "rows": _or_null(WHOLE), "table_version": _or_null(WHOLE),
        "content_digest": _or_null(TEXT),
        "contract": _or_null(_of({
            "digest": _or_null(TEXT), **_each(WHOLE, "batches", "input_rows", "good_rows", "bad_rows", "rules"),
            "broken": _list(_of({
                "name": TEXT, "severity": _or_null(TEXT), "state": _or_null(TEXT), "rows": _or_null(WHOLE),
            })),
        })),
    })),
    "event_time": _of(_each(_or_null(TIME), "from", "until", "as_of")),
    "label": _of(_each(_or_null(TEXT), "name", "available_after")),
    "split": _map(WHOLE),
})  # fmt: skip

_TRAINING = _of({
    "run_id": _or_null(TEXT), **_each(_or_null(TIME), "started_at", "ended_at"),
    **_each(_or_null(TEXT), "by", "reason", "commit"), "dirty": _or_null(YES_NO),
    **_each(_or_null(TEXT), "kept_commit", "code_digest", "project_digest", "algorithm"), "parameters": ANYTHING,
    "seed": _or_null(WHOLE), **_each(_or_null(TEXT), "python", "platform"), "packages": _or_null(WHOLE),
    **_each(_or_null(TEXT), "packages_digest", "processor"), **_each(_or_null(WHOLE), "cores", "memory_bytes"),
    **_each(_list(TEXT), "gpus", "command"),
})  # fmt: skip

_INTERFACE = _of({
    "inputs": _list(_of({**_each(TEXT, "name", "dtype"), "nullable": YES_NO})),
    **_each(_list(TEXT), "features", "outputs", "classes"),
})  # fmt: skip

_QUALITY = _of({
    "metrics": _map(NUMBER),
    "gates": _or_null(_of({
        "verdict": VERDICT, "at": TIME, "evidence": DIGEST, "rows": _or_null(WHOLE), "baseline": _or_null(TEXT),
        "results": _list(_RESULT),
    })),
    "comparison": _or_null(_RESULT),
    "behaviour": _list(_RESULT),
})  # fmt: skip

_JUDGED = {"verdict": VERDICT, "at": TIME, "evidence": DIGEST}
_FAIRNESS = _of({**_JUDGED, "not_applicable": _or_null(TEXT), "report": _or_null(ANYTHING)})
_EXPLAINED = _of({
    **_JUDGED, **_each(_or_null(TEXT), "why", "method"), "rows": _or_null(WHOLE),
    "features": _list({"type": "object", "required": ["name"], "properties": {"name": TEXT, "mean_abs_shap": NUMBER}}),
})  # fmt: skip

_COMPRESSION = _of({
    **_JUDGED, **_each(_or_null(WHOLE), "parent", "size", "original_size"),
    **_each(_or_null(TEXT), "parent_bundle", "run", "trained_in", "name"), "recipe": _list(ANYTHING),
    "latency": _of({
        **_each(_or_null(NUMBER), "p50", "p99", "original_p50", "original_p99"),
        **_each(_or_null(WHOLE), "batch", "threads"),
    }),
    "loss": _of(_each(_of({
        "metric": _or_null(TEXT), **_each(_or_null(NUMBER), "loss", "loss_low", "loss_high", "confidence"),
        "rows": _or_null(WHOLE),
    }), "validation", "test")),
    "agreement": _of(_each(_or_null(NUMBER), "argmax", "cosine", "largest")), "controls": _list(TEXT),
    "wanted": _of({**_each(_or_null(NUMBER), "latency_ms", "loss"), "size": _or_null(WHOLE)}),
})  # fmt: skip

_ROLLOUT = _of({
    "id": TEXT, **_each(_or_null(TEXT), "strategy", "status"), "baseline": _or_null(WHOLE),
    **_each(_or_null(TIME), "started_at", "ended_at"), "reason": _or_null(TEXT),
    "steps": _list(_of({
        "at": TIME, "event_time": _or_null(TIME), "kind": TEXT,
        **_each(_or_null(TEXT), "from", "to", "why", "evidence"),
    })),
})  # fmt: skip

_SPAN = {"start": TIME, "end": TIME, "verdict": VERDICT}
_MONITORING = _of({
    "drift": _list(_of({
        "kind": {"enum": ["drift", "prediction"]}, **_SPAN,
        "moved": _list(_of({"column": _or_null(TEXT), "psi": _or_null(NUMBER)})),
    })),
    "quality": _list(_of({
        **_SPAN, "metric": _or_null(TEXT), **_each(_or_null(NUMBER), "value", "low", "high", "expected", "limit"),
        "labelled": _or_null(WHOLE), "coverage": _or_null(NUMBER),
    })),
    "alerts": _list(_of({
        **_each(_or_null(TEXT), "tier", "kind", "title", "state"),
        **_each(_or_null(TIME), "event_time", "opened_at"), "by": _or_null(TEXT),
    })),
})  # fmt: skip

_GOVERNANCE = _of({
    **_each(_or_null(TEXT), "tier", "policy_digest"), "approvals_needed": _map(WHOLE),
    "evidence_needed": _map(_list(TEXT)), "missing": _map(_list(TEXT)),
    "promotions": _list(_of({
        **_each(TEXT, "id", "stage", "state", "requested_by"), "requested_at": TIME, "reason": TEXT,
        "decided_at": _or_null(TIME), "policy_digest": TEXT, "emergency": _or_null(TEXT),
        "review": _or_null(ANYTHING),
        "approvals": _list(_of({
            "reviewer": TEXT, "decision": {"enum": ["approve", "reject"]}, "comment": TEXT, "at": TIME,
            "these_bytes": YES_NO,
        })),
    })),
})  # fmt: skip

CARD_SCHEMA: Schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": f"urn:loopwright:model-card:{SCHEMA_VERSION}",
    "title": "Model card",
    "description": "Generated from what is recorded; null is what was never recorded, and `gaps` names it.",
    **_of({
        "schema_version": {"const": SCHEMA_VERSION}, "generated_at": TIME, "identity": _IDENTITY,
        "written": _WRITTEN, "data": _DATA, "training": _or_null(_TRAINING),
        "compression": _or_null(_COMPRESSION), "interface": _or_null(_INTERFACE),
        "quality": _QUALITY, "fairness": _or_null(_FAIRNESS), "explainability": _or_null(_EXPLAINED),
        "delivery": _list(_ROLLOUT), "monitoring": _MONITORING, "governance": _GOVERNANCE,
        "evidence": _list(_of({"kind": TEXT, "verdict": VERDICT, "at": TIME, "digest": DIGEST})),
        "sbom": _or_null(_of({"serial_number": TEXT})),
        "gaps": _list(_of(_each(TEXT, "about", "what", "next"))),
    }),
}  # fmt: skip
