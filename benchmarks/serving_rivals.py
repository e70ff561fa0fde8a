"""One worker of `loopwright serve` beside MLServer, MLflow, BentoML, LitServe and Ray Serve, and beside the limit.

The same ONNX model (100 trees, 20 features), single rows as V2 JSON (MLflow: its own `dataframe_split`, it has no V2),
one worker each, driven by wrk on the other core, in turns. Ours logs, routes and counts; the others answer. CPU is that
of the server's whole process tree. Rivals come from `benchmarks/environments`, with interpreters of their own.

Run: .venv/bin/python benchmarks/serving_rivals.py [--seconds 5] [--only mlserver,litserve]
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from environments.environment import HERE, python_of
from serving import FEATURES, NAMES, Control, free_port, gradient_boosting, start_bare, start_ours

TARGET = 6.0
V2_PATH = "/v2/models/late/infer"
OURS, LIMIT = "loopwright serve", "bare handler (limit)"


@dataclass(slots=True)
class Server:
    """A running server. path, body: what it is asked; stop: ends it and what it started."""

    name: str
    process: psutil.Process
    port: int
    path: str = V2_PATH
    body: Callable[[np.ndarray], bytes] = field(default=lambda row: v2_body(row))
    rounds: list[tuple[float, float, float, float, float]] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(RIVALS), help="names of rivals, with commas")
    options = parser.parse_args()
    wrk = shutil.which("wrk")
    if wrk is None:
        print("wrk, the load generator, is not installed: apt-get install wrk", file=sys.stderr)
        return 2
    chosen = [name for name in options.only.split(",") if name]
    if unknown := [name for name in chosen if name not in RIVALS]:
        print(f"no rival of this name: {', '.join(unknown)}; there are {', '.join(RIVALS)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        onnx = gradient_boosting()
        model = root / "model.onnx"
        model.write_bytes(onnx)
        control = Control(root, onnx)
        servers: list[Server] = []
        try:
            process, port = start_ours(root, control.port)
            servers.append(Server(OURS, psutil.Process(process.pid), port))
            process, port = start_bare(model)
            servers.append(Server(LIMIT, psutil.Process(process.pid), port))
            for name in chosen:
                servers.append(RIVALS[name](model, root))
                ready(servers[-1])
            # Idle rivals stand still, so that they take nothing from the one that is measured.
            for server in servers:
                still(server, signal.SIGSTOP)
            for _ in range(options.rounds):
                for server in servers:
                    still(server, signal.SIGCONT)
                    server.rounds.append(measure(wrk, server, root, options.seconds, options.connections))
                    still(server, signal.SIGSTOP)
        finally:
            for server in servers:
                still(server, signal.SIGCONT)
                end(server.process)
        return report(servers)


def report(servers: list[Server]) -> int:
    """Print the table and the ratios; 1 when the target is missed."""
    medians = {server.name: np.median(np.array(server.rounds), axis=0) for server in servers}
    print(
        f"{'':24}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'CPU µs/req':>12}{'RSS MB':>8}{'req per CPU-s':>15}"
    )
    for name, (rate, p50, p99, micros, rss) in medians.items():
        print(f"{name:24}{rate:9,.0f}{p50:9.2f}{p99:9.1f}{micros:12.0f}{rss:8.0f}{1e6 / micros:15,.0f}")
    rivals = {name: row for name, row in medians.items() if name not in (OURS, LIMIT)}
    if not rivals:
        return 0
    ours = medians[OURS]
    fastest = max(rivals, key=lambda name: rivals[name][0])
    leanest = min(rivals, key=lambda name: rivals[name][3])
    by_rate, by_cpu = ours[0] / rivals[fastest][0], rivals[leanest][3] / ours[3]
    print(
        f"\n{by_rate:.1f} × the throughput of the fastest rival ({fastest}), {by_cpu:.1f} × the requests per "
        f"CPU-second of the leanest ({leanest}); wanted {TARGET:g} ×"
    )
    # Where the load generator is the limit, CPU tells.
    return 0 if max(by_rate, by_cpu) >= TARGET else 1


# What they are asked.


def v2_body(row: np.ndarray) -> bytes:
    inputs = [
        {"name": name, "datatype": "FP64", "shape": [1], "data": [round(float(value), 4)]}
        for name, value in zip(NAMES, row, strict=True)
    ]
    return json.dumps({"inputs": inputs}, separators=(",", ":")).encode()


def mlflow_body(row: np.ndarray) -> bytes:
    split = {"columns": list(NAMES), "data": [[round(float(value), 4) for value in row]]}
    return json.dumps({"dataframe_split": split}, separators=(",", ":")).encode()


# The rivals.


def mlserver(model: Path, root: Path) -> Server:
    port = free_port()
    return start(
        "MLServer", [python_of("mlserver"), HERE / "mlserver" / "server.py", model, port], port, root
    )


def bentoml(model: Path, root: Path) -> Server:
    port = free_port()
    command = [
        python_of("bentoml").with_name("bentoml"), "serve", "service:Late", "--host", "127.0.0.1", "--port", port,
    ]  # fmt: skip
    settings = {
        "LATE_MODEL": str(model), "BENTOML_DO_NOT_TRACK": "1", "BENTOML_HOME": str(root / "bentoml"),
        "BENTOML_CONFIG_OPTIONS": "api_server.logging.access.enabled=false",
    }  # fmt: skip
    return start("BentoML", command, port, root, settings, cwd=HERE / "bentoml")


def litserve(model: Path, root: Path) -> Server:
    port = free_port()
    return start(
        "LitServe", [python_of("litserve"), HERE / "litserve" / "server.py", model, port], port, root
    )


def ray_serve(model: Path, root: Path) -> Server:
    port = free_port()
    command = [python_of("ray-serve"), HERE / "ray-serve" / "server.py", model, port]
    return start("Ray Serve", command, port, root, {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp"})


def mlflow_serve(model: Path, root: Path) -> Server:
    import mlflow
    import onnx

    folder = root / "mlflow-model"
    graph = onnx.load(str(model))
    # MLflow makes a table of all outputs and wants them of one length: only the probabilities are kept.
    kept = [output for output in graph.graph.output if output.name == "probabilities"]
    del graph.graph.output[:]
    graph.graph.output.extend(kept)
    mlflow.onnx.save_model(graph, str(folder), pip_requirements=["onnxruntime"])
    port = free_port()
    command = [
        Path(sys.executable).with_name("mlflow"), "models", "serve", "-m", folder, "--env-manager", "local",
        "--host", "127.0.0.1", "--port", port, "--workers", 1,
    ]  # fmt: skip
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    server = start("MLflow", command, port, root, {"PATH": path})
    server.path, server.body = "/invocations", mlflow_body
    return server


RIVALS: Mapping[str, Callable[[Path, Path], Server]] = {
    "mlserver": mlserver, "mlflow": mlflow_serve, "bentoml": bentoml, "litserve": litserve, "ray": ray_serve,
}  # fmt: skip


def start(
    name: str, command: list[object], port: int, root: Path, settings: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Server:  # fmt: skip
    log = (root / f"{name.replace(' ', '-')}.log").open("wb")
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [str(part) for part in command], stdout=log, stderr=log, cwd=cwd or root, start_new_session=True,
        env={**os.environ, **threads, **(settings or {})},
    )  # fmt: skip
    return Server(name, psutil.Process(process.pid), port)


def ready(server: Server) -> None:
    """Wait until it answers a prediction; ends the benchmark with its log when it does not."""
    import httpx

    body, until, said = server.body(np.zeros(FEATURES)), time.monotonic() + 120, ""
    while time.monotonic() < until and server.process.is_running():
        try:
            url = f"http://127.0.0.1:{server.port}{server.path}"
            answer = httpx.post(url, content=body, headers={"Content-Type": "application/json"}, timeout=10)
            if answer.status_code == 200:
                return
            said = f"{answer.status_code}: {answer.text[:500]}"
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"{server.name} does not answer on port {server.port}. {said}")


# Measuring.


def measure(
    wrk: str, server: Server, root: Path, seconds: float, connections: int
) -> tuple[float, float, float, float, float]:
    """Return requests a second, p50 and p99 in ms, CPU µs a request, and resident MB of the whole tree."""
    script = root / "post.lua"
    rng = np.random.default_rng(1)
    bodies = ", ".join(f"[==[{server.body(rng.normal(size=FEATURES)).decode()}]==]" for _ in range(200))
    script.write_text(
        f"local bodies = {{{bodies}}}\nlocal at = 0\n"
        'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        "request = function()\n  at = at % #bodies + 1\n  return wrk.format(nil, nil, nil, bodies[at])\nend\n"
    )
    url = f"http://127.0.0.1:{server.port}{server.path}"
    command = [wrk, "-t1", f"-c{connections}", "--latency", "-s", str(script), url]
    subprocess.run([*command, "-d1s"], check=True, capture_output=True)
    before = cpu(server.process)
    done = subprocess.run([*command, f"-d{seconds:g}s"], check=True, capture_output=True, text=True)
    spent = cpu(server.process) - before
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise SystemExit(f"{server.name}: {done.stdout}")
    requests = int(found(r"(\d+) requests in", done.stdout))
    rate = float(found(r"Requests/sec:\s+([\d.]+)", done.stdout))
    p50, p99 = (milliseconds(found(rf"\b{share}%\s+([\d.]+\w+)", done.stdout)) for share in (50, 99))
    return (
        rate,
        p50,
        p99,
        1e6 * spent / requests,
        sum(one.memory_info().rss for one in tree(server.process)) / 1e6,
    )


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"wrk printed no {pattern}:\n{text}")
    return match.group(1)


def milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def cpu(process: psutil.Process) -> float:
    total = 0.0
    for one in tree(process):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def still(server: Server, number: signal.Signals) -> None:
    for one in tree(server.process):
        try:
            one.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def end(process: psutil.Process) -> None:
    members = tree(process)
    for one in members:
        try:
            one.terminate()
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(members, timeout=15)
    for one in alive:
        one.kill()


if __name__ == "__main__":
    sys.exit(main())
