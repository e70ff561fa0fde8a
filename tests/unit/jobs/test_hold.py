"""A hold beats while the work moves, and says at once when the job is somebody else's."""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from loopwright.jobs import job as life
from loopwright.jobs import store
from loopwright.jobs.hold import Cancelled, Draining, Hold
from loopwright.jobs.job import Job, LeaseLost
from loopwright.jobs.stop import Stop
from loopwright.kernel.clock import utc_now
from loopwright.ledger import engine
from loopwright.ledger.engine import Ledger

LEASE = timedelta(seconds=3)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    opened.migrate()
    yield opened
    opened.dispose()


@pytest.fixture
def job(ledger: Ledger) -> Job:
    now = utc_now()
    with ledger.write() as conn:
        store.add(conn, Job("jb_1", "late", {}, "ana", now, due_at=now), digest="", rows=None)
        taken = store.claim_next(conn, "w1", now, LEASE)
    assert taken is not None
    return taken


def current(ledger: Ledger) -> Job:
    with ledger.read() as conn:
        return store.get(conn, "jb_1")


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_lease_is_renewed_for_as_long_as_the_work_moves(ledger: Ledger, job: Job) -> None:
    with Hold(ledger, job, LEASE, utc_now, draining=Stop()) as hold:
        until(lambda: current(ledger).due_at != job.due_at)
        hold.check()
    renewed = current(ledger).due_at
    assert renewed is not None and job.due_at is not None and renewed > job.due_at


def test_a_worker_that_hangs_lets_go_and_says_so_once(ledger: Ledger, job: Job) -> None:
    hung: list[bool] = []
    with Hold(
        ledger, job, LEASE, utc_now, draining=Stop(), stall=0.3, hung=lambda: hung.append(True)
    ) as hold:
        until(lambda: hung)
        with pytest.raises(LeaseLost, match="nothing moved"):
            hold.check()
    assert hung == [True]
    until(lambda: (current(ledger).due_at or utc_now()) < utc_now())  # free for another


def test_whoever_took_the_job_meanwhile_keeps_it(ledger: Ledger, job: Job) -> None:
    with Hold(ledger, job, LEASE, utc_now, draining=Stop()) as hold:
        later = utc_now() + 10 * LEASE
        with ledger.beside() as conn:
            assert store.claim_next(conn, "w2", later, LEASE) is not None

        def lost() -> bool:
            try:
                hold.check()
            except LeaseLost as error:
                return "w2" in str(error)
            return False

        until(lost)


def test_a_ledger_that_is_away_longer_than_the_lease_costs_the_job(
    ledger: Ledger, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_MS", 300)
    short = timedelta(seconds=0.2)
    with ledger.write(), Hold(ledger, job, short, utc_now, draining=Stop()) as hold:
        time.sleep(0.25)  # nobody else may write meanwhile: the beat waits
        with pytest.raises(LeaseLost, match="no beat for"):
            hold.check()


def test_cancelling_and_stopping_are_heard_between_rows(ledger: Ledger, job: Job) -> None:
    draining = Stop()
    with Hold(ledger, job, LEASE, utc_now, draining=draining) as hold:
        hold.check()
        draining.set()
        with pytest.raises(Draining):
            hold.check()
        with ledger.beside() as conn:
            store.change(conn, job.id, utc_now(), lambda at: life.cancel(at, "ana", utc_now()))

        def heard() -> bool:
            try:
                hold.check()
            except Cancelled:
                return True
            except Draining:
                return False
            return False

        until(heard)
