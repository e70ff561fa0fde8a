"""The queue on SQLite and on PostgreSQL: each job to one worker, whatever workers do at once."""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopwright.jobs import job as life
from loopwright.jobs import store
from loopwright.jobs.job import Job, LeaseLost, Outcome, State
from loopwright.jobs.store import Part
from loopwright.kernel.errors import Conflict, NotFound
from loopwright.kernel.ids import new_id
from loopwright.ledger.engine import Ledger

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
LEASE = timedelta(seconds=30)


def submit(ledger: Ledger, *, at: datetime = NOON, **more: Any) -> Job:
    job = Job(new_id("jb"), more.pop("model", "late"), more.pop("request", {}), "ana", at, due_at=at, **more)
    with ledger.write() as conn:
        store.add(conn, job, digest="d", rows=[{"x": 1}])
    return job


def claim(
    ledger: Ledger, holder: str = "w1", now: datetime = NOON, models: list[str] | None = None
) -> Job | None:
    with ledger.beside() as conn:
        return store.claim_next(conn, holder, now, LEASE, models)


def step(ledger: Ledger, job: str, by: Callable[[Job], Job], now: datetime = NOON) -> Job:
    with ledger.beside() as conn:
        return store.change(conn, job, now, by)[1]


def current(ledger: Ledger, job: str) -> Job:
    with ledger.read() as conn:
        return store.get(conn, job)


def test_a_job_is_read_back_as_it_was_put_in(any_ledger: Ledger) -> None:
    job = submit(any_ledger, key="k", priority=3, request={"input": "/data/x.csv"}, total=7)
    assert current(any_ledger, job.id) == job
    with any_ledger.read() as conn:
        assert store.by_key(conn, "late", "k") == (job, "d")
        assert store.by_key(conn, "other", "k") is None
        assert store.rows_of(conn, job.id) == [{"x": 1}]
        assert store.alive(conn, "late") == 1
        with pytest.raises(NotFound, match="no job has the id"):
            store.get(conn, "jb_none")


def test_what_goes_first_has_the_higher_priority_then_the_longer_wait(any_ledger: Ledger) -> None:
    old = submit(any_ledger, at=NOON - timedelta(hours=1))
    submit(any_ledger, model="other", at=NOON - timedelta(hours=2))
    urgent = submit(any_ledger, priority=5)
    later = submit(any_ledger, at=NOON + timedelta(hours=1))
    with any_ledger.read() as conn:
        assert store.any_due(conn, NOON, ["late"])
        assert not store.any_due(conn, NOON - timedelta(hours=3))
    taken = [claim(any_ledger, models=["late"]) for _ in range(3)]
    assert [one and one.id for one in taken] == [urgent.id, old.id, None]
    assert current(any_ledger, later.id).state is State.QUEUED


def test_many_workers_at_once_take_each_job_once(any_ledger: Ledger) -> None:
    wanted = {submit(any_ledger).id for _ in range(24)}
    taken: list[str] = []
    ready = threading.Barrier(4)

    def work(name: str) -> None:
        ready.wait()
        while (job := claim(any_ledger, name)) is not None:
            taken.append(job.id)
            step(any_ledger, job.id, lambda at, fence=job.fence: life.beat(at, fence, NOON, LEASE))

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 24 and set(taken) == wanted


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Ledger]:
    """SQLite has one writer, who is waited for; on PostgreSQL nobody waits."""
    ledger = Ledger.open(postgres_url)
    ledger.migrate()
    yield ledger
    ledger.dispose()


def test_a_job_that_somebody_looks_at_is_passed_over_not_waited_for(postgres: Ledger) -> None:
    first, second = submit(postgres, priority=1), submit(postgres)
    with postgres.beside() as held:
        found = store.claim_next(held, "w1", NOON, LEASE)
        assert found is not None and found.id == first.id
        got: list[Job | None] = []
        other = threading.Thread(target=lambda: got.append(claim(postgres, "w2")))
        other.start()
        other.join(25)  # without SKIP LOCKED it would wait for us
        assert [one and one.id for one in got] == [second.id]


def test_the_ledgers_writer_keeps_no_worker_from_its_job(postgres: Ledger) -> None:
    job = submit(postgres)
    with postgres.write():
        got: list[Job | None] = []
        other = threading.Thread(target=lambda: got.append(claim(postgres)))
        other.start()
        other.join(25)
        assert [one and one.id for one in got] == [job.id]


def test_who_lost_its_lease_writes_nothing_and_leaves_no_half_of_it(any_ledger: Ledger) -> None:
    job = submit(any_ledger)
    first = claim(any_ledger, "w1")
    second = claim(any_ledger, "w2", NOON + LEASE)
    assert first is not None and second is not None and second.fence == 2
    step(any_ledger, job.id, lambda at: life.begin(at, 2, pinned={"version": 1}, total=9))

    def publish(fence: int) -> None:
        with any_ledger.write() as conn:
            store.add_part(conn, job.id, Part(0, 0, 4, f"/part-{fence}"))
            store.change(
                conn, job.id, NOON,
                lambda at: life.publish(at, fence, NOON, LEASE, first=0, rows=4, failed=0, latest=5),
            )  # fmt: skip

    with pytest.raises(LeaseLost):
        publish(1)
    publish(2)
    with any_ledger.read() as conn:
        assert store.parts(conn, job.id) == [Part(0, 0, 4, "/part-2")]
        tried = store.attempts(conn, job.id)
    assert [(one.holder, one.outcome) for one in tried] == [("w1", Outcome.LOST), ("w2", Outcome.RUNNING)]
    assert current(any_ledger, job.id).done == 4


def test_every_attempt_says_how_it_ended(any_ledger: Ledger) -> None:
    job, now = submit(any_ledger), NOON
    ends: list[Callable[[Job], Job]] = [
        lambda at: life.release(at, at.fence, now),
        lambda at: life.fail(at, at.fence, now, {"message": "disk"}, final=False),
        lambda at: life.cancelled(at, at.fence, now),
    ]
    for end in ends:
        assert claim(any_ledger, now=now) is not None
        step(any_ledger, job.id, end, now)
        now += timedelta(minutes=1)
    step(any_ledger, job.id, lambda at: life.retry(at, now, anew=True), now)
    claim(any_ledger, now=now)
    step(
        any_ledger,
        job.id,
        lambda at: life.complete(life.begin(at, at.fence, pinned={}, total=0), at.fence, now, {}),
    )
    with any_ledger.read() as conn:
        tried = store.attempts(conn, job.id)
    assert [one.outcome.value for one in tried] == ["released", "failed", "cancelled", "succeeded"]
    assert [one.error for one in tried] == ["", "disk", "", ""]
    assert all(one.ended_at is not None for one in tried)


def test_a_webhook_is_due_when_the_job_has_ended_until_it_was_told_or_given_up(any_ledger: Ledger) -> None:
    silent = submit(any_ledger)
    job = submit(any_ledger, request={"webhook": {"url": "https://x", "secret": "s"}})
    for one in (silent, job):
        step(any_ledger, one.id, lambda at: life.cancel(at, "ana", NOON))
    with any_ledger.beside() as conn:
        assert store.any_untold(conn, NOON)
        found = store.claim_untold(conn, NOON, timedelta(minutes=1))
        assert found is not None and (found[0].id, found[1]) == (job.id, 0)
        assert store.claim_untold(conn, NOON, timedelta(minutes=1)) is None
        store.record_delivery(conn, job.id, NOON, "HTTP 500", NOON + timedelta(seconds=2))
        again = store.claim_untold(conn, NOON + timedelta(seconds=2), timedelta(minutes=1))
        assert again is not None and again[1] == 1
        store.record_delivery(conn, job.id, NOON, None, None)
        assert [one.problem for one in store.deliveries(conn, job.id)] == ["HTTP 500", ""]
        assert not store.any_untold(conn, NOON + timedelta(days=1))


def test_another_life_has_its_webhook_called_at_its_own_end(any_ledger: Ledger) -> None:
    job = submit(any_ledger, request={"webhook": {"url": "https://x", "secret": "s"}})
    step(any_ledger, job.id, lambda at: life.cancel(at, "ana", NOON))
    with any_ledger.beside() as conn:
        assert store.claim_untold(conn, NOON, timedelta(minutes=1)) is not None
    step(any_ledger, job.id, lambda at: life.retry(at, NOON, anew=False))
    with any_ledger.beside() as conn:
        store.record_delivery(conn, job.id, NOON, "HTTP 500", NOON)  # of the call that was under way
        assert not store.any_untold(conn, NOON + timedelta(days=1))
    step(any_ledger, job.id, lambda at: life.cancel(at, "ana", NOON))
    with any_ledger.read() as conn:
        assert store.any_untold(conn, NOON)


def test_what_is_forgotten_leaves_nothing_behind(any_ledger: Ledger) -> None:
    job = submit(any_ledger)
    claim(any_ledger)
    step(any_ledger, job.id, lambda at: life.cancelled(at, 1, NOON))
    with any_ledger.write() as conn:
        assert [one.id for one in store.ended_before(conn, NOON + timedelta(seconds=1))] == [job.id]
        assert store.ended_before(conn, NOON) == []
        assert not store.forget(conn, job.id, NOON)
        assert store.forget(conn, job.id, NOON + timedelta(seconds=1))
        assert store.listed(conn) == [] and store.attempts(conn, job.id) == []


def acts_of(fence: int, now: datetime) -> dict[str, Callable[[Job], Job]]:
    """What a worker with this fence, or a person, may do."""
    return {
        "beat": lambda at: life.beat(at, fence, now, LEASE),
        "publish": lambda at: life.publish(at, fence, now, LEASE, first=at.done, rows=1, failed=0, latest=1),
        "complete": lambda at: life.complete(life.begin(at, fence, pinned={}, total=at.done), fence, now, {}),
        "fail": lambda at: life.fail(at, fence, now, {"message": "x"}, final=False),
        "release": lambda at: life.release(at, fence, now),
        "cancel": lambda at: life.cancel(at, "ana", now),
        "retry": lambda at: life.retry(at, now, anew=False),
    }


ACTS = st.sampled_from(
    ["claim", "expire", "beat", "publish", "complete", "fail", "release", "cancel", "retry"]
)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(acts=st.lists(st.tuples(ACTS, st.sampled_from(["w1", "w2"])), min_size=5, max_size=25))
def test_what_the_database_holds_is_what_the_life_of_a_job_says(
    any_ledger: Ledger, acts: list[tuple[str, str]]
) -> None:
    """Any schedule: the pure functions and the tables agree after each act, and attempts tell the same story."""
    told = submit(any_ledger, model=new_id("m"))
    now, fences = NOON, {"w1": 0, "w2": 0}
    for act, worker in acts:
        fence = fences[worker]
        steps = acts_of(fence, now)
        if act == "expire":
            now += timedelta(hours=1)
            continue
        before = told
        if act == "claim":
            got = claim(any_ledger, worker, now, [told.model])
            if told.due_at is not None and told.due_at <= now:
                told = life.claim(told, worker, now, LEASE)
                assert got == (told if told.state is State.RUNNING else None)
            else:
                assert got is None
            fences[worker] = told.fence if got else fence
        else:
            try:
                told = steps[act](told)
            except Conflict:
                with pytest.raises(Conflict):
                    step(any_ledger, told.id, steps[act], now)
            else:
                assert step(any_ledger, told.id, steps[act], now) == told
        assert current(any_ledger, told.id) == told, (act, before)
    with any_ledger.read() as conn:
        tried = store.attempts(conn, told.id)
    assert [one.number for one in tried] == list(range(1, told.attempts + 1))
    open_ones = [one.number for one in tried if one.ended_at is None]
    assert open_ones == ([told.attempts] if told.state is State.RUNNING else [])
