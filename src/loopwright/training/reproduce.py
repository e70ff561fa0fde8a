"""Did a run repeat? Compares what two runs found and, where they differ, what was different about them.
Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

RTOL = 1e-6


class Agreement(StrEnum):
    BITWISE = "bitwise"
    WITHIN = "within tolerance"
    DIVERGED = "diverged"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run found: metrics, SHA-256 of its exported model, and `context["fingerprint"]` of
    `context.capture`."""

    metrics: Mapping[str, float]
    model_digest: str
    fingerprint: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MetricPair:
    """One metric of both runs; None where a run lacks it. `difference` is relative, infinite where one is
    missing."""

    name: str
    first: float | None
    again: float | None
    difference: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A part of the fingerprint that is not equal."""

    name: str
    first: Any
    again: Any


@dataclass(frozen=True, slots=True)
class Comparison:
    """`agreement` with the sentence that says why, every metric, and the parts of the fingerprint that
    differ."""

    agreement: Agreement
    why: str
    metrics: tuple[MetricPair, ...]
    differences: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON's own types; infinite differences as text."""
        return {
            "verdict": str(self.agreement),
            "why": self.why,
            "metrics": [
                {
                    "name": pair.name,
                    "first": pair.first,
                    "again": pair.again,
                    "difference": pair.difference if math.isfinite(pair.difference) else "infinite",
                }
                for pair in self.metrics
            ],
            "differences": [{"name": d.name, "first": d.first, "again": d.again} for d in self.differences],
        }


def compare(first: Outcome, again: Outcome, *, rtol: float = RTOL) -> Comparison:
    """Bitwise: the same model bytes and exactly the same metrics. Within tolerance: every metric of either
    run is in both and differs by at most `rtol`, relatively. Diverged: anything else, also when there is
    nothing to compare.
    """
    names = sorted({*first.metrics, *again.metrics})
    pairs = tuple(_pair(name, first.metrics.get(name), again.metrics.get(name)) for name in names)
    differences = tuple(
        Difference(name, first.fingerprint.get(name), again.fingerprint.get(name))
        for name in sorted({*first.fingerprint, *again.fingerprint})
        if first.fingerprint.get(name) != again.fingerprint.get(name)
    )
    same_model = bool(first.model_digest) and first.model_digest == again.model_digest
    worst = max(pairs, key=lambda pair: pair.difference, default=None)
    if worst is None:
        return Comparison(
            Agreement.DIVERGED, "no metrics to compare: no evidence is not agreement", pairs, differences
        )
    if same_model and worst.difference == 0:
        return Comparison(
            Agreement.BITWISE, "the same model, byte for byte, and the same metrics", pairs, differences
        )
    if worst.difference <= rtol:
        how = "the same model" if same_model else "another model"
        why = f"{how}; metrics differ by at most {worst.difference:.1e} ({worst.name}), allowed {rtol:g}"
        return Comparison(Agreement.WITHIN, why, pairs, differences)
    why = f"{worst.name} was {_shown(worst.first)} and is {_shown(worst.again)}"
    if differences:
        why += f"; different: {', '.join(d.name for d in differences)}"
    return Comparison(Agreement.DIVERGED, why, pairs, differences)


def fingerprint(context: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fingerprint in a run's recorded context; empty where the context is older than fingerprints."""
    found = context.get("fingerprint", {})
    return found if isinstance(found, Mapping) else {}


def _pair(name: str, first: float | None, again: float | None) -> MetricPair:
    if first is None or again is None:
        return MetricPair(name, first, again, math.inf)
    if first == again or (math.isnan(first) and math.isnan(again)):
        return MetricPair(name, first, again, 0.0)
    difference = abs(first - again) / max(abs(first), abs(again))
    return MetricPair(name, first, again, math.inf if math.isnan(difference) else difference)


def _shown(value: float | None) -> str:
    return "missing" if value is None else f"{value:.8g}"
