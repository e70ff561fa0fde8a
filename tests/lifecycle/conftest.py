"""One run of the flights demo for the whole folder; each test reads what it left behind, not only what it said."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from loopwright.kernel.home import Home
from loopwright.ledger.engine import Ledger

DEMO_SECONDS = 1200


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All lifecycle tests share one process, and so one demo."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.xdist_group("lifecycle"))


@dataclass(frozen=True)
class Played:
    """A demo that was played to its end: its home, its printed text, and the figures it told."""

    home: Home
    text: str
    figures: dict[str, Any]
    ledger: Ledger

    def sql(self, query: str) -> list[dict[str, Any]]:
        """Rows of a query over the ledger."""
        from sqlalchemy import text

        with self.ledger.read() as conn:
            return [dict(row) for row in conn.execute(text(query)).mappings()]

    def predictions(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of a query over the prediction log; it is called `log`."""
        files = [str(file) for file in (self.home.predictions / "flight-late").glob("day=*/*.parquet")]
        with duckdb.connect() as engine:
            log = engine.read_parquet(files, hive_partitioning=False)
            log.create_view("log")
            return engine.execute(query).fetchall()

    def table(self, layer: str, name: str) -> pa.Table:
        """A table of the lake, newest version."""
        from deltalake import DeltaTable

        return DeltaTable(str(self.home.lake / layer / "flight-late" / name)).to_pyarrow_table()


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """`loopwright demo flights --keep DIR`, with an empty user home, as a process of its own."""
    root = tmp_path_factory.mktemp("demo")
    keep, user = root / "home", root / "user"
    user.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LOOPWRIGHT_", "MLFLOW_"))}
    environment["HOME"] = str(user)
    done = subprocess.run(
        [sys.executable, "-m", "loopwright", "demo", "flights", "--keep", str(keep)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        stdin=subprocess.DEVNULL,
        cwd=root,
    )
    logs = "".join(f"\n--- {log.name}\n{log.read_text()[-3000:]}" for log in (keep / "logs").glob("*.log"))
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}{logs}"
    home = Home.at(keep)
    ledger = Ledger.open(home.ledger_url)
    yield Played(home, done.stdout, json.loads((keep / "demo.json").read_text()), ledger)
    ledger.dispose()
