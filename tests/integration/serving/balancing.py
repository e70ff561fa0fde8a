"""A real HAProxy, and networks of their own for the servers behind it."""

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import httpx
import pytest

from loopwright.demo.processes import free_port
from loopwright.exports.balancer import Balancer
from loopwright.exports.haproxy import haproxy_config

_PATHS = "/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/usr/local/bin:/bin:/opt/homebrew/bin"


def program(name: str, package: str) -> str:
    found = shutil.which(name, path=_PATHS)
    if found is None:
        pytest.fail(f"{name} is not installed: run scripts/test-services (Debian: apt-get install {package})")
    return found


class HAProxy:
    """A running HAProxy."""

    def __init__(self, balancer: Balancer, process: subprocess.Popen[bytes], log: Path) -> None:
        self.port = balancer.listen.port
        self.url = f"http://127.0.0.1:{self.port}"
        self.process, self.log = process, log
        self._metrics = balancer.metrics

    def up(self) -> set[str]:
        """Names of the replicas that get requests."""
        mark = 'haproxy_server_status{proxy="replicas",server="'
        lines = httpx.get(f"http://{self._metrics}/metrics", timeout=10).text.splitlines()
        return {
            line.removeprefix(mark).split('"')[0]
            for line in lines
            if line.startswith(mark) and line.endswith('state="UP"} 1')
        }


@contextlib.contextmanager
def haproxy(balancer: Balancer, folder: Path) -> Iterator[HAProxy]:
    path, log = folder / "haproxy.cfg", folder / "haproxy.log"
    path.write_text(haproxy_config(balancer))
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [program("haproxy", "haproxy"), "-db", "-f", str(path)], stdout=stream, stderr=stream
        )
    try:
        until = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", balancer.listen.port)):
                break
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"HAProxy did not start: {log.read_text()}")
            time.sleep(0.02)
        yield HAProxy(balancer, process, log)
    finally:
        process.terminate()
        process.wait(20)


class Network(Protocol):
    """Where one replica lives. host, port: how the balancer reaches it. control: how it reaches this machine.

    prefix: what its command begins with.
    """

    host: str
    port: int
    control: str
    bind: str
    listens: int
    prefix: tuple[str, ...]

    def cut(self) -> None:
        """From now on nothing gets through, in either direction, and nobody is told."""

    def heal(self) -> None:
        """Undo `cut`."""

    def close(self) -> None:
        """Take it away."""


class Namespace:
    """A network namespace of its own, joined with a pair of virtual cables. Needs root and CAP_SYS_ADMIN."""

    def __init__(self, number: int) -> None:
        tag = f"{os.getpid() % 0xFFFF:04x}{number}"
        self._name, self._here = f"lw-{tag}", f"lw{tag}"
        # 198.18.0.0/15 is set aside for tests between machines.
        net = f"198.18.{os.getpid() % 256}"
        self.control, self.host = f"{net}.{4 * number + 1}", f"{net}.{4 * number + 2}"
        self.bind, self.port = self.host, 8081
        self.listens = self.port
        self.prefix = (program("ip", "iproute2"), "netns", "exec", self._name)
        _ip("netns", "add", self._name)
        try:
            _ip("link", "add", self._here, "type", "veth", "peer", "name", "eth0", "netns", self._name)
            _ip("addr", "add", f"{self.control}/30", "dev", self._here)
            _ip("link", "set", self._here, "up")
            _ip("-n", self._name, "addr", "add", f"{self.host}/30", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", self._name, "link", "set", device, "up")
        except BaseException:
            self.close()
            raise

    def cut(self) -> None:
        # Frames go to an address that nobody has, and answers into a hole.
        _ip(
            "neigh",
            "replace",
            self.host,
            "lladdr",
            "02:00:00:00:00:01",
            "dev",
            self._here,
            "nud",
            "permanent",
        )
        _ip("-n", self._name, "route", "add", "blackhole", f"{self.control}/32")

    def heal(self) -> None:
        _ip("-n", self._name, "route", "del", "blackhole", f"{self.control}/32")
        _ip("neigh", "del", self.host, "dev", self._here)

    def close(self) -> None:
        _ip("netns", "del", self._name)


class Relay:
    """For machines that grant no namespaces: connections through this process, which can fall silent."""

    def __init__(self, number: int) -> None:
        self.host = self.control = self.bind = "127.0.0.1"
        self.prefix: tuple[str, ...] = ()
        self.listens = free_port()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = threading.Event()
        self._open.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._open.clear()

    def heal(self) -> None:
        self._open.set()

    def close(self) -> None:
        self._open.set()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            self._open.wait()
            try:
                server = socket.create_connection(("127.0.0.1", self.listens))
            except OSError:
                client.close()
                continue
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                self._open.wait()
                other.sendall(data)
        self._open.wait()
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def network(number: int) -> Network:
    """A namespace where the system grants one, else a relay."""
    if os.geteuid() == 0:
        with contextlib.suppress(subprocess.CalledProcessError):
            return Namespace(number)
    return Relay(number)


def _ip(*arguments: str) -> None:
    subprocess.run([program("ip", "iproute2"), *arguments], check=True, capture_output=True, timeout=20)
