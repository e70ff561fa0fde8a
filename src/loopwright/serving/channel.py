"""Messages between supervisor and worker: one JSON object a line over a socket pair. Its end: the other is gone."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec


class Channel:
    """One end. Writing never waits: messages are few and small."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> "Channel":
        """Take over a connected socket."""
        reader, writer = await asyncio.open_connection(sock=end, limit=16 << 20)
        return cls(reader, writer)

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message; one to a side that is gone is dropped."""
        if not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(message) + b"\n")

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yield messages until the other side is gone."""
        try:
            while line := await self._reader.readline():
                yield msgspec.json.decode(line)
        except OSError:
            return

    def close(self) -> None:
        """Hang up."""
        self._writer.close()
