"""A content-addressed folder of bundles: root/<digest>/, written once, never changed."""

import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from loopwright.bundle.folder import check_contents, check_listing, list_files, safe_name, verify_folder
from loopwright.bundle.keys import PublicKey, SigningKey
from loopwright.bundle.manifest import MANIFEST, SEAL, Manifest, parse_manifest, parse_seal, seal_manifest
from loopwright.kernel.digest import sha256_bytes, sha256_file
from loopwright.kernel.errors import BadInput, LoopwrightError, NotFound, Tampered, Unavailable
from loopwright.kernel.files import write_atomic

_DIGEST = re.compile(r"[0-9a-f]{64}")
_WITHDRAWN = ".withdrawn."


class BundleDepot:
    """Safe between processes: a bundle appears whole, by rename, or not at all."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: str) -> Path:
        """Return where the bundle `digest` lies or would lie; raises BadInput for what is no digest."""
        if not _DIGEST.fullmatch(digest):
            raise BadInput("not a bundle digest", got=digest, wanted="64 lowercase hex digits")
        return self.root / digest

    def has(self, digest: str) -> bool:
        """True when the bundle is here (whole, since it appears by rename)."""
        return (self.path(digest) / MANIFEST).is_file()

    def add(self, source: Path) -> str:
        """Copy the bundle at `source` in and return its digest. Is idempotent.

        Links, extra files and digests that do not match raise Tampered; a full disk raises Unavailable. Nothing is left
        behind then. The seal is not checked here: `verify` and `open_bundle` do.
        """
        if not (source / MANIFEST).is_file():
            raise NotFound(f"no bundle here: {MANIFEST} is missing", where=str(source))
        found = list_files(source)
        raw = (source / MANIFEST).read_bytes()
        digest = sha256_bytes(raw)
        manifest = parse_manifest(raw, where=str(source))
        check_listing(manifest, found, str(source))
        if self.has(digest):
            return digest
        staging = self.root / f".{digest[:12]}.{secrets.token_hex(6)}"
        try:
            for name in found:
                target = staging / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, target)
            self._adopt(staging, manifest, raw)
        except LoopwrightError:
            raise  # Tampered is a PermissionError, so an OSError too
        except OSError as error:
            raise Unavailable(
                f"cannot store the bundle ({error.strerror or error})",
                where=str(self.root),
                next="Check free space and permissions.",
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return digest

    def file(self, digest: str, name: str) -> Path:
        """Return the path of one file of a bundle; raises NotFound, BadInput for paths that lead outside."""
        path = self.path(digest) / safe_name(name)
        if not path.is_file() or path.is_symlink():
            raise NotFound("no such file in the bundle", where=digest, got=name)
        return path

    def verify(self, digest: str, keys: Sequence[PublicKey]) -> Manifest:
        """Check everything of a stored bundle; raises NotFound or Tampered."""
        manifest, actual, _ = verify_folder(self.path(digest), keys)
        if actual != digest:
            raise Tampered(
                "the folder holds another bundle", where=str(self.path(digest)), got=actual, wanted=digest
            )
        return manifest

    def sealed_by(self, digest: str) -> str:
        """The id of the key that a stored bundle's seal names; raises NotFound, Tampered for what is no seal."""
        try:
            return parse_seal((self.path(digest) / SEAL).read_bytes(), where=digest).key_id
        except FileNotFoundError:
            raise NotFound(f"no bundle here: {SEAL} is missing", where=str(self.path(digest))) from None

    def reseal(self, digest: str, key: SigningKey) -> None:
        """Put `key`'s seal on a stored bundle whose every byte is as its digest says; the digest stays.

        Raises NotFound, or Tampered and changes nothing. Readers see the old seal or the new one.
        """
        root = self.path(digest)
        raw = check_contents(root, digest)
        # Beside the bundle, not in it: a file more would be a changed bundle to whoever reads it just now.
        staging = self.root / f".seal.{digest[:12]}.{secrets.token_hex(6)}"
        write_atomic(staging, seal_manifest(raw, key))
        staging.replace(root / SEAL)

    def digests(self) -> list[str]:
        """Every stored digest, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(entry.name for entry in self.root.iterdir() if _DIGEST.fullmatch(entry.name))

    def withdraw(self, digest: str) -> None:
        """Take the bundle away at once, by rename; its bytes are freed by `sweep`. Is idempotent."""
        path = self.path(digest)
        if path.is_dir():
            path.rename(self.root / f"{_WITHDRAWN}{digest[:12]}.{secrets.token_hex(6)}")

    def sweep(self) -> None:
        """Free the bytes of withdrawn bundles, also those that a killed process left."""
        if self.root.is_dir():
            for entry in self.root.glob(f"{_WITHDRAWN}*"):
                shutil.rmtree(entry, ignore_errors=True)

    def _adopt(self, staging: Path, manifest: Manifest, raw: bytes) -> None:
        # The copies are checked, not the originals: what was renamed in is what was digested.
        if (staging / MANIFEST).read_bytes() != raw:
            raise Tampered("the manifest changed while it was copied", where=str(staging))
        for name, digest in manifest.files.items():
            actual = sha256_file(staging / name)
            if actual != digest:
                raise Tampered(f"{name} was changed", where=str(staging), got=actual, wanted=digest)
        final = self.path(sha256_bytes(raw))
        try:
            staging.rename(final)
        except OSError:
            # Another process stored the same content first: equally good.
            if not final.is_dir():
                raise
