"""A real control plane's serving side over HTTP, in a thread, and real `loopwright serve` processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keyring import Keyring
from loopwright.bundle.routes import Arm, ModelRoute, sign_routes
from loopwright.bundle.testing import route_for, table_of, tiny_bundle
from loopwright.serving.events import Event, read_frames
from loopwright.serving.wire import Fold, open_batch

SERVE = """
import json, sys
from pathlib import Path
from loopwright.kernel.errors import LoopwrightError
from loopwright.serving.supervisor import ServeOptions, serve
options = json.loads(sys.argv[1])
try:
    sys.exit(serve(ServeOptions(**{**options, "home": Path(options["home"])})))
except LoopwrightError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


class Control:
    """Answers what `docs` promise servers: keys, routes, bundles, and events applied exactly once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keyring = Keyring.open(folder / "keys")
        self.key = self.keyring.signing
        self.trusted: tuple[str, ...] = ()
        self.depot = BundleDepot(folder / "bundles")
        self.token: str | None = None
        self.serial = 0
        self.routes = sign_routes(table_of(0), self.key)
        self.shipped: dict[tuple[str, str], int] = {}
        self.events: list[Event] = []
        self.folds: list[Fold] = []
        self.lose_answers = 0
        self.host, self.port = "127.0.0.1", 0
        self._server: ThreadingHTTPServer | None = None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bundle(self, name: str, **options: object) -> str:
        path = self.folder / "built" / name
        path.parent.mkdir(exist_ok=True)
        tiny_bundle(path, self.key, **options)  # type: ignore[arg-type]
        return self.depot.add(path)

    def route(self, bundles: dict[int, str], *arms: Arm) -> None:
        self.publish(route_for(self.key, bundles, arms))

    def publish(self, *routes: ModelRoute) -> None:
        self.serial += 1
        self.routes = sign_routes(table_of(self.serial, *routes, trusted=self.trusted), self.key)

    def rotate(self) -> None:
        self.keyring.rotate(datetime.now(UTC))
        self.key = self.keyring.signing

    def start(self) -> None:
        control = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self._send(*control.get(self.path, self.headers.get("Authorization")))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = control.post(body, self.headers.get("Authorization"))
                if answer is None:
                    self.close_connection = True
                    self.connection.close()
                else:
                    self._send(*answer)

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer((self.host, self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def get(self, path: str, authorization: str | None) -> tuple[int, bytes]:
        if not self._server:
            return 503, b""
        if self.token and authorization != f"Bearer {self.token}":
            return 401, b'{"error": "unknown token"}'
        if path == "/api/v1/keys":
            keys = [{"key_id": key.key_id, "public": key.to_text()} for key in self.keyring.public]
            return 200, json.dumps({"keys": keys, "keyring": self.keyring.document.decode()}).encode()
        if path == "/api/v1/routes":
            return 200, self.routes
        if path.startswith("/api/v1/bundles/"):
            digest, _, name = path.removeprefix("/api/v1/bundles/").partition("/files/")
            file = self.depot.path(digest) / name
            return (200, file.read_bytes()) if file.is_file() else (404, b"")
        return 404, b""

    def post(self, body: bytes, authorization: str | None) -> tuple[int, bytes] | None:
        if not self._server:
            return 503, b""
        if self.token and authorization != f"Bearer {self.token}":
            return 401, b""
        batch = open_batch(body)
        with self._lock:
            at = (batch.header.source, batch.header.segment)
            if batch.header.start == self.shipped.get(at, 0):
                self.shipped[at] = batch.header.end
                self.events += read_frames(batch.frames)
                self.folds += batch.header.folds
            accepted = self.shipped.get(at, 0)
            if self.lose_answers:
                self.lose_answers -= 1
                return None
        return 200, json.dumps({"accepted": accepted}).encode()


class Server:
    """A running `loopwright serve`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self.port = self._wait_for_port()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def _wait_for_port(self) -> int:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            for line in self.log.read_text().splitlines():
                if "at http://" in line:
                    return int(line.split("at http://", 1)[1].split("/")[0].rsplit(":", 1)[1])
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        pytest.fail(f"the server did not start: {self.log.read_text()}")

    def predict(self, distance: float = 500.0, carrier: str = "UA", **more: object) -> httpx.Response:
        return self.http.post("/v2/models/late/infer", json=request(distance, carrier, **more))

    def admin(self, what: str) -> httpx.Response:
        return self.http.post(f"/admin/{what}")

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def stop(self) -> int:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def request(distance: float = 500.0, carrier: str = "UA", **more: object) -> dict[str, object]:
    return {
        "inputs": [
            {"name": "distance", "datatype": "FP64", "shape": [1], "data": [distance]},
            {"name": "hour", "datatype": "INT64", "shape": [1], "data": [6]},
            {"name": "carrier", "datatype": "BYTES", "shape": [1], "data": [carrier]},
        ],
        **more,
    }


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    folder = tmp_path / "control"
    folder.mkdir()
    plane = Control(folder)
    plane.start()
    yield plane
    plane.stop()


@pytest.fixture
def serve(tmp_path: Path, control: Control) -> Iterator[Callable[..., Server]]:
    """Starts servers; each keyword is a field of ServeOptions. The same home is used again and again."""
    started: list[Server] = []

    def start(**options: object) -> Server:
        process, log = launch(tmp_path, control, **options)
        server = Server(process, log)
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def serve_fails(tmp_path: Path, control: Control) -> Callable[..., tuple[int, str]]:
    """Runs a server that must not start; returns its exit code and what it said."""

    def run(**options: object) -> tuple[int, str]:
        process, log = launch(tmp_path, control, **options)
        return process.wait(30), log.read_text()

    return run


def launch(
    tmp_path: Path, plane: Control, prefix: Sequence[str] = (), keep: Sequence[int] = (), **options: object
) -> tuple[subprocess.Popen[bytes], Path]:
    log = tmp_path / f"serve-{time.monotonic_ns()}.log"
    full = {"control": plane.url, "home": str(tmp_path / "serving"), "port": 0, "wait": 0.5, **options}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", SERVE, json.dumps(full)],
            stderr=stream,
            env=dict(os.environ),
            pass_fds=keep,
        )
    return process, log


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.02)
