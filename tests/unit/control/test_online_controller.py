"""The online store is kept up to date where a project asks for it, one model at a time."""

import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from loopwright.control.context import Context
from loopwright.control.controllers.online import OnlineController, materialize_command
from loopwright.features import store as feature_store
from loopwright.features.store import Materialization
from loopwright.pipeline.store import save_project
from loopwright.project.spec import Spec
from tests.unit.control.conftest import FakeClock


def asking(ctx: Context, model: str, online: dict[str, Any] | None) -> None:
    spec = Spec.model_validate({
        "model": model, "task": "binary", "online": online,
        "data": {"sources": {"t": {"uri": "t.csv", "contract": "t.yaml"}}, "label": {"name": "late"}},
    })  # fmt: skip
    with ctx.ledger.write() as conn:
        save_project(conn, model, "/nowhere", spec.to_json(), "d", ctx.now)


def standing(ctx: Context, model: str, view: str = "view") -> None:
    """A view was materialised just now."""
    with ctx.ledger.write() as conn:
        name = f"mat_{model}{view}{ctx.now:%H%M%S}"
        one = Materialization(
            name, model, view, "s", "d", 0, ctx.now, "full", "running", 0, {}, ctx.now, None
        )
        feature_store.start(conn, one)
        feature_store.finish(conn, one.id, state="done", at=ctx.now)


def controller(tmp_path: Path, *, code: int = 0, said: str = "") -> OnlineController:
    """Whose child only writes down for which model it was started."""
    note = f"open({str(tmp_path / 'started')!r}, 'a').write(sys.argv[1] + ' ')"
    script = f"import sys; {note}; print({said!r}); sys.exit({code})"
    seconds = iter(range(0, 10_000, 10))
    return OnlineController(
        command=lambda ctx, model: [sys.executable, "-c", script, model], timer=lambda: float(next(seconds))
    )


def settle(made: OnlineController, ctx: Context) -> list[dict[str, Any]]:
    """Tick until the child at work has ended; what was done then."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if did := made._ended():
            return did
        time.sleep(0.02)
    raise AssertionError("the child does not end")


def test_only_models_that_ask_are_kept_online_and_only_when_due(
    ctx: Context, clock: FakeClock, tmp_path: Path
) -> None:
    asking(ctx, "quiet", None)
    asking(ctx, "by-run", {"after_run": True})
    asking(ctx, "asks", {"every": "15m"})
    made = controller(tmp_path)
    assert made.tick(ctx) == [{"model": "asks", "started": "materialisation"}]
    assert settle(made, ctx) == [{"model": "asks", "materialised": True}]
    standing(ctx, "asks")
    clock.move(timedelta(minutes=14))
    assert made.tick(ctx) == []
    clock.move(timedelta(minutes=1))
    assert made.tick(ctx) == [{"model": "asks", "started": "materialisation"}]
    settle(made, ctx)
    assert (tmp_path / "started").read_text() == "asks asks "


def test_the_model_that_has_waited_longest_is_first(ctx: Context, clock: FakeClock, tmp_path: Path) -> None:
    for model in ("a", "b"):
        asking(ctx, model, {"every": "15m"})
    standing(ctx, "b")
    clock.move(timedelta(minutes=1))
    standing(ctx, "a")
    clock.move(timedelta(minutes=16))
    made = controller(tmp_path)
    assert made.tick(ctx) == [{"model": "b", "started": "materialisation"}]
    assert made.tick(ctx) in (
        [],
        [{"model": "b", "materialised": True}, {"model": "a", "started": "materialisation"}],
    )


def test_one_that_failed_is_told_and_not_tried_again_at_once(
    ctx: Context, clock: FakeClock, tmp_path: Path
) -> None:
    asking(ctx, "asks", {"every": "10s"})
    made = controller(tmp_path, code=2, said="loopwright: the store is away")
    made.tick(ctx)
    assert settle(made, ctx) == [{"model": "asks", "failed": "loopwright: the store is away"}]
    clock.move(timedelta(seconds=9))
    assert made.tick(ctx) == []
    clock.move(timedelta(seconds=2))
    assert made.tick(ctx) == [{"model": "asks", "started": "materialisation"}]
    settle(made, ctx)


def test_what_keeps_failing_is_tried_less_and_less_often(
    ctx: Context, clock: FakeClock, tmp_path: Path
) -> None:
    asking(ctx, "asks", {"every": "1m"})
    made = controller(tmp_path, code=2, said="loopwright: SQL that fails")
    tries = []
    for minute in range(16):
        if made.tick(ctx):
            tries.append(minute)
            settle(made, ctx)
        clock.move(timedelta(minutes=1))
    assert tries == [0, 1, 3, 7, 15]
    made.command = controller(tmp_path).command  # mended
    clock.move(timedelta(minutes=15))
    assert made.tick(ctx) == [{"model": "asks", "started": "materialisation"}]
    assert settle(made, ctx) == [{"model": "asks", "materialised": True}]
    clock.move(timedelta(minutes=1))
    assert made.tick(ctx) == [{"model": "asks", "started": "materialisation"}]
    settle(made, ctx)


def test_the_child_is_the_command_a_person_would_use(ctx: Context) -> None:
    assert materialize_command(ctx, "late")[1:] == [
        "-m", "loopwright", "features", "materialize", "late", "--home", str(ctx.home.root), "--json"
    ]  # fmt: skip
