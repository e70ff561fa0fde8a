"""What requests brought: logged inputs as columns, one row per request."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from loopwright.bundle.signature import Field
from loopwright.data import duck
from loopwright.kernel.clock import to_us
from loopwright.kernel.errors import BadInput
from loopwright.monitoring.log import PredictionLog

Array = NDArray[Any]

_READ = """
WITH spanned AS (
    SELECT id, unit, epoch_us(event_time) AS moment, epoch_us("at") AS answered, version, inputs, status,
        -- A kept or default answer is none of the version's.
        CASE WHEN arm IN ('cache', 'default') THEN [] ELSE outputs END AS outputs,
        -- Of several answers the first counts, and of those at one moment the one that was an answer.
        row_number() OVER (
            PARTITION BY id ORDER BY "at", arm IN ('cache', 'default'), status = 'error', version, arm
        ) AS place
    FROM read_parquet($files, hive_partitioning = false)
    WHERE epoch_us(event_time) >= $start AND epoch_us(event_time) < $end AND arm <> 'shadow'
        AND ($version IS NULL OR version = $version)
)
SELECT id, unit, moment, version, inputs, outputs, count(*) OVER () AS requests FROM spanned WHERE place = 1
-- A sample that is the same whenever it is drawn from the same requests.
ORDER BY md5(id), id
LIMIT $limit
"""


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests of a span of event time, in event-time order.

    total: how many there were; the columns hold a sample of them where that was asked for. inputs: name → array of
    shape (rows,), numbers as float64 with NaN for null, texts as objects with None. event_times: datetime64[us], UTC.
    outputs: one list per row, empty where the version gave no answer.
    """

    total: int
    ids: list[str]
    units: list[str]
    event_times: Array
    versions: list[int]
    inputs: dict[str, Array]
    outputs: list[list[float]]

    def __len__(self) -> int:
        return len(self.ids)


def logged_requests(
    log: PredictionLog,
    model: str,
    fields: Sequence[Field],
    *,
    start: datetime,
    end: datetime,
    version: int | None = None,
    limit: int = 1_000_000,
) -> Requests:
    """Requests with event time in [start, end) that `version` (None: any) answered or failed to; never shadow copies.

    `fields`: the inputs of the bundle, in logged order. Of more than `limit` requests a fixed sample is taken. Raises
    BadInput when rows hold another number of inputs: name the version then.
    """
    files = [str(file) for file in log.files(model, start, end)]
    if not files:
        return Requests(0, [], [], np.empty(0, "datetime64[us]"), [], _columns([], fields), [])
    asked = {"files": files, "start": to_us(start), "end": to_us(end), "version": version, "limit": limit}
    with duck.connect() as engine:
        engine.execute("SET threads = 1")  # it may run beside serving, on the same cores
        found = engine.execute(_READ, asked).fetchall()
    found.sort(key=lambda row: (row[2], row[0]))
    rows = [msgspec.json.decode(row[4], type=list[Any]) for row in found]
    if odd := next((row for row in rows if len(row) != len(fields)), None):
        raise BadInput(
            "requests with other inputs than the version's", where=f"predictions of {model}",
            got=f"{len(odd)} inputs", wanted=str(len(fields)), next="Name the version: its requests are all alike.",
        )  # fmt: skip
    return Requests(
        total=int(found[0][6]) if found else 0,
        ids=[row[0] for row in found],
        units=[row[1] for row in found],
        event_times=np.array([row[2] for row in found], dtype="datetime64[us]"),
        versions=[int(row[3]) for row in found],
        inputs=_columns(rows, fields),
        outputs=[list(row[5] or ()) for row in found],
    )


def _columns(rows: list[list[Any]], fields: Sequence[Field]) -> dict[str, Array]:
    columns: dict[str, Array] = {}
    for place, field in enumerate(fields):
        values = [row[place] for row in rows]
        if field.dtype == "string":
            columns[field.name] = np.array([*values, None], dtype=object)[:-1]
        else:
            columns[field.name] = np.array([np.nan if v is None else float(v) for v in values], np.float64)
    return columns
