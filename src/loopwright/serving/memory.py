"""How much memory a worker takes, and when that is a reason to replace it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loopwright.kernel.sizes import said_size

LOOKS = 3
"""Looks in a row over the ceiling before a worker is replaced: a large request passes."""

LONGEST_REST_SECONDS = 3600.0

GAIN = 0.1
"""What a new worker must take less, as a share of the ceiling, for replacing to be worth it."""

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident(pid: int) -> int:
    """Return the bytes of memory of process `pid` and the processes it started; 0 when it is gone.

    Its children count without what they share with others, such as libraries.
    """
    total, _ = _pages(pid)
    waiting = _children(pid)
    while waiting:
        child = waiting.pop()
        taken, shared = _pages(child)
        total += max(0, taken - shared)
        waiting += _children(child)
    return total * _PAGE


def _pages(pid: int) -> tuple[int, int]:
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
        return int(fields[1]), int(fields[2])
    except (OSError, IndexError):
        return 0, 0  # gone between two looks


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    except OSError:
        return found  # gone between two looks
    return found


@dataclass(slots=True)
class _Seen:
    """What is known of the worker that a slot has now. fresh: bytes it took when it came up."""

    pid: int
    since: float
    fresh: int
    over: int = 0


class Ceiling:
    """Says which worker of a server is to be replaced because of its memory: never more than one at a time.

    A worker goes when it is over `limit` bytes at LOOKS looks in a row, is `rest` seconds old (which doubles with each
    time that its slot's worker went), and took less when it was fresh: replacing one whose models do not fit would free
    nothing, and is complained about instead.
    """

    def __init__(self, limit: int, *, rest: float) -> None:
        self.limit = limit
        self._rest = rest
        self._seen: dict[str, _Seen] = {}
        self._times: dict[str, int] = {}

    def judge(self, workers: Mapping[str, tuple[int, int, int]], now: float) -> tuple[str, str] | None:
        """Return (slot, why) for the worker to be replaced, or None.

        workers: by slot its pid, the bytes it took when it came up, and those it takes. now: in seconds, monotonic.
        """
        for slot in self._seen.keys() - workers.keys():
            del self._seen[slot]
        worst: tuple[int, str] | None = None
        for slot, (pid, fresh, taken) in workers.items():
            seen = self._seen.get(slot)
            if seen is None or seen.pid != pid:
                seen = self._seen[slot] = _Seen(pid, now, fresh)
            seen.over = seen.over + 1 if taken > self.limit else 0
            rest = min(self._rest * 2 ** self._times.get(slot, 0), LONGEST_REST_SECONDS)
            if now - seen.since > 2 * rest and not seen.over:
                self._times.pop(slot, None)
            ripe = seen.over >= LOOKS and now - seen.since >= rest
            if ripe and taken - seen.fresh >= GAIN * self.limit and (worst is None or taken > worst[0]):
                worst = taken, slot
        if worst is None:
            return None
        taken, slot = worst
        self._times[slot] = self._times.get(slot, 0) + 1
        # Its replacement is judged anew; should there be none, this one is not named again before its rest is over.
        self._seen[slot].over, self._seen[slot].since = 0, now
        return slot, f"takes {said_size(taken)}, over the ceiling of {said_size(self.limit)}"

    def hopeless(self) -> str:
        """Why replacing would not help, when workers are over the ceiling as soon as they are ready; else ""."""
        for slot, seen in sorted(self._seen.items()):
            if seen.over >= LOOKS and seen.fresh > (1 - GAIN) * self.limit:
                return (
                    f"worker {slot} takes {said_size(seen.fresh)} when it is fresh, and the ceiling is "
                    f"{said_size(self.limit)}: replacing it frees nothing. Raise --max-memory or serve fewer models"
                )
        return ""
