"""SQL of jobs, their attempts, parts and deliveries. Every function works in the caller's transaction.

What changes a job locks its row first: on PostgreSQL several workers take different jobs at once, without waiting for
each other (FOR UPDATE SKIP LOCKED); SQLite has one writer at a time anyway.
"""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from loopwright.jobs import job as life
from loopwright.jobs.job import Job, Outcome, State
from loopwright.kernel.clock import from_us, iso, to_us
from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import NotFound
from loopwright.ledger.schema import job_attempts, job_deliveries, job_parts, jobs

_SHOWN = [column for column in jobs.c if column.name != "rows"]


@dataclass(frozen=True, slots=True)
class Part:
    """Published rows [first_row, first_row + rows) of a job, counted from 0, in a Parquet file."""

    number: int
    first_row: int
    rows: int
    uri: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One worker's hold on a job. done_from, done_to: rows done when it began and when it ended."""

    number: int
    holder: str
    started_at: datetime
    ended_at: datetime | None
    outcome: Outcome
    error: str
    done_from: int
    done_to: int | None

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number, "worker": self.holder, "started_at": iso(self.started_at),
            "ended_at": iso(self.ended_at) if self.ended_at else None, "outcome": self.outcome.value,
            "error": self.error, "done_from": self.done_from, "done_to": self.done_to,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Delivery:
    """One call of a job's webhook; `problem` is empty when it was taken."""

    number: int
    at: datetime
    problem: str

    def to_json(self) -> dict[str, Any]:
        return {"number": self.number, "at": iso(self.at), "problem": self.problem}


def add(conn: Connection, job: Job, *, digest: str, rows: Sequence[Any] | None) -> None:
    """Put a new job into the queue. digest: of what was asked, for its idempotency key."""
    conn.execute(
        insert(jobs).values(
            id=job.id,
            model=job.model,
            key=job.key,
            request=_json(job.request),
            request_digest=digest,
            rows=None if rows is None else _json(rows),
            submitted_by=job.submitted_by,
            submitted_at=to_us(job.submitted_at),
            tells=0,
            **_changing(job),
        )
    )


def get(conn: Connection, job: str) -> Job:
    """Raises NotFound."""
    row = conn.execute(select(*_SHOWN).where(jobs.c.id == job)).one_or_none()
    if row is None:
        raise NotFound(f"no job has the id {job}", next="See: loopwright jobs list")
    return _job(row)


def by_key(conn: Connection, model: str, key: str) -> tuple[Job, str] | None:
    """The job that was asked for under an idempotency key, and the digest of what was asked."""
    row = conn.execute(select(*_SHOWN).where(jobs.c.model == model, jobs.c.key == key)).one_or_none()
    return None if row is None else (_job(row), str(row.request_digest))


def rows_of(conn: Connection, job: str) -> list[Any]:
    """The rows that came with the request; [] for a file."""
    text = conn.execute(select(jobs.c.rows).where(jobs.c.id == job)).scalar_one()
    return list(json.loads(text)) if text else []


def listed(
    conn: Connection, *, model: str | None = None, state: State | None = None, limit: int = 100
) -> list[Job]:
    """The newest jobs, newest first."""
    query = select(*_SHOWN).order_by(jobs.c.submitted_at.desc(), jobs.c.id.desc()).limit(limit)
    if model is not None:
        query = query.where(jobs.c.model == model)
    if state is not None:
        query = query.where(jobs.c.state == state.value)
    return [_job(row) for row in conn.execute(query)]


def alive(conn: Connection, model: str) -> int:
    """How many of the model's jobs wait or run."""
    living = jobs.c.state.in_([State.QUEUED.value, State.RUNNING.value])
    return int(conn.execute(select(func.count()).where(jobs.c.model == model, living)).scalar_one())


def counts(conn: Connection) -> list[tuple[str, str, int]]:
    """(model, state, jobs), for /metrics."""
    query = select(jobs.c.model, jobs.c.state, func.count()).group_by(jobs.c.model, jobs.c.state)
    return [(row[0], row[1], int(row[2])) for row in conn.execute(query.order_by(jobs.c.model, jobs.c.state))]


def oldest_waiting(conn: Connection) -> list[tuple[str, datetime]]:
    """(model, when its oldest queued job was submitted), for /metrics."""
    query = select(jobs.c.model, func.min(jobs.c.submitted_at)).where(jobs.c.state == State.QUEUED.value)
    return [(row[0], from_us(row[1])) for row in conn.execute(query.group_by(jobs.c.model))]


def any_due(conn: Connection, now: datetime, models: Collection[str] | None = None) -> bool:
    """Whether `claim_next` could find one; reads only, so that idle workers cost a database little."""
    query = select(jobs.c.id).where(jobs.c.due_at <= to_us(now)).limit(1)
    if models is not None:
        query = query.where(jobs.c.model.in_(sorted(models)))
    return conn.execute(query).first() is not None


def claim_next(
    conn: Connection, holder: str, now: datetime, lease: timedelta, models: Collection[str] | None = None
) -> Job | None:
    """Take the job that is due, of the highest priority first, then the oldest; None when there is none.

    Jobs that others look at just now are passed over. Those that turn out to be at their end are ended on the way.
    """
    query = (
        select(*_SHOWN)
        .where(jobs.c.due_at <= to_us(now))
        .order_by(jobs.c.priority.desc(), jobs.c.submitted_at, jobs.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if models is not None:
        query = query.where(jobs.c.model.in_(sorted(models)))
    while (row := conn.execute(query).one_or_none()) is not None:
        before = _job(row)
        after = life.claim(before, holder, now, lease)
        _write(conn, before, after, now)
        if after.state is State.RUNNING:
            return after
    return None


def change(conn: Connection, job: str, now: datetime, by: Callable[[Job], Job]) -> tuple[Job, Job]:
    """Lock the job, apply a step of its life, write what came of it; returns what it was and what it is.

    Raises NotFound, and whatever `by` raises.
    """
    row = conn.execute(select(*_SHOWN).where(jobs.c.id == job).with_for_update()).one_or_none()
    if row is None:
        raise NotFound(f"no job has the id {job}", next="See: loopwright jobs list")
    before = _job(row)
    after = by(before)
    if after != before or after.outcome != before.outcome:
        _write(conn, before, after, now)
    return before, after


def add_part(conn: Connection, job: str, part: Part) -> None:
    """Make rows part of the result; the caller has published them in the same transaction."""
    conn.execute(
        insert(job_parts).values(
            job=job, number=part.number, first_row=part.first_row, rows=part.rows, uri=part.uri
        )
    )


def parts(conn: Connection, job: str) -> list[Part]:
    """What has been published, in order."""
    query = select(job_parts).where(job_parts.c.job == job).order_by(job_parts.c.number)
    return [Part(row.number, row.first_row, row.rows, row.uri) for row in conn.execute(query)]


def drop_parts(conn: Connection, job: str) -> list[Part]:
    """Forget what was published; returns it, for whoever deletes the files."""
    gone = parts(conn, job)
    conn.execute(delete(job_parts).where(job_parts.c.job == job))
    return gone


def attempts(conn: Connection, job: str) -> list[Attempt]:
    """Who has worked on it, in order."""
    query = select(job_attempts).where(job_attempts.c.job == job).order_by(job_attempts.c.number)
    return [
        Attempt(
            row.number, row.holder, from_us(row.started_at), _moment(row.ended_at), Outcome(row.outcome), row.error,
            row.done_from, row.done_to,
        )
        for row in conn.execute(query)
    ]  # fmt: skip


def claim_untold(conn: Connection, now: datetime, visible: timedelta) -> tuple[Job, int] | None:
    """The next ended job whose webhook is due, and how often it was called; nobody else gets it for `visible`."""
    query = (
        select(*_SHOWN)
        .where(jobs.c.tell_at <= to_us(now))
        .order_by(jobs.c.tell_at, jobs.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = conn.execute(query).one_or_none()
    if row is None:
        return None
    conn.execute(update(jobs).where(jobs.c.id == row.id).values(tell_at=to_us(now + visible)))
    return _job(row), int(row.tells)


def any_untold(conn: Connection, now: datetime) -> bool:
    """Whether `claim_untold` could find one; reads only."""
    return conn.execute(select(jobs.c.id).where(jobs.c.tell_at <= to_us(now)).limit(1)).first() is not None


def record_delivery(
    conn: Connection, job: str, now: datetime, problem: str | None, again_at: datetime | None
) -> None:
    """Note a call of the webhook, and when it is to be called again (None: never)."""
    place = job_deliveries.c.job == job
    number = int(conn.execute(select(func.count()).select_from(job_deliveries).where(place)).scalar_one()) + 1
    conn.execute(
        insert(job_deliveries).values(job=job, number=number, at=to_us(now), problem=(problem or "")[:500])
    )
    # One that was given another life meanwhile has nothing to be told.
    conn.execute(
        update(jobs)
        .where(jobs.c.id == job, jobs.c.tell_at.is_not(None))
        .values(tell_at=None if again_at is None else to_us(again_at), tells=jobs.c.tells + 1)
    )


def deliveries(conn: Connection, job: str) -> list[Delivery]:
    """Calls of its webhook, in order."""
    query = select(job_deliveries).where(job_deliveries.c.job == job).order_by(job_deliveries.c.number)
    return [Delivery(row.number, from_us(row.at), row.problem) for row in conn.execute(query)]


def tell_at(conn: Connection, job: str) -> datetime | None:
    """When its webhook is to be called next."""
    return _moment(conn.execute(select(jobs.c.tell_at).where(jobs.c.id == job)).scalar_one_or_none())


def ended_before(conn: Connection, moment: datetime, limit: int = 100) -> list[Job]:
    """Jobs that ended before `moment` and whose webhook waits for nothing, oldest first."""
    query = select(*_SHOWN).where(jobs.c.ended_at < to_us(moment), jobs.c.tell_at.is_(None))
    return [_job(row) for row in conn.execute(query.order_by(jobs.c.ended_at).limit(limit))]


def forget(conn: Connection, job: str, before: datetime) -> bool:
    """Delete a job that ended before `before` with all that is recorded about it; False when it lives again."""
    old = (jobs.c.id == job) & (jobs.c.ended_at < to_us(before)) & jobs.c.tell_at.is_(None)
    if conn.execute(select(jobs.c.id).where(old).with_for_update()).first() is None:
        return False
    for table in (job_attempts, job_parts, job_deliveries):
        conn.execute(delete(table).where(table.c.job == job))
    conn.execute(delete(jobs).where(jobs.c.id == job))
    return True


def _write(conn: Connection, before: Job, after: Job, now: datetime) -> None:
    values = _changing(after)
    if after.state.ended and not before.state.ended and after.request.get("webhook"):
        values |= {"tell_at": to_us(now), "tells": 0}
    elif before.state.ended and not after.state.ended:
        values |= {"tell_at": None, "tells": 0}
    conn.execute(update(jobs).where(jobs.c.id == after.id).values(**values))
    taken = after.attempts != before.attempts
    if before.state is State.RUNNING and (after.state is not State.RUNNING or taken):
        outcome = Outcome.LOST if taken or after.outcome is None else after.outcome
        conn.execute(
            update(job_attempts)
            .where(job_attempts.c.job == after.id, job_attempts.c.number == before.attempts)
            .values(
                ended_at=to_us(now), outcome=outcome.value, done_to=before.done,
                error="" if taken or not after.error else str(after.error.get("message", ""))[:2000],
            )
        )  # fmt: skip
    if taken:
        conn.execute(
            insert(job_attempts).values(
                job=after.id, number=after.attempts, holder=after.holder, fence=after.fence, started_at=to_us(now),
                ended_at=None, outcome=Outcome.RUNNING.value, error="", done_from=after.done, done_to=None,
            )
        )  # fmt: skip


def _changing(job: Job) -> dict[str, Any]:
    return {
        "state": job.state.value,
        "priority": job.priority,
        "due_at": _us(job.due_at),
        "holder": job.holder,
        "fence": job.fence,
        "attempts": job.attempts,
        "failures": job.failures,
        "cancelled_by": job.cancelled_by,
        "pinned": _json(job.pinned) if job.pinned is not None else None,
        "total": job.total,
        "done": job.done,
        "failed_rows": job.failed_rows,
        "latest_event": job.latest_event,
        "error": _json(job.error) if job.error is not None else None,
        "result": _json(job.result) if job.result is not None else None,
        "started_at": _us(job.started_at),
        "ended_at": _us(job.ended_at),
    }


def _job(row: Row[Any]) -> Job:
    def document(text: str | None) -> Any:
        return json.loads(text) if text is not None else None

    return Job(
        id=row.id,
        model=row.model,
        request=document(row.request),
        submitted_by=row.submitted_by,
        submitted_at=from_us(row.submitted_at),
        state=State(row.state),
        priority=row.priority,
        key=row.key,
        due_at=_moment(row.due_at),
        holder=row.holder,
        fence=row.fence,
        attempts=row.attempts,
        failures=row.failures,
        cancelled_by=row.cancelled_by,
        pinned=document(row.pinned),
        total=row.total,
        done=row.done,
        failed_rows=row.failed_rows,
        latest_event=row.latest_event,
        error=document(row.error),
        result=document(row.result),
        started_at=_moment(row.started_at),
        ended_at=_moment(row.ended_at),
    )


def _moment(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else from_us(microseconds)


def _us(moment: datetime | None) -> int | None:
    return None if moment is None else to_us(moment)


def _json(document: Any) -> str:
    return canonical_json(document).decode()
