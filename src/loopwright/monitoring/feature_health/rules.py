"""Which promises about features are broken, and the condition that alerts are made of. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from loopwright.kernel.clock import format_duration
from loopwright.kernel.errors import BadInput, did_you_mean
from loopwright.monitoring.alerts import Cleared, Condition, Kind, Raised
from loopwright.monitoring.feature_health.statistics import FeatureStatistics
from loopwright.project.sections import FeatureRule

MIN_ROWS = 20
"""Rows of a window that a share or a count of values is judged on."""
SHOWN = 4


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that a feature (or, for freshness, a view) does not keep: what was found, and what is promised."""

    feature: str
    source: str
    rule: str
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.feature}: {self.rule} {self.found}, wanted {self.wanted} ({self.source})"

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def check_rules(rules: Mapping[str, FeatureRule], features: Mapping[str, str]) -> None:
    """Raise BadInput for a rule about what is neither a feature nor a view, or that its subject cannot have.

    `features`: feature → view.
    """
    known = [*features, *dict.fromkeys(features.values())]
    for name in rules:
        if name not in known:
            raise BadInput(
                "a rule about a feature that there is not", where="loop.yaml: monitoring.features", got=name,
                wanted=f"an input or a view: {', '.join(known)}", next=did_you_mean(name, known),
            )  # fmt: skip


def rule_of(name: str, view: str, rules: Mapping[str, FeatureRule]) -> FeatureRule | None:
    """What holds for a feature: its own rule where it says something, else its view's."""
    own, common = rules.get(name), rules.get(view)
    if own is None or common is None or name == view:
        return own or common
    said = {field: value for field in type(own).model_fields if (value := getattr(own, field)) is not None}
    return common.model_copy(update=said)


def broken_rules(
    statistics: Sequence[FeatureStatistics],
    rules: Mapping[str, FeatureRule],
    *,
    lives: Mapping[str, timedelta] | None = None,
) -> list[Broken]:
    """The rules that `statistics` (of one window) break.

    `lives`: view → its TTL, which is what its freshness is held to where no rule says otherwise: from then on all its
    columns are null.
    """
    found: list[Broken] = []
    aged: set[str] = set()
    for one in statistics:
        rule = rule_of(one.feature, one.view, rules)
        fresh = (rule.freshness if rule else None) or (lives or {}).get(one.view)
        if fresh is not None and one.age is not None and one.view not in aged:
            aged.add(one.view)
            if one.age > fresh.total_seconds():
                age = format_duration(timedelta(seconds=int(one.age)))
                found.append(Broken(one.view, one.source, "freshness", age, f"<= {format_duration(fresh)}"))
        if rule is not None and one.rows >= MIN_ROWS:
            found += _values(one, rule)
    return found


def _values(one: FeatureStatistics, rule: FeatureRule) -> list[Broken]:
    found = []

    def note(name: str, measured: str, wanted: str) -> None:
        found.append(Broken(one.feature, one.source, name, measured, wanted))

    if rule.null_rate is not None and (one.null_rate or 0.0) > rule.null_rate:
        note("null rate", _percent(one.null_rate or 0.0), f"<= {_percent(rule.null_rate)}")
    if rule.distinct is not None and not rule.distinct.holds(one.distinct):
        note("distinct values", str(one.distinct), str(rule.distinct))
    if rule.range is not None:
        low, high = rule.range
        if low is not None and one.minimum is not None and one.minimum < low:
            note("minimum", f"{one.minimum:g}", f">= {low:g}")
        if high is not None and one.maximum is not None and one.maximum > high:
            note("maximum", f"{one.maximum:g}", f"<= {high:g}")
        if one.infinite:
            note("infinite values", str(one.infinite), "none")
    return found


def feature_condition(
    statistics: Sequence[FeatureStatistics], broken: Sequence[Broken], version: int
) -> Condition | None:
    """Raised while a rule is broken in the newest window, cleared when none is; None without statistics."""
    if not statistics:
        return None
    end = max(one.window.end for one in statistics)
    if not broken:
        return Cleared(Kind.FEATURE, end, "every feature keeps its rules")
    more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
    return Raised(
        Kind.FEATURE, version, end,
        f"{len(broken)} rule{'s' * (len(broken) > 1)} about features broken: "
        + "; ".join(map(str, broken[:SHOWN])) + more,
        {"broken": [each.to_json() for each in broken]},
    )  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
