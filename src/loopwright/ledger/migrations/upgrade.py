"""Runs the migrations on an open connection, in its transaction."""

from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import Connection

from loopwright.kernel.errors import Unavailable
from loopwright.ledger.schema import metadata


def script_directory() -> ScriptDirectory:
    """Return Alembic's view of this folder."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return ScriptDirectory.from_config(config)


def upgrade(connection: Connection, version_table: str, standing: str | None) -> None:
    """Bring our tables from revision `standing` to the newest, all or nothing.

    Raises Unavailable when the database stands at a revision this release does not know.
    """
    scripts = script_directory()
    head = scripts.get_current_head()
    assert head is not None, "there is always a first migration"
    context = EnvironmentContext(Config(), scripts, fn=lambda at, _: scripts._upgrade_revs(head, at))
    with context:
        # SQLite keeps DDL in transactions too, once the driver does not commit by itself (see engine).
        context.configure(
            connection=connection,
            target_metadata=metadata,
            version_table=version_table,
            transactional_ddl=True,
        )
        try:
            context.run_migrations()
        except (CommandError, RevisionError) as error:
            raise Unavailable(
                "the ledger was written by another release of loopwright",
                got=f"revision {standing}",
                wanted=f"revision {head} or earlier",
                next="Install the release that wrote it, or a newer one.",
            ) from error
