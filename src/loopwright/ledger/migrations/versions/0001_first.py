"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# The audit log is append-only also for who talks to the database directly.
GUARDS = {
    "sqlite": (
        """CREATE TRIGGER lw_audit_no_update BEFORE UPDATE ON lw_audit
           BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
        """CREATE TRIGGER lw_audit_no_delete BEFORE DELETE ON lw_audit
           BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
    ),
    "postgresql": (
        """CREATE FUNCTION lw_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$""",
        """CREATE TRIGGER lw_audit_no_change BEFORE UPDATE OR DELETE ON lw_audit
           FOR EACH ROW EXECUTE FUNCTION lw_audit_refuse()""",
        """CREATE TRIGGER lw_audit_no_truncate BEFORE TRUNCATE ON lw_audit
           FOR EACH STATEMENT EXECUTE FUNCTION lw_audit_refuse()""",
    ),
}


def upgrade() -> None:
    op.create_table(
        "lw_alerts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("event_time", sa.BigInteger(), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=True),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "\"state\" IN ('open', 'acknowledged', 'resolved')", name=op.f("ck_lw_alerts_state")
        ),
        sa.CheckConstraint("\"tier\" IN ('P0', 'P1', 'P2')", name=op.f("ck_lw_alerts_tier")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lw_alerts")),
        sa.UniqueConstraint("model", "key", name=op.f("uq_lw_alerts_model_key")),
    )
    op.create_table(
        "lw_anchors",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("head", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("places", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_lw_anchors")),
    )
    op.create_table(
        "lw_audit",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("prev_hash", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_lw_audit")),
    )
    op.create_index(op.f("ix_lw_audit_action_seq"), "lw_audit", ["action", "seq"], unique=False)
    op.create_index(op.f("ix_lw_audit_actor_seq"), "lw_audit", ["actor", "seq"], unique=False)
    op.create_index(op.f("ix_lw_audit_at_seq"), "lw_audit", ["at", "seq"], unique=False)
    op.create_index(op.f("ix_lw_audit_subject_seq"), "lw_audit", ["subject", "seq"], unique=False)
    op.create_table(
        "lw_batches",
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("source_digest", sa.Text(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("good", sa.BigInteger(), nullable=False),
        sa.Column("bad", sa.BigInteger(), nullable=False),
        sa.Column("bronze_version", sa.BigInteger(), nullable=True),
        sa.Column("silver_version", sa.BigInteger(), nullable=True),
        sa.Column("report", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("table_name", "batch_id", name=op.f("pk_lw_batches")),
    )
    op.create_table(
        "lw_contents",
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("files", sa.Text(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("table_name", "files", name=op.f("pk_lw_contents")),
    )
    op.create_table(
        "lw_contracts",
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("change", sa.Text(), nullable=False),
        sa.Column("differences", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "\"change\" IN ('first', 'same', 'compatible', 'breaking')", name=op.f("ck_lw_contracts_change")
        ),
        sa.PrimaryKeyConstraint("table_name", "digest", name=op.f("pk_lw_contracts")),
        sa.UniqueConstraint("table_name", "number", name=op.f("uq_lw_contracts_table_name_number")),
    )
    op.create_table(
        "lw_cursors",
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("table_name", "uri", name=op.f("pk_lw_cursors")),
    )
    op.create_table(
        "lw_evidence",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("bundle", sa.Text(), nullable=True),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_lw_evidence")),
    )
    op.create_index(op.f("ix_lw_evidence_bundle"), "lw_evidence", ["bundle"], unique=False)
    op.create_index(op.f("ix_lw_evidence_model_version"), "lw_evidence", ["model", "version"], unique=False)
    op.create_table(
        "lw_experiments",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("stable", sa.Integer(), nullable=False),
        sa.Column("variants", sa.Text(), nullable=False),
        sa.Column("salt", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("began", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("until", sa.BigInteger(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("ended_why", sa.Text(), nullable=False),
        sa.CheckConstraint("\"status\" IN ('running', 'stopped')", name=op.f("ck_lw_experiments_status")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lw_experiments")),
    )
    op.create_index(
        op.f("ix_lw_experiments_model_started_at"), "lw_experiments", ["model", "started_at"], unique=False
    )
    op.create_table(
        "lw_feature_statistics",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("feature", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("end", sa.BigInteger(), nullable=False),
        sa.Column("view", sa.Text(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("nulls", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "\"source\" IN ('offline', 'online', 'requests')", name=op.f("ck_lw_feature_statistics_source")
        ),
        sa.PrimaryKeyConstraint("model", "feature", "source", "start", name=op.f("pk_lw_feature_statistics")),
    )
    op.create_table(
        "lw_feature_views",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("model", "name", "number", name=op.f("pk_lw_feature_views")),
    )
    op.create_table(
        "lw_folds",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("bucket", sa.BigInteger(), nullable=False),
        sa.Column("answers", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("model", "version", "arm", "bucket", name=op.f("pk_lw_folds")),
    )
    op.create_index(op.f("ix_lw_folds_model_bucket"), "lw_folds", ["model", "bucket"], unique=False)
    op.create_table(
        "lw_incidents",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("triage", sa.Text(), nullable=False),
        sa.Column("consumers", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), server_default="", nullable=False),
        sa.Column("post_mortem", sa.Text(), server_default="", nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "\"state\" IN ('open', 'acknowledged', 'resolved', 'backfilled', 'closed')",
            name=op.f("ck_lw_incidents_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lw_incidents")),
    )
    op.create_index(op.f("ix_lw_incidents_model_state"), "lw_incidents", ["model", "state"], unique=False)
    op.create_index(
        op.f("ix_lw_incidents_table_name_cause"), "lw_incidents", ["table_name", "cause"], unique=False
    )
    op.create_table(
        "lw_jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("request_digest", sa.Text(), nullable=False),
        sa.Column("rows", sa.Text(), nullable=True),
        sa.Column("submitted_by", sa.Text(), nullable=False),
        sa.Column("submitted_at", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=True),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("cancelled_by", sa.Text(), nullable=True),
        sa.Column("pinned", sa.Text(), nullable=True),
        sa.Column("total", sa.BigInteger(), nullable=True),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("failed_rows", sa.BigInteger(), nullable=False),
        sa.Column("latest_event", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("tell_at", sa.BigInteger(), nullable=True),
        sa.Column("tells", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "\"state\" IN ('queued', 'running', 'succeeded', 'dead', 'cancelled')",
            name=op.f("ck_lw_jobs_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lw_jobs")),
        sa.UniqueConstraint("model", "key", name=op.f("uq_lw_jobs_model_key")),
    )
    op.create_index(op.f("ix_lw_jobs_due_at"), "lw_jobs", ["due_at"], unique=False)
    op.create_index(op.f("ix_lw_jobs_model_state"), "lw_jobs", ["model", "state"], unique=False)
    op.create_index(op.f("ix_lw_jobs_submitted_at"), "lw_jobs", ["submitted_at"], unique=False)
    op.create_index(op.f("ix_lw_jobs_tell_at"), "lw_jobs", ["tell_at"], unique=False)
    op.create_table(
        "lw_label_batches",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("event_from", sa.BigInteger(), nullable=True),
        sa.Column("event_to", sa.BigInteger(), nullable=True),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lw_label_batches")),
    )
    op.create_index(op.f("ix_lw_label_batches_model"), "lw_label_batches", ["model"], unique=False)
    op.create_table(
        "lw_landings",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("silver_version", sa.BigInteger(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("loading", sa.Text(), nullable=False),
        sa.Column("good", sa.BigInteger(), nullable=False),
        sa.Column("bad", sa.BigInteger(), nullable=False),
        sa.Column("contract", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "\"loading\" IN ('append', 'full', 'upsert')", name=op.f("ck_lw_landings_loading")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lw_landings")),
    )
    op.create_index(op.f("ix_lw_landings_batch_id"), "lw_landings", ["batch_id"], unique=False)
    op.create_index(
        op.f("ix_lw_landings_table_name_silver_version"),
        "lw_landings",
        ["table_name", "silver_version"],
        unique=False,
    )
    op.create_index(op.f("ix_lw_landings_uri"), "lw_landings", ["uri"], unique=False)
    op.create_table(
        "lw_leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_lw_leases")),
    )
    op.create_table(
        "lw_materializations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("view", sa.Text(), nullable=False),
        sa.Column("store", sa.Text(), nullable=False),
        sa.Column("definition", sa.Text(), nullable=False),
        sa.Column("table_version", sa.BigInteger(), nullable=False),
        sa.Column("as_of", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("progress", sa.Text(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("\"kind\" IN ('full', 'increment')", name=op.f("ck_lw_materializations_kind")),
        sa.CheckConstraint(
            "\"state\" IN ('running', 'done', 'failed')", name=op.f("ck_lw_materializations_state")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lw_materializations")),
    )
    op.create_index(
        op.f("ix_lw_materializations_model_view_started_at"),
        "lw_materializations",
        ["model", "view", "started_at"],
        unique=False,
    )
    op.create_table(
        "lw_meta",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_lw_meta")),
    )
    op.create_table(
        "lw_policies",
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tier", "number", name=op.f("pk_lw_policies")),
    )
    op.create_index(op.f("ix_lw_policies_digest"), "lw_policies", ["digest"], unique=False)
    op.create_table(
        "lw_projects",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("spec_digest", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("team", sa.Text(), nullable=True),
        sa.Column("waived", sa.Text(), server_default="[]", nullable=False),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_lw_projects")),
    )
    op.create_table(
        "lw_releases",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("contract", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("choice", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("silver_version", sa.BigInteger(), nullable=True),
        sa.Column("quarantine_version", sa.BigInteger(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("\"decision\" IN ('release', 'drop')", name=op.f("ck_lw_releases_decision")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lw_releases")),
    )
    op.create_index(op.f("ix_lw_releases_table_name_at"), "lw_releases", ["table_name", "at"], unique=False)
    op.create_table(
        "lw_retrains",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("event_time", sa.BigInteger(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "\"decision\" IN ('run', 'suppress', 'ask')", name=op.f("ck_lw_retrains_decision")
        ),
        sa.CheckConstraint(
            "\"state\" IN ('proposed', 'running', 'succeeded', 'failed', 'suppressed', 'waiting')",
            name=op.f("ck_lw_retrains_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lw_retrains")),
        sa.UniqueConstraint("model", "key", name=op.f("uq_lw_retrains_model_key")),
    )
    op.create_table(
        "lw_route_tables",
        sa.Column(
            "serial",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("signature", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_lw_route_tables")),
    )
    op.create_table(
        "lw_runs",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("experiment", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("snapshot", sa.Text(), nullable=True),
        sa.Column("bundle", sa.Text(), nullable=True),
        sa.Column("params", sa.Text(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("context", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_lw_runs")),
    )
    op.create_index(op.f("ix_lw_runs_model_started_at"), "lw_runs", ["model", "started_at"], unique=False)
    op.create_table(
        "lw_segments",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("segment", sa.Text(), nullable=False),
        sa.Column("shipped", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("source", "segment", name=op.f("pk_lw_segments")),
    )
    op.create_table(
        "lw_snapshots",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_lw_snapshots")),
    )
    op.create_index(
        op.f("ix_lw_snapshots_model_created_at"), "lw_snapshots", ["model", "created_at"], unique=False
    )
    op.create_table(
        "lw_trusts",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("globals", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("requested_at", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.Column("record", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "\"state\" IN ('pending', 'approved', 'rejected', 'revoked')", name=op.f("ck_lw_trusts_state")
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_lw_trusts")),
    )
    op.create_table(
        "lw_users",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("disabled_at", sa.BigInteger(), nullable=True),
        sa.Column("service", sa.Boolean(), server_default=sa.text("(false)"), nullable=False),
        sa.Column("identity", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_lw_users")),
        sa.UniqueConstraint("identity", name=op.f("uq_lw_users_identity")),
    )
    op.create_table(
        "lw_versions",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("bundle", sa.Text(), nullable=True),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("snapshot", sa.Text(), nullable=True),
        sa.Column("semver", sa.Text(), nullable=True),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("parent", sa.Integer(), nullable=True),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("annotations", sa.Text(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "\"stage\" IN ('None', 'Staging', 'Production', 'Archived')", name=op.f("ck_lw_versions_stage")
        ),
        sa.PrimaryKeyConstraint("model", "version", name=op.f("pk_lw_versions")),
    )
    op.create_index(op.f("ix_lw_versions_bundle"), "lw_versions", ["bundle"], unique=False)
    op.create_index(op.f("ix_lw_versions_model_stage"), "lw_versions", ["model", "stage"], unique=False)
    op.create_index(op.f("ix_lw_versions_run_id"), "lw_versions", ["run_id"], unique=False)
    op.create_index(op.f("ix_lw_versions_stage"), "lw_versions", ["stage"], unique=False)
    op.create_table(
        "lw_watermarks",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("event_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_lw_watermarks")),
    )
    op.create_table(
        "lw_windows",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("end", sa.BigInteger(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("\"kind\" IN ('drift', 'quality', 'prediction')", name=op.f("ck_lw_windows_kind")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lw_windows")),
        sa.UniqueConstraint(
            "model",
            "version",
            "kind",
            "start",
            "end",
            name=op.f("uq_lw_windows_model_version_kind_start_end"),
        ),
    )
    op.create_table(
        "lw_incident_events",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("incident", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["incident"], ["lw_incidents.id"], name=op.f("fk_lw_incident_events_incident")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lw_incident_events")),
    )
    op.create_index(
        op.f("ix_lw_incident_events_incident_id"), "lw_incident_events", ["incident", "id"], unique=False
    )
    op.create_table(
        "lw_job_attempts",
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), server_default="", nullable=False),
        sa.Column("done_from", sa.BigInteger(), nullable=False),
        sa.Column("done_to", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "\"outcome\" IN ('running', 'succeeded', 'failed', 'lost', 'released', 'cancelled')",
            name=op.f("ck_lw_job_attempts_outcome"),
        ),
        sa.ForeignKeyConstraint(["job"], ["lw_jobs.id"], name=op.f("fk_lw_job_attempts_job")),
        sa.PrimaryKeyConstraint("job", "number", name=op.f("pk_lw_job_attempts")),
    )
    op.create_table(
        "lw_job_deliveries",
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["lw_jobs.id"], name=op.f("fk_lw_job_deliveries_job")),
        sa.PrimaryKeyConstraint("job", "number", name=op.f("pk_lw_job_deliveries")),
    )
    op.create_table(
        "lw_job_parts",
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("first_row", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["lw_jobs.id"], name=op.f("fk_lw_job_parts_job")),
        sa.PrimaryKeyConstraint("job", "number", name=op.f("pk_lw_job_parts")),
    )
    op.create_table(
        "lw_promotions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("bundle", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("requested_at", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("policy_digest", sa.Text(), nullable=False),
        sa.Column("emergency", sa.Text(), nullable=True),
        sa.Column("seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("decided_seq", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "\"state\" IN ('pending', 'effective', 'rejected', 'withdrawn', 'reverted')",
            name=op.f("ck_lw_promotions_state"),
        ),
        sa.ForeignKeyConstraint(
            ["model", "version"],
            ["lw_versions.model", "lw_versions.version"],
            name=op.f("fk_lw_promotions_model_version"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lw_promotions")),
    )
    op.create_index(
        op.f("ix_lw_promotions_model_stage_state_decided_seq"),
        "lw_promotions",
        ["model", "stage", "state", "decided_seq"],
        unique=False,
    )
    op.create_index(
        op.f("ix_lw_promotions_model_version_stage_state"),
        "lw_promotions",
        ["model", "version", "stage", "state"],
        unique=False,
    )
    op.create_table(
        "lw_rollouts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("baseline", sa.Integer(), nullable=True),
        sa.Column("promotion_id", sa.Text(), nullable=True),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "\"status\" IN ('running', 'paused', 'completed', 'rolled_back', 'aborted')",
            name=op.f("ck_lw_rollouts_status"),
        ),
        sa.ForeignKeyConstraint(
            ["model", "version"],
            ["lw_versions.model", "lw_versions.version"],
            name=op.f("fk_lw_rollouts_model_version"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lw_rollouts")),
    )
    op.create_index(
        op.f("ix_lw_rollouts_model_started_at"), "lw_rollouts", ["model", "started_at"], unique=False
    )
    op.create_index(op.f("ix_lw_rollouts_promotion_id"), "lw_rollouts", ["promotion_id"], unique=False)
    op.create_table(
        "lw_team_roles",
        sa.Column("team", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["user"], ["lw_users.name"], name=op.f("fk_lw_team_roles_user")),
        sa.PrimaryKeyConstraint("team", "user", name=op.f("pk_lw_team_roles")),
    )
    op.create_index(op.f("ix_lw_team_roles_user"), "lw_team_roles", ["user"], unique=False)
    op.create_table(
        "lw_tokens",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("scopes", sa.Text(), nullable=True),
        sa.Column("note", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["user"], ["lw_users.name"], name=op.f("fk_lw_tokens_user")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lw_tokens")),
    )
    op.create_index(op.f("ix_lw_tokens_user"), "lw_tokens", ["user"], unique=False)
    op.create_table(
        "lw_approvals",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("promotion_id", sa.Text(), nullable=False),
        sa.Column("reviewer", sa.Text(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("bundle", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), server_default="approver", nullable=False),
        sa.Column("policy_digest", sa.Text(), server_default="", nullable=False),
        sa.Column("seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("\"decision\" IN ('approve', 'reject')", name=op.f("ck_lw_approvals_decision")),
        sa.ForeignKeyConstraint(
            ["promotion_id"], ["lw_promotions.id"], name=op.f("fk_lw_approvals_promotion_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lw_approvals")),
    )
    op.create_index(
        op.f("ix_lw_approvals_promotion_id_reviewer"),
        "lw_approvals",
        ["promotion_id", "reviewer"],
        unique=False,
    )
    op.create_table(
        "lw_reviews",
        sa.Column("promotion_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("broken_by", sa.Text(), nullable=False),
        sa.Column("policy_digest", sa.Text(), server_default="", nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reviewer", sa.Text(), nullable=True),
        sa.Column("comment", sa.Text(), server_default="", nullable=False),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("\"state\" IN ('open', 'upheld', 'revoked')", name=op.f("ck_lw_reviews_state")),
        sa.ForeignKeyConstraint(
            ["model", "version"],
            ["lw_versions.model", "lw_versions.version"],
            name=op.f("fk_lw_reviews_model_version"),
        ),
        sa.ForeignKeyConstraint(
            ["promotion_id"], ["lw_promotions.id"], name=op.f("fk_lw_reviews_promotion_id")
        ),
        sa.PrimaryKeyConstraint("promotion_id", name=op.f("pk_lw_reviews")),
    )
    op.create_index(op.f("ix_lw_reviews_model_state"), "lw_reviews", ["model", "state"], unique=False)
    op.create_table(
        "lw_rollout_events",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("rollout_id", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("event_time", sa.BigInteger(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["lw_rollouts.id"], name=op.f("fk_lw_rollout_events_rollout_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lw_rollout_events")),
    )
    op.create_index(
        op.f("ix_lw_rollout_events_rollout_id"), "lw_rollout_events", ["rollout_id"], unique=False
    )
    op.create_table(
        "lw_sessions",
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("csrf", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("token", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["token"], ["lw_tokens.id"], name=op.f("fk_lw_sessions_token")),
        sa.ForeignKeyConstraint(["user"], ["lw_users.name"], name=op.f("fk_lw_sessions_user")),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_lw_sessions")),
    )
    op.create_index(op.f("ix_lw_sessions_user"), "lw_sessions", ["user"], unique=False)
    for statement in GUARDS[op.get_bind().dialect.name]:
        op.execute(statement)
