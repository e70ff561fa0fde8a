"""What cannot be quantized, or not with what was given: told before anything is written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from loopwright.compression.artefact import Artefact, save
from loopwright.compression.steps import CannotExport, GraphStep, OutOfTime, Work, step
from loopwright.compression.subject import Production, Rows, Samples, Subject
from loopwright.kernel.errors import BadInput

from . import graphs_by_hand as made
from .example_graphs import linear_subject, trees

EVERY = ("fp16", "int8-dynamic", "int8-static", "int8-mixed", "int8-smooth", "weights")
CALIBRATED = ("int8-static", "int8-mixed", "int8-smooth")


def run(
    name: str, subject: Subject, folder: Path, until: float | None = None, source: Artefact | None = None,
    **settings: Any,
) -> Artefact:  # fmt: skip
    one = step(name, settings)
    assert isinstance(one, GraphStep)
    work = Work(subject, folder / "work", folder, until=until)
    try:
        return one.encode(source or subject.graph, work.folder / "model.onnx", work)
    except Exception:
        assert not list((folder / "work").glob("*")), "something was left behind"
        raise


def regression(folder: Path, model: Any, x: np.ndarray[Any, Any], batch: int = 1) -> Subject:
    save(model, folder / "source.onnx")
    samples = made.parts({"x": x}, np.zeros(len(x)))
    return Subject.of("one", folder / "source.onnx", samples, "rmse", production=Production(batch=batch))


@pytest.mark.parametrize("name", EVERY)
def test_trees_have_nothing_to_quantize_and_the_error_says_what_would_do(name: str, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(120, 2)).astype(np.float32)
    with pytest.raises(CannotExport, match=f"nothing for {name}.*TreeEnsembleRegressor"):
        run(name, regression(tmp_path, trees(), x), tmp_path)


@pytest.mark.parametrize("name", EVERY)
def test_a_quantized_graph_is_not_quantized_again(name: str, tmp_path: Path) -> None:
    subject = linear_subject(tmp_path)
    done = run("int8-dynamic", subject, tmp_path / "first")
    again = Subject.of("again", done.path, subject.samples, "accuracy")
    with pytest.raises(CannotExport, match=r"quantized already.*MatMulInteger"):
        run(name, again, tmp_path / "second")


@pytest.mark.parametrize("name", [*CALIBRATED, "fp16", "weights"])
@pytest.mark.parametrize("rows", [1, 7])
def test_so_few_calibration_rows_are_refused_before_any_work(name: str, rows: int) -> None:
    with pytest.raises(BadInput, match=f"got {rows}, wanted at least 8"):
        step(name, {"rows": rows})


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize(
    ("port", "kind", "width", "told"),
    [
        ("features", TensorProto.FLOAT, 20, "got x, wanted features"),
        ("x", TensorProto.DOUBLE, 20, "got float32, wanted float64"),
        ("x", TensorProto.FLOAT, 7, r"got \(\d+, 20\), wanted \(rows, 7\)"),
    ],
)
def test_calibration_rows_of_another_schema_are_named(
    name: str, port: str, kind: int, width: int, told: str, tmp_path: Path
) -> None:
    subject, one = linear_subject(tmp_path), made.Writer()
    given = one.then("Cast", port, to=TensorProto.FLOAT)
    one.then("MatMul", given, one.weight(np.ones((width, 64), np.float32)), out="y")
    other = save(one.model({port: (kind, ["rows", width])}, "y"), tmp_path / "other.onnx")
    with pytest.raises(BadInput, match=told):
        run(name, subject, tmp_path, source=other)


@pytest.mark.parametrize("name", CALIBRATED)
def test_a_row_without_numbers_is_told_by_the_tensor_that_it_reaches(name: str, tmp_path: Path) -> None:
    subject = linear_subject(tmp_path)
    spoilt = subject.samples.train.feeds["x"].copy()
    spoilt[:, 3] = np.nan
    samples = Samples(
        Rows({"x": spoilt}, subject.samples.train.y), subject.samples.validation, subject.samples.test
    )
    with pytest.raises(BadInput, match=r"x: .*no number|NaN"):
        run(name, Subject("one", subject.graph, samples, subject.metric), tmp_path)


def test_a_graph_of_fixed_rows_calibrates_and_one_that_wants_more_rows_than_there_are_says_so(
    tmp_path: Path,
) -> None:
    x = np.random.default_rng(2).normal(size=(200, 32)).astype(np.float32)
    for rows in (1, 4, 1000):
        one, folder = made.Writer(), tmp_path / str(rows)
        matrix = np.random.default_rng(3).normal(size=(32, 64)).astype(np.float32)
        one.then("MatMul", "x", one.weight(matrix), out="y")
        folder.mkdir()
        subject = regression(folder, one.model({"x": (TensorProto.FLOAT, [rows, 32])}, "y"), x, batch=rows)
        if rows == 1000:
            with pytest.raises(BadInput, match=r"got 133, wanted at least 1000"):
                run("int8-static", subject, folder)
        else:
            assert run("int8-static", subject, folder).size < subject.graph.size
            first = replace(subject, answer=lambda answers: answers[:, 0])
            mixed = run("int8-mixed", first, folder / "mixed", error=1e-9, loss=0.5, rows=20, judged=99)
            assert mixed.size < 1.5 * subject.graph.size


@pytest.mark.parametrize("name", ["int8-static", "int8-dynamic", "int8-smooth", "weights"])
def test_lengths_may_vary_within_the_graph(name: str, tmp_path: Path) -> None:
    """A graph that keeps as many places as the first row says: each batch has inner tensors of another length."""
    one = made.Writer()
    matrices = [np.random.default_rng(seed).normal(size=(16, 64)).astype(np.float32) for seed in (1, 2)]
    length = one.then("Cast", one.then("ReduceMax", "x", keepdims=0), to=TensorProto.INT64)
    length = one.then("Reshape", length, one.weight(np.array([1])))
    cut = one.then("Slice", "x", one.weight(np.array([0])), length, one.weight(np.array([1])))
    seen = one.then("Relu", one.then("MatMul", cut, one.weight(matrices[0])))
    seen = one.then("MatMul", seen, one.weight(matrices[1].T.copy()))
    one.then("ReduceMean", seen, one.weight(np.array([1])), out="y", keepdims=0)
    random = np.random.default_rng(5)
    x = random.uniform(0, 2, size=(300, 9, 16)).astype(np.float32)
    x[:, 0, 0] = random.integers(3, 10, size=300)
    subject = regression(tmp_path, one.model({"x": (TensorProto.FLOAT, ["rows", 9, 16])}, "y"), x)
    settings = {"calibration": "entropy"} if name == "int8-static" else {}
    assert run(name, subject, tmp_path, **settings).size < subject.graph.size


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("int8-static", {"calibration": "guess"}, "got guess, wanted minmax, entropy, percentile"),
        ("int8-static", {"percentile": 3}, "not a percentile"),
        ("int8-smooth", {"alpha": 1.5}, "alpha has to be between 0 and 1; got 1.5"),
        ("int8-smooth", {"base": "both"}, "wanted dynamic, static"),
        ("int8-mixed", {"base": "both"}, "wanted dynamic, static"),
        ("int8-mixed", {"loss": -1}, "loss and error are shares"),
        ("int8-mixed", {"error": 0}, "loss and error are shares"),
        ("int8-mixed", {"keep": 0}, "keep 0, trials 64"),
        ("weights", {"bits": 3}, "there is no such bits; got 3, wanted 4, 8"),
        ("weights", {"block_size": 48}, "wanted 16, 32, 64, 128, 256"),
        ("weights", {"method": "best"}, "wanted nearest, search, aware"),
        ("weights", {"alpha": 1}, "alpha has to be from 0 to under 1"),
        ("fp16", {"compute": "bfloat16"}, "wanted float32, float16"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(name: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        step(name, settings)


def test_the_budget_ends_a_search(tmp_path: Path) -> None:
    with pytest.raises(OutOfTime):
        run("int8-mixed", linear_subject(tmp_path), tmp_path, until=0.0)


def test_answers_that_overflow_in_half_precision_are_refused(tmp_path: Path) -> None:
    one = made.Writer()
    seen = one.then("MatMul", "x", one.weight(np.full((16, 16), 0.1, np.float32)))
    one.then("Exp", seen, out="y")
    random = np.random.default_rng(3)
    x = random.uniform(0, 1, size=(300, 16)).astype(np.float32)
    subject = regression(tmp_path, one.model({"x": (TensorProto.FLOAT, ["rows", 16])}, "y"), x)
    assert run("fp16", subject, tmp_path, compute="float16").operators >= {"Exp"}
    large = regression(tmp_path, one.model({"x": (TensorProto.FLOAT, ["rows", 16])}, "y"), 8 * x)
    # e^(0.8 × up to 16) passes 65504: the node is kept in float32, and the answers stay numbers.
    found = run("fp16", large, tmp_path, compute="float16")
    session = onnxruntime.InferenceSession(str(found.path), providers=["CPUExecutionProvider"])
    assert np.isfinite(session.run(None, {"x": 8 * x[:50]})[0]).all()
