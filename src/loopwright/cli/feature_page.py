"""A page with pictures of features over time; needs nothing else, and brings no scripts."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, PAD = 260, 64, 6
_STYLE = """
:root{color-scheme:light dark;--ink:#1c2733;--soft:#66727f;--line:#2f6fb3;--band:#2f6fb333;--bad:#c0392b;--rule:#d5dbe1}
@media (prefers-color-scheme:dark){:root{--ink:#e6ebf0;--soft:#9aa7b4;--line:#7ab3ef;--band:#7ab3ef33;--bad:#ff8373;
--rule:#39434d}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin:2rem 0 .4rem}p{color:var(--soft)}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem;
border-bottom:1px solid var(--rule);vertical-align:middle}th{font-weight:600;color:var(--soft)}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.bad{color:var(--bad);font-weight:600}svg{display:block}.line{fill:none;stroke:var(--line);stroke-width:1.6}
.band{fill:var(--band);stroke:none}.dot{fill:var(--line)}.edge{fill:var(--soft);font-size:9px}
"""
_HEADS = (
    "feature",
    "view",
    "null rate",
    "values: mean within lowest and highest",
    "distinct",
    "newest row's age",
    "rules",
)
_SOURCES = {"requests": "As the model was asked", "offline": "As the model is trained on"}


def page(answer: dict[str, Any]) -> str:
    """One HTML page of what `feature_health.show` answered."""
    title = f"Features of {answer['model']}"
    broken = {(each["feature"], each["source"]): each for each in answer["broken"]}
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width">',
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>",
    ]
    if answer["broken"]:
        told = "; ".join(
            f"{e['feature']}: {e['rule']} {e['found']}, wanted {e['wanted']}" for e in answer["broken"]
        )
        parts.append(f'<p class="bad">Broken in the newest window: {escape(told)}</p>')
    else:
        parts.append("<p>Every rule is kept in the newest window.</p>")
    for source, name in _SOURCES.items():
        rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for one in answer["statistics"]:
            if one["source"] == source:
                rows[one["feature"]].append(one)
        if not rows:
            continue
        first = next(iter(rows.values()))
        parts.append(
            f"<h2>{name}</h2><p>{len(first)} windows, {escape(first[0]['start'])} to {escape(first[-1]['end'])}</p>"
        )
        parts.append("<table><tr>" + "".join(f'<th scope="col">{head}</th>' for head in _HEADS) + "</tr>")
        parts += [_row(feature, series, broken) for feature, series in rows.items()]
        parts.append("</table>")
    return "\n".join([*parts, "</body></html>\n"])


def _row(feature: str, series: Sequence[dict[str, Any]], broken: dict[tuple[str, str], Any]) -> str:
    newest = series[-1]
    wrong = any((name, newest["source"]) in broken for name in (feature, newest["view"]))
    values = _band(series) if newest["minimum"] is not None else escape(_most(newest))
    age = newest["age_seconds"]
    return (
        f"<tr><td>{escape(feature)}</td><td>{escape(newest['view'])}</td>"
        f"<td>{_line(series, lambda one: one['null_rate'])}</td><td>{values}</td>"
        f'<td class="n">{newest["distinct"]:,}</td><td class="n">{"–" if age is None else f"{age / 3600:.1f} h"}</td>'
        + ('<td class="bad">broken</td>' if wrong else "<td>kept</td>")
        + "</tr>"
    )


def _most(one: dict[str, Any]) -> str:
    return ", ".join(f"{value} ({count:,})" for value, count in one["top"]) or "–"


def _line(series: Sequence[dict[str, Any]], of: Callable[[dict[str, Any]], float | None]) -> str:
    values = [of(one) for one in series]
    return _svg(
        _places(values, 0.0, max([1e-9, *(v for v in values if v is not None)])), values, percent=True
    )


def _band(series: Sequence[dict[str, Any]]) -> str:
    lows, highs = [one["minimum"] for one in series], [one["maximum"] for one in series]
    known = [value for value in (*lows, *highs) if value is not None]
    low, high = min(known), max(known)
    up, down = _places(highs, low, high), _places(lows, low, high)
    edge = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*up, *reversed(down)])
    means = [one["mean"] for one in series]
    return _svg(_places(means, low, high), [low, high], band=f'<polygon class="band" points="{edge}"/>')


def _places(values: Sequence[float | None], low: float, high: float) -> list[tuple[float, float]]:
    span, step = (high - low) or 1.0, (WIDTH - 2 * PAD) / max(1, len(values) - 1)
    return [
        (PAD + step * n, HEIGHT - PAD - (HEIGHT - 2 * PAD) * (value - low) / span)
        for n, value in enumerate(values)
        if value is not None
    ]


def _svg(
    places: Sequence[tuple[float, float]],
    values: Sequence[float | None],
    *,
    band: str = "",
    percent: bool = False,
) -> str:
    known = [value for value in values if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    told = f"{100 * low:.3g} % to {100 * high:.3g} %" if percent else f"{low:g} to {high:g}"
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="1.8"/>' for x, y in places)
    size = f'width="{WIDTH}" height="{HEIGHT + 10}" viewBox="0 0 {WIDTH} {HEIGHT + 10}"'
    return (
        f'<svg role="img" aria-label="{told}" {size}>{band}<polyline class="line" points="{line}"/>{dots}'
        f'<text class="edge" x="{PAD}" y="{HEIGHT + 8}">{told}</text></svg>'
    )
