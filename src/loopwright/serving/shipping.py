"""Ships the prediction log to the control plane: at least once over the wire, exactly once in effect (see `wire`)."""

import contextlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput
from loopwright.serving.events import read_frames, whole_frames
from loopwright.serving.fold import Profiler, fold_events
from loopwright.serving.wire import BatchHeader, pack_batch

BATCH_BYTES = 4 << 20
AHEAD_US = 3_600_000_000  # an event may be dated an hour ahead of the clock, and still move event time


class Shipper:
    """Reads the segments in a folder and sends what the control plane does not have yet. One thread at a time.

    send: delivers a packed batch and returns the offset the control plane has recorded; raises when it does not answer.
    profiler: see `fold_events`. is_writing(name): a process that writes segments `<name>-<number>` may be alive.
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
    ) -> None:
        self._folder = folder
        self._source = source
        self._send = send
        self._profiler = profiler
        self._is_writing = is_writing
        self._complain = complain
        self._offsets_path = folder / "offsets.json"
        self._offsets: dict[str, int] = {}
        # How far each model's event time has come, as far as the control plane was not told yet.
        self._untold: dict[str, int] = {}
        if self._offsets_path.exists():
            # Losing this file is harmless: the control plane answers the true offset to the first batch.
            try:
                self._offsets = msgspec.json.decode(self._offsets_path.read_bytes(), type=dict[str, int])
            except (msgspec.MsgspecError, UnicodeDecodeError):
                self._offsets = {}

    def backlog(self) -> int:
        """Return how many bytes wait to be shipped."""
        waiting = 0
        for path in self._segments():
            with contextlib.suppress(FileNotFoundError):  # shipped and deleted by `ship` in another thread
                waiting += max(0, path.stat().st_size - self._offsets.get(path.stem, 0))
        return waiting

    def ship(self) -> int:
        """Send everything that is in the segments now; return the bytes accepted. Raises what `send` raises.

        A segment nobody writes any more is deleted once the control plane has all of it. Only the last batch of a round
        says how far event time has come: until then another worker's earlier rows may still be waiting here.
        """
        sent = 0
        segments = self._segments()
        newest = {path.stem.rpartition("-")[0]: path for path in segments}
        # Asked before the sizes are taken, so that a last append is not deleted unread.
        still_open = {
            path: newest[(writer := path.stem.rpartition("-")[0])] == path and self._is_writing(writer)
            for path in segments
        }
        sizes = {path: path.stat().st_size for path in segments}
        waiting = [path for path, size in sizes.items() if size > self._offsets.get(path.stem, 0)]
        for path, size in sizes.items():
            sent += self._ship_segment(path, size, is_last=path == waiting[-1] if waiting else False)
            if not still_open[path] and path.exists():
                self._retire(path)
        return sent

    def _ship_segment(self, path: Path, size: int, *, is_last: bool) -> int:
        sent, rewinds = 0, 0
        offset = self._offsets.get(path.stem, 0)
        with path.open("rb") as stream:
            while offset < size:
                # No further than the size taken when the round began: later rows may be ahead of another worker's.
                data = os.pread(stream.fileno(), min(BATCH_BYTES, size - offset), offset)
                try:
                    end = whole_frames(data)
                except BadInput as error:
                    self._quarantine(path, error)
                    return sent
                if end == 0:
                    if len(data) < BATCH_BYTES:
                        break  # a torn tail, or a frame still being written
                    data = os.pread(stream.fileno(), size - offset, offset)
                    end = whole_frames(data)
                    if end == 0:
                        break
                frames = data[:end]
                ends_round = is_last and offset + len(frames) >= size
                accepted = self._send(self._pack(path.stem, offset, frames, ends_round=ends_round))
                if accepted == offset + len(frames):
                    sent += len(frames)
                    if ends_round:
                        self._untold = {}
                elif rewinds > 3 or accepted > size:
                    raise BadInput(
                        "the control plane's offset does not fit the log",
                        where=path.name,
                        got=accepted,
                        wanted=f"{offset + len(frames)}",
                    )
                else:
                    rewinds += 1
                offset = accepted
                self._offsets[path.stem] = offset
                self._save()
        return sent

    def _pack(self, segment: str, start: int, frames: bytes, *, ends_round: bool) -> bytes:
        events = list(read_frames(frames))
        for event in events:
            if event.event_time > event.at + AHEAD_US:
                continue  # one row dated in the future must not complete every window until then
            self._untold[event.model] = max(self._untold.get(event.model, event.event_time), event.event_time)
        header = BatchHeader(
            source=self._source,
            segment=segment,
            start=start,
            end=start + len(frames),
            events=len(events),
            crc32=zlib.crc32(frames),
            event_times=dict(self._untold) if ends_round else {},
            folds=fold_events(events, self._profiler),
        )
        return pack_batch(header, frames)

    def _retire(self, path: Path) -> None:
        size, offset = path.stat().st_size, self._offsets.get(path.stem, 0)
        with path.open("rb") as stream:
            rest = os.pread(stream.fileno(), size - offset, offset)
        # What is left can only be a frame that a killed worker did not finish: it was never answered.
        if offset == size or whole_frames(rest) == 0:
            path.unlink()
            self._offsets.pop(path.stem, None)
            self._save()

    def _quarantine(self, path: Path, error: BadInput) -> None:
        kept = path.with_suffix(".damaged")
        path.rename(kept)
        self._complain(f"{error}. The rest of this segment is not shipped; it is kept at {kept}.")

    def _segments(self) -> list[Path]:
        return sorted(self._folder.glob("*.seg"))

    def _save(self) -> None:
        # Not synced to disk on purpose: a sync makes the workers' own appends wait, and a lost offset is harmless.
        # A full disk neither: shipping is what frees it.
        partial = self._offsets_path.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            partial.write_bytes(canonical_json(self._offsets))
            partial.replace(self._offsets_path)
