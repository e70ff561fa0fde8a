"""The words of a data contract: columns, rules, limits, severities."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

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
    """One promise. `kind` decides what `arguments` hold (see `check`); `limit`: what the count of bad rows must be."""

    name: str
    kind: str
    columns: tuple[str, ...]
    severity: Severity
    scope: Scope
    arguments: Mapping[str, Any]
    limit: Limit = NONE
    description: str = ""


@dataclass(frozen=True, slots=True)
class Terms:
    """A table's promises. `digest` changes exactly when their content does (not comments or layout of the file)."""

    name: str
    version: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    rules: tuple[Rule, ...]
    loading: Literal["append", "full"]
    nulls: tuple[str, ...]
    digest: str
    source: str

    def references(self) -> set[str]:
        """The other tables that the relationships point to."""
        return {str(rule.arguments["table"]) for rule in self.rules if rule.kind == "relationship"} - {
            self.name
        }
