"""Trees in ONNX: fewer rounds, fewer bytes, and the same answers wherever they are promised."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from loopwright.compression.artefact import Artefact, save
from loopwright.compression.attempts import attempt, report
from loopwright.compression.judging import predict, quality
from loopwright.compression.recipe import Recipe, cook
from loopwright.compression.steps import CannotExport, Work, step
from loopwright.compression.subject import Rows, Samples, Subject
from loopwright.compression.trees.ensemble import Ensemble, nodes_of, read
from loopwright.compression.trees.rounding import codebook
from loopwright.compression.trees.rounds import is_averaged
from loopwright.compression.trees.sharing import folded, settled
from loopwright.compression.trees.writing import (
    operator_listed,
    packed,
    trees_of,
    write,
    write_for_now,
)
from loopwright.kernel.errors import BadInput
from loopwright.training.export import to_onnx

FEATURES = 8
NAMES = [f"feature_{at}" for at in range(FEATURES)]
TASKS = {"binary": "roc_auc", "multiclass": "accuracy", "regression": "rmse"}

Made = Callable[..., Subject]


class Table:
    """Rows like those of flights: hours, distances, counts with ties; a score, and what follows from it."""

    def __init__(self) -> None:
        draw = np.random.default_rng(4)
        n = 4200
        x = draw.normal(size=(n, FEATURES)).astype(np.float32)
        x[:, 3] = draw.integers(0, 24, n)
        x[:, 4] = np.round(draw.gamma(2, 400, n))
        score = (
            x[:, 0] * x[:, 1] + np.sin(x[:, 3] / 3) + x[:, 2] + x[:, 4] / 800 + draw.normal(0, 0.7, n) - 1.3
        )
        self.x, self.truth = x, {
            "binary": (score > 0).astype(np.int64),
            "multiclass": np.digitize(score, [-0.8, 0.8]),
            "regression": score,
        }  # fmt: skip

    def part(self, task: str, first: int, end: int) -> Rows:
        return Rows({"features": self.x[first:end]}, self.truth[task][first:end])

    def samples(self, task: str) -> Samples:
        return Samples(self.part(task, 0, 1600), self.part(task, 1600, 2900), self.part(task, 2900, 4200))


@pytest.fixture(scope="module")
def table() -> Table:
    return Table()


@pytest.fixture(scope="module")
def models(table: Table) -> dict[str, Any]:
    """Fitted on the training rows; "task: kind" by name."""
    import xgboost
    from sklearn.ensemble import (
        HistGradientBoostingClassifier,
        RandomForestClassifier,
        RandomForestRegressor,
    )

    x = table.x[:1600]
    y = {task: truth[:1600] for task, truth in table.truth.items()}
    missing = np.where(np.random.default_rng(0).random(x.shape) < 0.03, np.float32(np.nan), x)

    def boosted(objective: str, rounds: int, rows: Any, truth: Any, **more: Any) -> Any:
        said = {
            "objective": objective,
            "num_leaves": 15,
            "learning_rate": 0.1,
            "verbose": -1,
            "num_threads": 1,
        }
        return lightgbm.train({**said, **more}, lightgbm.Dataset(rows, truth), rounds)

    return {
        "binary: lightgbm": boosted("binary", 120, x, y["binary"]),
        "binary: lightgbm with missing": boosted("binary", 30, missing, y["binary"]),
        "multiclass: lightgbm": boosted("multiclass", 20, x, y["multiclass"], num_class=3),
        "binary: xgboost": xgboost.XGBClassifier(n_estimators=20, n_jobs=1).fit(missing, y["binary"]),
        "multiclass: xgboost": xgboost.XGBClassifier(n_estimators=10, n_jobs=1).fit(x, y["multiclass"]),
        "regression: xgboost": xgboost.XGBRegressor(n_estimators=10, n_jobs=1).fit(x, y["regression"]),
        "binary: forest": RandomForestClassifier(30, max_depth=8, random_state=1).fit(x, y["binary"]),
        "regression: forest": RandomForestRegressor(20, max_depth=6, random_state=1).fit(x, y["regression"]),
        "multiclass: histogram": HistGradientBoostingClassifier(max_iter=8, random_state=1).fit(
            missing, y["multiclass"]
        ),
        "multiclass: forest": RandomForestClassifier(12, max_depth=6, random_state=1).fit(x, y["multiclass"]),
    }


@pytest.fixture(scope="module")
def subject_of(table: Table, models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Made:
    known: dict[str, Subject] = {}

    def made(name: str) -> Subject:
        if name not in known:
            task = name.partition(":")[0]
            path = tmp_path_factory.mktemp("trees") / "model.onnx"
            path.write_bytes(to_onnx(models[name], NAMES, task))
            known[name] = Subject.of(name, path, table.samples(task), TASKS[task])
        return known[name]

    return made


class Kept:
    """Notes that can be read."""

    def __init__(self) -> None:
        self.said: dict[str, Any] = {}

    def params(self, values: Any) -> None:
        self.said.update(values)

    def metrics(self, values: Any, step: int = 0) -> None:
        self.said.update(values)


def encoded(subject: Subject, folder: Path, name: str, **said: Any) -> tuple[Artefact, dict[str, Any]]:
    """The step's artefact and what it noted."""
    notes = Kept()
    made = step(name, said).encode(subject.graph, folder / "model.onnx", Work(subject, folder, folder, notes))  # type: ignore[union-attr]
    return made, notes.said


def on_edges(table: Table, subject: Subject) -> np.ndarray[Any, Any]:
    """Fresh rows, rows with values missing, and rows whose values are thresholds of the model."""
    x = table.x[2900:3500].copy()
    x[::3][np.random.default_rng(2).random(x[::3].shape) < 0.2] = np.nan
    ensemble = trees_of(subject.graph.load())[0]
    for at, (feature, threshold) in enumerate(
        zip(ensemble.feature[:200], ensemble.threshold[:200], strict=True)
    ):
        x[300 + at, feature] = threshold
    return x


@pytest.mark.parametrize(
    ("name", "smaller", "form"),
    [
        ("binary: lightgbm", 3.8, "flat"),
        ("binary: lightgbm with missing", 3.6, "flat"),
        ("multiclass: lightgbm", 3.8, "flat"),
        ("binary: xgboost", 3.0, "flat"),
        ("multiclass: xgboost", 3.0, "flat"),
        ("regression: xgboost", 3.0, "flat"),
        ("binary: forest", 4.0, "flat"),
        ("regression: forest", 3.8, "flat"),
        ("multiclass: histogram", 3.5, "flat"),
        ("multiclass: forest", 1.5, "listed"),
    ],
)
def test_what_is_never_read_is_left_out_and_no_answer_changes(
    subject_of: Made, table: Table, tmp_path: Path, name: str, smaller: float, form: str
) -> None:
    subject = subject_of(name)
    made, notes = encoded(subject, tmp_path, "tree-rounding", leaves=0)
    rows = {"features": on_edges(table, subject)}
    np.testing.assert_allclose(predict(made, rows), predict(subject.graph, rows), rtol=1e-6, atol=2e-6)
    assert subject.graph.size / made.size > smaller
    assert notes["form"] == form
    assert made.path.stat().st_size == made.size


def test_a_compact_model_is_read_and_written_again_as_it_is(subject_of: Made, tmp_path: Path) -> None:
    for name in ("binary: xgboost", "multiclass: forest"):
        first, _ = encoded(subject_of(name), tmp_path, "tree-rounding", leaves=0)
        before = first.path.read_bytes()
        model = first.load()
        again = write(model, trees_of(model), tmp_path / "again.onnx", subject_of(name).samples.test.feeds)
        assert again.artefact.path.read_bytes() == before


@pytest.mark.parametrize(("name", "rounds"), [("binary: lightgbm", 37), ("multiclass: lightgbm", 7)])
def test_the_first_rounds_answer_as_lightgbm_does_with_as_many(
    subject_of: Made, models: dict[str, Any], table: Table, tmp_path: Path, name: str, rounds: int
) -> None:
    made, notes = encoded(subject_of(name), tmp_path, "tree-rounds", keep=rounds)
    x = table.x[2900:]
    wanted = models[name].predict(x, num_iteration=rounds)
    np.testing.assert_allclose(predict(made, {"features": x}), wanted.reshape(len(x), -1), atol=2e-6)
    assert notes["rounds"] == rounds
    assert not notes["averaged"]


def test_a_share_of_the_rounds_is_kept(subject_of: Made, tmp_path: Path) -> None:
    made, notes = encoded(subject_of("multiclass: xgboost"), tmp_path, "tree-rounds", keep=0.5)
    assert (notes["rounds"], notes["rounds_before"]) == (5, 10)
    assert trees_of(made.load())[0].trees == 15 + 3  # and one of one leaf for each class's base


def test_what_is_left_of_a_forest_is_still_a_mean(
    subject_of: Made, models: dict[str, Any], table: Table, tmp_path: Path
) -> None:
    x = table.x[2900:]
    for name in ("regression: forest", "binary: forest", "multiclass: forest"):
        made, notes = encoded(subject_of(name), tmp_path, "tree-rounds", keep=4)
        few = models[name].estimators_[:4]
        each = [one.predict_proba(x) if "regression" not in name else one.predict(x)[:, None] for one in few]
        wanted = np.mean(each, axis=0)
        wanted = wanted[:, 1:] if name.startswith("binary") else wanted
        assert notes["averaged"]
        np.testing.assert_allclose(predict(made, {"features": x}), wanted, atol=1e-5)


def test_boosted_trees_are_told_from_a_forest(subject_of: Made, table: Table) -> None:
    for name in ("binary: xgboost", "regression: xgboost", "multiclass: lightgbm", "regression: forest"):
        found = is_averaged(trees_of(subject_of(name).graph.load())[0], table.x[:300])
        assert found == name.endswith("forest")


def test_refitted_leaves_come_nearer_to_all_rounds_on_fresh_rows(subject_of: Made, tmp_path: Path) -> None:
    for name in ("binary: lightgbm", "multiclass: lightgbm", "regression: forest", "multiclass: forest"):
        subject = subject_of(name)
        rows = subject.samples.test.feeds
        wanted, distance = predict(subject.graph, rows), {}
        for refit in (False, True):
            made, _ = encoded(subject, tmp_path, "tree-rounds", keep=0.25, refit=refit)
            distance[refit] = float(np.mean((predict(made, rows) - wanted) ** 2))
        assert distance[True] < 0.95 * distance[False], name


def averaging(subject: Subject, path: Path, base: float = 0.0) -> Subject:
    """The same forest as one that averages: every leaf as large as the number of trees makes it."""
    model = subject.graph.load()
    node, *_ = nodes_of(model)
    one = read(node)
    made = operator_listed(replace(one, weight=one.weight * one.trees), node)
    for item in [item for item in made.attribute if item.name in ("aggregate_function", "base_values")]:
        made.attribute.remove(item)
    made.attribute.extend([
        helper.make_attribute("aggregate_function", "AVERAGE"), helper.make_attribute("base_values", [base]),
    ])  # fmt: skip
    node.CopyFrom(made)
    return replace(subject, graph=save(model, path))


def test_trees_that_are_averaged_by_the_operator_are_refitted_to_their_average(
    subject_of: Made, tmp_path: Path
) -> None:
    subject = averaging(subject_of("regression: forest"), tmp_path / "average.onnx")
    rows = subject.samples.test.feeds
    wanted, distance = predict(subject.graph, rows), {}
    np.testing.assert_allclose(wanted, predict(subject_of("regression: forest").graph, rows), rtol=1e-4)
    for refit in (False, True):
        made, _ = encoded(subject, tmp_path, "tree-rounds", keep=0.25, refit=refit)
        distance[refit] = float(np.mean((predict(made, rows) - wanted) ** 2))
    assert distance[True] < 0.95 * distance[False]


def test_a_base_is_added_to_an_average_and_not_averaged(subject_of: Made, tmp_path: Path) -> None:
    subject = averaging(subject_of("regression: forest"), tmp_path / "average.onnx", base=5.0)
    model, rows = subject.graph.load(), subject.samples.test.feeds
    made = write_for_now(model, trees_of(model), tmp_path / "now.onnx")
    np.testing.assert_allclose(predict(made, rows), predict(subject.graph, rows), rtol=1e-4)


def test_leaves_that_rounding_shared_are_refitted_one_by_one(subject_of: Made, tmp_path: Path) -> None:
    subject = subject_of("binary: lightgbm")
    rounded, _ = encoded(subject, tmp_path, "tree-rounding", leaves=8)
    after = replace(subject, graph=rounded)
    made, _ = encoded(after, tmp_path / "after", "tree-rounds", keep=30, refit=True)
    assert trees_of(made.load())[0].leaves > 300 > trees_of(rounded.load())[0].leaves


@pytest.mark.parametrize("on", ["validation", "train"])
def test_as_few_rounds_stay_as_the_loss_allows_on_rows_nobody_saw(
    subject_of: Made, tmp_path: Path, on: str
) -> None:
    subject = subject_of("binary: lightgbm")
    made, notes = encoded(subject, tmp_path, "tree-rounds", within=0.01, on=on)
    judged = quality(subject, made, subject.samples.test)
    assert notes["rounds"] < notes["rounds_before"] == 120
    assert judged.loss <= 0.01
    if on == "train":
        return
    less, _ = encoded(subject, tmp_path / "less", "tree-rounds", keep=int(notes["rounds"] * 0.6))
    assert quality(subject, less, subject.samples.validation).loss_high > 0.01


def test_leaves_of_few_values_make_the_file_smaller_and_lose_almost_nothing(
    subject_of: Made, tmp_path: Path
) -> None:
    subject = subject_of("binary: lightgbm")
    sizes = [encoded(subject, tmp_path, "tree-rounding", leaves=bits)[0].size for bits in (0, 8, 4)]
    assert sizes[0] / sizes[1] > 1.3
    assert sizes[1] > sizes[2]
    made, notes = encoded(subject, tmp_path, "tree-rounding", leaves=6)
    assert notes["leaf_values_after"] <= 64 < notes["leaf_values_before"]
    assert quality(subject, made, subject.samples.test).loss_high < 0.005
    assert subject.graph.size / made.size > 5.5


def test_a_codebook_errs_least_where_rows_are(subject_of: Made) -> None:
    draw = np.random.default_rng(1)
    values = draw.normal(size=3000).astype(np.float32)
    counts = draw.integers(0, 40, 3000)
    found = codebook(values, counts, 16)
    assert len(np.unique(found)) <= 16
    grid = np.round((values - values.min()) / np.ptp(values) * 15) / 15 * np.ptp(values) + values.min()
    assert (counts * (found - values) ** 2).sum() < 0.7 * (counts * (grid - values) ** 2).sum()
    np.testing.assert_array_equal(codebook(values[:10], counts[:10], 16), values[:10])


@pytest.mark.parametrize("thresholds", ["float16", "quantiles"])
def test_exact_thresholds_move_no_training_row(
    subject_of: Made, table: Table, tmp_path: Path, thresholds: str
) -> None:
    for name in ("binary: lightgbm", "regression: xgboost"):
        subject = subject_of(name)
        made, _ = encoded(subject, tmp_path, "tree-rounding", leaves=0, thresholds=thresholds, quantiles=4000)
        rows = subject.samples.train.feeds
        np.testing.assert_allclose(predict(made, rows), predict(subject.graph, rows), rtol=1e-6, atol=2e-6)
        before, after = (trees_of(one.load())[0] for one in (subject.graph, made))
        assert set(after.threshold.tolist()) != set(before.threshold.tolist())
        loose, noted = encoded(
            subject, tmp_path, "tree-rounding", leaves=0, thresholds=thresholds, quantiles=12, exact=False
        )
        said = trees_of(loose.load())[0].threshold
        if thresholds == "float16":
            np.testing.assert_array_equal(said, said.astype(np.float16).astype(np.float32))
        else:
            assert noted["thresholds_after"] < noted["thresholds_before"] / 3
            assert noted["branches_after"] < noted["branches_before"]


def test_branches_that_no_row_reaches_are_cut_off_when_asked_for(subject_of: Made, tmp_path: Path) -> None:
    subject = subject_of("binary: forest")
    few = replace(subject, samples=replace(subject.samples, train=subject.samples.train.take(np.arange(200))))
    whole, _ = encoded(few, tmp_path, "tree-rounding", leaves=0)
    made, notes = encoded(few, tmp_path, "tree-rounding", leaves=0, unreached=True)
    assert notes["branches_after"] < 0.7 * notes["branches_before"]
    assert made.size < whole.size
    rows = few.samples.train.feeds
    np.testing.assert_allclose(predict(made, rows), predict(subject.graph, rows), atol=2e-6)


def test_rounds_and_rounding_together_are_a_measured_candidate(subject_of: Made, tmp_path: Path) -> None:
    subject = subject_of("binary: lightgbm")
    recipe = Recipe.from_json(
        "fewer rounds + rounding", [{"step": "tree-rounds", "within": 0.01}, {"step": "tree-rounding"}]
    )
    found = report(attempt(recipe, subject, tmp_path), subject, tmp_path)
    assert found.measured, found.why
    assert found.size == (tmp_path / found.file).stat().st_size
    assert found.ratio > 6
    assert found.latency is not None and found.latency.p50 > 0
    assert found.test is not None and found.test.loss < 0.02
    assert found.counts["tree-rounds/rounds"] < found.counts["tree-rounds/rounds_before"]
    assert found.floor == 0


def test_trees_behind_other_operators_see_what_those_give(
    subject_of: Made, table: Table, tmp_path: Path
) -> None:
    subject = subject_of("binary: lightgbm")
    model = subject.graph.load()
    model.graph.node[0].input[0] = "doubled"
    model.graph.initializer.append(helper.make_tensor("two", TensorProto.FLOAT, [], [2.0]))
    model.graph.node.insert(0, helper.make_node("Mul", ["features", "two"], ["doubled"]))
    scaled = replace(subject, graph=save(model, tmp_path / "scaled.onnx"))
    made, _ = encoded(scaled, tmp_path, "tree-rounding", leaves=0, thresholds="quantiles", quantiles=500)
    rows = subject.samples.train.feeds
    np.testing.assert_allclose(predict(made, rows), predict(scaled.graph, rows), rtol=1e-6, atol=2e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "scaled.onnx"]


def test_a_label_that_is_asked_for_stays(subject_of: Made, table: Table, tmp_path: Path) -> None:
    subject = subject_of("binary: xgboost")
    model = subject.graph.load()
    model.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, [None]))
    labelled = replace(subject, graph=save(model, tmp_path / "labelled.onnx"))
    made, notes = encoded(labelled, tmp_path, "tree-rounding", leaves=0)
    assert notes["form"] == "listed"
    assert made.outputs == ("outputs", "label")
    assert made.size < labelled.graph.size


@st.composite
def ensembles(draw: st.DrawFn) -> Ensemble:
    """Trees of any shape, with every kind of split, thresholds that meet again on the way down, equal leaves."""
    feature, threshold, mode, missing, true, false = ([] for _ in range(6))
    weights: list[float] = []
    whole = st.integers(-2, 2).map(float)

    def grown(depth: int) -> int:
        if depth == 0 or draw(st.integers(0, 3)) == 0:
            weights.append(draw(whole))
            return ~(len(weights) - 1)
        at = len(feature)
        for column in (true, false):
            column.append(0)
        feature.append(draw(st.integers(0, 1)))
        threshold.append(draw(whole))
        mode.append(draw(st.integers(0, 5)))
        missing.append(draw(st.integers(0, 1)))
        true[at] = grown(depth - 1)
        false[at] = grown(depth - 1)
        return at

    roots = [grown(4) for _ in range(draw(st.integers(1, 3)))]
    leaf = np.arange(len(weights))
    return Ensemble(
        np.array(feature, np.int64), np.array(threshold, np.float32), np.array(mode, np.uint8),
        np.array(true, np.int64), np.array(false, np.int64), np.array(missing, np.uint8),
        np.array(roots, np.int64), leaf, np.zeros(len(leaf), np.int64), np.array(weights, np.float32),
        len(leaf), 1, np.array(draw(st.sampled_from([[], [0.5]])), np.float32), "SUM", "NONE",
    )  # fmt: skip


GRID = np.array([-3, -2, -1.5, -1, 0, 0.5, 1, 2, 3, np.nan], np.float32)
EVERYWHERE = np.stack(np.meshgrid(GRID, GRID), axis=-1).reshape(-1, 2)


@settings(max_examples=40, deadline=None)
@given(ensembles())
def test_no_form_of_a_tree_answers_otherwise(ensemble: Ensemble) -> None:
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1,
        base_values=ensemble.base.tolist() or None,
    )  # fmt: skip
    listed = operator_listed(ensemble, node)
    wanted = ensemble.sums(ensemble.walk(EVERYWHERE))
    for changed in (read(listed), folded(ensemble), settled(ensemble), folded(settled(folded(ensemble)))):
        np.testing.assert_array_equal(changed.sums(changed.walk(EVERYWHERE)), wanted)
    assert folded(ensemble).leaves <= ensemble.leaves


@settings(max_examples=15, deadline=None)
@given(ensembles())
def test_onnx_runtime_answers_as_the_arrays_do(
    tmp_path_factory: pytest.TempPathFactory, ensemble: Ensemble
) -> None:
    folder = tmp_path_factory.mktemp("any")
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1,
        base_values=ensemble.base.tolist() or None,
    )  # fmt: skip
    wanted = ensemble.sums(ensemble.walk(EVERYWHERE)) + (ensemble.base if len(ensemble.base) else 0)
    model = model_of(operator_listed(ensemble, node))
    plain = save(model, folder / "plain.onnx")
    small = write(model, [ensemble], folder / "small.onnx", {"x": EVERYWHERE}).artefact
    for artefact in (plain, small):
        np.testing.assert_allclose(predict(artefact, {"x": EVERYWHERE}), wanted, atol=1e-6)


def model_of(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "trees",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_packed_numbers_are_the_same_model(subject_of: Made) -> None:
    model = subject_of("binary: lightgbm").graph.load()
    data = packed(model)
    assert len(data) < 0.8 * model.ByteSize()
    assert onnx.load_from_string(data) == model


@pytest.mark.parametrize(
    ("name", "said", "words"),
    [
        ("tree-rounds", {"keep": 0}, "number of rounds"),
        ("tree-rounds", {"keep": 1.5}, "number of rounds"),
        ("tree-rounds", {"keep": True}, "number of rounds"),
        ("tree-rounds", {"within": -0.1}, "share"),
        ("tree-rounds", {"on": "test"}, "validation or train"),
        ("tree-rounding", {"leaves": 20}, "number of bits"),
        ("tree-rounding", {"thresholds": "int8"}, "float16"),
        ("tree-rounding", {"quantiles": 1}, "quantiles"),
        ("tree-rounding", {"rows": 3}, "too few rows"),
    ],
)
def test_settings_that_make_no_sense_are_told(name: str, said: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        step(name, said)


def test_more_rounds_than_there_are_cannot_be_kept(subject_of: Made, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"fewer rounds.*got 121.*1 to 120"):
        encoded(subject_of("binary: lightgbm"), tmp_path, "tree-rounds", keep=121)


def test_a_model_without_trees_is_a_recorded_result(subject_of: Made, tmp_path: Path) -> None:
    subject = subject_of("binary: lightgbm")
    relu = model_of(helper.make_node("Relu", ["x"], ["y"]))
    path = save(relu, tmp_path / "relu.onnx")
    with pytest.raises(CannotExport, match=r"no trees.*Relu"):
        step("tree-rounding", {}).encode(path, tmp_path / "out.onnx", Work(subject, tmp_path, tmp_path))  # type: ignore[union-attr]


def test_broken_trees_are_refused_by_what_is_wrong(table: Table) -> None:
    root = {
        "nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0, 0, 0],
        "nodes_values": [0.0, 0.0, 0.0], "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0],
        "target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 0], "target_weights": [1.0, 2.0],
    }  # fmt: skip

    def of(**changed: Any) -> onnx.NodeProto:
        said = {**root, **changed}
        return helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", **said)

    assert read(of()).sums(read(of()).walk(np.array([[0.0], [1.0]], np.float32))).ravel().tolist() == [1, 2]
    with pytest.raises(CannotExport, match="not there"):
        read(of(nodes_falsenodeids=[9, 0, 0]))
    with pytest.raises(CannotExport, match="one root"):
        read(of(nodes_truenodeids=[2, 0, 0]))
    with pytest.raises(CannotExport, match="two parents"):
        read(of(nodes_treeids=[0] * 4, nodes_nodeids=[0, 1, 2, 3], nodes_featureids=[0] * 4, nodes_values=[0.0] * 4,
                nodes_modes=["BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 3, 0, 0],
                nodes_falsenodeids=[2, 2, 0, 0], target_nodeids=[2, 3]))  # fmt: skip
    with pytest.raises(CannotExport, match=r"unknown kind.*BRANCH_X"):
        read(of(nodes_modes=["BRANCH_X", "LEAF", "LEAF"]))


def test_a_killed_search_leaves_nothing_of_its_trials(subject_of: Made, tmp_path: Path) -> None:
    subject = subject_of("multiclass: lightgbm")
    work = Work(subject, tmp_path, tmp_path, until=0.0)
    with pytest.raises(Exception, match="budget"):
        step("tree-rounds", {}).encode(subject.graph, tmp_path / "model.onnx", work)  # type: ignore[union-attr]
    assert list(tmp_path.iterdir()) == []
    recipe = Recipe.from_json("again", [{"step": "tree-rounds"}])
    assert cook(recipe, Work(subject, tmp_path, tmp_path)).graph.size < subject.graph.size
