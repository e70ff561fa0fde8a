"""The prediction log as workers write it: append-only segments of framed events that survive `kill -9`.

A frame is a 4-byte length, a 4-byte CRC-32 (both little-endian) and that many bytes of msgpack. An event is written
with one write(2) before the answer leaves, so it is in the kernel's page cache when the client reads its answer: losing
the process loses nothing. (Losing the machine may lose the last moments; set `durable` to fsync each write.)
"""

import errno
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from struct import Struct as Layout
from typing import Literal

import msgspec

from loopwright.kernel.errors import BadInput, Unavailable

Status = Literal["ok", "error", "fallback"]
MAX_FRAME = 64 << 20
_HEAD = Layout("<II")
_LEAST, _LOOK = 13, 64 << 10
"""Bytes that an event takes at least, and in which the next frame is looked for."""


class Event(msgspec.Struct, array_like=True, gc=False):
    """One version's answer, or failure to answer, for one row.

    event_time, at: microseconds since 1970 UTC. latency_us: 0 when the row came in a request of many rows, because a
    batch's time is no row's latency. inputs: in the schema's order, null as None. outputs: empty when status is
    "error". A canary's failure and the stable answer given in its place ("fallback") are two events with one id.
    """

    id: str
    unit: str
    event_time: int
    at: int
    model: str
    version: int
    arm: str
    latency_us: int
    status: Status
    error: str
    inputs: list[float | int | bool | str | None]
    outputs: list[float]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Event)


def frame(event: Event) -> bytes:
    """Return the event's frame."""
    body = _encoder.encode(event)
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def whole_frames(data: bytes | memoryview, start: int = 0) -> int:
    """Return the offset after the last whole frame; a torn tail (a crash in mid-write) is left out.

    Stops before a frame whose checksum is wrong, and raises BadInput when that is the first one: the log was damaged,
    which no crash of a process does.
    """
    offset, end = start, len(data)
    while end - offset >= _HEAD.size:
        length, crc = _HEAD.unpack_from(data, offset)
        after = offset + _HEAD.size + length
        if length <= MAX_FRAME and after > end:
            break
        if length > MAX_FRAME or zlib.crc32(data[offset + _HEAD.size : after]) != crc:
            if offset > start:
                break
            raise BadInput("a frame's checksum is wrong", where=f"event log, byte {offset}")
        offset = after
    return offset


def hides_frames(data: bytes) -> bool:
    """Whether a whole frame lies behind the beginning of `data`, which is none: no torn tail then, but damage.

    What a killed process did not finish is one frame, the last. Looks as far as such a frame usually goes.
    """
    view = memoryview(data)
    for offset in range(1, min(len(data) - _HEAD.size, _LOOK)):
        length, crc = _HEAD.unpack_from(data, offset)
        after = offset + _HEAD.size + length
        if length >= _LEAST and after <= len(data) and zlib.crc32(view[offset + _HEAD.size : after]) == crc:
            return True
    return False


def read_frames(data: bytes) -> Iterator[Event]:
    """Yield the events of `data`, oldest first, leaving out a torn tail; raises BadInput where it is damaged."""
    return (event for _, _, event in read_placed(data))


def read_placed(data: bytes) -> Iterator[tuple[int, int, Event]]:
    """What `read_frames` yields, with where in `data` each event's frame begins and ends."""
    view = memoryview(data)
    offset, end = 0, whole_frames(view)
    while offset < end:
        length, _ = _HEAD.unpack_from(view, offset)
        after = offset + _HEAD.size + length
        try:
            yield offset, after, _decoder.decode(view[offset + _HEAD.size : after])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BadInput(f"not an event ({error})", where=f"event log, byte {offset}") from None
        offset = after
    whole_frames(view, end)


def count_frames(frames: bytes) -> int:
    """How many whole frames there are; trusts their lengths."""
    offset = count = 0
    while offset + _HEAD.size <= len(frames):
        offset += _HEAD.size + _HEAD.unpack_from(frames, offset)[0]
        count += 1
    return count


class NotLogged(Unavailable):
    """What cannot be logged is not answered; it may be asked for again after `retry_after` seconds."""

    retry_after = 1.0


class SegmentWriter:
    """Appends events to `folder/<name>-<number>.seg`, a new file every `rotate` bytes. One writer per name.

    failing: why the last append failed, "" when it went well.
    """

    def __init__(self, folder: Path, name: str, *, rotate: int = 16 << 20, durable: bool = False) -> None:
        self._folder = folder
        self._name = name
        self._rotate = rotate
        self._durable = durable
        self._number = 0
        self._size = 0
        self._descriptor = -1
        self.failing = ""

    def append(self, frames: bytes) -> None:
        """Write `frames` whole or not at all; raises NotLogged when the disk is full or read-only."""
        try:
            if self._descriptor < 0 or self._size >= self._rotate:
                self._next_file()
            written = os.write(self._descriptor, frames)
            if written != len(frames):
                self._cut()
                # A part was taken: whatever the limit is, it has been reached.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size += written
            if self._durable:
                os.fdatasync(self._descriptor)
            if self.failing:
                self.failing = ""
        except OSError as error:
            self.failing = error.strerror or str(error)
            raise NotLogged(
                f"predictions cannot be logged ({error.strerror or error}), so none is given",
                where=str(self._folder),
                next="Free disk space or make the folder writable; serving resumes by itself.",
            ) from error

    def _cut(self) -> None:
        """Take back a part of a frame; where that fails too, it stays the last of its file, as after a crash."""
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the current file; a later `append` starts a new one."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _next_file(self) -> None:
        self.close()
        path = self._folder / f"{self._name}-{self._number:06d}.seg"
        self._descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        self._number += 1
        self._size = 0
