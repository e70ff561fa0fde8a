"""Trees in fewer bytes: fewer different numbers, equal parts once, and nothing that is never read."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from loopwright.compression.artefact import Artefact
from loopwright.compression.steps import Work
from loopwright.compression.trees.ensemble import Array, Ensemble
from loopwright.compression.trees.seen import seen
from loopwright.compression.trees.sharing import folded, settled, without
from loopwright.compression.trees.writing import trees_of, write
from loopwright.kernel.errors import BadInput

THRESHOLDS = ("keep", "float16", "quantiles")
LLOYD_ROUNDS = 30
TOLD_BY = 256
_STRICT = (1, 2)
"""Modes < and >=: a value that equals the threshold belongs above it; with <= and > below."""
_UNORDERED = (4, 5)


@dataclass(frozen=True, slots=True)
class Rounding:
    """Store the trees in fewer bytes: leaves of 2^`leaves` different values, and nothing that need not be there.

    What ONNX Runtime never reads, or would take as given, is left out (hit rates, names of modes, tree and node
    numbers); leaves that are equal are stored once; splits with equal sides, or settled by an earlier split, go. With
    `leaves=0` that alone is done: the answers are those of before, to the order of a sum.

    A file holds every threshold as 32 bits whatever its value, so `thresholds` make it smaller only where splits fall
    together, and where it is compressed on its way.

    leaves: bits, 1 to 16; 0 leaves them as they are. Values are chosen by weighted k-means (Lloyd 1982): a leaf counts
    as often as training rows reach it.
    thresholds: "keep"; "float16": the nearest number with a mantissa of 11 bits; "quantiles": the nearest of
    `quantiles` quantiles of the training values.
    exact: move a threshold only where no training row, of `rows`, changes sides.
    unreached: cut off branches that no training row (of all) reaches. A new row that would go there answers as its
    neighbour branch: off unless the rows show all that can come.
    """

    leaves: int = 8
    thresholds: str = "keep"
    quantiles: int = 64
    exact: bool = True
    unreached: bool = False
    rows: int = 5000

    name: ClassVar[str] = "tree-rounding"

    def __post_init__(self) -> None:
        where = f"step {self.name}"
        if isinstance(self.leaves, bool) or not isinstance(self.leaves, int) or not 0 <= self.leaves <= 16:
            raise BadInput(
                "not a number of bits", where=f"{where}: leaves", got=self.leaves, wanted="0 to 16"
            )
        if self.thresholds not in THRESHOLDS:
            raise BadInput(
                "no such rounding",
                where=f"{where}: thresholds",
                got=self.thresholds,
                wanted=", ".join(THRESHOLDS),
            )
        if not 2 <= self.quantiles <= 65_536:
            raise BadInput(
                "too few or too many", where=f"{where}: quantiles", got=self.quantiles, wanted="2 to 65536"
            )
        if self.rows < 20:
            raise BadInput(
                "too few rows to round by", where=f"{where}: rows", got=self.rows, wanted="at least 20"
            )

    @property
    def bits(self) -> float:
        return 8.0

    @property
    def keeps(self) -> float:
        return 0.0

    def encode(self, source: Artefact, target: Path, work: Work) -> Artefact:
        """Write the rounded model. Raises CannotExport for a model without trees, or trees of float64."""
        model = source.load()
        before = trees_of(model)
        train = work.samples.train
        some = train.few(self.rows, work.seed)
        scratch = target.with_name(f"{target.stem}-seen.onnx")
        values = seen(source, model, some.feeds, scratch)
        everything = seen(source, model, train.feeds, scratch) if self.unreached else values
        after = []
        for one, x, all_x in zip(before, values, everything, strict=True):
            work.check_time()
            after.append(self._rounded(one, x, all_x))
        told = {name: column[:TOLD_BY] for name, column in some.feeds.items()}
        written = write(model, after, target, told)
        work.notes.params({"form": written.form})
        for label, trees in (("before", before), ("after", [folded(one) for one in after])):
            work.notes.metrics({
                f"branches_{label}": float(sum(one.branches for one in trees)),
                f"leaf_values_{label}": float(sum(len(np.unique(one.weight)) for one in trees)),
                f"thresholds_{label}": float(sum(len(_pairs(one)) for one in trees)),
            })  # fmt: skip
        return written.artefact

    def _rounded(self, ensemble: Ensemble, x: Array, everything: Array) -> Ensemble:
        if self.thresholds != "keep":
            ensemble = settled(replace(ensemble, threshold=self._thresholds(ensemble, x)))
        if self.unreached:
            passes, fails = ensemble.visits(everything)
            ensemble = without(ensemble, passes == 0, fails == 0)
        if self.leaves and len(ensemble.weight):
            reached = np.bincount(ensemble.walk(x).ravel(), minlength=ensemble.leaves)
            ensemble = replace(
                ensemble, weight=codebook(ensemble.weight, reached[ensemble.leaf], 2**self.leaves)
            )
        return ensemble

    def _thresholds(self, ensemble: Ensemble, x: Array) -> Array:
        fresh = ensemble.threshold.copy()
        ordered = np.isfinite(fresh) & ~np.isin(ensemble.mode, _UNORDERED)
        strict = np.isin(ensemble.mode, _STRICT)
        for feature in np.unique(ensemble.feature[ordered]):
            column = x[:, feature]
            column = np.sort(column[~np.isnan(column)])
            if not len(column):
                continue
            for side in (False, True):
                at = np.flatnonzero(ordered & (ensemble.feature == feature) & (strict == side))
                if len(at):
                    fresh[at] = self._moved(ensemble.threshold[at], column, strict=side)
        return fresh

    def _moved(self, old: Array, column: Array, *, strict: bool) -> Array:
        """Thresholds of one feature, given the sorted training values of it."""
        below = np.searchsorted(column, old, side="left" if strict else "right")
        if self.thresholds == "float16":
            with np.errstate(over="ignore"):
                fresh = old.astype(np.float16).astype(np.float32)
            fresh = np.where(np.isfinite(fresh), fresh, old)
        else:
            shares = np.linspace(0, 1, self.quantiles)
            marks = np.unique(np.quantile(column, shares, method="lower").astype(np.float32))
            above = np.clip(np.searchsorted(marks, old), 1, max(1, len(marks) - 1))
            left, right = marks[above - 1], marks[np.minimum(above, len(marks) - 1)]
            fresh = np.where(np.abs(old - left) <= np.abs(right - old), left, right)
        if not self.exact:
            return fresh
        return np.where(
            np.searchsorted(column, fresh, side="left" if strict else "right") == below, fresh, old
        )


def codebook(values: Array, counts: Array, size: int) -> Array:
    """Each value replaced by the nearest of at most `size`, chosen so that the squared error, `counts` times each, is
    small; float32. Values that are few enough stay as they are. Deterministic (Lloyd 1982, started at quantiles)."""
    known, which = np.unique(values, return_inverse=True)
    if len(known) <= size:
        return values
    # Leaves that no row reached still have to be near something.
    weight = np.bincount(which.ravel(), counts + 0.5, minlength=len(known))
    mass = np.cumsum(np.cbrt(weight))
    starts = np.searchsorted(mass, (np.arange(size) + 0.5) / size * mass[-1])
    centres = np.unique(known[np.minimum(starts, len(known) - 1)].astype(np.float64))
    for _ in range(LLOYD_ROUNDS):
        nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, known)
        total = np.bincount(nearest, weight, minlength=len(centres))
        used = total > 0
        fresh = np.bincount(nearest, weight * known, minlength=len(centres))[used] / total[used]
        if len(fresh) == len(centres) and np.allclose(fresh, centres, rtol=1e-7, atol=0):
            break
        centres = fresh
    nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, known)
    return np.asarray(centres.astype(np.float32)[nearest][which.ravel()])


def _pairs(ensemble: Ensemble) -> Array:
    return np.unique(np.stack([ensemble.feature, ensemble.threshold.view(np.int32)], axis=1), axis=0)
