"""The words of a data contract: columns, rules, limits, severities.

Kinds of rules, with their arguments. A null passes every row rule but `required` and `missing`; a rule on a dotted path
(`address.city`, elements of a list `tags[]`) is broken by a row when any value found there breaks it.

- Row by row: `type` · `required` · `missing` {missingValues} · `range` {op, value} · `multipleOf` {value} ·
  `minLength`, `maxLength` {value} · `pattern` {value} · `enum` {validValues} · `condition` {condition: SQL} ·
  `minItems`, `maxItems`, `uniqueItems` {value} · `relationship` {table, columns} · `outlier` {method: robust_z or iqr,
  threshold}: beyond median ± threshold · 1.4826 · MAD, or beyond the quartiles by threshold · IQR, of the batch.
  Their `limit` is about the count (or share) of rows that break them; they set rows aside only when it is "none".
- On the table as landed so far: `unique` (composite: several columns).
- On the batch, one number measured against `limit`: `count` · `bad rows` · `query` {query} · `nulls` · `duplicates`
  (rows beyond the first of their key; a key with a null is none) · `mean` · `stddev` (of a sample) · `quantile` {q} ·
  `minimum` · `maximum` · `sum` · `distinct` · `category_share` {value} (rows equal to value; in percent: of all rows) ·
  `freshness` (age in seconds of the newest value) · `drift` {metric: psi or ks, snapshot: a digest's first letters or
  "previous"}.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

Type = Literal["string", "integer", "number", "boolean", "timestamp", "date", "time", "object", "array"]
TYPES = ("string", "integer", "number", "boolean", "timestamp", "date", "time", "object", "array")
Loading = Literal["append", "full", "upsert"]
_ROW = """
    type required missing range multipleOf minLength maxLength pattern enum condition minItems maxItems uniqueItems
    relationship outlier
"""
_BATCH = "count query nulls duplicates mean stddev quantile minimum maximum sum distinct category_share freshness drift"
ROW_KINDS = frozenset(_ROW.split())
BATCH_KINDS = frozenset({*_BATCH.split(), "bad rows"})


class Severity(StrEnum):
    WARN = "warn"
    QUARANTINE = "quarantine"
    BLOCK = "block"


class Scope(StrEnum):
    """Over what a rule is judged: each row alone, the whole table as landed so far, or the batch as one."""

    ROW = "row"
    TABLE = "table"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Column:
    """`format`: of dates and times in texts, as strptime has it. `timezone`: of times that name none.

    `fields`: the parts of an object (none given: whatever it holds). `items`: what an array holds, its name is "".
    `optional`: the column may be absent; one of an object's fields may always be.
    """

    name: str
    type: Type
    format: str | None = None
    timezone: str = "UTC"
    optional: bool = False
    severity: Severity = Severity.QUARANTINE
    fields: tuple["Column", ...] = ()
    items: "Column | None" = None
    required: bool = False
    description: str = ""
    classification: str = ""


@dataclass(frozen=True, slots=True)
class Limit:
    """What a measured count (or share in percent) must be: `op` is one of < <= > >= == != between, not between."""

    op: str
    value: float
    high: float = 0.0
    percent: bool = False

    def holds(self, measured: float, rows: int) -> bool:
        found = 100.0 * measured / rows if self.percent and rows else measured
        match self.op:
            case "<":
                return found < self.value
            case "<=":
                return found <= self.value
            case ">":
                return found > self.value
            case ">=":
                return found >= self.value
            case "==":
                return found == self.value
            case "!=":
                return found != self.value
            case "between":
                return self.value <= found <= self.high
            case _:
                return not self.value <= found <= self.high

    def __str__(self) -> str:
        unit = " %" if self.percent else ""
        return f"{self.op} {self.value:g}" + (f" and {self.high:g}" if "between" in self.op else "") + unit


NONE = Limit("==", 0)


@dataclass(frozen=True, slots=True)
class Rule:
    """One promise. `kind` decides what `arguments` hold (see above); `limit`: what the measured number must be.

    `where`: "file:line: key" of its words in the contract.
    """

    name: str
    kind: str
    columns: tuple[str, ...]
    severity: Severity
    scope: Scope
    arguments: Mapping[str, Any]
    limit: Limit = NONE
    description: str = ""
    dimension: str = ""
    where: str = field(default="", compare=False)

    @property
    def over_table(self) -> bool:
        """Whether it wants keys unique over all that has landed, not within a delivery alone (`scope: batch`)."""
        return self.kind == "unique" and self.scope is not Scope.BATCH


@dataclass(frozen=True, slots=True)
class ServiceLevel:
    """One of `slaProperties`: latency, freshness, retention, frequency, availability, …

    `columns`: those of `element` that are of this table. `seconds`: value × unit where that is a duration.
    """

    property: str
    value: str | float | bool | None
    unit: str = ""
    columns: tuple[str, ...] = ()
    driver: str = ""
    description: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """A table's promises. `digest` changes exactly when their content does (not comments or layout of the file).

    `loading`: how a delivery meets what has landed: beside it, in its place, or row by row through the key (of two rows
    with one key the one with the greater `version_column` stays, without one the later delivery's). `event_time`: the
    column that says when a row happened. `owner`, `producers`, `consumers`: who to ask and to tell. `unchecked`: what
    is said and nothing judges, each with its place. `document`: the whole file, as JSON.
    """

    name: str
    version: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    rules: tuple[Rule, ...]
    loading: Loading
    nulls: tuple[str, ...]
    digest: str
    source: str
    version_column: str | None = None
    event_time: str | None = None
    id: str = ""
    title: str = ""
    status: str = ""
    description: str = ""
    owner: str = ""
    producers: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    sla: tuple[ServiceLevel, ...] = ()
    max_bad_share: float = 0.5
    unchecked: tuple[str, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def references(self) -> set[str]:
        """The other tables that the relationships point to."""
        return {str(rule.arguments["table"]) for rule in self.rules if rule.kind == "relationship"} - {
            self.name
        }

    def column(self, path: str) -> Column | None:
        """The column at a dotted path, as rules name it; None when there is none."""
        return find_column(self.columns, path)


def find_column(columns: Iterable[Column], path: str) -> Column | None:
    """The column at a dotted path like `address.city` or `orders[].lines[].sku`; a name may hold dots itself."""
    for column in columns:
        rest = path.removeprefix(column.name) if path.startswith(column.name) else None
        inside = column
        while rest is not None:
            if not rest:
                return inside
            if rest.startswith("[]") and inside.items is not None:
                inside, rest = inside.items, rest[2:]
            elif rest.startswith(".") and (found := find_column(inside.fields, rest[1:])) is not None:
                return found
            else:
                break
    return None
