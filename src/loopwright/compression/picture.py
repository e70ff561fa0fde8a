"""The trade-off drawn: a PNG by matplotlib, and one HTML page that needs nothing but itself."""

import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from loopwright.compression.panels import Dot, Mark, Panel, colour_of, dots, panels
from loopwright.compression.report import (
    HEADINGS,
    LadderReport,
    circumstances,
    need_said,
    row,
    share,
    wanted_said,
)
from loopwright.compression.tradeoff import ORIGINAL
from loopwright.kernel.sizes import said_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def png(report: LadderReport) -> bytes:
    """Two panels, size and latency, each against loss; the colour of a dot is what the other panel shows.

    The same report gives the same bytes. Draws without a display and without matplotlib's global state.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = dots(report)
    figure = Figure(figsize=(11.5, max(5.2, 3.4 + 0.19 * len(drawn))), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{report.subject}: size, latency and loss", x=0.01, ha="left", fontsize=12, weight="bold",
        parse_math=False,
    )  # fmt: skip
    left, right, legend = figure.subplots(1, 3, width_ratios=(4, 4, 2.3))
    legend.set_axis_off()
    if not drawn:
        left.text(0.5, 0.5, "nothing could be measured", ha="center", transform=left.transAxes)
    for axes, panel in zip((left, right), panels(report, drawn), strict=True):
        _draw(axes, panel)
    lines = [_named(dot, drawn) for dot in drawn]
    legend.text(
        0, 1, "\n".join([*lines, "", *_key(report)]), va="top", fontsize=8, linespacing=1.5, parse_math=False
    )
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _draw(axes: "Axes", panel: Panel) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="loss on validation rows")
    axes.set_title(panel.title, loc="left", fontsize=10)
    axes.set_xticks([panel.across.at(value) for value, _ in panel.across.ticks])
    axes.set_xticklabels([words for _, words in panel.across.ticks], fontsize=8)
    axes.set_yticks([panel.up.at(value) for value, _ in panel.up.ticks])
    axes.set_yticklabels([words for _, words in panel.up.ticks], fontsize=8)
    axes.grid(color="#e3e6ea", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.axhspan(
        0, panel.ceiling, xmax=1 if panel.limit is None else panel.limit, color="#16a34a", alpha=0.07
    )
    axes.axhline(panel.ceiling, color="#b3261e", linewidth=1, linestyle=(0, (4, 3)))
    if panel.limit is not None:
        axes.axvline(panel.limit, color="#b3261e", linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(
        [x for x, _ in panel.step], [y for _, y in panel.step], color="#6b7280", linewidth=1.2, zorder=2
    )
    for layer, mark in enumerate(panel.marks, start=3):
        _draw_mark(axes, mark, layer)


def _draw_mark(axes: "Axes", mark: Mark, layer: int) -> None:
    dot, x, y = mark.dot, mark.x, mark.y
    red, green, blue = colour_of(mark.much)
    colour = (red / 255, green / 255, blue / 255)
    axes.plot([x, x], [mark.low, mark.high], color=colour, linewidth=1.2, zorder=layer)
    if mark.tail is not None:
        axes.plot([x, mark.tail], [y, y], color=colour, linewidth=1.2, zorder=layer)
    rim = "#111827" if dot.front else "none"
    if dot.parent:
        axes.scatter([x], [y], s=230, marker="*", color=[colour], edgecolors="#111827", zorder=layer)
        return
    if dot.chosen:
        axes.scatter([x], [y], s=330, facecolors="none", edgecolors="#16a34a", linewidths=2.2, zorder=layer)
    alpha = 1.0 if dot.front else 0.45
    axes.scatter([x], [y], s=150, color=[colour], alpha=alpha, edgecolors=rim, linewidths=1.3, zorder=layer)
    if mark.numbered:
        ink = "white" if dot.front else "#111827"
        axes.text(x, y, str(dot.number), ha="center", va="center", fontsize=7, color=ink, zorder=layer)


def _named(dot: Dot, drawn: Sequence[Dot]) -> str:
    """A line of the legend; a control by the number of what it controls."""
    own = dot.point.name
    of = next((one.number for one in drawn if own.startswith(f"{one.point.name}, without ")), None)
    name = own if of is None or len(own) < 30 else f"control of {of}"
    return f"{'★' if dot.parent else dot.number}  {_short(name, 36)}{'  (chosen)' if dot.chosen else ''}"


def _key(report: LadderReport) -> list[str]:
    bars = "bars: interval of the loss" + ("" if report.constraints.latency_ms is None else "; p50 to p99")
    return [
        "★ parent, ● with a rim: on the front",
        "pale: another is nowhere worse, somewhere better",
        bars,
        "grey line: least loss up to here",
        f"dashed red: {wanted_said(report.constraints)}",
        "blue: little, orange: much",
    ]


STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#d9dee5;--paper:#fff;--wash:#f5f7fa;--bad:#b3261e;
--good:#15803d}
@media (prefers-color-scheme:dark){:root{--ink:#e7ebf0;--soft:#a0abb9;--line:#333c48;--paper:#12161c;--wash:#1a2029;
--bad:#ff8a7a;--good:#4ade80}}
body{margin:0 auto;max-width:1180px;padding:24px;font:15px/1.5 system-ui,sans-serif;color:var(--ink);
background:var(--paper)}
h1{font-size:22px;margin:0 0 4px}h2{font-size:17px;margin:28px 0 8px}p{margin:4px 0 12px}
.outcome{border-left:4px solid var(--bad);background:var(--wash);padding:10px 14px}
.outcome.yes{border-color:var(--good)}
ul{margin:4px 0;padding-left:20px}.soft{color:var(--soft)}.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:6px 10px;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600;white-space:nowrap}tr.front td:nth-child(2){font-weight:600}
tr.chosen{background:color-mix(in srgb,var(--good) 14%,transparent)}tr.beaten td{color:var(--soft)}
svg{width:100%;height:auto;display:block;margin:8px 0}svg text{fill:var(--ink);font:12px system-ui,sans-serif}
svg .soft{fill:var(--soft)}svg .grid{stroke:var(--line)}svg .want{stroke:var(--bad);stroke-dasharray:5 4}
svg .step{stroke:var(--soft);fill:none;stroke-width:1.5}svg .ok{fill:var(--good);opacity:.08}
svg .rim{stroke:var(--ink);stroke-width:1.8}svg .ring{stroke:var(--good);stroke-width:3;fill:none}
svg .number{font-size:10px;font-weight:600;text-anchor:middle;fill:#fff}svg .pale circle,svg .pale line{opacity:.45}
svg .pale .number{fill:var(--ink)}td:nth-child(3),td:nth-child(5){white-space:nowrap}
"""


def html(report: LadderReport) -> str:
    """The whole page: outcome, picture, tables. Works without scripts or network; names in it are escaped."""
    drawn = dots(report)
    numbers = {dot.point.name: dot.number for dot in drawn}
    body = [
        f"<h1>{escape(report.subject)}: size, latency and loss</h1>",
        f'<p class="outcome{" yes" if report.satisfied else ""}">{escape(report.said())}.</p>',
        _list(circumstances(report), "soft"),
    ]
    if drawn:
        body += [
            "<h2>Trade-off</h2>",
            _svg(report, drawn),
            f'<p class="soft">{escape(". ".join(_key(report)))}.</p>',
        ]
    body += ["<h2>Measured</h2>", _measured(report, numbers)]
    if rest := [one for one in report.candidates if not one.measured]:
        rows = [[one.name, str(one.status), one.why] for one in rest]
        body += ["<h2>Not measured</h2>", _table(("Candidate", "State", "Why"), rows)]
    if report.gains:
        body += ["<h2>With and without</h2>", _list(one.said() for one in report.gains)]
    if needs := report.needed():
        body += ["<h2>What would be needed</h2>", _list(need_said(one) for one in needs)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(report.subject)}: trade-off</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _measured(report: LadderReport, numbers: dict[str, int]) -> str:
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in ("#", *HEADINGS))
    rows, called = [], {name: f"#{number}" for name, number in numbers.items()}
    for one in report.measured:
        state = "front" if one.name in report.front else "beaten"
        if one.name == report.chosen:
            state += " chosen"
        number = "★" if one.name == ORIGINAL else str(numbers.get(one.name, ""))
        cells = "".join(f"<td>{escape(text)}</td>" for text in (number, *row(report, one, called)))
        rows.append(f'<tr class="{state}">{cells}</tr>')
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in cells) + "</tr>" for cells in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _list(lines: Iterable[str], kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f"<ul{style}>" + "".join(f"<li>{escape(one)}</li>" for one in lines) + "</ul>"


_WIDE, _HIGH, _LEFT, _TOP, _GAP = 470, 340, 62, 34, 110


def _svg(report: LadderReport, drawn: Sequence[Dot]) -> str:
    parts: list[str] = []
    for position, panel in enumerate(panels(report, drawn)):
        parts += _panel_svg(panel, _LEFT + position * (_WIDE + _GAP - 30), report)
    width, height = _LEFT + 2 * _WIDE + _GAP, _TOP + _HIGH + 44
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(report.subject, quote=True)}: loss over size and over latency, {len(drawn)} models; '
        'all figures are in the table below">\n' + "\n".join(parts) + "\n</svg>"
    )


def _panel_svg(panel: Panel, left: float, report: LadderReport) -> list[str]:
    def x(part: float) -> str:
        return f"{left + part * _WIDE:.1f}"

    def y(part: float) -> str:
        return f"{_TOP + (1 - part) * _HIGH:.1f}"

    def line(kind: str, ends: tuple[float, float, float, float]) -> str:
        return (
            f'<line class="{kind}" x1="{x(ends[0])}" y1="{y(ends[1])}" x2="{x(ends[2])}" y2="{y(ends[3])}"/>'
        )

    width = _WIDE * (1 if panel.limit is None else panel.limit)
    parts = [
        f'<text x="{x(0)}" y="{_TOP - 14}" font-weight="600">{escape(panel.title)}</text>',
        f'<rect class="ok" x="{x(0)}" y="{y(panel.ceiling)}" width="{width:.1f}" '
        f'height="{panel.ceiling * _HIGH:.1f}"/>',
    ]
    for value, words in panel.across.ticks:
        at = panel.across.at(value)
        parts += [
            line("grid", (at, 0, at, 1)),
            f'<text class="soft" text-anchor="middle" x="{x(at)}" y="{_TOP + _HIGH + 18}">{escape(words)}</text>',
        ]
    for value, words in panel.up.ticks:
        at = panel.up.at(value)
        parts += [
            line("grid", (0, at, 1, at)),
            f'<text class="soft" text-anchor="end" x="{left - 8:.1f}" y="{y(at)}" dy="4">{escape(words)}</text>',
        ]
    parts.append(line("want", (0, panel.ceiling, 1, panel.ceiling)))
    if panel.limit is not None:
        parts.append(line("want", (panel.limit, 0, panel.limit, 1)))
    corners = " ".join(f"{x(a)},{y(b)}" for a, b in panel.step)
    parts.append(f'<polyline class="step" points="{corners}"/>')
    for mark in panel.marks:
        bars = line("bar", (mark.x, mark.low, mark.x, mark.high))
        if mark.tail is not None:
            bars += line("bar", (mark.x, mark.y, mark.tail, mark.y))
        parts.append(_mark_svg(mark, x(mark.x), y(mark.y), bars, report))
    return parts


def _mark_svg(mark: Mark, x: str, y: str, bars: str, report: LadderReport) -> str:
    dot, (red, green, blue) = mark.dot, colour_of(mark.much)
    colour = f"rgb({red},{green},{blue})"
    point = dot.point
    state = (
        "on the front" if dot.front else f"beaten by {', '.join(report.dominated.get(point.name, ())[:3])}"
    )
    title = escape(
        f"{point.name}: {said_size(point.size)}, p50 {point.latency:.3g} ms, p99 {dot.tail:.3g} ms, "
        f"loss {share(point.loss)} ({share(dot.low)} to {share(dot.high)}), {'chosen, ' if dot.chosen else ''}{state}"
    )
    rim, pale = (' class="rim"', "") if dot.front else ("", ' class="pale"')
    if dot.parent:
        star = " ".join(
            f"{float(x) + size * math.sin(turn):.1f},{float(y) - size * math.cos(turn):.1f}"
            for turn, size in ((corner * math.pi / 5, 5 if corner % 2 else 12) for corner in range(10))
        )
        return f'<g tabindex="0"><title>{title}</title><polygon{rim} points="{star}" fill="{colour}"/></g>'
    number = f'<text class="number" x="{x}" y="{y}" dy="3.5">{dot.number}</text>' if mark.numbered else ""
    ring = f'<circle class="ring" cx="{x}" cy="{y}" r="14"/>' if dot.chosen else ""
    return (
        f'<g tabindex="0"{pale}><title>{title}</title>'
        f'<g stroke="{colour}" stroke-width="1.5">{bars}</g>{ring}'
        f'<circle{rim} cx="{x}" cy="{y}" r="9" fill="{colour}"/>'
        f"{number}</g>"
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
