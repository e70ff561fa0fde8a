"""Reads stable's and shadow's answers to the same requests from the prediction log."""

from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loopwright.data.duck import connect
from loopwright.kernel.clock import to_us
from loopwright.monitoring.log import PredictionLog

Floats = NDArray[np.float64]

_PAIRS = """
WITH answered AS (
    SELECT id, arm, arg_min(outputs, "at") AS outputs
    FROM read_parquet($files, hive_partitioning = false)
    WHERE status <> 'error' AND len(outputs) > 0 AND epoch_us(event_time) BETWEEN $since AND $until
      AND ((arm = 'shadow' AND version = $candidate) OR (arm = 'stable' AND version = $baseline))
    GROUP BY id, arm
)
SELECT stable.outputs AS stable, shadow.outputs AS shadow
FROM answered AS stable JOIN answered AS shadow USING (id)
WHERE stable.arm = 'stable' AND shadow.arm = 'shadow' AND len(stable.outputs) = len(shadow.outputs)
"""


def paired_answers(
    root: Path, model: str, baseline: int, candidate: int, since: datetime, until: datetime
) -> tuple[Floats, Floats]:
    """Return (stable, shadow), each of shape (pairs, outputs): row i of both answers the same request."""
    files = PredictionLog(root).files(model, since, until)
    if not files:
        return np.empty((0, 1)), np.empty((0, 1))
    values = {
        "files": [str(file) for file in files], "since": to_us(since), "until": to_us(until),
        "candidate": candidate, "baseline": baseline,
    }  # fmt: skip
    with connect() as engine:
        engine.execute("SET threads = 1")  # beside serving, on the same cores
        rows = engine.execute(_PAIRS, values).fetchall()
    if not rows:
        return np.empty((0, 1)), np.empty((0, 1))
    return np.array([row[0] for row in rows], dtype=np.float64), np.array(
        [row[1] for row in rows], dtype=np.float64
    )
