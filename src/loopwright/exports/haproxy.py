"""HAProxy (2.4 or later) in front of several `loopwright serve`: `loopwright export haproxy`.

A request is retried on another replica when the connection failed, when it broke or stayed silent before an answer,
and when the answer was 503, which `loopwright serve` gives for what it did not predict. Repeating a prediction changes
nothing but the log, where both attempts have one request id, for it is given here when the client gave none. Never
retried: jobs without an Idempotency-Key, and bodies larger than the buffer.

Only parsed values enter the text, so no argument can add a line to it.
"""

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


def haproxy_config(balancer: Balancer) -> str:
    """Return the configuration. The same balancer gives the same text."""
    sections = [
        _head(balancer),
        ("global", _global(balancer)),
        ("defaults", _defaults(balancer)),
        ("frontend predictions", _frontend(balancer)),
        ("backend replicas", _backend(balancer)),
    ]
    if any(backend.address.is_name for backend in balancer.backends):
        names = ["parse-resolv-conf", "hold valid 10s", "resolve_retries 3", "timeout retry 1s"]
        sections.insert(2, ("resolvers system", names))
    if balancer.grpc is not None:
        sections.append(("frontend grpc_predictions", _grpc_frontend(balancer, balancer.grpc)))
        sections.append(("backend grpc_replicas", _grpc_backend(balancer)))
    if balancer.metrics is not None:
        lines = [
            f"bind {balancer.metrics}",
            "http-request use-service prometheus-exporter if { path /metrics }",
            "http-request deny status 404",
        ]
        sections.append(("frontend metrics", lines))
    if balancer.stats is not None:
        lines = [
            f"bind {balancer.stats}",
            "stats enable",
            "stats uri /",
            "stats refresh 5s",
            "stats hide-version",
        ]
        sections.append(("frontend stats", lines))
    return "\n".join(_section(name, lines) for name, lines in sections)


def _section(name: str, lines: list[str]) -> str:
    indented = [f"    {line}" for line in lines] if name else lines
    return "".join(f"{line}\n" for line in ([name] if name else []) + indented)


def _head(balancer: Balancer) -> tuple[str, list[str]]:
    return "", [
        "# Written by `loopwright export haproxy`; write it again rather than edit it. Needs HAProxy 2.4 or later.",
        "# Check it with haproxy -c -f FILE; put a new one into force with a reload, which drops no connection.",
        f"# A replica that fails gets no more requests after {balancer.notices_after:g} s. Start replicas with",
        f"# --drain-seconds {balancer.drain_seconds} or more, so that each leaves the rotation before it stops.",
    ]


def _global(balancer: Balancer) -> list[str]:
    lines = [
        "log stdout format raw daemon info",
        f"maxconn {balancer.max_connections}",
        "hard-stop-after 60s",
        "# What a retry needs of a request lies in one buffer.",
        f"tune.bufsize {balancer.buffer}",
    ]
    if balancer.user is not None:
        lines.append(f"user {balancer.user}")
    if balancer.admin_socket is not None:
        lines.append(f"stats socket {balancer.admin_socket} mode 600 level admin")
    if balancer.certificate is not None:
        lines.append("ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets")
    return lines


def _defaults(balancer: Balancer) -> list[str]:
    errors = {
        400: "the request is not valid HTTP",
        408: "the request came too slowly",
        502: "the replica broke off, or gave no valid answer",
        503: "no replica can take the request now",
        504: "no replica answered in time",
    }
    return [
        "mode http",
        "log global",
        "option httplog",
        "# Requests that failed or needed another try; the others are counted in /metrics.",
        "option dontlog-normal",
        "option dontlognull",
        "timeout client 75s",
        "timeout http-keep-alive 75s",
        "timeout http-request 30s",
        f"timeout connect {_span(balancer.connect_timeout)}",
        f"timeout server {_span(balancer.timeout)}",
        f"timeout queue {_span(balancer.timeout)}",
        "timeout tunnel 1h",
        *(
            f'http-error status {status} content-type application/json string \'{{"error":"{text}"}}\''
            + (" hdr Retry-After 1" if status == 503 else "")
            for status, text in errors.items()
        ),
    ]


def _frontend(balancer: Balancer) -> list[str]:
    bind = f"bind {balancer.listen}"
    if balancer.certificate is not None:
        bind += f" ssl crt {balancer.certificate} alpn h2,http/1.1"
    lines = [
        bind,
        "# A whole request, or a buffer of it, before a replica is chosen: slow senders hold no replica, and it can be",
        "# sent again.",
        "option http-buffer-request",
        "option forwardfor",
        "# What is for one replica's operator is asked for there: replicas take calls from their own machine for its",
        "# operator's, and the balancer may be on it.",
        "acl operators path,url_dec -m beg /admin /metrics /v2/repository/models",
        "http-request deny status 404 content-type application/json "
        'string \'{"error":"not served through the balancer"}\' if operators',
    ]
    lines += [
        *_headers(balancer),
        "# Twice would be more than was asked for.",
        "http-request disable-l7-retry if { path,url_dec -m end /jobs } !{ req.hdr(Idempotency-Key) -m found }",
    ]
    if balancer.certificate is not None:
        lines.append("http-response set-header Strict-Transport-Security max-age=31536000")
    return [*lines, "default_backend replicas"]


def _grpc_frontend(balancer: Balancer, listen: Address) -> list[str]:
    secure = f" ssl crt {balancer.certificate} alpn h2" if balancer.certificate is not None else " proto h2"
    return [
        f"bind {listen}{secure}",
        "option http-buffer-request",
        "option forwardfor",
        *_headers(balancer),
        "default_backend grpc_replicas",
    ]


def _headers(balancer: Balancer) -> list[str]:
    return [
        *([] if balancer.overrides else ["http-request del-header X-Loopwright-Arm"]),
        "# One id for all attempts: the log shows which predictions are one request.",
        "http-request set-header X-Request-Id %[uuid()] unless { req.hdr(X-Request-Id) -m found }",
    ]


def _backend(balancer: Balancer) -> list[str]:
    secure = " secure" if balancer.certificate is not None else ""
    by_cookie = balancer.stick is Stick.COOKIE
    lines = [
        *_sticking(balancer.stick),
        *([f"cookie LOOPWRIGHT insert indirect nocache httponly{secure}"] if by_cookie else []),
        *_keeping_up(balancer),
    ]
    for backend in balancer.backends:
        cookie = f" cookie {backend.id:08x}" if by_cookie else ""
        lines.append(_server(backend, backend.address) + cookie)
    return lines


def _grpc_backend(balancer: Balancer) -> list[str]:
    lines = [*_sticking(balancer.stick), *_keeping_up(balancer)]
    for backend in balancer.backends:
        there = replace(backend.address, port=balancer.grpc_port)
        # Whether it is ready is asked over HTTP, as for the other port.
        lines.append(f"{_server(backend, there)} proto h2 port {backend.address.port} check-proto h1")
    return lines


def _sticking(stick: Stick) -> list[str]:
    if stick is not Stick.UNIT_HEADER:
        # It is seldom the one that hangs.
        return ["# Two are drawn by weight, and the less busy one is taken.", "balance random(2)"]
    return [
        f"# The same {UNIT_HEADER} finds the same replica while it is up; without the header they take turns.",
        f"balance hdr({UNIT_HEADER})",
        "hash-type consistent sdbm avalanche",
        "# A replica with half as much again as its share under way passes some of it on.",
        "hash-balance-factor 150",
    ]


def _keeping_up(balancer: Balancer) -> list[str]:
    """Checks and retries."""
    fast = max(50, round(balancer.check_every.total_seconds() * 250))
    check = f"check inter {_span(balancer.check_every)} fastinter {fast}ms downinter {_span(balancer.check_every)}"
    return [
        f"retries {balancer.retries}",
        "option redispatch 1",
        "retry-on conn-failure empty-response response-timeout 503" if balancer.retries else "retry-on none",
        "http-reuse always",
        "option httpchk",
        "http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host loopwright hdr Connection close",
        "http-check expect status 200",
        f"timeout check {_span(balancer.check_timeout)}",
        f"default-server {check} fall {FALL} rise {RISE} slowstart {_span(balancer.slow_start)}"
        " observe layer4 error-limit 3 on-error fail-check pool-purge-delay 5s",
    ]


def _server(backend: Backend, address: Address) -> str:
    line = f"server {backend.name} {address} id {backend.id} weight {backend.weight}"
    return f"{line} resolvers system init-addr last,libc,none" if backend.address.is_name else line


def _span(span: timedelta) -> str:
    return f"{round(span.total_seconds() * 1000)}ms"
