"""A worker hears a signal at whatever instant it comes."""

import fcntl
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from loopwright.jobs.stop import Stop


@pytest.fixture
def stops() -> Iterator[list[Stop]]:
    """A signal sets the last of them."""
    made: list[Stop] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: made[-1].set())
    yield made
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_ends_the_wait_at_whatever_instant_it_comes(stops: list[Stop]) -> None:
    """`threading.Event` hangs here sooner or later: `set` waits for the lock of the `wait` it interrupted."""
    for _ in range(300):
        stops[:] = [Stop()]
        threading.Timer(0.0005, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        until = time.monotonic() + 10
        while not stops[-1].wait(0.0003):
            assert time.monotonic() < until


def test_a_process_with_thousands_of_open_files_is_told_as_well() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    reading, writing = os.pipe()
    high = fcntl.fcntl(reading, fcntl.F_DUPFD, 1100)
    os.close(reading)
    stop = Stop(_pipe=(high, writing))
    assert not stop.wait(0.01)
    stop.set()
    assert stop.wait(30)


def test_setting_it_twice_is_setting_it_once_and_nobody_waits_any_more() -> None:
    stop = Stop()
    assert not stop.wait(0) and not stop.is_set()
    waiting: list[Any] = []
    thread = threading.Thread(target=lambda: waiting.append(stop.wait(30)))
    thread.start()
    stop.set()
    stop.set()
    thread.join(10)
    assert waiting == [True] and stop.wait(30)
