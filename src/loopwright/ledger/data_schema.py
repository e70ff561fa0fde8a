"""The ledger's tables about data and features; see `schema`, which holds them all."""

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)

from loopwright.ledger.columns import Json, Moment, Serial, metadata, one_of

batches = Table(
    "lw_batches",
    metadata,
    Column("table_name", Text, nullable=False),
    Column("batch_id", Text, nullable=False),
    Column("source_digest", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("good", BigInteger, nullable=False),
    Column("bad", BigInteger, nullable=False),
    Column("bronze_version", BigInteger),
    Column("silver_version", BigInteger),
    Column("report", Json, nullable=False),
    Column("at", Moment, nullable=False),
    PrimaryKeyConstraint("table_name", "batch_id"),
)

landings = Table(
    "lw_landings",
    metadata,
    # One row per time a batch was brought into its table: `lw_batches` knows only the last. Rows are never changed.
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("table_name", Text, nullable=False),
    Column("silver_version", BigInteger, nullable=False),
    Column("batch_id", Text, nullable=False),
    # Where it came from, without credentials.
    Column("uri", Text, nullable=False),
    # append: beside the other batches; full: in their place; upsert: row by row through the key.
    Column("loading", Text, nullable=False),
    Column("good", BigInteger, nullable=False),
    Column("bad", BigInteger, nullable=False),
    Column("contract", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("at", Moment, nullable=False),
    Index(None, "table_name", "silver_version"),
    Index(None, "batch_id"),
    Index(None, "uri"),
    one_of("loading", "append", "full", "upsert"),
)

snapshots = Table(
    "lw_snapshots",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("manifest", Json, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("created_at", Moment, nullable=False),
    Index(None, "model", "created_at"),
)

table_contents = Table(
    "lw_contents",
    metadata,
    # The digest of what a set of a table's files says, so that a version pinned again is not read again. May be
    # emptied at any time; nothing that verifies believes it.
    Column("table_name", Text, nullable=False),
    # Digest of the table's id, its schema and the names of its files, and of how `digest` is made.
    Column("files", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("at", Moment, nullable=False),
    PrimaryKeyConstraint("table_name", "files"),
)

contracts = Table(
    "lw_contracts",
    metadata,
    # Every contract a table was ever judged by. `document` is the whole ODCS file as JSON.
    Column("table_name", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("document", Json, nullable=False),
    # Against the one before: first, same (words only), compatible, breaking.
    Column("change", Text, nullable=False),
    Column("differences", Json, nullable=False),
    Column("actor", Text, nullable=False),
    Column("at", Moment, nullable=False),
    PrimaryKeyConstraint("table_name", "digest"),
    UniqueConstraint("table_name", "number"),
    one_of("change", "first", "same", "compatible", "breaking"),
)

cursors = Table(
    "lw_cursors",
    metadata,
    # How far an incremental source was read: written in the transaction of the landing.
    Column("table_name", Text, nullable=False),
    Column("uri", Text, nullable=False),
    Column("value", Json, nullable=False),
    Column("batch_id", Text, nullable=False),
    Column("at", Moment, nullable=False),
    PrimaryKeyConstraint("table_name", "uri"),
)

incidents = Table(
    "lw_incidents",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("table_name", Text, nullable=False),
    # One incident a standing cause: a second refusal for the same reason joins the first.
    Column("cause", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("triage", Json, nullable=False),
    Column("consumers", Json, nullable=False),
    Column("owner", Text, nullable=False, server_default=""),
    Column("post_mortem", Text, nullable=False, server_default=""),
    Column("opened_at", Moment, nullable=False),
    Column("changed_at", Moment, nullable=False),
    Column("closed_at", Moment),
    Index(None, "model", "state"),
    Index(None, "table_name", "cause"),
    one_of("state", "open", "acknowledged", "resolved", "backfilled", "closed"),
)

incident_events = Table(
    "lw_incident_events",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("incident", Text, ForeignKey("lw_incidents.id"), nullable=False),
    Column("at", Moment, nullable=False),
    Column("actor", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("payload", Json, nullable=False),
    Index(None, "incident", "id"),
)

releases = Table(
    "lw_releases",
    metadata,
    # What was decided about rows in quarantine. `id` names the decision, so that it takes effect once.
    Column("id", Text, primary_key=True),
    Column("table_name", Text, nullable=False),
    Column("batch_id", Text, nullable=False),
    Column("decision", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("contract", Text, nullable=False),
    Column("reason", Text, nullable=False),
    # Which rows were meant, as JSON; what became of them, null until it has taken effect.
    Column("choice", Json, nullable=False),
    Column("outcome", Json),
    Column("silver_version", BigInteger),
    Column("quarantine_version", BigInteger),
    Column("actor", Text, nullable=False),
    Column("at", Moment, nullable=False),
    Index(None, "table_name", "at"),
    one_of("decision", "release", "drop"),
)

feature_views = Table(
    "lw_feature_views",
    metadata,
    # Every definition a view ever had; the newest number is the one in force.
    Column("model", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("document", Json, nullable=False),
    Column("actor", Text, nullable=False),
    Column("at", Moment, nullable=False),
    PrimaryKeyConstraint("model", "name", "number"),
)

materializations = Table(
    "lw_materializations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("view", Text, nullable=False),
    Column("store", Text, nullable=False),
    # The definition's digest, and the table version read.
    Column("definition", Text, nullable=False),
    Column("table_version", BigInteger, nullable=False),
    # What was known at this event time is in the store.
    Column("as_of", Moment, nullable=False),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("progress", Json, nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("ended_at", Moment),
    Index(None, "model", "view", "started_at"),
    one_of("kind", "full", "increment"),
    one_of("state", "running", "done", "failed"),
)

feature_statistics = Table(
    "lw_feature_statistics",
    metadata,
    # `source`: offline (silver tables), online (the store), requests (logged predictions).
    Column("model", Text, nullable=False),
    Column("feature", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("start", Moment, nullable=False),
    Column("end", Moment, nullable=False),
    Column("view", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("nulls", BigInteger, nullable=False),
    Column("payload", Json, nullable=False),
    Column("at", Moment, nullable=False),
    PrimaryKeyConstraint("model", "feature", "source", "start"),
    one_of("source", "offline", "online", "requests"),
)
