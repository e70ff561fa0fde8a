"""Compares the answers of stable and shadow to the same requests: figures for people, not a verdict."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopwright.kernel.errors import BadInput

Floats = NDArray[np.float64]


def agreement(stable: Floats, shadow: Floats, *, task: str) -> dict[str, Any]:
    """Figures over paired answers of shape (n, outputs), row i of both to the same request.

    pairs, mean_difference (shadow - stable), mean_absolute_difference, p99_absolute_difference, over the
    first output (multiclass: over all outputs); `correlation` (None when an arm is constant); and
    `same_decision`, the share of rows on which both decide alike: same side of 0.5 (binary), same largest
    class (multiclass), within 1 % of stable's spread (regression). Rows with a NaN on either side count as
    `unanswered` and nothing else.
    """
    stable, shadow = np.atleast_2d(stable.T).T, np.atleast_2d(shadow.T).T
    if stable.shape != shadow.shape:
        raise BadInput(
            "answers are not paired", got=f"{stable.shape} and {shadow.shape}", wanted="equal shapes"
        )
    answered = ~(np.isnan(stable).any(axis=1) | np.isnan(shadow).any(axis=1))
    unanswered = int((~answered).sum())
    stable, shadow = stable[answered], shadow[answered]
    if not len(stable):
        return {"pairs": 0, "unanswered": unanswered}
    if task != "multiclass":
        stable, shadow = stable[:, :1], shadow[:, :1]
    difference = shadow - stable
    return {
        "pairs": len(stable),
        "unanswered": unanswered,
        "mean_difference": float(difference.mean()),
        "mean_absolute_difference": float(np.abs(difference).mean()),
        "p99_absolute_difference": float(np.quantile(np.abs(difference), 0.99)),
        "correlation": _correlation(stable.ravel(), shadow.ravel()),
        "same_decision": float(_alike(stable, shadow, task).mean()),
    }


def _alike(stable: Floats, shadow: Floats, task: str) -> NDArray[np.bool_]:
    if task == "binary":
        return np.asarray((stable[:, 0] >= 0.5) == (shadow[:, 0] >= 0.5))
    if task == "multiclass":
        return np.asarray(stable.argmax(axis=1) == shadow.argmax(axis=1))
    spread = float(stable.max() - stable.min())
    return np.asarray(np.abs(shadow[:, 0] - stable[:, 0]) <= 0.01 * spread)


def _correlation(a: Floats, b: Floats) -> float | None:
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])
