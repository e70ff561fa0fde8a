"""The label log, and quality once labels have come: predictions joined to what really happened, by id.

    root/<model>/month=2013-04/<batch>.parquet      by the month in which a label became available

A label may come late, and may be corrected: the newest available one counts (of two at one moment, the one
whose batch name sorts last). Of several answers to one id the first counts, because that is what somebody
acted on.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from loopwright.data import duck
from loopwright.kernel.clock import to_us
from loopwright.kernel.errors import BadInput
from loopwright.kernel.files import write_atomic
from loopwright.monitoring.log import PredictionLog, plain_name

_MOMENT = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [("id", pa.string()), ("label", pa.float64()), ("available_at", _MOMENT), ("batch", pa.string())]
)


@dataclass(frozen=True, slots=True)
class LabelLog:
    """Outcomes under one folder: 0/1, a class index or a number, by prediction id."""

    root: Path

    def append(
        self,
        model: str,
        name: str,
        ids: Sequence[str],
        labels: Sequence[float | None] | NDArray[np.float64],
        available_at: Sequence[datetime],
    ) -> Path:
        """Add the batch `name` of labels, each with the moment it became available; returns the model's
        folder.

        Appending a batch again under the same name writes it over. A label that is None or NaN never came (a
        cancelled flight) and is left out. Raises BadInput when the lengths differ or an id is empty.
        """
        if not len(ids) == len(labels) == len(available_at):
            raise BadInput(
                "labels and ids do not pair up",
                where=f"labels of {model}",
                got=f"{len(ids)} ids, {len(labels)} labels, {len(available_at)} times",
            )
        if not all(isinstance(each, str) and each for each in ids):
            raise BadInput(
                "a label without an id", where=f"labels of {model}", wanted="the id of a prediction"
            )
        values = np.array([np.nan if label is None else label for label in labels], dtype=np.float64)
        known = np.flatnonzero(~np.isnan(values))
        times = np.array([to_us(moment) for moment in available_at], dtype=np.int64)
        folder = self.root / plain_name(model)
        months = times.astype("datetime64[us]").astype("datetime64[M]")
        for month in np.unique(months[known]):
            rows = known[months[known] == month]
            table = pa.Table.from_arrays(
                [
                    pa.array([ids[i] for i in rows], pa.string()),
                    # Lists: pyarrow imports pandas, for seconds and 60 MB, to look at an array.
                    pa.array(values[rows].tolist(), pa.float64()),
                    pa.array(times[rows].tolist(), _MOMENT),
                    pa.array([name] * len(rows), pa.string()),
                ],
                schema=SCHEMA,
            )
            buffer = io.BytesIO()
            pq.write_table(table, buffer, compression="zstd")
            write_atomic(folder / f"month={month}" / f"{plain_name(name)}.parquet", buffer.getvalue())
        return folder

    def files(self, model: str, since: datetime, until: datetime) -> list[Path]:
        """The files that hold labels available in [since, until]."""
        first, last = (moment.astimezone(UTC).strftime("month=%Y-%m") for moment in (since, until))
        folder = self.root / plain_name(model)
        months = folder.glob("month=*") if folder.is_dir() else []
        return sorted(file for m in months if first <= m.name <= last for file in m.glob("[!.]*.parquet"))

    def count(self, model: str, since: datetime, until: datetime) -> int:
        """How many distinct ids got a label in (since, until]."""
        files = self.files(model, since, until)
        if not files:
            return 0
        return int(
            _arrow(
                "SELECT count(DISTINCT id) AS n FROM read_parquet($labels, hive_partitioning = false) "
                "WHERE epoch_us(available_at) > $since AND epoch_us(available_at) <= $until",
                {"labels": _paths(files), "since": to_us(since), "until": to_us(until)},
            )["n"][0].as_py()
        )


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Predictions of a span of event time beside their labels, where known: y (n,), p (n, outputs).

    `answered` counts the distinct ids that were answered, labelled or not.
    """

    answered: int
    y: NDArray[np.float64]
    p: NDArray[np.float64]

    @property
    def labelled(self) -> int:
        return len(self.y)

    @property
    def coverage(self) -> float:
        """The labelled share of what was answered; 0 when nothing was."""
        return self.labelled / self.answered if self.answered else 0.0


_ANSWERED = """
answered AS (
    SELECT id, arg_min(outputs, row("at", event_time)) AS outputs
    FROM read_parquet($predictions, hive_partitioning = false)
    WHERE status <> 'error' AND len(outputs) > 0
      AND epoch_us(event_time) >= $start AND epoch_us(event_time) < $end
      AND ($version IS NULL OR version = $version)
      AND CASE WHEN $arm IS NULL THEN arm NOT IN ('shadow', 'cache', 'default') ELSE arm = $arm END
    GROUP BY id
)"""

_OUTCOMES = f"""
WITH {_ANSWERED},
known AS (
    SELECT id, arg_max(label, row(available_at, batch)) AS label
    FROM read_parquet($labels, hive_partitioning = false)
    WHERE epoch_us(available_at) <= $until
    GROUP BY id
)
SELECT label, outputs FROM answered LEFT JOIN known USING (id)
ORDER BY id
"""


def outcomes(
    log: PredictionLog,
    labels: LabelLog,
    *,
    model: str,
    start: datetime,
    end: datetime,
    until: datetime,
    version: int | None = None,
    arm: str | None = None,
) -> Outcomes:
    """Join answers with event time in [start, end) to the labels available by `until`.

    version None: whichever version answered. arm None: everything but shadow traffic, which nobody saw, and
    kept or default answers, which no model gave.
    """
    predictions = log.files(model, start, end)
    if not predictions:
        return Outcomes(0, np.empty(0), np.empty((0, 1)))
    span = {
        "predictions": _paths(predictions),
        "start": to_us(start),
        "end": to_us(end),
        "version": version,
        "arm": arm,
    }
    known = labels.files(model, start, until)
    if not known:
        rows = _arrow(f"WITH {_ANSWERED} SELECT count(*) AS n FROM answered", span)
        return Outcomes(int(rows["n"][0].as_py()), np.empty(0), np.empty((0, 1)))
    joined = _arrow(_OUTCOMES, {**span, "labels": _paths(known), "until": to_us(until)})
    y = np.asarray(joined["label"].combine_chunks().to_numpy(zero_copy_only=False), dtype=np.float64)
    outputs = joined["outputs"].combine_chunks()
    values = np.asarray(outputs.flatten().to_numpy(zero_copy_only=False), dtype=np.float64)
    width = len(values) // len(y) if len(y) else 1
    if width * len(y) != len(values):
        raise BadInput(
            "answers of different widths in one span",
            where=f"predictions of {model}",
            next="Name the version: its answers all have one shape.",
        )
    has = ~np.isnan(y)
    return Outcomes(len(y), y[has], values.reshape(len(y), width)[has])


def _arrow(query: str, parameters: dict[str, Any]) -> pa.Table:
    with duck.connect() as connection:
        # One thread: this runs beside serving, on the same cores.
        connection.execute("SET threads = 1")
        return connection.sql(query, params=parameters).to_arrow_table()


def _paths(files: Sequence[Path]) -> list[str]:
    return [str(file) for file in files]
