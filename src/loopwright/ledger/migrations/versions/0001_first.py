"""The first schema. (Generated from the metadata until the first release.)"""

from alembic import op

from loopwright.ledger.schema import metadata

revision = "0001"
down_revision = None

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
    metadata.create_all(op.get_bind(), checkfirst=False)
    for statement in GUARDS[op.get_bind().dialect.name]:
        op.execute(statement)
