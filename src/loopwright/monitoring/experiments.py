"""What an experiment shows, unit by unit: who was assigned what, and what came of it by the labels known so far.

A unit counts for the arm that its hash assigns it to, whichever arm answered in the end (intention to treat): a forced
arm or a fallback must not decide which units are compared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopwright.data import duck
from loopwright.kernel.clock import to_us
from loopwright.monitoring.labels import LabelLog
from loopwright.monitoring.log import PredictionLog
from loopwright.stats.special import chi2_survival

RATIO_ALPHA = 0.001
"""A sample ratio this unlikely is a broken split or a lost log, not chance."""

_UNITS = """
WITH answered AS (
    SELECT id, any_value(unit) AS unit, list(DISTINCT arm) FILTER (status = 'ok') AS arms,
        arg_min(outputs, row("at", event_time)) FILTER (status <> 'error' AND len(outputs) > 0) AS outputs
    FROM read_parquet($predictions, hive_partitioning = false)
    WHERE epoch_us(event_time) >= $start AND epoch_us(event_time) < $end AND list_contains($arms, arm)
    GROUP BY id
), known AS ({known})
SELECT unit, list(arms) AS arms, count(label) AS labelled, avg(label) AS label, avg(outputs[1]) AS output
FROM answered LEFT JOIN known USING (id)
GROUP BY unit
"""
_KNOWN = """
    SELECT id, arg_max(label, row(available_at, batch)) AS label
    FROM read_parquet($labels, hive_partitioning = false)
    WHERE epoch_us(available_at) <= $until GROUP BY id
"""
_NONE_KNOWN = "SELECT CAST(NULL AS VARCHAR) AS id, CAST(NULL AS DOUBLE) AS label WHERE false"


@dataclass(frozen=True, slots=True)
class Mean:
    """Of units: how many, the mean of their means, and its sample variance."""

    n: int
    value: float
    variance: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> "Mean":
        """NaN values do not count. In [0, 1] the variance is never below what one unit of another kind would make."""
        known = values[~np.isnan(values)]
        n = len(known)
        if n == 0:
            return cls(0, float("nan"), float("nan"))
        variance = float(known.var(ddof=1)) if n > 1 else 0.0
        if known.min() >= 0 and known.max() <= 1:
            once = 1 / (n + 2)
            variance = max(variance, once * (1 - once))
        return cls(n, float(known.mean()), variance)


@dataclass(frozen=True, slots=True)
class ArmUnits:
    """One arm's units. crossed: units answered by an arm that was not theirs: forced, or between two route tables."""

    units: int
    crossed: int
    label: Mean
    output: Mean


def units_by_arm(
    log: PredictionLog,
    labels: LabelLog,
    *,
    model: str,
    arms: tuple[str, ...],
    assigned: Callable[[str], str],
    start: datetime,
    end: datetime,
    until: datetime,
) -> dict[str, ArmUnits]:
    """Units with an event time in [start, end), by the arm that `assigned` says, with labels available by `until`."""
    predictions = log.files(model, start, end)
    groups: dict[str, list[tuple[bool, float, float]]] = {arm: [] for arm in arms}
    if predictions:
        known = labels.files(model, start, until)
        parameters: dict[str, Any] = {
            "predictions": [str(file) for file in predictions],
            "start": to_us(start), "end": to_us(end), "arms": [*arms, "cache", "default"],
            **({"labels": [str(file) for file in known], "until": to_us(until)} if known else {}),
        }  # fmt: skip
        with duck.connect() as connection:
            connection.execute("SET threads = 1")  # this runs beside serving, on the same cores
            query = _UNITS.format(known=_KNOWN if known else _NONE_KNOWN)
            for unit, answered, _, label, output in connection.execute(query, parameters).fetchall():
                arm = assigned(unit)
                others = {name for names in answered if names for name in names} - {arm, "cache", "default"}
                if arm in groups:
                    groups[arm].append((bool(others), _number(label), _number(output)))
    out = {}
    for arm, members in groups.items():
        columns = np.array(members, dtype=np.float64).reshape(-1, 3)
        out[arm] = ArmUnits(
            len(members), int(columns[:, 0].sum()), Mean.of(columns[:, 1]), Mean.of(columns[:, 2])
        )
    return out


def sample_ratio(units: Mapping[str, int], weights: Mapping[str, float]) -> float | None:
    """The p-value of "units came as the weights say" (Pearson's chi-square); None without units.

    Units where none can come make it 0.
    """
    total = sum(units.values())
    if not total:
        return None
    whole = sum(weights.values())
    expected = {arm: total * weight / whole for arm, weight in weights.items() if weight > 0}
    if any(count for arm, count in units.items() if arm not in expected):
        return 0.0
    if len(expected) < 2:
        return 1.0
    statistic = sum((units.get(arm, 0) - wanted) ** 2 / wanted for arm, wanted in expected.items())
    return chi2_survival(statistic, len(expected) - 1)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
