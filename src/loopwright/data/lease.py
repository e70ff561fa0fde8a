"""The right to write to something that no lock of this machine's kernel reaches: a lease in the ledger."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from loopwright.kernel.clock import utc_now
from loopwright.kernel.errors import Conflict, LoopwrightError
from loopwright.kernel.ids import new_id
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger

TTL = timedelta(seconds=30)
"""So long a dead process keeps others out. A living one renews four times as often."""
PAUSE = 0.2


@dataclass(slots=True)
class Lease:
    """Held until the block ends, as long as it can be renewed. `require` asks whether it still is."""

    name: str
    until: float
    lost: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)

    def require(self) -> None:
        """Raise Conflict when the lease may have gone to somebody else: whoever asks must not write any more."""
        if self.lost or time.monotonic() >= self.until:
            raise Conflict(
                "the right to write was lost on the way",
                where=self.name,
                got=self.lost or f"not renewed for {TTL.total_seconds():.0f} s",
                next="Nothing was half-written; do it again",
            )


@contextmanager
def leased(ledger: Ledger, name: str, *, ttl: timedelta | None = None) -> Iterator[Lease]:
    """Hold the lease `name`; waits for whoever holds it, at most `ttl` (`TTL`) longer than they live."""
    holder, ttl = new_id("lease"), ttl or TTL
    while True:
        began = time.monotonic()
        with ledger.write() as conn:
            taken = ledger_store.acquire(conn, name, holder, ttl, utc_now())
        if taken:
            break
        time.sleep(PAUSE)
    lease = Lease(name, began + ttl.total_seconds())
    renewing = threading.Thread(target=_renew, args=(ledger, lease, holder, ttl), daemon=True)
    renewing.start()
    try:
        yield lease
    finally:
        lease._stop.set()
        renewing.join()
        with ledger.write() as conn:
            ledger_store.release(conn, name, holder)


def _renew(ledger: Ledger, lease: Lease, holder: str, ttl: timedelta) -> None:
    while not lease._stop.wait(ttl.total_seconds() / 4):
        began = time.monotonic()
        try:
            with ledger.write() as conn:
                if not ledger_store.acquire(conn, lease.name, holder, ttl, utc_now()):
                    lease.lost = "another process took it"
                    return
        except LoopwrightError:
            # The ledger may answer again before the lease ends; if not, `require` says so.
            continue
        lease.until = began + ttl.total_seconds()
