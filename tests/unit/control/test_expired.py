"""A token that has run out, at the moment its owner approves: 401, kept in the log, and nothing changed."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from starlette.testclient import TestClient

from loopwright.control.app import create_app
from loopwright.control.context import Context
from loopwright.control.controllers.loop import Controllers
from loopwright.control.operation import find
from loopwright.ledger import store as ledger_store
from loopwright.registry import promotion


async def nothing(*_: Any) -> None:
    """Stands in for MLflow, which nobody asks here."""


def test_an_expired_token_approves_nothing_and_the_attempt_is_kept(
    ctx: Context, people: dict[str, Context], register: Callable[..., int]
) -> None:
    version = register()
    find("models.promote")(people["dora"], model="late", version=version)
    made: Any = find("access.create_token")(ctx, user="ada", days=1)
    app = create_app(ctx, local=False, make_mlflow=lambda: nothing, controllers=Controllers(ctx, []))
    address = f"/api/v1/models/late/{version}/approve"
    with TestClient(app, base_url="http://127.0.0.1:8080", client=("127.0.0.1", 50000)) as client:
        ctx.clock.move(timedelta(days=1))  # type: ignore[attr-defined]
        answer = client.post(address, headers={"Authorization": f"Bearer {made['token']}"}, json={})
        assert answer.status_code == 401
        assert "expired" in answer.text
    with ctx.ledger.read() as conn:
        (asked,) = promotion.list_promotions(conn, model="late")
        assert (asked.state, asked.approvals) == ("pending", ())
        (denied,) = [row for row in ledger_store.rows(conn) if "denied" in row.action]
        assert "expired" in str(denied.payload) and ledger_store.verify(conn).ok
