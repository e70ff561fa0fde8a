"""What a smaller model has to keep to."""

import re
from dataclasses import dataclass
from typing import Any

from loopwright.kernel.errors import BadInput
from loopwright.kernel.sizes import parse_size


@dataclass(frozen=True, slots=True)
class Constraints:
    """`size`: bytes on disk; `latency_ms`: of the 99th percentile; `loss`: share of the parent's metric; None: any.

    `loss` is relative: 0.01 of an accuracy of 0.90 is 0.009; of an RMSE of 12 it is 0.12.
    """

    size: int | None = None
    latency_ms: float | None = None
    loss: float = 0.01

    def __post_init__(self) -> None:
        for name, value in (("target size", self.size), ("latency", self.latency_ms)):
            if value is not None and not value > 0:
                raise BadInput(f"the {name} has to be above 0", where="compression", got=value)
        if not 0 <= self.loss < 1:
            raise BadInput(
                "the loss has to be a share", where="compression", got=self.loss, wanted="0% to under 100%"
            )

    @staticmethod
    def parse(size: str | None, latency: str | None, loss: str) -> "Constraints":
        """From text as people write it: "10MB", "5ms" (or "0.5s"), "1%"; raises BadInput."""
        return Constraints(
            parse_size(size, "--target-size") if size else None,
            parse_latency(latency) if latency else None,
            parse_share(loss),
        )

    def to_json(self) -> dict[str, Any]:
        return {"size": self.size, "latency_ms": self.latency_ms, "loss": self.loss}


def parse_latency(text: str, where: str = "--max-latency") -> float:
    """Milliseconds that `text` names: 5ms, 0.5s, 800us. Raises BadInput."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*(us|µs|ms|s)", text.strip())
    if found is None:
        raise BadInput(
            "not a time", where=where, got=text[:40], wanted="a number and a unit, such as 5ms or 0.5s"
        )
    return float(found[1]) * {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]


def parse_share(text: str, where: str = "--max-loss") -> float:
    """The share that `text` names: 1% is 0.01. Raises BadInput."""
    found = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)\s*%", text.strip())
    if found is None:
        raise BadInput("not a percentage", where=where, got=text[:40], wanted="a percentage, such as 1%")
    return float(found[1]) / 100
