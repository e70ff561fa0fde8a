"""What a view's definition is: as a document, by its digest, and how far one of its rows reaches in time."""

import hashlib
import inspect
from collections.abc import Callable
from datetime import timedelta
from types import CodeType
from typing import Any

from loopwright.features.view import Aggregate, FeatureView, WindowedRate, as_mapping
from loopwright.kernel.clock import format_duration
from loopwright.kernel.digest import digest_json

VIEW_FORMAT = 1
"""Grows when the same definition would give other values."""


def document(view: FeatureView | WindowedRate) -> dict[str, Any]:
    """JSON with all that the view says; what was not said is left out. Durations are text like "6h"."""
    told: dict[str, Any] = {"name": view.name, **_values(view), "owner": view.owner}
    if isinstance(view, FeatureView):
        told |= {
            "description": view.description,
            "tags": dict(view.tags),
            "tests": {
                name: {"condition": test.condition, "severity": test.severity}
                for name, test in view.all_tests().items()
            },
        }
    return {key: value for key, value in told.items() if value not in (None, "", {}, [])}


def definition_digest(view: FeatureView | WindowedRate) -> str:
    """SHA-256 of what decides the view's values; its owner, description, tags and tests do not.

    Of a Python function its own code counts, not that of the functions it calls.
    """
    return digest_json({"format": VIEW_FORMAT, "name": view.name, **_values(view)})


def reach(view: FeatureView | WindowedRate) -> timedelta | None:
    """How long after a row can still matter: to questions from its event time until `reach` after the later of its
    event time and the moment it became known. None: for ever.

    A row that is changed or removed changes no answer outside that span either. Where a `source` stands between the
    table and the view, nobody can tell which of its rows a changed row makes: None.
    """
    if isinstance(view, WindowedRate):
        return view.window
    if view.event_time is None or view.source is not None:
        return None
    spans = [aggregate.window for aggregate in view.aggregations.values()]
    spans += [view.ttl] if as_mapping(view.columns) else []
    known = [span for span in spans if span is not None]
    return max(known) if len(known) == len(spans) else None


def _values(view: FeatureView | WindowedRate) -> dict[str, Any]:
    if isinstance(view, WindowedRate):
        prior = None if view.prior is None else {"rate": view.prior.rate, "weight": view.prior.weight}
        return {
            "kind": "windowed rate",
            "window": format_duration(view.window),
            "on": list(as_mapping(view.on).items()),
            "value": view.value,
            "available_at": view.available_at,
            "prior": prior,
            "count": view.count,
        }
    source = view.source
    return {
        "kind": "feature view",
        "table": view.table,
        # Lists of pairs: the order of columns decides ties, and that of keys how they are stored.
        "entity": [list(pair) for pair in as_mapping(view.entity).items()],
        "columns": [list(pair) for pair in as_mapping(view.columns).items()],
        "event_time": view.event_time,
        "ttl": None if view.ttl is None else format_duration(view.ttl),
        "available_after": format_duration(view.available_after) if view.available_after else None,
        "available_at": view.available_at,
        "aggregations": [[name, _aggregate(each)] for name, each in view.aggregations.items()],
        "source": source if source is None or isinstance(source, str) else _function(source),
        "reads": list(view.reads),
    }


def _aggregate(aggregate: Aggregate) -> dict[str, Any]:
    told = {
        "function": aggregate.function,
        "value": aggregate.value,
        "window": None if aggregate.window is None else format_duration(aggregate.window),
        "where": aggregate.where,
        "over": aggregate.over,
        "decimals": aggregate.decimals,
    }
    return {key: value for key, value in told.items() if value is not None}


def _function(source: Callable[..., Any]) -> dict[str, str]:
    name = getattr(source, "__qualname__", type(source).__qualname__)
    try:
        return {"python": name, "code": inspect.getsource(source)}
    except (OSError, TypeError):  # made where there is no file: what it was compiled to tells as much
        code = getattr(source, "__code__", None)
        return {"python": name, "digest": _compiled(code) if code is not None else ""}


def _compiled(code: CodeType) -> str:
    def told(const: object) -> str:
        if isinstance(const, CodeType):
            return _compiled(const)
        return repr(sorted(map(repr, const))) if isinstance(const, frozenset) else repr(const)

    inner = [told(const) for const in code.co_consts]
    return hashlib.sha256(repr((code.co_code, inner, code.co_names)).encode()).hexdigest()
