"""How much in how short a time, in bounded memory; and what is written down of who was turned away."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from loopwright.control.app import create_app
from loopwright.control.client import connect
from loopwright.control.context import Context
from loopwright.control.controllers.loop import Controllers
from loopwright.control.denials import MOST, Denial, Denials
from loopwright.control.limits import API_BODY, Limits, Settings, group_of
from loopwright.control.operation import find
from loopwright.kernel.errors import BadInput, Refused, TooMany, Unavailable
from loopwright.ledger.engine import Ledger
from tests.unit.control.conftest import FakeClock
from tests.unit.control.test_doorkeeper import mlflow, token_of

WRONG = {"Authorization": "Bearer lw_0123456789ab_wrong"}


@pytest.fixture
def door(ctx: Context) -> Iterator[TestClient]:
    app = create_app(ctx, local=False, make_mlflow=lambda: mlflow, controllers=Controllers(ctx, []))
    with TestClient(app, base_url="http://127.0.0.1:8080", client=("10.0.0.7", 50000)) as client:
        yield client


def denials(ctx: Context) -> list[Any]:
    rows: Any = find("audit.show")(ctx, action="access.denied", limit=1000)
    return list(rows)


def test_wrong_tokens_are_slowed_down_and_right_ones_in_use_pass(door: TestClient, ctx: Context) -> None:
    used, unused = token_of(ctx, "ada", "viewer"), token_of(ctx, "bob", "viewer")
    assert door.get("/api/v1/whoami", headers={"Authorization": f"Bearer {used}"}).status_code == 200
    seen = [door.get("/api/v1/whoami", headers=WRONG).status_code for _ in range(12)]
    assert seen == [401] * 10 + [429] * 2
    refused = door.get("/api/v1/whoami", headers={"Authorization": f"Bearer {unused}"})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    assert door.get("/api/v1/whoami", headers={"Authorization": f"Bearer {used}"}).status_code == 200
    ctx.clock.move(timedelta(minutes=1))  # type: ignore[attr-defined]
    assert door.get("/api/v1/whoami", headers={"Authorization": f"Bearer {unused}"}).status_code == 200


def test_mlflows_clients_understand_that_they_are_too_many(door: TestClient) -> None:
    for _ in range(10):
        door.get("/mlflow/x", headers=WRONG)
    assert door.get("/mlflow/x", headers=WRONG).json()["error_code"] == "REQUEST_LIMIT_EXCEEDED"


def test_an_actor_may_send_so_many_requests(clock: FakeClock) -> None:
    limits = Limits(Settings(requests="3/10 seconds"), clock)
    for _ in range(3):
        limits.count_request("ada")
    with pytest.raises(TooMany) as error:
        limits.count_request("ada")
    assert error.value.retry_after == 10
    limits.count_request("bob")
    clock.move(timedelta(seconds=10))
    limits.count_request("ada")


def test_one_actors_slow_questions_leave_room_for_others(clock: FakeClock) -> None:
    limits = Limits(Settings(at_once=2), clock)
    limits.begin("ada")
    limits.begin("ada")
    with pytest.raises(TooMany, match="2 requests under way"):
        limits.begin("ada")
    limits.begin("bob")
    limits.end("ada")
    limits.begin("ada")


def test_what_is_answered_or_refused_is_under_way_no_more(ctx: Context) -> None:
    app = create_app(ctx, local=False, make_mlflow=lambda: mlflow, controllers=Controllers(ctx, []))
    token = token_of(ctx, "ada", "viewer")
    with TestClient(app, base_url="http://127.0.0.1:8080", client=("10.0.0.7", 50000)) as client:
        for path, status in (("whoami", 200), ("models/no", 404), ("where", 403)) * 20:
            answer = client.get(f"/api/v1/{path}", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == status
        assert client.post("/api/v1/tick", headers={"Authorization": f"Bearer {token}"}).status_code == 403
    assert not app.limits._under_way  # type: ignore[attr-defined]


def test_a_clock_that_goes_back_locks_nobody_out(clock: FakeClock) -> None:
    limits = Limits(Settings(requests="1/minute"), clock)
    limits.count_request("ada")
    clock.move(-timedelta(days=1))
    limits.count_request("ada")


def test_any_number_of_addresses_takes_bounded_memory(clock: FakeClock) -> None:
    limits = Limits(Settings(), clock)
    for number in range(30_000):
        limits.note_failure(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(limits._strangers.storage._kept) == 10_000  # type: ignore[attr-defined]


def test_one_subscribers_ipv6_addresses_are_one() -> None:
    assert group_of("2001:db8::1") == group_of("2001:db8::ffff:1")
    assert group_of("2001:db8:0:1::1") != group_of("2001:db8::1")
    assert group_of("10.0.0.1") != group_of("10.0.0.2")
    assert group_of("::ffff:10.0.0.1") == group_of("10.0.0.1") != group_of("::ffff:10.0.0.2")


@pytest.mark.parametrize(
    "section",
    [
        {"requests": "many"},
        {"request": "1/second"},
        {"requests": "0/second"},
        {"failures": 3},
        ["x"],
        {"at_once": 0},
        {"at_once": "3"},
    ],
)
def test_limits_that_cannot_be_read_are_named(section: object) -> None:
    with pytest.raises(BadInput):
        Settings.read(section)


def test_home_json_sets_the_limits(ctx: Context) -> None:
    ctx.home.config.write_text('{"limits": {"failures": "1/minute"}}')
    app = create_app(ctx, local=False, make_mlflow=lambda: mlflow, controllers=Controllers(ctx, []))
    client = TestClient(app, base_url="http://127.0.0.1:8080", client=("10.0.0.7", 50000))
    assert [client.get("/docs", headers=WRONG).status_code for _ in range(2)] == [401, 429]


def test_a_body_that_is_too_large_is_413_declared_or_not(door: TestClient, ctx: Context) -> None:
    headers = {"Authorization": f"Bearer {token_of(ctx, 'ada', 'developer')}"}
    place = "/api/v1/models/late/labels"
    declared = door.post(place, content=b"x" * (API_BODY + 1), headers=headers)
    assert (declared.status_code, declared.json()["error"]) == (413, "BadInput")

    def parts() -> Iterator[bytes]:
        for _ in range(API_BODY // 2**20 + 1):
            yield b"x" * 2**20

    assert door.post(place, content=parts(), headers=headers).status_code == 413
    assert (
        door.post("/login", content=b"x" * 100_000, headers={"Origin": "http://127.0.0.1:8080"}).status_code
        == 413
    )


def test_who_was_turned_away_is_written_down_once_a_minute(ctx: Context) -> None:
    book = Denials(ctx.ledger, ctx.clock)
    denial = Denial("vera", "POST /api/v1/users", "vera may not", 403, "10.0.0.7")
    for _ in range(1000):
        book.note(denial)
        book.write()
    assert [row["payload"]["count"] for row in denials(ctx)] == [1]
    ctx.clock.move(timedelta(minutes=1))  # type: ignore[attr-defined]
    book.write()
    first, second = denials(ctx)
    assert (first["actor"], first["subject"], second["payload"]["count"]) == ("vera", "user/vera", 999)
    assert first["payload"]["act"] == "POST /api/v1/users"
    book.note(denial)
    book.write()
    assert [row["payload"]["count"] for row in denials(ctx)] == [1, 999, 1]


def test_nobody_fills_the_log_with_different_denials(ctx: Context) -> None:
    book = Denials(ctx.ledger, ctx.clock)
    for number in range(5000):
        book.note(Denial("nobody", f"GET /{number}", "who are you?", 401, "10.0.0.7"))
    book.write()
    rows = denials(ctx)
    assert len(rows) == MOST + 1
    assert sum(row["payload"]["count"] for row in rows) == 5000


def test_a_busy_ledger_holds_nobody_up_and_loses_no_denial(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = Denials(ctx.ledger, ctx.clock)
    book.note(Denial("vera", "POST /x", "no", 403))
    with monkeypatch.context() as patched:

        def busy(self: Ledger) -> None:
            raise Unavailable("the ledger is busy")

        patched.setattr(Ledger, "write", busy)
        assert book.write() == 0
    assert book.write() == 1
    assert len(denials(ctx)) == 1


def test_the_door_notes_401_403_and_429_and_no_secret(door: TestClient, ctx: Context) -> None:
    token = token_of(ctx, "vera", "viewer")
    mine = {"Authorization": f"Bearer {token}"}
    door.post("/api/v1/users", json={"name": "eve"}, headers=mine)
    door.get(f"/api/v1/whoami?token={token}")
    for _ in range(11):
        door.get("/api/v1/models/late", headers=WRONG)
    door.get("/api/v1/whoami", headers=mine)
    door.app.denials.write(all_of_them=True)  # type: ignore[attr-defined]
    rows = denials(ctx)
    found = {(row["actor"], row["payload"]["act"], row["payload"]["status"]) for row in rows}
    assert found == {
        ("vera", "POST /api/v1/users", 403), ("nobody", "GET /api/v1/whoami", 401),
        ("nobody", "GET /api/v1/models/late", 401), ("nobody", "GET /api/v1/models/late", 429),
    }  # fmt: skip
    assert {row["payload"]["address"] for row in rows} == {"10.0.0.7"}
    assert token.split("_", 2)[2] not in str(rows)
    assert "wrong" in str(rows)  # the reason: wrong token
    assert find("audit.verify")(ctx)["ok"]  # type: ignore[index,call-overload]


def test_a_refusal_on_a_folder_is_written_down_too(ctx: Context) -> None:
    find("access.add_user")(ctx, name="vera", role="viewer")
    with pytest.raises(Refused):
        connect(ctx.home.root, as_user="vera", clock=ctx.clock).call("system.tick")
    (row,) = denials(ctx)
    assert (row["actor"], row["payload"]["act"], row["payload"]["status"]) == ("vera", "system.tick", 403)
