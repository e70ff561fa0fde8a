"""Small pictures in SVG and HTML: histograms, bars of categories, lines over batches. Text in them is escaped."""

from collections.abc import Sequence

from loopwright.data.docs.layout import number, share, text
from loopwright.data.versions.describe import Facts, Spread, time_text

WIDTH, HEIGHT = 300, 84


def distribution(
    facts: Facts, spread: Spread | None, other: Spread | None = None, *, values: bool = True
) -> str:
    """How a column is spread: a histogram of numbers and times, bars of values; `other` beside it in a second colour.

    Without `values` no value is named: a histogram has its shape and no scale.
    """
    if spread is None or not (facts.rows - facts.nulls):
        return '<p class="note">no values</p>'
    if facts.kind == "category":
        return _bars(facts, spread, other) if values else ""
    return _histogram(facts, spread, other, values)


def trend(shares: Sequence[float], *, width: int = 720, height: int = 90, label: str = "") -> str:
    """A line over batches, of shares from 0 to their greatest; nothing for fewer than two."""
    if len(shares) < 2:
        return ""
    top = max(*shares, 1e-9)
    step = (width - 8) / (len(shares) - 1)
    points = " ".join(
        f"{4 + i * step:.1f},{height - 16 - s / top * (height - 30):.1f}" for i, s in enumerate(shares)
    )
    dots = "".join(
        f'<circle cx="{4 + i * step:.1f}" cy="{height - 16 - s / top * (height - 30):.1f}" r="2.5" class="badfill">'
        f"<title>{text(share(s))}</title></circle>"
        for i, s in enumerate(shares)
    ) if len(shares) <= 60 else ""  # fmt: skip
    said = f"{label}, {share(shares[-1])} in the last" if label else ""
    words = (
        f'<text x="4" y="11">{text(share(top))}</text><text x="4" y="{height - 3}">{text(said)}</text>'
        if label
        else ""
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{text(said or "trend")}"><line x1="4" x2="{width - 4}" y1="{height - 16}" y2="{height - 16}" '
        f'class="axis"/><polyline points="{points}" class="line"/>{dots}{words}</svg>'
    )


def _histogram(facts: Facts, spread: Spread, other: Spread | None, values: bool) -> str:
    totals = [max(sum(one.counts), 1) for one in (spread, *([other] if other else []))]
    parts = [
        [count / total for count in one.counts]
        for one, total in zip((spread, *([other] if other else [])), totals, strict=True)
    ]
    top = max(max(part) for part in parts) or 1.0
    bars, base = len(spread.counts), HEIGHT - 18
    step = WIDTH / bars
    drawn = []
    for which, part in enumerate(parts):
        wide = step * (0.45 if other else 0.92)
        left = which * step * 0.46
        for place, height in enumerate(part):
            tall = height / top * (base - 4)
            drawn.append(
                f'<rect x="{place * step + left:.1f}" y="{base - tall:.1f}" width="{wide:.1f}" height="{tall:.1f}" '
                f'class="{"fill2" if which else "fill"}">'
                + (
                    f"<title>{text(_interval(facts, spread, place))}: {text(share(height))}</title>"
                    if values
                    else ""
                )
                + "</rect>"
            )
    edges = spread.slots.edges
    low, high = (edges[0], edges[-1]) if edges else (facts.low, facts.high)
    words = (
        ""
        if not values
        else (
            f'<text x="0" y="{HEIGHT - 3}">{_shown(facts, low)}</text>'
            f'<text x="{WIDTH}" y="{HEIGHT - 3}" text-anchor="end">{_shown(facts, high)}</text>'
        )
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{text(f"histogram of {facts.name}")}"><line x1="0" x2="{WIDTH}" y1="{base}" y2="{base}" '
        f'class="axis"/>{"".join(drawn)}{words}</svg>'
    )


def _bars(facts: Facts, spread: Spread, other: Spread | None) -> str:
    sides = [spread, *([other] if other else [])]
    totals = [max(sum(one.counts), 1) for one in sides]
    names = [*spread.slots.values]
    top = max((c / t for one, t in zip(sides, totals, strict=True) for c in one.counts), default=1.0) or 1.0
    ranked = sorted(range(len(names)), key=lambda i: -max(one.counts[i] for one in sides))[:12]
    rows = []
    for place in [*ranked, len(names)]:
        counts = [one.counts[place] for one in sides]
        if not any(counts):
            continue
        name = names[place] if place < len(names) else "all others"
        lines = "".join(
            f'<i{" class=other" if which else ""} style="width:{count / total / top:.1%}"></i>'
            for which, (count, total) in enumerate(zip(counts, totals, strict=True))
        )
        told = " → ".join(share(count / total) for count, total in zip(counts, totals, strict=True))
        shown = (
            f"<em>{text(name)}</em>" if place == len(names) else text(name if name != "" else "(empty text)")
        )
        rows.append(
            f'<div><span title="{text(name)}">{shown}</span><span>{lines}</span><span>{text(told)}</span></div>'
        )
    return f'<div class="bars">{"".join(rows)}</div>'


def _interval(facts: Facts, spread: Spread, place: int) -> str:
    edges = spread.slots.edges
    if not edges:
        return "all"
    if place == 0:
        return f"up to {_plain(facts, edges[0])}"
    if place == len(edges):
        return f"over {_plain(facts, edges[-1])}"
    return f"{_plain(facts, edges[place - 1])} to {_plain(facts, edges[place])}"


def _plain(facts: Facts, value: float | None) -> str:
    if value is None:
        return "–"
    return time_text(value)[:16].replace("T", " ") if facts.kind == "time" else number(value)


def _shown(facts: Facts, value: float | None) -> str:
    return text(_plain(facts, value))
