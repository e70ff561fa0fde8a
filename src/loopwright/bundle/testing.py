"""A tiny sealed model for tests and benchmarks: three inputs, one logistic layer, known answers. Needs `onnx`."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from loopwright.bundle.approval import ApprovalRecord, SignedRecord, sign_record
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.manifest import Golden, OnlineView
from loopwright.bundle.routes import Arm, ModelRoute, RouteTable, VersionRoute
from loopwright.bundle.seal import SealedBundle, build_bundle
from loopwright.bundle.signature import Field, Schema
from loopwright.stats.profile import PREDICTION, build_reference

CREATED = datetime(2013, 4, 1, tzinfo=UTC)
WEIGHTS = np.array([[0.8], [-0.5], [0.3]])

TINY_SCHEMA = Schema(
    inputs=(Field("distance", "float64"), Field("hour", "int64", nullable=False), Field("carrier", "string")),
    features=("distance", "hour", "carrier"),
    outputs=("probability",),
    task="binary",
)

TOLERANT = """
import numpy as np

def transform(inputs, state):
    codes = state["carriers"]
    return {
        "distance": np.nan_to_num(inputs["distance"]) / 1000,
        "hour": inputs["hour"] / 24,
        "carrier": np.array([codes.get(c, -1) for c in inputs["carrier"]], dtype=np.float32),
    }
"""

STRICT = TOLERANT.replace("codes.get(c, -1)", "codes[c]")
"""Raises KeyError on a carrier it has not seen."""


def tiny_bundle(
    dest: Path,
    key: SigningKey,
    *,
    model: str = "late",
    transform: str = TOLERANT,
    bias: float = 0.0,
    created_at: datetime = CREATED,
    extra_files: Mapping[str, bytes] = MappingProxyType({}),
    schema: Schema = TINY_SCHEMA,
    views: Sequence[OnlineView] = (),
) -> SealedBundle:
    """Build a bundle at `dest` whose answer to a row is `tiny_answer(row, bias)`."""
    golden: dict[str, list[Any]] = {"distance": [500.0, None], "hour": [6, 23], "carrier": ["UA", "AA"]}
    rng = np.random.default_rng(7)
    carriers = np.array(["UA", "AA", "B6"], dtype=object)[rng.integers(0, 3, 2000)]
    distance, hour = rng.uniform(100, 3000, 2000), rng.integers(0, 24, 2000).astype(float)
    scores = [tiny_answer(*row, bias=bias) for row in zip(distance, hour, carriers, strict=True)]
    reference = build_reference(
        {"distance": distance, "hour": hour, "carrier": carriers, PREDICTION: np.array(scores)}
    )
    return build_bundle(
        dest,
        model=model,
        onnx=logistic_onnx(WEIGHTS, bias),
        schema=schema,
        transform=transform,
        state={"carriers": {"UA": 1, "AA": 2, "B6": 3}},
        golden=Golden(golden, [[tiny_answer(*row, bias=bias)] for row in zip(*golden.values(), strict=True)]),
        reference=reference.to_json(),
        card="# late\n\nA model for tests.\n",
        provenance={"run_id": "run-1"},
        created_at=created_at,
        key=key,
        extra_files=extra_files,
        views=views,
    )


def tiny_answer(distance: float | None, hour: float, carrier: str | None, *, bias: float = 0.0) -> float:
    """The probability the tiny model gives, to float32 precision."""
    code = {"UA": 1, "AA": 2, "B6": 3}.get(carrier or "", -1)
    score = float(np.array([(distance or 0.0) / 1000, hour / 24, code]) @ WEIGHTS[:, 0]) + bias
    return float(1 / (1 + np.exp(-score)))


def logistic_onnx(weights: np.ndarray[Any, Any], bias: float) -> bytes:
    """Return an ONNX model sigmoid(x @ weights + bias) over float32 (n, len(weights))."""
    from onnx import TensorProto, helper, numpy_helper

    features, outputs = weights.shape
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["xw", "b"], ["score"]),
        helper.make_node("Sigmoid", ["score"], ["probability"]),
    ]
    graph = helper.make_graph(
        nodes,
        "logistic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", features])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", outputs])],
        [
            numpy_helper.from_array(weights.astype(np.float32), "w"),
            numpy_helper.from_array(np.full(outputs, bias, dtype=np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    serialized: bytes = model.SerializeToString()
    return serialized


def approval_for(
    key: SigningKey, model: str, version: int, bundle: str, *, stage: str = "Production"
) -> SignedRecord:
    """Return a signed approval of these bytes."""
    record = ApprovalRecord(
        model=model,
        version=version,
        bundle=bundle,
        stage=stage,
        promotion_id="pr_1",
        policy_digest="0" * 64,
        requested_by="ana",
        approvals=(("bo", "2013-04-01T00:00:00Z"), ("cy", "2013-04-01T00:00:00Z")),
    )
    return sign_record(record, key)


def route_for(
    key: SigningKey, bundles: dict[int, str], arms: Sequence[Arm], *, model: str = "late"
) -> ModelRoute:
    """Return a route over approved versions; bundles: digest by version."""
    versions = {
        str(version): VersionRoute(digest, approval_for(key, model, version, digest))
        for version, digest in bundles.items()
    }
    return ModelRoute(model, "salt", tuple(arms), versions)


def table_of(serial: int, *routes: ModelRoute, trusted: Sequence[str] = ()) -> RouteTable:
    """Return a route table; trusted: digests of pickled models."""
    models = {route.model: route for route in routes}
    return RouteTable(serial, "2013-04-01T00:00:00Z", models, tuple(trusted))
