"""Step 5: nobody moves a model to Production alone, with whatever client."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd

from tests.lifecycle.conftest import Played

MODEL = "flight-late/1"


def test_a_plain_mlflow_client_was_refused_and_told_what_is_missing(played: Played) -> None:
    told = played.figures["promotion"]
    assert told["refused_status"] == 403
    assert "flight-late/1: cannot be moved to Production" in told["refusal"]
    assert "a request for Production and 2 approvals by different people" in told["refusal"]
    assert "loopwright promote flight-late 1 --to production" in told["refusal"]
    (refused,) = played.audit(MODEL, "registry.refused")
    assert refused["actor"] == "ana"
    assert refused["payload"]["act"] == "stage.transition"
    assert "2 approvals by different people" in refused["payload"]["why"]


def test_the_audit_log_tells_refusal_request_approvals_and_effect_in_order(played: Played) -> None:
    rows = played.audit(
        MODEL, "registry.refused", "promotion.requested", "approval.given", "promotion.effective"
    )
    assert [(row["actor"], row["action"]) for row in rows] == [
        ("ana", "registry.refused"),
        ("ana", "promotion.requested"),
        ("bo", "approval.given"),
        ("chen", "approval.given"),
        ("chen", "promotion.effective"),
    ]
    effect = rows[-1]["payload"]
    wanted = [played.evidence(1, kind) for kind in ("gates", "fairness", "explainability", "card")]
    assert [len(found) for found in wanted] == [1, 1, 1, 1]
    assert effect["approved_by"] == ["bo", "chen"]
    assert effect["requested_by"] == "ana"
    assert sorted(effect["evidence"]) == sorted(found["digest"] for (found,) in wanted)
    assert {row["payload"].get("bundle", effect["bundle"]) for row in rows} == {effect["bundle"]}


def test_every_version_in_production_had_two_approvals_of_exactly_its_bytes(played: Played) -> None:
    promotions = played.sql("SELECT * FROM lw_promotions")
    roles = {row["name"]: row["role"] for row in played.sql("SELECT * FROM lw_users")}
    assert (roles["ana"], roles["bo"], roles["chen"]) == ("developer", "approver", "approver")
    assert len(promotions) >= 4
    for promotion in promotions:
        approvals = played.sql(f"SELECT * FROM lw_approvals WHERE promotion_id = '{promotion['id']}'")
        author = played.row("lw_versions", promotion["version"])["author"]
        reviewers = {a["reviewer"] for a in approvals if a["decision"] == "approve"}
        assert len(reviewers) == len(approvals) == 2
        assert author not in reviewers
        assert {a["bundle"] for a in approvals} == {promotion["bundle"]}
        assert promotion["bundle"] == played.row("lw_versions", promotion["version"])["bundle"]
        assert json.loads(promotion["policy"])["approvals"]["production"] == 2
        assert max(a["at"] for a in approvals) <= promotion["decided_at"]


def test_mlflows_own_tables_agree_with_the_ledger(played: Played) -> None:
    told = played.figures["promotion"]
    assert (told["stage"], told["loaded"], told["approvers"]) == ("Production", True, ["bo", "chen"])
    ours = {row["version"]: row["stage"] for row in played.sql("SELECT version, stage FROM lw_versions")}
    theirs = played.sql("SELECT version, current_stage, run_id, source FROM model_versions")
    assert {row["version"]: row["current_stage"] for row in theirs} == ours
    (first,) = [row for row in theirs if row["version"] == 1]
    row = played.row("lw_versions", 1)
    assert first["run_id"] == row["run_id"] == told["run_id"]
    assert first["source"] == f"mlflow-artifacts:/bundles/{row['bundle']}"


def test_plain_mlflow_predicts_from_the_bundle_what_the_bundle_answers(
    played: Played, tmp_path: Path
) -> None:
    logged = played.predictions(
        "SELECT inputs, outputs[1] FROM log WHERE version = 1 AND arm = 'stable' ORDER BY md5(id) LIMIT 200"
    )
    names = [field.name for field in played.bundle(1).schema.inputs]
    frame = pd.DataFrame([json.loads(inputs) for inputs, _ in logged], columns=names)
    model = mlflow.pyfunc.load_model(str(played.bundle_path(1)), dst_path=str(tmp_path))
    answers = np.asarray(model.predict(frame)).reshape(-1)
    np.testing.assert_allclose(answers, [answer for _, answer in logged], atol=1e-7)
