"""A smaller model against the one it was made from: what was lost, and for whom."""

import numpy as np
import pytest

from loopwright.kernel.errors import BadInput
from loopwright.kernel.verdict import Verdict
from loopwright.project.sections import Fairness
from loopwright.quality.parent import kept_fairness, kept_quality
from loopwright.quality.report import GateResult

ROWS = 2_000
random = np.random.default_rng(3)
LABELS = (random.random(ROWS) < 0.4).astype(np.float64)
PARENT = np.clip(0.25 + 0.5 * LABELS + random.normal(0, 0.2, ROWS), 0.01, 0.99)[:, None]
GROUP = np.array(["a", "b"])[(np.arange(ROWS) % 2)]
FAIR = Fairness(attribute="group", metric="equal_opportunity", max_gap=0.5)  # type: ignore[arg-type]


def quality(new: np.ndarray, max_loss: float = 0.01) -> GateResult:  # type: ignore[type-arg]
    return kept_quality("roc_auc", LABELS, new, PARENT, max_loss=max_loss, parent=3, seed=1)


def fairness(new: np.ndarray, max_loss: float = 0.01, **changes: object) -> GateResult:  # type: ignore[type-arg]
    asked = FAIR.model_copy(update=changes)
    (found,) = kept_fairness(
        asked, "binary", {"group": GROUP}, LABELS, new, PARENT, max_loss=max_loss, parent=3, seed=1
    )
    return found


def test_answers_that_are_the_parents_lose_nothing() -> None:
    found = quality(PARENT)
    assert found.verdict is Verdict.PASS and found.value == 0.0
    assert "at most 0.00%" in found.detail and "version 3" in found.name


def test_a_loss_beyond_the_bound_fails_and_one_that_may_be_within_is_open() -> None:
    ruined = np.where(random.random(ROWS) < 0.3, 1 - PARENT[:, 0], PARENT[:, 0])[:, None]
    assert quality(ruined).verdict is Verdict.FAIL
    noisy = np.clip(PARENT + random.normal(0, 0.1, PARENT.shape), 0, 1)
    found = quality(noisy)
    assert found.interval is not None
    loss, most = -(found.value or 0.0), -found.interval[0]
    of_the_parent = most / float(found.detail.split(" against ")[1].split(":")[0])
    assert 0 < loss < most
    assert quality(noisy, of_the_parent * 0.98).verdict is Verdict.INCONCLUSIVE
    assert quality(noisy, of_the_parent * 1.02).verdict is Verdict.PASS


def test_a_gap_that_widens_for_one_group_fails() -> None:
    assert fairness(PARENT).verdict is Verdict.PASS
    worse = PARENT.copy()
    worse[(GROUP == "b") & (random.random(ROWS) < 0.4)] *= 0.3
    found = fairness(worse)
    assert found.verdict is Verdict.FAIL and (found.value or 0) > 0.1
    assert "share of real positives that are found" in found.detail


def test_a_large_loss_that_is_accepted_is_not_one_groups_to_bear() -> None:
    worse = PARENT.copy()
    worse[(GROUP == "b") & (random.random(ROWS) < 0.4)] *= 0.3
    found = fairness(worse, max_loss=0.9)
    assert found.verdict is Verdict.FAIL and found.limit == "+0.05"


def test_a_gap_that_widens_for_both_alike_is_not_wider() -> None:
    worse = PARENT * 0.9
    found = fairness(worse)
    assert abs(found.value or 0) < 0.05 and found.verdict is not Verdict.FAIL


def test_too_few_rows_of_a_group_are_no_pass() -> None:
    found = fairness(PARENT, min_group=5_000)
    assert found.verdict is Verdict.INCONCLUSIVE and "fewer than two groups" in found.detail


@pytest.mark.parametrize("metric", ["roc_auc", "equalized_odds", "accuracy"])
def test_every_kind_of_metric_is_compared(metric: str) -> None:
    assert fairness(PARENT, metric=metric).verdict is Verdict.PASS


def test_regression_leaves_room_by_the_size_of_the_error() -> None:
    truth = random.normal(100, 10, ROWS)
    parent = (truth + random.normal(0, 5, ROWS))[:, None]
    asked = Fairness(attribute="group", metric="mae", max_gap=9.0)  # type: ignore[arg-type]

    def judged(new: np.ndarray) -> Verdict:  # type: ignore[type-arg]
        return kept_fairness(
            asked, "regression", {"group": GROUP}, truth, new, parent, max_loss=0.01, parent=3, seed=1
        )[0].verdict

    assert judged(parent) is Verdict.PASS
    worse = parent.copy()
    worse[GROUP == "a"] += 6
    assert judged(worse) is Verdict.FAIL


def test_a_reason_why_fairness_does_not_apply_asks_for_nothing() -> None:
    excused = Fairness(not_applicable="the rows are about machines and not about people")
    assert kept_fairness(excused, "binary", {}, LABELS, PARENT, PARENT, max_loss=0.01, parent=3, seed=1) == []


def test_an_attribute_that_is_no_input_is_bad_input() -> None:
    with pytest.raises(BadInput, match="no such input"):
        fairness(PARENT, attribute=("grup",))
