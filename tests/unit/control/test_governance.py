"""Broken glass, reviews, freezes and policies as operations; the controller that settles what has waited."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from loopwright.control.context import Context
from loopwright.control.controllers.governance import GovernanceController
from loopwright.control.operation import find
from loopwright.delivery.routes import rollback_targets, stable_version
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import Conflict, Refused
from loopwright.registry import promotion
from tests.governing import record
from tests.unit.control.conftest import FakeClock

Register = Callable[..., int]
People = dict[str, Context]
WHY = "the airport is closed and the model says on time"
DAY = timedelta(days=1)


def call(ctx: Context, operation: str, **arguments: Any) -> Any:
    return find(operation)(ctx, **arguments)


def to_production(people: People, version: int) -> None:
    call(people["dora"], "models.promote", model="late", version=version)
    call(people["ada"], "models.approve", model="late", version=version)
    call(people["bob"], "models.approve", model="late", version=version)


def to_all_traffic(people: People, version: int) -> None:
    to_production(people, version)
    if call(people["vera"], "delivery.list", model="late", active=True):
        call(people["ada"], "delivery.promote", model="late", reason="by hand")


def alerts(ctx: Context, **wanted: Any) -> list[Any]:
    return [alert for alert in call(ctx, "monitoring.alerts") if wanted.items() <= alert.items()]


@pytest.fixture
def root(ctx: Context) -> Context:
    call(ctx, "access.add_user", name="rita", role="admin")
    return ctx.acting_as(Actor("rita", Role.ADMIN))


def smash(root: Context, version: int = 1) -> Any:
    return call(root, "models.break_glass", model="late", version=version, reason=WHY)


def decide(ctx: Context, outcome: str, version: int = 1) -> Any:
    return call(
        ctx, "reviews.decide", model="late", version=version, outcome=outcome, comment="looked at the log"
    )


def test_broken_glass_serves_alerts_and_waits_for_its_review(
    root: Context, people: People, register: Register, clock: FakeClock
) -> None:
    register()
    answer = smash(root)
    assert (answer["state"], answer["emergency"], answer["missing"]) == ("effective", WHY, [])
    (alert,) = alerts(root, kind="broken_glass", state="open")
    assert alert["tier"] == "P1" and alert["title"] == f"rita broke the glass for version 1: {WHY}"
    (row,) = call(root, "system.status")
    assert row["stable"] == 1 and row["health"] == "ok", "the model answers as well as ever"
    assert [(each["version"], each["overdue"]) for each in row["reviews"]] == [(1, False)]
    (waiting,) = call(people["vera"], "reviews.list", open=True)
    assert (waiting["version"], waiting["broken_by"], waiting["overdue"]) == (1, "rita", False)
    assert decide(people["ada"], "uphold")["serving"] == 1
    assert alerts(root, kind="broken_glass", state="open") == []
    assert call(people["vera"], "reviews.list", open=True) == []


def test_a_developer_breaks_no_glass(people: People, register: Register) -> None:
    register()
    with pytest.raises(Refused, match="wanted role admin"):
        smash(people["dora"])


def test_a_revoked_version_leaves_all_traffic_at_once(
    root: Context, people: People, register: Register
) -> None:
    register()
    register()
    to_all_traffic(people, 1)
    smash(root, 2)
    call(people["ada"], "delivery.promote", model="late", reason="it hurries")
    with root.ledger.read() as conn:
        assert stable_version(conn, "late") == 2
    answer = decide(people["bob"], "revoke", 2)
    assert (answer["state"], answer["serving"]) == ("revoked", 1)
    shown = call(root, "models.show", model="late", version=2)
    assert shown["stage"] == "Archived" and shown["promotions"][-1]["state"] == "reverted"


def test_a_revoked_version_leaves_its_canary(root: Context, people: People, register: Register) -> None:
    register()
    register()
    to_all_traffic(people, 1)
    assert smash(root, 2)["rollout"]["status"] == "running"
    assert decide(people["bob"], "revoke", 2)["serving"] == 1
    assert call(root, "delivery.list", model="late", active=True) == []


def test_a_revoked_only_version_keeps_answering_until_a_successor_and_is_never_gone_back_to(
    root: Context, people: People, register: Register
) -> None:
    register()
    register()
    register()
    smash(root, 1)
    assert decide(people["ada"], "revoke")["serving"] == 1, "no answer at all is not for a review to choose"
    to_all_traffic(people, 2)
    to_all_traffic(people, 3)
    with root.ledger.read() as conn:
        assert rollback_targets(conn, "late") == [2]


def test_a_version_that_is_being_replaced_is_not_revoked_in_between(
    root: Context, people: People, register: Register
) -> None:
    register()
    register()
    smash(root, 1)
    to_production(people, 2)
    with pytest.raises(Conflict, match="version 2 is being rolled out over version 1"):
        decide(people["ada"], "revoke")
    call(people["ada"], "delivery.abort", model="late")
    decide(people["ada"], "revoke")


def test_the_controller_tells_once_that_a_review_is_overdue_and_promotions_wait_for_it(
    root: Context, people: People, register: Register, clock: FakeClock
) -> None:
    register()
    register()
    smash(root, 1)
    controller = GovernanceController()
    assert controller.tick(root) == []
    clock.move(4 * DAY)
    assert controller.tick(root) == [{"model": "late", "version": 1, "overdue": "review"}]
    clock.move(DAY)
    assert controller.tick(root) == []
    assert len(alerts(root, kind="review", tier="P1", state="open")) == 1
    with pytest.raises(Refused, match="review is overdue"):
        call(people["dora"], "models.promote", model="late", version=2)
    (row,) = call(root, "system.status")
    assert row["reviews"][0]["overdue"]
    decide(people["ada"], "uphold")
    assert alerts(root, state="open") == []
    assert call(people["dora"], "models.promote", model="late", version=2)["state"] == "pending"


def freeze(root: Context, clock: FakeClock, length: timedelta) -> None:
    until = (clock.time + length).isoformat()
    document = {"tier": "high", "freeze": [{"from": clock.time.isoformat(), "until": until, "why": "fair"}]}
    call(root, "policy.set", document=document, reason="nobody is in the office")


def test_the_controller_promotes_when_a_freeze_is_over(
    root: Context, people: People, register: Register, clock: FakeClock
) -> None:
    freeze(root, clock, DAY)
    register()
    to_production(people, 1)
    controller = GovernanceController()
    assert controller.tick(root) == []
    clock.move(DAY)
    assert controller.tick(root) == [{"model": "late", "version": 1, "promoted": "Production"}]
    with root.ledger.read() as conn:
        assert stable_version(conn, "late") == 1, "and its rollout has begun"


def test_a_promotion_that_cannot_be_settled_does_not_stop_the_others(
    root: Context, people: People, register: Register, clock: FakeClock
) -> None:
    freeze(root, clock, DAY)
    register()
    register("early")
    to_production(people, 1)
    for name, operation in (("dora", "models.promote"), ("ada", "models.approve"), ("bob", "models.approve")):
        call(people[name], operation, model="early", version=1)
    with root.ledger.write() as conn:
        conn.exec_driver_sql("UPDATE model_versions SET storage_location = 'elsewhere' WHERE name = 'late'")
    clock.move(DAY)
    with pytest.raises(Refused, match="names other bytes"):
        GovernanceController().tick(root)
    with root.ledger.read() as conn:
        assert stable_version(conn, "early") == 1 and stable_version(conn, "late") is None


def test_the_controller_waits_while_another_version_is_rolled_out(
    root: Context, people: People, register: Register, clock: FakeClock
) -> None:
    for _ in range(3):
        register()
    to_all_traffic(people, 1)
    call(people["dora"], "models.promote", model="late", version=3)
    to_production(people, 2)
    freeze(root, clock, DAY)
    for name in ("ada", "bob"):
        call(people[name], "models.approve", model="late", version=3)
    clock.move(DAY)
    controller = GovernanceController()
    assert controller.tick(root) == []
    call(people["ada"], "delivery.promote", model="late")
    assert controller.tick(root) == [{"model": "late", "version": 3, "promoted": "Production"}]


def test_gates_that_come_last_settle_the_promotion(
    root: Context, people: People, register: Register, clock: FakeClock
) -> None:
    from loopwright.kernel.verdict import Verdict

    register(gates=Verdict.INCONCLUSIVE)
    to_production(people, 1)
    controller = GovernanceController()
    assert controller.tick(root) == []
    with root.ledger.write() as conn:
        (waiting,) = promotion.list_promotions(conn, state="pending")
        record(conn, "gates", "late", waiting.bundle, at=clock.time)
    assert controller.tick(root) == [{"model": "late", "version": 1, "promoted": "Production"}]
    assert controller.tick(root) == []


def test_what_waits_says_for_what_and_for_whom(people: People, register: Register) -> None:
    register()
    answer = call(people["dora"], "models.promote", model="late", version=1)
    assert answer["reviewers"] == ["ada", "bob"]
    assert answer["next"]["next"] == "loopwright approve late 1"
    assert call(people["ada"], "models.approve", model="late", version=1)["reviewers"] == ["bob"]


def test_a_policy_is_tested_shown_and_set(root: Context, people: People, register: Register) -> None:
    register()
    tested = call(people["vera"], "policy.test", model="late", version=1)
    assert not tested["satisfied"] and tested["next"]["next"] == "loopwright promote late 1 --to production"
    tried = call(
        people["vera"], "policy.test", model="late", version=1,
        document='{"tier": "low", "approvals": {"production": 0}}',
    )  # fmt: skip
    assert tried["satisfied"] and tried["tried"]
    with pytest.raises(Refused, match="bob may not"):
        call(people["bob"], "policy.set", document={"tier": "high"}, reason="I would like it so")
    call(
        root,
        "policy.set",
        document={"tier": "high", "approvals": {"production": 3}},
        reason="decided by the board",
    )
    shown = call(people["vera"], "policy.show", model="late")
    assert shown["document"]["approvals"]["production"] == 3 and shown["number"] == 1
    assert [one["number"] for one in call(people["vera"], "policy.list", tier="high")] == [0, 1]
