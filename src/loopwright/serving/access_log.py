"""One line of JSON for every request, off by default: who asked for what, and what they were told.

No inputs, no outputs, no tokens: the prediction log holds the former under its own policy, and nothing the latter.
"""

import errno
import os
import select
import stat
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from loopwright.kernel.errors import Unavailable
from loopwright.serving.watching import Answered, Asked, caller

FLUSH_LINES = 100
MAX_PATH = 512

PIPE_BUF = select.PIPE_BUF
"""Bytes that a pipe takes at once when it takes any, and does not mix with another's."""

_encode = msgspec.json.Encoder().encode


class AccessLog:
    """Appends to a file, or to standard output for "-". Lines of several workers in one file stay whole.

    Lines are written together once `FLUSH_LINES` wait or `flush` is called, so that a request costs no write(2). Lines
    that cannot be written, or that a pipe has no room for because nobody reads it, are counted in `lost` and said once
    on standard error: no request waits for a reader.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lines: list[bytes] = []
        self.lost = 0
        self._is_file, self._torn = True, False
        if path == "-":
            self._descriptor = sys.stdout.fileno()
            self._is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
            return
        try:
            self._descriptor = os.open(
                Path(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640
            )
        except OSError as error:
            raise Unavailable(
                f"the access log cannot be written ({error.strerror or error})", where=path,
                next="Name a writable file with --access-log.",
            ) from error  # fmt: skip
        self._is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)

    def begin(self, asked: Asked) -> None:
        """Nothing is noted before the answer."""

    def end(
        self, begun: Any, asked: Asked, status: int | str, size: int, us: int, by: Answered | None
    ) -> None:
        """Note the request."""
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "client": asked.client, "protocol": asked.protocol, "method": asked.method,
            "path": asked.path[:MAX_PATH], "status": status, "bytes": size, "ms": us / 1000,
        }  # fmt: skip
        if name := caller.get():
            line["caller"] = name
        if by is not None:
            line |= {
                "model": by.model, "version": by.version, "arm": by.arm, "request_id": by.request_id,
                "rows": by.rows, "fallback": by.fallback,
            }  # fmt: skip
        trace = asked.header(b"traceparent")
        if trace:
            line["traceparent"] = trace[:64]
        self._lines.append(_encode(line) + b"\n")
        if len(self._lines) >= FLUSH_LINES:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        for part in [lines] if self._is_file else _parts(lines):
            try:
                self._write(b"".join(part))
            except OSError as error:
                if not self.lost:
                    sys.stderr.write(
                        f"{self._path}: lines of the access log are lost ({error.strerror or error})\n"
                    )
                self.lost += len(part)

    def _write(self, data: bytes) -> None:
        if not self._is_file and not select.select((), (self._descriptor,), (), 0)[1]:
            raise BlockingIOError(errno.EAGAIN, "nobody reads them")
        # The disk is full when a part is taken; the next line begins on a line of its own.
        data, self._torn = (b"\n" + data if self._torn else data), False
        if os.write(self._descriptor, data) != len(data):
            self._torn = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Write what waits and let go of the file."""
        self.flush()
        if self._path != "-":
            os.close(self._descriptor)


def _parts(lines: list[bytes]) -> Iterator[list[bytes]]:
    """The lines in parts that a pipe takes whole; one longer than that goes alone."""
    part: list[bytes] = []
    size = 0
    for line in lines:
        if part and size + len(line) > PIPE_BUF:
            yield part
            part, size = [], 0
        part.append(line)
        size += len(line)
    yield part
