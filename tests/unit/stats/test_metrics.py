import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from loopwright.kernel.errors import BadInput, NotFound
from loopwright.stats import metrics
from loopwright.stats.metrics import METRICS, metric

RNG = np.random.default_rng(3)
N = 400
LATE = (RNG.random(N) < 0.3).astype(float)
CHANCE = np.round(np.clip(0.3 + 0.3 * (LATE - 0.3) + RNG.normal(0, 0.2, N), 0.01, 0.99), 2)  # rounded: ties
KIND = RNG.integers(0, 3, N).astype(float)
CHANCES = RNG.dirichlet([1, 1, 1], N)
DELAY = RNG.normal(10, 30, N)
GUESS = DELAY + RNG.normal(0, 10, N)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (metrics.roc_auc(LATE, CHANCE), oracle.roc_auc_score(LATE, CHANCE)),
        (metrics.log_loss(LATE, CHANCE), oracle.log_loss(LATE, CHANCE)),
        (metrics.brier(LATE, CHANCE), oracle.brier_score_loss(LATE, CHANCE)),
        (metrics.accuracy(LATE, CHANCE), oracle.accuracy_score(LATE, CHANCE >= 0.5)),
        (metrics.f1_macro(LATE, CHANCE), oracle.f1_score(LATE, CHANCE >= 0.5, average="macro")),
        (
            metrics.roc_auc(KIND, CHANCES),
            oracle.roc_auc_score(KIND, CHANCES, multi_class="ovr", average="macro"),
        ),
        (metrics.log_loss(KIND, CHANCES), oracle.log_loss(KIND, CHANCES)),
        (metrics.accuracy(KIND, CHANCES), oracle.accuracy_score(KIND, CHANCES.argmax(axis=1))),
        (metrics.f1_macro(KIND, CHANCES), oracle.f1_score(KIND, CHANCES.argmax(axis=1), average="macro")),
        (metrics.rmse(DELAY, GUESS), oracle.root_mean_squared_error(DELAY, GUESS)),
        (metrics.mae(DELAY, GUESS), oracle.mean_absolute_error(DELAY, GUESS)),
        (metrics.r2(DELAY, GUESS), oracle.r2_score(DELAY, GUESS)),
    ],
)
def test_agrees_with_scikit_learn(ours: float, theirs: float) -> None:
    assert ours == pytest.approx(theirs, rel=1e-9)


@given(st.lists(st.integers(0, 4), min_size=N, max_size=N))
def test_row_weights_mean_repeated_rows(times: list[int]) -> None:
    weights = np.array(times, dtype=float)
    rows = np.repeat(np.arange(N), times)
    for each, y, p in (
        (METRICS["roc_auc"], LATE, CHANCE),
        (METRICS["f1_macro"], KIND, CHANCES),
        (METRICS["r2"], DELAY, GUESS),
    ):
        if len(np.unique(y[rows])) > 1:
            assert each.prepare(y, p)(weights) == pytest.approx(each(y[rows], p[rows]), nan_ok=True)


def test_a_column_of_probabilities_is_read_like_a_flat_array() -> None:
    assert metrics.roc_auc(LATE, CHANCE[:, None]) == metrics.roc_auc(LATE, CHANCE)


def test_one_class_has_no_auc_and_no_rows_have_no_value() -> None:
    assert np.isnan(metrics.roc_auc(np.ones(5), np.arange(5)))
    assert all(np.isnan(each([], [])) for each in METRICS.values())


def test_gain_is_positive_for_the_better_model_in_both_directions() -> None:
    assert metric("roc_auc").gain(0.8, 0.7) > 0
    assert metric("rmse").gain(3.0, 4.0) > 0


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(NotFound, match="roc_auc"):
        metric("roc_acu")


def test_missing_labels_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(BadInput, match="missing"):
        metrics.roc_auc([0, np.nan], [0.1, 0.2])
    with pytest.raises(BadInput, match="match"):
        metrics.roc_auc([0, 1, 1], [0.1, 0.2])
