"""A smaller network made from the teacher: fewer of its blocks, or a narrower one, with the teacher's weights."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from loopwright.compression.networks.network import TorchNetwork, call, evaluating, tensors, torch_network
from loopwright.compression.networks.structured import MOST, PruneStructure
from loopwright.compression.steps import CannotExport, Work
from loopwright.compression.subject import Network
from loopwright.kernel.errors import BadInput

Maker = Callable[[nn.Module], nn.Module]
"""The teacher's module, which it must leave as it is → the student's."""


@dataclass(frozen=True)
class Student:
    """Leave out blocks of the teacher's longest row of equal ones (an `nn.ModuleList` or `nn.Sequential`), or units.

    layers: how many stay, evenly spaced with the first and the last; said nothing, half of them. keep: which stay, by
    position, instead of `layers`. at: the row's name where there are several. width: the share of each layer's units,
    heads and of the hidden width that stays, those of largest weights (as `prune-structure` removes them); alone, all
    blocks stay. What stays keeps the teacher's weights. Train it afterwards: `distil`, or `finetune` for the control.
    """

    name: ClassVar[str] = "student"

    layers: int | None = None
    keep: tuple[int, ...] = ()
    at: str = ""
    width: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(self.keep))
        if self.keep and self.layers is not None:
            raise BadInput(
                "both a count and positions", where="student", wanted="`layers` or `keep`, not both"
            )
        if self.layers is not None and (not isinstance(self.layers, int) or self.layers < 1):
            raise BadInput(
                "a student needs a layer", where="student.layers", got=self.layers, wanted="1 or more"
            )
        if any(not isinstance(one, int) or one < 0 for one in self.keep) or len(set(self.keep)) < len(
            self.keep
        ):
            raise BadInput(
                "positions of layers", where="student.keep", got=self.keep, wanted="each once, from 0"
            )

        if self.width is not None and not 1 - MOST <= self.width < 1:
            raise BadInput(
                "the share of units that stays", where="student.width", got=self.width,
                wanted=f"{1 - MOST:.2f} to less than 1",
            )  # fmt: skip

    def reshape(self, network: Network, work: Work) -> TorchNetwork:
        """A copy with fewer blocks or units; their positions and the parameters before and after are noted.

        Raises CannotExport for a network without a row of equal blocks, BadInput for one that is too short, or a
        student that does not answer as its teacher does.
        """
        teacher = student = torch_network(network)
        if self.layers is not None or self.keep or self.width is None:
            student = self._shorter(teacher, work)
        if self.width is not None:
            gone = 1 - self.width
            cut = PruneStructure(ratio=gone, width_ratio=gone, rounds=1, epochs=0)
            student = torch_network(cut.reshape(student, work))
        return checked(student, teacher, work)

    def _shorter(self, teacher: TorchNetwork, work: Work) -> TorchNetwork:
        row = self.at or longest_row(teacher.module)
        if row is None:
            raise CannotExport(
                "the network has no row of equal blocks to leave some out of", where="student",
                wanted="an nn.ModuleList or nn.Sequential of two blocks or more with equal shapes",
                next="Prune its structure instead (`prune-structure`), or give a student of your own.",
            )  # fmt: skip
        student = teacher.copy()
        blocks = _row(student.module, row)
        chosen = self.keep or evenly(len(blocks), self.layers or max(1, len(blocks) // 2))
        if max(chosen) >= len(blocks):
            raise BadInput(
                "there are not so many blocks", where=f"student.keep: {row}", got=max(chosen),
                wanted=f"positions below {len(blocks)}",
            )  # fmt: skip
        kept = [blocks[position] for position in sorted(chosen)]
        _put(
            student.module,
            row,
            type(blocks)(kept) if isinstance(blocks, nn.ModuleList) else nn.Sequential(*kept),
        )
        work.notes.params(
            {
                "student_row": row,
                "student_kept": ",".join(map(str, sorted(chosen))),
                "student_of": len(blocks),
            }
        )
        return student


def made_by(maker: Maker, teacher: TorchNetwork, work: Work) -> TorchNetwork:
    """The student that a function of the user's makes of the teacher's module, in the teacher's place.

    Raises BadInput for one that cannot be called as the teacher is or answers with other outputs.
    """
    module = maker(teacher.module)
    if not isinstance(module, nn.Module):
        raise BadInput(
            "a student that is no module", where="student", got=type(module).__name__, wanted="an nn.Module"
        )
    if module is teacher.module:
        module = copy.deepcopy(module)
    return checked(teacher.with_module(module), teacher, work)


def checked(student: TorchNetwork, teacher: TorchNetwork, work: Work) -> TorchNetwork:
    """The student, once it has answered the example as its teacher does; the sizes of both are noted."""
    feeds = tensors({name: values[:2] for name, values in teacher.example.items()})
    with evaluating(student.module), torch.inference_mode():
        try:
            answers = call(student.module, feeds)
        except Exception as error:  # whatever the user's forward() raises
            raise BadInput(
                f"the student does not take what its teacher takes ({type(error).__name__}: {str(error)[:300]})",
                where="student", wanted=f"forward({', '.join(feeds)})",
            ) from error  # fmt: skip
    wanted = teacher.answers(teacher.example)[:2].shape
    if tuple(answers.shape) != wanted:
        raise BadInput(
            "a student with other outputs than its teacher", where="student", got=f"{tuple(answers.shape)[1:]} per row",
            wanted=f"{wanted[1:]}", next="End it with as many outputs as the teacher has.",
        )  # fmt: skip
    student.check()
    work.notes.metrics({"parameters_before": teacher.parameters(), "parameters": student.parameters()})
    return student


def longest_row(module: nn.Module) -> str | None:
    """The name of the ModuleList or Sequential with the most parameters in blocks of equal shapes; None for none."""
    found = {
        name: sum(weights.numel() for weights in one.parameters())
        for name, one in module.named_modules()
        if name and isinstance(one, nn.ModuleList | nn.Sequential) and len(one) > 1 and _equal(list(one))
    }
    return max(found, key=lambda name: found[name]) if found else None


def evenly(total: int, count: int) -> tuple[int, ...]:
    """`count` of `total` positions, evenly spaced with both ends; the first alone for one. Raises BadInput for more."""
    if count > total:
        raise BadInput(
            "there are not so many blocks", where="student.layers", got=count, wanted=f"at most {total}"
        )
    if count == 1:
        return (0,)
    return tuple(int(position) for position in np.round(np.linspace(0, total - 1, count)))


def _equal(blocks: Sequence[nn.Module]) -> bool:
    shapes = [
        (type(block), [(name, tuple(weights.shape)) for name, weights in block.named_parameters()])
        for block in blocks
    ]
    return bool(shapes[0][1]) and all(one == shapes[0] for one in shapes)


def _row(module: nn.Module, name: str) -> nn.ModuleList | nn.Sequential:
    try:
        found = module.get_submodule(name)
    except AttributeError:
        found = None
    if not isinstance(found, nn.ModuleList | nn.Sequential):
        raise BadInput(
            "no row of blocks",
            where="student.at",
            got=name,
            wanted="the name of an nn.ModuleList or nn.Sequential",
        )
    return found


def _put(module: nn.Module, name: str, row: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, row)
