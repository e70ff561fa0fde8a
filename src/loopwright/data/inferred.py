"""Makes a contract of what was seen in a source.

Ranges and lists of values are left out unless asked for: what has not been seen yet is no defect. Candidates stand as
comments for a person to take over.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from loopwright.data.source import NULLS

if TYPE_CHECKING:
    from loopwright.data.infer import Facts, Inferred

FEW = 20
"""A text column with at most so many different values, each seen often, is a candidate for a list of valid ones."""
_HEAD = """\
# What the data promises (Open Data Contract Standard 3.1), inferred from {rows:,} rows{malformed}. Rows that break it
# are set aside with their reasons. Add what you know: required: true, logicalTypeOptions: {{minimum: 0, maximum: 9}}, …
"""


def infer_contract(
    inferred: "Inferred",
    *,
    table: str,
    key: Sequence[str] = (),
    required: Sequence[str] = (),
    full: bool = True,
    suggest: bool = False,
    ranges: bool = False,
) -> dict[str, Any]:
    """An ODCS 3.1 document for what was seen. `full`: each delivery is the whole table.

    `suggest`: take the candidates over: the first key there is, `required` where nothing is null, lists of valid values
    (as warnings). `ranges`: the least and greatest number seen.
    """
    if suggest and not key:
        key = key_candidates(inferred)[:1]
    properties = []
    for column in inferred.columns:
        entry = _property(column)
        if ranges and column.minimum is not None and column.maximum is not None:
            whole = column.type == "integer"
            bounds = {"minimum": column.minimum, "maximum": column.maximum}
            entry["logicalTypeOptions"] = {k: int(v) if whole else v for k, v in bounds.items()}
        if column.name in required or column.name in key or (suggest and not column.nulls and inferred.rows):
            entry["required"] = True
        if column.name in key:
            entry |= {"primaryKey": True, "primaryKeyPosition": list(key).index(column.name) + 1}
        if suggest and _few(column, inferred.rows):
            entry["quality"] = [
                {
                    "type": "library",
                    "metric": "invalidValues",
                    "arguments": {"validValues": list(column.values)},
                    "mustBe": 0,
                    "customProperties": [{"property": "severity", "value": "warn"}],
                }
            ]
        properties.append(entry)
    custom: list[dict[str, Any]] = [{"property": "load", "value": "full" if full else "append"}]
    if inferred.null_tokens:
        custom.append({"property": "nullValues", "value": [*NULLS, *inferred.null_tokens]})
    return {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": f"inferred/{table}",
        "name": table,
        "version": "0.1.0",
        "status": "draft",
        "schema": [
            {"name": table, "logicalType": "object", "properties": properties, "customProperties": custom}
        ],
    }


def to_yaml(document: Mapping[str, Any]) -> str:
    """The document as YAML, keys in their order."""
    return yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=110)


def annotated(inferred: "Inferred", document: Mapping[str, Any]) -> str:
    """The document as YAML, with what was seen and could be promised as comments on the columns."""
    waiting = iter(document["schema"][0]["properties"])
    seen = {column.name: column for column in inferred.columns}
    lines = []
    for line in to_yaml(document).splitlines():
        if line.startswith("  - name: "):
            prop = next(waiting)
            lines += [f"  # {note}" for note in notes(inferred, seen[prop["name"]], prop)]
        lines.append(line)
    malformed = f" ({inferred.malformed:,} more lines are no rows)" if inferred.malformed else ""
    return _HEAD.format(rows=inferred.rows, malformed=malformed) + "\n".join(lines) + "\n"


def notes(inferred: "Inferred", column: "Facts", prop: Mapping[str, Any]) -> list[str]:
    """What could be promised of a column and is not yet, and what to look at."""
    found = []
    if column.name in key_candidates(inferred) and not prop.get("primaryKey"):
        found.append("every value is another: a candidate for primaryKey: true")
    elif not column.nulls and inferred.rows and not prop.get("required"):
        found.append("never null: a candidate for required: true")
    if _few(column, inferred.rows) and "quality" not in prop:
        values = ", ".join(column.values)
        found.append(f"{column.distinct} values, a candidate for a list of valid ones: {_short(values)}")
    if column.misfits:
        found.append(f"{column.misfits:,} values do not read as {column.type}")
    if len(column.formats) > 1:
        found.append(f"which day and which month? The values also read as {', '.join(column.formats[1:])}")
    return [re.sub(r"[^\S ]+", " ", note) for note in found]


def key_candidates(inferred: "Inferred") -> list[str]:
    """Columns that name a row in what was seen: integers and texts, each value once, in their order."""
    if inferred.rows < 2:
        return []
    return [
        c.name for c in inferred.columns if c.unique and not c.misfits and c.type in ("integer", "string")
    ]


def _property(column: "Facts") -> dict[str, Any]:
    entry: dict[str, Any] = {"name": column.name} if column.name else {}
    entry["logicalType"] = column.type
    if column.format:
        entry["logicalTypeOptions"] = {"format": column.format}
    if column.fields:
        entry["properties"] = [_property(field) for field in column.fields]
    if column.items is not None:
        entry["items"] = _property(column.items)
    return entry


def _few(column: "Facts", rows: int) -> bool:
    return column.type == "string" and 1 < column.distinct <= FEW and rows >= FEW * column.distinct


def _short(text: str, most: int = 90) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
