"""The route table: which versions answer for each model, with what weights, and why they may."""

import re
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

from loopwright.bundle.approval import SignedRecord
from loopwright.bundle.keys import PublicKey, SigningKey, verify_any
from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput, Tampered

_ARM = re.compile(r"[a-z][a-z0-9_-]{0,31}")
RESERVED_ARMS = frozenset(("direct", "cache", "default", "job"))
"""Names under which answers are logged that no arm gave: asked for by version, kept from before, configured, or given
by a worker to the rows of a job."""


class Arm(msgspec.Struct, frozen=True):
    """A share of traffic. `stable` takes what the others leave; a shadow's weight is the share of requests copied.

    Other names than stable, canary and shadow are variants of an A/B test: lower-case letters, digits, - and _.
    """

    name: str
    version: int
    weight: float

    def __post_init__(self) -> None:
        if not _ARM.fullmatch(self.name) or self.name in RESERVED_ARMS:
            raise BadInput(
                "not an arm's name",
                where="arm",
                got=self.name,
                wanted="stable, canary, shadow or a variant's name",
            )
        if not 0.0 <= self.weight <= 1.0:
            raise BadInput("not a share", where=f"arm {self.name}", got=self.weight, wanted="between 0 and 1")


Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Milliseconds = Annotated[float, msgspec.Meta(gt=0.0, le=86_400_000.0)]
Seconds = Annotated[float, msgspec.Meta(gt=0.0, le=86_400.0)]


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """When an arm is left alone: of at least `requests` within `window_s`, more than `error_rate` failed, or more than
    half took longer than `slow_ms` (None: never). It is tried again after `open_s`, twice as long after each failure.
    """

    error_rate: Share = 0.5
    slow_ms: Milliseconds | None = None
    requests: Annotated[int, msgspec.Meta(ge=1)] = 20
    window_s: Seconds = 10.0
    open_s: Seconds = 5.0


class Batching(msgspec.Struct, frozen=True, kw_only=True):
    """Whether requests that come together are predicted together; auto: when the model is slow enough to gain by it."""

    mode: Literal["auto", "on", "off"] = "auto"
    max_rows: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 64


class LogPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What of a prediction is kept. sample: the share of answers whose rows are shipped (all are counted; errors and
    fallbacks are always kept). redact: inputs that are never written. disk_full: refuse answers nothing that cannot be
    logged, shed answers and counts what is lost."""

    sample: Share = 1.0
    redact: tuple[str, ...] = ()
    disk_full: Literal["refuse", "shed"] = "refuse"


class FeaturePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What is done about inputs that a request leaves to the online store. missing: when they cannot be had (the store
    is away, another definition's are there, or they are known up to more than `max_age_s` ago), the request is refused
    or answered with nulls in their place. timeout_ms: what looking up may take."""

    missing: Literal["refuse", "nulls"] = "refuse"
    max_age_s: Annotated[float, msgspec.Meta(gt=0.0)] | None = None
    timeout_ms: Milliseconds = 200.0


class ServingPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is answered for.

    timeout_ms: what one prediction may take. slo_ms: what was promised, a bucket of the latency histogram.
    cached_answers: how many recent answers are kept for when no version answers. default: output → number, given when
    nothing else can be (None: an error). shadow_share: the most of a worker's time that copies to a shadow may take.
    """

    timeout_ms: Milliseconds = 2000.0
    slo_ms: Milliseconds = 100.0
    breaker: Breaker = Breaker()
    batching: Batching = Batching()
    log: LogPolicy = LogPolicy()
    cached_answers: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    default: dict[str, float] | None = None
    shadow_share: Share = 0.25
    features: FeaturePolicy = FeaturePolicy()


class VersionRoute(msgspec.Struct, frozen=True):
    """A version's bytes and the signed record that they may be served."""

    bundle: str
    approval: SignedRecord


class ModelRoute(msgspec.Struct, frozen=True):
    """How one model's traffic is split and answered. `salt` makes splits of different models independent."""

    model: str
    salt: str
    arms: tuple[Arm, ...]
    versions: dict[str, VersionRoute]
    serving: ServingPolicy = ServingPolicy()

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
