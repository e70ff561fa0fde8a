"""A lease in the ledger, held for as long as a block takes: whoever else wants the same is told who is at work."""

import os
import secrets
import socket
import threading
from datetime import timedelta
from types import TracebackType
from typing import Self

from loopwright.kernel.clock import Clock
from loopwright.kernel.errors import Conflict, LoopwrightError
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger

TTL = timedelta(seconds=30)


class Lease:
    """Held on entry, renewed by a thread, given back on exit. One whose process on this machine died is taken over.

    Raises Conflict on entry while another process holds it. It keeps out who is orderly; whoever lost it unawares is
    stopped by the store (`online.Writing`).
    """

    def __init__(self, ledger: Ledger, name: str, clock: Clock) -> None:
        self.ledger, self.name, self.clock = ledger, name, clock
        self.holder = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease {name}", daemon=True)

    def __enter__(self) -> Self:
        with self.ledger.write() as conn:
            now = self.clock()
            other = ledger_store.holder_of(conn, self.name, now)
            if other is not None and _is_dead(other):
                ledger_store.release(conn, self.name, other)
            if not ledger_store.acquire(conn, self.name, self.holder, TTL, now):
                raise Conflict(
                    "another process is at this", where=self.name, got=other,
                    next=f"Wait until it is done; if its machine died, its lease ends {TTL.seconds} s later.",
                )  # fmt: skip
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        with self.ledger.write() as conn:
            ledger_store.release(conn, self.name, self.holder)

    def _renew(self) -> None:
        while not self._stop.wait(TTL.total_seconds() / 3):
            try:
                with self.ledger.write() as conn:
                    ledger_store.acquire(conn, self.name, self.holder, TTL, self.clock())
            except LoopwrightError:
                continue  # a ledger that is away for a moment: the next round renews, or the store says who writes


def _is_dead(holder: str) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    host, pid, _ = [*holder.split("/"), "", ""][:3]
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
