"""What every chapter of the flights demo agrees on: the model's name and the calendar."""

from datetime import UTC, datetime

MODEL = "flight-late"
SERVER = "edge"
"""The servers' account: what ana's canary is judged by does not come from ana."""


def month(number: int) -> datetime:
    """The first moment of a month of 2013, UTC; 13 is January 2014."""
    return datetime(2013 + (number - 1) // 12, (number - 1) % 12 + 1, 1, tzinfo=UTC)
