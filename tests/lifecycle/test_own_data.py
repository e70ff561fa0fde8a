"""Four commands take a user's own CSV file to a trained, gated, registered and serving model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.open import open_bundle
from loopwright.kernel.home import Home
from tests.lifecycle.own import MODEL, NUMBERS, ROWS, TARGET, Own, Said, Served, serving, tensors, write_rows


@dataclass(frozen=True)
class Told:
    """What the first two commands and the promotion said, and the rows they were about."""

    rows: list[dict[str, str]]
    init: Said
    run: dict[str, Any]
    promotions: list[dict[str, Any]]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Own:
    return Own(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def told(own: Own) -> Told:
    rows = write_rows(own.file)
    init = own.loopwright("init", MODEL, "--data", "my.csv", "--target", TARGET)
    assert init.code == 0, init.err
    run = own.done("run", MODEL)
    promotions = [own.done("promote", MODEL, "1"), own.done("approve", MODEL, "1")]
    return Told(rows, init, run, promotions)


@pytest.fixture(scope="module")
def served(own: Own, told: Told) -> Iterator[Served]:
    with serving(own) as running:
        yield running


def test_init_infers_everything_it_was_not_asked(own: Own, told: Told) -> None:
    for said in ("task: binary", "target: bought", "classes: no, yes", f"rows: {ROWS}", "plan string"):
        assert said in told.init.out
    files = {str(path.relative_to(own.project)) for path in own.project.rglob("*") if path.is_file()}
    assert {
        "loop.yaml", "contracts/my.odcs.yaml", "features.py", "transform.py", "train.py", "conf/train.yaml",
        "tests/behaviour.py", "README.md",
    } <= files  # fmt: skip


def test_run_trains_gates_and_registers_without_a_change(told: Told) -> None:
    assert told.run["version"] == 1
    assert told.run["refused"] is None
    (landed,) = told.run["ingests"]
    assert (landed["input_rows"], landed["good_rows"], landed["bad_rows"]) == (ROWS, ROWS, 0)
    assert told.run["sizes"]["train"] + told.run["sizes"]["holdout"] == ROWS
    assert told.run["gates"]["verdict"] == "PASS"
    assert "first model" in {result["kind"] for result in told.run["gates"]["results"]}
    assert told.run["metrics"]["roc_auc"] > 0.85
    assert told.run["export"]["max_difference"] < 1e-5


def test_one_person_may_take_a_first_model_live_under_the_scaffolded_policy(own: Own, told: Told) -> None:
    assert [promotion["state"] for promotion in told.promotions] == ["pending", "effective"]
    (listed,) = own.done("models", "list")
    assert listed["name" if "name" in listed else "model"] == MODEL
    assert own.done("audit", "verify")["ok"] is True


def test_a_request_is_answered_as_the_sealed_bundle_answers_and_is_logged(
    own: Own, told: Told, served: Served
) -> None:
    home = Home.at(own.home)
    key = SigningKey.load(home.signing_key).public
    bundle = open_bundle(BundleDepot(home.bundles).path(told.run["bundle"]), [key])
    asked = told.rows[:200]
    expected = bundle.predict(
        {name: np.array([float(row[name]) for row in asked]) for name in NUMBERS}
        | {"plan": np.array([row["plan"] for row in asked], dtype=object)}
    )[:, 0]

    one = served.post(f"/v2/models/{MODEL}/infer", {"id": "customer-1", "inputs": tensors(asked[:1])})
    assert (one["model_name"], one["model_version"], one["id"]) == (MODEL, "1", "customer-1")
    assert one["parameters"]["arm"] == "stable"
    (probability,) = one["outputs"][0]["data"]
    assert probability == pytest.approx(expected[0], abs=1e-9)

    many = served.post(f"/v2/models/{MODEL}/infer", {"inputs": tensors(asked)})
    answers = next(output["data"] for output in many["outputs"] if not output["name"].startswith("_"))
    np.testing.assert_allclose(answers, expected, atol=1e-9)
    assert roc_auc_score([row[TARGET] == "yes" for row in asked], answers) > 0.85

    served.post("/admin/flush")
    log = str(home.predictions / MODEL / "day=*" / "*.parquet")
    logged = duckdb.execute(
        f"SELECT version, arm, status, outputs[1] FROM read_parquet('{log}', hive_partitioning = false) "
        "WHERE id = 'customer-1'"
    ).fetchall()
    assert logged == [(1, "stable", "ok", probability)]
    ((count,),) = duckdb.execute(
        f"SELECT count(*) FROM read_parquet('{log}', hive_partitioning = false)"
    ).fetchall()
    assert count == 201


def test_the_control_plane_and_the_folder_tell_of_the_same_model(own: Own, served: Served) -> None:
    (status,) = served.told("status")
    assert status["model"] == MODEL
    assert status["stable"] == 1
    assert served.told("models", "show", MODEL, "1") == own.done("models", "show", MODEL, "1")


def test_nothing_was_written_beside_the_home(own: Own, served: Served) -> None:
    beside = {path.name for path in own.folder.iterdir()}
    assert beside <= {
        "my.csv",
        MODEL,
        "home",
        "serving",
        "serve.log",
        "up.log",
        ".cache",
        ".config",
        ".local",
    }
    assert not list(Path(own.project).rglob("*.onnx"))
