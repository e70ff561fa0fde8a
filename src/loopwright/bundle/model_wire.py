"""The frames between a worker and the process that holds one model: a kind, a length, that many bytes.

    HELLO    worker → model   JSON: what to load, and how much memory it may take
    READY    model → worker   it is loaded
    PREDICT  worker → model   u32 rows, u32 columns, float32 row by row
    ANSWER   model → worker   u32 rows, u32 columns, float64 row by row
    ERROR    model → worker   why not, as text

Numbers are little-endian. Both ends bound what they accept before they make room for it.
"""

import socket
import struct
import time
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEAD = struct.Struct("<BQ")
_SHAPE = struct.Struct("<II")

MAX_TEXT = 64 << 10
MAX_HELLO = 4 << 20
MAX_COLUMNS = 10_000


class Kind(IntEnum):
    """What a frame holds."""

    HELLO = 1
    READY = 2
    PREDICT = 3
    ANSWER = 4
    ERROR = 5


class Garbled(Exception):
    """The other end sent what no frame is; nothing more can be understood of it."""


def send(peer: socket.socket, kind: Kind, *parts: bytes | memoryview, until: float | None = None) -> None:
    """Send one frame. until: a time of `time.monotonic`, after which TimeoutError is raised."""
    size = sum(len(part) for part in parts)
    head = _HEAD.pack(kind, size)
    for part in (head, *parts):
        _bound(peer, until)
        peer.sendall(part)


def receive(
    peer: socket.socket, limits: dict[Kind, int], until: float | None = None
) -> tuple[Kind, bytearray]:
    """Return the next frame's kind and bytes.

    limits: the kinds that may come, with the most bytes of each. Raises EOFError at the end, TimeoutError after
    `until`, Garbled for anything else.
    """
    kind, size = _HEAD.unpack(_exactly(peer, _HEAD.size, until))
    if kind not in limits or size > limits[Kind(kind)]:
        raise Garbled(f"a frame of kind {kind} and {size:,} bytes")
    return Kind(kind), _exactly(peer, size, until)


def shaped(matrix: NDArray[Any], dtype: str) -> tuple[bytes, memoryview]:
    """A matrix (n, k) as a frame's parts."""
    plain = np.ascontiguousarray(matrix, dtype=dtype)
    rows, columns = plain.shape
    return _SHAPE.pack(rows, columns), plain.reshape(-1).data.cast("B")


def matrix_of(data: bytearray, dtype: str) -> NDArray[Any]:
    """The inverse of `shaped`; raises Garbled."""
    if len(data) < _SHAPE.size:
        raise Garbled(f"{len(data)} bytes where a matrix was announced")
    rows, columns = _SHAPE.unpack_from(data)
    if columns > MAX_COLUMNS or len(data) - _SHAPE.size != rows * columns * np.dtype(dtype).itemsize:
        raise Garbled(f"{len(data):,} bytes for a matrix of {rows} × {columns}")
    return np.frombuffer(data, dtype=dtype, offset=_SHAPE.size).reshape(rows, columns)


def matrix_bytes(rows: int, columns: int, itemsize: int) -> int:
    """How many bytes a matrix takes as a frame."""
    return _SHAPE.size + rows * columns * itemsize


def _exactly(peer: socket.socket, size: int, until: float | None) -> bytearray:
    data = bytearray(size)
    view, filled = memoryview(data), 0
    while filled < size:
        _bound(peer, until)
        count = peer.recv_into(view[filled:])
        if not count:
            raise EOFError("the other end is gone")
        filled += count
    return data


def _bound(peer: socket.socket, until: float | None) -> None:
    if until is None:
        return
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    peer.settimeout(left)
