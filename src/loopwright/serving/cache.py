"""What a server keeps on disk, so that it starts and serves without the control plane.

folder/
  source            this server's id in the event log
  control.key       the control plane's public keys, pinned at the first start
  keyring.json      the list of its keys since then, each endorsed by the one before it
  routes.json       the last route table, still signed
  bundles/<digest>  sealed bundles; .damaged.<digest>.<when> are copies that changed on disk, kept for a look
  segments/         prediction log, and offsets.json: how much of it the control plane has
  counters/         one file per worker slot
"""

import fcntl
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.folder import MAX_BYTES, safe_name
from loopwright.bundle.keyring import Ring, follow, open_ring
from loopwright.bundle.keys import PublicKey
from loopwright.bundle.manifest import MANIFEST, SEAL, open_manifest
from loopwright.bundle.routes import RouteTable, open_routes
from loopwright.kernel.digest import sha256_bytes
from loopwright.kernel.errors import Conflict, LoopwrightError, NotFound, Refused, Tampered, Unavailable
from loopwright.kernel.files import write_atomic
from loopwright.kernel.ids import new_id

KEPT_BUNDLES = 10
KEPT_DAMAGED = 3


class Cache:
    """One server's folder. The supervisor writes it, from several threads; workers read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.depot = BundleDepot(folder / "bundles")
        self.segments = folder / "segments"
        self.counters = folder / "counters"
        self._changing = threading.Lock()

    def create(self) -> None:
        """Make the folders. Is idempotent; raises Unavailable when the disk does not let us."""
        try:
            for path in (self.folder, self.depot.root, self.segments, self.counters):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise Unavailable(
                f"cannot create the server's folder ({error.strerror or error})",
                where=str(self.folder),
                next="Choose a writable one with --home.",
            ) from error

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the folder for one supervisor; raises Conflict when another holds it."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Conflict(
                    "another `loopwright serve` uses this folder",
                    where=str(self.folder),
                    next="Stop it, or give this one its own folder with --home.",
                ) from None
            yield
        finally:
            os.close(descriptor)

    def source(self) -> str:
        """Return this server's id, made once."""
        path = self.folder / "source"
        if not path.exists():
            write_atomic(path, new_id("sv").encode())
        return path.read_text().strip()

    def pinned(self) -> list[PublicKey]:
        """Return the keys to trust, current one first, or none before the first contact.

        They come from the last list that was followed, else from the pin. Raises Tampered for a list that was changed.
        """
        anchors = self._anchors()
        return (self.followed() or anchors) if anchors else []

    def followed(self) -> list[PublicKey]:
        """Return the keys of the last list that was followed, without the revoked; none before the first."""
        ring = self._ring()
        return list(ring.public) if ring else []

    def pin(self, keys: Sequence[PublicKey]) -> None:
        """Trust `keys`: on a person's word, or at the first contact. Raises Refused when only others are pinned."""
        before = self._anchors()
        ring = self._ring() if before else None
        known = {*before, *(PublicKey.from_text(entry.public) for entry in (ring.keys if ring else ()))}
        if before and not known & set(keys):
            raise Refused(
                "the control plane's key is not the one this server trusts",
                where=str(self.folder / "control.key"),
                got=", ".join(key.key_id for key in keys) or "no key",
                wanted=", ".join(key.key_id for key in before),
                next="If the control plane was really set up anew, delete this file or use another --home.",
            )
        if not before or (ring is None and set(keys) != set(before)):
            # A list from an earlier pin would speak for keys nobody trusts any more.
            (self.folder / "keyring.json").unlink(missing_ok=True)
            write_atomic(self.folder / "control.key", "".join(f"{key.to_text()}\n" for key in keys).encode())

    def follow(self, document: bytes) -> list[PublicKey]:
        """Take over the control plane's list of keys and return those to trust now.

        New keys are taken only as they are endorsed in a chain from what is trusted already; revoked ones are dropped.
        Raises Tampered for a list that is false in itself, Refused for a stranger's, one that starts a line of its own,
        or an older one; what was trusted stays then.
        """
        offered = open_ring(document, where="the control plane's keys")
        known = self._ring()
        follow(offered, known=known, anchors=self._anchors(), where=str(self.folder / "control.key"))
        if offered != known:
            write_atomic(self.folder / "keyring.json", document)
        return list(offered.public)

    def _anchors(self) -> list[PublicKey]:
        path = self.folder / "control.key"
        if not path.exists():
            return []
        return [PublicKey.from_text(line) for line in path.read_text().splitlines() if line.strip()]

    def _ring(self) -> Ring | None:
        path = self.folder / "keyring.json"
        return open_ring(path.read_bytes(), where=str(path)) if path.exists() else None

    def routes(self, keys: Sequence[PublicKey]) -> RouteTable | None:
        """Return the kept route table, verified again; None before the first one."""
        path = self.folder / "routes.json"
        return open_routes(path.read_bytes(), keys) if path.exists() else None

    def keep_routes(self, document: bytes) -> None:
        """Replace the kept route table (verified by the caller)."""
        write_atomic(self.folder / "routes.json", document)

    def fetch_bundle(
        self, digest: str, keys: Sequence[PublicKey], download: Callable[[str, str], bytes]
    ) -> None:
        """Bring a bundle into the depot through `download(digest, file name)`, trusting nothing of it.

        Returns at once when it is here and whole; a damaged copy is thrown away and fetched again. Raises Tampered for
        bytes that do not match, Unavailable when the disk is full or read-only, and whatever `download` raises.
        """
        with self._changing:
            if self.depot.has(digest):
                try:
                    self.depot.verify(digest, keys)
                    return
                except (Tampered, NotFound):
                    self._discard(digest)
            self._download(digest, keys, download)

    def set_aside(self, digest: str) -> Path | None:
        """Take a bundle that changed on disk out of use, but keep it for a look; None when it is gone already."""
        with self._changing:
            aside = self.depot.root / f".damaged.{digest}.{secrets.token_hex(6)}"
            try:
                self.depot.path(digest).rename(aside)
            except FileNotFoundError:
                return None
            kept = sorted(
                self.depot.root.glob(".damaged.*"), key=lambda path: path.stat().st_ctime, reverse=True
            )
            for old in kept[KEPT_DAMAGED:]:
                shutil.rmtree(old, ignore_errors=True)
            return aside

    def _download(
        self, digest: str, keys: Sequence[PublicKey], download: Callable[[str, str], bytes]
    ) -> None:
        raw = download(digest, MANIFEST)
        if sha256_bytes(raw) != digest:
            raise Tampered(
                "the control plane sent another manifest",
                where=f"bundle {digest[:12]}",
                got=sha256_bytes(raw),
            )
        seal = download(digest, SEAL)
        manifest = open_manifest(raw, seal, tuple(keys), where=f"bundle {digest[:12]}")
        staging = self.folder / f".fetch.{secrets.token_hex(6)}"
        try:
            staging.mkdir(mode=0o700)
            total = 0
            for name, wanted in manifest.files.items():
                data = download(digest, safe_name(name))
                total += len(data)
                if sha256_bytes(data) != wanted or total > MAX_BYTES:
                    raise Tampered(f"{name} does not match the manifest", where=f"bundle {digest[:12]}")
                path = staging / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            (staging / MANIFEST).write_bytes(raw)
            (staging / SEAL).write_bytes(seal)
            self.depot.add(staging)
        except LoopwrightError:
            raise  # some of them are OSErrors too
        except OSError as error:
            raise Unavailable(
                f"cannot store the bundle ({error.strerror or error})",
                where=str(staging),
                next="Check free space and permissions.",
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def prune(self, needed: set[str]) -> None:
        """Delete bundles that no route needs, except the most recent ones (a rollback may want them back)."""
        others = [digest for digest in self.depot.digests() if digest not in needed]
        with self._changing:
            others = [digest for digest in others if self.depot.path(digest).exists()]
            others.sort(key=lambda digest: self.depot.path(digest).stat().st_mtime, reverse=True)
            for digest in others[KEPT_BUNDLES:]:
                self._discard(digest)

    def _discard(self, digest: str) -> None:
        # Renamed first, so that no reader sees half a bundle.
        doomed = self.depot.root / f".gone.{secrets.token_hex(6)}"
        self.depot.path(digest).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
