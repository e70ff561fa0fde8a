"""A contract as a document for people: what it promises, who stands behind it, what nothing judges."""

from typing import Any

from loopwright.data.terms import Terms


def described(terms: Terms) -> dict[str, Any]:
    """The terms in JSON's types; `document` is the contract as it was written."""
    return {
        "table": terms.name,
        "version": terms.version,
        "digest": terms.digest,
        "title": terms.title,
        "description": terms.description,
        "status": terms.status,
        "owner": terms.owner,
        "producers": list(terms.producers),
        "consumers": list(terms.consumers),
        "key": list(terms.key),
        "loading": terms.loading,
        "event_time": terms.event_time,
        "service_levels": [
            {
                "property": level.property,
                "value": level.value,
                "unit": level.unit,
                "columns": list(level.columns),
            }
            for level in terms.sla
        ],
        "columns": [
            {
                "name": column.name,
                "type": column.type,
                "required": column.required,
                "description": column.description,
            }
            for column in terms.columns
        ],
        "rules": [
            {
                "name": rule.name,
                "columns": list(rule.columns),
                "severity": rule.severity.value,
                "scope": rule.scope.value,
                "description": rule.description,
            }
            for rule in terms.rules
        ],
        "unchecked": list(terms.unchecked),
        "document": dict(terms.document),
    }
