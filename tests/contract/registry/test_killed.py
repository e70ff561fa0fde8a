"""kill -9 at any statement of an act: everything stands as before it or as after it, and the audit log agrees."""

import copy
import os
import random
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from loopwright.bundle.keyring import NEXT, Keyring
from loopwright.control import anchors
from loopwright.control.controllers.keys import KeysController
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.stage import Stage
from loopwright.ledger import store as audit
from loopwright.ledger.engine import Ledger
from loopwright.registry import promotion, versions
from loopwright.registry.identity import current_actor
from loopwright.registry.mlflow_store import GovernedRegistry
from tests.contract.registry.agreement import Agreement
from tests.contract.registry.reference import PRODUCTION, SECTIONS, Evidence, Reference
from tests.contract.registry.world import MODEL, World
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
        signal.alarm(300)
        try:
            work()
        except BaseException:  # noqa: BLE001  the child must never run on into the parent's tests
            os._exit(3)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM), "the child never ended"
    return status


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


ROOT, DEE = Actor("root", Role.ADMIN), Actor("dee", Role.DEVELOPER)
WHY = "the airport is closed"
SHORT = {"tier": "high", "retain": "30d"}


@pytest.fixture
def world(registry_url: str, tmp_path: Path) -> Iterator[World]:
    made = World(registry_url, tmp_path, NOON)
    yield made
    made.close()


def kill(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(world: World, work: Callable[[], object], left: int) -> bool:
    """Whether a process that began `work` was killed before its `left`-th statement or commit from its start."""

    def run() -> None:
        world.accident.strike, world.accident.left = kill, left
        work()

    world.start_anew()  # no connection goes with a fork
    status = in_child(run)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def statements(world: World, work: Callable[[], object]) -> int:
    """How many statements `work` makes before its first commit; counted by a process killed there."""
    out, into = os.pipe()

    def run() -> None:
        made = 0

        def count(_: Any, *statement: object) -> None:
            nonlocal made
            if not statement:
                os.write(into, str(made).encode())
                kill()
            made += 1

        for engine in (world.ledger.engine, world.registry.engine):
            event.listen(engine, "before_cursor_execute", count)
            event.listen(engine, "commit", count)
        work()

    world.start_anew()
    in_child(run)
    os.close(into)
    with os.fdopen(out) as said:
        return int(said.read())


def test_killed_at_fifty_points_from_the_approval_to_the_deletion(world: World) -> None:
    rng, model, agreement = random.Random(2013), Reference(NOON), Agreement()

    def do(act: Callable[[], object], expected: Callable[[Reference], object]) -> None:
        act()
        expected(model)

    def vouch_for(number: int) -> None:
        for kind in ("gates", "fairness", "explainability", "card"):
            found = Evidence(
                kind, f"{number:064x}", "PASS", world.now, None, SECTIONS if kind == "card" else frozenset()
            )
            do(
                partial(world.record, kind, found.bundle, "PASS", found.at, None, found.sections),
                partial(Reference.record, found=found),
            )

    def ask(number: int, *reviewers: Actor) -> None:
        promote = partial(world.operate, "models.promote", DEE, model=MODEL, version=number)
        do(promote, partial(Reference.promote, actor=DEE, number=number, stage=PRODUCTION))
        for who in reviewers:
            do(*approving(who, number))

    def approving(who: Actor, number: int) -> tuple[Callable[[], object], Callable[[Reference], object]]:
        return partial(world.speak, who, number), lambda model: model.speak(who, number, True, None, None)

    quick = {"shadow_first": "0s", "steps": [{"weight": "50%"}, {"weight": "100%"}]}
    do(
        partial(world.apply, ROOT, {"tier": "high"}, quick),
        lambda model: model.apply(ROOT, {"tier": "high"}, "quick"),
    )
    do(
        partial(world.operate, "policy.set", ROOT, document=SHORT, reason=WHY),
        lambda model: model.set_document(ROOT, "high", {"retain": timedelta(days=30)}, reasoned=True),
    )
    for number in (1, 2, 3):
        do(
            partial(world.register, ANA, f"{number:064x}", "s1"),
            partial(Reference.register, author=ANA, bundle=f"{number:064x}", snapshot="s1"),
        )
    for number in (1, 2):
        vouch_for(number)
    ask(1, BO, CY)
    ask(2, BO)
    ask(3, BO, CY)
    vouch_for(3)

    def review(uphold: bool) -> tuple[Callable[[], object], Callable[[Reference], object]]:
        said = {"outcome": "uphold" if uphold else "revoke", "comment": WHY}
        return (
            partial(world.operate, "reviews.decide", BO, model=MODEL, version=3, **said),
            lambda model: model.review(BO, 3, uphold=uphold, reasoned=True),
        )

    def pass_time(model: Reference) -> None:
        model.set_clock(model.now + timedelta(days=60))
        world.set_clock(model.now)

    acts: list[tuple[Callable[[], object], Callable[[Reference], object]]] = [
        approving(CY, 2),  # takes effect, begins the rollout, writes the route table
        (partial(world.step, "good"), lambda model: model.step("good")),  # all traffic; version 1 is archived
        (
            partial(world.transition, DEE, 3, PRODUCTION),
            lambda model: model.transition(DEE, 3, PRODUCTION),
        ),
        (world.deliver, lambda model: model.deliver_due()),
        (partial(world.operate, "delivery.abort", BO, model=MODEL), lambda model: model.abort(BO)),
        (partial(world.operate, "models.rollback", BO, model=MODEL), lambda model: model.rollback(BO, None)),
        (
            partial(world.operate, "models.break_glass", ROOT, model=MODEL, version=3, reason=WHY),
            lambda model: model.break_glass(ROOT, 3, reasoned=True),
        ),
        (partial(world.step, "harm"), lambda model: model.step("harm")),
        review(uphold=True),
        (
            partial(world.operate, "models.delete", ROOT, model=MODEL, version=2, reason=WHY),
            lambda model: model.delete(ROOT, 2),
        ),
    ]
    kills = 0
    for number, (act, expected) in enumerate(acts):
        if number == len(acts) - 1:
            pass_time(model)
        points = statements(world, act)
        assert points > 8, "the act has more statements than that"
        for left in rng.sample(range(points + 1), 5):
            assert killed(world, act, left)
            kills += 1
            agreement.check(world, model)
        after = copy.deepcopy(model)
        expected(after)
        assert not killed(world, act, 10_000)
        model = after
        agreement.check(world, model)
    assert kills == 50 and len(model.acts) > 30


def test_killed_anywhere_in_a_change_of_keys_the_log_catches_up_with_the_list(world: World) -> None:
    def rotate() -> None:
        world.operate("keys.rotate", ROOT, reason="yearly")

    def revoke() -> None:
        world.operate("keys.revoke", ROOT, key_id=first, reason="stolen")

    def settled(change: Callable[[], object]) -> bool:
        """Kill once at each step; at last the act survives. After each: the folder opens, and the log knows it all."""
        for step in range(200):
            survived = not killed(world, change, step)
            keys = Keyring.open(world.ctx.home.keys).ring.keys
            assert not (world.ctx.home.keys / NEXT).exists()
            KeysController().tick(world.ctx)
            with world.ledger.read() as conn:
                assert audit.verify(conn).ok
                rotated = [row.payload["to"] for row in audit.rows(conn, action="key.rotated")]
                revoked = {row.payload["key_id"] for row in audit.rows(conn, action="key.revoked")}
            assert rotated == [entry.key_id for entry in keys[1:]]
            assert revoked == {entry.key_id for entry in keys if entry.revoked_at}
            if survived:
                return step > 8
        return False

    first = world.ctx.key.public.key_id
    world.register(ANA, BYTES, "s1")
    assert settled(rotate)
    assert settled(revoke)
    assert KeysController().tick(world.ctx) == []


def test_killed_anywhere_while_it_is_anchored_every_anchor_fits_the_log(world: World) -> None:
    def anchor() -> None:
        world.operate("audit.anchor", BO)

    world.register(ANA, BYTES, "s1")
    for step in range(200):
        survived = not killed(world, anchor, step)
        with world.ledger.read() as conn:
            assert audit.verify(conn).ok
        assert all(one.ok for one in anchors.findings(world.ctx))
        if survived:
            break
    assert step > 8
    with world.ledger.read() as conn:
        assert len(audit.rows(conn, action=anchors.ACTION)) == 1
        assert anchors.last_anchor(conn) is not None
