"""Distillation: a network learns from what its teacher answers, besides the truth."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from loopwright.compression.networks.fitting import BatchLoss, Training, fit
from loopwright.compression.networks.network import (
    LOSSES,
    TorchNetwork,
    call,
    evaluating,
    tensors,
    torch_network,
)
from loopwright.compression.networks.teachers import heard, lessons
from loopwright.compression.recipe import without_module
from loopwright.compression.steps import Work
from loopwright.compression.subject import Array, Network
from loopwright.kernel.errors import BadInput

HIDDEN_LOSSES = ("mse", "cosine")

Soft = Callable[[Tensor, Tensor, float], Tensor]
"""(the student's answers, the teacher's, temperature) → the mean over the rows, a scalar."""


def soft_classes(answers: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(answers / T)), the mean of the rows, in nats; logits (n, classes).

    T² keeps its gradient's size while the temperature changes (Hinton, Vinyals & Dean 2015, section 2.1).
    """
    own = (answers / temperature).log_softmax(-1)
    theirs = (teacher / temperature).log_softmax(-1)
    return nn.functional.kl_div(own, theirs, reduction="batchmean", log_target=True) * temperature**2


def soft_yes(answers: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The same for logits of one yes-or-no question each, (n,) or (n, outputs): T² · KL of Bernoulli distributions."""
    own, theirs = answers / temperature, teacher / temperature
    yes = theirs.sigmoid()
    apart = yes * (nn.functional.logsigmoid(theirs) - nn.functional.logsigmoid(own))
    apart = apart + (1 - yes) * (nn.functional.logsigmoid(-theirs) - nn.functional.logsigmoid(-own))
    return apart.reshape(len(apart), -1).sum(-1).mean() * temperature**2


def soft_numbers(answers: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The mean squared difference of numbers; a temperature says nothing about them."""
    return nn.functional.mse_loss(answers, teacher)


SOFT: Mapping[str, Soft] = {"multiclass": soft_classes, "binary": soft_yes, "regression": soft_numbers}


@dataclass(frozen=True)
class Distil:
    """Train on `alpha` × the teacher's answers + (1 - alpha) × the truth; alpha 0 is the control without a teacher.

    The teacher is the subject's own network; the student is the network the step is given (pruned, or made by
    `student`). temperature: above 1, the teacher's smaller probabilities count for more. hidden: the student's layer →
    the teacher's layer whose output it shall resemble, `hidden_weight` × the mean of `hidden_loss` over the pairs,
    added; a learned projection that is thrown away afterwards goes between layers of different widths (Romero et al.
    2015). task: "multiclass", "binary" or "regression"; "" reads it from the network's loss.
    """

    name: ClassVar[str] = "distil"

    epochs: int = 5
    rate: float = 1e-3
    temperature: float = 2.0
    alpha: float = 0.7
    batch: int = 64
    decay: float = 0.01
    rows: int | None = None
    hidden: Mapping[str, str] = field(default_factory=dict)
    hidden_weight: float = 1.0
    hidden_loss: str = "cosine"
    task: str = ""

    def __post_init__(self) -> None:
        _ = self.training
        check_softness(self.temperature, self.alpha, "distil")
        if not self.hidden_weight >= 0:
            raise BadInput(
                "a weight below 0", where="distil.hidden_weight", got=self.hidden_weight, wanted="0 or more"
            )
        if self.hidden_loss not in HIDDEN_LOSSES:
            raise BadInput(
                "unknown loss",
                where="distil.hidden_loss",
                got=self.hidden_loss,
                wanted=" or ".join(HIDDEN_LOSSES),
            )
        if self.task and self.task not in SOFT:
            raise BadInput("unknown task", where="distil.task", got=self.task, wanted=", ".join(SOFT))
        if not isinstance(self.hidden, Mapping):
            raise BadInput(
                "pairs of layers",
                where="distil.hidden",
                got=self.hidden,
                wanted="student's layer: teacher's layer",
            )

    @property
    def training(self) -> Training:
        return Training(self.epochs, self.rate, self.batch, decay=self.decay, rows=self.rows)

    def reshape(self, network: Network, work: Work) -> TorchNetwork:
        """A copy of the student, trained; its loss is noted as `distil_loss`.

        Raises BadInput for a student whose outputs are not its teacher's, or layers that are not there.
        """
        if work.subject.network is None:
            raise without_module(self.name)
        return self.taught(torch_network(network), torch_network(work.subject.network), work)

    def taught(self, network: TorchNetwork, teacher: TorchNetwork, work: Work) -> TorchNetwork:
        """A copy of `network`, trained on what `teacher` answers and on the truth."""
        student = network.copy()
        if self.alpha == 0 and not self.hidden:
            fit(student, work.samples.train, work, self.training, label="distil")
            return student
        loss = teaching(
            student,
            teacher,
            work,
            temperature=self.temperature,
            alpha=self.alpha,
            rows=self.rows,
            task=self.task,
        )
        if not self.hidden or self.hidden_weight == 0:
            fit(student, work.samples.train, work, self.training, label="distil", loss_of=loss)
            return student
        return self._taught_inside(student, teacher, work, loss)

    def _taught_inside(
        self, student: TorchNetwork, teacher: TorchNetwork, work: Work, outside: BatchLoss
    ) -> TorchNetwork:
        rows = taught_rows(work, self.rows)
        told = lessons(teacher, rows, work, tuple(self.hidden.values()))
        with (
            evaluating(student.module),
            torch.inference_mode(),
            heard(student.module, tuple(self.hidden), "distil.hidden") as first,
        ):
            call(student.module, tensors({name: values[:2] for name, values in rows.feeds.items()}))
        projections = nn.ModuleDict()
        for position, (own, theirs) in enumerate(self.hidden.items()):
            pair, shape = f"{own} → {theirs}", told[theirs].shape[1:]
            projections[str(position)] = _projection(tuple(first[own].shape[1:]), shape, pair, work.seed)
        # The projections learn with the student, within one module, and are left behind.
        both = _Taught(student.module, projections)

        def loss(module: nn.Module, feeds: dict[str, Tensor], truth: Tensor, chosen: Array) -> Tensor:
            assert isinstance(module, _Taught)
            with heard(module.student, tuple(self.hidden), "distil.hidden") as outputs:
                total = outside(module.student, feeds, truth, chosen)
            apart = [
                _apart(
                    module.projections[str(position)](outputs[own]),
                    _picked(told[theirs], chosen),
                    self.hidden_loss,
                )
                for position, (own, theirs) in enumerate(self.hidden.items())
            ]
            return total + self.hidden_weight * torch.stack(apart).mean()

        fit(student.with_module(both), work.samples.train, work, self.training, label="distil", loss_of=loss)
        return student


class _Taught(nn.Module):
    """A student with what brings its layers to the teacher's widths; trained as one."""

    def __init__(self, student: nn.Module, projections: nn.ModuleDict) -> None:
        super().__init__()
        self.student, self.projections = student, projections


def teaching(
    student: TorchNetwork, teacher: TorchNetwork, work: Work, *, temperature: float, alpha: float,
    rows: int | None = None, task: str = "",
) -> BatchLoss:  # fmt: skip
    """The loss of a batch: alpha × the distance from the teacher's answers + (1 - alpha) × the network's own loss.

    The teacher answers all rows at once, before; or not at all, where its answers are kept from another time.
    Raises BadInput for a student whose outputs are not its teacher's.
    """
    told = lessons(teacher, taught_rows(work, rows), work)[""]
    own = student.answers({name: values[:2] for name, values in student.example.items()})
    if own.shape[1:] != told.shape[1:]:
        raise BadInput(
            "a student with other outputs than its teacher", where="distil", got=f"{own.shape[1:]} per row",
            wanted=f"{told.shape[1:]}", next="End the student with as many outputs as the teacher has.",
        )  # fmt: skip
    soft = SOFT[task or task_of(student)]

    def loss(module: nn.Module, feeds: dict[str, Tensor], truth: Tensor, chosen: Array) -> Tensor:
        answers = call(module, feeds)
        total = alpha * soft(answers, _picked(told, chosen), temperature)
        return total if alpha == 1 else total + (1 - alpha) * student.loss(answers, truth)

    return loss


def task_of(network: TorchNetwork) -> str:
    """Which of `SOFT` the network's answers are of, as it or its loss says; raises BadInput where neither does."""
    if network.task:
        return network.task
    for name, loss in LOSSES.items():
        if network.loss is loss:
            return name
    raise BadInput(
        "a loss of the user's own does not say what the answers are", where="distil.task",
        wanted=", ".join(SOFT), next="Say `task`: of this step, or of the network.",
    )  # fmt: skip


def check_softness(temperature: float, alpha: float, where: str) -> None:
    """Raise BadInput for a temperature that is not above 0 or an alpha that is no share."""
    if not (np.isfinite(temperature) and temperature > 0):
        raise BadInput(
            "a temperature divides the logits", where=f"{where}.temperature", got=temperature, wanted="above 0, finite",
            next="1 leaves the teacher's probabilities as they are; 2 to 5 are usual.",
        )  # fmt: skip
    if not 0 <= alpha <= 1:
        raise BadInput(
            "alpha is the teacher's share of the loss", where=f"{where}.alpha", got=alpha, wanted="0 to 1"
        )


def taught_rows(work: Work, rows: int | None) -> Any:
    """The training rows that `fit` will choose, in its order."""
    train = work.samples.train
    return train if rows is None else train.few(rows, work.seed)


def _projection(own: tuple[int, ...], theirs: tuple[int, ...], pair: str, seed: int) -> nn.Module:
    if own == theirs:
        return nn.Identity()
    if own[:-1] != theirs[:-1] or not own:
        raise BadInput(
            "layers whose outputs cannot be compared", where=f"distil.hidden: {pair}",
            got=f"{own} and {theirs} per row", wanted="shapes that differ in the last axis only",
        )  # fmt: skip
    torch.manual_seed(seed)
    return nn.Linear(own[-1], theirs[-1], bias=False)


def _apart(own: Tensor, theirs: Tensor, kind: str) -> Tensor:
    if kind == "mse":
        return nn.functional.mse_loss(own, theirs)
    return (1 - nn.functional.cosine_similarity(own, theirs, dim=-1)).mean()


def _picked(values: Array, chosen: Array) -> Tensor:
    # Sorted, a mapped file is read from front to back.
    order = np.argsort(chosen)
    picked = np.empty((len(chosen), *values.shape[1:]), values.dtype)
    picked[order] = values[chosen[order]]
    return torch.from_numpy(picked)
