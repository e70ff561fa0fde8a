"""Where everything lies in the picture of the trade-off: dots, axes, fronts and limits, as shares of a panel."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from loopwright.compression.candidate import Candidate
from loopwright.compression.report import LadderReport
from loopwright.compression.tradeoff import ORIGINAL, Point, points
from loopwright.kernel.sizes import said_size

COOL, MIDDLE, WARM = (38, 84, 164), (22, 150, 136), (240, 130, 30)
"""From little to much: told apart by lightness too, and by people who see red and green alike."""
_LOSSES = (-0.5, -0.2, -0.1, -0.05, -0.02, -0.01, -0.005, 0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


@dataclass(frozen=True, slots=True)
class Dot:
    """A measured candidate with the number it has in the table."""

    number: int
    point: Point
    low: float
    high: float
    tail: float
    """Milliseconds of the p99, which the latency constraint is about."""
    front: bool
    chosen: bool
    parent: bool


@dataclass(frozen=True, slots=True)
class Scale:
    """One axis: `at` gives the place of a value as a share of the axis, `ticks` its values and their words."""

    at: Callable[[float], float]
    ticks: tuple[tuple[float, str], ...]


def dots(report: LadderReport) -> list[Dot]:
    """In the order of the table. The parent's figures are drawn even where it was not measured by itself."""
    found = {one.name: one for one in points(report.candidates)}
    drawn = []
    for number, one in enumerate(report.measured, start=1):
        if one.name in found and one.validation is not None:
            front = not report.dominated[one.name]
            low, high = one.validation.loss_low, one.validation.loss_high
            chosen, itself = one.name == report.chosen, one.name == ORIGINAL
            drawn.append(Dot(number, found[one.name], low, high, _tail(one, found), front, chosen, itself))
    if drawn and not any(dot.parent for dot in drawn):
        latency = median(one.latency.original_p50 for one in report.measured if one.latency)
        parent = Point(ORIGINAL, float(report.size), latency, 0.0)
        drawn.append(
            Dot(0, parent, 0.0, 0.0, latency, not any(d.point.dominates(parent) for d in drawn), False, True)
        )
    return drawn


def _tail(one: Candidate, found: dict[str, Point]) -> float:
    assert one.latency is not None
    return one.latency.p99 * found[one.name].latency / one.latency.p50


@dataclass(frozen=True, slots=True)
class Mark:
    """A dot in a panel, everything as a share of it: its place, the bar of its loss, the end of its latency's bar.

    much: of what the other panel shows, for its colour. numbered: whether its number would be readable there.
    """

    dot: Dot
    x: float
    y: float
    low: float
    high: float
    tail: float | None
    much: float
    numbered: bool


@dataclass(frozen=True, slots=True)
class Panel:
    """Loss over one of size and latency.

    marks: what matters most last, so that it is drawn above. step: the corners of the least loss at up to each x.
    limit: where the constraint lies across; ceiling: where the permitted loss lies upwards.
    """

    title: str
    across: Scale
    up: Scale
    marks: tuple[Mark, ...]
    step: tuple[tuple[float, float], ...]
    limit: float | None
    ceiling: float


def panels(report: LadderReport, drawn: Sequence[Dot]) -> tuple[Panel, Panel]:
    """Loss over size, and loss over latency; where a latency is asked for, with bars to the p99 that it is about."""
    wanted = report.constraints
    sizes, times = [dot.point.size for dot in drawn], [dot.point.latency for dot in drawn]
    much_size, much_time = _logarithmic(sizes, said_size), _logarithmic(times, _milliseconds)
    by_size = _logarithmic([*sizes, *([float(wanted.size)] if wanted.size else [])], said_size)
    if (limit := wanted.latency_ms) is not None:
        # One candidate that the machine held up for a while must not squeeze the others together.
        tails = [min(dot.tail, 3 * max(limit, dot.point.latency)) for dot in drawn]
        times = [*times, *tails, limit]
    by_time, up = _logarithmic(times, _milliseconds), _losses(drawn, wanted.loss)
    ceiling = up.at(wanted.loss)

    def marks(
        across: Scale, place: Callable[[Point], float], much: Callable[[Point], float], tails: bool
    ) -> Marks:
        found: list[Mark] = []
        for dot in sorted(drawn, key=lambda dot: (not dot.chosen, not dot.parent, not dot.front)):
            x, y = across.at(place(dot.point)), up.at(dot.point.loss)
            tail = min(1.0, across.at(dot.tail)) if tails else None
            free = all(abs(one.x - x) > 0.035 or abs(one.y - y) > 0.035 for one in found if one.numbered)
            found.append(Mark(dot, x, y, up.at(dot.low), up.at(dot.high), tail, much(dot.point), free))
        return tuple(reversed(found))

    of_size = marks(by_size, lambda at: at.size, lambda at: much_time.at(at.latency), False)
    of_time = marks(by_time, lambda at: at.latency, lambda at: much_size.at(at.size), limit is not None)
    return (
        Panel(
            "Size on disk (colour: latency)", by_size, up, of_size, _step(of_size),
            None if wanted.size is None else by_size.at(wanted.size), ceiling,
        ),
        Panel(
            f"Latency p50{'' if limit is None else ', bar to p99'} (colour: size)", by_time, up, of_time,
            _step(of_time), None if limit is None else by_time.at(limit), ceiling,
        ),
    )  # fmt: skip


Marks = tuple[Mark, ...]


def _step(marks: Marks) -> tuple[tuple[float, float], ...]:
    corners: list[tuple[float, float]] = []
    for x, y in sorted((one.x, one.y) for one in marks):
        if not corners or y < corners[-1][1]:
            if corners:
                corners.append((x, corners[-1][1]))
            corners.append((x, y))
    return tuple(corners)


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms"


def _logarithmic(values: Sequence[float], say: Callable[[float], str]) -> Scale:
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    start, end = math.log10(low) - 0.08, math.log10(high) + 0.08
    if end - start < 0.4:
        middle = (start + end) / 2
        start, end = middle - 0.2, middle + 0.2
    candidates = [base * 10.0**power for power in range(-6, 16) for base in (1, 1.5, 2, 3, 5, 7)]
    inside = [one for one in candidates if start <= math.log10(one) <= end]
    while len(inside) > 7:
        inside = inside[::2]
    return Scale(
        lambda value: (math.log10(value) - start) / (end - start), tuple((one, say(one)) for one in inside)
    )


def _losses(drawn: Sequence[Dot], permitted: float) -> Scale:
    """Even around nothing and the permitted loss, in powers beyond: a ruined candidate must not flatten the rest."""
    unit = max(permitted, 0.002)
    edges = [edge for dot in drawn for edge in (dot.low, dot.high)] + [0.0, permitted]
    start, end = math.asinh(min(edges) / unit), math.asinh(max(edges) / unit)
    pad = max(0.07 * (end - start), 0.2)
    start, end = start - pad, end + pad

    def at(value: float) -> float:
        return (math.asinh(value / unit) - start) / (end - start)

    ticks: list[tuple[float, str]] = []
    for one in sorted({*_LOSSES, permitted}, key=lambda one: (one not in (0, permitted), abs(one))):
        if 0 <= at(one) <= 1 and all(abs(at(one) - at(other)) > 0.045 for other, _ in ticks):
            ticks.append((one, f"{one * 100:g}%"))
    return Scale(at, tuple(sorted(ticks)))


def colour_of(much: float) -> tuple[int, int, int]:
    """Red, green and blue, each 0 to 255."""
    much = min(1.0, max(0.0, much))
    start, end, at = (COOL, MIDDLE, much * 2) if much < 0.5 else (MIDDLE, WARM, much * 2 - 1)
    red, green, blue = (round(a + (b - a) * at) for a, b in zip(start, end, strict=True))
    return red, green, blue
