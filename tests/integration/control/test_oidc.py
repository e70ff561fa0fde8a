"""People sign in at an OpenID Connect provider: a real one, and one that lies."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from starlette.testclient import TestClient

from loopwright.control.access import LOCAL
from loopwright.control.app import create_app
from loopwright.control.client import connect
from loopwright.control.context import Context, open_context
from loopwright.control.controllers.loop import Controllers
from loopwright.control.oidc import Provider
from loopwright.control.operation import find
from loopwright.kernel.actor import Role
from loopwright.kernel.clock import utc_now
from loopwright.kernel.errors import BadInput, Unavailable
from tests.conftest import free_port
from tests.integration.control.provider import Liar, running

Start = Callable[..., Any]
PEOPLE = [
    {"sub": "4711", "preferred_username": "ada", "email": "ada@example.com", "groups": ["ml", "leads"]},
    {"sub": "4712", "preferred_username": "bob", "groups": ["ml"]},
    {"sub": "4713", "preferred_username": "eve", "groups": ["marketing"]},
]
SECTION = {
    "client_id": "loopwright", "roles": {"ml": "developer", "leads": "approver"},
    "teams": {"leads": {"flights": "admin"}},
}  # fmt: skip


@pytest.fixture
def provider() -> Iterator[str]:
    """A real provider in a process of its own; its issuer."""
    port = free_port()
    words = [sys.executable, "-m", "oidc_provider_mock", "--port", str(port), "--require-nonce", "true"]
    for person in PEOPLE:
        words += ["--user-claims", json.dumps(person)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(900):
            try:
                httpx.get(f"{url}/.well-known/openid-configuration", trust_env=False)
                break
            except httpx.TransportError:
                assert process.poll() is None
                time.sleep(0.1)
        else:
            pytest.fail("the provider does not answer")
        yield url
    finally:
        process.kill()
        process.wait()


class Browser(httpx.Client):
    """Follows redirects and keeps cookies, as a person's would."""

    def __init__(self, home: str) -> None:
        super().__init__(base_url=home, follow_redirects=True, trust_env=False, timeout=30)

    def sign_in(self, who: str, next_page: str = "/api/v1/whoami") -> httpx.Response:
        asked = self.get("/login/oidc", params={"next": next_page})
        assert "Authorize Client" in asked.text
        return self.post(str(asked.url), data={"sub": who})

    def change(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        headers = {"Origin": str(self.base_url).rstrip("/"), "X-CSRF-Token": self.cookies["lw_csrf"]}
        return self.request(method, path, headers=headers, **arguments)


def test_people_sign_in_at_a_real_provider_and_out_again(start: Start, home: Path, provider: str) -> None:
    secret = home / "keys" / "oidc"
    secret.touch(mode=0o600)
    secret.write_text("any will do")
    section = SECTION | {"issuer": provider, "client_secret_file": str(secret)}
    (home / "home.json").write_text(json.dumps({"oidc": section}))
    up = start("--require-token")
    with Browser(up.url) as ada, Browser(up.url) as eve, Browser(up.url) as bob:
        page = ada.get("/mlflow/", headers={"Accept": "text/html"})
        assert page.url.path == "/login"
        assert "/login/oidc?next=%2Fmlflow%2F" in page.text
        told = ada.sign_in("4711").json()
        assert (told["name"], told["role"], told["teams"]) == ("ada", "approver", {"flights": "admin"})
        assert (told["scopes"], told["via"]) == (None, "session")
        searched = {"max_results": 10}
        path = "/mlflow/ajax-api/2.0/mlflow/experiments/search"
        assert ada.post(path, json=searched).status_code == 403  # no origin told
        own, foreign = {"Origin": up.url}, {"Origin": "http://evil.example"}
        assert ada.post(path, json=searched, headers=own).status_code == 200
        assert ada.post(path, json=searched, headers=foreign).status_code == 403
        assert ada.post("/api/v1/tokens", json={"user": "ada"}, headers=own).status_code == 403
        assert ada.change("POST", "/api/v1/tokens", json={"user": "ada"}).status_code == 200

        stranger = eve.sign_in("4713")
        assert stranger.status_code == 403
        assert "none of their groups" in stranger.text
        assert eve.get("/api/v1/whoami").status_code == 401

        assert bob.sign_in("4712").json()["role"] == "developer"
        connect(home).call("access.set_user", name="bob", disabled=True)
        assert bob.get("/api/v1/whoami").status_code == 401
        assert bob.sign_in("4712").status_code == 401

        assert "lw_session" in ada.cookies
        assert ada.post("/logout", headers=own).url.path == "/login"
        assert "lw_session" not in ada.cookies
        assert ada.get("/api/v1/whoami").status_code == 401
    assert up.stop() == 0
    users = {user["name"]: user["identity"] for user in connect(home).call("access.users")}
    assert users == {"ada": f"{provider} 4711", "bob": f"{provider} 4712"}
    opened = connect(home).call("audit.show", action="session.opened")
    assert [row["actor"] for row in opened] == ["ada", "bob"]
    denied = connect(home).call("audit.show", action="access.denied", limit=1000)
    assert any("none of their groups" in row["payload"]["why"] for row in denied)
    assert connect(home).call("audit.verify")["ok"]


async def _mlflow(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"mlflow"})


class Shifted:
    """The machine's clock, moved."""

    def __init__(self) -> None:
        self.by = timedelta()

    def __call__(self) -> Any:
        return utc_now() + self.by


@pytest.fixture
def clock() -> Shifted:
    return Shifted()


@pytest.fixture
def ctx(home: Path, clock: Shifted) -> Context:
    return open_context(home, LOCAL, clock=clock)


@pytest.fixture
def liar() -> Iterator[Liar]:
    with running(Liar()) as found:
        yield found


@pytest.fixture
def browse(ctx: Context, liar: Liar) -> Callable[..., TestClient]:
    def open_one(**section: Any) -> TestClient:
        text = json.dumps({"oidc": SECTION | {"issuer": liar.url} | section})
        ctx.home.config.write_text(text)
        app = create_app(ctx, local=False, make_mlflow=lambda: _mlflow, controllers=Controllers(ctx, []))
        return TestClient(
            app, base_url="http://127.0.0.1:8080", client=("127.0.0.1", 1), follow_redirects=False
        )

    return open_one


def begin(browser: TestClient) -> str:
    """Return where the browser is sent."""
    return str(browser.get("/login/oidc?next=/docs").headers["location"])


def come_back(browser: TestClient, url: str, code: str, **changed: str) -> httpx.Response:
    asked = parse_qs(urlsplit(url).query)
    answer: Any = browser.get("/auth/callback", params={"code": code, "state": asked["state"][0]} | changed)
    return answer  # type: ignore[no-any-return]


def sign_in(browser: TestClient, liar: Liar) -> httpx.Response:
    url = begin(browser)
    return come_back(browser, url, liar.authorize(url))


def refused(answer: httpx.Response, why: str, status: int = 401) -> None:
    assert answer.status_code == status, answer.text
    assert why in answer.text, answer.text
    assert not any(cookie.startswith("lw_session=") for cookie in answer.headers.get_list("set-cookie"))


def test_the_flow_has_state_nonce_and_pkce_and_keeps_the_verifier(browse: Any, liar: Liar) -> None:
    browser = browse()
    url = begin(browser)
    asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert asked["response_type"] == "code"
    assert asked["code_challenge_method"] == "S256"
    assert min(len(asked["state"]), len(asked["nonce"]), len(asked["code_challenge"])) >= 43
    assert asked["redirect_uri"] == "http://127.0.0.1:8080/auth/callback"
    assert not {asked["state"], asked["nonce"]} & set(browser.cookies.values())
    answer = come_back(browser, url, liar.authorize(url))
    assert (answer.status_code, answer.headers["location"]) == (303, "/docs")
    assert browser.get("/api/v1/whoami").json()["name"] == "ada"


def test_the_clients_secret_goes_to_the_provider_alone(browse: Any, liar: Liar, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("s3cret\n")
    file.chmod(0o600)
    answer = sign_in(browse(client_secret_file=str(file)), liar)
    assert answer.status_code == 303
    assert liar.auth[0].startswith("Basic ")
    file.chmod(0o644)
    with pytest.raises(BadInput, match="others may read"):
        browse(client_secret_file=str(file))


def test_a_wrong_state_is_refused(browse: Any, liar: Liar) -> None:
    browser = browse()
    url = begin(browser)
    code = liar.authorize(url)
    refused(come_back(browser, url, code, state="x"), "another sign-in")
    refused(come_back(browser, url, code, state=""), "no sign-in")  # the beginning is gone with the first try


def test_an_answer_is_taken_by_the_browser_that_asked_and_no_other(browse: Any, liar: Liar) -> None:
    victim, attacker = browse(), browse()
    url = begin(attacker)
    refused(come_back(victim, url, liar.authorize(url)), "has begun no sign-in")
    mine = begin(victim)
    refused(come_back(victim, url, liar.authorize(mine)), "another sign-in")


def test_a_code_of_another_sign_in_is_refused(browse: Any, liar: Liar) -> None:
    browser = browse()
    theirs, mine = begin(browse()), begin(browser)
    refused(come_back(browser, mine, liar.authorize(theirs)), "invalid_grant")  # its verifier is not ours


def test_a_wrong_nonce_is_refused(browse: Any, liar: Liar) -> None:
    for nonce in ("x", "", None):
        liar.claims = {"nonce": nonce}
        refused(sign_in(browse(), liar), "id token is not good")


def test_a_replayed_answer_is_refused(browse: Any, liar: Liar) -> None:
    browser = browse()
    url = begin(browser)
    cookie, code = browser.cookies["lw_oidc"], liar.authorize(url)
    assert come_back(browser, url, code).status_code == 303
    browser.cookies.set("lw_oidc", cookie)
    refused(come_back(browser, url, code), "finished already")


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1_000_000_000}, {"exp": None}, {"aud": "another"}, {"aud": None}, {"iss": "https://evil.example"},
        {"iss": None}, {"sub": None}, {"iat": None}, {"aud": ["loopwright", "another"], "azp": "another"},
        {"aud": ["loopwright", "another"]}, {"exp": "never"},
    ],
)  # fmt: skip
def test_an_id_token_that_does_not_fit_is_refused(browse: Any, liar: Liar, claims: dict[str, Any]) -> None:
    liar.claims = claims
    refused(sign_in(browse(), liar), "id token is not good")


@pytest.mark.parametrize("alg", ["none", "HS256"])
def test_a_token_that_the_provider_did_not_sign_with_its_key_is_refused(
    browse: Any, liar: Liar, alg: str
) -> None:
    liar.alg = alg
    refused(sign_in(browse(), liar), "id token is not good")


def test_a_token_signed_with_another_key_is_refused(browse: Any, liar: Liar) -> None:
    liar.signs_with_other_key = True
    refused(sign_in(browse(), liar), "id token is not good")


def test_a_provider_that_changed_its_key_is_asked_again(browse: Any, liar: Liar, clock: Shifted) -> None:
    browser = browse()
    assert sign_in(browser, liar).status_code == 303
    liar.key = liar.other_key
    clock.by += timedelta(minutes=1)
    assert sign_in(browser, liar).status_code == 303


def test_a_sign_in_does_not_wait_for_ever(browse: Any, liar: Liar, clock: Shifted) -> None:
    browser = browse()
    url = begin(browser)
    clock.by += timedelta(minutes=11)
    refused(come_back(browser, url, liar.authorize(url)), "too long ago")


def test_a_no_of_the_provider_is_told_without_its_markup(browse: Any, liar: Liar) -> None:
    browser = browse()
    url = begin(browser)
    state = parse_qs(urlsplit(url).query)["state"][0]
    answer = browser.get("/auth/callback", params={"state": state, "error": "access_denied<script>"})
    refused(answer, "access_denied")
    assert "<script" not in answer.text


def test_an_answer_that_says_something_twice_is_refused(browse: Any, liar: Liar) -> None:
    browser = browse()
    url = begin(browser)
    state, code = parse_qs(urlsplit(url).query)["state"][0], liar.authorize(url)
    refused(browser.get(f"/auth/callback?code={code}&state={state}&state=x"), "twice")


def test_a_provider_that_calls_itself_something_else_is_not_used(browse: Any, liar: Liar) -> None:
    liar.issuer = "https://evil.example"
    answer = browse().get("/login/oidc")
    assert answer.status_code == 503
    assert "calls itself something else" in answer.text


def test_a_name_or_e_mail_gives_nobody_another_users_rights(browse: Any, liar: Liar, ctx: Context) -> None:
    find("access.add_user")(ctx, name="ada", role="admin")
    browser = browse()
    assert sign_in(browser, liar).status_code == 303
    told = browser.get("/api/v1/whoami").json()
    assert told["name"].startswith("ada-")
    assert told["role"] == "developer"


def test_an_admin_says_who_somebody_is_at_the_provider(browse: Any, liar: Liar, ctx: Context) -> None:
    find("access.add_user")(ctx, name="root", role="admin")
    find("access.add_user")(ctx, name="ada", role="admin", identity=f"{liar.url} 4711")
    browser = browse(roles={}, teams={})
    assert sign_in(browser, liar).status_code == 303
    assert browser.get("/api/v1/whoami").json()["name"] == "ada"
    assert browser.get("/api/v1/whoami").json()["role"] == "admin"
    liar.claims = {"sub": "4712"}
    refused(sign_in(browser, liar), "none of their groups", 403)


def test_groups_decide_anew_at_every_sign_in(browse: Any, liar: Liar, ctx: Context) -> None:
    find("access.add_user")(ctx, name="root", role="admin")
    browser = browse(default_role="viewer")
    for groups, role, teams in (
        (["ml"], "developer", {}), (["ml", "leads"], "approver", {"flights": "admin"}), ("ml", "developer", {}),
        ([], "viewer", {}),
    ):  # fmt: skip
        liar.claims = {"groups": groups}
        assert sign_in(browser, liar).status_code == 303
        told = browser.get("/api/v1/whoami").json()
        assert (told["role"], told["teams"]) == (role, teams)
    changed: Any = find("audit.show")(ctx, action="user.changed")
    assert [row["payload"]["role"] for row in changed] == ["approver", "developer", "viewer"]


def test_groups_may_come_from_userinfo_about_the_same_person(browse: Any, liar: Liar) -> None:
    liar.claims = {"groups": None}
    liar.userinfo = {"sub": "4711", "groups": ["leads"]}
    browser = browse()
    assert sign_in(browser, liar).status_code == 303
    assert browser.get("/api/v1/whoami").json()["role"] == "approver"
    liar.userinfo = {"sub": "1", "groups": ["leads"]}
    refused(sign_in(browser, liar), "somebody else")


@pytest.mark.parametrize(
    "section",
    [{}, {"issuer": "https://x"}, {"issuer": "http://id.example", "client_id": "x"},
     {"issuer": "https://x", "client_id": "x", "rolse": {}},
     {"issuer": "https://x", "client_id": "x", "roles": {"g": "king"}},
     {"issuer": "https://x", "client_id": "x", "teams": {"g": {"a b": "admin"}}}, "x"],
)  # fmt: skip
def test_a_section_that_cannot_be_used_is_named(section: object) -> None:
    with pytest.raises(BadInput):
        Provider.read(section, where="home.json: oidc")


def test_the_secret_may_come_from_the_environment() -> None:
    section = {"issuer": "https://x", "client_id": "x", "default_role": "viewer"}
    found = Provider.read(section, where="", environment={"LOOPWRIGHT_OIDC_SECRET": "s"})
    assert (found.client_secret, found.default_role) == ("s", Role.VIEWER)
    with pytest.raises(Unavailable, match="cannot read"):
        Provider.read(section | {"client_secret_file": "/nowhere"}, where="")
