"""What is compressed, and the rows it may learn from, be chosen by and be reported on."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from loopwright.compression.artefact import Artefact, Port
from loopwright.kernel.errors import BadInput
from loopwright.stats.metrics import Metric, metric

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
"""The model's inputs by name, each with one row per example."""

MIN_ROWS = 20
CALIBRATION_ROWS = 512
CLASSES = frozenset(("roc_auc", "log_loss", "brier", "accuracy", "f1_macro"))


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
        for name, values in (*self.feeds.items(), ("the truth", self.y)):
            if values.dtype.kind in "OV":
                raise BadInput(
                    "values of no single type", where=f"rows: {name}", got=str(values.dtype),
                    wanted="an array of numbers or of text (dtype str)", next="Convert it: values.astype(...).",
                )  # fmt: skip
        if self.y.dtype.kind == "f" and np.isnan(self.y).any():
            raise BadInput(
                "rows without a label", where="rows", got=f"{int(np.isnan(self.y).sum())} of {len(self.y)} are NaN",
                wanted="a truth for each", next="Drop them before measuring.",
            )  # fmt: skip

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
        """One digest per row, of its inputs only, in the order of their names: equal rows have equal marks."""
        columns = [_bytes_of(self.feeds[name]) for name in sorted(self.feeds)]
        found = set()
        for row in range(len(self)):
            mark = hashlib.blake2b(digest_size=16)
            for column in columns:
                mark.update(column(row))
            found.add(mark.digest())
        return found

    def digest(self) -> str:
        """SHA-256 of the inputs, by name with type and shape, and of the truth."""
        whole = hashlib.sha256()
        for name, values in (*sorted(self.feeds.items()), ("", self.y)):
            whole.update(f"{name}\0{values.dtype}\0{values.shape}\0".encode())
            whole.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        return whole.hexdigest()


@dataclass(frozen=True, slots=True)
class Samples:
    """`train` teaches and calibrates, `validation` chooses, `test` reports.

    Raises BadInput where a part has fewer than 20 rows or another schema, where more than `shared` of the rows that
    choose or report are rows that teach, since a comparison on training data says nothing, or where as many that report
    have chosen. Rows that repeat by nature (few distinct values) are what `shared` is for.
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
            _check_schema(name, part, self.train)
        marks = {
            "train": self.train.marks(),
            "validation": self.validation.marks(),
            "test": self.test.marks(),
        }
        for name, other, what, before in (
            ("validation", "train", "rows that a model learns from cannot say what it lost", "trained"),
            ("test", "train", "rows that a model learns from cannot say what it lost", "trained"),
            ("test", "validation", "rows that a model was chosen by flatter it", "chosen"),
        ):
            share = len(marks[name] & marks[other]) / len(marks[name])
            if share > self.shared:
                raise BadInput(
                    what, where=f"samples: {name}", got=f"{share:.0%} of its rows are {other} rows",
                    wanted=f"at most {self.shared:.0%}", next=f"Hold rows out before anything is {before}.",
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

    def __post_init__(self) -> None:
        for name, value in (("batch", self.batch), ("threads", self.threads), *self.lengths.items()):
            if not (isinstance(value, int) and value >= 1):
                raise BadInput("not a count", where=f"production: {name}", got=value, wanted="1 or more")


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
        """The subject whose graph lies at `graph`.

        Raises what `Artefact.open` raises, NotFound for a metric, BadInput for samples of another schema.
        """
        return Subject(name, Artefact.open(graph), samples, metric(metric_name), **rest)

    def __post_init__(self) -> None:
        check_feeds(self.graph.ports, self.samples.train.feeds, f"samples of {self.name}")
        fixed = {port.shape[0] for port in self.graph.ports if port.shape and isinstance(port.shape[0], int)}
        if fixed - {self.production.batch}:
            raise BadInput(
                "the graph takes another number of rows than production asks with", where=self.name,
                got=f"{min(fixed)} rows", wanted=f"{self.production.batch}, or any number",
                next="Export it with rows free in size.",
            )  # fmt: skip
        unknown = sorted(set(self.production.lengths) - variable_axes(self.graph.ports))
        if unknown:
            raise BadInput(
                "lengths of axes that the graph does not have", where="production", got=", ".join(unknown),
                wanted=", ".join(sorted(variable_axes(self.graph.ports))) or "none: all its axes are fixed",
            )  # fmt: skip

    @property
    def classifies(self) -> bool:
        """Whether its metric is of classes."""
        return self.metric.name in CLASSES


class Notes(Protocol):
    """Where steps write what they see, as a `training.Recorder` takes it."""

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...


class Unnoted:
    """Nobody keeps it."""

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...


def check_feeds(ports: Sequence[Port], feeds: Feeds, where: str) -> None:
    """Raise BadInput unless `feeds` have the names, types and sizes that the graph takes; sizes of its rows apart."""
    wanted = {port.name: port for port in ports}
    if set(wanted) != set(feeds):
        raise BadInput(
            "inputs of another schema", where=where, got=", ".join(sorted(feeds)), wanted=", ".join(sorted(wanted)),
            next="Name the inputs as the graph does.",
        )  # fmt: skip
    for name, values in feeds.items():
        port = wanted[name]
        kind = "str" if values.dtype.kind == "U" else values.dtype.name
        if not port.dtype:
            raise BadInput("an input that is no tensor", where=f"{where}: {name}", wanted="tensors only")
        if kind != port.dtype:
            raise BadInput(
                "an input of another type", where=f"{where}: {name}", got=kind, wanted=port.dtype,
                next=f"Convert it: values.astype({port.dtype!r}).",
            )  # fmt: skip
        if port.shape is None:
            continue
        fits = len(port.shape) == values.ndim and all(
            not isinstance(size, int) or size == found
            for size, found in zip(port.shape[1:], values.shape[1:], strict=False)
        )
        if not fits:
            raise BadInput(
                "an input of another shape", where=f"{where}: {name}", got=values.shape,
                wanted="(rows" + "".join(f", {size or 'any'}" for size in port.shape[1:]) + ")",
            )  # fmt: skip


def variable_axes(ports: Sequence[Port]) -> set[str]:
    """The names of axes, besides the rows, whose size may vary."""
    return {size for port in ports if port.shape for size in port.shape[1:] if isinstance(size, str) and size}


def _bytes_of(values: Array) -> Callable[[int], bytes | memoryview]:
    """Row → its bytes; of text without the padding to the longest."""
    if values.dtype.kind == "U":
        return lambda row: "\0".join(map(str, np.ravel(values[row]))).encode() + b"\1"
    width = values.dtype.itemsize * math.prod(values.shape[1:])
    view = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    return lambda row: view[row * width : (row + 1) * width]


def _check_schema(name: str, part: Rows, like: Rows) -> None:
    said, wanted = ({
        key: ("str" if values.dtype.kind == "U" else values.dtype.name, values.shape[1:])
        for key, values in rows.feeds.items()
    } for rows in (part, like))  # fmt: skip
    if said != wanted:
        raise BadInput(f"`{name}` is of another schema", where="samples", got=said, wanted=str(wanted))
