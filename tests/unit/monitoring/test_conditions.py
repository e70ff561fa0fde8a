from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from loopwright.kernel.verdict import Verdict
from loopwright.monitoring.alerts import Cleared, Kind, Raised
from loopwright.monitoring.conditions import (
    drift_condition,
    latency_conditions,
    prediction_condition,
    quality_condition,
)
from loopwright.monitoring.windows import StableHour, Window
from loopwright.stats.histogram import LatencyHistogram
from loopwright.stats.profile import PREDICTION

MONDAY = datetime(2013, 7, 1, tzinfo=UTC)
WEEK = timedelta(days=7)


@dataclass(frozen=True)
class Week:
    """A judged week of quality; expected is 0.75, and below 0.7 is bad."""

    number: int
    value: float
    version: int = 2
    payload: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "payload", {"metric": "roc_auc", "value": self.value, "expected": 0.75})

    @property
    def window(self) -> Window:
        return Window(MONDAY + self.number * WEEK, MONDAY + (self.number + 1) * WEEK)

    @property
    def verdict(self) -> Verdict:
        return Verdict.FAIL if self.value < 0.7 else Verdict.PASS


def weeks(*values: float) -> list[Week]:
    return [Week(number, value) for number, value in enumerate(values)]


def test_one_bad_week_raises_nothing() -> None:
    assert not isinstance(quality_condition(weeks(0.75, 0.75, 0.60)), Raised)


def test_two_bad_weeks_of_three_raise_and_tell_the_newest_bad_one() -> None:
    raised = quality_condition(weeks(0.65, 0.60, 0.80))
    assert isinstance(raised, Raised)
    assert raised.title.startswith(
        "roc_auc is 0.6000, 20.0% worse than the 0.7500 expected (bad in 2 of the last 3"
    )


def test_good_weeks_clear_it() -> None:
    assert isinstance(quality_condition(weeks(0.60, 0.75, 0.76)), Cleared)


@dataclass(frozen=True)
class DriftWeek(Week):
    """A judged week of drift in one column; `value` is its PSI, None: too few rows."""

    column: str = "temp"

    def __post_init__(self) -> None:
        level = "unknown" if self.value < 0 else "alarm" if self.value > 0.25 else "quiet"
        object.__setattr__(
            self, "payload", {"columns": {self.column: {"corrected": self.value, "level": level}}}
        )


def test_a_drift_alert_tells_the_newest_week_that_moved_also_when_weeks_say_nothing() -> None:
    raised = drift_condition([DriftWeek(n, psi) for n, psi in enumerate([-1.0, 0.9, 0.7, 0.01])])
    assert isinstance(raised, Raised)
    assert "temp (PSI 0.70)" in raised.title


def test_a_prediction_alert_tells_the_newest_week_that_moved() -> None:
    weeks = [DriftWeek(n, psi, column=PREDICTION) for n, psi in enumerate([0.9, -1.0, 0.7, 0.01])]
    raised = prediction_condition(weeks)
    assert isinstance(raised, Raised)
    assert raised.title.endswith("(PSI 0.70)")


def timed(*milliseconds: float) -> StableHour:
    latency = LatencyHistogram()
    latency.add([1000 * each for each in milliseconds])
    return StableHour(MONDAY, 4, len(milliseconds), 0, 0, latency)


def test_predictions_that_break_the_promised_p99_alone_are_an_alert() -> None:
    (raised,) = latency_conditions([timed(*[5] * 960, *[250] * 40)], 100)
    assert isinstance(raised, Raised)
    assert (raised.kind, raised.version) == (Kind.SLOW, 4)
    assert raised.title == "4.0% of predictions took over 100 ms (40 of 1000), 1% is promised at most"


@pytest.mark.parametrize(
    ("hours", "cleared"),
    [
        ([timed(*[5] * 299, 250)], True),  # 0.3 %: kept
        ([timed(*[5] * 200, *[250] * 90)], False),  # too few to say
        ([timed(*[5] * 394, *[250] * 6)], False),  # 1.5 % of 400: it may be chance
        ([timed(*[250] * 500), timed(*[5] * 500)], True),  # the newest hours count
    ],
)
def test_a_promise_is_broken_only_beyond_chance(hours: list[StableHour], cleared: bool) -> None:
    assert [type(each) for each in latency_conditions(hours, 100)] == ([Cleared] if cleared else [])
