"""A ledger with MLflow's tables, made once per engine: they take seconds. Each test works on a model of its own."""

from collections.abc import Iterator
from itertools import count

import pytest

from loopwright.ledger.engine import Ledger
from loopwright.registry.mlflow_tables import ensure_mlflow_tables

_models = count(1)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('delivery') / 'ledger.db'}"
    else:
        import psycopg

        server = request.getfixturevalue("postgres_server")
        name = f"delivery_{request.module.__name__.rpartition('.')[2]}"
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            connection.execute(f'CREATE DATABASE "{name}"')
        url = f"{server}/{name}"
    made = Ledger.open(url)
    made.migrate()
    ensure_mlflow_tables(made)
    yield made
    made.dispose()


@pytest.fixture
def model() -> str:
    return f"late-{next(_models)}"
