"""A file's bytes, unpacked as they are read: bounded, counted, and saying what is wrong with them."""

import codecs
import gzip
import io
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from loopwright.data.sources.reading import Damaged, Reading
from loopwright.kernel.errors import BadInput, Unavailable

CHUNK = 1 << 20
MAX_UNPACKED = 1 << 40
MAX_RATIO = 250
"""How many times larger than its archive a file may grow beyond the first GRACE bytes; text packs 3 to 50 times."""
GRACE = 1 << 30


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a delivery. `where`: its name in messages. `packing`: gzip, zip (its one `member`), zstd or None."""

    path: Path
    where: str
    format: str
    packing: str | None = None
    member: str | None = None

    def open(self, reading: Reading) -> "Stream":
        """The unpacked bytes in UTF-8. Raises BadInput or Unavailable when the file cannot be opened."""
        try:
            return Stream(
                self.path, self.packing, self.member, reading.encoding if reading.transcodes else None
            )
        except Damaged as error:
            raise BadInput(
                f"cannot be read as {self.format}",
                where=self.where,
                got=str(error),
                next="Check that the file is whole",
            ) from None
        except OSError as error:
            raise Unavailable(
                f"cannot be read ({error.strerror or error})",
                where=self.where,
                next="Check the file and its rights",
            ) from error


class Stream(io.RawIOBase):
    """Unpacked bytes of one file. Raises Damaged where they end too early or are not what they were packed from.

    `consumed`: bytes of the file read so far, packed. `size`: the file's bytes. Of what was given out: `lines`, its
    line ends; `blanks`, whether a line was blank; `tail`, its last bytes.
    """

    def __init__(
        self, path: Path, packing: str | None, member: str | None, encoding: str | None = None
    ) -> None:
        super().__init__()
        self._file = path.open("rb")
        self.size = path.stat().st_size
        self._unpacked = 0
        self.lines = 0
        self.blanks = False
        self.tail = b""
        self._held = b""
        self._inner: Any
        try:
            self._inner = _unpack(self._file, packing, member)
        except (OSError, zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError) as error:
            self._file.close()
            raise Damaged(f"cannot be unpacked ({error})") from error
        self._packing = packing
        self._decoder = codecs.getincrementaldecoder(encoding)() if encoding else None
        self._ended = False

    @property
    def consumed(self) -> int:
        return self.size if self._ended else min(self._file.tell(), self.size)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; b"" at the end. Short reads happen."""
        size = CHUNK if size is None or size < 0 else size
        if not self._held and not self._ended:
            self._held = self._next(min(max(size, 1 << 16), 4 * CHUNK))
        given, self._held = self._held[:size], self._held[size:]
        if given:
            self.lines += given.count(b"\n")
            joint = self.tail[-1:] + given[:1]
            self.blanks = self.blanks or any(b in given or b == joint for b in (b"\n\n", b"\n\r"))
            self.tail = given[-16:] if len(given) >= 16 else (self.tail + given)[-16:]
        return given

    def readinto(self, buffer: Any) -> int:
        given = self.read(len(buffer))
        buffer[: len(given)] = given
        return len(given)

    def unread(self, data: bytes) -> None:
        """Put back what was read last."""
        self._held = data + self._held
        self.tail = self.tail[: -len(data)] if data else self.tail
        self.lines -= data.count(b"\n")

    def close(self) -> None:
        with suppress(Exception):  # what is read only has nothing to lose when it closes
            self._inner.close()
        self._file.close()
        super().close()

    def _next(self, size: int) -> bytes:
        while True:
            data = self._raw(size)
            if not data:
                self._ended = True
            if self._decoder is None:
                return data
            try:
                text = self._decoder.decode(data, final=not data).encode()
            except UnicodeError as error:
                raise Damaged(f"not in its encoding ({error})") from None
            if text or not data:
                return text

    def _raw(self, size: int) -> bytes:
        try:
            data = bytes(self._inner.read(size))
        except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, pa.ArrowInvalid) as error:
            raise Damaged(_said(self._packing, error)) from None
        except OSError as error:
            if self._packing == "zstd" and error.errno is None:
                raise Damaged(_said(self._packing, error)) from None
            raise
        self._unpacked += len(data)
        read = max(self._file.tell(), 1)
        if self._packing and self._unpacked > GRACE and self._unpacked > MAX_RATIO * read:
            raise Damaged(
                f"unpacks to more than {MAX_RATIO} times its size ({self._unpacked} bytes from {read})"
            )
        if self._unpacked > MAX_UNPACKED:
            raise Damaged(f"unpacks to more than {MAX_UNPACKED} bytes")
        return data


def _unpack(file: IO[bytes], packing: str | None, member: str | None) -> Any:
    if packing == "zip":
        return zipfile.ZipFile(file).open(member or "")
    if packing == "gzip":
        return gzip.GzipFile(fileobj=file)
    if packing == "zstd":
        return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
    return file


def _said(packing: str | None, error: Exception) -> str:
    if isinstance(error, EOFError) or "runcated" in str(error):
        return f"the {packing} stream is cut off"
    return f"the {packing} stream is damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
