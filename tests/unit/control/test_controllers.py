"""The leader's loop."""

import threading
from datetime import timedelta
from typing import Any

import pytest

from loopwright.control.context import Context
from loopwright.control.controllers.loop import LEASE, Controllers
from loopwright.kernel.errors import Conflict, Unavailable
from loopwright.ledger import store as ledger_store


def did(name: str) -> Any:
    return lambda ctx: [{"did": name}]


def broken(ctx: Context) -> list[dict[str, Any]]:
    raise Unavailable("the disk is full")


def test_a_tick_runs_every_controller_in_order(ctx: Context) -> None:
    controllers = Controllers(ctx, [("first", did("a")), ("second", did("b"))])
    assert controllers.tick() == [{"controller": "first", "did": "a"}, {"controller": "second", "did": "b"}]


def test_one_failing_does_not_keep_the_others_from_their_work(ctx: Context) -> None:
    ran: list[str] = []

    def good(ctx: Context) -> list[dict[str, Any]]:
        ran.append("good")
        return []

    controllers = Controllers(ctx, [("bad", broken), ("good", good)])
    with pytest.raises(Unavailable, match="disk is full"):
        controllers.tick()
    assert ran == ["good"]
    assert (controllers.health["bad"].failures, controllers.health["good"].failures) == (1, 0)
    assert "disk is full" in controllers.health["bad"].last_error


def test_only_one_leads(ctx: Context) -> None:
    first, second = Controllers(ctx, []), Controllers(ctx, [])
    first.tick()
    with pytest.raises(Conflict, match="another control plane leads"):
        second.tick(patience=0.2)


def test_when_the_leader_is_killed_another_takes_over_after_the_lease(ctx: Context) -> None:
    killed = Controllers(ctx, [])
    killed.tick()
    ctx.clock.move(timedelta(seconds=5))  # type: ignore[attr-defined]
    heir = Controllers(ctx, [("work", did("x"))])
    assert heir.tick() == [{"controller": "work", "did": "x"}]


def test_a_stopped_leader_gives_the_lease_back(ctx: Context) -> None:
    controllers = Controllers(ctx, [])
    controllers.tick()
    controllers.stop()
    with ctx.ledger.read() as conn:
        assert ledger_store.holder_of(conn, LEASE, ctx.now) is None


def test_the_loop_runs_until_stopped(ctx: Context) -> None:
    controllers = Controllers(ctx, [("work", did("x"))])
    controllers.start()
    assert controllers.started
    controllers.stop()
    assert not controllers.started


def test_stopping_waits_for_a_start_on_its_way_in_another_thread(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    plain = threading.Thread

    class Slow(threading.Thread):
        def start(self) -> None:
            entered.set()
            go_on.wait(10)
            super().start()

    controllers = Controllers(ctx, [])
    starter = plain(target=controllers.start)
    monkeypatch.setattr("loopwright.control.controllers.loop.threading.Thread", Slow)
    starter.start()
    entered.wait(10)
    monkeypatch.undo()
    threading.Timer(0.1, go_on.set).start()
    controllers.stop()
    starter.join()
    assert not controllers.started
