"""How long processes take to answer and what they weigh, beside their limits and the floor.

The floor of a command is the interpreter that does nothing; of the control plane, MLflow's own import.
Run: .venv/bin/python benchmarks/startup.py [--rounds 5]
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from urllib.error import URLError

import psutil

from loopwright.demo.processes import free_port

LOOPWRIGHT = [sys.executable, "-m", "loopwright"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"{'':34}{'measured':>12}{'limit':>12}{'floor':>12}{'of floor':>10}")
    bare = fastest([sys.executable, "-c", "pass"], rounds)
    row("loopwright --help", fastest([*LOOPWRIGHT, "--help"], rounds), 0.2, bare, "s")
    mlflow = fastest([sys.executable, "-c", "import mlflow.server.handlers"], 1)
    with tempfile.TemporaryDirectory() as folder:
        fresh, _ = control_plane(Path(folder))
        again, megabytes = control_plane(Path(folder))
    row("control plane ready, new home", fresh, 6, mlflow, "s")
    row("control plane ready, again", again, 6, mlflow, "s")
    row("control plane, resident", megabytes, 450, None, "MB")


def row(name: str, measured: float, limit: float, floor: float | None, unit: str) -> None:
    beside = f"{floor:9.2f} {unit:2}{measured / floor:9.1f}x" if floor else ""
    over = "" if measured < limit else "   OVER THE LIMIT"
    print(f"{name:34}{measured:9.2f} {unit:2}{limit:9.2f} {unit:2}{beside}{over}", flush=True)


def fastest(command: list[str], rounds: int) -> float:
    """The fastest of `rounds` runs, in seconds: what the machine can do when it is not doing something else."""
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - start)
    return min(took)


def control_plane(home: Path) -> tuple[float, float]:
    """(seconds until ready, resident MB of the process and its children after a call to MLflow)."""
    port = free_port()
    start = time.perf_counter()
    process = subprocess.Popen(
        [*LOOPWRIGHT, "up", "--home", str(home), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not answers(f"http://127.0.0.1:{port}/readyz"):
            if process.poll() is not None:
                raise SystemExit(f"the control plane stopped with {process.returncode}")
            time.sleep(0.02)
        took = time.perf_counter() - start
        answers(f"http://127.0.0.1:{port}/mlflow/api/2.0/mlflow/registered-models/search")
        family = [psutil.Process(process.pid)]
        family += family[0].children(recursive=True)
        return took, sum(member.memory_info().rss for member in family) / 1e6
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return bool(response.status == 200)
    except (URLError, ConnectionError):
        return False


if __name__ == "__main__":
    main()
