"""The first rounds of a boosted model, or some trees of a forest: as few as a loss allows."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from loopwright.compression.artefact import Artefact
from loopwright.compression.judging import predict
from loopwright.compression.steps import CannotExport, Work
from loopwright.compression.subject import Rows
from loopwright.compression.trees.ensemble import Array, Ensemble
from loopwright.compression.trees.refitting import refitted, unshared
from loopwright.compression.trees.seen import seen
from loopwright.compression.trees.writing import trees_of, write, write_for_now
from loopwright.kernel.errors import BadInput
from loopwright.stats.bootstrap import paired_bootstrap

RESAMPLES = 200
STEPS_OF_SEARCH = 12
"""How many shares between all rounds and hardly any are tried before the boundary is closed in on."""
TOLD_BY = 256
ROWS_AT_ONCE = 1000
LESSONS = 20_000
"""Training rows that leaves are fitted to."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """Keep the first rounds, one tree for each output; scale what is left where trees are averaged.

    keep: rounds when whole (120), their share when a fraction (0.4; 1.0 is all); None: the fewest whose loss of the
    subject's metric is surely (paired bootstrap, upper bound at 95 %) within `within`, relative to all rounds.
    rows: at most so many are asked.
    on: "validation" chooses as early stopping does; "train" leaves the rows that decide untouched, for a model whose
    training rows here are not those it was fitted on (on those every round seems needed).
    averaged: whether the trees are averaged (a forest); None: told from whether half of the trees come nearer to all of
    them as they are or doubled.
    refit: move the leaves that are kept so that they answer training rows as all rounds do, instead of leaving them as
    they were; the answers are then no longer those of the library's own first rounds, but nearer to all of them.
    """

    keep: int | float | None = None
    within: float = 0.005
    on: str = "validation"
    rows: int = 5000
    averaged: bool | None = None
    refit: bool = False

    name: ClassVar[str] = "tree-rounds"

    def __post_init__(self) -> None:
        where = f"step {self.name}"
        keep = self.keep
        if keep is not None and (
            isinstance(keep, bool)
            or not isinstance(keep, int | float)
            or not (keep >= 1 if isinstance(keep, int) else 0 < keep <= 1)
        ):
            raise BadInput(
                "not a number of rounds", where=f"{where}: keep", got=keep,
                wanted="a whole number from 1 on, or a share above 0 up to 1.0",
            )  # fmt: skip
        if not 0 <= self.within < 1:
            raise BadInput("not a share", where=f"{where}: within", got=self.within, wanted="0 to under 1")
        if self.on not in ("validation", "train"):
            raise BadInput("no such rows", where=f"{where}: on", got=self.on, wanted="validation or train")
        if self.rows < 20:
            raise BadInput(
                "too few rows to choose by", where=f"{where}: rows", got=self.rows, wanted="at least 20"
            )

    @property
    def bits(self) -> float:
        return 32.0

    @property
    def keeps(self) -> float:
        return 0.0

    def encode(self, source: Artefact, target: Path, work: Work) -> Artefact:
        """Write the shorter model. Raises CannotExport for a model without trees or of one round, BadInput for more
        rounds than there are.
        """
        model = source.load()
        trees = trees_of(model)
        turns = [_rounds(one) for one in trees]
        total = max(int(turn.max()) + 1 for turn in turns)
        if any(one.aggregate not in ("SUM", "AVERAGE") for one in trees):
            raise CannotExport("trees of which the least or the largest answers", where=self.name)
        rows = (work.samples.validation if self.on == "validation" else work.samples.train).few(
            self.rows, work.seed
        )
        told = {name: values[:TOLD_BY] for name, values in rows.feeds.items()}
        values = seen(source, model, told, target.with_name(f"{target.stem}-seen.onnx"))
        averaged = [
            one.aggregate == "SUM" and (self.averaged if self.averaged is not None else is_averaged(one, x))
            for one, x in zip(trees, values, strict=True)
        ]

        fits: list[_Fit | None] = [None] * len(trees)
        if self.refit:
            trees = [unshared(one) for one in trees]
            lessons = work.samples.train.few(LESSONS, work.seed).feeds
            scratch = target.with_name(f"{target.stem}-seen.onnx")
            fits = [
                _Fit.of(one, x) for one, x in zip(trees, seen(source, model, lessons, scratch), strict=True)
            ]

        def shorter(rounds: int) -> list[Ensemble]:
            return [
                first_rounds(one, turn, math.ceil(rounds * (int(turn.max()) + 1) / total), scaled, fit)
                for one, turn, scaled, fit in zip(trees, turns, averaged, fits, strict=True)
            ]

        if self.keep is None:
            trial = target.with_name(f"{target.stem}-trial.onnx")
            try:
                rounds = self._fewest(
                    total, source, lambda kept: write_for_now(model, shorter(kept), trial), rows, work
                )
            finally:
                trial.unlink(missing_ok=True)
        elif isinstance(self.keep, int):
            if self.keep > total:
                raise BadInput(
                    "the model has fewer rounds", where=f"step {self.name}: keep", got=self.keep,
                    wanted=f"1 to {total}",
                )  # fmt: skip
            rounds = self.keep
        else:
            rounds = max(1, round(self.keep * total))
        written = write(model, shorter(rounds), target, told).artefact
        work.notes.params({"averaged": any(averaged)})
        work.notes.metrics({"rounds": float(rounds), "rounds_before": float(total)})
        return written

    def _fewest(
        self, total: int, source: Artefact, shorter: Callable[[int], Artefact], rows: Rows, work: Work
    ) -> int:
        whole = _answers(source, rows, work)
        tried: dict[int, bool] = {total: True}

        def loses_little(rounds: int) -> bool:
            if rounds not in tried:
                work.check_time()
                loss = self._loss(whole, _answers(shorter(rounds), rows, work), rows, work)
                work.notes.metrics({"loss_bound": loss}, step=rounds)
                work.watch.update(len(tried) / (2 * STEPS_OF_SEARCH), f"{rounds} of {total} rounds")
                tried[rounds] = loss <= self.within
            return tried[rounds]

        # Losses need not rise evenly: from all rounds down, until it costs too much; then the boundary between.
        shares = sorted({max(1, round(total * 0.7**at)) for at in range(1, STEPS_OF_SEARCH)}, reverse=True)
        enough, few = total, 0
        for rounds in shares:
            if not loses_little(rounds):
                few = rounds
                break
            enough = rounds
        while enough - few > max(1, total // 100):
            middle = (enough + few) // 2
            enough, few = (middle, few) if loses_little(middle) else (enough, middle)
        return enough

    @staticmethod
    def _loss(whole: Array, answers: Array, rows: Rows, work: Work) -> float:
        """Upper bound of the relative loss; infinite where the metric says nothing."""
        judged = paired_bootstrap(
            work.subject.metric, rows.y, answers, whole, resamples=RESAMPLES, seed=work.seed
        )
        if not math.isfinite(judged.low):
            return math.inf
        if judged.old == 0:
            return 0.0 if judged.low >= 0 else math.inf
        return -judged.low / abs(judged.old)


@dataclass(frozen=True, slots=True)
class _Fit:
    """Where rows end in all trees, and the sums that all trees give them."""

    ends: Array
    sums: Array

    @staticmethod
    def of(ensemble: Ensemble, x: Array) -> "_Fit":
        ends = ensemble.walk(x)
        return _Fit(ends, ensemble.sums(ends))


def first_rounds(
    ensemble: Ensemble, turn: Array, rounds: int, averaged: bool, fit: _Fit | None = None
) -> Ensemble:
    """The trees of the first `rounds` turns; averaged ones scaled up by how many are left out, then fitted to all."""
    kept = np.flatnonzero(turn < rounds)
    if len(kept) == ensemble.trees:
        return ensemble.with_trees(kept)
    weight = ensemble.weight
    if averaged:
        weight = (weight * (ensemble.trees / len(kept))).astype(np.float32)
    if fit is not None:
        wanted = fit.sums * (len(kept) / ensemble.trees if ensemble.aggregate == "AVERAGE" else 1.0)
        weight = refitted(ensemble, kept, weight, fit.ends, wanted)
    return replace(ensemble, weight=weight).with_trees(kept)


def is_averaged(ensemble: Ensemble, x: Array) -> bool:
    """Whether half of the trees, doubled, come nearer to all trees than half of them as they are, over rows `x`.

    In a forest every tree says the same again; in a boosted model later ones correct what is nearly there.
    """
    turn = _rounds(ensemble)
    last = int(turn.max()) + 1
    if last < 2:
        return False
    ends = ensemble.walk(x)
    half = turn < last // 2
    all_of_them, first = ensemble.sums(ends), ensemble.sums(ends[:, half])
    doubled = first * (len(turn) / half.sum())
    return bool(((all_of_them - doubled) ** 2).sum() < ((all_of_them - first) ** 2).sum())


def _rounds(ensemble: Ensemble) -> Array:
    """Per tree the round it belongs to, from 0 on: one tree per output and round, or one tree for all outputs."""
    if not ensemble.trees:
        raise CannotExport("a model without a tree", where="tree ensemble")
    targets = ensemble.tree_targets()
    if (targets < 0).any():
        return np.arange(ensemble.trees)
    turn = np.empty(ensemble.trees, np.int64)
    for target in np.unique(targets):
        mine = targets == target
        turn[mine] = np.arange(mine.sum())
    return turn


def _answers(artefact: Artefact, rows: Rows, work: Work) -> Array:
    answers = predict(artefact, rows.feeds, threads=max(1, work.threads), batch=ROWS_AT_ONCE)
    return work.subject.answer(answers) if work.subject.answer is not None else answers
