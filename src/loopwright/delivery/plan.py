"""What a rollout will do, fixed when it starts: strategy, steps, limits. Stored with the rollout as JSON."""

import itertools
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any

from loopwright.delivery.judge import Limits
from loopwright.kernel.clock import format_duration, parse_duration
from loopwright.kernel.errors import BadInput
from loopwright.project.sections import Delivery


class Strategy(StrEnum):
    CANARY = "canary"
    BLUE_GREEN = "blue_green"
    SHADOW = "shadow"
    INSTANT = "instant"


class Require(StrEnum):
    """What a step needs, beyond its hold, before the next one.

    no_harm: the judge does not say FAIL and the arm answered the plan's minimum of requests. pass: the judge
    says PASS.
    """

    NO_HARM = "no_harm"
    PASS = "pass"


@dataclass(frozen=True, slots=True)
class Step:
    """Give the canary `weight` (0 < weight <= 1) of the requests for at least `hold` of event time."""

    weight: float
    hold: timedelta = timedelta()
    require: Require = Require.NO_HARM

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise BadInput(
                "not a share of traffic",
                where="delivery.steps.weight",
                got=self.weight,
                wanted='more than 0 % and at most 100 %, like "5%"',
            )
        if self.hold < timedelta():
            raise BadInput("a hold cannot be negative", where="delivery.steps.hold", got=str(self.hold))


_BAKE = timedelta(hours=1)

DEFAULT_STEPS = (
    Step(0.01, timedelta(hours=1)),
    Step(0.05, timedelta(hours=4)),
    Step(0.25, timedelta(hours=24), Require.PASS),
    Step(1.0),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """A rollout from first copy to all traffic.

    shadow_first   hold in shadow before any user sees an answer; zero = no shadow
    shadow_share   share of requests copied to the shadow arm (a copy: users are always answered by stable)
    min_requests   requests a step must have seen, besides its hold, before `no_harm` holds. 20 is the
                   smallest count at which a candidate that fails for one request in seven shows itself with
                   95 % certainty (1 - (6/7)^20); fewer would let a step pass on silence.
    not_judged     business metrics the project limits: an experiment over users can judge them, a canary at a
                   few percent cannot; named here so that nobody takes the canary's PASS for theirs
    """

    strategy: Strategy = Strategy.CANARY
    shadow_first: timedelta = timedelta()
    shadow_share: float = 1.0
    steps: tuple[Step, ...] = DEFAULT_STEPS
    limits: Limits = field(default_factory=Limits)
    min_requests: int = 20
    alpha: float = 0.05
    not_judged: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        weights = [step.weight for step in self.steps]
        if not weights or weights[-1] != 1.0:
            raise BadInput(
                "a rollout must say how it ends",
                where="delivery.steps",
                got=_percents(weights),
                wanted="a last step of weight 100%",
            )
        if any(later <= earlier for earlier, later in itertools.pairwise(weights)):
            raise BadInput(
                "steps must grow",
                where="delivery.steps",
                got=_percents(weights),
                wanted="each weight above the one before, like 1%, 5%, 25%, 100%",
            )
        if self.min_requests < 1:
            raise BadInput(
                "no evidence is never a pass",
                where="delivery.min_requests",
                got=self.min_requests,
                wanted="at least 1",
            )
        if not 0 < self.shadow_share <= 1:
            raise BadInput(
                "not a share of requests",
                where="delivery.shadow_share",
                got=self.shadow_share,
                wanted="more than 0 and at most 1",
            )
        if not 0 < self.alpha < 0.5:
            raise BadInput(
                "not an error probability", where="delivery.alpha", got=self.alpha, wanted="between 0 and 0.5"
            )

    @classmethod
    def from_spec(cls, delivery: Delivery) -> "Plan":
        """Read the parsed `delivery` section of loop.yaml (project.sections.Delivery)."""
        strategy = Strategy(str(delivery.strategy))
        rollback = delivery.rollback
        limits = Limits(
            error_rate=rollback.error_rate if rollback.error_rate is not None else Limits().error_rate,
            latency_p99=rollback.latency_p99,
        )
        steps = tuple(
            Step(step.weight, step.hold or timedelta(), Require(str(step.require))) for step in delivery.steps
        )
        if strategy is Strategy.BLUE_GREEN:
            # Blue-green switches once. Its last step says how long green bakes with blue kept loaded; without
            # a bake the first bad hour could not be rolled back by itself.
            steps = (Step(1.0, steps[-1].hold or _BAKE, steps[-1].require),)
        return cls(
            strategy=strategy,
            shadow_first=delivery.shadow_first or timedelta(),
            steps=steps,
            limits=limits,
            min_requests=delivery.min_requests,
            not_judged=tuple(rollback.business),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "strategy": self.strategy.value,
            "shadow_first": format_duration(self.shadow_first),
            "shadow_share": self.shadow_share,
            "steps": [
                {"weight": s.weight, "hold": format_duration(s.hold), "require": s.require.value}
                for s in self.steps
            ],
            "limits": {
                "error_rate": self.limits.error_rate,
                "latency_p99": self.limits.latency_p99,
                "latency_floor_us": self.limits.latency_floor_us,
            },
            "min_requests": self.min_requests,
            "alpha": self.alpha,
            "not_judged": list(self.not_judged),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Plan":
        """The inverse of `to_json`."""
        return cls(
            strategy=Strategy(data["strategy"]),
            shadow_first=parse_duration(data["shadow_first"]),
            shadow_share=data["shadow_share"],
            steps=tuple(
                Step(s["weight"], parse_duration(s["hold"]), Require(s["require"])) for s in data["steps"]
            ),
            limits=Limits(**data["limits"]),
            min_requests=data["min_requests"],
            alpha=data["alpha"],
            not_judged=tuple(data["not_judged"]),
        )


def _percents(weights: list[float]) -> str:
    return ", ".join(f"{100 * weight:g}%" for weight in weights) or "no steps"
