"""Makes MLflow's tables in the ledger's database, by MLflow's own migrations."""

import logging
from importlib.metadata import version

from sqlalchemy import inspect

from loopwright.kernel.errors import Unavailable
from loopwright.ledger import store
from loopwright.ledger.engine import Ledger, make_engine

_DONE = "mlflow.tables"


def ensure_mlflow_tables(ledger: Ledger) -> None:
    """Create MLflow's tables where they are missing; is idempotent, also between processes.

    The first call on a home takes seconds (MLflow's migrations); later ones read one row and import nothing.
    Raises Unavailable when the tables are another MLflow's.
    """
    release = version("mlflow")
    with ledger.read() as conn:
        if store.get_meta(conn, _DONE) == release and inspect(conn).has_table("model_versions"):
            return
    # MLflow costs two seconds to import; most starts find nothing to do.
    from mlflow.exceptions import MlflowException
    from mlflow.store.db import utils

    # Alembic announces each of MLflow's migrations; nobody asked.
    chatty = logging.getLogger("alembic"), logging.getLogger("mlflow.store.db.utils")
    levels = [logger.level for logger in chatty]
    for logger in chatty:
        logger.setLevel(logging.WARNING)
    # MLflow's migrations rebuild tables, which must not cascade: its own engine leaves foreign keys off.
    url = make_engine(ledger.url).url.render_as_string(hide_password=False)
    engine = utils.create_sqlalchemy_engine(url)
    try:
        utils._safe_initialize_tables(engine)
        utils._verify_schema(engine)
    except MlflowException as error:
        raise Unavailable(
            f"MLflow's tables are not those of MLflow {release}", where=ledger.url,
            next="Back the ledger up, then: mlflow db upgrade URL.",
        ) from error  # fmt: skip
    finally:
        engine.dispose()
        for logger, level in zip(chatty, levels, strict=True):
            logger.setLevel(level)
    with ledger.write() as conn:
        store.put_meta(conn, _DONE, release)
