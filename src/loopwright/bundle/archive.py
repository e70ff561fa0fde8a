"""A folder that plain MLflow logged as one file: the same folder gives the same bytes, and it is unpacked safely."""

import io
import os
import stat
import zipfile
from pathlib import Path

from loopwright.bundle.folder import list_files, safe_name
from loopwright.bundle.pickles import Scan
from loopwright.kernel.digest import sha256_bytes
from loopwright.kernel.errors import BadInput

PROGRAM = "any code"
"""What the trust record of such an archive names in the place of imports: it is a program, and may do what one may."""

MAX_ENTRIES = 1_000
MAX_UNPACKED = 4 << 30
_ENCRYPTED = 1
_MOMENT = (1980, 1, 1, 0, 0, 0)


def pack(folder: Path) -> bytes:
    """The folder's files as a zip archive; raises BadInput for what is no MLflow model, Tampered for links in it."""
    if not (folder / "MLmodel").is_file():
        raise BadInput("no MLflow model: there is no MLmodel in it", where=str(folder))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(list_files(folder)):
            entry = zipfile.ZipInfo(safe_name(name), _MOMENT)
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, (folder / name).read_bytes())
    return packed.getvalue()


def check_archive(data: bytes) -> list[zipfile.ZipInfo]:
    """The entries of an archive that `unpack` may write; raises BadInput naming the first that it may not."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise BadInput(f"not an archive ({error})", where="model.pyfunc.zip") from None
    total, names = 0, set()
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        total += entry.file_size
        if kind not in (0, stat.S_IFREG) or entry.is_dir():
            raise BadInput("an archive of a model holds plain files only", got=entry.filename)
        if entry.flag_bits & _ENCRYPTED or entry.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise BadInput(
                "a file in the archive is packed in another way", got=entry.filename, wanted="deflated"
            )
        if safe_name(entry.filename) in names:
            raise BadInput("a file twice in the archive", got=entry.filename)
        names.add(entry.filename)
    if len(entries) > MAX_ENTRIES or total > MAX_UNPACKED:
        raise BadInput(
            "the archive is too large",
            got=f"{len(entries)} files, {total:,} bytes",
            wanted=f"at most {MAX_ENTRIES} files and {MAX_UNPACKED:,} bytes",
        )
    if "MLmodel" not in names:
        raise BadInput("no MLflow model: there is no MLmodel in it", where="model.pyfunc.zip")
    return entries


def unpack(data: bytes, folder: Path) -> None:
    """Write the archive's files below `folder`, which is empty; raises BadInput for what `pack` would not write."""
    entries = check_archive(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in entries:
            target = folder / entry.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            # A name that is taken by a folder, or a link: opened so that neither is followed or overwritten.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with archive.open(entry) as source, os.fdopen(os.open(target, flags, 0o600), "wb") as file:
                left = entry.file_size
                while chunk := source.read(min(1 << 20, left + 1)):
                    left -= len(chunk)
                    if left < 0:
                        raise BadInput("holds more than it says", got=entry.filename)
                    file.write(chunk)


def scan_archive(data: bytes) -> Scan:
    """What a person decides on before such an archive is trusted: that it is a program. Raises BadInput."""
    check_archive(data)
    return Scan(sha256_bytes(data), len(data), "mlflow pyfunc", globals=(PROGRAM,))
