"""What a step of a recipe is: something done to a torch module, or something done to an ONNX graph.

A step is a frozen dataclass whose fields are its settings. Steps on modules come before steps on graphs: between them
the module is exported.
"""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from loopwright.compression.artefact import Artefact
from loopwright.compression.subject import Network, Notes, Samples, Subject, Unnoted
from loopwright.kernel.errors import BadInput, LoopwrightError, Unavailable, did_you_mean
from loopwright.kernel.progress import Progress, Silent


class CannotExport(LoopwrightError):
    """The module, or the graph, cannot be brought into the form that was asked for. A recorded result, not a crash."""

    http_status = 422


class OutOfTime(LoopwrightError):
    """The budget of minutes ended before the step did."""

    http_status = 422


@dataclass(frozen=True, slots=True)
class Work:
    """What a step is given besides what it works on. `folder` is the step's own scratch; `threads` may be used.

    `until`: `time.monotonic()` seconds at which the budget ends; None: never. `shared`: a folder that all recipes of
    one subject share, for what is dear to compute and the same for all (the teacher's answers).
    """

    subject: Subject
    folder: Path
    shared: Path
    notes: Notes = field(default_factory=Unnoted)
    watch: Progress = field(default_factory=Silent)
    seed: int = 7
    threads: int = 1
    until: float | None = None

    @property
    def samples(self) -> Samples:
        return self.subject.samples

    def noting(self, prefix: str) -> "Work":
        """The same work, whose notes are kept under `prefix`/."""
        return dataclasses.replace(self, notes=_Prefixed(self.notes, prefix))

    def check_time(self) -> None:
        """Raise OutOfTime once the budget has ended; to be called between epochs, trials and layers."""
        if self.until is not None and time.monotonic() >= self.until:
            raise OutOfTime(
                "the budget of minutes is used up", where=str(self.folder.name), next="Give more: --budget"
            )


@dataclass(frozen=True, slots=True)
class _Prefixed:
    """Notes of one step among others: two of them may both tell a `loss`."""

    kept: Notes
    prefix: str

    def params(self, values: Mapping[str, Any]) -> None:
        self.kept.params({f"{self.prefix}/{name}": value for name, value in values.items()})

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.kept.metrics({f"{self.prefix}/{name}": value for name, value in values.items()}, step)


@runtime_checkable
class NetworkStep(Protocol):
    """Makes another module; the one it is given stays as it was.

    A step, on modules or on graphs, may say in `keeps` what share of the parameters it leaves at least, so that a
    target which cannot be reached is known beforehand.
    """

    name: ClassVar[str]

    def reshape(self, network: Network, work: Work) -> Network:
        """The network after the step. Raises CannotExport, OutOfTime, BadInput for settings that do not fit it."""
        ...


@runtime_checkable
class GraphStep(Protocol):
    """Makes another graph file.

    `bits`: of most weights afterwards (32 where precision stays), for telling beforehand what cannot be small enough.
    """

    name: ClassVar[str]

    @property
    def bits(self) -> float: ...

    def encode(self, source: Artefact, target: Path, work: Work) -> Artefact:
        """Write the graph after the step at `target`. Raises CannotExport, OutOfTime, BadInput."""
        ...


Step = NetworkStep | GraphStep

STEPS: Mapping[str, str] = {
    "fp16": "graphs.half:Half",
    "int8-dynamic": "graphs.dynamic:Dynamic",
    "int8-static": "graphs.static:Static",
    "int8-mixed": "graphs.mixed:Mixed",
    "int8-smooth": "graphs.smooth:Smooth",
    "weights": "graphs.blockwise:Blockwise",
    "streamed": "streaming.step:Streamed",
    "distil": "networks.distilling:Distil",
    "student": "networks.students:Student",
    "given-student": "networks.given:Given",
    "finetune": "networks.finetuning:Finetune",
    "qat": "networks.qat:QuantizationAware",
    "prune-weights": "networks.magnitude:PruneWeights",
    "prune-structure": "networks.structured:PruneStructure",
    "low-rank": "networks.lowrank:LowRank",
    "trim-vocabulary": "networks.vocabulary:TrimVocabulary",
    "tree-rounds": "trees.rounds:Rounds",
    "tree-rounding": "trees.rounding:Rounding",
}
"""Name → where its class is. Read when it is asked for, since some need torch."""


def step(name: str, settings: Mapping[str, Any], where: str = "compression") -> Step:
    """The step called `name` with its settings; raises BadInput naming the nearest name or setting, Unavailable
    without torch.
    """
    if name not in STEPS:
        raise BadInput(
            "unknown step", where=where, got=name, wanted=", ".join(STEPS), next=did_you_mean(name, STEPS)
        )
    module, _, kind = STEPS[name].partition(":")
    try:
        made = getattr(import_module(f"loopwright.compression.{module}"), kind)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("loopwright"):
            raise
        raise without_torch(f"the step `{name}`", error.name or "torch") from error
    known = [one.name for one in dataclasses.fields(made)]
    for key in settings:
        if key not in known:
            raise BadInput(
                f"unknown setting of `{name}`", where=where, got=key, wanted=", ".join(known) or "no settings",
                next=did_you_mean(key, known),
            )  # fmt: skip
    try:
        found: Step = made(**settings)
    except TypeError as error:
        raise BadInput(
            f"settings of `{name}` do not fit ({error})", where=where, got=dict(settings)
        ) from error
    return found


def settings_of(one: Step) -> dict[str, Any]:
    """The step's settings in JSON's own types."""
    return {item.name: _plain(getattr(one, item.name)) for item in dataclasses.fields(one)}  # type: ignore[arg-type]


def without_torch(what: str, module: str = "torch") -> Unavailable:
    """The error for what needs torch, or a library beside it, where there is none."""
    return Unavailable(
        f"{what} needs {module}",
        next="Install it: pip install 'loopwright[compression]' (and a CPU or GPU torch)",
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | frozenset | set) else value
