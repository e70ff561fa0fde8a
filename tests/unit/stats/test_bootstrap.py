import numpy as np
import pytest

from loopwright.kernel.errors import BadInput
from loopwright.kernel.verdict import Verdict
from loopwright.stats.bootstrap import non_inferior, paired_bootstrap
from loopwright.stats.metrics import roc_auc


def holdout(
    n: int, seed: int, noise: float = 1.0, extra: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, an old model's scores, a new one's whose noise is larger by `extra`."""
    random = np.random.default_rng(seed)
    y = (random.random(n) < 0.3).astype(float)
    signal = y + random.normal(0, noise, n)
    jitter = random.normal(0, 0.2, n), random.normal(0, 0.2, n)
    return y, signal + jitter[0], signal + jitter[1] + random.normal(0, 1, n) * extra


def verdicts(*, extra: float, tolerance: float, trials: int = 40) -> list[Verdict]:
    out = []
    for seed in range(trials):
        y, old, new = holdout(1500, seed, extra=extra)
        out.append(
            non_inferior(paired_bootstrap("roc_auc", y, new, old, resamples=200, seed=seed), tolerance)
        )
    return out


def test_equal_models_are_seldom_held_back() -> None:
    assert verdicts(extra=0.0, tolerance=0.015).count(Verdict.PASS) >= 36


def test_clearly_worse_models_never_pass() -> None:
    results = verdicts(extra=1.0, tolerance=0.015)
    assert Verdict.PASS not in results
    assert results.count(Verdict.FAIL) >= 30


def test_too_few_rows_are_inconclusive_rather_than_a_pass() -> None:
    y, old, new = holdout(40, 1, extra=0.5)
    assert non_inferior(paired_bootstrap("roc_auc", y, new, old, seed=1), 0.005) is not Verdict.PASS


def test_the_same_seed_gives_the_same_bounds() -> None:
    y, old, new = holdout(500, 2)
    assert paired_bootstrap("roc_auc", y, new, old, seed=9) == paired_bootstrap(
        "roc_auc", y, new, old, seed=9
    )


def test_a_model_equal_to_itself_differs_by_nothing() -> None:
    y, old, _ = holdout(500, 2)
    result = paired_bootstrap("log_loss", y, old, old, resamples=100, seed=1)
    assert (result.difference, result.low, result.high) == (0, 0, 0)
    assert non_inferior(result, 0.0) is Verdict.PASS


def test_a_lower_error_counts_as_a_gain() -> None:
    random = np.random.default_rng(1)
    y = random.normal(size=500)
    result = paired_bootstrap("rmse", y, y + 0.1, y + 0.5, resamples=100, seed=1)
    assert result.difference == pytest.approx(0.4)
    assert result.low > 0


def test_the_fast_path_agrees_with_resampling_rows_one_by_one() -> None:
    y, old, new = holdout(400, 3)
    fast = paired_bootstrap("roc_auc", y, new, old, resamples=300, seed=4)
    slow = paired_bootstrap(lambda a, b: roc_auc(a, b), y, new, old, resamples=300, seed=4)
    assert (fast.difference, fast.low, fast.high) == pytest.approx((slow.difference, slow.low, slow.high))


def test_an_undefined_metric_is_an_error_never_a_pass() -> None:
    result = paired_bootstrap("roc_auc", np.ones(50), np.arange(50.0), np.arange(50.0), resamples=100, seed=1)
    assert non_inferior(result, 0.1) is Verdict.ERROR


def test_senseless_settings_are_refused() -> None:
    y, old, new = holdout(50, 1)
    for wrong in ({"confidence": 0.3}, {"resamples": 10}):
        with pytest.raises(BadInput):
            paired_bootstrap("roc_auc", y, new, old, seed=1, **wrong)
    with pytest.raises(BadInput):
        paired_bootstrap("roc_auc", y[:1], new[:1], old[:1], seed=1)
