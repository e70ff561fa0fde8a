"""A card as one HTML file that needs nothing else: no script, no request, light, dark and paper.

Everything is escaped; what people wrote goes through a Markdown parser with raw HTML off, pictures off, and links to
http, https and mail only. A content security policy stands behind that.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING, Any

from loopwright.registry.documents.blocks import (
    NOTHING,
    Block,
    Cell,
    Code,
    Mark,
    Page,
    Pairs,
    Part,
    Picture,
    Prose,
    Said,
    Table,
    Tile,
)

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_GOOD = {"PASS", "filled", "effective", "approve", "Production", "completed", "resolved", "upheld"}
_BAD = {"FAIL", "ERROR", "rejected", "reject", "rolled_back", "emergency", "revoked", "aborted", "bad"}
_OPEN = {"INCONCLUSIVE", "open", "pending", "running", "paused", "Staging", "acknowledged", "WARN", NOTHING}

CSP = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

STYLE = """
:root{color-scheme:light dark;--ink:#1a1d21;--soft:#5b6470;--line:#d9dde3;--paper:#fff;--tint:#f5f6f8;
--good:#1a7f37;--bad:#b42318;--open:#946200;--accent:#2457a6}
@media(prefers-color-scheme:dark){:root{--ink:#e7e9ec;--soft:#a3abb6;--line:#3a4048;--paper:#15181c;--tint:#1e2228;
--good:#4ac26b;--bad:#ff7b72;--open:#e3b341;--accent:#7aa8f0}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:64rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.9rem;margin:0;line-height:1.2;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.5rem 0 .75rem;padding-top:.75rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.5rem 0 .5rem}h4,h5,h6{font-size:1rem;margin:1rem 0 .25rem}
p{margin:.5rem 0}.lead,.note{color:var(--soft)}.warn{color:var(--open)}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(13rem,1fr));gap:.75rem;margin:1.5rem 0}
.tile{border:1px solid var(--line);border-radius:8px;padding:.6rem .8rem;background:var(--tint)}
.tile b{display:block;font-weight:600;font-size:.8rem;color:var(--soft)}
.tile span.what{display:block;font-size:.85rem;color:var(--soft)}
nav{font-size:.9rem;margin:1rem 0}nav a{margin-right:.9rem;white-space:nowrap}
a{color:var(--accent)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;margin:.75rem 0;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid var(--line);
overflow-wrap:break-word}
thead th{color:var(--soft);font-weight:600;font-size:.8rem;white-space:nowrap}
tbody th{font-weight:500;width:14rem;color:var(--soft)}
code{font:.85em ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere}
pre{background:var(--tint);padding:.75rem;overflow-x:auto;border-radius:6px}
.mark{font-weight:650;white-space:nowrap}.good{color:var(--good)}.bad{color:var(--bad)}.open{color:var(--open)}
.none{color:var(--soft);font-style:italic}
.human{border-left:3px solid var(--accent);background:var(--tint);padding:.25rem 1rem;border-radius:0 6px 6px 0}
.human::before{content:"written by people";font-size:.75rem;color:var(--soft)}
.picture{width:100%;height:auto;max-width:45rem;display:block;margin:1rem 0;font:12px system-ui,sans-serif}
.picture text{fill:var(--ink)}.picture .note,.picture .figure{fill:var(--soft)}
.picture .bar{fill:var(--accent)}.picture .line{fill:none;stroke:var(--soft);stroke-width:1.25}
.picture .zero{stroke:var(--soft);stroke-dasharray:3 3}.picture .limit{stroke:var(--bad);stroke-dasharray:5 3}
.picture .span{stroke-width:2;stroke:var(--accent)}.picture .dot{fill:var(--paper);stroke:var(--accent);stroke-width:2}
.picture .good{stroke:var(--good)}.picture .dot.good{fill:var(--good)}
.picture .bad{stroke:var(--bad)}.picture .dot.bad{fill:var(--bad)}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--line:#bbb;--paper:#fff;--tint:#fff;--good:#145c28;
--bad:#8f1a12;--open:#6b4700;--accent:#1b4180}body{font-size:10.5pt}main{max-width:none;padding:0}nav{display:none}
h2,h3{break-after:avoid}tr,.tile,.picture{break-inside:avoid}thead{display:table-header-group}
.scroll{overflow:visible}}
"""


def to_html(page: Page) -> str:
    """The whole card as one file."""
    links = " ".join(
        f'<a href="#{_anchor(part.title)}">{escape(part.title)}</a>' for part in page.parts if part.level == 2
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(CSP)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(page.title)}: model card</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header><h1>{escape(page.title)}</h1>\n<p class="lead">{escape(page.subtitle)}</p></header>\n'
        f'<section class="tiles" aria-label="At a glance">{"".join(map(_tile, page.tiles))}</section>\n'
        f'<nav aria-label="Contents">{links}</nav>\n'
        + "\n".join(map(_part, page.parts))
        + "\n</main>\n</body>\n</html>\n"
    )


def prose(text: str) -> str:
    """Somebody's Markdown as HTML that can do nothing but be read."""
    return str(_parser().render(text))


@lru_cache(maxsize=1)
def _parser() -> "MarkdownIt":
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "typographer": False})
    parser.enable("table").disable(["image", "html_block", "html_inline"])
    parser.validateLink = lambda url: re.match(r"(https?:|mailto:)", url.strip(), re.IGNORECASE) is not None  # type: ignore[method-assign]
    parser.add_render_rule("heading_open", _lowered)
    parser.add_render_rule("heading_close", _lowered)
    parser.add_render_rule("link_open", _outward)
    return parser


def _lowered(self: Any, tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
    # A heading of theirs must not look like one of ours.
    tokens[at].tag = f"h{min(6, int(tokens[at].tag[1]) + 3)}"
    return str(self.renderToken(tokens, at, options, env))


def _outward(self: Any, tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
    tokens[at].attrSet("rel", "noopener noreferrer nofollow")
    return str(self.renderToken(tokens, at, options, env))


def _tile(tile: Tile) -> str:
    what = f'<span class="what">{escape(tile.detail)}</span>' if tile.detail else ""
    return f'<div class="tile"><b>{escape(tile.title)}</b>{_mark(tile.state)}{what}</div>'


def _part(part: Part) -> str:
    body = "\n".join(map(_block, part.blocks))
    if part.human:
        body = f'<div class="human">{body}</div>'
    anchor = f' id="{_anchor(part.title)}"' if part.level == 2 else ""
    return f"<h{part.level}{anchor}>{escape(part.title)}</h{part.level}>\n{body}"


def _block(block: Block) -> str:
    match block:
        case Pairs(rows):
            lines = "".join(
                f"<tr><th scope=row>{escape(name)}</th><td>{_cell(cell)}</td></tr>" for name, cell in rows
            )
            return f'<div class="scroll"><table><tbody>{lines}</tbody></table></div>'
        case Table(head, rows, empty):
            return _table(head, rows) if rows else f'<p class="note">{escape(empty)}</p>'
        case Said(text, tone):
            return f'<p class="{tone or "note"}">{escape(text)}</p>'
        case Prose(text):
            return prose(text)
        case Picture(svg):
            return svg


def _table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    names = "".join(f"<th scope=col>{escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    match cell:
        case None:
            return f'<span class="none">{NOTHING}</span>'
        case Mark(text):
            return _mark(text)
        case Code(text, short):
            return f'<code title="{escape(text)}">{escape(text[:short])}</code>'
        case str():
            return escape(cell)


def _mark(text: str) -> str:
    tone = "good" if text in _GOOD else "bad" if text in _BAD else "open" if text in _OPEN else ""
    return f'<span class="mark {tone}">{escape(text)}</span>'


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
