"""Low rank: a linear layer becomes two thin ones, cut where the inputs that really come would miss least."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from loopwright.compression.networks.fitting import Training, fit
from loopwright.compression.networks.heads import take_apart
from loopwright.compression.networks.network import ROWS_AT_ONCE, TorchNetwork, call, tensors
from loopwright.compression.networks.schedule import own_copy, spared, ties, tried, within
from loopwright.compression.steps import CannotExport, Work
from loopwright.compression.subject import Network, Rows
from loopwright.kernel.errors import BadInput

ENERGY = 0.95
RIDGE = 1e-5
"""Of the mean second moment: what is added for inputs that never came, so that whitening can be undone."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """Write the weights W (outputs, inputs) of linear layers, and of 1 x 1 convolutions, as a product of rank r,
    wherever r · (inputs + outputs) numbers are fewer.

    One of: `energy` (the smallest r that keeps this share of the squared singular values; 0.95 when nothing is said),
    `rank`, or `ratio` (r such that this share of the layer's weights is left).

    aware: cut W·C by its singular values instead of W, where C·Cᵀ is the second moment of the layer's inputs over at
    most `rows` training rows, which makes the squared error of the layer's *outputs* least (SVD-LLM, Wang et al. 2024;
    ASVD, Yuan et al. 2023). `epochs` of training follow. Modules that match `spare` and tied weights stay;
    `nn.MultiheadAttention` is taken apart first.
    """

    name: ClassVar[str] = "low-rank"
    energy: float | None = None
    rank: int | None = None
    ratio: float | None = None
    aware: bool = True
    rows: int = 512
    epochs: int = 0
    rate: float = 5e-4
    batch: int = 64
    spare: Sequence[str] = ()

    def __post_init__(self) -> None:
        said = [one for one in ("energy", "rank", "ratio") if getattr(self, one) is not None]
        if len(said) > 1:
            raise BadInput(
                "more than one way to choose the rank", where=self.name, got=", ".join(said),
                wanted="energy, rank or ratio",
            )  # fmt: skip
        if self.energy is not None:
            within(self.energy, 0.01, 1, f"{self.name}: energy")
        if self.rank is not None:
            within(self.rank, 1, 1_000_000, f"{self.name}: rank")
        if self.ratio is not None:
            within(self.ratio, 0.01, 0.99, f"{self.name}: ratio")
        within(self.rows, 1, 1_000_000, f"{self.name}: rows")
        within(self.epochs, 0, 1000, f"{self.name}: epochs")
        Training(max(1, self.epochs), self.rate, self.batch)
        object.__setattr__(self, "spare", tuple(self.spare))

    def reshape(self, network: Network, work: Work) -> Network:
        """A copy with fewer numbers. Raises CannotExport where no layer would have fewer, BadInput for weights or
        inputs that are no numbers, OutOfTime.
        """
        thin = own_copy(network, self.name)
        before, count = thin.answers(thin.example), thin.parameters()
        take_apart(thin.module)
        layers = _factorable(thin.module, tuple(self.spare))
        moments = (
            second_moments(thin, layers, work.samples.calibration(work.seed, self.rows), work)
            if self.aware
            else {}
        )
        ranks: dict[str, int] = {}
        lost: list[float] = []
        for name, layer in layers.items():
            work.check_time()
            matrix = layer.weight.detach().flatten(1)
            root = _root(moments[name]) if name in moments else None
            left, values, right = decompose(matrix, root)
            rank = self._rank(values, matrix)
            if rank * sum(matrix.shape) >= matrix.numel():
                continue
            ranks[name] = rank
            energy = values.square()
            lost.append(float(energy[rank:].sum() / energy.sum().clamp_min(1e-30)))
            owner, _, attribute = name.rpartition(".")
            pair = _pair(layer, left[:, :rank] * values[:rank], right[:rank])
            setattr(thin.module.get_submodule(owner), attribute, pair)
        if not ranks:
            raise CannotExport(
                "no layer would have fewer numbers as a product", where=self.name,
                got=f"{len(layers)} layers, {self._said()}",
                wanted="a rank below inputs · outputs / (inputs + outputs)",
                next="Ask for less energy, a lower rank or a smaller ratio.",
            )  # fmt: skip
        tried(thin, before, self.name)
        if self.epochs:
            fit(
                thin, work.samples.train, work, Training(self.epochs, self.rate, self.batch), label="low_rank"
            )
            tried(thin, before, self.name)
        work.notes.metrics(
            {
                "parameters_before": count,
                "parameters": thin.parameters(),
                "layers_factored": len(ranks),
                "layers_left_alone": len(layers) - len(ranks),
                "mean_rank": sum(ranks.values()) / len(ranks),
                "mean_energy_lost": sum(lost) / len(lost),
            }
        )
        return thin

    def _said(self) -> str:
        if self.rank is not None:
            return f"rank {self.rank}"
        return f"ratio {self.ratio:g}" if self.ratio is not None else f"energy {self.energy or ENERGY:g}"

    def _rank(self, values: Tensor, matrix: Tensor) -> int:
        if self.rank is not None:
            return min(self.rank, len(values))
        if self.ratio is not None:
            return max(1, int(self.ratio * matrix.numel() / sum(matrix.shape)))
        energy = values.square().cumsum(0)
        if not energy[-1] > 0:
            return 1
        # Past the last digit of float64 nothing is missing: a matrix of rank r keeps all its energy in r values.
        enough = energy >= (self.energy or ENERGY) * energy[-1] * (1 - 1e-12)
        return int(enough.nonzero()[0]) + 1


def _factorable(module: nn.Module, spare: tuple[str, ...]) -> dict[str, nn.Linear | nn.Conv2d]:
    tied = {name for same in ties(module) for name in same}
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for name, layer in module.named_modules():
        if not name or spared(name, spare) or f"{name}.weight" in tied:
            continue
        if type(layer) is nn.Linear or (
            type(layer) is nn.Conv2d
            and layer.kernel_size == (1, 1)
            and layer.groups == 1
            and layer.padding == (0, 0)
        ):
            found[name] = layer
    return found


def decompose(matrix: Tensor, root: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """U, σ, V with matrix = U · diag(σ) · V in float64; cut after r values, they are the best of rank r for inputs with
    second moment root · rootᵀ, root (inputs, inputs) lower triangular; None: for inputs of all directions alike.
    """
    exact = matrix.double()
    left, values, right = torch.linalg.svd(exact if root is None else exact @ root, full_matrices=False)
    if root is not None:
        right = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    return left, values, right


def _root(moment: Tensor) -> Tensor:
    """The lower triangular C with C·Cᵀ = moment, a ridge added for what never came."""
    size = len(moment)
    ridge = RIDGE * float(moment.diagonal().mean()) + 1e-12
    root: Tensor = torch.linalg.cholesky(moment + ridge * torch.eye(size, dtype=moment.dtype))
    return root


def _pair(layer: nn.Linear | nn.Conv2d, left: Tensor, right: Tensor) -> nn.Sequential:
    """Two layers that compute left · right · x + bias, as many numbers in and out as `layer`."""
    rank = len(right)
    bias = layer.bias is not None
    first: nn.Linear | nn.Conv2d
    second: nn.Linear | nn.Conv2d
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False)
        second = nn.Linear(rank, layer.out_features, bias)
    else:
        first = nn.Conv2d(layer.in_channels, rank, 1, stride=layer.stride, bias=False)  # type: ignore[arg-type]
        second = nn.Conv2d(rank, layer.out_channels, 1, bias=bias)
    # σ is shared between both, so that neither trains at another speed than the other.
    size = left.norm(dim=0).clamp_min(1e-30).sqrt()
    with torch.no_grad():
        first.weight.copy_((right * size[:, None]).reshape(first.weight.shape))
        second.weight.copy_((left / size).reshape(second.weight.shape))
        if second.bias is not None and layer.bias is not None:
            second.bias.copy_(layer.bias)
    return nn.Sequential(first, second).train(layer.training)


def second_moments(
    network: TorchNetwork, layers: dict[str, nn.Linear | nn.Conv2d], rows: Rows, work: Work
) -> dict[str, Tensor]:
    """The mean of x·xᵀ, float64 (inputs, inputs), over all inputs x of each layer while `rows` are answered; layers
    that were not asked are left out. Raises BadInput for inputs that are no numbers.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    network.module.eval()
    with torch.inference_mode(), _watched(layers, sums, counts):
        for at in range(0, len(rows), ROWS_AT_ONCE):
            work.check_time()
            part = {name: values[at : at + ROWS_AT_ONCE] for name, values in rows.feeds.items()}
            call(network.module, tensors(part))
    found = {name: (total / counts[name]).clone() for name, total in sums.items()}
    for name, moment in found.items():
        if not bool(torch.isfinite(moment).all()):
            raise BadInput(
                "inputs of a layer that are no numbers", where=f"low-rank: {name}", wanted="finite rows"
            )
    return found


@contextmanager
def _watched(
    layers: dict[str, nn.Linear | nn.Conv2d], sums: dict[str, Tensor], counts: dict[str, int]
) -> Iterator[None]:
    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0].detach()
            if isinstance(layer, nn.Conv2d):
                seen = seen.movedim(1, -1)
            flat = seen.reshape(-1, seen.shape[-1]).double()
            sums[name] = sums.get(name, torch.zeros(())) + flat.T @ flat
            counts[name] = counts.get(name, 0) + len(flat)

        return hook

    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
