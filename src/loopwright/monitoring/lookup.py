"""Finds one prediction in the log by its id, without knowing the day."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from loopwright.data import duck
from loopwright.kernel.clock import from_us
from loopwright.monitoring.log import PredictionLog, plain_name

_FIND = """
SELECT id, unit, epoch_us(event_time), epoch_us("at"), version, arm, status, error, inputs, outputs
FROM read_parquet($files, hive_partitioning = false)
WHERE id = $id
ORDER BY "at", version, arm
"""
_COVERS = """
SELECT count(*), epoch_us(min(event_time)), epoch_us(max(event_time))
FROM read_parquet($files, hive_partitioning = false)
"""


@dataclass(frozen=True, slots=True)
class Logged:
    """One answer of one version to one row, as it was logged; `inputs` in the order of the bundle's schema."""

    id: str
    unit: str
    event_time: datetime
    at: datetime
    version: int
    arm: str
    status: str
    error: str
    inputs: list[Any]
    outputs: list[float]


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a model's log holds; without rows there are no times."""

    rows: int
    first: datetime | None
    last: datetime | None


def find_answers(root: Path, model: str, id: str) -> list[Logged]:
    """Every logged answer to the request row `id`, oldest first: a canary's failure and stable's answer are two."""
    files = _files(root, model)
    if not files:
        return []
    with duck.connect() as engine:
        rows = engine.execute(_FIND, {"files": files, "id": id}).fetchall()
    found = {}
    for id_, unit, event_time, at, version, arm, status, error, inputs, outputs in rows:
        # A crash while a day was merged leaves a row twice for a while.
        found[version, arm] = Logged(
            id_, unit, from_us(event_time), from_us(at), version, arm, status, error, msgspec.json.decode(inputs),
            list(outputs),
        )  # fmt: skip
    return list(found.values())


def coverage(root: Path, model: str) -> Coverage:
    """How much of the model's traffic is in the log."""
    files = _files(root, model)
    if not files:
        return Coverage(0, None, None)
    with duck.connect() as engine:
        rows, first, last = engine.execute(_COVERS, {"files": files}).fetchall()[0]
    return Coverage(
        int(rows), None if first is None else from_us(first), None if last is None else from_us(last)
    )


def _files(root: Path, model: str) -> list[str]:
    folder = PredictionLog(root).root / plain_name(model)
    return [str(file) for file in sorted(folder.glob("day=*/[!.]*.parquet"))]
