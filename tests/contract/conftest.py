"""One class of tests over every engine: `any_ledger` is a migrated ledger on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from loopwright.ledger.engine import Ledger


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def any_ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger.open(ledger_url)
    ledger.migrate()
    yield ledger
    ledger.dispose()
