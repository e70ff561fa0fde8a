"""What a climb found: the choice or the closest, what would be needed, the front; in JSON and in Markdown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from loopwright.compression.candidate import Candidate, Quality, Status
from loopwright.compression.constraints import Constraints
from loopwright.compression.tradeoff import ORIGINAL, dominators, points
from loopwright.kernel.errors import BadInput
from loopwright.kernel.sizes import said_size

FORMAT = 1
LOADED = 0.01
"""Share of timed calls beyond which the 99th percentile may be that of another process."""
UNSTEADY = 0.05
"""How far the parent may seem from as fast as itself before it is worth a word."""
NEEDS_MODULE = "it changes a torch module, and there is only a graph"
"""Why a rung that trains is not tried on a graph alone."""


@dataclass(frozen=True, slots=True)
class Gain:
    """What distillation or rounding-aware training (`what`) added, on the same validation rows as without it.

    gain: in the metric's own unit, above 0 for better; `low` and `high` are one-sided bounds at `confidence`.
    """

    candidate: str
    control: str
    what: str
    metric: str
    gain: float
    low: float
    high: float
    confidence: float
    rows: int

    @property
    def proven(self) -> bool:
        """Whether it is told from chance."""
        return self.low > 0

    def said(self) -> str:
        """One sentence."""
        verdict = (
            "more than chance" if self.proven else "worse than without" if self.high < 0 else "within chance"
        )
        return (
            f"{self.what} in {self.candidate}: {self.gain:+.4f} {self.metric} "
            f"({self.low:+.4f} to {self.high:+.4f}) beside {self.control}, {verdict}"
        )


@dataclass(frozen=True, slots=True)
class Need:
    """How far a constraint was reached: `reached` by candidate `by`; `within` by one that keeps to all the others."""

    constraint: str
    wanted: float
    reached: float
    by: str
    within: float | None
    within_by: str
    advice: str


@dataclass(frozen=True, slots=True)
class LadderReport:
    """All candidates in the order of the ladder, a control right behind what it controls.

    chosen: a candidate's name, "" when none keeps to the constraints. ended: why no more were tried. production: batch,
    threads and lengths that latency was measured with.
    """

    subject: str
    kind: str
    metric: str
    parameters: int
    size: int
    constraints: Constraints
    production: Mapping[str, Any]
    candidates: tuple[Candidate, ...]
    gains: tuple[Gain, ...] = ()
    chosen: str = ""
    explored: bool = False
    ended: str = ""
    seconds: float = 0.0
    dominated: Mapping[str, tuple[str, ...]] = field(init=False)
    """Name → the members of the Pareto front that beat it; () for a member; absent for what was not measured."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dominated", dominators(points(self.candidates)))

    def named(self, name: str) -> Candidate:
        """Raises BadInput for a name that the report lacks."""
        for one in self.candidates:
            if one.name == name:
                return one
        raise BadInput("no such candidate", where="ladder", got=name)

    @property
    def satisfied(self) -> bool:
        return bool(self.chosen)

    @property
    def choice(self) -> Candidate | None:
        """The chosen candidate; None when none keeps to the constraints."""
        return self.named(self.chosen) if self.chosen else None

    @property
    def measured(self) -> tuple[Candidate, ...]:
        return tuple(one for one in self.candidates if one.measured)

    @property
    def _tried(self) -> tuple[Candidate, ...]:
        """What was measured besides the parent; the parent where there is nothing else."""
        return tuple(one for one in self.measured if one.name != ORIGINAL) or self.measured

    @property
    def front(self) -> tuple[str, ...]:
        """Names of the candidates that nothing dominates."""
        return tuple(name for name, by in self.dominated.items() if not by)

    @property
    def closest(self) -> Candidate | None:
        """The chosen one; else the measured one whose worst miss is the least factor; None when none was measured."""
        return self.choice or closest(self._tried, self.constraints)

    def needed(self) -> tuple[Need, ...]:
        """For each constraint that the closest misses, how far any candidate came and what would get further."""
        near = self.closest
        if near is None or self.chosen:
            return ()
        say = {"size": self._need_of_size, "latency": self._need_of_latency, "loss": self._need_of_loss}
        return tuple(say[name](near) for name in near.misses(self.constraints) if name in say)

    def _need_of_size(self, near: Candidate) -> Need:
        wanted = self.constraints.size or 0
        most = f"{said_count(wanted)} parameters at 8 bits or {said_count(wanted * 2)} at 4"
        advice = (
            f"{said_size(wanted)} hold at most {most}, and the model has {said_count(self.parameters)}; "
            f"{near.name} would have to be {near.size / wanted:.3g} times smaller still"
        )
        skipped = [one for one in self.candidates if one.status is Status.SKIPPED and one.floor > 0]
        least = min(skipped, key=lambda one: one.floor, default=None)
        if least is not None and least.floor < near.size:
            how = "with its torch module" if least.why == NEEDS_MODULE else "of what was not tried"
            advice += f"; {how}, {least.name} comes to {said_size(least.floor)} at least"
        return self._need("size", wanted, {one.name: float(one.size) for one in self._tried}, advice)

    def _need_of_latency(self, near: Candidate) -> Need:
        wanted = self.constraints.latency_ms or 0.0
        found = {one.name: one.latency.p99 for one in self._tried if one.latency}
        advice = (
            f"a p99 {found[near.name] / wanted:.2g} times lower: fewer layers or channels, "
            "a shorter input, or more threads in production"
        )
        return self._need("latency", wanted, found, advice)

    def _need_of_loss(self, near: Candidate) -> Need:
        wanted = self.constraints.loss
        found = {one.name: one.validation.loss_high for one in self._tried if one.validation}
        assert near.validation is not None
        judged = near.validation
        if judged.loss < wanted:
            # The bound's distance shrinks with the root of the rows.
            factor = ((judged.loss_high - judged.loss) / (wanted - judged.loss)) ** 2
            rows = max(judged.rows + 1, math.ceil(judged.rows * factor))
            advice = (
                f"the loss itself ({judged.loss:.2%}) is small enough, its bound is not: "
                f"about {rows} validation rows instead of {judged.rows} would tell"
            )
        else:
            advice = "more rows to train on, more epochs, or a larger budget for the rungs that train"
        return self._need("loss", wanted, found, advice)

    def _need(self, name: str, wanted: float, found: Mapping[str, float], advice: str) -> Need:
        by = min(found, key=lambda one: found[one])
        others = {
            one.name: found[one.name]
            for one in self._tried
            if one.name in found and not set(one.misses(self.constraints)) - {name}
        }
        within = min(others, key=lambda one: others[one], default="")
        return Need(name, wanted, found[by], by, others.get(within), within, advice)

    def said(self) -> str:
        """The outcome in one sentence."""
        if (choice := self.choice) is not None:
            return f"{choice.name} keeps to {wanted_said(self.constraints)}: {figures(choice)}"
        near = self.closest
        if near is None:
            return "no candidate could be measured"
        missed = ", ".join(missed_said(name, by) for name, by in near.misses(self.constraints).items())
        return f"none keeps to {wanted_said(self.constraints)}; the closest, {near.name}, misses {missed}"

    def to_json(self) -> dict[str, Any]:
        """In JSON's own types, with what follows from the candidates for readers that do not compute."""
        near = self.closest
        missed = near.misses(self.constraints) if near is not None else {}
        return {
            "format": FORMAT,
            "subject": self.subject,
            "kind": self.kind,
            "metric": self.metric,
            "parameters": self.parameters,
            "size": self.size,
            "constraints": self.constraints.to_json(),
            "production": dict(self.production),
            "candidates": [one.to_json() for one in self.candidates],
            "gains": [asdict(one) | {"proven": one.proven} for one in self.gains],
            "chosen": self.chosen,
            "explored": self.explored,
            "ended": self.ended,
            "seconds": self.seconds,
            "said": self.said(),
            "front": list(self.front),
            "dominated": {name: list(by) for name, by in self.dominated.items() if by},
            "closest": "" if near is None else near.name,
            "misses": {name: None if math.isinf(by) else by for name, by in missed.items()},
            "needed": [asdict(one) for one in self.needed()],
        }

    @staticmethod
    def from_json(said: Mapping[str, Any]) -> "LadderReport":
        """What `to_json` gave; raises BadInput for another format or missing parts."""
        if said.get("format") != FORMAT:
            raise BadInput(
                "not a report of this format", where="ladder report", got=said.get("format"), wanted=str(FORMAT)
            )  # fmt: skip
        try:
            return LadderReport(
                said["subject"], said["kind"], said["metric"], said["parameters"], said["size"],
                Constraints(**said["constraints"]), said["production"],
                tuple(Candidate.from_json(one) for one in said["candidates"]),
                tuple(Gain(**{k: v for k, v in one.items() if k != "proven"}) for one in said["gains"]),
                said["chosen"], said["explored"], said["ended"], said["seconds"],
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"a report with missing or wrong parts ({error})", where="ladder report"
            ) from error

    def to_markdown(self) -> str:
        """The outcome, a table of what was measured, one of what was not, the controls and what would be needed."""
        lines = [f"## {_cell(self.subject)}: smaller and faster", "", f"{_cell(self.said())}.", ""]
        lines += [f"- {_cell(one)}" for one in circumstances(self)] + [""]
        if self.measured:
            lines += ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
            for one in self.measured:
                cells = [_cell(text) for text in row(self, one)]
                if one.name == self.chosen:
                    cells[0] = f"**{cells[0]}**"
                lines.append("| " + " | ".join(cells) + " |")
            lines.append("")
        if rest := [one for one in self.candidates if not one.measured]:
            lines += ["| Not measured | State | Why |", "|---|---|---|"]
            lines += [f"| {_cell(one.name)} | {one.status} | {_cell(one.why)} |" for one in rest] + [""]
        for title, told in (
            ("With and without", [one.said() for one in self.gains]),
            ("What would be needed", [need_said(one) for one in self.needed()]),
        ):
            if told:
                lines += [f"### {title}", "", *(f"- {_cell(one)}" for one in told), ""]
        return "\n".join(lines)


def closest(candidates: Sequence[Candidate], wanted: Constraints) -> Candidate | None:
    """The measured one whose worst miss is the least factor; among equals the one that misses least in all."""

    def distance(one: Candidate) -> tuple[float, float, float]:
        factors = one.misses(wanted).values()
        loss = one.validation.loss_high if one.validation else math.inf
        return max(factors, default=1.0), sum(math.log(by) for by in factors), loss

    return min((one for one in candidates if one.measured), key=distance, default=None)


HEADINGS = (
    "Candidate", "Size", "Smaller", "p50 / p99 ms", "Faster", "Loss, validation", "Loss, test", "Like the parent",
    "Verdict",
)  # fmt: skip


def row(report: LadderReport, one: Candidate, called: Mapping[str, str] | None = None) -> list[str]:
    """The cells under `HEADINGS` of a measured candidate; `called`: name → how others are referred to instead."""
    latency, judged, tested, alike = one.latency, one.validation, one.test, one.agreement
    alikeness = []
    if alike is not None:
        if alike.argmax is not None:
            alikeness.append(f"{alike.argmax:.1%} same class")
        if alike.cosine is not None:
            alikeness.append(f"cosine {alike.cosine:.4f}")
        if alike.recall is not None:
            alikeness.append(f"recall@10 {alike.recall:.2f}")
    return [
        one.name,
        said_size(one.size),
        f"{one.ratio:.2f} ×",
        f"{latency.p50:.3g} / {latency.p99:.3g}" if latency else "",
        f"{latency.ratio:.2f} ×" if latency else "",
        interval(judged) if judged else "",
        interval(tested) if tested else "",
        ", ".join(alikeness),
        verdict(report, one, called or {}),
    ]


def interval(judged: Quality) -> str:
    """The loss and its bounds: "0.40% (0.20% to 0.60%)"."""
    return f"{share(judged.loss)} ({share(judged.loss_low)} to {share(judged.loss_high)})"


def share(value: float) -> str:
    """A percentage of two decimals; nothing has no sign."""
    return f"{round(value, 4) + 0.0:.2%}"


def verdict(report: LadderReport, one: Candidate, called: Mapping[str, str]) -> str:
    """Chosen, what it misses, and what beats it."""
    missed = one.misses(report.constraints)
    parts = ["chosen"] if one.name == report.chosen else []
    if missed:
        parts.append("misses " + ", ".join(missed_said(name, by) for name, by in missed.items()))
    elif not parts:
        parts.append("keeps to all")
    by = report.dominated.get(one.name)
    if by is not None:
        more = f" and {len(by) - 1} more" if len(by) > 1 else ""
        parts.append(f"beaten by {called.get(by[0], by[0])}{more}" if by else "on the front")
    return "; ".join(parts)


def circumstances(report: LadderReport) -> list[str]:
    """How it was measured, in a few sentences."""
    said, threads = report.production, report.production.get("threads")
    lengths = "".join(f", {name} {length}" for name, length in dict(said.get("lengths") or {}).items())
    rows = next((f", {one.validation.rows} validation rows" for one in report.measured if one.validation), "")
    said_threads = f"{threads} thread{'' if threads == 1 else 's'}"
    judged = next((one.validation for one in report.measured if one.validation), None)
    doubts = []
    if judged is not None and judged.unseen > report.constraints.loss:
        doubts.append(
            f"so few validation rows may hide a loss of up to {share(judged.unseen)} though none of them shows it"
        )
    itself = next((one.latency.ratio for one in report.measured if one.name == ORIGINAL and one.latency), 1.0)
    if abs(itself - 1) > UNSTEADY:
        doubts.append(
            f"an unsteady machine: beside itself, the parent came out at {itself:.2f} times its speed"
        )
    loaded = max((one.latency.disturbed for one in report.measured if one.latency), default=0.0)
    if loaded > LOADED:
        doubts.append(
            f"other processes took the processor during up to {loaded:.0%} of the timed calls: p99 is partly theirs"
        )
    return [
        f"parent: {report.kind}, {said_count(report.parameters)} parameters, {said_size(report.size)}",
        f"latency: batch {said.get('batch')}, {said_threads}{lengths}, beside the parent in one run",
        f"loss: of {report.metric}, relative to the parent{rows}; the upper bound decides, test rows choose nothing",
        *doubts,
        f"ended: {report.ended or 'all rungs tried'}, {report.seconds / 60:.1f} minutes",
    ]


def wanted_said(wanted: Constraints) -> str:
    """The constraints in words: "10 MB, 5 ms, 1% loss"."""
    parts = [said_size(wanted.size)] if wanted.size is not None else []
    parts += [f"{wanted.latency_ms:g} ms"] if wanted.latency_ms is not None else []
    return ", ".join([*parts, f"{wanted.loss * 100:.3g}% loss"])


def missed_said(name: str, by: float) -> str:
    """A miss in words: "size 1.8 times"."""
    return f"{name} (above 0)" if math.isinf(by) else f"{name} {by:.3g} times"


def need_said(one: Need) -> str:
    """A need in one sentence."""
    say = {"size": said_size, "latency": "{:.3g} ms".format, "loss": "{:.2%}".format}[one.constraint]
    within = ", none within the other constraints"
    if one.within is not None:
        other = f", {say(one.within)} by {one.within_by} within the other constraints"
        within = " within the other constraints" if one.within_by == one.by else other
    return (
        f"{one.constraint}: wanted {say(one.wanted)}, reached {say(one.reached)} by {one.by}{within}. "
        f"{one.advice[:1].upper()}{one.advice[1:]}."
    )


def figures(one: Candidate) -> str:
    """Size, latency and loss of a measured candidate in words."""
    parts = [f"{said_size(one.size)} ({one.ratio:.3g} times smaller)"]
    if one.latency is not None:
        parts.append(f"p50 {one.latency.p50:.3g} ms ({one.latency.ratio:.3g} times the parent's speed)")
    if one.validation is not None:
        parts.append(f"loss {share(one.validation.loss)}, at most {share(one.validation.loss_high)}")
    return ", ".join(parts)


def said_count(number: float) -> str:
    """A number of parameters, rounded: 22.6M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


__all__ = [
    "HEADINGS", "ORIGINAL", "Gain", "LadderReport", "Need", "Status", "circumstances", "closest", "figures",
    "interval", "missed_said", "need_said", "row", "said_count", "share", "verdict", "wanted_said",
]  # fmt: skip
