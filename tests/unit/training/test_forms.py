"""Every kind of model is served in a form that answers as it was trained, from a real bundle and a real process."""

from pathlib import Path
from typing import Any

import lightgbm
import mlflow.pyfunc
import numpy as np
import pytest
import torch
import xgboost
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from loopwright.bundle.forms import EXPORTED, LIGHTGBM, ONNX, PICKLED, PYFUNC, TORCHSCRIPT, XGBOOST
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.manifest import Golden
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.bundle.seal import build_bundle
from loopwright.bundle.signature import Field, Schema, Task, default_outputs
from loopwright.bundle.testing import CREATED
from loopwright.bundle.trust import SignedTrust, TrustRecord, sign_trust
from loopwright.kernel.errors import BadInput, Refused
from loopwright.training.forms import Form, Trusts, Untrusted, checked_form

KEY = SigningKey.generate()
NAMES = ("a", "b", "c", "d")
RNG = np.random.default_rng(7)
# On a grid, so that many rows stand exactly on a threshold.
X = np.round(RNG.random((3000, 4)), 2).astype(np.float32)
SCORE = X @ np.array([1.0, 2.0, -1.0, 0.5], dtype=np.float32)
LATE = (SCORE > 1.2).astype(int)
KIND = np.digitize(SCORE, [0.8, 1.6])


def schema(task: Task) -> Schema:
    classes = ("0", "1", "2") if task == "multiclass" else ()
    return Schema(
        inputs=tuple(Field(name, "float64") for name in NAMES), features=NAMES, outputs=default_outputs(task, classes),
        task=task, classes=classes,
    )  # fmt: skip


def trust(form: Form) -> SignedTrust:
    return sign_trust(
        TrustRecord(
            digest=form.digest, globals=form.scan().globals, requested_by="dora", approved_by="ada", reason="-", at=""
        ),
        KEY,
    )  # fmt: skip


def sealed(folder: Path, form: Form, task: Task, answers: np.ndarray[Any, Any]) -> Bundle:
    golden = Golden({name: X[:5, i].tolist() for i, name in enumerate(NAMES)}, answers[:5].tolist())
    plain, pickled = form.file == ONNX, form.file in PICKLED
    built = build_bundle(
        folder, model="late", onnx=form.data if plain else None, pickled=form.data if pickled else None,
        native=None if plain or pickled else (form.file, form.data), trust=trust(form) if form.runs_code else None,
        schema=schema(task), transform=None, state={}, golden=golden, reference={}, card="", provenance={},
        created_at=CREATED, key=KEY,
    )  # fmt: skip
    return open_bundle(built.path, [KEY.public])


def served(
    folder: Path, model: Any, task: Task, wanted: Any, file: str, trusts: Trusts | None = None
) -> None:
    """The model becomes `file`, and a bundle of it answers `wanted`."""
    form, check = checked_form(model, NAMES, schema(task), X, 1e-5, trusts)
    assert form.file == file, form.why
    assert check.equal and check.rows == len(X)
    answers = np.asarray(wanted, dtype=np.float64).reshape(len(X), -1)
    bundle = sealed(folder / "bundle", form, task, answers)
    try:
        bundle.smoke()
        assert bundle.isolated == (file != ONNX)
        got = bundle.predict({name: X[:, i].astype(float) for i, name in enumerate(NAMES)})
        assert np.abs(got - answers).max() < 1e-5
    finally:
        bundle.close()


def boosted(y: Any, **params: Any) -> xgboost.Booster:
    return xgboost.train({"nthread": 1, "seed": 7, **params}, xgboost.DMatrix(X, y), 20)


@pytest.mark.parametrize(
    ("task", "y", "params", "file"),
    [
        ("binary", LATE, {"objective": "binary:logistic", "base_score": 0.3}, ONNX),
        ("multiclass", KIND, {"objective": "multi:softprob", "num_class": 3}, ONNX),
        ("regression", SCORE, {"objective": "reg:squarederror"}, ONNX),
        (
            "regression",
            SCORE,
            {"objective": "reg:squarederror", "booster": "dart", "rate_drop": 0.2},
            XGBOOST,
        ),
        ("regression", SCORE, {"objective": "reg:squarederror", "booster": "gblinear"}, XGBOOST),
    ],
)
def test_xgboost_is_a_graph_where_a_converter_is_exact_and_itself_elsewhere(
    tmp_path: Path, task: Task, y: Any, params: dict[str, Any], file: str
) -> None:
    model = boosted(y, **params)
    served(tmp_path, model, task, model.predict(xgboost.DMatrix(X)), file)


def test_a_stopped_xgboost_estimator_answers_with_its_best_rounds_and_names_do_not_matter(
    tmp_path: Path,
) -> None:
    import pandas

    frame = pandas.DataFrame(X, columns=["dep delay", "b", "c", "d"])
    model = xgboost.XGBClassifier(n_estimators=60, early_stopping_rounds=2, n_jobs=1, learning_rate=1.0)
    model.fit(frame[:2000], LATE[:2000], eval_set=[(frame[2000:], 1 - LATE[2000:])], verbose=False)
    assert model.best_iteration < 20
    served(tmp_path, model, "binary", model.predict_proba(frame)[:, 1], ONNX)


def test_lightgbm_with_categories_stays_itself(tmp_path: Path) -> None:
    x = X.copy()
    x[:, 0] = np.floor(x[:, 0] * 8)
    data = lightgbm.Dataset(x, LATE, categorical_feature=[0])
    model = lightgbm.train({"objective": "binary", "verbosity": -1, "num_threads": 1}, data, 10)
    served(tmp_path, model, "binary", model.predict(X), LIGHTGBM)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.layers(x))


class Bessel(Net):
    """ONNX has no Bessel functions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i0e(self.layers(x))


class Loop(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(int(x.shape[1])):
            x = torch.special.i1e(x)
        return self.layers(x)


def test_torch_is_a_graph_an_exported_program_or_torchscript(tmp_path: Path) -> None:
    for model, file in ((Net(), ONNX), (Bessel(), EXPORTED), (torch.jit.script(Loop()), TORCHSCRIPT)):
        folder = tmp_path / file
        folder.mkdir()
        with torch.no_grad():
            served(folder, model, "regression", model(torch.from_numpy(X)).numpy(), file)


def test_an_estimator_without_a_converter_is_served_only_when_it_is_trusted(tmp_path: Path) -> None:
    model = make_pipeline(FunctionTransformer(np.sqrt), LogisticRegression()).fit(X, LATE)
    with pytest.raises(Untrusted, match="cannot become ONNX") as caught:
        checked_form(model, NAMES, schema("binary"), X, 1e-5)
    form = caught.value.form
    assert form.file == PICKLED[0] and "numpy.sqrt" in form.scan().globals
    trusts = Trusts(lambda digest: trust(form) if digest == form.digest else None, [KEY.public])
    served(tmp_path, model, "binary", model.predict_proba(X)[:, 1], PICKLED[0], trusts)


class Doubler(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        return np.asarray(model_input)[:, 1] * 2


def test_a_pyfunc_is_a_program_and_says_so_to_who_trusts_it(tmp_path: Path) -> None:
    given: dict[str, SignedTrust] = {}
    with pytest.raises(Untrusted) as caught:
        checked_form(Doubler(), NAMES, schema("regression"), X, 1e-5)
    form = caught.value.form
    with pytest.raises(Untrusted) as again:
        checked_form(Doubler(), NAMES, schema("regression"), X, 1e-5)
    assert again.value.form.data == form.data, "who trusted the one trusts the other"
    assert form.file == PYFUNC and form.scan().globals == ("any code",)
    given[form.digest] = trust(form)
    folder = tmp_path / "bundle"
    bundle = sealed(folder, form, "regression", X[:, 1:2] * 2)
    bundle.smoke()
    bundle.close()
    (folder / "trust.json").unlink()
    with pytest.raises(Refused):
        open_bundle(folder, [KEY.public])


def test_what_has_no_form_at_all_says_what_would_do() -> None:
    with pytest.raises(BadInput, match="a model of a kind"):
        checked_form(object(), NAMES, schema("binary"), X, 1e-5)
