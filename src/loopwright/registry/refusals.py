"""Keeps refusals in the audit log without letting a looping client flood it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

WINDOW = timedelta(minutes=5)
"""The same refusal again within this time is counted, not written."""

ROWS_PER_WINDOW = 200
"""One actor's refusals beyond these are counted together, however different they are."""

Write = Callable[[str, str, dict[str, Any]], None]
"""(actor, subject, payload) → an audit row."""


@dataclass(slots=True)
class _Seen:
    since: datetime
    last: datetime
    payload: dict[str, Any]
    more: int = 0


@dataclass
class Refusals:
    """Writes the first refusal of a kind at once, then one row with a count when its window is over.

    Safe between threads. Counts that are still open when the process ends are lost; the first row never is.
    """

    write: Write
    _seen: dict[tuple[str, str, str, str], _Seen] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, *, actor: str, act: str, subject: str, why: str, now: datetime) -> None:
        """Keep that `actor` tried `act` on `subject` and was refused."""
        subject, why = subject[:200], why[:1000]
        with self._lock:
            due = self._expired(now)
            mine = [key for key in self._seen if key[0] == actor]
            key = (actor, act, subject, why)
            if key not in self._seen and len(mine) >= ROWS_PER_WINDOW:
                # What is left of this actor's window is told in one row.
                key = (actor, "many acts", "registry", "")
            standing = self._seen.get(key)
            if standing is not None:
                standing.more += 1
                standing.last = now
            else:
                payload = {"act": key[1], "why": why}
                self._seen[key] = _Seen(now, now, payload)
                due.append((actor, key[2], payload))
        for who, where, payload in due:
            self.write(who, where, payload)

    def _expired(self, now: datetime) -> list[tuple[str, str, dict[str, Any]]]:
        told = []
        for key, seen in list(self._seen.items()):
            # A clock that went back opens a new window rather than an endless one.
            if abs(now - seen.since) >= WINDOW:
                del self._seen[key]
                if seen.more:
                    told.append((key[0], key[2], seen.payload | {"again": seen.more}))
        return told
