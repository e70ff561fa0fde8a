"""A materialisation killed at any step leaves readers the old set or the new one, and the next one finishes it."""

import multiprocessing
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from loopwright.data.lake import Lake
from loopwright.features import store as feature_store
from loopwright.features.materialize import materialize
from loopwright.features.online import OnlineFeatures, open_store
from loopwright.ledger.engine import Ledger
from tests.integration.features import crash

NAMES = [f"E{n:02}" for n in range(35)]
EVERY = 9
"""Steps between two deaths; the two kinds die at different ones."""
PRELOADED = [
    "tests.integration.features.crash",
    "loopwright.ledger.schema",
    "loopwright.features.online_redis",
]


def facts(hour: int, x: float, names: list[str]) -> pa.Table:
    return pa.table({
        "name": names, "t": pa.array([crash.NOW.replace(hour=hour)] * len(names), pa.timestamp("us", "UTC")),
        "x": [x] * len(names), "_batch": [f"{hour}"] * len(names), "_row": list(range(1, len(names) + 1)),
    })  # fmt: skip


@pytest.fixture(scope="session")
def processes() -> Any:
    """Processes are forked from one that has imported everything and started nothing."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(PRELOADED)
    return made


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything of hour 1 is online; a batch of hour 2 has landed, and one entity came with it."""
    folder = tmp_path_factory.mktemp("prepared")
    work = crash.work(folder, f"sqlite:///{folder / 'online.db'}")
    work.lake.write("silver", "m", "facts", facts(1, 1.0, NAMES))
    materialize(work)
    work.lake.write("silver", "m", "facts", facts(2, 2.0, [*NAMES, "new"]))
    work.store.close()
    work.lake.ledger.dispose()
    return folder


def run(processes: Any, folder: Path, url: str, *, full: bool, dies_at: int) -> int:
    process = processes.Process(target=crash.child, args=(str(folder), url, full, dies_at))
    process.start()
    process.join(180)
    return int(process.exitcode)


def online(url: str) -> list[float | None]:
    store = open_store(url)
    found = OnlineFeatures(store).read_many("m", [{"name": name} for name in [*NAMES, "new"]], ["view"])
    store.close()
    return [one["view"].values["x"] for one in found]


OLD: list[float | None] = [1.0] * len(NAMES) + [None]
NEW: list[float | None] = [2.0] * (len(NAMES) + 1)


@pytest.mark.parametrize("full", [True, False], ids=["full", "increment"])
def test_killed_on_its_way_into_sqlite(processes: Any, prepared: Path, tmp_path: Path, full: bool) -> None:
    dies_at, killed, seen = 3 if full else 1, 0, set()
    while True:
        dies_at += EVERY
        folder = Path(shutil.copytree(prepared, tmp_path / f"{dies_at}"))
        url = f"sqlite:///{folder / 'online.db'}"
        code = run(processes, folder, url, full=full, dies_at=dies_at)
        assert code in (0, -signal.SIGKILL)
        found = online(url)
        if full:
            assert found in (OLD, NEW)  # never some of each
        assert set(found) <= {1.0, 2.0, None}  # an increment goes entity by entity
        seen.add(tuple(found))
        if code == 0:
            break
        killed += 1
        check_finished(processes, folder, url, full=full)
        shutil.rmtree(folder)
    assert killed >= 3
    assert {tuple(OLD), tuple(NEW)} <= seen


def test_killed_on_its_way_into_redis(processes: Any, prepared: Path, tmp_path: Path, redis_url: str) -> None:
    import redis

    for dies_at in (8, 15):
        redis.Redis.from_url(redis_url).flushall()
        folder = tmp_path / f"{dies_at}"
        (folder / "staging").mkdir(parents=True)
        shutil.copytree(prepared / "lake", folder / "lake")
        code = run(processes, folder, redis_url, full=True, dies_at=dies_at)
        assert code in (0, -signal.SIGKILL)
        check_finished(processes, folder, redis_url, full=True)
        keys = redis.Redis.from_url(redis_url).keys("lw:*:view:*")
        assert len(keys) == 1, keys  # type: ignore[arg-type]


def check_finished(processes: Any, folder: Path, url: str, *, full: bool) -> None:
    """The next materialisation ends as if nothing had happened."""
    assert run(processes, folder, url, full=False, dies_at=0) == 0
    assert online(url) == NEW
    ledger = Ledger.open(f"sqlite:///{folder / 'ledger.db'}")
    with ledger.read() as conn:
        states = [one.state for one in feature_store.history(conn, "m", "view")]
    ledger.dispose()
    assert "running" not in states
    assert states[0] == "done"
    assert not list((folder / "staging").glob("*.parquet"))
    assert Lake(folder / "lake", ledger).version("silver", "m", "facts") == 1
