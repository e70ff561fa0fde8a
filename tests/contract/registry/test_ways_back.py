"""Ways out of Production and back into it, where they cross: found by the state machine, each as its shortest story."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from loopwright.bundle.routes import open_routes
from loopwright.delivery.routes import current_routes, rollback_targets, stable_version
from loopwright.delivery.store import active_rollout, due_promotions
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import Conflict, NotFound, Refused
from loopwright.ledger import store as audit
from loopwright.registry import promotion, retention, versions
from loopwright.registry.retention import store as kept
from tests.contract.registry.reference import SECTIONS
from tests.contract.registry.world import MODEL, World

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SHORT = {"tier": "high", "retain": "30d"}
ANA, DEE = Actor("ana", Role.DEVELOPER), Actor("dee", Role.DEVELOPER)
BO, CY, ROOT = Actor("bo", Role.APPROVER), Actor("cy", Role.APPROVER), Actor("root", Role.ADMIN)


@pytest.fixture
def world(registry_url: str, tmp_path: Path) -> Iterator[World]:
    made = World(registry_url, tmp_path, NOON)
    yield made
    made.close()


def register(world: World, *numbers: int) -> None:
    for number in numbers:
        world.register(ANA, f"{number:064x}", "s1")


def ask(world: World, number: int) -> None:
    for kind in ("gates", "fairness", "explainability", "card"):
        world.record(
            kind, f"{number:064x}", "PASS", world.now, None, SECTIONS if kind == "card" else frozenset()
        )
    world.operate("models.promote", DEE, model=MODEL, version=number)


def agree(world: World, number: int) -> None:
    for who in (BO, CY):
        world.speak(who, number)


def promote(world: World, number: int) -> None:
    ask(world, number)
    agree(world, number)


def complete(world: World) -> None:
    world.operate("delivery.promote", BO, model=MODEL)


def serve(world: World, *numbers: int) -> None:
    """Bring one version after the other to all traffic."""
    for number in numbers:
        promote(world, number)
        with world.ledger.read() as conn:
            answers = stable_version(conn, MODEL)
        if answers != number:
            complete(world)


def stages(world: World) -> dict[int, str]:
    with world.ledger.read() as conn:
        return {one.version: one.stage.value for one in versions.list_versions(conn, model=MODEL)}


def test_people_archive_neither_version_of_a_running_rollout(world: World) -> None:
    register(world, 1, 2)
    serve(world, 1)
    promote(world, 2)
    for number in (1, 2):
        with pytest.raises(Conflict, match="leaves Production"):
            world.restage(BO, number, "Archived")
    complete(world)
    assert stages(world) == {1: "Archived", 2: "Production"}


def test_a_request_is_closed_when_its_version_comes_back_by_a_rollback(world: World) -> None:
    register(world, 1, 2, 3)
    serve(world, 1, 2)
    ask(world, 1)
    world.operate("models.rollback", BO, model=MODEL)
    with world.ledger.read() as conn:
        assert stable_version(conn, MODEL) == 1
        assert promotion.list_promotions(conn, model=MODEL, version=1, state="pending") == []
        (row,) = audit.rows(conn, action="promotion.withdrawn")
        assert row.payload["reason"] == "it is in Production again"
    promote(world, 3)
    with pytest.raises(NotFound, match="no promotion waits"):
        world.speak(BO, 1)
    complete(world)  # left open, the request would have made the baseline the version that is wanted
    assert stages(world) == {1: "Archived", 2: "Archived", 3: "Production"}


def test_of_a_version_promoted_again_the_last_promotion_is_what_is_delivered(world: World) -> None:
    register(world, 1, 2, 3)
    serve(world, 1)
    ask(world, 3)
    promote(world, 2)
    agree(world, 3)  # waits for version 2's rollout, whose end takes it along
    world.operate("delivery.abort", BO, model=MODEL)
    assert stages(world) == {1: "Production", 2: "Archived", 3: "Archived"}
    promote(world, 3)
    with world.ledger.read() as conn:
        last = promotion.list_promotions(conn, model=MODEL, version=3)[-1]
        running = active_rollout(conn, MODEL)
        assert running is not None and running.promotion_id == last.id
    complete(world)
    with world.ledger.read() as conn:
        assert due_promotions(conn) == []


def test_a_rollback_passes_over_what_may_not_come_back(world: World) -> None:
    register(world, 1, 2, 3)
    serve(world, 1, 2, 3)
    promote(world, 2)  # again, and this time it does harm
    world.step("harm")
    with world.ledger.read() as conn:
        assert rollback_targets(conn, MODEL) == [1], "version 2 was reverted"
    world.operate("models.rollback", BO, model=MODEL)
    assert stages(world) == {1: "Production", 2: "Archived", 3: "Archived"}
    with world.ledger.read() as conn:
        current = current_routes(conn)
        assert current is not None
        arms = open_routes(current[1], world.ctx.keyring.public).models[MODEL].arms
        assert [(arm.version, arm.weight) for arm in arms] == [(1, 1.0)]


def test_nobody_rolls_back_to_broken_glass_that_was_revoked(world: World) -> None:
    register(world, 1, 2)
    world.operate("models.break_glass", ROOT, model=MODEL, version=1, reason="the airport is closed")
    serve(world, 2)
    world.operate("reviews.decide", BO, model=MODEL, version=1, outcome="revoke", comment="it was not needed")
    with world.ledger.write() as conn:
        assert promotion.rollback_target(conn, model=MODEL) is None
        for to in (None, 1):
            with pytest.raises(Refused):
                promotion.rollback(conn, model=MODEL, actor=BO, reason="slow", now=NOON, to_version=to)
    with pytest.raises(NotFound, match="no earlier version"):
        world.operate("models.rollback", BO, model=MODEL)


class TestRetention:
    def test_what_the_route_table_names_is_known(self, world: World) -> None:
        register(world, 1, 2)
        serve(world, 1)
        promote(world, 2)
        with world.ledger.read() as conn:
            assert kept.routed(conn, MODEL) == {1, 2}
            assert "servers answer with it" in retention.standing(conn, model=MODEL, version=1).needed_by

    def test_what_a_rollback_would_bring_back_is_kept_whatever_was_approved_since(self, world: World) -> None:
        register(world, 1, 2, 3, 4)
        world.operate("policy.set", ROOT, document=SHORT, reason="decided by the board")
        serve(world, 1, 2)
        ask(world, 4)
        promote(world, 3)
        agree(world, 4)
        world.operate("delivery.abort", BO, model=MODEL)
        world.now += 60 * DAY
        with pytest.raises(Refused, match="a rollback would go back to it"):
            world.operate("models.delete", ROOT, model=MODEL, version=1, reason="its time is over")
        world.operate("models.rollback", BO, model=MODEL)
        assert stages(world)[1] == "Production"

    def test_a_deleted_version_is_nothing_to_go_back_to(self, world: World) -> None:
        register(world, 1, 2, 3)
        world.operate("policy.set", ROOT, document=SHORT, reason="decided by the board")
        serve(world, 1, 2, 3)
        world.now += 60 * DAY
        world.operate("models.delete", ROOT, model=MODEL, version=1, reason="its time is over")
        world.operate("models.rollback", BO, model=MODEL)
        with world.ledger.read() as conn:
            assert (
                rollback_targets(conn, MODEL) == [] and promotion.rollback_target(conn, model=MODEL) is None
            )
            assert [one.version.version for one in retention.standings(conn, model=MODEL)] == [2, 3]
