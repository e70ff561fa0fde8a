"""Identity by content: SHA-256 over bytes, files and canonical JSON."""

import hashlib
import json
from pathlib import Path

from loopwright.kernel.errors import BadInput


def sha256_bytes(data: bytes) -> str:
    """Return 64 lowercase hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return 64 lowercase hex digits; memory does not grow with the file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(obj: object) -> bytes:
    """Return the one UTF-8 spelling of `obj`: sorted keys, compact, no NaN or infinity.

    Raises BadInput for what JSON cannot hold.
    """
    try:
        text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"not writable as canonical JSON ({error})", wanted="text, finite numbers, lists, maps"
        ) from None


def digest_json(obj: object) -> str:
    """SHA-256 of `canonical_json(obj)`."""
    return sha256_bytes(canonical_json(obj))
