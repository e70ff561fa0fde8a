"""Decides whether a trigger may start a training run. Pure: the same evidence gives the same decision.

Drift alone is a reason to look, not to train: a model may be as good as ever on moved data, and without fresh
labels it could not learn what moved. A confirmed loss of quality, or enough fresh labels, makes it a reason
to train.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from loopwright.kernel.clock import format_duration
from loopwright.kernel.errors import BadInput

WEEK = timedelta(weeks=1)


class Cause(StrEnum):
    PERSON = "person"
    CONTRACT_BROKEN = "contract broken"
    QUALITY_DROP = "quality drop"
    SOURCE_CHANGE = "source change"
    DRIFT = "drift"
    SCHEDULE = "schedule"


@dataclass(frozen=True, slots=True)
class Trigger:
    """Something that happened, decided on at `at` (event time). `key` is equal for the same cause on the same
    data.

    `story` is what a person reads as the reason. `fresh_labels`: labels that the newest version was not
    trained on.
    """

    cause: Cause
    at: datetime
    key: str
    story: str
    fresh_labels: int = 0
    confirmed_loss: bool = False
    new_data: bool = False


@dataclass(frozen=True, slots=True)
class Past:
    """A trigger that led to a run, at `at` in event time."""

    key: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Run:
    why: str
    rule: str = "run"


@dataclass(frozen=True, slots=True)
class Suppress:
    """Not now. The same trigger may be decided otherwise when the evidence has changed."""

    why: str
    rule: str


@dataclass(frozen=True, slots=True)
class AskPerson:
    why: str
    rule: str


Decision = Run | Suppress | AskPerson


@dataclass(frozen=True, slots=True)
class Policy:
    """`enough_labels`: fresh labels that make retraining on drift alone worth while."""

    cooldown: timedelta
    runs_per_week: int
    enough_labels: int = 1000

    def __post_init__(self) -> None:
        if self.runs_per_week < 1:
            raise BadInput(
                "a budget without a single run",
                where="retraining.budget.runs_per_week",
                got=self.runs_per_week,
                wanted="at least 1",
                next="To switch retraining off, remove the `retraining` section.",
            )


def decide(trigger: Trigger, past: Sequence[Past], policy: Policy) -> Decision:
    """Decide on `trigger`, given the triggers that led to runs before it, in any order.

    A broken contract never trains: a model must not learn from data nobody vouches for. A person's word
    overrides the cooldown and the budget.
    """
    if trigger.cause is Cause.PERSON:
        return Run(trigger.story)
    if trigger.cause is Cause.CONTRACT_BROKEN:
        return AskPerson(f"{trigger.story}; training on such data needs a person's word", "contract")
    if any(earlier.key == trigger.key for earlier in past):
        return Suppress("this cause on this data has been answered already", "answered")

    # A replay may be reset: what lies in the future of this trigger says nothing about it.
    since = [trigger.at - earlier.at for earlier in past if earlier.at <= trigger.at]
    if since and min(since) < policy.cooldown:
        left = format_duration(policy.cooldown - min(since))
        return Suppress(f"cooling down for {left} more after the last run", "cooldown")
    if sum(gap < WEEK for gap in since) >= policy.runs_per_week:
        return AskPerson(
            f"{trigger.story}; the budget of {policy.runs_per_week} runs a week is spent", "budget"
        )
    return _on_evidence(trigger, policy)


def _on_evidence(trigger: Trigger, policy: Policy) -> Decision:
    fresh = f"{trigger.fresh_labels:,} fresh labels"
    if trigger.cause is Cause.DRIFT:
        if trigger.confirmed_loss:
            return Run(f"{trigger.story}; the loss of quality is confirmed on labels")
        if trigger.fresh_labels < policy.enough_labels:
            return Suppress(
                f"{trigger.story}; evaluate: no loss of quality is confirmed, and {fresh} of the "
                f"{policy.enough_labels:,} wanted have come",
                "evaluate",
            )
        return Run(f"{trigger.story}; {fresh} to learn from")
    if trigger.cause is Cause.SCHEDULE and not trigger.fresh_labels and not trigger.new_data:
        return Suppress(f"{trigger.story}; but nothing new to learn from", "nothing new")
    return Run(f"{trigger.story}; {fresh}" if trigger.fresh_labels else trigger.story)
