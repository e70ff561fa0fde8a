"""What was answered and not read yet: in memory while it is little, then in a file that ends with the request.

Many clients send all of a large request before they read any of its answer. A server that then waited for them to read
would wait for ever, and one that kept everything in memory would end.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from typing import IO

from loopwright.kernel.errors import Unavailable

MEMORY = 1 << 20
DISK = 1 << 30
READ = 1 << 18


class Spool:
    """Between one writer and one reader on an event loop. memory, disk: bytes that wait in either at most."""

    def __init__(self, *, memory: int = MEMORY, disk: int = DISK) -> None:
        self._memory, self._disk = memory, disk
        self._first = bytearray()
        self._file: IO[bytes] | None = None
        self._read_at = self._end_at = 0
        self._changed = asyncio.Condition()
        self._closed = False
        self._failure: BaseException | None = None

    async def put(self, part: bytes) -> None:
        """Take a part; waits when even the file is full. Raises Unavailable when it cannot be written."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._end_at - self._read_at < self._disk)
            if self._file is None and len(self._first) + len(part) <= self._memory:
                self._first += part
            else:
                self._spill(part)
            self._changed.notify_all()

    async def close(self, failure: BaseException | None = None) -> None:
        """Say that there is no more; the reader gets what is left, and then `failure`."""
        async with self._changed:
            self._closed, self._failure = True, failure
            self._changed.notify_all()

    async def parts(self) -> AsyncIterator[bytes]:
        """What was put, in order."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._waits() or self._closed)
                part = self._take()
                self._changed.notify_all()
            if not part:
                if self._failure is not None:
                    raise self._failure
                return
            yield part

    def drop(self) -> None:
        """Let go of everything; the file is gone."""
        self._first.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def on_disk(self) -> bool:
        """Whether a file is in use now."""
        return self._file is not None

    def _waits(self) -> bool:
        return bool(self._first) or self._end_at > self._read_at

    def _take(self) -> bytes:
        if self._first:
            part = bytes(self._first)
            self._first.clear()
            return part
        if self._file is None:
            return b""
        self._file.seek(self._read_at)
        part = self._file.read(min(READ, self._end_at - self._read_at))
        self._read_at += len(part)
        if self._read_at == self._end_at:
            self._file.close()
            self._file, self._read_at, self._end_at = None, 0, 0
        return part

    def _spill(self, part: bytes) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="loopwright-bulk-")  # noqa: SIM115 - outlives this call
            self._file.seek(self._end_at)
            self._file.write(part)
            self._file.flush()
        except OSError as error:
            raise Unavailable(
                f"the answer cannot be kept until it is read ({error.strerror or error})"
            ) from error
        self._end_at += len(part)
