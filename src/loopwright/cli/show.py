"""Tables and lists: drawn by rich at a terminal, plain aligned columns when piped."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

Column = tuple[str, str | Callable[[Any], Any]]
"""A heading, and the key of a row or a function of it."""

_TIME = re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
_COLOURS = {
    "PASS": "green", "Production": "green", "ok": "green", "completed": "green", "succeeded": "green",
    "FAIL": "red", "ERROR": "red", "P0": "red", "P1": "red", "failed": "red", "rolled_back": "red",
    "INCONCLUSIVE": "yellow", "P2": "yellow", "pending": "yellow", "running": "yellow", "paused": "yellow",
    "Staging": "cyan", "open": "yellow", "bad": "red",
}  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], *, empty: str = "nothing yet") -> str:
    """Return the rows as a table; `empty` when there are none."""
    if not rows:
        return empty
    cells = [[text(pick(row) if callable(pick) else row.get(pick)) for _, pick in columns] for row in rows]
    numeric = [
        all(_is_number(pick(row) if callable(pick) else row.get(pick)) for row in rows) for _, pick in columns
    ]
    heads = [head for head, _ in columns]
    return _drawn(heads, cells, numeric) if sys.stdout.isatty() else _aligned(heads, cells, numeric)


def pairs(items: Mapping[str, Any]) -> str:
    """Return "name  value" lines, names aligned."""
    width = max((len(name) for name in items), default=0)
    return "\n".join(f"{name.ljust(width)}  {text(value)}" for name, value in items.items())


def text(value: Any) -> str:
    """Return a value as a person reads it: numbers short, times to the minute, nothing as "–"."""
    if value is None or value in ("", [], {}, ()):
        return "–"
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        case str():
            return _short_time(value)
        case list() | tuple():
            return ", ".join(map(text, value))
        case dict():
            return ", ".join(f"{key} {text(item)}" for key, item in value.items())
    return str(value)


def times(sentence: str) -> str:
    """Return a sentence with the times in it as a person reads them: to the minute, UTC."""
    return _TIME.sub(lambda found: _short_time(found.group()), sentence)


def share(value: float | None) -> str:
    """Return 0.25 as "25 %"."""
    return "–" if value is None else f"{value * 100:.3g} %"


def _short_time(value: str) -> str:
    if len(value) < 20 or not value.endswith("Z") or value[10] != "T":
        return value
    try:
        return f"{datetime.fromisoformat(value):%Y-%m-%d %H:%M}"
    except ValueError:
        return value


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _aligned(heads: list[str], cells: list[list[str]], numeric: list[bool]) -> str:
    widths = [max(len(row[i]) for row in [heads, *cells]) for i in range(len(heads))]
    lines = []
    for row in [heads, *cells]:
        parts = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _drawn(heads: list[str], cells: list[list[str]], numeric: list[bool]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for head, right in zip(heads, numeric, strict=True):
        drawn.add_column(head, justify="right" if right else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    console = Console()
    with console.capture() as capture:
        console.print(drawn)
    return capture.get().rstrip("\n")
