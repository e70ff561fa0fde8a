"""Every table of the ledger. Names carry `lw_`, because MLflow's own `runs` lives in the same database.

A `Moment` is integer microseconds since 1970-01-01T00:00Z, `Json` is canonical JSON text.
After a change here, `python scripts/migration` writes the migration; a test holds the two together.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from loopwright.ledger.columns import Json, Moment, Serial
from loopwright.ledger.columns import metadata as metadata
from loopwright.ledger.columns import of_version as _of_version
from loopwright.ledger.columns import one_of as _one_of
from loopwright.ledger.data_schema import batches as batches
from loopwright.ledger.data_schema import contracts as contracts
from loopwright.ledger.data_schema import cursors as cursors
from loopwright.ledger.data_schema import feature_statistics as feature_statistics
from loopwright.ledger.data_schema import feature_views as feature_views
from loopwright.ledger.data_schema import incident_events as incident_events
from loopwright.ledger.data_schema import incidents as incidents
from loopwright.ledger.data_schema import landings as landings
from loopwright.ledger.data_schema import materializations as materializations
from loopwright.ledger.data_schema import releases as releases
from loopwright.ledger.data_schema import snapshots as snapshots
from loopwright.ledger.data_schema import table_contents as table_contents
from loopwright.ledger.jobs_schema import job_attempts as job_attempts
from loopwright.ledger.jobs_schema import job_deliveries as job_deliveries
from loopwright.ledger.jobs_schema import job_parts as job_parts
from loopwright.ledger.jobs_schema import jobs as jobs

REVISION = "0001"
"""The migration this schema stands at."""

users = Table(
    "lw_users",
    metadata,
    Column("name", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("disabled_at", Moment),
    # A machine's account reviews nothing.
    Column("service", Boolean, nullable=False, server_default=text("false")),
    # Issuer and subject at an OIDC provider, for people who sign in there: "https://issuer subject".
    Column("identity", Text, unique=True),
)

team_roles = Table(
    "lw_team_roles",
    metadata,
    Column("team", Text, nullable=False),
    Column("user", Text, ForeignKey("lw_users.name"), nullable=False),
    Column("role", Text, nullable=False),
    PrimaryKeyConstraint("team", "user"),
    Index(None, "user"),
)

sessions = Table(
    "lw_sessions",
    metadata,
    # SHA-256 of the cookie's secret; the secret itself is kept nowhere.
    Column("hash", Text, primary_key=True),
    Column("user", Text, ForeignKey("lw_users.name"), nullable=False),
    Column("csrf", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Column("last_used_at", Moment, nullable=False),
    Column("revoked_at", Moment),
    # The token it was opened with, whose scopes and end it shares; null for people from an OIDC provider.
    Column("token", Text, ForeignKey("lw_tokens.id")),
    Index(None, "user"),
)

tokens = Table(
    "lw_tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user", Text, ForeignKey("lw_users.name"), nullable=False),
    Column("hash", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment),
    Column("last_used_at", Moment),
    Column("revoked_at", Moment),
    # Space-separated scopes; null: whatever its user may do.
    Column("scopes", Text),
    Column("note", Text, nullable=False, server_default=""),
    Index(None, "user"),
)

audit = Table(
    "lw_audit",
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=False),
    Column("at", Moment, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("payload", Json, nullable=False),
    Column("prev_hash", Text, nullable=False),
    Column("hash", Text, nullable=False),
    # With the number, so that the newest of many rows are found without sorting them.
    Index(None, "subject", "seq"),
    Index(None, "at", "seq"),
    Index(None, "actor", "seq"),
    Index(None, "action", "seq"),
)

anchors = Table(
    "lw_anchors",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("head", Text, nullable=False),
    Column("at", Moment, nullable=False),
    # The signed statement as it was exported.
    Column("document", Json, nullable=False),
    Column("places", Json, nullable=False),
)

leases = Table(
    "lw_leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("expires_at", Moment, nullable=False),
)

meta = Table(
    "lw_meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)


projects = Table(
    "lw_projects",
    metadata,
    Column("model", Text, primary_key=True),
    Column("path", Text, nullable=False),
    Column("spec", Json, nullable=False),
    Column("spec_digest", Text, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("team", Text),
    # Points in which an admin let its policy be looser than its tier's document: ["approvals.production"].
    Column("waived", Json, nullable=False, server_default="[]"),
)

runs = Table(
    "lw_runs",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("experiment", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("ended_at", Moment),
    Column("actor", Text, nullable=False),
    Column("snapshot", Text),
    Column("bundle", Text),
    Column("params", Json, nullable=False),
    Column("metrics", Json, nullable=False),
    Column("context", Json, nullable=False),
    Column("reason", Text, nullable=False),
    Index(None, "model", "started_at"),
)


versions = Table(
    "lw_versions",
    metadata,
    Column("model", Text, nullable=False),
    Column("version", Integer, nullable=False),
    # Null for what a plain MLflow client registered: it has no seal and can never be promoted.
    Column("bundle", Text),
    Column("run_id", Text),
    Column("snapshot", Text),
    Column("semver", Text),
    Column("stage", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("parent", Integer),
    Column("metrics", Json, nullable=False),
    Column("annotations", Json, nullable=False),
    # Set when its retention was over and its bytes were deleted; the row stays for the audit log's sake.
    Column("deleted_at", Moment),
    PrimaryKeyConstraint("model", "version"),
    Index(None, "run_id"),
    Index(None, "stage"),
    Index(None, "model", "stage"),
    _one_of("stage", "None", "Staging", "Production", "Archived"),
    Index(None, "bundle"),
)

evidence = Table(
    "lw_evidence",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Integer),
    Column("bundle", Text),
    Column("verdict", Text, nullable=False),
    Column("payload", Json, nullable=False),
    Column("at", Moment, nullable=False),
    # The audit row it was recorded by: an order that a clock set back does not change.
    Column("seq", BigInteger, nullable=False, server_default="0"),
    Index(None, "model", "version"),
    Index(None, "bundle"),
)

promotions = Table(
    "lw_promotions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("stage", Text, nullable=False),
    Column("bundle", Text, nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("requested_at", Moment, nullable=False),
    Column("reason", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("decided_at", Moment),
    Column("policy", Json, nullable=False),
    Column("policy_digest", Text, nullable=False),
    # Why the glass was broken; null for a promotion that took the usual way.
    Column("emergency", Text),
    # The audit rows of the request and of the decision: who came last is not left to clocks.
    Column("seq", BigInteger, nullable=False, server_default="0"),
    Column("decided_seq", BigInteger),
    _of_version(),
    _one_of("state", "pending", "effective", "rejected", "withdrawn", "reverted"),
    Index(None, "model", "version", "stage", "state"),
    # The last decision for a stage, without a look at all those before it.
    Index(None, "model", "stage", "state", "decided_seq"),
)

approvals = Table(
    "lw_approvals",
    metadata,
    Column("id", Text, primary_key=True),
    Column("promotion_id", Text, ForeignKey("lw_promotions.id"), nullable=False),
    Column("reviewer", Text, nullable=False),
    Column("decision", Text, nullable=False),
    Column("comment", Text, nullable=False),
    Column("at", Moment, nullable=False),
    Column("bundle", Text, nullable=False),
    # The role the reviewer held on the model, and the digest of the policy that governed.
    Column("role", Text, nullable=False, server_default="approver"),
    Column("policy_digest", Text, nullable=False, server_default=""),
    Column("seq", BigInteger, nullable=False, server_default="0"),
    # Not unique: who approved and let it expire may say it again; both stay.
    Index(None, "promotion_id", "reviewer"),
    _one_of("decision", "approve", "reject"),
)


policies = Table(
    "lw_policies",
    metadata,
    # A tier: low, medium or high. The highest number of a tier is in force.
    Column("tier", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("document", Json, nullable=False),
    Column("by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", Moment, nullable=False),
    PrimaryKeyConstraint("tier", "number"),
    Index(None, "digest"),
)

reviews = Table(
    "lw_reviews",
    metadata,
    # The later look at a promotion for which the glass was broken.
    Column("promotion_id", Text, ForeignKey("lw_promotions.id"), primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("broken_by", Text, nullable=False),
    Column("policy_digest", Text, nullable=False, server_default=""),
    Column("due_at", Moment, nullable=False),
    Column("state", Text, nullable=False),
    Column("reviewer", Text),
    Column("comment", Text, nullable=False, server_default=""),
    Column("decided_at", Moment),
    _of_version(),
    _one_of("state", "open", "upheld", "revoked"),
    Index(None, "model", "state"),
)

trusts = Table(
    "lw_trusts",
    metadata,
    # SHA-256 of a file of pickled objects that somebody wants loaded.
    Column("digest", Text, primary_key=True),
    Column("name", Text, nullable=False),
    # What it may import: a sorted list of "module.name".
    Column("globals", Json, nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("requested_at", Moment, nullable=False),
    Column("reason", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("decided_by", Text),
    Column("decided_at", Moment),
    # The signed record, once it is approved.
    Column("record", Json),
    _one_of("state", "pending", "approved", "rejected", "revoked"),
)


rollouts = Table(
    "lw_rollouts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("baseline", Integer),
    Column("promotion_id", Text),
    Column("plan", Json, nullable=False),
    Column("state", Json, nullable=False),
    Column("status", Text, nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("ended_at", Moment),
    Column("reason", Text, nullable=False),
    _of_version(),
    _one_of("status", "running", "paused", "completed", "rolled_back", "aborted"),
    Index(None, "model", "started_at"),
    Index(None, "promotion_id"),
)

rollout_events = Table(
    "lw_rollout_events",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("rollout_id", Text, ForeignKey("lw_rollouts.id"), nullable=False),
    Column("at", Moment, nullable=False),
    Column("event_time", Moment),
    Column("kind", Text, nullable=False),
    Column("payload", Json, nullable=False),
    Index(None, "rollout_id"),
)

experiments = Table(
    "lw_experiments",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("stable", Integer, nullable=False),
    Column("variants", Json, nullable=False),
    Column("salt", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("began", Moment, nullable=False),
    Column("ended_at", Moment),
    Column("until", Moment),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("ended_why", Text, nullable=False),
    _one_of("status", "running", "stopped"),
    Index(None, "model", "started_at"),
)

route_tables = Table(
    "lw_route_tables",
    metadata,
    Column("serial", Serial, primary_key=True, autoincrement=False),
    Column("document", Json, nullable=False),
    Column("signature", Text, nullable=False),
    Column("at", Moment, nullable=False),
)

segments = Table(
    "lw_segments",
    metadata,
    Column("source", Text, nullable=False),
    Column("segment", Text, nullable=False),
    Column("shipped", BigInteger, nullable=False),
    PrimaryKeyConstraint("source", "segment"),
)

folds = Table(
    "lw_folds",
    metadata,
    Column("model", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("arm", Text, nullable=False),
    Column("bucket", Moment, nullable=False),
    # Answers and errors, which stand in the payload too: sums need not open it.
    Column("answers", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    PrimaryKeyConstraint("model", "version", "arm", "bucket"),
    Index(None, "model", "bucket"),
)

watermarks = Table(
    "lw_watermarks",
    metadata,
    Column("model", Text, primary_key=True),
    Column("event_time", Moment, nullable=False),
)


label_batches = Table(
    "lw_label_batches",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("event_from", Moment),
    Column("event_to", Moment),
    Column("path", Text, nullable=False),
    Column("at", Moment, nullable=False),
    Index(None, "model"),
)

windows = Table(
    "lw_windows",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("start", Moment, nullable=False),
    Column("end", Moment, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("payload", Json, nullable=False),
    Column("at", Moment, nullable=False),
    UniqueConstraint("model", "version", "kind", "start", "end"),
    _one_of("kind", "drift", "quality", "prediction"),
)

alerts = Table(
    "lw_alerts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", Integer),
    Column("tier", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("detail", Json, nullable=False),
    Column("event_time", Moment, nullable=False),
    Column("opened_at", Moment, nullable=False),
    Column("state", Text, nullable=False),
    Column("by", Text),
    Column("changed_at", Moment, nullable=False),
    UniqueConstraint("model", "key"),
    _one_of("tier", "P0", "P1", "P2"),
    _one_of("state", "open", "acknowledged", "resolved"),
)

retrains = Table(
    "lw_retrains",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("event_time", Moment, nullable=False),
    Column("decision", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("run_id", Text),
    Column("version", Integer),
    Column("plan", Json, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    UniqueConstraint("model", "key"),
    _one_of("decision", "run", "suppress", "ask"),
    _one_of("state", "proposed", "running", "succeeded", "failed", "suppressed", "waiting"),
)
