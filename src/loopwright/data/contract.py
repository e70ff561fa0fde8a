"""Data contracts in the Open Data Contract Standard 3.1: which columns a table has and which rules its rows keep.

A subset is understood: columns with `logicalType`, `required`, `unique`, `primaryKey`, `logicalTypeOptions` (ranges,
lengths, `pattern`, `format`, `defaultTimezone`), `relationships`, and `quality` of type `library`, `sql`, `text`
and `custom` (engine `loopwright`, whose `implementation` is a SQL condition every row must meet). Keys of the
standard that say nothing about checking are allowed and kept; a key the standard does not know is an error.

Ours, in `customProperties`: `severity` (`warn`: counted, the row stays usable; `quarantine`: the row is set aside
with its reasons; `block`: the batch is refused); on the table also `load` (`append` or `full`: each source is the
whole table), `nullValues` (texts that mean null), `maxBadShare` (share of bad rows above which a batch is refused).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from loopwright.data.document import read_document

Type = Literal["string", "integer", "number", "boolean", "timestamp", "date", "time"]
TYPES = ("string", "integer", "number", "boolean", "timestamp", "date", "time")


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
    name: str
    type: Type
    format: str | None = None
    timezone: str = "UTC"
    optional: bool = False
    severity: Severity = Severity.QUARANTINE


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
    """One promise. `kind` decides what `arguments` hold (see `check`); `limit` is what the number of rows that fail must be."""

    name: str
    kind: str
    columns: tuple[str, ...]
    severity: Severity
    scope: Scope
    arguments: Mapping[str, Any]
    limit: Limit = NONE
    description: str = ""


@dataclass(frozen=True, slots=True)
class Contract:
    """A table's promises. `digest` changes exactly when the contract's content does (not its comments or layout)."""

    name: str
    version: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    rules: tuple[Rule, ...]
    loading: Literal["append", "full"]
    nulls: tuple[str, ...]
    digest: str
    source: str

    @staticmethod
    def load(path: Path) -> "Contract":
        """Read a contract file; raises NotFound or BadInput naming file, line and key."""
        from loopwright.data.odcs import parse_contract

        return parse_contract(read_document(path))

    def references(self) -> set[str]:
        """The other tables that the relationships point to."""
        return {str(rule.arguments["table"]) for rule in self.rules if rule.kind == "relationship"} - {
            self.name
        }
