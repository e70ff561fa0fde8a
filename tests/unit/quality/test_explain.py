"""Contributions are Shapley values: held against brute force over all coalitions, and against the shap library."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from math import factorial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import lightgbm as lgb
import numpy as np
import pytest
import shap
from numpy.typing import NDArray

from loopwright.bundle.keys import SigningKey
from loopwright.bundle.manifest import NATIVE, Golden
from loopwright.bundle.open import open_bundle
from loopwright.bundle.signature import Field, Schema, Task
from loopwright.bundle.testing import tiny_bundle
from loopwright.kernel.errors import Refused, Tampered, Unavailable
from loopwright.quality import explain
from loopwright.quality.explain import Explained, explainer_for, native_text, single_inputs
from loopwright.quality.explain_report import explain_rows, importance, importance_svg, waterfall_svg
from loopwright.training.export import native_files, predict_onnx, to_onnx

Array = NDArray[Any]
ROWS, RNG = 400, np.random.default_rng(1)
X = RNG.normal(size=(ROWS, 4)).astype(np.float32)
X[RNG.random(X.shape) < 0.1] = np.nan
SIGNAL = np.nan_to_num(X[:, 0]) + np.nan_to_num(X[:, 1]) * np.nan_to_num(X[:, 2])


@dataclass
class Model:
    """Features are the inputs; answers by `answer`."""

    answer: Callable[[Array], Array]
    rows: Array
    task: Task = "binary"
    outputs: tuple[str, ...] = ("probability",)
    digest: str = "d" * 64
    schema: Schema = field(init=False)
    golden: Golden = field(init=False)

    def __post_init__(self) -> None:
        names = tuple(f"f{i}" for i in range(self.rows.shape[1]))
        classes = self.outputs if self.task == "multiclass" else ()
        self.schema = Schema(
            inputs=tuple(Field(name, "float64") for name in names), features=names, outputs=self.outputs,
            task=self.task, classes=classes,
        )  # fmt: skip
        kept = {
            name: [None if np.isnan(v) else float(v) for v in self.rows[:12, i]]
            for i, name in enumerate(names)
        }
        self.golden = Golden(kept, [[0.0]] * 12)

    def features(self, inputs: Mapping[str, Array]) -> NDArray[np.float32]:
        return np.column_stack([np.asarray(inputs[name], dtype=np.float32) for name in self.schema.features])

    def predict_features(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(self.answer(features), dtype=np.float64).reshape(len(features), -1)

    def inputs(self, rows: int) -> dict[str, Array]:
        return {name: self.rows[:rows, i].astype(float) for i, name in enumerate(self.schema.features)}


def trained(task: Task, **params: Any) -> tuple[Model, lgb.Booster]:
    y = {"binary": SIGNAL > 0.3, "regression": SIGNAL, "multiclass": np.digitize(SIGNAL, [-0.3, 0.5])}[task]
    objective = params.pop("objective", task)
    wanted = {"objective": objective, "verbose": -1, "num_leaves": 7, "min_data_in_leaf": 5, "seed": 1,
              **({"num_class": 3} if task == "multiclass" else {}), **params}  # fmt: skip
    names = [f"f{i}" for i in range(4)]
    booster = lgb.train(wanted, lgb.Dataset(X, y.astype(float), feature_name=names), 8)
    graph = to_onnx(booster, names, task)
    outputs = {"binary": ("probability",), "regression": ("prediction",), "multiclass": ("a", "b", "c")}[task]
    return Model(lambda rows: predict_onnx(graph, rows), X, task, outputs), booster


def explained(model: Model, booster: lgb.Booster, rows: Array = X) -> Explained:
    return explainer_for(model, native_files(booster)[NATIVE]).explain(rows)


def shapley(value: Callable[[frozenset[int]], float], players: int) -> list[float]:
    """By the definition: the mean gain of joining, over all coalitions (Shapley 1953)."""
    found = []
    for player in range(players):
        others = [other for other in range(players) if other != player]
        total = 0.0
        for size in range(players):
            weight = factorial(size) * factorial(players - size - 1) / factorial(players)
            for coalition in combinations(others, size):
                total += weight * (value(frozenset(coalition) | {player}) - value(frozenset(coalition)))
        found.append(total)
    return found


def tree_value(node: dict[str, Any], row: Array, known: frozenset[int]) -> float:
    """The tree's expectation when only the features `known` are known: unknown splits weigh both sides by rows."""
    if "leaf_value" in node:
        return float(node["leaf_value"])
    left, right = node["left_child"], node["right_child"]
    if node["split_feature"] in known:
        x = row[node["split_feature"]]
        if np.isnan(x) and node["missing_type"] == "NaN":
            goes_left = node["default_left"]
        else:
            goes_left = (0.0 if np.isnan(x) else x) <= node["threshold"]
        return tree_value(left if goes_left else right, row, known)
    sizes = [side.get("internal_count", side.get("leaf_count")) for side in (left, right)]
    sides = [tree_value(side, row, known) for side in (left, right)]
    return float(np.average(sides, weights=sizes))


def test_trees_give_the_shapley_values_of_brute_force() -> None:
    model, booster = trained("binary")
    found = explained(model, booster)
    trees = [tree["tree_structure"] for tree in booster.dump_model()["tree_info"]]
    for row in (0, 17, 101):

        def value(known: frozenset[int], row: int = row) -> float:
            return sum(tree_value(tree, X[row], known) for tree in trees)

        assert found.values[row] == pytest.approx(shapley(value, 4), abs=1e-9)
        assert found.base[row] == pytest.approx(value(frozenset()), abs=1e-9)


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_trees_give_what_the_shap_library_gives(task: Task) -> None:
    model, booster = trained(task)
    found, theirs = explained(model, booster), shap.TreeExplainer(booster)(X)
    assert found.values == pytest.approx(theirs.values, abs=1e-9)
    assert found.base == pytest.approx(np.broadcast_to(theirs.base_values, ROWS), abs=1e-9)


def test_of_several_classes_the_likeliest_is_explained() -> None:
    model, booster = trained("multiclass")
    found, theirs = explained(model, booster), shap.TreeExplainer(booster)(X)
    served = model.predict_features(X)
    assert (found.output == served.argmax(axis=1)).all() and len(set(found.output)) == 3
    assert found.values == pytest.approx(theirs.values[np.arange(ROWS), :, found.output], abs=1e-9)
    assert found.predicted == pytest.approx(served.max(axis=1))


@pytest.mark.parametrize(
    ("task", "objective"), [("binary", "binary"), ("regression", "poisson"), ("regression", "l2")]
)
def test_contributions_add_up_to_the_raw_output(task: Task, objective: str) -> None:
    if objective == "poisson":
        booster = lgb.train(
            {"objective": "poisson", "verbose": -1, "min_data_in_leaf": 5},
            lgb.Dataset(X, np.exp(SIGNAL), feature_name=[f"f{i}" for i in range(4)]), 8,
        )  # fmt: skip
        graph = to_onnx(booster, [f"f{i}" for i in range(4)], task)
        model = Model(lambda rows: predict_onnx(graph, rows), X, task, ("prediction",))
    else:
        model, booster = trained(task, objective=objective)
    found = explained(model, booster)
    assert found.base + found.values.sum(axis=1) == pytest.approx(
        booster.predict(X, raw_score=True), abs=1e-9
    )
    assert found.off <= 1e-9 and found.disagreement <= 1e-5


def test_a_text_that_is_not_the_served_model_is_refused() -> None:
    model, _ = trained("binary")
    _, other = trained("binary", learning_rate=0.5)
    with pytest.raises(Refused, match="does not answer as the served one"):
        explained(model, other)


def test_any_small_model_is_explained_exactly_against_its_golden_rows() -> None:
    def answer(rows: Array) -> Array:
        x = np.nan_to_num(rows)
        return 1 / (1 + np.exp(-(x[:, 0] + x[:, 1] * x[:, 2] - 0.5 * x[:, 3])))

    model = Model(answer, X)
    explainer = explainer_for(model, None)
    found = explainer.explain(X[:5])
    background = X[:12]
    for row in range(5):

        def value(known: frozenset[int], row: int = row) -> float:
            mixed = background.copy()
            mixed[:, list(known)] = X[row, list(known)]
            return float(model.predict_features(mixed).mean())

        assert found.values[row] == pytest.approx(shapley(value, 4), abs=1e-6)
    assert explainer.method == explain.EXACT and explainer.scale == "probability"


def test_a_wide_model_is_explained_over_permutations_that_add_up_and_repeat() -> None:
    wide = np.random.default_rng(2).normal(size=(30, 12)).astype(np.float32)
    weights = np.linspace(-1, 1, 12)
    model = Model(lambda rows: rows @ weights, wide, "regression", ("prediction",))
    before = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    explainer = explainer_for(model, None)
    first, again = explainer.explain(wide[:6]), explainer.explain(wide[:6])
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]
    assert (first.values == again.values).all()
    assert explainer.method == explain.PERMUTATIONS
    # For a linear model the Shapley value is known: weight times distance from the background's mean.
    assert first.values == pytest.approx(weights * (wide[:6] - wide[:12].mean(axis=0)), abs=1e-5)


def test_several_outputs_are_explained_at_the_likeliest_without_trees_too() -> None:
    def answer(rows: Array) -> Array:
        scores = np.exp(np.nan_to_num(rows[:, :3]))
        return np.asarray(scores / scores.sum(axis=1, keepdims=True))

    model = Model(answer, X, "multiclass", ("a", "b", "c"))
    found = explainer_for(model, None).explain(X[:7])
    served = model.predict_features(X[:7])
    assert (found.output == served.argmax(axis=1)).all()
    assert found.base + found.values.sum(axis=1) == pytest.approx(served.max(axis=1))


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shap", None)
    model, booster = trained("binary")
    with pytest.raises(Unavailable, match=r"pip install 'loopwright\[explain\]'"):
        explainer_for(model, None)
    assert len(explained(model, booster)) == ROWS  # trees need no extra


def test_a_feature_is_folded_back_to_the_one_input_it_comes_from() -> None:
    class Mixed(Model):
        def features(self, inputs: Mapping[str, Array]) -> NDArray[np.float32]:
            a, b, c = (np.asarray(inputs[f"f{i}"], dtype=np.float32) for i in range(3))
            return np.column_stack([a, a * a, b + c, np.ones(len(a), dtype=np.float32)])

    model = Mixed(lambda rows: np.nan_to_num(rows).sum(axis=1) / 9, X)
    origin = single_inputs(model)
    assert origin == {"f0": "f0", "f1": "f0", "f2": None, "f3": "f3"}
    (answer,) = explain_rows(model, explainer_for(model, None), model.inputs(1))
    of = {one["input"]: one["contribution"] for one in answer["inputs"]}
    features = {one["feature"]: one["contribution"] for one in answer["features"]}
    assert of["f0"] == pytest.approx(features["f0"] + features["f1"])
    assert of["f2 (of several inputs)"] == pytest.approx(features["f2"])
    assert sum(of.values()) == pytest.approx(answer["raw"] - answer["base"], abs=1e-6)


def test_an_explanation_names_value_contribution_and_direction_largest_first() -> None:
    model, booster = trained("binary")
    (answer,) = explain_rows(model, explainer_for(model, native_files(booster)[NATIVE]), model.inputs(1))
    sizes = [abs(one["contribution"]) for one in answer["features"]]
    assert sizes == sorted(sizes, reverse=True)
    for one in answer["features"]:
        assert one["direction"] == (
            "raises" if one["contribution"] > 0 else "lowers" if one["contribution"] else "none"
        )
    assert 1 / (1 + np.exp(-answer["raw"])) == pytest.approx(answer["prediction"], abs=1e-6)
    picture = ElementTree.fromstring(waterfall_svg(answer))
    assert len(picture.findall(".//{http://www.w3.org/2000/svg}rect")) == 1 + 4


def test_the_evidence_is_json_sorted_by_strength_with_a_sample_from_low_to_high() -> None:
    model, booster = trained("binary")
    explainer = explainer_for(model, native_files(booster)[NATIVE])
    payload = importance(model, explainer, model.inputs(ROWS), rows=300, ids=[f"r{i}" for i in range(ROWS)])
    assert json.loads(json.dumps(payload, allow_nan=False)) == payload
    found = explainer.explain(X[np.unique(np.linspace(0, ROWS - 1, 300).astype(int))])
    strength = dict(zip(model.schema.features, np.abs(found.values).mean(axis=0), strict=True))
    assert {one["name"]: one["mean_abs_shap"] for one in payload["features"]} == pytest.approx(strength)
    assert payload["rows"] == 300 and payload["features"][0]["mean_abs_shap"] == max(strength.values())
    raws = [one["raw"] for one in payload["sample"]]
    assert len(raws) == 20 and raws == sorted(raws)
    for one in payload["sample"]:
        assert one["base"] + sum(one["shap"].values()) == pytest.approx(one["raw"])
        assert model.predict_features(X[[int(one["id"][1:])]])[0, 0] == pytest.approx(one["prediction"])
    picture = ElementTree.fromstring(importance_svg(payload))
    assert "f0" in "".join(picture.itertext())


def test_the_text_of_a_bundle_is_read_only_as_it_was_sealed(tmp_path: Path) -> None:
    key = SigningKey.generate()
    sealed = tiny_bundle(tmp_path / "bundle", key)
    bundle = open_bundle(sealed.path, [key.public])
    assert native_text(sealed.path, bundle.manifest) is None
    with_text = tiny_bundle(tmp_path / "other", key, extra_files={NATIVE: b"tree\n"})
    manifest = open_bundle(with_text.path, [key.public]).manifest
    assert native_text(with_text.path, manifest) == b"tree\n"
    (with_text.path / NATIVE).write_bytes(b"tree!\n")
    with pytest.raises(Tampered, match="was changed"):
        native_text(with_text.path, manifest)
    with pytest.raises(Tampered):
        open_bundle(with_text.path, [key.public])
    (with_text.path / NATIVE).unlink()
    with pytest.raises(Tampered, match="cannot be read"):
        native_text(with_text.path, manifest)
