"""Tables of asynchronous inference: the queue, who worked on what, what came out, and who was told."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, PrimaryKeyConstraint, Table, Text
from sqlalchemy import UniqueConstraint as Unique

from loopwright.ledger.columns import Json, Moment, metadata
from loopwright.ledger.columns import one_of as _one_of

jobs = Table(
    "lw_jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    # The client's idempotency key, and what was asked under it.
    Column("key", Text),
    Column("request", Json, nullable=False),
    Column("request_digest", Text, nullable=False),
    # Rows that came with the request; null for a file.
    Column("rows", Json),
    Column("submitted_by", Text, nullable=False),
    Column("submitted_at", Moment, nullable=False),
    # When a worker may take it: queued, not before this; running, the end of the lease; ended, null.
    Column("due_at", Moment),
    Column("holder", Text),
    # Grows with each time it is taken; whoever holds an older one may write nothing any more.
    Column("fence", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    # Attempts in a row that published nothing.
    Column("failures", Integer, nullable=False),
    Column("cancelled_by", Text),
    # The version that answers all its rows, with its approval and the digest of the input.
    Column("pinned", Json),
    Column("total", BigInteger),
    Column("done", BigInteger, nullable=False),
    Column("failed_rows", BigInteger, nullable=False),
    Column("latest_event", Moment),
    Column("error", Json),
    Column("result", Json),
    Column("started_at", Moment),
    Column("ended_at", Moment),
    # When the webhook is to be told (again); null when there is none, when it was told, or given up.
    Column("tell_at", Moment),
    Column("tells", Integer, nullable=False, server_default="0"),
    _one_of("state", "queued", "running", "succeeded", "dead", "cancelled"),
    Unique("model", "key"),
    Index(None, "due_at"),
    Index(None, "tell_at"),
    Index(None, "model", "state"),
    Index(None, "submitted_at"),
)

job_attempts = Table(
    "lw_job_attempts",
    metadata,
    Column("job", Text, ForeignKey("lw_jobs.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("holder", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("ended_at", Moment),
    Column("outcome", Text, nullable=False),
    Column("error", Text, nullable=False, server_default=""),
    Column("done_from", BigInteger, nullable=False),
    Column("done_to", BigInteger),
    PrimaryKeyConstraint("job", "number"),
    _one_of("outcome", "running", "succeeded", "failed", "lost", "released", "cancelled"),
)

job_parts = Table(
    "lw_job_parts",
    metadata,
    Column("job", Text, ForeignKey("lw_jobs.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("first_row", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("uri", Text, nullable=False),
    PrimaryKeyConstraint("job", "number"),
)

job_deliveries = Table(
    "lw_job_deliveries",
    metadata,
    # One call of a webhook each.
    Column("job", Text, ForeignKey("lw_jobs.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("at", Moment, nullable=False),
    # Why it was not taken; empty when it was.
    Column("problem", Text, nullable=False),
    PrimaryKeyConstraint("job", "number"),
)
