"""What travels from serving to the control plane: a stretch of one segment with its folds, applied exactly once.

Body: 4-byte little-endian length of the header, the header (JSON), the frames. The control plane applies a batch only
when `from` equals the offset it has recorded for (source, segment), in the transaction that records `to`, and always
answers the recorded offset; the sender goes on from there. So a lost answer, a retry and a crash on either side change
nothing.
"""

import zlib
from dataclasses import dataclass
from struct import Struct as Layout
from typing import Any

import msgspec

from loopwright.kernel.errors import BadInput

CONTENT_TYPE = "application/x-loopwright-events"
FORMAT = 1
_LENGTH = Layout("<I")


class Fold(msgspec.Struct, kw_only=True):
    """Counts of one (model, version, arm) in one hour of event time; `bucket` is the hour's start in µs.

    n: all events; errors: status "error"; fallbacks: status "fallback". latency: `LatencyHistogram.to_json()` of the
    rows whose latency was measured. profile: `Counts.to_json()` of answered rows on the bundle's reference, or None.
    """

    model: str
    version: int
    arm: str
    bucket: int
    n: int
    errors: int
    fallbacks: int
    latency: dict[str, Any]
    profile: dict[str, Any] | None


class BatchHeader(msgspec.Struct, kw_only=True, rename={"start": "from", "end": "to"}):
    """Where the frames belong: bytes [start, end) of `segment` written by the serving host `source`.

    event_times: model → the latest event time (microseconds) of which every row has been sent; empty while rows of
    another worker may still be waiting.
    """

    source: str
    segment: str
    start: int
    end: int
    events: int
    crc32: int
    event_times: dict[str, int]
    folds: list[Fold]
    format: int = FORMAT


class Accepted(msgspec.Struct):
    """The control plane's answer: the offset it has recorded for the segment."""

    accepted: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A received body, checked."""

    header: BatchHeader
    frames: bytes


def pack_batch(header: BatchHeader, frames: bytes) -> bytes:
    """Return the request body."""
    head = msgspec.json.encode(header)
    return b"".join((_LENGTH.pack(len(head)), head, frames))


def open_batch(body: bytes) -> Batch:
    """Parse and check a request body; raises BadInput saying what is wrong with it."""
    where = "event batch"
    if len(body) < _LENGTH.size:
        raise BadInput("too short", where=where, got=len(body))
    (length,) = _LENGTH.unpack_from(body)
    frames = body[_LENGTH.size + length :]
    try:
        header = msgspec.json.decode(body[_LENGTH.size : _LENGTH.size + length], type=BatchHeader)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"the header cannot be read ({error})", where=where) from None
    if header.format != FORMAT:
        raise BadInput("another format", where=where, got=header.format, wanted=str(FORMAT))
    if header.start < 0 or header.end - header.start != len(frames):
        raise BadInput(
            "frames have another length", where=where, got=len(frames), wanted=f"{header.end - header.start}"
        )
    if zlib.crc32(frames) != header.crc32:
        raise BadInput("frames were damaged on the way", where=where)
    return Batch(header, frames)
