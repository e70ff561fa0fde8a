"""What a check found: of each rule, and of the batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from loopwright.data.terms import Scope, Severity

State = Literal["PASS", "WARN", "FAIL", "ERROR"]


@dataclass(frozen=True, slots=True)
class RuleResult:
    """`failed` rows (of a uniqueness rule: the rows beyond the first of their key) and up to three of them as examples.

    For rules on one number of the batch `measured` is that number (null: there was nothing to measure) and `failed`
    the same without its fraction. `why`: what is wrong, in words.
    """

    name: str
    column: str
    severity: Severity
    scope: Scope
    state: State
    failed: int
    examples: tuple[Mapping[str, Any], ...] = ()
    why: str = ""
    measured: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "column": self.column,
            "severity": self.severity.value,
            "scope": self.scope.value,
            "state": self.state,
            "failed": self.failed,
            "examples": [dict(e) for e in self.examples],
            "why": self.why,
            "measured": self.measured,
        }


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a batch is worth. FAIL: rows were set aside or the batch is blocked; ERROR: a rule could not be evaluated.

    `good_rows + bad_rows == input_rows`, always. `reasons` counts, per rule, the bad rows that broke it.
    """

    state: Literal["PASS", "FAIL", "ERROR"]
    input_rows: int
    good_rows: int
    bad_rows: int
    rules: tuple[RuleResult, ...]
    reasons: Mapping[str, int]

    @property
    def blocked_by(self) -> tuple[RuleResult, ...]:
        """Rules that keep the whole batch out."""
        return tuple(
            r
            for r in self.rules
            if r.state == "ERROR" or (r.state == "FAIL" and r.severity is Severity.BLOCK)
        )

    @property
    def warnings(self) -> tuple[RuleResult, ...]:
        return tuple(r for r in self.rules if r.state == "WARN")

    def to_json(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "input_rows": self.input_rows,
            "good_rows": self.good_rows,
            "bad_rows": self.bad_rows,
            "rules": [rule.to_json() for rule in self.rules],
            "reasons": dict(self.reasons),
        }
