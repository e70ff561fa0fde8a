"""How long a point-in-time training set takes, and whether it holds every row that was asked for.

300,000 questions about 50,000 entities, 1,000,000 rows of 20 features over 30 days, a time to live of two days; some
entities are unknown, some answers too old, some questions asked twice. Both sides read the same Parquet files, each in
a process of its own; imports do not count. Feast 0.67 with its local file store, in its own environment, is the rival.
Run: .venv/bin/python benchmarks/training_set.py [--rounds 3] [--questions N --rows N --features N]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
from environments.environment import HERE, python_of

TTL = timedelta(days=2)
ENTITIES = 50_000
START = 1_704_067_200
TARGET = 10.0
SIDES = {
    "loopwright (DuckDB, ASOF)": "asof",
    "loopwright (portable SQL)": "portable",
    "feast 0.67 (file)": "feast",
}


def main() -> int:
    if len(sys.argv) > 1 and sys.argv[1] == "--ours":
        return ours(Path(sys.argv[2]), sys.argv[3])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=300_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=20)
    wanted = parser.parse_args()
    rival = python_of("feast")
    with tempfile.TemporaryDirectory(prefix="loopwright-bench-") as place:
        folder = Path(place)
        make(folder, wanted.questions, wanted.rows, wanted.features)
        took: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
        for _ in range(wanted.rounds):
            for name, side in SIDES.items():
                command = [sys.executable, __file__, "--ours", place, side]
                if side == "feast":
                    script = str(HERE / "feast" / "training_set.py")
                    command = [str(rival), script, place, str(TTL.total_seconds())]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                took[name].append(json.loads(done.stdout.splitlines()[-1]))
        told = compare(folder)

    def median(name: str, what: str) -> float:
        return statistics.median(float(each[what]) for each in took[name])

    base, base_cpu = median("feast 0.67 (file)", "seconds"), median("feast 0.67 (file)", "cpu")
    print(
        f"{'':28}{'median s':>10}{'faster':>9}{'CPU s':>9}{'fewer':>9}{'rows in':>10}{'rows out':>10}{'other':>8}"
        f"{'peak MB':>9}"
    )
    for name, side in SIDES.items():
        seconds, cpu = median(name, "seconds"), median(name, "cpu")
        peak = max(each["peak_mb"] for each in took[name])
        rows, other = told[side]
        print(
            f"{name:28}{seconds:10.2f}{base / seconds:8.1f}×{cpu:9.2f}{base_cpu / cpu:8.1f}×"
            f"{wanted.questions:10,}{rows:10,}{other:8,}{peak:9,.0f}"
        )
    print(
        "other: rows that are missing or hold other values than the brute-force answer, of 1,000 that it was asked,"
    )
    print(f"       and rows lost; target: ≥ {TARGET:.0f}× with no lost row")
    fast = base / median("loopwright (DuckDB, ASOF)", "seconds") >= TARGET
    whole = told["asof"] == (wanted.questions, 0) == told["portable"]
    return int(not (fast and whole))


def make(folder: Path, questions: int, rows: int, features: int) -> None:
    """Write asked.parquet and facts.parquet."""
    chance = np.random.default_rng(20240101)
    moment = pa.timestamp("us", "UTC")

    def moments(count: int, days: int) -> pa.Array:
        return pa.array((START + chance.integers(0, days * 86_400, count)) * 1_000_000, moment)

    facts = {"k": chance.integers(0, ENTITIES, rows), "t": moments(rows, 30)}
    facts |= {f"f{n}": chance.normal(size=rows) for n in range(features)}
    pa_parquet.write_table(pa.table(facts), folder / "facts.parquet")
    asked = pa.table(
        {"k": chance.integers(0, int(ENTITIES * 1.02), questions), "event_time": moments(questions, 31)}
    )
    twice = np.arange(questions)
    again = max(1, questions // 1000)
    twice[-again:] = chance.integers(0, questions - again, again)
    asked = asked.take(pa.array(twice)).append_column("question", pa.array(range(questions), pa.int64()))
    pa_parquet.write_table(asked, folder / "asked.parquet")


def ours(folder: Path, side: str) -> int:
    """One training set by Loopwright; prints what Feast's script prints."""
    from loopwright.data.files import Files
    from loopwright.features import FeatureView
    from loopwright.features.lookup import DUCKDB
    from loopwright.features.portable import PORTABLE
    from loopwright.features.training_set import training_set

    schema = pa_parquet.read_schema(folder / "facts.parquet")
    view = FeatureView(
        "facts", "facts", ("k",), [name for name in schema.names if name.startswith("f")], "t", ttl=TTL
    )
    began, cpu = time.perf_counter(), time.process_time()
    facts = Files((str(folder / "facts.parquet"),), schema)
    dialect = PORTABLE if side == "portable" else DUCKDB
    found = training_set(folder / "asked.parquet", [view], {"facts": facts}, dialect=dialect)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    pa_parquet.write_table(found, folder / f"{side}.parquet")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "rows": found.num_rows, "peak_mb": peak}))
    return 0


def compare(folder: Path) -> dict[str, tuple[int, int]]:
    """Side → (rows, rows lost or wrong). Every row is looked for; of 1,000 the first feature is told by hand."""
    asked = pa_parquet.read_table(folder / "asked.parquet")
    facts = pa_parquet.read_table(folder / "facts.parquet", columns=["k", "t", "f0"])
    key, at, value = (facts.column(n).to_numpy() for n in range(3))
    at = at.astype("datetime64[us]")
    questions = np.random.default_rng(1).choice(asked.num_rows, 1000, replace=False)
    wanted: dict[int, set[float | None]] = {}  # of rows with one entity and one time, either will do
    for n in questions:
        moment = np.datetime64(asked.column("event_time")[int(n)].value, "us")
        mine = (key == asked.column("k")[int(n)].as_py()) & (at <= moment)
        newest = at[mine].max() if mine.any() else None
        fresh = newest is not None and moment < newest + np.timedelta64(TTL)
        wanted[int(n)] = set(value[mine & (at == newest)].tolist()) if fresh else {None}
    told = {}
    for side in SIDES.values():
        found = pa_parquet.read_table(folder / f"{side}.parquet", columns=["question", "f0"])
        got = dict(zip(found.column(0).to_pylist(), found.column(1).to_pylist(), strict=True))
        got = {n: None if value is None or np.isnan(value) else value for n, value in got.items()}
        wrong = sum(got[n] not in want for n, want in wanted.items() if n in got)
        told[side] = (found.num_rows, asked.num_rows - len(got) + wrong)
    return told


if __name__ == "__main__":
    sys.exit(main())
