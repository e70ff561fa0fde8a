"""export haproxy: configurations for what runs around Loopwright."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.session import Session, command
from loopwright.kernel.clock import parse_duration
from loopwright.kernel.errors import BadInput
from loopwright.kernel.files import write_atomic
from loopwright.kernel.sizes import parse_size

F = TypeVar("F", bound=Callable[..., Any])


@subcommands()
def export() -> None:
    """Write configurations for what runs around: HAProxy."""


def _span(option: str, default: str, help: str) -> Callable[[F], F]:
    return click.option(option, default=default, show_default=True, metavar="SPAN", help=help)


@command("haproxy", export)
@click.option(
    "--backend", "addresses", multiple=True, required=True, metavar="HOST:PORT",
    help="The HTTP port of a `loopwright serve`; given once for each.",
)  # fmt: skip
@click.option(
    "--weight", "weights", multiple=True, metavar="HOST:PORT=N",
    help="Its share of requests, 0 to 256; default 100. 0 gives it no new ones.",
)  # fmt: skip
@click.option("--host", default="*", show_default=True, help="The address to listen at; *: all of them.")
@click.option("--port", type=int, default=8080, show_default=True, help="The port to listen at.")
@click.option("--grpc-port", type=int, help="The port to listen at for gRPC; default: none.")
@click.option(
    "--grpc-backend-port", type=int, default=8082, show_default=True, help="The gRPC port of every replica."
)
@click.option(
    "--stick-by", type=click.Choice(["unit-header", "cookie", "none"]), default="unit-header", show_default=True,
    help="What keeps requests on one replica: the header X-Loopwright-Unit, a cookie, or nothing.",
)  # fmt: skip
@_span("--timeout", "10s", "A replica silent for so long loses the request to another one.")
@_span("--connect-timeout", "1s", "So does one that cannot be reached for so long.")
@_span("--check-every", "1s", "How often each replica is asked for /readyz.")
@_span("--slow-start", "10s", "Until a replica that has come back gets its full share.")
@click.option(
    "--retries", type=int, default=2, show_default=True, help="Tries on other replicas after the first."
)
@click.option(
    "--buffer", default="64KiB", show_default=True, metavar="SIZE",
    help="Larger requests are passed on as they come, and not tried again.",
)  # fmt: skip
@click.option(
    "--max-connections",
    type=int,
    default=8_000,
    show_default=True,
    help="Clients at once; HAProxy needs twice as many open files.",
)
@click.option(
    "--metrics", default="127.0.0.1:8405", show_default=True, metavar="HOST:PORT",
    help="Where HAProxy's own /metrics are; off: nowhere.",
)  # fmt: skip
@click.option("--stats", metavar="HOST:PORT", help="Where its page of statistics is; default: nowhere.")
@click.option("--tls", metavar="FILE", help="Certificate and key (PEM) to speak TLS with.")
@click.option("--admin-socket", metavar="FILE", help="Where HAProxy takes commands from its operator.")
@click.option("--user", metavar="NAME", help="Whom HAProxy becomes after it has opened its ports as root.")
@click.option(
    "--overrides", is_flag=True,
    help="Let clients force an arm by header. Only for replicas with --callers: others believe the balancer.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write it there instead.")
def haproxy(
    session: Session,
    addresses: tuple[str, ...],
    weights: tuple[str, ...],
    host: str,
    port: int,
    grpc_port: int | None,
    grpc_backend_port: int,
    stick_by: str,
    timeout: str,
    connect_timeout: str,
    check_every: str,
    slow_start: str,
    retries: int,
    buffer: str,
    max_connections: int,
    metrics: str,
    stats: str | None,
    tls: str | None,
    admin_socket: str | None,
    user: str | None,
    overrides: bool,
    out: Path | None,
) -> None:
    """Write a HAProxy configuration for several `loopwright serve`.

    Replicas are asked for /readyz; one that fails or drains gets no more requests. A request whose connection failed,
    broke or stayed silent, or that was answered 503, is tried on another replica: repeating a prediction changes
    nothing but the log, where both attempts have one request id. What is for operators (/admin, /metrics, loading
    models) is not passed on. Check the file with `haproxy -c -f FILE`.
    """
    from loopwright.exports.balancer import Address, Balancer, Stick, backends_of, parse_address
    from loopwright.exports.haproxy import haproxy_config

    def at(port: int, option: str) -> Address:
        return parse_address(f"{_bracketed(host)}:{port}", where=option, any_host=True)

    balancer = Balancer(
        backends=backends_of(addresses, weights),
        listen=at(port, "--port"),
        grpc=None if grpc_port is None else at(grpc_port, "--grpc-port"),
        grpc_port=grpc_backend_port,
        stick=Stick(stick_by),
        timeout=_parsed("--timeout", timeout),
        connect_timeout=_parsed("--connect-timeout", connect_timeout),
        check_every=_parsed("--check-every", check_every),
        slow_start=_parsed("--slow-start", slow_start),
        retries=retries,
        buffer=parse_size(buffer, where="--buffer"),
        max_connections=max_connections,
        metrics=None if metrics == "off" else parse_address(metrics, where="--metrics"),
        stats=parse_address(stats, where="--stats") if stats else None,
        certificate=tls,
        admin_socket=admin_socket,
        user=user,
        overrides=overrides,
    )
    text = haproxy_config(balancer)
    if out is not None:
        write_atomic(out.expanduser().absolute(), text.encode())
        session.note(f"written to {out}; check it with: haproxy -c -f {out}")
    session.show({**balancer.to_json(), "config": text}, lambda _: "" if out else text.rstrip("\n"))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _parsed(option: str, text: str) -> timedelta:
    if text.strip() == "0":
        return timedelta()
    try:
        return parse_duration(text)
    except BadInput as error:
        raise BadInput(error.what, where=option, got=error.got, wanted=error.wanted) from None
