"""Room for downloads on this machine: checked for space, gone with the source that needed it."""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loopwright.kernel.errors import BadInput, Unavailable

MAX_DOWNLOAD = 1 << 40
SPARE = 256 << 20
KEPT = 7 * 24 * 3600
"""Seconds that a download which broke off waits to be gone on with."""


def folder() -> "tempfile.TemporaryDirectory[str]":
    """A new folder that lives as long as what is returned."""
    try:
        return tempfile.TemporaryDirectory(prefix="loopwright-source-")
    except OSError as error:
        raise Unavailable(
            f"no room for a download ({error.strerror or error})",
            where=tempfile.gettempdir(),
            next="Set TMPDIR",
        ) from error


def require_room(size: int, where: str) -> None:
    """Raise when `size` bytes are too many for us or for the disk."""
    if size > MAX_DOWNLOAD:
        raise BadInput(
            "too large to download", where=where, got=f"{size} bytes", wanted=f"at most {MAX_DOWNLOAD}"
        )
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if size > free - SPARE:
        raise Unavailable(
            "does not fit on the disk",
            where=where,
            got=f"{size >> 20} MB for {free >> 20} MB free in {tempfile.gettempdir()}",
            next="Make room, or set TMPDIR to a larger disk",
        )


def file_name(text: str) -> str:
    """A name for a file, made of what somebody else calls it."""
    return re.sub(r"[^\w.+-]", "_", text.rsplit("/", 1)[-1]).strip(".")[-120:] or "download"


@contextmanager
def unfinished(name: str) -> Iterator[Path | None]:
    """Where the download `name` may have broken off in an earlier process; None when another process is at it.

    The folder is this user's only; what has waited for KEPT seconds is deleted.
    """
    place = Path(tempfile.gettempdir()) / f"loopwright-{os.getuid()}"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        owned = place.lstat()
    except OSError:
        yield None
        return
    if place.is_symlink() or owned.st_uid != os.getuid() or owned.st_mode & 0o077:
        yield None
        return
    for old in place.iterdir():
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > KEPT:
                old.unlink()
    path = place / f"{hashlib.sha256(name.encode()).hexdigest()}.part"
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        yield path
