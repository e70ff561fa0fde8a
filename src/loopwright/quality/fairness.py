"""The gap between groups of people or things a model treats differently."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopwright.kernel.errors import BadInput, did_you_mean
from loopwright.kernel.verdict import Verdict
from loopwright.project.sections import Fairness
from loopwright.quality.behaviour import Columns
from loopwright.quality.report import GateResult

Floats = NDArray[np.float64]

MIN_GROUP = 100
"""Groups with fewer rows under the rate are named and left out: their rate is mostly noise."""

_RATES = {
    "equal_opportunity": "share of real positives that are found",
    "demographic_parity": "share that is predicted positive",
    "predictive_equality": "share of real negatives that are predicted positive",
}


def fairness_gap(
    asked: Fairness, task: str, inputs: Columns, labels: Floats, predicted: Floats
) -> GateResult:
    """Largest difference of a rate between groups of the input `asked.attribute`; positive means probability
    >= 0.5.

    equal_opportunity compares true positive rates, predictive_equality false positive rates,
    demographic_parity rates of positive predictions (Hardt, Price & Srebro 2016). Fewer than two groups of
    100 rows are INCONCLUSIVE, not a pass.
    Raises BadInput for an unknown metric or attribute, or a task that is not binary.
    """
    if task != "binary":
        raise BadInput("this fairness gate is for binary models", where="gates.fairness", got=task)
    if asked.metric not in _RATES:
        raise BadInput("unknown fairness metric", where="gates.fairness.metric", got=asked.metric,
                       wanted=", ".join(_RATES), next=did_you_mean(asked.metric, _RATES))  # fmt: skip
    if asked.attribute not in inputs:
        raise BadInput("the model has no such input", where="gates.fairness.attribute", got=asked.attribute,
                       next=did_you_mean(asked.attribute, inputs))  # fmt: skip
    counted = _counted(asked.metric, labels)
    positive = predicted[:, 0] >= 0.5
    rates: dict[str, float] = {}
    small: list[str] = []
    for group, members in _groups(inputs[asked.attribute]):
        rows = members & counted
        if rows.sum() < MIN_GROUP:
            small.append(group)
        else:
            rates[group] = float(positive[rows].mean())
    name, limit = f"fairness: {asked.metric} over {asked.attribute}", f"<= {asked.max_gap:g}"
    left_out = f"; left out with fewer than {MIN_GROUP} rows: {', '.join(small)}" if small else ""
    if len(rates) < 2:
        detail = f"fewer than two groups with {MIN_GROUP} rows{left_out}"
        return GateResult(name, "fairness", Verdict.INCONCLUSIVE, None, limit, detail)
    lowest, highest = min(rates, key=lambda g: rates[g]), max(rates, key=lambda g: rates[g])
    gap = rates[highest] - rates[lowest]
    detail = (
        f"{_RATES[asked.metric]}: {highest} {rates[highest]:.3f}, {lowest} {rates[lowest]:.3f}, "
        f"{len(rates)} groups{left_out}"
    )
    return GateResult(
        name, "fairness", Verdict.PASS if gap <= asked.max_gap else Verdict.FAIL, gap, limit, detail
    )


def _counted(metric: str, labels: Floats) -> NDArray[np.bool_]:
    if metric == "equal_opportunity":
        return np.asarray(labels > 0.5)
    if metric == "predictive_equality":
        return np.asarray(labels <= 0.5)
    return np.ones(len(labels), dtype=bool)


def _groups(values: NDArray[Any]) -> list[tuple[str, NDArray[np.bool_]]]:
    texts = np.array(["(missing)" if v is None or v != v else str(v) for v in values], dtype=object)
    return [(group, np.asarray(texts == group)) for group in sorted(set(texts))]
