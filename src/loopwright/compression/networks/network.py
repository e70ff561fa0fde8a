"""A torch module with what is needed to train it further and to export it."""

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loopwright.compression.steps import CannotExport
from loopwright.compression.subject import Array, Feeds, Rows
from loopwright.kernel.errors import BadInput

OPSET = 18
ROWS_AT_ONCE = 256

LossOf = Callable[[Tensor, Tensor], Tensor]
"""(answers (n, outputs), truth (n,)) → the mean loss, a scalar."""

LOSSES: Mapping[str, LossOf] = {
    "multiclass": lambda answers, y: nn.functional.cross_entropy(answers, y.long()),
    "binary": lambda answers, y: nn.functional.binary_cross_entropy_with_logits(
        answers.reshape(-1), y.to(answers.dtype)
    ),
    "regression": lambda answers, y: nn.functional.mse_loss(answers.reshape(-1), y.to(answers.dtype)),
}
"""By task; the module answers with logits for the first two."""


@dataclass(frozen=True)
class TorchNetwork:
    """`module` takes the feeds of `example` (one by position, several by name) and answers with one tensor,
    (n, outputs): logits or numbers.

    example: a few rows of feeds, to trace with. variable: input → axis → name, for axes besides the rows that vary in
    length. loss: what training lowers. head: put behind the module when it is exported (a softmax), None for nothing.
    """

    module: nn.Module
    example: Feeds
    loss: LossOf
    variable: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    head: nn.Module | None = None
    output: str = "outputs"

    def with_module(self, module: nn.Module) -> "TorchNetwork":
        """The same inputs and loss around another module."""
        return replace(self, module=module)

    def copy(self) -> "TorchNetwork":
        """One whose weights may be changed."""
        return replace(self, module=copy.deepcopy(self.module))

    def parameters(self) -> int:
        """How many numbers it holds; tied weights count once."""
        return sum(one.numel() for one in self.module.parameters())

    def check(self) -> None:
        """Raise BadInput for weights that are not numbers, naming the first."""
        for name, weights in self.module.named_parameters():
            wrong = int((~torch.isfinite(weights)).sum())
            if wrong:
                raise BadInput(
                    "weights that are no numbers", where=name, got=f"{wrong} of {weights.numel()} NaN or infinite",
                    wanted="finite weights", next="Train again, with a lower rate or clipped gradients.",
                )  # fmt: skip

    def answers(self, rows: Rows | Feeds, batch: int = ROWS_AT_ONCE) -> Array:
        """What the module answers, without the head: float32 (n, outputs)."""
        feeds = rows.feeds if isinstance(rows, Rows) else rows
        total = len(next(iter(feeds.values())))
        self.module.eval()
        with torch.inference_mode():
            parts = [
                call(
                    self.module, tensors({name: values[at : at + batch] for name, values in feeds.items()})
                ).numpy()
                for at in range(0, total, batch)
            ]
        return np.concatenate(parts)

    def export(self, path: Path) -> None:
        """Write it as ONNX with `torch.export`, rows and the variable axes dynamic. Raises CannotExport."""
        path.parent.mkdir(parents=True, exist_ok=True)
        example = tensors({name: values[:2] for name, values in self.example.items()})
        names = tuple(example)
        shapes = {
            name: {0: torch.export.Dim("rows"), **{
                axis: torch.export.Dim(label) for axis, label in self.variable.get(name, {}).items()
            }}
            for name in names
        }  # fmt: skip
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.onnx.export(
                    _Traced(self.module, self.head, names).eval(), tuple(example.values()), dynamo=True,
                    opset_version=OPSET, input_names=list(names), output_names=[self.output],
                    dynamic_shapes=(tuple(shapes.values()),), verbose=False, external_data=False,
                )  # fmt: skip
                assert program is not None
                program.save(str(path))
        except Exception as error:  # torch's own errors share no base class
            raise CannotExport(
                f"the module cannot be traced ({type(error).__name__}: {str(error)[:500]})",
                where=str(path.name),
                wanted="a module whose path does not depend on the values it sees",
                next="Take Python conditions on tensors, and sizes read as numbers, out of forward().",
            ) from error


class _Traced(nn.Module):
    """A module and its head, called by position as a tracer does."""

    def __init__(self, module: nn.Module, head: nn.Module | None, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.head, self.names = module, head, names

    def forward(self, *values: Tensor) -> Any:
        answers = call(self.module, dict(zip(self.names, values, strict=True)))
        return answers if self.head is None else self.head(answers)


def call(module: nn.Module, feeds: Mapping[str, Tensor]) -> Tensor:
    """The module's answers: one input is handed over by position, several by their names."""
    answers: Tensor = module(*feeds.values()) if len(feeds) == 1 else module(**feeds)
    return answers


def tensors(feeds: Feeds) -> dict[str, Tensor]:
    """The feeds as torch takes them, sharing memory where numpy's layout allows it."""
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in feeds.items()}
