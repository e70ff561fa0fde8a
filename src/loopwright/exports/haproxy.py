"""HAProxy (2.4 or later) in front of several `loopwright serve`: `loopwright export haproxy`.

A request is retried on another replica when the connection failed, when it broke or stayed silent before an answer,
and when the answer was 503, which `loopwright serve` gives for what it did not predict. Repeating a prediction changes
nothing but the log, where both attempts have one request id, for it is given here when the client gave none. Never
retried: jobs without an Idempotency-Key, and bodies larger than the buffer.

Only parsed values enter the text, so no argument can add a line to it.
"""

from dataclasses import replace
from datetime import timedelta

from loopwright.exports.balancer import FALL, RISE, UNIT_HEADER, Address, Backend, Balancer, Stick


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
        "acl operators path -m end /RepositoryModelLoad /RepositoryModelUnload",
        # Clients of gRPC take it for PERMISSION_DENIED.
        "http-request deny status 403 if operators",
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
        f"# The same {UNIT_HEADER} finds the same replica while it is up; without it, by weight.",
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
