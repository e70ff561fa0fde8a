"""Freezes: once and weekly, in the hours of a zone, over changes of the clock."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.clock import parse_time
from loopwright.kernel.stage import Stage
from loopwright.registry.freeze import Frozen, frozen, window_of

BERLIN = ZoneInfo("Europe/Berlin")
NIGHT = {"days": ["fri"], "from": "17:00", "until": "08:00", "zone": "Europe/Berlin"}


def until(moment: str | datetime, *items: dict[str, Any], stage: Stage = Stage.PRODUCTION) -> datetime | None:
    now = parse_time(moment) if isinstance(moment, str) else moment
    found = frozen([window_of(item) for item in items], stage, now)
    return found.until if found else None


def local(text: str, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).astimezone(UTC)


def test_once_holds_from_its_first_moment_and_not_at_its_last() -> None:
    item = {"from": "2013-12-20T00:00:00Z", "until": "2014-01-06T00:00:00Z", "why": "year end"}
    assert until("2013-12-19T23:59:59Z", item) is None
    found = frozen([window_of(item)], Stage.PRODUCTION, parse_time("2013-12-20T00:00:00Z"))
    assert found == Frozen(parse_time("2014-01-06T00:00:00Z"), "year end")
    assert until("2014-01-06T00:00:00Z", item) is None


def test_a_freeze_is_for_its_stages_only() -> None:
    item = {"from": "2013-12-20T00:00:00Z", "until": "2014-01-06T00:00:00Z", "stages": ["staging"]}
    assert until("2013-12-24T00:00:00Z", item) is None
    assert until("2013-12-24T00:00:00Z", item, stage=Stage.STAGING) is not None


def test_a_weekly_freeze_goes_on_past_midnight() -> None:
    friday = local("2013-07-05T17:00")
    assert until(friday - timedelta(seconds=1), NIGHT) is None
    assert until(friday, NIGHT) == until(local("2013-07-06T03:00"), NIGHT) == local("2013-07-06T08:00")
    assert until(local("2013-07-06T08:00"), NIGHT) is None
    assert until(local("2013-07-06T17:00"), NIGHT) is None, "saturday evening is free"


def test_days_that_follow_one_another_are_one_freeze() -> None:
    weekend = {"days": ["sat", "sun"], "from": "00:00", "until": "24:00", "zone": "Europe/Berlin"}
    assert until(local("2013-07-06T10:00"), weekend) == local("2013-07-08T00:00")


def test_the_hours_are_those_of_the_zone_in_summer_and_in_winter() -> None:
    summer, winter = parse_time("2013-07-05T15:30:00Z"), parse_time("2013-12-06T15:30:00Z")
    assert until(summer, NIGHT) == parse_time("2013-07-06T06:00:00Z"), "17:30 in Berlin"
    assert until(winter, NIGHT) is None, "16:30 in Berlin"


def test_an_hour_that_does_not_exist_lengthens_the_freeze() -> None:
    # 2013-03-31: 02:00 becomes 03:00. "until 02:30" was never shown by a clock there.
    item = {"days": ["sun"], "from": "00:00", "until": "02:30", "zone": "Europe/Berlin"}
    assert until("2013-03-31T00:00:00Z", item) == parse_time("2013-03-31T01:30:00Z")
    begins = {"days": ["sun"], "from": "02:30", "until": "12:00", "zone": "Europe/Berlin"}
    assert until("2013-03-31T00:30:00Z", begins) == parse_time("2013-03-31T10:00:00Z")


def test_an_hour_that_comes_twice_lengthens_the_freeze() -> None:
    # 2013-10-27: 03:00 becomes 02:00; 02:30 is shown at 00:30Z and at 01:30Z.
    item = {"days": ["sun"], "from": "00:00", "until": "02:30", "zone": "Europe/Berlin"}
    assert until("2013-10-27T00:45:00Z", item) == parse_time("2013-10-27T01:30:00Z")
    begins = {"days": ["sun"], "from": "02:30", "until": "12:00", "zone": "Europe/Berlin"}
    assert until("2013-10-27T00:30:00Z", begins) is not None


def test_a_freeze_without_end_is_told_to_end_far_from_now() -> None:
    always = {"days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], "from": "00:00", "until": "24:00"}
    now = parse_time("2013-07-05T12:00:00Z")
    end = until(now, always)
    assert end is not None and end - now > timedelta(days=360)


@given(
    st.datetimes(datetime(2012, 1, 1), datetime(2016, 1, 1)),
    st.sampled_from(["Europe/Berlin", "America/New_York"]),
)
def test_when_a_freeze_ends_it_is_over(moment: datetime, zone: str) -> None:
    item = {"days": ["mon", "thu", "sun"], "from": "22:00", "until": "02:15", "zone": zone}
    end = until(moment.replace(tzinfo=UTC), item)
    assert end is None or until(end, item) is None
