"""Jobs as operations: what is taken, what is refused and why, who may; and a worker in this process that answers."""

import json
import shutil
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopwright.bundle.testing import STRICT
from loopwright.control.access import LOCAL
from loopwright.control.context import Context, open_context
from loopwright.control.operation import find
from loopwright.control.work import make_worker
from loopwright.jobs.hold import Hold
from loopwright.jobs.worker import Options
from loopwright.kernel.actor import Actor, Role, Scope
from loopwright.kernel.clock import to_us
from loopwright.kernel.errors import BadInput, Conflict, LoopwrightError, NotFound, Refused, TooMany
from loopwright.ledger import store as ledger_store
from loopwright.monitoring.log import PredictionLog
from loopwright.monitoring.store import arm_counts, watermark
from tests.jobs_home import answer, row, serve_first, serve_version, write_csv
from tests.unit.control.conftest import FakeClock


@pytest.fixture(scope="module")
def served(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose model `late` is served, to be copied; tests that change nothing may look at it."""
    folder = Path(shutil.copytree(template, tmp_path_factory.mktemp("served") / "home"))
    ctx = open_context(folder, LOCAL, clock=FakeClock())
    serve_first(ctx)
    ctx.ledger.dispose()
    return folder


@pytest.fixture
def home(served: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(served, tmp_path / "home"))


@pytest.fixture
def late(ctx: Context) -> Context:
    return ctx


@pytest.fixture(scope="module")
def unchanged(served: Path) -> Context:
    """For requests that are refused."""
    return open_context(served, LOCAL, clock=FakeClock())


def configure(ctx: Context, **jobs: object) -> None:
    ctx.home.config.write_text(json.dumps({"jobs": jobs}))


def submit(ctx: Context, **asked: Any) -> dict[str, Any]:
    found: Any = find("jobs.submit")(ctx, model="late", **asked)
    return dict(found)


def show(ctx: Context, job: str) -> dict[str, Any]:
    found: Any = find("jobs.show")(ctx, job=job)
    return dict(found)


def work(ctx: Context, **options: Any) -> list[dict[str, Any]]:
    """Work until nothing is due; returns what was said."""
    said: list[dict[str, Any]] = []
    make_worker(ctx, Options(once=True, **options), said.append)[0].run()
    return said


def results(ctx: Context, job: str, **page: Any) -> dict[str, Any]:
    found: Any = find("jobs.results")(ctx, job=job, **page)
    return dict(found)


def as_developer(ctx: Context, *scopes: str) -> Context:
    return ctx.acting_as(
        Actor("dora", Role.DEVELOPER, scopes=tuple(map(Scope.parse, scopes)) if scopes else None)
    )


def test_a_few_rows_come_back_with_the_job(late: Context) -> None:
    rows = [{**row(number), "_id": f"flight {number}"} for number in range(7)]
    job = submit(late, rows=rows)
    assert (job["state"], job["total"], job["already"]) == ("queued", 7, False)
    work(late)
    got = results(late, job["id"])
    assert [one["id"] for one in got["rows"]] == [f"flight {number}" for number in range(7)]
    assert [one["probability"] for one in got["rows"]] == pytest.approx(
        [answer(n) for n in range(7)], abs=1e-6
    )
    assert got["uri"] is None and got["after"] is None and got["version"] == 1


def test_a_file_is_answered_in_parts_that_a_manifest_names(late: Context, tmp_path: Path) -> None:
    job = submit(late, input=str(write_csv(tmp_path / "rows.csv", 2500)), output=str(tmp_path / "out"))
    work(late, chunk_rows=1000)
    shown = show(late, job["id"])
    assert shown["state"] == "succeeded" and shown["done"] == shown["total"] == 2500
    folder = tmp_path / "out" / job["id"]
    assert shown["result"]["uri"] == str(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [part["uri"] for part in manifest["parts"]] == sorted(str(path) for path in folder.glob("part-*"))
    table = pa.concat_tables([pq.read_table(part["uri"], partitioning=None) for part in manifest["parts"]])
    assert table.column("row").to_pylist() == list(range(1, 2501))
    assert table.column("probability").to_pylist() == pytest.approx(
        [answer(n) for n in range(2500)], abs=1e-6
    )
    page = results(late, job["id"], after=999, limit=3)
    assert [one["row"] for one in page["rows"]] == [1000, 1001, 1002] and page["after"] == 1002


def test_the_same_answers_come_from_csv_json_lines_and_parquet(late: Context, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([row(number) for number in range(1200)])
    write_csv(tmp_path / "a.csv", 1200)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row(number)) + "\n" for number in range(1200)))
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=100)
    jobs = [submit(late, input=str(tmp_path / name)) for name in ("a.csv", "b.jsonl", "c.parquet")]
    work(late)
    first, *others = [results(late, job["id"], limit=5000)["rows"] for job in jobs]
    assert len(first) == 1200 and first[0]["probability"] == pytest.approx(answer(0), abs=1e-6)
    for other in others:
        assert [one["probability"] for one in other] == [one["probability"] for one in first]


def test_predictions_are_logged_once_by_job_and_row_and_counted_as_the_versions_own(
    late: Context, tmp_path: Path
) -> None:
    rows = [{**row(n), "_unit": f"u{n}", "_event_time": "2013-06-30T05:00:00Z"} for n in range(40)]
    job = submit(late, rows=rows)
    work(late)
    files = PredictionLog(late.home.predictions).files("late", late.now - timedelta(days=5), late.now)
    logged = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]).to_pylist()
    assert [one["id"] for one in logged] == [f"{job['id']}/{number}" for number in range(1, 41)]
    assert {one["uid"] for one in logged} == {one["id"] for one in logged}
    assert logged[3]["unit"] == "u3" and logged[3]["arm"] == "job" and logged[3]["version"] == 1
    assert json.loads(logged[3]["inputs"]) == [103.0, 3, "UA"]
    with late.ledger.read() as conn:
        counts = arm_counts(conn, "late", 1, None, late.now - timedelta(days=5), late.now + timedelta(days=1))
        assert (counts.n, counts.errors, counts.profile.rows) == (40, 0, 40)
        mark = watermark(conn, "late")
    assert mark is not None and to_us(mark) == logged[0]["event_time"].timestamp() * 1e6


def test_what_policy_hides_is_in_no_log(template: Path, tmp_path: Path, clock: FakeClock) -> None:
    ctx = open_context(Path(shutil.copytree(template, tmp_path / "hiding")), LOCAL, clock=clock)
    serve_first(ctx, {"serving": {"log": {"redact": ["carrier"], "sample": 0.5}}})
    submit(ctx, rows=[row(number) for number in range(200)])
    work(ctx)
    files = PredictionLog(ctx.home.predictions).files("late", ctx.now, ctx.now + timedelta(days=1))
    logged = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]).to_pylist()
    assert 60 < len(logged) < 140
    assert all(json.loads(one["inputs"])[2] is None for one in logged)
    with ctx.ledger.read() as conn:
        counts = arm_counts(conn, "late", 1, "job", ctx.now, ctx.now + timedelta(days=1))
    assert counts.n == 200 and "carrier" not in counts.profile.columns


def test_the_same_request_under_the_same_key_is_the_same_job(late: Context) -> None:
    first = submit(late, rows=[row(1)], idempotency_key="order 66")
    again = submit(late, rows=[row(1)], idempotency_key="order 66")
    assert again["id"] == first["id"] and again["already"]
    work(late)
    assert submit(late, rows=[row(1)], idempotency_key="order 66")["state"] == "succeeded"
    with pytest.raises(Conflict, match="another request was made under this idempotency key"):
        submit(late, rows=[row(2)], idempotency_key="order 66")
    assert submit(late, rows=[row(1)])["id"] != first["id"]


def test_a_full_queue_takes_no_more_and_says_when_to_come_again(late: Context) -> None:
    configure(late, max_queued=2)
    for _ in range(2):
        submit(late, rows=[row(1)], idempotency_key=None)
    with pytest.raises(TooMany, match="2 jobs of late wait or run already") as refused:
        submit(late, rows=[row(1)])
    assert (refused.value.http_status, refused.value.retry_after) == (429, 30.0)
    work(late)
    assert submit(late, rows=[row(1)])["state"] == "queued"


@pytest.mark.parametrize(
    ("asked", "error", "told"),
    [
        ({}, BadInput, "either rows or an input"),
        ({"rows": [row(1)], "input": "/x.csv"}, BadInput, "both rows and an input"),
        ({"rows": []}, BadInput, "no rows"),
        ({"rows": [row(1)] * 1001}, BadInput, "too many rows; got 1001"),
        ({"rows": [{**row(1), "carrier": "x" * 4000}] * 300}, BadInput, "rows too large"),
        ({"rows": [row(1), {**row(2), "speed": 3}]}, BadInput, "row 2: the model has no input `speed`"),
        ({"rows": [{"distance": 1.0, "hour": 2}]}, BadInput, "row 1: input `carrier` is missing"),
        ({"rows": [row(1), {**row(2), "hour": None}]}, BadInput, "row 2, column `hour`: input `hour` may not be null"),
        ({"rows": [{**row(1), "hour": 2.5}]}, BadInput, "not a whole number; got 2.5"),
        ({"rows": [{**row(1), "distance": "far"}]}, BadInput, "column `distance`: a value of another kind"),
        ({"rows": [{**row(1), "distance": [1]}]}, BadInput, "column `distance`: a value of another kind"),
        ({"rows": [{**row(1), "_event_time": "noon"}]}, BadInput, "not a time with a zone; got noon"),
        ({"rows": [{**row(1), "_id": 7.5}]}, BadInput, "column `_id`: not text"),
        ({"rows": [row(1)], "version": 9}, NotFound, "version 9 of late is not served; wanted 1"),
        ({"rows": [row(1)], "version": 0}, BadInput, "not a version"),
        ({"rows": [row(1)], "priority": 101}, BadInput, "`priority` is out of range"),
        ({"rows": [row(1)], "bad_rows": "ignore"}, BadInput, "bad_rows"),
        ({"rows": [row(1)], "idempotency_key": ""}, BadInput, "not a key"),
        ({"rows": [row(1)], "id_column": "x", "unit_column": "x"}, BadInput, "one column for several things"),
        ({"input": "rows.csv"}, BadInput, "not an absolute path"),
        ({"input": "/data/../etc/passwd"}, BadInput, "not an absolute path"),
        ({"input": "ftp://x/rows.csv"}, BadInput, "no job reads or writes that; got ftp://"),
        ({"input": "postgresql://x/db?table=t"}, BadInput, "no job reads or writes that"),
        ({"input": "file://host/rows.csv"}, BadInput, "no job reads or writes that"),
        ({"input": "http://127.0.0.1:8080/rows.csv"}, Refused, "an address that is not called for others"),
        ({"input": "http://169.254.169.254/latest"}, Refused, "an address that is not called for others"),
        ({"input": "/x.xml", "format": "xml"}, BadInput, "unknown format"),
        ({"input": "/x.csv", "output": "https://x/y"}, BadInput, "results are not written here"),
        ({"input": "/x.csv", "output": "/tmp/*"}, BadInput, "a pattern is no place"),
        ({"rows": [row(1)], "webhook": {"url": "https://x.example", "secret": "s"}}, BadInput, "no such secret"),
        ({"rows": [row(1)], "webhook": {"url": "https://x.example"}}, BadInput, "secret"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_before_it_is_queued(
    unchanged: Context, asked: dict[str, Any], error: type[LoopwrightError], told: str
) -> None:
    with pytest.raises(error) as refused:
        submit(unchanged, **asked)
    assert told in str(refused.value)
    assert find("jobs.list")(unchanged) == []


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("ftp://x.example/hook", "not the address of a server"),
        ("https://", "not the address of a server"),
        ("https://x.example:99999/", "not the address of a server"),
        ("https://user:pw@x.example/", "a webhook with a password"),
        ("http://localhost:9/hook", "an address that is not called for others"),
        ("http://[::1]/hook", "an address that is not called for others"),
        ("http://[::ffff:127.0.0.1]/", "an address that is not called for others"),
        ("http://169.254.169.254/latest/meta-data", "an address that is not called for others"),
        ("http://0.0.0.0/", "an address that is not called for others"),
    ],
)
def test_a_webhook_leads_to_another_machine(unchanged: Context, url: str, told: str) -> None:
    configure(unchanged, secrets={"billing": "BILLING"})
    with pytest.raises(LoopwrightError) as refused:
        submit(unchanged, rows=[row(1)], webhook={"url": url, "secret": "billing"})
    unchanged.home.config.unlink()
    assert told in str(refused.value)


def test_an_unknown_model_or_one_that_is_not_served_is_named(
    late: Context, register: Callable[..., int]
) -> None:
    with pytest.raises(NotFound, match="did you mean `late`"):
        find("jobs.submit")(late, model="lat", rows=[row(1)])
    register("early")
    with pytest.raises(NotFound, match="no version of `early` is served; wanted late"):
        find("jobs.submit")(late, model="early", rows=[row(1)])


@pytest.mark.parametrize(
    ("header", "lines", "told"),
    [
        ("carrier,distance", ["UA,1"], "rows.csv: no column `hour`, which is an input of the model"),
        ("carrier,distance,hours", ["UA,1,2"], "did you mean `hours`?"),
        (
            "carrier,distance,hour",
            ["UA,1,2", "AA,far,3"],
            "rows.csv, row 2, column `distance`: not a number: `far`",
        ),
        (
            "carrier,distance,hour",
            ["UA,1,2"] * 5000 + ["AA,1,2.5"],
            "rows.csv, row 5001, column `hour`: not a whole",
        ),
        (
            "carrier,distance,hour",
            ["UA,1,2", "AA,1,"],
            "rows.csv, row 2, column `hour`: input `hour` may not be null",
        ),
        ("carrier,distance,hour", ["UA,1,2", "UA,inf,2"], "row 2, column `distance`: not finite"),
        ("carrier,distance,hour", ["UA,1,2", "AA,3"], "rows.csv, line 3: a line that is no row"),
        ("carrier,distance,hour", [], "holds no rows"),
    ],
)
def test_a_file_that_does_not_fit_kills_its_job_with_file_row_and_column(
    late: Context, tmp_path: Path, header: str, lines: list[str], told: str
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("\n".join([header, *lines]) + "\n")
    job = submit(late, input=str(file))
    said = work(late)
    shown = show(late, job["id"])
    assert shown["state"] == "dead" and shown["failures"] == 1  # tried again it would be the same
    assert told in shown["error"]["message"] and str(file) in shown["error"]["message"]
    assert said[-2]["event"] == "dead"
    assert not (late.home.staging / "jobs" / job["id"]).exists()
    with pytest.raises(Conflict, match="the job has no result"):
        results(late, job["id"])


def test_parquet_columns_of_another_kind_and_times_without_a_zone_are_errors(
    late: Context, tmp_path: Path
) -> None:
    good = [row(number) for number in range(3)]
    cases = {
        "text expected": ([{**one, "carrier": 7} for one in good], "column `carrier`: a column of another kind"),
        "number expected": ([{**one, "hour": [1]} for one in good], "column `hour`: a column of another kind"),
        "zone": (
            [{**one, "_event_time": late.now.replace(tzinfo=None)} for one in good],
            "column `_event_time`: times without a zone",
        ),
    }  # fmt: skip
    for name, (rows, told) in cases.items():
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        job = submit(late, input=str(tmp_path / f"{name}.parquet"))
        work(late)
        assert told in show(late, job["id"])["error"]["message"]


def test_rows_without_an_answer_are_reported_where_that_is_wanted(late: Context, tmp_path: Path) -> None:
    lines = ["UA,1,2", "UA,far,2", "AA,3", "AA,1,3", "B6,2,99999999999999999999"]
    file = tmp_path / "rows.csv"
    file.write_text("carrier,distance,hour\n" + "\n".join(lines) + "\n")
    job = submit(late, input=str(file), bad_rows="report", output=str(tmp_path / "out"))
    work(late)
    shown = show(late, job["id"])
    assert (shown["state"], shown["done"], shown["failed_rows"]) == ("succeeded", 4, 2)
    assert shown["result"]["malformed_lines"] == 1
    got = results(late, job["id"])["rows"]
    assert [one["error"] is None for one in got] == [True, False, True, False]
    assert got[1]["probability"] is None and "`distance`" in got[1]["error"] and "far" in got[1]["error"]
    with late.ledger.read() as conn:
        counts = arm_counts(conn, "late", 1, "job", late.now, late.now + timedelta(days=1))
    assert (counts.n, counts.errors) == (2, 0)  # the model was not asked about the others


def test_rows_that_a_transform_breaks_on_are_found_one_by_one(late: Context) -> None:
    version = serve_version(late, transform=STRICT, bias=0.5)
    find("delivery.promote")(late, model="late", reason="now")
    rows = [row(number) for number in range(60)]
    rows[17] = {**rows[17], "carrier": "ZZ"}
    job, strict = submit(late, rows=rows, bad_rows="report"), submit(late, rows=rows)
    work(late)
    got = results(late, job["id"])
    assert got["version"] == version
    assert [one["row"] for one in got["rows"] if one["error"]] == [18]
    assert "KeyError" in got["rows"][17]["error"]
    assert got["rows"][18]["probability"] == pytest.approx(answer(18, 0.5), abs=1e-6)
    dead = show(late, strict["id"])
    assert (
        dead["state"] == "dead"
        and "row 18: version 2 gives no answer; got KeyError" in dead["error"]["message"]
    )
    with late.ledger.read() as conn:
        counts = arm_counts(conn, "late", version, "job", late.now, late.now + timedelta(days=1))
    assert (counts.n, counts.errors) == (60, 1)


def test_a_version_that_is_asked_for_answers_and_a_job_keeps_its_version(
    late: Context, tmp_path: Path
) -> None:
    serve_version(late, bias=2.0)  # a canary now
    old, new = submit(late, rows=[row(5)]), submit(late, rows=[row(5)], version=2)
    work(late)
    assert results(late, old["id"])["rows"][0]["probability"] == pytest.approx(answer(5), abs=1e-6)
    assert results(late, new["id"])["rows"][0]["probability"] == pytest.approx(answer(5, 2.0), abs=1e-6)


def test_what_an_engine_does_may_pass_and_is_tried_again_after_a_pause(
    late: Context, clock: FakeClock, tmp_path: Path
) -> None:
    blocked = tmp_path / "out"
    blocked.write_text("a file where a folder should be")
    job = submit(late, input=str(write_csv(tmp_path / "rows.csv", 10)), output=str(blocked))
    work(late)
    shown = show(late, job["id"])
    assert (shown["state"], shown["failures"]) == ("queued", 1)
    assert "cannot write" in shown["error"]["message"]
    work(late)
    assert show(late, job["id"])["failures"] == 1  # not before the pause is over
    blocked.unlink()
    clock.move(timedelta(minutes=1))
    work(late)
    assert show(late, job["id"])["state"] == "succeeded"
    assert [one["outcome"] for one in show(late, job["id"])["attempts"]] == ["failed", "succeeded"]


def test_a_dead_job_is_begun_anew_once_its_file_is_mended(late: Context, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "rows.csv", 900, extra=["UA,far,1,N"])
    job = submit(late, input=str(file), output=str(tmp_path / "out"))
    work(late, chunk_rows=300)
    assert (show(late, job["id"])["state"], show(late, job["id"])["done"]) == ("dead", 900)
    write_csv(file, 901)
    find("jobs.retry")(late, model="late", job=job["id"], anew=True)
    work(late)
    assert (show(late, job["id"])["state"], show(late, job["id"])["done"]) == ("succeeded", 901)


def test_input_that_changed_after_rows_were_published_is_not_gone_on_with(
    late: Context, clock: FakeClock, tmp_path: Path
) -> None:
    table = pa.Table.from_pylist([row(number) for number in range(9000)])
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=1000)
    job = submit(late, input=str(tmp_path / "rows.parquet"), output=str(tmp_path / "out"))
    said: list[dict[str, Any]] = []
    worker, _ = make_worker(late, Options(once=True, chunk_rows=1000), said.append)
    worker.say = lambda told: worker.draining.set() if told["event"] == "chunk" else None
    worker.run()
    half = show(late, job["id"])
    assert (
        half["state"] == "queued" and 0 < half["done"] < 9000 and half["attempts"][0]["outcome"] == "released"
    )
    pq.write_table(table.slice(0, 8999), tmp_path / "rows.parquet")
    work(late)
    dead = show(late, job["id"])
    assert "not what the first rows of the job came from" in dead["error"]["message"]
    find("jobs.retry")(late, model="late", job=job["id"], anew=True)
    work(late)
    assert (show(late, job["id"])["state"], show(late, job["id"])["done"]) == ("succeeded", 8999)
    stray = {str(path) for path in (tmp_path / "out" / job["id"]).glob("part-*")}
    manifest = json.loads((tmp_path / "out" / job["id"] / "manifest.json").read_text())
    assert stray == {part["uri"] for part in manifest["parts"]}


def test_an_approval_that_was_taken_back_stops_a_job_between_chunks(late: Context, tmp_path: Path) -> None:
    serve_version(late, bias=2.0)
    find("delivery.promote")(late, model="late", reason="now")
    job = submit(late, input=str(write_csv(tmp_path / "rows.csv", 30_000)), output=str(tmp_path / "out"))
    said: list[dict[str, Any]] = []
    worker, _ = make_worker(late, Options(once=True, chunk_rows=5000), said.append)

    def tell(told: dict[str, Any]) -> None:
        said.append(told)
        if told["event"] == "chunk" and [one["event"] for one in said].count("chunk") == 1:
            find("models.rollback")(late, model="late", reason="it is wrong")

    worker.say = tell
    worker.run()
    dead = show(late, job["id"])
    assert dead["state"] == "dead" and "may answer no more" in dead["error"]["message"]
    assert 0 < dead["done"] < 30_000


def test_a_newer_version_is_no_reason_to_stop_one_that_is_at_work(late: Context, tmp_path: Path) -> None:
    job = submit(late, input=str(write_csv(tmp_path / "rows.csv", 9000)), output=str(tmp_path / "out"))
    said: list[dict[str, Any]] = []
    worker, _ = make_worker(late, Options(once=True, chunk_rows=4096), said.append)

    def tell(told: dict[str, Any]) -> None:
        said.append(told)
        if [one["event"] for one in said].count("chunk") == 1 and told["event"] == "chunk":
            serve_version(late, bias=2.0)
            find("delivery.promote")(late, model="late", reason="now")
            worker.draining.set()

    worker.say = tell
    worker.run()
    work(late)  # another worker goes on with it
    done = show(late, job["id"])
    assert (done["state"], done["version"]) == ("succeeded", 1)
    rows = results(late, job["id"], after=8998)["rows"]
    assert rows[-1]["probability"] == pytest.approx(answer(8999), abs=1e-6)
    assert results(late, submit_and_work(late)["id"])["version"] == 2


def submit_and_work(ctx: Context) -> dict[str, Any]:
    job = submit(ctx, rows=[row(1)])
    work(ctx)
    return job


def test_cancelled_jobs_stop_and_may_be_taken_up_again(
    late: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = submit(late, rows=[row(1)])
    assert find("jobs.cancel")(late, model="late", job=waiting["id"])["state"] == "cancelled"  # type: ignore[index,call-overload]
    running = submit(late, input=str(write_csv(tmp_path / "rows.csv", 40_000)), output=str(tmp_path / "out"))
    said: list[dict[str, Any]] = []
    worker, _ = make_worker(
        late, Options(once=True, chunk_rows=4096, lease=timedelta(seconds=8)), said.append
    )

    heard, renewed = threading.Event(), Hold.renewed

    def beat(hold: Hold, began: float) -> None:
        renewed(hold, began)
        if hold._cancelled:
            heard.set()

    monkeypatch.setattr(Hold, "renewed", beat)

    def tell(told: dict[str, Any]) -> None:
        said.append(told)
        if told["event"] == "chunk" and len(said) == 3:
            find("jobs.cancel")(late, model="late", job=running["id"])
            assert heard.wait(60)

    worker.say = tell
    worker.run()
    shown = show(late, running["id"])
    assert (shown["state"], shown["cancelled_by"]) == ("cancelled", "local")
    assert 0 < shown["done"] < 40_000 and shown["attempts"][-1]["outcome"] == "cancelled"
    find("jobs.retry")(late, model="late", job=running["id"])
    work(late)
    assert show(late, running["id"])["done"] == 40_000
    with pytest.raises(Conflict, match="has ended"):
        find("jobs.cancel")(late, model="late", job=running["id"])


def test_who_may_do_what(late: Context, people: dict[str, Context], tmp_path: Path) -> None:
    vera, dora, scoped = people["vera"], people["dora"], as_developer(late, "write:late")
    job = submit(scoped, rows=[row(1)])
    work(late)
    assert show(vera, job["id"])["state"] == "succeeded"
    for act in (
        lambda: submit(vera, rows=[row(1)]),
        lambda: results(vera, job["id"]),
        lambda: find("jobs.cancel")(vera, model="late", job=job["id"]),
        lambda: submit(as_developer(late, "read"), rows=[row(1)]),
        lambda: submit(as_developer(late, "write:other"), rows=[row(1)]),
        lambda: show(as_developer(late, "write:other"), job["id"]),
    ):
        with pytest.raises(Refused, match="may not"):
            act()
    assert len(results(scoped, job["id"])["rows"]) == 1
    file = write_csv(tmp_path / "rows.csv", 3)
    with pytest.raises(Refused, match="not a place for jobs"):
        submit(dora, input=str(file))
    with pytest.raises(Refused, match="not a place for jobs"):
        submit(dora, input="s3://anybodys/rows.csv")
    configure(late, places=[str(tmp_path)])
    allowed = submit(dora, input=str(file), output=str(tmp_path / "out"))
    work(late)
    assert show(dora, allowed["id"])["state"] == "succeeded"
    (tmp_path / "link.csv").symlink_to("/etc/hostname")
    with pytest.raises(Refused, match="not a place for jobs"):
        submit(dora, input=str(tmp_path / "link.csv"))
    sly = submit(dora, input=str(tmp_path / "*.csv"))
    work(late)
    assert "not a place for jobs" in show(dora, sly["id"])["error"]["message"]


def test_a_viewer_learns_where_a_job_failed_and_no_value_of_its_rows(
    late: Context, people: dict[str, Context], tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("carrier,distance,hour\nUA,secret-value,1\n")
    job = submit(late, input=str(tmp_path / "rows.csv"))
    work(late)
    assert "secret-value" in json.dumps(show(people["dora"], job["id"]))
    seen = show(people["vera"], job["id"])
    assert "secret-value" not in json.dumps(seen) and "row 1" in seen["error"]["where"]


def test_people_s_acts_are_in_the_audit_log_without_what_lets_somebody_in(late: Context) -> None:
    job = submit(late, input="https://u:pw@data.example/rows.csv?token=abc&day=1", idempotency_key="k")
    find("jobs.cancel")(late, model="late", job=job["id"])
    find("jobs.cancel")(late, model="late", job=job["id"])
    find("jobs.retry")(late, model="late", job=job["id"])
    with late.ledger.read() as conn:
        rows = [r for r in ledger_store.rows(conn, subject="late") if r.action.startswith("job.")]
    assert [one.action for one in rows] == ["job.submitted", "job.cancelled", "job.retried"]
    assert rows[0].payload["input"] == "https://data.example/rows.csv?day=1"
    shown = show(late, job["id"])
    assert "pw" not in json.dumps(shown) and "abc" not in json.dumps(shown)


def test_another_models_job_is_not_touched_by_who_may_change_this_one(
    late: Context, register: Callable[..., int]
) -> None:
    job = submit(late, rows=[row(1)])
    register("early")
    with pytest.raises(NotFound, match="early has no job"):
        find("jobs.cancel")(late, model="early", job=job["id"])


def test_ended_jobs_are_forgotten_after_a_while_with_what_lies_in_the_home(
    late: Context, clock: FakeClock, tmp_path: Path
) -> None:
    file = str(write_csv(tmp_path / "rows.csv", 1500))
    ours, theirs = submit(late, input=file), submit(late, input=file, output=str(tmp_path / "out"))
    work(late)
    clock.move(timedelta(days=31))
    stale = late.home.staging / "jobs" / "jb_gone"
    stale.mkdir(parents=True)
    worker, _ = make_worker(late, Options(), lambda told: None)
    worker.sweep()
    assert find("jobs.list")(late) == [] and not stale.exists()
    assert not (late.home.artifacts / "jobs" / ours["id"]).exists()
    assert (tmp_path / "out" / theirs["id"] / "manifest.json").exists()


@pytest.mark.parametrize(
    ("jobs", "told"),
    [
        ([], "not an object"),
        ({"place": ["/x"]}, "unknown setting `place`"),
        ({"places": "/x"}, "not a list of texts"),
        ({"places": ["x"]}, "not a place; got x"),
        ({"output": "http://x"}, "not a place"),
        ({"secrets": {"a": 1}}, "not names of variables"),
        ({"allow": ["10.0.0.0/99"]}, "not a network"),
        ({"max_queued": 0}, "not a count"),
        ({"keep": "long"}, "not a duration"),
    ],
)
def test_settings_that_cannot_be_used_say_so(unchanged: Context, jobs: object, told: str) -> None:
    unchanged.home.config.write_text(json.dumps({"jobs": jobs}))
    with pytest.raises(BadInput) as refused:
        submit(unchanged, rows=[row(1)])
    with pytest.raises(BadInput):
        make_worker(unchanged, Options(), lambda told: None)
    unchanged.home.config.unlink()
    assert told in str(refused.value)
