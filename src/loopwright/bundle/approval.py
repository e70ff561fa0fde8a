"""A signed statement that a version may be served: who approved which bytes under which policy."""

from collections.abc import Iterable

import msgspec

from loopwright.bundle.keys import PublicKey, SigningKey, verify_any
from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import Tampered


class ApprovalRecord(msgspec.Struct, frozen=True, kw_only=True):
    """approvals: (reviewer, ISO time) each; first: no version of this model was approved before.

    emergency: the glass was broken, approvals were passed over. tier: that of the policy it was decided under.
    """

    model: str
    version: int
    bundle: str
    stage: str
    promotion_id: str
    policy_digest: str
    requested_by: str
    approvals: tuple[tuple[str, str], ...]
    first: bool = False
    emergency: bool = False
    tier: str = ""
    issued_at: str = ""


class SignedRecord(msgspec.Struct, frozen=True):
    """The record's canonical JSON as text, so that the signed bytes travel unchanged."""

    record_json: str
    signature: str
    key_id: str


def sign_record(record: ApprovalRecord, key: SigningKey) -> SignedRecord:
    """Return `record` with the key's signature."""
    raw = canonical_json(msgspec.to_builtins(record))
    return SignedRecord(raw.decode(), key.sign(raw), key.public.key_id)


def verify_record(signed: SignedRecord, keys: Iterable[PublicKey]) -> ApprovalRecord:
    """Return the record when one of `keys` signed it; raises Tampered."""
    raw = signed.record_json.encode()
    verify_any(raw, signed.signature, signed.key_id, keys, where="approval record")
    try:
        return msgspec.json.decode(raw, type=ApprovalRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Tampered(f"not an approval record ({error})", where="approval record") from None
