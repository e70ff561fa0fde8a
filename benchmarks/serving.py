"""One serving worker, single-row V2 JSON requests: what a request costs with routing, logging and counters on.

The limit beside it is a bare ASGI handler (msgspec + ONNX Runtime, the same model and JSON, no checks, no log) on the
same uvicorn, driven by the same load generator in the same run, in short turns. Beside that: the share of logging,
routing and profiles (the same worker's inside without them), what shadows add to an answer's p99, cold start, and what
batching gains for a model of 10 ms. Run: .venv/bin/python benchmarks/serving.py [--only request,log,shadow,start,batch]
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvloop

from loopwright.bundle.keys import SigningKey
from loopwright.bundle.manifest import Golden
from loopwright.bundle.routes import Arm, Batching, ServingPolicy, sign_routes
from loopwright.bundle.seal import SealedBundle, build_bundle
from loopwright.bundle.signature import Field, Schema
from loopwright.bundle.testing import CREATED, route_for, table_of
from loopwright.demo.processes import free_port
from loopwright.serving.wire import open_batch
from loopwright.stats.profile import PREDICTION, build_reference

FEATURES = 20
NAMES = tuple(f"f{i}" for i in range(FEATURES))
STABLE, CANARY, SHADOW = Arm("stable", 1, 1.0), Arm("canary", 2, 0.1), Arm("shadow", 2, 1.0)
SECTIONS = ("request", "log", "shadow", "start", "batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(SECTIONS))
    options = parser.parse_args()
    chosen = options.only.split(",")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        onnx = gradient_boosting()
        (root / "model.onnx").write_bytes(onnx)
        control = Control(root, onnx)
        for name, section in (
            ("request", requests),
            ("log", logging),
            ("shadow", shadows),
            ("start", starts),
        ):
            if name in chosen:
                section(root / name, control, root / "model.onnx", options)
        if "batch" in chosen:
            batches(root / "batch", options)


def target(what: str, measured: float, unit: str, sign: str, wanted: float) -> None:
    """Print a figure beside what it should be."""
    met = measured <= wanted if sign == "≤" else measured >= wanted
    print(f"  {what:66}{measured:8.2f}{unit:3} {sign} {wanted:g}{unit}  {'met' if met else 'MISSED'}")


class Turns:
    """Servers measured in turns, so that what else the machine does falls on all of them."""

    def __init__(self, options: argparse.Namespace, servers: dict[str, tuple[int, Sequence[int]]]) -> None:
        self.options, self.servers = options, servers
        self.answered = dict.fromkeys(servers, 0)
        self._before: Callable[[str], None] = lambda name: None

    def before(self, act: Callable[[str], None]) -> "Turns":
        self._before = act
        return self

    def run(self, rate: float = 0.0) -> dict[str, np.ndarray[Any, Any]]:
        """Medians of rate, p50, p99 (ms) and CPU µs a request of each process. rate: a second; 0: all that goes."""
        rows: dict[str, list[list[float]]] = {name: [] for name in self.servers}
        for turn in range(self.options.rounds + 1):
            for name, (port, pids) in self.servers.items():
                self._before(name)
                before = [cpu(pid) for pid in pids]
                load = measure(port, self.options.seconds if turn else 1.0, self.options.connections, rate)
                spent = [1e6 * (cpu(pid) - was) / load.count for pid, was in zip(pids, before, strict=True)]
                self.answered[name] += load.count
                if turn:  # the first turn only warms up
                    rows[name].append([load.rate, load.p50, load.p99, *spent])
        return {name: np.median(np.array(found), axis=0) for name, found in rows.items()}


def table(found: dict[str, np.ndarray[Any, Any]]) -> None:
    print(f"  {'':34}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'CPU µs/req':>12}")
    for name, (rate, p50, p99, micros, *_) in found.items():
        print(f"  {name:34}{rate:9,.0f}{p50:9.2f}{p99:9.2f}{micros:12.1f}")


def requests(root: Path, control: "Control", model: Path, options: argparse.Namespace) -> None:
    print("\na request: one model behind one arm, everything on")
    received = control.events
    with running(root, control) as (ours, port), bare_handler(model) as (bare, bare_port):
        worker = children(ours)[0]
        turns = Turns(
            options,
            {"loopwright serve": (port, (worker, ours)), "bare handler (limit)": (bare_port, (bare,))},
        )
        full = turns.run()
        table(full)
        ours_full, limit = full["loopwright serve"], full["bare handler (limit)"]
        half = 0.5 * min(ours_full[0], limit[0])
        print(f"  at {half:,.0f} requests/s each:")
        paced = turns.run(half)
        table(paced)
        post(port, "/admin/flush")
        answered = turns.answered["loopwright serve"]
        print(f"  RSS: worker {resident(worker):.0f} MB, bare handler {resident(bare):.0f} MB")
    target("CPU of the worker per request, of the bare handler's", ours_full[3] / limit[3], "x", "≤", 1.5)
    worse = paced["loopwright serve"][2] / paced["bare handler (limit)"][2]
    target("p99 at the same load, of the bare handler's", worse, "x", "≤", 2)
    print(f"  (shipping and folding the log takes the supervisor {ours_full[4]:.1f} µs a request)")
    print(f"  acknowledged {answered:,} predictions, logged and received {control.events - received:,}")


def logging(root: Path, control: "Control", model: Path, options: argparse.Namespace) -> None:
    print("\nlogging, routing and profiles: a canary of 10 %, against the same inside without them")
    control.publish(STABLE, CANARY)
    with running(root, control) as (ours, port), plain_inside(control) as (plain, plain_port):
        servers = {
            "with": (port, (children(ours)[0], ours)),
            "without log, split, profiles": (plain_port, (plain,)),
        }
        found = Turns(options, servers).run()
    control.publish(STABLE)
    table(found)
    with_, without = found["with"], found["without log, split, profiles"]
    target("throughput lost", 100 * (1 - with_[0] / without[0]), " %", "≤", 25)
    target("CPU of the worker added", 100 * (with_[3] / without[3] - 1), " %", "≤", 33)
    print(f"  (in the background: {with_[4]:.1f} µs a request in the supervisor, on another core)")


def shadows(root: Path, control: "Control", model: Path, options: argparse.Namespace) -> None:
    print("\nshadow: every request is copied to a second version, at a third of what the worker can do")
    with running(root, control) as (ours, port):
        most = measure(port, options.seconds, options.connections).rate
        arms = {"without shadow": (STABLE,), "every request shadowed": (STABLE, SHADOW)}

        def switch(name: str) -> None:
            control.publish(*arms[name])
            post(port, "/admin/refresh")

        worker = children(ours)[0]
        servers = dict.fromkeys(arms, (port, (worker,)))
        found = Turns(options, servers).before(switch).run(most / 3)
    control.publish(STABLE)
    table(found)
    added = found["every request shadowed"][2] / found["without shadow"][2] - 1
    target("added to p99 of the answered request", 100 * added, " %", "≤", 5)


def starts(root: Path, control: "Control", model: Path, options: argparse.Namespace) -> None:
    print("\ncold start: from the command until /readyz says yes")
    took = []
    for _ in range(options.rounds + 1):
        begun = time.perf_counter()
        with running(root, control):
            took.append(time.perf_counter() - begun)
    target("first start, the bundle fetched", took[0], " s", "≤", 2)
    target("start from what is on disk, median", float(np.median(took[1:])), " s", "≤", 2)


def batches(root: Path, options: argparse.Namespace) -> None:
    print("\nmicro-batching: a recurrent net, whose many small steps cost the same for one row or many")
    root.mkdir()
    control = Control(root, recurrent_net(), names=("f0", "f1", "f2", "f3"), output="probabilities")
    connections, rates, modes = 64, {}, ("off", "auto")
    with running(root / "home", control) as (_, port):
        alone = measure(port, 2.0, 1, names=4).p50
        for mode in modes:
            control.publish(STABLE, policy=ServingPolicy(batching=Batching(mode=mode), timeout_ms=20_000))
            post(port, "/admin/refresh")
            measure(port, 1.0, connections, names=4)
            rates[mode] = measure(port, max(4.0, options.seconds), connections, names=4)
            print(f"  batching {mode:5}{rates[mode].rate:9,.0f} req/s   p99 {rates[mode].p99:7.1f} ms")
    print(f"  one row alone takes {alone:.1f} ms")
    target("throughput with batching, of that without", rates["auto"].rate / rates["off"].rate, "x", "≥", 4)


# The load.


class Load:
    def __init__(self, count: int, seconds: float, latencies: list[float]) -> None:
        self.count = count
        self.rate = count / seconds
        self.p50, self.p99 = (1000 * float(np.quantile(latencies, q)) for q in (0.5, 0.99))


def measure(port: int, seconds: float, connections: int, rate: float = 0.0, names: int = FEATURES) -> Load:
    """Drive `port` from a process of its own. rate: requests a second over all connections; 0: as many as go."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return Load(*pool.apply(drive, (port, seconds, connections, rate, names)))


def drive(
    port: int, seconds: float, connections: int, rate: float = 0.0, names: int = FEATURES
) -> tuple[int, float, list[float]]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_drive(port, seconds, connections, rate, names))


async def _drive(
    port: int, seconds: float, connections: int, rate: float, names: int
) -> tuple[int, float, list[float]]:
    rng = np.random.default_rng(1)
    requests = [http_request(rng.normal(size=names)) for _ in range(200)]
    loop = asyncio.get_running_loop()
    clients = []
    started = time.perf_counter()
    every = connections / rate if rate else 0.0
    for i in range(connections):
        first = started + every * i / connections
        _, client = await loop.create_connection(
            lambda i=i, first=first: Client(requests, i, started + seconds, every, first), "127.0.0.1", port
        )
        clients.append(client)
    await asyncio.gather(*(client.done for client in clients))
    took = time.perf_counter() - started
    latencies = [latency for client in clients for latency in client.latencies]
    return len(latencies), took, latencies


class Client(asyncio.Protocol):
    """One connection: sends, waits for the whole answer, sends the next, every so many seconds if it can.

    A request that is late because the one before it was is measured from when it should have been sent.
    """

    def __init__(
        self, requests: list[bytes], start: int, until: float, every: float = 0.0, first: float = 0.0
    ) -> None:
        self.requests, self.next, self.until = requests, start, until
        self.every, self.due = every, first
        self.latencies: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.go_on(time.perf_counter())

    def go_on(self, now: float) -> None:
        if not self.every or self.due <= now:
            self.send(min(now, self.due) if self.every else now)
        else:
            asyncio.get_running_loop().call_later(self.due - now, self.send)

    def send(self, since: float = 0.0) -> None:
        self.next = (self.next + 1) % len(self.requests)
        self.due += self.every
        self.sent = since or time.perf_counter()
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
            self.go_on(now)
        else:
            self.transport.close()
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server hung up"))


def http_request(values: np.ndarray[Any, Any]) -> bytes:
    inputs = [
        {"name": name, "datatype": "FP64", "shape": [1], "data": [round(float(value), 4)]}
        for name, value in zip(NAMES, values, strict=False)
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


def recurrent_net(steps: int = 5000, hidden: int = 32) -> bytes:
    """A recurrent net of some 10 ms: many small steps, one after the other, that cost much the same for many rows."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(3)
    shapes = {"into": (4, hidden), "step": (hidden, hidden), "out": (hidden, 1)}
    constants = [
        numpy_helper.from_array(
            rng.normal(scale=0.9 / rows**0.5, size=(rows, columns)).astype(np.float32), name
        )
        for name, (rows, columns) in shapes.items()
    ]
    constants.append(numpy_helper.from_array(np.array(steps, dtype=np.int64), "steps"))
    constants.append(numpy_helper.from_array(np.array(True), "go"))
    number, node, value = TensorProto.FLOAT, helper.make_node, helper.make_tensor_value_info
    body = helper.make_graph(
        [
            node("Identity", ["go_in"], ["go_out"]),
            node("MatMul", ["h", "step"], ["m"]),
            node("Add", ["m", "seen"], ["a"]),
            node("Tanh", ["a"], ["h_out"]),
        ],
        "one step",
        [value("i", TensorProto.INT64, []), value("go_in", TensorProto.BOOL, []), value("h", number, [None, hidden])],
        [value("go_out", TensorProto.BOOL, []), value("h_out", number, [None, hidden])],
    )  # fmt: skip
    nodes = [
        node("MatMul", ["x", "into"], ["seen"]),
        node("Loop", ["steps", "go", "seen"], ["state"], body=body),
        node("MatMul", ["state", "out"], ["score"]),
        node("Sigmoid", ["score"], ["probabilities"]),
    ]
    x, y = value("x", number, [None, 4]), value("probabilities", number, [None, 1])
    graph = helper.make_graph(nodes, "recurrent", [x], [y], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made)
    serialized: bytes = made.SerializeToString()
    return serialized


class Control:
    """As much of a control plane as a server needs; counts what it receives. Two versions of the model are approved."""

    def __init__(
        self, root: Path, onnx: bytes, names: tuple[str, ...] = NAMES, output: str = "probabilities"
    ) -> None:
        import onnxruntime

        self.key = SigningKey.generate()
        x = np.random.default_rng(2).normal(size=(2000, len(names)))
        session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        scores = session.run([output], {session.get_inputs()[0].name: x.astype(np.float32)})[0][:, -1]
        columns = {name: x[:, i] for i, name in enumerate(names)}

        def seal(version: int) -> SealedBundle:
            return build_bundle(
                root / f"bundle-{version}",
                model="late",
                onnx=onnx,
                schema=Schema(
                    inputs=tuple(Field(name, "float64") for name in names),
                    features=names,
                    outputs=("probability",),
                    task="binary",
                ),
                transform=None,  # the handler beside it computes no features either
                state={},
                golden=Golden(
                    {name: x[:5, i].tolist() for i, name in enumerate(names)},
                    [[float(s)] for s in scores[:5]],
                ),
                reference=build_reference({**columns, PREDICTION: scores}).to_json(),
                card=f"version {version}",
                provenance={},
                created_at=CREATED,
                key=self.key,
            )

        self.bundles = {version: seal(version) for version in (1, 2)}
        paths = {sealed.digest: sealed.path for sealed in self.bundles.values()}
        self.serial = 0
        self.publish(STABLE)
        keys = json.dumps(
            {"keys": [{"key_id": self.key.public.key_id, "public": self.key.public.to_text()}]}
        ).encode()
        control = self
        self.events = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                name = self.path.removeprefix("/api/v1/")
                if name.startswith("bundles/"):
                    digest, _, file = name.removeprefix("bundles/").partition("/files/")
                    self.answer((paths[digest] / file).read_bytes())
                else:
                    self.answer({"keys": keys, "routes": control.routes}[name])

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

    def publish(self, *arms: Arm, policy: ServingPolicy | None = None) -> None:
        """Route to these arms from now on."""
        digests = {version: sealed.digest for version, sealed in self.bundles.items()}
        route = route_for(self.key, digests, arms)
        self.serial += 1
        route = msgspec.structs.replace(route, serving=policy or ServingPolicy())
        self.routes = sign_routes(table_of(self.serial, route), self.key)


@contextmanager
def running(root: Path, control: Control) -> Iterator[tuple[int, int]]:
    """`loopwright serve` with one worker: the supervisor's pid and the port."""
    process, port = start_ours(root, control.port)
    try:
        yield process.pid, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextmanager
def bare_handler(model: Path) -> Iterator[tuple[int, int]]:
    process, port = start_bare(model)
    try:
        yield process.pid, port
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def plain_inside(control: Control) -> Iterator[tuple[int, int]]:
    """A worker's HTTP side, checks, model and metrics, with no log, no split of traffic and nobody to fold a log."""
    port = free_port()
    key, path = control.key.public.to_text(), control.bundles[1].path
    process = subprocess.Popen([sys.executable, "-c", PLAIN, str(path), key, str(port)])
    try:
        wait_for(port, "/readyz")
        yield process.pid, port
    finally:
        process.terminate()
        process.wait(10)


PLAIN = """
import asyncio, gc, sys, tempfile, time
from functools import partial
from pathlib import Path
import uvicorn, uvloop
from loopwright.bundle.keys import PublicKey
from loopwright.bundle.open import open_bundle
from loopwright.bundle.routes import Arm
from loopwright.serving.app import App, Bounds
from loopwright.serving.connections import Connections, Limits
from loopwright.serving.counters import Counters
from loopwright.serving.deadline import Deadline
from loopwright.serving.engine import Engine, Model, Served
from loopwright.serving.events import SegmentWriter
from loopwright.serving.hot import HotProtocol
class Unlogged(Engine):
    def _choose(self, model, call, unit): return model.versions[1], "stable"
    def _frame(self, event): return b""
    def _write(self, model, frames): pass
class Host:
    def not_ready(self): return ""
    def not_started(self): return ""
    def warnings(self): return []
    def gauges(self): return {}
async def main():
    folder = Path(tempfile.mkdtemp())
    counters, deadline = Counters(folder / "w.counters"), Deadline()
    deadline.install()
    log = SegmentWriter(folder, "w")
    engine = Unlogged(log, counters, now_us=lambda: time.time_ns() // 1000, limit=deadline)
    bundle = open_bundle(Path(sys.argv[1]), [PublicKey.from_text(sys.argv[2])])
    engine.serve({"late": Model("late", "salt", (Arm("stable", 1, 1.0),), {1: Served.of(1, bundle)})})
    app = App(engine, counters, Host(), folder, Bounds())
    app.publish()
    connections = Connections(Limits())
    gc.collect(); gc.freeze()
    config = uvicorn.Config(
        app, port=int(sys.argv[3]), http=partial(HotProtocol, app, connections), ws="none", lifespan="off",
        interface="asgi3", access_log=False, log_config=None, proxy_headers=False, server_header=False,
        date_header=False)
    watching = asyncio.create_task(connections.watch())
    await uvicorn.Server(config).serve()
gc.set_threshold(50_000, 20, 20)
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


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
    """Seconds of processor time, of all its threads."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


if __name__ == "__main__":
    main()
