"""Deleting through the command line and the API, on a home whose clock is years ahead."""

from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from loopwright.bundle.depot import BundleDepot
from loopwright.cli.models import delete, retention
from loopwright.control.access import LOCAL
from loopwright.control.context import Context, open_context
from loopwright.control.operation import find
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import utc_now
from loopwright.kernel.errors import BadInput, Refused
from loopwright.ledger import store as audit
from loopwright.registry import versions
from loopwright.registry.mlflow_tables import ensure_mlflow_tables
from tests.integration.registry.plane import seal_into

ANA = Actor("ana", Role.DEVELOPER)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one version, registered eight years ago, and one of today."""
    tmp = tmp_path_factory.mktemp("deleting")
    ctx = open_context(tmp / "home", LOCAL, create=True)
    ensure_mlflow_tables(ctx.ledger)
    for number, age in ((1, timedelta(days=365 * 8)), (2, timedelta())):
        bundle = seal_into(BundleDepot(ctx.home.bundles), tmp, (float(number), 1.0), at=ctx.now, key=ctx.key)
        with ctx.ledger.write() as conn:
            versions.register_version(
                conn, model="late", bundle=bundle, run_id=None, snapshot=None, author=ANA, metrics={}, now=ctx.now - age
            )  # fmt: skip
    ctx.ledger.dispose()
    return tmp / "home"


@pytest.fixture
def ctx(home: Path) -> Context:
    return open_context(home, LOCAL, clock=utc_now)


def test_what_may_go_is_shown_and_goes_once(home: Path, ctx: Context) -> None:
    listed = CliRunner().invoke(retention, ["late", "--home", str(home)])
    assert listed.exit_code == 0, listed.output
    assert [line.split()[-2] for line in listed.output.splitlines() if line.startswith("late")] == [
        "yes",
        "no",
    ]
    kept = CliRunner().invoke(delete, ["late", "2", "--reason", "x", "--dry-run", "--home", str(home)])
    assert kept.exit_code == 0 and "late version 2 is kept: it is under retention until 20" in kept.output
    may = CliRunner().invoke(delete, ["late", "1", "--reason", "x", "--dry-run", "--home", str(home)])
    assert may.output == "late version 1 may go.\n"
    refused = CliRunner().invoke(delete, ["late", "2", "--reason", "x", "--home", str(home)])
    assert refused.exit_code == 1
    with pytest.raises(Refused, match="may not"):
        find("models.delete")(ctx.acting_as(ANA), model="late", version=1, reason="x")
    with pytest.raises(BadInput, match="reason"):
        find("models.delete")(ctx, model="late", version=1, reason="")
    depot = BundleDepot(ctx.home.bundles)
    (before,) = (
        one
        for one in find("models.retention")(ctx, model="late")
        if one["version"] == 1  # type: ignore[union-attr]
    )
    gone = CliRunner().invoke(delete, ["late", "1", "--reason", "its time is over", "--home", str(home)])
    assert gone.exit_code == 0 and "is deleted; its bundle" in gone.output, gone.output
    assert not depot.has(before["bundle"]) and len(depot.digests()) == 1
    again = find("models.delete")(ctx, model="late", version=1, reason="again")
    assert (again["deleted"], again["dropped"]) == (True, [])
    with ctx.ledger.read() as conn:
        assert [row.payload["reason"] for row in audit.rows(conn, action="version.deleted")] == [
            "its time is over"
        ]
    shown = find("models.show")(ctx, model="late")
    assert [one["version"] for one in shown["versions"]] == [2]
