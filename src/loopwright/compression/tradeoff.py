"""The trade-off between size, latency and loss: which candidates nothing else beats, and what beats the others."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from loopwright.compression.candidate import Candidate
from loopwright.kernel.errors import BadInput

ORIGINAL = "original"
"""The name under which the parent itself is measured."""


@dataclass(frozen=True, slots=True)
class Point:
    """One model: bytes on disk, milliseconds of the median call, relative loss. Less is better in all three."""

    name: str
    size: float
    latency: float
    loss: float

    @property
    def place(self) -> tuple[float, float, float]:
        return self.size, self.latency, self.loss

    def dominates(self, other: "Point") -> bool:
        """Whether it is nowhere worse and somewhere better; equal points do not dominate each other."""
        return self.place != other.place and all(
            own <= its for own, its in zip(self.place, other.place, strict=True)
        )


def points(candidates: Iterable[Candidate], *, surely: bool = False) -> list[Point]:
    """One for each measured candidate, on validation rows, since test rows choose nothing.

    Latencies of different runs are made comparable by the parent, which ran beside each: median of the parent's p50
    over all runs / how many times faster the candidate was in its own. A machine that was busy for a while moves none.
    The parent is as fast as itself, whatever came out. surely: take the upper bounds of the losses instead of them.
    """
    measured = [(one, one.latency, one.validation) for one in candidates if one.measured]
    usual = median([latency.original_p50 for _, latency, _ in measured if latency] or [0.0])
    found = []
    for one, latency, judged in measured:
        if latency and judged:
            faster = 1.0 if one.name == ORIGINAL else latency.ratio
            loss = judged.loss_high if surely else judged.loss
            found.append(Point(one.name, float(one.size), usual / faster, loss))
    return found


def dominators(all_points: Sequence[Point]) -> Mapping[str, tuple[str, ...]]:
    """Name → the members of the Pareto front that dominate it, smallest first; () for the front itself.

    Raises BadInput for two points of one name or a coordinate that is not a number.
    """
    for one in all_points:
        if any(value != value for value in one.place):
            raise BadInput("a point without a place", where=f"trade-off: {one.name}", got=one.place)
    if len({one.name for one in all_points}) != len(all_points):
        raise BadInput("two candidates of one name", where="trade-off", got=[one.name for one in all_points])
    front: list[Point] = []
    beaten: dict[str, tuple[str, ...]] = {}
    # What dominates a point sorts before it, and whatever beats a beaten point is beaten by, or on, the front itself.
    for one in sorted(all_points, key=lambda one: (one.place, one.name)):
        by = tuple(better.name for better in front if better.dominates(one))
        if not by:
            front.append(one)
        beaten[one.name] = by
    return {one.name: beaten[one.name] for one in all_points}
