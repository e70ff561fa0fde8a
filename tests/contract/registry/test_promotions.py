"""Promotions, approvals, rollbacks: our rows, MLflow's rows and the audit log move together, on every engine."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, text

from loopwright.bundle.approval import sign_record, verify_record
from loopwright.bundle.keys import SigningKey
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Refused, Tampered
from loopwright.kernel.stage import Stage
from loopwright.kernel.verdict import Verdict
from loopwright.ledger import store as audit
from loopwright.ledger.engine import Ledger
from loopwright.registry import promotion, versions
from loopwright.registry.approval import approval_record
from loopwright.registry.evidence import evidence_of
from loopwright.registry.lineage import lineage
from tests.governing import vouch

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
ANA, BO, CY, DI = (
    Actor("ana", Role.DEVELOPER),
    Actor("bo", Role.APPROVER),
    Actor("cy", Role.APPROVER),
    Actor("di", Role.APPROVER),
)
M = "flights"


def digest(number: int) -> str:
    return f"{number:x}" * 64


def register(conn: Connection, number: int = 1, verdict: Verdict | None = Verdict.PASS) -> versions.Version:
    bundle = digest(number)
    vouch(conn, M, bundle, at=NOON, gates=verdict)
    return versions.register_version(
        conn, model=M, bundle=bundle, run_id=f"run{number}", snapshot=None, author=ANA, metrics={"roc_auc": 0.7},
        now=NOON, parent=number - 1 or None,
    )  # fmt: skip


def request(conn: Connection, version: int, stage: Stage = Stage.PRODUCTION) -> promotion.Promotion:
    return promotion.request_promotion(
        conn, model=M, version=version, stage=stage, actor=ANA, reason="better", now=NOON
    )


def approve(conn: Connection, version: int, reviewer: Actor, at: datetime = NOON) -> promotion.Promotion:
    return promotion.approve(conn, model=M, version=version, reviewer=reviewer, now=at, comment="fine")


def promote(conn: Connection, version: int, at: datetime = NOON) -> None:
    request(conn, version)
    approve(conn, version, BO, at)
    assert approve(conn, version, CY, at).state == "effective"


def mlflow_stages(conn: Connection) -> dict[int, str]:
    rows = conn.execute(text("SELECT version, current_stage FROM model_versions ORDER BY version"))
    return {int(version): str(stage) for version, stage in rows}


def aliases(conn: Connection) -> dict[str, int]:
    return {
        str(a): int(v) for a, v in conn.execute(text("SELECT alias, version FROM registered_model_aliases"))
    }


def stages(conn: Connection) -> dict[int, str]:
    return {v.version: v.stage.value for v in versions.list_versions(conn, model=M)}


def actions(conn: Connection) -> list[tuple[str, str]]:
    return [(row.actor, row.action) for row in audit.rows(conn) if not row.action.startswith("evidence")]


def test_a_registered_bundle_is_a_version_in_both_registries(ledger: Ledger) -> None:
    with ledger.write() as conn:
        first = register(conn)
        assert (first.version, first.semver, first.stage) == (1, "1.0.0", Stage.NONE)
        assert register(conn, 2).semver == "1.1.0"
        assert register(conn, 1) == first, "the same bundle again is the same version"
        source = conn.execute(text("SELECT source, user_id FROM model_versions WHERE version = 1")).one()
    assert tuple(source) == (f"mlflow-artifacts:/bundles/{digest(1)}", "ana")


def test_the_second_approval_makes_a_promotion_effective_everywhere_at_once(ledger: Ledger) -> None:
    with ledger.write() as conn:
        register(conn)
        assert request(conn, 1).state == "pending"
        assert approve(conn, 1, BO).state == "pending"
        assert mlflow_stages(conn) == {1: "None"}
        assert approve(conn, 1, CY).state == "effective"
        assert stages(conn) == mlflow_stages(conn) == {1: "Production"}
        assert aliases(conn) == {"champion": 1, "production": 1}
        wanted = versions.current(conn, model=M)
        assert wanted is not None and wanted.version == 1
        assert actions(conn) == [
            ("ana", "version.registered"), ("ana", "promotion.requested"), ("bo", "approval.given"),
            ("cy", "approval.given"), ("cy", "promotion.effective"),
        ]  # fmt: skip
        assert audit.verify(conn).ok


def test_the_effective_row_names_the_evidence_and_the_policy(ledger: Ledger) -> None:
    with ledger.write() as conn:
        register(conn)
        promote(conn, 1)
        (row,) = audit.rows(conn, action="promotion.effective")
        seen = {item.digest for item in evidence_of(conn, model=M, version=1)}
        (done,) = promotion.list_promotions(conn, model=M, state="effective")
    assert set(row.payload["evidence"]) == seen and row.payload["policy"] == done.policy_digest
    assert row.payload["approved_by"] == ["bo", "cy"]


@pytest.mark.parametrize(
    ("reviewer", "reason"),
    [
        (Actor("ana", Role.ADMIN), "ana is the author"),
        (BO, "bo has spoken"),
        (Actor("di", Role.DEVELOPER), "wanted role approver"),
    ],
)
def test_a_refused_approval_leaves_nothing_behind(ledger: Ledger, reviewer: Actor, reason: str) -> None:
    with ledger.write() as conn:
        register(conn)
        request(conn, 1)
        approve(conn, 1, BO)
    with pytest.raises(Refused, match=reason), ledger.write() as conn:
        approve(conn, 1, reviewer)
    with ledger.read() as conn:
        assert stages(conn) == {1: "None"}
        assert len(promotion.list_promotions(conn)[0].approvals) == 1
        assert actions(conn)[-1] == ("bo", "approval.given")


def test_an_approval_of_other_bytes_is_refused(ledger: Ledger) -> None:
    with ledger.write() as conn:
        register(conn)
        request(conn, 1)
        with pytest.raises(Refused, match="other bytes"):
            promotion.approve(conn, model=M, version=1, reviewer=BO, now=NOON, bundle=digest(2))


@pytest.mark.parametrize("verdict", [None, Verdict.FAIL, Verdict.INCONCLUSIVE])
def test_approvals_without_passed_gates_do_not_promote(ledger: Ledger, verdict: Verdict | None) -> None:
    with ledger.write() as conn:
        register(conn, verdict=verdict)
        request(conn, 1)
        approve(conn, 1, BO)
        assert approve(conn, 1, CY).state == "pending"
        lacking = promotion.assessment(conn, model=M, version=1, stage=Stage.PRODUCTION, now=NOON)
        assert len(lacking.missing) == 1 and lacking.missing[0].startswith("gates: ")
        assert stages(conn) == {1: "None"}


def test_a_rejection_ends_the_promotion_and_a_new_request_starts_over(ledger: Ledger) -> None:
    with ledger.write() as conn:
        register(conn)
        request(conn, 1)
        approve(conn, 1, BO)
        ended = promotion.reject(conn, model=M, version=1, reviewer=CY, now=NOON, comment="not yet")
        assert ended.state == "rejected"
        with pytest.raises(NotFound, match="the last one is rejected"):
            approve(conn, 1, DI)
        request(conn, 1)
        assert approve(conn, 1, BO).state == "pending", "the approval of the rejected request is spent"


def test_a_request_is_withdrawn_by_its_maker_or_an_admin_only(ledger: Ledger) -> None:
    with ledger.write() as conn:
        register(conn)
        request(conn, 1)
        with pytest.raises(Refused, match="withdraw ana's request"):
            promotion.withdraw(conn, model=M, version=1, actor=BO, now=NOON)
        assert promotion.withdraw(conn, model=M, version=1, actor=ANA, now=NOON).state == "withdrawn"


def test_one_promotion_waits_at_a_time(ledger: Ledger) -> None:
    with ledger.write() as conn:
        register(conn)
        request(conn, 1)
        with pytest.raises(Conflict, match="waiting already"):
            request(conn, 1)


def test_a_version_in_production_is_not_promoted_away_to_staging(ledger: Ledger) -> None:
    with ledger.write() as conn:
        register(conn)
        request(conn, 1, Stage.STAGING)
        promotion.request_promotion(
            conn, model=M, version=1, stage=Stage.PRODUCTION, actor=ANA, reason="", now=NOON + timedelta(1)
        )
        approve(conn, 1, BO)
        assert approve(conn, 1, CY).state == "effective"
        with pytest.raises(Conflict, match="leaves Production only by"):
            approve(conn, 1, DI)
        assert stages(conn) == {1: "Production"}
        assert approval_record(conn, model=M, version=1).stage == "Production"
    with ledger.write() as conn:
        register(conn, 2)
        promote(conn, 2, NOON + timedelta(2))
        with pytest.raises(Conflict, match="leaves Production only by"):
            request(conn, 2, Stage.STAGING)


def test_unknown_versions_and_stages_say_what_there_is(ledger: Ledger) -> None:
    with ledger.write() as conn:
        register(conn)
        with pytest.raises(NotFound, match="no version 7; wanted one of 1"):
            request(conn, 7)
        with pytest.raises(NotFound, match="did you mean `flights`"):
            versions.get_version(conn, model="flight", version=1)
        with pytest.raises(BadInput, match="not a stage to promote to"):
            request(conn, 1, Stage.ARCHIVED)


def test_a_name_mlflow_cannot_hold_is_refused(ledger: Ledger) -> None:
    with pytest.raises(BadInput, match="without / and :"), ledger.write() as conn:
        versions.register_version(
            conn, model="a/b", bundle=digest(1), run_id=None, snapshot=None, author=ANA, metrics={}, now=NOON
        )


def test_during_a_rollout_both_are_in_production_and_the_new_one_is_wanted(ledger: Ledger) -> None:
    with ledger.write() as conn:
        register(conn, 1)
        register(conn, 2)
        promote(conn, 1)
        promote(conn, 2, NOON + timedelta(days=1))
        assert stages(conn) == {1: "Production", 2: "Production"}
        wanted = versions.current(conn, model=M)
        assert wanted is not None and wanted.version == 2
        assert (
            approval_record(conn, model=M, version=1).first
            and not approval_record(conn, model=M, version=2).first
        )
        with pytest.raises(Conflict, match="leaves Production only by a rollback"):
            promotion.archive(conn, model=M, version=2, why="no", now=NOON)
        promotion.archive(conn, model=M, version=1, why="replaced by 2", now=NOON)
        assert stages(conn) == mlflow_stages(conn) == {1: "Archived", 2: "Production"}


def test_a_reverted_version_needs_new_approvals_and_the_old_one_serves(ledger: Ledger) -> None:
    with ledger.write() as conn:
        register(conn, 1)
        register(conn, 2)
        promote(conn, 1)
        promote(conn, 2, NOON + timedelta(days=1))
        back = promotion.revert(
            conn, model=M, version=2, to_version=1, why="the judge said FAIL", evidence=("e1",), now=NOON
        )
        assert back is not None and back.version == 1
        assert stages(conn) == mlflow_stages(conn) == {1: "Production", 2: "Archived"}
        assert aliases(conn) == {"champion": 1, "production": 1}
        with pytest.raises(Refused, match="not in Production"):
            approval_record(conn, model=M, version=2)
        with pytest.raises(Refused, match="its approval was reverted"):
            promotion.rollback(conn, model=M, actor=BO, reason="again", now=NOON, to_version=2)
        assert promotion.rollback_target(conn, model=M) is None
        (row,) = audit.rows(conn, action="version.reverted")
        assert row.payload["evidence"] == ["e1"] and row.payload["why"] == "the judge said FAIL"


def test_a_rollback_brings_an_archived_version_back_without_new_approvals(ledger: Ledger) -> None:
    with ledger.write() as conn:
        for number in (1, 2):
            register(conn, number)
            promote(conn, number, NOON + timedelta(days=number))
        promotion.archive(conn, model=M, version=1, why="replaced", now=NOON)
        with pytest.raises(Refused, match="wanted role approver"):
            promotion.rollback(conn, model=M, actor=ANA, reason="slow", now=NOON)
        assert promotion.rollback(conn, model=M, actor=BO, reason="slow", now=NOON).version == 1
        assert stages(conn) == mlflow_stages(conn) == {1: "Production", 2: "Archived"}
        with pytest.raises(Refused, match="no earlier approved version"):
            promotion.rollback(conn, model=M, actor=BO, reason="slow", now=NOON)


def test_a_version_never_approved_cannot_be_rolled_back_to(ledger: Ledger) -> None:
    with ledger.write() as conn:
        register(conn, 1)
        register(conn, 2)
        promote(conn, 2)
        with pytest.raises(Refused, match="never approved"):
            promotion.rollback(conn, model=M, actor=BO, reason="x", now=NOON, to_version=1)


def test_a_changed_source_in_mlflows_row_stops_the_promotion(ledger: Ledger) -> None:
    with ledger.write() as conn:
        register(conn)
        request(conn, 1)
        approve(conn, 1, BO)
        conn.execute(text("UPDATE model_versions SET storage_location = 'mlflow-artifacts:/1/evil'"))
    with pytest.raises(Tampered, match="other bytes"), ledger.write() as conn:
        approve(conn, 1, CY)
    with ledger.read() as conn:
        assert stages(conn) == {1: "None"}


def test_the_projects_policy_governs_its_model(ledger: Ledger) -> None:
    spec = json.dumps(
        {"policy": {"tier": "low", "approvals": {"staging": 0, "production": 1}, "author_may_approve": True}}
    )
    with ledger.write() as conn:
        conn.execute(
            text(
                "INSERT INTO lw_projects (model, path, spec, spec_digest, updated_at, waived)"
                " VALUES (:m, '', :s, '', 0, '[\"tier\"]')"
            ),
            {"m": M, "s": spec},
        )
        register(conn)
        assert request(conn, 1, Stage.STAGING).state == "effective"
        request(conn, 1)
        assert approve(conn, 1, Actor("ana", Role.APPROVER)).state == "effective"
        assert aliases(conn) == {"champion": 1, "production": 1}


def test_the_approval_record_signs_and_names_who_approved_which_bytes(
    ledger: Ledger, tmp_path: object
) -> None:
    key = SigningKey.load_or_create(tmp_path / "key")  # type: ignore[operator]
    with ledger.write() as conn:
        register(conn)
        with pytest.raises(Refused, match="may not be served"):
            approval_record(conn, model=M, version=1)
        promote(conn, 1)
        record = approval_record(conn, model=M, version=1)
        assert record == approval_record(conn, model=M, version=1)
    assert (record.bundle, record.stage, record.requested_by, record.first) == (
        digest(1),
        "Production",
        "ana",
        True,
    )
    assert record.approvals == (("bo", "2013-07-01T12:00:00Z"), ("cy", "2013-07-01T12:00:00Z"))
    assert verify_record(sign_record(record, key), [key.public]) == record


def test_annotations_show_as_tags_in_mlflow(ledger: Ledger) -> None:
    with ledger.write() as conn:
        register(conn)
        noted = versions.annotate(
            conn, model=M, version=1, key="review", value="approved by SRE", actor=ANA, now=NOON
        )
        tag = conn.execute(
            text("SELECT value FROM model_version_tags WHERE key = 'loopwright.note.review'")
        ).scalar()
    assert noted.annotations == {"review": "approved by SRE"} and tag == "approved by SRE"


def test_lineage_tells_where_a_version_came_from(ledger: Ledger) -> None:
    with ledger.write() as conn:
        register(conn, 1)
        register(conn, 2)
        promote(conn, 2)
        graph = lineage(conn, model=M, version=2, generations=2, whole=True)
    ids = {node["id"] for node in graph["nodes"]}
    assert {"flights/1", "flights/2", "run1", "run2", digest(1), digest(2)} <= ids
    assert all(edge["from"] in ids and edge["to"] in ids for edge in graph["edges"])
