"""Segments as those who ship them see them: files that grow, read in stretches of whole frames."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from loopwright.serving.events import Event, hides_frames, read_placed, whole_frames

REFUSED = "refused"
"""The folder, beside the segments, of what a receiver would not take."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An event and where its frame lies: bytes [start, end) of its segment."""

    start: int
    end: int
    event: Event


@dataclass(frozen=True, slots=True)
class Stretch:
    """Whole frames of a segment: bytes [start, end)."""

    segment: str
    start: int
    end: int
    frames: bytes
    placed: list[Placed]

    def first(self, count: int) -> "Stretch":
        """The stretch of the first `count` events."""
        placed = self.placed[:count]
        end = placed[-1].end if placed else self.start
        return Stretch(self.segment, self.start, end, self.frames[: end - self.start], placed)


class Reader(Protocol):
    """Somebody else who reads segments. Nothing is deleted before he has it, or has been told to give it up."""

    def reached(self, segment: str) -> int:
        """How far he has read."""

    def give_up(self, segment: str, end: int) -> None:
        """Do without what he has not read of it. Says so and counts it."""

    def forget(self, segment: str) -> None:
        """The segment is gone."""


def segment_files(folder: Path) -> list[Path]:
    """The segments in `folder`, each writer's in the order they were written."""
    return sorted(folder.glob("*.seg"))


def read_stretch(path: Path, start: int, size: int, most: int) -> Stretch | None:
    """Read whole frames from `start`, about `most` bytes and nothing beyond `size`; None when there is no whole one.

    Raises BadInput when the first of them is damaged, FileNotFoundError.
    """
    with path.open("rb") as stream:
        data = os.pread(stream.fileno(), min(most, size - start), start)
        end = whole_frames(data)
        if end == 0 and len(data) == most:
            data = os.pread(stream.fileno(), size - start, start)  # one frame longer than a stretch
            end = whole_frames(data)
    if end == 0:
        return None  # a torn tail, or a frame still being written
    frames = data[:end]
    placed = [Placed(start + begins, start + ends, event) for begins, ends, event in read_placed(frames)]
    return Stretch(path.stem, start, start + end, frames, placed)


def is_torn(path: Path, start: int) -> bool:
    """Whether what cannot be read from `start` on is but a frame that a killed process did not finish."""
    with path.open("rb") as stream:
        return not hides_frames(os.pread(stream.fileno(), 256 << 10, start))


def still_written(paths: Iterable[Path], is_writing: Callable[[str], bool]) -> set[Path]:
    """Those of `paths` that may grow: a living writer's newest. Ask before sizes are taken.

    What was put back by hand (`refused/` names files by segment and place) is no writer's, wherever its name sorts.
    """
    newest = {}
    for path in sorted(paths):
        writer, _, number = path.stem.rpartition("-")
        if number.isdecimal():
            newest[writer] = path
    return {path for writer, path in newest.items() if is_writing(writer)}


def claim(folder: Path, writer: str) -> None:
    """Say that this process writes the segments `<writer>-<number>`, until it ends in whatever way.

    A server that is started beside workers of a killed one must not take what they still write for finished. Where the
    disk does not let us say so, the writing goes on all the same.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(_claim_of(folder, writer), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # kept open: the kernel lets go of it


def is_claimed(folder: Path, writer: str) -> bool:
    """Whether a process that is alive has claimed the segments of `writer`; what a dead one left is cleared away."""
    path = _claim_of(folder, writer)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(descriptor)


def _claim_of(folder: Path, writer: str) -> Path:
    return folder / f".{writer}.writer"
