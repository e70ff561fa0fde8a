"""A clock that goes backwards: time that the audit log has shown to have passed does not come back."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from loopwright.delivery.routes import stable_version
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import Refused
from loopwright.ledger import store as audit
from loopwright.registry import promotion, versions
from tests.contract.registry.reference import SECTIONS
from tests.contract.registry.world import MODEL, World

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
ANA = Actor("ana", Role.DEVELOPER)
BO, CY, DI = (Actor(name, Role.APPROVER) for name in ("bo", "cy", "di"))
ROOT = Actor("root", Role.ADMIN)


@pytest.fixture
def world(registry_url: str, tmp_path: Path) -> Iterator[World]:
    made = World(registry_url, tmp_path, NOON)
    made.register(ANA, f"{1:064x}", "s1")
    made.register(ANA, f"{2:064x}", "s1")
    yield made
    made.close()


def vouch(world: World, number: int = 1) -> None:
    for kind in ("gates", "fairness", "explainability", "card"):
        world.record(
            kind, f"{number:064x}", "PASS", world.now, None, SECTIONS if kind == "card" else frozenset()
        )


def ask(world: World, number: int = 1) -> None:
    world.operate("models.promote", ANA, model=MODEL, version=number)


def state(world: World, number: int = 1) -> str:
    with world.ledger.read() as conn:
        assert audit.verify(conn).ok
        return promotion.list_promotions(conn, model=MODEL, version=number)[-1].state


def note_the_time(world: World) -> None:
    """Something else happens, and the log says when."""
    world.operate("models.annotate", ANA, model=MODEL, version=2, key="looked at", value=str(world.now))


def test_an_approval_that_expired_does_not_count_again_when_the_clock_is_set_back(world: World) -> None:
    vouch(world)
    ask(world)
    world.speak(BO, 1)
    world.now = NOON + 15 * DAY
    note_the_time(world)
    world.now = NOON + DAY
    world.speak(CY, 1)
    assert state(world) == "pending"
    world.speak(BO, 1)  # whose yes has expired may say it again
    assert state(world) == "effective"


def test_an_approval_given_after_the_clock_was_put_right_counts(world: World) -> None:
    world.now = NOON + 4000 * DAY
    note_the_time(world)
    world.now = NOON
    vouch(world)
    ask(world)
    world.speak(BO, 1)
    world.speak(CY, 1)
    assert state(world) == "effective"


def test_evidence_that_went_stale_is_not_fresh_again_when_the_clock_is_set_back(world: World) -> None:
    vouch(world)
    world.now = NOON + 91 * DAY
    note_the_time(world)
    world.now = NOON + DAY
    ask(world)
    for who in (BO, CY):
        world.speak(who, 1)
    with world.ledger.read() as conn:
        lacks = promotion.assessment(
            conn, model=MODEL, version=1, stage=promotion.Stage.PRODUCTION, now=world.now
        ).missing
    assert [lack.partition(":")[0] for lack in lacks] == ["explainability", "fairness", "gates"]
    vouch(world)
    world.govern()
    assert state(world) == "effective"


def test_a_review_that_was_overdue_stays_so_when_the_clock_is_set_back(world: World) -> None:
    vouch(world, 2)
    world.operate("models.break_glass", ROOT, model=MODEL, version=1, reason="the airport is closed")
    world.now = NOON + 4 * DAY
    note_the_time(world)
    world.now = NOON + DAY
    with pytest.raises(Refused, match="review is overdue"):
        ask(world, 2)


def test_a_clock_set_back_between_request_and_approval_and_between_promotions_changes_no_order(
    world: World,
) -> None:
    world.now = NOON - 40 * DAY
    vouch(world, 2)
    world.now = NOON
    vouch(world, 1)
    ask(world, 1)
    world.now = NOON - timedelta(minutes=4)
    for who in (BO, CY):
        world.speak(who, 1)
    assert state(world, 1) == "effective"
    world.now = NOON - 40 * DAY
    ask(world, 2)
    for who in (BO, CY):
        world.speak(who, 2)
    with world.ledger.read() as conn:
        wanted = versions.current(conn, model=MODEL)
        assert wanted is not None and wanted.version == 2
        assert stable_version(conn, MODEL) == 1, "its rollout is under way"
    world.operate("delivery.promote", DI, model=MODEL)
    world.now = NOON - 80 * DAY
    world.operate("models.rollback", DI, model=MODEL)
    with world.ledger.read() as conn:
        assert stable_version(conn, MODEL) == 1
        report = audit.verify(conn)
    assert report.ok and "backwards" in report.remarks[0]
