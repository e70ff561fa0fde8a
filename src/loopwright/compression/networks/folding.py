"""What flows where in a module, seen in one pass; and batch norms multiplied into the layer before them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fusion
from torch.overrides import TorchFunctionMode

from loopwright.compression.networks.network import TorchNetwork, call, evaluating, tensors
from loopwright.compression.subject import Feeds

WEIGHTED: Mapping[str, type[nn.Module]] = {
    "conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "linear": nn.Linear, "embedding": nn.Embedding,
}  # fmt: skip
"""torch's function → the layer that calls it with its weight as the second argument."""
SAME_VALUES = frozenset((
    "relu", "relu_", "relu6", "max_pool1d", "max_pool2d", "flatten", "unflatten", "reshape", "view", "transpose",
    "permute", "squeeze", "unsqueeze", "contiguous", "dropout", "dropout1d", "dropout2d",
))  # fmt: skip
"""Functions that 8-bit numbers pass through: each output is one of the inputs, or zero."""


@dataclass
class Flow:
    """The calls of one pass in order; tensors are kept, so that their identities stay unique."""

    calls: list[tuple[str, list[Tensor], Any]] = field(default_factory=list)

    def takers(self, one: Tensor) -> list[int]:
        """Positions of the calls that were given this very tensor."""
        return [at for at, (_, given, _) in enumerate(self.calls) if any(each is one for each in given)]


def flow(module: nn.Module, feeds: Feeds) -> Flow:
    """Pass two rows through the module as in production, and write down each call of torch's functions."""
    seen = Flow()

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            made = func(*args, **(kwargs or {}))
            given: list[Tensor] = []
            if isinstance(made, Tensor | tuple | list):  # else it only asked for a size
                torch.utils._pytree.tree_map_only(Tensor, given.append, [args, kwargs or {}])
                seen.calls.append((getattr(func, "__name__", ""), given, made))
            return made

    few = tensors({name: values[:2] for name, values in feeds.items()})
    with evaluating(module), torch.no_grad(), Watch():
        call(module, few)
    return seen


def own_layers(module: nn.Module, seen: Flow) -> dict[str, nn.Module]:
    """The layers with weights, by name, whose weight nothing but the layer's own call reads: no tied weights, no
    attention that takes its projections apart.
    """
    owners: dict[int, int] = {}
    for one in module.modules():
        for weights in one.parameters(recurse=False):
            owners[id(weights)] = owners.get(id(weights), 0) + 1
    found = {}
    for name, one in module.named_modules():
        function = next((key for key, kind in WEIGHTED.items() if type(one) is kind), None)
        if function is None or owners[id(one.weight)] > 1:
            continue
        takers = [seen.calls[at] for at in seen.takers(one.weight)]
        plain = [taker for taker in takers if taker[0] != "__get__"]
        if plain and all(taker[0] == function for taker in plain):
            found[name] = one
    return found


def leads_only_to(seen: Flow, layer: nn.Module, goal: Mapping[int, nn.Module]) -> bool:
    """Whether all that comes out of `layer` goes, through functions that keep values, into layers of `goal` (by the
    identity of their weights).
    """
    outputs = [seen.calls[at][2] for at in seen.takers(layer.weight)]  # type: ignore[arg-type]
    waiting, done = [one for one in outputs if isinstance(one, Tensor)], set()
    while waiting:
        one = waiting.pop()
        if id(one) in done:
            continue
        done.add(id(one))
        takers = [seen.calls[at] for at in seen.takers(one)]
        if not takers:
            return False
        for name, given, made in takers:
            if name in WEIGHTED and given[0] is one and id(given[1]) in goal:
                continue
            if name not in SAME_VALUES or not isinstance(made, Tensor):
                return False
            if made is not one:
                waiting.append(made)
    return True


def fold_norms(network: TorchNetwork) -> list[str]:
    """Multiply each batch norm that directly follows a convolution or a linear layer into it, in place; their names.

    Only where nothing else reads what lies between, so that answers stay the same but for rounding.
    """
    module = network.module
    seen = flow(module, network.example)
    layers = own_layers(module, seen)
    norms = {
        id(one.running_mean): (name, one, one.running_mean)
        for name, one in module.named_modules()
        if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d) and one.running_mean is not None
    }
    folded = []
    for name, layer in layers.items():
        outputs = [seen.calls[at] for at in seen.takers(layer.weight)]  # type: ignore[arg-type]
        if len(outputs) != 1 or isinstance(layer, nn.Embedding):
            continue
        takers = [seen.calls[at] for at in seen.takers(outputs[0][2])]
        if len(takers) != 1 or takers[0][0] != "batch_norm":
            continue
        known = next((norms[id(one)] for one in takers[0][1] if id(one) in norms), None)
        if known is None or len(seen.takers(known[2])) != 1:
            continue
        with evaluating(layer), evaluating(known[1]):
            if isinstance(layer, nn.Linear):
                made: nn.Module = fusion.fuse_linear_bn_eval(layer, known[1])
            else:
                made = fusion.fuse_conv_bn_eval(layer, known[1])  # type: ignore[type-var]
        module.set_submodule(name, made)
        module.set_submodule(known[0], nn.Identity())
        folded.append(known[0])
    return folded
