"""INT8 but for the few layers that hurt: found by quantizing each alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from onnx import ModelProto

from loopwright.compression.artefact import Artefact
from loopwright.compression.graphs.calibrating import Ranges, check_method, ranges
from loopwright.compression.graphs.encoding import (
    FULL,
    REDUCED,
    activations,
    encode_products,
    encode_static,
    encode_tables,
    split_gemms,
)
from loopwright.compression.graphs.preparing import (
    Layer,
    finish,
    layers,
    nothing_to,
    prepare,
    scratch,
)
from loopwright.compression.graphs.running import (
    MIN_CALIBRATION,
    answers,
    check_rows,
    own_rows,
)
from loopwright.compression.graphs.smooth import check_base
from loopwright.compression.steps import Work
from loopwright.compression.subject import Array, Rows, Subject, check_feeds
from loopwright.kernel.errors import BadInput

RANKED = 128
"""Rows that a layer is ranked by."""
SHOWN = 20
"""Layers of the ranking that are written out."""


@dataclass(frozen=True)
class Mixed:
    """INT8 as in `base` ("dynamic" or "static"), with at most `keep` groups of layers left in float32.

    On training rows that calibrate nothing (`judged`; never rows that choose or report): while the metric's loss is
    above `loss`, or the answers differ by more than `error` of their own spread (None: any), the next worst layer is
    left in float32. The order is each layer's harm, the error of the answers when it alone is quantized. More than
    `trials` layers are tried in groups of neighbours. Where nothing suffices, the best that was tried is written.
    """

    name: ClassVar[str] = "int8-mixed"
    base: str = "dynamic"
    loss: float = 0.005
    error: float | None = 0.05
    keep: int = 4
    trials: int = 64
    rows: int = 256
    judged: int = 512
    calibration: str = "minmax"
    percentile: float = 99.99
    embeddings: bool = True
    reduce_range: bool = False

    def __post_init__(self) -> None:
        check_base(self.base, self.name)
        check_method(self.calibration, self.percentile, self.name)
        check_rows(self.rows, self.name)
        check_rows(self.judged, f"{self.name}: judged")
        if not 0 <= self.loss < 1 or (self.error is not None and not self.error > 0):
            raise BadInput(
                "loss and error are shares", where=self.name, got=f"loss {self.loss}, error {self.error}",
                wanted="a loss of 0 to under 1, an error above 0",
            )  # fmt: skip
        if self.keep < 1 or self.trials < 1:
            raise BadInput(
                "nothing to choose from", where=self.name, got=f"keep {self.keep}, trials {self.trials}",
                wanted="at least 1 of each",
            )  # fmt: skip

    @property
    def bits(self) -> float:
        return 8.0

    @property
    def batch_free(self) -> bool:
        return self.base == "static"

    def encode(self, source: Artefact, target: Path, work: Work) -> Artefact:
        """Raises CannotExport where nothing can be quantized, BadInput for rows that do not fit, OutOfTime."""
        calibrating, judging = split(work.samples.train, self.rows, self.judged, work.seed)
        check_feeds(source.ports, calibrating.feeds, f"calibration rows for {source.path.name}")
        with scratch(work) as folder:
            model = prepare(source, folder, self.name)
            kinds = ["MatMul", "Gemm", "Conv", "ConvTranspose"] if self.base == "static" else ["MatMul"]
            if self.base == "dynamic":
                split_gemms(model)
            chosen = layers(model, [*kinds, "Gather"] if self.embeddings else kinds)
            if not any(one.kind != "Gather" for one in chosen):
                raise nothing_to(self.name, source, f"{', '.join(kinds)} with a constant weight")
            found: Ranges = {}
            if self.base == "static":
                found = ranges(
                    model, activations(model), calibrating.feeds, folder, self.calibration, self.percentile,
                    work.threads,
                )  # fmt: skip
            trial = Trial(self, model, chosen, found, judging, folder, work)
            kept, harm = trial.search()
            made = finish(trial.made(kept), target, self.name)
        figures = trial.seen[kept]
        ranking = "; ".join(f"{name} {value:.3g}" for name, value in harm[:SHOWN])
        work.notes.params(
            {"kept_layers": ", ".join(kept) or "none", "ranking": ranking, "calibration_rows": len(calibrating)}
        )  # fmt: skip
        for place, (_, value) in enumerate(harm):
            work.notes.metrics({"harm": value}, step=place)
        work.notes.metrics(
            {
                "quantized_layers": len(chosen) - len(kept), "layers_kept": len(kept), "trials": trial.asked,
                "trial_loss": figures[0], "trial_error": figures[1], "plain_loss": trial.seen[()][0],
                "plain_error": trial.seen[()][1], "within": float(trial.suffices(figures)), "bytes": made.size,
            }
        )  # fmt: skip
        return made


Figures = tuple[float, float]
"""Loss of the metric as a share of the parent's, and error of the answers as a share of their spread."""


@dataclass(slots=True)
class Trial:
    """One search: what was tried, and what it gave."""

    step: Mixed
    model: ModelProto
    layers: Sequence[Layer]
    found: Ranges
    rows: Rows
    folder: Path
    work: Work
    asked: int = 0
    seen: dict[tuple[str, ...], Figures] = field(default_factory=dict)
    parent: Array = field(init=False)

    def __post_init__(self) -> None:
        self.parent = answers(self.model, self.rows.feeds, self.folder, self.work.threads)
        self.rows = self.rows.take(np.arange(len(self.parent)))  # a graph of fixed rows leaves some over
        if not np.isfinite(self.parent).all():
            raise BadInput(
                "the model computes no number on the rows that layers are judged by", where="int8-mixed: judged",
                got="NaN or infinite", wanted="finite answers", next="Look for NaN in the rows.",
            )  # fmt: skip

    def search(self) -> tuple[tuple[str, ...], list[tuple[str, float]]]:
        """The layers to keep in float32, and the harm of each group that was tried, worst first."""
        if self.suffices(self.figures(())):
            return (), []
        ranked = self.ranked()
        kept: tuple[str, ...] = ()
        for group, _ in ranked[: self.step.keep]:
            kept = (*kept, *group)
            if self.suffices(self.figures(kept)):
                break
        else:
            kept = min(self.seen, key=lambda one: self.excess(self.seen[one]))
        return kept, [("+".join(group), harm) for group, harm in ranked]

    def ranked(self) -> list[tuple[tuple[str, ...], float]]:
        """Groups of layers by the error of the answers when only they are quantized, largest first."""
        every = [one.name for one in self.layers]
        parts = np.array_split(np.arange(len(every)), min(len(every), self.step.trials))
        found = []
        for done, part in enumerate(parts):
            group = tuple(every[place] for place in part)
            others = tuple(name for name in every if name not in group)
            self.work.watch.update(0.2 + 0.7 * done / len(parts), f"{group[0]} alone")
            found.append((group, self.harm(others)))
        return sorted(found, key=lambda one: -one[1])

    def harm(self, kept: tuple[str, ...]) -> float:
        """Error of the answers with the layers `kept` in float32. Few rows do: unlike a loss it has no steps."""
        count = len(self.rows) if own_rows(self.model, self.rows.feeds) else min(RANKED, len(self.rows))
        few = self.rows.take(np.arange(count))
        return error_of(self.parent[:count], self.ask(kept, few))

    def figures(self, kept: tuple[str, ...]) -> Figures:
        """Loss and error of the answers with the layers `kept` in float32."""
        given = self.ask(kept, self.rows)
        found = loss_of(self.work.subject, self.rows, self.parent, given), error_of(self.parent, given)
        self.seen[kept] = found
        return found

    def ask(self, kept: tuple[str, ...], rows: Rows) -> Array:
        """What the graph answers with the layers `kept` in float32."""
        self.work.check_time()
        self.asked += 1
        return answers(self.made(kept), rows.feeds, self.folder, self.work.threads)

    def made(self, kept: tuple[str, ...]) -> ModelProto:
        model = ModelProto()
        model.CopyFrom(self.model)
        largest = REDUCED if self.step.reduce_range else FULL
        tables = [one for one in self.layers if one.kind == "Gather" and one.name not in kept]
        if self.step.base == "dynamic":
            products = [one for one in self.layers if one.kind == "MatMul" and one.name not in kept]
            encode_products(model, products, largest)
            encode_tables(model, tables)
            return model
        return encode_static(model, self.found, tables, kept, largest)

    def suffices(self, figures: Figures) -> bool:
        return self.excess(figures) <= 1

    def excess(self, figures: Figures) -> float:
        """How many times more is lost than allowed."""
        error = figures[1] / self.step.error if self.step.error is not None else 0.0
        loss = figures[0] / self.step.loss if self.step.loss else (np.inf if figures[0] > 0 else 0.0)
        return float(max(error, loss))


def split(rows: Rows, first: int, second: int, seed: int) -> tuple[Rows, Rows]:
    """Two parts without a common row, of at most so many; each of at least 8, as training rows are 20 or more."""
    order = np.random.default_rng(seed).permutation(len(rows))
    cut = min(first, max(MIN_CALIBRATION, len(rows) // 2))
    return rows.take(np.sort(order[:cut])), rows.take(np.sort(order[cut : cut + second]))


def loss_of(subject: Subject, rows: Rows, parent: Array, given: Array) -> float:
    """How much worse the metric is, as a share of the parent's; below 0 for better."""
    shown = subject.answer or (lambda answer: answer)
    before, after = (float(subject.metric(rows.y, shown(one))) for one in (parent, given))
    if not np.isfinite([before, after]).all():
        raise BadInput(
            f"{subject.metric.name} says nothing on the rows that layers are judged by", where="int8-mixed: judged",
            got=f"{len(rows)} rows", wanted="rows on which the metric is a number", next="Judge by more rows.",
        )  # fmt: skip
    return -subject.metric.gain(after, before) / max(abs(before), 1e-12)


def error_of(parent: Array, given: Array) -> float:
    """Root mean square of the difference, as a share of the parent's spread."""
    spread = float(np.std(parent.astype(np.float64)))
    lost = float(np.sqrt(np.mean((given.astype(np.float64) - parent) ** 2)))
    return lost / spread if spread else lost
