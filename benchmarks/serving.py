"""One serving worker, single-row V2 JSON requests: what a request costs with routing, logging and counters on.

The limit beside it is a bare ASGI handler (msgspec + ONNX Runtime, the same model and JSON, no checks, no log) on the
same uvicorn, driven by the same load generator in the same run. Run: .venv/bin/python benchmarks/serving.py
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from loopwright.bundle.keys import SigningKey
from loopwright.bundle.manifest import Golden
from loopwright.bundle.routes import Arm, sign_routes
from loopwright.bundle.seal import build_bundle
from loopwright.bundle.signature import Field, Schema
from loopwright.bundle.testing import CREATED, route_for, table_of
from loopwright.serving.wire import open_batch
from loopwright.stats.profile import PREDICTION, build_reference

FEATURES = 20
NAMES = tuple(f"f{i}" for i in range(FEATURES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        onnx = gradient_boosting()
        (root / "model.onnx").write_bytes(onnx)
        control = Control(root, onnx)
        ours, port = start_ours(root, control.port)
        bare, bare_port = start_bare(root / "model.onnx")
        rows: dict[str, list[tuple[float, ...]]] = {"loopwright serve": [], "bare handler (limit)": []}
        try:
            worker = children(ours.pid)[0]
            for _ in range(options.rounds):
                for name, where, pid in (
                    ("loopwright serve", port, worker),
                    ("bare handler (limit)", bare_port, bare.pid),
                ):
                    before = cpu(pid)
                    load = measure(where, options.seconds, options.connections)
                    spent = cpu(pid) - before
                    rows[name].append(
                        (load.rate, load.p50, load.p99, 1e6 * spent / load.count, resident(pid))
                    )
            post(port, "/admin/flush")
            logged, answered = control.events, ANSWERED["loopwright serve"][port]
        finally:
            ours.send_signal(signal.SIGTERM)
            ours.wait(30)
            bare.terminate()
    report(rows)
    print(f"\nacknowledged {answered:,} predictions, logged and received by the control side {logged:,}")


ANSWERED: dict[str, dict[int, int]] = {"loopwright serve": {}}


def report(rows: dict[str, list[tuple[float, ...]]]) -> None:
    medians = {name: np.median(np.array(values), axis=0) for name, values in rows.items()}
    limit = medians["bare handler (limit)"]
    print(f"{'':24}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'CPU µs/req':>12}{'RSS MB':>8}{'of limit':>10}")
    for name, (rate, p50, p99, micros, rss) in medians.items():
        print(f"{name:24}{rate:9,.0f}{p50:9.2f}{p99:9.2f}{micros:12.0f}{rss:8.0f}{rate / limit[0]:10.0%}")


# The load.


class Load:
    def __init__(self, count: int, seconds: float, latencies: list[float]) -> None:
        self.count = count
        self.rate = count / seconds
        self.p50, self.p99 = (1000 * float(np.quantile(latencies, q)) for q in (0.5, 0.99))


def measure(port: int, seconds: float, connections: int) -> Load:
    """Drive `port` from a process of its own; returns counts and latencies."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        count, took, latencies = pool.apply(drive, (port, seconds, connections))
    answered = ANSWERED["loopwright serve"]
    answered[port] = answered.get(port, 0) + count
    return Load(count, took, latencies)


def drive(port: int, seconds: float, connections: int) -> tuple[int, float, list[float]]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_drive(port, seconds, connections))


async def _drive(port: int, seconds: float, connections: int) -> tuple[int, float, list[float]]:
    rng = np.random.default_rng(1)
    requests = [http_request(rng.normal(size=FEATURES)) for _ in range(200)]
    loop = asyncio.get_running_loop()
    clients = []
    started = time.perf_counter()
    for i in range(connections):
        _, client = await loop.create_connection(
            lambda i=i: Client(requests, i, started + seconds), "127.0.0.1", port
        )
        clients.append(client)
    await asyncio.gather(*(client.done for client in clients))
    took = time.perf_counter() - started
    latencies = [latency for client in clients for latency in client.latencies]
    return len(latencies), took, latencies


class Client(asyncio.Protocol):
    """One connection: sends, waits for the whole answer, sends the next."""

    def __init__(self, requests: list[bytes], start: int, until: float) -> None:
        self.requests, self.next, self.until = requests, start, until
        self.latencies: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.send()

    def send(self) -> None:
        self.next = (self.next + 1) % len(self.requests)
        self.sent = time.perf_counter()
        self.transport.write(self.requests[self.next])

    def data_received(self, data: bytes) -> None:
        self.pending += data
        head, found, body = self.pending.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(self.pending.decode())
        now = time.perf_counter()
        self.latencies.append(now - self.sent)
        self.pending = b""
        if now < self.until:
            self.send()
        else:
            self.transport.close()
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server hung up"))


def http_request(values: np.ndarray[Any, Any]) -> bytes:
    inputs = [
        {"name": name, "datatype": "FP64", "shape": [1], "data": [round(float(value), 4)]}
        for name, value in zip(NAMES, values, strict=True)
    ]
    body = json.dumps({"inputs": inputs}, separators=(",", ":")).encode()
    head = f"POST /v2/models/late/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


# The two servers.


def gradient_boosting() -> bytes:
    from skl2onnx import to_onnx
    from sklearn.ensemble import GradientBoostingClassifier

    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, FEATURES)).astype(np.float32)
    model = GradientBoostingClassifier(n_estimators=100, max_depth=3, random_state=0)
    model.fit(x, x[:, 0] + x[:, 1] * x[:, 2] + rng.normal(size=3000) > 0)
    serialized: bytes = to_onnx(model, x[:1], options={"zipmap": False}).SerializeToString()
    return serialized


class Control:
    """As much of a control plane as a server needs; counts what it receives."""

    def __init__(self, root: Path, onnx: bytes) -> None:
        import onnxruntime

        key = SigningKey.generate()
        x = np.random.default_rng(2).normal(size=(2000, FEATURES))
        session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        scores = session.run(["probabilities"], {session.get_inputs()[0].name: x.astype(np.float32)})[0][:, 1]
        columns = {name: x[:, i] for i, name in enumerate(NAMES)}
        sealed = build_bundle(
            root / "bundle",
            model="late",
            onnx=onnx,
            schema=Schema(
                inputs=tuple(Field(name, "float64") for name in NAMES),
                features=NAMES,
                outputs=("probability",),
                task="binary",
            ),
            transform=None,  # the handler beside it computes no features either
            state={},
            golden=Golden(
                {name: x[:5, i].tolist() for i, name in enumerate(NAMES)}, [[float(s)] for s in scores[:5]]
            ),
            reference=build_reference({**columns, PREDICTION: scores}).to_json(),
            card="",
            provenance={},
            created_at=CREATED,
            key=key,
        )
        routes = sign_routes(table_of(1, route_for(key, {1: sealed.digest}, [Arm("stable", 1, 1.0)])), key)
        keys = json.dumps({"keys": [{"key_id": key.public.key_id, "public": key.public.to_text()}]}).encode()
        control = self
        self.events = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                name = self.path.removeprefix("/api/v1/")
                if name.startswith("bundles/"):
                    self.answer((sealed.path / name.partition("/files/")[2]).read_bytes())
                else:
                    self.answer({"keys": keys, "routes": routes}[name])

            def do_POST(self) -> None:
                batch = open_batch(self.rfile.read(int(self.headers["Content-Length"])))
                control.events += batch.header.events
                self.answer(json.dumps({"accepted": batch.header.end}).encode())

            def answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()


def start_ours(root: Path, control: int) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    code = (
        "import sys; from pathlib import Path; from loopwright.serving.supervisor import ServeOptions, serve;"
        f"home = Path({str(root / 'serving')!r});"
        f"options = ServeOptions(control='http://127.0.0.1:{control}', home=home, port={port});"
        "sys.exit(serve(options))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_for(port, "/readyz")
    return process, port


BARE = """
import sys, msgspec, numpy as np, onnxruntime as ort, uvicorn
options = ort.SessionOptions(); options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
class Tensor(msgspec.Struct):
    name: str
    data: list[float]
class Request(msgspec.Struct):
    inputs: list[Tensor]
decode, encode = msgspec.json.Decoder(Request).decode, msgspec.json.Encoder().encode
async def app(scope, receive, send):
    if scope["path"] == "/readyz":
        body = b"{}"
    else:
        request = decode((await receive())["body"])
        x = np.array([[t.data[0] for t in request.inputs]], dtype=np.float32)
        score = float(session.run(["probabilities"], {name: x})[0][0, 1])
        output = {"name": "probability", "datatype": "FP64", "shape": [1], "data": [score]}
        body = encode({"model_name": "late", "outputs": [output]})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
quiet = dict(access_log=False, log_level="error", date_header=False, server_header=False)
uvicorn.run(app, port=int(sys.argv[2]), loop="uvloop", http="httptools", lifespan="off", **quiet)
"""


def start_bare(model: Path) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", BARE, str(model), str(port)])
    wait_for(port, "/readyz")
    return process, port


# Small things.


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, path: str) -> None:
    import httpx

    for _ in range(600):
        try:
            if httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise SystemExit(f"nothing answers on port {port}")


def post(port: int, path: str) -> None:
    import httpx

    httpx.post(f"http://127.0.0.1:{port}{path}", timeout=60).raise_for_status()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
