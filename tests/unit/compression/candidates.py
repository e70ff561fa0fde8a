"""Candidates with given figures, for what reads them."""

from typing import Any

from loopwright.compression.candidate import Agreement, Candidate, Latency, Quality, Status


def measured(
    name: str, *, size: int = 1_000_000, p50: float = 1.0, original_p50: float = 8.0, loss: float = 0.0,
    half: float = 0.002, rows: int = 500, **rest: Any,
) -> Candidate:  # fmt: skip
    return Candidate(
        name, name, [], Status.MEASURED, size=size, original_size=4_000_000, parameters=1_000_000,
        latency=Latency(p50, p50 * 1.5, original_p50, original_p50 * 1.5, original_p50 / p50, 1, 1, 100),
        validation=Quality("accuracy", 0.9 * (1 - loss), 0.9, loss, loss - half, loss + half, 0.95, rows),
        agreement=Agreement(0.97, 0.995, None, 0.3), **rest,
    )  # fmt: skip


def skipped(name: str, why: str = "it is too large") -> Candidate:
    return Candidate(name, name, [], Status.SKIPPED, why, original_size=4_000_000)
