"""What all pages about data share: the frame, the style, tables, pictures. Whatever comes from data is escaped here."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
:root{color-scheme:light dark;--ink:#0f172a;--soft:#55627a;--line:#e2e8f0;--paper:#fff;--wash:#f6f8fb;--blue:#1d4ed8;
--bar:#5b8def;--other:#f59e0b;--good:#15803d;--bad:#b91c1c;--warn:#b45309}
@media (prefers-color-scheme:dark){:root{--ink:#e8edf5;--soft:#94a3b8;--line:#2b3850;--paper:#0d1424;--wash:#162034;
--blue:#93b8ff;--bar:#5b8def;--other:#fbbf24;--good:#4ade80;--bad:#f87171;--warn:#fbbf24}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1200px;margin:0 auto;padding:36px 28px 80px}
a{color:var(--blue);text-decoration:none}a:hover{text-decoration:underline}
h1{font-size:28px;line-height:1.2;margin:0 0 6px;overflow-wrap:anywhere}
h2{font-size:19px;margin:44px 0 12px}h3{font-size:15px;margin:0;overflow-wrap:anywhere}
nav{font-size:13px;color:var(--soft);margin:0 0 20px}
section section h2{font-size:16px;margin:26px 0 8px}
.lead{max-width:80ch;margin:10px 0 0;overflow-wrap:anywhere}
.chips{display:flex;gap:8px;flex-wrap:wrap;margin:12px 0 0}
.chip{border:1px solid var(--line);background:var(--wash);border-radius:99px;padding:2px 12px;font-size:13px}
.good{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}.chip.good,.chip.bad,.chip.warn{font-weight:600}
.note{color:var(--soft);font-size:13px;margin:6px 0}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:24px 0 0}
.fact{border:1px solid var(--line);border-radius:10px;padding:10px 14px;background:var(--wash)}
.fact b{display:block;font-size:20px;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.fact span{color:var(--soft);font-size:12.5px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th{text-align:left;color:var(--soft);font-weight:600;border-bottom:1px solid var(--line);padding:7px 14px 7px 0;
white-space:nowrap}
td{border-bottom:1px solid var(--line);padding:7px 14px 7px 0;vertical-align:top;overflow-wrap:anywhere}
td.word{white-space:nowrap}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
code{font:12.5px ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere}
.cards{margin-top:16px;display:grid;grid-template-columns:repeat(auto-fill,minmax(330px,1fr));gap:14px}
.card{border:1px solid var(--line);border-radius:12px;padding:14px 16px;min-width:0}
.card header{display:flex;justify-content:space-between;gap:10px;align-items:baseline}
.card header span{color:var(--soft);font-size:12px;white-space:nowrap}
.card p{margin:4px 0;font-size:13px;color:var(--soft);overflow-wrap:anywhere}
.card dl{display:grid;grid-template-columns:repeat(3,1fr);gap:4px 10px;margin:10px 0 0;font-size:12.5px}
.card dt{color:var(--soft)}.card dd{margin:0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.before{color:var(--bar)}.after{color:var(--other)}
.bars{margin:8px 0 0;font-size:12.5px}
.bars div{display:grid;grid-template-columns:minmax(0,40%) 1fr auto;gap:8px;align-items:center}
.bars span:first-child{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.bars i{display:block;height:9px;background:var(--bar);border-radius:2px;min-width:1px}
.bars i.other{background:var(--other)}
svg{display:block;max-width:100%}svg text{fill:var(--soft);font:11px system-ui,sans-serif}
.fill{fill:var(--bar)}.fill2{fill:var(--other);fill-opacity:.75}.badfill{fill:var(--bad)}.axis{stroke:var(--line)}
.line{fill:none;stroke:var(--bad);stroke-width:1.5}
details{margin:6px 0}summary{cursor:pointer;color:var(--soft);font-size:13px}
footer{margin:60px 0 0;color:var(--soft);font-size:12.5px}
@media print{.cards{grid-template-columns:1fr 1fr}main{padding:0}}
"""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""No script runs in a page, whatever it holds."""


def page(title: str, body: Iterable[str], *, footer: str) -> str:
    """A whole page; `body` is HTML, `title` and `footer` are text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + f"\n<footer>{text(footer)}</footer>\n</main></body></html>\n"
    )


def text(value: object) -> str:
    """Text as HTML shows it: no markup, nothing that turns the direction of reading or cannot be seen."""
    shown = "".join(sign if sign.isprintable() or sign in "\n\t" else "\ufffd" for sign in str(value))
    return escape(shown, quote=True)


def code(value: object) -> str:
    return f"<code>{text(value)}</code>" if value not in (None, "") else ""


def number(value: float | int | None) -> str:
    """A number as a person reads it: thousands apart, four digits of a fraction; nothing as "–"."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    if 1000 <= abs(value) < 1e15:
        return f"{value:,.0f}" if abs(value) >= 9999 else f"{value:,.1f}"
    return f"{value:.4g}"


def share(part: float | None) -> str:
    """0.2512 as "25.1 %"; what is not quite nothing never as 0."""
    if part is None:
        return "–"
    if part == 0:
        return "0 %"
    if 0 < part < 0.0001:
        return "< 0.01 %"
    return f"{part:.2%}".replace("%", " %") if part < 0.1 else f"{part:.1%}".replace("%", " %")


def moment(value: str | None) -> str:
    """An ISO time to the minute."""
    return "–" if not value else text(f"{value[:10]} {value[11:16]}")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML cells; heads that begin with # are of numbers, with . of words kept whole. "" for no rows."""
    if not rows:
        return ""
    marks = [{"#": ' class="number"', ".": ' class="word"'}.get(head[:1], "") for head in heads]

    def line(tag: str, cells: Iterable[str]) -> str:
        return "".join(f"<{tag}{mark}>{cell}</{tag}>" for cell, mark in zip(cells, marks, strict=True))

    head = line("th", (text(one.lstrip("#.")) for one in heads))
    body = "".join(f"<tr>{line('td', row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def section(title: str, *parts: str, empty: str = "") -> str:
    """A heading with its parts; with none of them `empty`, or nothing."""
    inner = "".join(parts) or (f'<p class="note">{text(empty)}</p>' if empty else "")
    return f"<section><h2>{text(title)}</h2>{inner}</section>" if inner else ""


def chip(words: object, tone: str = "") -> str:
    return f'<span class="chip {tone}">{text(words)}</span>'


def state_tone(state: str) -> str:
    """The colour of a verdict."""
    return {"PASS": "good", "quiet": "good", "same": "good", "WARN": "warn", "warn": "warn"}.get(state, "bad")


def facts(items: Mapping[str, str]) -> str:
    """Boxes with a value (HTML) and its name."""
    boxes = "".join(
        f'<div class="fact"><b>{value}</b><span>{text(name)}</span></div>' for name, value in items.items()
    )
    return f'<div class="facts">{boxes}</div>'


def example(cells: Mapping[str, Any]) -> str:
    """A row as "name = value, …"."""
    return ", ".join(
        f"{text(name)} = {code('null' if cell is None else cell)}" for name, cell in cells.items()
    )


def listed(items: Iterable[object], wrap: Callable[[object], str] = text) -> str:
    return ", ".join(wrap(item) for item in items)
