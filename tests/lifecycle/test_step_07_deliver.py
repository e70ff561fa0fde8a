"""Step 7: version 2 went through shadow and a canary 1 → 5 → 25 → 100 %, each step on recorded evidence."""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from loopwright.kernel.clock import from_us, parse_time
from loopwright.stats.sequential import error_rate_judgement
from tests.lifecycle.conftest import Played

SECOND = 2
HOLDS = {
    "shadow": timedelta(hours=1),
    "canary 1 %": timedelta(hours=1),
    "canary 5 %": timedelta(hours=4),
    "canary 25 %": timedelta(hours=24),
}


def moves(played: Played, version: int) -> list[dict[str, Any]]:
    return [event for event in played.events(version) if event["kind"] == "moved"]


def at(event: dict[str, Any]) -> datetime:
    return from_us(event["event_time"])


def test_the_rollout_began_only_when_two_people_had_agreed(played: Played) -> None:
    rows = played.audit("flight-late/2", "approval.given", "promotion.effective", "rollout.started")
    assert [row["action"] for row in rows] == [
        "approval.given",
        "approval.given",
        "promotion.effective",
        "rollout.started",
    ]
    assert rows[-1]["payload"]["baseline"] == 1


def test_the_weights_grew_1_5_25_100_and_each_was_held(played: Played) -> None:
    steps = moves(played, SECOND)
    assert [(e["payload"]["from"], e["payload"]["to"]) for e in steps] == [
        ("shadow", "canary 1 %"),
        ("canary 1 %", "canary 5 %"),
        ("canary 5 %", "canary 25 %"),
        ("canary 25 %", "complete"),
    ]
    began = played.events(SECOND)[0]
    assert began["kind"] == "started"
    for before, after in pairwise([began, *steps]):
        assert at(after) - at(before) >= HOLDS[after["payload"]["from"]]


def test_the_shadow_saw_copies_whose_agreement_was_measured_and_answered_nobody(played: Played) -> None:
    (evidence,) = played.evidence(SECOND, "shadow")
    recorded = evidence["payload"]["evidence"]["agreement"]
    pairs = played.predictions(
        "SELECT s.outputs[1], b.outputs[1] FROM log s JOIN log b USING (id) "
        f"WHERE s.version = {SECOND} AND s.arm = 'shadow' AND b.arm = 'stable' AND b.version = 1 AND s.status = 'ok'"
    )
    shadow, stable = np.array(pairs).T
    assert recorded["pairs"] == len(pairs) > 50
    assert recorded["mean_absolute_difference"] == pytest.approx(np.abs(shadow - stable).mean(), abs=1e-9)
    assert recorded["correlation"] == pytest.approx(np.corrcoef(shadow, stable)[0, 1], abs=1e-9)
    assert recorded["same_decision"] == pytest.approx(((shadow >= 0.5) == (stable >= 0.5)).mean(), abs=1e-9)
    assert recorded["unanswered"] == 0
    assert f"shadow answered {len(pairs):,} of the same requests" in played.text


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_canary_step_was_judged_on_what_the_log_holds(played: Played, number: int) -> None:
    evidence = played.evidence(SECOND, "canary")[number]["payload"]
    began = parse_time(evidence["before"]["began"]).replace(minute=0)
    until = parse_time(evidence["event_time"])
    counted = {
        arm: (n, errors)
        for arm, n, errors in played.predictions(
            "SELECT arm, count(*), count(*) FILTER (status = 'error') FROM log WHERE arm IN ('stable', 'canary') "
            f"AND version = CASE arm WHEN 'canary' THEN {SECOND} ELSE 1 END "
            f"AND event_time >= '{began}' AND event_time <= '{until}' GROUP BY arm"
        )
    }
    judged = evidence["evidence"]
    assert (judged["candidate"]["n"], judged["candidate"]["errors"]) == counted["canary"]
    assert (judged["baseline"]["n"], judged["baseline"]["errors"]) == counted["stable"]


def test_small_steps_asked_for_no_harm_and_the_quarter_for_a_pass(played: Played) -> None:
    recorded = played.evidence(SECOND, "canary")
    assert [evidence["payload"]["before"]["weight"] for evidence in recorded] == [0.01, 0.05, 0.25]
    assert [evidence["verdict"] for evidence in recorded][:2] == ["INCONCLUSIVE", "INCONCLUSIVE"]
    assert recorded[2]["verdict"] == "PASS"
    for evidence in recorded:
        arms = evidence["payload"]["evidence"]
        again = error_rate_judgement(
            arms["baseline"]["n"],
            arms["baseline"]["errors"],
            arms["candidate"]["n"],
            arms["candidate"]["errors"],
            margin=0.001,
        )
        figures = evidence["payload"]["judgement"]["figures"]["errors"]
        assert str(again.verdict) == figures["verdict"] != "FAIL"
        assert again.e_pass == pytest.approx(figures["e_pass"])
    assert recorded[2]["payload"]["judgement"]["figures"]["errors"]["e_pass"] >= 1 / 0.05


def test_traffic_was_split_as_the_weights_said_and_users_stayed_where_they_were(played: Played) -> None:
    steps = moves(played, SECOND)
    for (start, end), weight in zip(pairwise(map(at, steps)), (0.01, 0.05, 0.25), strict=True):
        ((share, units),) = played.predictions(
            "SELECT avg((arm = 'canary')::INT), count(DISTINCT unit) FROM log WHERE arm <> 'shadow' "
            f"AND event_time > '{start}' AND event_time < '{end}'"
        )
        # Aircraft are drawn, not flights: a few hundred of them decide the share.
        assert share == pytest.approx(weight, abs=3.5 * np.sqrt(weight / units))
    left = played.predictions(f"""
        WITH entered AS (
            SELECT unit, min(event_time) AS since FROM log WHERE arm = 'canary' AND version = {SECOND} GROUP BY unit)
        SELECT count(*) FROM log JOIN entered USING (unit)
        WHERE version = 1 AND arm = 'stable' AND event_time > since""")
    assert left == [(0,)]


def test_at_100_percent_version_2_answered_alone_and_version_1_was_archived(played: Played) -> None:
    completed = played.events(SECOND)[-1]
    assert completed["kind"] == "completed"
    assert completed["payload"]["archived"] == 1
    assert played.row("lw_rollouts", SECOND)["status"] == "completed"
    ((late,),) = played.predictions(
        f"SELECT count(*) FROM log WHERE version = 1 AND event_time > '{at(completed)}'"
    )
    assert late == 0
    (archived,) = played.audit("flight-late/1", "version.archived")
    assert archived["payload"]["why"] == "replaced by 2"
    assert played.row("lw_versions", 1)["stage"] == "Archived"
    told = played.figures["rollout_v2"]
    assert told["failed"] == told["fallbacks"] == 0
    assert told["rows"] == told["requests"]
