"""Values as people write them in `loop.yaml`: "6h", "5%", "+0.1pp", "x1.5", ">= 0.68"."""

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from loopwright.kernel.clock import format_duration, iso, parse_duration, parse_time
from loopwright.kernel.errors import BadInput
from loopwright.kernel.sizes import parse_size

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_THRESHOLD = re.compile(rf"(>=|<=|==|>|<)\s*({_NUMBER})")


@dataclass(frozen=True, slots=True)
class Threshold:
    """A limit on one number: `op` is one of >= <= == > <."""

    op: str
    value: float

    def holds(self, measured: float) -> bool:
        """Whether `measured` is within the limit; NaN never is."""
        return _OPERATORS[self.op](measured, self.value)

    def __str__(self) -> str:
        return (
            f"{self.op} {self.value:g}"
            if float(f"{self.value:g}") == self.value
            else f"{self.op} {self.value!r}"
        )

    @classmethod
    def parse(cls, text: object) -> "Threshold":
        """Read ">= 0.68"; raises BadInput."""
        if isinstance(text, Threshold):
            return text
        found = _THRESHOLD.fullmatch(text.strip()) if isinstance(text, str) else None
        if found is None:
            raise BadInput(
                "not a limit", got=text, wanted='a comparison and a number in quotes, like ">= 0.68"'
            )
        return cls(found.group(1), float(found.group(2)))


def read_duration(value: object) -> timedelta:
    """Read "6h"; raises BadInput for anything else, negative ones included."""
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str):
        raise BadInput("not a duration", got=value, wanted="a number and a unit, like 30m, 6h, 1d or 7y")
    return parse_duration(value)


def read_share(value: object) -> float:
    """Read "5%" or 0.05 as 0.05. A bare whole number is refused: 1 could mean 1 % or all."""
    if isinstance(value, float) and 0 <= value <= 1:
        return value
    if isinstance(value, str) and (found := re.fullmatch(rf"({_NUMBER})\s*%", value.strip())):
        share = _hundredth(found.group(1))
        if 0 <= share <= 1:
            return share
    hint = f"Write {value}%." if isinstance(value, int) and not isinstance(value, bool) else ""
    raise BadInput("not a share", got=value, wanted="a percentage from 0% to 100%, like 5%", next=hint)


def read_points(value: object) -> float:
    """Read "+0.1pp" (percentage points) or 0.001 as 0.001."""
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str) and (found := re.fullmatch(rf"({_NUMBER})\s*pp", value.strip())):
        return _hundredth(found.group(1))
    raise BadInput("not a number of percentage points", got=value, wanted='like "+0.1pp"')


def read_factor(value: object) -> float:
    """Read "x1.5" or 1.5 as 1.5."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0:
        return float(value)
    if isinstance(value, str) and (found := re.fullmatch(rf"x\s*({_NUMBER})", value.strip())):
        factor = float(found.group(1))
        if factor > 0:
            return factor
    raise BadInput("not a factor", got=value, wanted='like "x1.5"')


def read_change(value: object) -> float:
    """Read "-2%" or -0.02, a relative change, as -0.02."""
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str) and (found := re.fullmatch(rf"({_NUMBER})\s*%", value.strip())):
        return _hundredth(found.group(1))
    raise BadInput("not a relative change", got=value, wanted='like "-2%"')


def read_bytes(value: object) -> int:
    """Read "10MB" or 10000000 as bytes, above zero."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, str) and (found := parse_size(value)) > 0:
        return found
    raise BadInput("not an amount of bytes", got=value, wanted="above zero, like 10MB")


def read_milliseconds(value: object) -> float:
    """Read "5ms" or "0.5s" (or a number of milliseconds) as milliseconds, above zero."""
    if isinstance(value, float) and 0 < value < math.inf:
        return value
    if isinstance(value, str) and (found := re.fullmatch(rf"({_NUMBER})\s*(us|ms|s)", value.strip())):
        length = float(found.group(1)) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found.group(2)]
        if 0 < length < math.inf:
            return length
    raise BadInput("not a time", got=value, wanted="above zero, like 5ms or 0.5s")


def read_moment(value: object) -> datetime:
    """Read a time with a zone, or a date as its first moment in UTC."""
    if isinstance(value, str):
        return parse_time(value)
    if isinstance(value, datetime):
        return parse_time(value.isoformat())
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    raise BadInput("not a time", got=value, wanted="ISO 8601 with a zone, like 2013-04-01T00:00:00Z")


def read_holdout(value: object) -> float | timedelta:
    """Read "20%" or 0.2 as the last fifth, "14d" as the last two weeks."""
    if isinstance(value, timedelta) or (isinstance(value, str) and "%" not in value):
        length = read_duration(value)
        if length <= timedelta():
            raise BadInput("an empty holdout", got=value, wanted="a length above zero, like 14d")
        return length
    share = read_share(value)
    if not 0 < share < 1:
        raise BadInput(
            "a holdout of nothing or of everything", got=value, wanted="between 0% and 100%, like 20%"
        )
    return share


def _hundredth(percent: str) -> float:
    # 99.9 / 100 is 0.9990000000000001 in floats; nobody wrote that.
    return float(Decimal(percent) / 100)


def _write_holdout(value: Any) -> float | str:
    return format_duration(value) if isinstance(value, timedelta) else float(value)


Duration = Annotated[
    timedelta, BeforeValidator(read_duration), PlainSerializer(format_duration, return_type=str)
]
Moment = Annotated[datetime, BeforeValidator(read_moment), PlainSerializer(iso, return_type=str)]
Limit = Annotated[Threshold, BeforeValidator(Threshold.parse), PlainSerializer(str, return_type=str)]
Share = Annotated[float, BeforeValidator(read_share)]
Points = Annotated[float, BeforeValidator(read_points)]
Factor = Annotated[float, BeforeValidator(read_factor)]
Change = Annotated[float, BeforeValidator(read_change)]
Bytes = Annotated[int, BeforeValidator(read_bytes)]
Latency = Annotated[float, BeforeValidator(read_milliseconds)]
Holdout = Annotated[Any, BeforeValidator(read_holdout), PlainSerializer(_write_holdout)]
