"""Rollouts as recorded: one transaction per decision, on SQLite and PostgreSQL."""

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection

from loopwright.bundle.approval import verify_record
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.routes import ModelRoute, open_routes
from loopwright.delivery import conduct, store
from loopwright.delivery.judge import ArmCounts
from loopwright.delivery.plan import Plan, Require, Step, Strategy
from loopwright.delivery.rollout import Canary, Done, Evidence, Move, RolledBack, Shadow, canary_weight
from loopwright.delivery.routes import current_routes, rollback_targets, route_table, stable_version
from loopwright.delivery.store import Rollout
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Refused
from loopwright.kernel.stage import Stage
from loopwright.kernel.verdict import Verdict
from loopwright.ledger import store as audit
from loopwright.ledger.engine import Ledger
from loopwright.registry.evidence import evidence_of
from loopwright.registry.promotion import list_promotions, request_promotion
from loopwright.registry.versions import get_version, register_version
from loopwright.stats.histogram import LatencyHistogram
from tests.governing import ask_for_nothing

KEY = SigningKey.generate()
WALL = datetime(2026, 1, 1, tzinfo=UTC)
NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ANA = Actor("ana", Role.APPROVER)
PLAN = Plan(shadow_first=HOUR, steps=(Step(0.05, HOUR), Step(0.25, HOUR, Require.PASS), Step(1.0)))


def arm(n: int, errors: int = 0) -> ArmCounts:
    latency = LatencyHistogram()
    latency.add(np.full(n, 200.0))
    return ArmCounts(n, errors, latency)


def seen(candidate: int, errors: int = 0) -> Evidence:
    return Evidence(baseline=arm(30_000), candidate=arm(candidate, errors))


HARM = seen(300, errors=90)


def promoted(conn: Connection, model: str, *, plan: Plan = PLAN) -> Rollout:
    """Register the next version, have it promoted, and begin its rollout."""
    author = Actor("dev", Role.DEVELOPER)
    ask_for_nothing(conn, model, at=WALL)
    version = register_version(
        conn, model=model, bundle=digest_json([model, len(store.list_rollouts(conn, model))]), run_id="r",
        snapshot="s", author=author, metrics={}, now=WALL,
    )  # fmt: skip
    request_promotion(
        conn, model=model, version=version.version, stage=Stage.PRODUCTION, actor=author, reason="better",
        now=WALL,
    )  # fmt: skip
    (due,) = [one for one in store.due_promotions(conn) if one.model == model]
    return conduct.start_due(conn, due, plan, key=KEY, now=WALL, event_time=NOON)


def step(ledger: Ledger, rollout: Rollout, evidence: Evidence, hours: float) -> Move:
    with ledger.write() as conn:
        return conduct.step_rollout(
            conn, rollout.id, evidence=evidence, event_time=NOON + hours * HOUR, now=WALL, key=KEY
        )


def route(ledger: Ledger, model: str) -> ModelRoute:
    with ledger.read() as conn:
        current = current_routes(conn)
    assert current is not None
    return open_routes(current[1], [KEY.public]).models[model]


def split(ledger: Ledger, model: str) -> dict[str, tuple[int, float]]:
    return {arm.name: (arm.version, arm.weight) for arm in route(ledger, model).arms}


def stages(ledger: Ledger, model: str, *versions: int) -> list[str]:
    with ledger.read() as conn:
        return [get_version(conn, model=model, version=version).stage.value for version in versions]


@pytest.fixture
def second(ledger: Ledger, model: str) -> Rollout:
    """Version 1 serves; version 2's rollout has just begun."""
    with ledger.write() as conn:
        promoted(conn, model)
        return promoted(conn, model)


def test_a_first_version_answers_everything_with_its_signed_approval(ledger: Ledger, model: str) -> None:
    with ledger.write() as conn:
        rollout = promoted(conn, model)
    assert (rollout.state, rollout.status) == (Done(), "completed")
    assert split(ledger, model) == {"stable": (1, 1.0)}
    record = verify_record(route(ledger, model).versions["1"].approval, [KEY.public])
    assert (record.model, record.version, record.stage) == (model, 1, "Production")


def test_the_whole_way_from_shadow_to_the_old_versions_archive(
    ledger: Ledger, model: str, second: Rollout
) -> None:
    assert split(ledger, model) == {"stable": (1, 1.0), "shadow": (2, 1.0)}
    assert step(ledger, second, seen(500), 1).state == Canary(0, 0.05, NOON + HOUR, NOON + HOUR)
    assert split(ledger, model) == {"stable": (1, 0.95), "canary": (2, 0.05)}
    assert step(ledger, second, seen(60), 2).changed
    assert split(ledger, model) == {"stable": (1, 0.75), "canary": (2, 0.25)}
    assert stages(ledger, model, 1, 2) == ["Production", "Production"]

    assert not step(ledger, second, seen(800), 3).changed
    assert step(ledger, second, seen(8_000), 40).state == Done()
    assert split(ledger, model) == {"stable": (2, 1.0)}
    assert stages(ledger, model, 1, 2) == ["Archived", "Production"]
    with ledger.read() as conn:
        kinds = [found.kind for found in evidence_of(conn, model=model, version=2)]
        actions = [row.action for row in audit.rows(conn, subject=f"{model}/2")]
        assert stable_version(conn, model) == 2
        assert audit.verify(conn).ok
    assert sorted(kinds) == ["canary", "canary", "shadow"]
    assert actions.count("rollout.moved") == 3
    assert actions[-1] == "rollout.completed"


def test_one_salt_keeps_users_on_their_arm_through_a_rollout(
    ledger: Ledger, model: str, second: Rollout
) -> None:
    before = route(ledger, model).salt
    step(ledger, second, seen(500), 1)
    step(ledger, second, seen(60), 2)
    assert route(ledger, model).salt == before


def test_harm_returns_traffic_and_stage_and_leaves_its_evidence(
    ledger: Ledger, model: str, second: Rollout
) -> None:
    step(ledger, second, seen(500), 1)
    move = step(ledger, second, HARM, 1.1)
    assert isinstance(move.state, RolledBack)
    assert split(ledger, model) == {"stable": (1, 1.0)}
    assert stages(ledger, model, 1, 2) == ["Production", "Archived"]
    with ledger.read() as conn:
        failed = evidence_of(conn, model=model, version=2, kind="canary")[-1]
        (promotion,) = list_promotions(conn, model=model, version=2)
        rollout = store.get_rollout(conn, second.id)
        reverted = [row for row in audit.rows(conn, subject=f"{model}/2") if row.action == "version.reverted"]
    assert failed.verdict is Verdict.FAIL
    assert failed.payload["evidence"]["candidate"]["errors"] == 90
    assert promotion.state == "reverted"
    assert (rollout.status, rollout.reason) == ("rolled_back", move.why)
    assert reverted[0].payload["evidence"] == [failed.digest]


def test_the_same_evidence_changes_nothing_twice(ledger: Ledger, model: str, second: Rollout) -> None:
    def recorded() -> tuple[Any, ...]:
        with ledger.read() as conn:
            return (
                store.get_rollout(conn, second.id).state,
                store.list_events(conn, second.id),
                len(audit.rows(conn)),
                current_routes(conn),
            )

    for evidence, hours in ((seen(500), 1.0), (seen(10), 2.0), (HARM, 2.0)):
        step(ledger, second, evidence, hours)
        once = recorded()
        step(ledger, second, evidence, hours)
        assert recorded() == once


def test_a_crash_in_the_middle_leaves_the_rollout_as_it_was(
    ledger: Ledger, model: str, second: Rollout
) -> None:
    before = split(ledger, model)
    with pytest.raises(RuntimeError), ledger.write() as conn:
        conduct.step_rollout(conn, second.id, evidence=seen(500), event_time=NOON + HOUR, now=WALL, key=KEY)
        raise RuntimeError("the power went")
    assert split(ledger, model) == before
    with ledger.read() as conn:
        assert store.get_rollout(conn, second.id).state == Shadow(NOON)
        assert evidence_of(conn, model=model, version=2, kind="shadow") == []
    assert step(ledger, second, seen(500), 1).changed


def test_two_controllers_at_once_move_a_rollout_once(ledger: Ledger, model: str, second: Rollout) -> None:
    with ThreadPoolExecutor(4) as pool:
        moves = list(pool.map(lambda _: step(ledger, second, seen(500), 1), range(8)))
    assert sum(move.changed for move in moves) == 1
    with ledger.read() as conn:
        assert [event["kind"] for event in store.list_events(conn, second.id)] == ["started", "moved"]


def test_the_serial_rises_only_when_the_content_changes(ledger: Ledger, model: str, second: Rollout) -> None:
    with ledger.write() as conn:
        first, document = route_table(conn, KEY, WALL)
        assert route_table(conn, KEY, WALL + HOUR) == (first, document)
    step(ledger, second, seen(10), 0.5)
    with ledger.write() as conn:
        assert route_table(conn, KEY, WALL)[0] == first
    step(ledger, second, seen(500), 1)
    with ledger.write() as conn:
        assert route_table(conn, KEY, WALL)[0] == first + 1


def test_a_promotion_during_a_rollout_is_a_conflict_that_says_what_to_do(
    ledger: Ledger, model: str, second: Rollout
) -> None:
    with ledger.write() as conn:
        with pytest.raises(Conflict, match=f"loopwright rollout abort {model}"):
            conduct.refuse_while_rolling(conn, model)
        with pytest.raises(Conflict, match="version 2"):
            promoted(conn, model)


def test_beginning_twice_for_one_promotion_is_beginning_once(
    ledger: Ledger, model: str, second: Rollout
) -> None:
    assert second.promotion_id is not None
    with ledger.write() as conn:
        again = conduct.start_rollout(
            conn, model=model, version=2, plan=PLAN, key=KEY, now=WALL, event_time=NOON,
            promotion_id=second.promotion_id,
        )  # fmt: skip
        assert again.id == second.id
        with pytest.raises(NotFound):
            store.get_rollout(conn, "ro_nothing")


def test_a_baseline_that_does_not_answer_now_is_bad_input(ledger: Ledger, model: str) -> None:
    with ledger.write() as conn:
        promoted(conn, model)
        with pytest.raises(BadInput, match="the baseline is not what answers now"):
            conduct.start_rollout(
                conn, model=model, version=1, baseline=7, plan=PLAN, key=KEY, now=WALL, event_time=NOON
            )


def test_a_person_pauses_and_resumes(ledger: Ledger, model: str, second: Rollout) -> None:
    when: dict[str, Any] = {"event_time": NOON, "now": WALL}
    with ledger.write() as conn:
        assert conduct.pause_rollout(conn, model, actor=ANA, why="lunch", **when).status == "paused"
    assert not step(ledger, second, seen(500), 5).changed
    assert split(ledger, model) == {"stable": (1, 1.0), "shadow": (2, 1.0)}
    with ledger.write() as conn:
        back = conduct.resume_rollout(
            conn, model, actor=ANA, why="back", event_time=NOON + 5 * HOUR, now=WALL
        )
        assert back.state == Shadow(NOON + 5 * HOUR)
        last = audit.rows(conn, subject=f"{model}/2")[-1]
    assert (last.actor, last.action, last.payload["why"]) == ("ana", "rollout.resumed", "back")
    assert step(ledger, second, seen(500), 6).changed


def test_a_person_aborts(ledger: Ledger, model: str, second: Rollout) -> None:
    step(ledger, second, seen(500), 1)
    with ledger.write() as conn:
        done = conduct.abort_rollout(
            conn, model, actor=ANA, why="a hunch", event_time=NOON + HOUR, now=WALL, key=KEY
        )
    assert (done.status, split(ledger, model)) == ("aborted", {"stable": (1, 1.0)})
    assert stages(ledger, model, 1, 2) == ["Production", "Archived"]


def test_a_person_promotes_unless_the_judge_says_fail(ledger: Ledger, model: str, second: Rollout) -> None:
    step(ledger, second, seen(500), 1)
    how: dict[str, Any] = {"actor": ANA, "why": "urgent", "event_time": NOON + HOUR, "now": WALL, "key": KEY}
    with ledger.write() as conn, pytest.raises(Conflict, match="judge says FAIL"):
        conduct.promote_rollout(conn, model, evidence=HARM, **how)
    with ledger.write() as conn:
        assert conduct.promote_rollout(conn, model, evidence=seen(3), **how).status == "completed"
    assert split(ledger, model) == {"stable": (2, 1.0)}
    assert stages(ledger, model, 1, 2) == ["Archived", "Production"]


def test_commands_need_the_role_of_an_approver(ledger: Ledger, model: str, second: Rollout) -> None:
    dev = Actor("dev", Role.DEVELOPER)
    when: dict[str, Any] = {"actor": dev, "why": "x", "event_time": NOON, "now": WALL}
    with ledger.write() as conn:
        with pytest.raises(Refused, match="role approver"):
            conduct.pause_rollout(conn, model, **when)
        with pytest.raises(Refused):
            conduct.abort_rollout(conn, model, key=KEY, **when)
        with pytest.raises(Refused):
            conduct.promote_rollout(conn, model, evidence=seen(1), key=KEY, **when)
        with pytest.raises(Refused):
            conduct.rollback_now(conn, model, key=KEY, **when)


def test_a_rollback_brings_the_version_before_back_at_once(ledger: Ledger, model: str) -> None:
    instant = Plan(strategy=Strategy.INSTANT)
    how: dict[str, Any] = {"actor": ANA, "why": "complaints", "event_time": NOON, "now": WALL, "key": KEY}
    with ledger.write() as conn:
        for _ in range(3):
            promoted(conn, model, plan=instant)
        assert rollback_targets(conn, model) == [2, 1]
    assert stages(ledger, model, 1, 2, 3) == ["Archived", "Archived", "Production"]
    with ledger.write() as conn:
        assert conduct.rollback_now(conn, model, **how).version == 2
    assert split(ledger, model) == {"stable": (2, 1.0)}
    assert stages(ledger, model, 1, 2, 3) == ["Archived", "Production", "Archived"]
    with ledger.write() as conn, pytest.raises(NotFound, match="cannot go back to version 3"):
        conduct.rollback_now(conn, model, 3, **how)
    with ledger.write() as conn:
        assert conduct.rollback_now(conn, model, 1, **how).version == 1
    assert split(ledger, model) == {"stable": (1, 1.0)}
    with ledger.write() as conn, pytest.raises(NotFound, match="no earlier version"):
        conduct.rollback_now(conn, model, **how)
    with ledger.read() as conn:
        kept = evidence_of(conn, model=model, kind="rollback")
    assert sorted(found.payload["to_version"] for found in kept) == [1, 2]


def test_a_rollback_during_a_rollout_ends_it(ledger: Ledger, model: str, second: Rollout) -> None:
    step(ledger, second, seen(500), 1)
    with ledger.write() as conn:
        done = conduct.rollback_now(
            conn, model, actor=ANA, why="now", event_time=NOON + HOUR, now=WALL, key=KEY
        )
    assert (done.id, done.status) == (second.id, "aborted")
    assert split(ledger, model) == {"stable": (1, 1.0)}


def test_commands_without_a_rollout_say_so(ledger: Ledger, model: str) -> None:
    with ledger.write() as conn:
        promoted(conn, model)
        with pytest.raises(NotFound, match="no rollout"):
            conduct.pause_rollout(conn, model, actor=ANA, why="x", event_time=NOON, now=WALL)


def test_whatever_happens_everything_is_answered_by_approved_versions(ledger: Ledger, model: str) -> None:
    dice = random.Random(11)
    when: dict[str, Any] = {"actor": ANA, "why": "dice", "now": WALL}
    with ledger.write() as conn:
        promoted(conn, model)
    hours = 0.0
    for _ in range(25):
        hours += dice.choice([0, 0.5, 1, 2])
        time = NOON + hours * HOUR
        with ledger.write() as conn:
            running = store.active_rollout(conn, model)
            if running is None:
                promoted(conn, model)
                continue
            weight = canary_weight(running.state)
            act = dice.choice(["step"] * 6 + ["pause", "resume", "abort", "promote"])
            evidence = dice.choice([seen(0), seen(30), seen(500), seen(8_000), seen(8_001), HARM])
            try:
                if act == "pause":
                    conduct.pause_rollout(conn, model, event_time=time, **when)
                elif act == "resume":
                    conduct.resume_rollout(conn, model, event_time=time, **when)
                elif act == "abort" and dice.random() < 0.3:
                    conduct.abort_rollout(conn, model, event_time=time, key=KEY, **when)
                elif act == "promote" and dice.random() < 0.3:
                    conduct.promote_rollout(conn, model, evidence=evidence, event_time=time, key=KEY, **when)
                else:
                    move = conduct.step_rollout(
                        conn, running.id, evidence=evidence, event_time=time, now=WALL, key=KEY
                    )
                    failed = move.judgement is not None and move.judgement.verdict is Verdict.FAIL
                    assert canary_weight(move.state) == 0 if failed else canary_weight(move.state) >= weight
            except Conflict:
                pass  # the command did not fit the state; nothing may have changed
        found = route(ledger, model)
        answering = [one for one in found.arms if one.name != "shadow"]
        assert sum(one.name == "stable" for one in found.arms) == 1
        assert sum(one.weight for one in answering) == pytest.approx(1.0)
        for one in found.arms:
            record = verify_record(found.versions[str(one.version)].approval, [KEY.public])
            assert (record.version, record.bundle) == (one.version, found.versions[str(one.version)].bundle)
    with ledger.read() as conn:
        assert audit.verify(conn).ok
