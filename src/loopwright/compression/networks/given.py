"""A student that the user built: a module of this process, told by the digest of its weights."""

import copy
import hashlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import nn

from loopwright.compression.networks.network import TorchNetwork, torch_network
from loopwright.compression.networks.students import made_by
from loopwright.compression.steps import Work
from loopwright.compression.subject import Network
from loopwright.kernel.errors import BadInput, NotFound

_OFFERED: dict[str, nn.Module] = {}
"""By digest; what was offered is copied, so a recipe that was kept means the same weights later."""


def offer(module: nn.Module) -> str:
    """Keep a copy of `module` for the step `given-student`; returns its name, 12 hex digits of weights and make-up."""
    if not isinstance(module, nn.Module):
        raise BadInput(
            "a student that is no module", where="student", got=type(module).__name__, wanted="an nn.Module"
        )
    whole = hashlib.sha256(repr(module).encode())
    for name, values in module.state_dict().items():
        whole.update(f"{name}\0{values.dtype}\0{tuple(values.shape)}\0".encode())
        whole.update(np.ascontiguousarray(values.detach().cpu().numpy()).tobytes())
    name = whole.hexdigest()[:12]
    _OFFERED.setdefault(name, copy.deepcopy(module).cpu())
    return name


@dataclass(frozen=True)
class Given:
    """Go on with a module of the user's in the teacher's place; it must take and give what the teacher does.

    student: the name that `offer` gave. Train it afterwards: `distil`, or `finetune` for the control.
    """

    student: str = ""

    name: ClassVar[str] = "given-student"

    def reshape(self, network: Network, work: Work) -> TorchNetwork:
        """A copy of the student. Raises NotFound for one that this process was not given, BadInput for one that does
        not answer as its teacher does.
        """
        if self.student not in _OFFERED:
            raise NotFound(
                "no such student in this process", where="given-student", wanted="a module, as compress(student=…)",
                next="Give the module; a file of settings cannot hold one.",
            )  # fmt: skip
        return made_by(lambda _: copy.deepcopy(_OFFERED[self.student]), torch_network(network), work)
