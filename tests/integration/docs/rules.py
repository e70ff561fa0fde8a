"""The table of every kind of rule in docs/contracts.md: how it is written, and what happens when it is broken.

Each way of writing is parsed as part of a contract; kind and severity are what comes of it.
"""

import re
from typing import Any

import yaml

from loopwright.data.contract import Contract
from loopwright.data.terms import Rule

# (kind, where it is written, as, what it says)
WAYS = [
    ("type", "property", "logicalType: integer", "every value is one"),
    ("required", "property", "required: true", "never null; so is every column of the key"),
    ("unique", "property", "unique: true", "no value twice in the table; `primaryKey: true` on several is one key"),
    ("range", "options", "{minimum: 0, exclusiveMaximum: 100}", "also of dates and times"),
    ("multipleOf", "options", "{multipleOf: 0.01}", ""),
    ("minLength", "options", "{minLength: 2}", "characters of a text"),
    ("maxLength", "options", "{maxLength: 40}", ""),
    ("pattern", "options", "{pattern: '^C[0-9]{3}$'}", "RE2: no look-around; `format: email` is a known one"),
    ("minItems", "options", "{minItems: 1}", "of an array"),
    ("maxItems", "options", "{maxItems: 10}", ""),
    ("uniqueItems", "options", "{uniqueItems: true}", "nothing twice within an array"),
    ("enum", "property", "enum: [{value: EUR}, {value: USD}]", "or `invalidValues` with `validValues`"),
    ("relationship", "property", "relationships: [{to: customers.customer}]", "the value stands in another table"),
    ("missing", "quality", "{metric: missingValues, arguments: {missingValues: [n/a]}}", "texts that mean nothing"),
    ("nulls", "quality", "{metric: nullValues, mustBeLessThan: 5, unit: percent}", "how many nulls"),
    ("duplicates", "quality", "{metric: duplicateValues, mustBeLessThan: 3}", "rows beyond the first of their key"),
    ("count", "table quality", "{metric: rowCount, mustBeBetween: [100, 5000]}", "rows of the delivery"),
    ("query", "table quality", "{type: sql, query: 'SELECT count(*) FROM {object} WHERE x > y', mustBe: 0}",
     "one number of a query"),
    ("condition", "implementation", "x <= y", "SQL that every row meets"),
    ("mean", "implementation", "{metric: mean, mustBeBetween: [10, 20]}", ""),
    ("stddev", "implementation", "{metric: stddev, mustBeLessThan: 9}", "of a sample"),
    ("quantile", "implementation", "{metric: quantile, q: 0.95, mustBeLessThan: 90}", ""),
    ("minimum", "implementation", "{metric: minimum, mustBeGreaterThan: 1}", "of the delivery, as one number"),
    ("maximum", "implementation", "{metric: maximum, mustBeLessThan: 90}", ""),
    ("sum", "implementation", "{metric: sum, mustBeGreaterThan: 0}", ""),
    ("distinct", "implementation", "{metric: distinct, mustBeGreaterOrEqualTo: 3}", "different values"),
    ("category_share", "implementation", "{metric: categoryShare, value: 7, mustBeBetween: [20, 45]}",
     "percent of the rows, or `unit: rows`"),
    ("outlier", "implementation", "{metric: outlier, method: robustZ, threshold: 5}", "or `method: iqr`"),
    ("drift", "implementation", "{metric: drift, distance: psi, against: previous, mustBeLessThan: 0.2}",
     "from a snapshot; or `distance: ks`, or a digest's letters"),
    ("freshness", "slaProperties", "{property: freshness, value: 6, unit: h, element: t.seen}",
     "age of the newest value; or a metric of its own"),
    ("bad rows", "table customProperties", "{property: maxBadShare, value: 0.3}", "left out: 0.5"),
]  # fmt: skip
_TYPES = {
    "multipleOf": "number", "minLength": "string", "maxLength": "string", "pattern": "string", "enum": "string",
    "missing": "string", "minItems": "array", "maxItems": "array", "uniqueItems": "array",
}  # fmt: skip


def parsed(kind: str, where: str, said: str) -> Rule:
    """The rule of this kind that a contract has in which it is written so."""
    value = yaml.safe_load(said)
    column: dict[str, Any] = {"name": "x", "logicalType": _TYPES.get(kind, "integer")}
    columns = [column, {"name": "y", "logicalType": "integer"}, {"name": "seen", "logicalType": "timestamp"}]
    table: dict[str, Any] = {"name": "t", "properties": columns}
    contract = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": "t", "version": "1.0.0", "status": "draft",
                "schema": [table]}  # fmt: skip
    match where:
        case "property":
            column.update(value)
        case "options":
            column["logicalTypeOptions"] = value
        case "quality":
            column["quality"] = [value]
        case "table quality":
            table["quality"] = [value]
        case "implementation":
            column["quality"] = [{"type": "custom", "engine": "loopwright", "implementation": value}]
        case "slaProperties":
            contract["slaProperties"] = [value]
        case _:
            table["customProperties"] = [value]
    return next(rule for rule in Contract.parse(yaml.safe_dump(contract)).rules if rule.kind == kind)


def rules() -> str:
    """The table."""
    lines = ["| kind | written in | as | broken | |", "|---|---|---|---|---|"]
    for kind, where, said, note in WAYS:
        place = "logicalTypeOptions" if where == "options" else where
        lines.append(f"| {kind} | {place} | `{said}` | {parsed(kind, where, said).severity} | {note} |")
    return "\n".join(lines)


def with_rules(text: str) -> str:
    """The text with the table between its marks."""
    marks = r"(<!-- rules:[^\n]*-->\n).*?(<!-- /rules -->)"
    return re.sub(marks, lambda found: f"{found[1]}\n{rules()}\n\n{found[2]}", text, flags=re.DOTALL)
