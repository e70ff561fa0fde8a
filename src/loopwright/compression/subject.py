"""What is compressed, and the rows it may learn from, be chosen by and be reported on."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from loopwright.compression.artefact import Artefact
from loopwright.kernel.errors import BadInput
from loopwright.stats.metrics import METRICS, Metric, metric

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
"""The model's inputs by name, each with one row per example."""

MIN_ROWS = 20
CALIBRATION_ROWS = 512


@dataclass(frozen=True, slots=True)
class Rows:
    """Examples with their truth: `feeds` as the model takes them, each (n, …), and `y` (n,)."""

    feeds: Feeds
    y: Array

    def __post_init__(self) -> None:
        sizes = {name: len(values) for name, values in self.feeds.items()} | {"the truth": len(self.y)}
        if not self.feeds or len(set(sizes.values())) != 1:
            raise BadInput(
                "inputs and truth are not of one length", where="rows", got=sizes, wanted="one value per row"
            )

    def __len__(self) -> int:
        return len(self.y)

    def take(self, positions: Array) -> "Rows":
        """The rows at `positions`, in that order."""
        return Rows({name: values[positions] for name, values in self.feeds.items()}, self.y[positions])

    def few(self, count: int, seed: int) -> "Rows":
        """At most `count` rows, chosen by `seed`, in their own order."""
        if len(self) <= count:
            return self
        chosen = np.random.default_rng(seed).choice(len(self), count, replace=False)
        return self.take(np.sort(chosen))

    def marks(self) -> set[bytes]:
        """One digest per row, of its inputs only: equal rows have equal marks."""
        columns = [np.ascontiguousarray(values) for values in self.feeds.values()]
        return {
            hashlib.blake2b(b"".join(column[row].tobytes() for column in columns), digest_size=16).digest()
            for row in range(len(self))
        }


@dataclass(frozen=True, slots=True)
class Samples:
    """`train` teaches and calibrates, `validation` chooses, `test` reports.

    Raises BadInput where a part has fewer than 20 rows, or where more than `shared` of the rows that choose or report
    are rows that teach: a comparison on training data says nothing. Rows that repeat by nature (few distinct values)
    are what `shared` is for.
    """

    train: Rows
    validation: Rows
    test: Rows
    shared: float = 0.05

    def __post_init__(self) -> None:
        for name, part in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            if len(part) < MIN_ROWS:
                raise BadInput(
                    f"too few rows in `{name}`", where="samples", got=len(part), wanted=f"at least {MIN_ROWS}"
                )
            if set(part.feeds) != set(self.train.feeds):
                raise BadInput(
                    f"`{name}` is of another schema", where="samples", got=", ".join(part.feeds),
                    wanted=", ".join(self.train.feeds),
                )  # fmt: skip
        learned = self.train.marks()
        for name, part in (("validation", self.validation), ("test", self.test)):
            marks = part.marks()
            share = len(marks & learned) / len(marks)
            if share > self.shared:
                raise BadInput(
                    "rows that a model learns from cannot say what it lost",
                    where=f"samples: {name}", got=f"{share:.0%} of its rows are training rows",
                    wanted=f"at most {self.shared:.0%}", next="Hold rows out before anything is trained.",
                )  # fmt: skip

    def calibration(self, seed: int, rows: int = CALIBRATION_ROWS) -> Rows:
        """The rows that ranges of activations are taken from: of `train`, never of what chooses or reports."""
        return self.train.few(rows, seed)


class Network(Protocol):
    """A torch module with all that is needed to train it further and to export it; see `networks.network`.

    `module` answers with one tensor (n, outputs) to the feeds of a batch.
    """

    @property
    def module(self) -> Any: ...

    def export(self, path: Path) -> None:
        """Write the module as ONNX; raises CannotExport."""
        ...

    def parameters(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Production:
    """How the model is asked in production; latency is measured so. `lengths`: of variable axes, by their name."""

    batch: int = 1
    threads: int = 1
    lengths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to compress: its FP32 graph, how well it does, and, for what needs training, its torch module.

    `answer` turns the graph's first output (n, …) into what `metric` takes; left out, it is taken as it is. `kind`
    decides which techniques are tried first; "trees", "cnn", "transformer" or "other", see `facts.kind_of`.
    """

    name: str
    graph: Artefact
    samples: Samples
    metric: Metric
    network: Network | None = None
    answer: Callable[[Array], Array] | None = None
    production: Production = Production()
    batch_free: bool = False
    """Whether answers must not depend on what else is in a batch, as for what is served in micro-batches."""

    @staticmethod
    def of(name: str, graph: Path, samples: Samples, metric_name: str, **rest: Any) -> "Subject":
        """The subject whose graph lies at `graph`; raises what `Artefact.open` raises, NotFound for a metric."""
        if metric_name not in METRICS:
            metric(metric_name)
        return Subject(name, Artefact.open(graph), samples, METRICS[metric_name], **rest)


class Notes(Protocol):
    """Where steps write what they see, as a `training.Recorder` takes it."""

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...


class Unnoted:
    """Nobody keeps it."""

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...
