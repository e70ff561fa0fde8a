"""Brings the prediction log to a sink, from the segments on disk, at the sink's own pace."""

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput
from loopwright.kernel.files import write_atomic
from loopwright.kernel.sizes import said_size
from loopwright.serving.complaints import Complaints, in_words
from loopwright.serving.events import Event, frame
from loopwright.serving.segments import REFUSED, Placed, Stretch, read_stretch, segment_files
from loopwright.serving.sinks.base import Rejected, Row, Sink
from loopwright.serving.wire import event_uid

STRETCH_BYTES = 1 << 20
LONGEST_PAUSE = 30.0


class Knowledge(Protocol):
    """What is known of the events' versions and policies."""

    def inputs(self, model: str, version: int) -> tuple[str, ...] | None:
        """The names of a version's inputs."""

    def keep(self, event: Event) -> bool:
        """Whether the event's row is in the sample."""

    def redacted(self, model: str, events: list[Event]) -> frozenset[str]:
        """The inputs that some of the events were written without."""


class Feeder:
    """Feeds one sink in a thread of its own; is a `Reader` of the segments. Offsets survive a kill; what was sent since
    they were last saved is sent again, under the same uids.
    """

    def __init__(
        self,
        sink: Sink,
        folder: Path,
        source: str,
        knowledge: Knowledge,
        complain: Complaints,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sink = sink
        self._folder = folder
        self._source = source
        self._knowledge = knowledge
        self._complain = complain
        self._clock = clock
        self._slug = _slug(sink.name)
        self._path = folder / "sinks" / f"{self._slug}.json"
        self._offsets: dict[str, int] = {}
        with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
            self._offsets = msgspec.json.decode(self._path.read_bytes(), type=dict[str, int])
        self._changing = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sink {sink.name}", daemon=True)
        self._up = True
        self._level_at = clock()
        self._rows = self._rejected = self._given_up = self._given_up_bytes = 0

    # What the shipper asks, from its thread.

    def reached(self, segment: str) -> int:
        """How far the sink has confirmed the segment."""
        return self._offsets.get(segment, 0)

    def give_up(self, segment: str, end: int) -> None:
        """Do without what the sink has not confirmed: say so, count it."""
        start = self.reached(segment)
        lost = sum(len(stretch.placed) for stretch in self._rest(self._folder / f"{segment}.seg", start))
        with self._changing:
            self._offsets[segment] = max(end, start)
            self._given_up += lost
            self._given_up_bytes += max(0, end - start)
        self._complain(
            f"gave up {self.sink.name} {segment}",
            f"GIVEN UP for {self.sink.name}: {lost} predictions ({said_size(end - start)}) of {segment}. It lags by "
            "more than --log-keep; the control plane has them: send them again with `loopwright log replay`.",
        )

    def forget(self, segment: str) -> None:
        """The segment is gone."""
        with self._changing:
            self._offsets.pop(segment, None)
        self._complain.over(f"gave up {self.sink.name} {segment}")

    def backlog(self) -> int:
        """Bytes that the sink has not confirmed."""
        waiting = 0
        for path in segment_files(self._folder):
            with contextlib.suppress(FileNotFoundError):
                waiting += max(0, path.stat().st_size - self.reached(path.stem))
        return waiting

    def gauges(self) -> dict[str, float]:
        """Numbers for /metrics, by name and label."""
        backlog = self.backlog()
        if not backlog:
            self._level_at = self._clock()
        label = f'{{sink="{self.sink.name}"}}'
        return {
            f"log_sink_up{label}": float(self._up),
            f"log_sink_backlog_bytes{label}": float(backlog),
            f"log_sink_lag_seconds{label}": round(self._clock() - self._level_at, 3),
            f"log_sink_rows_total{label}": float(self._rows),
            f"log_sink_rejected_total{label}": float(self._rejected),
            f"log_sink_given_up_total{label}": float(self._given_up),
            f"log_sink_given_up_bytes_total{label}": float(self._given_up_bytes),
        }

    # The thread.

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Let it send what is there, for `seconds` at most; return whether it came to an end."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause = self.sink.every
        while True:
            last = self._stopping.wait(pause)
            try:
                self.feed()
                pause = self.sink.every
                self._up = True
                self._complain.over(self.sink.name)
            except Exception as error:  # noqa: BLE001 - without this thread the sink would get nothing any more
                pause = min(max(pause, 0.25) * 2, LONGEST_PAUSE)
                self._up = False
                self._complain(self.sink.name, f"predictions wait for {self.sink.name}: {in_words(error)}")
            if last:
                self.sink.close()
                return

    def feed(self) -> int:
        """Send everything that is in the segments now; return the rows confirmed. Raises what `Sink.deliver` raises."""
        rows = 0
        segments = segment_files(self._folder)
        here = {path.stem for path in segments}
        with self._changing:
            for gone in self._offsets.keys() - here:
                del self._offsets[gone]
        for path in segments:
            for stretch in self._rest(path, self.reached(path.stem)):
                rows += self._send(stretch)
                with self._changing:
                    # Given up, or deleted, in the meantime: then that stands.
                    if path.exists():
                        self._offsets[path.stem] = max(stretch.end, self.reached(path.stem))
                self._save()
        return rows

    def _rest(self, path: Path, start: int) -> Iterable[Stretch]:
        """Stretches from `start` to where the segment ends now, or is torn or damaged."""
        with contextlib.suppress(FileNotFoundError, BadInput):
            size = path.stat().st_size
            while start < size and (stretch := read_stretch(path, start, size, STRETCH_BYTES)) is not None:
                yield stretch
                start = stretch.end

    def _send(self, stretch: Stretch) -> int:
        kept = [each for each in stretch.placed if self._knowledge.keep(each.event)]
        if not kept:
            return 0
        rows = [self._row(stretch.segment, each) for each in kept]
        token = f"{self._source}/{stretch.segment}/{stretch.start}-{stretch.end}/{len(rows)}"
        rejected = self.sink.deliver(rows, token)
        if rejected:
            self._set_aside(stretch, rejected)
        self._rows += len(rows) - len(rejected)
        return len(rows) - len(rejected)

    def _row(self, segment: str, placed: Placed) -> Row:
        event = placed.event
        return Row(
            uid=event_uid(self._source, segment, placed.start),
            source=self._source,
            event=event,
            names=self._knowledge.inputs(event.model, event.version),
            redacted=tuple(sorted(self._knowledge.redacted(event.model, [event]))),
        )

    def _set_aside(self, stretch: Stretch, rejected: Sequence[Rejected]) -> None:
        """Keep on disk what the sink will never take. Before the offset moves: a kill in between does it again."""
        kept = self._folder / REFUSED / f"{self._slug}_{stretch.segment}_{stretch.start:012d}.seg"
        write_atomic(kept, b"".join(frame(each.row.event) for each in rejected), mode=0o600)
        why = "".join(f"{each.row.uid}: {each.why}\n" for each in rejected)
        write_atomic(kept.with_suffix(".txt"), why.encode(), mode=0o600)
        self._rejected += len(rejected)
        self._complain(
            f"rejected {self.sink.name}",
            f"{self.sink.name} will never take {len(rejected)} predictions ({rejected[0].why}); they are kept at "
            f"{kept}, the others go on.",
        )

    def _save(self) -> None:
        # Not synced, and a full disk is no reason to stop: what is sent again is told apart by uid.
        partial = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            partial.parent.mkdir(mode=0o700, exist_ok=True)
            with self._changing:
                partial.write_bytes(canonical_json(self._offsets))
            partial.replace(self._path)


def _slug(name: str) -> str:
    """A file name for a sink: readable, and no other sink's."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", name)[:80].strip("_")
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
