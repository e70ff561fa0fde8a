"""Starts the product's own processes, waits until they are ready, and ends them."""

import contextlib
import errno
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from loopwright.kernel.errors import Unavailable

_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on just now.

    It is below those that systems hand out by themselves (32768 and up): no connection takes it before it is bound.
    Raises Unavailable.
    """
    for port in random.SystemRandom().sample(range(15_000, 32_000), 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise Unavailable(f"no port can be had ({error.strerror})", where="127.0.0.1") from error
            else:
                return port
    raise Unavailable(
        "no port is free", where="127.0.0.1", got="a thousand between 15000 and 32000 are taken"
    )


class Process:
    """One `loopwright` command in the background, with its output in a log file. Ends with its `with` block."""

    def __init__(
        self, arguments: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.arguments = list(arguments)
        self.log = log
        self.environment = {**os.environ, **(environment or {})}
        self.started_at = 0.0
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; raises Unavailable before `start`."""
        if self._child is None:
            raise Unavailable("not started", where=self.name)
        return self._child.pid

    @property
    def name(self) -> str:
        """The command's first word, e.g. "up"."""
        return f"loopwright {self.arguments[0]}"

    def start(self) -> Self:
        """Start it; its standard output and error are appended to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "loopwright", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        self.started_at = time.monotonic()
        return self

    def wait_ready(self, url: str, *, within: float = 60.0) -> float:
        """Return the seconds from start until `url` answered 200; raises Unavailable with the log's end otherwise."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if self._child is not None and self._child.poll() is not None:
                break
            with contextlib.suppress(urllib.error.URLError, OSError), _open(url, timeout=2) as answer:
                if answer.status == 200:
                    return time.monotonic() - self.started_at
            time.sleep(0.03)
        raise Unavailable(
            f"{self.name} did not become ready",
            where=url,
            got=self.tail(),
            wanted=f"an answer within {within:.0f} s",
            next=f"Its whole log: {self.log}",
        )

    def tail(self, size: int = 2000) -> str:
        """The end of the log."""
        return self.log.read_bytes()[-size:].decode(errors="replace") if self.log.exists() else ""

    def kill(self) -> None:
        """SIGKILL the process itself, as a crash would; its children live on as they would."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def stop(self, within: float = 15.0) -> int | None:
        """Ask it to end, insist after `within` seconds, and return its exit status."""
        if self._child is None:
            return None
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(within)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._child.pid, signal.SIGKILL)
                self._child.wait()
        return self._child.returncode

    def __enter__(self) -> Self:
        return self.start() if self._child is None else self

    def __exit__(self, *_: object) -> None:
        self.stop()
