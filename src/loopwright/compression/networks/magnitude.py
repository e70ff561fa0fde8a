"""Unstructured pruning: the weights nearest to zero become zero, in rounds, with training in between."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from loopwright.compression.networks.fitting import Training, fit, keep_zeros
from loopwright.compression.networks.network import TorchNetwork
from loopwright.compression.networks.schedule import (
    cubic,
    listed,
    one_of,
    own_copy,
    spared,
    tried,
    whole,
    within,
)
from loopwright.compression.steps import Work
from loopwright.compression.subject import Network
from loopwright.kernel.errors import BadInput

SCOPES = ("global", "layer")
MOST = 0.99
STAYS = 1 - MOST
"""Of each layer's weights, whatever is said: a layer of zeros cuts the network in two (Tanaka et al. 2020)."""

Weights = dict[str, nn.Parameter]


@dataclass(frozen=True, slots=True)
class PruneWeights:
    """Set the `sparsity` share of all weights to zero: those of least magnitude in the whole network (`scope` global)
    or in each layer (layer).

    Weights are those of linear and convolutional layers and of packed attention; embeddings, biases and norms keep
    theirs, as do modules whose name matches `spare`. Pruned in `rounds` after the cubic schedule (Zhu & Gupta 2017),
    with `epochs` of training after each; `rate` is one that pretrained encoders bear. Zeros stay zeros, in the steps
    that follow too (`finetune`, `distil`, `qat`), as long as their layers keep their sizes.

    Zeros alone make no file smaller and no answer faster: ONNX Runtime stores and multiplies them like other numbers.
    What they do save is room where files are packed (in transport, in an image): `weights_bytes` and `packed_bytes` are
    noted, the weights' bytes as they are and after DEFLATE. For a smaller, faster model: `prune-structure`.
    """

    name: ClassVar[str] = "prune-weights"
    sparsity: float = 0.5
    scope: str = "global"
    rounds: int = 3
    epochs: int = 1
    rate: float = 3e-4
    batch: int = 64
    rows: int | None = None
    spare: Sequence[str] = ()

    def __post_init__(self) -> None:
        within(self.sparsity, 0.01, MOST, f"{self.name}: sparsity")
        whole(self.rounds, 1, 100, f"{self.name}: rounds")
        whole(self.epochs, 0, 1000, f"{self.name}: epochs")
        one_of(self.scope, SCOPES, f"{self.name}: scope")
        Training(max(1, self.epochs), self.rate, self.batch)
        object.__setattr__(self, "spare", listed(self.spare, f"{self.name}: spare"))

    def reshape(self, network: Network, work: Work) -> Network:
        """A copy with zeros. Raises BadInput for weights that are no numbers or a network without such layers,
        OutOfTime.
        """
        sparse = own_copy(network, self.name, work.threads)
        before = sparse.answers(sparse.example)
        weights = prunable(sparse.module, tuple(self.spare))
        if not weights:
            raise BadInput(
                "no weights to prune", where=self.name, wanted="linear or convolutional layers",
                next="Look at `spare`: it may name all of them.",
            )  # fmt: skip
        for turn, share in enumerate(cubic(self.sparsity, self.rounds), start=1):
            work.check_time()
            masks = masks_of(weights, share, self.scope)
            _silence(weights, masks)
            if self.epochs:
                self._train(sparse, work, weights, masks, turn)
            work.notes.metrics({"sparsity": sparsity(weights)}, step=turn)
        for name, one in weights.items():
            owner, _, own = name.rpartition(".")
            keep_zeros(sparse.module.get_submodule(owner), own, one.detach() != 0)
        tried(sparse, before, self.name)
        _note(sparse, weights, work)
        return sparse

    def _train(
        self, network: TorchNetwork, work: Work, weights: Weights, masks: dict[str, Tensor], turn: int
    ) -> None:
        fit(
            network, work.samples.train, work, Training(self.epochs, self.rate, self.batch, rows=self.rows),
            label=f"round_{turn}", after_step=lambda: _silence(weights, masks),
        )  # fmt: skip


def prunable(module: nn.Module, spare: tuple[str, ...] = ()) -> Weights:
    """The matrices and kernels of linear, convolutional and attention layers by name; what is tied to a table of
    embeddings is none of them, and tied weights come once.
    """
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNBase)
    taken = {id(one.weight) for one in module.modules() if isinstance(one, nn.Embedding)}
    found: Weights = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, kinds) or spared(name, spare):
            continue
        for own, weights in layer.named_parameters(recurse=False):
            if weights.ndim >= 2 and id(weights) not in taken:
                taken.add(id(weights))
                found[f"{name}.{own}" if name else own] = weights
    return found


def masks_of(weights: Weights, share: float, scope: str) -> dict[str, Tensor]:
    """Where weights stay: False for exactly floor(share · count) of them, over all or in each layer.

    Over all layers, the largest hundredth of each stays.
    """
    if scope == "layer":
        return {name: _largest(one.detach().abs().flatten(), share, one) for name, one in weights.items()}
    parts = []
    for one in weights.values():
        sizes = one.detach().abs().flatten()
        stays = torch.topk(sizes, max(1, int(STAYS * len(sizes)))).indices
        parts.append(sizes.index_fill(0, stays, torch.inf))
    flat = _largest(torch.cat(parts), share)
    pieces = torch.split(flat, [one.numel() for one in weights.values()])
    return {name: piece.view_as(one) for (name, one), piece in zip(weights.items(), pieces, strict=True)}


def sparsity(weights: Weights) -> float:
    """The share of zeros."""
    zeros = sum(int((one == 0).sum()) for one in weights.values())
    return zeros / sum(one.numel() for one in weights.values())


def _largest(sizes: Tensor, share: float, like: Tensor | None = None) -> Tensor:
    """True for all but the floor(share · count) smallest; the first of equals go first."""
    gone = int(share * len(sizes))
    stays = torch.ones_like(sizes, dtype=torch.bool)
    if gone:
        limit = torch.kthvalue(sizes, gone).values
        stays = sizes > limit
        equal = (sizes == limit).nonzero().flatten()
        below = int((sizes < limit).sum())
        stays[equal[gone - below :]] = True
    return stays if like is None else stays.view_as(like)


@torch.no_grad()
def _silence(weights: Weights, masks: dict[str, Tensor]) -> None:
    for name, one in weights.items():
        one.mul_(masks[name])


def _note(network: TorchNetwork, weights: Weights, work: Work) -> None:
    zeros = sum(int((one == 0).sum()) for one in weights.values())
    raw = [one.detach().numpy().tobytes() for one in network.module.parameters()]
    work.notes.metrics(
        {
            "zeros": zeros,
            "weights": sum(one.numel() for one in weights.values()),
            "weights_bytes": sum(len(one) for one in raw),
            "packed_bytes": sum(len(zlib.compress(one, 1)) for one in raw),
        }
    )
    work.notes.params({"layers_pruned": len(weights)})
