"""Stops a prediction that takes too long, without a thread in the request path.

A thread per prediction would let the interpreter's 5 ms switch interval leak into a canary's latency and fail good
canaries; a POSIX timer costs two cheap system calls. It interrupts Python code (a transform that loops or sleeps);
native code, such as ONNX Runtime's kernels, is interrupted when it returns.
"""

import signal
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
A = TypeVar("A")


class PredictionTimeout(Exception):
    """The prediction took longer than it may."""


class Deadline:
    """Runs functions under a time limit. Only for the main thread; call `install` once."""

    def __init__(self) -> None:
        self._armed = False
        self._seconds = 0.0

    def install(self) -> None:
        """Take over SIGALRM of this process."""
        signal.signal(signal.SIGALRM, self._ring)

    def run(self, function: Callable[[A], T], argument: A, seconds: float) -> T:
        """Return `function(argument)`; raises PredictionTimeout after `seconds`."""
        self._seconds = seconds
        self._armed = True
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            return function(argument)
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, signum: int, frame: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            raise PredictionTimeout(f"took longer than {self._seconds:g} s")


class NoDeadline:
    """Runs functions without a limit, for threads and tests."""

    def run(self, function: Callable[[A], T], argument: A, seconds: float) -> T:
        """Return `function(argument)`."""
        return function(argument)
