"""Bad input through the real command line, and a control plane that is killed in the middle of a canary.

Every refusal is one paragraph that says what to do, exit code 2 (bad input) or 1 (the answer is no), and leaves nothing
behind. Ports in use, full disks of servers and killed workers: tests/integration/control and tests/integration/serving.
"""

import hashlib
import json
import shutil
import sqlite3
import urllib.error
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from loopwright.control.client import HttpClient, connect
from loopwright.kernel.clock import to_us
from loopwright.ledger.engine import Ledger
from loopwright.ledger.store import verify
from tests.lifecycle.own import MODEL, ROWS, TARGET, Own, Said, serving, tensors, write_rows

STRICT = (
    "policy: {tier: low, approvals: {staging: 1, production: 2}, author_may_approve: false, "
    "requester_may_approve: false}"
)
START = datetime(2026, 1, 5, tzinfo=UTC)
WRITTEN = (
    "artifacts/bundles", "lake/bronze", "lake/silver", "lake/quarantine", "labels", "predictions",
)  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Own:
    """A home in which version 1 is in Production and version 2 was trained by bo, who may approve, as chen may."""
    own = Own(tmp_path_factory.mktemp("template"))
    write_rows(own.file)
    own.done("init", MODEL, "--data", "my.csv", "--target", TARGET)
    own.done("run", MODEL)
    own.done("promote", MODEL, "1")
    own.done("approve", MODEL, "1")
    settings = own.project / "loop.yaml"
    lines = [STRICT if line.startswith("policy:") else line for line in settings.read_text().splitlines()]
    settings.write_text("\n".join(lines) + "\n")
    folder = connect(own.home)
    for name, role in {"ana": "developer", "bo": "approver", "chen": "approver", "dee": "approver"}.items():
        folder.call("access.add_user", name=name, role=role)
    # Too few rows for a comparison that means something: this project does without.
    own.done("run", MODEL, "--as", "bo", "--set", "train.seed=8", "--set", "gates.baseline=null")
    return own


@pytest.fixture
def own(template: Own, tmp_path: Path) -> Own:
    shutil.copytree(template.folder, tmp_path / "own")
    return Own(tmp_path / "own")


def state(own: Own) -> dict[str, Any]:
    """All that a refused command must leave as it was: the files of the home, and the ledger but for its audit log."""
    files = {
        folder: {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((own.home / folder).rglob("*"))
            if path.is_file()
        }
        for folder in WRITTEN
    }
    with sqlite3.connect(own.home / "ledger.db") as ledger:
        tables = [
            name
            for (name,) in ledger.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'lw_%'"
            )
            if name not in ("lw_audit", "lw_meta", "lw_leases")
        ]
        rows = {name: ledger.execute(f"SELECT * FROM {name}").fetchall() for name in tables}
    return {**files, **rows}


def chain_holds(own: Own) -> bool:
    ledger = Ledger.open(f"sqlite:///{own.home / 'ledger.db'}")
    with ledger.read() as conn:
        report = verify(conn)
    ledger.dispose()
    return report.ok


def paragraph(said: Said) -> str:
    """The one paragraph of an error; the lines of progress before it do not count."""
    lines = [line for line in said.err.splitlines() if line.strip() and line.lstrip()[0] not in "✓✗"]
    (told,) = [line for line in lines if line.startswith("loopwright: ")]
    assert lines[-1] == told, said.err
    assert "Traceback" not in said.err
    assert "unexpected" not in told
    assert said.out == ""
    return told


def settings(change: Callable[[str], str]) -> Callable[[Own], None]:
    def spoil(own: Own) -> None:
        path = own.project / "loop.yaml"
        path.write_text(change(path.read_text()))

    return spoil


def contract(change: Callable[[Path], object]) -> Callable[[Own], None]:
    def spoil(own: Own) -> None:
        change(own.project / "contracts" / "my.odcs.yaml")

    return spoil


def data(change: Callable[[list[str]], str | bytes | None]) -> Callable[[Own], None]:
    """The file that arrives next is spoiled; None: there is none."""

    def spoil(own: Own) -> None:
        arriving = own.folder / "next.csv"
        path = own.project / "loop.yaml"
        uri = next(line for line in path.read_text().splitlines() if "uri:" in line)
        old = uri.split("uri: ")[1].split(",")[0]
        path.write_text(path.read_text().replace(old, str(arriving)))
        content = change(own.file.read_text().splitlines())
        if content is not None:
            arriving.write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def without(column: str) -> Callable[[list[str]], str]:
    def drop(lines: list[str]) -> str:
        place = lines[0].split(",").index(column)
        return "\n".join(",".join(c for i, c in enumerate(line.split(",")) if i != place) for line in lines)

    return drop


@dataclass(frozen=True)
class Bad:
    """What is spoiled before `loopwright run`, how it ends, and what the paragraph must say."""

    spoil: Callable[[Own], object]
    code: int
    says: tuple[str, ...]


RUNS = {
    "no loop.yaml": Bad(
        lambda own: (own.project / "loop.yaml").unlink(), 2, ("no loop.yaml here", "loopwright init")
    ),
    "a loop.yaml that is no YAML": Bad(settings(lambda text: "model: [x\n"), 2, ("loop.yaml:2:1", "not YAML")),
    "a key that is misspelt": Bad(
        settings(lambda text: text.replace("monitoring:", "monitring:")),
        2,
        ("loop.yaml:", "unknown key `monitring`", "Did you mean `monitoring`?"),
    ),
    "a value of the wrong kind": Bad(
        settings(lambda text: text.replace("seed: 7", "seed: seven")), 2, ("loop.yaml:", "train.seed", "seven")
    ),
    "a missing contract": Bad(
        contract(lambda path: path.unlink()), 2, ("data.sources.my.contract", "no such file")
    ),
    "a contract that is no YAML": Bad(
        contract(lambda path: path.write_text("schema: {")), 2, ("my.odcs.yaml:2:1", "not valid YAML")
    ),
    "a missing CSV": Bad(data(lambda lines: None), 2, ("next.csv", "no such file")),
    "an empty CSV": Bad(data(lambda lines: ""), 2, ("next.csv", "is empty")),
    "a CSV of noise": Bad(data(lambda lines: bytes(range(128, 256)) * 99), 2, ("next.csv", "not UTF-8")),
    "a column that vanished": Bad(
        data(without("x3")), 2, ("next.csv", "the column `x3` vanished", "my.odcs.yaml")
    ),
    "a label that vanished": Bad(data(without(TARGET)), 2, ("next.csv", f"the column `{TARGET}` vanished")),
    "rows that break their contract": Bad(
        data(lambda lines: "\n".join([lines[0], *("abc," + line.split(",", 1)[1] for line in lines[1:])])),
        1,
        ("blocked by its contract", f"{ROWS} of {ROWS} rows", "my.odcs.yaml"),
    ),
    "too few rows": Bad(
        data(lambda lines: "\n".join(lines[:30])), 2, ("too few labelled rows", "wanted at least 20")
    ),
    "a training file without its function": Bad(
        settings(lambda text: text.replace("train.py:train", "train.py:fit")), 2, ("train.entry", "train.py:fit")
    ),
}  # fmt: skip


LANDED = {
    "lake/bronze", "lake/silver", "lake/quarantine", "lw_batches", "lw_landings", "lw_snapshots", "lw_contents",
    "lw_contracts",
}  # fmt: skip
INCIDENT = {"lw_incidents", "lw_incident_events", "lw_alerts"}
"""A table that had deliveries, and now cannot be read or is refused, is worth somebody's attention."""
KEPT = {
    "a missing CSV": INCIDENT,
    "an empty CSV": INCIDENT,
    "a CSV of noise": INCIDENT,
    "a column that vanished": INCIDENT,
    "a label that vanished": INCIDENT,
    # What arrived is kept as it came, and why it was turned away; silver is untouched.
    "rows that break their contract": {"lake/bronze", "lake/quarantine", *INCIDENT},
    # Good rows that landed before the fault was found are data, not half a version. A failed run is a run.
    "too few rows": LANDED | {"lake/gold"},
    "a training file without its function": {"lw_runs"},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_bad_input_says_what_to_do_and_leaves_nothing_half_written(own: Own, name: str) -> None:
    bad = RUNS[name]
    bad.spoil(own)
    before = state(own)
    said = own.loopwright("run", MODEL)
    assert said.code == bad.code, said.err
    told = paragraph(said)
    for words in bad.says:
        assert words in told
    after = state(own)
    assert {key for key in after if after[key] != before[key]} <= KEPT.get(name, set())
    assert chain_holds(own)


ACTS: dict[str, tuple[tuple[tuple[str, ...], ...], tuple[str, ...], int, tuple[str, ...]]] = {
    "an unknown model": ((), ("promote", "my-modell", "1"), 2, ("my-modell", "did you mean `my-model`")),
    "an unknown version": ((), ("promote", MODEL, "9"), 2, ("has no version 9", "1, 2")),
    "an unknown run": ((), ("reproduce", "abcdef"), 2, ("abcdef", "loopwright runs list")),
    "an approval nobody asked for": (
        (),
        ("approve", MODEL, "2", "--as", "chen"),
        2,
        ("loopwright promote my-model 2 --to production",),
    ),
    "an approval by the author": (
        (("promote", MODEL, "2", "--as", "ana"),),
        ("approve", MODEL, "2", "--as", "bo"),
        1,
        ("bo is the author", "wanted somebody else", "0 of 2 approvals given"),
    ),
    "an approval twice by one person": (
        (("promote", MODEL, "2", "--as", "ana"), ("approve", MODEL, "2", "--as", "chen")),
        ("approve", MODEL, "2", "--as", "chen"),
        1,
        ("chen has spoken", "wanted another person", "1 of 2 approvals given"),
    ),
    "an approval without the role": (
        (("promote", MODEL, "2", "--as", "bo"),),
        ("approve", MODEL, "2", "--as", "ana"),
        1,
        ("ana may not approve", "role developer", "loopwright user set ana --role approver"),
    ),
    "an approval by a stranger": (
        (("promote", MODEL, "2", "--as", "bo"),),
        ("approve", MODEL, "2", "--as", "zoe"),
        2,
        ("no such user", "loopwright user add zoe"),
    ),
    "a wrong token": (
        (),
        ("status", "--token", f"lw_{'0a' * 6}_{'x' * 43}"),
        2,
        ("wrong token", "loopwright token create"),
    ),
    "something that is no token": ((), ("promote", MODEL, "2", "--token", "hunter2"), 2, ("token",)),
    "a rollback to nowhere": ((), ("rollback", MODEL), 2, ("no earlier version",)),
}


@pytest.mark.parametrize("name", ACTS)
def test_an_act_that_is_not_allowed_says_what_to_do_and_changes_nothing(own: Own, name: str) -> None:
    first, refused, code, says = ACTS[name]
    for act in first:
        own.done(*act)
    before = state(own)
    said = own.loopwright(*refused)
    assert said.code == code, said.err
    told = paragraph(said)
    for words in says:
        assert words in told
    assert state(own) == before
    assert chain_holds(own)


def bundle(own: Own, version: int) -> Path:
    digest = own.done("models", "show", MODEL, str(version))["bundle"]
    return Path(own.home / "artifacts" / "bundles" / digest)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def test_a_tampered_bundle_is_neither_compared_with_nor_reproduced(own: Own) -> None:
    flip(bundle(own, 1) / "model.onnx")
    before = state(own)
    run = own.done("models", "show", MODEL, "1")["run_id"]
    for words in (("run", MODEL, "--set", "train.seed=9"), ("reproduce", run)):
        said = own.loopwright(*words)
        assert said.code == 1, said.out + said.err
        assert "model.onnx was changed" in paragraph(said)
    assert state(own)["lw_versions"] == before["lw_versions"]


def test_a_run_on_a_full_disk_registers_nothing_and_works_again_with_room(own: Own) -> None:
    versions = state(own)["lw_versions"]
    # A file that may not grow fails like a full disk, without needing a disk of one's own. 64 blocks of 512 bytes
    # are enough for settings and logs, not for a model.
    said = own.loopwright("run", MODEL, "--set", "train.seed=9", shell="ulimit -f 64")
    assert said.code in (1, 2), said.out + said.err
    paragraph(said)
    assert state(own)["lw_versions"] == versions
    assert not [path for path in (own.home / "cache").rglob("*") if path.is_file()]
    again = own.done("run", MODEL, "--set", "train.seed=9", "--set", "gates.baseline=null")
    assert again["version"] == 3
    assert chain_holds(own)


class Customers:
    """Asks about one customer after the other; event time moves with every question."""

    def __init__(self, own: Own) -> None:
        header, *lines = own.file.read_text().splitlines()
        self.rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
        self.asked: list[str] = []
        self.now = START

    def ask(self, post: Callable[[str, object], Any], count: int, step: timedelta) -> dict[str, int]:
        """Ask `count` questions, `step` of event time between them; returns how many each version answered."""
        chosen = [self.rows[(len(self.asked) + n) % len(self.rows)] for n in range(count)]
        names = [f"q{len(self.asked) + n}" for n in range(count)]
        times = [self.now + step * n for n in range(count)]
        body = {
            "inputs": [
                *tensors(chosen),
                {"name": "_id", "datatype": "BYTES", "shape": [count], "data": names},
                {
                    "name": "_unit",
                    "datatype": "BYTES",
                    "shape": [count],
                    "data": [f"unit {name}" for name in names],
                },
                {
                    "name": "_event_time",
                    "datatype": "INT64",
                    "shape": [count],
                    "data": [to_us(t) for t in times],
                },
            ]
        }
        answer = post(f"/v2/models/{MODEL}/infer", body)
        outputs = {output["name"]: output["data"] for output in answer["outputs"]}
        (answers,) = [values for name, values in outputs.items() if not name.startswith("_")]
        assert len(answers) == count
        assert all(0 <= answer <= 1 for answer in answers)
        self.asked += names
        self.now = times[-1] + step
        # Said row by row only when arms differ within a request.
        return dict(Counter(outputs.get("_version", [answer["model_version"]] * count)))


def test_kill_9_of_the_control_plane_during_a_canary(own: Own) -> None:
    minute = timedelta(minutes=1)
    with serving(own) as served:
        customers = Customers(own)
        control = HttpClient(served.control, None)

        def until(phase: str, step: timedelta = minute, most: int = 40) -> dict[str, Any]:
            for _ in range(most):
                customers.ask(served.post, 100, step)
                served.tick()
                shown: dict[str, Any] = control.call("delivery.show", model=MODEL)
                if phase in json.dumps(shown["state"]) or shown["status"] == phase:
                    return shown
            raise AssertionError(f"never {phase}: {shown}")

        assert customers.ask(served.post, 100, minute) == {"1": 100}
        served.tick()
        control.call("models.promote", model=MODEL, version=2, reason="a better seed")
        for name in ("chen", "dee"):
            token = control.call("access.create_token", user=name)["token"]
            answer = HttpClient(served.control, token).call("models.approve", model=MODEL, version=2)
        assert answer["state"] == "effective"
        served.tick()
        before = until('"step": 1')
        assert before["status"] == "running"
        assert before["state"]["weight"] == 0.25

        served.up.kill()
        alone = customers.ask(served.post, 300, minute)
        assert set(alone) == {"1", "2"}
        assert alone["2"] / 300 == pytest.approx(0.25, abs=0.1)
        with pytest.raises(urllib.error.HTTPError) as unshipped:
            served.post("/admin/flush")
        assert unshipped.value.code == 503

        served.restart_control()
        after = control.call("delivery.show", model=MODEL)
        assert (after["id"], after["status"]) == (before["id"], "running")
        assert after["state"]["weight"] == before["state"]["weight"]
        assert [event["kind"] for event in after["events"]] == [event["kind"] for event in before["events"]]

        done = until("completed", step=5 * minute)
        assert done["id"] == before["id"]
        assert customers.ask(served.post, 100, minute) == {"2": 100}
        served.tick()
        log = str(own.home / "predictions" / MODEL / "day=*" / "*.parquet")
        logged = duckdb.execute(
            f"SELECT id FROM read_parquet('{log}', hive_partitioning = false) "
            "WHERE arm <> 'shadow' AND status <> 'error'"
        ).fetchall()
        assert sorted(row[0] for row in logged) == sorted(customers.asked)
        stages = {v["version"]: v["stage"] for v in control.call("models.show", model=MODEL)["versions"]}
        assert stages == {1: "Archived", 2: "Production"}
        assert control.call("audit.verify")["ok"] is True
