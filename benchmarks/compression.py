"""Smaller models beside the ones they come from and beside NNCF's, in one run: size, latency, loss on test rows.

Three models: a CNN on digits, MiniLM fine-tuned on sentences, boosted trees on flights. Each of our candidates is a
recipe of the ladder; NNCF (in an environment of its own) quantizes the same file with the same calibration rows. What
was trained is kept in `benchmarks/environments/.cache/compression`, so that a run that was cut off goes on; size,
latency and loss are measured anew, all models of a case in turns. Then the ladder climbs under NNCF's own figures as
constraints. Run: .venv/bin/python benchmarks/compression.py [--only digits,sentences] [--threads 2] [--fresh]
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from _compression_cases import CACHE, CASES, rival

from loopwright.compression.artefact import Artefact
from loopwright.compression.candidate import Candidate
from loopwright.compression.constraints import Constraints
from loopwright.compression.judging import Parent, alike, predict, quality
from loopwright.compression.ladder import climb
from loopwright.compression.latency import measure
from loopwright.compression.plan import Rung, Traits, plan
from loopwright.compression.subject import Subject

SAME = 0.97
"""Of size or time: what is nearer than this is not told apart."""

FITTED = "vocabulary of 95% + prune to"
"""How the name begins of what is pruned until its file has a twelfth of its parent's size."""
OURS: dict[str, tuple[str, ...]] = {
    "digits": ("int8-static", "int4 weights", "qat int8", "prune 50% + distil + int8-static"),
    "sentences": (
        "int8-dynamic", "int8-mixed", "int4 weights", "vocabulary of 95% + int4 weights",
        "vocabulary of 95% + student of 3 layers + distil + int8-dynamic", FITTED,
    ),
    "flights": ("rounding", "fewer rounds + rounding", "50% of the rounds + rounding"),
}  # fmt: skip
RIVALS: dict[str, tuple[str, ...]] = {
    "digits": ("int8",),
    "sentences": ("int8-transformer", "int4"),
    "flights": (),
}


@dataclass(frozen=True, slots=True)
class Target:
    """`of`: the candidate that has to be so much smaller and faster, and to lose at most so much (a share)."""

    of: str
    smaller: float
    loss: float
    faster: float = 0.0


TARGETS: dict[str, tuple[Target, ...]] = {
    "digits": (Target("int8-static", 3.8, 0.01, 2.0), Target("prune 50% + distil + int8-static", 12.0, 0.04)),
    "sentences": (
        Target("int8-dynamic", 3.8, 0.01, 2.0), Target("int4 weights", 6.0, 0.01),
        Target(FITTED, 12.0, 0.04),
    ),
    "flights": (),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measured:
    """A file beside the original. loss: relative, on test rows, with its bounds; same: share of equal answers."""

    name: str
    size: int
    smaller: float
    p50: float
    p99: float
    faster: float
    loss: float
    low: float
    high: float
    same: float | None

    def beats(self, other: "Measured") -> bool:
        """Nowhere worse in size, time and loss, and smaller or faster by more than one measurement differs."""
        nowhere_worse = self.size <= other.size and self.p50 <= other.p50 and self.loss <= other.loss
        return nowhere_worse and (self.size < SAME * other.size or self.p50 < SAME * other.p50)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(CASES), help="cases, with commas")
    parser.add_argument("--threads", type=int, default=2, help="for training; latency is measured with one")
    parser.add_argument("--skip", default="", help="names of candidates to leave out, with commas")
    parser.add_argument("--without-controls", action="store_true", help="train nothing beside what distils")
    parser.add_argument("--fresh", action="store_true", help="train everything anew")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := [name for name in chosen if name not in CASES]:
        print(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    wrong = []
    for name in chosen:
        folder = CACHE / "compression" / name
        if options.fresh:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        skipped = options.skip.split(",")
        wrong += case(name, folder, options.threads, skipped, controls=not options.without_controls)
    print("\n" + ("; ".join(wrong) or "every target met"))
    return int(bool(wrong))


def case(name: str, folder: Path, threads: int, skipped: Sequence[str], *, controls: bool) -> list[str]:
    """Print the table of one case; returns what was not reached."""
    subject = CASES[name](folder, Said())
    print(f"\n{name}: {subject.graph.parameters:,} parameters, {subject.graph.size / 1e6:.2f} MB", flush=True)
    names = [one for one in OURS[name] if one not in skipped]
    twelfth = Constraints(size=subject.graph.size // 12)
    found = {one.name: one for wanted in (twelfth, Constraints()) for one in named(names, subject, wanted)}
    missing = [name for name in names if not any(one.startswith(name) for one in found)]
    assert not missing, missing
    rungs = [one if controls else replace(one, control=None) for one in found.values()]
    report = climb(
        subject, Constraints(), folder / "ours", rungs=rungs, explore=True, watch=Said(), threads=threads
    )
    files = {one.name: Artefact.open(folder / "ours" / one.file) for one in report.candidates if one.measured}
    seconds = {one.name: one.seconds for one in report.candidates}
    ours = list(files)
    for mode in RIVALS[name]:
        path, took = rival(mode, subject, folder)
        files[f"NNCF {mode}"], seconds[f"NNCF {mode}"] = Artefact.open(path), took
    table = measured(subject, files)
    show(table, seconds)
    for gain in report.gains:
        print(f"  {gain.said()}")
    for one in report.candidates:
        if not one.measured:
            print(f"  {one.name}: {one.status}, {one.why}")
    wrong = [*missed(name, table), *dominated(name, table, ours)]
    for mode in RIVALS[name]:
        wrong += climbed(name, subject, folder, table, f"NNCF {mode}", threads)
    return wrong


def named(names: Sequence[str], subject: Subject, wanted: Constraints) -> list[Rung]:
    """The ladder's rungs under `wanted` whose names are, or begin as, those in `names`."""
    return [
        one for one in plan(Traits.of(subject), wanted, explore=True)
        if one.name in names or (FITTED in names and one.name.startswith(FITTED))
    ]  # fmt: skip


def measured(subject: Subject, files: dict[str, Artefact]) -> list[Measured]:
    """The original first; all timed in turns."""
    test, parent = subject.samples.test, Parent.of(subject)
    timed = measure([subject.graph, *files.values()], test.feeds, subject.production, seconds=60)
    said = [Measured("original", subject.graph.size, 1, timed[0].p50, timed[0].p99, 1, 0, 0, 0, 1.0)]
    for (name, file), one in zip(files.items(), timed[1:], strict=True):
        answers = predict(file, test.feeds)
        lost = quality(subject, file, test, parent=parent.answers("test"), answers=answers)
        said.append(
            Measured(
                name, file.size, subject.graph.size / file.size, one.p50, one.p99, timed[0].p50 / one.p50, lost.loss,
                lost.loss_low, lost.loss_high, alike(subject, parent.answers("test"), answers).argmax,
            )
        )  # fmt: skip
    return said


def show(table: Sequence[Measured], seconds: dict[str, float]) -> None:
    heads = f"{'MB':>8}{'smaller':>9}{'p50 ms':>9}{'p99':>8}{'faster':>8}{'loss':>8}{'90 % interval':>18}"
    heads += f"{'same':>8}{'s':>7}"
    print(f"  {'':72}{heads}")
    for one in table:
        same = "" if one.same is None else f"{one.same:.1%}"
        print(
            f"  {one.name:72}{one.size / 1e6:8.3f}{one.smaller:8.1f}×{one.p50:9.3f}{one.p99:8.3f}{one.faster:7.1f}×"
            f"{one.loss:8.2%}{one.low:9.2%} to {one.high:5.2%}{same:>8}{seconds.get(one.name, 0):7.0f}",
            flush=True,
        )


def missed(name: str, table: Sequence[Measured]) -> list[str]:
    """The targets of a case that were not reached; losses are those measured, the table has their intervals."""
    found = []
    for target in TARGETS[name]:
        one = next((one for one in table if one.name.startswith(target.of)), None)
        if one is None:
            found.append(f"{name}: {target.of} gave no model")
            continue
        short = [
            *(
                [f"{one.smaller:.1f} × smaller, wanted {target.smaller:g}"]
                if one.smaller < target.smaller
                else []
            ),
            *([f"{one.loss:.1%} lost, wanted {target.loss:.0%}"] if one.loss > target.loss else []),
            *([f"{one.faster:.1f} × faster, wanted {target.faster:g}"] if one.faster < target.faster else []),
        ]
        print(f"  target, {target.of}: {'; '.join(short) or 'met'}")
        found += [f"{name}, {target.of}: {why}" for why in short]
    return found


def dominated(name: str, table: Sequence[Measured], ours: Sequence[str]) -> list[str]:
    """Rivals that are nowhere worse than, and smaller or faster than, every one of ours that loses no more."""
    found = []
    for theirs in table:
        if theirs.name in ours or theirs.name == "original":
            continue
        front = [one for one in table if one.name in ours and not theirs.beats(one)]
        if not front:
            found.append(f"{name}: {theirs.name} is better than all of ours")
    return found


def climbed(
    name: str, subject: Subject, folder: Path, table: Sequence[Measured], rival_name: str, threads: int
) -> list[str]:
    """Climb under what the rival reached; its result must not be better than the ladder's."""
    theirs = next(one for one in table if one.name == rival_name)
    wanted = Constraints(size=int(theirs.size * 1.02), loss=max(0.01, theirs.high))
    rungs = [replace(one, control=None) for one in named(OURS[name], subject, wanted)]
    report = climb(subject, wanted, folder / "ours", rungs=rungs, watch=Said(), threads=threads)
    chosen: Candidate | None = next((one for one in report.candidates if one.name == report.chosen), None)
    asked = f"at most {theirs.size / 1e6:.2f} MB and {wanted.loss:.1%} lost"
    if chosen is None:
        print(f"  ladder, {asked} (as {rival_name}): nothing keeps to it")
        return [f"{name}: the ladder reaches nothing under {rival_name}'s figures"]
    pair = measured(subject, {chosen.name: Artefact.open(folder / "ours" / chosen.file)})[1]
    print(
        f"  ladder, {asked} (as {rival_name}): {chosen.name}, {pair.size / 1e6:.2f} MB, {pair.faster:.1f} × faster"
    )
    ours = next((one for one in table if one.name == chosen.name), pair)
    return [f"{name}: {rival_name} is better than the ladder's choice"] if theirs.beats(ours) else []


class Said:
    """Progress on standard error."""

    def step(self, name: str) -> None:
        print(f"… {name}", file=sys.stderr, flush=True)

    def update(self, fraction: float, note: str = "") -> None: ...

    def note(self, text: str) -> None: ...

    def done(self, summary: str) -> None:
        print(f"  {summary}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
