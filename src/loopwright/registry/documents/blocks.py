"""What a card is laid out in, and how figures and moments read. Renderers know these kinds and no other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOTHING = "not recorded"


@dataclass(frozen=True, slots=True)
class Mark:
    """A verdict or a state, shown as a badge."""

    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """A digest or an id; shown short, `text` whole."""

    text: str
    short: int = 12


Cell = str | Mark | Code | None


@dataclass(frozen=True, slots=True)
class Pairs:
    """Facts by name."""

    rows: tuple[tuple[str, Cell], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; `empty` is said in the place of a table without rows."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    empty: str = ""


@dataclass(frozen=True, slots=True)
class Said:
    """A sentence of ours. tone: "" or "warn"."""

    text: str
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Prose:
    """Markdown that a person wrote; whoever renders it trusts nothing in it."""

    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG whose figures stand in a table beside it."""

    svg: str


Block = Pairs | Table | Said | Prose | Picture


@dataclass(frozen=True, slots=True)
class Part:
    """A heading with its blocks. level 2 or 3; `human`: people wrote it, nothing in it was measured."""

    title: str
    blocks: tuple[Block, ...]
    level: int = 2
    human: bool = False


@dataclass(frozen=True, slots=True)
class Tile:
    """One answer at a glance."""

    title: str
    state: str
    detail: str


@dataclass(frozen=True, slots=True)
class Page:
    """A card, arranged."""

    title: str
    subtitle: str
    tiles: tuple[Tile, ...]
    parts: tuple[Part, ...]


def time_of(text: str | None) -> str | None:
    """ "2013-04-01T05:00:00.123Z" → "2013-04-01 05:00 UTC"."""
    return f"{text[:10]} {text[11:16]} UTC" if text and len(text) > 16 else text


def day_of(text: str | None) -> str | None:
    return text[:10] if text else None


def whole(value: Any) -> str | None:
    return None if value is None else f"{value:,}"


def signed(value: Any) -> str:
    return "–" if value is None else f"{value:+.4g}"


def percent(value: Any) -> str:
    return "the stated" if value is None else f"{value:.0%}"


def text_of(value: Any) -> str | None:
    if value is None:
        return None
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def span_of(found: Mapping[str, Any]) -> str | None:
    """ "0.68 to 0.71", from `low` and `high`."""
    low, high = found.get("low"), found.get("high")
    return None if low is None or high is None else f"{text_of(low)} to {text_of(high)}"
