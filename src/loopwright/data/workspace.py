"""Folders of this machine for what is on its way; a killed process leaves nothing behind for long."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loopwright.kernel.errors import Unavailable
from loopwright.kernel.ids import new_id

_ALIVE = ".alive"
YOUNG = 60.0


@contextmanager
def workspace(under: Path | None) -> Iterator[Path]:
    """Make a fresh folder below `under` (None: the system's folder for temporary files) and delete it at the end.

    Its owner alone may look into it. Folders of processes that died are deleted too. Raises Unavailable.
    """
    under = under or Path(tempfile.gettempdir()) / f"loopwright-staging-{os.getuid()}"
    folder = under / new_id("landing")
    try:
        under.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sweep(under)
        folder.mkdir(mode=0o700)
        descriptor = os.open(folder / _ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(
            f"cannot make a folder for what is on its way ({error.strerror or error})",
            where=str(under),
            next="Check free space and permissions",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _sweep(under: Path) -> None:
    """Delete folders whose process is gone: the kernel has let go of their lock."""
    for folder in under.iterdir():
        with suppress(OSError):
            # Between its making and its lock a folder is as unlocked as a dead one.
            if time.time() - folder.stat().st_mtime < YOUNG:
                continue
            descriptor = os.open(folder / _ALIVE, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
