"""Real `loopwright worker` processes: killed in mid-job, two on one queue, told to stop; real files, S3, webhooks."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from loopwright.cli.edge import run
from loopwright.control.access import LOCAL
from loopwright.control.context import Context, open_context
from loopwright.control.operation import find
from loopwright.control.work import make_worker
from loopwright.jobs.results import Results
from loopwright.jobs.worker import Options
from loopwright.kernel.clock import utc_now
from loopwright.kernel.webhook import verify
from loopwright.monitoring.log import PredictionLog
from loopwright.monitoring.store import arm_counts
from tests.jobs_home import answer, lines, make_home, row, start_worker, write_csv
from tests.object_store import S3Server

SLOW = """
import numpy as np

def transform(inputs, state):
    for _ in range(40):  # ten milliseconds or so: a job takes long enough to be killed at
        np.sort(np.sin(np.arange(4000.0)))
    codes = state["carriers"]
    return {
        "distance": np.nan_to_num(inputs["distance"]) / 1000,
        "hour": inputs["hour"] / 24,
        "carrier": np.array([codes.get(c, -1) for c in inputs["carrier"]], dtype=np.float32),
    }
"""
BRISK = ("--lease", "4s", "--chunk-rows", "1000")
SETTINGS: dict[str, object] = {"allow": ["127.0.0.0/8"], "secrets": {"billing": "BILLING_SECRET"}}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs") / "home"
    ctx = make_home(folder, {"jobs": SETTINGS}, transform=SLOW)
    ctx.ledger.dispose()
    return folder


@pytest.fixture
def ctx(template: Path, tmp_path: Path) -> Iterator[Context]:
    opened = open_context(Path(shutil.copytree(template, tmp_path / "home")), LOCAL)
    yield opened
    opened.ledger.dispose()


@pytest.fixture
def worker() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts workers; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(start_worker(*arguments, **options))
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait(10)


@dataclass
class Receiver:
    """A web server: hands out `files`, takes webhooks, and answers those with `answers` first, then 200."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    answers: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    known = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = known.files.get(self.path)
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            known.got.append((dict(self.headers), body))
            self.send_response(known.answers.pop(0) if known.answers else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    known.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield known
    server.shutdown()
    server.server_close()


def submit(ctx: Context, **asked: Any) -> str:
    found: Any = find("jobs.submit")(ctx, model="late", **asked)
    return str(found["id"])


def show(ctx: Context, job: str) -> dict[str, Any]:
    found: Any = find("jobs.show")(ctx, job=job)
    return dict(found)


def eventually(condition: Callable[[], object], seconds: float = 180.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.05)


def stop_outside_a_write(process: "subprocess.Popen[bytes]", home: Path) -> None:
    """Stop it where it holds no lock of SQLite's: inside a write it would keep every other worker out."""
    while True:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        with closing(sqlite3.connect(home / "ledger.db", timeout=0, isolation_level=None)) as ledger:
            try:
                ledger.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
                time.sleep(0.02)
            else:
                return


def check_result(ctx: Context, job: str, rows: int) -> None:
    """Every row is there once, in order, with the model's own answer; it was logged once and counted once."""
    found = show(ctx, job)
    assert (found["state"], found["done"], found["failed_rows"]) == ("succeeded", rows, 0), found
    folder = Path(found["result"]["uri"])
    manifest = json.loads((folder / "manifest.json").read_text())
    parts = [part["uri"] for part in manifest["parts"]]
    assert sorted(parts) == sorted(str(path) for path in folder.glob("part-*"))
    table = pa.concat_tables([pq.read_table(part, partitioning=None) for part in parts])
    assert table.column("row").to_pylist() == list(range(1, rows + 1))
    sample = range(0, rows, max(1, rows // 500))
    answers = table.column("probability").to_pylist()
    assert [answers[number] for number in sample] == pytest.approx([answer(n) for n in sample], abs=1e-6)
    far = utc_now().replace(year=2100)
    logged: Counter[str] = Counter()
    for file in PredictionLog(ctx.home.predictions).files("late", far.replace(year=2000), far):
        logged.update(pq.read_table(file, columns=["id"], partitioning=None).column("id").to_pylist())
    mine = [name for name in logged if name.startswith(job)]
    assert len(mine) == rows and all(logged[name] == 1 for name in mine)


def counted(ctx: Context) -> int:
    far = utc_now().replace(year=2100)
    with ctx.ledger.read() as conn:
        return arm_counts(conn, "late", 1, "job", far.replace(year=2000), far).n


def test_a_job_outlives_workers_that_are_killed_and_one_that_is_told_to_stop(
    ctx: Context, tmp_path: Path, worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    job = submit(ctx, input=str(write_csv(tmp_path / "rows.csv", 200_000)))
    seen = [0]
    for number, end in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)):
        process = worker(ctx.home.root, *BRISK, log=tmp_path / f"worker{number}.log")
        eventually(lambda: show(ctx, job)["done"] > seen[-1])
        seen.append(int(show(ctx, job)["done"]))
        process.send_signal(end)  # at whatever instant this is
        assert process.wait(20) == (0 if end is signal.SIGTERM else -signal.SIGKILL)
        if end is signal.SIGTERM:
            half = show(ctx, job)
            assert (half["state"], half["failures"]) == ("queued", 0)
            assert lines(tmp_path / "worker1.log")[-1]["event"] == "stopped"
    last = worker(ctx.home.root, "--lease", "4s", log=tmp_path / "last.log")
    eventually(lambda: show(ctx, job)["state"] == "succeeded")
    last.send_signal(signal.SIGTERM)
    assert last.wait(20) == 0
    check_result(ctx, job, 200_000)
    assert counted(ctx) == 200_000
    attempts = show(ctx, job)["attempts"]
    outcomes = [one["outcome"] for one in attempts]
    # A machine that stalls loses a job more often, or is done before it is killed, and nothing else.
    assert "lost" in outcomes and "released" in outcomes and outcomes[-1] == "succeeded"
    begun = [one["done_from"] for one in attempts]
    assert begun == sorted(begun) and begun[-1] >= seen[-1]  # none began anew


def test_a_stopped_worker_that_wakes_up_late_changes_nothing(
    ctx: Context, tmp_path: Path, worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """SIGSTOP is the worst of pauses: the lease passes to another, and the sleeper goes on in mid-row."""
    job = submit(ctx, input=str(write_csv(tmp_path / "rows.csv", 200_000)))
    sleeper = worker(ctx.home.root, "--lease", "2s", "--chunk-rows", "4096", log=tmp_path / "sleeper.log")
    eventually(lambda: show(ctx, job)["done"] > 0)
    stop_outside_a_write(sleeper, ctx.home.root)
    other = worker(ctx.home.root, "--lease", "2s", log=tmp_path / "other.log")
    eventually(lambda: len(show(ctx, job)["attempts"]) >= 2)
    sleeper.send_signal(signal.SIGCONT)
    eventually(lambda: show(ctx, job)["state"] == "succeeded")
    eventually(lambda: "lost" in {line["event"] for line in lines(tmp_path / "sleeper.log")})
    for process in (sleeper, other):
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    check_result(ctx, job, 200_000)
    assert counted(ctx) == 200_000


def test_two_workers_share_a_queue_on_postgresql(
    tmp_path: Path, postgres_url: str, worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    ctx = make_home(tmp_path / "home", {"ledger_url": postgres_url})
    file = write_csv(tmp_path / "rows.csv", 3000)
    logs = [tmp_path / "one.log", tmp_path / "two.log"]
    for log in logs:
        worker(ctx.home.root, log=log)
    eventually(lambda: all(log.exists() and lines(log) for log in logs))  # whoever comes first would take all
    few = [submit(ctx, rows=[row(number)]) for number in range(16)]
    large = [submit(ctx, input=str(file)) for _ in range(4)]

    def taken() -> list[list[str]]:
        return [[line["job"] for line in lines(log) if line["event"] == "taken"] for log in logs]

    def both() -> bool:
        if not all(taken()):
            few.append(submit(ctx, rows=[row(len(few))]))
        return all(taken())

    eventually(both)
    eventually(lambda: all(show(ctx, job)["state"] == "succeeded" for job in [*few, *large]))
    # Each once, by one of them.
    assert sorted(job for one in taken() for job in one) == sorted([*few, *large])
    for job in large:
        check_result(ctx, job, 3000)
    assert counted(ctx) == len(few) + 4 * 3000
    ctx.ledger.dispose()


def test_a_webhook_is_called_signed_until_it_is_taken(
    ctx: Context, receiver: Receiver, tmp_path: Path, worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    receiver.answers = [503, 302]
    receiver.files["/rows.csv"] = write_csv(tmp_path / "rows.csv", 1500).read_bytes()
    hook = {"url": f"{receiver.url}/hook?who=us", "secret": "billing"}
    done = submit(ctx, input=f"{receiver.url}/rows.csv", webhook=hook)
    dead = submit(ctx, input=f"{receiver.url}/none.csv", webhook=hook)
    worker(ctx.home.root, log=tmp_path / "worker.log", environment={"BILLING_SECRET": "between us"})
    eventually(
        lambda: len(receiver.got) == 4 and all(not show(ctx, j)["webhook"]["next_at"] for j in (done, dead))
    )
    for headers, body in receiver.got:
        signed = headers["Loopwright-Signature"]
        assert verify(b"between us", body, signed, now=int(time.time()))
        assert not verify(b"another", body, signed, now=int(time.time()))
        assert json.loads(body)["id"] == headers["Loopwright-Event"]
    events = {(json.loads(body)["event"], json.loads(body)["id"]) for _, body in receiver.got}
    assert events == {("job.succeeded", done), ("job.dead", dead)}
    body = next(json.loads(body) for _, body in receiver.got if json.loads(body)["id"] == done)
    assert body["job"]["done"] == 1500 and body["job"]["result"]["uri"] == show(ctx, done)["result"]["uri"]
    assert "does not hand it out" in show(ctx, dead)["error"]["message"]
    problems = [one["problem"] for job in (done, dead) for one in show(ctx, job)["webhook"]["calls"]]
    assert sorted(problems) == ["", "", "the receiver answers 302", "the receiver answers 503"]
    check_result(ctx, done, 1500)


def test_files_and_results_lie_in_s3(
    ctx: Context, s3_server: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    table = pa.Table.from_pylist([row(number) for number in range(4000)])
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=500)
    uri = s3_server.put(s3_bucket, "in/rows.parquet", (tmp_path / "rows.parquet").read_bytes())
    job = submit(ctx, input=uri, output=f"s3://{s3_bucket}/out")
    make_worker(ctx, Options(once=True), lambda told: None)[0].run()
    found = show(ctx, job)
    assert found["state"] == "succeeded" and found["result"]["uri"] == f"s3://{s3_bucket}/out/{job}"
    files = s3_server.filesystem()
    with files.open_input_file(f"{s3_bucket}/out/{job}/manifest.json") as file:
        assert json.loads(file.readall())["rows"] == 4000
    page: Any = find("jobs.results")(ctx, job=job, after=3998)
    assert [one["row"] for one in page["rows"]] == [3999, 4000]
    assert page["rows"][1]["probability"] == pytest.approx(answer(3999), abs=1e-6)
    own = Results(f"s3://{s3_bucket}/out", job)
    for _ in range(2):
        own.delete()
        below = fs.FileSelector(f"{s3_bucket}/out", recursive=True, allow_not_found=True)
        assert [one.path for one in files.get_file_info(below) if job in one.path] == []


def test_the_command_line_submits_waits_and_writes_the_results(
    ctx: Context,
    tmp_path: Path,
    worker: Callable[..., subprocess.Popen[bytes]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loopwright(*words: str, code: int = 0) -> Any:
        assert run(["--home", str(ctx.home.root), "--json", *words]) == code
        said = capsys.readouterr()
        return json.loads(said.out) if said.out else said.err

    monkeypatch.chdir(tmp_path)
    process = worker(ctx.home.root, log=tmp_path / "worker.log")
    write_csv(tmp_path / "rows.csv", 1200)
    job = loopwright("jobs", "submit", "late", "--input", "rows.csv", "--key", "k", "--wait")
    assert job["state"] == "succeeded"
    assert loopwright("jobs", "submit", "late", "--input", "rows.csv", "--key", "k")["already"]
    written = loopwright("jobs", "results", job["id"], "--to", "answers.jsonl")
    assert written["rows"] == 1200
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert answers[77]["probability"] == pytest.approx(answer(77), abs=1e-6)
    bad = loopwright("jobs", "submit", "late", "--input", "none.csv", "--wait", code=1)
    assert bad["state"] == "dead" and "none.csv" in bad["error"]["message"]
    assert "no job has the id" in loopwright("jobs", "show", "jb_none", code=2)
    assert [one["state"] for one in loopwright("jobs", "list", "late")] == ["dead", "succeeded"]
    assert "not JSON" in loopwright("jobs", "submit", "late", "--row", "{", code=2)
    few = loopwright("jobs", "submit", "late", "--row", json.dumps(row(3)), "--wait")
    (only,) = loopwright("jobs", "results", few["id"])["rows"]
    assert only["probability"] == pytest.approx(answer(3), abs=1e-6)
    process.kill()
    process.wait(10)
    assert loopwright("jobs", "cancel", loopwright("jobs", "retry", bad["id"])["id"])["state"] == "cancelled"
