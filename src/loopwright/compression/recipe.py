"""A recipe: steps in order, from the subject to a smaller graph. Techniques, ladder and pipeline are all recipes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopwright.compression.artefact import Artefact
from loopwright.compression.steps import (
    CannotExport,
    GraphStep,
    NetworkStep,
    Step,
    Work,
    settings_of,
    step,
    without_torch,
)
from loopwright.compression.subject import Network, Subject
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput

MAX_STEPS = 20
_KEEPING = frozenset((
    "fp16", "int8-dynamic", "int8-static", "int8-mixed", "int8-smooth", "weights", "distil", "finetune", "qat",
    "prune-weights",
))  # fmt: skip
"""Steps that change numbers and leave as many, unless they say otherwise."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """`name` is for people; two recipes are the same when their steps and settings are. No steps: the parent itself.

    `control`: the name of the recipe that is the same without what this one adds (distillation, QAT), so that the gain
    can be told from chance; "" for none.
    """

    name: str
    steps: tuple[Step, ...]
    control: str = ""

    def __post_init__(self) -> None:
        if len(self.steps) > MAX_STEPS:
            raise BadInput(
                "too many steps", where=self.name, got=len(self.steps), wanted=f"at most {MAX_STEPS}"
            )
        graph_began = False
        for one in self.steps:
            if isinstance(one, NetworkStep) and graph_began:
                raise BadInput(
                    "a step on the module after one on the graph", where=f"recipe {self.name}", got=one.name,
                    wanted="steps on modules first", next="Move it before the first step on the graph.",
                )  # fmt: skip
            graph_began = graph_began or isinstance(one, GraphStep)

    @staticmethod
    def from_json(name: str, steps: Sequence[Mapping[str, Any]], where: str = "compression") -> "Recipe":
        """From `[{"step": name, setting: value, …}, …]`; raises BadInput, Unavailable without torch."""
        made = []
        for position, said in enumerate(steps):
            rest = dict(said)
            kind = rest.pop("step", None)
            if not isinstance(kind, str):
                raise BadInput(
                    "a step without a name", where=f"{where}[{position}]", got=dict(said), wanted="step: NAME"
                )
            made.append(step(kind, rest, f"{where}[{position}]"))
        return Recipe(name, tuple(made))

    def to_json(self) -> list[dict[str, Any]]:
        """The steps with all their settings, as `from_json` takes them."""
        return [{"step": one.name, **settings_of(one)} for one in self.steps]

    @property
    def key(self) -> str:
        """Equal for equal work: 12 hex digits of the digest of the steps and their settings."""
        return digest_json(self.to_json())[:12]

    @property
    def trains(self) -> bool:
        """Whether it needs the torch module."""
        return any(isinstance(one, NetworkStep) for one in self.steps)

    @property
    def bits(self) -> float:
        """Of most weights afterwards; a step on modules whose export holds integers says so in `file_bits`."""
        said = (
            one.bits if isinstance(one, GraphStep) else getattr(one, "file_bits", 32.0) for one in self.steps
        )
        return min(said, default=32.0)

    @property
    def keeps(self) -> float:
        """The share of the parameters that are left at least; 0.0 where a step does not know beforehand."""
        return math.prod(_keeps(one) for one in self.steps)


@dataclass(frozen=True, slots=True)
class Cooked:
    """What a recipe gave: the graph, and the module it was exported from when there was one."""

    graph: Artefact
    network: Network | None


def cook(recipe: Recipe, work: Work) -> Cooked:
    """Follow `recipe` from the subject; the graph comes to lie at `work.folder/model.onnx`, that of the empty recipe is
    the subject's own. What a step notes is kept under its name: "distil/loss", of a second such step "distil-2/loss".

    Is safe to repeat: what an interrupted attempt left is replaced. Raises CannotExport, OutOfTime, BadInput.
    """
    subject: Subject = work.subject
    network, graph = subject.network, subject.graph
    if recipe.trains and network is None:
        raise without_module(recipe.name)
    work.folder.mkdir(parents=True, exist_ok=True)
    graphs = [one for one in recipe.steps if isinstance(one, GraphStep)]
    scopes = iter(_scopes(recipe))
    for one in recipe.steps:
        if isinstance(one, NetworkStep):
            assert network is not None
            work.check_time()
            network = one.reshape(network, work.noting(next(scopes)))
    if recipe.trains:
        assert network is not None
        exported = work.folder / ("exported.onnx" if graphs else "model.onnx")
        network.export(exported)
        graph = Artefact.open(exported)
    for position, one in enumerate(graphs):
        work.check_time()
        last = position == len(graphs) - 1
        target = work.folder / ("model.onnx" if last else f"step-{position}.onnx")
        graph = one.encode(graph, target, work.noting(next(scopes)))
    return Cooked(graph, network)


def without_module(name: str) -> CannotExport:
    """The error for a recipe that trains where there is only a graph."""
    return CannotExport(
        "the recipe trains, and there is no torch module to train", where=name,
        wanted="a subject with its `network`", next="Give the module, or keep to steps on graphs.",
    )  # fmt: skip


def _scopes(recipe: Recipe) -> list[str]:
    found: list[str] = []
    seen: list[str] = []
    for one in recipe.steps:
        before = seen.count(one.name)
        seen.append(one.name)
        found.append(f"{one.name}-{before + 1}" if before else one.name)
    return found


def _keeps(one: Step) -> float:
    said = getattr(one, "keeps", None)
    if said is not None:
        return float(said)
    return 1.0 if one.name in _KEEPING else 0.0


__all__ = ["Cooked", "Recipe", "cook", "without_module", "without_torch"]
