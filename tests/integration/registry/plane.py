"""A whole control plane, started as a user starts it, with people, a model in production, and raw requests at hand."""

import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnx

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.manifest import Golden
from loopwright.bundle.seal import build_bundle
from loopwright.bundle.signature import Field, Schema
from loopwright.control.access import LOCAL
from loopwright.control.client import HttpClient, connect
from loopwright.control.context import Context, open_context
from loopwright.kernel.actor import Actor, Role
from loopwright.ledger import store as audit
from loopwright.registry import versions
from tests.governing import vouch

SCHEMA = Schema(
    inputs=(Field("distance", "float64"), Field("hour", "float64")),
    features=("distance", "hour"),
    outputs=("prediction",),
    task="regression",
)
PEOPLE = {
    "ana": "developer",
    "eve": "developer",
    "vi": "viewer",
    "bo": "approver",
    "cy": "approver",
    "root": "admin",
}


def linear(weights: tuple[float, float]) -> bytes:
    """An ONNX model: features (n, 2) times `weights`."""
    helper = onnx.helper
    matrix = onnx.numpy_helper.from_array(np.array(weights, np.float32).reshape(2, 1), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "w"], ["outputs"])],
        "linear",
        [helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("outputs", onnx.TensorProto.FLOAT, ["n", 1])],
        [matrix],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def seal_into(
    depot: BundleDepot, tmp: Path, weights: tuple[float, float], *, at: datetime, key: SigningKey
) -> str:
    """Build a bundle around `linear(weights)`, sealed by `key`, and put it in `depot`; return its digest."""
    built = build_bundle(
        tmp / f"bundle{weights}", model="late", onnx=linear(weights), schema=SCHEMA, transform=None, state={},
        golden=Golden({"distance": [1.0], "hour": [1.0]}, [[sum(weights)]]), reference={}, card="# late",
        provenance={}, created_at=at, key=key,
    )  # fmt: skip
    return depot.add(built.path)


@dataclass
class Plane:
    """The process, its home as another process opens it, and everybody's tokens."""

    root: Path
    process: subprocess.Popen[str]
    ctx: Context
    url: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    @property
    def mlflow(self) -> str:
        return f"{self.url}/mlflow"

    @property
    def depot(self) -> BundleDepot:
        return BundleDepot(self.ctx.home.bundles)

    def api(self, who: str) -> HttpClient:
        return HttpClient(self.url, self.tokens[who])

    def seal(self, tmp: Path, weights: tuple[float, float]) -> str:
        """Put a sealed bundle in the depot; return its digest."""
        return seal_into(self.depot, tmp, weights, at=self.ctx.now, key=self.ctx.key)

    def register(self, model: str, bundle: str, *, run_id: str | None = None) -> int:
        """Register the bundle as `loopwright run` does, with all that the strictest tier asks for."""
        with self.ctx.ledger.write() as conn:
            vouch(conn, model, bundle, at=self.ctx.now)
            return versions.register_version(
                conn, model=model, bundle=bundle, run_id=run_id, snapshot=None, author=Actor("ana", Role.DEVELOPER),
                metrics={}, now=self.ctx.now, card="Predicts.",
            ).version  # fmt: skip

    def promote(self, model: str, version: int, to: str = "production") -> None:
        self.api("ana").call("models.promote", model=model, version=version, to=to)
        for name in ("bo", "cy") if to == "production" else ("bo",):
            self.api(name).call("models.approve", model=model, version=version)

    def refusals(self) -> list[Any]:
        with self.ctx.ledger.read() as conn:
            return audit.rows(conn, action="registry.refused")

    def resident(self) -> int:
        """The server's memory, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) * 1024

    def raw(
        self,
        method: str,
        path: str,
        body: bytes | str | dict[str, Any] | None = None,
        *,
        who: str = "eve",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, str]:
        """Send bytes as they are, below /mlflow; returns status and text."""  # fmt: skip
        if isinstance(body, dict):
            body = json.dumps(body)
        sent = {"Authorization": f"Bearer {self.tokens[who]}"} | (
            {"Content-Type": "application/json"} if body is not None else {}
        )
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        try:
            # Past http.client's own care for what a path may hold.
            connection.putrequest(method, "/mlflow" + path, skip_host=False, skip_accept_encoding=True)
            data = body.encode() if isinstance(body, str) else body
            given = sent | (headers or {})
            for name, value in given.items():
                connection.putheader(name, value)
            if data is not None and not {"Content-Length", "Transfer-Encoding"} & set(given):
                connection.putheader("Content-Length", str(len(data)))
            connection.endheaders(data)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.ctx.ledger.dispose()


def digest_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def start(root: Path) -> Plane:
    """Start `loopwright up` on a new home at `root`, where everybody needs a token."""
    ctx = open_context(root, LOCAL, create=True)
    tokens = {}
    owner = connect(root)
    for name, role in PEOPLE.items():
        owner.call("access.add_user", name=name, role=role)
        tokens[name] = owner.call("access.create_token", user=name)["token"]
    tokens["ci"] = owner.call("access.create_token", user="ana", scopes=["write:late"])["token"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOOPWRIGHT_")}
    words = [sys.executable, "-m", "loopwright", "up", "--home", str(root), "--port", "0", "--require-token"]
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    plane = Plane(root, process, ctx, tokens=tokens)

    def listen() -> None:
        assert process.stderr is not None
        with process.stderr:
            plane.said.extend(iter(process.stderr.readline, ""))

    threading.Thread(target=listen, daemon=True).start()
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if found := re.search(r"ready at (http://\S+)", "".join(plane.said)):
            plane.url = found.group(1)
            return plane
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"not ready: {''.join(plane.said)}")
