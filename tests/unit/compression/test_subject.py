"""What may be compressed, on which rows, how far, and by which recipes."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from loopwright.compression import recipe as recipes
from loopwright.compression.artefact import save
from loopwright.compression.candidate import Candidate, Latency, Quality, Status
from loopwright.compression.constraints import Constraints, parse_latency, parse_share
from loopwright.compression.recipe import Recipe, cook
from loopwright.compression.steps import CannotExport, OutOfTime, Work, step
from loopwright.compression.subject import Network, Production, Rows, Samples, Subject
from loopwright.kernel.errors import BadInput, NotFound
from tests.unit.compression.example_graphs import (
    Blur,
    attention,
    linear,
    linear_samples,
    linear_subject,
    model_of,
)

WEIGHTS, SAMPLES = linear_samples()


def rows(count: int = 50, seed: int = 0, **changed: Any) -> Rows:
    """Rows of the schema of `linear`, all different."""
    random = np.random.default_rng(seed)
    return Rows(
        {"x": random.normal(size=(count, 20)).astype(np.float32)} | changed, random.integers(0, 4, count)
    )


def test_rows_have_one_length_one_type_and_a_truth() -> None:
    with pytest.raises(BadInput, match="not of one length"):
        rows(50, x=np.zeros((49, 20), np.float32))
    with pytest.raises(BadInput, match="no single type"):
        rows(50, x=np.array([[None] * 20] * 50))
    with pytest.raises(BadInput, match="1 of 2 are NaN"):
        Rows({"x": np.zeros((2, 20), np.float32)}, np.array([1.0, np.nan]))


def test_equal_rows_have_equal_marks_whatever_the_order_of_inputs() -> None:
    a, b = np.arange(6, dtype=np.int64).reshape(3, 2), np.ones((3, 1), np.float32)
    first, second = Rows({"a": a, "b": b}, np.zeros(3)), Rows({"b": b[::-1], "a": a[::-1]}, np.ones(3))
    assert first.marks() == second.marks() and len(first.marks()) == 3
    assert first.digest() != second.digest() == Rows({"a": a[::-1], "b": b[::-1]}, np.ones(3)).digest()
    # Text is padded to the longest of its array; the same text is the same row all the same.
    short, long = (
        Rows({"t": np.array([["a", "b"], *more])}, np.zeros(1 + len(more))) for more in ((), (("cc", "d"),))
    )
    assert short.feeds["t"].dtype != long.feeds["t"].dtype and short.marks() < long.marks()
    assert Rows({"t": np.array([["ab", ""]])}, np.zeros(1)).marks() != short.marks()


def test_rows_that_teach_or_choose_do_not_report() -> None:
    train, validation, test = rows(60, 1), rows(60, 2), rows(60, 3)
    Samples(train, validation, test)
    for parts, where in (
        ((train, train, test), "samples: validation.*training|samples: validation.*train rows"),
        ((train, validation, train), "samples: test.*train rows"),
        ((train, validation, validation), "samples: test.*validation rows"),
    ):
        with pytest.raises(BadInput, match=where):
            Samples(*parts)
    mixed = Rows({"x": np.concatenate([validation.feeds["x"][:55], train.feeds["x"][:5]])}, np.zeros(60))
    with pytest.raises(BadInput, match="8% of its rows are train rows"):
        Samples(train, mixed, test)
    assert Samples(train, mixed, test, shared=0.1).calibration(7, 20).marks() < train.marks()


def test_parts_of_another_schema_or_of_one_row_are_refused() -> None:
    train, validation = rows(60, 1), rows(60, 2)
    with pytest.raises(BadInput, match="too few rows in `train`; got 1, wanted at least 20"):
        Samples(rows(1), validation, rows(60, 3))
    for other in (
        Rows({"z": train.feeds["x"]}, train.y),
        Rows({"x": rows(60, 3).feeds["x"].astype(np.float64)}, train.y),
        Rows({"x": rows(60, 3).feeds["x"][:, :19]}, train.y),
    ):
        with pytest.raises(BadInput, match="`test` is of another schema"):
            Samples(train, validation, other)


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({"z": np.zeros((60, 20), np.float32)}, "another schema; got z, wanted x"),
        (
            {"x": np.zeros((60, 20), np.float64)},
            r"x: an input of another type; got float64, wanted float32.*astype",
        ),
        ({"x": np.zeros((60, 21), np.float32)}, r"another shape; got \(60, 21\), wanted \(rows, 20\)"),
        ({"x": np.zeros((60, 20, 1), np.float32)}, "another shape"),
        ({"x": np.zeros((60, 20), "U3")}, "got str, wanted float32"),
    ],
)
def test_samples_fit_the_graph(tmp_path: Path, feeds: Any, says: str) -> None:
    save(linear(WEIGHTS), tmp_path / "m.onnx")
    parts = [Rows(feeds, np.zeros(60))] * 3
    with pytest.raises(BadInput, match=says):
        Subject.of("m", tmp_path / "m.onnx", Samples(*parts, shared=1.0), "accuracy")


def test_a_subject_is_asked_in_a_way_its_graph_allows(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="accuracy"):
        linear_subject(tmp_path).of("m", tmp_path / "original.onnx", SAMPLES, "acuracy")
    with pytest.raises(BadInput, match=r"lengths of axes.*tokens.*all its axes are fixed"):
        linear_subject(tmp_path, production=Production(lengths={"tokens": 8}))
    save(linear(WEIGHTS, rows=4), tmp_path / "four.onnx")
    with pytest.raises(BadInput, match="got 4 rows, wanted 1"):
        Subject.of("m", tmp_path / "four.onnx", SAMPLES, "accuracy")
    assert Subject.of(
        "m", tmp_path / "four.onnx", SAMPLES, "accuracy", production=Production(batch=4)
    ).classifies
    for wrong in ({"batch": 0}, {"threads": -1}, {"lengths": {"tokens": 0}}):
        with pytest.raises(BadInput, match="not a count"):
            Production(**wrong)
    save(attention(), tmp_path / "attention.onnx")
    parts = [Rows({"ids": np.random.default_rng(i).integers(0, 30, (50, 9))}, np.zeros(50)) for i in range(3)]
    text = Subject.of(
        "text",
        tmp_path / "attention.onnx",
        Samples(*parts),
        "accuracy",
        production=Production(lengths={"tokens": 4}),
    )
    assert text.production.lengths == {"tokens": 4}
    # What is no tensor cannot be fed.
    model = model_of([], {})
    model.graph.node.extend(linear(WEIGHTS).graph.node)
    model.graph.initializer.extend(linear(WEIGHTS).graph.initializer)
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(BadInput, match="no tensor"):
        Subject("m", save(model, tmp_path / "sequence.onnx"), SAMPLES, text.metric)


@given(st.floats(0.001, 1e6), st.sampled_from(["us", "ms", "s"]))
def test_a_latency_reads_as_it_is_written(value: float, unit: str) -> None:
    text = f"{value:.3f}"
    assert parse_latency(f" {text}{unit} ") == pytest.approx(
        float(text) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit]
    )


@given(st.integers(0, 9999))
def test_a_share_reads_as_it_is_written(hundredths: int) -> None:
    assert parse_share(f"{hundredths / 100}%") == pytest.approx(hundredths / 10000)


@pytest.mark.parametrize(
    "text", ["5", "ms", "-5ms", "5 m", "nanms", "1e3ms", "5ms5ms", "", "٥ms", "9" * 20 + "s"]
)
def test_what_is_no_latency_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--max-latency: not a time"):
        parse_latency(text)


def test_constraints_are_positive_and_a_loss_is_a_share() -> None:
    assert Constraints.parse("10MB", "0.5s", "1%") == Constraints(10_000_000, 500.0, 0.01)
    assert Constraints.parse(None, None, "0%") == Constraints(None, None, 0.0)
    for wrong in (
        {"size": 0}, {"size": -1}, {"latency_ms": float("nan")}, {"latency_ms": 0.0}, {"loss": 1.0},
        {"loss": float("nan")}, {"loss": -0.1},
    ):  # fmt: skip
        with pytest.raises(BadInput):
            Constraints(**wrong)  # type: ignore[arg-type]
    for text in ("1", "100%", "-1%", "1.%", "%"):
        with pytest.raises(BadInput):
            Constraints.parse(None, None, text)


def measured(size: int = 100, p99: float = 2.0, loss_high: float = 0.005) -> Candidate:
    latency = Latency(1.0, p99, 2.0, 4.0, 2.0, 1, 1, 600)
    quality = Quality("accuracy", 0.9, 0.9, 0.0, -0.01, loss_high, 0.95, 300)
    return Candidate("one", "0" * 12, [{"step": "fp16"}], Status.MEASURED, size=size, original_size=400,
                     latency=latency, validation=quality, curve={"loss": [(0, 1.0), (1, 0.5)]})  # fmt: skip


def test_a_candidate_misses_by_its_bounds_not_by_its_estimates() -> None:
    wanted = Constraints(size=100, latency_ms=2.0, loss=0.01)
    assert measured().misses(wanted) == {}
    assert measured(size=150, p99=3.0, loss_high=0.02).misses(wanted) == {
        "size": 1.5,
        "latency": 1.5,
        "loss": 2.0,
    }
    assert measured(loss_high=float("nan")).misses(wanted).keys() == {"loss"}
    assert measured(loss_high=0.001).misses(Constraints(loss=0.0)) == {"loss": float("inf")}
    failed = Candidate("one", "0" * 12, [], Status.FAILED)
    assert failed.misses(Constraints()) == {"measured": float("inf")}


def test_a_candidate_is_the_same_after_json() -> None:
    import json

    said = json.loads(json.dumps(measured().to_json()))
    assert Candidate.from_json(said) == measured() and measured().ratio == 4.0


@dataclass(frozen=True)
class Shrink:
    """A step on modules that halves one, and may take all the time there is."""

    name: ClassVar[str] = "shrink"
    late: bool = False
    keeps: float = 0.5

    def reshape(self, network: Network, work: Work) -> Network:
        if self.late:
            work.check_time()
        work.notes.metrics({"loss": 1.0})
        return Half(network.parameters() // 2)


@dataclass(frozen=True)
class Half:
    """Stands for a torch module: exports the linear graph."""

    count: int
    module: Any = None

    def parameters(self) -> int:
        return self.count

    def export(self, path: Path) -> None:
        save(linear(WEIGHTS), path)


class Heard:
    def __init__(self) -> None:
        self.names: list[str] = []

    def params(self, values: Any) -> None:
        self.names += values

    def metrics(self, values: Any, step: int = 0) -> None:
        self.names += values


def work_in(folder: Path, subject: Subject, **rest: Any) -> Work:
    (folder / "shared").mkdir(exist_ok=True)
    return Work(subject, folder / "work", folder / "shared", **rest)


def test_a_recipe_runs_its_steps_in_order_and_keeps_their_notes_apart(tmp_path: Path) -> None:
    heard = Heard()
    subject = linear_subject(tmp_path, network=Half(800))
    two = Recipe("two", (Shrink(), Shrink(), Blur(0.1), Blur(0.2)))
    cooked = cook(two, work_in(tmp_path, subject, notes=heard))
    assert cooked.network is not None and cooked.network.parameters() == 200
    assert cooked.graph.path == tmp_path / "work" / "model.onnx"
    assert list(dict.fromkeys(heard.names)) == [
        "shrink/loss", "shrink-2/loss", "blur/size", "blur/kind", "blur/loss", "blur-2/size", "blur-2/kind",
        "blur-2/loss",
    ]  # fmt: skip
    # Following it again replaces what lies there, and gives the same.
    assert cook(two, work_in(tmp_path, subject)).graph.digest == cooked.graph.digest
    assert cook(Recipe("none", ()), work_in(tmp_path, subject)).graph == subject.graph


def test_recipes_that_cannot_be_followed_say_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a step on the module after one on the graph"):
        Recipe("wrong", (Blur(), Shrink()))
    with pytest.raises(BadInput, match="too many steps"):
        Recipe("long", (Blur(),) * 21)
    with pytest.raises(CannotExport, match="no torch module to train"):
        cook(Recipe("trains", (Shrink(),)), work_in(tmp_path, linear_subject(tmp_path)))
    with pytest.raises(OutOfTime, match="--budget"):
        cook(Recipe("late", (Blur(),)), work_in(tmp_path, linear_subject(tmp_path), until=0.0))


def test_a_recipe_is_known_by_its_steps_not_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        recipes, "step", lambda name, settings, where: {"blur": Blur, "shrink": Shrink}[name](**settings)
    )
    made = Recipe("a", (Shrink(), Blur(0.25)))
    assert made.to_json() == [
        {"step": "shrink", "late": False, "keeps": 0.5}, {"step": "blur", "size": 0.25},
    ]  # fmt: skip
    again = Recipe.from_json("b", made.to_json())
    assert again.steps == made.steps and again.key == made.key != Recipe("a", (Blur(0.25),)).key
    assert made.trains and not Recipe("a", (Blur(),)).trains


def test_a_recipe_says_what_it_leaves(tmp_path: Path) -> None:
    assert Recipe("none", ()).keeps == 1.0
    assert Recipe("halves", (Shrink(), Shrink())).keeps == 0.25
    assert Recipe("unknown", (Blur(),)).keeps == 0.0
    assert Recipe("fp16", (step("fp16", {}),)).keeps == 1.0 and Recipe("fp16", (step("fp16", {}),)).bits == 16


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ([{"step": "int8-dynamc"}], r"compression\[0\]: unknown step.*did you mean `int8-dynamic`"),
        ([{"steps": "fp16"}], r"compression\[0\]: a step without a name"),
        (
            [{"step": "fp16"}, {"step": "fp16", "bitz": 3}],
            r"compression\[1\]: unknown setting of `fp16`; got bitz",
        ),
    ],
)
def test_a_recipe_with_unknown_words_is_refused_where_they_stand(said: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Recipe.from_json("r", said)


def test_without_torch_graphs_are_compressed_and_training_says_what_to_install() -> None:
    program = """
import importlib, pkgutil, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torch_pruning", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import loopwright.compression as room
from loopwright.compression.steps import STEPS, step
from loopwright.kernel.errors import Unavailable
names = [one.name for one in pkgutil.walk_packages(room.__path__, room.__name__ + ".")]
for name in names:
    if ".networks." not in name and ".streaming." not in name:
        importlib.import_module(name)
for name, place in STEPS.items():
    try:
        step(name, {})
        assert not place.startswith("networks"), name
    except Unavailable as error:
        assert place.startswith("networks") and "pip install" in str(error), (name, error)
print("torch" in sys.modules, len(names))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.stdout.startswith("False "), ran.stderr[-2000:]
