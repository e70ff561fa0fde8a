"""Loads pickled objects that a person approved: exactly those bytes, importing exactly those names.

While a file is loaded, classes are called and the few functions that plain models need, nothing else; and no object of
the file takes the place of a method that the loader calls.

What this does not defend against: an approved class that does harm in its own `__setstate__` or constructor when it is
given a crafted state, and a function the model keeps and calls when it predicts. That is why a file is trusted by its
digest, why two people decide, and why ONNX is the default.
"""

import io
import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from math import prod
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, ClassVar

import msgspec
import numpy as np

from loopwright.bundle.gadgets import ARRAY_WRAPPER, canonical, denied, makes
from loopwright.bundle.keys import PublicKey, SigningKey, verify_any
from loopwright.bundle.pickle_machine import joined
from loopwright.bundle.pickles import Scan, read_bounded, scan_bytes, unpack
from loopwright.kernel.digest import canonical_json, sha256_bytes
from loopwright.kernel.errors import BadInput, LoopwrightError, Refused, Tampered

_KIND = "loopwright-trust/1"


class TrustRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A person's word that these bytes may be loaded. globals: everything they import, sorted "module.name"."""

    kind: str = _KIND
    digest: str
    globals: tuple[str, ...]
    requested_by: str
    approved_by: str
    reason: str
    at: str


class SignedTrust(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The record's canonical JSON as text, so that the signed bytes travel unchanged."""

    record_json: str
    signature: str
    key_id: str

    def to_bytes(self) -> bytes:
        """What a bundle carries as trust.json."""
        return canonical_json(msgspec.to_builtins(self))

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str = "trust record") -> "SignedTrust":
        """The inverse of `to_bytes`; raises Tampered."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Tampered(f"not a signed trust record ({error})", where=where) from None


def sign_trust(record: TrustRecord, key: SigningKey) -> SignedTrust:
    """Return `record` with the key's signature; raises Refused when asker and approver are one person."""
    if record.requested_by == record.approved_by:
        raise Refused("who asks for trust does not give it", got=record.approved_by, wanted="another person")
    raw = canonical_json(msgspec.to_builtins(record))
    return SignedTrust(raw.decode(), key.sign(raw), key.public.key_id)


def verify_trust(signed: SignedTrust, keys: Iterable[PublicKey]) -> TrustRecord:
    """Return the record when one of `keys` signed it; raises Tampered."""
    raw = signed.record_json.encode()
    verify_any(raw, signed.signature, signed.key_id, keys, where="trust record")
    try:
        record = msgspec.json.decode(raw, type=TrustRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Tampered(f"not a trust record ({error})", where="trust record") from None
    if record.kind != _KIND or record.requested_by == record.approved_by:
        raise Tampered("not a trust record two people made", where="trust record", got=record.kind)
    return record


def check_trusted(
    data: bytes,
    signed: SignedTrust,
    keys: Iterable[PublicKey],
    *,
    scan: Callable[[bytes], Scan] = scan_bytes,
) -> Scan:
    """Return the scan of `data` when a signed record covers exactly these bytes and exactly what they import.

    scan: how this kind of file is read; as pickled objects, unless said otherwise. Nothing is loaded. Raises Tampered
    for another key's signature or other bytes, Refused for anything never trusted.
    """
    record = verify_trust(signed, keys)
    digest = sha256_bytes(data)
    if digest != record.digest:
        raise Tampered(
            "the trust record is for other bytes", where="trust record", got=digest, wanted=record.digest
        )
    found = scan(data)
    if found.objections:
        raise Refused(
            "pickled objects that nobody can be trusted with", where=digest[:12], got="; ".join(found.objections[:3]),
            wanted="a plain model, or ONNX",
        )  # fmt: skip
    if found.globals != tuple(sorted(record.globals)):
        raise Refused(
            "it imports other names than were approved", where=digest[:12],
            got=", ".join(sorted(set(found.globals) ^ set(record.globals))), wanted="exactly the approved ones",
        )  # fmt: skip
    return found


def load_trusted(source: Path | bytes, signed: SignedTrust, keys: Sequence[PublicKey]) -> Any:
    """Load pickled objects under a signed trust record; the bytes are read once, and those are checked and loaded.

    Raises Tampered and Refused as `check_trusted`, BadInput for what cannot be loaded here (a missing library, say).
    """
    data = read_bounded(source) if isinstance(source, Path) else source
    found = check_trusted(data, signed, keys)
    stream, _ = unpack(data)
    file = io.BytesIO(stream)
    loader = _Loader(file, frozenset(found.globals), iter(found.arrays))
    try:
        loaded = loader.load()
    except LoopwrightError:
        raise
    except Exception as error:  # whatever a class of another version does with its state
        raise BadInput(
            f"cannot be loaded here ({type(error).__name__}: {error})", where=found.digest[:12],
            next="Is the library it was written with installed, in the same version?",
        ) from error  # fmt: skip
    if file.tell() != len(stream):
        raise Tampered("something follows the pickle", where=found.digest[:12])
    return loaded


class _Array:
    """Takes the place of joblib's array wrapper while its state is read."""

    subclass: Any
    shape: Any
    order: Any
    dtype: Any
    numpy_array_alignment_bytes: Any = None


class _Loader(pickle._Unpickler):  # the one written in Python, as joblib's is
    """Imports what is allowed and nothing else, and reads arrays where the scan saw them."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    metastack: list[list[Any]]

    def __init__(self, file: io.BytesIO, allowed: frozenset[str], arrays: Any, depth: int = 0) -> None:
        super().__init__(file)
        self._from, self._allowed, self._arrays, self._depth = file, allowed, arrays, depth

    def find_class(self, module: str, name: str, /) -> Any:
        full = joined(module, name)
        module, name = canonical(module, name)
        why = "" if full in self._allowed else "not on the trust record"
        why = why or denied(module, name)
        if why:
            raise Refused(f"does not import {full}", got=why)
        if full == ARRAY_WRAPPER:
            return _Array
        if module not in sys.modules:
            import_module(module)
        found = getattr(sys.modules[module], name)
        # The same name may lead elsewhere: a module imported by another one, a function under an alias.
        real_module, real_name = getattr(found, "__module__", None), getattr(found, "__qualname__", name)
        why = denied(str(real_module), str(real_name).rpartition(".")[2]) if real_module else ""
        if isinstance(found, ModuleType) or not callable(found) or why:
            raise Refused(f"does not import {full}", got=why or "neither a class nor a function")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("does not load what lies outside the file")

    def get_extension(self, code: int) -> Any:
        raise Refused("does not use the registry of extensions")

    # typeshed leaves the opcodes' methods out of pickle._Unpickler: hence the remarks to mypy.

    def load_reduce(self) -> None:
        _check_call(self.stack[-2], self.stack[-1])
        super().load_reduce()  # type: ignore[misc]

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_newobj(self) -> None:
        _check_class(self.stack[-2])
        super().load_newobj()  # type: ignore[misc]

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_newobj_ex(self) -> None:
        _check_class(self.stack[-3])
        super().load_newobj_ex()  # type: ignore[misc]

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def _instantiate(self, kind: Any, arguments: Any) -> None:
        _check_class(kind)
        super()._instantiate(kind, arguments)  # type: ignore[misc]

    def load_append(self) -> None:
        _check_filled(self.stack[-2], (list, deque), "append")
        super().load_append()  # type: ignore[misc]

    dispatch[pickle.APPEND[0]] = load_append

    def load_appends(self) -> None:
        _check_filled(self.metastack[-1][-1], (list, deque), "append", "extend")
        super().load_appends()  # type: ignore[misc]

    dispatch[pickle.APPENDS[0]] = load_appends

    def load_additems(self) -> None:
        _check_filled(self.metastack[-1][-1], (set,), "add", "update")
        super().load_additems()  # type: ignore[misc]

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def load_build(self) -> None:
        if isinstance(self.stack[-2], (type, ModuleType, FunctionType, BuiltinFunctionType)):
            raise Refused("changes nothing that was imported", got=repr(self.stack[-2])[:200])
        _check_filled(self.stack[-2], (object,), "__setstate__")
        super().load_build()  # type: ignore[misc]
        if isinstance(self.stack[-1], _Array):
            self.stack[-1] = self._read(self.stack[-1])

    dispatch[pickle.BUILD[0]] = load_build

    def _read(self, wrapper: _Array) -> np.ndarray[Any, Any]:
        dtype = wrapper.dtype
        if not isinstance(dtype, np.dtype) or wrapper.subclass not in (np.ndarray, np.memmap):
            raise Refused("does not read an array of this kind", got=str(wrapper.subclass))
        if dtype.hasobject:
            inner = _Loader(self._from, self._allowed, self._arrays, self._depth + 1)
            found = inner.load()
            if not isinstance(found, np.ndarray):
                raise Refused("holds no array where one was announced", got=type(found).__name__)
            return found
        if wrapper.numpy_array_alignment_bytes is not None:
            self._from.read(self._from.read(1)[0])
        size = prod(wrapper.shape) * dtype.itemsize
        # Scan and loader must have read the same opcodes: bytes one takes for data are no opcodes for the other.
        if next(self._arrays, None) != (self._from.tell(), size):
            raise Tampered("array data lies elsewhere than the scan saw it", got=self._from.tell())
        data = bytearray(self._from.read(size))  # an array that may be written to, as after any other load
        flat = np.frombuffer(data, dtype=dtype) if size else np.empty(prod(wrapper.shape), dtype=dtype)
        array = flat.reshape(wrapper.shape[::-1]).T if wrapper.order == "F" else flat.reshape(wrapper.shape)
        return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _check_class(called: Any) -> None:
    if not isinstance(called, type):
        raise Refused("makes objects of classes only", got=repr(called)[:200])


def _check_call(called: Any, arguments: Any) -> None:
    """Refuse to call what is neither a class nor one of the functions that plain models call."""
    if isinstance(called, type):
        return
    module, name = getattr(called, "__module__", None), getattr(called, "__qualname__", None)
    if not isinstance(called, (FunctionType, BuiltinFunctionType)) and type(called).__name__ != _CYTHON:
        module = None  # an object may say any name of itself
    if module is None or not makes(str(module), str(name), len(arguments)):
        raise Refused(
            "calls a function that no plain model calls while it is loaded", got=f"{module}.{name}",
            wanted="a class", next="Export the model to ONNX.",
        )  # fmt: skip


_CYTHON = "cython_function_or_method"


def _check_filled(target: Any, kinds: tuple[type, ...], *methods: str) -> None:
    """Refuse to fill an object that is no container of these kinds, or has an attribute in a method's place."""
    own = getattr(target, "__dict__", {})
    if not isinstance(target, kinds) or any(name in own for name in methods):
        raise Refused("fills something that is no plain container", got=type(target).__name__)
