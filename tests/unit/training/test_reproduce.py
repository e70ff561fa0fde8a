import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.training.reproduce import Agreement, Outcome, compare, fingerprint

RUN = Outcome({"roc_auc": 0.75, "log_loss": 0.5}, "abc", {"cpu": "one", "packages": "p1"})


def test_the_same_model_and_metrics_are_bitwise() -> None:
    assert compare(RUN, RUN).agreement is Agreement.BITWISE


def test_another_model_with_the_same_metrics_is_within_tolerance() -> None:
    found = compare(RUN, Outcome(RUN.metrics, "def", RUN.fingerprint))
    assert found.agreement is Agreement.WITHIN
    assert "another model" in found.why


def test_two_runs_without_a_model_are_never_bitwise() -> None:
    assert compare(Outcome({"auc": 1.0}, ""), Outcome({"auc": 1.0}, "")).agreement is Agreement.WITHIN


@given(st.floats(0.01, 1e6), st.floats(0, 2e-6))
def test_the_tolerance_is_relative(value: float, off: float) -> None:
    found = compare(Outcome({"m": value}, "a"), Outcome({"m": value * (1 + off)}, "b"))
    difference = abs(value * (1 + off) - value) / (value * (1 + off))
    assert (found.agreement is Agreement.DIVERGED) == (difference > 1e-6)


def test_a_missing_metric_diverges_and_is_named() -> None:
    found = compare(RUN, Outcome({"roc_auc": 0.75}, "abc"))
    assert found.agreement is Agreement.DIVERGED
    assert "log_loss" in found.why


def test_nothing_to_compare_is_not_agreement() -> None:
    assert compare(Outcome({}, "abc"), Outcome({}, "abc")).agreement is Agreement.DIVERGED


def test_what_differs_about_the_runs_is_listed() -> None:
    found = compare(RUN, Outcome({"roc_auc": 0.70, "log_loss": 0.5}, "abc", {"cpu": "two", "packages": "p1"}))
    assert [(d.name, d.first, d.again) for d in found.differences] == [("cpu", "one", "two")]
    assert "different: cpu" in found.why
    assert found.to_json()["verdict"] == "diverged"


def test_a_metric_that_became_nan_diverges() -> None:
    assert compare(Outcome({"m": 1.0}, "a"), Outcome({"m": math.nan}, "a")).agreement is Agreement.DIVERGED


@pytest.mark.parametrize("context", [{}, {"fingerprint": None}])
def test_an_old_context_has_an_empty_fingerprint(context: dict[str, object]) -> None:
    assert fingerprint(context) == {}
