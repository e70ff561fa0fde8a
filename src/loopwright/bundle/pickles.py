"""Reads a pickle without loading it: what it would import, and whether it stays within what a plain model needs.

What `pickle_machine` cannot tell for certain is `unresolved`, and then the file can never be trusted.
"""

import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopwright.bundle.gadgets import ARRAY_WRAPPER, denied
from loopwright.bundle.pickle_machine import Findings, Machine
from loopwright.kernel.digest import sha256_bytes
from loopwright.kernel.errors import BadInput, Unavailable

MAX_BYTES = 2 << 30

_COMPRESSED = {b"x": "zlib", b"\x1f\x8b": "gzip"}
_FOREIGN = {
    b"PK\x03\x04": "npz or zip",
    b"\x93NUMPY": "npy",
    b"BZ": "bz2",
    b"\x5d\x00\x00": "lzma",
    b"\xfd7zXZ": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x89HDF": "hdf5",
    b"\x08": "onnx",
}


@dataclass(frozen=True, slots=True)
class Scan:
    """What a file of pickled objects holds.

    format: pickle, joblib, joblib+zlib, joblib+gzip, pickle+…, or another kind of file. globals: everything it would
    import, "module.name", sorted. unresolved, suspicious: why it can never be trusted. arrays: (position, bytes) of
    array data between opcodes, in the uncompressed stream.
    """

    digest: str
    size: int
    format: str
    globals: tuple[str, ...] = ()
    unresolved: tuple[str, ...] = ()
    suspicious: tuple[str, ...] = ()
    opcodes: int = 0
    arrays: tuple[tuple[int, int], ...] = ()

    @property
    def denied(self) -> tuple[str, ...]:
        """Globals that no trust record can allow, each with why."""
        whys = ((name, denied(*split(name))) for name in self.globals)
        return tuple(f"{name}: {why}" for name, why in whys if why)

    @property
    def objections(self) -> tuple[str, ...]:
        """Why the file can never be trusted; empty when a person may say yes to its globals."""
        return (*self.denied, *self.unresolved, *self.suspicious)

    def to_json(self) -> dict[str, Any]:
        """What a person decides on."""
        return {
            "digest": self.digest, "size": self.size, "format": self.format, "globals": list(self.globals),
            "objections": list(self.objections), "opcodes": self.opcodes, "trustable": not self.objections,
        }  # fmt: skip


def scan(path: Path) -> Scan:
    """Scan the file at `path`; raises BadInput when it cannot be read or is larger than `MAX_BYTES`."""
    return scan_bytes(read_bounded(path))


def scan_bytes(data: bytes) -> Scan:
    """Scan a file's bytes. Nothing in them is executed or imported; time and memory are bounded by their size."""
    digest, size = sha256_bytes(data), len(data)
    foreign = next((kind for prefix, kind in _FOREIGN.items() if data.startswith(prefix)), "")
    if foreign:
        return Scan(
            digest, size, foreign, suspicious=(f"not a plain pickle but {foreign}: export it to ONNX",)
        )
    try:
        stream, packed = unpack(data)
    except BadInput as error:
        return Scan(digest, size, "compressed", suspicious=(str(error),))
    found = Findings()
    machine = Machine(io.BytesIO(stream), len(stream), found)
    machine.run()
    if not found.broken and (rest := len(stream) - machine.position):
        found.suspect(f"{rest:,} bytes after the end of the pickle")
        while not found.broken and machine.position < len(stream):
            machine = Machine(machine.file, len(stream), found)
            machine.run()
    kind = "joblib" if found.arrays or ARRAY_WRAPPER in found.globals else "pickle"
    return Scan(
        digest, size, kind + (f"+{packed}" if packed else ""), tuple(sorted(found.globals)), tuple(found.unresolved),
        tuple(found.suspicious), found.opcodes, tuple(found.arrays),
    )  # fmt: skip


def read_bounded(path: Path) -> bytes:
    """The file's bytes, read once; raises BadInput for what is no file or too large, Unavailable for a disk error."""
    try:
        if not path.is_file():
            raise BadInput("no such file", where=str(path))
        if path.stat().st_size > MAX_BYTES:
            raise BadInput(
                "too large to be looked at",
                where=str(path),
                got=path.stat().st_size,
                wanted=f"{MAX_BYTES:,} bytes",
            )
        return path.read_bytes()
    except BadInput:
        raise
    except OSError as error:
        raise Unavailable(f"cannot be read ({error.strerror or error})", where=str(path)) from None


def unpack(data: bytes) -> tuple[bytes, str]:
    """Return the uncompressed stream and how it was packed ("" when it was not); raises BadInput."""
    packed = next((kind for prefix, kind in _COMPRESSED.items() if data.startswith(prefix)), "")
    if not packed:
        return data, ""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        stream = unpacker.decompress(data, MAX_BYTES)
    except zlib.error as error:
        raise BadInput(f"not readable as {packed} ({error})") from None
    if not unpacker.eof or unpacker.unused_data:
        raise BadInput(f"the {packed} stream is cut short, too large, or something follows it")
    return stream, packed


def split(name: str) -> tuple[str, str]:
    """Module and name of a global as a scan spells it: "a.b.c", or "a.b c.d" for the dotted name c.d."""
    if " " in name:
        module, _, rest = name.partition(" ")
        return module, rest
    module, _, rest = name.rpartition(".")
    return module, rest
