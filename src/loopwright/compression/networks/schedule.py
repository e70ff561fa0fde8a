"""What the steps that prune share: how much by which round, and what is checked before and after."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import nn

from loopwright.compression.networks.network import TorchNetwork
from loopwright.compression.steps import CannotExport
from loopwright.compression.subject import Array, Network
from loopwright.kernel.errors import BadInput

NEAR = 1e-3
"""Of the largest answer: how far answers may be from one another and still be called the same in float32."""


def cubic(final: float, rounds: int) -> list[float]:
    """What share is gone after each of `rounds`, the last being `final`: fast first, when much is superfluous.

    s(t) = final · (1 - (1 - t/rounds)³), Zhu & Gupta 2017.
    """
    return [final * (1 - (1 - done / rounds) ** 3) for done in range(1, rounds + 1)]


def within(value: float, low: float, high: float, where: str) -> None:
    """Raise BadInput unless low <= value <= high."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadInput("a setting out of range", where=where, got=value, wanted=f"{low:g} to {high:g}")


def whole(value: int, low: int, high: int, where: str) -> None:
    """Raise BadInput unless `value` is a whole number with low <= value <= high."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadInput(
            "a setting out of range", where=where, got=value, wanted=f"a whole number, {low} to {high}"
        )


def listed(values: Sequence[str], where: str) -> tuple[str, ...]:
    """`values` as a tuple; raises BadInput for a single text and for what holds anything but texts."""
    if isinstance(values, str) or not all(isinstance(one, str) for one in values):
        raise BadInput(
            "not a list of names", where=where, got=repr(values), wanted="[NAME, …], with * for any"
        )
    return tuple(values)


def one_of(value: str, known: tuple[str, ...], where: str) -> None:
    """Raise BadInput unless `value` is one of `known`."""
    if value not in known:
        raise BadInput("an unknown setting", where=where, got=value, wanted=", ".join(known))


def spared(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether the module called `name` is one of those a step was told to leave alone (`encoder.*.dense`)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def own_copy(network: Network, step: str, threads: int) -> TorchNetwork:
    """A copy that a step may change, with as many threads as it may use from now on; raises BadInput for weights that
    are not numbers and for no torch network.
    """
    torch.set_num_threads(max(1, threads))
    if not isinstance(network, TorchNetwork):
        raise BadInput(
            "not a torch network", where=step, got=type(network).__name__, wanted="a TorchNetwork",
            next="Wrap the module: networks.network.TorchNetwork(module, example, loss).",
        )  # fmt: skip
    network.check()
    return network.copy()


def tried(network: TorchNetwork, parent: Array, step: str) -> Array:
    """The answers to the example after a step, of the shape of `parent` and finite; raises CannotExport otherwise."""
    try:
        answers = network.answers(network.example)
    except Exception as error:  # whatever a module's own code raises when a size is not what it was
        raise CannotExport(
            f"the module does not run any more ({type(error).__name__}: {str(error)[:300]})", where=step,
            wanted="sizes read from the layers, not written down in forward()",
            next="Keep the layer out of it with `spare`; for attention, name its count of heads with `heads`.",
        ) from error  # fmt: skip
    if answers.shape != parent.shape or not np.isfinite(answers).all():
        raise CannotExport(
            "the module answers with something else than before", where=step,
            got=f"{answers.shape}, {int((~np.isfinite(answers)).sum())} not finite", wanted=f"{parent.shape}, finite",
        )  # fmt: skip
    return answers


def ties(module: nn.Module) -> list[list[str]]:
    """Names of parameters that are one and the same tensor, by tensor; only those with more than one name."""
    names: dict[int, list[str]] = {}
    for name, weights in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(weights), []).append(name)
    return [same for same in names.values() if len(same) > 1]


def tie(module: nn.Module, same: list[list[str]], step: str) -> None:
    """Make parameters one tensor again; raises CannotExport where they are not equal any more."""
    for names in same:
        found = dict(module.named_parameters(remove_duplicate=False))
        first = found[names[0]]
        if any(not torch.equal(first, found[name]) for name in names[1:]):
            raise CannotExport(
                "weights that are shared would be cut apart", where=step, got=", ".join(names),
                wanted="the same rows and columns gone from all of them",
                next="Keep these layers out of it with `spare`, or untie them first.",
            )  # fmt: skip
        for name in names[1:]:
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, first)
