"""Step 4: the gates of each version, their evidence, and the numbers behind them, worked out again."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from loopwright.pipeline.fit import Parts
from loopwright.project.spec import Project
from tests.lifecycle.conftest import Played

Learned = Callable[[int], tuple[Project, Parts]]


def gates(played: Played, version: int) -> dict[str, dict[str, Any]]:
    """The gate results of a version by kind; the three behavioural checks by the first word of their names."""
    (evidence,) = played.evidence(version, "gates")
    assert evidence["verdict"] == "PASS"
    found = {}
    for result in evidence["payload"]["results"]:
        kind = result["name"].split(":")[0] if result["kind"] == "behaviour" else result["kind"]
        assert kind not in found
        found[kind] = result
    return found


def test_the_first_model_is_called_one_and_compared_with_nothing(played: Played) -> None:
    results = gates(played, 1)
    assert set(results) == {
        "smoke", "export", "metric", "latency", "first model", "invariance", "directional", "minimum functionality",
        "fairness",
    }  # fmt: skip
    assert {result["verdict"] for result in results.values()} == {"PASS"}
    assert results["first model"]["detail"] == "first model: nothing to compare with"
    assert results["first model"]["value"] is None
    assert "first model: nothing to compare with" in played.text


def test_the_metric_gate_judged_the_auc_that_the_bundle_has(played: Played, learned: Learned) -> None:
    for version in (1, 2, 3):
        _, parts = learned(version)
        auc = roc_auc_score(
            parts.holdout.labels(), played.bundle(version).predict(parts.holdout.inputs())[:, 0]
        )
        result = gates(played, version)["metric"]
        assert result["value"] == pytest.approx(auc, abs=1e-6)
        assert result["limit"] == ">= 0.68"
        assert auc >= 0.68


def test_the_packaged_bundle_answers_a_row_in_milliseconds(played: Played) -> None:
    result = gates(played, 1)["latency"]
    assert result["limit"] == "<= 20 ms"
    assert 0 < result["value"] < 20


def test_the_second_model_is_surely_not_worse_than_the_first_on_rows_neither_saw(
    played: Played, learned: Learned
) -> None:
    (evidence,) = played.evidence(2, "gates")
    assert evidence["payload"]["baseline"] == played.row("lw_versions", 1)["bundle"]
    result = gates(played, 2)["comparison"]
    _, parts = learned(2)
    _, first = learned(1)
    rows = parts.holdout.event_times() > first.train.event_times().max()
    assert f"on {np.count_nonzero(rows)} held-out rows" in result["detail"]

    y = parts.holdout.labels()[rows]
    inputs = {name: values[rows] for name, values in parts.holdout.inputs().items()}
    new, old = (played.bundle(version).predict(inputs)[:, 0] for version in (2, 1))
    gain = roc_auc_score(y, new) - roc_auc_score(y, old)
    assert result["value"] == pytest.approx(gain, abs=1e-6)
    assert f"gain {gain:+.4f}" in result["detail"]

    random = np.random.default_rng(0)
    gains = []
    for _ in range(60):
        chosen = random.integers(0, len(y), len(y))
        gains.append(roc_auc_score(y[chosen], new[chosen]) - roc_auc_score(y[chosen], old[chosen]))
    low = float(np.quantile(gains, 0.05))
    assert low > -0.005
    assert float(result["detail"].split("at least ")[1].split(" ")[0]) == pytest.approx(low, abs=0.002)


def test_three_behaviours_were_checked_on_held_out_flights(played: Played, learned: Learned) -> None:
    results = gates(played, 1)
    for kind in ("invariance", "directional", "minimum functionality"):
        assert results[kind]["detail"].startswith("500 of 500 rows behave")
        assert results[kind]["value"] == 1.0
    # The directional claim, on all held-out flights rather than 500: worse lately is never less likely late.
    _, parts = learned(1)
    inputs = parts.holdout.inputs()
    worse = {
        name: np.minimum(values + 0.3, 1.0) if name.startswith("late_") else values
        for name, values in inputs.items()
    }
    before, after = (played.bundle(1).predict(columns)[:, 0] for columns in (inputs, worse))
    assert np.mean(after >= before - 1e-6) >= 0.99
    assert after.mean() > before.mean() + 0.05


def test_evidence_stands_before_the_version_and_names_its_bytes(played: Played) -> None:
    for version in (1, 2, 3):
        row = played.row("lw_versions", version)
        recorded = [
            audit
            for audit in played.audit("flight-late", "evidence.recorded")
            if audit["payload"]["bundle"] == row["bundle"] and audit["payload"]["kind"] == "gates"
        ]
        (registered,) = played.audit(f"flight-late/{version}", "version.registered")
        assert len(recorded) == 1
        assert recorded[0]["seq"] < registered["seq"]
        assert registered["payload"]["bundle"] == row["bundle"]
        assert (row["author"], row["snapshot"]) == ("ana", played.figures["data"]["snapshot"])
