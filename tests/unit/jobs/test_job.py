"""A job's life: whatever workers, clocks and people do, rows are published once and in order, and every job can end."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loopwright.jobs import job as life
from loopwright.jobs.job import MAX_FAILURES, Job, LeaseLost, Outcome, State
from loopwright.kernel.errors import Conflict

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
LEASE = timedelta(seconds=30)
ERROR = {"error": "Unavailable", "message": "the disk is away"}


def queued(**more: Any) -> Job:
    return Job("jb_1", "late", {}, "ana", NOON, due_at=NOON, **more)


def running(**more: Any) -> Job:
    return life.claim(queued(**more), "w1", NOON, LEASE)


class Life(RuleBasedStateMachine):
    """Three workers, of which each remembers the fence it was given, however long ago."""

    def __init__(self) -> None:
        super().__init__()
        self.job = queued()
        self.now = NOON
        self.fences: dict[str, int] = {}
        self.published: list[tuple[int, int, int]] = []
        self.ends = 0

    def apply(self, worker: str, act: Any) -> bool:
        """Do it as `worker`; whether it counted. It must count exactly when its fence is the newest."""
        fence = self.fences.get(worker)
        if fence is None:
            return False
        valid = self.job.state is State.RUNNING and fence == self.job.fence
        try:
            after = act(self.job, fence)
        except LeaseLost:
            assert not valid
            return False
        assert valid
        self.ends += after.state.ended
        self.job = after
        return True

    workers = st.sampled_from(["w1", "w2", "w3"])

    @rule(seconds=st.sampled_from([1, 10, 29, 31, 400, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(worker=workers)
    def claim(self, worker: str) -> None:
        before = self.job
        try:
            self.job = life.claim(self.job, worker, self.now, LEASE)
        except Conflict:
            assert before.state.ended or before.due_at is None or before.due_at > self.now
            return
        if self.job.state is State.RUNNING:
            assert self.job.fence == before.fence + 1
            self.fences[worker] = self.job.fence
        else:
            self.ends += 1
            assert before.cancelled_by is not None or before.failures + 1 >= MAX_FAILURES

    @rule(worker=workers)
    def beat(self, worker: str) -> None:
        if self.apply(worker, lambda job, fence: life.beat(job, fence, self.now, LEASE)):
            assert self.job.due_at == self.now + LEASE

    @rule(worker=workers)
    def begin(self, worker: str) -> None:
        self.apply(worker, lambda job, fence: life.begin(job, fence, pinned={"version": 1}, total=10))

    @rule(worker=workers, rows=st.integers(0, 4))
    def publish(self, worker: str, rows: int) -> None:
        first = self.job.done
        rows = min(rows, 10 - first)
        if self.apply(
            worker,
            lambda job, fence: life.publish(
                job, fence, self.now, LEASE, first=first, rows=rows, failed=0, latest=first
            ),
        ):
            self.published.append((self.fences[worker], first, rows))

    @rule(worker=workers)
    @precondition(lambda self: self.job.done == self.job.total)
    def complete(self, worker: str) -> None:
        self.apply(worker, lambda job, fence: life.complete(job, fence, self.now, {"rows": 10}))

    @rule(worker=workers, final=st.booleans(), jitter=st.floats(0, 1))
    def fail(self, worker: str, final: bool, jitter: float) -> None:
        self.apply(
            worker, lambda job, fence: life.fail(job, fence, self.now, ERROR, final=final, jitter=jitter)
        )

    @rule(worker=workers)
    def release(self, worker: str) -> None:
        self.apply(worker, lambda job, fence: life.release(job, fence, self.now))

    @rule()
    def cancel(self) -> None:
        try:
            after = life.cancel(self.job, "ana", self.now)
        except Conflict:
            assert self.job.state in (State.SUCCEEDED, State.DEAD)
            return
        self.ends += after.state.ended and not self.job.state.ended
        self.job = after

    @rule(anew=st.booleans())
    def retry(self, anew: bool) -> None:
        try:
            self.job = life.retry(self.job, self.now, anew=anew)
        except Conflict:
            assert self.job.state not in (State.DEAD, State.CANCELLED)
            return
        self.ends -= 1
        if anew:
            self.published = []

    @invariant()
    def rows_are_published_once_and_in_order(self) -> None:
        at = 0
        for _, first, rows in self.published:
            assert first == at
            at += rows
        assert at == self.job.done

    @invariant()
    def fences_of_published_rows_only_grow(self) -> None:
        fences = [fence for fence, _, _ in self.published]
        assert fences == sorted(fences)

    @invariant()
    def what_has_ended_asks_for_no_worker_and_what_has_not_will_be_found(self) -> None:
        assert (self.job.due_at is None) == self.job.state.ended
        assert (self.job.holder is not None) == (self.job.state is State.RUNNING)
        assert (self.job.ended_at is not None) == self.job.state.ended
        assert self.ends == self.job.state.ended

    @invariant()
    def nobody_tries_for_ever(self) -> None:
        assert self.job.failures < MAX_FAILURES or self.job.state.ended
        if self.job.state is State.QUEUED and self.job.due_at is not None:
            assert self.job.due_at - self.now <= life.LONGEST_PAUSE * 1.5


Life.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase


def test_failures_are_tried_again_after_growing_pauses_and_then_no_more() -> None:
    job, now, pauses = running(), NOON, []
    for _ in range(MAX_FAILURES - 1):
        job = life.fail(job, job.fence, now, ERROR, final=False)
        assert job.state is State.QUEUED and job.due_at is not None
        pauses.append((job.due_at - now).total_seconds())
        now = job.due_at
        job = life.claim(job, "w1", now, LEASE)
    assert pauses == [5, 10, 20, 40]
    dead = life.fail(job, job.fence, now, ERROR, final=False)
    assert (dead.state, dead.error) == (State.DEAD, ERROR)


def test_rows_that_were_published_forgive_the_failures_before_them() -> None:
    job = life.begin(running(failures=MAX_FAILURES - 1), 1, pinned={}, total=10)
    job = life.publish(job, 1, NOON, LEASE, first=0, rows=5, failed=1, latest=None)
    job = life.fail(job, 1, NOON, ERROR, final=False)
    assert (job.state, job.failures, job.done, job.failed_rows) == (State.QUEUED, 1, 5, 1)


def test_a_job_that_kills_its_workers_is_dead_in_the_end_and_says_so() -> None:
    job, now = running(), NOON
    for _ in range(MAX_FAILURES):
        now += LEASE
        job = life.claim(job, "next", now, LEASE)
    assert job.state is State.DEAD and job.outcome is Outcome.LOST
    assert job.error is not None and "its worker was lost, the 5th time in a row" in job.error["message"]


def test_a_worker_that_was_lost_and_comes_back_changes_nothing() -> None:
    taken = life.claim(running(), "w2", NOON + LEASE, LEASE)
    for act in (
        lambda: life.beat(taken, 1, NOON, LEASE),
        lambda: life.publish(taken, 1, NOON, LEASE, first=0, rows=1, failed=0, latest=None),
        lambda: life.fail(taken, 1, NOON, ERROR, final=True),
        lambda: life.release(taken, 1, NOON),
        lambda: life.cancelled(taken, 1, NOON),
    ):
        with pytest.raises(LeaseLost, match="no longer this worker's"):
            act()


def test_a_lease_that_ended_but_was_taken_by_nobody_goes_on() -> None:
    late = life.beat(running(), 1, NOON + 3 * LEASE, LEASE)
    assert late.due_at == NOON + 4 * LEASE


def test_an_orderly_stop_is_no_failure() -> None:
    job = life.release(running(), 1, NOON)
    assert (job.state, job.failures, job.due_at) == (State.QUEUED, 0, NOON)


def test_cancelling_ends_a_queued_job_at_once_and_a_running_one_with_its_worker() -> None:
    assert life.cancel(queued(), "ana", NOON).state is State.CANCELLED
    asked = life.cancel(running(), "ana", NOON)
    assert (asked.state, asked.cancelled_by) == (State.RUNNING, "ana")
    assert life.cancelled(asked, 1, NOON).state is State.CANCELLED
    assert life.claim(asked, "w2", NOON + LEASE, LEASE).state is State.CANCELLED
    assert life.release(asked, 1, NOON).state is State.CANCELLED
    assert life.cancel(life.cancelled(asked, 1, NOON), "bo", NOON).cancelled_by == "ana"


def test_a_cancellation_that_comes_after_the_last_row_is_too_late() -> None:
    job = life.begin(running(), 1, pinned={}, total=1)
    job = life.publish(job, 1, NOON, LEASE, first=0, rows=1, failed=0, latest=None)
    done = life.complete(life.cancel(job, "ana", NOON), 1, NOON, {"rows": 1})
    assert done.state is State.SUCCEEDED
    with pytest.raises(Conflict, match="has ended"):
        life.cancel(done, "ana", NOON)


def test_a_job_with_rows_missing_is_not_complete() -> None:
    with pytest.raises(LeaseLost, match="rows are missing"):
        life.complete(life.begin(running(), 1, pinned={}, total=3), 1, NOON, {})


def test_another_life_goes_on_behind_the_rows_that_are_done_or_begins_anew() -> None:
    job = life.begin(running(), 1, pinned={"version": 3}, total=10)
    job = life.publish(job, 1, NOON, LEASE, first=0, rows=4, failed=2, latest=7)
    dead = life.fail(job, 1, NOON, ERROR, final=True)
    again = life.retry(dead, NOON, anew=False)
    assert (again.done, again.pinned, again.error, again.failures) == (4, {"version": 3}, None, 0)
    anew = life.retry(dead, NOON, anew=True)
    assert (anew.done, anew.pinned, anew.total, anew.failed_rows, anew.latest_event) == (
        0,
        None,
        None,
        0,
        None,
    )
    with pytest.raises(Conflict, match="only what is dead or cancelled"):
        life.retry(again, NOON, anew=True)
