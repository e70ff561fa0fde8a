"""Reads a bundle's folder: exactly the files the manifest names, each with its digest, nothing else."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from loopwright.bundle.keys import PublicKey
from loopwright.bundle.manifest import MANIFEST, SEAL, Manifest, open_manifest, parse_manifest
from loopwright.kernel.digest import sha256_bytes, sha256_file
from loopwright.kernel.errors import BadInput, NotFound, Tampered

MAX_FILES = 200
MAX_BYTES = 4 << 30
MAX_MANIFEST = 16 << 20


def safe_name(name: str) -> str:
    """Return `name` when it is a plain relative path inside a bundle; raise BadInput otherwise."""
    path = PurePosixPath(name)
    parts = path.parts
    if not parts or path.is_absolute() or ".." in parts or str(path) != name or "\\" in name or "\0" in name:
        raise BadInput("not a path inside a bundle", got=name, wanted="a relative path without ..")
    return name


def list_files(root: Path) -> dict[str, int]:
    """Return every regular file below `root` with its size; raise Tampered for links, devices and excess."""
    found: dict[str, int] = {}
    total = 0
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(folder, name)
            status = path.lstat()
            relative = path.relative_to(root).as_posix()
            if stat.S_ISDIR(status.st_mode):
                continue
            if not stat.S_ISREG(status.st_mode):
                raise Tampered("a bundle holds plain files only, no links", where=str(root), got=relative)
            found[relative] = status.st_size
            total += status.st_size
            if len(found) > MAX_FILES or total > MAX_BYTES:
                raise Tampered(
                    "the bundle is too large",
                    where=str(root),
                    got=f"{len(found)} files, {total:,} bytes",
                    wanted=f"at most {MAX_FILES} files and {MAX_BYTES:,} bytes",
                )
    return found


def verify_folder(
    root: Path, keys: Sequence[PublicKey], *, keep: Sequence[str] = ()
) -> tuple[Manifest, str, dict[str, bytes]]:
    """Check seal, file list and every digest; return manifest, bundle digest and the bytes of the files in `keep`.

    The kept bytes are those that were checked, so a later change of the files changes nothing. Raises NotFound when
    there is no bundle, Tampered when anything differs.
    """
    where = str(root)
    if not (root / MANIFEST).is_file() or not (root / SEAL).is_file():
        raise NotFound(f"no bundle here: {MANIFEST} or {SEAL} is missing", where=where)
    found = list_files(root)
    if found[MANIFEST] > MAX_MANIFEST or found[SEAL] > MAX_MANIFEST:
        raise Tampered("the manifest is too large", where=where, got=found[MANIFEST])
    raw = (root / MANIFEST).read_bytes()
    manifest = open_manifest(raw, (root / SEAL).read_bytes(), tuple(keys), where=where)
    check_listing(manifest, found, where)
    kept: dict[str, bytes] = {}
    for name, digest in manifest.files.items():
        if name in keep:
            kept[name] = (root / name).read_bytes()
            actual = sha256_bytes(kept[name])
        else:
            actual = sha256_file(root / name)
        if actual != digest:
            raise Tampered(f"{name} was changed", where=where, got=actual, wanted=digest)
    return manifest, sha256_bytes(raw), kept


def check_contents(root: Path, digest: str) -> bytes:
    """Return the manifest's bytes when the folder holds exactly the bundle `digest`, whoever sealed it.

    Raises NotFound when there is no bundle, Tampered when a byte differs.
    """
    where = str(root)
    if not (root / MANIFEST).is_file() or not (root / SEAL).is_file():
        raise NotFound(f"no bundle here: {MANIFEST} or {SEAL} is missing", where=where)
    found = list_files(root)
    if found[MANIFEST] > MAX_MANIFEST:
        raise Tampered("the manifest is too large", where=where, got=found[MANIFEST])
    raw = (root / MANIFEST).read_bytes()
    if (actual := sha256_bytes(raw)) != digest:
        raise Tampered("the folder holds another bundle", where=where, got=actual, wanted=digest)
    manifest = parse_manifest(raw, where=where)
    check_listing(manifest, found, where)
    for name, wanted in manifest.files.items():
        if (actual := sha256_file(root / name)) != wanted:
            raise Tampered(f"{name} was changed", where=where, got=actual, wanted=wanted)
    return raw


def check_listing(manifest: Manifest, found: dict[str, int], where: str) -> None:
    """Raise Tampered unless `found` is exactly the manifest's files plus manifest and seal."""
    for name in manifest.files:
        safe_name(name)
    wanted = set(manifest.files) | {MANIFEST, SEAL}
    missing, extra = sorted(wanted - set(found)), sorted(set(found) - wanted)
    if missing or extra:
        parts = [
            f"{what}: {', '.join(names)}" for what, names in (("missing", missing), ("extra", extra)) if names
        ]
        raise Tampered("files differ from the manifest", where=where, got="; ".join(parts))
