"""Counters that every worker can read: one small memory-mapped file per worker slot.

The numbers live in the page cache, so `kill -9` of a worker loses none, its replacement goes on counting in the same
file, and whichever worker is asked for /metrics adds up all of them. Only the slot's own worker writes to a file.
"""

import mmap
import os
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from struct import Struct as Layout

from loopwright.kernel.errors import Unavailable

SIZES = tuple(2**power for power in range(14))
"""Upper ends of the batch size buckets in rows."""

GAUGES = frozenset(("queue_rows", "breaker_open"))
"""First words of keys that hold what is now, not what has been: with their process they end."""

BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends of the latency buckets in seconds; one more bucket is open."""

_BOUNDS_US = tuple(round(bound * 1_000_000) for bound in BOUNDS)
_ROW = 512
_KEY = 320
_NUMBERS = (_ROW - _KEY) // 8
_ROWS = 16_384
"""Series of one worker: some eight for each version that ever answered while the server runs."""

_HEADER = Layout("<II")
_COUNT, _SUM, _FIRST_BUCKET = 0, 1, 2
_SLO, _WITHIN = 17, 18
_OVERFLOW = ("overflow",)


@dataclass(slots=True)
class Series:
    """One series added up over workers. buckets are not cumulative. sum: microseconds, or rows.

    slo_us: the promise the durations are held to (0: none); within: of the bucket it lies in, how many kept it.
    """

    count: int = 0
    sum: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    slo_us: int = 0
    within: int = 0


class Counters:
    """The writing side. Keys are tuples of label values; a key costs 512 bytes once, an increment some 200 ns."""

    def __init__(self, path: Path) -> None:
        size = _ROW * (_ROWS + 1)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # Reserves the blocks now: a full disk is an error here, not a SIGBUS later.
                os.posix_fallocate(descriptor, 0, size)
                self._map = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise Unavailable(f"cannot keep counters ({error.strerror or error})", where=str(path)) from error
        self._numbers = memoryview(self._map).cast("q")
        self._rows: dict[tuple[str, ...], int] = {}
        for row, key in _keys(self._map):
            self._rows[key] = row
            if key[0] in GAUGES:
                self._numbers[row + _COUNT] = 0
        _HEADER.pack_into(self._map, 0, os.getpid(), len(self._rows))

    def add(self, key: tuple[str, ...], n: int = 1) -> None:
        """Add `n` to the key's count."""
        row = self._rows.get(key) or self._new(key)
        self._numbers[row + _COUNT] += n

    def put(self, key: tuple[str, ...], n: int) -> None:
        """Set what is now; the key's first word is one of GAUGES."""
        row = self._rows.get(key) or self._new(key)
        if row != self._rows.get(_OVERFLOW):
            self._numbers[row + _COUNT] = n

    def observe(self, key: tuple[str, ...], us: int, slo_us: int = 0) -> None:
        """Count one duration in microseconds, and whether it kept the promise of `slo_us`."""
        row = self._rows.get(key) or self._new(key)
        numbers = self._numbers
        numbers[row + _COUNT] += 1
        numbers[row + _SUM] += us
        bucket = bisect_left(_BOUNDS_US, us)
        numbers[row + _FIRST_BUCKET + bucket] += 1
        if slo_us:
            if (
                numbers[row + _SLO] != slo_us
            ):  # another promise: what lay within the former one says nothing of it
                numbers[row + _SLO], numbers[row + _WITHIN] = slo_us, 0
            if us <= slo_us and (bucket == len(_BOUNDS_US) or slo_us < _BOUNDS_US[bucket]):
                numbers[row + _WITHIN] += 1

    def observe_size(self, key: tuple[str, ...], rows: int) -> None:
        """Count one batch of `rows`."""
        row = self._rows.get(key) or self._new(key)
        numbers = self._numbers
        numbers[row + _COUNT] += 1
        numbers[row + _SUM] += rows
        numbers[row + _FIRST_BUCKET + min((rows - 1).bit_length(), len(SIZES))] += 1

    def _new(self, key: tuple[str, ...]) -> int:
        index = len(self._rows) + 1
        if index >= _ROWS and key != _OVERFLOW:
            # Past the limit everything is counted together under a key of its own rather than lost.
            return self._rows.get(_OVERFLOW) or self._new(_OVERFLOW)
        encoded = "\0".join(key).encode()
        if len(encoded) > _KEY - 4:  # a long name of a model must not cost the labels after it
            name = key[1].encode()
            short = f"{name[:128].decode(errors='ignore')}~{sha256(name).hexdigest()[:12]}"
            encoded = "\0".join((key[0], short, *key[2:])).encode()[: _KEY - 4]
        start = index * _ROW
        self._map[start + 4 : start + 4 + len(encoded)] = encoded
        self._map[start : start + 4] = len(encoded).to_bytes(4, "little")
        self._rows[key] = _number_of(index)
        _HEADER.pack_into(self._map, 0, os.getpid(), index)
        return self._rows[key]


def read_counters(folder: Path) -> dict[tuple[str, ...], Series]:
    """Return every series of every worker's file in `folder`, added up."""
    total: dict[tuple[str, ...], Series] = {}
    for path in sorted(folder.glob("*.counters")):
        with path.open("rb") as stream:
            data = stream.read(_HEADER.size)
            data += stream.read(_ROW * (1 + _head(data)[1]) - len(data))
        if len(data) < _ROW:
            continue  # only just made
        numbers = memoryview(data).cast("q")
        for row, key in _keys(data):
            series = total.setdefault(key, Series())
            series.count += numbers[row + _COUNT]
            series.sum += numbers[row + _SUM]
            for i in range(len(BOUNDS) + 1):
                series.buckets[i] += numbers[row + _FIRST_BUCKET + i]
            # Workers take over another promise one after the other: the newest to be written counts.
            slo_us = numbers[row + _SLO]
            if slo_us and slo_us == series.slo_us:
                series.within += numbers[row + _WITHIN]
            elif slo_us:
                series.slo_us, series.within = slo_us, numbers[row + _WITHIN]
    return total


def worker_pids(folder: Path) -> dict[str, int]:
    """Return the pid that last wrote each slot's file, by slot name."""
    pids = {}
    for path in sorted(folder.glob("*.counters")):
        with path.open("rb") as stream:
            pids[path.stem] = _head(stream.read(_HEADER.size))[0]
    return pids


def disown(path: Path) -> None:
    """Forget who wrote a file last: its process has ended, and another one may get its number. The counts stay."""
    with suppress(FileNotFoundError), path.open("r+b") as stream:
        held = [row for row, key in _keys(stream.read()) if key[0] in GAUGES]
        for row in held:
            stream.seek(8 * (row + _COUNT))
            stream.write(bytes(8))
        stream.seek(0)
        stream.write(bytes(4))


def _head(data: bytes) -> tuple[int, int]:
    """Who wrote last, and how many series; both 0 of a file that a worker has made but not yet filled."""
    return _HEADER.unpack(data) if len(data) == _HEADER.size else (0, 0)


def _keys(data: bytes | mmap.mmap) -> Iterator[tuple[int, tuple[str, ...]]]:
    if len(data) < _ROW:
        return
    _, rows = _HEADER.unpack_from(data, 0)
    for index in range(1, min(rows, _ROWS) + 1):
        start = index * _ROW
        length = int.from_bytes(data[start : start + 4], "little")
        yield (
            _number_of(index),
            tuple(data[start + 4 : start + 4 + length].decode(errors="replace").split("\0")),
        )


def _number_of(index: int) -> int:
    return (index * _ROW + _KEY) // 8
