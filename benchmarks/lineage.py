"""Lineage of a long history: 100 retrains over 1,000 batches, a year of hourly traffic, labels and windows.

The limit is one second for any answer. Run: .venv/bin/python benchmarks/lineage.py
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert

from loopwright.ledger import schema
from loopwright.ledger.engine import Ledger
from loopwright.registry.lineage import impact, lineage
from loopwright.registry.lineage.page import page
from loopwright.registry.lineage.svg import draw

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.contract.lineage.history import History, digest

HOUR = 3_600_000_000
LIMIT = 1.0
ROUNDS = 5


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.open(f"sqlite:///{Path(folder) / 'ledger.db'}")
        ledger.migrate()
        build(ledger)
        print(f"{'question':<42}{'nodes':>7}{'answer':>10}{'drawn':>10}   share of the limit")
        for name, ask in QUESTIONS.items():
            answer, seconds = best(ledger, ask)
            began = time.perf_counter()
            draw(answer)
            drawn = time.perf_counter() - began
            times = f"{seconds * 1000:>7.0f} ms{drawn * 1000:>7.0f} ms{seconds / LIMIT:>12.0%}"
            print(f"{name:<42}{len(answer['nodes']):>7}{times}")
        with ledger.read() as conn:
            print(
                f"page: {len(page(lineage(conn, model='late', version=100, direction='both'))) / 1000:.0f} kB"
            )
        ledger.dispose()


def build(ledger: Ledger) -> None:
    """100 versions, each trained on 10 more batches and called for by an alert on the one before."""
    history = History(ledger)
    history.land("weather")
    history.land_many(10)
    version = history.train()
    for _ in range(99):
        history.land_many(10)
        history.serve(version)
        version = history.retrain(history.judge(version), version)
    history.route((version, "stable", 1.0))
    with ledger.write() as conn:
        conn.execute(insert(schema.folds), [
            {"model": "late", "version": 100 - hour % 2, "arm": "canary", "bucket": hour * HOUR, "answers": 100,
             "errors": 1, "payload": bytes(2000)} for hour in range(8760)
        ])  # fmt: skip
        conn.execute(insert(schema.label_batches), [
            {"id": f"hour-{hour}", "model": "late", "rows": 90, "event_from": hour * HOUR, "event_to": hour * HOUR + 1,
             "path": "", "at": hour} for hour in range(8760)
        ])  # fmt: skip
        conn.execute(insert(schema.windows), [
            {"id": f"window-{n}", "model": "late", "version": 99, "kind": "drift", "start": n, "end": n + 1,
             "verdict": "PASS", "payload": "{}", "at": n} for n in range(5000)
        ])  # fmt: skip


def best(ledger: Ledger, ask: Callable[[Connection], dict[str, Any]]) -> tuple[dict[str, Any], float]:
    times = []
    for _ in range(ROUNDS):
        with ledger.read() as conn:
            began = time.perf_counter()
            answer = ask(conn)
            times.append(time.perf_counter() - began)
    return answer, min(times)


QUESTIONS: dict[str, Callable[[Connection], dict[str, Any]]] = {
    "where does version 100 come from": lambda conn: lineage(conn, model="late", version=100),
    "all about version 50": lambda conn: lineage(conn, model="late", version=50, direction="both"),
    "all 100 generations, nothing folded": lambda conn: lineage(
        conn, model="late", version=100, generations=100, whole=True
    ),
    "what did the first batch touch": lambda conn: impact(
        conn, batch=f"flights/{digest('late', 'flights', 0)}"
    ),
    "what reads a column": lambda conn: impact(conn, column="flights.late"),
    "what did a table's batches touch": lambda conn: impact(conn, source="flights"),
}

if __name__ == "__main__":
    main()
