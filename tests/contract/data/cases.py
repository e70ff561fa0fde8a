"""The cases of cases.yaml as contracts and Arrow tables; every engine that checks must find what they say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from loopwright.data.contract import Contract

TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
    "address": pa.struct([("city", pa.string()), ("zip", pa.string())]),
    "list of strings": pa.list_(pa.string()),
}
NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Case:
    """`found`: what each named rule must show. `bad`: reasons by row number from 1; None: the case does not say."""

    name: str
    contract: Contract
    rows: pa.Table
    found: Mapping[str, Mapping[str, Any]]
    bad: Mapping[int, list[str]] | None
    refs: Mapping[str, pa.Table] = field(default_factory=dict)
    landed: pa.Table | None = None
    reference: pa.Table | None = None
    now: datetime = NOON


def cases() -> list[Case]:
    return [_case(entry) for entry in yaml.safe_load((Path(__file__).parent / "cases.yaml").read_text())]


def _case(entry: Mapping[str, Any]) -> Case:
    share = entry.get("maxBadShare", 1)
    table = {
        "name": "t",
        "properties": entry["properties"],
        "quality": entry.get("quality", []),
        "relationships": entry.get("relationships", []),
        "customProperties": [{"property": "maxBadShare", "value": share}],
    }
    document = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": "t", "schema": [table]}
    return Case(
        entry["name"],
        Contract.parse(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), entry["name"]),
        _table(entry["rows"]),
        entry["found"],
        entry.get("bad"),
        {name: _table(rows) for name, rows in entry.get("refs", {}).items()},
        _table(entry["landed"]) if "landed" in entry else None,
        _table(entry["reference"]) if "reference" in entry else None,
        datetime.fromisoformat(entry["now"]).replace(tzinfo=UTC) if "now" in entry else NOON,
    )


def _table(columns: Mapping[str, Any]) -> pa.Table:
    return pa.table({name: _array(*column) for name, column in columns.items()})


def _array(kind: str, values: list[Any], times: int = 1) -> pa.Array:
    if kind == "timestamp":
        values = [v and datetime.fromisoformat(v).replace(tzinfo=UTC) for v in values]
    return pa.array(values * times, TYPES[kind])
