"""kill -9 at every statement of an act: the registry stands before it or after it, and the audit agrees."""

import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, event, text

from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.stage import Stage
from loopwright.ledger import store as audit
from loopwright.ledger.engine import Ledger
from loopwright.registry import promotion, versions
from loopwright.registry.identity import current_actor
from loopwright.registry.mlflow_store import GovernedRegistry
from tests.governing import vouch

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
ANA, BO, CY = Actor("ana", Role.DEVELOPER), Actor("bo", Role.APPROVER), Actor("cy", Role.APPROVER)
BYTES = "a" * 64


def gates(ledger: Ledger) -> None:
    with ledger.write() as conn:
        vouch(conn, "m", BYTES, at=NOON)


def waiting_for(ledger: Ledger, *reviewers: Actor) -> None:
    with ledger.write() as conn:
        versions.register_version(
            conn, model="m", bundle=BYTES, run_id="r", snapshot=None, author=ANA, metrics={}, now=NOON
        )
        promotion.request_promotion(
            conn, model="m", version=1, stage=Stage.PRODUCTION, actor=ANA, reason="", now=NOON
        )
        for reviewer in reviewers:
            promotion.approve(conn, model="m", version=1, reviewer=reviewer, now=NOON)


def die_at(engine: Engine, step: int) -> None:
    """Kill this process before its `step`-th statement or commit."""
    left = [step]

    def tick(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(engine, "before_cursor_execute", tick)
    event.listen(engine, "commit", tick)


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; return its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001  the child must never run on into the parent's tests
            os._exit(3)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def standing(ledger: Ledger) -> tuple[str, str, str, int, int]:
    """(our stage, MLflow's stage, the promotion's state, approvals, audit rows that say effective)."""
    with ledger.read() as conn:
        assert audit.verify(conn).ok
        asked = promotion.list_promotions(conn)[0]
        theirs = str(conn.execute(text("SELECT current_stage FROM model_versions")).scalar())
        ours = versions.get_version(conn, model="m", version=1).stage.value
        return (
            ours,
            theirs,
            asked.state,
            len(asked.approvals),
            len(audit.rows(conn, action="promotion.effective")),
        )


def sweep(
    act: Callable[[int], Callable[[], None]], ledger: Ledger, before: tuple[object, ...]
) -> tuple[object, ...]:
    """Kill at step 1, 2, … until the act survives; the state must be `before` each time. Returns the state at last."""
    assert standing(ledger) == before
    ledger.dispose()
    for step in range(1, 200):
        status = in_child(act(step))
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            assert step > 10, "the act has more statements than that"
            return standing(ledger)
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert standing(ledger) == before, f"killed at step {step}"
        ledger.dispose()
    pytest.fail("the act never ended")


def test_killed_anywhere_in_the_deciding_approval(open_ledger: Callable[[], Ledger], ledger: Ledger) -> None:
    gates(ledger)
    waiting_for(ledger, BO)

    def act(step: int) -> Callable[[], None]:
        def approve() -> None:
            mine = open_ledger()
            die_at(mine.engine, step)
            with mine.write() as conn:
                promotion.approve(conn, model="m", version=1, reviewer=CY, now=NOON)

        return approve

    assert sweep(act, ledger, ("None", "None", "pending", 1, 0)) == (
        "Production",
        "Production",
        "effective",
        2,
        1,
    )


def test_killed_anywhere_in_a_transition_asked_by_mlflow(ledger: Ledger, registry_url: str) -> None:
    # The gates pass after the last approval: then it is MLflow's call that makes the promotion effective.
    waiting_for(ledger, BO, CY)
    gates(ledger)

    def act(step: int) -> Callable[[], None]:
        def transition() -> None:
            store = GovernedRegistry(registry_url)
            store.clock = lambda: NOON  # the moment of the approvals, which expire
            die_at(store.engine, step)
            current_actor.set(ANA)
            store.transition_model_version_stage("m", "1", "Production", False)

        return transition

    before = ("None", "None", "pending", 2, 0)
    after = ("Production", "Production", "effective", 2, 1)
    # MLflow reads the version back after the commit: killed there, the act stands.
    assert standing(ledger) == before
    ledger.dispose()
    seen: list[tuple[object, ...]] = []
    for step in range(1, 200):
        status = in_child(act(step))
        seen.append(standing(ledger))
        ledger.dispose()
        assert seen[-1] in (before, after)
        if seen[-1] == after:
            break
        assert os.WIFSIGNALED(status)
    assert seen[-1] == after and seen.count(before) > 10
