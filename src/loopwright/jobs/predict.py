"""Answers checked rows with one version: whole batches where that works, halves of them where a row breaks it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loopwright.jobs.rows import Checked
from loopwright.kernel.errors import Unavailable
from loopwright.serving.models import Served

HELD = 2048
"""Rows predicted at once."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """`outputs`: one row of numbers per row, NaN where `errors` (by position) says why there is none."""

    outputs: NDArray[np.float64]
    errors: dict[int, str]


def predict(served: Served, batch: Checked, alive: Callable[[], None], *, whole: bool) -> Predicted:
    """Answer every row of `batch` that has no problem. `alive` is called between predictions and may raise.

    whole: an error is of use only as the first one: stop there. Raises Unavailable when it is not the rows' fault.
    """
    outputs = np.full((batch.n, len(served.schema.outputs)), np.nan)
    errors: dict[int, str] = {}
    answerable = [position for position in range(batch.n) if position not in batch.problems]
    for start in range(0, len(answerable), HELD):
        alive()
        _fill(served, batch, answerable[start : start + HELD], outputs, errors, alive, whole)
        if whole and errors:
            break
    return Predicted(outputs, errors)


def _fill(
    served: Served, batch: Checked, positions: Sequence[int], outputs: NDArray[np.float64],
    errors: dict[int, str], alive: Callable[[], None], whole: bool,
) -> None:  # fmt: skip
    try:
        found = served.loaded.predict_columns(batch.of(positions))
    except Unavailable:
        raise
    except Exception as error:  # noqa: BLE001 - a transform is the project's: anything may come out of it
        if len(positions) == 1:
            errors[positions[0]] = f"{type(error).__name__}: {error}"[:500]
            return
        alive()
        middle = len(positions) // 2
        _fill(served, batch, positions[:middle], outputs, errors, alive, whole)
        if not (whole and errors):
            _fill(served, batch, positions[middle:], outputs, errors, alive, whole)
        return
    outputs[np.asarray(positions, dtype=np.intp)] = found
    for place in np.flatnonzero(~np.isfinite(found).all(axis=1)).tolist():
        errors[positions[place]] = f"the output is not finite: {found[place].tolist()}"[:500]
        outputs[positions[place]] = np.nan
