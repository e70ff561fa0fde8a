"""Files that are whole or absent, and a lock between processes."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from loopwright.kernel.errors import LoopwrightError, Unavailable


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write `data` so that readers and crashes see the old file or the new one, never a part.

    Creates missing folders. A full or read-only disk raises Unavailable and leaves nothing behind.
    """
    with written_whole(path, mode=mode) as stream:
        stream.write(data)


@contextmanager
def written_whole(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open `path` for writing bit by bit; it appears, or is replaced, when the block ends without an error.

    Creates missing folders. A full or read-only disk raises Unavailable and leaves nothing behind.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except LoopwrightError:
        raise
    except OSError as error:
        raise Unavailable(
            f"cannot write ({error.strerror or error})",
            where=str(path),
            next="Check free space and permissions.",
        ) from error


def append_line(path: Path, line: bytes) -> None:
    """Add one line to the end of `path`, made with its folder when missing; on disk when this returns.

    A line that a crash cut short is ended first, so that it spoils no other. Raises Unavailable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                line = line if stream.read(1) == b"\n" else b"\n" + line
            stream.write(line + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise Unavailable(
            f"cannot write ({error.strerror or error})",
            where=str(path),
            next="Check free space and permissions.",
        ) from error


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` across processes; waits for whoever holds it.

    The kernel lets go when the process dies, so a crash leaves no lock behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(f"cannot lock ({error.strerror or error})", where=str(path)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    # A rename is durable only once its folder is.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
