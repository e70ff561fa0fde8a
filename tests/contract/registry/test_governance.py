"""Policies as recorded, approvals that expire, clocks set back, freezes, and broken glass: on every engine."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection

from loopwright.kernel.actor import SYSTEM, Actor, Role
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Refused
from loopwright.kernel.stage import Stage
from loopwright.kernel.verdict import Verdict
from loopwright.ledger import store as audit
from loopwright.ledger.engine import Ledger
from loopwright.pipeline.store import save_project
from loopwright.project.policy import Policy as Section
from loopwright.registry import policies, promotion, review, versions
from loopwright.registry.approval import approval_record
from loopwright.registry.policy import Policy
from tests.governing import ADMIN, record, vouch

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
ANA = Actor("ana", Role.DEVELOPER)
BO, CY, DI = (Actor(name, Role.APPROVER) for name in ("bo", "cy", "di"))
M = "flights"
WHY = "the airport is closed and the model says on time"


def digest(number: int) -> str:
    return f"{number:x}" * 64


def register(
    conn: Connection, number: int = 1, gates: Verdict | None = Verdict.PASS, at: datetime = NOON
) -> None:
    vouch(conn, M, digest(number), at=at, gates=gates)
    versions.register_version(
        conn, model=M, bundle=digest(number), run_id=None, snapshot=None, author=ANA, metrics={}, now=at
    )


def ask(conn: Connection, version: int = 1, at: datetime = NOON, stage: Stage = Stage.PRODUCTION) -> Any:
    return promotion.request_promotion(
        conn, model=M, version=version, stage=stage, actor=ANA, reason="better", now=at
    )


def approve(conn: Connection, who: Actor, version: int = 1, at: datetime = NOON) -> str:
    return promotion.approve(conn, model=M, version=version, reviewer=who, now=at).state


def promote(conn: Connection, version: int, at: datetime = NOON) -> None:
    ask(conn, version, at)
    approve(conn, BO, version, at)
    assert approve(conn, CY, version, at) == "effective"


def smash(
    conn: Connection, version: int = 1, who: Actor = ADMIN, at: datetime = NOON, reason: str = WHY
) -> Any:
    return review.break_glass(conn, model=M, version=version, actor=who, reason=reason, now=at)


def decide(
    conn: Connection, who: Actor, outcome: str = "uphold", version: int = 1, at: datetime = NOON
) -> Any:
    return review.decide(
        conn, model=M, version=version, reviewer=who, outcome=outcome, comment="looked at the log", now=at
    )


def set_policy(
    conn: Connection, who: Actor = ADMIN, at: datetime = NOON, tier: str = "high", **said: Any
) -> Any:
    return policies.set_document(
        conn, {"tier": tier, **said}, actor=who, reason="decided by the board", now=at
    )


def lacks(conn: Connection, version: int = 1, at: datetime = NOON) -> tuple[str, ...]:
    return promotion.assessment(conn, model=M, version=version, stage=Stage.PRODUCTION, now=at).missing


def section(**said: Any) -> dict[str, Any]:
    return Section.from_json({"tier": "high", **said}).model_dump(mode="json")


def adopt(conn: Connection, who: Actor, *, deliberate: bool = False, **said: Any) -> tuple[str, ...]:
    points = policies.admit(conn, model=M, section=section(**said), actor=who, deliberate=deliberate)
    save_project(conn, M, "", {"policy": section(**said)}, "", NOON)
    policies.waive(conn, M, points, actor=who, now=NOON)
    return points


class TestApprovalsExpire:
    def test_an_expired_approval_does_not_count_and_may_be_renewed_without_losing_the_first(
        self, ledger: Ledger
    ) -> None:
        later = NOON + 15 * DAY
        with ledger.write() as conn:
            register(conn)
            ask(conn)
            approve(conn, BO)
            assert approve(conn, CY, at=later) == "pending"
            (lack,) = lacks(conn, at=later)
            assert "bo's of 2013-07-01T12:00:00Z expired" in lack
            assert approve(conn, BO, at=later) == "effective"
            (done,) = promotion.list_promotions(conn, model=M)
            assert [said.reviewer for said in done.approvals] == ["bo", "cy", "bo"]
            assert done.approved_by == ("bo", "cy")
            given = audit.rows(conn, action="approval.given")
            assert [row.payload["policy"] for row in given] == [done.policy_digest] * 3

    def test_a_yes_that_still_counts_is_not_said_twice(self, ledger: Ledger) -> None:
        with ledger.write() as conn:
            register(conn)
            ask(conn)
            approve(conn, BO)
            with pytest.raises(Refused, match="bo has spoken"):
                approve(conn, BO, at=NOON + 13 * DAY)


class TestClocksSetBack:
    def test_a_clock_set_back_does_not_bring_an_older_version_forward(self, ledger: Ledger) -> None:
        earlier = NOON - 40 * DAY
        with ledger.write() as conn:
            register(conn, 1)
            register(conn, 2, at=earlier)
            promote(conn, 1)
            promote(conn, 2, at=earlier)
            wanted = versions.current(conn, model=M)
            assert wanted is not None and wanted.version == 2
            assert approval_record(conn, model=M, version=1).first
            assert not approval_record(conn, model=M, version=2).first
            target = promotion.rollback_target(conn, model=M)
            assert target is not None and target.version == 1
            promotion.revert(conn, model=M, version=2, to_version=1, why="worse", now=earlier - DAY)
            wanted = versions.current(conn, model=M)
            assert wanted is not None and wanted.version == 1

    def test_approvals_and_evidence_from_after_now_do_not_count(self, ledger: Ledger) -> None:
        with ledger.write() as conn:
            register(conn)
            ask(conn)
            approve(conn, BO)
            assert approve(conn, CY, at=NOON - DAY) == "pending"
            said = "; ".join(lacks(conn, at=NOON - DAY))
            assert "gates: the latest result is dated 2013-07-01T12:00:00Z, after now" in said
            assert "bo's is dated 2013-07-01T12:00:00Z, after now" in said

    def test_a_failure_recorded_after_the_clock_was_set_back_is_the_latest(self, ledger: Ledger) -> None:
        with ledger.write() as conn:
            register(conn)
            record(conn, "gates", M, digest(1), at=NOON - DAY, verdict=Verdict.FAIL)
            promotion_lacks = lacks(conn)
        assert any(lack.startswith("gates: the latest result is FAIL") for lack in promotion_lacks)


class TestDocuments:
    def test_a_document_is_numbered_and_audited_with_what_it_loosens(self, ledger: Ledger) -> None:
        with ledger.write() as conn:
            change = set_policy(conn, approvals={"production": 1}, retain="10y")
            assert change.looser == ("production approvals 1 instead of 2",) and change.after.number == 1
            assert set_policy(conn, approvals={"production": 1}, retain="10y").changed is False, (
                "it is in force already"
            )
            set_policy(conn, approvals={"production": 3})
            assert [one.number for one in policies.history(conn, "high")] == [0, 1, 2]
            assert policies.in_force(conn, "medium").number == 0
            first, second = audit.rows(conn, action="policy.set")
            assert first.payload["looser"] == ["production approvals 1 instead of 2"]
            assert (first.payload["before"], second.payload["before"]) == (
                Policy().digest,
                first.payload["after"],
            )
            assert policies.policy_of(conn, M).approvals(Stage.PRODUCTION) == 3

    def test_only_admins_set_documents_and_they_say_why(self, ledger: Ledger) -> None:
        with ledger.write() as conn:
            with pytest.raises(Refused, match="bo may not set the policy of tier high"):
                set_policy(conn, BO, approvals={"production": 5})
            with pytest.raises(BadInput, match="no reason is given"):
                policies.set_document(conn, {"tier": "low"}, actor=ADMIN, reason="", now=NOON)
            with pytest.raises(BadInput, match="Did you mean `approvals`"):
                set_policy(conn, aprovals={"production": 5})
            dry = policies.set_document(
                conn, {"tier": "low", "retain": "1y"}, actor=BO, reason="", now=NOON, dry_run=True
            )
            assert dry.looser == ("kept for 1y instead of 7y",)
            assert audit.rows(conn, action="policy.set") == []

    def test_a_policy_tightened_while_a_promotion_waits_governs_it(self, ledger: Ledger) -> None:
        with ledger.write() as conn:
            register(conn)
            ask(conn)
            approve(conn, BO)
            set_policy(conn, approvals={"production": 3})
            assert approve(conn, CY) == "pending"
            assert approve(conn, DI) == "effective"
            (done,) = promotion.list_promotions(conn, model=M)
            assert done.policy.approvals(Stage.PRODUCTION) == 3
            (asked,) = audit.rows(conn, action="promotion.requested")
            (moved,) = audit.rows(conn, action="promotion.effective")
            assert asked.payload["policy"] == Policy().digest
            assert (
                moved.payload["policy"]
                == done.policy_digest
                == approval_record(conn, model=M, version=1).policy_digest
            )
            assert [said.policy_digest == Policy().digest for said in done.approvals] == [True, False, False]

    def test_a_policy_loosened_while_a_promotion_waits_does_not_help_it(self, ledger: Ledger) -> None:
        with ledger.write() as conn:
            register(conn)
            ask(conn)
            set_policy(conn, approvals={"production": 1})
            assert approve(conn, BO) == "pending"
            promotion.withdraw(conn, model=M, version=1, actor=ANA, now=NOON)
            ask(conn)
            assert approve(conn, BO) == "effective"


class TestProjects:
    def test_a_developer_may_tighten_and_not_loosen(self, ledger: Ledger) -> None:
        with ledger.write() as conn:
            assert adopt(conn, ANA, approvals={"production": 3}) == ()
            assert policies.policy_of(conn, M).approvals(Stage.PRODUCTION) == 3
            with pytest.raises(Refused, match="production approvals 2 instead of 3"):
                adopt(conn, ANA)
            with pytest.raises(Refused, match="tier low instead of high"):
                adopt(conn, ANA, tier="low")
            assert adopt(conn, ADMIN) == ()

    def test_what_an_admin_lets_through_is_waived_and_stays(self, ledger: Ledger) -> None:
        looser = {"approvals": {"production": 1}}
        with ledger.write() as conn:
            assert adopt(conn, ADMIN, **looser) == ("approvals.production",)
            assert adopt(conn, ANA, **looser) == ("approvals.production",), "the same again changes nothing"
            assert policies.policy_of(conn, M).approvals(Stage.PRODUCTION) == 1
            (row,) = audit.rows(conn, action="policy.waived")
            assert row.payload["points"] == ["approvals.production"] and row.actor == "root"

    def test_a_document_tightened_later_binds_what_was_written_out_before(self, ledger: Ledger) -> None:
        written = {"approvals": {"production": 2}}
        with ledger.write() as conn:
            adopt(conn, ANA, **written)
            set_policy(conn, approvals={"production": 3})
            assert policies.policy_of(conn, M).approvals(Stage.PRODUCTION) == 3
            assert adopt(conn, ANA, **written) == (), "training goes on under the tighter document"
            assert adopt(conn, ADMIN, **written) == (), "and an admin's training waives nothing by accident"
            assert policies.policy_of(conn, M).approvals(Stage.PRODUCTION) == 3
            assert adopt(conn, ADMIN, deliberate=True, **written) == ("approvals.production",)
            assert policies.policy_of(conn, M).approvals(Stage.PRODUCTION) == 2

    def test_retraining_on_nobodys_word_loosens_nothing(self, ledger: Ledger) -> None:
        with ledger.write() as conn:
            adopt(conn, ADMIN)
            with pytest.raises(Refused, match="may not loosen"):
                adopt(conn, SYSTEM, approvals={"production": 0})

    def test_a_lower_tier_counts_once_an_admin_has_applied_it(self, ledger: Ledger) -> None:
        with ledger.write() as conn:
            assert adopt(conn, ANA, tier="low") == (), (
                "a developer's first run is welcome, and governed by tier high"
            )
            assert policies.policy_of(conn, M) == Policy()
            with pytest.raises(Refused, match="tier low instead of high"):
                adopt(conn, ANA, tier="low", deliberate=True)
            assert adopt(conn, ADMIN, tier="low") == (), (
                "an admin's run of the same waives nothing by accident"
            )
            assert policies.ungranted(conn, M)[0] == "tier low instead of high"
            assert adopt(conn, ADMIN, tier="low", deliberate=True) == ("tier",)
            assert policies.ungranted(conn, M) == ()
            assert policies.policy_of(conn, M).tier == "low"
            assert adopt(conn, ANA, tier="low") == ("tier",)
            with pytest.raises(Refused, match="tier low instead of medium"):
                adopt(conn, ADMIN, tier="medium")
                adopt(conn, ANA, tier="low")

    def test_who_approves_in_the_models_team_counts(self, ledger: Ledger) -> None:
        mate = Actor("eve", Role.VIEWER, teams=(("ops", Role.APPROVER),))
        with ledger.write() as conn:
            save_project(conn, M, "", {"team": "ops", "policy": section()}, "", NOON)
            register(conn)
            ask(conn)
            assert approve(conn, mate) == "pending"
            assert promotion.list_promotions(conn, model=M)[0].approved_by == ("eve",)
            stranger = Actor("fay", Role.VIEWER, teams=(("sales", Role.APPROVER),))
            with pytest.raises(Refused, match="wanted role approver or above"):
                approve(conn, stranger)
            with pytest.raises(Refused, match="machines review nothing"):
                approve(conn, Actor("ci", Role.APPROVER, service=True))


class TestWaiting:
    def test_a_frozen_promotion_waits_and_is_ready_when_the_freeze_is_over(self, ledger: Ledger) -> None:
        with ledger.write() as conn:
            set_policy(
                conn,
                freeze=[{"from": "2013-07-01T00:00:00Z", "until": "2013-07-03T00:00:00Z", "why": "fair"}],
            )
            register(conn)
            ask(conn)
            approve(conn, BO)
            assert approve(conn, CY) == "pending"
            assert lacks(conn) == ("frozen until 2013-07-03T00:00:00Z (fair)",)
            assert promotion.ready(conn, NOON + DAY) == []
            (ready,) = promotion.ready(conn, NOON + 2 * DAY)
            assert promotion.settle(conn, ready, now=NOON + 2 * DAY, actor=SYSTEM).state == "effective"

    def test_gates_recorded_after_the_last_approval_make_a_promotion_ready(self, ledger: Ledger) -> None:
        with ledger.write() as conn:
            register(conn, gates=None)
            ask(conn)
            approve(conn, BO)
            assert approve(conn, CY) == "pending" and promotion.ready(conn, NOON) == []
            record(conn, "gates", M, digest(1), at=NOON)
            assert [one.version for one in promotion.ready(conn, NOON)] == [1]


class TestBrokenGlass:
    def test_it_moves_the_version_at_once_and_opens_a_review(self, ledger: Ledger) -> None:
        with ledger.write() as conn:
            set_policy(conn, freeze=[{"from": "2013-07-01T00:00:00Z", "until": "2013-07-03T00:00:00Z"}])
            register(conn, gates=None)
            ask(conn)
            moved, due = smash(conn)
            assert (moved.state, moved.emergency, due.due_at) == ("effective", WHY, NOON + 3 * DAY)
            assert versions.get_version(conn, model=M, version=1).stage is Stage.PRODUCTION
            signed = approval_record(conn, model=M, version=1)
            assert signed.emergency and signed.approvals == () and signed.tier == "high"
            (row,) = audit.rows(conn, action="promotion.break_glass")
            assert (
                row.actor == "root"
                and row.payload["reason"] == WHY
                and row.payload["policy"] == moved.policy_digest
            )
            assert any("2 approvals" in each for each in row.payload["passed_over"])
            states = [one.state for one in promotion.list_promotions(conn, model=M)]
            assert states == ["withdrawn", "effective"], "the request that waited is not left behind"

    @pytest.mark.parametrize(
        ("who", "reason", "error", "told"),
        [
            (BO, WHY, Refused, "wanted role admin"),
            (Actor("bot", Role.ADMIN, service=True), WHY, Refused, "only people break the glass"),
            (ADMIN, "quick", BadInput, "the reason is too short"),
        ],
    )
    def test_who_may_not_is_told_why(
        self, ledger: Ledger, who: Actor, reason: str, error: type[Exception], told: str
    ) -> None:
        with ledger.write() as conn:
            register(conn)
            with pytest.raises(error, match=told):
                smash(conn, who=who, reason=reason)

    def test_it_passes_over_neither_a_missing_seal_nor_failed_gates_nor_a_policy_that_forbids_it(
        self, ledger: Ledger
    ) -> None:
        with ledger.write() as conn:
            register(conn, gates=Verdict.FAIL)
            with pytest.raises(Refused, match="its gates said no"):
                smash(conn)
            set_policy(conn, emergency={"failed_gates": True})
            smash(conn)
            with pytest.raises(Conflict, match="in Production already"):
                smash(conn)
            register(conn, 2)
            set_policy(conn, emergency={"allowed": False})
            with pytest.raises(Refused, match="knows no emergency"):
                smash(conn, 2)

    def test_until_an_overdue_review_is_made_nothing_of_the_model_is_promoted(self, ledger: Ledger) -> None:
        late = NOON + 4 * DAY
        with ledger.write() as conn:
            for number in (1, 2, 3):
                register(conn, number, at=NOON)
            ask(conn, 3)
            approve(conn, BO, 3)
            smash(conn)
            ask(conn, 2)
            promotion.withdraw(conn, model=M, version=2, actor=ANA, now=NOON)
            with pytest.raises(Refused, match="review is overdue"):
                ask(conn, 2, at=late)
            with pytest.raises(Refused, match="review is overdue"):
                smash(conn, 2, at=late)
            assert approve(conn, CY, 3, at=late) == "pending"
            assert lacks(conn, 3, at=late)[-1].startswith("the review of version 1")
            assert promotion.ready(conn, late) == []
            decide(conn, BO, at=late)
            assert [one.version for one in promotion.ready(conn, late)] == [3]

    def test_who_broke_it_and_the_author_do_not_review_it(self, ledger: Ledger) -> None:
        with ledger.write() as conn:
            register(conn)
            smash(conn)
            with pytest.raises(Refused, match="root broke the glass; somebody else"):
                decide(conn, ADMIN)
            with pytest.raises(Refused, match="ana is the author"):
                decide(conn, Actor("ana", Role.ADMIN))
            with pytest.raises(Refused, match="wanted role approver"):
                decide(conn, Actor("eve", Role.DEVELOPER))
            with pytest.raises(Refused, match="machines review nothing"):
                decide(conn, Actor("bot", Role.ADMIN, service=True))
            upheld = decide(conn, BO)
            assert (upheld.state, upheld.reviewer) == ("upheld", "bo")
            (row,) = audit.rows(conn, action="review.upheld")
            assert (
                row.payload["policy"] == policies.policy_of(conn, M).digest
                and row.payload["broken_by"] == "root"
            )
            with pytest.raises(NotFound, match="no review of this version is open"):
                decide(conn, BO)

    def test_a_version_whose_glass_was_not_upheld_is_no_version_to_go_back_to(self, ledger: Ledger) -> None:
        with ledger.write() as conn:
            register(conn)
            smash(conn)
            decide(conn, BO, "revoke")
            assert list(promotion.returnable(conn, M)) == []
