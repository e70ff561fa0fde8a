"""A small model whose predictions are logged and can be explained; for tests."""

from datetime import UTC, datetime
from typing import Any

import lightgbm as lgb
import numpy as np
import pyarrow.parquet as pq

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.manifest import Golden
from loopwright.bundle.seal import build_bundle
from loopwright.bundle.signature import Field, Schema
from loopwright.control.context import Context
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import to_us
from loopwright.monitoring.log import PredictionLog
from loopwright.pipeline import store as pipeline_store
from loopwright.project.spec import Spec
from loopwright.registry.versions import register_version
from loopwright.serving.events import Event
from loopwright.training.export import native_files, predict_onnx, to_onnx

DAY = datetime(2013, 6, 1, tzinfo=UTC)
RNG = np.random.default_rng(3)
X = RNG.normal(size=(300, 3)).astype(np.float32)
TRANSFORM = """
import numpy as np

def transform(inputs, state):
    known = np.array([1.0 if c == "UA" else 0.0 for c in inputs["carrier"]])
    return {"a": inputs["a"], "a2": inputs["a"] ** 2, "is_ua": known}
"""
SCHEMA = Schema(
    inputs=(Field("a", "float64"), Field("carrier", "string")), features=("a", "a2", "is_ua"),
    outputs=("probability",), task="binary",
)  # fmt: skip


def sealed(ctx: Context, rate: float, *, native: bool = True) -> str:
    """The digest of a bundle of a small LightGBM model."""
    names = list(SCHEMA.features)
    params = {
        "objective": "binary",
        "verbose": -1,
        "num_leaves": 4,
        "min_data_in_leaf": 5,
        "learning_rate": rate,
    }
    booster = lgb.train(params, lgb.Dataset(X, (X[:, 0] + X[:, 2] > 0).astype(float), feature_name=names), 5)
    onnx = to_onnx(booster, names, "binary")
    a, carriers = [float(x) for x in X[:6, 0]], ["UA", None, "AA", "UA", "B6", "UA"]
    features = np.array([[x, x * x, c == "UA"] for x, c in zip(a, carriers, strict=True)], dtype=np.float32)
    made = build_bundle(
        ctx.home.cache / f"bundle-{rate}-{native}", model="late", onnx=onnx, schema=SCHEMA, transform=TRANSFORM,
        state={}, golden=Golden({"a": a, "carrier": carriers}, predict_onnx(onnx, features).tolist()),
        reference={}, card="# late\n", provenance={}, created_at=DAY, key=ctx.key,
        extra_files=native_files(booster) if native else {},
    )  # fmt: skip
    return BundleDepot(ctx.home.bundles).add(made.path)


def register(ctx: Context, digest: str) -> int:
    with ctx.ledger.write() as conn:
        return register_version(
            conn, model="late", bundle=digest, run_id=None, snapshot=None, author=Actor("dora", Role.DEVELOPER),
            metrics={}, now=ctx.now,
        ).version  # fmt: skip


def ask(ctx: Context, log: str = "all", *, redact: tuple[str, ...] = ()) -> None:
    spec = Spec.model_validate({
        "model": "late", "task": "binary", "explain": {"log": log}, "serving": {"log": {"redact": redact}},
        "data": {"sources": {"f": {"uri": "f.csv", "contract": "f.yaml"}}, "label": {"name": "y"}},
    })  # fmt: skip
    with ctx.ledger.write() as conn:
        pipeline_store.save_project(conn, "late", "/nowhere", spec.to_json(), "d", ctx.now)


def event(id: str, *, version: int = 1, at: datetime = DAY, arm: str = "stable", **changed: Any) -> Event:
    given = Event(
        id=id, unit=id, event_time=to_us(at), at=to_us(at), model="late", version=version, arm=arm, latency_us=1,
        status="ok", error="", inputs=[0.5, "UA"], outputs=[0.5],
    )  # fmt: skip
    for name, value in changed.items():
        setattr(given, name, value)
    return given


def ship(ctx: Context, name: str, *events: Event) -> None:
    PredictionLog(ctx.home.predictions).append(events, name)


def rows(ctx: Context) -> list[dict[str, Any]]:
    folder = ctx.home.explanations / "late"
    files = sorted(folder.glob("day=*/*.parquet"))
    return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]
