"""Time as the product keeps it: aware UTC datetimes, microseconds in storage, ISO 8601 with Z in JSON."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from loopwright.kernel.errors import BadInput

Clock = Callable[[], datetime]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
    "y": timedelta(days=365.25),
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[smhdwy])")


def utc_now() -> datetime:
    """The wall clock, aware, in UTC."""
    return datetime.now(UTC)


def parse_time(text: str) -> datetime:
    """Parse ISO 8601 with an offset or Z into UTC; a time without a zone raises BadInput."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise BadInput("not a time", got=text, wanted="ISO 8601, like 2013-04-01T05:00:00Z") from None
    if moment.tzinfo is None:
        raise BadInput("a time without a zone", got=text, wanted="an offset or Z, like 2013-04-01T05:00:00Z")
    return moment.astimezone(UTC)


def iso(moment: datetime) -> str:
    """Return "2013-04-01T05:00:00Z"; microseconds only when there are any."""
    return _aware(moment).isoformat().replace("+00:00", "Z")


def to_us(moment: datetime) -> int:
    """Whole microseconds since 1970-01-01T00:00Z."""
    return (_aware(moment) - _EPOCH) // _MICROSECOND


def from_us(microseconds: int) -> datetime:
    """The inverse of `to_us`, exact."""
    return _EPOCH + timedelta(microseconds=microseconds)


def month(text: str) -> tuple[datetime, datetime]:
    """Return the first moment of the month "2026-11" in UTC, and of the one after it; raises BadInput."""
    try:
        year, number = (int(part) for part in re.fullmatch(r"(\d{4})-(\d{2})", text.strip()).groups())  # type: ignore[union-attr]
        first = datetime(year, number, 1, tzinfo=UTC)
        return first, datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    except (AttributeError, ValueError):
        raise BadInput("not a month", got=text, wanted="YYYY-MM, like 2026-11") from None


def parse_duration(text: str) -> timedelta:
    """Parse "90s", "30m", "6h", "1d", "2w", "7y" (365.25 days) or sums like "1h30m"."""
    compact = text.strip().lower()
    parts = list(_DURATION.finditer(compact))
    if not parts or "".join(p.group() for p in parts).replace(" ", "") != compact.replace(" ", ""):
        raise BadInput("not a duration", got=text, wanted="a number and one of ms s m h d w y, like 6h or 1d")
    try:
        return sum((float(p.group(1)) * _UNITS[p.group(2)] for p in parts), timedelta())
    except OverflowError:
        raise BadInput(
            "a duration too long to reckon with", got=text, wanted="less than a million years"
        ) from None


def format_duration(duration: timedelta) -> str:
    """Return the shortest exact text `parse_duration` reads back, e.g. "1d12h"; seconds carry a fraction."""
    sign = "-" if duration < timedelta() else ""
    rest = abs(duration)
    if rest and not sign and rest % _UNITS["y"] == timedelta():
        return f"{rest // _UNITS['y']}y"
    if rest and not sign and rest % _UNITS["w"] == timedelta():
        return f"{rest // _UNITS['w']}w"
    parts = []
    for unit in ("d", "h", "m"):
        count, rest = divmod(rest, _UNITS[unit])
        parts += [f"{count}{unit}"] if count else []
    if rest or not parts:
        parts.append(f"{rest.total_seconds():.6f}".rstrip("0").rstrip(".") + "s")
    return sign + "".join(parts)


def _aware(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise BadInput("a time without a zone", got=moment.isoformat(), wanted="an aware datetime")
    return moment.astimezone(UTC)
