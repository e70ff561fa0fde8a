"""Structured pruning: whole channels, attention heads and FFN units leave, and the exported model is smaller."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from loopwright.compression.networks.fitting import Training, fit
from loopwright.compression.networks.heads import check_said, said_heads, take_apart
from loopwright.compression.networks.network import TorchNetwork, call, tensors
from loopwright.compression.networks.schedule import (
    cubic,
    listed,
    one_of,
    own_copy,
    tried,
    whole,
    within,
)
from loopwright.compression.networks.units import Group, Groups, check_same, cut, survey
from loopwright.compression.steps import CannotExport, Work
from loopwright.compression.subject import Network
from loopwright.kernel.errors import BadInput

IMPORTANCE = ("magnitude", "taylor")
SCOPES = ("layer", "global")
MOST = 0.95
LEAST = 0.1
"""Of each layer's units, in scope `global`: one layer's scores must not empty it."""
TRIALS = 7
ROWS = 512
LONGEST = 500


@dataclass(frozen=True, slots=True)
class PruneStructure:
    """Remove the `ratio` share of units of least importance: output channels of convolutions, units of linear layers
    (FFN), and whole attention heads (`head_ratio`; None: as many as `ratio` says). What depends on a unit leaves with
    it, found by the dependency graph of Torch-Pruning (Fang et al. 2023).

    Layers that give the network's answers, and modules whose name matches `spare`, keep all their outputs; attention
    keeps a head. What LayerNorms and embeddings share (an encoder's hidden width) stays unless `width_ratio`
    says otherwise. `parameters`: instead of the ratios, the smallest ratio that leaves at most so many numbers.

    importance: "magnitude" (L2 norm of all weights of a unit) or "taylor" (|weight · gradient| of the training loss,
    Molchanov et al. 2019). scope: "layer" (the ratio of each) or "global" (the least important of all, each layer keeps
    a tenth). multiple: kept channels are rounded to it, for kernels that work on 8 or 16 lanes. Done in `rounds` after
    the cubic schedule, `epochs` of training after each, at a `rate` that pretrained encoders bear; small networks learn
    faster at 1e-3 and more.

    heads: {pattern of module names: attribute with the count of heads}, for attention whose count is in none of
    `num_heads`, `num_attention_heads`, `n_heads`, `n_head`, `nhead`, `heads`. The count is written down anew, so
    forward() must take the width of a head from the module, not from width / heads. `nn.MultiheadAttention` is taken
    apart into linear layers first.

    Before training goes on, the smaller module must answer as the larger one with those units silenced does.
    """

    name: ClassVar[str] = "prune-structure"
    ratio: float = 0.5
    head_ratio: float | None = None
    width_ratio: float = 0.0
    parameters: int | None = None
    importance: str = "magnitude"
    scope: str = "layer"
    multiple: int = 8
    rounds: int = 2
    epochs: int = 1
    rate: float = 3e-4
    batch: int = 64
    rows: int | None = None
    heads: Mapping[str, str] = field(default_factory=dict)
    spare: Sequence[str] = ()

    def __post_init__(self) -> None:
        within(self.ratio, 0, MOST, f"{self.name}: ratio")
        within(self.width_ratio, 0, MOST, f"{self.name}: width_ratio")
        if self.head_ratio is not None:
            within(self.head_ratio, 0, MOST, f"{self.name}: head_ratio")
        if self.parameters is not None:
            whole(self.parameters, 1, 10**12, f"{self.name}: parameters")
        elif not self.ratio + (self.head_ratio or 0) + self.width_ratio > 0:
            raise BadInput("nothing to remove", where=self.name, got="ratios of 0", wanted="one above 0")
        whole(self.multiple, 1, 256, f"{self.name}: multiple")
        whole(self.rounds, 1, 100, f"{self.name}: rounds")
        whole(self.epochs, 0, 1000, f"{self.name}: epochs")
        one_of(self.importance, IMPORTANCE, f"{self.name}: importance")
        one_of(self.scope, SCOPES, f"{self.name}: scope")
        if self.parameters is not None and self.scope == "global":
            raise BadInput(
                "a count of parameters needs a ratio per layer", where=f"{self.name}: scope", got="global",
                wanted="layer",
            )  # fmt: skip
        Training(max(1, self.epochs), self.rate, self.batch)
        object.__setattr__(self, "spare", listed(self.spare, f"{self.name}: spare"))
        object.__setattr__(self, "heads", said_heads(self.heads))

    def reshape(self, network: Network, work: Work) -> Network:
        """A smaller copy. Raises CannotExport where the module cannot be traced, has nothing to remove, or computes
        with sizes written down in its forward(); BadInput, OutOfTime.
        """
        small = own_copy(network, self.name, work.threads)
        parent, before = small.answers(small.example), small.parameters()
        check_said(small.module, self.heads)
        if take_apart(small.module):
            check_same(parent, tried(small, parent, self.name), "taking nn.MultiheadAttention apart")
        shares = self._shares(small, work)
        first: dict[str, int] = {}
        gone: dict[str, int] = {}
        alone = ""
        for turn, part in enumerate(cubic(1.0, self.rounds), start=1):
            work.check_time()
            groups = self._survey(small, work)
            if turn == 1:
                alone = "; ".join(f"{root}: {why}" for root, why in groups.skipped.items())[:LONGEST]
                work.notes.params({"layers_left_alone": alone})
            for kind, count in self._remove(small, groups, shares, part, first).items():
                gone[kind] = gone.get(kind, 0) + count
            tried(small, parent, self.name)
            work.notes.metrics({"parameters": small.parameters()}, step=turn)
            if self.epochs:
                fit(
                    small, work.samples.train, work, Training(self.epochs, self.rate, self.batch, rows=self.rows),
                    label=f"round_{turn}",
                )  # fmt: skip
        if small.parameters() >= before:
            raise CannotExport(
                "no layer is wide enough to lose anything", where=self.name,
                got=f"ratio {shares['channels']:g}, channels in multiples of {self.multiple}; left alone: {alone}",
                wanted="a layer of which more than `multiple` channels, or a head, can go",
                next="Raise the ratio, or lower `multiple`.",
            )  # fmt: skip
        tried(small, parent, self.name)
        work.notes.metrics(
            {"parameters_before": before, **{f"{kind}_removed": n for kind, n in gone.items()}}
        )
        return small

    def _shares(self, network: TorchNetwork, work: Work) -> dict[str, float]:
        """Of which kind of unit which share goes."""
        heads = self.ratio if self.head_ratio is None else self.head_ratio
        said = {"channels": self.ratio, "heads": heads, "width": self.width_ratio}
        if self.parameters is None:
            return said
        if network.parameters() <= self.parameters:
            raise BadInput(
                "the network is that small already", where=f"{self.name}: parameters", got=network.parameters(),
                wanted=f"more than the {self.parameters} asked for",
            )  # fmt: skip
        low, high = 0.0, MOST
        smallest = self._size_at(network, work, self._scaled(high))
        if smallest > self.parameters:
            raise CannotExport(
                "pruning cannot make it so small", where=self.name, got=f"{smallest} parameters at a ratio of {high}",
                wanted=f"at most {self.parameters}",
                next="Embeddings and the hidden width stay: set `width_ratio`, trim the vocabulary, or take a student.",
            )  # fmt: skip
        for _ in range(TRIALS):
            work.check_time()
            middle = (low + high) / 2
            fits = self._size_at(network, work, self._scaled(middle)) <= self.parameters
            low, high = (low, middle) if fits else (middle, high)
        work.notes.params({"ratio_found": round(high, 4)})
        return self._scaled(high)

    def _scaled(self, ratio: float) -> dict[str, float]:
        return {"channels": ratio, "heads": ratio, "width": ratio if self.width_ratio else 0.0}

    def _size_at(self, network: TorchNetwork, work: Work, shares: Mapping[str, float]) -> int:
        trial = network.copy()
        self._remove(trial, self._survey(trial, work, "magnitude"), shares, 1.0, {}, check=False)
        return trial.parameters()

    def _survey(self, network: TorchNetwork, work: Work, importance: str = "") -> Groups:
        if (importance or self.importance) == "taylor":
            _gradients(network, work)
        try:
            return survey(network, self.heads, tuple(self.spare), importance or self.importance)
        finally:
            network.module.zero_grad(set_to_none=True)

    def _remove(
        self,
        network: TorchNetwork,
        groups: Groups,
        shares: Mapping[str, float],
        part: float,
        first: dict[str, int],
        *,
        check: bool = True,
    ) -> dict[str, int]:
        """Take out what is due when `part` of the way is done; counts by kind. `first`: units of each group at the
        beginning, filled by the first call.
        """
        for group in groups.found:
            first.setdefault(group.root, len(group.units))
        due = {kind: share * part for kind, share in shares.items()}
        kept = self._kept_by_layer(groups, due, first)
        if self.scope == "global":
            kept = self._kept_of_all(groups, due, first)
        leaving: list[tuple[Group, list[int]]] = []
        gone: dict[str, int] = {}
        for group in groups.found:
            count = len(group.units) - kept[group.root]
            if count > 0:
                lowest = torch.argsort(group.scores)[:count].tolist()
                leaving.append((group, sorted(index for unit in lowest for index in group.units[unit])))
                gone[group.kind] = gone.get(group.kind, 0) + count
        cut(network, groups, leaving, kept, self.name, check=check)
        return gone

    def _kept_by_layer(
        self, groups: Groups, due: Mapping[str, float], first: Mapping[str, int]
    ) -> dict[str, int]:
        return {
            group.root: self._rounded(group, first[group.root] * (1 - due[group.kind]), first[group.root])
            for group in groups.found
        }

    def _kept_of_all(
        self, groups: Groups, due: Mapping[str, float], first: Mapping[str, int]
    ) -> dict[str, int]:
        kept: dict[str, int] = {}
        for kind in due:
            same = [group for group in groups.found if group.kind == kind]
            if not same:
                continue
            scores = torch.cat([group.scores / group.scores.mean().clamp_min(1e-12) for group in same])
            stay = round(sum(first[group.root] for group in same) * (1 - due[kind]))
            best = torch.zeros_like(scores, dtype=torch.bool)
            best[torch.argsort(scores, descending=True)[:stay]] = True
            for group, mine in zip(
                same, torch.split(best, [len(group.units) for group in same]), strict=True
            ):
                least = LEAST * first[group.root]
                kept[group.root] = self._rounded(group, max(float(mine.sum()), least), first[group.root])
        return kept

    def _rounded(self, group: Group, units: float, first: int) -> int:
        """The count of units to keep that is nearest to `units`: at least one, channels in multiples."""
        kept = max(1, round(units))
        step = self.multiple // math.gcd(self.multiple, len(group.units[0]))
        if group.kind != "heads" and first > step:
            kept = max(step, round(units / step) * step)
        return min(kept, len(group.units))


def _gradients(network: TorchNetwork, work: Work) -> None:
    """Leave the training loss's mean gradient over at most 512 rows in the parameters."""
    module, rows = network.module, work.samples.train.few(ROWS, work.seed)
    module.eval()
    module.zero_grad(set_to_none=True)
    for at in range(0, len(rows), 64):
        part = rows.take(np.arange(at, min(at + 64, len(rows))))
        loss = network.loss(call(module, tensors(part.feeds)), torch.from_numpy(np.ascontiguousarray(part.y)))
        (loss * (len(part) / len(rows))).backward()  # type: ignore[no-untyped-call]
    for one in module.parameters():
        if one.grad is None:
            one.grad = torch.zeros_like(one)
