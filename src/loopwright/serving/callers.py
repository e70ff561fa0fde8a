"""Who may ask what of a server: tokens are kept as digests, in a file the operator writes."""

import hmac
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from loopwright.kernel.errors import BadInput, LoopwrightError, NotFound, Refused, Unauthenticated

MAX_FILE = 1 << 20
Right = Literal["predict", "override", "admin"]


class Caller(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One who may ask. token_sha256: the digest of the token, in hex. may: predict; override (force an arm); admin
    (flush, refresh, load, unload). per_second: the most requests a worker takes from them (None: any number)."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    token_sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    may: tuple[Right, ...] = ("predict",)
    per_second: Annotated[float, msgspec.Meta(gt=0)] | None = None


class TooFast(LoopwrightError):
    """More requests than the caller may send."""

    http_status = 429

    def __init__(self, what: str, *, retry_after: float, wanted: str) -> None:
        super().__init__(what, wanted=wanted)
        self.retry_after = retry_after


@lru_cache(maxsize=1024)
def is_loopback(client: str) -> bool:
    """Whether this is an address of the machine itself; False for what is no address."""
    try:
        address = ip_address(client)
    except ValueError:
        return False
    mapped = None if isinstance(address, IPv4Address) else address.ipv4_mapped
    return (mapped or address).is_loopback


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Callers:
    """Those who may ask. Without a file, everybody may predict, and only this machine may override and administer."""

    def __init__(self, callers: tuple[Caller, ...] | None = None) -> None:
        self._known = None if callers is None else {caller.token_sha256: caller for caller in callers}
        self._buckets: dict[str, _Bucket] = {}

    @property
    def open(self) -> bool:
        """Whether anybody may predict."""
        return self._known is None

    @classmethod
    def read(cls, path: Path) -> "Callers":
        """Read a JSON list of callers. Raises NotFound, BadInput."""
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise NotFound(
                f"the callers cannot be read ({error.strerror or error})", where=str(path),
                next="Name a readable file with --callers.",
            ) from error  # fmt: skip
        if len(raw) > MAX_FILE:
            raise BadInput(
                "too large", where=str(path), got=f"{len(raw)} bytes", wanted=f"at most {MAX_FILE}"
            )
        try:
            callers = msgspec.json.decode(raw, type=tuple[Caller, ...])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadInput(
                f"not a list of callers ({error})", where=str(path),
                wanted='[{"name": "shop", "token_sha256": "…", "may": ["predict"]}]',
            ) from None  # fmt: skip
        for what, values in (
            ("name", [c.name for c in callers]),
            ("token", [c.token_sha256 for c in callers]),
        ):
            if len(set(values)) != len(values):
                raise BadInput(f"two callers with one {what}", where=str(path))
        return cls(callers)

    def check(
        self, right: Right, authorization: str | None, client: str, now: float, *, counted: bool = True
    ) -> str:
        """Return the caller's name ("" for anybody). `now`: monotonic seconds. counted: as a request of theirs.

        Raises Unauthenticated, Refused for a right that is not theirs, TooFast.
        """
        if self._known is None:
            if right != "predict" and not is_loopback(client):
                raise Refused(
                    "answered on this machine only", got=client,
                    wanted="a loopback address, or a caller with this right (loopwright serve --callers FILE)",
                )  # fmt: skip
            return ""
        caller = self._named(authorization)
        if caller is None:
            raise Unauthenticated(
                "no caller known here" if authorization else "this server wants a token",
                wanted="Authorization: Bearer …",
            )
        if right not in caller.may:
            raise Refused("not allowed", got=caller.name, wanted=f"the right to {right}")
        if counted and caller.per_second is not None:
            self._take(caller, caller.per_second, now)
        return caller.name

    def _named(self, authorization: str | None) -> Caller | None:
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token or self._known is None:
            return None
        digest = sha256(token.strip().encode("utf-8", "surrogatepass")).hexdigest()
        found = self._known.get(digest)
        return found if found is not None and hmac.compare_digest(found.token_sha256, digest) else None

    def _take(self, caller: Caller, rate: float, now: float) -> None:
        burst = max(1.0, rate)
        bucket = self._buckets.setdefault(caller.name, _Bucket(burst, now))
        bucket.tokens = min(burst, bucket.tokens + (now - bucket.at) * rate)
        bucket.at = now
        if bucket.tokens < 1.0:
            pause = (1.0 - bucket.tokens) / rate
            raise TooFast(
                f"{caller.name} sends too many requests",
                retry_after=pause,
                wanted=f"at most {rate:g} a second",
            )
        bucket.tokens -= 1.0
