"""A job's life, as pure functions: what it is now and what happened give what it is next.

    queued ──claim──▸ running ──complete──▸ succeeded
      ▴  ▴               │ │
      │  └─ fail, release┘ └─ fail for good, or too often ──▸ dead ──retry──▸ queued
      └── lost (the lease ended; whoever claims next finds out)      cancelled: from queued at once, from running
                                                                     when its worker hears of it or is lost

`due_at` is when a worker may take it: a queued job not before it, a running one when its lease has ended. `fence` grows
each time it is taken; what a worker says about a job counts only while the fence is the one it was given, so a worker
that was thought dead and comes back changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from loopwright.kernel.errors import Conflict

FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=5), timedelta(minutes=30)
MAX_FAILURES = 5
"""Attempts in a row that publish nothing; then the job is dead."""


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self not in (State.QUEUED, State.RUNNING)


class Outcome(StrEnum):
    """How an attempt ended."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"
    RELEASED = "released"
    CANCELLED = "cancelled"


class LeaseLost(Conflict):
    """Another worker has the job, or nobody should have it any more: nothing may be written for it."""


@dataclass(frozen=True, slots=True)
class Job:
    """`request`: what was asked (see `request.Request`). `pinned`: what answers all its rows, once that is known.

    done, total: rows published, and rows in all (None until the input was read). failed_rows: of those done, without an
    answer. latest_event: microseconds, the latest event time among them. failures: attempts in a row that published
    nothing. outcome: how the last attempt ended or stands; None before the first.
    """

    id: str
    model: str
    request: Mapping[str, Any]
    submitted_by: str
    submitted_at: datetime
    state: State = State.QUEUED
    priority: int = 0
    key: str | None = None
    due_at: datetime | None = None
    holder: str | None = None
    fence: int = 0
    attempts: int = 0
    failures: int = 0
    cancelled_by: str | None = None
    pinned: Mapping[str, Any] | None = None
    total: int | None = None
    done: int = 0
    failed_rows: int = 0
    latest_event: int | None = None
    error: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: Outcome | None = field(default=None, compare=False)

    @property
    def where(self) -> str:
        return f"job {self.id}"


def claim(job: Job, holder: str, now: datetime, lease: timedelta) -> Job:
    """Give the job to `holder` until `lease` has passed; it must be due.

    A running job that is due was lost by its worker, which counts as a failure. One that was to be cancelled, or was
    lost too often, is not given away: it comes back cancelled or dead.
    """
    if job.state.ended or job.due_at is None or job.due_at > now:
        raise Conflict("the job is not to be had", where=job.where, got=job.state.value)
    if job.state is State.RUNNING:
        job = replace(job, failures=job.failures + 1)
        if job.cancelled_by is None and job.failures >= MAX_FAILURES:
            what = f"its worker was lost, the {_nth(job.failures)} time in a row without a row published"
            error = {
                "error": "Lost",
                "what": what,
                "message": f"{what}; the last one was {job.holder}",
                "next": "It may be what kills them: see the workers' memory and their logs.",
            }
            return _end(job, State.DEAD, Outcome.LOST, now, error=error)
    if job.cancelled_by is not None:
        return _end(job, State.CANCELLED, Outcome.CANCELLED, now)
    return replace(
        job, state=State.RUNNING, holder=holder, fence=job.fence + 1, attempts=job.attempts + 1, due_at=now + lease,
        started_at=job.started_at or now, outcome=Outcome.RUNNING,
    )  # fmt: skip


def held(job: Job, fence: int) -> Job:
    """The job, when whoever was given `fence` still has it; raises LeaseLost."""
    if job.state is not State.RUNNING or job.fence != fence:
        raise LeaseLost(
            "the job is no longer this worker's", where=job.where,
            got=job.state.value if job.state is not State.RUNNING else f"it went to {job.holder}",
        )  # fmt: skip
    return job


def beat(job: Job, fence: int, now: datetime, lease: timedelta) -> Job:
    """Hold it for another `lease`. A lease that has ended but was taken by nobody goes on."""
    return replace(held(job, fence), due_at=now + lease)


def begin(job: Job, fence: int, *, pinned: Mapping[str, Any], total: int) -> Job:
    """Say what answers it and how many rows there are; the same again when it is gone on with."""
    return replace(held(job, fence), pinned=dict(pinned), total=total)


def publish(
    job: Job, fence: int, now: datetime, lease: timedelta, *, first: int, rows: int, failed: int, latest: int | None
) -> Job:  # fmt: skip
    """Count rows [first, first + rows) as done; they must follow those that are. Failures begin anew."""
    if first != held(job, fence).done or rows < 0:
        raise LeaseLost("rows out of their turn", where=job.where, got=first, wanted=f"row {job.done}")
    known = [moment for moment in (job.latest_event, latest) if moment is not None]
    return replace(
        job, done=job.done + rows, failed_rows=job.failed_rows + failed, failures=0, due_at=now + lease,
        latest_event=max(known, default=None),
    )  # fmt: skip


def complete(job: Job, fence: int, now: datetime, result: Mapping[str, Any]) -> Job:
    """All rows are done and the result stands. A cancellation that came too late changes nothing."""
    if held(job, fence).done != job.total:
        raise LeaseLost("rows are missing", where=job.where, got=job.done, wanted=f"{job.total} rows")
    return _end(job, State.SUCCEEDED, Outcome.SUCCEEDED, now, result=result)


def fail(
    job: Job, fence: int, now: datetime, error: Mapping[str, Any], *, final: bool, jitter: float = 0.0
) -> Job:  # fmt: skip
    """This attempt failed. It is tried again after a pause, unless that would change nothing or was done often enough.

    jitter: 0 to 1, a share of half the pause that is added, so that jobs which failed together do not come back so.
    """
    held(job, fence)
    job = replace(job, failures=job.failures + 1)
    if job.cancelled_by is not None:
        return _end(job, State.CANCELLED, Outcome.CANCELLED, now)
    if final or job.failures >= MAX_FAILURES:
        return _end(job, State.DEAD, Outcome.FAILED, now, error=error)
    return replace(
        job, state=State.QUEUED, holder=None, due_at=now + pause_after(job.failures) * (1 + jitter / 2),
        error=dict(error), outcome=Outcome.FAILED,
    )  # fmt: skip


def release(job: Job, fence: int, now: datetime) -> Job:
    """Its worker stops in order: it can be had at once, and no failure is counted."""
    if held(job, fence).cancelled_by is not None:
        return _end(job, State.CANCELLED, Outcome.CANCELLED, now)
    return replace(job, state=State.QUEUED, holder=None, due_at=now, outcome=Outcome.RELEASED)


def cancel(job: Job, by: str, now: datetime) -> Job:
    """Ask for it to end. A queued job ends now, a running one when its worker hears of it. Is idempotent.

    Raises Conflict for one that has ended another way.
    """
    if job.state is State.CANCELLED:
        return job
    if job.state.ended:
        raise Conflict("the job has ended", where=job.where, got=job.state.value)
    job = replace(job, cancelled_by=job.cancelled_by or by)
    return _end(job, State.CANCELLED, job.outcome, now) if job.state is State.QUEUED else job


def cancelled(job: Job, fence: int, now: datetime) -> Job:
    """Its worker has heard that it is cancelled, and stopped."""
    held(job, fence)
    return _end(job, State.CANCELLED, Outcome.CANCELLED, now)


def retry(job: Job, now: datetime, *, anew: bool) -> Job:
    """Give a dead or cancelled job another life, from the rows that are done or (`anew`) from its first row.

    One without a row done begins anew in any case: its input may have been mended.

    Raises Conflict for one that is alive or has succeeded.
    """
    if job.state not in (State.DEAD, State.CANCELLED):
        raise Conflict(
            "only what is dead or cancelled is tried again", where=job.where, got=job.state.value,
            next="Submit it again under another idempotency key to have it done twice.",
        )  # fmt: skip
    job = replace(
        job, state=State.QUEUED, due_at=now, failures=0, cancelled_by=None, error=None, ended_at=None, holder=None
    )  # fmt: skip
    if job.done and not anew:
        return job
    return replace(job, pinned=None, total=None, done=0, failed_rows=0, latest_event=None)


def pause_after(failures: int) -> timedelta:
    """Twice as long after each failure."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 20))


def _end(
    job: Job,
    state: State,
    outcome: Outcome | None,
    now: datetime,
    *,
    error: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
) -> Job:
    return replace(
        job, state=state, due_at=None, holder=None, ended_at=now, outcome=outcome,
        error=dict(error) if error else None, result=dict(result) if result else None,
    )  # fmt: skip


def _nth(number: int) -> str:
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(number, f"{number}th")
