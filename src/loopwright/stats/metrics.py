"""The quality metrics of Loopwright, in numpy, with optional row weights.

Shapes: `y` is (n,) with 0/1, class indices or numbers. `p` is (n,) or (n, 1) for binary (probability of 1)
and regression, (n, classes) for multiclass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loopwright.kernel.errors import BadInput, NotFound, did_you_mean

Floats = NDArray[np.float64]
Weighted = Callable[[Floats], float]
Direction = Literal["maximize", "minimize"]

_TINY = 1e-15


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric by name. `prepare(y, p)` does the sorting once and returns a function of row weights (n,).

    Calling it gives the plain value. NaN where it is undefined (AUC of a single class).
    """

    name: str
    direction: Direction
    prepare: Callable[[Floats, Floats], Weighted]

    def __call__(self, y: ArrayLike, p: ArrayLike) -> float:
        truth, prediction = as_arrays(y, p)
        if not len(truth):
            return float("nan")
        return self.prepare(truth, prediction)(np.ones(len(truth)))

    @property
    def fn(self) -> Callable[[ArrayLike, ArrayLike], float]:
        return self.__call__

    def gain(self, new: float, old: float) -> float:
        """How much better `new` is than `old`: positive is better whatever the direction."""
        return new - old if self.direction == "maximize" else old - new


def metric(name: str) -> Metric:
    """Raises NotFound naming the nearest known metric."""
    if name not in METRICS:
        raise NotFound(
            f"no metric is called {name}", wanted=", ".join(METRICS), next=did_you_mean(name, METRICS)
        )
    return METRICS[name]


def roc_auc(y: ArrayLike, p: ArrayLike) -> float:
    """Area under the ROC curve, ties counted half; for several classes the mean of one against the rest."""
    return METRICS["roc_auc"](y, p)


def log_loss(y: ArrayLike, p: ArrayLike) -> float:
    """Mean negative log likelihood in nats; probabilities are clipped at 1e-15."""
    return METRICS["log_loss"](y, p)


def brier(y: ArrayLike, p: ArrayLike) -> float:
    """Mean squared distance of the probability from 0/1; for several classes summed over them."""
    return METRICS["brier"](y, p)


def accuracy(y: ArrayLike, p: ArrayLike) -> float:
    """Share of right answers, at 0.5 or by the largest probability."""
    return METRICS["accuracy"](y, p)


def f1_macro(y: ArrayLike, p: ArrayLike) -> float:
    """Unweighted mean of the classes' F1, over the classes that occur in `y` or in the answers."""
    return METRICS["f1_macro"](y, p)


def rmse(y: ArrayLike, p: ArrayLike) -> float:
    """Root of the mean squared error, in the unit of `y`."""
    return METRICS["rmse"](y, p)


def mae(y: ArrayLike, p: ArrayLike) -> float:
    """Mean absolute error, in the unit of `y`."""
    return METRICS["mae"](y, p)


def r2(y: ArrayLike, p: ArrayLike) -> float:
    """1 - residual / total sum of squares; NaN when `y` is constant."""
    return METRICS["r2"](y, p)


def _auc(y: Floats, p: Floats) -> Weighted:
    if p.ndim == 2:
        each = [_auc((y == k).astype(np.float64), p[:, k]) for k in range(p.shape[1])]
        return lambda w: float(np.mean([one(w) for one in each]))
    order = np.argsort(p, kind="stable")
    positive = y[order] > 0.5
    scores = p[order]
    starts = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))

    def weighted(w: Floats) -> float:
        sorted_w = w[order]
        up = np.add.reduceat(np.where(positive, sorted_w, 0.0), starts)
        down = np.add.reduceat(np.where(positive, 0.0, sorted_w), starts)
        pairs = up.sum() * down.sum()
        if pairs == 0:
            return float("nan")
        below = np.cumsum(down) - down
        return float(np.sum(up * (below + down / 2)) / pairs)

    return weighted


def _mean_of(losses: Callable[[Floats, Floats], Floats]) -> Callable[[Floats, Floats], Weighted]:
    def prepare(y: Floats, p: Floats) -> Weighted:
        per_row = losses(y, p)
        return lambda w: float(per_row @ w / w.sum())

    return prepare


def _log_losses(y: Floats, p: Floats) -> Floats:
    if p.ndim == 2:
        chosen = p[np.arange(len(y)), y.astype(np.int64)] / p.sum(axis=1)
        return np.asarray(-np.log(np.clip(chosen, _TINY, 1)))
    safe = np.clip(p, _TINY, 1 - _TINY)
    return np.asarray(-np.where(y > 0.5, np.log(safe), np.log1p(-safe)))


def _squares(y: Floats, p: Floats) -> Floats:
    if p.ndim == 2:
        return np.asarray(((p - np.eye(p.shape[1])[y.astype(np.int64)]) ** 2).sum(axis=1))
    return np.asarray((p - y) ** 2)


def _answers(p: Floats) -> Floats:
    return np.asarray(p.argmax(axis=1) if p.ndim == 2 else p >= 0.5, dtype=np.float64)


def _f1(y: Floats, p: Floats) -> Weighted:
    answers = _answers(p)
    classes = np.union1d(y, answers)

    def weighted(w: Floats) -> float:
        scores = []
        for k in classes:
            truth, said = y == k, answers == k
            either = w[truth].sum() + w[said].sum()
            if either:
                scores.append(2 * w[truth & said].sum() / either)
        return float(np.mean(scores))

    return weighted


def _rmse(y: Floats, p: Floats) -> Weighted:
    squares = (p - y) ** 2
    return lambda w: float(np.sqrt(squares @ w / w.sum()))


def _r2(y: Floats, p: Floats) -> Weighted:
    squares = (p - y) ** 2

    def weighted(w: Floats) -> float:
        total = float(w @ (y - y @ w / w.sum()) ** 2)
        return 1 - float(squares @ w) / total if total else float("nan")

    return weighted


METRICS: dict[str, Metric] = {
    each.name: each
    for each in (
        Metric("roc_auc", "maximize", _auc),
        Metric("log_loss", "minimize", _mean_of(_log_losses)),
        Metric("brier", "minimize", _mean_of(_squares)),
        Metric("accuracy", "maximize", _mean_of(lambda y, p: (y == _answers(p)).astype(np.float64))),
        Metric("f1_macro", "maximize", _f1),
        Metric("rmse", "minimize", _rmse),
        Metric("mae", "minimize", _mean_of(lambda y, p: np.abs(p - y))),
        Metric("r2", "maximize", _r2),
    )
}
"""Every metric a project may name in loop.yaml."""


def as_arrays(y: ArrayLike, p: ArrayLike) -> tuple[Floats, Floats]:
    """Check and convert: labels (n,), predictions (n,) or (n, classes). Raises BadInput for NaN or wrong
    shapes.
    """
    truth: NDArray[Any] = np.asarray(y, dtype=np.float64)
    prediction: NDArray[Any] = np.asarray(p, dtype=np.float64)
    if prediction.ndim == 2 and prediction.shape[1] == 1:
        prediction = prediction[:, 0]
    if truth.ndim != 1 or len(truth) != len(prediction) or prediction.ndim not in (1, 2):
        raise BadInput(
            "labels and predictions do not match",
            where="metric",
            got=(truth.shape, prediction.shape),
            wanted="(n,) labels and (n,) or (n, classes) predictions",
        )
    if np.isnan(truth).any() or np.isnan(prediction).any():
        raise BadInput(
            "labels or predictions are missing",
            where="metric",
            got=f"{int(np.isnan(truth).sum())} NaN labels, {int(np.isnan(prediction).sum())} NaN predictions",
            next="Drop rows without a label before measuring.",
        )
    return truth, prediction
