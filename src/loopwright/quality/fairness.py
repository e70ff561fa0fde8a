"""Whether a model serves groups alike: figures per group, tests against the rest, and one verdict on the gap.

The figures are fairlearn's `MetricFrame`; intervals, tests and the correction are `stats.proportions`. A group counts
for a metric when the metric's own denominator (real positives for a true positive rate, say) has `min_group` rows;
smaller groups are named and neither tested nor judged. Every group is tested against all other rows, and the p-values
of one metric are adjusted together (Holm 1979).

The verdict is on the gap: the largest difference of the asked metric between any two groups that count.

- FAIL: the gap is surely beyond `max_gap`: its lower bound is, held for all pairs of groups at once.
- INCONCLUSIVE: it is beyond, but may be noise; or the rows could not tell a gap of `max_gap` from none; or fewer than
  two groups count.
- PASS: it is within.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopwright.kernel.errors import BadInput, did_you_mean
from loopwright.kernel.verdict import Verdict
from loopwright.project.sections import Fairness
from loopwright.quality.behaviour import Columns
from loopwright.quality.fairness_report import AttributeFigures, FairnessReport, GroupFigure, MetricFigures
from loopwright.quality.report import GateResult
from loopwright.stats import proportions
from loopwright.stats.metrics import roc_auc
from loopwright.stats.proportions import Estimate

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

MOST_VALUES = 20
"""A number with more distinct values is cut at its quartiles: nobody means a group per year of age."""

_OTHERS = "\0others"  # sorts first and is no text of a request

_BINARY_NAMES = {
    "demographic_parity": ("selection_rate",),
    "equal_opportunity": ("true_positive_rate",),
    "predictive_equality": ("false_positive_rate",),
    "predictive_parity": ("precision",),
    "equalized_odds": ("true_positive_rate", "false_positive_rate"),
}
"""The field's names for "this rate is alike in all groups" (Hardt, Price & Srebro 2016; Chouldechova 2017)."""


@dataclass(frozen=True, slots=True)
class GroupMetric:
    """A metric by group. `values` (n,) are averaged over the rows of `counted`; an AUC ranks `scores` instead."""

    name: str
    sentence: str
    figure: Callable[[Any, Any], float]
    counted: Mask
    values: Floats
    is_rate: bool = True
    scores: Floats | None = None


def fairness_report(
    asked: Fairness,
    task: str,
    inputs: Columns,
    labels: Floats,
    predicted: Floats,
    *,
    model: str,
    bundle: str,
    classes: tuple[str, ...] = (),
    now: datetime,
) -> FairnessReport:
    """Measure `predicted` (n, outputs) against `labels` (n,) by every attribute of `asked`, and judge the gap.

    Binary models are positive at a probability of at least 0.5, multiclass models say their likeliest class.
    Raises BadInput for an unknown metric or attribute.
    """
    metrics = metrics_of(task, labels, predicted, classes)
    judged = judged_names(asked, task, metrics)
    answers = predicted.argmax(axis=1).astype(np.float64) if task == "multiclass" else predicted[:, 0]
    found = []
    for attribute in asked.attribute:
        if attribute not in inputs:
            raise BadInput("the model has no such input", where="gates.fairness.attribute", got=attribute,
                           next=did_you_mean(attribute, inputs))  # fmt: skip
        names, place = np.unique(group_names(np.asarray(inputs[attribute])).astype(str), return_inverse=True)
        tables = tuple(_table(metric, names, place, labels, answers, asked) for metric in metrics)
        verdict, why = _verdict(asked, [table for table in tables if table.metric in judged])
        found.append(AttributeFigures(attribute, verdict, why, tables))
    return FairnessReport(
        model=model, bundle=bundle, task=task, rows=len(labels), metric=asked.metric or "", judged=judged,
        max_gap=asked.max_gap or 0.0, min_group=asked.min_group, confidence=asked.confidence, at=now,
        attributes=tuple(found), not_applicable=asked.not_applicable,
    )  # fmt: skip


def gate_results(report: FairnessReport) -> list[GateResult]:
    """One gate per attribute; a stated reason why fairness is not applicable is one gate that passes."""
    if report.not_applicable is not None:
        detail = f"not applicable: {report.not_applicable}"
        return [GateResult("fairness", "fairness", Verdict.PASS, None, "", detail)]
    limit = f"<= {report.max_gap:g}"
    return [
        GateResult(f"fairness: {report.metric} over {one.attribute}", "fairness", one.verdict,
                   one.gap(report.judged), limit, one.why)
        for one in report.attributes
    ]  # fmt: skip


def group_names(values: NDArray[Any]) -> NDArray[Any]:
    """The group of each row, as text: the value, "(missing)" for null, a quartile for a number of many values."""
    missing = np.array([value is None or value != value for value in values], dtype=bool)
    names = np.full(len(values), "(missing)", dtype=object)
    known = values[~missing]
    if known.dtype.kind == "f" and len(np.unique(known)) > MOST_VALUES:
        edges = np.unique(np.quantile(known, [0.25, 0.5, 0.75]))
        ends = [f"{edge:.6g}" for edge in edges]
        between = [f"({low}, {high}]" for low, high in pairwise(ends)]
        texts = np.array([f"<= {ends[0]}", *between, f"> {ends[-1]}"], dtype=object)
        names[~missing] = texts[np.searchsorted(edges, known, side="left")]
    else:
        names[~missing] = [
            f"{value:g}" if isinstance(value, float) else str(value) for value in known.tolist()
        ]
    return names


def metrics_of(task: str, labels: Floats, predicted: Floats, classes: tuple[str, ...]) -> list[GroupMetric]:
    from fairlearn import metrics as fair  # pandas and scikit-learn come with it
    from sklearn.metrics import accuracy_score, precision_score

    everyone = np.ones(len(labels), dtype=bool)
    if task == "regression":
        errors = predicted[:, 0] - labels
        return [
            GroupMetric("mean_error", "mean of prediction minus truth", lambda y, p: float(np.mean(p - y)),
                    everyone, errors, is_rate=False),
            GroupMetric("mae", "mean distance of prediction and truth", lambda y, p: float(np.mean(np.abs(p - y))),
                    everyone, np.abs(errors), is_rate=False),
        ]  # fmt: skip
    if task == "multiclass":
        said = predicted.argmax(axis=1).astype(np.float64)
        rates = [
            GroupMetric(f"selection_rate: {classes[k] if k < len(classes) else k}", "share that gets this class",
                        _said(k), everyone, (said == k).astype(np.float64))
            for k in range(predicted.shape[1])
        ]  # fmt: skip
        right = GroupMetric("accuracy", "share of right answers", accuracy_score, everyone,
                            (said == labels).astype(np.float64))  # fmt: skip
        return [right, *rates]
    scores = predicted[:, 0]
    truth, said = labels > 0.5, scores >= 0.5
    positive = said.astype(np.float64)
    return [
        GroupMetric("selection_rate", "share that is predicted positive", _at_half(fair.selection_rate),
                everyone, positive),
        GroupMetric("true_positive_rate", "share of real positives that are found", _at_half(fair.true_positive_rate),
                truth, positive),
        GroupMetric("false_positive_rate", "share of real negatives that are predicted positive",
                    _at_half(fair.false_positive_rate), ~truth, positive),
        GroupMetric("precision", "share of predicted positives that are real",
                    _at_half(lambda y, p: precision_score(y, p, zero_division=math.nan)),
                said, truth.astype(np.float64)),
        GroupMetric("accuracy", "share of right answers", _at_half(accuracy_score), everyone,
                    (truth == said).astype(np.float64)),
        GroupMetric("roc_auc", "how well the rows are ranked", roc_auc, everyone, truth.astype(np.float64),
                is_rate=False, scores=scores),
    ]  # fmt: skip


def _said(k: int) -> Callable[[Any, Any], float]:
    return lambda _, answers: float(np.mean(np.asarray(answers) == k))


def _at_half(figure: Callable[[Any, Any], Any]) -> Callable[[Any, Any], float]:
    return lambda y, p: float(figure(np.asarray(y) > 0.5, np.asarray(p) >= 0.5))


def judged_names(asked: Fairness, task: str, metrics: list[GroupMetric]) -> tuple[str, ...]:
    if asked.not_applicable is not None:
        return ()
    names = [metric.name for metric in metrics]
    plain: dict[str, tuple[str, ...]] = {name: (name,) for name in names}
    if task == "multiclass":
        rates = tuple(name for name in names if name.startswith("selection_rate"))
        plain = {"accuracy": ("accuracy",), "selection_rate": rates, "demographic_parity": rates}
    known: Mapping[str, tuple[str, ...]] = {**(_BINARY_NAMES if task == "binary" else {}), **plain}
    if asked.metric is None or asked.metric not in known:
        raise BadInput("unknown fairness metric", where="gates.fairness.metric", got=asked.metric,
                       wanted=f"for a {task} model {', '.join(known)}",
                       next=did_you_mean(asked.metric or "", known))  # fmt: skip
    return known[asked.metric]


def _table(
    metric: GroupMetric,
    names: NDArray[Any],
    place: NDArray[Any],
    labels: Floats,
    answers: Floats,
    asked: Fairness,
) -> MetricFigures:
    """The figures of the groups `names`; `place` (n,) says which one each row is in."""
    from fairlearn.metrics import MetricFrame

    rows = _denominators(metric, place, len(names), labels)
    counts = rows >= asked.min_group
    small = tuple((str(name), int(n)) for name, n in zip(names[~counts], rows[~counts], strict=True))
    # Small groups go in together: they belong to the overall figure, and a thousand of them would cost seconds.
    frame = MetricFrame(
        metrics=metric.figure, y_true=labels, y_pred=answers,
        sensitive_features=np.where(counts[place], names[place], _OTHERS),
    )  # fmt: skip
    for_all = proportions.simultaneous(asked.confidence, int(counts.sum()))
    found: list[tuple[str, int, Estimate, float, float]] = []
    joint = []
    for code in np.flatnonzero(counts):
        name, inside = str(names[code]), place == code
        value = float(frame.by_group[name])
        estimate = _estimate(metric, inside, value, asked.confidence)
        found.append((name, int(rows[code]), estimate, *_against_rest(metric, inside, value)))
        joint.append(_estimate(metric, inside, value, for_all))
    adjusted = proportions.holm([p for *_, p in found])
    figures = tuple(
        GroupFigure(name, n, estimate.value, estimate.low, estimate.high, estimate.value - rest, p, after)
        for (name, n, estimate, rest, p), after in zip(found, adjusted, strict=True)
    )
    gap = proportions.widest(joint) if len(joint) > 1 else None
    return MetricFigures(
        metric.name, metric.sentence, metric.is_rate, float(frame.overall), figures, small, gap
    )


def _denominators(metric: GroupMetric, place: NDArray[Any], groups: int, labels: Floats) -> NDArray[Any]:
    if metric.scores is None:
        return np.asarray(np.bincount(place[metric.counted], minlength=groups))
    # A ranking needs both classes: the rarer one is what limits it.
    ones = np.bincount(place[labels > 0.5], minlength=groups)
    return np.asarray(np.minimum(ones, np.bincount(place, minlength=groups) - ones))


def _estimate(metric: GroupMetric, inside: Mask, value: float, confidence: float) -> Estimate:
    if metric.scores is not None:
        _, error = proportions.auc_with_error(metric.values[inside], metric.scores[inside])
        return proportions.auc_interval(value, error, confidence)
    values = metric.values[inside & metric.counted]
    if metric.is_rate:
        found = proportions.wilson(float(values.sum()), len(values), confidence)
        return Estimate(value, found.low, found.high)
    return proportions.normal(value, _standard_error(values), confidence)


def _against_rest(metric: GroupMetric, inside: Mask, value: float) -> tuple[float, float]:
    """The figure of all other rows, and the p-value of "the group is as they are"; (NaN, 1) without other rows."""
    if metric.scores is not None:
        auc, error = proportions.auc_with_error(metric.values[inside], metric.scores[inside])
        rest, rest_error = proportions.auc_with_error(metric.values[~inside], metric.scores[~inside])
        return rest, 1.0 if math.isnan(rest) else proportions.two_means(auc, error, rest, rest_error)
    own, others = metric.values[inside & metric.counted], metric.values[~inside & metric.counted]
    if not len(others):
        return math.nan, 1.0
    rest = float(others.mean())
    if metric.is_rate:
        return rest, proportions.two_shares(int(own.sum()), len(own), int(others.sum()), len(others))
    return rest, proportions.two_means(value, _standard_error(own), rest, _standard_error(others))


def _standard_error(values: Floats) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def _verdict(asked: Fairness, tables: list[MetricFigures]) -> tuple[Verdict, str]:
    found = [_judge(asked, table) for table in tables]
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        said = [why for each, why in found if each is verdict]
        if said:
            return verdict, "; ".join(said)
    return Verdict.PASS, "; ".join(why for _, why in found)


def _judge(asked: Fairness, table: MetricFigures) -> tuple[Verdict, str]:
    limit = asked.max_gap or 0.0
    left_out = (
        f"; left out with fewer than {asked.min_group} rows: {_names(table.small)}" if table.small else ""
    )
    if table.gap is None:
        return Verdict.INCONCLUSIVE, f"fewer than two groups with {asked.min_group} rows{left_out}"
    gap, highest, lowest = table.gap, table.highest, table.lowest
    said = (
        f"{table.sentence}: {highest.group} {highest.value:.3f}, {lowest.group} {lowest.value:.3f}, "
        f"{len(table.groups)} groups; the gap of {gap.value:.3f} is at least {gap.low:.3f} and at most "
        f"{gap.high:.3f} at {asked.confidence:.0%} confidence{left_out}"
    )
    if gap.low > limit:
        return Verdict.FAIL, said
    if gap.value > limit:
        return Verdict.INCONCLUSIVE, f"beyond the limit, and it may be noise: {said}"
    if table.margin > limit:
        return Verdict.INCONCLUSIVE, f"too few rows to tell a gap of {limit:g} from none: {said}"
    return Verdict.PASS, said


def _names(small: tuple[tuple[str, int], ...], most: int = 8) -> str:
    listed = ", ".join(name for name, _ in small[:most])
    return f"{listed} and {len(small) - most} more" if len(small) > most else listed
