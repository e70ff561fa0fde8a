"""What can leave a network together, found by its dependency graph, and the cut itself, proven by its answers."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch_pruning as pruning  # type: ignore[import-untyped]
from torch import Tensor, nn

from loopwright.compression.networks.heads import Counted, counted
from loopwright.compression.networks.network import TorchNetwork, call, tensors
from loopwright.compression.networks.schedule import NEAR, spared, tie, ties, tried
from loopwright.compression.steps import CannotExport
from loopwright.compression.subject import Array

MIXES = ("softmax", "scaleddotproduct")
"""In the names of operations by which attention is told."""


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
            where="prune-structure", wanted="linear, convolutional and attention layers",
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
            return "attention whose layers are of different widths"
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
            check_same(expected, answers, "removing units")


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


def check_same(expected: Array, answers: Array, doing: str) -> None:
    apart = float(np.abs(expected - answers).max())
    if apart > NEAR * max(1.0, float(np.abs(expected).max())):
        raise CannotExport(
            f"{doing} changed more than it removed", where="prune-structure",
            got=f"answers {apart:.3g} apart", wanted="those of the module with the same units silenced",
            next="Is it attention? Name the module's count of heads in `heads`, or keep the layers with `spare`.",
        )  # fmt: skip
