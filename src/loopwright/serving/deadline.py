"""Stops a prediction that takes too long, at next to no cost for one that does not.

A thread per prediction would let the interpreter's 5 ms switch interval leak into a canary's latency and fail good
canaries; a POSIX timer per prediction costs 30 µs on a virtual machine. So predictions run on the main thread and only
note when they must be over; a watcher looks a few times a second and interrupts the main thread with a signal. That
stops Python code (a transform that loops or sleeps); native code, such as ONNX Runtime's kernels, is interrupted when
it returns.
"""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
A = TypeVar("A")

TICK = 0.05
"""Seconds between looks: how much later than its limit a prediction may be stopped."""


class PredictionTimeout(Exception):
    """The prediction took longer than it may."""


class Deadline:
    """Runs functions under a time limit. Only for the main thread; call `install` once."""

    def __init__(self) -> None:
        self._running = False
        self._until = 0.0
        self._seconds = 0.0

    def install(self) -> None:
        """Take over SIGALRM of this process and start the watcher."""
        signal.signal(signal.SIGALRM, self._ring)
        threading.Thread(target=self._watch, name="deadline", daemon=True).start()

    def run(self, function: Callable[[A], T], argument: A, seconds: float) -> T:
        """Return `function(argument)`; raises PredictionTimeout soon after `seconds`."""
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._running = True
        try:
            return function(argument)
        finally:
            self._running = False

    def _watch(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while True:
            time.sleep(TICK)
            if self._running and time.monotonic() > self._until:
                signal.pthread_kill(main, signal.SIGALRM)

    def _ring(self, signum: int, frame: FrameType | None) -> None:
        # The prediction the watcher saw may be over, and another under way.
        if self._running and time.monotonic() > self._until:
            self._running = False
            raise PredictionTimeout(f"took longer than {self._seconds:g} s")


class NoDeadline:
    """Runs functions without a limit, for threads and tests."""

    def run(self, function: Callable[[A], T], argument: A, seconds: float) -> T:
        """Return `function(argument)`."""
        return function(argument)
