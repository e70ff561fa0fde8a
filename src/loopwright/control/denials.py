"""Writes down who was turned away at our doors, without letting anybody fill the log or wait for it."""

import contextlib
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta

from loopwright.kernel.clock import Clock, iso
from loopwright.kernel.errors import Unavailable
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger

ACTION = "access.denied"
NOBODY = "nobody"
TOGETHER = timedelta(minutes=1)
MOST = 200
"""Different denials of strangers told apart within a minute; beyond it they are counted in one row."""
MOST_OF_ONE = 50
"""The same for each actor we know: nobody hides in a crowd, not even in their own."""
_LONG = 200


@dataclass(frozen=True, slots=True)
class Denial:
    """Somebody (an actor, or nobody at an address) was refused an act, and why."""

    actor: str
    act: str
    why: str
    status: int
    address: str = ""


def _others(actor: str) -> Denial:
    most = MOST if actor == NOBODY else MOST_OF_ONE
    return Denial(actor, "many different acts", f"more than {most} different denials within a minute", 0)


@dataclass(slots=True)
class _Count:
    since: datetime
    unwritten: int = 0
    told: bool = False


class Denials:
    """Collects denials and writes them from a thread of its own.

    The first of a kind is written at once; the same actor refused the same act for the same reason again within a
    minute becomes one more row with a count at its end. `note` never waits for the ledger. Safe to share.
    """

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger, self._clock = ledger, clock
        self._counts: dict[Denial, _Count] = {}
        self._told: dict[str, set[Denial]] = {}
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._news = threading.Event()
        self._ending = False
        self._thread: threading.Thread | None = None

    def note(self, denial: Denial) -> None:
        """Count a denial; it is written soon."""
        with self._lock:
            # Apart for each actor: how many there are is for admins to say, and strangers are one.
            told = self._told.setdefault(denial.actor, set())
            if denial not in told and len(told) >= (MOST if denial.actor == NOBODY else MOST_OF_ONE):
                denial = _others(denial.actor)
            told.add(denial)
            count = self._counts.setdefault(denial, _Count(self._clock()))
            count.unwritten += 1
            if not count.told:
                self._news.set()

    def write(self, *, all_of_them: bool = False) -> int:
        """Write the rows that are due; returns how many. A ledger that cannot be written is tried again later."""
        with self._writing:
            now = self._clock()
            with self._lock:
                due = {
                    denial: (count.unwritten, count.since)
                    for denial, count in self._counts.items()
                    if count.unwritten and (not count.told or all_of_them or _over(count.since, now))
                }
            written = not due
            with contextlib.suppress(Unavailable):
                if due:
                    self._append(due, now)
                    written = True
            with self._lock:
                if written:
                    for denial, (number, _) in due.items():
                        self._counts[denial].unwritten -= number
                        self._counts[denial].told = True
                for denial in [d for d, c in self._counts.items() if not c.unwritten and _over(c.since, now)]:
                    del self._counts[denial]
                    self._told[denial.actor].discard(denial)
                    if not self._told[denial.actor]:
                        del self._told[denial.actor]
            return len(due) if written else 0

    def start(self) -> None:
        """Write from now on, in a thread."""
        self._thread = threading.Thread(target=self._run, name="denials", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what is left and end the thread."""
        self._ending = True
        self._news.set()
        if self._thread is not None:
            self._thread.join(10)
        self.write(all_of_them=True)

    def _run(self) -> None:
        while not self._ending:
            self._news.wait(timeout=10)
            self._news.clear()
            if not self._ending:
                self.write()

    def _append(self, due: dict[Denial, tuple[int, datetime]], now: datetime) -> None:
        with self._ledger.write() as conn:
            for denial, (number, since) in due.items():
                payload = {
                    "act": denial.act[:_LONG], "why": denial.why[:_LONG], "status": denial.status,
                    "address": denial.address, "count": number, "since": iso(since),
                }  # fmt: skip
                ledger_store.append(
                    conn,
                    at=now,
                    actor=denial.actor,
                    action=ACTION,
                    subject=f"user/{denial.actor}",
                    payload=payload,
                )


def _over(since: datetime, now: datetime) -> bool:
    # A clock that went back must not keep a denial for ever.
    return abs(now - since) >= TOGETHER
