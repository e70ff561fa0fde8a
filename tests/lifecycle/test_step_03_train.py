"""Step 3: a deterministic model, tracked by MLflow's protocol, exported without loss, and sealed."""

import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from loopwright.bundle.open import open_bundle
from loopwright.features.module import load_features
from loopwright.kernel.errors import Tampered
from loopwright.pipeline.fit import Parts, Preparation, load_entry
from loopwright.project.spec import Project
from tests.lifecycle.conftest import Played

Learned = Callable[[int], tuple[Project, Parts]]
ROWS = 10_000


def run_of(played: Played, version: int) -> dict[str, Any]:
    run_id = played.row("lw_versions", version)["run_id"]
    (run,) = played.sql(f"SELECT * FROM lw_runs WHERE run_id = '{run_id}'")
    return run | {name: json.loads(run[name]) for name in ("params", "metrics", "context")}


def test_the_sealed_onnx_answers_as_lightgbm_does_on_ten_thousand_rows(
    played: Played, learned: Learned
) -> None:
    project, parts = learned(1)
    prepared = Preparation(load_features(project).transform, parts.train)
    _, train = load_entry(project)
    booster = train(
        prepared.split(parts.train), None, run_of(played, 1)["params"], project.spec.train.seed, None
    )
    held = prepared.split(parts.holdout).x[:ROWS]
    session = ort.InferenceSession(played.bundle_path(1) / "model.onnx")
    (answers,) = session.run(None, {session.get_inputs()[0].name: held})
    assert len(held) == ROWS
    assert np.max(np.abs(answers[:, 0] - booster.predict(held))) < 1e-5
    recorded = played.figures["train_v1"]["export"]
    assert recorded["rows"] == ROWS
    assert recorded["max_difference"] < 1e-5


@pytest.mark.parametrize("version", [1, 2])
def test_the_recorded_quality_is_that_of_the_sealed_bundle_on_rows_it_never_saw(
    played: Played, learned: Learned, version: int
) -> None:
    _, parts = learned(version)
    y = parts.holdout.labels()
    p = played.bundle(version).predict(parts.holdout.inputs())[:, 0]
    recorded = run_of(played, version)["metrics"]
    assert recorded["roc_auc"] == pytest.approx(roc_auc_score(y, p), abs=1e-6)
    assert recorded["log_loss"] == pytest.approx(log_loss(y, p), abs=1e-6)
    assert recorded["brier"] == pytest.approx(brier_score_loss(y, p), abs=1e-6)
    assert recorded == json.loads(played.row("lw_versions", version)["metrics"])
    assert set(parts.holdout.ids()).isdisjoint(parts.train.ids())


def test_mlflow_tracked_the_run_with_its_search_and_curves(played: Played) -> None:
    run = run_of(played, 1)
    (row,) = played.sql(f"SELECT * FROM runs WHERE run_uuid = '{run['run_id']}'")
    assert row["status"] == "FINISHED"
    params = {
        p["key"]: p["value"] for p in played.sql(f"SELECT * FROM params WHERE run_uuid = '{run['run_id']}'")
    }
    assert {name: float(value) for name, value in params.items()} == run["params"]
    metrics = played.sql(
        f"SELECT key, step, value FROM metrics WHERE run_uuid = '{run['run_id']}' ORDER BY step"
    )
    trials = [m["value"] for m in metrics if m["key"] == "search_roc_auc"]
    assert len(trials) == 8
    assert len(set(trials)) > 1
    losses = [m["value"] for m in metrics if m["key"] == "train_log_loss"]
    assert len(losses) == run["params"]["num_boost_round"] == 120
    assert losses[-1] < losses[0]
    assert [m["value"] for m in metrics if m["key"] == "roc_auc"] == [run["metrics"]["roc_auc"]]
    tags = {
        t["key"]: t["value"] for t in played.sql(f"SELECT * FROM tags WHERE run_uuid = '{run['run_id']}'")
    }
    assert (tags["business_unit"], tags["cost_center"]) == ("ops", "cc-114")
    assert tags["mlflow.user"] == "ana"
    (experiment,) = played.sql(f"SELECT name FROM experiments WHERE experiment_id = {row['experiment_id']}")
    assert experiment["name"] == "airline-ops/delays/flight-late"


def test_the_context_of_the_run_was_written_down_without_being_asked(
    played: Played, learned: Learned
) -> None:
    run = run_of(played, 1)
    context = run["context"]
    own = played.home.root / "projects" / "flight-late"
    head = subprocess.run(
        ["git", "rev-parse", "HEAD", "--abbrev-ref", "HEAD"], cwd=own, capture_output=True, text=True
    ).stdout.split()
    git = context["code"]["git"]
    assert [git["commit"], git["branch"]] == head
    assert git["dirty"] is False
    # The files as they were stand under a private ref of the project's own repository.
    kept = subprocess.run(
        ["git", "show", f"{git['snapshot']}:train.py"], cwd=own, capture_output=True, check=True
    )
    assert kept.stdout == (own / "train.py").read_bytes()

    _, parts = learned(1)
    assert context["data"] == {"snapshot": run["snapshot"], "splits": parts.sizes()}
    assert context["seeds"]["seed"] == 7
    packages = context["environment"]["packages"]
    assert any(line.startswith("lightgbm==") for line in packages)
    assert len(packages) > 50
    assert context["environment"]["python"].startswith("3.")
    assert context["hardware"]
    assert context["command"][1:3] == ["demo", "flights"]
    assert "container" in context["environment"]
    assert run["params"]["learning_rate"] == 0.08


def test_every_file_of_the_bundle_is_digested_and_the_manifest_signed(played: Played) -> None:
    folder = played.bundle_path(1)
    written = (folder / "manifest.json").read_bytes()
    manifest, seal = json.loads(written), json.loads((folder / "seal.json").read_bytes())
    assert hashlib.sha256(written).hexdigest() == played.row("lw_versions", 1)["bundle"]
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert files == {*manifest["files"], "manifest.json", "seal.json"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert {"model.onnx", "transform.py", "state.json", "golden.json", "reference.json", "card.md"} <= files

    assert seal["manifest"] == played.row("lw_versions", 1)["bundle"]
    assert seal["key_id"] == hashlib.sha256(played.key.raw).hexdigest()[:16]
    key = Ed25519PublicKey.from_public_bytes(played.key.raw)
    key.verify(base64.b64decode(seal["signature"]), written)
    with pytest.raises(InvalidSignature):
        key.verify(base64.b64decode(seal["signature"]), written + b" ")


def test_a_bundle_with_one_other_byte_is_not_opened(played: Played, tmp_path: Path) -> None:
    for name in ("model.onnx", "transform.py", "reference.json", "manifest.json"):
        copy = Path(shutil.copytree(played.bundle_path(1), tmp_path / name))
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(Tampered):
            open_bundle(copy, [played.key])


def test_golden_examples_and_reference_are_of_the_flights_the_run_saw(
    played: Played, learned: Learned
) -> None:
    _, parts = learned(1)
    bundle = played.bundle(1)
    bundle.smoke()
    assert len(bundle.golden.outputs) >= 10
    provenance = bundle.manifest.provenance
    assert provenance["run_id"] == played.row("lw_versions", 1)["run_id"]
    assert provenance["snapshot"] == played.figures["data"]["snapshot"]
    assert provenance["trained_until"] == f"{parts.train.event_times().max().astype('datetime64[s]')}Z"
    columns = bundle.reference["columns"]
    assert set(columns) == {*parts.holdout.inputs(), "@prediction"}
    # Inputs as the run saw them, answers as they are on rows it did not learn from.
    assert sum(columns.pop("@prediction")["counts"]) == parts.holdout.rows
    assert {sum(column["counts"]) for column in columns.values()} == {parts.train.rows + parts.holdout.rows}
    unknown_planes = sum(
        np.count_nonzero(np.isnan(part.inputs()["plane_year"])) for part in (parts.train, parts.holdout)
    )
    assert columns["plane_year"]["counts"][0] == unknown_planes
