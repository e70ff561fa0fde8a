"""`loopwright init` on a user's own file, then `loopwright run`, with nothing changed in between."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.open import open_bundle
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import utc_now
from loopwright.kernel.home import Home
from loopwright.kernel.verdict import Verdict
from loopwright.ledger.engine import Ledger
from loopwright.pipeline.lifecycle import RunReport, run_project
from loopwright.pipeline.scaffold import ScaffoldReport, init_project
from loopwright.project.spec import load_project

ADA = Actor("ada", Role.DEVELOPER)
ROWS = 600


@dataclass
class Workshop:
    """A home that several projects share."""

    home: Home
    ledger: Ledger
    key: SigningKey
    folder: Path

    def run(self, project: Path) -> RunReport:
        return run_project(
            project=load_project(project), home=self.home, ledger=self.ledger, actor=ADA, clock=utc_now, key=self.key,
            tracking_uri=self.home.ledger_url,
        )  # fmt: skip


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("workshop")
    home = Home.at(folder / "home")
    home.create()
    ledger = Ledger.open(home.ledger_url)
    ledger.migrate()
    yield Workshop(home, ledger, SigningKey.load_or_create(home.keys / "signing.key"), folder)
    ledger.dispose()


def rows() -> dict[str, list[object]]:
    """What customers did, and three things to predict about them that really depend on it."""
    chance = np.random.default_rng(5)
    minutes = chance.gamma(2.0, 100.0, ROWS).round(1)
    plan = chance.choice(["basic", "pro", "team"], ROWS)
    pull = minutes / 150 - 1.5 + (plan == "basic") * 1.5
    left = chance.random(ROWS) < 1 / (1 + np.exp(-2 * pull))
    spent = 20 + minutes * 0.3 + (plan == "team") * 50 + chance.normal(0, 5, ROWS)
    return {
        "customer_id": list(range(1000, 1000 + ROWS)),
        "signed up": [f"2024-{1 + n // 60:02d}-{1 + n % 28:02d} {n % 24:02d}:00:00" for n in range(ROWS)],
        "plan": [None if n % 50 == 7 else str(p) for n, p in enumerate(plan)],
        "minutes": [None if n % 40 == 3 else float(m) for n, m in enumerate(minutes)],
        "calls (all)": [int(c) for c in chance.integers(0, 20, ROWS)],
        "churn": ["yes" if gone else "no" for gone in left],
        "tier": [("low", "mid", "it's high")[int(t)] for t in np.clip((spent - 40) // 45, 0, 2)],
        "spent": [float(s) for s in spent.round(2)],
    }


CASES = {
    "churn": ("churn.csv", "churn", ("tier", "spent"), "binary", True),
    "tier": ("tier.parquet", "tier", ("churn", "spent", "signed up"), "multiclass", False),
    "spent": ("spent.csv", "spent", ("churn", "tier", "signed up", "customer_id"), "regression", False),
}


def scaffold(workshop: Workshop, name: str) -> ScaffoldReport:
    file, target, dropped, _, _ = CASES[name]
    table = pa.table({k: v for k, v in rows().items() if k not in dropped})
    path = workshop.folder / file
    if path.suffix == ".csv":
        pa_csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return init_project(workshop.folder / "projects" / name, name=name, data=path, target=target)


@pytest.mark.parametrize("name", CASES)
def test_a_users_own_file_becomes_a_registered_version(workshop: Workshop, name: str) -> None:
    task, timed = CASES[name][3:]
    project = scaffold(workshop, name)
    assert (project.task, project.time is not None) == (task, timed)

    report = workshop.run(project.path)

    assert report.version == 1, report.refused
    assert report.gates.verdict is Verdict.PASS
    assert sum(report.sizes[part] for part in ("train", "holdout")) == ROWS
    assert report.export_difference < 1e-4
    better_than = {"roc_auc": 0.7, "accuracy": 0.6, "r2": 0.6}
    reached = {metric: value for metric, value in report.metrics.items() if metric in better_than}
    assert reached
    assert all(value > better_than[metric] for metric, value in reached.items())

    bundle = open_bundle(BundleDepot(workshop.home.bundles).path(report.bundle), [workshop.key.public])
    asked = {
        field: np.array([None, "pro"], dtype=object) if dtype == "string" else np.array([np.nan, 3.0])
        for field, dtype in project.inputs.items()
    }
    answers = bundle.predict(asked)
    assert answers.shape == (2, {"binary": 1, "multiclass": 3, "regression": 1}[task])
    assert np.isfinite(answers).all()


def test_more_rows_in_the_file_make_the_next_version(workshop: Workshop) -> None:
    project = workshop.folder / "projects" / "spent"
    first = workshop.run(project)
    assert first.ingests[0].already_landed
    table = pa_csv.read_csv(workshop.folder / "spent.csv")
    pa_csv.write_csv(pa.concat_tables([table, table.slice(0, 50)]), workshop.folder / "spent.csv")
    second = workshop.run(project)
    assert (second.ingests[0].input_rows, second.ingests[0].good_rows) == (ROWS + 50, ROWS + 50)
    assert second.snapshot != first.snapshot
