"""Structured pruning: whole channels, attention heads and FFN units leave, and the exported model is smaller."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
import torch_pruning as pruning  # type: ignore[import-untyped]
from torch import Tensor, nn

from loopwright.compression.networks.fitting import Training, fit
from loopwright.compression.networks.heads import Counted, check_said, counted, take_apart
from loopwright.compression.networks.network import TorchNetwork, call, tensors
from loopwright.compression.networks.schedule import (
    NEAR,
    cubic,
    one_of,
    own_copy,
    spared,
    tie,
    ties,
    tried,
    within,
)
from loopwright.compression.steps import CannotExport, Work
from loopwright.compression.subject import Array, Network
from loopwright.kernel.errors import BadInput

IMPORTANCE = ("magnitude", "taylor")
SCOPES = ("layer", "global")
MOST = 0.95
LEAST = 0.1
"""Of each layer's units, in scope `global`: one layer's scores must not empty it."""
TRIALS = 7
ROWS = 512
LONGEST = 500
MIXES = ("softmax", "scaleddotproduct")
"""In the names of operations by which attention is told."""


@dataclass(frozen=True, slots=True)
class PruneStructure:
    """Remove the `ratio` share of units of least importance: output channels of convolutions, units of linear layers
    (FFN), and whole attention heads (`head_ratio`; None: as many as `ratio` says). What depends on a unit leaves with
    it, found by the dependency graph of Torch-Pruning (Fang et al. 2023).

    Layers that give the network's answers keep all of them, attention keeps a head, and modules whose name matches
    `spare` are left alone. What LayerNorms and embeddings share (an encoder's hidden width) stays unless `width_ratio`
    says otherwise. `parameters`: instead of the ratios, the smallest ratio that leaves at most so many numbers.

    importance: "magnitude" (L2 norm of all weights of a unit) or "taylor" (|weight · gradient| of the training loss,
    Molchanov et al. 2019). scope: "layer" (the ratio of each) or "global" (the least important of all, each layer keeps
    a tenth). multiple: kept channels are rounded to it, for kernels that work on 8 or 16 lanes. Done in `rounds` after
    the cubic schedule, `epochs` of training after each.

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
    rate: float = 1e-3
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
            within(self.parameters, 1, math.inf, f"{self.name}: parameters")
        elif not self.ratio + (self.head_ratio or 0) + self.width_ratio > 0:
            raise BadInput("nothing to remove", where=self.name, got="ratios of 0", wanted="one above 0")
        within(self.multiple, 1, 256, f"{self.name}: multiple")
        within(self.rounds, 1, 100, f"{self.name}: rounds")
        within(self.epochs, 0, 1000, f"{self.name}: epochs")
        one_of(self.importance, IMPORTANCE, f"{self.name}: importance")
        one_of(self.scope, SCOPES, f"{self.name}: scope")
        if self.parameters is not None and self.scope == "global":
            raise BadInput(
                "a count of parameters needs a ratio per layer", where=f"{self.name}: scope", got="global",
                wanted="layer",
            )  # fmt: skip
        Training(max(1, self.epochs), self.rate, self.batch)
        object.__setattr__(self, "spare", tuple(self.spare))
        object.__setattr__(self, "heads", dict(self.heads))

    def reshape(self, network: Network, work: Work) -> Network:
        """A smaller copy. Raises CannotExport where the module cannot be traced, has nothing to remove, or computes
        with sizes written down in its forward(); BadInput, OutOfTime.
        """
        small = own_copy(network, self.name)
        parent, before = small.answers(small.example), small.parameters()
        check_said(small.module, self.heads)
        if take_apart(small.module):
            _same(parent, tried(small, parent, self.name), "taking nn.MultiheadAttention apart")
        shares = self._shares(small, work)
        first: dict[str, int] = {}
        gone: dict[str, int] = {}
        for turn, part in enumerate(cubic(1.0, self.rounds), start=1):
            work.check_time()
            groups = self._survey(small, work)
            if turn == 1:
                alone = "; ".join(f"{root}: {why}" for root, why in groups.skipped.items())
                work.notes.params({"layers_left_alone": alone[:LONGEST]})
            for kind, count in self._remove(small, groups, shares, part, first).items():
                gone[kind] = gone.get(kind, 0) + count
            tried(small, parent, self.name)
            work.notes.metrics({"parameters": small.parameters()}, step=turn)
            if self.epochs:
                fit(
                    small, work.samples.train, work, Training(self.epochs, self.rate, self.batch, rows=self.rows),
                    label=f"prune_structure_{turn}",
                )  # fmt: skip
        if small.parameters() >= before:
            raise CannotExport(
                "no layer is wide enough to lose anything", where=self.name,
                got=f"ratio {shares['channels']:g}, channels in multiples of {self.multiple}",
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

    def _survey(self, network: TorchNetwork, work: Work, importance: str = "") -> "Groups":
        if (importance or self.importance) == "taylor":
            _gradients(network, work)
        try:
            return survey(network, self.heads, tuple(self.spare), importance or self.importance)
        finally:
            network.module.zero_grad(set_to_none=True)

    def _remove(
        self,
        network: TorchNetwork,
        groups: "Groups",
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
        self, groups: "Groups", due: Mapping[str, float], first: Mapping[str, int]
    ) -> dict[str, int]:
        return {
            group.root: self._rounded(group, first[group.root] * (1 - due[group.kind]), first[group.root])
            for group in groups.found
        }

    def _kept_of_all(
        self, groups: "Groups", due: Mapping[str, float], first: Mapping[str, int]
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

    def _rounded(self, group: "Group", units: float, first: int) -> int:
        """The count of units to keep that is nearest to `units`: at least one, channels in multiples."""
        kept = max(1, round(units))
        step = self.multiple // math.gcd(self.multiple, len(group.units[0]))
        if group.kind != "heads" and first > step:
            kept = max(step, round(units / step) * step)
        return min(kept, len(group.units))


@dataclass(frozen=True, slots=True)
class Group:
    """Layers whose outputs can only lose units together. `units`: positions in the outputs of the layer `root`, those
    of one unit together; `scores`: (units,) how important each is.
    """

    root: str
    kind: str
    units: list[list[int]]
    scores: Tensor
    attention: Counted | None = None


@dataclass(frozen=True, slots=True)
class Groups:
    """`graph`: what depends on what in the network, as it is now. `skipped`: root → why it was left alone."""

    graph: Any
    found: list[Group]
    skipped: dict[str, str]


def survey(network: TorchNetwork, said: Mapping[str, str], spare: tuple[str, ...], importance: str) -> Groups:
    """All that can be removed from `network`, whose gradients are needed for "taylor". Raises CannotExport where it
    cannot be traced or nothing can be removed.
    """
    names = {module: name for name, module in network.module.named_modules()}
    frozen = [one for one in network.module.parameters() if one.is_floating_point() and not one.requires_grad]
    for one in frozen:
        one.requires_grad_(True)
    graph = pruning.DependencyGraph()
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            # Multiplied by 1, so that the answers are an operation of their own: what reaches it must stay.
            graph.build_dependency(
                network.module, tensors(network.example), forward_fn=lambda module, feeds: call(module, feeds) * 1.0,
                verbose=False,
            )  # fmt: skip
            _split_by_width(graph)
            whole = list(graph.get_all_groups())
    except Exception as error:  # the tracer's own errors share no base class
        raise CannotExport(
            f"what depends on what cannot be traced ({type(error).__name__}: {str(error)[:300]})",
            where="prune-structure", wanted="a module that answers with one tensor that has a gradient",
        ) from error  # fmt: skip
    finally:
        for one in frozen:
            one.requires_grad_(False)
    score = (
        pruning.importance.TaylorImportance(group_reduction="mean", normalizer=None)
        if importance == "taylor"
        else pruning.importance.MagnitudeImportance(p=2, group_reduction="mean", normalizer=None)
    )
    found: list[Group] = []
    skipped: dict[str, str] = {}
    for group in whole:
        made = _group(group, graph, names, network.module, said, spare, score)
        if isinstance(made, Group):
            found.append(made)
        else:
            skipped[names[group[0].dep.target.module]] = made
    if not found:
        raise CannotExport(
            "there is nothing that could be removed", where="prune-structure",
            got="; ".join(f"{root}: {why}" for root, why in list(skipped.items())[:8]) or "no layers",
            wanted="convolutions, linear layers or attention before the last layer",
        )  # fmt: skip
    return Groups(graph, found, skipped)


def _split_by_width(graph: Any) -> None:
    """Let splits of the last axis, however it was counted, be followed by the widths of what they feed.

    Torch-Pruning takes `dim=2` of (n, length, width) for another axis than `dim=-1`.
    """
    for node in graph.module2node.values():
        if node.type == pruning.ops.OPTYPE.SPLIT:
            sizes, axis = (
                getattr(node.grad_fn, "_saved_self_sym_sizes", ()),
                getattr(node.grad_fn, "_saved_dim", -1),
            )
            if len(sizes) > 2 and axis == len(sizes) - 1:
                node.grad_fn = SimpleNamespace()
    pruning.dependency.shape_infer.init_shape_information(graph)
    pruning.dependency.index_mapping.update_index_mapping(graph)


def _group(
    group: Any,
    graph: Any,
    names: Mapping[nn.Module, str],
    module: nn.Module,
    said: Mapping[str, str],
    spare: tuple[str, ...],
    score: Any,
) -> Group | str:
    """What of this group may leave, or why nothing may."""
    targets = [dep.target for dep, _ in group]
    if any(node.type == pruning.ops.OPTYPE.OUTPUT for node in targets):
        return "gives the answers"
    root = targets[0].module
    givers = [
        dep.target.module
        for dep, _ in group
        if isinstance(dep.target.module, nn.Linear | nn.modules.conv._ConvNd)
        and graph.is_out_channel_pruning_fn(dep.handler)
    ]
    if any(spared(names[one], spare) for one in givers):
        return "spared"
    width = graph.get_out_channels(root)
    kind, attention = "channels", None
    units = _together(group, graph, width)
    if units is None:
        return "its channels are in groups of different counts"
    if any(mark in repr(node.module).lower() for node in targets for mark in MIXES):
        kind = "heads"
        attention = counted(module, [names[one] for one in givers], said)
        if attention is None:
            return "attention whose count of heads is not known: name it in `heads`"
        takers = {
            dep.target.module.in_features
            for dep, _ in group
            if dep.handler == pruning.prune_linear_in_channels
        }
        inner = min(takers, default=width)
        if len({graph.get_out_channels(one) for one in givers}) > 1 or width not in (inner, 3 * inner):
            return "attention with more queries than keys"
        if inner % attention.count:
            return f"{inner} numbers are not {attention.count} heads"
        size = inner // attention.count
        units = [list(range(one * size, (one + 1) * size)) for one in range(attention.count)]
    elif any(_is_width(node) for node in targets):
        kind = "width"
    if len(units) < 2:
        return "a single head" if kind == "heads" else "a single channel"
    try:
        scores = score(group)
    except (IndexError, RuntimeError) as error:  # positions that its layers do not have
        return f"what depends on it cannot be traced ({error})"
    if scores is None or len(scores) != width:
        return "its importance cannot be told"
    if kind == "heads":  # of queries, keys and values where one layer makes all three
        by_unit = scores.reshape(-1, len(units), len(units[0])).sum((0, 2))
    else:
        by_unit = torch.stack([scores[unit].sum() for unit in units])
    return Group(names[root], kind, units, by_unit, attention)


def _is_width(node: Any) -> bool:
    kinds = (nn.LayerNorm, nn.Embedding, nn.Parameter, nn.MultiheadAttention, nn.RNNBase)
    return isinstance(node.module, kinds)


def _together(group: Any, graph: Any, width: int) -> list[list[int]] | None:
    """Channels by what must leave at once: one each, or one of every part where convolutions or norms work in parts."""
    parts = 1
    for dep, _ in group:
        layer = dep.target.module
        if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups > 1:
            if layer.groups == layer.in_channels == layer.out_channels:
                continue
            parts = math.lcm(parts, layer.groups)
        elif isinstance(layer, nn.GroupNorm):
            parts = math.lcm(parts, layer.num_groups)
    if width % parts:
        return None
    size = width // parts
    return [[offset + part * size for part in range(parts)] for offset in range(size)]


def cut(
    network: TorchNetwork,
    groups: Groups,
    leaving: Sequence[tuple[Group, list[int]]],
    kept: Mapping[str, int],
    step: str,
    *,
    check: bool = True,
) -> None:
    """Remove from `network.module`, in place, the positions in `leaving`.

    check: prove it by the answers to the example. Raises CannotExport where the module does not run any more, answers
    with something else than with those units silenced, or shares weights that would differ.
    """
    module, graph = network.module, groups.graph
    reference, exact = network.copy() if check else network, check
    shared = ties(module)
    frozen = {name for name, one in module.named_parameters() if not one.requires_grad}
    names = {one: name for name, one in module.named_modules()}
    plans = [
        (group, graph.get_pruning_group(*_root(module, graph, group), indices)) for group, indices in leaving
    ]
    if check:
        for _, plan in plans:
            exact = _silence(reference.module, plan, names) and exact
    for group, indices in leaving:
        graph.get_pruning_group(*_root(module, graph, group), indices).prune()
        if group.attention is not None:
            group.attention.lower(module, kept[group.root])
    tie(module, shared, step)
    for name, one in module.named_parameters():
        one.requires_grad_(name not in frozen)
    if check:
        expected = reference.answers(reference.example)
        answers = tried(network, expected, step)
        if exact:
            _same(expected, answers, "removing units")


def _root(module: nn.Module, graph: Any, group: Group) -> tuple[nn.Module, Any]:
    root = module.get_submodule(group.root)
    return root, graph.get_pruner_of_module(root).prune_out_channels


@torch.no_grad()
def _silence(reference: nn.Module, plan: Any, names: Mapping[nn.Module, str]) -> bool:
    """Make whoever takes in what `plan` removes deaf to it; False where a norm over all units tells anyway."""
    exact = True
    for dep, indices in plan:
        layer = dep.target.module
        if isinstance(layer, nn.LayerNorm | nn.GroupNorm | nn.RNNBase):
            exact = False
        elif dep.handler == pruning.prune_linear_in_channels:
            taker = reference.get_submodule(names[layer])
            assert isinstance(taker, nn.Linear)
            taker.weight[:, indices] = 0
        elif dep.handler == pruning.prune_conv_in_channels:
            deaf = reference.get_submodule(names[layer])
            assert isinstance(deaf, nn.modules.conv._ConvNd)
            if deaf.groups > 1:
                exact = False
            elif deaf.transposed:
                deaf.weight[indices] = 0
            else:
                deaf.weight[:, indices] = 0
    return exact


def _same(expected: Array, answers: Array, doing: str) -> None:
    apart = float(np.abs(expected - answers).max())
    if apart > NEAR * max(1.0, float(np.abs(expected).max())):
        raise CannotExport(
            f"{doing} changed more than it removed", where="prune-structure",
            got=f"answers {apart:.3g} apart", wanted="those of the module with the same units silenced",
            next="Is it attention? Name the module's count of heads in `heads`, or keep the layers with `spare`.",
        )  # fmt: skip


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
