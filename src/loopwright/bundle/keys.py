"""Ed25519 keys: a private one signs bundles, approvals and route tables; its public half checks them."""

import base64
import binascii
import hashlib
import stat
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from loopwright.kernel.errors import BadInput, Refused, Tampered
from loopwright.kernel.files import lock, write_atomic

_PREFIX = "ed25519:"


class PublicKey:
    """Checks signatures. Equal when the key is equal; `key_id` is 16 hex digits of its SHA-256."""

    __slots__ = ("_key", "key_id", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._key = Ed25519PublicKey.from_public_bytes(raw)
        self.key_id = hashlib.sha256(raw).hexdigest()[:16]

    @classmethod
    def from_text(cls, text: str) -> "PublicKey":
        """Read `to_text()`'s form; raises BadInput."""
        encoded = text.strip()
        try:
            if not encoded.startswith(_PREFIX):
                raise ValueError(text)
            return cls(base64.b64decode(encoded.removeprefix(_PREFIX), validate=True))
        except (ValueError, binascii.Error):
            raise BadInput("not a public key", got=text, wanted=f"{_PREFIX}<base64 of 32 bytes>") from None

    def to_text(self) -> str:
        """Return "ed25519:<base64>"."""
        return _PREFIX + base64.b64encode(self.raw).decode()

    def verify(self, data: bytes, signature: str) -> None:
        """Return when `signature` (base64) is this key's over `data`; raise Tampered otherwise."""
        try:
            self._key.verify(base64.b64decode(signature, validate=True), data)
        except (InvalidSignature, ValueError, binascii.Error):
            raise Tampered(f"the signature is not key {self.key_id}'s over these bytes") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and other.raw == self.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"PublicKey({self.to_text()})"


class SigningKey:
    """The private half. Lives in one file readable by its owner alone."""

    __slots__ = ("_key", "public")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._key = private
        public = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.public = PublicKey(public)

    @classmethod
    def generate(cls) -> "SigningKey":
        """Return a fresh key that is kept nowhere."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load_or_create(cls, path: Path) -> "SigningKey":
        """Return the key at `path`, making it (mode 0600) when absent; two processes get the same one.

        Raises Refused when others may read the file, BadInput when it holds no Ed25519 key.
        """
        if not path.exists():
            with lock(path.with_name(path.name + ".lock")):
                if not path.exists():
                    cls.generate().save(path)
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> "SigningKey":
        """Read the key at `path`; errors as in `load_or_create`."""
        status = path.stat()
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise Refused(
                "others may read the private key",
                where=str(path),
                got=oct(stat.S_IMODE(status.st_mode)),
                wanted="0o600",
                next=f"Run: chmod 600 {path}",
            )
        try:
            private = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (ValueError, TypeError):
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise BadInput(
                "no Ed25519 private key in PEM form", where=str(path), next="Restore it from a backup."
            )
        return cls(private)

    def sign(self, data: bytes) -> str:
        """Return the base64 signature over `data`; deterministic."""
        return base64.b64encode(self._key.sign(data)).decode()

    def save(self, path: Path) -> None:
        """Write the key to `path`, readable by its owner alone; the file is whole or absent."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_atomic(path, pem, mode=0o600)


def verify_any(data: bytes, signature: str, key_id: str, keys: Iterable[PublicKey], *, where: str) -> None:
    """Return when the key named `key_id` is among `keys` and signed `data`; raise Tampered otherwise."""
    known = {key.key_id: key for key in keys}
    if key_id not in known:
        raise Tampered(
            "signed by a key this process does not trust",
            where=where,
            got=key_id,
            wanted=", ".join(known) or "a trusted key, but none is configured",
        )
    try:
        known[key_id].verify(data, signature)
    except Tampered as error:
        raise Tampered(error.what, where=where) from None
