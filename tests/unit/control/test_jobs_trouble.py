"""Workers of jobs when something around them goes wrong: files that change, places that fail, others that wake up."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopwright.control.context import Context
from loopwright.control.operation import find
from loopwright.control.work import make_worker
from loopwright.jobs import store
from loopwright.jobs.job import LeaseLost
from loopwright.jobs.notify import Teller
from loopwright.jobs.results import Results
from loopwright.jobs.settings import Settings
from loopwright.jobs.store import Part
from loopwright.jobs.worker import Options, Worker
from loopwright.kernel.errors import BadInput, Refused, Unavailable
from tests.jobs_home import answer, row, serve_first, write_csv
from tests.unit.control.conftest import FakeClock
from tests.unit.control.test_jobs import configure, results, show, submit, work


@pytest.fixture
def late(ctx: Context) -> Context:
    serve_first(ctx)
    return ctx


def test_a_file_that_was_mended_is_not_answered_from_a_copy_another_machine_kept(
    late: Context, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_csv(tmp_path / "rows.csv", 1500)
    job = submit(late, input=str(file))
    there, _ = make_worker(late, Options(once=True), lambda told: None)
    there.staging = tmp_path / "there"
    with monkeypatch.context() as patched:
        patched.setattr(Worker, "_batches", _is_lost)
        there.run()  # the machine goes away once it has the file
    clock.move(timedelta(minutes=1))
    write_csv(file, 1500, extra=["UA,far,1,N"])
    work(late)
    assert show(late, job["id"])["state"] == "dead"
    write_csv(file, 1501)
    find("jobs.retry")(late, model="late", job=job["id"], anew=True)
    there.run()
    assert (show(late, job["id"])["state"], show(late, job["id"])["done"]) == ("succeeded", 1501)


def _is_lost(*_: object) -> Iterator[Any]:
    raise LeaseLost("gone")


def test_a_worker_that_wakes_up_late_deletes_nothing_of_those_after_it(tmp_path: Path) -> None:
    folder = tmp_path / "jb_1"
    folder.mkdir()
    for name in ("part-000000000000-1", "part-000000000100-1", "part-000000000000-3"):
        (folder / f"{name}.parquet").touch()
    kept = Part(0, 0, 100, str(folder / "part-000000000000-1.parquet"))
    Results(str(tmp_path), "jb_1").finish("late", 1, 2, [kept])
    left = sorted(path.name for path in folder.glob("part-*"))
    assert left == ["part-000000000000-1.parquet", "part-000000000000-3.parquet"]


def test_a_place_that_cannot_be_cleared_keeps_no_worker_from_its_work(
    late: Context, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(write_csv(tmp_path / "rows.csv", 1500))
    stuck, free = submit(late, input=file), submit(late, input=file)
    work(late)
    clock.move(timedelta(days=31))
    delete = Results.delete

    def fail(self: Results) -> None:
        if stuck["id"] in self.uri:
            raise Unavailable("results cannot be deleted")
        delete(self)

    monkeypatch.setattr(Results, "delete", fail)
    said: list[dict[str, Any]] = []
    worker, _ = make_worker(late, Options(poll=0.01), said.append)

    def tell(told: dict[str, Any]) -> None:
        said.append(told)
        if told["event"] == "forgotten":
            worker.draining.set()

    worker.say = tell
    worker.run()
    assert [one["job"] for one in said if one["event"] == "forgotten"] == [free["id"]]
    assert any("cannot be deleted" in one.get("why", "") for one in said)
    assert [one["id"] for one in find("jobs.list")(late)] == [stuck["id"]]  # type: ignore[index,union-attr,attr-defined]


def test_a_job_that_was_given_another_life_is_not_forgotten(late: Context, clock: FakeClock) -> None:
    job = submit(late, rows=[row(1)])
    find("jobs.cancel")(late, model="late", job=job["id"])
    clock.move(timedelta(days=31))
    moment = clock() - timedelta(days=30)
    with late.ledger.read() as conn:
        assert [one.id for one in store.ended_before(conn, moment)] == [job["id"]]
    find("jobs.retry")(late, model="late", job=job["id"])  # while another worker sweeps
    with late.ledger.write() as conn:
        assert not store.forget(conn, job["id"], moment)
    work(late)
    assert results(late, job["id"])["rows"][0]["probability"] == pytest.approx(answer(1), abs=1e-6)


def test_results_of_a_job_that_is_taken_up_again_as_it_is_swept_are_left_to_it(
    late: Context, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(late, input=str(write_csv(tmp_path / "rows.csv", 1500)))
    worker, _ = make_worker(late, Options(once=True, chunk_rows=512), lambda told: None)

    def stop(told: dict[str, Any]) -> None:
        if told["event"] == "chunk":
            find("jobs.cancel")(late, model="late", job=job["id"])
            raise KeyboardInterrupt

    worker.say = stop
    with pytest.raises(KeyboardInterrupt):
        worker.run()
    clock.move(timedelta(minutes=10))
    work(late)  # says that the job which nobody works at is cancelled
    done = show(late, job["id"])
    assert (done["state"], 0 < done["done"] < 1500) == ("cancelled", True)
    clock.move(timedelta(days=31))
    found = store.ended_before

    def retried(*args: Any) -> Any:
        old = found(*args)
        find("jobs.retry")(late, model="late", job=job["id"])
        return old

    monkeypatch.setattr(store, "ended_before", retried)
    make_worker(late, Options(once=True), lambda told: None)[0].sweep()
    monkeypatch.setattr(store, "ended_before", found)
    work(late)
    assert len(results(late, job["id"], after=0)["rows"]) > 0
    table = pa.concat_tables(
        pq.read_table(part) for part in sorted(Path(show(late, job["id"])["result"]["uri"]).glob("part-*"))
    )
    assert table.column("row").to_pylist() == list(range(1, 1501))


def test_a_slip_in_home_json_kills_no_job(late: Context, clock: FakeClock) -> None:
    worker, _ = make_worker(late, Options(once=True), lambda told: None)
    job = submit(late, rows=[row(1)])
    configure(late, plaecs=["/x"])
    worker.run()
    shown = show(late, job["id"])
    assert shown["state"] == "queued" and "plaecs" in shown["attempts"][0]["error"]
    configure(late)
    clock.move(timedelta(minutes=1))
    worker.run()
    assert show(late, job["id"])["state"] == "succeeded"


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("file:///data/%00x", "not an absolute path"),
        ("/data/a\0b", "printable"),
        ("/data/" + "a" * 5000, "4096"),
        ("http://[::1/x", "not an address"),
        ("s3://[x/y", "not an address"),
        ("{place}/circle/rows.csv", "not a place for jobs"),
    ],
)
def test_places_that_cannot_be_are_bad_input(uri: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    settings = Settings(str(tmp_path), places=(str(tmp_path),))
    for allowed in (settings.input, settings.output_at):
        with pytest.raises((BadInput, Refused), match=told):
            allowed(uri.format(place=tmp_path), anywhere=False)


@pytest.mark.parametrize("host", ["a" * 70 + ".example", "a..example", "a\ud800"])
def test_names_that_no_host_has_are_bad_input(host: str) -> None:
    with pytest.raises(BadInput, match="not the name of a host"):
        Settings("/x").check_host(host)


def test_whatever_a_call_raises_webhooks_go_on(
    late: Context, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, Any]] = []
    teller = Teller(late.ledger, lambda: Settings.of(late.home), clock, said.append)
    stop, calls = threading.Event(), []

    def one() -> bool:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("nobody thought of this")
        stop.set()
        return False

    monkeypatch.setattr(teller, "one", one)
    monkeypatch.setattr("loopwright.jobs.notify.TROUBLE", 0.01)
    teller.run(stop, poll=0.01)
    assert len(calls) == 2 and "nobody thought of this" in said[0]["why"]
