"""A worker's inside with two models, one of them with awkward names, asked in process over one event loop."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from loopwright.bundle.keys import SigningKey
from loopwright.bundle.manifest import Golden
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.bundle.routes import Arm
from loopwright.bundle.seal import build_bundle
from loopwright.bundle.signature import Field, Schema
from loopwright.bundle.testing import CREATED, logistic_onnx, tiny_bundle
from loopwright.serving.app import App, Bounds
from loopwright.serving.callers import Callers
from loopwright.serving.counters import Counters
from loopwright.serving.deadline import NoDeadline
from loopwright.serving.engine import Engine, Model, Served
from loopwright.serving.events import Event, SegmentWriter, read_frames

KEY = SigningKey.generate()
STABLE = Arm("stable", 1, 1.0)
ROW = {"distance": 500.0, "hour": 6, "carrier": "UA"}

ODD = "cat's <b>{breed}"
ODD_SCHEMA = Schema(
    inputs=(
        Field('weight "kg"', "float64"),
        Field("is wild", "bool"),
        Field("lives", "int64"),
        Field("@note,", "string"),
    ),
    features=("weight", "wild", "lives"),
    outputs=("tabby", "<script>", "error"),
    task="multiclass",
    classes=("tabby", "<script>", "error"),
)
ODD_TRANSFORM = """
import numpy as np

def transform(inputs, state):
    return {
        "weight": np.nan_to_num(inputs['weight "kg"']), "wild": np.nan_to_num(inputs["is wild"]),
        "lives": np.nan_to_num(inputs["lives"]),
    }
"""
ODD_WEIGHTS = np.array([[0.1, -0.2, 0.3], [0.5, 0.0, -0.5], [0.0, 0.1, 0.0]])


def odd_answer(weight: float, wild: bool, lives: int) -> list[float]:
    """What the awkward model gives."""
    return [float(x) for x in 1 / (1 + np.exp(-(np.array([weight, wild, lives]) @ ODD_WEIGHTS)))]


def odd_bundle(dest: Path) -> Bundle:
    """A multiclass model whose names have to be quoted everywhere."""
    golden = {
        'weight "kg"': [4.5, None],
        "is wild": [True, None],
        "lives": [9, None],
        "@note,": ["it's ok", None],
    }
    sealed = build_bundle(
        dest,
        model=ODD,
        onnx=logistic_onnx(ODD_WEIGHTS, 0.0),
        schema=ODD_SCHEMA,
        transform=ODD_TRANSFORM,
        state={},
        golden=Golden(golden, [odd_answer(4.5, True, 9), odd_answer(0, False, 0)]),
        reference={},
        card="# odd\n",
        provenance={"run_id": "run-1"},
        created_at=CREATED,
        key=KEY,
    )  # fmt: skip
    return open_bundle(sealed.path, [KEY.public])


def tiny(dest: Path, **options: Any) -> Bundle:
    """The tiny model, opened."""
    return open_bundle(tiny_bundle(dest, KEY, **options).path, [KEY.public])


class Host:
    """A process with nothing to say."""

    reason = ""

    def not_started(self) -> str:
        return ""

    def not_ready(self) -> str:
        return self.reason

    def warnings(self) -> list[str]:
        return []

    def gauges(self) -> Mapping[str, float]:
        return {}

    async def ask(self, what: str) -> tuple[int, dict[str, Any]]:
        return 200, {"asked": what}


class Inside:
    """An application that answers in process. Close it."""

    def __init__(
        self, folder: Path, *models: Model, bounds: Bounds | None = None, callers: Callers | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.host = Host()
        counters = Counters(folder / "w0.counters")
        self.engine = Engine(
            SegmentWriter(folder, "w0"), counters, now_us=lambda: 1_000_000, limit=NoDeadline()
        )
        self.app = App(self.engine, counters, self.host, folder, bounds or Bounds(), callers)
        self._runner = asyncio.Runner()
        self.serve(*models)

    def serve(self, *models: Model) -> None:
        async def change() -> None:
            self.engine.serve({model.name: model for model in models})
            self.app.publish()

        self._runner.run(change())

    def call(self, method: str, path: str, *, client: str = "127.0.0.1", **options: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=(client, 1))  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://shop.example:8080") as http:
                answer = await http.request(method, path, **options)
            await self.engine.drained()
            return answer

        return self._runner.run(run())

    def post(
        self, path: str, body: Any, content_type: str = "application/json", **more: Any
    ) -> httpx.Response:
        content = {"content": body} if isinstance(body, bytes | str) else {"json": body}
        return self.call("POST", path, headers={"content-type": content_type, **more}, **content)

    def events(self) -> list[Event]:
        return [
            event for path in sorted(self.folder.glob("*.seg")) for event in read_frames(path.read_bytes())
        ]

    def close(self) -> None:
        self._runner.close()


def model_of(name: str, bundles: Mapping[int, Bundle], *arms: Arm, **options: Any) -> Model:
    """A model of loaded versions."""
    versions = {number: Served.of(number, bundle) for number, bundle in bundles.items()}
    return Model(name, "salt", arms or (STABLE,), versions, **options)
