"""Whether a smaller model still does what the one it was made from does: two gates on the same held-out rows.

Both are non-inferiority tests by paired bootstrap, so that what differs by chance blocks nothing, and what too few rows
cannot show is no pass.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopwright.kernel.errors import BadInput, did_you_mean
from loopwright.kernel.verdict import Verdict
from loopwright.project.sections import Fairness
from loopwright.quality.behaviour import Columns
from loopwright.quality.fairness import GroupMetric, group_names, judged_names, metrics_of
from loopwright.quality.report import GateResult
from loopwright.stats.bootstrap import non_inferior, paired_bootstrap
from loopwright.stats.metrics import METRICS

Floats = NDArray[np.float64]
Gap = Callable[[Floats], float]
RESAMPLES = 500
MOST_ROOM = 0.05
"""Who accepts a larger loss for all does not thereby accept that one group bears it."""


def kept_quality(
    metric: str, labels: Floats, new: Floats, old: Floats, *, max_loss: float, parent: int, seed: int,
    confidence: float = 0.95,
) -> GateResult:  # fmt: skip
    """PASS when `metric` of `new` is surely at most `max_loss` (a share of the parent's value) worse than of `old`.

    labels (n,), new and old (n, outputs), all of rows that neither was trained on. The interval is of the gain.
    """
    name, limit = f"not worse than version {parent}: {metric}", f"loss <= {max_loss:.2%}"
    found = paired_bootstrap(metric, labels, new, old, confidence=confidence, seed=seed)
    verdict = non_inferior(found, max_loss * abs(found.old))
    share = _shares(found.old)
    most, least = share(0.0 - found.low), share(0.0 - found.high)
    detail = (
        f"{found.new:.4f} against {found.old:.4f}: a loss of {share(0.0 - found.difference)}, at {confidence:.0%} "
        f"confidence at most {most} and at least {least}, on {found.rows} held-out rows"
    )
    return GateResult(name, "comparison", verdict, found.difference, limit, detail, (found.low, found.high))


def kept_fairness(
    asked: Fairness, task: str, inputs: Columns, labels: Floats, new: Floats, old: Floats, *, max_loss: float,
    parent: int, seed: int, classes: tuple[str, ...] = (),
) -> list[GateResult]:  # fmt: skip
    """One gate per attribute: PASS when the largest gap between groups is surely not wider than the parent's.

    "Not wider" leaves `max_loss`, and never more than 0.05, of room: of a rate in its own points (0.01 is one point),
    of an error as a share of its mean size for the parent. Groups that count for both models are compared.
    """
    if asked.not_applicable is not None:
        return []
    room = min(max_loss, MOST_ROOM)
    told_new, told_old = (metrics_of(task, labels, answers, classes) for answers in (new, old))
    judged = judged_names(asked, task, told_new)
    found = []
    for attribute in asked.attribute:
        if attribute not in inputs:
            raise BadInput("the model has no such input", where="gates.fairness.attribute", got=attribute,
                           next=did_you_mean(attribute, inputs))  # fmt: skip
        _, place = np.unique(group_names(np.asarray(inputs[attribute])).astype(str), return_inverse=True)
        widened = [
            _widened(mine, its, place, asked, room, seed)
            for mine, its in zip(told_new, told_old, strict=True)
            if mine.name in judged
        ]
        worst = max(widened, key=lambda one: (_ORDER.index(one[0]), one[1] or 0.0))
        found.append(
            GateResult(
                f"fairness gap not wider than version {parent}'s: {asked.metric} over {attribute}", "fairness",
                worst[0], worst[1], f"+{room:g}", "; ".join(why for _, _, why in widened),
            )
        )  # fmt: skip
    return found


_ORDER = (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.ERROR, Verdict.FAIL)


def _widened(
    mine: GroupMetric, its: GroupMetric, place: NDArray[Any], asked: Fairness, share: float, seed: int
) -> tuple[Verdict, float | None, str]:
    """The verdict, by how much the gap is wider, and why."""
    groups = int(place.max(initial=0)) + 1
    counts = np.logical_and(*(_rows(one, place, groups) >= asked.min_group for one in (mine, its)))
    if counts.sum() < 2:
        return (
            Verdict.INCONCLUSIVE,
            None,
            f"{mine.sentence}: fewer than two groups with {asked.min_group} rows",
        )
    gap_of, gap_before = (_gap(one, place, np.flatnonzero(counts)) for one in (mine, its))
    everyone = np.ones(len(place))
    gap, before = gap_of(everyone), gap_before(everyone)
    room = share if mine.is_rate or mine.scores is not None else share * float(np.abs(its.values).mean())
    random = np.random.default_rng(seed)
    changes = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        weights = np.bincount(random.integers(0, len(place), len(place)), minlength=len(place)).astype(
            np.float64
        )
        changes[i] = gap_of(weights) - gap_before(weights)
    known = changes[~np.isnan(changes)]
    if not len(known) or np.isnan(gap - before):
        return Verdict.ERROR, None, f"{mine.sentence}: the gap is undefined on these rows"
    low, high = np.quantile(known, [1 - asked.confidence, asked.confidence])
    said = (
        f"{mine.sentence}: a gap of {gap:.4f} instead of {before:.4f}, wider by at least {low:+.4f} and at most "
        f"{high:+.4f} at {asked.confidence:.0%} confidence, {int(counts.sum())} groups"
    )
    verdict = Verdict.PASS if high <= room else Verdict.FAIL if low > room else Verdict.INCONCLUSIVE
    return verdict, float(gap - before), said


def _rows(metric: GroupMetric, place: NDArray[Any], groups: int) -> NDArray[Any]:
    """Rows of each group that the metric counts; for a ranking, of its rarer class."""
    if metric.scores is None:
        return np.asarray(np.bincount(place[metric.counted], minlength=groups))
    ones = np.bincount(place[metric.values > 0.5], minlength=groups)
    return np.asarray(np.minimum(ones, np.bincount(place, minlength=groups) - ones))


def _gap(metric: GroupMetric, place: NDArray[Any], groups: NDArray[Any]) -> Gap:
    """Weights (n,) → the largest difference between any two of `groups`."""
    if metric.scores is not None:
        scores = metric.scores
        inside = [place == group for group in groups]
        ranked = [METRICS["roc_auc"].prepare(metric.values[rows], scores[rows]) for rows in inside]
        return lambda w: _spread([of(w[rows]) for of, rows in zip(ranked, inside, strict=True)])
    counted = metric.counted.astype(np.float64)
    values, most = metric.values * counted, int(place.max()) + 1

    def gap(w: Floats) -> float:
        total = np.bincount(place, w * counted, minlength=most)[groups]
        with np.errstate(invalid="ignore", divide="ignore"):
            return _spread(np.bincount(place, w * values, minlength=most)[groups] / total)

    return gap


def _spread(figures: Any) -> float:
    return float(np.max(figures) - np.min(figures))


def _shares(parent: float) -> Callable[[float], str]:
    return (lambda loss: f"{loss / abs(parent):.2%}") if parent else (lambda loss: f"{loss:.4g}")
