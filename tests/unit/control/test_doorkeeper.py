"""The door: who gets in without a token, with one, from elsewhere."""

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from loopwright.control.app import create_app
from loopwright.control.caller import is_loopback
from loopwright.control.context import Context
from loopwright.control.controllers.loop import Controllers
from loopwright.control.denials import Denials
from loopwright.control.doorkeeper import Doorkeeper, Receive, Scope, Send, check_binding
from loopwright.control.limits import Limits, Settings
from loopwright.control.operation import find
from loopwright.kernel.errors import BadInput, Refused, Unauthenticated, Unavailable
from loopwright.ledger.engine import Ledger
from loopwright.registry.identity import current_actor

HERE = ("127.0.0.1", 50000)


async def mlflow(scope: Scope, receive: Receive, send: Send) -> None:
    """Stands in for MLflow: says who is calling."""
    actor = current_actor.get()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": (actor.name if actor else "nobody").encode()})


def browse(ctx: Context, *, local: bool, client: tuple[str, int] = HERE) -> TestClient:
    app = create_app(ctx, local=local, make_mlflow=lambda: mlflow, controllers=Controllers(ctx, []))
    return TestClient(app, base_url="http://127.0.0.1:8080", client=client)


@pytest.fixture
def here(ctx: Context) -> Iterator[TestClient]:
    with browse(ctx, local=True) as client:
        yield client


@pytest.fixture
def strict(ctx: Context) -> Iterator[TestClient]:
    with browse(ctx, local=False) as client:
        yield client


def token_of(ctx: Context, name: str, role: str) -> str:
    find("access.add_user")(ctx, name=name, role=role)
    made: Any = find("access.create_token")(ctx, user=name)
    return str(made["token"])


def test_the_owner_of_the_machine_needs_no_token(here: TestClient) -> None:
    told = here.get("/api/v1/whoami").json()
    assert (told["name"], told["role"], told["via"]) == ("local", "admin", "this machine")


def test_mlflow_hears_who_is_calling(here: TestClient, ctx: Context) -> None:
    assert here.get("/mlflow/x").text == "local"
    token = token_of(ctx, "ada", "viewer")
    assert here.get("/mlflow/x", headers={"Authorization": f"Bearer {token}"}).text == "ada"


def test_a_wrong_token_is_401_even_where_none_is_needed(here: TestClient) -> None:
    answer = here.get("/api/v1/whoami", headers={"Authorization": "Bearer lw_x_y"})
    assert answer.status_code == 401
    assert answer.json()["error"] == "Unauthenticated"
    assert "Bearer" in answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "10.0.0.1"}, {"Forwarded": "for=10.0.0.1"}, {"X-Real-IP": "10.0.0.1"},
        {"X-Forwarded-Proto": "https"}, {"Via": "1.1 proxy"}, {"Host": "evil.example"},
    ],
)  # fmt: skip
def test_a_proxy_or_another_name_in_front_needs_a_token(here: TestClient, headers: dict[str, str]) -> None:
    assert here.get("/api/v1/whoami", headers=headers).status_code == 401


def test_a_proxy_that_says_nothing_but_speaks_http_1_0_needs_a_token(ctx: Context) -> None:
    # nginx's `proxy_pass http://127.0.0.1:8080;` as it comes.
    scope = {
        "type": "http", "method": "GET", "path": "/api/v1/whoami", "client": HERE, "http_version": "1.0",
        "headers": [(b"host", b"127.0.0.1:8080"), (b"connection", b"close")],
    }  # fmt: skip
    door = Doorkeeper(
        mlflow, ctx.ledger, ctx.clock, local=True, limits=Limits(Settings(), ctx.clock),
        denials=Denials(ctx.ledger, ctx.clock),
    )  # fmt: skip
    with pytest.raises(Unauthenticated):
        asyncio.run(door.identify(scope))
    assert asyncio.run(door.identify({**scope, "http_version": "1.1"}))[0].name == "local"


def test_a_ledger_that_cannot_be_written_locks_nobody_out(
    strict: TestClient, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = token_of(ctx, "ada", "viewer")

    def full(self: Ledger) -> None:
        raise Unavailable("the disk is full")

    monkeypatch.setattr(Ledger, "write", full)
    answer = strict.get("/api/v1/whoami", headers={"Authorization": f"Bearer {token}"})
    assert (answer.json()["name"], answer.json()["role"]) == ("ada", "viewer")


def test_another_machine_needs_a_token(ctx: Context) -> None:
    with browse(ctx, local=True, client=("10.0.0.7", 50000)) as client:
        assert client.get("/api/v1/whoami").status_code == 401


def test_without_local_mode_everybody_needs_a_token(strict: TestClient, ctx: Context) -> None:
    assert strict.get("/api/v1/whoami").status_code == 401
    assert strict.get("/mlflow/x").status_code == 401
    assert strict.get("/metrics").status_code == 401
    assert strict.get("/docs").status_code == 401
    token = token_of(ctx, "ada", "viewer")
    answer = strict.get("/api/v1/whoami", headers={"Authorization": f"Bearer {token}"})
    assert (answer.json()["name"], answer.json()["role"]) == ("ada", "viewer")


def test_a_browser_may_give_the_token_as_its_password(strict: TestClient, ctx: Context) -> None:
    token = token_of(ctx, "ada", "viewer")
    basic = base64.b64encode(f"ada:{token}".encode()).decode()
    assert strict.get("/api/v1/whoami", headers={"Authorization": f"Basic {basic}"}).json()["name"] == "ada"


@pytest.mark.parametrize("header", ["Basic !!", "Basic", "Digest x", "Bearer", "Basic " + "A" * 7])
def test_a_strange_authorization_is_401(strict: TestClient, header: str) -> None:
    assert strict.get("/api/v1/whoami", headers={"Authorization": header}).status_code == 401


def test_a_page_of_another_site_may_not_act(here: TestClient) -> None:
    body = {"name": "eve", "role": "admin"}
    answer = here.post("/api/v1/users", json=body, headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403
    assert here.get("/api/v1/users").json() == []


def test_probes_need_no_token(strict: TestClient) -> None:
    assert strict.get("/healthz").status_code == 200
    assert strict.get("/readyz").status_code in (200, 503)


def test_roles_are_kept_over_http(strict: TestClient, ctx: Context) -> None:
    headers = {"Authorization": f"Bearer {token_of(ctx, 'vera', 'viewer')}"}
    answer = strict.post("/api/v1/users", json={"name": "eve", "role": "admin"}, headers=headers)
    assert answer.status_code == 403
    assert "vera may not" in answer.json()["message"]
    assert strict.post("/api/v1/events", content=b"x", headers=headers).status_code == 403
    assert strict.post("/api/v1/tick", headers=headers).status_code == 403


def test_acting_as_a_user_is_only_for_the_owner(here: TestClient, strict: TestClient, ctx: Context) -> None:
    token = token_of(ctx, "ada", "viewer")
    assert here.get("/api/v1/whoami", headers={"X-Loopwright-As": "ada"}).json()["name"] == "ada"
    both = {"Authorization": f"Bearer {token}", "X-Loopwright-As": "local"}
    assert strict.get("/api/v1/whoami", headers=both).json()["name"] == "ada"


def test_errors_are_json_with_what_to_do(here: TestClient) -> None:
    unknown = here.get("/api/v1/models/late")
    assert unknown.status_code == 404
    assert unknown.json()["error"] == "NotFound"
    unfit = here.post("/api/v1/users", json={"nmae": "ada"})
    assert unfit.status_code == 422
    assert unfit.json()["error"] == "BadInput"
    assert here.get("/api/v1/nothing").status_code == 404


def test_every_operation_is_in_the_document(here: TestClient) -> None:
    paths = here.get("/openapi.json").json()["paths"]
    assert "post" in paths["/api/v1/models/{model}/rollback"]
    assert "get" in paths["/api/v1/status"]


def test_bundle_files_stay_in_their_bundle(here: TestClient) -> None:
    for digest in ("x", "0" * 64, "../keys", "A" * 64):
        assert here.get(f"/api/v1/bundles/{digest}/files/manifest.json").status_code == 404


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("example.com", False),
    ],
)
def test_loopback_is_told_from_other_addresses(host: str, inside: bool) -> None:
    assert is_loopback(host) is inside


def test_an_open_address_is_refused_until_somebody_has_a_token() -> None:
    check_binding("127.0.0.1", anyone=False, local=True)
    with pytest.raises(Refused, match="no token yet"):
        check_binding("0.0.0.0", anyone=False, local=False)
    check_binding("0.0.0.0", anyone=True, local=False)
    with pytest.raises(BadInput):
        check_binding("0.0.0.0", anyone=True, local=True)


def test_two_authorization_headers_are_refused(strict: TestClient, ctx: Context) -> None:
    token = token_of(ctx, "ada", "admin")
    twice = [("Authorization", f"Bearer {token}"), ("Authorization", "Bearer lw_x_y")]
    assert strict.get("/api/v1/whoami", headers=twice).status_code == 401
    assert strict.get("/api/v1/whoami", headers=[twice[0], twice[0]]).status_code == 401


@pytest.mark.parametrize("name", ["Origin", "X-CSRF-Token", "X-Loopwright-As", "Sec-Fetch-Site"])
def test_a_header_that_two_programs_would_read_differently_is_refused(here: TestClient, name: str) -> None:
    assert here.get("/api/v1/whoami", headers=[(name, "a"), (name, "b")]).status_code == 422


@pytest.mark.parametrize("where", ["token={}", "access_token={}", "x=Bearer%20{}", "q=%6c%77_{rest}"])
def test_a_token_in_an_address_is_refused_and_not_used(strict: TestClient, ctx: Context, where: str) -> None:
    token = token_of(ctx, "ada", "admin")
    query = where.format(token, rest=token.removeprefix("lw_"))
    assert strict.get(f"/api/v1/whoami?{query}").status_code == 401
    answer = strict.get(f"/api/v1/whoami?{query}", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 401


def scoped(ctx: Context, *scopes: str, role: str = "developer") -> dict[str, str]:
    find("access.add_user")(ctx, name="bot", role=role, service=True)
    made: Any = find("access.create_token")(ctx, user="bot", scopes=list(scopes))
    return {"Authorization": f"Bearer {made['token']}"}


def test_a_token_for_serving_is_for_nothing_else(strict: TestClient, ctx: Context) -> None:
    serve = scoped(ctx, "serve")
    assert strict.get("/api/v1/keys", headers=serve).status_code == 200
    assert strict.get("/api/v1/routes", headers=serve).status_code == 200
    assert strict.get(f"/api/v1/bundles/{'0' * 64}/files/x", headers=serve).status_code == 404
    assert (
        strict.post("/api/v1/events", content=b"x", headers=serve).status_code == 422
    )  # let in, and not a batch
    assert strict.get("/api/v1/whoami", headers=serve).json()["scopes"] == ["serve"]
    for path in ("/models", "/users", "/status", "/audit", "/tokens", "/where"):
        assert strict.get(f"/api/v1{path}", headers=serve).status_code == 403, path
    for path in ("/metrics", "/docs", "/openapi.json"):
        assert strict.get(path, headers=serve).status_code == 403, path
    assert strict.post("/api/v1/tokens", json={"user": "bot"}, headers=serve).status_code == 403


def test_a_token_for_something_else_does_not_serve(strict: TestClient, ctx: Context) -> None:
    write = scoped(ctx, "write")
    assert strict.post("/api/v1/events", content=b"x", headers=write).status_code == 403
    assert strict.get("/api/v1/routes", headers=write).status_code == 200  # who may read may look


def test_a_token_for_one_models_work_fetches_no_bundles(strict: TestClient, ctx: Context) -> None:
    one = scoped(ctx, "admin:late", role="admin")
    for path in ("/keys", "/routes", f"/bundles/{'0' * 64}/files/x"):
        assert strict.get(f"/api/v1{path}", headers=one).status_code == 403
    assert strict.post("/api/v1/events", content=b"x", headers=one).status_code == 403


def test_a_viewers_token_for_serving_ships_no_events(strict: TestClient, ctx: Context) -> None:
    serve = scoped(ctx, "serve", role="viewer")
    assert strict.get("/api/v1/routes", headers=serve).status_code == 200
    assert strict.post("/api/v1/events", content=b"x", headers=serve).status_code == 403


def test_whoever_builds_a_canary_does_not_write_what_it_is_judged_by(
    strict: TestClient, ctx: Context
) -> None:
    for name, role, status in (("dora", "developer", 403), ("ada", "approver", 403), ("ines", "admin", 422)):
        find("access.add_user")(ctx, name=name, role=role)
        for scopes in (None, ["serve"]):
            made: Any = find("access.create_token")(ctx, user=name, scopes=scopes)
            sent = strict.post(
                "/api/v1/events", content=b"x", headers={"Authorization": f"Bearer {made['token']}"}
            )
            assert sent.status_code == status, "422: let in, and not a batch"
    assert strict.post("/api/v1/events", content=b"x", headers=scoped(ctx, "serve")).status_code == 422


def test_a_change_in_mlflow_under_another_name_is_written_down(here: TestClient, ctx: Context) -> None:
    find("access.add_user")(ctx, name="ada")
    headers = {"X-Loopwright-As": "ada"}
    here.get("/mlflow/x", headers=headers)
    assert find("audit.show")(ctx, action="user.assumed") == []
    for _ in range(3):
        assert here.post("/mlflow/x", headers=headers).text == "ada"
    rows: Any = find("audit.show")(ctx, action="user.assumed")
    assert [(row["actor"], row["subject"], row["payload"]) for row in rows] == [
        ("local", "ada", {"through": "mlflow"})
    ]
