"""A real server and clients that mean no good or know no better: others are answered, nothing grows, nobody dies."""

import contextlib
import json
import random
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loopwright.bundle.routes import Arm
from tests.integration.serving.conftest import Control, Server, launch, request

CROWD = 10_000
OWN = 300
"""Descriptors of the test itself."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("connections")
    (folder / "control").mkdir()
    plane = Control(folder / "control")
    plane.start()
    plane.route({1: plane.bundle("one")}, Arm("stable", 1, 1.0))
    server = Server(*launch(folder, plane, max_connections=CROWD))
    yield server
    server.stop()
    plane.stop()


@pytest.fixture
def bystander(server: Server) -> Iterator[list[float]]:
    """Somebody who asks all the while; every request must be answered. Gives the seconds that each took."""
    took: list[float] = []
    wrong: list[object] = []
    stop = threading.Event()
    workers = server.workers()

    def ask() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=10) as http:
            while not stop.wait(0.005):
                begun = time.perf_counter()
                try:
                    answer = http.post("/v2/models/late/infer", json=request())
                except httpx.HTTPError as error:
                    wrong.append(error)
                    continue
                took.append(time.perf_counter() - begun)
                if answer.status_code != 200:
                    wrong.append(answer.text)

    asking = threading.Thread(target=ask)
    asking.start()
    yield took
    with contextlib.suppress(AssertionError):
        _until(lambda: len(took) > 5)
    stop.set()
    asking.join()
    assert wrong == []
    assert len(took) > 5
    assert server.workers() == workers


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=15)


def whole(body: bytes | None = None) -> bytes:
    body = body or json.dumps(request()).encode()
    return (
        f"POST /v2/models/late/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def said(client: socket.socket) -> bytes:
    """Everything until the server ends the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(1 << 16):
            found += data
    return found


def descriptors(server: Server) -> int:
    return len(list(Path(f"/proc/{server.workers()[0]}/fd").iterdir()))


def resident(server: Server) -> int:
    pages = Path(f"/proc/{server.workers()[0]}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def test_ten_thousand_connections_take_bounded_memory_and_the_longest_idle_make_room(
    server: Server, bystander: list[float]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = CROWD if hard == resource.RLIM_INFINITY else min(CROWD, hard - OWN - 1000)
    assert count >= 2000, f"the system lets a process open {hard} files (ulimit -Hn): too few for this test"
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(count + OWN + 1000, hard), hard))
    before = resident(server)
    crowd = [connect(server) for _ in range(count)]
    try:
        for client in random.Random(1).sample(crowd[1000:], 500):
            client.sendall(whole())
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
        per_connection = (resident(server) - before) / count
        late = [connect(server) for _ in range(500)]
        for client in late:
            client.sendall(whole())
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
        closed = sum(_closed(client) for client in crowd[:1000])
        assert (closed >= 490) == (count == CROWD)
    finally:
        for client in crowd:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for client in late:
        client.close()
    assert per_connection < 16 << 10
    _until(lambda: descriptors(server) < 200)


def _closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_slow_heads_and_slow_bodies_are_given_up_and_hold_up_nobody(
    server: Server, bystander: list[float]
) -> None:
    begun = time.monotonic()
    heads = [connect(server) for _ in range(100)]
    for client in heads[50:]:
        client.sendall(b"G")
    for byte in b"POST /v2/models/late/infer HTTP/1.1\r\nX-Slow: 123456789012345678901234567890":
        for client in heads[:50]:
            with contextlib.suppress(OSError):
                client.send(bytes([byte]))
        time.sleep(0.05)
    answers = [said(client) for client in heads]
    took = time.monotonic() - begun
    for client in heads:
        client.close()
    assert all(b"408 Request Timeout" in answer for answer in answers)
    assert all(b"the head came too slowly" in answer for answer in answers)
    assert 9 < took < 25  # then comes the limit of 30 s
    assert sorted(bystander)[int(0.99 * len(bystander))] < 1.0


def test_garbage_resets_and_half_closed_sockets_leave_nothing_behind(
    server: Server, bystander: list[float]
) -> None:
    _until(lambda: descriptors(server) < 200)
    before = descriptors(server)
    rng = random.Random(7)
    for turn in range(60):
        client = connect(server)
        if turn % 4 == 0:  # bytes that are nothing
            client.sendall(rng.randbytes(rng.randint(1, 3000)))
        elif turn % 4 == 1:  # a part of a request, and gone without goodbye
            client.sendall(whole()[: rng.randint(1, 300)])
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif turn % 4 == 2:  # a part of a request, and silence
            client.sendall(whole()[: rng.randint(1, 300)])
            client.shutdown(socket.SHUT_WR)
            assert b" 200 " not in said(client)
        else:  # all that there is to say, and only listening from then on
            client.sendall(whole() + whole())
            client.shutdown(socket.SHUT_WR)
            assert said(client).count(b"HTTP/1.1 200 OK") == 2
        client.close()
    _until(lambda: descriptors(server) <= before + 2)


def test_a_client_that_never_reads_fills_no_memory(server: Server, bystander: list[float]) -> None:
    before = resident(server)
    deaf = [connect(server) for _ in range(10)]
    raw = whole() * 20
    refused = 0
    for client in deaf:
        client.settimeout(0.2)
        sent = 0
        try:
            while sent < 100 << 20:
                sent += client.send(raw)
        except OSError:  # nobody reads it, or it was cut off
            refused += 1
    grown = resident(server) - before
    for client in deaf:
        client.close()
    assert refused == len(deaf)
    assert grown < 64 << 20


def _until(condition: object, seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.05)
