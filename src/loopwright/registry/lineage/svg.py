"""Draws a lineage graph as SVG: boxes coloured by what they are, what serves now marked, every detail in a tooltip.

The drawing stands alone: no script, no font, nothing fetched. All text is escaped. In the dark it turns dark.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from loopwright.registry.lineage.layout import HEIGHT, WIDTH, Point, place

COLOURS = {
    "source": ("#64748b", "source"), "batch": ("#0e7490", "batch"), "table": ("#0d9488", "table version"),
    "column": ("#65a30d", "column"), "snapshot": ("#15803d", "snapshot"), "feature": ("#ca8a04", "feature"),
    "label": ("#b45309", "label"), "rows": ("#a16207", "choice of rows"), "transform": ("#c2410c", "transform"),
    "code": ("#57534e", "code"), "config": ("#78716c", "configuration"), "run": ("#7c3aed", "run"),
    "bundle": ("#4f46e5", "bundle"), "version": ("#1d4ed8", "version"), "evidence": ("#0369a1", "evidence"),
    "promotion": ("#be185d", "promotion"), "rollout": ("#a21caf", "rollout"),
    "predictions": ("#0284c7", "predictions"), "labels": ("#b45309", "labels"), "windows": ("#475569", "windows"),
    "alert": ("#dc2626", "alert"), "retrain": ("#9333ea", "retrain"),
}  # fmt: skip
"""Colour and word of every kind."""
_OTHER = ("#6b7280", "other")
_HIDDEN = ("id", "kind", "label", "folded", "live", "focus", "members", "reads", "serving")
MARGIN, LEGEND = 28, 26
_STYLE = """
.lw text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.lw .kind{font-size:9.5px;letter-spacing:.06em;font-weight:600}
.lw .name{font-size:12.5px;font-weight:500}
.lw .edge{fill:none;stroke:#94a3b8;stroke-width:1.3}
.lw .edge.cause{stroke-dasharray:5 4}
.lw .node:hover rect.box{stroke-width:2.2}
.lw .edge:hover{stroke:#1d4ed8;stroke-width:2.4}
@media (prefers-color-scheme:dark){
.lw .paper{fill:#0f172a}.lw rect.box{fill:#1e293b}.lw .name{fill:#f1f5f9}.lw .key{fill:#cbd5e1}
.lw .edge{stroke:#64748b}.lw .title{fill:#f1f5f9}.lw .note{fill:#94a3b8}}
"""


def draw(answer: Mapping[str, Any], *, title: str = "") -> str:
    """The graph of a lineage answer as one SVG document.

    `answer`: nodes and edges as `lineage` or `impact` give them; ids in its `focus` are marked.
    """
    nodes: Sequence[Mapping[str, Any]] = answer["nodes"]
    edges: Sequence[Mapping[str, str]] = answer["edges"]
    focus = set(answer.get("focus", ()))
    placed = place([node["id"] for node in nodes], [(edge["from"], edge["to"]) for edge in edges])
    kinds = [kind for kind in COLOURS if any(node["kind"] == kind for node in nodes)]
    width = max(placed.width + 2 * MARGIN, 560.0)
    rows = _legend_rows(kinds, width)
    head = 44 if title else 0
    height = head + placed.height + 2 * MARGIN + LEGEND * (len(rows) + 1)
    notes = {
        edge_key: kind for edge in edges for edge_key, kind in [((edge["from"], edge["to"]), edge["kind"])]
    }
    told = title or "Lineage"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="lw" role="img" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" aria-labelledby="lw-title lw-desc">',
        f'<title id="lw-title">{_text(told)}</title>',
        f'<desc id="lw-desc">{_text(_description(answer, kinds))}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
    ]
    if title:
        parts.append(
            f'<text class="title" x="{MARGIN}" y="36" font-size="18" font-weight="650" fill="#0f172a">'
            f"{_text(title)}</text>"
        )
    parts.append(f'<g transform="translate({MARGIN},{head + MARGIN})">')
    labels = {node["id"]: str(node["label"]) for node in nodes}
    for (a, b), points in placed.edges.items():
        parts.append(_edge(points, notes[a, b], labels[a], labels[b], a, b))
    parts += [_node(node, placed.boxes[node["id"]], node["id"] in focus) for node in nodes]
    parts.append("</g>")
    parts += _legend(rows, head + placed.height + 2 * MARGIN)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


# Edges along which nothing flows into a version: what was decided, seen or caused.
_CAUSES = frozenset({
    "baseline of", "judged by", "promoted by", "led to", "rolled out by", "sent traffic to", "answered", "outcomes in",
    "judged in", "raised", "called for", "started", "reached",
})  # fmt: skip


def _edge(points: Sequence[Point], kind: str, source: str, target: str, a: str, b: str) -> str:
    path = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
    for index in range(1, len(points)):
        (x1, y1), (x2, y2) = points[index - 1], points[index]
        # Between columns a curve that leaves and arrives level; across a column's width a straight thread.
        if index % 2 == 1:
            bend = (x2 - x1) / 2
            path += f" C{x1 + bend:.1f},{y1:.1f} {x2 - bend:.1f},{y2:.1f} {x2:.1f},{y2:.1f}"
        else:
            path += f" L{x2:.1f},{y2:.1f}"
    cause = " cause" if kind in _CAUSES else ""
    return (
        f'<path class="edge{cause}" fill="none" stroke="#94a3b8" stroke-width="1.3"'
        + (' stroke-dasharray="5 4"' if cause else "")
        + f' d="{path}" data-from="{_attribute(a)}" data-to="{_attribute(b)}">'
        f"<title>{_text(source)} — {_text(kind)} → {_text(target)}</title></path>"
    )


def _node(node: Mapping[str, Any], at: Point, focused: bool) -> str:
    colour, word = COLOURS.get(str(node["kind"]), _OTHER)
    x, y = at
    live = bool(node.get("live"))
    deep = ""
    if node.get("folded"):  # a sheet behind says: more than one
        deep = (
            f'<rect class="box" x="4" y="4" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff" '
            f'stroke="{colour}" stroke-opacity=".45"/>'
        )
    fill = "#eff6ff" if focused else "#ffffff"
    width = 2.6 if focused or live else 1.1
    mark = (
        f'<circle cx="{WIDTH - 14}" cy="14" r="5" fill="#16a34a"/>'
        if live
        else f'<circle cx="{WIDTH - 14}" cy="14" r="4.4" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        if node.get("serving")
        else ""
    )
    stage = (
        f" · {node['stage']}" if node["kind"] == "version" and node.get("stage") not in (None, "None") else ""
    )
    return (
        f'<g class="node" id="{_attribute(node["id"])}" data-kind="{_attribute(str(node["kind"]))}" '
        f'transform="translate({x:.1f},{y:.1f})"><title>{_text(_tooltip(node))}</title>{deep}'
        f'<rect class="box" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{fill}" stroke="{colour}" '
        f'stroke-width="{width}"/>'
        f'<path d="M8,0 H6 a6,6 0 0 0 -6,6 V{HEIGHT - 6} a6,6 0 0 0 6,6 H8 Z" fill="{colour}"/>'
        f'<text class="kind" x="16" y="16" font-size="9.5" font-weight="600" fill="{colour}">'
        f"{_text((word + stage).upper())}</text>"
        f'<text class="name" x="16" y="33" font-size="12.5" fill="#0f172a">'
        f"{_text(_clip(str(node['label']), 26))}</text>"
        f"{mark}</g>"
    )


def _tooltip(node: Mapping[str, Any]) -> str:
    lines = [f"{COLOURS.get(str(node['kind']), _OTHER)[1]}: {node['label']}"]
    for arm in node.get("serving", ()):
        lines.append(f"serves now: {arm['weight']:.0%} as {arm['arm']}")
    for name, value in node.items():
        if name not in _HIDDEN:
            lines.append(f"{name.replace('_', ' ')}: {_clip(_plain(value), 160)}")
    if node.get("members"):
        lines += [
            "",
            *[_clip(str(member), 60) for member in node["members"]],
            *(["…"] if node.get("count", 0) > 10 else []),
        ]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.6g}"
        case list() | tuple():
            return ", ".join(map(_plain, value))
        case dict():
            return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return str(value)


def _legend_rows(kinds: Sequence[str], width: float) -> list[list[tuple[float, str]]]:
    rows: list[list[tuple[float, str]]] = [[]]
    x = float(MARGIN)
    for kind in kinds:
        size = 30 + 7.2 * len(COLOURS[kind][1])
        if rows[-1] and x + size > width - MARGIN:
            rows.append([])
            x = float(MARGIN)
        rows[-1].append((x, kind))
        x += size
    return rows


def _legend(rows: Sequence[Sequence[tuple[float, str]]], top: float) -> list[str]:
    parts = []
    for number, row in enumerate(rows):
        y = top + LEGEND * number
        for x, kind in row:
            colour, word = COLOURS[kind]
            parts.append(
                f'<rect x="{x:.0f}" y="{y:.0f}" width="12" height="12" rx="3" fill="{colour}"/>'
                f'<text class="key" x="{x + 18:.0f}" y="{y + 10.5:.1f}" font-size="11.5" fill="#334155">'
                f"{_text(word)}</text>"
            )
    y = top + LEGEND * len(rows)
    parts.append(
        f'<circle cx="{MARGIN + 6}" cy="{y + 6:.0f}" r="5" fill="#16a34a"/>'
        f'<text class="key" x="{MARGIN + 18}" y="{y + 10.5:.1f}" font-size="11.5" fill="#334155">serves now</text>'
        f'<path d="M{MARGIN + 96},{y + 6:.0f} h30" stroke="#94a3b8" stroke-width="1.3"/>'
        f'<text class="key" x="{MARGIN + 132}" y="{y + 10.5:.1f}" font-size="11.5" fill="#334155">flows into</text>'
        f'<path d="M{MARGIN + 204},{y + 6:.0f} h30" stroke="#94a3b8" stroke-width="1.3" stroke-dasharray="5 4"/>'
        f'<text class="key" x="{MARGIN + 240}" y="{y + 10.5:.1f}" font-size="11.5" fill="#334155">'
        "led to, judged or decided</text>"
    )
    return parts


def _description(answer: Mapping[str, Any], kinds: Sequence[str]) -> str:
    count = {
        kind: sum(int(node.get("count", 1)) for node in answer["nodes"] if node["kind"] == kind)
        for kind in kinds
    }
    said = " ".join(answer.get("says", ()))
    parts = ", ".join(f"{number} × {COLOURS[kind][1]}" for kind, number in count.items())
    folded = " ".join(f"{line}." for line in answer.get("folded", ()))
    return f"{said} Shown: {parts}. {folded}".strip()


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _text(text: str) -> str:
    return escape(printable(text), quote=False)


def printable(text: str) -> str:
    """`text` with a sign in place of what neither XML nor HTML can hold."""
    return "".join(
        c if c in "\n\t" or (c >= " " and not "\ud800" <= c <= "\udfff") else "\ufffd" for c in text
    )


def _attribute(text: str) -> str:
    return escape(printable(text), quote=True)
