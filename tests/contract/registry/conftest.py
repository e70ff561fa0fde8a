"""A ledger with MLflow's tables, made once per engine and copied for each test: MLflow's migrations take seconds."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loopwright.ledger.engine import Ledger
from loopwright.registry import unit_of_work
from loopwright.registry.mlflow_tables import ensure_mlflow_tables


def _prepare(url: str) -> None:
    ledger = Ledger.open(url)
    ledger.migrate()
    ensure_mlflow_tables(ledger)
    ledger.dispose()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("registry") / "ledger.db"
    _prepare(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> tuple[str, str]:
    """(server, name of the prepared database)."""
    import psycopg

    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE registry_template")
    _prepare(f"{postgres_server}/registry_template")
    return postgres_server, "registry_template"


def _forget(url: str) -> None:
    """Close what a registry keeps open for the process's life."""
    engine = unit_of_work._engines.pop(url, None)
    if engine is not None:
        engine.dispose()


_copies = iter(range(1, 10_000))


@pytest.fixture(params=["sqlite", "postgresql"])
def registry_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a prepared ledger of this test's own."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "ledger.db")
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
        yield url
        _forget(url)
        return
    import psycopg

    server, template = request.getfixturevalue("postgres_template")
    name = f"registry_{next(_copies)}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield f"{server}/{name}"
    _forget(f"{server}/{name}")
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def open_ledger(registry_url: str) -> Iterator[Callable[[], Ledger]]:
    """Opens the test's ledger anew, as another process would."""
    opened: list[Ledger] = []

    def open_it() -> Ledger:
        opened.append(Ledger.open(registry_url))
        return opened[-1]

    yield open_it
    for ledger in opened:
        ledger.dispose()


@pytest.fixture
def ledger(open_ledger: Callable[[], Ledger]) -> Ledger:
    return open_ledger()
