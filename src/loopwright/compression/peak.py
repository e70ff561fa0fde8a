"""The most memory this process held while something ran."""

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_STATM = Path("/proc/self/statm")
_EVERY = 0.02
_lock = threading.Lock()
_open: "list[Peak]" = []


class Peak:
    """`with Peak() as peak:` … `peak.mb`: the high-water mark of the process's resident memory meanwhile, in MB.

    It is of the whole process: of other threads too, and of what was held before, which `held_mb` says. Memory that
    another process uses is not in it. `exact` when the kernel kept the mark; where it may not be reset, memory is
    looked at every 20 ms and a shorter peak is missed. Peaks may be inside each other. Linux only.
    """

    def __init__(self) -> None:
        self.held_mb = self.mb = 0.0
        self.exact = False
        self._done = threading.Event()
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.held_mb = self.mb = _resident()
        with _lock:
            for outer in _open:  # resetting the mark loses what it was
                outer.mb = max(outer.mb, _high_water())
            _open.append(self)
        try:
            _CLEAR.write_text("5")  # proc(5): resets the high-water mark of resident memory
            self.exact = True
        except OSError:
            self._watcher = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _lock:
            _open.remove(self)
        self._done.set()
        if self._watcher is not None:
            self._watcher.join()
        self.mb = max(self.mb, _high_water() if self.exact else _resident())

    def _watch(self) -> None:
        while not self._done.wait(_EVERY):
            self.mb = max(self.mb, _resident())


def _resident() -> float:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _high_water() -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6
