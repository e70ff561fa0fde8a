"""How long twelve usual checks take, and how much memory: 2,000,000 rows × 15 columns of Parquet.

Ours (a contract, which also types every cell, finds the bad rows and shows examples), DuckDB SQL written by hand that
counts and nothing else, and Great Expectations 1.24 in its own environment, on pandas. Each in a process of its own, in
turn; reading the file counts, imports do not. With --large, ours and the SQL by hand at 20,000,000 rows too, ours under
the same memory limit. Run: .venv/bin/python benchmarks/checks.py [--rounds 3] [--large] [--rows N]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
from environments.environment import HERE, python_of

CONTRACT = """
apiVersion: v3.1.0
kind: DataContract
id: orders
schema:
  - name: orders
    properties:
      - {name: id, logicalType: integer, required: true, unique: true}
      - {name: customer, logicalType: integer, required: true}
      - {name: sku, logicalType: string}
      - {name: quantity, logicalType: integer, logicalTypeOptions: {minimum: 1, maximum: 100}}
      - {name: price, logicalType: number, logicalTypeOptions: {minimum: 0}}
      - {name: discount, logicalType: number, logicalTypeOptions: {minimum: 0, maximum: 1}}
      - name: currency
        logicalType: string
        quality: [{metric: invalidValues, arguments: {validValues: [EUR, USD, GBP, CHF]}, mustBe: 0}]
      - {name: country, logicalType: string, logicalTypeOptions: {minLength: 2, maxLength: 2}}
      - {name: status, logicalType: string}
      - {name: channel, logicalType: string}
      - {name: created_at, logicalType: timestamp}
      - {name: shipped_at, logicalType: timestamp}
      - {name: email, logicalType: string, logicalTypeOptions: {pattern: '^[^@]+@[^@]+[.][a-z]+$'}}
      - {name: score, logicalType: number}
      - {name: weight, logicalType: number}
    quality:
      - {type: custom, engine: loopwright, implementation: shipped_at >= created_at}
      - {metric: rowCount, mustBeGreaterThan: 1000}
      - {type: custom, engine: loopwright, implementation: {property: price, metric: mean, mustBeBetween: [10, 100]}}
"""
BY_HAND = """
SELECT count(*), count(*) FILTER (id IS NULL), count(*) FILTER (customer IS NULL),
  count(*) FILTER (quantity < 1 OR quantity > 100), count(*) FILTER (price < 0),
  count(*) FILTER (discount < 0 OR discount > 1), count(*) FILTER (currency NOT IN ('EUR', 'USD', 'GBP', 'CHF')),
  count(*) FILTER (length(country) <> 2), count(*) FILTER (NOT regexp_matches(email, '^[^@]+@[^@]+[.][a-z]+$')),
  count(*) FILTER (shipped_at < created_at), avg(price),
  (SELECT coalesce(sum(n - 1), 0) FROM (SELECT count(*) AS n FROM orders WHERE id IS NOT NULL GROUP BY id))
FROM orders
"""
SIDES = {"loopwright": "ours", "DuckDB by hand": "hand", "Great Expectations 1.24": "expectations"}
FASTER, OF_HAND, PEAK, MEMORY = 5.0, 1.3, 400e6, "256MB"
BLOCK = 250_000


def main() -> int:
    if len(sys.argv) > 2 and sys.argv[1] == "--side":
        print(json.dumps({"ours": ours, "hand": by_hand}[sys.argv[2]](Path(sys.argv[3]))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--large", action="store_true", help="20,000,000 rows besides")
    wanted = parser.parse_args()
    try:
        rival: Path | None = python_of("great-expectations")
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"without Great Expectations, which cannot be installed here ({error}); it comes from PyPI")
        rival = None
    with tempfile.TemporaryDirectory(prefix="loopwright-bench-") as place:
        folder = Path(place)
        well = _measured(folder / "orders.parquet", wanted.rows, wanted.rounds, rival)
        if wanted.large:
            print()
            well &= _measured(folder / "large.parquet", 20_000_000, max(1, wanted.rounds - 1), None)
    return int(not well)


def _measured(path: Path, rows: int, rounds: int, rival: Path | None) -> bool:
    generate(path, rows)
    sides = {name: side for name, side in SIDES.items() if side != "expectations" or rival is not None}
    took: dict[str, list[dict[str, Any]]] = {side: [] for side in sides.values()}
    for _ in range(rounds):
        for side in sides.values():
            command = [sys.executable, __file__, "--side", side, str(path)]
            if side == "expectations":
                command = [str(rival), str(HERE / "great-expectations" / "checks.py"), str(path)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            took[side].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{rows:,} rows × 15, {path.stat().st_size / 1e6:,.0f} MB of Parquet, best of {rounds} (median)")
    print(f"{'':26}{'seconds':>16}{'CPU s':>16}{'peak MB':>9}{'time':>8}{'CPU':>8}  of ours")
    for name, side in sides.items():
        wall, cpu = _best(took, side, "seconds"), _best(took, side, "cpu")
        medians = [statistics.median(each[what] for each in took[side]) for what in ("seconds", "cpu")]
        print(
            f"{name:26}{wall:8.2f} ({medians[0]:5.2f}){cpu:8.2f} ({medians[1]:5.2f})"
            f"{max(each['peak'] for each in took[side]) / 1e6:9.0f}"
            f"{wall / _best(took, 'ours', 'seconds'):7.2f}×{cpu / _best(took, 'ours', 'cpu'):7.2f}×"
        )
    counts = [took[side][0]["counts"] for side in sides.values()]
    same = all(each == counts[0] for each in counts)
    print(f"counts {'agree: ' + _told(counts[0]) if same else f'DIFFER: {counts}'}")
    hand = _best(took, "ours", "cpu") / _best(took, "hand", "cpu")
    most = max(each["peak"] for each in took["ours"])
    told = [
        f"{hand:.2f} of the CPU time by hand (wanted <= {OF_HAND})",
        f"peak {most / 1e6:.0f} MB (wanted < 400)",
    ]
    well = same and hand <= OF_HAND and most < PEAK
    if "expectations" in took:
        faster = _best(took, "expectations", "seconds") / _best(took, "ours", "seconds")
        told.insert(0, f"{faster:.1f} times as fast as Great Expectations (wanted >= {FASTER:.0f})")
        well = well and faster >= FASTER
    print(f"ours, under a limit of {MEMORY}: {'; '.join(told)}")
    return well


def _best(took: dict[str, list[dict[str, Any]]], side: str, what: str) -> float:
    return min(float(each[what]) for each in took[side])


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items() if n)


def ours(path: Path) -> dict[str, Any]:
    from loopwright.data.checking import examination
    from loopwright.data.contract import Contract
    from loopwright.data.files import Files

    contract = Contract.parse(CONTRACT, "orders.odcs.yaml")
    with _Clock() as clock:
        file = pa_parquet.ParquetFile(path)
        files = Files((str(path),), file.schema_arrow, file.metadata.num_rows, numbered=True)
        with examination(files, contract, memory_limit=MEMORY) as found:
            report = found.report
    failed = {rule.name: rule.failed for rule in report.rules}
    names = {
        "id present": ["id present"], "id unique": ["id unique"], "customer present": ["customer present"],
        "quantity in range": ["quantity >= 1", "quantity <= 100"], "price not negative": ["price >= 0"],
        "discount in range": ["discount >= 0", "discount <= 1"], "currency known": ["currency valid"],
        "country of two letters": ["country length >= 2", "country length <= 2"],
        "email looks like one": ["email matches ^[^@]+@[^@]+[.][a-z]+$"],
        "shipped after created": ["shipped_at >= created_at"],
    }  # fmt: skip
    counts = {name: sum(failed[rule] for rule in rules) for name, rules in names.items()}
    blocked = {rule.name for rule in report.blocked_by}
    counts |= {
        "rows": int("row count" in blocked),
        "mean price": int(any("mean" in name for name in blocked)),
    }
    return {**clock.told(), "counts": counts}


def by_hand(path: Path) -> dict[str, Any]:
    import duckdb

    with _Clock() as clock:
        engine = duckdb.connect()
        engine.execute(f"CREATE VIEW orders AS SELECT * FROM read_parquet('{path}')")
        (found,) = engine.execute(BY_HAND).fetchall()
    rows, present, customer, quantity, price, discount, currency, country, email, shipped, mean, twice = found
    counts = {
        "id present": present, "id unique": int(twice), "customer present": customer, "quantity in range": quantity,
        "price not negative": price, "discount in range": discount, "currency known": currency,
        "country of two letters": country, "email looks like one": email, "shipped after created": shipped,
        "rows": int(rows <= 1000), "mean price": int(not 10 <= mean <= 100),
    }  # fmt: skip
    return {**clock.told(), "counts": counts}


def peak() -> float:
    """The most memory this process has had, in bytes (what getrusage says includes the parent's before exec)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("VmHWM"))


class _Clock:
    def __enter__(self) -> "_Clock":
        self.began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self.cpu = time.perf_counter() - self.began[0], time.process_time() - self.began[1]

    def told(self) -> dict[str, float]:
        return {"seconds": self.seconds, "cpu": self.cpu, "peak": peak()}


def generate(path: Path, rows: int) -> None:
    """Orders with a few mistakes in them: the same ones every time."""
    chance = np.random.default_rng(20240101)
    currencies, countries = np.array(["EUR", "USD", "GBP", "CHF"]), np.array(["DE", "FR", "US", "GB", "CH"])
    statuses, channels = np.array(["new", "paid", "shipped", "returned"]), np.array(["web", "app", "shop"])
    writer = None
    for start in range(0, rows, BLOCK):
        n = min(BLOCK, rows - start)
        customer = chance.integers(1, 200_000, n)
        created = 1_700_000_000_000_000 + chance.integers(0, 30 * 86_400_000_000, n)
        price = np.round(chance.lognormal(3, 1, n), 2)
        price[chance.random(n) < 0.0001] = -1
        email = np.char.add(np.char.add("user", customer.astype(str)), "@example.com")
        moment = pa.timestamp("us", "UTC")
        block = pa.table({
            "id": np.arange(start, start + n),
            "customer": pa.array(customer, mask=chance.random(n) < 0.0002),
            "sku": np.char.add("SKU-", chance.integers(0, 50_000, n).astype(str)),
            "quantity": chance.integers(1, 100, n),
            "price": price,
            "discount": np.round(chance.random(n) * 0.5, 3),
            "currency": currencies[chance.integers(0, 4, n)],
            "country": countries[chance.integers(0, 5, n)],
            "status": statuses[chance.integers(0, 4, n)],
            "channel": channels[chance.integers(0, 3, n)],
            "created_at": pa.array(created, moment),
            "shipped_at": pa.array(created + chance.integers(0, 5 * 86_400_000_000, n), moment),
            "email": np.where(chance.random(n) < 0.0001, "nobody", email),
            "score": chance.normal(0, 1, n),
            "weight": chance.gamma(2, 2, n),
        })  # fmt: skip
        writer = writer or pa_parquet.ParquetWriter(path, block.schema)
        writer.write_table(block)
    assert writer is not None
    writer.close()


if __name__ == "__main__":
    sys.exit(main())
