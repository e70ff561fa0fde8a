"""Low rank: a linear layer becomes two thin ones, cut where the inputs that really come would miss least."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from loopwright.compression.networks.fitting import Training, fit
from loopwright.compression.networks.heads import take_apart
from loopwright.compression.networks.network import ROWS_AT_ONCE, TorchNetwork, call, tensors
from loopwright.compression.networks.schedule import listed, own_copy, spared, ties, tried, whole, within
from loopwright.compression.steps import CannotExport, Work
from loopwright.compression.subject import Network, Rows
from loopwright.kernel.errors import BadInput

ENERGY = 0.98
VECTORS = 4096
RIDGE = 1e-5
"""Of the mean second moment: what is added for inputs that never came, so that whitening can be undone."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """Write the weights W (outputs, inputs) of linear layers, and of 1 x 1 convolutions, as a product of rank r,
    wherever r · (inputs + outputs) numbers are fewer.

    One of: `energy` (the smallest r that keeps this share of the squared singular values; 0.98 when nothing is said),
    `rank`, or `ratio` (this share of all their numbers together stays, given to the singular values that hold most of
    their layer's energy per number: a small last layer is not cut as deep as a wide inner one).

    aware: cut W·C by its singular values instead of W, where C·Cᵀ is the covariance of the layer's inputs over at most
    `rows` training rows, and let the bias take up what their mean would miss; without a bias, the second moment. This
    makes the squared error of the layer's *outputs* least (SVD-LLM, Wang et al. 2024; ASVD, Yuan et al. 2023, about
    zero both). `epochs` of training follow. Modules that match `spare` and tied weights stay;
    `nn.MultiheadAttention` is taken apart first.
    """

    name: ClassVar[str] = "low-rank"
    energy: float | None = None
    rank: int | None = None
    ratio: float | None = None
    aware: bool = True
    rows: int = 512
    epochs: int = 0
    rate: float = 3e-4
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
            whole(self.rank, 1, 1_000_000, f"{self.name}: rank")
        if self.ratio is not None:
            within(self.ratio, 0.01, 0.99, f"{self.name}: ratio")
        whole(self.rows, 1, 1_000_000, f"{self.name}: rows")
        whole(self.epochs, 0, 1000, f"{self.name}: epochs")
        Training(max(1, self.epochs), self.rate, self.batch)
        object.__setattr__(self, "spare", listed(self.spare, f"{self.name}: spare"))

    def reshape(self, network: Network, work: Work) -> Network:
        """A copy with fewer numbers. Raises CannotExport where no layer would have fewer, BadInput for weights or
        inputs that are no numbers, OutOfTime.
        """
        thin = own_copy(network, self.name, work.threads)
        before, count = thin.answers(thin.example), thin.parameters()
        take_apart(thin.module)
        layers = _factorable(thin.module, tuple(self.spare))
        seen: dict[str, Seen] = {}
        if self.aware:
            seen = inputs_of(thin, layers, work.samples.calibration(work.seed, self.rows), work)
        products: dict[str, Product] = {}
        for name, layer in layers.items():
            work.check_time()
            root = _root(seen[name].spread) if name in seen else None
            left, values, right = decompose(layer.weight.detach().flatten(1), root)
            products[name] = Product((left * values).float(), right.float(), values.square())
        ranks = {name: rank for name, rank in self._ranks(products).items() if products[name].saves(rank)}
        for name, rank in ranks.items():
            owner, _, attribute = name.rpartition(".")
            left, right = products[name].left[:, :rank], products[name].right[:rank]
            setattr(
                thin.module.get_submodule(owner), attribute, _pair(layers[name], left, right, seen.get(name))
            )
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
                thin, work.samples.train, work, Training(self.epochs, self.rate, self.batch), label="training"
            )
            tried(thin, before, self.name)
        work.notes.metrics(
            {
                "parameters_before": count,
                "parameters": thin.parameters(),
                "layers_factored": len(ranks),
                "layers_left_alone": len(layers) - len(ranks),
                "mean_rank": sum(ranks.values()) / len(ranks),
                "mean_energy_lost": sum(products[name].lost(rank) for name, rank in ranks.items())
                / len(ranks),
            }
        )
        return thin

    def _said(self) -> str:
        if self.rank is not None:
            return f"rank {self.rank}"
        return f"ratio {self.ratio:g}" if self.ratio is not None else f"energy {self.energy or ENERGY:g}"

    def _ranks(self, products: Mapping[str, "Product"]) -> dict[str, int]:
        if self.ratio is not None:
            return ranks_within(self.ratio, products)
        if self.rank is not None:
            return {name: min(self.rank, len(one.energy)) for name, one in products.items()}
        return {name: one.rank_of(self.energy or ENERGY) for name, one in products.items()}


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix as left (outputs, r) times right (r, inputs), the directions that hold most first; their `energy` (r,)
    in float64.
    """

    left: Tensor
    right: Tensor
    energy: Tensor

    @property
    def each(self) -> int:
        """How many numbers one direction takes."""
        return self.left.shape[0] + self.right.shape[1]

    @property
    def numbers(self) -> int:
        """How many numbers the matrix has."""
        return self.left.shape[0] * self.right.shape[1]

    def saves(self, rank: int) -> bool:
        return rank * self.each < self.numbers

    def lost(self, rank: int) -> float:
        """The share of the energy past the first `rank` directions."""
        return float(self.energy[rank:].sum() / self.energy.sum().clamp_min(1e-300))

    def rank_of(self, share: float) -> int:
        """The smallest rank with this share of the energy, at least 1."""
        held = self.energy.cumsum(0)
        # Past the last digit of float64 nothing is missing: a matrix of rank r keeps all its energy in r values.
        return int((held < share * held[-1] * (1 - 1e-12)).sum()) + 1 if held[-1] > 0 else 1


def ranks_within(ratio: float, products: Mapping[str, Product]) -> dict[str, int]:
    """Ranks, at least 1, with which all layers together have at most `ratio` of their numbers, where that can be; those
    that would not be smaller as products count whole.

    One limit for all of them: a direction stays that holds more of its layer's energy per number.
    """
    worth = {
        name: one.energy / one.energy.sum().clamp_min(1e-300) / one.each for name, one in products.items()
    }
    budget = ratio * sum(one.numbers for one in products.values())
    limits = (
        torch.cat([*worth.values(), torch.tensor([torch.inf])]).sort().values
        if worth
        else torch.tensor([0.0])
    )

    def at(limit: float) -> dict[str, int]:
        return {name: max(1, int((one >= limit).sum())) for name, one in worth.items()}

    low, high = 0, len(limits) - 1
    while low < high:
        middle = (low + high) // 2
        ranks = at(float(limits[middle]))
        if (
            sum(min(rank * products[name].each, products[name].numbers) for name, rank in ranks.items())
            <= budget
        ):
            high = middle
        else:
            low = middle + 1
    return at(float(limits[low]))


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


def _root(spread: Tensor) -> Tensor:
    """The lower triangular C with C·Cᵀ = spread, a ridge added for what never came."""
    ridge = RIDGE * float(spread.diagonal().mean()) + 1e-12
    root: Tensor = torch.linalg.cholesky(spread + ridge * torch.eye(len(spread), dtype=spread.dtype))
    return root


def _pair(
    layer: nn.Linear | nn.Conv2d, left: Tensor, right: Tensor, seen: "Seen | None" = None
) -> nn.Sequential:
    """Two layers that compute left · right · x + bias, as many numbers in and out as `layer`; equal to it at the mean
    of what was `seen`.
    """
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
            if seen is not None:
                missed = layer.weight.flatten(1).double() - left.double() @ right.double()
                second.bias.add_((missed @ seen.mean).to(second.bias.dtype))
    return nn.Sequential(first, second).train(layer.training)


@dataclass(frozen=True, slots=True)
class Seen:
    """The inputs of a layer, in float64: their `mean` (inputs,) and their `spread` (inputs, inputs) about it; a layer
    without a bias has mean zero, and a spread about zero.
    """

    mean: Tensor
    spread: Tensor


def inputs_of(
    network: TorchNetwork, layers: Mapping[str, nn.Linear | nn.Conv2d], rows: Rows, work: Work
) -> dict[str, Seen]:
    """What comes to each layer while `rows` are answered, at most 4,096 inputs drawn from a batch; layers that were not
    asked are left out. Raises BadInput for inputs that are no numbers.
    """
    sums: dict[str, Tensor] = {}
    network.module.eval()
    with torch.inference_mode(), _watched(layers, sums, work.seed):
        for at in range(0, len(rows), ROWS_AT_ONCE):
            work.check_time()
            part = {name: values[at : at + ROWS_AT_ONCE] for name, values in rows.feeds.items()}
            call(network.module, tensors(part))
    found: dict[str, Seen] = {}
    for name, total in sums.items():
        moments = (total / total[-1, -1]).clone()  # the last input is 1
        if not bool(torch.isfinite(moments).all()):
            raise BadInput(
                "inputs of a layer that are no numbers", where=f"low-rank: {name}", wanted="finite rows"
            )
        mean, spread = moments[:-1, -1], moments[:-1, :-1]
        if layers[name].bias is None:
            found[name] = Seen(torch.zeros_like(mean), spread)
        else:
            found[name] = Seen(mean, spread - torch.outer(mean, mean))
    return found


@contextmanager
def _watched(
    layers: Mapping[str, nn.Linear | nn.Conv2d], sums: dict[str, Tensor], seed: int
) -> Iterator[None]:
    draw = torch.Generator().manual_seed(seed)

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0].detach()
            if isinstance(layer, nn.Conv2d):
                seen = seen.movedim(1, -1)
            flat = seen.reshape(-1, seen.shape[-1])
            if len(flat) > VECTORS:
                flat = flat[torch.randperm(len(flat), generator=draw)[:VECTORS]]
            flat = torch.cat([flat.double(), torch.ones(len(flat), 1, dtype=torch.float64)], 1)
            sums[name] = sums.get(name, torch.zeros(())) + flat.T @ flat

        return hook

    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
