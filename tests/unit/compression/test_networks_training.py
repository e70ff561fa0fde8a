"""Training what becomes small: exports, fine-tuning, distillation, students."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from loopwright.compression.artefact import Artefact
from loopwright.compression.networks.distilling import Distil, soft_classes, soft_numbers, soft_yes
from loopwright.compression.networks.finetuning import Finetune
from loopwright.compression.networks.fitting import Training, fit
from loopwright.compression.networks.network import LOSSES, TorchNetwork
from loopwright.compression.networks.students import Student, evenly, longest_row, made_by
from loopwright.compression.networks.teachers import lessons
from loopwright.compression.recipe import Recipe, cook
from loopwright.compression.steps import CannotExport, OutOfTime, Work, step
from loopwright.compression.subject import Samples, Subject
from loopwright.kernel.errors import BadInput
from tests.unit.compression.example_networks import DigitsCnn, Encoder, network_of

WorkOn = Callable[..., Work]


class Kept:
    """Notes that a test can read."""

    def __init__(self) -> None:
        self.said: dict[str, Any] = {}
        self.curves: dict[str, list[float]] = {}

    def params(self, values: Mapping[str, Any]) -> None:
        self.said |= values

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        for name, value in values.items():
            self.curves.setdefault(name, []).append(value)


def answered(path: Path, feeds: Mapping[str, Any]) -> Any:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))[0]


def right(network: TorchNetwork, samples: Samples) -> float:
    return float((network.answers(samples.test).argmax(1) == samples.test.y).mean())


# Exports


def test_the_artefact_answers_as_the_module_and_its_head(digits_subject: Subject, digits: Samples) -> None:
    network = digits_subject.network
    assert isinstance(network, TorchNetwork)
    wanted = torch.from_numpy(network.answers(digits.test)).softmax(-1).numpy()
    assert np.allclose(answered(digits_subject.graph.path, digits.test.feeds), wanted, atol=1e-5)
    assert (wanted.argmax(1) == digits.test.y).mean() > 0.95


def test_rows_and_lengths_vary_in_the_artefact(encoder_subject: Subject, texts: Samples) -> None:
    network = encoder_subject.network
    assert isinstance(network, TorchNetwork)
    graph = onnx.load(str(encoder_subject.graph.path)).graph
    axes = [[dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in graph.input]
    assert axes == [["rows", "tokens"], ["rows", "tokens"]]
    assert [dim.dim_param or dim.dim_value for dim in graph.output[0].type.tensor_type.shape.dim] == [
        "rows",
        3,
    ]
    for rows, length in ((1, 3), (7, 11), (3, 24)):
        feeds = {name: np.resize(values[:rows], (rows, length)) for name, values in texts.test.feeds.items()}
        feeds["attention_mask"][:, 0] = 1
        wanted = torch.from_numpy(network.answers(feeds)).softmax(-1).numpy()
        assert np.allclose(answered(encoder_subject.graph.path, feeds), wanted, atol=1e-5)


def test_equal_weights_give_equal_bytes_without_this_machine_and_modes_stay(
    digits_network: TorchNetwork, digits_subject: Subject, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = digits_network.copy()
    again.module.train()
    again.module.net[2].eval()
    modes = [one.training for one in again.module.modules()]
    again.export(tmp_path / "again.onnx")
    assert [one.training for one in again.module.modules()] == modes and True in modes and False in modes
    data = (tmp_path / "again.onnx").read_bytes()
    assert data == digits_subject.graph.path.read_bytes()
    assert not re.search(rb"(?i)/root/|/home/|site-packages|\.py\b|torch\.nn", data)
    assert len(data) < 1.1 * 4 * digits_network.parameters()
    assert "torchvision" not in "".join(capfd.readouterr())


class Tied(nn.Module):
    """Token ids → logits of tokens, by one table for both."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(400, 24), nn.Linear(24, 400, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids: Tensor) -> Any:
        return self.out(self.table(ids).mean(1))


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    network = TorchNetwork(Tied(), {"ids": np.arange(8).reshape(2, 4)}, LOSSES["multiclass"])
    network.export(tmp_path / "tied.onnx")
    made = Artefact.open(tmp_path / "tied.onnx")
    assert made.parameters == network.parameters() == 400 * 24
    feeds = {"ids": np.arange(20).reshape(5, 4)}
    assert np.allclose(answered(made.path, feeds), network.answers(feeds), atol=1e-5)


class Undecided(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        if values.sum() > 0:
            return values
        return -values


class OfTwoRows(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.reshape(2, 4) * 2


@torch.library.custom_op("loopwright_test::odd", mutates_args=())
def odd(values: Tensor) -> Tensor:
    return values.sin()


@odd.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)


class OfItsOwn(nn.Module):
    def forward(self, values: Tensor) -> Any:
        return odd(values)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Undecided(), "if values.sum() > 0:"),
        (OfTwoRows(), "constant (2)"),
        (OfItsOwn(), "loopwright_test.odd"),
    ],
)
def test_what_cannot_be_exported_is_told_with_its_cause(module: nn.Module, said: str, tmp_path: Path) -> None:
    network = TorchNetwork(module, {"values": np.ones((4, 4), np.float32)}, LOSSES["regression"])
    with pytest.raises(CannotExport, match=re.escape(said)):
        network.export(tmp_path / "never.onnx")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_named(digits_network: TorchNetwork, tmp_path: Path) -> None:
    broken = digits_network.copy()
    with torch.no_grad():
        broken.module.net[4].bias[3] = float("nan")
    with pytest.raises(BadInput, match=r"net\.4\.bias.*1 of 32"):
        broken.export(tmp_path / "never.onnx")
    broken = digits_network.copy()
    broken.module.net[2].running_var[0] = float("nan")
    with pytest.raises(BadInput, match=r"net\.2\.running_var"):
        broken.check()


# Fine-tuning


def test_finetuning_lowers_the_loss_and_leaves_what_it_was_given(
    digits_subject: Subject, digits: Samples, work_on: WorkOn
) -> None:
    torch.manual_seed(1)
    fresh, notes = network_of(DigitsCnn(), digits), Kept()
    before = {name: one.clone() for name, one in fresh.module.state_dict().items()}
    tuned = Finetune(epochs=2, rate=4e-3).reshape(fresh, work_on(digits_subject, notes=notes))
    assert right(tuned, digits) > 0.9 > right(fresh, digits)
    assert notes.curves["finetune_loss"][1] < notes.curves["finetune_loss"][0]
    assert all(torch.equal(one, before[name]) for name, one in fresh.module.state_dict().items())


def test_training_repeats_stops_in_time_and_refuses_what_diverges(
    digits_subject: Subject, digits: Samples, work_on: WorkOn
) -> None:
    work = work_on(digits_subject)
    first, second = (Finetune(epochs=1, rows=129).reshape(digits_subject.network, work) for _ in range(2))
    assert np.array_equal(first.answers(digits.test), second.answers(digits.test))
    with pytest.raises(OutOfTime, match="--budget"):
        Finetune().reshape(digits_subject.network, work_on(digits_subject, until=0.0))
    torch.manual_seed(1)
    wild = network_of(DigitsCnn(), digits)
    with pytest.raises(BadInput, match="Lower the rate"):
        fit(wild, digits.train, work, Training(1, rate=1e30, clip=1e30), label="wild")


# Distillation


def test_the_soft_losses_are_those_of_the_formula() -> None:
    own, theirs, temperature = (
        np.array([[2.0, 0.5, -1.0], [0.0, 0.0, 3.0]]),
        np.array([[1.0, 1.0, 0.0], [4.0, -2, 1]]),
        3.0,
    )

    def softmax(logits: Any) -> Any:
        raised = np.exp(logits / temperature)
        return raised / raised.sum(-1, keepdims=True)

    p, q = softmax(theirs), softmax(own)
    by_hand = temperature**2 * (p * np.log(p / q)).sum(-1).mean()
    assert float(soft_classes(torch.tensor(own), torch.tensor(theirs), temperature)) == pytest.approx(by_hand)

    p, q = (1 / (1 + np.exp(-one[:, :1] / temperature)) for one in (theirs, own))
    by_hand = temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    made = soft_yes(torch.tensor(own[:, :1]), torch.tensor(theirs[:, :1]), temperature)
    assert float(made) == pytest.approx(by_hand)

    assert float(soft_numbers(torch.tensor(own), torch.tensor(theirs), 9.0)) == pytest.approx(
        ((own - theirs) ** 2).mean()
    )
    same = torch.tensor(theirs)
    assert float(soft_classes(same, same, 2.0)) == pytest.approx(0) == float(soft_yes(same, same, 2.0))


@pytest.mark.parametrize(("alpha", "epochs"), [(1.0, 1), (0.25, 1)])
def test_one_batch_loses_alpha_of_the_teacher_and_the_rest_of_the_truth(
    alpha: float, epochs: int, digits_subject: Subject, digits: Samples, work_on: WorkOn
) -> None:
    torch.manual_seed(5)
    student, notes, teacher = network_of(nn.Linear(64, 10), digits), Kept(), digits_subject.network
    assert isinstance(teacher, TorchNetwork)
    few = digits.train.few(50, 7)
    own, theirs = (torch.from_numpy(one.answers(few)) for one in (student, teacher))
    truth = nn.functional.cross_entropy(own, torch.from_numpy(few.y).long())
    wanted = alpha * soft_classes(own, theirs, 4.0) + (1 - alpha) * truth
    one = Distil(epochs=epochs, batch=50, rows=50, alpha=alpha, temperature=4.0)
    one.reshape(student, work_on(digits_subject, notes=notes))
    assert notes.curves["distil_loss"] == [pytest.approx(float(wanted), rel=1e-4)]


def test_the_teacher_answers_once_for_all_who_learn(encoder_subject: Subject, work_on: WorkOn) -> None:
    network, calls = encoder_subject.network, []
    assert isinstance(network, TorchNetwork)
    small = Student(layers=1).reshape(network, work_on(encoder_subject))
    hook = network.module.register_forward_hook(lambda *_: calls.append(1))
    try:
        inside = {"blocks.0": "blocks.1"}
        answers = []
        for _ in range(2):
            work = work_on(encoder_subject)
            Distil(epochs=1, rows=300).reshape(small, work)
            student = Distil(epochs=1, rows=300, hidden=inside).reshape(small, work)
            answers.append(student.answers(encoder_subject.samples.test))
            if len(answers) == 1:
                passes = len(calls)
    finally:
        hook.remove()
    assert passes == len(calls) == 4, "300 rows are two batches, for the answers and for the layer"
    assert np.array_equal(*answers)


def test_answers_that_were_cut_short_are_made_again(
    digits_subject: Subject, digits: Samples, work_on: WorkOn
) -> None:
    network, work = digits_subject.network, work_on(digits_subject)
    assert isinstance(network, TorchNetwork)
    few = digits.train.few(100, 0)
    whole = np.array(lessons(network, few, work)[""])
    assert np.allclose(whole, network.answers(few), atol=1e-5)
    (kept,) = work.shared.rglob("answers.npy")
    data = kept.read_bytes()
    (kept.parent / ".answers.npy.0011.tmp").write_bytes(data[:70])  # what a killed process leaves
    for cut in (b"", data[:90], data[: len(data) // 2], b"x" * len(data)):
        kept.write_bytes(cut)
        assert np.array_equal(lessons(network, few, work)[""], whole)
        assert kept.read_bytes() == data
    other = network.copy()
    with torch.no_grad():
        other.module.net[-1].bias += 1
    assert np.allclose(lessons(other, few, work)[""], whole + 1, atol=1e-5), (
        "another teacher has its own file"
    )
    assert not np.array_equal(lessons(network, digits.train.few(100, 1), work)[""], whole)


def test_layers_of_other_widths_are_compared_through_a_projection(
    encoder_subject: Subject, texts: Samples, work_on: WorkOn
) -> None:
    torch.manual_seed(2)
    narrow, notes = network_of(Encoder(layers=2, width=16, inner=32), texts), Kept()
    work = work_on(encoder_subject, notes=notes)
    for kind in ("cosine", "mse"):
        one = Distil(
            epochs=2, rate=3e-3, hidden={"blocks.1": "blocks.1"}, hidden_loss=kind, hidden_weight=5.0
        )
        taught = one.reshape(narrow, work)
        assert taught.parameters() == narrow.parameters()
        assert notes.curves["distil_loss"][-1] < notes.curves["distil_loss"][-2]
    with pytest.raises(BadInput, match=r"blocks\.9.*blocks\.0"):
        Distil(hidden={"blocks.1": "blocks.9"}).reshape(narrow, work)
    with pytest.raises(BadInput, match="last axis"):
        Distil(hidden={"classify": "blocks.1"}).reshape(narrow, work)


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_yes_or_no_and_numbers_are_distilled_too(
    task: str, digits: Samples, digits_subject: Subject, work_on: WorkOn
) -> None:
    torch.manual_seed(0)
    example = {"features": digits.train.feeds["features"][:2]}
    y = (digits.train.y >= 5) if task == "binary" else digits.train.y / 9
    rows = type(digits.train)(digits.train.feeds, y.astype(np.float32))
    teacher = TorchNetwork(
        nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)), example, LOSSES[task]
    )
    samples = Samples(rows, digits.validation, digits.test)
    work = work_on(Subject("one", digits_subject.graph, samples, digits_subject.metric, network=teacher))
    teacher = Finetune(epochs=4, rate=1e-2).reshape(teacher, work)
    student = TorchNetwork(nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 1)), example, LOSSES[task])
    taught = Distil(epochs=6, rate=2e-2, alpha=1.0).taught(student, teacher, work)
    far, near = (
        np.abs(one.answers(digits.test) - teacher.answers(digits.test)).mean() for one in (student, taught)
    )
    assert near < 0.5 * far


# Students


def test_a_student_of_fewer_blocks_is_a_smaller_artefact_that_learns_from_its_teacher(
    encoder_subject: Subject, texts: Samples, work_on: WorkOn
) -> None:
    notes, teacher = Kept(), encoder_subject.network
    assert isinstance(teacher, TorchNetwork)
    made = cook(
        Recipe("student", (Student(layers=1), Distil(epochs=3, rate=3e-3))),
        work_on(encoder_subject, notes=notes),
    )
    said = {name.rpartition("/")[2]: value for name, value in notes.said.items()}
    assert said["student_kept"] == "0" and said["student_row"] == "blocks"
    assert made.graph.size < 0.8 * encoder_subject.graph.size
    answers = answered(made.graph.path, texts.test.feeds)
    assert (answers.argmax(1) == teacher.answers(texts.test).argmax(1)).mean() > 0.85
    assert isinstance(made.network, TorchNetwork)
    assert np.allclose(answers, torch.from_numpy(made.network.answers(texts.test)).softmax(-1), atol=1e-5)
    assert len(teacher.module.blocks) == 2, "the teacher stays whole"


def test_blocks_stay_evenly_or_as_said(encoder_subject: Subject, work_on: WorkOn) -> None:
    assert [evenly(6, count) for count in (1, 2, 3, 6)] == [(0,), (0, 5), (0, 2, 5), (0, 1, 2, 3, 4, 5)]
    four = network_of(Encoder(layers=4), encoder_subject.samples, variable={})
    assert longest_row(four.module) == "blocks"
    kept = Student(keep=(3, 1)).reshape(four, work_on(encoder_subject))
    wanted = [four.module.blocks[at].up.weight for at in (1, 3)]
    assert all(torch.equal(own.up.weight, one) for own, one in zip(kept.module.blocks, wanted, strict=True))


def test_a_narrower_student_has_less_of_all_its_layers(encoder_subject: Subject, work_on: WorkOn) -> None:
    teacher = network_of(Encoder(layers=2, width=64, heads=4, inner=128), encoder_subject.samples)
    narrow = Student(width=0.5, layers=1).reshape(teacher, work_on(encoder_subject))
    block = narrow.module.blocks[0]
    assert (block.up.weight.shape, block.query.weight.shape) == ((64, 32), (32, 32))
    assert len(Student(width=0.5).reshape(teacher, work_on(encoder_subject)).module.blocks) == 2
    assert len(teacher.module.blocks) == 2 and teacher.module.blocks[0].up.weight.shape == (128, 64)


def test_a_student_of_the_users_must_answer_as_its_teacher(digits_subject: Subject, work_on: WorkOn) -> None:
    teacher, work = digits_subject.network, work_on(digits_subject)
    assert isinstance(teacher, TorchNetwork)
    assert made_by(lambda _: nn.Linear(64, 10), teacher, work).parameters() == 650
    for module, said in (
        (nn.Linear(64, 7), r"\(7,\) per row.*\(10,\)"),
        (nn.Linear(63, 10), "does not take"),
    ):
        with pytest.raises(BadInput, match=said):
            made_by(lambda _, made=module: made, teacher, work)
    with pytest.raises(BadInput, match="other outputs than its teacher"):
        Distil(epochs=1).reshape(teacher.with_module(nn.Linear(64, 7)), work)
    with pytest.raises(CannotExport, match="no row of equal blocks"):
        Student(layers=1).reshape(teacher, work)


@pytest.mark.parametrize(
    ("name", "settings", "where"),
    [
        ("distil", {"temperature": 0}, "temperature"),
        ("distil", {"temperature": float("nan")}, "temperature"),
        ("distil", {"alpha": 1.5}, "alpha"),
        ("distil", {"alpha": -0.1}, "alpha"),
        ("distil", {"hidden_loss": "l1"}, "hidden_loss"),
        ("distil", {"task": "ranking"}, "task"),
        ("finetune", {"epochs": 0}, "epochs"),
        ("finetune", {"rate": float("nan")}, "rate"),
        ("student", {"layers": 0}, "layers"),
        ("student", {"width": 1.0}, "width"),
        ("student", {"keep": [1, 1]}, "keep"),
        ("student", {"layers": 2, "keep": [0]}, "not both"),
        ("qat", {"bits": 5}, "bits"),
        ("qat", {"bits": 4, "activations": "static"}, "activations"),
        ("qat", {"ranges": "guessed"}, "ranges"),
        ("qat", {"temperature": -1.0}, "temperature"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, Any], where: str) -> None:
    with pytest.raises(BadInput, match=where):
        step(name, settings)
