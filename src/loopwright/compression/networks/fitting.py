"""One training loop for all steps that train: AdamW, a warm-up, a cosine, and a curve of what was lost."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from loopwright.compression.networks.network import TorchNetwork, call, tensors
from loopwright.compression.steps import Work
from loopwright.compression.subject import Rows
from loopwright.kernel.errors import BadInput

_ZEROS = "_kept_zeros"
BatchLoss = Callable[[nn.Module, dict[str, Tensor], Tensor, np.ndarray[Any, Any]], Tensor]
"""(module, feeds, truth, positions of the rows) → scalar."""


@dataclass(frozen=True, slots=True)
class Training:
    """`rate`: the highest learning rate; `warmup`: share of the steps before it is reached; `rows`: at most so many."""

    epochs: int = 3
    rate: float = 1e-3
    batch: int = 64
    warmup: float = 0.1
    decay: float = 0.01
    clip: float = 1.0
    rows: int | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or not self.rate > 0:
            raise BadInput(
                "training needs epochs, a batch and a rate above 0", where="training", got=str(self)
            )


def fit(
    network: TorchNetwork,
    rows: Rows,
    work: Work,
    settings: Training,
    *,
    label: str,
    loss_of: BatchLoss | None = None,
    after_step: Callable[[], None] | None = None,
) -> list[float]:
    """Train `network.module` in place and return the mean loss of each epoch, noted as `<label>_loss`.

    loss_of: instead of the network's own loss. after_step: called after each update. Weights that `keep_zeros` was told
    of stay zero.
    Repeatable by `work.seed`. Raises OutOfTime between epochs, BadInput when the loss stops being a number.
    """
    if settings.rows is not None:
        rows = rows.few(settings.rows, work.seed)
    module, total = network.module, len(rows)
    torch.manual_seed(work.seed)
    torch.set_num_threads(max(1, work.threads))
    order = np.random.default_rng(work.seed)
    optimiser = torch.optim.AdamW(module.parameters(), lr=settings.rate, weight_decay=settings.decay)
    steps = settings.epochs * math.ceil(total / settings.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda at: _share(at, steps, settings.warmup))
    silent = _silent(module)
    curve: list[float] = []
    for epoch in range(settings.epochs):
        work.check_time()
        module.train()
        positions, lost = order.permutation(total), 0.0
        for at in range(0, total, settings.batch):
            chosen = positions[at : at + settings.batch]
            if len(chosen) == 1 and total > 1:
                continue  # batch norm has no variance of one row
            feeds = tensors({name: values[chosen] for name, values in rows.feeds.items()})
            truth = torch.from_numpy(np.ascontiguousarray(rows.y[chosen]))
            optimiser.zero_grad()
            loss = (
                loss_of(module, feeds, truth, chosen) if loss_of else network.loss(call(module, feeds), truth)
            )
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), settings.clip)
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                for weights, stays in silent:
                    weights.mul_(stays)
            if after_step is not None:
                after_step()
            lost += float(loss.detach()) * len(chosen)
            work.watch.update(
                (epoch + (at + len(chosen)) / total) / settings.epochs, f"{label}: epoch {epoch + 1}"
            )
        curve.append(lost / total)
        if not math.isfinite(curve[-1]):
            raise BadInput(
                "the loss stopped being a number", where=f"{label}, epoch {epoch + 1}", got=curve[-1],
                next="Lower the rate.",
            )  # fmt: skip
        work.notes.metrics({f"{label}_loss": curve[-1]}, step=epoch)
    module.eval()
    return curve


def keep_zeros(layer: nn.Module, name: str, stays: Tensor) -> None:
    """Remember, with the layer and its copies, where its parameter `name` was pruned: False in `stays`."""
    layer.__dict__.setdefault(_ZEROS, {})[name] = stays


def _silent(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Parameters with zeros to be kept; of a layer that has other sizes by now, or rounds, its trained ones."""
    found = []
    for layer in module.modules():
        for name, stays in layer.__dict__.get(_ZEROS, {}).items():
            rounded = parametrize.is_parametrized(layer, name)
            weights = layer.parametrizations[name].original if rounded else layer._parameters.get(name)  # type: ignore[index,union-attr]
            if isinstance(weights, Tensor) and weights.shape == stays.shape:
                found.append((weights, stays))
    return found


def _share(at: int, steps: int, warmup: float) -> float:
    """Of the highest rate, at step `at`: a line up, half a cosine down (Loshchilov & Hutter 2017)."""
    first = max(1, int(warmup * steps))
    if at < first:
        return (at + 1) / first
    return 0.5 * (1 + math.cos(math.pi * (at - first) / max(1, steps - first)))
