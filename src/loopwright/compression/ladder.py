"""The ladder: recipes are tried from the mildest on until one keeps to the constraints."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from loopwright.compression.artefact import Artefact
from loopwright.compression.attempts import Tracking, Untracked, attempt, find, key_of
from loopwright.compression.attempts import report as reported
from loopwright.compression.candidate import Candidate, Status
from loopwright.compression.constraints import Constraints
from loopwright.compression.judging import Parent, predict
from loopwright.compression.plan import Rung, Traits, plan
from loopwright.compression.recipe import Recipe
from loopwright.compression.report import Gain, LadderReport, closest, figures
from loopwright.compression.subject import Subject
from loopwright.compression.tradeoff import ORIGINAL, points
from loopwright.kernel.digest import canonical_json, digest_json
from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.kernel.files import lock, write_atomic
from loopwright.kernel.progress import Progress, Silent
from loopwright.stats.bootstrap import paired_bootstrap

OUT_OF_BUDGET = "the budget ended before its turn"
MAX_MINUTES = 7 * 24 * 60
WORTHWHILE = 0.95
"""Of the size or the time; less is within what one measurement differs from the next."""


def climb(
    subject: Subject,
    wanted: Constraints,
    folder: Path,
    *,
    rungs: Sequence[Rung] | None = None,
    explore: bool = False,
    minutes: float | None = None,
    watch: Progress | None = None,
    tracking: Tracking | None = None,
    seed: int = 7,
    threads: int = 1,
) -> LadderReport:
    """Try the rungs (left out: those of `plan`) in order, stop at the first that keeps to `wanted`, write the report.

    What decides is measured on validation rows; test rows are asked about the chosen one only, or, where all are tried
    (`explore`), about all, and choose nothing. Beside what distils or rounds in training, and would be chosen or is
    explored, the same is tried without. `folder` keeps every candidate: a climb that ended early, in whichever way,
    goes on from there, and what was measured for the same model and rows is not measured again. It comes to hold
    `report.json` and `report.md`, and with `explore` `tradeoff.png` and `tradeoff.html`.

    minutes: of the budget; no rung begins, and no training goes on, after it. threads: for training and exporting;
    latency has those of production. Raises BadInput, before any work, for rungs or a budget that make no sense, and for
    rows by which the metric is undefined.
    """
    if minutes is not None and not 0 < minutes <= MAX_MINUTES:
        raise BadInput(
            "a budget is a number of minutes",
            where="ladder",
            got=minutes,
            wanted=f"above 0, to {MAX_MINUTES}",
        )
    began = time.monotonic()
    traits = Traits.of(subject)
    planned = tuple(plan(traits, wanted, explore=explore) if rungs is None else rungs)
    _check(planned)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / ".lock"):
        work = _Climb(
            subject, wanted, folder, explore, None if minutes is None else began + minutes * 60,
            watch or Silent(), tracking or Untracked(), seed, threads,
        )  # fmt: skip
        for part in ("validation", "test"):
            work.parent.value(part)  # what nobody can be judged by is told now, not after hours
        ended = work.run(planned)
        chosen = choose(work.candidates, wanted)
        work.test([one for one in work.candidates if one.measured and (explore or one.name == chosen)])
        report = LadderReport(
            subject.name, traits.kind, subject.metric.name, traits.facts.parameters, subject.graph.size, wanted,
            {
                "batch": subject.production.batch, "threads": subject.production.threads,
                "lengths": dict(subject.production.lengths),
            },
            tuple(work.candidates), work.gains(), chosen, explore, ended, time.monotonic() - began,
        )  # fmt: skip
        keep(report, folder, pictures=explore)
    return report


def choose(candidates: Sequence[Candidate], wanted: Constraints) -> str:
    """The first, in the ladder's order, that keeps to all; or the smallest of those that keep to all too, are nowhere
    worse and at least 5 % smaller or faster. "" for none.

    Losses are compared by their upper bounds: of many candidates some seem better by chance. The parent counts only
    where a size or a latency is asked for: without, there is nothing that it would have to meet.
    """
    asked = wanted.size is not None or wanted.latency_ms is not None
    good = [one for one in candidates if not one.misses(wanted) and (asked or one.name != ORIGINAL)]
    if not good:
        return ""
    first, *others = points(good, surely=True)
    better = [
        one
        for one in others
        if one.dominates(first)
        and (one.size <= WORTHWHILE * first.size or one.latency <= WORTHWHILE * first.latency)
    ]
    return min(better, key=lambda one: one.place, default=first).name


def keep(report: LadderReport, folder: Path, *, pictures: bool) -> None:
    """Write the report into `folder`, each file whole or not at all. Equal reports give equal files."""
    write_atomic(folder / "report.json", canonical_json(report.to_json()))
    write_atomic(folder / "report.md", report.to_markdown().encode())
    if pictures:
        from loopwright.compression.picture import html, png

        write_atomic(folder / "tradeoff.png", png(report))
        write_atomic(folder / "tradeoff.html", html(report).encode())


class _Climb:
    """The state of one climb: what was found so far."""

    def __init__(
        self, subject: Subject, wanted: Constraints, folder: Path, explore: bool, until: float | None,
        watch: Progress, tracking: Tracking, seed: int, threads: int,
    ) -> None:  # fmt: skip
        self.subject, self.wanted, self.folder, self.explore, self.until = (
            subject,
            wanted,
            folder,
            explore,
            until,
        )
        self.watch, self.tracking, self.seed, self.threads = watch, tracking, seed, threads
        self.parent = Parent.of(subject, threads=threads)
        self.candidates: list[Candidate] = []
        self.compared: list[tuple[str, str, str]] = []

    def run(self, rungs: Sequence[Rung]) -> str:
        """Go up; returns why it ended."""
        for position, rung in enumerate(rungs, start=1):
            if any(one.name == rung.name for one in self.candidates):
                continue  # it was the control of one before
            candidate = self._try(rung, f"{position}/{len(rungs)} {rung.name}")
            if (
                candidate.measured
                and rung.control is not None
                and (self.explore or self._satisfies(candidate))
            ):
                self._beside(candidate, rung, rung.control)
            if not self.explore and choose(self.candidates, self.wanted):
                return f"{rung.name} keeps to everything"
        if any(one.why == OUT_OF_BUDGET for one in self.candidates):
            return "the budget of minutes is used up"
        return "all rungs tried"

    def test(self, chosen: Sequence[Candidate]) -> None:
        """Measure test rows for `chosen`."""
        for one in chosen:
            tested = reported(
                one, self.subject, self.folder, parent=self.parent, tracking=self.tracking, seed=self.seed,
                threads=self.threads,
            )  # fmt: skip
            self._replace(one.name, replace(one, test=tested.test))

    def gains(self) -> tuple[Gain, ...]:
        """What each control shows; both sides answer the same validation rows."""
        return tuple(self._gain(*names) for names in self.compared)

    def _satisfies(self, candidate: Candidate) -> bool:
        return not candidate.misses(self.wanted)

    def _out_of_time(self) -> bool:
        return self.until is not None and time.monotonic() >= self.until

    def _try(self, rung: Rung, title: str) -> Candidate:
        self.watch.step(title)
        candidate = self._attempt(rung)
        self.candidates.append(candidate)
        if candidate.measured:
            self.watch.done(figures(candidate))
        else:
            self.watch.done(f"{candidate.status}: {candidate.why}")
        return candidate

    def _attempt(self, rung: Rung) -> Candidate:
        if rung.why:
            return self._skipped(rung, rung.why)
        try:
            recipe = Recipe.from_json(rung.name, rung.steps, "ladder")
        except Unavailable as error:
            return self._skipped(rung, str(error))
        if self._out_of_time() and find(self.folder, key_of(recipe, self.parent, self.seed)) is None:
            return self._skipped(rung, OUT_OF_BUDGET)
        candidate = attempt(
            recipe, self.subject, self.folder, parent=self.parent, tracking=self.tracking, watch=self.watch,
            seed=self.seed, threads=self.threads, until=self.until, floor=rung.floor,
        )  # fmt: skip
        if candidate.status is Status.SKIPPED:
            return replace(candidate, name=rung.name, floor=rung.floor, why=OUT_OF_BUDGET)
        # An earlier climb may have measured it under another name, and asked test rows that this one has no say over.
        return replace(candidate, name=rung.name, floor=rung.floor, control="", test=None)

    def _beside(self, candidate: Candidate, rung: Rung, control: Rung) -> None:
        beside = next((one for one in self.candidates if one.name == control.name), None)
        if beside is None or not beside.measured:
            self.candidates = [one for one in self.candidates if one.name != control.name]
            beside = self._try(control, f"control: {control.name}")
        self._replace(candidate.name, replace(candidate, control=control.name))
        if beside.measured:
            self.compared.append((candidate.name, control.name, rung.adds))

    def _gain(self, candidate: str, control: str, what: str) -> Gain:
        rows, answers = self.subject.samples.validation, []
        for name in (candidate, control):
            file = next(one.file for one in self.candidates if one.name == name)
            raw = predict(Artefact.open(self.folder / file), rows.feeds, threads=self.threads)
            answers.append(raw if self.subject.answer is None else self.subject.answer(raw))
        found = paired_bootstrap(
            self.subject.metric, rows.y, np.asarray(answers[0]), np.asarray(answers[1]), seed=self.seed
        )
        return Gain(
            candidate, control, what, found.metric, found.difference, found.low, found.high, found.confidence,
            found.rows,
        )  # fmt: skip

    def _replace(self, name: str, by: Candidate) -> None:
        self.candidates = [by if one.name == name else one for one in self.candidates]

    def _skipped(self, rung: Rung, why: str) -> Candidate:
        steps = [dict(one) for one in rung.steps]
        return Candidate(
            rung.name, digest_json(steps)[:12], steps, Status.SKIPPED, why, original_size=self.subject.graph.size,
            floor=rung.floor,
        )  # fmt: skip


def _check(rungs: Sequence[Rung]) -> None:
    """Refuse what could only fail later: rungs of one name, and steps or settings that do not exist."""
    if not rungs:
        raise BadInput("a ladder without rungs", where="ladder", wanted="at least one recipe")
    names = [one.name for one in rungs]
    if len(set(names)) != len(names):
        raise BadInput("two rungs of one name", where="ladder", got=", ".join(names))
    for rung in rungs:
        for one in (rung, rung.control):
            if one is None or rung.why:
                continue
            try:
                Recipe.from_json(one.name, one.steps, f"ladder: {one.name}")
            except Unavailable:
                continue  # recorded as skipped when its turn comes


__all__ = ["Rung", "choose", "climb", "closest", "keep", "plan"]
