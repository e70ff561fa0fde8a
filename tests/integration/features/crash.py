"""A materialisation in a process of its own that kills itself, as `kill -9` would, at its n-th step."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import redis.client

from loopwright.data.lake import Lake
from loopwright.features import materialize as module
from loopwright.features.materialize import Work, materialize
from loopwright.features.module import FeatureModule
from loopwright.features.online import open_store
from loopwright.features.online_sqlite import SqliteStore
from loopwright.features.view import FeatureView, Spine
from loopwright.kernel.actor import SYSTEM
from loopwright.ledger.engine import Ledger

NOW = datetime(2013, 7, 1, 12, tzinfo=UTC)
VIEW = FeatureView("view", "facts", "name", {"x": "x"}, "t")
MODULE = FeatureModule(Spine("facts"), (VIEW,), {"x": "float64"})


def work(folder: Path, url: str) -> Work:
    """What is worked with in `folder`."""
    ledger = Ledger.open(f"sqlite:///{folder / 'ledger.db'}")
    ledger.migrate()
    staging = folder / "staging"
    staging.mkdir(exist_ok=True)
    return Work(
        MODULE, "m", Lake(folder / "lake", ledger), open_store(url), SYSTEM, lambda: NOW, staging, timedelta(0),
        batch_rows=10,
    )  # fmt: skip


def child(folder: str, url: str, full: bool, dies_at: int) -> None:
    """Materialise; die before the step `dies_at` (counted from 1). Exit code 0: there were fewer steps."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    _around(Ledger, "write", step)
    _around(SqliteStore, "_writing", step)
    _before(redis.client.Pipeline, "execute", step)
    _before(module.Newest, "write", step)
    _before(Path, "replace", step)
    _before(Path, "unlink", step)
    materialize(work(Path(folder), url), full=full)


def _before(owner: Any, name: str, step: Callable[[], None]) -> None:
    real = getattr(owner, name)

    def stepped(*arguments: Any, **named: Any) -> Any:
        step()
        answer = real(*arguments, **named)
        step()
        return answer

    setattr(owner, name, stepped)


def _around(owner: Any, name: str, step: Callable[[], None]) -> None:
    """A context manager whose body may be the last that happens, before it is committed."""
    real = getattr(owner, name)

    @contextmanager
    def stepped(*arguments: Any, **named: Any) -> Iterator[Any]:
        step()
        with real(*arguments, **named) as given:
            yield given
            step()
        step()

    setattr(owner, name, stepped)
