"""What a smaller model is worth: its answers, its quality beside the parent's, and its time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from scipy import stats
from scipy.spatial.distance import cosine
from sklearn.metrics import accuracy_score
from sklearn.neighbors import NearestNeighbors

from loopwright.compression import judging, latency
from loopwright.compression.artefact import Artefact, save
from loopwright.compression.judging import Parent, agreement, alike, alone, depends_on_batch, predict, quality
from loopwright.compression.latency import compare, measure, shaped
from loopwright.compression.session import open_session
from loopwright.compression.subject import Production, Rows, Samples, Subject
from loopwright.kernel.errors import BadInput
from loopwright.stats.metrics import METRICS
from tests.unit.compression.example_graphs import (
    attention,
    constant,
    linear,
    linear_samples,
    linear_subject,
    model_of,
)

WEIGHTS, SAMPLES = linear_samples()
X = SAMPLES.validation.feeds


def softmax(scores: Any) -> Any:
    raised = np.exp(scores - scores.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return linear_subject(tmp_path)


def blurred(folder: Path, size: float, name: str = "blurred.onnx") -> Artefact:
    noise = np.random.default_rng(11).normal(size=WEIGHTS.shape) * size
    return save(linear((WEIGHTS + noise).astype(np.float32)), folder / name)


def test_answers_are_those_of_the_graph_in_whatever_batches(tmp_path: Path, subject: Subject) -> None:
    wanted = softmax(X["x"] @ WEIGHTS)
    for batch in (1, 7, 256, 1000):
        assert predict(subject.graph, X, batch=batch) == pytest.approx(wanted, abs=1e-6)
    # 300 rows are no multiple of 64: the last call is filled up, and only the rows that were asked are answered.
    fixed = save(linear(WEIGHTS, rows=64), tmp_path / "fixed.onnx")
    assert predict(fixed, X) == pytest.approx(wanted, abs=1e-6)
    one = {"x": X["x"][:1]}
    assert predict(fixed, one) == pytest.approx(wanted[:1], abs=1e-6)


def test_the_first_output_of_numbers_answers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        helper.make_node("Identity", ["scores"], ["y"]),
    ]
    model = model_of(nodes, {"w": WEIGHTS})
    label = helper.make_tensor_value_info("label", TensorProto.INT64, ["rows"])
    model.graph.output.insert(0, label)
    assert predict(save(model, tmp_path / "m.onnx"), X) == pytest.approx(X["x"] @ WEIGHTS, abs=1e-4)
    del model.graph.output[1]
    with pytest.raises(BadInput, match=r"no output of numbers; got label: tensor\(int64\)"):
        predict(save(model, tmp_path / "label.onnx"), X)


def test_graphs_that_cannot_answer_say_why(tmp_path: Path) -> None:
    huge = {"x": np.full((30, 20), 3e38, np.float32)}
    with pytest.raises(BadInput, match="answers that are no numbers; got 120 of 120 NaN"):
        predict(save(linear(WEIGHTS), tmp_path / "m.onnx"), huge)
    unknown = model_of(
        [helper.make_node("Nothing", ["x"], ["y"], domain="com.microsoft")], {}, domains=["com.microsoft"]
    )
    with pytest.raises(BadInput, match="ONNX Runtime cannot load"):
        predict(save(unknown, tmp_path / "unknown.onnx"), X)
    wrong = model_of(
        [constant("y", np.ones((5, 4), np.float32)), helper.make_node("Identity", ["x"], ["z"])], {}
    )
    with pytest.raises(BadInput, match=r"not one answer per row; got \(5, 4\), wanted \(256, …\)"):
        predict(save(wrong, tmp_path / "wrong.onnx"), X)
    # 20 numbers cannot be 21: known only when it is asked.
    shape = [constant("s", np.array([-1, 21])), helper.make_node("Reshape", ["x", "s"], ["y"])]
    with pytest.raises(BadInput, match=r"cannot answer .*Reshape.*; got x float32\(256, 20\)"):
        predict(save(model_of(shape, {}), tmp_path / "shape.onnx"), X)


def test_quality_is_the_metric_beside_the_parents_with_bounds_of_the_same_rows(
    tmp_path: Path, subject: Subject
) -> None:
    worse = blurred(tmp_path, 0.15)
    found = quality(subject, worse, SAMPLES.validation)
    y, old, new = SAMPLES.validation.y, predict(subject.graph, X).argmax(1), predict(worse, X).argmax(1)
    assert found.value == pytest.approx(accuracy_score(y, new)) and found.parent == pytest.approx(
        accuracy_score(y, old)
    )
    assert found.loss == pytest.approx((found.parent - found.value) / found.parent) and found.loss > 0
    # Oracle: scipy's paired percentile bootstrap of the lost share; 90 % both ways is 95 % each way.
    known = stats.bootstrap(
        ((old == y).astype(float), (new == y).astype(float)), lambda a, b, axis: (a - b).mean(axis) / found.parent,
        paired=True, vectorized=True, n_resamples=4000, confidence_level=0.9, method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert (found.loss_low, found.loss_high) == pytest.approx((known.low, known.high), abs=0.006)
    assert found.loss_low < found.loss < found.loss_high and (found.rows, found.confidence) == (300, 0.95)
    # Of a metric where less is better, a loss is what was added.
    error = replace(subject, metric=METRICS["log_loss"])
    raised = quality(error, worse, SAMPLES.validation)
    assert raised.loss == pytest.approx((raised.value - raised.parent) / raised.parent) and raised.loss > 0
    same = quality(subject, subject.graph, SAMPLES.validation)
    assert same.loss == same.loss_low == same.loss_high == 0
    # No difference on 300 rows leaves up to 1 % of them in doubt: the exact bound of no event in 300.
    assert same.unseen == pytest.approx(stats.binomtest(0, 300, alternative="less").proportion_ci(0.95).high)


def test_training_rows_are_no_rows_to_compare_on(tmp_path: Path, subject: Subject) -> None:
    with pytest.raises(BadInput, match="100% of the rows are training rows"):
        quality(subject, subject.graph, SAMPLES.train)
    mixed = Rows({"x": np.concatenate([X["x"][:80], SAMPLES.train.feeds["x"][:20]])}, np.zeros(100))
    with pytest.raises(BadInput, match="20% of the rows"):
        quality(subject, subject.graph, mixed)
    assert quality(subject, subject.graph, SAMPLES.validation.take(np.arange(80))).rows == 80


def test_quality_that_cannot_be_told_is_refused(tmp_path: Path, subject: Subject) -> None:
    narrow = save(linear(WEIGHTS[:, :3]), tmp_path / "narrow.onnx")
    with pytest.raises(BadInput, match=r"another shape than the parent's; got \(300, 3\), wanted \(300, 4\)"):
        quality(subject, narrow, SAMPLES.validation)
    lonely = Rows(X, np.zeros(300, np.int64))
    with pytest.raises(BadInput, match="`roc_auc` is undefined on these rows"):
        quality(replace(subject, metric=METRICS["roc_auc"]), subject.graph, lonely)
    never = Rows(X, np.full(300, 9))
    with pytest.raises(BadInput, match="parent whose accuracy is 0"):
        quality(subject, subject.graph, never)


def test_agreement_against_scipy_and_scikit_learn() -> None:
    random = np.random.default_rng(4)
    old = random.normal(size=(200, 24))
    new = old + 0.4 * random.normal(size=old.shape)
    found = agreement(old, new, classes=True)
    assert found.cosine == pytest.approx(np.mean([1 - cosine(a, b) for a, b in zip(old, new, strict=True)]))
    assert found.argmax == pytest.approx(np.mean(old.argmax(1) == new.argmax(1)))
    assert found.largest == np.abs(old - new).max()
    near = [
        NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute")
        .fit(one)
        .kneighbors(return_distance=False)
        for one in (old, new)
    ]
    wanted = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*near, strict=True)])
    assert found.recall == pytest.approx(wanted) and 0.2 < wanted < 0.9
    assert agreement(old, old, classes=True).recall == 1.0


def test_agreement_says_nothing_where_there_is_nothing_to_say() -> None:
    one = agreement(np.array([[0.4], [0.6], [0.5]]), np.array([[0.6], [0.7], [0.4]]), classes=True)
    assert (one.argmax, one.cosine, one.recall) == (pytest.approx(1 / 3), None, None)
    assert agreement(np.eye(3), np.eye(3), classes=False).argmax is None
    zeros = agreement(np.zeros((20, 16)), np.ones((20, 16)), classes=False)
    assert zeros.cosine == 0 and zeros.largest == 1
    with pytest.raises(BadInput, match="different shapes"):
        agreement(np.zeros((3, 2)), np.zeros((3, 1)), classes=False)


def test_neighbours_of_many_rows_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    whole = judging._neighbours
    monkeypatch.setattr(judging, "_neighbours", lambda unit: asked.append(len(unit)) or whole(unit))
    monkeypatch.setattr(judging, "MOST_ROWS", 100)
    old = np.random.default_rng(4).normal(size=(5000, 16))
    new = old + 0.1 * np.random.default_rng(5).normal(size=old.shape)
    first, again = (agreement(old, new, classes=False, seed=3) for _ in range(2))
    assert asked == [100] * 4 and first == again and first.recall is not None and 0.5 < first.recall < 1
    assert agreement(old, new, classes=False, seed=4).recall != first.recall


def test_classes_are_those_that_the_subject_judges_by(tmp_path: Path) -> None:
    """Logits of one number are no probabilities until `answer` has made them so."""
    subject = replace(
        linear_subject(tmp_path), answer=lambda scores: 1 / (1 + np.exp(-scores)), metric=METRICS["log_loss"]
    )
    old, new = np.array([[-1.0], [0.2], [2.0]]), np.array([[-2.0], [0.3], [-0.1]])
    assert alike(subject, old, new).argmax == pytest.approx(2 / 3)
    assert alike(replace(subject, metric=METRICS["rmse"]), old, new).argmax is None


def test_an_answer_that_depends_on_its_batch_is_noticed(tmp_path: Path, subject: Subject) -> None:
    quantize_dynamic(
        subject.graph.path, tmp_path / "int8.onnx", weight_type=QuantType.QInt8, per_channel=True
    )
    dynamic = Artefact.open(tmp_path / "int8.onnx")
    answers = predict(dynamic, X)
    one, other = (alone(graph, X) for graph in (subject.graph, dynamic))
    assert one < 1e-5 and not depends_on_batch(one, answers)
    # The activations' range is that of the whole batch: a large row makes the steps of all others coarser.
    assert other > 1e-3 and depends_on_batch(other, answers)
    assert alone(subject.graph, X, rows=3, seed=1) <= 1e-5


def test_rows_that_fill_a_fixed_batch_are_alone_when_repeated(tmp_path: Path) -> None:
    fixed = save(linear(WEIGHTS, rows=8), tmp_path / "fixed.onnx")
    assert alone(fixed, X) < 1e-5
    # Centred over its batch, a row alone is nothing at all.
    nodes = [
        constant("axes", np.array([0])),
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"]),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    centred = save(model_of(nodes, {}, {"x": (8, 20)}, (8, 20)), tmp_path / "centred.onnx")
    few = {"x": X["x"][:8]}
    assert alone(centred, few) == pytest.approx(np.abs(few["x"] - few["x"].mean(0)).max(), abs=1e-5)


def test_a_parent_answers_once(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(judging, "predict", lambda *a, **k: asked.append(1) or predict(*a, **k))
    parent = Parent.of(subject)
    assert parent.answers("validation") is parent.answers("validation") and len(asked) == 1
    assert np.array_equal(parent.answers("test"), predict(subject.graph, SAMPLES.test.feeds))


def test_the_parents_digest_is_of_graph_rows_and_how_it_is_asked(tmp_path: Path, subject: Subject) -> None:
    one = Parent.of(subject).digest
    assert Parent.of(linear_subject(tmp_path / "again")).digest == one
    fewer = Samples(SAMPLES.train, SAMPLES.validation.take(np.arange(299)), SAMPLES.test)
    others = [
        replace(subject, graph=blurred(tmp_path, 0.1)),
        replace(subject, samples=fewer),
        replace(subject, metric=METRICS["log_loss"]),
        replace(subject, production=Production(batch=2)),
        replace(subject, batch_free=True),
    ]
    assert len({one, *(Parent.of(other).digest for other in others)}) == 6


def heavy(folder: Path) -> Artefact:
    """As `linear`, after 60 products with a matrix of 20 × 4000 and back."""
    random = np.random.default_rng(2)
    weights = {
        "up": random.normal(size=(20, 4000)),
        "down": random.normal(size=(4000, 20)) / 4000,
        "w": WEIGHTS,
    }
    nodes, at = [], "x"
    for turn in range(60):
        nodes += [
            helper.make_node("MatMul", [at, "up"], [f"u{turn}"]),
            helper.make_node("MatMul", [f"u{turn}", "down"], [f"d{turn}"]),
        ]
        at = f"d{turn}"
    nodes.append(helper.make_node("MatMul", [at, "w"], ["y"]))
    weights = {name: values.astype(np.float32) for name, values in weights.items()}
    return save(model_of(nodes, weights), folder / "heavy.onnx")


def test_less_work_takes_less_time_and_the_calls_are_told(tmp_path: Path, subject: Subject) -> None:
    found = compare(heavy(tmp_path), subject.graph, X, rounds=3, calls=10)
    assert found.ratio > 5 and found.ratio_low <= found.ratio <= found.ratio_high
    assert (
        found.original_p50 > found.p50 > 0
        and found.p99 >= found.p50
        and found.original_p99 >= found.original_p50
    )
    assert (found.calls, found.rounds, found.batch, found.threads) == (30, 3, 1, 1)


class Clocked:
    """In place of ONNX Runtime: whose turn it was, and milliseconds that are known beforehand."""

    turns: list[str]

    def __init__(self, artefact: Artefact, questions: list[Any], threads: int) -> None:
        self.name, self.asked = artefact.path.name, 0

    def warm(self) -> float:
        return 0.01 if self.name == "slow.onnx" else 0.001

    def time(self, calls: int) -> Any:
        Clocked.turns.append(self.name)
        self.asked += 1
        base = 10.0 if self.name == "slow.onnx" else 1.0
        times = np.full(calls, base * self.asked)
        times[-1] *= 3
        return times


def test_graphs_take_turns_and_figures_are_medians_of_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_Timer", Clocked)
    monkeypatch.setattr(Clocked, "turns", [], raising=False)
    monkeypatch.setattr(latency, "_taken_away", lambda: 0)
    slow, fast = (save(linear(WEIGHTS), tmp_path / f"{name}.onnx") for name in ("slow", "fast"))
    timed = measure([slow, fast], X, rounds=3, calls=100)
    assert Clocked.turns == ["slow.onnx", "fast.onnx", "fast.onnx", "slow.onnx", "slow.onnx", "fast.onnx"]
    assert timed[0].p50s == (10.0, 20.0, 30.0) and timed[0].p50 == 20.0 and timed[0].p99 == 60.0
    assert timed[0].calls == 300 and timed[0].spread == pytest.approx(1.0)
    assert compare(slow, fast, X, rounds=3, calls=100).ratio == 10.0
    # 11 ms for both, three rounds, one second: 30 calls each time.
    assert measure([slow, fast], X, rounds=3, calls=100, seconds=1.0)[1].calls == 90
    assert measure([slow, fast], X, rounds=3, calls=100, seconds=0.001)[1].calls == 30
    with pytest.raises(BadInput, match="nothing to measure"):
        measure([], X)


def test_rounds_in_which_others_took_the_processor_are_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_Timer", Clocked)
    monkeypatch.setattr(Clocked, "turns", [], raising=False)
    graph = save(linear(WEIGHTS), tmp_path / "slow.onnx")
    # Rounds one and three are disturbed 7 and 90 times; asked before and after each.
    counts = iter([0, 7, 7, 7, 7, 97, 97, 97, 97, 97])
    monkeypatch.setattr(latency, "_taken_away", lambda: next(counts))
    quiet = measure([graph], X, rounds=3, calls=100)[0]
    assert quiet.p50s == (20.0, 40.0, 50.0) and (quiet.disturbed, quiet.calls, quiet.rounds) == (0.0, 300, 3)
    # Where it is never quiet, three times as many are all there are, and the least disturbed tell so.
    taken = iter([0, 50, 0, 40, 0, 30, 0, 20, 0, 10, 0, 3])
    monkeypatch.setattr(latency, "_taken_away", lambda: next(taken))
    loud = measure([graph], X, rounds=2, calls=100)[0]
    assert loud.p50s == (50.0, 60.0) and loud.disturbed == pytest.approx(0.065)


def test_a_session_has_the_threads_of_production_and_none_that_spins(subject: Subject) -> None:
    options = open_session(subject.graph, threads=3).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_questions_are_as_production_asks(tmp_path: Path, subject: Subject) -> None:
    text = save(attention(), tmp_path / "text.onnx")
    ids = np.arange(12).reshape(3, 4)
    assert (
        shaped(text, {"ids": ids}, Production(lengths={"tokens": 2}))["ids"].tolist() == ids[:, :2].tolist()
    )
    longer = shaped(text, {"ids": ids}, Production(lengths={"tokens": 6}))["ids"]
    assert longer[0].tolist() == [0, 1, 2, 3, 0, 1]
    asked = latency._questions(text, {"ids": ids}, Production(batch=2, lengths={"tokens": 6}), 7)
    assert len(asked) == 3 and all(one["ids"].shape == (2, 6) for one in asked)
    more = latency._questions(subject.graph, X, Production(batch=500), 7)
    assert more[0]["x"].shape == (500, 20)
    assert len({one["x"].tobytes() for one in latency._questions(subject.graph, X, Production(), 7)}) > 20
    fixed = save(linear(WEIGHTS, rows=4), tmp_path / "fixed.onnx")
    with pytest.raises(BadInput, match="got 4 rows, wanted 1"):
        compare(fixed, fixed, X)


def test_a_graph_that_fails_on_one_of_its_questions_says_why(tmp_path: Path) -> None:
    ids = np.arange(30).reshape(30, 1)
    text = save(attention(words=30), tmp_path / "text.onnx")
    seventh = latency._questions(text, {"ids": ids}, Production(), 7)[6]["ids"][0, 0]
    with pytest.raises(BadInput, match=r"cannot answer .*Gather.*; got ids int64\(1, 1\)"):
        measure([text], {"ids": np.where(ids == seventh, 99, ids)}, seed=7)
