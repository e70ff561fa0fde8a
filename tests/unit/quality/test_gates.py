"""Gates on a bundle: thresholds, latency, comparison, smoke, fairness; no evidence is never a pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from loopwright.kernel.errors import Refused
from loopwright.kernel.verdict import Verdict
from loopwright.project.sections import Gates
from loopwright.quality.gates import MIN_COMPARED, run_gates
from loopwright.quality.report import GateReport, GateResult

NOW = datetime(2026, 1, 1, tzinfo=UTC)
START = datetime(2013, 3, 1, tzinfo=UTC)
ROWS = 2_000
RANDOM = np.random.default_rng(3)
SIGNAL = RANDOM.random(ROWS)
LABELS = (RANDOM.random(ROWS) < SIGNAL).astype(np.float64)
GROUP = np.array(["big"] * 1_200 + ["other"] * 750 + ["tiny"] * 50, dtype=object)


class Holdout:
    def inputs(self) -> dict[str, NDArray[Any]]:
        return {"signal": SIGNAL, "group": GROUP}

    def labels(self) -> NDArray[Any]:
        return LABELS

    def event_times(self) -> NDArray[Any]:
        return np.datetime64("2013-03-01", "us") + np.arange(ROWS) * np.timedelta64(60, "m")


@dataclass
class Model:
    """Answers `signal` mixed with noise; `faults` may raise."""

    noise: float = 0.0
    digest: str = "a" * 64
    raises: Exception | None = None
    smokes: bool = True
    schema: Any = field(default_factory=lambda: SimpleNamespace(outputs=("probability",)))
    manifest: Any = field(default_factory=lambda: SimpleNamespace(model="late"))

    def predict(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        if self.raises:
            raise self.raises
        signal = inputs["signal"]
        # The same row gets the same noise, whatever rows it comes with.
        jitter = np.modf(np.abs(np.sin(signal * 1e4)) * 1e4)[0]
        return np.asarray((1 - self.noise) * signal + self.noise * jitter)[:, None]

    def smoke(self) -> None:
        if not self.smokes:
            raise Refused("golden rows give other outputs here")


def report(gates: dict[str, Any], model: Model | None = None, **kwargs: Any) -> GateReport:
    return run_gates(
        bundle=model or Model(),
        holdout=Holdout(),
        gates=Gates.model_validate(gates),
        task="binary",
        seed=7,
        now=NOW,
        **kwargs,
    )


def only(found: GateReport, kind: str) -> GateResult:
    (one,) = [result for result in found.results if result.kind == kind]
    return one


COMPARE = {"baseline": {"metric": "roc_auc", "tolerance": 0.005, "confidence": 0.95}}


def test_a_metric_is_held_against_its_limit() -> None:
    assert only(report({"metrics": {"roc_auc": ">= 0.8"}}), "metric").verdict is Verdict.PASS
    missed = report({"metrics": {"roc_auc": ">= 0.99"}})
    assert only(missed, "metric").verdict is Verdict.FAIL
    assert missed.verdict is Verdict.FAIL
    assert "roc_auc FAIL" in missed.summary()


def test_an_unknown_metric_is_an_error_that_names_the_nearest() -> None:
    found = only(report({"metrics": {"roc_acu": ">= 0.5"}}), "metric")
    assert found.verdict is Verdict.ERROR
    assert "did you mean `roc_auc`" in found.detail


def test_a_model_that_raises_fails_every_gate_that_needs_its_answers() -> None:
    found = report(
        {"metrics": {"roc_auc": ">= 0.5"}, "latency_p99_ms": "<= 20", **COMPARE},
        Model(raises=KeyError("XYZ")),
    )
    verdicts = {result.kind: result.verdict for result in found.results}
    assert verdicts["metric"] is verdicts["latency"] is verdicts["comparison"] is Verdict.ERROR
    assert not found.passed


def test_golden_smoke_always_runs() -> None:
    assert only(report({}), "smoke").verdict is Verdict.PASS
    assert report({}, Model(smokes=False)).verdict is Verdict.FAIL


def ticking(slow_every: int) -> Callable[[], float]:
    ticks = count()
    spent = 0.0

    def timer() -> float:
        nonlocal spent
        # Two calls a prediction: the second one says how long it took.
        i = next(ticks)
        if i % 2:
            spent += 0.050 if (i // 2) % slow_every == 0 else 0.001
        return spent

    return timer


def test_latency_is_the_p99_of_one_row_predictions() -> None:
    rare = only(report({"latency_p99_ms": "<= 20"}, timer=ticking(slow_every=250)), "latency")
    assert rare.verdict is Verdict.PASS
    assert rare.value == pytest.approx(1.0)
    often = only(report({"latency_p99_ms": "<= 20"}, timer=ticking(slow_every=50)), "latency")
    assert often.verdict is Verdict.FAIL
    assert often.value == pytest.approx(50.0)


def test_a_first_model_says_so() -> None:
    found = only(report(COMPARE), "first model")
    assert found.verdict is Verdict.PASS
    assert found.detail.startswith("first model")


def test_an_equal_model_is_not_worse_and_a_clearly_worse_one_fails() -> None:
    assert only(report(COMPARE, baseline=Model()), "comparison").verdict is Verdict.PASS
    assert only(report(COMPARE, Model(noise=0.5), baseline=Model()), "comparison").verdict is Verdict.FAIL


def test_only_rows_the_baseline_never_saw_are_compared() -> None:
    found = only(
        report(COMPARE, baseline=Model(), baseline_trained_until=START + timedelta(hours=1_000)), "comparison"
    )
    assert found.verdict is Verdict.PASS
    assert "on 999 held-out rows after 2013-04-11T16:00:00Z" in found.detail


def test_too_few_fresh_rows_decide_nothing_and_that_is_no_pass() -> None:
    until = START + timedelta(hours=ROWS - MIN_COMPARED)
    found = report(COMPARE, baseline=Model(), baseline_trained_until=until)
    assert only(found, "comparison").verdict is Verdict.INCONCLUSIVE
    assert not found.passed


def test_a_baseline_that_cannot_answer_is_an_error() -> None:
    assert (
        only(report(COMPARE, baseline=Model(raises=ValueError("gone"))), "comparison").verdict
        is Verdict.ERROR
    )


def test_a_missing_file_of_checks_is_an_error() -> None:
    assert only(report({}, behaviour=Path("/nowhere/behaviour.py")), "behaviour").verdict is Verdict.ERROR


def test_an_export_that_differs_fails() -> None:
    good = SimpleNamespace(rows=10_000, max_difference=1e-7, equal=True)
    bad = SimpleNamespace(rows=10_000, max_difference=0.02, equal=False)
    none = SimpleNamespace(rows=0, max_difference=0.0, equal=True)
    assert only(report({}, export=good), "export").verdict is Verdict.PASS
    assert only(report({}, export=bad), "export").verdict is Verdict.FAIL
    assert only(report({}, export=none), "export").verdict is Verdict.FAIL


def test_the_fairness_gap_leaves_small_groups_out_by_name() -> None:
    fairness = {"attribute": "group", "metric": "equal_opportunity", "max_gap": 0.15}
    found = only(report({"fairness": fairness}), "fairness")
    assert found.verdict is Verdict.PASS
    assert "left out with fewer than 100 rows: tiny" in found.detail
    tight = only(report({"fairness": {**fairness, "max_gap": 0.0}}), "fairness")
    assert tight.verdict is Verdict.INCONCLUSIVE
    assert "may be noise" in tight.detail
    assert only(report({"fairness": {**fairness, "attribute": "grup"}}), "fairness").verdict is Verdict.ERROR


def test_a_report_without_gates_is_no_pass() -> None:
    assert GateReport("m", "d", None, 0, NOW, ()).verdict is Verdict.ERROR


def test_a_report_is_as_good_as_its_worst_gate() -> None:
    def of(*verdicts: Verdict) -> Verdict:
        results = tuple(GateResult("g", "metric", verdict, None, "", "") for verdict in verdicts)
        return GateReport("m", "d", None, 1, NOW, results).verdict

    assert of(Verdict.PASS, Verdict.INCONCLUSIVE) is Verdict.INCONCLUSIVE
    assert of(Verdict.ERROR, Verdict.INCONCLUSIVE) is Verdict.ERROR
    assert of(Verdict.ERROR, Verdict.FAIL) is Verdict.FAIL


def test_the_same_seed_gives_the_same_report() -> None:
    def once() -> Any:
        return report({**COMPARE, "metrics": {"brier": "<= 0.3"}}, baseline=Model(noise=0.1)).to_json()

    assert once() == once()


def test_reports_can_be_read_by_people_and_by_ci() -> None:
    found = report({"metrics": {"roc_auc": ">= 0.99", "oops": "<= 1"}}, behaviour=None)
    text = found.to_markdown()
    assert "| roc_auc | FAIL |" in text
    assert text.startswith("# Gates of late: FAIL")
    suite = ElementTree.fromstring(found.to_junit())
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    failure = suite.find(".//failure")
    assert failure is not None
    assert ">= 0.99" in (failure.get("message") or "")


def test_junit_survives_what_a_check_may_say() -> None:
    odd = GateResult("a|b", "behaviour", Verdict.ERROR, float("nan"), "", "bad \x00 byte | <xml> & \n more")
    found = GateReport("m", "d", None, 1, NOW, (odd,))
    assert ElementTree.fromstring(found.to_junit()).find(".//error") is not None
    assert "a\\|b" in found.to_markdown()
    assert found.to_json()["results"][0]["value"] is None
