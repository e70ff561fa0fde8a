"""One run of a project, on a real home: what it leaves, what it refuses, and that it repeats."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.open import open_bundle
from loopwright.control.client import connect
from loopwright.data.lake import Lake
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import parse_time, utc_now
from loopwright.kernel.errors import BadInput, NotFound, Refused, Tampered
from loopwright.kernel.home import Home
from loopwright.kernel.verdict import Verdict
from loopwright.ledger.engine import Ledger
from loopwright.pipeline import store
from loopwright.pipeline.lifecycle import RunReport, run_project
from loopwright.pipeline.reproduce import reproduce
from loopwright.pipeline.scaffold import init_project
from loopwright.project.spec import load_project
from loopwright.registry import evidence, versions
from loopwright.registry.policies import waive

ADA = Actor("ada", Role.DEVELOPER)
ROWS = 500


@dataclass
class Workshop:
    home: Home
    ledger: Ledger
    key: SigningKey
    project: Path

    def run(self, *overrides: str, actor: Actor = ADA, project: Path | None = None) -> RunReport:
        return run_project(
            project=load_project(project or self.project, overrides),
            home=self.home,
            ledger=self.ledger,
            actor=actor,
            clock=utc_now,
            key=self.key,
            tracking_uri=self.home.ledger_url,
        )

    def runs(self) -> list[dict[str, Any]]:
        with self.ledger.read() as conn:
            return store.list_runs(conn)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("lifecycle")
    home = Home.at(folder / "home")
    home.create()
    ledger = Ledger.open(home.ledger_url)
    ledger.migrate()
    chance = np.random.default_rng(3)
    x, z = chance.normal(size=ROWS), chance.normal(size=ROWS)
    table = pa.table(
        {
            "at": [f"2024-01-{1 + n * 28 // ROWS:02d}T{n % 24:02d}:00:00Z" for n in range(ROWS)],
            "x": x,
            "z": z,
            "bought": (chance.random(ROWS) < 1 / (1 + np.exp(-2 * x - z))).astype(int),
        }
    )
    pa_csv.write_csv(table, folder / "shop.csv")
    init_project(folder / "shop", name="shop", data=folder / "shop.csv", target="bought", time="at")
    yield Workshop(home, ledger, SigningKey.load_or_create(home.keys / "control.key"), folder / "shop")
    ledger.dispose()


@pytest.fixture(scope="module")
def first(workshop: Workshop) -> RunReport:
    report = workshop.run()
    with (
        workshop.ledger.write() as conn
    ):  # what `loopwright apply` by an admin does: the scaffolded tier is low
        waive(conn, "shop", ("tier",), actor=Actor("root", Role.ADMIN), now=utc_now())
    return report


def test_a_run_leaves_a_version_its_evidence_and_its_record(workshop: Workshop, first: RunReport) -> None:
    with workshop.ledger.read() as conn:
        version = versions.get_version(conn, model="shop", version=1)
        gates = evidence.evidence_of(conn, model="shop", kind="gates")
        run = store.find_run(conn, first.run_id[:12])
    assert (first.version, version.bundle, version.run_id) == (1, first.bundle, first.run_id)
    assert [(one.bundle, one.verdict) for one in gates] == [(first.bundle, Verdict.PASS)]
    assert run["status"] == "FINISHED"
    assert run["metrics"] == dict(first.metrics)
    assert run["context"]["data"]["snapshot"] == first.snapshot


def test_every_run_leaves_what_drives_the_model_as_evidence(workshop: Workshop, first: RunReport) -> None:
    with workshop.ledger.read() as conn:
        (found,) = [
            one
            for one in evidence.evidence_of(conn, model="shop", kind="explainability")
            if one.bundle == first.bundle
        ]
    assert found.verdict is Verdict.PASS
    assert found.payload["method"] == "TreeSHAP (LightGBM)"
    assert [one["name"] for one in found.payload["features"]] == ["x", "z"]
    assert found.payload["rows"] == first.sizes["holdout"]
    assert len(found.payload["sample"]) == 20
    folder = BundleDepot(workshop.home.bundles).path(first.bundle)
    assert (folder / "native" / "model.txt").read_text().startswith("tree\n")


def test_fairness_is_evidence_with_its_figures_or_with_the_reason_why_not(workshop: Workshop) -> None:
    judged = workshop.run(
        "gates.fairness={attribute: x, metric: accuracy, max_gap: 0.9, min_group: 10}", "train.seed=21"
    )
    why = "Baskets are judged here; nobody is treated by it."
    excused = workshop.run(f"gates.fairness={{not_applicable: '{why}'}}", "train.seed=22")
    with workshop.ledger.read() as conn:
        found = {one.bundle: one for one in evidence.evidence_of(conn, model="shop", kind="fairness")}
    assert judged.version is not None and excused.version is not None
    assert found[excused.bundle].payload == {"not_applicable": why}
    assert found[judged.bundle].verdict is found[excused.bundle].verdict is Verdict.PASS
    (by_x,) = found[judged.bundle].payload["attributes"]
    assert by_x["attribute"] == "x" and by_x["verdict"] == "PASS"
    assert {one["metric"] for one in by_x["metrics"]} >= {"accuracy", "true_positive_rate", "roc_auc"}


def test_an_unfair_model_is_not_registered(workshop: Workshop) -> None:
    report = workshop.run(
        "gates.fairness={attribute: x, metric: demographic_parity, max_gap: 0.1, min_group: 10}",
        "train.seed=23",
    )
    assert report.version is None
    assert report.refused is not None and "fairness: demographic_parity over x FAIL" in report.refused
    with workshop.ledger.read() as conn:
        found = {one.bundle: one.verdict for one in evidence.evidence_of(conn, model="shop", kind="fairness")}
    assert found[report.bundle] is Verdict.FAIL


def test_the_bundle_says_where_it_comes_from_and_what_it_was_trained_on(
    workshop: Workshop, first: RunReport
) -> None:
    bundle = open_bundle(BundleDepot(workshop.home.bundles).path(first.bundle), [workshop.key.public])
    origin = bundle.manifest.provenance
    assert (origin["run_id"], origin["snapshot"], origin["author"]) == (first.run_id, first.snapshot, "ada")
    trained_until: datetime = parse_time(origin["trained_until"])
    assert trained_until < parse_time("2024-01-28T00:00:00Z")
    seen = first.sizes["train"] + first.sizes["holdout"]
    assert bundle.reference["rows"] == seen == ROWS


def test_the_second_run_lands_nothing_twice(workshop: Workshop, first: RunReport) -> None:
    again = workshop.run("train.seed=5")
    assert [report.already_landed for report in again.ingests] == [True]
    assert again.snapshot == first.snapshot
    assert Lake(workshop.home.lake, workshop.ledger).read("silver", "shop", "shop").num_rows == ROWS


def test_gates_that_say_no_register_nothing_and_keep_the_evidence(
    workshop: Workshop, first: RunReport
) -> None:
    with workshop.ledger.read() as conn:
        before = versions.list_versions(conn, model="shop")
    report = workshop.run("gates.metrics={roc_auc: '>= 0.9999'}", "train.seed=11")
    with workshop.ledger.read() as conn:
        after = versions.list_versions(conn, model="shop")
        gates = evidence.evidence_of(conn, model="shop", kind="gates")
    assert report.version is None
    assert report.refused is not None and "roc_auc" in report.refused
    assert [v.version for v in after] == [v.version for v in before]
    assert [one.verdict for one in gates if one.bundle == report.bundle] == [Verdict.FAIL]
    assert workshop.runs()[0]["status"] == "REFUSED"


def test_a_viewer_may_not_train(workshop: Workshop) -> None:
    with pytest.raises(Refused, match="developer"):
        workshop.run(actor=Actor("vera", Role.VIEWER))


def test_an_error_in_the_projects_code_names_its_line_and_closes_the_run(
    workshop: Workshop, tmp_path: Path
) -> None:
    broken = tmp_path / "shop"
    shutil.copytree(workshop.project, broken)
    source = (broken / "train.py").read_text()
    broken_source = source.replace("def train(", "def train_was(")
    (broken / "train.py").write_text(broken_source + "\ndef train(*_):\n    raise RuntimeError('no luck')\n")
    with pytest.raises(BadInput, match=r"train.py:\d+: train raises RuntimeError: no luck"):
        workshop.run("data.sources.shop.uri=" + str(workshop.project.parent / "shop.csv"), project=broken)
    assert workshop.runs()[0]["status"] == "FAILED"


def test_too_few_rows_are_refused_with_the_number_and_the_remedy(workshop: Workshop) -> None:
    with pytest.raises(BadInput, match=r"too few labelled rows.*wanted at least 20"):
        workshop.run("data.as_of=2024-01-03T00:00:00Z")


def test_an_unknown_metric_names_the_nearest(workshop: Workshop) -> None:
    with pytest.raises(BadInput, match="did you mean `roc_auc`"):
        workshop.run("gates.metrics={roc_auk: '>= 0.5'}")


def test_a_run_repeats_bit_by_bit_even_when_the_project_has_moved_on(
    workshop: Workshop, first: RunReport
) -> None:
    moved = workshop.project / "train.py"
    source = moved.read_text()
    moved.write_text(source + "\nraise RuntimeError('rewritten since')\n")
    try:
        report = reproduce(home=workshop.home, ledger=workshop.ledger, run_id=first.run_id)
    finally:
        moved.write_text(source)
    assert report.verdict == "bitwise", json.dumps(report.to_json())
    assert report.rows == ROWS


def test_reproducing_records_no_run_and_registers_nothing(workshop: Workshop, first: RunReport) -> None:
    before = len(workshop.runs())
    reproduce(home=workshop.home, ledger=workshop.ledger, run_id=first.run_id)
    assert len(workshop.runs()) == before


def test_an_unknown_run_is_not_found(workshop: Workshop) -> None:
    with pytest.raises(NotFound, match="no such run"):
        reproduce(home=workshop.home, ledger=workshop.ledger, run_id="ffffffffffff")


def test_a_changed_table_cannot_be_reproduced_from(
    workshop: Workshop, first: RunReport, tmp_path: Path
) -> None:
    copy = Home.at(tmp_path / "home")
    shutil.copytree(workshop.home.root, copy.root)
    ledger = Ledger.open(copy.ledger_url)
    try:
        for file in (copy.lake / "silver" / "shop" / "shop").glob("*.parquet"):
            rows = pq.read_table(file)
            changed = rows.set_column(rows.column_names.index("x"), "x", pa.array([9.0] * rows.num_rows))
            pq.write_table(changed, file)
        with pytest.raises(Tampered):
            reproduce(home=copy, ledger=ledger, run_id=first.run_id)
    finally:
        ledger.dispose()


def test_the_doctor_finds_a_bundle_that_was_changed_after_it_was_approved(
    workshop: Workshop, first: RunReport, tmp_path: Path
) -> None:
    copy = Home.at(tmp_path / "home")
    shutil.copytree(workshop.home.root, copy.root)
    client = connect(copy.root)
    client.call("models.promote", model="shop", version=first.version, to="production")
    client.call("models.approve", model="shop", version=first.version)
    before = {check["check"]: check["ok"] for check in client.call("system.doctor")}
    model = copy.bundles / first.bundle / "model.onnx"
    model.chmod(0o644)
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    after = {check["check"]: check for check in client.call("system.doctor")}
    assert before["bundles"]
    assert not after["bundles"]["ok"]
    assert "shop" in after["bundles"]["found"]


def test_a_developer_cannot_loosen_the_policy_by_training(workshop: Workshop, first: RunReport) -> None:
    with pytest.raises(Refused, match="may not loosen the policy of shop"):
        workshop.run("policy.approvals.production=0")
    with workshop.ledger.read() as conn:
        standing = store.load_project_row(conn, "shop")["spec"]["policy"]
    assert standing["tier"] == "low" and standing["approvals"]["production"] is None
