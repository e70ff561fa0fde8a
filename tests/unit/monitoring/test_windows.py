import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.verdict import Verdict
from loopwright.monitoring.labels import Outcomes
from loopwright.monitoring.windows import (
    QualityLimits,
    Window,
    complete_windows,
    judge_quality,
    labels_are_in,
    sustained,
    window_of,
)
from loopwright.stats.metrics import METRICS

MONDAY = datetime(2013, 4, 1, tzinfo=UTC)
DAY, WEEK, HOUR = timedelta(days=1), timedelta(weeks=1), timedelta(hours=1)
moments = st.datetimes(datetime(1990, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))
lengths = st.timedeltas(timedelta(minutes=1), timedelta(days=40))


@given(moments, lengths)
def test_every_moment_lies_in_one_window_of_whole_hours(moment: datetime, length: timedelta) -> None:
    window = window_of(moment, length)
    assert window.start <= moment < window.end
    assert (window.end - window.start) % HOUR == timedelta()
    assert length <= window.end - window.start < length + HOUR
    assert window_of(window.end, length).start == window.end


def test_weeks_begin_on_mondays() -> None:
    assert window_of(datetime(2013, 4, 4, 15, tzinfo=UTC), WEEK) == Window(MONDAY, MONDAY + WEEK)


def test_a_window_is_complete_when_lateness_has_passed() -> None:
    assert complete_windows(MONDAY, MONDAY + DAY + HOUR - timedelta(seconds=1), DAY, HOUR) == []
    assert complete_windows(MONDAY, MONDAY + 3 * DAY, DAY, HOUR) == [
        Window(MONDAY, MONDAY + DAY),
        Window(MONDAY + DAY, MONDAY + 2 * DAY),
    ]


@pytest.mark.parametrize(
    ("bad", "answer"),
    [
        ("", None), ("1", None), ("0", None), ("11", True), ("01", None), ("10", None), ("101", True),
        ("00", False), ("100", False), ("010", None), ("11000", False), ("0011", True),
    ],
)  # fmt: skip
def test_two_bad_windows_of_three_raise_and_two_good_ones_in_a_row_clear(
    bad: str, answer: bool | None
) -> None:
    assert sustained([each == "1" for each in bad]) is answer


def outcome(n: int, skill: float, seed: int = 1) -> Outcomes:
    random = np.random.default_rng(seed)
    p = random.random(n)
    y = (random.random(n) < 0.5 + skill * (p - 0.5)).astype(float)
    return Outcomes(n, y, p[:, None])


def limits(expected: float | None, metric: str = "roc_auc") -> QualityLimits:
    return QualityLimits(METRICS[metric], expected, 0.05)


def test_a_drop_beyond_the_limit_that_is_no_chance_fails() -> None:
    judged = judge_quality(outcome(3000, 0.4), limits(0.75))
    assert judged.verdict is Verdict.FAIL
    assert judged.limit == pytest.approx(0.7125)
    assert judged.low < judged.value < judged.high < 0.75
    assert judge_quality(outcome(3000, 0.85), limits(0.75)).verdict is Verdict.PASS


def test_a_drop_that_may_be_chance_is_inconclusive() -> None:
    judged = judge_quality(outcome(500, 0.76), QualityLimits(METRICS["roc_auc"], 0.78, 0.02))
    assert judged.limit is not None
    assert judged.value < judged.limit < 0.78 < judged.high
    assert judged.verdict is Verdict.INCONCLUSIVE
    assert "chance" in judged.why


def test_windows_of_an_unchanged_model_seldom_fail() -> None:
    expected = METRICS["roc_auc"](*(lambda o: (o.y, o.p))(outcome(200_000, 0.8)))
    failed = sum(
        judge_quality(outcome(600, 0.8, seed), limits(expected)).verdict is Verdict.FAIL for seed in range(60)
    )
    assert failed <= 6


def test_an_error_may_rise_no_more_than_the_limit() -> None:
    random = np.random.default_rng(1)
    y = random.normal(size=1000)
    worse = Outcomes(1000, y, (y + random.normal(0, 2.0, 1000))[:, None])
    assert judge_quality(worse, limits(1.0, "rmse")).verdict is Verdict.FAIL
    assert judge_quality(worse, limits(2.5, "rmse")).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (outcome(499, 0.0), 0.75),
        (Outcomes(0, np.empty(0), np.empty((0, 1))), 0.75),
        (Outcomes(600, np.ones(600), np.random.default_rng(1).random((600, 1))), 0.75),
        (outcome(3000, 0.0), None),
    ],
)
def test_too_little_to_go_by_gives_no_verdict(what: Outcomes, expected: float | None) -> None:
    judged = judge_quality(what, limits(expected))
    assert judged.verdict is Verdict.INCONCLUSIVE
    assert not any(isinstance(value, float) and math.isnan(value) for value in judged.to_json().values())


def test_labels_are_in_at_nine_tenths_or_after_a_month() -> None:
    window = Window(MONDAY, MONDAY + WEEK)
    full, half = (
        Outcomes(1000, np.zeros(900), np.zeros((900, 1))),
        Outcomes(1000, np.zeros(500), np.zeros((500, 1))),
    )
    soon, late = window.end + DAY, window.end + timedelta(days=31)
    assert labels_are_in(full, window, soon, HOUR)
    assert not labels_are_in(half, window, soon, HOUR)
    assert labels_are_in(half, window, late, HOUR)
