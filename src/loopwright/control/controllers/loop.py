"""The leader's loop: whoever holds the lease runs the controllers, twice a second."""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from loopwright.control.context import Context
from loopwright.control.faults import explain
from loopwright.kernel.errors import Conflict
from loopwright.ledger import store as ledger_store

LEASE = "controllers"
LEASE_TTL = timedelta(seconds=5)
INTERVAL = 0.5

log = logging.getLogger("loopwright.control")

Tick = Callable[[Context], list[dict[str, Any]]]
"""One round of a controller: does what is due now and returns what it did. Must be safe to repeat."""


@dataclass
class Health:
    """How a controller fares; for /metrics and `doctor`."""

    rounds: int = 0
    failures: int = 0
    last_error: str = ""
    seconds: float = 0.0


@dataclass
class Controllers:
    """Runs named controllers in one thread. One failing does not keep the others from their work."""

    context: Context
    ticks: Sequence[tuple[str, Tick]]
    health: dict[str, Health] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.holder = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self.leading = False
        self.health = {name: Health() for name, _ in self.ticks}
        self._renew_at = 0.0
        self._one_round = threading.Lock()
        self._starting = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def started(self) -> bool:
        """Whether the loop runs (as leader or waiting to be)."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the loop; is idempotent."""
        with self._starting:
            if self._thread is None and not self._stopping.is_set():
                thread = threading.Thread(target=self._run, name="controllers", daemon=True)
                thread.start()
                self._thread = thread

    def stop(self) -> None:
        """Stop the loop after the round at work and give the lease back."""
        self._stopping.set()
        with self._starting:  # a start on its way in another thread is waited for, or finds that we stop
            thread = self._thread
        if thread is not None:
            thread.join(timeout=10)
        if self.leading:
            with self.context.ledger.write() as conn:
                ledger_store.release(conn, LEASE, self.holder)
            self.leading = False

    def tick(self, *, patience: float = 2 * LEASE_TTL.total_seconds()) -> list[dict[str, Any]]:
        """Run one round now and return what was done; waits for the round at work.

        Raises Conflict when another control plane leads for longer than `patience` seconds, and the first error of a
        controller after all of them have had their turn.
        """
        until = time.monotonic() + patience
        while not self._lead():
            if time.monotonic() > until:
                raise Conflict("another control plane leads this home", next="Send the tick to that one.")
            time.sleep(0.1)
        did, errors = self._round()
        if errors:
            raise errors[0]
        return did

    def _run(self) -> None:
        while not self._stopping.wait(INTERVAL):
            try:
                if self._lead():
                    self._round()
            except Exception as error:  # noqa: BLE001 - the loop outlives a database that is away for a while
                self.leading = False
                self._renew_at = 0.0
                log.warning("controllers: %s", explain(error) or repr(error))

    def _lead(self) -> bool:
        """Take or renew the lease; asks the database only when a third of the lease has passed."""
        with self._one_round:
            if self.leading and time.monotonic() < self._renew_at:
                return True
            with self.context.ledger.write() as conn:
                was, self.leading = (
                    self.leading,
                    ledger_store.acquire(conn, LEASE, self.holder, LEASE_TTL, self.context.now),
                )
            if self.leading:
                self._renew_at = time.monotonic() + LEASE_TTL.total_seconds() / 3
            if self.leading and not was:
                log.info("leading the controllers")
            return self.leading

    def _round(self) -> tuple[list[dict[str, Any]], list[Exception]]:
        did: list[dict[str, Any]] = []
        errors: list[Exception] = []
        with self._one_round:
            for name, tick in self.ticks:
                health, began = self.health[name], time.monotonic()
                try:
                    did += [{"controller": name, **done} for done in tick(self.context)]
                    health.last_error = ""
                except Exception as error:
                    errors.append(error)
                    health.failures += 1
                    told = str(explain(error) or f"{type(error).__name__}: {error}")
                    if told != health.last_error:  # not the same line twice a second
                        log.error("%s: %s", name, told, exc_info=explain(error) is None)
                    health.last_error = told
                health.rounds += 1
                health.seconds += time.monotonic() - began
        return did, errors
