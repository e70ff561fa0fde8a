"""What is asked of a job: rows or where they lie, who answers, where results go, whom to tell."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from loopwright.data.sources.reading import Reading
from loopwright.kernel.digest import digest_json

MAX_INLINE_ROWS = 1000
"""Rows that a request may bring, and that come back in the answer rather than in files."""
MAX_INLINE_BYTES = 1 << 20
MAX_KEY = 200
PRIORITIES = range(-100, 101)


@dataclass(frozen=True, slots=True)
class Request:
    """`input`: a URI, None for rows in the request. `output`: a folder or prefix, None where the home says.

    id_column, unit_column, event_time_column: which columns of the rows name a row, its unit and its event time.
    bad_rows: fail at the first row that cannot be answered, or report it in the result and go on. webhook: {"url",
    "secret"}, the secret by its name. anywhere: whoever asked may name every place.
    """

    input: str | None = None
    format: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    output: str | None = None
    version: int | None = None
    id_column: str = "_id"
    unit_column: str = "_unit"
    event_time_column: str = "_event_time"
    bad_rows: Literal["fail", "report"] = "fail"
    webhook: Mapping[str, str] | None = None
    anywhere: bool = False

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Request":
        return cls(**document)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def reading(self) -> Reading:
        return Reading(self.format, self.delimiter, self.encoding)

    @property
    def named_columns(self) -> tuple[str, str, str]:
        return (self.id_column, self.unit_column, self.event_time_column)

    def digest(self, rows: list[Any] | None, priority: int) -> str:
        """What a second request under the same idempotency key must be equal in. Not who asks."""
        document = self.to_json()
        document.pop("anywhere")
        return digest_json([document, rows, priority])
