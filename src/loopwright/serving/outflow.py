"""Everything that takes predictions off this server: to the control plane, and to the sinks that were asked for."""

import threading
import time
from collections.abc import Callable

from loopwright.serving.cache import Cache
from loopwright.serving.complaints import Complaints
from loopwright.serving.events import Event
from loopwright.serving.options import ServeOptions
from loopwright.serving.profiles import Profiles
from loopwright.serving.shipping import Shipper, disk_room
from loopwright.serving.sinks.address import open_sink, parse_sink
from loopwright.serving.sinks.feeding import Feeder


class _Known:
    """What feeders ask about versions and policies."""

    def __init__(self, profiles: Profiles) -> None:
        self.inputs = profiles.inputs
        self._rules = profiles.rules

    def keep(self, event: Event) -> bool:
        return self._rules.keep(event)

    def redacted(self, model: str, events: list[Event]) -> frozenset[str]:
        return self._rules.redacted(model, events)


class Outflow:
    """One server's shipper and feeders. Raises BadInput for a sink that cannot be meant."""

    def __init__(
        self,
        options: ServeOptions,
        cache: Cache,
        profiles: Profiles,
        complain: Complaints,
        *,
        send: Callable[[bytes], int],
        is_writing: Callable[[str], bool],
    ) -> None:
        self._cache = cache
        self._say = options.say
        self._level_at = time.monotonic()
        source = cache.source()
        self.feeders = [
            Feeder(open_sink(parse_sink(url)), cache.segments, source, _Known(profiles), complain)
            for url in options.log_to
        ]
        self.shipper = Shipper(
            cache.segments,
            source,
            send=send,
            profiler=profiles.profiler,
            is_writing=is_writing,
            complain=options.say,
            redacted=profiles.rules.redacted,
            in_sample=profiles.rules.keep,
            readers=self.feeders,
            keep=options.log_keep,
        )

    def start(self) -> None:
        """Begin to feed the sinks."""
        for feeder in self.feeders:
            feeder.start()

    def stop(self, seconds: float) -> None:
        """Let the sinks have what is there, for `seconds` at most, and say what stays."""
        ending = [
            threading.Thread(target=feeder.stop, args=(seconds,), daemon=True) for feeder in self.feeders
        ]
        for thread in ending:
            thread.start()
        for thread in ending:
            thread.join(seconds + 1)
        for feeder in self.feeders:
            if left := feeder.backlog():
                self._say(
                    f"{left} bytes of predictions stay in {self._cache.segments} for {feeder.sink.name}"
                )

    def gauges(self) -> dict[str, float]:
        """Numbers for /metrics; raises OSError when the log's folder cannot be read."""
        free, low = disk_room(self._cache.segments)
        waiting = self.shipper.backlog()
        if not waiting:
            self._level_at = time.monotonic()
        numbers = {
            "unshipped_bytes": float(waiting),
            "log_lag_seconds": round(time.monotonic() - self._level_at, 3),
            "log_refused_files": float(self.shipper.set_aside()),
            "log_disk_free_bytes": float(free),
            "log_disk_low": float(free < low),
        }
        for feeder in self.feeders:
            numbers |= feeder.gauges()
        return numbers
