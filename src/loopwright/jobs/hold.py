"""A worker's hold on the job it works at: renewed in a thread of its own, asked about before anything is written."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta

from loopwright.jobs import job as life
from loopwright.jobs import store
from loopwright.jobs.job import Job, LeaseLost
from loopwright.jobs.stop import Stop
from loopwright.kernel.clock import Clock
from loopwright.kernel.errors import LoopwrightError
from loopwright.ledger.engine import Ledger


class Cancelled(Exception):
    """Somebody cancelled the job while it ran."""


class Draining(Exception):
    """This worker was told to stop."""


class Hold:
    """Beats four times in a lease, and only while the work moves: a worker that hangs gives its job away.

    `stall`: seconds without a call of `check` after which it is taken to hang; `hung` is called then, once.
    """

    def __init__(
        self,
        ledger: Ledger,
        job: Job,
        lease: timedelta,
        clock: Clock,
        *,
        draining: Stop,
        stall: float = 600.0,
        hung: Callable[[], None] = lambda: None,
    ) -> None:
        self._ledger, self._job, self._fence, self._lease, self._clock = (
            ledger,
            job.id,
            job.fence,
            lease,
            clock,
        )
        self._draining, self._stall, self._hung = draining, stall, hung
        self._until = self._moved = time.monotonic()
        self._until += lease.total_seconds()
        self._lost = ""
        self._cancelled = job.cancelled_by is not None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"hold {job.id}", daemon=True)

    def __enter__(self) -> "Hold":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Say that the work moves. Raises LeaseLost, Cancelled or Draining when it is not to go on."""
        self._moved = time.monotonic()
        self.require()
        if self._cancelled:
            raise Cancelled
        if self._draining.is_set():
            raise Draining

    def require(self) -> None:
        """Raise LeaseLost when the job may have gone to somebody else."""
        if self._lost or time.monotonic() >= self._until:
            raise LeaseLost(
                "the job may be another worker's by now", where=f"job {self._job}",
                got=self._lost or f"no beat for {self._lease.total_seconds():g} s",
            )  # fmt: skip

    def renewed(self, began: float) -> None:
        """A write that renewed the lease too was begun at `began` (monotonic)."""
        self._until = max(self._until, began + self._lease.total_seconds())

    def _run(self) -> None:
        while not self._stop.wait(self._lease.total_seconds() / 4):
            if time.monotonic() - self._moved > self._stall:
                self._lost = f"nothing moved for {self._stall:g} s"
                self._hung()
                return
            began = time.monotonic()
            try:
                job = self._beat()
            except LeaseLost as error:
                self._lost = str(error)
                return
            except LoopwrightError:
                continue  # the ledger may answer again before the lease ends; if not, `require` says so
            self._cancelled = self._cancelled or job.cancelled_by is not None
            self.renewed(began)

    def _beat(self) -> Job:
        now = self._clock()
        with self._ledger.beside() as conn:
            return store.change(
                conn, self._job, now, lambda job: life.beat(job, self._fence, now, self._lease)
            )[1]
