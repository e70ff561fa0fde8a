"""Step 8: version 3 raises on airports it never saw. Its canary finds out, users do not."""

import json
from collections.abc import Callable

from loopwright.kernel.clock import from_us, parse_time
from loopwright.pipeline.fit import Parts
from loopwright.project.spec import Project
from loopwright.stats.sequential import error_rate_judgement
from tests.lifecycle.conftest import Played

THIRD = 3
ERRORS = f"version = {THIRD} AND arm = 'canary' AND status = 'error'"


def test_no_gate_could_see_the_fault(played: Played) -> None:
    (gates,) = played.evidence(THIRD, "gates")
    assert gates["verdict"] == "PASS"
    assert {result["verdict"] for result in gates["payload"]["results"]} == {"PASS"}
    # Whether one of the few flights of the shadow phase went to such an airport is chance; it could not fail it.
    (shadow,) = played.evidence(THIRD, "shadow")
    assert shadow["verdict"] == "INCONCLUSIVE"
    ((copied, failed),) = played.predictions(
        f"SELECT count(*), count(*) FILTER (status = 'error') FROM log WHERE version = {THIRD} AND arm = 'shadow'"
    )
    candidate = shadow["payload"]["evidence"]["candidate"]
    assert (candidate["n"], candidate["errors"]) == (copied, failed)


def test_the_judge_failed_it_on_counts_that_the_log_confirms(played: Played) -> None:
    last = played.evidence(THIRD, "canary")[-1]
    assert last["verdict"] == "FAIL"
    payload = last["payload"]
    began, until = parse_time(payload["before"]["began"]).replace(minute=0), parse_time(payload["event_time"])
    span = f"event_time >= '{began}' AND event_time <= '{until}'"
    ((n, errors),) = played.predictions(
        "SELECT count(*), count(*) FILTER (status = 'error') FROM log "
        f"WHERE version = {THIRD} AND arm = 'canary' AND {span}"
    )
    ((stable, failed),) = played.predictions(
        "SELECT count(*), count(*) FILTER (status = 'error') FROM log "
        f"WHERE version = 2 AND arm = 'stable' AND {span}"
    )
    candidate, baseline = payload["evidence"]["candidate"], payload["evidence"]["baseline"]
    assert (candidate["n"], candidate["errors"]) == (n, errors)
    assert (baseline["n"], baseline["errors"]) == (stable, failed)
    assert errors >= 2
    assert failed == 0
    assert str(error_rate_judgement(stable, failed, n, errors, margin=0.001).verdict) == "FAIL"
    assert f"error rate too high: {errors} errors in {n} canary requests" in played.text


def test_its_errors_are_exactly_the_flights_to_airports_unseen_in_training(
    played: Played, learned: Callable[[int], tuple[Project, Parts]]
) -> None:
    _, parts = learned(THIRD)
    seen = set(parts.train.inputs()["dest"])
    names = [field.name for field in played.bundle(THIRD).schema.inputs]
    destination = names.index("dest")
    asked = played.predictions(
        f"SELECT inputs, status, error FROM log WHERE version = {THIRD} AND arm = 'canary'"
    )
    failed = [json.loads(inputs)[destination] for inputs, status, _ in asked if status == "error"]
    answered = [json.loads(inputs)[destination] for inputs, status, _ in asked if status != "error"]
    assert failed
    assert set(failed).isdisjoint(seen)
    assert set(answered) <= seen
    assert all("KeyError" in error for _, status, error in asked if status == "error")


def test_whoever_met_an_error_was_answered_by_version_2(played: Played) -> None:
    failed = played.predictions(f"SELECT id FROM log WHERE {ERRORS}")
    answers = played.predictions(
        "SELECT id, version, arm, status, len(outputs) FROM log WHERE arm <> 'shadow' AND status <> 'error' "
        f"AND id IN (SELECT id FROM log WHERE {ERRORS})"
    )
    assert sorted(row[0] for row in answers) == sorted(row[0] for row in failed)
    assert {row[1:] for row in answers} == {(2, "stable", "fallback", 1)}
    told = played.figures["rollout_v3"]
    assert told["failed"] == 0
    assert told["fallbacks"] == len(failed)
    assert told["rows"] == told["requests"]


def test_traffic_went_back_to_version_2_at_once(played: Played) -> None:
    back = played.events(THIRD)[-1]
    ((after,),) = played.predictions(
        f"SELECT count(*) FROM log WHERE version = {THIRD} AND event_time > '{from_us(back['event_time'])}'"
    )
    assert after == 0
    ((stable,),) = played.predictions(
        "SELECT count(*) FROM log WHERE version = 2 AND arm = 'stable' "
        f"AND event_time > '{from_us(back['event_time'])}'"
    )
    assert stable > 1_000


def test_the_stage_was_reverted_and_the_audit_log_has_the_evidence(played: Played) -> None:
    assert played.row("lw_rollouts", THIRD)["status"] == "rolled_back"
    assert played.row("lw_versions", THIRD)["stage"] == "Archived"
    assert played.row("lw_promotions", THIRD)["state"] == "reverted"
    assert played.figures["rollout_v3"]["stages"] == {"1": "Archived", "2": "Production", "3": "Archived"}
    failing = played.evidence(THIRD, "canary")[-1]
    moved = played.audit("flight-late/3", "rollout.moved")[-1]
    (reverted,) = played.audit("flight-late/3", "version.reverted")
    assert (moved["payload"]["to"], moved["actor"], reverted["actor"]) == (
        "rolled back",
        "loopwright",
        "loopwright",
    )
    assert moved["payload"]["evidence"] == failing["digest"]
    assert reverted["payload"]["evidence"] == [failing["digest"]]
    assert reverted["payload"]["to"] == 2
    assert "error rate too high" in reverted["payload"]["why"]
    assert moved["at"] == reverted["at"]  # one transaction
