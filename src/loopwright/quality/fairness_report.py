"""What was found about groups, as JSON, Markdown and a picture. The pictures are drawn from the JSON alone."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from html import escape
from typing import Any

from loopwright.kernel.clock import iso
from loopwright.kernel.verdict import Verdict
from loopwright.stats.proportions import Estimate, difference

CORRECTION = "Holm 1979, over the groups of one metric"
_WORST_FIRST = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)
_MOST_SMALL = 50


@dataclass(frozen=True, slots=True)
class GroupFigure:
    """One group's figure with its interval. `rows`: the metric's denominator; `against_rest`: minus all other rows'."""

    group: str
    rows: int
    value: float
    low: float
    high: float
    against_rest: float
    p: float
    adjusted: float


@dataclass(frozen=True, slots=True)
class MetricFigures:
    """A metric by group. `small`: groups too small to judge with their rows; `gap`: None below two groups."""

    metric: str
    sentence: str
    is_rate: bool
    overall: float
    groups: tuple[GroupFigure, ...]
    small: tuple[tuple[str, int], ...]
    gap: Estimate | None

    @property
    def highest(self) -> GroupFigure:
        return max(self.groups, key=lambda each: each.value)

    @property
    def lowest(self) -> GroupFigure:
        return min(self.groups, key=lambda each: each.value)

    @property
    def margin(self) -> float:
        """Half the interval of the difference between the highest and the lowest group, taken alone."""
        high, low = (Estimate(each.value, each.low, each.high) for each in (self.highest, self.lowest))
        between = difference(high, low)
        return (between.high - between.low) / 2

    def to_json(self, *, confidence: float, judged: bool) -> dict[str, Any]:
        gap = None
        if self.gap is not None:
            high, low = self.highest, self.lowest
            gap = {
                **{name: _number(value) for name, value in asdict(self.gap).items()},
                "highest": high.group,
                "lowest": low.group,
                "ratio": _number(low.value / high.value) if self.is_rate and high.value > 0 else None,
            }
        return {
            "metric": self.metric,
            "sentence": self.sentence,
            "judged": judged,
            "overall": _number(self.overall),
            "groups": [
                {
                    **{name: _number(value) for name, value in asdict(each).items()},
                    "differs": each.adjusted <= 1 - confidence,
                }
                for each in self.groups
            ],
            "too_small": [{"group": name, "rows": rows} for name, rows in self.small[:_MOST_SMALL]],
            "too_small_groups": len(self.small),
            "gap": gap,
        }


@dataclass(frozen=True, slots=True)
class AttributeFigures:
    """All metrics by the groups of one attribute, and the verdict on the judged ones."""

    attribute: str
    verdict: Verdict
    why: str
    metrics: tuple[MetricFigures, ...]

    def gap(self, judged: tuple[str, ...]) -> float | None:
        """The largest gap among the judged metrics; None where none could be measured."""
        gaps = [each.gap.value for each in self.metrics if each.metric in judged and each.gap is not None]
        return max(gaps, default=None)


@dataclass(frozen=True, slots=True)
class FairnessReport:
    """`metric` as the project named it, `judged` the figures it means. With `not_applicable` nothing was measured."""

    model: str
    bundle: str
    task: str
    rows: int
    metric: str
    judged: tuple[str, ...]
    max_gap: float
    min_group: int
    confidence: float
    at: datetime
    attributes: tuple[AttributeFigures, ...]
    not_applicable: str | None = None

    @property
    def verdict(self) -> Verdict:
        """The worst of the attributes; PASS with a reason why the question does not arise."""
        if self.not_applicable is not None:
            return Verdict.PASS
        found = {each.verdict for each in self.attributes}
        return next((verdict for verdict in _WORST_FIRST if verdict in found), Verdict.ERROR)

    def to_json(self) -> dict[str, Any]:
        """The payload of the evidence `fairness`."""
        if self.not_applicable is not None:
            return {"not_applicable": self.not_applicable}
        return {
            "model": self.model,
            "bundle": self.bundle,
            "task": self.task,
            "rows": self.rows,
            "metric": self.metric,
            "max_gap": self.max_gap,
            "min_group": self.min_group,
            "confidence": self.confidence,
            "correction": CORRECTION,
            "verdict": self.verdict.value,
            "at": iso(self.at),
            "attributes": [
                {
                    "attribute": one.attribute,
                    "verdict": one.verdict.value,
                    "why": one.why,
                    "metrics": [
                        each.to_json(confidence=self.confidence, judged=each.metric in self.judged)
                        for each in one.metrics
                    ],
                }
                for one in self.attributes
            ],
        }

    def to_markdown(self) -> str:
        return fairness_markdown(self.to_json())

    def to_svg(self) -> str:
        return fairness_svg(self.to_json())


def fairness_markdown(payload: Mapping[str, Any]) -> str:
    """The evidence `fairness` as a page: per attribute the verdict, and per metric a table of groups."""
    if "not_applicable" in payload:
        return f"# Fairness: not applicable\n\n{payload['not_applicable']}\n"
    share = f"{payload['confidence']:.0%}"
    lines = [
        f"# Fairness of {payload['model']}: {payload['verdict']}",
        "",
        f"Bundle `{payload['bundle'][:12]}` on {payload['rows']} held-out rows, {payload['at']}. Asked: "
        f"{payload['metric']} with a gap of at most {payload['max_gap']:g} between any two groups of at least "
        f"{payload['min_group']} rows. Intervals are at {share} confidence; each group is tested against all other "
        f"rows, p-values adjusted ({payload['correction']}).",
    ]
    for one in payload["attributes"]:
        lines += ["", f"## By {one['attribute']}: {one['verdict']}", "", f"{one['why']}."]
        for each in one["metrics"]:
            mark = ", judged" if each["judged"] else ""
            lines += ["", f"### {each['metric']} ({each['sentence']}{mark})", ""]
            lines += [f"Overall {_text(each['overall'])}.{_gap_sentence(each['gap'], share)}"]
            if each["groups"]:
                lines += ["", f"| group | rows | value | {share} interval | against the rest | p | p adjusted |",
                          "|---|---|---|---|---|---|---|"]  # fmt: skip
            for group in each["groups"]:
                name = f"**{_cell(group['group'])}**" if group["differs"] else _cell(group["group"])
                lines.append(
                    f"| {name} | {group['rows']} | {_text(group['value'])} | "
                    f"{_text(group['low'])} to {_text(group['high'])} | {_signed(group['against_rest'])} | "
                    f"{_p(group['p'])} | {_p(group['adjusted'])} |"
                )
            if each["too_small_groups"]:
                listed = ", ".join(f"{_cell(g['group'])} ({g['rows']})" for g in each["too_small"])
                more = each["too_small_groups"] - len(each["too_small"])
                lines += ["", f"Too small to judge: {listed}{f' and {more} more' if more else ''}."]
    return "\n".join(lines) + "\n"


def fairness_svg(payload: Mapping[str, Any]) -> str:
    """A dot and an interval per group, for every judged metric of every attribute; groups that differ are filled."""
    panels = [
        (one["attribute"], one["verdict"], each)
        for one in payload.get("attributes", ())
        for each in one["metrics"]
        if each["judged"]
    ]
    body: list[str] = []
    top = 8
    for attribute, verdict, each in panels:
        drawn, height = _panel(f"{each['metric']} by {attribute}: {verdict}", each, top)
        body += drawn
        top += height
    if not panels:
        body.append(
            f'<text x="12" y="24">{escape(str(payload.get("not_applicable", "nothing was judged")))}</text>'
        )
        top = 40
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" height="{top}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="12" fill="#1f2937">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


_WIDTH, _LEFT, _RIGHT, _ROW = 720, 190, 110, 20


def _panel(title: str, table: Mapping[str, Any], top: int) -> tuple[list[str], int]:
    """One metric's rows from y = `top` on, lowest value first; returns the elements and the height used."""
    groups = sorted(table["groups"], key=lambda group: group["value"])
    edges = [group[side] for group in groups for side in ("low", "high")] + [table["overall"] or 0.0]
    low, high = min(edges), max(edges)
    pad = (high - low) * 0.04 or 0.5
    low, high = low - pad, high + pad

    def x(value: float) -> str:
        return f"{_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT):.1f}"

    bottom = top + 26 + _ROW * len(groups)
    drawn = [f'<text x="12" y="{top + 16}" font-weight="600">{escape(title)}</text>']
    if table["overall"] is not None:
        drawn.append(
            f'<line x1="{x(table["overall"])}" x2="{x(table["overall"])}" y1="{top + 24}" y2="{bottom}" '
            f'stroke="#9ca3af" stroke-dasharray="3 3"/>'
            f'<text x="{x(table["overall"])}" y="{bottom + 14}" text-anchor="middle" fill="#6b7280">'
            f"overall {_text(table['overall'])}</text>"
        )
    for place, group in enumerate(groups):
        y = top + 36 + _ROW * place
        colour = "#b91c1c" if group["differs"] else "#1d4ed8"
        drawn.append(
            f'<text x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(_short(group["group"]))} '
            f'<tspan fill="#6b7280">n={group["rows"]}</tspan></text>'
            f'<line x1="{x(group["low"])}" x2="{x(group["high"])}" y1="{y}" y2="{y}" stroke="{colour}" '
            f'stroke-width="2"/>'
            f'<circle cx="{x(group["value"])}" cy="{y}" r="4" stroke="{colour}" stroke-width="1.5" '
            f'fill="{colour if group["differs"] else "#ffffff"}"/>'
            f'<text x="{_WIDTH - _RIGHT + 10}" y="{y + 4}">{_text(group["value"])}</text>'
        )
    return drawn, bottom - top + 32


def _gap_sentence(gap: Mapping[str, Any] | None, share: str) -> str:
    if gap is None:
        return " Fewer than two groups are large enough to compare."
    ratio = f", ratio {_text(gap['ratio'])}" if gap["ratio"] is not None else ""
    return (
        f" Largest gap {_text(gap['value'])} ({gap['highest']} over {gap['lowest']}{ratio}); for all pairs at once at "
        f"least {_text(gap['low'])} and at most {_text(gap['high'])} ({share})."
    )


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}" if abs(value) < 1000 else f"{value:+.4g}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _short(text: str, most: int = 18) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
