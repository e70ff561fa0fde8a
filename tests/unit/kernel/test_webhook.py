"""Calls to others' addresses: signed, bounded in time, and never to what listens only near us."""

import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest

from loopwright.kernel import webhook
from loopwright.kernel.errors import BadInput, Refused
from loopwright.kernel.webhook import check_url, guard, pause, post, verify


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def answering(server: socket.socket, answer: bytes, got: list[bytes], every: float = 0.0) -> None:
    """Take one call and answer it, a byte each `every` seconds."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            data = b""
            while b"\r\n\r\n{}" not in data:
                data += connection.recv(65536)
            got.append(data)
            for byte in [answer] if not every else [bytes([one]) for one in answer]:
                connection.sendall(byte)
                time.sleep(every)

    threading.Thread(target=serve, daemon=True).start()


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("93.184.216.34", True), ("10.1.2.3", True), ("2606:4700::1111", True),
        ("127.0.0.1", False), ("127.8.8.8", False), ("::1", False), ("::ffff:127.0.0.1", False),
        ("169.254.169.254", False), ("fe80::1%eth0", False), ("0.0.0.0", False), ("224.0.0.1", False),
        ("255.255.255.255", False), ("fd00:ec2::254", False), ("100.100.100.200", False), ("192.0.0.192", False),
        ("2002:7f00:1::", False),
    ],
)  # fmt: skip
def test_addresses_near_us_are_refused(address: str, allowed: bool) -> None:
    check = guard((), "webhook")
    if allowed:
        check(address)
    else:
        with pytest.raises(Refused, match="not called for others"):
            check(address)


def test_an_admin_may_allow_a_network_and_only_that() -> None:
    check = guard((ipaddress.ip_network("127.0.0.0/24"),), "webhook")
    check("127.0.0.9")
    check("::ffff:127.0.0.9")
    with pytest.raises(Refused):
        check("127.0.1.9")


def test_a_name_that_means_this_machine_is_found_out_when_it_is_called(listener: socket.socket) -> None:
    """`check_url` cannot know what a name will mean; nothing was sent when `post` finds out."""
    url = f"http://localhost:{port_of(listener)}/x"
    with pytest.raises(Refused):
        check_url(url, "webhook", allowed=())
    with pytest.raises(Refused):
        post(url, b"s", b"{}", "e", check=guard((), "webhook"))
    listener.settimeout(0.05)
    with pytest.raises(TimeoutError):
        listener.accept()


def test_a_call_is_signed_over_its_moment_and_its_body(listener: socket.socket) -> None:
    got: list[bytes] = []
    answering(listener, b"HTTP/1.1 204 No Content\r\n\r\n", got)
    assert (
        post(f"http://127.0.0.1:{port_of(listener)}/hook?a=1", b"s", b"{}", "jb_1", now=lambda: 1000.0)
        is None
    )
    head = got[0].decode().partition("\r\n\r\n")[0]
    assert head.startswith("POST /hook?a=1 HTTP/1.1") and "Loopwright-Event: jb_1" in head
    signed = next(
        line.partition(": ")[2] for line in head.splitlines() if line.startswith("Loopwright-Signature")
    )
    assert verify(b"s", b"{}", signed, now=1299) and not verify(b"s", b"{}", signed, now=1301)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "the receiver answers 302"),
        (b"HTTP/1.1 500 Oops\r\n\r\n", "the receiver answers 500"),
        (b"nonsense\r\n\r\n", "BadStatusLine"),
        (b"", "RemoteDisconnected"),
    ],
)
def test_what_is_no_yes_is_a_problem_in_words(listener: socket.socket, answer: bytes, told: str) -> None:
    answering(listener, answer, [])
    problem = post(f"http://127.0.0.1:{port_of(listener)}/", b"s", b"{}", "e", timeout=5)
    assert problem is not None and told in problem


def test_a_receiver_that_sends_a_byte_now_and_then_is_hung_up_on(listener: socket.socket) -> None:
    answering(listener, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000, [], every=0.05)
    began = time.monotonic()
    problem = post(f"http://127.0.0.1:{port_of(listener)}/", b"s", b"{}", "e", timeout=2)
    assert problem == "no whole answer within 4 s" and time.monotonic() - began < 30


def test_connecting_is_part_of_the_time(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of several addresses may take all of it: whoever answers at the last one has no time of his own."""
    answering(listener, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2000, [], every=0.02)
    opened = webhook._open

    def slow(*args: Any) -> socket.socket:
        time.sleep(2.5)
        return opened(*args)

    monkeypatch.setattr(webhook, "_open", slow)
    began = time.monotonic()
    problem = post(f"http://127.0.0.1:{port_of(listener)}/", b"s", b"{}", "e", timeout=1)
    assert problem == "no whole answer within 2 s" and time.monotonic() - began < 20


def test_nobody_there_is_a_problem_too() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = port_of(taken)
    assert "refused" in str(post(f"http://127.0.0.1:{port}/", b"s", b"{}", "e")).lower()


@pytest.mark.parametrize(
    "url",
    ["", "x", "ftp://a/", "http://", "http://a:b/", "http://a\n/", "http://[::1", "https://" + "a" * 3000],
)
def test_what_is_no_address_is_refused_without_showing_a_password(url: str) -> None:
    with pytest.raises(BadInput, match="not the address of a server"):
        check_url(url, "webhook")
    with pytest.raises(BadInput) as refused:
        check_url("ftp://ana:hunter2@x/?key=abc", "webhook")
    assert "hunter2" not in str(refused.value) and "abc" not in str(refused.value)


def test_pauses_double_up_to_five_minutes() -> None:
    assert [pause(n) for n in (1, 2, 3, 9, 10, 400)] == [1, 2, 4, 256, 300, 300]
