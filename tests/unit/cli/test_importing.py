"""A model that plain MLflow logged becomes a version here: measured on given rows, trusted where it runs code."""

import json
import re
from pathlib import Path
from typing import Any

import mlflow.lightgbm
import mlflow.pytorch
import mlflow.sklearn
import numpy as np
import pandas
import pytest
import torch
from lightgbm import Dataset, train
from mlflow.models import infer_signature
from sklearn.linear_model import LinearRegression

from .conftest import Type

X = pandas.DataFrame(np.random.default_rng(7).random((200, 3)), columns=["a", "b", "c"])
Y = (X["a"] + X["b"] > 1).astype(int)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders as MLflow makes them: LightGBM, scikit-learn, torch, one without a signature; and labelled rows."""
    folder = tmp_path_factory.mktemp("saved")
    booster = train({"objective": "binary", "verbosity": -1, "num_threads": 1}, Dataset(X, Y), 10)
    line = LinearRegression().fit(X, X["a"] * 2)
    fast: dict[str, Any] = {
        "pip_requirements": [],
        "signature": infer_signature(X, np.zeros(1)),
        "input_example": X[:5],
    }
    mlflow.lightgbm.save_model(booster, folder / "trees", **fast)
    mlflow.sklearn.save_model(line, folder / "line", serialization_format="cloudpickle", **fast)
    matrix = X.to_numpy(dtype=np.float32)
    mlflow.pytorch.save_model(
        torch.nn.Linear(3, 1), folder / "net", pip_requirements=[], input_example=matrix[:5],
        signature=infer_signature(matrix, np.zeros((5, 1), dtype=np.float32)),
    )  # fmt: skip
    mlflow.sklearn.save_model(line, folder / "bare", serialization_format="cloudpickle", pip_requirements=[])
    X.assign(late=Y).to_csv(folder / "rows.csv", index=False)
    return {name: str(folder / name) for name in ("trees", "line", "net", "bare", "rows.csv")}


def test_a_booster_becomes_a_graph_measured_on_the_rows_that_are_given(
    loopwright: Type, saved: dict[str, str]
) -> None:
    words = (
        "models",
        "import",
        saved["trees"],
        "--model",
        "late",
        "--task",
        "binary",
        "--rows",
        saved["rows.csv"],
    )
    done = loopwright("--json", *words, "--label", "late", "--gate", "roc_auc >= 0.9")
    assert done.code == 0, done.err
    first = json.loads(done.out)
    assert (first["form"], first["version"], first["gates"]["verdict"]) == ("model.onnx", 1, "PASS")
    again = json.loads(loopwright("--json", *words, "--label", "late", "--gate", "roc_auc >= 0.9").out)
    assert (again["bundle"], again["version"]) == (first["bundle"], 1), "the same bytes are the same version"
    worse = loopwright("--json", *words, "--label", "late", "--gate", "roc_auc <= 0.1", "--model", "other")
    assert worse.code == 1 and json.loads(worse.out)["version"] is None


def test_without_labelled_rows_nothing_is_known_and_nothing_is_a_pass(
    loopwright: Type, saved: dict[str, str]
) -> None:
    done = loopwright("--json", "models", "import", saved["trees"], "--model", "late", "--task", "binary")
    answer = json.loads(done.out)
    assert (answer["version"], answer["gates"]["verdict"]) == (1, "INCONCLUSIVE")
    shown = json.loads(loopwright("--json", "models", "show", "late", "1").out)
    assert any("gates" in what for what in shown["missing"]["Production"])


@pytest.mark.parametrize("name", ["line", "net"])
def test_a_pyfunc_is_registered_once_two_people_trust_its_bytes(
    loopwright: Type, saved: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    words = ("models", "import", saved[name], "--model", "line", "--task", "regression")
    refused = loopwright(*words)
    assert refused.code == 1
    path = re.search(r"trust request (\S+)", refused.err)
    assert path and Path(path[1]).name == "model.pyfunc.zip", refused.err
    scanned = loopwright("trust", "scan", path[1])
    assert scanned.code == 0 and "any code" in scanned.out
    assert loopwright("trust", "request", path[1], "--reason", "trained elsewhere").code == 0
    digest = json.loads(loopwright("--json", "trust", "list").out)[0]["digest"]
    assert loopwright("user", "add", "bo", "--role", "approver").code == 0
    monkeypatch.setenv("LOOPWRIGHT_USER", "bo")
    approved = loopwright("trust", "approve", digest)
    assert approved.code == 0, approved.err
    monkeypatch.delenv("LOOPWRIGHT_USER")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = loopwright("--json", *words)
    assert done.code == 0, done.err
    assert json.loads(done.out)["form"] == "model.pyfunc.zip"
    assert not list(tmp_path.glob("loopwright-pyfunc-*")), "what was unpacked is cleared away"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("bare",), "the model has no signature"),
        (("rows.csv",), "no such folder"),
        (("trees", "--gate", "auc >= 1"), "belong together"),
        (("trees", "--task", "multiclass", "--classes", "a,b,c"), "class"),
    ],
)
def test_what_cannot_be_imported_says_why(
    loopwright: Type, saved: dict[str, str], words: tuple[str, ...], says: str
) -> None:
    source, *rest = words
    done = loopwright("models", "import", saved[source], "--model", "late", "--task", "binary", *rest)
    assert done.code == 2 and says in done.err, done.err
