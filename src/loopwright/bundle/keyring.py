"""A home's keys: one that signs, those that signed before it, and those nobody may trust any more.

keys/
  control.key       the signing key, 0600
  control.key.next  only while a rotation is under way
  keyring.json      every public key there ever was, in order, signed by the signing key

Each key but the first is endorsed by the one before it: its signature over {new public key, serial, time}. Whoever
trusts one key of the list can so follow to the newest. The list only grows; its serial rises with each change.
"""

import stat
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from loopwright.bundle.keys import PublicKey, SigningKey
from loopwright.kernel.clock import iso
from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Refused, Tampered, did_you_mean
from loopwright.kernel.files import lock, write_atomic

SIGNING, NEXT, RING = "control.key", "control.key.next", "keyring.json"

_State = tuple["Ring", SigningKey, bytes]
_Stamp = tuple[tuple[int, int, int] | None, ...]

_KIND = "loopwright-keyring/1"
_ENDORSEMENT = "loopwright-key-endorsement/1"


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key's life. serial: the list's serial when it was added; times are ISO 8601, "" when not so."""

    key_id: str
    public: str
    serial: int
    created_at: str
    retired_at: str = ""
    revoked_at: str = ""
    reason: str = ""
    endorsement: str = ""

    @property
    def state(self) -> str:
        """ "current", "retired" or "revoked"."""
        return "revoked" if self.revoked_at else "retired" if self.retired_at else "current"

    def statement(self) -> bytes:
        """What the key before this one signs."""
        return canonical_json(
            {"kind": _ENDORSEMENT, "public": self.public, "serial": self.serial, "at": self.created_at}
        )


class Ring(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The list of keys, oldest first; the last one signs."""

    kind: str
    serial: int
    keys: tuple[KeyEntry, ...]

    @property
    def head(self) -> KeyEntry:
        """The key that signs now."""
        return self.keys[-1]

    @property
    def public(self) -> tuple[PublicKey, ...]:
        """The keys whose signatures count: the current one first, without the revoked."""
        return tuple(PublicKey.from_text(entry.public) for entry in self.keys[::-1] if not entry.revoked_at)

    @property
    def revoked(self) -> frozenset[str]:
        """Ids of keys whose signatures count no more."""
        return frozenset(entry.key_id for entry in self.keys if entry.revoked_at)


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ring: str
    signature: str


def open_ring(document: bytes, *, where: str = RING) -> Ring:
    """Parse a signed list and check it in itself: every endorsement, and the last key's signature over the whole.

    Raises Tampered. Says nothing about whether to trust it: `follow` does.
    """
    try:
        envelope = msgspec.json.decode(document, type=_Envelope)
        raw = envelope.ring.encode()
        ring = msgspec.json.decode(raw, type=Ring)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Tampered(f"not a list of keys ({error})", where=where) from None
    if ring.kind != _KIND or not ring.keys:
        raise Tampered("not a list of keys", where=where, got=ring.kind, wanted=_KIND)
    keys = [_public(entry, where) for entry in ring.keys]
    if len(set(keys)) != len(keys):
        raise Tampered("a key stands in the list twice", where=where)
    for signer, before, entry in zip(keys, ring.keys, ring.keys[1:], strict=False):
        try:
            signer.verify(entry.statement(), entry.endorsement)
        except Tampered:
            raise Tampered(
                f"key {entry.key_id} is not endorsed by key {before.key_id} before it", where=where
            ) from None
        if not before.serial < entry.serial <= ring.serial or not before.retired_at:
            raise Tampered("the keys' order makes no sense", where=where, got=f"serial {entry.serial}")
    if ring.head.retired_at or ring.head.revoked_at:
        raise Tampered("the last key is not current", where=where, got=ring.head.state)
    try:
        keys[-1].verify(raw, envelope.signature)
    except Tampered as error:
        raise Tampered(error.what, where=where) from None
    return ring


def sign_ring(ring: Ring, key: SigningKey) -> bytes:
    """Return the document `open_ring` reads; the same list gives the same bytes."""
    raw = canonical_json(msgspec.to_builtins(ring))
    return canonical_json({"ring": raw.decode(), "signature": key.sign(raw)})


def follow(offered: Ring, *, known: Ring | None, anchors: Sequence[PublicKey], where: str) -> None:
    """Return when `offered` may take the place of what is trusted so far; raise Refused otherwise.

    known: the list accepted before. It must be the beginning of the offered one, key by key: so a key that was retired
    cannot start a line of its own, a revoked one stays revoked, and an older list is not taken. Without it, one of the
    `anchors` must stand in the list: every later key is endorsed in a chain from it, and the last one signs the rest.
    """
    if known is None:
        if not {key.key_id for key in anchors} & {entry.key_id for entry in offered.keys}:
            raise Refused(
                "the control plane's key is not the one this server trusts", where=where,
                got=", ".join(entry.key_id for entry in offered.keys),
                wanted=", ".join(key.key_id for key in anchors),
                next="If the control plane was really set up anew, delete this file or use another --home.",
            )  # fmt: skip
        return
    if offered.serial < known.serial:
        raise Refused(
            "an older list of keys", where=where, got=f"serial {offered.serial}", wanted=f"at least {known.serial}"
        )  # fmt: skip
    if offered.serial == known.serial and offered != known:
        raise Refused("two lists of keys with one serial", where=where, got=offered.serial)
    theirs = [entry.public for entry in offered.keys[: len(known.keys)]]
    if theirs != [entry.public for entry in known.keys]:
        raise Refused(
            "the control plane's keys do not continue those this server trusts", where=where,
            got=", ".join(entry.key_id for entry in offered.keys),
            wanted=", ".join(entry.key_id for entry in known.keys) + " and then endorsed ones",
            next="If the control plane was really set up anew, use another --home.",
        )  # fmt: skip
    if back := known.revoked - offered.revoked:
        raise Refused("a revoked key is to be trusted again", where=where, got=", ".join(sorted(back)))


class Keyring:
    """The keys of one home. Reads the folder again when another process has changed it; safe between threads."""

    def __init__(self, folder: Path, state: _State, stamp: _Stamp) -> None:
        self.folder = folder
        self._state = state
        self._stamp = stamp
        self._reading = threading.Lock()

    @classmethod
    def open(
        cls, folder: Path, *, create: bool = True, now: Callable[[], datetime] | None = None
    ) -> "Keyring":
        """Open the keys in `folder`; a rotation that was cut short is completed or forgotten.

        create: make the first key when there is none. now: the clock, for the first key's date. Raises Refused when
        others may enter the folder or read the key, NotFound when the private key is gone, BadInput when it is no key,
        Tampered when the list was changed.
        """
        stamp = _stamp(folder)
        return cls(folder, _read(folder, create, (now or _file_time(folder))()), stamp)

    @property
    def ring(self) -> Ring:
        """The list as it stands."""
        return self._fresh()[0]

    @property
    def signing(self) -> SigningKey:
        """The key that signs now."""
        return self._fresh()[1]

    @property
    def document(self) -> bytes:
        """The signed list, as servers fetch it."""
        return self._fresh()[2]

    @property
    def public(self) -> tuple[PublicKey, ...]:
        """The keys whose signatures count: the current one first, then retired ones, without the revoked."""
        return self.ring.public

    def rotate(self, now: datetime) -> KeyEntry:
        """Make a new signing key, endorsed by the present one, and return its entry.

        Killed at any instant, the folder opens with the old key or the new one, and never with none.
        """
        with lock(self.folder / "lock"):
            ring, signing, _ = self._locked()
            fresh = SigningKey.generate()
            serial, at = ring.serial + 1, iso(now)
            entry = KeyEntry(
                key_id=fresh.public.key_id, public=fresh.public.to_text(), serial=serial, created_at=at
            )
            entry = msgspec.structs.replace(entry, endorsement=signing.sign(entry.statement()))
            retired = msgspec.structs.replace(ring.head, retired_at=at)
            grown = Ring(kind=_KIND, serial=serial, keys=(*ring.keys[:-1], retired, entry))
            fresh.save(self.folder / NEXT)
            # From here on the list names the new key: whoever opens the folder completes the last step.
            write_atomic(self.folder / RING, sign_ring(grown, fresh), mode=0o600)
            (self.folder / NEXT).replace(self.folder / SIGNING)
            self._locked()
        return entry

    def revoke(self, key_id: str, now: datetime, reason: str) -> KeyEntry:
        """Let no signature of `key_id` count any more; is idempotent. Raises NotFound, Refused for the current key."""
        if not reason.strip():
            raise BadInput("a key is revoked for a reason", wanted="--reason")
        with lock(self.folder / "lock"):
            ring, signing, _ = self._locked()
            known = {entry.key_id: entry for entry in ring.keys}
            if key_id not in known:
                raise NotFound(
                    "no such key", got=key_id, next=did_you_mean(key_id, known) or "loopwright keys list"
                )
            entry = known[key_id]
            if entry.revoked_at:
                return entry
            if entry == ring.head:
                raise Refused(
                    "the key that signs cannot be revoked", got=key_id,
                    next="Make another first: loopwright keys rotate",
                )  # fmt: skip
            gone = msgspec.structs.replace(entry, revoked_at=iso(now), reason=reason.strip())
            keys = tuple(gone if each.key_id == key_id else each for each in ring.keys)
            shrunk = Ring(kind=_KIND, serial=ring.serial + 1, keys=keys)
            write_atomic(self.folder / RING, sign_ring(shrunk, signing), mode=0o600)
            self._locked()
        return gone

    def to_json(self) -> list[dict[str, Any]]:
        """Every key, newest first, without endorsements."""
        return [
            {
                "key_id": entry.key_id, "state": entry.state, "public": entry.public,
                "created_at": entry.created_at, "retired_at": entry.retired_at or None,
                "revoked_at": entry.revoked_at or None, "reason": entry.reason or None,
            }
            for entry in reversed(self.ring.keys)
        ]  # fmt: skip

    def _fresh(self) -> _State:
        # Two calls of stat: a rotation by another process is seen by the next signature.
        if _stamp(self.folder) != self._stamp:
            with self._reading:
                stamp = _stamp(self.folder)
                self._state = _read(self.folder, False, datetime.now(UTC))
                self._stamp = stamp
        return self._state

    def _locked(self) -> _State:
        with self._reading:
            self._state = _settle(self.folder)
            self._stamp = _stamp(self.folder)
        return self._state


def _read(folder: Path, create: bool, now: datetime) -> _State:
    _check_folder(folder, create)
    if (folder / RING).exists() and (folder / SIGNING).exists() and not (folder / NEXT).exists():
        with suppress(Conflict):
            return _load(folder)
    with lock(folder / "lock"):
        if not (folder / RING).exists():
            _begin(folder, create, now)
        return _settle(folder)


def _begin(folder: Path, create: bool, now: datetime) -> None:
    """Write the first list: for a new key, or for the one of a home made before there were lists."""
    path = folder / SIGNING
    if not path.exists():
        if not create:
            raise _gone(path)
        SigningKey.generate().save(path)
    key = SigningKey.load(path)
    first = KeyEntry(key_id=key.public.key_id, public=key.public.to_text(), serial=1, created_at=iso(now))
    document = sign_ring(Ring(kind=_KIND, serial=1, keys=(first,)), key)
    write_atomic(folder / RING, document, mode=0o600)


def _settle(folder: Path) -> _State:
    """Finish or forget what a killed rotation left; needs the lock."""
    ring = open_ring((folder / RING).read_bytes(), where=str(folder / RING))
    waiting = folder / NEXT
    if waiting.exists():
        if _is(waiting, ring.head):
            waiting.replace(folder / SIGNING)
        else:
            waiting.unlink()
    return _load(folder)


def _load(folder: Path) -> _State:
    document = (folder / RING).read_bytes()
    ring = open_ring(document, where=str(folder / RING))
    path = folder / SIGNING
    if not path.exists():
        raise _gone(path, ring.head.key_id)
    key = SigningKey.load(path)
    if key.public.to_text() != ring.head.public:
        raise Conflict(
            "the private key is not the one the list of keys names", where=str(path), got=key.public.key_id,
            wanted=ring.head.key_id, next="Restore the whole keys folder from one backup.",
        )  # fmt: skip
    return ring, key, document


def _is(path: Path, entry: KeyEntry) -> bool:
    try:
        return SigningKey.load(path).public.to_text() == entry.public
    except BadInput:  # cut short while it was written
        return False


def _gone(path: Path, key_id: str = "") -> NotFound:
    return NotFound(
        f"the private key {key_id} is missing".replace("  ", " "), where=str(path),
        next="Restore it from a backup of the keys folder. A new key would be a stranger's to every server and bundle.",
    )  # fmt: skip


def _check_folder(folder: Path, create: bool) -> None:
    if not folder.is_dir():
        if not create:
            raise NotFound(
                "the folder of keys is missing", where=str(folder), next="Restore it from a backup."
            )
        folder.mkdir(parents=True, mode=0o700)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise Refused(
            "others may enter the folder of the private keys", where=str(folder), got=oct(mode), wanted="0o700",
            next=f"Run: chmod 700 {folder}",
        )  # fmt: skip


def _public(entry: KeyEntry, where: str) -> PublicKey:
    try:
        key = PublicKey.from_text(entry.public)
    except BadInput as error:
        raise Tampered(error.what, where=where) from None
    if key.key_id != entry.key_id:
        raise Tampered("a key under another's id", where=where, got=entry.key_id, wanted=key.key_id)
    return key


def _stamp(folder: Path) -> _Stamp:
    found: list[tuple[int, int, int] | None] = []
    for name in (RING, SIGNING):
        try:
            status = (folder / name).stat()
            found.append((status.st_mtime_ns, status.st_ino, status.st_size))
        except FileNotFoundError:
            found.append(None)
    return tuple(found)


def _file_time(folder: Path) -> Callable[[], datetime]:
    """When the key file of an older home was written, else now."""

    def when() -> datetime:
        with suppress(OSError):
            return datetime.fromtimestamp(int((folder / SIGNING).stat().st_mtime), UTC)
        return datetime.now(UTC)

    return when
