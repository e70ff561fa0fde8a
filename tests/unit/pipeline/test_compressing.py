"""What compression takes for its work: requests, versions that cannot be compressed, modules, tolerances."""

import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.manifest import Golden
from loopwright.bundle.testing import logistic_onnx, tiny_bundle
from loopwright.compression.artefact import Artefact
from loopwright.compression.constraints import Constraints
from loopwright.compression.facts import facts_of
from loopwright.compression.graphs.blockwise import Blockwise
from loopwright.compression.plan import Traits
from loopwright.compression.steps import Work
from loopwright.compression.subject import Production
from loopwright.kernel.errors import BadInput
from loopwright.kernel.files import lock
from loopwright.kernel.home import Home
from loopwright.kernel.stage import Stage
from loopwright.kernel.verdict import Verdict
from loopwright.ledger.engine import Ledger
from loopwright.pipeline import compression_subject
from loopwright.pipeline.compressing import _prune, _rungs, lock_of, work_folder
from loopwright.pipeline.compression_asked import Asked, finite
from loopwright.pipeline.compression_module import answers_of, as_network
from loopwright.pipeline.compression_registering import _steady
from loopwright.pipeline.compression_sealing import golden_tolerance
from loopwright.pipeline.compression_subject import NOTE, check_can, chosen_version
from loopwright.pipeline.weights import keep_weights, kept_weights, load_weights, weights_of
from loopwright.project.sections import Compression
from loopwright.registry.records import Version
from loopwright.training.export import predict_model

PIPELINE: tuple[Mapping[str, Any], ...] = (
    {"step": "prune-structure", "ratio": 0.5},
    {"step": "distil", "epochs": 7, "rate": 0.02},
    {"step": "qat", "epochs": 2},
)
X = np.random.default_rng(5).normal(size=(64, 6)).astype(np.float32)


def asked(**changes: Any) -> Asked:
    return replace(Asked(model="late"), **changes)


def test_equal_requests_have_one_key_and_others_another() -> None:
    first = asked(recipe=({"step": "tree-rounds"},)).key("b" * 64)
    # A setting that is said is the same as its default.
    assert asked(recipe=({"step": "tree-rounds", "keep": None},), reason="other").key("b" * 64) == first
    others = [
        asked(recipe=({"step": "tree-rounds", "keep": 0.5},)),
        asked(recipe=({"step": "tree-rounds"},), wanted=Constraints(size=10)),
        asked(recipe=({"step": "tree-rounds"},), production=Production(batch=8)),
        asked(recipe=({"step": "tree-rounds"},), explore=True),
        asked(),
    ]
    assert len({first, *(one.key("b" * 64) for one in others)}) == 6
    assert asked(recipe=({"step": "tree-rounds"},)).key("c" * 64) != first


@pytest.mark.parametrize(
    "changes",
    [
        {"production": Production(batch=10_001)},
        {"production": Production(threads=257)},
        {"budget": timedelta(days=8)},
        {"budget": timedelta()},
    ],
)
def test_more_than_any_machine_is_asked_for_is_said_before_work(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="out of range"):
        asked(**changes).checked()


def test_a_section_of_loop_yaml_is_a_request() -> None:
    section = Compression.model_validate(
        {"target_size": "10MB", "max_latency": "5ms", "max_loss": "2%", "budget": "5m", "threads": 2}
    )
    made = Asked.of(section, "late", 3, "why")
    assert made.wanted == Constraints(10_000_000, 5.0, 0.02) and made.checked() is None
    assert (made.budget, made.production.threads) == (timedelta(minutes=5), 2)
    wrong = Compression.model_validate({"recipe": [{"step": "tree-round"}]})
    with pytest.raises(BadInput, match="tree-rounds"):
        Asked.of(wrong, "late", 3, "why").checked()


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"recipe": []},
        {"recipe": [{"ratio": 1}]},
        {"recipe": [{"step": "qat"}], "target_size": "1MB"},
        {"target_size": "none"},
        {"target_size": "1MB", "max_loss": "100%"},
        {"max_latency": "5"},
        {"target_size": "1MB", "budget": "0s"},
        {"target_size": "1MB", "batch": 0},
    ],
)
def test_a_section_that_asks_for_nothing_or_twice_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"compression|recipe|target_size|max_latency|budget|batch|max_loss"):
        Compression.model_validate(wrong)


def graph(tmp_path: Path) -> Artefact:
    path = tmp_path / "graph.onnx"
    path.write_bytes(logistic_onnx(np.ones((6, 1), np.float32), 0.0))
    return Artefact.open(path)


def test_the_control_of_a_pipeline_trains_as_much_and_is_as_small(tmp_path: Path) -> None:
    traits = Traits(facts_of(graph(tmp_path)), 1.0, True, False, True)
    (rung,) = _rungs(asked(recipe=PIPELINE), traits) or ()
    assert rung.adds == "distillation and QAT" and rung.control is not None
    steps = [dict(step) for step in rung.control.steps]
    assert [step["step"] for step in steps] == ["prune-structure", "finetune", "finetune", "int8-static"]
    assert (steps[1]["epochs"], steps[1]["rate"], steps[2]["epochs"]) == (7, 0.02, 2)
    (plain,) = _rungs(asked(recipe=({"step": "int8-static"},)), traits) or ()
    assert plain.control is None and plain.adds == ""
    (small,) = _rungs(asked(recipe=({"step": "fp16"},), wanted=Constraints(size=1)), traits) or ()
    assert "above the target" in small.why


def test_numbers_that_json_lacks_are_null() -> None:
    assert finite({"a": [1.0, float("nan")], "b": float("inf"), "c": (2,)}) == {
        "a": [1.0, None],
        "b": None,
        "c": [2],
    }


def version(**changes: Any) -> Version:
    whole = Version(
        "late", 1, "0" * 64, "r1", "s" * 64, "1.0.0", Stage.NONE, "ana", datetime(2013, 1, 1, tzinfo=UTC), None
    )  # fmt: skip
    return replace(whole, **changes)


def test_versions_that_cannot_be_compressed_say_what_to_do(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home").create()
    ledger = Ledger.open(home.ledger_url)
    ledger.migrate()
    key = SigningKey.load_or_create(home.signing_key)
    depot = BundleDepot(home.bundles)
    bundle = depot.add(tiny_bundle(tmp_path / "bundle", key).path)
    try:
        with pytest.raises(BadInput, match="plain MLflow client") as told:
            check_can(version(bundle=None), home, [key.public], ledger)
        assert "loopwright.compression.api" in str(told.value)
        for imported in ({"run_id": None}, {"snapshot": None}):
            with pytest.raises(BadInput, match="imported model"):
                check_can(version(bundle=bundle, **imported), home, [key.public], ledger)
        assert check_can(version(bundle=bundle), home, [key.public], ledger) == bundle
    finally:
        ledger.dispose()


def test_what_nobody_named_is_what_was_never_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    note = {NOTE: "smaller"}
    versions = {
        1: version(), 2: version(version=2, parent=1, annotations=note),
        3: version(version=3, parent=2, annotations=note), 4: version(version=4, parent=3),
    }  # fmt: skip
    conn: Any = None
    monkeypatch.setattr(compression_subject, "get_version", lambda conn, model, version: versions[version])
    monkeypatch.setattr(compression_subject, "check_model", lambda conn, model: None)
    for stable, wanted in ((1, 1), (2, 1), (3, 1), (4, 4)):
        monkeypatch.setattr(compression_subject, "stable_version", lambda conn, model, at=stable: at)
        assert chosen_version(conn, "late", None).version == wanted
    assert chosen_version(conn, "late", 3).version == 3


@pytest.mark.parametrize(
    ("tolerance", "verdict"), [(1e-5, Verdict.PASS), (0.04, Verdict.PASS), (0.06, Verdict.FAIL)]
)
def test_golden_rows_that_would_prove_nothing_are_a_gate_that_fails(
    tolerance: float, verdict: Verdict
) -> None:
    class Sealed:
        golden = Golden({"x": [1, 2]}, [[0.0], [1.0]], tolerance)

    sealed: Any = Sealed()
    assert _steady(sealed).verdict is verdict


class Custom(nn.Module):
    """Answers with probabilities, from a forward of its own."""

    def __init__(self, outputs: int, end: str) -> None:
        super().__init__()
        self.body, self.end = nn.Linear(6, outputs), end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answers = self.body(x)
        if self.end == "flat":
            return torch.sigmoid(answers)[:, 0]
        return torch.softmax(answers, 1) if self.end == "classes" else answers[:, 0]


@pytest.mark.parametrize(
    ("module", "task", "plain"),
    [
        (nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1), nn.Sigmoid()), "binary", True),
        (nn.Sequential(nn.Linear(6, 3), nn.Softmax(dim=1)), "multiclass", True),
        (Custom(1, "flat"), "binary", False),
        (Custom(3, "classes"), "multiclass", False),
        (Custom(1, "number"), "regression", False),
    ],
)
def test_a_module_becomes_logits_and_a_head_and_answers_as_before(
    module: nn.Module, task: str, plain: bool, tmp_path: Path
) -> None:
    network = as_network(module, task, "features", X)
    wanted = predict_model(module, X)
    assert np.abs(answers_of(network, X, "features") - wanted).max() < 1e-6
    if plain:
        assert network.head is not None
        assert [type(one) for one in network.module.children()][-1] is nn.Linear
    if task == "multiclass":  # logits: distillation divides them by a temperature
        raw = network.answers({"features": X})
        soft = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
        assert np.abs(soft - wanted).max() < 1e-6


def test_weights_are_kept_as_plain_arrays_and_go_into_the_same_module_only(tmp_path: Path) -> None:
    home, module = Home.at(tmp_path), nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    module(torch.from_numpy(X))
    data = weights_of(module)
    assert data is not None
    assert weights_of(object()) is None
    assert kept_weights(home, "r1") is None
    path = keep_weights(home, "r1", data)
    assert kept_weights(home, "r1") == path
    again = load_weights(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), path)
    assert np.array_equal(predict_model(module, X), predict_model(again, X))
    for other in (nn.Linear(6, 4), nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))):
        with pytest.raises(BadInput, match="another module"):
            load_weights(other, path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput, match="cannot be read"):
        load_weights(module, path)
    np.savez(path, **{"state/0.weight": np.array([{}], dtype=object)})
    with pytest.raises(BadInput):
        load_weights(
            nn.ParameterDict({"0": nn.ParameterDict({"weight": nn.Parameter(torch.zeros(1))})}), path
        )


def test_golden_answers_may_differ_by_what_kernels_differ_and_no_more() -> None:
    exact = logistic_onnx(np.full((6, 1), 0.3, np.float32), 0.1)
    assert golden_tolerance(exact, X, "binary") == 1e-5


def test_golden_answers_of_weights_in_blocks_are_as_narrow_as_others(tmp_path: Path) -> None:
    """Their scales are halves that a Cast widens: without folded constants the kernel answers with zeros."""
    whole, random = tmp_path / "whole.onnx", np.random.default_rng(1)
    whole.write_bytes(logistic_onnx(random.normal(size=(64, 64)).astype(np.float32), 0.0))
    work: Any = Work(None, tmp_path, tmp_path)  # type: ignore[arg-type]  # rounding to the nearest needs no rows
    small = Blockwise(bits=8, method="nearest").encode(Artefact.open(whole), tmp_path / "small.onnx", work)
    assert {"MatMulNBits", "Cast"} <= small.operators
    x = random.normal(size=(64, 64)).astype(np.float32)
    assert golden_tolerance(small.path.read_bytes(), x, "multiclass") < 1e-3


def test_working_folders_beyond_the_newest_go_unless_somebody_works_there(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    folders = [work_folder(home, f"{number:064x}"[::-1]) for number in range(8)]
    for age, folder in enumerate(folders):
        folder.joinpath("original.onnx").write_bytes(b"x")
        os.utime(folder, (1_000 + age, 1_000 + age))
    check = folders[0].parent / "billion-0123456789ab"  # not ours, older than all, and its lock is another
    check.mkdir()
    check.joinpath("original.onnx").write_bytes(b"x")
    os.utime(check, (1, 1))
    with lock(lock_of(folders[0])):
        _prune(folders[0].parent, folders[7])
    assert [folder.exists() for folder in folders] == [True, False, False, False, True, True, True, True]
    assert check.joinpath("original.onnx").exists()
