"""Times in which nothing is promoted: once, or every week in hours of a time zone. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any

from loopwright.kernel.clock import iso, parse_time
from loopwright.kernel.stage import Stage
from loopwright.project.policy import DAYS, read_hour, read_zone

_A_YEAR = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class Frozen:
    """It is frozen now: until when, and why."""

    until: datetime
    why: str


@dataclass(frozen=True, slots=True)
class Once:
    """From one moment until another, which is not in it."""

    start: datetime
    until: datetime

    def around(self, moment: datetime) -> datetime | None:
        """When the freeze that holds at `moment` ends; None when none does."""
        return self.until if self.start <= moment < self.until else None


@dataclass(frozen=True, slots=True)
class Weekly:
    """On some days of every week, in hours of `zone`; `until` not after `start`, or None, is the next day's.

    Where a clock change makes an hour happen twice or never, the freeze is the longer of the two readings.
    """

    days: frozenset[int]
    start: time
    until: time | None
    zone: tzinfo

    def around(self, moment: datetime) -> datetime | None:
        """When the freeze that holds at `moment` ends; None when none does."""
        ends = [until for start, until in self._near(moment) if start <= moment < until]
        return max(ends, default=None)

    def _near(self, moment: datetime) -> Iterator[tuple[datetime, datetime]]:
        today = moment.astimezone(self.zone).date()
        for day in (today - timedelta(days=1), today):
            if day.weekday() not in self.days:
                continue
            end = self.until or time()
            last = day if self.until is not None and self.until > self.start else day + timedelta(days=1)
            yield min(self._readings(day, self.start)), max(self._readings(last, end))

    def _readings(self, day: date, hour: time) -> list[datetime]:
        local = datetime.combine(day, hour)
        return [local.replace(fold=fold, tzinfo=self.zone).astimezone(UTC) for fold in (0, 1)]


@dataclass(frozen=True, slots=True)
class Window:
    """A freeze as a policy states it: the stages it is for, when, and why."""

    stages: tuple[str, ...]
    when: Once | Weekly
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """The inverse of `window_of`."""
        shared = {"stages": list(self.stages), "why": self.why}
        if isinstance(self.when, Once):
            return {"from": iso(self.when.start), "until": iso(self.when.until), **shared}
        end = f"{self.when.until:%H:%M}" if self.when.until is not None else "24:00"
        days = [DAYS[day] for day in sorted(self.when.days)]
        return {
            "from": f"{self.when.start:%H:%M}", "until": end, "days": days, "zone": str(self.when.zone), **shared,
        }  # fmt: skip


def window_of(document: Mapping[str, Any]) -> Window:
    """Read one item of a policy's `freeze` that `project.policy` has let through."""
    when: Once | Weekly
    if document.get("days"):
        hour = read_hour(str(document["from"]))
        assert hour is not None  # "24:00" begins no freeze
        days = frozenset(DAYS.index(day) for day in document["days"])
        zone = read_zone(str(document.get("zone", "UTC")))
        when = Weekly(days, hour, read_hour(str(document["until"])), zone)
    else:
        when = Once(parse_time(str(document["from"])), parse_time(str(document["until"])))
    stages = tuple(sorted(document.get("stages") or ("production",)))
    return Window(stages, when, str(document.get("why", "")))


def frozen(windows: Sequence[Window], stage: Stage, now: datetime) -> Frozen | None:
    """Whether `stage` is frozen at `now`, and until when; windows that follow one another are one freeze.

    A freeze that never ends (every hour of the week) is said to end a year from now: then it is asked again.
    """
    here = [window for window in windows if stage.value.lower() in window.stages]
    until, why = now, ""
    while until - now < _A_YEAR:
        holding = [(end, window) for window in here if (end := window.when.around(until)) is not None]
        if not holding:
            break
        end, window = max(holding, key=lambda held: held[0])
        until, why = end, why or window.why
    return Frozen(until, why) if until > now else None
