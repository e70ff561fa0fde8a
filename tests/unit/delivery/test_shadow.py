"""Figures that compare shadow's answers with stable's."""

import numpy as np
import pytest

from loopwright.delivery.shadow import agreement
from loopwright.kernel.errors import BadInput


def test_equal_answers_agree_entirely() -> None:
    answers = np.linspace(0, 1, 50)
    figures = agreement(answers, answers, task="binary")
    assert figures["pairs"] == 50
    assert figures["same_decision"] == 1.0
    assert figures["mean_absolute_difference"] == 0.0
    assert figures["correlation"] == pytest.approx(1.0)


def test_opposite_decisions_are_counted() -> None:
    figures = agreement(np.array([0.4, 0.6, 0.9]), np.array([0.6, 0.7, 0.95]), task="binary")
    assert figures["same_decision"] == pytest.approx(2 / 3)
    assert figures["mean_difference"] == pytest.approx(0.35 / 3)


def test_a_shadow_that_did_not_answer_is_counted_apart() -> None:
    figures = agreement(np.array([0.4, 0.6]), np.array([np.nan, 0.6]), task="binary")
    assert (figures["pairs"], figures["unanswered"]) == (1, 1)
    assert agreement(np.array([0.4]), np.array([np.nan]), task="binary") == {"pairs": 0, "unanswered": 1}


def test_classes_are_compared_by_the_largest() -> None:
    stable = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
    shadow = np.array([[0.5, 0.4, 0.1], [0.2, 0.3, 0.5]])
    assert agreement(stable, shadow, task="multiclass")["same_decision"] == 0.5


def test_regression_decides_alike_within_a_hundredth_of_the_spread() -> None:
    figures = agreement(np.array([0.0, 100.0]), np.array([0.5, 105.0]), task="regression")
    assert figures["same_decision"] == 0.5


def test_unpaired_answers_are_refused() -> None:
    with pytest.raises(BadInput):
        agreement(np.zeros(3), np.zeros(4), task="binary")
