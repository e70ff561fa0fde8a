"""The open connections of one worker: how many there may be, and how long each may rest, dawdle or not read.

Nothing is timed per request: a connection lies in one of a few dictionaries, each in the order of time, and a look a
second at their oldest entries finds what is overdue. That costs an answered request 0.2 µs and holds for any number of
connections.
"""

import asyncio
import resource
from dataclasses import dataclass
from typing import Protocol

TICK = 0.5
"""Seconds between looks: how much later than its limit a connection may be closed."""

SPARE = 64
"""Connections beyond the bound that are told so; further ones are closed without a word."""

OWN_FILES = 256
"""Descriptors a worker needs for itself: models, log, counters, its supervisor."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may take. connections: open at once to one worker.

    head: bytes of a request's line and headers, or of what frames a chunked body. fields: headers of one request.
    head_seconds: for a request's head; body_seconds: for its body; idle_seconds: between two requests; write_seconds:
    without reading a byte of an answer; linger_seconds: for a client to take an answer after which its connection ends.
    pipelined: requests that may wait for the one before them.
    """

    connections: int = 10_000
    head: int = 64 << 10
    fields: int = 128
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 75.0
    write_seconds: float = 30.0
    linger_seconds: float = 2.0
    pipelined: int = 128


class Connection(Protocol):
    """What is asked of a connection whose time is over."""

    def rested(self) -> None:
        """It sent no further request."""

    def head_late(self) -> None:
        """Its request's head is not whole."""

    def body_late(self) -> None:
        """Its request's body is not whole."""

    def parted(self) -> None:
        """It had its last answer and is still there."""

    def unread(self) -> int:
        """Bytes of answers that the client has not taken."""

    def cut(self) -> None:
        """Close it now, whatever is left to send."""


Waiting = dict[Connection, float]
"""Connections with the loop's time since when, oldest first."""


class Connections:
    """One worker's. A connection is in at most one of `idle`, `heads`, `bodies` and `parting`, and in `unread` besides.

    Not safe to share between threads.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.idle: Waiting = {}
        self.heads: Waiting = {}
        self.bodies: Waiting = {}
        self.parting: Waiting = {}
        self._unread: dict[Connection, tuple[float, int]] = {}

    def make_room(self, now: float) -> bool:
        """Close the connection that is needed least: a head that dawdles, else the longest idle, else a body that
        dawdles. False when all others are at work."""
        limits = self.limits
        for waiting, before in (
            (self.heads, now - limits.head_seconds / 5),
            (self.idle, now),
            (self.bodies, now - limits.body_seconds / 5),
        ):
            connection = next(iter(waiting), None)
            if connection is not None and waiting[connection] <= before:
                del waiting[connection]
                connection.cut()
                return True
        return False

    def stalled(self, connection: Connection, now: float) -> None:
        """Note that the client does not read its answers as fast as they come."""
        self._unread.setdefault(connection, (now, connection.unread()))

    def reads(self, connection: Connection) -> None:
        """Note that it has caught up."""
        self._unread.pop(connection, None)

    def forget(self, connection: Connection) -> None:
        """It is gone."""
        for waiting in (self.idle, self.heads, self.bodies, self.parting):
            waiting.pop(connection, None)
        self._unread.pop(connection, None)

    async def watch(self) -> None:
        """Look for what is overdue until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK)
            self.sweep(loop.time())

    def sweep(self, now: float) -> None:
        """Act on every connection whose time is over."""
        limits = self.limits
        for connection in _overdue(self.idle, now - limits.idle_seconds):
            connection.rested()
        for connection in _overdue(self.heads, now - limits.head_seconds):
            connection.head_late()
        for connection in _overdue(self.bodies, now - limits.body_seconds):
            connection.body_late()
        for connection in _overdue(self.parting, now - limits.linger_seconds):
            connection.parted()
        for connection, (since, left) in list(self._unread.items()):
            if since > now - limits.write_seconds:
                break
            del self._unread[connection]
            unread = connection.unread()
            if unread >= left:
                connection.cut()
            else:  # slow, but it reads
                self._unread[connection] = (now, unread)


def _overdue(waiting: Waiting, before: float) -> list[Connection]:
    late = []
    for connection, since in waiting.items():
        if since > before:
            break
        late.append(connection)
    for connection in late:
        del waiting[connection]
    return late


def allow_files(connections: int) -> int:
    """Let this process open the files it needs for so many connections; return for how many the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE + OWN_FILES
    if resource.RLIM_INFINITY in (soft, hard):
        hard = max(soft, wanted) if soft != resource.RLIM_INFINITY else wanted
    if soft != resource.RLIM_INFINITY and soft < min(wanted, hard):
        soft = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else min(connections, soft - SPARE - OWN_FILES)
