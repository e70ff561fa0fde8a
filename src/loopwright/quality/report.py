"""What the gates found: a verdict per gate and one for all, as JSON, Markdown and JUnit XML."""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from xml.etree import ElementTree

from loopwright.kernel.clock import iso
from loopwright.kernel.verdict import Verdict
from loopwright.quality.fairness_report import FairnessReport

# A report is as good as its worst gate; what failed outright is said before what could not be decided.
_WORST_FIRST = (Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE, Verdict.PASS)


@dataclass(frozen=True, slots=True)
class GateResult:
    """One gate. `value` is what was measured (None when nothing could be), `limit` what was asked, as text.

    kind: metric, latency, comparison, first model, behaviour, smoke, export or fairness.
    """

    name: str
    kind: str
    verdict: Verdict
    value: float | None
    limit: str
    detail: str
    interval: tuple[float, float] | None = None
    """Where `value` lies at the gate's confidence, where that was reckoned."""

    def to_json(self) -> dict[str, Any]:
        value = self.value if self.value is not None and math.isfinite(self.value) else None
        return {
            "name": self.name,
            "kind": self.kind,
            "verdict": self.verdict.value,
            "value": value,
            "limit": self.limit,
            "detail": self.detail,
            "interval": list(self.interval)
            if self.interval and all(map(math.isfinite, self.interval))
            else None,
        }


@dataclass(frozen=True, slots=True)
class GateReport:
    """All gates of one bundle on one holdout. `verdict` is PASS only when there are gates and all passed.

    fairness: the whole report behind the fairness gates; None when they were not asked for or broke.
    """

    model: str
    bundle: str
    baseline: str | None
    rows: int
    at: datetime
    results: tuple[GateResult, ...]
    fairness: FairnessReport | None = None

    @property
    def verdict(self) -> Verdict:
        found = {result.verdict for result in self.results}
        return next((verdict for verdict in _WORST_FIRST if verdict in found), Verdict.ERROR)

    @property
    def passed(self) -> bool:
        return self.verdict is Verdict.PASS

    def summary(self) -> str:
        """One line: "9 gates passed", or which did not and why."""
        bad = [result for result in self.results if result.verdict is not Verdict.PASS]
        if not bad:
            return f"{len(self.results)} gates passed" if self.results else "no gate ran"
        listed = "; ".join(f"{result.name} {result.verdict.value} ({result.detail})" for result in bad)
        return f"{len(bad)} of {len(self.results)} gates did not pass: {listed}"

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "bundle": self.bundle,
            "baseline": self.baseline,
            "rows": self.rows,
            "at": iso(self.at),
            "verdict": self.verdict.value,
            "results": [result.to_json() for result in self.results],
        }

    def to_markdown(self) -> str:
        """A heading, one sentence, one table."""
        against = f"against baseline `{self.baseline[:12]}`" if self.baseline else "without a baseline"
        lines = [
            f"# Gates of {self.model}: {self.verdict.value}",
            "",
            f"Bundle `{self.bundle[:12]}` on {self.rows} held-out rows, {against}, {iso(self.at)}.",
            "",
            "| gate | verdict | measured | limit | detail |",
            "|---|---|---|---|---|",
        ]
        for result in self.results:
            measured = "" if result.value is None else f"{result.value:.4g}"
            cells = (result.name, result.verdict.value, measured, result.limit, result.detail)
            lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
        return "\n".join(lines) + "\n"

    def to_junit(self) -> str:
        """JUnit XML: FAIL and INCONCLUSIVE are failures, ERROR is an error."""
        failures = [r for r in self.results if r.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)]
        errors = [r for r in self.results if r.verdict is Verdict.ERROR]
        suite = ElementTree.Element(
            "testsuite",
            name=f"gates {self.model}",
            tests=str(len(self.results)),
            failures=str(len(failures)),
            errors=str(len(errors)),
            timestamp=iso(self.at),
        )
        for result in self.results:
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"gates.{result.kind}", name=result.name
            )
            said = _printable(f"{result.detail} (limit {result.limit})" if result.limit else result.detail)
            if result in failures:
                ElementTree.SubElement(case, "failure", type=result.verdict.value, message=said)
            elif result in errors:
                ElementTree.SubElement(case, "error", type=result.verdict.value, message=said)
            else:
                ElementTree.SubElement(case, "system-out").text = said
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _printable(text: str) -> str:
    # XML 1.0 cannot hold control characters at all, not even escaped; a project's error message may.
    return "".join(c if c in "\t\n" or ord(c) >= 0x20 else "\N{REPLACEMENT CHARACTER}" for c in text)
