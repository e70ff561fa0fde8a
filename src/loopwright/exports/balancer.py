"""What a balancer's configuration is written from: addresses, weights and spans, all of them parsed and checked."""

import ipaddress
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from math import ceil
from typing import Any
from zlib import crc32

from loopwright.kernel.errors import BadInput

MAX_BACKENDS = 256
MAX_WEIGHT = 256
DEFAULT_PORT = 8080
DEFAULT_METRICS = "127.0.0.1:8405"

CHECK_TIMEOUT = timedelta(seconds=1)
FALL, RISE = 2, 2

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_PATH = re.compile(r"/[A-Za-z0-9._/@+-]{1,255}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


class Stick(StrEnum):
    """How requests that belong together find the same replica."""

    UNIT_HEADER = "unit-header"
    COOKIE = "cookie"
    NONE = "none"


UNIT_HEADER = "X-Loopwright-Unit"


@dataclass(frozen=True, slots=True)
class Address:
    """host: an IP address or a host name, as HAProxy takes it; "*" for every address of this machine."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_name(self) -> bool:
        """Whether it has to be looked up."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return self.host != "*"
        return False


@dataclass(frozen=True, slots=True)
class Backend:
    """One replica. weight: its share of requests; 0 gives it none. id: its place on the hash ring, from its address."""

    address: Address
    weight: int = 100

    @property
    def name(self) -> str:
        """What HAProxy's metrics and log call it."""
        return f"{self.address.host}:{self.address.port}"

    @property
    def id(self) -> int:
        """Follows from the address alone: users stay where they are when other replicas come, go or change order."""
        return crc32(self.name.encode()) % 0x7FFFFFFE + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Balancer:
    """What a configuration is written from. Raises BadInput for what cannot be meant.

    timeout: how long a replica may stay silent before the request goes to another one; more than the longest prediction
    takes. check_every: between two health checks. slow_start: until a replica that has come back has its full share.
    grpc: where to listen for gRPC; grpc_port: where each replica does. retries: tries after the first. buffer: bytes of
    a request that are kept for a retry. overrides: whether clients may force an arm by header, which replicas without
    --callers take from the balancer's machine.
    """

    backends: tuple[Backend, ...]
    listen: Address = Address("*", DEFAULT_PORT)
    grpc: Address | None = None
    grpc_port: int = 8082
    stick: Stick = Stick.UNIT_HEADER
    timeout: timedelta = timedelta(seconds=10)
    connect_timeout: timedelta = timedelta(seconds=1)
    check_every: timedelta = timedelta(seconds=1)
    slow_start: timedelta = timedelta(seconds=10)
    retries: int = 2
    buffer: int = 64 << 10
    max_connections: int = 8_000
    metrics: Address | None = field(default_factory=lambda: parse_address(DEFAULT_METRICS))
    stats: Address | None = None
    certificate: str | None = None
    admin_socket: str | None = None
    user: str | None = None
    overrides: bool = False

    def __post_init__(self) -> None:
        if not self.backends:
            raise BadInput(
                "no replica is named", where="--backend", wanted="HOST:PORT, once for each replica"
            )
        if len(self.backends) > MAX_BACKENDS:
            raise BadInput(
                "too many replicas",
                where="--backend",
                got=len(self.backends),
                wanted=f"at most {MAX_BACKENDS}",
            )
        taken: dict[int, Backend] = {}
        for backend in self.backends:
            other = taken.setdefault(backend.id, backend)
            if other is not backend:
                what = (
                    "a replica is named twice" if other.name == backend.name
                    else f"{backend.name} has the same place on the hash ring as {other.name}"
                )  # fmt: skip
                raise BadInput(
                    what, where="--backend", got=backend.name, wanted="each address once, or another port"
                )
        if not any(backend.weight for backend in self.backends):
            raise BadInput("no replica gets any request", where="--weight", wanted="a weight above 0")
        for name, span, least, most in (
            ("--timeout", self.timeout, 0.05, 3600),
            ("--connect-timeout", self.connect_timeout, 0.05, 60),
            ("--check-every", self.check_every, 0.05, 60),
            ("--slow-start", self.slow_start, 0, 3600),
        ):
            if not least <= span.total_seconds() <= most:
                raise BadInput(
                    "not a usable span of time", where=name, got=f"{span.total_seconds():g}s",
                    wanted=f"{least:g}s to {most:g}s",
                )  # fmt: skip
        for name, number, least_n, most_n in (
            ("--retries", self.retries, 0, 10),
            ("--grpc-backend-port", self.grpc_port, 1, 65535),
            ("--buffer", self.buffer, 16 << 10, 1 << 20),
            ("--max-connections", self.max_connections, 1, 1_000_000),
        ):
            if not least_n <= number <= most_n:
                raise BadInput("out of range", where=name, got=number, wanted=f"{least_n} to {most_n}")
        for name, text, form in (
            ("--tls", self.certificate, _PATH),
            ("--admin-socket", self.admin_socket, _PATH),
            ("--user", self.user, _USER),
        ):
            if text is not None and not form.fullmatch(text):
                raise BadInput(
                    "cannot be written into the configuration", where=name, got=text,
                    wanted="an absolute path of letters, digits and ._-/@+" if form is _PATH else "a user's name",
                )  # fmt: skip
        ports: dict[int, str] = {}
        for what, address in (
            ("--port", self.listen), ("--grpc-port", self.grpc), ("--metrics", self.metrics), ("--stats", self.stats),
        ):  # fmt: skip
            if address is not None and ports.setdefault(address.port, what) != what:
                raise BadInput(
                    f"the port is taken by {ports[address.port]}", where=what, got=address.port,
                    wanted="a port of its own",
                )  # fmt: skip

    @property
    def check_timeout(self) -> timedelta:
        """How long a health check may take."""
        return min(CHECK_TIMEOUT, self.check_every)

    @property
    def notices_after(self) -> float:
        """Seconds, at most, until a replica that fails its checks gets no more requests."""
        fast = min(self.check_every, timedelta(seconds=max(0.05, self.check_every.total_seconds() / 4)))
        return (
            self.check_every + self.check_timeout + (FALL - 1) * (fast + self.check_timeout)
        ).total_seconds()

    @property
    def drain_seconds(self) -> int:
        """What `loopwright serve --drain-seconds` needs at least, so that a replica leaves before it stops."""
        return ceil(self.notices_after) + 1

    def to_json(self) -> dict[str, Any]:
        """Return every value of the configuration, spans in seconds."""
        plain = asdict(self)
        for name, value in plain.items():
            if isinstance(value, timedelta):
                plain[name] = value.total_seconds()
        for name in ("listen", "grpc", "metrics", "stats"):
            address = getattr(self, name)
            plain[name] = None if address is None else str(address)
        plain["backends"] = [
            {"name": each.name, "address": str(each.address), "weight": each.weight, "id": each.id}
            for each in self.backends
        ]
        plain["stick"] = self.stick.value
        return {**plain, "notices_after": self.notices_after, "drain_seconds": self.drain_seconds}


def parse_address(text: str, *, where: str = "--backend", any_host: bool = False) -> Address:
    """Parse HOST:PORT, [IPV6]:PORT, and with `any_host` *:PORT. Raises BadInput."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if (
        not colon
        or not port.isascii()
        or not port.isdigit()
        or not 1 <= int(port[:6]) <= 65535
        or len(port) > 5
    ):
        raise BadInput(
            "not an address", where=where, got=text[:80], wanted="HOST:PORT, with a port of 1 to 65535"
        )
    if "%" not in bare:  # a scope counts on one machine only
        with suppress(ValueError):
            return Address(str(ipaddress.ip_address(bare)), int(port))
    if any_host and host == "*":
        return Address("*", int(port))
    labels = bare.removesuffix(".").split(".")
    is_number = labels[-1].isdigit()  # 10.0.0.999 is a slip of the hand, and no name
    if bare is not host or is_number or len(bare) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise BadInput(
            "not a host", where=where, got=text[:80],
            wanted="an IP address (IPv6 in brackets) or a host name of letters, digits and hyphens",
        )  # fmt: skip
    return Address(bare.removesuffix(".").lower(), int(port))


def backends_of(addresses: Sequence[str], weights: Sequence[str]) -> tuple[Backend, ...]:
    """Parse replicas and their weights ("HOST:PORT=N", N from 0 to 256). Raises BadInput."""
    backends = {backend.name: backend for backend in (Backend(parse_address(text)) for text in addresses)}
    if len(backends) < len(addresses):
        raise BadInput("a replica is named twice", where="--backend", wanted="each address once")
    weighed: dict[str, int] = {}
    for text in weights:
        at, _, number = text.rpartition("=")
        name = Backend(parse_address(at, where="--weight")).name
        if not number.isascii() or not number.isdigit() or len(number) > 3 or int(number) > MAX_WEIGHT:
            raise BadInput(
                "not a weight",
                where="--weight",
                got=text[:80],
                wanted=f"HOST:PORT=N, N from 0 to {MAX_WEIGHT}",
            )
        if name not in backends:
            raise BadInput(
                "a weight for no replica", where="--weight", got=name, wanted=" or ".join(backends)
            )
        if weighed.setdefault(name, int(number)) != int(number):
            raise BadInput("two weights for one replica", where="--weight", got=name, wanted="one")
    return tuple(
        replace(backend, weight=weighed.get(name, backend.weight)) for name, backend in backends.items()
    )
