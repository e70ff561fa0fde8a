"""What deserves a person's attention, and when it no longer does. Pure.

Tiers: P0 the model does not answer, P1 stand-ins answer for it, quality has dropped, an incident stands on the data it
is made of, approvals were passed over or a bundle's bytes have changed, P2 features or predictions have drifted, or
features break their rules. One condition has at most one standing alert: while it lasts, the alert's detail is renewed;
when it ends, the alert is resolved; if it comes back, that is a new alert.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from loopwright.kernel.clock import iso


class Tier(StrEnum):
    P0 = "P0"
    P1 = "P1"
    P2 = "P2"


class Kind(StrEnum):
    UNAVAILABLE = "unavailable"
    DEGRADED = "degraded"
    SLOW = "slow"
    QUALITY = "quality"
    DRIFT = "drift"
    PREDICTION = "prediction"
    FEATURE = "feature"
    DATA = "data"
    BROKEN_GLASS = "broken_glass"
    REVIEW = "review"
    INTEGRITY = "integrity"


TIERS = {
    Kind.UNAVAILABLE: Tier.P0, Kind.DEGRADED: Tier.P1, Kind.SLOW: Tier.P1,
    Kind.QUALITY: Tier.P1, Kind.DRIFT: Tier.P2,
    Kind.PREDICTION: Tier.P2, Kind.FEATURE: Tier.P2, Kind.DATA: Tier.P1,
    Kind.BROKEN_GLASS: Tier.P1, Kind.REVIEW: Tier.P1, Kind.INTEGRITY: Tier.P1,
}  # fmt: skip
GOVERNANCE = (Kind.BROKEN_GLASS, Kind.REVIEW, Kind.INTEGRITY)
"""Kinds that say nothing about how well the model answers: approvals passed over, a late review, changed bytes."""


class AlertState(StrEnum):
    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Raised:
    """A condition that holds, first seen at `event_time` (event time)."""

    kind: Kind
    version: int
    event_time: datetime
    title: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cleared:
    """A condition that surely does not hold (no data is not that)."""

    kind: Kind
    event_time: datetime
    why: str


Condition = Raised | Cleared


@dataclass(frozen=True, slots=True)
class Alert:
    """A recorded alert. `key` is unique per model and names the condition and when it began."""

    id: str
    model: str
    version: int | None
    tier: Tier
    kind: Kind
    key: str
    title: str
    detail: Mapping[str, Any]
    event_time: datetime
    opened_at: datetime
    state: AlertState
    by: str | None
    changed_at: datetime

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "model": self.model,
            "version": self.version,
            "tier": self.tier.value,
            "kind": self.kind.value,
            "key": self.key,
            "title": self.title,
            "detail": dict(self.detail),
            "event_time": iso(self.event_time),
            "opened_at": iso(self.opened_at),
            "state": self.state.value,
            "by": self.by,
            "changed_at": iso(self.changed_at),
        }


@dataclass(frozen=True, slots=True)
class Open:
    """Open a new alert."""

    raised: Raised
    key: str


@dataclass(frozen=True, slots=True)
class Renew:
    """Say what a standing alert's condition looks like now."""

    alert: Alert
    raised: Raised


@dataclass(frozen=True, slots=True)
class Resolve:
    """End a standing alert."""

    alert: Alert
    why: str


Change = Open | Renew | Resolve


def changes(standing: Sequence[Alert], conditions: Sequence[Condition]) -> list[Change]:
    """What to do about `conditions`, given the alerts of the model that are not resolved.

    A kind without a condition is left as it is: not knowing is neither good nor bad.
    """
    by_kind = {alert.kind: alert for alert in standing if alert.state is not AlertState.RESOLVED}
    decided: list[Change] = []
    for condition in conditions:
        alert = by_kind.get(condition.kind)
        match condition:
            case Raised() if alert is None:
                decided.append(Open(condition, f"{condition.kind}@{iso(condition.event_time)}"))
            case Raised() if alert is not None:
                if (condition.title, condition.version) != (alert.title, alert.version):
                    decided.append(Renew(alert, condition))
            case Cleared() if alert is not None:
                decided.append(Resolve(alert, condition.why))
    return decided
