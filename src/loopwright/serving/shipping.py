"""Ships the prediction log to the control plane: at least once over the wire, exactly once in effect (see `wire`)."""

import contextlib
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput, LoopwrightError
from loopwright.kernel.files import write_atomic
from loopwright.serving.events import Event
from loopwright.serving.fold import Profiler, Redacted, fold_events
from loopwright.serving.segments import (
    REFUSED,
    Reader,
    Stretch,
    is_torn,
    read_stretch,
    segment_files,
    still_written,
)
from loopwright.serving.wire import BatchHeader, pack_batch

BATCH_BYTES = 4 << 20
AHEAD_US = 3_600_000_000  # an event may be dated an hour ahead of the clock, and still move event time
KEEP_BYTES = 4 << 30


def disk_room(folder: Path) -> tuple[int, int]:
    """Bytes free on the disk of `folder`, and how few of them are nearly none: a twentieth of it, 256 MB at most."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize, min(256 << 20, disk.f_blocks * disk.f_frsize // 20)


class Shipper:
    """Reads the segments in a folder and sends what the control plane does not have yet. Threads take turns.

    send: delivers a packed batch and returns the offset the control plane has recorded; raises BadInput for a batch
    that it will never take, and something else when it does not answer. profiler, redacted: see `fold_events`.
    in_sample(event): whether its row goes along; all are counted. is_writing(name): a process that writes segments
    `<name>-<number>` may be alive. readers: who else needs the segments; `keep` bytes at most stay for their sake.
    """

    def __init__(
        self,
        folder: Path,
        source: str,
        *,
        send: Callable[[bytes], int],
        profiler: Callable[[str, int], Profiler | None],
        is_writing: Callable[[str], bool],
        complain: Callable[[str], None],
        redacted: Redacted | None = None,
        in_sample: Callable[[Event], bool] | None = None,
        readers: Sequence[Reader] = (),
        keep: int = KEEP_BYTES,
    ) -> None:
        self._folder = folder
        self._source = source
        self._send = send
        self._profiler = profiler
        self._is_writing = is_writing
        self._complain = complain
        self._redacted = redacted
        self._in_sample = in_sample
        self._readers = readers
        self._keep = keep
        self._offsets_path = folder / "offsets.json"
        self._offsets: dict[str, int] = {}
        # How far each model's event time has come, as far as the control plane was not told yet.
        self._untold: dict[str, int] = {}
        self._damaged: set[str] = set()
        # A server that stops does not wait for a round that hangs on the control plane, and begins another.
        self._turn = threading.Lock()
        if self._offsets_path.exists():
            # Losing this file is harmless: the control plane answers the true offset to the first batch.
            try:
                self._offsets = msgspec.json.decode(self._offsets_path.read_bytes(), type=dict[str, int])
            except (msgspec.MsgspecError, UnicodeDecodeError):
                self._offsets = {}

    def backlog(self) -> int:
        """Return how many bytes wait to be shipped."""
        waiting = 0
        for path in segment_files(self._folder):
            with contextlib.suppress(FileNotFoundError):  # shipped and deleted by `ship` in another thread
                waiting += max(0, path.stat().st_size - self._offsets.get(path.stem, 0))
        return waiting

    def set_aside(self) -> int:
        """Return how many files of events lie on disk that a receiver refused."""
        return sum(1 for _ in (self._folder / REFUSED).glob("*.seg"))

    def ship(self) -> int:
        """Send everything that is in the segments now; return the bytes accepted. Raises what `send` raises.

        A segment nobody writes any more is deleted once the control plane and every reader have all of it. Only the
        last batch of a round says how far event time has come: until then another worker's earlier rows may still be
        waiting here. What the control plane refuses is set aside, event by event; where even that cannot be agreed
        with it, the segment stays, the others go on, and the error is raised at the end.
        """
        with self._turn:
            return self._ship()

    def _ship(self) -> int:
        sent = 0
        segments = segment_files(self._folder)
        # Asked before the sizes are taken, so that a last append is not deleted unread.
        still_open = still_written(segments, self._is_writing)
        sizes = {path: path.stat().st_size for path in segments}
        waiting = [path for path, size in sizes.items() if size > self._offsets.get(path.stem, 0)]
        stuck: LoopwrightError | None = None
        for path, size in sizes.items():
            try:
                sent += self._ship_segment(path, size, is_last=path == waiting[-1] if waiting else False)
            except BadInput as error:
                stuck = stuck or error
                continue
            if path not in still_open and path.exists():
                self._retire(path)
        self._make_room(still_open)
        if stuck is not None:
            raise stuck
        return sent

    def tidy(self) -> None:
        """Delete the segments that nobody writes and all who need them have; sends nothing.

        While somebody ships, who does the same, nothing is left to do.
        """
        if not self._turn.acquire(blocking=False):
            return
        try:
            self._tidy()
        finally:
            self._turn.release()

    def _tidy(self) -> None:
        segments = segment_files(self._folder)
        still_open = still_written(segments, self._is_writing)
        for path in segments:
            if path not in still_open:
                self._retire(path)

    def _ship_segment(self, path: Path, size: int, *, is_last: bool) -> int:
        sent, rewinds, most = 0, 0, 0
        offset = self._offsets.get(path.stem, 0)
        while offset < size:
            # No further than the size taken when the round began: later rows may be ahead of another worker's.
            try:
                stretch = read_stretch(path, offset, size, BATCH_BYTES)
            except BadInput as error:
                self._note_damage(path, error)
                break
            if stretch is None:
                break
            if most:
                stretch = stretch.first(most)
            ends_round = is_last and stretch.end >= size
            try:
                accepted = self._send(self._pack(stretch, ends_round=ends_round))
                self._untold = self._reached(stretch, accepted)
                if ends_round and accepted == stretch.end:
                    self._untold = {}
            except BadInput as error:
                if len(stretch.placed) > 1:
                    most = len(stretch.placed) // 2  # which of them is it?
                    continue
                accepted = self._pass_over(stretch, error)
            if accepted == stretch.end:
                sent += len(stretch.frames)
                most *= 2
            elif rewinds > 3 or accepted > size:
                raise BadInput(
                    "the control plane's offset does not fit the log",
                    where=path.name,
                    got=accepted,
                    wanted=f"{stretch.end}",
                )
            else:
                rewinds += 1
            offset = accepted
            self._offsets[path.stem] = offset
            self._save()
        return sent

    def _pack(self, stretch: Stretch, *, ends_round: bool) -> bytes:
        folds = fold_events([each.event for each in stretch.placed], self._profiler, self._redacted)
        kept = [each for each in stretch.placed if self._in_sample is None or self._in_sample(each.event)]
        frames, offsets = stretch.frames, list[int]()
        if len(kept) < len(stretch.placed):
            frames = b"".join(frames[each.start - stretch.start : each.end - stretch.start] for each in kept)
            offsets = [each.start for each in kept]
        header = BatchHeader(
            source=self._source,
            segment=stretch.segment,
            start=stretch.start,
            end=stretch.end,
            events=len(kept),
            crc32=zlib.crc32(frames),
            event_times=self._reached(stretch, stretch.end) if ends_round else {},
            folds=folds,
            offsets=offsets,
        )
        return pack_batch(header, frames)

    def _reached(self, stretch: Stretch, end: int) -> dict[str, int]:
        """How far event time has come with what lies before `end`, as far as it was not told."""
        reached = dict(self._untold)
        for each in stretch.placed:
            event = each.event
            # One row dated in the future must not complete every window until then.
            if each.end <= end and event.event_time <= event.at + AHEAD_US:
                reached[event.model] = max(reached.get(event.model, event.event_time), event.event_time)
        return reached

    def _pass_over(self, stretch: Stretch, error: BadInput) -> int:
        """Set an event aside that the control plane refuses, and agree with it to go on behind it.

        The file comes first: a kill in between leaves an event both here and still to be sent, and never nowhere.
        """
        kept = self._folder / REFUSED / f"{stretch.segment}_{stretch.start:012d}.seg"
        write_atomic(kept, stretch.frames, mode=0o600)
        told = f"{error}\nTo have it sent again, move {kept.name} to {self._folder}.\n"
        write_atomic(kept.with_suffix(".txt"), told.encode(), mode=0o600)
        nothing = BatchHeader(
            source=self._source, segment=stretch.segment, start=stretch.start, end=stretch.end, events=0, crc32=0,
            event_times={}, folds=[],
        )  # fmt: skip
        accepted = self._send(pack_batch(nothing, b""))
        self._complain(
            f"the control plane refuses an event: {error}. It is set aside at {kept}; the others go on."
        )
        return accepted

    def _retire(self, path: Path) -> None:
        """Delete a segment that nobody writes, when all who need it have all of it."""
        offset = self._offsets.get(path.stem, 0)
        if any(reader.reached(path.stem) < offset for reader in self._readers):
            return
        if offset < path.stat().st_size and self._is_through(path, offset) and not is_torn(path, offset):
            self._note_damage(path, BadInput("a frame's length is wrong", where=f"event log, byte {offset}"))
        if path.stem in self._damaged:
            with contextlib.suppress(FileNotFoundError):
                path.rename(path.with_suffix(".damaged"))
        elif self._is_through(path, offset):
            path.unlink()
        else:
            return
        self._damaged.discard(path.stem)
        self._offsets.pop(path.stem, None)
        for reader in self._readers:
            reader.forget(path.stem)
        self._save()

    def _is_through(self, path: Path, offset: int) -> bool:
        # What is left can only be a frame that a killed worker did not finish: it was never answered.
        size = path.stat().st_size
        if offset == size or path.stem in self._damaged:
            return True
        try:
            return read_stretch(path, offset, size, BATCH_BYTES) is None
        except BadInput:
            return False  # damaged, which the next round tells

    def _make_room(self, still_open: set[Path]) -> None:
        """Have readers that lag give up the oldest segments that stay for their sake alone: those beyond `keep` bytes,
        and as many as it takes when the disk is nearly full.
        """
        if not self._readers:
            return
        held = []
        for path in segment_files(self._folder):
            with contextlib.suppress(FileNotFoundError):
                if path not in still_open and self._is_through(path, self._offsets.get(path.stem, 0)):
                    held.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        free, low = disk_room(self._folder)
        # A full disk stops answers: what is kept for a sink that is away must not bring that about.
        over = max(sum(size for _, size, _ in held) - self._keep, low - free)
        for _, size, path in sorted(held):
            if over <= 0:
                return
            end = self._offsets.get(path.stem, 0)
            for reader in self._readers:
                if reader.reached(path.stem) < end:
                    reader.give_up(path.stem, end)
            self._retire(path)
            over -= size

    def _note_damage(self, path: Path, error: BadInput) -> None:
        if path.stem in self._damaged:
            return
        self._damaged.add(path.stem)
        kept = path.with_suffix(".damaged")
        self._complain(f"{error}. The rest of this segment is not shipped; it is kept at {kept}.")

    def _save(self) -> None:
        # Not synced to disk on purpose: a sync makes the workers' own appends wait, and a lost offset is harmless.
        # A full disk neither: shipping is what frees it.
        partial = self._offsets_path.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            partial.write_bytes(canonical_json(self._offsets))
            partial.replace(self._offsets_path)
