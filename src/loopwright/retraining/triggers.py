"""Turns what is known about a model into triggers. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from loopwright.kernel.clock import format_duration, iso
from loopwright.monitoring.alerts import Alert, Kind
from loopwright.retraining.policy import Cause, Trigger

MAJOR = 0.2
"""A batch of at least this share of the rows its table had before is a major change of the source."""


@dataclass(frozen=True, slots=True)
class Landed:
    """A batch that came after the newest version was trained. `before`: rows its table had until then."""

    table: str
    batch: str
    rows: int
    before: int

    @property
    def major(self) -> bool:
        return self.rows >= MAJOR * self.before


@dataclass(frozen=True, slots=True)
class Broken:
    """A batch that its contract refused, after the newest version was trained."""

    table: str
    batch: str
    why: str


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known about a model at event time `at`.

    `learned_until`: up to when (event time) the newest version, or the newest run, has seen data.
    """

    at: datetime
    learned_until: datetime
    alerts: Sequence[Alert] = ()
    landed: Sequence[Landed] = ()
    broken: Sequence[Broken] = ()
    fresh_labels: int = 0


def triggers(situation: Situation, *, every: timedelta | None, on: Sequence[str]) -> list[Trigger]:
    """The triggers of a situation, the gravest cause first. A broken contract is told whatever `on` says.

    `every`: the schedule's length, None without one. `on`: those of drift, quality_drop, source_change to
    heed.
    """
    standing = {alert.kind: alert for alert in situation.alerts}
    loss = Kind.QUALITY in standing
    found = [
        Trigger(
            Cause.CONTRACT_BROKEN,
            situation.at,
            f"contract:{broken.table}:{broken.batch}",
            f"{broken.table} broke its contract: {broken.why}",
        )
        for broken in situation.broken
    ]

    def of(cause: Cause, key: str, story: str) -> Trigger:
        return Trigger(
            cause,
            situation.at,
            key,
            story,
            situation.fresh_labels,
            confirmed_loss=loss,
            new_data=bool(situation.landed),
        )

    if "quality_drop" in on and loss:
        alert = standing[Kind.QUALITY]
        found.append(of(Cause.QUALITY_DROP, f"quality:{alert.id}:v{alert.version}", alert.title))
    if "source_change" in on:
        found += [
            of(
                Cause.SOURCE_CHANGE,
                f"source:{landed.table}:{landed.batch}",
                f"{landed.rows:,} new rows in {landed.table}, which had {landed.before:,}",
            )
            for landed in situation.landed
            if landed.major
        ]
    if "drift" in on:
        found += [
            of(Cause.DRIFT, f"{kind}:{standing[kind].id}:v{standing[kind].version}", standing[kind].title)
            for kind in (Kind.DRIFT, Kind.PREDICTION)
            if kind in standing
        ]
    if every is not None and situation.at - situation.learned_until >= every:
        due = situation.learned_until + every
        found.append(
            of(
                Cause.SCHEDULE,
                f"schedule:{iso(due)}",
                f"{format_duration(every)} have passed since {situation.learned_until:%Y-%m-%d}, "
                "up to which the model has learned",
            )
        )
    return found
