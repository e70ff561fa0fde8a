"""Groups are measured, tested and judged: small ones are named, noise is not called unfair, and unfairness is."""

import json
import warnings
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from fairlearn import metrics as fair
from numpy.typing import NDArray
from sklearn.metrics import mean_absolute_error

from loopwright.kernel.errors import BadInput
from loopwright.kernel.verdict import Verdict
from loopwright.project.sections import Fairness
from loopwright.quality.fairness import fairness_report, gate_results, group_names
from loopwright.quality.fairness_report import FairnessReport, fairness_markdown

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def measured(
    groups: NDArray[Any], labels: NDArray[Any], predicted: NDArray[Any], task: str = "binary", **asked: Any
) -> FairnessReport:
    wanted = {"attribute": "group", "metric": "equal_opportunity", "max_gap": 0.1, **asked}
    return fairness_report(
        Fairness.model_validate(wanted), task, {"group": groups}, labels,
        predicted if predicted.ndim == 2 else predicted[:, None],
        model="m", bundle="b" * 64, classes=("red", "green"), now=NOW,
    )  # fmt: skip


def drawn(
    rates: dict[str, float], rows: int, seed: int | None = None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Rows of which all are really positive and a group's rate is found: exactly, or by chance with a seed."""
    groups = np.repeat(np.array(list(rates), dtype=object), rows)
    chance = np.tile((np.arange(rows) + 0.5) / rows, len(rates))
    if seed is not None:
        chance = np.random.default_rng(seed).random(len(groups))
    return groups, np.ones(len(groups)), np.where(chance < np.repeat(list(rates.values()), rows), 0.9, 0.1)


def table(report: FairnessReport, metric: str) -> dict[str, Any]:
    (one,) = [each for each in report.to_json()["attributes"][0]["metrics"] if each["metric"] == metric]
    return dict(one)


def test_every_figure_is_fairlearns() -> None:
    rng = np.random.default_rng(5)
    groups = rng.choice(np.array(["a", "b", "c"], dtype=object), 3_000)
    y, p = (rng.random(3_000) < 0.4).astype(float), rng.random(3_000)
    said = p >= 0.5
    for name, figure in {
        "selection_rate": fair.selection_rate,
        "true_positive_rate": fair.true_positive_rate,
        "false_positive_rate": fair.false_positive_rate,
    }.items():
        ours = table(measured(groups, y, p), name)
        theirs = fair.MetricFrame(metrics=figure, y_true=y, y_pred=said, sensitive_features=groups)
        assert {g["group"]: g["value"] for g in ours["groups"]} == pytest.approx(dict(theirs.by_group))
        assert ours["overall"] == pytest.approx(float(theirs.overall))
        assert ours["gap"]["value"] == pytest.approx(float(theirs.difference()))
        assert ours["gap"]["ratio"] == pytest.approx(float(theirs.ratio()))
    for group in table(measured(groups, y, p), "roc_auc")["groups"]:
        assert group["low"] <= group["value"] <= group["high"]


def test_a_large_gap_is_unfair() -> None:
    report = measured(*drawn({"a": 0.8, "b": 0.5}, 800))
    assert report.verdict is Verdict.FAIL
    assert "a 0.8" in report.attributes[0].why


def test_a_small_gap_is_fair() -> None:
    assert measured(*drawn({"a": 0.52, "b": 0.5}, 800)).verdict is Verdict.PASS


def test_a_gap_that_may_be_noise_is_neither() -> None:
    report = measured(*drawn({"a": 0.64, "b": 0.5}, 200))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "may be noise" in report.attributes[0].why


def test_rows_that_could_not_tell_a_gap_from_none_are_no_pass() -> None:
    report = measured(*drawn({"a": 0.5, "b": 0.5}, 120), max_gap=0.05)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "too few rows" in report.attributes[0].why


def test_groups_that_are_alike_are_seldom_called_unfair() -> None:
    rates = {f"g{number}": 0.5 for number in range(10)}
    verdicts = [measured(*drawn(rates, 150, seed), max_gap=0.0).verdict for seed in range(60)]
    assert verdicts.count(Verdict.FAIL) <= 3


def test_a_single_group_that_differs_stands_out_after_the_correction_and_the_others_do_not() -> None:
    rates = {f"g{number}": 0.5 for number in range(8)} | {"odd": 0.75}
    found = table(measured(*drawn(rates, 300)), "true_positive_rate")["groups"]
    assert next(g for g in found if g["group"] == "odd")["differs"]
    assert sum(g["differs"] for g in found) <= 2
    assert all(g["adjusted"] >= g["p"] for g in found)


def test_a_small_group_is_named_and_not_judged() -> None:
    groups, _, p = drawn({"a": 0.5, "b": 0.5}, 800)
    groups = np.concatenate([groups, np.array(["tiny"] * 99, dtype=object)])
    report = measured(groups, np.ones(len(groups)), np.concatenate([p, np.zeros(99)]))
    assert report.verdict is Verdict.PASS
    found = table(report, "true_positive_rate")
    assert [g["group"] for g in found["groups"]] == ["a", "b"]
    assert found["too_small"] == [{"group": "tiny", "rows": 99}]
    # It is part of everybody all the same.
    assert found["overall"] == pytest.approx((p >= 0.5).sum() / len(groups))


def test_a_group_counts_by_the_metrics_own_denominator() -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat(np.array(["a", "b"], dtype=object), 500)
    y = np.concatenate([np.ones(500), (np.arange(500) < 60).astype(float)])
    found = measured(groups, y, rng.random(1_000))
    assert [g["rows"] for g in table(found, "selection_rate")["groups"]] == [500, 500]
    assert table(found, "true_positive_rate")["too_small"] == [{"group": "b", "rows": 60}]
    assert found.verdict is Verdict.INCONCLUSIVE


def test_equalized_odds_judges_both_rates() -> None:
    groups, y, p = drawn({"a": 0.5, "b": 0.5}, 800)
    wrong = drawn({"a": 0.1, "b": 0.6}, 800)
    report = measured(
        np.concatenate([groups, wrong[0]]), np.concatenate([y, np.zeros(1_600)]), np.concatenate([p, wrong[2]]),
        metric="equalized_odds",
    )  # fmt: skip
    assert report.judged == ("true_positive_rate", "false_positive_rate")
    assert report.verdict is Verdict.FAIL


def test_errors_of_a_regression_are_compared_in_the_labels_unit() -> None:
    rng = np.random.default_rng(4)
    groups = np.repeat(np.array(["a", "b"], dtype=object), 500)
    y = rng.normal(100, 20, 1_000)
    p = y + rng.normal(0, 3, 1_000) + np.repeat([0.0, 12.0], 500)
    report = measured(groups, y, p, "regression", metric="mean_error", max_gap=5)
    assert report.verdict is Verdict.FAIL
    assert report.attributes[0].gap(report.judged) == pytest.approx(12, abs=1)
    mae = {g["group"]: g["value"] for g in table(report, "mae")["groups"]}
    assert mae["b"] == pytest.approx(mean_absolute_error(y[500:], p[500:]))


def test_a_mean_errors_interval_is_the_bootstraps() -> None:
    rng = np.random.default_rng(8)
    groups = np.repeat(np.array(["a", "b"], dtype=object), 400)
    y, p = np.zeros(800), rng.exponential(2, 800)
    found = table(measured(groups, y, p, "regression", metric="mae", max_gap=1), "mae")["groups"][0]
    means = rng.choice(p[:400], (4_000, 400)).mean(axis=1)
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.03)


def test_classes_are_compared_one_by_one() -> None:
    rng = np.random.default_rng(6)
    groups = np.repeat(np.array(["a", "b"], dtype=object), 500)
    red = rng.random(1_000) < np.repeat([0.7, 0.3], 500)
    predicted = np.column_stack([red, ~red]).astype(float)
    y = (~red).astype(float)
    report = measured(groups, y, predicted, "multiclass", metric="demographic_parity")
    assert report.judged == ("selection_rate: red", "selection_rate: green")
    assert report.verdict is Verdict.FAIL
    assert measured(groups, y, predicted, "multiclass", metric="accuracy").verdict is Verdict.PASS


def test_several_attributes_are_judged_each_for_itself() -> None:
    groups, y, p = drawn({"a": 0.8, "b": 0.5}, 800)
    random = np.random.default_rng(1).permutation(groups)
    asked = Fairness(attribute=("group", "other"), metric="equal_opportunity", max_gap=0.1)
    report = fairness_report(
        asked, "binary", {"group": groups, "other": random}, y, p[:, None], model="m", bundle="b", now=NOW
    )
    assert [each.verdict for each in report.attributes] == [Verdict.FAIL, Verdict.PASS]
    assert [each.verdict for each in gate_results(report)] == [Verdict.FAIL, Verdict.PASS]
    assert report.verdict is Verdict.FAIL


def test_a_number_of_many_values_is_cut_at_its_quartiles_and_null_is_a_group() -> None:
    ages = np.array([*range(100), np.nan], dtype=float)
    names = group_names(ages)
    assert sorted(set(names)) == ["(24.75, 49.5]", "(49.5, 74.25]", "(missing)", "<= 24.75", "> 74.25"]
    assert list(group_names(np.array([1.0, 0.0, np.nan]))) == ["1", "0", "(missing)"]
    assert list(group_names(np.array(["x", None], dtype=object))) == ["x", "(missing)"]


def test_unknown_names_say_the_nearest() -> None:
    groups, y, p = drawn({"a": 0.5}, 10)
    with pytest.raises(BadInput, match="did you mean `equal_opportunity`"):
        measured(groups, y, p, metric="equal_oportunity")
    with pytest.raises(BadInput, match="did you mean `group`"):
        measured(groups, y, p, attribute="grup")


def test_a_stated_reason_is_the_evidence() -> None:
    why = "Machines are sorted here; no person and no company is in the rows."
    report = fairness_report(
        Fairness(not_applicable=why),
        "binary",
        {},
        np.ones(3),
        np.ones((3, 1)),
        model="m",
        bundle="b",
        now=NOW,
    )
    assert (report.verdict, report.to_json()) == (Verdict.PASS, {"not_applicable": why})
    assert why in report.to_markdown() and why in report.to_svg()
    assert [each.verdict for each in gate_results(report)] == [Verdict.PASS]


def test_the_report_is_json_a_page_and_a_picture_of_every_judged_group() -> None:
    groups, y, p = drawn({"a<b": 0.8, "c|d": 0.5}, 400)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one class only, no negatives: figures are left out, not warned about
        report = measured(groups, y, p)
    payload = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert fairness_markdown(payload) == report.to_markdown()
    assert "Holm 1979" in report.to_markdown() and "c\\|d" in report.to_markdown()
    picture = ElementTree.fromstring(report.to_svg())
    assert len(picture.findall(".//{http://www.w3.org/2000/svg}circle")) == 2
    assert "a<b" in "".join(picture.itertext())
