"""Exported graphs answer as the model does: on the thresholds themselves, with missing values, for every task."""

import math

import lightgbm as lgb
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from loopwright.kernel.errors import BadInput
from loopwright.training.export import check_export, predict_model, predict_onnx, to_onnx
from loopwright.training.lightgbm_onnx import float32_not_above

NAMES = ("a", "b", "c")
RNG = np.random.default_rng(3)
# Few distinct values, so that many rows lie exactly where a split may fall between two doubles.
X = (RNG.integers(0, 40, (3000, 3)) / 10).astype(np.float32)
SIGNAL = X[:, 0] - X[:, 1] * X[:, 2] / 3 + RNG.normal(0, 0.3, 3000)
CLASSES = np.digitize(SIGNAL, [-1, 1]).astype(float)
GAPPED = np.where(RNG.random(X.shape) < 0.2, np.float32(np.nan), X)
BASE = {
    "verbose": -1,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "seed": 1,
    "min_data_in_leaf": 5,
}


def boosted(x: np.ndarray, y: np.ndarray, rounds: int = 60, **params: object) -> lgb.Booster:
    return lgb.train({**BASE, **params}, lgb.Dataset(x, y), rounds)


@given(st.floats(allow_nan=False, width=64), st.floats(allow_nan=False, width=32))
def test_rounding_a_threshold_down_sends_no_float32_the_other_way(threshold: float, x: float) -> None:
    rounded = float(float32_not_above(np.array([threshold]))[0])
    assert (x <= threshold) == (x <= rounded)


@pytest.mark.parametrize(
    ("task", "params", "target"),
    [
        ("binary", {"objective": "binary"}, (SIGNAL > 0).astype(float)),
        ("binary", {"objective": "binary", "sigmoid": 2.0}, (SIGNAL > 0).astype(float)),
        ("multiclass", {"objective": "multiclass", "num_class": 3}, CLASSES),
        ("multiclass", {"objective": "multiclassova", "num_class": 3}, CLASSES),
        ("regression", {"objective": "regression"}, SIGNAL),
        ("regression", {"objective": "poisson"}, np.exp(SIGNAL / 3)),
        ("binary", {"objective": "binary", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
         (SIGNAL > 0).astype(float)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("trained_on", [X, GAPPED], ids=["complete", "gaps"])
def test_lightgbm_and_its_graph_agree_also_on_missing_values(
    task: str, params: dict[str, object], target: np.ndarray, trained_on: np.ndarray
) -> None:
    model = boosted(trained_on, target, **params)
    graph = to_onnx(model, NAMES, task)
    for rows in (X, GAPPED):
        found = check_export(model, graph, rows)
        assert found.equal, found
        assert found.max_difference < 2e-6


def test_rows_that_sit_on_a_split_go_the_right_way() -> None:
    model = boosted((X + np.float32(0.1)) * np.float32(1.7), SIGNAL, objective="regression", max_bin=500)
    tree = model.dump_model()["tree_info"][0]["tree_structure"]
    edge = np.nextafter(np.float32(tree["threshold"]), np.float32(np.inf))
    rows = np.tile(np.array([0.5, 0.5, 0.5], np.float32), (3, 1))
    rows[:, tree["split_feature"]] = [
        edge,
        np.float32(tree["threshold"]),
        np.nextafter(edge, np.float32(-np.inf)),
    ]
    assert check_export(model, to_onnx(model, NAMES, "regression"), rows).equal


def test_an_early_stopped_booster_is_exported_at_its_best_iteration() -> None:
    y = (SIGNAL > 0).astype(float)
    model = lgb.train(
        {**BASE, "objective": "binary", "learning_rate": 0.5}, lgb.Dataset(X[:1500], y[:1500]), 200,
        valid_sets=[lgb.Dataset(X[1500:], y[1500:])], callbacks=[lgb.early_stopping(5, verbose=False)],
    )  # fmt: skip
    assert 0 < model.best_iteration < 200
    assert check_export(model, to_onnx(model, NAMES, "binary"), X).equal


def test_a_model_that_learned_nothing_is_exported_too() -> None:
    model = boosted(X, np.repeat([0.0, 1.0], 1500), objective="binary", min_data_in_leaf=5000)
    assert check_export(model, to_onnx(model, NAMES, "binary"), X).equal


def test_the_same_training_gives_the_same_bytes() -> None:
    y = (SIGNAL > 0).astype(float)
    params = {"objective": "binary", "feature_fraction": 0.7, "bagging_fraction": 0.7, "bagging_freq": 1}
    assert to_onnx(boosted(X, y, **params), NAMES, "binary") == to_onnx(
        boosted(X, y, **params), NAMES, "binary"
    )


def test_categorical_splits_are_refused_with_a_way_out() -> None:
    model = lgb.train(
        {**BASE, "objective": "regression"}, lgb.Dataset(np.round(X), SIGNAL, categorical_feature=[0]), 5
    )
    with pytest.raises(BadInput, match=r"categorical splits.*Encode"):
        to_onnx(model, NAMES, "regression")


@pytest.mark.parametrize(
    ("task", "model", "target"),
    [
        ("binary", make_pipeline(StandardScaler(), LogisticRegression()), SIGNAL > 0),
        ("binary", RandomForestClassifier(30, random_state=0), SIGNAL > 0),
        ("multiclass", RandomForestClassifier(30, random_state=0), CLASSES),
        ("multiclass", HistGradientBoostingClassifier(max_iter=30, random_state=0), CLASSES),
        ("regression", GradientBoostingRegressor(n_estimators=40, random_state=0), SIGNAL),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else None,
)
def test_scikit_learn_and_its_graph_agree(task: str, model: object, target: np.ndarray) -> None:
    model.fit(X, target)  # type: ignore[attr-defined]
    graph = to_onnx(model, NAMES, task)
    found = check_export(model, graph, X)
    assert found.equal, found
    assert predict_onnx(graph, X).shape == (3000, 3 if task == "multiclass" else 1)


def test_exporting_leaves_the_model_as_it_was() -> None:
    model = RandomForestClassifier(5, random_state=0).fit(X, SIGNAL > 0)
    before = [tree.tree_.threshold.copy() for tree in model.estimators_]
    to_onnx(model, NAMES, "binary")
    for tree, threshold in zip(model.estimators_, before, strict=True):
        np.testing.assert_array_equal(tree.tree_.threshold, threshold)


def test_a_graph_of_ones_own_is_taken_when_it_fits() -> None:
    graph = onnx.load_from_string(to_onnx(boosted(X, SIGNAL, objective="regression"), NAMES, "regression"))
    assert check_export(graph, to_onnx(graph, NAMES, "regression"), X).max_difference == 0
    with pytest.raises(BadInput, match="another width"):
        to_onnx(graph, ("only", "two"), "regression")


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(BadInput, match="cannot be exported"):
        to_onnx(lambda x: x, NAMES, "regression")


def test_a_classifier_does_not_fit_a_regression() -> None:
    with pytest.raises(BadInput, match="does not fit the task"):
        to_onnx(LogisticRegression().fit(X, SIGNAL > 0), NAMES, "regression")


def test_a_graph_that_answers_otherwise_is_caught() -> None:
    one, other = (
        boosted(X, SIGNAL, objective="regression", seed=s, num_leaves=n) for s, n in ((1, 31), (2, 7))
    )
    found = check_export(one, to_onnx(other, NAMES, "regression"), X)
    assert not found.equal
    assert found.max_difference > 0.01


def test_no_rows_prove_nothing() -> None:
    model = boosted(X, SIGNAL, objective="regression")
    assert not check_export(model, to_onnx(model, NAMES, "regression"), X[:0]).equal


def test_a_missing_answer_on_one_side_is_infinitely_far(monkeypatch: pytest.MonkeyPatch) -> None:
    model = boosted(X, SIGNAL, objective="regression")
    graph = to_onnx(model, NAMES, "regression")
    monkeypatch.setattr(model, "predict", lambda x: np.full(len(x), np.nan))
    assert math.isinf(check_export(model, graph, X).max_difference)
    assert np.isnan(predict_model(model, X)).all()
