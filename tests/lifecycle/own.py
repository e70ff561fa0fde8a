"""A user of their own data: a CSV file, a project, a home, and the real command line in processes of its own."""

import csv
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sklearn.datasets import make_classification

from loopwright.demo.processes import Process, free_port

MODEL = "my-model"
TARGET = "bought"
ROWS = 1_500
NUMBERS = [f"x{i}" for i in range(6)]
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@dataclass(frozen=True)
class Said:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> Any:
        """The JSON it printed."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Own:
    """A folder with `my.csv`, perhaps a project `my-model` beside it, and a home."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def project(self) -> Path:
        return self.folder / MODEL

    @property
    def file(self) -> Path:
        return self.folder / "my.csv"

    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("LOOPWRIGHT_", "MLFLOW_"))}
        return clean | {"LOOPWRIGHT_HOME": str(self.home), "HOME": str(self.folder)}

    def loopwright(self, *words: str, shell: str = "") -> Said:
        """Type a command in the folder, on its home. `shell` is put before it, such as a limit."""
        command = [sys.executable, "-m", "loopwright", *words]
        if shell:
            command = ["bash", "-c", f'{shell}; exec "$@"', "bash", *command]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=300,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def done(self, *words: str) -> Any:
        """Type a command that must succeed; its JSON."""
        said = self.loopwright(*words, "--json")
        assert said.code == 0, f"{words}: {said.out}{said.err}"
        return said.answer


def write_rows(path: Path, *, seed: int = 3) -> list[dict[str, str]]:
    """Write customers, and whether they bought, to a CSV file."""
    x, y = make_classification(ROWS, len(NUMBERS), n_informative=4, class_sep=1.2, random_state=seed)
    rows = [
        {name: f"{value:.4f}" for name, value in zip(NUMBERS, numbers, strict=True)}
        | {"plan": "pro" if numbers[0] > 0 else "basic", TARGET: "yes" if bought else "no"}
        for numbers, bought in zip(x.tolist(), y.tolist(), strict=True)
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


class Served:
    """A control plane and two workers of an `Own` home, on ports that stay the same through restarts."""

    def __init__(self, own: Own) -> None:
        self.own = own
        self.control = f"http://127.0.0.1:{free_port()}"
        self.url = f"http://127.0.0.1:{free_port()}"
        self.up = self._control_plane()
        arguments = [
            "serve",
            "--control",
            self.control,
            "--port",
            self.url.rpartition(":")[2],
            "--grpc-port",
            "0",
        ]
        arguments += ["--workers", "2", "--home", str(own.folder / "serving")]
        self.serve = Process(arguments, log=own.folder / "serve.log", environment=own.environment())

    def _control_plane(self) -> Process:
        port = self.control.rpartition(":")[2]
        return Process(
            ["up", "--port", port], log=self.own.folder / "up.log", environment=self.own.environment()
        )

    def start(self) -> None:
        self.up.start().wait_ready(f"{self.control}/readyz")
        self.serve.start().wait_ready(f"{self.url}/v2/models/{MODEL}/ready")

    def restart_control(self) -> None:
        """Start the control plane again after it was killed."""
        self.up = self._control_plane()
        self.up.start().wait_ready(f"{self.control}/readyz")

    def stop(self) -> None:
        self.serve.stop()
        self.up.stop()

    def post(self, path: str, body: object = None) -> Any:
        """POST to the serving port; its JSON."""
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(body).encode() if body else b"", method="POST"
        )
        with _open(request, timeout=60) as answer:
            return json.load(answer)

    def tick(self) -> None:
        """Ship what was answered, run the controllers, take the newest routes."""
        self.post("/admin/flush")
        with _open(urllib.request.Request(f"{self.control}/api/v1/tick", b"{}", method="POST"), timeout=60):
            pass
        self.post("/admin/refresh")

    def told(self, *words: str) -> Any:
        """The JSON of a command typed against the control plane."""
        said = self.own.loopwright(*words, "--url", self.control, "--json")
        assert said.code == 0, f"{words}: {said.out}{said.err}"
        return said.answer


@contextmanager
def serving(own: Own) -> Iterator[Served]:
    """Serve an `Own` home for a while."""
    served = Served(own)
    try:
        served.start()
        yield served
    finally:
        served.stop()


def tensors(rows: list[dict[str, str]]) -> list[dict[str, object]]:
    """Rows as the input tensors of an Open Inference V2 request."""
    found: list[dict[str, object]] = [
        {"name": name, "datatype": "FP64", "shape": [len(rows)], "data": [float(row[name]) for row in rows]}
        for name in NUMBERS
    ]
    plans = [row["plan"] for row in rows]
    return [*found, {"name": "plan", "datatype": "BYTES", "shape": [len(rows)], "data": plans}]
