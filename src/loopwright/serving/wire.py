"""What travels from serving to the control plane: a stretch of one segment with its folds, applied exactly once.

Body: 4-byte little-endian length of the header, the header (JSON), the frames. The control plane applies a batch only
when `from` equals the offset it has recorded for (source, segment), in the transaction that records `to`, and always
answers the recorded offset; the sender goes on from there. So a lost answer, a retry and a crash on either side change
nothing.

A stretch may hold more events than the batch brings frames: the folds count all of them, the frames are those in the
sample that the model's policy asks for.
"""

import zlib
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct as Layout
from typing import Any

import msgspec

from loopwright.kernel.errors import BadInput, Conflict
from loopwright.serving.events import Event, read_placed

CONTENT_TYPE = "application/x-loopwright-events"
FORMAT = 2
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

    events: how many frames come along. offsets: where in the segment each of them begins; empty when they are all that
    the stretch holds, one behind the other. event_times: model → the latest event time (microseconds) of which every
    row has been sent; empty while rows of another worker may still be waiting.
    """

    source: str
    segment: str
    start: int
    end: int
    events: int
    crc32: int
    event_times: dict[str, int]
    folds: list[Fold]
    offsets: list[int] = []
    format: int = FORMAT


class Accepted(msgspec.Struct):
    """The control plane's answer: the offset it has recorded for the segment."""

    accepted: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A received body, checked."""

    header: BatchHeader
    frames: bytes
    events: list[Event]
    offsets: list[int]

    @property
    def uids(self) -> list[str]:
        """Each event's `event_uid`."""
        return [event_uid(self.header.source, self.header.segment, offset) for offset in self.offsets]


def event_uid(source: str, segment: str, offset: int) -> str:
    """The one name of an event everywhere, however often it is sent: server, segment and the byte it begins at."""
    return f"{source}/{segment}/{offset}"


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
        # Not the batch's fault: it can be sent again when both sides are of one release.
        raise Conflict(
            f"another release's format of events ({header.format}; this one takes {FORMAT})",
            where=where,
            next="Update serving and the control plane to the same release.",
        )
    span = header.end - header.start
    if header.start < 0 or span < len(frames) or (not header.offsets and len(frames) not in (0, span)):
        raise BadInput("frames have another length", where=where, got=len(frames), wanted=f"{span}")
    if zlib.crc32(frames) != header.crc32:
        raise BadInput("frames were damaged on the way", where=where)
    placed = list(read_placed(frames))
    return Batch(header, frames, [event for _, _, event in placed], _offsets(header, placed, len(frames)))


def _offsets(header: BatchHeader, placed: list[tuple[int, int, Event]], size: int) -> list[int]:
    """Where each frame begins in the segment; raises BadInput when the header cannot be right about it."""
    where = "event batch"
    if len(placed) != header.events or (placed and placed[-1][1] != size) or (size and not placed):
        raise BadInput("another number of frames", where=where, got=len(placed), wanted=f"{header.events}")
    if not header.offsets:
        return [header.start + start for start, _, _ in placed]
    if len(header.offsets) != len(placed):
        raise BadInput("not one offset for each frame", where=where, got=len(header.offsets))
    ends = [offset + after - start for offset, (start, after, _) in zip(header.offsets, placed, strict=True)]
    edges = [
        header.start,
        *(edge for pair in zip(header.offsets, ends, strict=True) for edge in pair),
        header.end,
    ]
    if any(low > high for low, high in pairwise(edges)):
        raise BadInput("frames lie outside their stretch", where=where, got=header.offsets[:3])
    return list(header.offsets)
