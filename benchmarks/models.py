"""Fifty models of 100 features in one worker: what they weigh, what a swap costs under load, and what a budget does.

Beside it, naive: a process with one ONNX Runtime session per model, made with default options. Half of the models are
LightGBM (100 trees of 31 leaves), half are networks of 100 × 512 × 512 × 1. Run: .venv/bin/python benchmarks/models.py
"""

import argparse
import http.client
import itertools
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import psutil
from onnx import TensorProto, helper, numpy_helper

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.manifest import Golden
from loopwright.bundle.routes import Arm, ModelRoute, sign_routes
from loopwright.bundle.seal import build_bundle
from loopwright.bundle.signature import Field, Schema
from loopwright.bundle.testing import CREATED, route_for, table_of
from loopwright.serving.wire import open_batch
from loopwright.stats.profile import PREDICTION, build_reference
from loopwright.training.export import predict_onnx, to_onnx

FEATURES = 100
NAMES = tuple(f"f{i}" for i in range(FEATURES))
LIMIT_MB, LIMIT_P99_MS = 600, 100
NAIVE = """
import sys, numpy as np, onnxruntime as ort
from pathlib import Path
row = np.zeros((1, int(sys.argv[2])), dtype=np.float32)
sessions = []
for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    session = ort.InferenceSession(path.read_bytes())
    session.run(None, {session.get_inputs()[0].name: row})
    sessions.append(session)
print(len(sessions), flush=True)
sys.stdin.read()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument(
        "--rate", type=float, default=100.0, help="requests a second while versions are swapped"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        control = Control(root)
        names = [f"model{number:02}" for number in range(options.models)]
        bundles = {name: control.build(name, number, 0) for number, name in enumerate(names)}
        control.publish({name: (1, digest) for name, digest in bundles.items()})
        print(f"{'':44}{'measured':>12}{'limit':>12}")
        with serving(root / "eager", control) as (port, worker):
            for name in names:
                ask(port, name)
            megabytes = resident(worker)
            budget = max(1, int(gauge(port, "loopwright_model_memory_bytes") / 5))
            row(f"worker with {options.models} models", megabytes, LIMIT_MB, "MB")
            plain = naive(root / "graphs")
            bare, one = naive(root / "none"), resident_with_one(root / "one")
            ours, theirs = (megabytes - one) / (options.models - 1), (plain - bare) / options.models
            print(f"{'naive: a process of default sessions, bare':44}{plain:9.1f} MB")
            print(f"{'a further model, in the worker':44}{ours:9.2f} MB; naive {theirs:.2f} MB")
            swap(control, port, names, bundles, options)
        with serving(root / "lazy", control, "--model-memory", str(budget)) as (port, worker):
            lazily(port, worker, names, budget)


def swap(
    control: "Control", port: int, names: list[str], bundles: dict[str, str], options: argparse.Namespace
) -> None:
    """Replace one model after the other under a constant rate of requests."""
    after = {name: control.build(name, number, 1) for number, name in enumerate(names[:10])}
    load = Load(port, names, options.rate)
    load.start()
    time.sleep(max(2.0, options.seconds / 3))
    table = {name: (1, digest) for name, digest in bundles.items()}
    began = time.monotonic()
    for name, digest in after.items():
        table[name] = (2, digest)
        control.publish(table)
        time.sleep(max(0.2, options.seconds / 10))
    during = load.stop(since=began)
    before = [took for at, took in load.took if at < began - 0.5]
    print(f"{'p99 before it':44}{np.quantile(before, 0.99):9.1f} ms")
    row(f"p99 while 10 models are swapped at {options.rate:.0f}/s", during[0], LIMIT_P99_MS, "ms")
    row("failed requests meanwhile", during[2], 1, "")
    for why in load.failed[:3]:
        print(f"{'':4}{why}")
    print(f"{'':4}slowest {during[1]:.1f} ms of {during[3]:,}; new versions answered {load.second:,} times")


def lazily(port: int, worker: psutil.Process, names: list[str], budget: int) -> None:
    """Ask for models as people do, a few often and most seldom, with room for a fifth of them."""
    choose = random.Random(7)
    weights = [1 / (1 + rank) for rank in range(len(names))]
    cold, warm, seen = [], [], set()
    loads = 0.0
    for name in choose.choices(names, weights, k=600):
        began = time.perf_counter()
        ask(port, name)
        took = 1000 * (time.perf_counter() - began)
        now = gauge(port, "loopwright_model_loads_total")
        (cold if now > loads else warm).append(took)
        loads = now
        seen.add(name)
    print(
        f"{'with --model-memory ' + str(budget // 1_000_000) + 'MB':44}{resident(worker):9.1f} MB; {len(seen)} models "
        f"asked for, {loads:.0f} loads, {gauge(port, 'loopwright_model_evictions_total'):.0f} evictions"
    )
    print(
        f"{'':4}a request that loads: p50 {np.median(cold):.1f} ms, p99 {np.quantile(cold, 0.99):.1f} ms; "
        f"one that does not: p50 {np.median(warm):.2f} ms"
    )


def row(name: str, measured: float, limit: float, unit: str) -> None:
    over = "" if measured < limit else "   OVER THE LIMIT"
    print(f"{name:44}{measured:9.1f} {unit:2}{limit:9.0f} {unit:2}{over}", flush=True)


# Models.


def graph(number: int, seed: int) -> bytes:
    rng = np.random.default_rng(1000 * seed + number)
    if number % 2:
        return network(rng, (FEATURES, 512, 512, 1))
    x = rng.random((2000, FEATURES))
    y = x[:, :10].sum(axis=1) + rng.normal(0, 0.5, 2000) > 5
    parameters = {"objective": "binary", "num_leaves": 31, "verbosity": -1, "num_threads": 1, "seed": number}
    return to_onnx(lightgbm.train(parameters, lightgbm.Dataset(x, y.astype(int)), 100), NAMES, "binary")


def network(rng: np.random.Generator, widths: tuple[int, ...]) -> bytes:
    nodes, weights, at = [], [], "features"
    for layer, (inside, outside) in enumerate(itertools.pairwise(widths)):
        last = layer == len(widths) - 2
        w, b = rng.normal(0, 0.1, (inside, outside)), np.zeros(outside)
        weights += [numpy_helper.from_array(w.astype(np.float32), f"w{layer}")]
        weights += [numpy_helper.from_array(b.astype(np.float32), f"b{layer}")]
        nodes.append(helper.make_node("Gemm", [at, f"w{layer}", f"b{layer}"], [f"g{layer}"]))
        at = "outputs" if last else f"a{layer}"
        nodes.append(helper.make_node("Sigmoid" if last else "Relu", [f"g{layer}"], [at]))
    described = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, widths[0]])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, [None, 1])], weights,
    )  # fmt: skip
    model = helper.make_model(described, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


# A control plane's serving side, and the server that follows it.


class Control:
    """Answers what servers ask: keys, routes, bundles; takes their log."""

    def __init__(self, root: Path) -> None:
        self.root, self.key = root, SigningKey.generate()
        self.depot = BundleDepot(root / "bundles")
        self.built: dict[tuple[str, int], str] = {}
        self.serial = 0
        self.routes = sign_routes(table_of(0), self.key)
        (root / "graphs").mkdir()
        handler = type("Handler", (_Handler,), {"control": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def build(self, name: str, number: int, seed: int) -> str:
        if (name, seed) in self.built:
            return self.built[name, seed]
        onnx = graph(number, seed)
        if not seed:
            (self.root / "graphs" / f"{name}.onnx").write_bytes(onnx)
        rows = np.random.default_rng(number).random((200, FEATURES)).astype(np.float32)
        answers = predict_onnx(onnx, rows)
        columns = {feature: rows[:, i].astype(float) for i, feature in enumerate(NAMES)}
        built = build_bundle(
            self.root / "built" / f"{name}-{seed}", model=name, onnx=onnx, transform=None, state={},
            schema=Schema(
                inputs=tuple(Field(feature, "float64") for feature in NAMES), features=NAMES,
                outputs=("probability",), task="binary",
            ),
            golden=Golden({feature: values[:5].tolist() for feature, values in columns.items()}, answers[:5].tolist()),
            reference=build_reference({**columns, PREDICTION: answers[:, 0]}).to_json(), card="", provenance={},
            created_at=CREATED, key=self.key,
        )  # fmt: skip
        self.built[name, seed] = self.depot.add(built.path)
        return self.built[name, seed]

    def publish(self, versions: Mapping[str, tuple[int, str]]) -> None:
        self.serial += 1
        routes: list[ModelRoute] = [
            route_for(self.key, {version: digest}, [Arm("stable", version, 1.0)], model=name)
            for name, (version, digest) in versions.items()
        ]
        self.routes = sign_routes(table_of(self.serial, *routes), self.key)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    control: Control

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        control = self.control
        if self.path == "/api/v1/keys":
            public = control.key.public
            self._send(json.dumps({"keys": [{"key_id": public.key_id, "public": public.to_text()}]}).encode())
        elif self.path == "/api/v1/routes":
            self._send(control.routes)
        elif self.path.startswith("/api/v1/bundles/"):
            digest, _, name = self.path.removeprefix("/api/v1/bundles/").partition("/files/")
            self._send((control.depot.path(digest) / name).read_bytes())
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        batch = open_batch(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(json.dumps({"accepted": batch.header.end}).encode())

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(home: Path, control: Control, *words: str) -> Any:
    """Yield the port and the worker of a `loopwright serve` that is ready."""
    with psutil.Popen(
        [sys.executable, "-m", "loopwright", "--home", str(home), "serve", "--control", control.url, "--port", "0",
         *words],
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        port = 0
        for line in process.stderr:
            if "http://" in line and "127.0.0.1:" in line and control.url not in line:
                port = int(line.rpartition("127.0.0.1:")[2].split("/")[0].split()[0].strip(".,;"))
                break
        assert port, "the server did not say where it serves"
        threading.Thread(target=process.stderr.read, daemon=True).start()
        until = time.monotonic() + 120
        while status(port, "/readyz") != 200:
            assert time.monotonic() < until, "the server did not become ready"
            time.sleep(0.1)
        try:
            yield port, process.children()[0]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def resident_with_one(root: Path) -> float:
    """Resident megabytes of a worker with one model."""
    root.mkdir()
    control = Control(root)
    control.publish({"model00": (1, control.build("model00", 0, 0))})
    with serving(root / "home", control) as (port, worker):
        ask(port, "model00")
        return resident(worker)


def naive(folder: Path) -> float:
    """Resident megabytes of a process with a default session for each graph."""
    with psutil.Popen(
        [sys.executable, "-c", NAIVE, str(folder), str(FEATURES)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        process.stdout.readline()
        taken = resident(process)
        process.stdin.close()
        process.kill()
    return taken


def resident(process: psutil.Process) -> float:
    return float(process.memory_info().rss / 1e6)


# Requests.

_ROW = np.random.default_rng(3).random(FEATURES).tolist()
_BODY = json.dumps(
    {"inputs": [{"name": name, "datatype": "FP64", "shape": [1], "data": [value]} for name, value in
     zip(NAMES, _ROW, strict=True)]}
).encode()  # fmt: skip


def ask(port: int, name: str, connection: http.client.HTTPConnection | None = None) -> dict[str, Any]:
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", f"/v2/models/{name}/infer", _BODY, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {body[:300]!r}")
    return dict(json.loads(body))


def status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", path)
    return connection.getresponse().status


def gauge(port: int, name: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


class Load(threading.Thread):
    """Requests at a constant rate, each timed from when it was due."""

    def __init__(self, port: int, names: list[str], rate: float) -> None:
        super().__init__(daemon=True)
        self.port, self.names, self.rate = port, names, rate
        self.took: list[tuple[float, float]] = []
        self.failed: list[str] = []
        self.second = 0
        self._stopping = threading.Event()

    def run(self) -> None:
        choose = random.Random(1)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        due = time.monotonic()
        while not self._stopping.is_set():
            due += 1 / self.rate
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                answer = ask(self.port, choose.choice(self.names), connection)
                self.second += answer["model_version"] == "2"
            except (RuntimeError, OSError, http.client.HTTPException) as error:
                self.failed.append(str(error))
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            self.took.append((due, 1000 * (time.monotonic() - due)))

    def stop(self, since: float) -> tuple[float, float, int, int]:
        """p99 and the slowest in ms, failures, and requests since then."""
        self._stopping.set()
        self.join()
        took = [each for at, each in self.took if at >= since]
        return float(np.quantile(took, 0.99)), max(took), len(self.failed), len(took)


if __name__ == "__main__":
    main()
