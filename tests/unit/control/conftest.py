"""A real home in a folder, with MLflow's tables made once and copied."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from loopwright.control.access import LOCAL
from loopwright.control.context import Context, open_context
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.verdict import Verdict
from loopwright.registry.mlflow_tables import ensure_mlflow_tables
from loopwright.registry.versions import register_version
from tests.governing import vouch

AUTHOR = Actor("dora", Role.DEVELOPER)


@dataclass
class FakeClock:
    """Stands still until told to move."""

    time: datetime = field(default_factory=lambda: datetime(2013, 7, 1, 12, tzinfo=UTC))

    def __call__(self) -> datetime:
        return self.time

    def move(self, by: timedelta) -> None:
        self.time += by


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "home"
    ctx = open_context(folder, LOCAL, create=True)
    ensure_mlflow_tables(ctx.ledger)
    ctx.ledger.dispose()
    return folder


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def home(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "home"))


@pytest.fixture
def ctx(home: Path, clock: FakeClock) -> Context:
    return open_context(home, LOCAL, clock=clock)


@pytest.fixture
def register(ctx: Context) -> Callable[..., int]:
    """Register a version whose gates passed; returns its number."""

    def make(model: str = "late", *, gates: Verdict = Verdict.PASS, author: Actor = AUTHOR) -> int:
        with ctx.ledger.write() as conn:
            count = len(list(conn.exec_driver_sql("SELECT 1 FROM lw_versions")))
            digest = hashlib.sha256(f"{model} {count}".encode()).hexdigest()
            vouch(conn, model, digest, at=ctx.now, gates=gates)
            return register_version(
                conn, model=model, bundle=digest, run_id=None, snapshot=None, author=author,
                metrics={"roc_auc": 0.7}, now=ctx.now,
            ).version  # fmt: skip

    return make


@pytest.fixture
def people(ctx: Context) -> dict[str, Context]:
    """ada and bob may approve, dora develops, vera only looks."""
    from loopwright.control.operation import find

    roles = {"ada": Role.APPROVER, "bob": Role.APPROVER, "dora": Role.DEVELOPER, "vera": Role.VIEWER}
    for name, role in roles.items():
        find("access.add_user")(ctx, name=name, role=role.name.lower())
    return {name: ctx.acting_as(Actor(name, role)) for name, role in roles.items()}
