"""Who looks at every request from beside it: traces and the access log. Both are off unless they are asked for."""

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Answered:
    """Who answered a request. arm: "mixed" when its rows were answered by several."""

    model: str
    version: int
    arm: str
    request_id: str
    rows: int
    fallback: bool


answered: ContextVar[Answered | None] = ContextVar("answered", default=None)
"""Set while a watched request is answered, by whoever answers it."""


caller: ContextVar[str] = ContextVar("caller", default="")
"""The name of who asks, once it is known, while a watched request is answered; "" where anybody may ask."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of a request before it is read. protocol: http or grpc; method: GET, POST, or the call's name."""

    protocol: str
    method: str
    path: str
    client: str
    headers: Iterable[tuple[bytes, bytes]]

    def header(self, name: bytes) -> str | None:
        """The first header of this name (lower case), or None."""
        return next((value.decode("latin-1") for given, value in self.headers if given == name), None)


class Watcher(Protocol):
    """Told of every request, on the event loop: it must not wait for anything."""

    def begin(self, asked: Asked) -> Any:
        """A request has come; what is returned comes back in `end`."""

    def end(
        self, begun: Any, asked: Asked, status: int | str, size: int, us: int, by: Answered | None
    ) -> None:
        """It was answered. status: HTTP's, or gRPC's name; size: bytes of the answer, -1 for a stream."""

    def close(self) -> None:
        """Write out what is kept back."""
