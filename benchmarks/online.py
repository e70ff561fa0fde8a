"""Online features: reading 1 × 20 and 100 × 20, and materialising, beside Feast with its SQLite store.

Run: python benchmarks/online.py [--rows 1000000] [--feast-rows 100000] [--no-feast]
Feast runs in an environment of its own (benchmarks/environments/feast), made on first use. It holds fewer entities than
ours, because it takes minutes to write them; fewer are to its advantage. Redis is started here and thrown away.
"""

import argparse
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loopwright.data.lake import Lake
from loopwright.demo.processes import free_port
from loopwright.features.materialize import Work, materialize
from loopwright.features.module import FeatureModule
from loopwright.features.online import OnlineFeatures, open_store
from loopwright.features.view import FeatureView, Spine
from loopwright.kernel.actor import SYSTEM
from loopwright.ledger.engine import Ledger

HERE = Path(__file__).parent / "environments"
COLUMNS = [f"f{n}" for n in range(20)]
NOW = datetime(2025, 6, 1, tzinfo=UTC)
SEED = 7


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--feast-rows", type=int, default=100_000)
    parser.add_argument("--no-feast", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="loopwright-bench-online-"))
    try:
        with redis_server(folder) as redis_url:
            lake = a_lake(folder, options.rows)
            ours = {
                "SQLite": measured(lake, f"sqlite:///{folder / 'online.db'}", folder, options.rows),
                "Redis": measured(lake, redis_url, folder, options.rows),
            }
        feast = None if options.no_feast else feasted(folder, options.feast_rows)
    finally:
        shutil.rmtree(folder)
    return told(ours, feast, options)


def told(ours: dict[str, Any], feast: dict[str, Any] | None, options: argparse.Namespace) -> int:
    everyone = {**({"Feast + SQLite": feast} if feast else {}), **ours}
    print(f"\n{'':<16}{'1 × 20 p50':>12}{'p99':>12}{'100 × 20 p50':>14}{'p99':>12}{'materialised':>24}")
    for name, one in everyone.items():
        cells = [
            f"{quantile(one['one'], 0.5) * 1e6:,.1f} µs", f"{quantile(one['one'], 0.99) * 1e6:,.1f} µs",
            f"{quantile(one['hundred'], 0.5) * 1e3:,.3f} ms", f"{quantile(one['hundred'], 0.99) * 1e3:,.3f} ms",
            f"{one['rows']:,} at {one['rows'] / one['seconds']:,.0f}/s",
        ]  # fmt: skip
        print(f"{name:<16}{cells[0]:>12}{cells[1]:>12}{cells[2]:>14}{cells[3]:>12}{cells[4]:>24}")
    ok = True
    for name, one in ours.items():
        speed = one["rows"] / one["seconds"]
        ok &= speed >= 100_000
        print(
            f"\n{name}: materialises {speed:,.0f} rows/s (wanted: 100,000) {'ok' if speed >= 100_000 else 'MISSED'}, "
            f"{one['rows'] / one['cpu']:,.0f} per second of processor time"
        )
        if feast is None:
            continue
        single = quantile(feast["one"], 0.5) / quantile(one["one"], 0.5)
        bulk = quantile(feast["hundred"], 0.5) / quantile(one["hundred"], 0.5)
        if name == "SQLite":
            ok &= single >= 5 and bulk >= 20
        print(f"{name}: 1 × 20 {single:.1f} × as fast as Feast + SQLite (wanted: 5 of SQLite), 100 × 20 {bulk:.1f} × "
              "(wanted: 20 of SQLite)")  # fmt: skip
    return 0 if ok else 1


def a_lake(folder: Path, rows: int) -> Lake:
    """A silver table of `rows` entities with 20 numbers each, written in ten batches."""
    ledger = Ledger.open(f"sqlite:///{folder / 'ledger.db'}")
    ledger.migrate()
    lake = Lake(folder / "lake", ledger)
    chance = np.random.default_rng(SEED)
    ids = chance.permutation(rows)
    for number, part in enumerate(np.array_split(ids, 10)):
        lake.write("silver", "m", "facts", facts(part, chance, f"{number:064x}"))
    return lake


def facts(ids: Any, chance: Any, batch: str) -> pa.Table:
    count = len(ids)
    times = np.datetime64("2025-01-01T00:00:00", "us") + chance.integers(0, 86_400 * 100, count).astype(
        "timedelta64[s]"
    )
    return pa.table(
        {"entity_id": ids, "event_time": pa.array(times).cast(pa.timestamp("us", "UTC"))}
        | {name: chance.random(count) for name in COLUMNS}
        | {"_batch": [batch] * count, "_row": np.arange(1, count + 1)}
    )


def measured(lake: Lake, url: str, folder: Path, rows: int) -> dict[str, Any]:
    """Materialise everything, then read."""
    view = FeatureView(
        "view", "facts", ("entity_id",), COLUMNS, event_time="event_time", ttl=timedelta(days=3650)
    )
    module = FeatureModule(Spine("facts"), (view,), dict.fromkeys(COLUMNS, "float64"))
    store = open_store(url)
    (folder / "staging").mkdir(exist_ok=True)
    work = Work(module, "m", lake, store, SYSTEM, lambda: NOW, folder / "staging", timedelta(0))
    began, cpu = time.perf_counter(), time.process_time()
    (done,) = materialize(work)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    assert done.rows_online == rows, done
    reader, chance = OnlineFeatures(store, lambda: NOW), random.Random(SEED)

    def one() -> float:
        entity = {"entity_id": chance.randrange(rows)}
        start = time.perf_counter()
        found = reader.read("m", "view", entity)
        took = time.perf_counter() - start
        assert found.values["f19"] is not None
        return took

    def hundred() -> float:
        asked = [{"entity_id": chance.randrange(rows)} for _ in range(100)]
        start = time.perf_counter()
        found = reader.read_many("m", asked, ("view",))
        took = time.perf_counter() - start
        assert found[99]["view"].values["f19"] is not None
        return took

    answer = {
        "rows": rows,
        "seconds": seconds,
        "cpu": cpu,
        "one": times(one, 20_000),
        "hundred": times(hundred, 1_000),
    }
    store.close()
    return answer


def times(act: Callable[[], float], count: int) -> list[float]:
    for _ in range(count // 20):
        act()
    return [act() for _ in range(count)]


def feasted(folder: Path, rows: int) -> dict[str, Any]:
    """The same of Feast, in its own environment."""
    chance = np.random.default_rng(SEED)
    pq.write_table(
        facts(np.arange(rows), chance, "").drop_columns(["_batch", "_row"]), folder / "feast.parquet"
    )
    place = folder / "feast"
    place.mkdir()
    done = subprocess.run(
        [str(feast_python()), str(HERE / "feast" / "online.py"), str(folder / "feast.parquet"), str(place), str(rows),
         str(SEED)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"Feast failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "rows": rows, "seconds": found["materialize_seconds"], "one": found["one"], "hundred": found["hundred"]
    }  # fmt: skip


def feast_python() -> Path:
    """Feast's interpreter; its environment is made where there is none."""
    cache = HERE / ".cache" / "feast"
    python = cache / "bin" / "python"
    if not python.exists():
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "-q", "--python", sys.executable, str(cache)], check=True)
        wanted = str(HERE / "feast" / "requirements.txt")
        subprocess.run([*uv, "pip", "install", "-q", "--python", str(python), "-r", wanted], check=True)
    return python


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit(
            "Redis is not installed. Run scripts/test-services, or: apt-get install redis-server"
        )
    port = free_port()
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(folder),
    ]
    server = subprocess.Popen([program, *options, "--logfile", str(folder / "redis.log")])
    try:
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.kill()
        server.wait()


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(int(len(values) * q), len(values) - 1)]


if __name__ == "__main__":
    sys.exit(main())
