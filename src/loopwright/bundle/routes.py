"""The route table: which versions answer for each model, with what weights, and why they may."""

from collections.abc import Iterable
from typing import Literal

import msgspec

from loopwright.bundle.approval import SignedRecord
from loopwright.bundle.keys import PublicKey, SigningKey, verify_any
from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput, Tampered


class Arm(msgspec.Struct, frozen=True):
    """A share of traffic. `stable` takes what the others leave; a shadow's weight is the share of requests copied."""

    name: Literal["stable", "canary", "shadow"]
    version: int
    weight: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0:
            raise BadInput("not a share", where=f"arm {self.name}", got=self.weight, wanted="between 0 and 1")


class VersionRoute(msgspec.Struct, frozen=True):
    """A version's bytes and the signed record that they may be served."""

    bundle: str
    approval: SignedRecord


class ModelRoute(msgspec.Struct, frozen=True):
    """How one model's traffic is split. `salt` makes splits of different models independent."""

    model: str
    salt: str
    arms: tuple[Arm, ...]
    versions: dict[str, VersionRoute]

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if names.count("stable") != 1 or len(set(names)) != len(names):
            raise BadInput(
                "wants one stable arm and no arm twice", where=f"routes of {self.model}", got=names
            )
        lost = [arm.version for arm in self.arms if str(arm.version) not in self.versions]
        if lost:
            raise BadInput("an arm's version has no bundle", where=f"routes of {self.model}", got=lost)


class RouteTable(msgspec.Struct, frozen=True):
    """Everything a server needs to know. `serial` grows with every change; servers refuse a smaller one.

    trusted: digests of pickled models that may be loaded; what is not among them is not, whatever its bundle says.
    """

    serial: int
    issued_at: str
    models: dict[str, ModelRoute]
    trusted: tuple[str, ...] = ()


class _Envelope(msgspec.Struct, frozen=True):
    table: str
    key_id: str
    signature: str


def sign_routes(table: RouteTable, key: SigningKey) -> bytes:
    """Return the signed document servers fetch. The same table gives the same bytes."""
    raw = canonical_json(msgspec.to_builtins(table))
    return canonical_json({"table": raw.decode(), "key_id": key.public.key_id, "signature": key.sign(raw)})


def signer_of(document: bytes) -> str:
    """The id of the key a document says it was signed by; nothing is checked. Raises Tampered for no route table."""
    try:
        return msgspec.json.decode(document, type=_Envelope).key_id
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Tampered(f"not a route table ({error})", where="route table") from None


def open_routes(document: bytes, keys: Iterable[PublicKey]) -> RouteTable:
    """Return the table when one of `keys` signed it; raises Tampered."""
    try:
        envelope = msgspec.json.decode(document, type=_Envelope)
        raw = envelope.table.encode()
        verify_any(raw, envelope.signature, envelope.key_id, keys, where="route table")
        return msgspec.json.decode(raw, type=RouteTable)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Tampered(f"not a route table ({error})", where="route table") from None
