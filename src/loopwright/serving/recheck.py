"""Hashes the bundles that answer again and again: what was whole when it was loaded may have changed on disk since.

Workers answer from memory, so a damaged file harms nobody until the next worker loads it; it is found before that, set
aside and fetched again. Runs in a thread of its own at the lowest priority.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from loopwright.bundle.keys import PublicKey
from loopwright.kernel.errors import NotFound, Tampered
from loopwright.serving.cache import Cache

NICENESS = 19

Complain = Callable[[str, str], object]
"""(what it is about, what to say)"""


class Recheck:
    """One server's rounds. needed, keys: what routes need and whom to trust, asked anew in every round.

    damaged: called with a digest after its copy was set aside; who is called brings it back.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        every: float,
        needed: Callable[[], Iterable[str]],
        keys: Callable[[], Sequence[PublicKey]],
        damaged: Callable[[str], None],
        complain: Complain,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._cache, self._every = cache, every
        self._needed, self._keys = needed, keys
        self._damaged, self._complain = damaged, complain
        self._now = now
        self._stopping = threading.Event()
        self.failures = 0
        self.last_ok = 0.0

    def start(self) -> None:
        """Begin the rounds, unless they are switched off (every 0)."""
        if self._every > 0:
            threading.Thread(target=self._run, name="recheck", daemon=True).start()

    def stop(self) -> None:
        """Begin no further bundle."""
        self._stopping.set()

    def round(self) -> bool:
        """Hash every bundle that routes need; True when all of them are here and as they were sealed."""
        well = True
        for digest in sorted(self._needed()):
            if self._stopping.is_set():
                return False
            try:
                self._cache.depot.verify(digest, self._keys())
            except NotFound:
                # Not here (yet): fetching it is the poll's work.
                well = False
                self._damaged(digest)
            except Tampered as error:
                well = False
                self.failures += 1
                aside = self._cache.set_aside(digest)
                self._complain(
                    f"recheck {digest}",
                    f"bundle {digest[:12]} has changed on disk: {error} (set aside at {aside}; fetching it again, "
                    "workers go on from memory)",
                )
                self._damaged(digest)
        if well:
            self.last_ok = self._now()
        return well

    def gauges(self) -> dict[str, float]:
        """For /metrics."""
        if self._every <= 0:
            return {}
        return {
            "bundle_recheck_failures_total": float(self.failures),
            "bundle_recheck_ok_timestamp_seconds": self.last_ok,
        }

    def _run(self) -> None:
        with suppress(OSError, AttributeError):
            # On Linux this is the priority of this thread alone.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while not self._stopping.wait(self._every):
            try:
                self.round()
            except Exception as error:  # noqa: BLE001 - a disk that fails once must not end the rounds
                self._complain(
                    "recheck", f"bundles could not be looked at again: {type(error).__name__}: {error}"
                )
