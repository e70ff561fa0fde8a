"""A card as Markdown. What people wrote is kept, but its HTML is shown as text and its headings stand below ours."""

import re
from collections.abc import Iterator, Sequence

from loopwright.registry.documents.blocks import (
    NOTHING,
    Block,
    Cell,
    Code,
    Mark,
    Page,
    Pairs,
    Picture,
    Prose,
    Said,
    Table,
)

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}(#{1,6})(?=\s|$)")


def to_markdown(page: Page) -> str:
    """The whole card; pictures are left out, their figures stand in the tables."""
    tiles = [(tile.title, Mark(tile.state), tile.detail or "–") for tile in page.tiles]
    parts = [f"# {_inline(page.title)}", _inline(page.subtitle), "\n".join(_table(("", "", ""), tiles))]
    for part in page.parts:
        parts.append(f"{'#' * part.level} {_inline(part.title)}")
        parts += [text for block in part.blocks if (text := _block(block))]
    return "\n\n".join(parts) + "\n"


def neutral(text: str) -> str:
    """Somebody's Markdown with HTML and pictures as text, links to scripts disarmed, and headings below level 3."""
    lines, fence = [], ""
    for line in text.splitlines():
        marked = _FENCE.match(line)
        if marked and (not fence or line.strip().startswith(fence)):
            fence = "" if fence else marked.group(1)
        if not fence:
            line = _HEADING.sub(lambda found: "#" * min(6, len(found.group(1)) + 3), line)
            # A line of = or - would make the line above a heading of level 1 or 2.
            line = re.sub(r"^ {0,3}(=+|-+)\s*$", r"\\\1", line)
        lines.append(_harmless(line))
    return "\n".join([*lines, fence] if fence else lines)


def _harmless(line: str) -> str:
    line = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)
    line = line.replace("![", "!\\[")
    return re.sub(r"(?i)\b(javascript|vbscript|data|file)(\s*:)", r"\1&#58;", line)


def _block(block: Block) -> str:
    match block:
        case Pairs(rows):
            return "\n".join(_table(("", ""), rows))
        case Table(head, rows, empty):
            return "\n".join(_table(head, rows)) if rows else _inline(empty)
        case Said(text, tone):
            return f"**{_inline(text)}**" if tone == "warn" else _inline(text)
        case Prose(text):
            return neutral(text)
        case Picture():
            return ""


def _table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Iterator[str]:
    yield "| " + " | ".join(_inline(name) for name in head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(_cell(cell) for cell in row) + " |"


def _cell(cell: Cell) -> str:
    match cell:
        case None:
            return f"_{NOTHING}_"
        case Mark(text):
            return f"**{_inline(text)}**"
        case Code(text, short):
            return f"`{_inline(text[:short]).replace('`', '')}`"
        case str():
            return _inline(cell)


def _inline(text: str) -> str:
    """Text on one line in which nothing is markup: no link, no picture, no HTML, no end of a table's cell."""
    flat = " ".join(text.replace("\\", "\\\\").split())
    for sign in "|[]`*":
        flat = flat.replace(sign, f"\\{sign}")
    return flat.replace("<", "&lt;")
