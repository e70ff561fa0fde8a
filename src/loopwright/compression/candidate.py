"""A candidate: what a recipe gave, or why it gave nothing. One JSON file per candidate, so that work is resumed."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from loopwright.compression.constraints import Constraints


class Status(StrEnum):
    """How the attempt ended."""

    MEASURED = "measured"
    SKIPPED = "skipped"
    """It could not have reached the target, or its turn never came; `why` says which."""
    FAILED = "failed"
    """It could not be trained or exported."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one call; `original_*` of the parent, interleaved in one run. `ratio`: parent's p50 / own.

    p50 and p99 are medians over rounds of `calls` calls in all; `ratio` is the median of the rounds' ratios,
    `ratio_low` and `ratio_high` the least and the largest; `spread`: (largest - least) / median of the rounds' p50;
    `disturbed`: the share of calls during which another process took the processor, see `latency`.
    """

    p50: float
    p99: float
    original_p50: float
    original_p99: float
    ratio: float
    batch: int
    threads: int
    calls: int
    rounds: int = 0
    spread: float = 0.0
    ratio_low: float = 0.0
    ratio_high: float = 0.0
    disturbed: float = 0.0


@dataclass(frozen=True, slots=True)
class Quality:
    """The metric beside the parent's on the same rows. `loss` is relative to the parent's value, above 0 for worse.

    `loss_high`: its upper confidence bound, which decides; `loss_low`: its lower.
    """

    metric: str
    value: float
    parent: float
    loss: float
    loss_low: float
    loss_high: float
    confidence: float
    rows: int

    @property
    def unseen(self) -> float:
        """The share of rows that may be answered worse though not one of these is: 3 / rows at 95 %.

        A bootstrap of rows without a difference has bounds of 0 however few they are (rule of three: Hanley &
        Lippman-Hand 1983). A loss that is to be kept to within less needs more rows.
        """
        return float(1 - (1 - self.confidence) ** (1 / self.rows))


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike the answers are to the parent's on the same rows, each None where it says nothing.

    argmax: share of rows with the same class; cosine: mean of the rows' cosines; recall: share of a row's 10 nearest
    rows (by cosine) that stay among them; largest: the largest difference of one number.
    """

    argmax: float | None
    cosine: float | None
    recall: float | None
    largest: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """One attempt. `file` is relative to the folder of the whole work; sizes are bytes on disk.

    validation decides, test is what is reported. `alone`: largest difference of a row's answer alone from its answer in
    a batch. `floor`: bytes below which the recipe cannot come. `curve`: metric → [(step, value), …]; `counts`: numbers
    that were told once. `peak_mb`: the most memory that the whole process held during the attempt, `held_mb`: what it
    held before.
    """

    name: str
    key: str
    recipe: list[dict[str, Any]]
    status: Status
    why: str = ""
    file: str = ""
    digest: str = ""
    size: int = 0
    original_size: int = 0
    parameters: int = 0
    floor: int = 0
    latency: Latency | None = None
    validation: Quality | None = None
    test: Quality | None = None
    agreement: Agreement | None = None
    alone: float | None = None
    counts: dict[str, float] = field(default_factory=dict)
    curve: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    seconds: float = 0.0
    peak_mb: float = 0.0
    held_mb: float = 0.0
    run_id: str = ""
    control: str = ""

    @property
    def measured(self) -> bool:
        return self.status is Status.MEASURED

    @property
    def ratio(self) -> float:
        """How many times smaller than the parent."""
        return self.original_size / self.size if self.size else 0.0

    def misses(self, wanted: Constraints) -> dict[str, float]:
        """What it does not keep to, and by what factor (above 1; infinite for what was never measured); {}: it meets
        all. The upper bound of the loss on validation rows decides.
        """
        if not self.measured or self.validation is None or self.latency is None:
            return {"measured": float("inf")}
        found = {}
        if wanted.size is not None and self.size > wanted.size:
            found["size"] = self.size / wanted.size
        if wanted.latency_ms is not None and self.latency.p99 > wanted.latency_ms:
            found["latency"] = self.latency.p99 / wanted.latency_ms
        if not self.validation.loss_high <= wanted.loss:
            found["loss"] = self.validation.loss_high / wanted.loss if wanted.loss else float("inf")
        return found

    def to_json(self) -> dict[str, Any]:
        """In JSON's own types."""
        return asdict(self)

    @staticmethod
    def from_json(said: dict[str, Any]) -> "Candidate":
        """What `to_json` gave."""
        known = dict(said)
        parts = {"latency": Latency, "validation": Quality, "test": Quality, "agreement": Agreement}
        for name, kind in parts.items():
            known[name] = None if known[name] is None else kind(**known[name])
        known["status"] = Status(known["status"])
        known["curve"] = {
            name: [(step, value) for step, value in points] for name, points in known["curve"].items()
        }
        return Candidate(**known)
