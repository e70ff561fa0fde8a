"""Compression from Python: a plain call on an ONNX file, a torch module or a fitted model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from loopwright.compression.api import Production, apply, compress, prepare
from loopwright.compression.artefact import Artefact
from loopwright.compression.judging import predict
from loopwright.compression.rows import rows_of
from loopwright.compression.steps import CannotExport
from loopwright.compression.subject import Rows, Samples, Subject
from loopwright.kernel.errors import BadInput, Conflict, NotFound

if TYPE_CHECKING:
    from loopwright.compression.networks.network import TorchNetwork

ROUNDS = 60
Pair = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


class Watched:
    """Progress that can be read."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def step(self, name: str) -> None: ...

    def update(self, fraction: float, note: str = "") -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def done(self, summary: str) -> None: ...


def pair(rows: Rows) -> Pair:
    return next(iter(rows.feeds.values())), rows.y


@pytest.fixture(scope="module")
def table() -> Pair:
    draw = np.random.default_rng(9)
    x = draw.normal(size=(2600, 5)).astype(np.float32)
    score = x[:, 0] * x[:, 1] + x[:, 2] + draw.normal(0, 0.5, len(x))
    return x, (score > 0).astype(np.int64)


@pytest.fixture(scope="module")
def boosted(table: Pair) -> Any:
    import lightgbm

    settings = {"objective": "binary", "num_leaves": 15, "verbose": -1, "num_threads": 1}
    return lightgbm.train(settings, lightgbm.Dataset(table[0][:1000], table[1][:1000]), ROUNDS)


@pytest.fixture(scope="module")
def file(boosted: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from loopwright.training.export import to_onnx

    path = tmp_path_factory.mktemp("file") / "late.onnx"
    path.write_bytes(to_onnx(boosted, [f"f{at}" for at in range(5)], "binary"))
    return path


@pytest.fixture(scope="module")
def train(table: Pair) -> Pair:
    return table[0][:1000], table[1][:1000]


@pytest.fixture(scope="module")
def held_out(table: Pair) -> Pair:
    return table[0][1000:], table[1][1000:]


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None                       # importing it fails, as where it is not installed
import numpy as np
from loopwright.compression.api import apply, compress
assert not {"onnxscript", "matplotlib", "lightgbm", "pandas"} & set(sys.modules)
data = np.load(sys.argv[2])
rows = (data["x"][:1000], data["y"][:1000]), (data["x"][1000:], data["y"][1000:])
report = compress(sys.argv[1], *rows, metric="roc_auc", target_size="40kB", max_loss="2%", folder=sys.argv[3])
assert report.satisfied, report.said()
print(report.choice.size)
refused = apply("finetune", sys.argv[1], *rows, metric="roc_auc", folder=sys.argv[3])
"""


def test_an_onnx_file_needs_no_torch(file: Path, table: Pair, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=table[0], y=table[1])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(file), str(tmp_path / "rows.npz"), str(tmp_path / "out")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert int(done.stdout) <= 40_000, done.stderr
    assert "pip install 'loopwright[compression]'" in done.stderr.splitlines()[-1]


def test_one_technique_alone_is_measured_on_rows_that_chose_nothing(
    file: Path, train: Pair, held_out: Pair, tmp_path: Path
) -> None:
    found = apply(
        "tree-rounding", file, train, held_out, metric="roc_auc", settings={"leaves": 6}, folder=tmp_path
    )
    assert found.measured, found.why
    made = Artefact.open(tmp_path / found.file)
    assert made.size == found.size < file.stat().st_size / 4
    assert found.latency is not None and found.latency.calls > 0
    assert found.validation is not None and found.test is not None
    assert found.validation.rows == found.test.rows == 800
    assert found.test.loss < 0.01
    close = predict(made, {"features": held_out[0]}) - predict(Artefact.open(file), {"features": held_out[0]})
    assert 0 < np.abs(close).max() < 0.05


def test_a_prepared_model_serves_several_calls(
    file: Path, train: Pair, held_out: Pair, tmp_path: Path
) -> None:
    subject = prepare(file, train, held_out, metric="roc_auc", production={"batch": 8}, name="late")
    assert (subject.name, subject.production) == ("late", Production(batch=8))
    first, again = (apply("tree-rounds", subject, settings={"keep": 0.5}, folder=tmp_path) for _ in range(2))
    assert first == again
    assert first.latency is not None and first.latency.batch == 8
    with pytest.raises(BadInput, match="brings its rows"):
        apply("tree-rounds", subject, train, folder=tmp_path)


def test_a_file_that_a_second_model_took_is_told_and_not_measured(
    boosted: Any, train: Pair, held_out: Pair, tmp_path: Path
) -> None:
    from sklearn.linear_model import LogisticRegression

    first, _ = (
        prepare(model, train, held_out, metric="roc_auc", folder=tmp_path)
        for model in (boosted, LogisticRegression().fit(*train))
    )
    with pytest.raises(Conflict, match=r"(?s)another one than was prepared.*folder of its own"):
        apply("tree-rounding", first, folder=tmp_path)


def test_a_fitted_model_is_exported_and_checked_first(
    boosted: Any, train: Pair, held_out: Pair, tmp_path: Path
) -> None:
    watch = Watched()
    report = compress(
        boosted, train, held_out, metric="roc_auc", recipe=[{"step": "tree-rounds", "keep": ROUNDS // 2}],
        max_loss=0.05, folder=tmp_path, watch=watch,
    )  # fmt: skip
    assert [one.name for one in report.candidates] == ["original", "tree-rounds"]
    assert report.chosen == "tree-rounds"
    assert report.choice is not None
    answers = predict(Artefact.open(tmp_path / report.choice.file), {"features": held_out[0]})
    wanted = boosted.predict(held_out[0], num_iteration=ROUNDS // 2)
    np.testing.assert_allclose(answers[:, 0], wanted, atol=1e-6)
    assert any("from the model's own answers on 64 rows" in note for note in watch.notes)
    said = json.loads((tmp_path / "parent" / "export.json").read_bytes())
    assert said["rows"] == 64 and said["largest_difference"] < 1e-5


def test_frames_and_tensors_and_wider_numbers_are_rows_too(file: Path, table: Pair) -> None:
    import pandas

    x, y = table
    ports = Artefact.open(file).ports
    wanted = rows_of((x, y), ports, "rows").digest()
    frame = pandas.DataFrame(x.astype(np.float64), columns=list("abcde"))
    assert rows_of((frame, pandas.Series(y)), ports, "rows").digest() == wanted
    assert rows_of(({"features": x}, y[:, None]), ports, "rows").digest() == wanted


def test_a_target_out_of_reach_names_the_closest_and_what_is_needed(
    file: Path, train: Pair, held_out: Pair, tmp_path: Path
) -> None:
    report = compress(
        file, train, held_out, metric="roc_auc", target_size=700, max_loss="0%", recipe="tree-rounding",
        folder=tmp_path,
    )  # fmt: skip
    assert not report.satisfied and report.choice is None
    near = report.closest
    assert near is not None and near.name == "tree-rounding"
    assert near.misses(report.constraints)["size"] > 10
    assert "closest" in report.said()
    assert "size" in {one.constraint for one in report.needed()}


Said = dict[str, Any]


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ({"metric": ""}, BadInput, "metric="),
        ({"metric": "acuracy"}, NotFound, "accuracy"),
        ({"held_out": None}, BadInput, "hold some out"),
        ({"held_out": "one row"}, BadInput, "got 1, wanted at least 40"),
        ({"train": "one row"}, BadInput, "too few rows in `train`.*got 1"),
        ({"held_out": "train"}, BadInput, "100% of its rows are train rows"),
        ({"train": "narrow"}, BadInput, r"another shape.*\(rows, 5\)"),
        ({"train": "named"}, BadInput, "other_schema.*features"),
        ({"train": "text"}, BadInput, "no numbers"),
        ({"train": "unknown"}, BadInput, "100 of 1000 NaN"),
        ({"target_size": "tiny"}, BadInput, "target_size.*800MB"),
        ({"max_latency": "5"}, BadInput, "max_latency.*5ms"),
        ({"max_loss": "1"}, BadInput, "max_loss.*1%"),
        ({"recipe": "tree-rouding"}, BadInput, "tree-rounding"),
        ({"recipe": []}, BadInput, "without steps"),
        ({"recipe": 3}, BadInput, "not a recipe"),
        ({"recipe": [{"step": "tree-rounding", "leafs": 3}]}, BadInput, "leaves"),
        ({"recipe": "tree-rounds", "student": object()}, BadInput, "one of them"),
        ({"student": object()}, BadInput, "teacher"),
        ({"head": "softmax"}, BadInput, "torch modules"),
        ({"task": "ranking"}, BadInput, "binary, multiclass"),
        ({"production": {"cores": 2}}, BadInput, "batch, threads"),
        ({"production": {"batch": 0}}, BadInput, "1 or more"),
        ({"model": "nowhere.onnx"}, BadInput, "no such model file"),
        ({"model": object()}, BadInput, "LightGBM, XGBoost"),
        ({"budget": -1.0}, BadInput, "minutes"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(
    file: Path, train: Pair, held_out: Pair, tmp_path: Path, said: Said, error: type[Exception], words: str
) -> None:
    x, y = train
    blank = y.astype(np.float64)
    blank[:100] = np.nan
    rows = {
        "one row": (x[:1], y[:1]), "train": train, "narrow": (x[:, :3], y), "unknown": (x, blank),
        "text": (np.full(x.shape, "x", object), y), "named": ({"other_schema": x}, y),
    }  # fmt: skip
    given: Said = {
        "model": file,
        "train": train,
        "held_out": held_out,
        "metric": "roc_auc",
        "folder": tmp_path,
    }
    given |= {
        name: rows[value] if name in ("train", "held_out") and value is not None else value
        for name, value in said.items()
    }
    with pytest.raises(error, match=f"(?s){words}"):
        compress(given.pop("model"), given.pop("train"), given.pop("held_out"), **given)


def test_rows_that_a_fitted_model_does_not_take_are_told(train: Pair, held_out: Pair, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    (x, y), (held_x, held_y) = train, held_out
    fitted = LogisticRegression().fit(x, y)
    with pytest.raises(BadInput, match=r"does not take these rows.*3 columns.*fitted on"):
        apply("fp16", fitted, (x[:, :3], y), (held_x[:, :3], held_y), metric="accuracy", folder=tmp_path)


@pytest.fixture(scope="module")
def exported(
    digits: Samples, digits_network: "TorchNetwork", tmp_path_factory: pytest.TempPathFactory
) -> tuple[Subject, Path, Watched]:
    """The digits' module, prepared in a folder."""
    folder, watch = tmp_path_factory.mktemp("exported"), Watched()
    subject = prepare(
        digits_network.module, pair(digits.train), metric="accuracy", folder=folder, watch=watch,
        validation=pair(digits.validation), test=pair(digits.test),
    )  # fmt: skip
    return subject, folder, watch


def test_a_torch_module_is_exported_and_compared_with_its_graph(
    exported: tuple[Subject, Path, Watched], digits: Samples
) -> None:
    subject, folder, watch = exported
    assert (subject.name, subject.graph.path) == ("DigitsCnn", folder / "parent" / "model.onnx")
    assert any(note.startswith("exported: at most") for note in watch.notes)
    assert json.loads((folder / "parent" / "export.json").read_bytes())["largest_difference"] < 1e-4
    answers = predict(subject.graph, digits.test.feeds)
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-5)  # a softmax was put behind the logits
    assert np.mean(answers.argmax(axis=1) == digits.test.y) > 0.9


def test_a_recipe_that_distils_or_rounds_has_its_control(exported: tuple[Subject, Path, Watched]) -> None:
    from loopwright.compression.api import _only, recipe_of

    prune, distil = {"step": "prune-structure", "ratio": 0.5}, {"step": "distil", "epochs": 2, "rate": 0.01}
    _, rung = _only(exported[0], recipe_of([prune, distil, {"step": "qat", "epochs": 1}]))
    assert rung.adds == "distillation and QAT" and rung.control is not None
    assert [one["step"] for one in rung.control.steps] == [
        "prune-structure", "finetune", "finetune", "int8-static",
    ]  # fmt: skip
    first, second = rung.control.steps[1:3]
    assert (first["epochs"], first["rate"], second["epochs"]) == (2, 0.01, 1)
    recipe_of(list(rung.control.steps))
    _, other = _only(exported[0], recipe_of([{"step": "qat", "bits": 4}, {"step": "weights"}]))
    assert other.control is not None
    assert [one["step"] for one in other.control.steps] == ["finetune", "weights"]
    assert _only(exported[0], recipe_of("int8-static"))[1].control is None


def test_a_student_of_the_users_is_a_rung_with_its_control(exported: tuple[Subject, Path, Watched]) -> None:
    import torch

    from loopwright.compression.api import _with_student
    from loopwright.compression.constraints import Constraints

    torch.manual_seed(1)
    student = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
    subject, folder, _ = exported
    rungs = _with_student(subject, Constraints(), student, explore=False)
    names = [one.name for one in rungs]
    rung = next(one for one in rungs if one.name.startswith("given student"))
    assert names.index(rung.name) < next(at for at, one in enumerate(rungs) if "prune" in one.name)
    assert [one["step"] for one in rung.steps] == ["given-student", "distil", "int8-static"]
    assert rung.control is not None
    assert rung.control.steps[1] == {**rung.steps[1], "alpha": 0.0}
    with torch.no_grad():
        for weights in student.parameters():
            weights.zero_()  # what was offered is a copy
    found = apply([rung.steps[0], {"step": "distil", "epochs": 6, "rate": 1e-2}], subject, folder=folder)
    assert found.measured, found.why
    assert found.size < subject.graph.size / 8
    assert found.validation is not None and found.validation.value > 0.8
    lost = apply([{"step": "given-student", "student": "0" * 12}], subject, folder=folder)
    assert not lost.measured and "no such student" in lost.why


def test_a_module_that_answers_with_one_number_by_a_loss_of_the_users_is_a_teacher_too(
    train: Pair, held_out: Pair, tmp_path: Path
) -> None:
    import torch
    from torch import nn

    from loopwright.compression.networks.distilling import soft_yes

    class Score(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(self.first(x)))[:, 0]  # type: ignore[no-any-return]

    def weighted(answers: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(
            answers, truth.float(), pos_weight=torch.tensor(2.0)
        )

    torch.manual_seed(0)
    found = apply(
        "distil", Score(), train, held_out, metric="roc_auc", settings={"epochs": 1, "rate": 0.01},
        folder=tmp_path, loss=weighted,
    )  # fmt: skip
    assert found.measured, found.why
    own, theirs = torch.tensor([0.3, -2.0, 1.0]), torch.tensor([1.5, 0.0, -1.0])
    assert float(soft_yes(own, theirs, 2.0)) == pytest.approx(
        float(soft_yes(own[:, None], theirs[:, None], 2.0))
    )


def test_modules_that_cannot_be_taken_are_told_why(digits: Samples, tmp_path: Path) -> None:
    import torch
    from torch import nn

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(64, 10)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.last(features) if features.sum() > 0 else self.last(-features)

    spoilt = nn.Linear(64, 10)
    with torch.no_grad():
        spoilt.weight[0, 0] = float("nan")
    cases: list[tuple[nn.Module, Said, type[Exception], str]] = [
        (Branching(), {}, CannotExport, "cannot be traced|depends on"),
        (spoilt, {}, BadInput, "1 of 640 NaN"),
        (
            nn.Sequential(nn.Linear(64, 10), nn.Softmax(-1)),
            {},
            BadInput,
            "Take the softmax off.*head=.softmax., if",
        ),
        (nn.Linear(63, 10), {}, BadInput, r"does not take these rows.*features float32\(64,\)"),
        (nn.Linear(64, 4), {}, BadInput, "got 4 outputs, wanted 10"),
        (nn.Linear(64, 10), {"metric": "rmse"}, BadInput, "got 10 outputs, wanted one"),
        (nn.Unflatten(1, (8, 8)), {}, BadInput, "more than a row"),
    ]
    for module, said, error, words in cases:
        with pytest.raises(error, match=f"(?s){words}"):
            prepare(
                module, pair(digits.train), metric=said.get("metric", "accuracy"), folder=tmp_path,
                validation=pair(digits.validation), test=pair(digits.test),
            )  # fmt: skip


def test_a_model_in_memory_is_the_same_as_its_file(
    file: Path, train: Pair, held_out: Pair, tmp_path: Path
) -> None:
    loaded = prepare(onnx.load(str(file)), train, held_out, metric="roc_auc", folder=tmp_path)
    assert isinstance(loaded, Subject)
    feeds = {"features": held_out[0]}
    np.testing.assert_array_equal(predict(loaded.graph, feeds), predict(Artefact.open(file), feeds))
