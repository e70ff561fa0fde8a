"""The database held by another process while somebody approves: waited for, then told, and nothing half-written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import Unavailable
from loopwright.ledger import engine
from loopwright.ledger.engine import Ledger
from loopwright.registry import promotion
from tests.contract.registry.reference import SECTIONS
from tests.contract.registry.world import MODEL, World

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
ANA = Actor("ana", Role.DEVELOPER)
BO, CY = Actor("bo", Role.APPROVER), Actor("cy", Role.APPROVER)
BYTES = f"{1:064x}"


@contextmanager
def another_process_writing(url: str, world: World) -> Iterator[None]:
    """Another process is in a write transaction, inside; it rolls back when the block ends."""
    world.start_anew()  # no connection goes with a fork
    ready_out, ready_in = os.pipe()
    done_out, done_in = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(done_in)
            with suppress(EOFError), Ledger.open(url).write():
                os.write(ready_in, b".")
                os.read(done_out, 1)  # ends when the parent closes its side
                raise EOFError  # rolled back: the server has let go of the lock before this process ends
            os._exit(0)
        finally:
            os._exit(3)
    os.close(ready_in)
    try:
        assert os.read(ready_out, 1) == b"."
        yield
    finally:
        os.close(done_in)
        os.waitpid(child, 0)
        for end in (ready_out, done_out):
            os.close(end)


@pytest.mark.parametrize("through", ["an operation", "MLflow"])
def test_an_approval_waits_for_another_process_and_says_so_in_the_end(
    registry_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: str
) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_MS", 200)
    world = World(registry_url, tmp_path, NOON)
    try:
        world.register(ANA, BYTES, "s1")
        for kind in ("fairness", "explainability", "card"):
            world.record(kind, BYTES, "PASS", NOON, None, SECTIONS if kind == "card" else frozenset())
        world.operate("models.promote", ANA, model=MODEL, version=1)
        world.speak(BO, 1)

        def decide() -> None:
            if through == "MLflow":
                world.transition(CY, 1, "Production")
            else:
                world.speak(CY, 1)

        if through == "MLflow":
            world.speak(CY, 1)
        world.record("gates", BYTES, "PASS", NOON, None, frozenset())
        before = world.dump()
        with (
            another_process_writing(registry_url, world),
            pytest.raises(Exception, match=r"held the write lock|locked|lock timeout") as told,
        ):
            decide()
        assert world.dump() == before
        if through == "MLflow":
            assert told.value.get_http_status_code() == 503, "a client tries again"  # type: ignore[attr-defined]
        else:
            assert isinstance(told.value, Unavailable)
        decide()
        with world.ledger.read() as conn:
            assert [one.state for one in promotion.list_promotions(conn)] == ["effective"]
    finally:
        world.close()
