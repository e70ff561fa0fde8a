"""The manifest names every file of a bundle with its digest; the seal signs the manifest."""

from typing import Any

import msgspec

from loopwright.bundle.keys import PublicKey, SigningKey, verify_any
from loopwright.bundle.signature import Schema
from loopwright.kernel.digest import canonical_json, sha256_bytes
from loopwright.kernel.errors import Tampered

FORMAT = "loopwright-bundle/1"
MANIFEST = "manifest.json"
SEAL = "seal.json"
NATIVE = "native/model.txt"
"""A LightGBM model's own text, in bundles that have one: answers are explained from it, serving never loads it."""


class Golden(msgspec.Struct, frozen=True):
    """Rows with the outputs they must give wherever the bundle runs.

    inputs: columns of JSON values (null allowed); outputs: one list of floats per row; tolerance: absolute.
    """

    inputs: dict[str, list[Any]]
    outputs: list[list[float]]
    tolerance: float = 1e-5

    def first(self) -> tuple[dict[str, Any], list[float]] | None:
        """A row's inputs by name and its outputs, for people to see; None when there is none."""
        if not self.outputs or not all(self.inputs.values()):
            return None
        return {name: values[0] for name, values in self.inputs.items()}, self.outputs[0]


class OnlineView(msgspec.Struct, frozen=True, kw_only=True):
    """A feature view that inputs come from, for whoever looks them up by an entity instead of being sent them.

    `definition`: digest of all that decides the rows an online store has of it for this model; `basis`: of all that
    decides a value, whichever of its columns the model takes; `view`: of the view's own definition, as the registry
    knows it. `entity`: the key's parts; `kinds`: their types (string, int64, float64, bool), "" where nothing told.
    `parts`: part → the input that brings the same value, for parts that are inputs. `inputs`: input → column.
    `ttl_us`: for how long a row counts (microseconds); None: for ever.
    """

    name: str
    definition: str
    basis: str
    view: str
    entity: tuple[str, ...]
    kinds: tuple[str, ...]
    inputs: dict[str, str]
    parts: dict[str, str] = {}
    ttl_us: int | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What the bundle is. Its bytes' SHA-256 is the bundle's digest. views: none in bundles from before there were."""

    format: str
    model: str
    created_at: str
    files: dict[str, str]
    schema: Schema
    provenance: dict[str, Any]
    views: tuple[OnlineView, ...] = ()

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(msgspec.to_builtins(self))


class Seal(msgspec.Struct, frozen=True):
    """A key's word on a manifest."""

    manifest: str
    key_id: str
    signature: str


def seal_manifest(manifest: bytes, key: SigningKey) -> bytes:
    """Return seal.json's bytes."""
    seal = Seal(sha256_bytes(manifest), key.public.key_id, key.sign(manifest))
    return canonical_json(msgspec.to_builtins(seal))


def open_manifest(manifest: bytes, seal: bytes, keys: tuple[PublicKey, ...], *, where: str) -> Manifest:
    """Parse a manifest that one of `keys` sealed; raises Tampered otherwise."""
    sealed = parse_seal(seal, where=where)
    digest = sha256_bytes(manifest)
    if sealed.manifest != digest:
        raise Tampered("the seal is for another manifest", where=where, got=digest, wanted=sealed.manifest)
    verify_any(manifest, sealed.signature, sealed.key_id, keys, where=where)
    return parse_manifest(manifest, where=where)


def parse_seal(seal: bytes, *, where: str) -> Seal:
    """Parse a seal without a key; raises Tampered for what is none."""
    try:
        return msgspec.json.decode(seal, type=Seal)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Tampered(f"{SEAL} is not a seal ({error})", where=where) from None


def parse_manifest(manifest: bytes, *, where: str) -> Manifest:
    """Parse without a key; raises Tampered for what is no manifest of this format."""
    try:
        parsed = msgspec.json.decode(manifest, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Tampered(f"{MANIFEST} is not a manifest ({error})", where=where) from None
    if parsed.format != FORMAT:
        raise Tampered("a bundle of another format", where=where, got=parsed.format, wanted=FORMAT)
    return parsed
