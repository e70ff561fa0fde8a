"""Sessions of people in browsers: how they begin and end, and what another site's page can do with one."""

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from httpx import Response
from starlette.testclient import TestClient

from loopwright.control import sessions
from loopwright.control.access import hash_secret
from loopwright.control.app import create_app
from loopwright.control.caller import parse_networks
from loopwright.control.context import Context
from loopwright.control.controllers.loop import Controllers
from loopwright.control.operation import find
from tests.unit.control.test_doorkeeper import mlflow, token_of

HERE = "http://127.0.0.1:8080"
OWN = {"Origin": HERE}
Browse = Callable[..., TestClient]


@pytest.fixture
def browse(ctx: Context) -> Iterator[Browse]:
    """Open a browser that knows nothing yet, on a control plane where everybody must sign in."""
    opened: list[TestClient] = []

    def make(url: str = HERE, **settings: Any) -> TestClient:
        app = create_app(
            ctx, local=False, make_mlflow=lambda: mlflow, controllers=Controllers(ctx, []), **settings
        )
        client = TestClient(app, base_url=url, client=("127.0.0.1", 50000), follow_redirects=False)
        opened.append(client.__enter__())
        return client

    yield make
    for client in opened:
        client.__exit__()


def sign_in(client: TestClient, token: str, *, next_page: str = "", origin: str = HERE) -> Response:
    form = re.search(r'name="form" value="([^"]+)"', client.get("/login").text)
    assert form is not None
    fields = {"token": token, "form": form[1], "next": next_page}
    return client.post("/login", data=fields, headers={"Origin": origin})


@pytest.fixture
def ada(ctx: Context) -> str:
    return token_of(ctx, "ada", "admin")


@pytest.fixture
def browser(browse: Browse, ada: str) -> TestClient:
    """ada's, signed in."""
    client = browse()
    assert sign_in(client, ada).status_code == 303
    return client


def csrf(client: TestClient) -> dict[str, str]:
    return OWN | {"X-CSRF-Token": client.cookies["lw_csrf"]}


def test_a_pasted_token_begins_a_session(browse: Browse, ada: str) -> None:
    client = browse()
    answer = sign_in(client, ada, next_page="/docs?x=1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/docs?x=1")
    cookie = next(c for c in answer.headers.get_list("set-cookie") if c.startswith("lw_session="))
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    told = client.get("/api/v1/whoami").json()
    assert told["name"] == "ada"
    assert told["via"].startswith("session of token ")
    assert client.get("/mlflow/x").text == "ada"
    assert "You are <b>ada</b>" in client.get("/login").text


def test_the_ledger_keeps_only_the_hash_of_the_cookie(browser: TestClient, ctx: Context) -> None:
    secret = browser.cookies["lw_session"]
    assert len(secret) >= 43  # 256 bits in base64
    with ctx.ledger.read() as conn:
        rows = [str(tuple(row)) for row in conn.exec_driver_sql("SELECT * FROM lw_sessions")]
        audit = [str(tuple(row)) for row in conn.exec_driver_sql("SELECT * FROM lw_audit")]
    assert hash_secret(secret) in rows[0]
    assert secret not in "".join(rows + audit)


def test_behind_https_the_cookie_is_for_https_only(browse: Browse, ada: str) -> None:
    answer = sign_in(browse("https://loop.example"), ada, origin="https://loop.example")
    assert all("Secure" in c for c in answer.headers.get_list("set-cookie"))


def test_a_change_needs_the_csrf_token(browser: TestClient) -> None:
    body = {"name": "eve", "role": "admin"}
    assert browser.post("/api/v1/users", json=body).status_code == 403
    assert browser.post("/api/v1/users", json=body, headers=OWN).status_code == 403
    assert browser.post("/api/v1/users", json=body, headers=OWN | {"X-CSRF-Token": "x"}).status_code == 403
    assert browser.get("/api/v1/users").json()[0]["name"] == "ada"
    assert len(browser.get("/api/v1/users").json()) == 1
    assert browser.post("/api/v1/users", json=body, headers=csrf(browser)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
     {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://127.0.0.1:9999"},
     {"Origin": HERE, "Sec-Fetch-Site": "cross-site"}],
)  # fmt: skip
def test_another_sites_page_may_not_act_even_with_the_csrf_token(
    browser: TestClient, headers: dict[str, str]
) -> None:
    answer = browser.post("/api/v1/users", json={"name": "eve"}, headers=csrf(browser) | headers)
    assert answer.status_code == 403
    assert "another site" in answer.json()["message"]
    assert browser.post("/mlflow/api/2.0/mlflow/runs/create", json={}, headers=headers).status_code == 403
    assert browser.post("/logout", headers=headers).status_code == 403
    assert browser.get("/api/v1/whoami").status_code == 200


def test_mlflows_own_pages_act_without_our_header_but_prove_their_origin(browser: TestClient) -> None:
    place = "/mlflow/ajax-api/2.0/mlflow/runs/search"
    assert browser.post(place, json={}).status_code == 403
    assert browser.post(place, json={}, headers=OWN).status_code == 200
    assert browser.post(place, json={}, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_bearer_tokens_need_no_csrf_token(browse: Browse, ada: str) -> None:
    headers = {"Authorization": f"Bearer {ada}"}
    assert browse().post("/api/v1/users", json={"name": "bob"}, headers=headers).status_code == 200


def test_signing_in_gives_a_new_secret_and_ends_the_old_session(browser: TestClient, ada: str) -> None:
    before = browser.cookies["lw_session"]
    assert sign_in(browser, ada).status_code == 303
    after = browser.cookies["lw_session"]
    assert after != before
    assert browser.get("/api/v1/whoami").status_code == 200
    browser.cookies.clear()
    browser.cookies.set("lw_session", before)
    assert browser.get("/api/v1/whoami").status_code == 401


def test_a_secret_somebody_else_chose_never_becomes_a_session(browse: Browse, ada: str) -> None:
    client = browse()
    client.cookies.set("lw_session", "fixed", domain="127.0.0.1", path="/")
    sign_in(client, ada)
    other = browse()
    other.cookies.set("lw_session", "fixed")
    assert other.get("/api/v1/whoami").status_code == 401


def test_signing_out_ends_the_session(browser: TestClient) -> None:
    secret = browser.cookies["lw_session"]
    assert browser.post("/logout", headers=OWN).headers["location"] == "/login"
    assert "lw_session" not in browser.cookies
    browser.cookies.set("lw_session", secret)
    assert browser.get("/api/v1/whoami").status_code == 401
    assert browser.post("/logout", headers=OWN).status_code == 303


def test_a_session_ends_when_idle_and_at_its_end(browser: TestClient, ctx: Context) -> None:
    clock: Any = ctx.clock
    for _ in range(5):  # in use, it goes on past the idle time
        clock.move(sessions.IDLE - timedelta(minutes=1))
        assert browser.get("/api/v1/whoami").status_code == 200
    clock.move(sessions.IDLE + timedelta(minutes=2))
    idle = browser.get("/api/v1/whoami")
    assert (idle.status_code, idle.json()["what"]) == (401, "this session was idle for too long")
    clock.move(sessions.LONGEST)
    assert browser.get("/api/v1/whoami").json()["what"] == "this session is over"


def test_the_session_of_a_disabled_user_ends_for_good(browser: TestClient, ctx: Context) -> None:
    find("access.add_user")(ctx, name="root", role="admin")
    find("access.set_user")(ctx, name="ada", disabled=True)
    assert browser.get("/api/v1/whoami").status_code == 401
    find("access.set_user")(ctx, name="ada", disabled=False)
    assert browser.get("/api/v1/whoami").json()["what"] == "this session was ended"


def test_a_session_may_do_what_its_token_may_and_ends_with_it(browse: Browse, ctx: Context) -> None:
    find("access.add_user")(ctx, name="ada", role="admin")
    token: Any = find("access.create_token")(ctx, user="ada", scopes=["read"], days=0.01)
    client = browse()
    assert sign_in(client, token["token"]).status_code == 303
    answer = client.post("/api/v1/users", json={"name": "eve"}, headers=csrf(client))
    assert answer.status_code == 403
    assert "with this token" in answer.json()["message"]
    ctx.clock.move(timedelta(days=0.01))  # type: ignore[attr-defined]
    assert client.get("/api/v1/whoami").status_code == 401


def test_revoking_a_token_ends_its_sessions(browser: TestClient, ctx: Context, ada: str) -> None:
    find("access.revoke_token")(ctx, id=ada)
    assert browser.get("/api/v1/whoami").status_code == 401


def test_a_role_taken_away_counts_at_once(browser: TestClient, ctx: Context) -> None:
    find("access.add_user")(ctx, name="root", role="admin")
    find("access.set_user")(ctx, name="ada", role="viewer")
    assert browser.post("/api/v1/users", json={"name": "x"}, headers=csrf(browser)).status_code == 403


def test_a_service_account_has_no_sessions(browse: Browse, ctx: Context) -> None:
    find("access.add_user")(ctx, name="bot", service=True)
    token: Any = find("access.create_token")(ctx, user="bot")
    answer = sign_in(browse(), token["token"])
    assert answer.status_code == 403
    assert "sessions are for people" in answer.text


def test_the_form_must_be_ours_and_this_browsers(browse: Browse, ada: str) -> None:
    client = browse()
    assert client.post("/login", data={"token": ada}).status_code == 403  # no origin
    assert client.post("/login", data={"token": ada}, headers=OWN).status_code == 403  # no form
    evil = {"Origin": "http://evil.example"}
    assert client.post("/login", data={"token": ada}, headers=evil).status_code == 403
    form = re.search(r'name="form" value="([^"]+)"', browse().get("/login").text)
    assert form is not None
    stolen = {"token": ada, "form": form[1]}
    assert client.post("/login", data=stolen, headers=OWN).status_code == 403  # another browser's
    assert "lw_session" not in client.cookies


@pytest.mark.parametrize(
    "wanted",
    ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "/a\r\nSet-Cookie: x=1",
     "/logout", "/%0d%0a\x00", "a" * 3000, "\t//evil.example"],
)  # fmt: skip
def test_after_signing_in_nobody_is_sent_elsewhere(browse: Browse, ada: str, wanted: str) -> None:
    assert sign_in(browse(), ada, next_page=wanted).headers["location"] == "/mlflow/"


def test_the_page_shows_nothing_it_was_given_as_markup(browse: Browse) -> None:
    page = browse().get("/login", params={"next": '/"><script>alert(1)</script>'})
    assert "<script" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-frame-options"] == "DENY"


def test_a_browser_without_a_session_is_sent_to_sign_in(browse: Browse) -> None:
    client = browse()
    answer = client.get("/mlflow/x?y=1&z=2", headers={"Accept": "text/html,*/*"})
    assert answer.headers["location"] == "/login?next=%2Fmlflow%2Fx%3Fy%3D1%26z%3D2"
    assert client.get("/mlflow/x", headers={"Accept": "application/json"}).status_code == 401


def test_two_session_cookies_are_one_too_many(browser: TestClient) -> None:
    both = f"lw_session=planted; lw_session={browser.cookies['lw_session']}"
    browser.cookies.clear()
    assert browser.get("/api/v1/whoami", headers={"Cookie": both}).status_code == 401


def test_forwarded_headers_count_from_named_proxies_only(browse: Browse, ada: str) -> None:
    forwarded = {
        "X-Forwarded-For": "6.6.6.6, 10.1.1.1",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "loop.example",
    }
    stranger, trusted = browse(), browse(proxies=parse_networks(["127.0.0.1", "10.0.0.0/8"]))
    assert all(
        "Secure" not in c for c in stranger.get("/login", headers=forwarded).headers.get_list("set-cookie")
    )
    assert all("Secure" in c for c in trusted.get("/login", headers=forwarded).headers.get_list("set-cookie"))
    cookie = {"Authorization": f"Bearer {ada}", "Origin": "https://loop.example"}
    assert trusted.post("/api/v1/users", json={"name": "bob"}, headers=cookie | forwarded).status_code == 200
    assert stranger.post("/api/v1/users", json={"name": "eve"}, headers=cookie | forwarded).status_code == 403


def test_a_page_that_outlived_its_session_does_not_keep_its_owner_out(
    browser: TestClient, ctx: Context, ada: str
) -> None:
    ctx.clock.move(sessions.LONGEST)  # type: ignore[attr-defined]
    for _ in range(50):  # MLflow's pages ask on
        assert browser.get("/mlflow/x").status_code == 401
    assert sign_in(browser, ada).status_code == 303


def test_a_script_that_is_refused_opens_no_password_window(browse: Browse) -> None:
    asked = browse().get("/mlflow/x", headers={"Sec-Fetch-Mode": "cors"})
    assert (asked.status_code, asked.headers.get_list("www-authenticate")) == (401, ["Bearer"])
