"""What a sink is, and the rows it is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import msgspec

from loopwright.kernel.clock import from_us
from loopwright.serving.events import Event

SCHEMA = 1
"""The version of what `document` promises. Fields may be added to it; a change of meaning is another version."""

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Row:
    """An event on its way.

    names: of its inputs, None where its bundle is gone. redacted: inputs that it was written without.
    """

    uid: str
    source: str
    event: Event
    names: tuple[str, ...] | None
    redacted: tuple[str, ...] = ()

    def inputs(self) -> dict[str, Any] | list[Any]:
        """By name, or in the schema's order where the names are not known. A redacted one is null."""
        values = self.event.inputs
        if self.names is None or len(self.names) != len(values):
            return list(values)
        return dict(zip(self.names, values, strict=True))

    def inputs_json(self) -> bytes:
        """`inputs` as JSON."""
        return _encode(self.inputs())


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that the sink will never take, and why."""

    row: Row
    why: str


class Sink(Protocol):
    """One receiver. Used by one thread at a time.

    name: how people know it; holds no secret. every: seconds between two looks at what is new.
    """

    name: str
    every: float

    def deliver(self, rows: Sequence[Row], token: str) -> list[Rejected]:
        """Return when the receiver has confirmed every row, but for those it will never take.

        token: the same for the same rows. May be called again with rows that have arrived. Raises Unavailable.
        """

    def close(self) -> None:
        """Let go of connections without waiting for anything."""


def document(row: Row) -> dict[str, Any]:
    """A row in the words of schema 1: times are RFC 3339 in UTC, outputs empty where there was no answer."""
    event = row.event
    return {
        "schema": SCHEMA,
        "uid": row.uid,
        "source": row.source,
        "model": event.model,
        "version": event.version,
        "arm": event.arm,
        "id": event.id,
        "unit": event.unit,
        "event_time": rfc3339(event.event_time),
        "at": rfc3339(event.at),
        "latency_us": event.latency_us,
        "status": event.status,
        "error": event.error,
        "inputs": row.inputs(),
        "redacted": list(row.redacted),
        "outputs": event.outputs,
    }


def encoded(row: Row) -> bytes:
    """`document` as JSON."""
    return _encode(document(row))


def rfc3339(us: int) -> str:
    """Microseconds since 1970 as text in UTC, all six digits of them."""
    seconds, rest = divmod(us, 1_000_000)
    return f"{_second(seconds)}.{rest:06d}Z"


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    return from_us(seconds * 1_000_000).isoformat()[:19]
