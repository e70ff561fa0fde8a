"""Posts a document to somebody's URL, signed, so that the receiver knows who says it; no redirect is followed.

    Loopwright-Event:      what it is about; the same one may come twice, and means the same then
    Loopwright-Signature:  t=SECONDS,v1=HEX: HMAC-SHA256 with the secret over "SECONDS." and the body

The receiver answers 2xx; anything else is a problem, in words. Addresses that a stranger may not make us call are
checked after the name was resolved and before a byte is sent: a name cannot mean another machine a moment later.
"""

import hashlib
import hmac
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from loopwright.kernel.errors import BadInput, Refused

TIMEOUT = 10.0
TRIES = 10
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
MAX_URL = 2048
MAX_ADDRESSES = 3

_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
    )
)
"""Services that hand out credentials to whoever asks from inside: AWS, Google, Alibaba, Oracle, Azure."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Check = Callable[[str], None]
"""Takes the address (no name) that is about to be called; raises Refused when it may not be."""


def signature(secret: bytes, body: bytes, seconds: int) -> str:
    """What the header says of `body`, sent at `seconds` since 1970."""
    mac = hmac.new(secret, f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={mac}"


def verify(secret: bytes, body: bytes, header: str, *, now: int, tolerance: int = 300) -> bool:
    """Whether `header` signs `body` with `secret`, not longer ago than `tolerance` seconds; for receivers."""
    parts = dict(part.partition("=")[::2] for part in header.split(","))
    if not parts.get("t", "").isdigit() or abs(now - int(parts["t"])) > tolerance:
        return False
    return hmac.compare_digest(signature(secret, body, int(parts["t"])), header)


def pause(tries: int, first: float = FIRST_PAUSE) -> float:
    """Seconds to wait after so many tries that failed: twice as long each time, at most LONGEST_PAUSE."""
    return min(LONGEST_PAUSE, first * 2.0 ** min(tries - 1, 30))


def check_url(url: str, where: str, *, allowed: Sequence[Network] | None = None) -> None:
    """Raise BadInput for what is no http(s) address; with `allowed`, Refused for addresses that `guard` refuses.

    A name is resolved only when it is called.
    """
    wanted = "http(s)://HOST/…"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise BadInput("not the address of a server", where=where, wanted=wanted) from None
    if parts.scheme not in ("http", "https") or not host or len(url) > MAX_URL or not url.isprintable():
        # What stands before an @ may be a password, what stands behind a ? a key.
        shown = url.partition("?")[0].rpartition("@")[2][:200]
        raise BadInput("not the address of a server", where=where, got=shown, wanted=wanted)
    if allowed is None:
        return
    if host.lower().rstrip(".") == "localhost" or host.lower().rstrip(".").endswith(".localhost"):
        host = "127.0.0.1"
    with suppress(ValueError):
        guard(allowed, where)(str(ipaddress.ip_address(host)))


def guard(allowed: Sequence[Network], where: str) -> Check:
    """A check that refuses this machine and what is only near it (loopback, link-local, multicast), `allowed` aside.

    That is where everybody's unprotected helpers listen, and the metadata services of clouds; those that listen
    elsewhere are refused as well.
    """

    def check(address: str) -> None:
        found = ipaddress.ip_address(address.partition("%")[0])
        # What is spelt as IPv6 may be carried to the IPv4 address in it.
        found = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None) or found
        if any(found in network for network in allowed if network.version == found.version):
            return
        near = found.is_loopback or found.is_link_local or found.is_multicast or found.is_unspecified
        if near or found.is_reserved or found in _METADATA:
            raise Refused(
                "an address that is not called for others", where=where, got=str(found),
                wanted="a machine of its own: not loopback, link-local or multicast",
                next='An admin can allow a network in home.json: "jobs": {"allow": ["10.0.0.0/8"]}',
            )  # fmt: skip

    return check


def post(
    url: str,
    secret: bytes,
    body: bytes,
    event: str,
    *,
    timeout: float = TIMEOUT,
    check: Check | None = None,
    now: Callable[[], float] = time.time,
) -> str | None:
    """Post `body` (JSON) once, signed; why it was not taken, or None when it was. A receiver gets 2 × `timeout` in all.

    Raises Refused when `check` does.
    """
    parts = urlsplit(url)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "loopwright",
        "Loopwright-Event": event,
        "Loopwright-Signature": signature(secret, body, int(now())),
    }
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = _connection(parts.scheme, parts.hostname or "", parts.port, timeout, check)
    # A receiver that sends a byte now and then would hold us for ever: no single read of it times out.
    late = threading.Event()
    ending = threading.Timer(2 * timeout, _hang_up, (connection, late))
    ending.daemon = True
    ending.start()
    status = 0
    try:
        connection.connect()
        if late.is_set():  # there was no socket to hang up yet, or one that TLS had taken over
            raise TimeoutError
        connection.request("POST", target, body=body, headers=headers)
        status = connection.getresponse().status
    except Refused:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        if not late.is_set():
            return f"{type(error).__name__}: {error}"[:200]
    finally:
        ending.cancel()
        connection.close()
    if late.is_set():  # an answer that was cut off may look like a short one
        return f"no whole answer within {2 * timeout:g} s"
    return None if 200 <= status < 300 else f"the receiver answers {status}"


def _connection(
    scheme: str, host: str, port: int | None, timeout: float, check: Check | None
) -> http.client.HTTPConnection:
    if scheme == "https":
        return _Secured(host, port, timeout, check)
    return _Plain(host, port, timeout, check)


def _open(host: str, port: int, timeout: float, check: Check | None) -> socket.socket:
    """A connection to the first address of `host` that answers; every address is checked before it is called."""
    problem: OSError | None = None
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in found[:MAX_ADDRESSES]:
        if check is not None:
            check(str(address[0]))
        connected = socket.socket(family, kind, protocol)
        try:
            connected.settimeout(timeout)
            connected.connect(address)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connected
        except OSError as error:
            connected.close()
            problem = error
    raise problem or OSError(f"{host} has no address")


class _Plain(http.client.HTTPConnection):
    def __init__(self, host: str, port: int | None, timeout: float, check: Check | None) -> None:
        super().__init__(host, port, timeout=timeout)
        self._patience, self._check = timeout, check

    def connect(self) -> None:
        self.sock = _open(self.host, self.port, self._patience, self._check)


class _Secured(_Plain):
    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()  # from here on whoever hangs up finds the socket
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def _hang_up(connection: http.client.HTTPConnection, late: threading.Event) -> None:
    late.set()
    held = connection.sock
    if held is not None:
        with suppress(OSError):
            held.shutdown(socket.SHUT_RDWR)
