"""Small pictures as SVG, for cards: drawn with CSS variables, so that they follow light, dark and paper.

Every figure drawn stands in a table beside the picture too; a picture's title says what it shows.
"""

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH = 720
_LEFT, _RIGHT, _ROW = 190, 90, 22

Json = Mapping[str, Any]


def bars(title: str, values: Sequence[tuple[str, float]]) -> str:
    """Horizontal bars from zero, in the given order."""
    most = max((abs(value) for _, value in values), default=0.0) or 1.0
    drawn = []
    for place, (name, value) in enumerate(values):
        y = 8 + _ROW * place
        width = abs(value) / most * (WIDTH - _LEFT - _RIGHT)
        drawn += [
            f'<text class="name" x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{_short(name)}</text>',
            f'<rect class="bar" x="{_LEFT}" y="{y + 2}" width="{max(width, 1):.1f}" height="14" rx="2"/>',
            f'<text class="figure" x="{_LEFT + width + 6:.1f}" y="{y + 13}">{value:.3g}</text>',
        ]
    return _svg(title, drawn, 12 + _ROW * len(values))


def gain(value: float, interval: Sequence[float], limit: str, verdict: str) -> str:
    """The gain over the version before with its interval, zero, and the loss that is tolerated."""
    allowed = re.search(r"-?\d[\d.e+-]*$", limit)
    marks = [0.0, *([float(allowed.group())] if allowed else [])]
    x = _scale([*interval, value, *marks])
    low, high = interval[0], interval[1]
    drawn = [
        f'<line class="zero" x1="{x(0.0)}" x2="{x(0.0)}" y1="14" y2="58"/>',
        f'<text class="note" x="{x(0.0)}" y="74" text-anchor="middle">no gain</text>',
    ]
    if allowed:
        drawn += [
            f'<line class="limit" x1="{x(marks[1])}" x2="{x(marks[1])}" y1="14" y2="58"/>',
            f'<text class="note" x="{x(marks[1])}" y="10" text-anchor="middle">tolerated {marks[1]:+.3g}</text>',
        ]
    drawn += [
        f'<text class="name" x="{_LEFT - 8}" y="40" text-anchor="end">gain {value:+.3g}</text>',
        f'<line class="span {_tone(verdict)}" x1="{x(low)}" x2="{x(high)}" y1="36" y2="36"/>',
        f'<circle class="dot {_tone(verdict)}" cx="{x(value)}" cy="36" r="5"/>',
    ]
    return _svg(f"Gain over the version before: {value:+.4g}, between {low:+.4g} and {high:+.4g}", drawn, 80)


def groups(title: str, found: Sequence[Json], overall: float | None) -> str:
    """A dot and an interval per group, lowest value first; groups that differ from the rest are filled."""
    judged = sorted((g for g in found if _finite(g.get("value"))), key=lambda g: g["value"])[:40]
    edges = [float(g[side]) for g in judged for side in ("low", "high", "value") if _finite(g.get(side))]
    x = _scale([*edges, *([overall] if overall is not None and _finite(overall) else [])])
    bottom = 14 + _ROW * len(judged)
    drawn = []
    if overall is not None and _finite(overall):
        drawn += [
            f'<line class="zero" x1="{x(overall)}" x2="{x(overall)}" y1="8" y2="{bottom}"/>',
            f'<text class="note" x="{x(overall)}" y="{bottom + 14}" text-anchor="middle">all rows {overall:.3g}</text>',
        ]
    for place, group in enumerate(judged):
        y = 20 + _ROW * place
        tone = "bad" if group.get("differs") else "even"
        drawn.append(f'<text class="name" x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{_short(str(group["group"]))}'
                     f' (n={group.get("rows")})</text>')  # fmt: skip
        if _finite(group.get("low")) and _finite(group.get("high")):
            drawn.append(
                f'<line class="span {tone}" x1="{x(group["low"])}" x2="{x(group["high"])}" y1="{y}" y2="{y}"/>'
            )
        drawn += [
            f'<circle class="dot {tone}" cx="{x(group["value"])}" cy="{y}" r="4"/>',
            f'<text class="figure" x="{WIDTH - _RIGHT + 10}" y="{y + 4}">{group["value"]:.3g}</text>',
        ]
    return _svg(title, drawn, bottom + 22)


def over_time(windows: Sequence[Json]) -> str:
    """Quality by window with its interval, what was expected and the limit it must not cross."""
    known = [w for w in windows if _finite(w.get("value"))]
    if not known:
        return _svg("Quality over time: no window had enough labels", [], 20)
    # A window with few labels has an interval as wide as the scale; it is cut at the frame.
    sure = [w for w in known if w["verdict"] != "INCONCLUSIVE"] or known
    marks = [(w, key) for w in sure for key in ("value", "low", "high", "limit", "expected")]
    edges = [float(w[key]) for w, key in marks if _finite(w.get(key))] + [float(w["value"]) for w in known]
    low, high = min(edges), max(edges)
    pad = (high - low) * 0.08 or 0.5
    low, high, height, left = low - pad, high + pad, 180, 60
    step = (WIDTH - left - 70) / max(len(known) - 1, 1)

    def y(value: float) -> float:
        value = min(max(value, low), high)
        return round(10 + (high - value) / (high - low) * (height - 20), 1)

    def x(place: int) -> float:
        return round(left + step * place, 1)

    drawn = [
        f'<text class="note" x="{left - 8}" y="{y(mark) + 4}" text-anchor="end">{mark:.3g}</text>'
        for mark in (low + pad, high - pad)
    ]
    levels = [(key, known[-1][key]) for key in ("expected", "limit") if _finite(known[-1].get(key))]
    kinds, below = {"limit": "limit", "expected": "zero"}, -math.inf
    for key, level in sorted(levels, key=lambda each: -each[1]):
        at, below = y(level), max(y(level), below + 12)  # names do not lie on each other
        drawn += [
            f'<line class="{kinds[key]}" x1="{left}" x2="{WIDTH - 70}" y1="{at}" y2="{at}"/>',
            f'<text class="note" x="{WIDTH - 64}" y="{below + 4}">{key}</text>',
        ]
    drawn.append(
        '<polyline class="line" points="'
        + " ".join(f"{x(place)},{y(w['value'])}" for place, w in enumerate(known))
        + '"/>'
    )
    for place, window in enumerate(known):
        tone = _tone(str(window["verdict"]))
        if _finite(window.get("low")) and _finite(window.get("high")):
            drawn.append(f'<line class="span {tone}" x1="{x(place)}" x2="{x(place)}" y1="{y(window["low"])}" '
                         f'y2="{y(window["high"])}"/>')  # fmt: skip
        drawn.append(f'<circle class="dot {tone}" cx="{x(place)}" cy="{y(window["value"])}" r="3.5"/>')
    for place, anchor in ((0, "start"), (len(known) - 1, "end")):
        day = escape(str(known[place]["start"])[:10])
        drawn.append(
            f'<text class="note" x="{x(place)}" y="{height + 14}" text-anchor="{anchor}">{day}</text>'
        )
    return _svg(f"{known[-1].get('metric')} on live traffic, window by window", drawn, height + 20)


def _scale(values: Sequence[float]) -> Any:
    low, high = min(values, default=0.0), max(values, default=1.0)
    pad = (high - low) * 0.06 or 0.5
    low, high = low - pad, high + pad
    return lambda value: round(_LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT), 1)


def _svg(title: str, drawn: Sequence[str], height: int) -> str:
    return (
        f'<svg class="picture" role="img" viewBox="0 0 {WIDTH} {height}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title>{''.join(drawn)}</svg>"
    )


def _tone(verdict: str) -> str:
    return {"PASS": "good", "FAIL": "bad", "ERROR": "bad"}.get(verdict, "even")


def _finite(value: Any) -> bool:
    # Beyond 1e150 the ends of a scale could no longer be subtracted.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e150


def _short(text: str, most: int = 26) -> str:
    return escape(text if len(text) <= most else f"{text[: most - 1]}…")
