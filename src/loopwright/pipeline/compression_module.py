"""The torch module behind a version, as compression trains it further: logits inside, a head that gives answers.

Imports torch; imported only where there is a module.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loopwright.compression.networks.network import LOSSES, TorchNetwork, call, tensors
from loopwright.compression.subject import Array

_LEAST = 1e-7
"""float32 tells no probability nearer to 0 or 1."""


class _Logits(nn.Module):
    """A module that answers with probabilities, as one that answers with the logits they come from."""

    def __init__(self, module: nn.Module, binary: bool) -> None:
        super().__init__()
        self.module, self.binary = module, binary

    def forward(self, x: Tensor) -> Tensor:
        answers = _columns(self.module(x))
        if not self.binary:
            return torch.log(answers.clamp(min=_LEAST))
        one = answers[:, -1:].clamp(_LEAST, 1 - _LEAST)
        return torch.log(one) - torch.log(1 - one)


class _Columns(nn.Module):
    """A module that answers with numbers, one column at least."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return _columns(self.module(x))


def as_network(module: nn.Module, task: str, name: str, x: Array) -> TorchNetwork:
    """`module` (probabilities, or numbers for regression) as a network whose answers are logits or numbers.

    A last softmax or sigmoid of a Sequential becomes the head; any other module is turned into logits behind itself,
    which changes no answer. x: a few rows (n, features). Answers of the exported graph are (n, 1) for binary models.
    """
    body, head = _beheaded(module, task)
    return TorchNetwork(body, {name: np.ascontiguousarray(x[:4], dtype=np.float32)}, LOSSES[task], head=head)


def answers_of(network: TorchNetwork, x: Array, name: str) -> Array:
    """What the network answers behind its head: float64 (n, outputs)."""
    network.module.eval()
    with torch.inference_mode():
        found: Any = call(network.module, tensors({name: np.ascontiguousarray(x, dtype=np.float32)}))
        found = found if network.head is None else network.head(found)
    return np.asarray(found.numpy(), dtype=np.float64)


def _beheaded(module: nn.Module, task: str) -> tuple[nn.Module, nn.Module | None]:
    if task == "regression":
        return _Columns(module), None
    layers = list(module.children()) if type(module) is nn.Sequential else []
    last = layers[-1] if len(layers) > 1 else None
    binary = task == "binary"
    if (binary and isinstance(last, nn.Sigmoid)) or (
        not binary and isinstance(last, nn.Softmax) and last.dim in (1, -1)
    ):
        return nn.Sequential(*layers[:-1]), last
    return _Logits(module, binary), nn.Sigmoid() if binary else nn.Softmax(1)


def _columns(answers: Tensor) -> Tensor:
    return answers.unsqueeze(1) if answers.dim() == 1 else answers
