from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.clock import format_duration, from_us, iso, parse_duration, parse_time, to_us, utc_now
from loopwright.kernel.errors import BadInput

moments = st.datetimes(
    datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.timezones() | st.just(UTC), allow_imaginary=False
)
durations = st.timedeltas(min_value=timedelta(), max_value=timedelta(days=40_000))


@given(moments)
def test_microseconds_keep_the_moment(moment: datetime) -> None:
    # In UTC: Python finds a moment of a repeated local hour equal to nothing of another zone.
    assert from_us(to_us(moment)) == moment.astimezone(UTC)


@given(moments)
def test_iso_text_keeps_the_moment_and_is_in_utc(moment: datetime) -> None:
    try:
        text = iso(moment)
    except OverflowError:  # year 0 or 10000 in UTC
        return
    assert text.endswith("Z")
    assert parse_time(text) == moment.astimezone(UTC)


@given(durations)
def test_a_duration_reads_back_as_it_was_written(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("6h", timedelta(hours=6)),
        ("1d", timedelta(days=1)),
        ("2w", timedelta(weeks=2)),
        ("7y", timedelta(days=2556, hours=18)),
        ("1h30m", timedelta(minutes=90)),
        ("1.5h", timedelta(minutes=90)),
        ("250ms", timedelta(milliseconds=250)),
        (" 1 D ", timedelta(days=1)),
    ],
)
def test_durations_are_read_as_people_write_them(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration


@pytest.mark.parametrize(
    "text", ["", "6", "h", "6 hours", "-1h", "1h!", "1h 2", "9" * 30 + "y", "١h" * 2 + "x"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_duration(text)


@pytest.mark.parametrize("text", ["2013-04-01T05:00:00", "2013-04-01", "yesterday", ""])
def test_a_time_without_a_zone_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_time(text)


def test_a_naive_datetime_is_refused() -> None:
    with pytest.raises(BadInput, match="without a zone"):
        to_us(datetime(2013, 4, 1))


def test_an_offset_is_taken_into_account() -> None:
    assert parse_time("2013-04-01T01:00:00-04:00") == datetime(2013, 4, 1, 5, tzinfo=UTC)
    assert iso(datetime(2013, 4, 1, 1, tzinfo=timezone(timedelta(hours=-4)))) == "2013-04-01T05:00:00Z"


def test_the_wall_clock_is_in_utc() -> None:
    assert utc_now().utcoffset() == timedelta()
