"""What an attacker would try at the door and through the operations, besides what the rooms' own tests hold."""

import base64
import os
import stat
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from loopwright.control.access import LOCAL, holds_token, parse
from loopwright.control.context import Context, open_context
from loopwright.control.denials import MOST, Denial, Denials
from loopwright.control.oidc import Provider, SignIn
from loopwright.control.operation import every_operation, find
from loopwright.kernel.actor import Actor, Role, Scope
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Refused, Unauthenticated, Unavailable
from tests.unit.control.test_doorkeeper import browse, token_of
from tests.unit.control.test_operations import a_spec

NOBODY = {"Accept": "text/html"}


@pytest.fixture
def here(ctx: Context) -> Iterator[TestClient]:
    with browse(ctx, local=True) as client:
        yield client


@pytest.fixture
def strict(ctx: Context) -> Iterator[TestClient]:
    with browse(ctx, local=False) as client:
        yield client


def denials(ctx: Context, client: TestClient | None = None) -> list[Any]:
    if client is not None:
        client.app.denials.write(all_of_them=True)  # type: ignore[attr-defined]
    rows: Any = find("audit.show")(ctx, action="access.denied", limit=10_000)
    return list(rows)


# Secrets.


def test_a_token_in_a_path_is_not_written_down(strict: TestClient, ctx: Context) -> None:
    """A token is revoked by its id or by itself: whoever does that with too small a token must not tell the log."""
    token = token_of(ctx, "ada", "admin")
    small: Any = find("access.create_token")(ctx, user="ada", scopes=["read"])
    mine = {"Authorization": f"Bearer {small['token']}"}
    assert strict.delete(f"/api/v1/tokens/{token}", headers=mine).status_code == 403
    assert strict.delete(f"/api/v1/tokens/{token}").status_code == 401
    assert strict.get(f"/api/v1/x/{token}", headers=NOBODY, follow_redirects=False).status_code == 303
    rows = denials(ctx, strict)
    assert len(rows) == 3
    assert not holds_token(str(rows))
    assert parse(token)[1] not in str(rows)


def test_a_page_whose_address_holds_a_token_leads_to_signing_in_without_it(
    strict: TestClient, ctx: Context
) -> None:
    """The sign-in page refuses a token in its own address too: it would send the browser round and round."""
    token = token_of(ctx, "ada", "admin")
    for address in (f"/docs?token={token}", f"/login?next=/docs%3Ftoken%3D{token}"):
        first = strict.get(address, headers=NOBODY, follow_redirects=False)
        assert first.status_code == 303
        assert parse(token)[1] not in first.headers["location"]
        assert (
            strict.get(first.headers["location"], headers=NOBODY, follow_redirects=False).status_code == 200
        )


# What cannot be read.


@pytest.mark.parametrize(
    "headers", [{"Host": "["}, {"Host": "[::1"}, {"Host": "127.0.0.1:x"}, {"Origin": "http://["}], ids=str
)
def test_a_host_or_origin_that_cannot_be_read_is_nobodys(here: TestClient, headers: dict[str, str]) -> None:
    wanted = 401 if "Host" in headers else 403
    assert here.post("/api/v1/tick", headers=headers).status_code == wanted
    assert here.get("/api/v1/whoami", headers=headers).status_code == wanted


@pytest.mark.parametrize("token", ["lw_\0_x", "lw_" + "a" * 100_000 + "_x", "lw_é_x", "lw_0123456789AB_x"])
def test_what_no_id_can_be_never_reaches_the_ledger(strict: TestClient, token: str) -> None:
    with pytest.raises(Unauthenticated):
        parse(token)
    basic = base64.b64encode(f":{token}".encode()).decode()
    assert strict.get("/api/v1/whoami", headers={"Authorization": f"Basic {basic}"}).status_code == 401


def test_whoever_may_not_come_in_is_told_nothing_of_the_machine(
    strict: TestClient, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loopwright.ledger.engine import Ledger

    def away(self: Ledger) -> None:
        raise Unavailable(
            "the ledger does not answer",
            where="postgresql://10.1.2.3/lw",
            got='password of user "lw" is wrong',
        )

    monkeypatch.setattr(Ledger, "read", away)
    answer = strict.get("/readyz")
    assert answer.status_code == 503
    assert "the ledger does not answer" in answer.text
    assert "10.1.2.3" not in answer.text
    assert "password" not in answer.text


# Hiding among denials.


def test_strangers_cannot_hide_what_somebody_known_was_refused(ctx: Context) -> None:
    book = Denials(ctx.ledger, ctx.clock)
    for number in range(MOST * 3):
        book.note(Denial("nobody", f"GET /{number}", "who are you?", 401, "10.0.0.7"))
    book.note(Denial("eve", "POST /api/v1/users", "eve may not", 403, "10.0.0.9"))
    book.write()
    rows = denials(ctx)
    assert ("eve", "POST /api/v1/users") in {(row["actor"], row["payload"]["act"]) for row in rows}


def test_one_address_cannot_hide_another_and_an_actor_cannot_hide_in_their_own_crowd(ctx: Context) -> None:
    book = Denials(ctx.ledger, ctx.clock)
    for number in range(MOST * 3):
        book.note(Denial("eve", f"GET /{number}", "eve may not", 403, "10.0.0.9"))
    book.note(Denial("mallory", "POST /api/v1/users", "mallory may not", 403, "10.0.0.9"))
    book.write()
    rows = denials(ctx)
    by = {row["actor"] for row in rows}
    assert by == {"eve", "mallory"}, "what is counted together is still eve's"
    assert len(rows) < MOST * 2
    assert sum(row["payload"]["count"] for row in rows if row["actor"] == "eve") == MOST * 3


# Other sites' pages.


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_sites_page_asks_the_api_nothing_in_the_owners_name(here: TestClient, site: str) -> None:
    """Some questions are work: walking the audit log, running the code kept with a run."""
    answer = here.get("/api/v1/audit/verify", headers={"Sec-Fetch-Site": site})
    assert answer.status_code == 403
    for fine in ("same-origin", "none"):
        assert here.get("/api/v1/audit/verify", headers={"Sec-Fetch-Site": fine}).status_code == 200
    page = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Accept": "text/html"}
    assert here.get("/docs", headers=page).status_code == 200, "a link to a page is no question"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_a_script_of_another_page_reads_nothing_of_mlflow(here: TestClient, headers: dict[str, str]) -> None:
    """MLflow lets pages of any port of this machine read along, with the cookies."""
    assert here.get("/mlflow/api/2.0/mlflow/experiments/search", headers=headers).status_code == 403
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Accept": "text/html"}
    assert here.get("/mlflow/", headers=link).status_code == 200
    own = {"Origin": "http://127.0.0.1:8080", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    assert here.get("/mlflow/api/2.0/mlflow/experiments/search", headers=own).status_code == 200
    assert here.get("/mlflow/api/2.0/mlflow/experiments/search").status_code == 200, "a program"


def test_no_page_of_ours_brings_scripts_from_elsewhere(here: TestClient) -> None:
    """They would run with the rights of whoever is signed in."""
    for path in ("/docs", "/login"):
        page = here.get(path)
        assert (page.status_code, "<script" in page.text, " src=" in page.text) == (200, False, False)
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
    text = here.get("/docs").text
    for operation in every_operation():
        assert f'id="{operation.name}"' in text


def test_a_program_with_a_token_asks_whatever_header_it_sends(strict: TestClient, ctx: Context) -> None:
    token = token_of(ctx, "ada", "viewer")
    headers = {"Authorization": f"Bearer {token}", "Sec-Fetch-Site": "cross-site"}
    assert strict.get("/api/v1/whoami", headers=headers).status_code == 200


# A yes to one thing taken for a yes to another.


def test_a_yes_to_staging_is_never_taken_for_a_yes_to_production(
    people: dict[str, Context], register: Callable[..., int]
) -> None:
    """Whoever asks for Production while somebody reads the request to Staging would else get that for this."""
    asks: Any = {"model": "late", "version": register()}
    find("models.promote")(people["dora"], **asks, to="staging")
    find("models.promote")(people["dora"], **asks, to="production")
    for act in ("models.approve", "models.reject"):
        with pytest.raises(Conflict, match="say which one"):
            find(act)(people["ada"], **asks)
    with pytest.raises(Conflict, match="say which one"):
        find("models.withdraw")(people["dora"], **asks)
    said: Any = find("models.approve")(people["ada"], **asks, to="staging")
    assert (said["stage"], said["state"]) == ("Staging", "effective")
    with pytest.raises(NotFound, match="no promotion to Staging waits"):
        find("models.approve")(people["bob"], **asks, to="staging")
    assert find("models.withdraw")(people["dora"], **asks)["stage"] == "Production"  # type: ignore[index,call-overload]


# More than the token is for, more than the role is for.


def test_a_run_acts_with_no_more_than_the_token_it_came_with(ctx: Context) -> None:
    """A token to write, in a build's hands, may be an admin's: a run with it loosens no policy."""
    writes = ctx.acting_as(Actor("ada", Role.ADMIN, scopes=(Scope("write"),)))
    assert find("system.where")(writes)["role"] == "developer"  # type: ignore[index,call-overload]


def test_rows_of_data_are_for_those_who_work_on_the_model(people: dict[str, Context]) -> None:
    with pytest.raises(Refused, match="role developer"):
        find("data.quarantine")(people["vera"], model="late", table="flights")
    with pytest.raises(NotFound):
        find("data.quarantine")(people["dora"], model="late", table="flights")


# Too much, and what no database holds.


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("models.promote", {"model": "late", "version": 1, "reason": "x" * 200_000}),
        ("models.approve", {"model": "late", "version": 1, "comment": "x" * 200_000}),
        ("keys.rotate", {"reason": "x" * 200_000}),
        ("trust.request", {"digest": "0" * 64, "name": "x" * 200_000, "globals": [], "reason": "r"}),
        ("trust.request", {"digest": "0" * 64, "name": "n", "globals": ["a\0.b"], "reason": "r"}),
        ("models.show", {"model": "la\0te"}),
        ("models.annotate", {"model": "late\0", "version": 1, "key": "k", "value": "v"}),
        ("access.set_user", {"name": "ada\0", "role": "admin"}),
        ("access.revoke_token", {"id": "\0"}),
        ("models.promote", {"model": "late", "version": 1, "reason": "\ud800"}),
        ("projects.apply", {"model": "late", "path": "/p", "spec": {"tags": {"a": ["x" * 2_000_000]}}}),
        ("projects.apply", {"model": "late", "path": "/p", "spec": {"tags": {"a": ["\0"]}}}),
    ],
)
def test_no_text_is_too_long_for_a_row_or_unfit_for_a_database(
    ctx: Context, register: Callable[..., int], name: str, arguments: dict[str, Any]
) -> None:
    register()
    with pytest.raises(BadInput, match=r"too long|too large|no text"):
        find(name)(ctx, **arguments)


def test_a_long_reason_and_a_card_of_the_longest_kind_still_fit(
    ctx: Context, register: Callable[..., int]
) -> None:
    asks: dict[str, Any] = {"model": "late", "version": register()}
    find("models.promote")(ctx, **asks, reason="é\n" * 1000, to="staging")
    find("documents.record")(ctx, **asks, text="## Intended use\n\n" + "x" * 99_000)


def test_an_admin_of_a_team_neither_loosens_what_binds_teams_nor_says_whose_code_runs(ctx: Context) -> None:
    """One person could else be author, lower the tier and approve alone; or run code beside the home's keys."""
    tina = ctx.acting_as(Actor("tina", Role.VIEWER, teams=(("flights", Role.ADMIN),)))
    apply = find("projects.apply")
    standing: dict[str, Any] = {"model": "late", "path": "/srv/late", "spec": {**a_spec(), "team": "flights"}}
    with pytest.raises(Refused, match="from where the control plane trains"):
        apply(tina, **standing)
    apply(ctx, **standing)
    with pytest.raises(Refused, match="from where the control plane trains"):
        apply(tina, **standing | {"path": "/tmp/hers"})
    for loose in ({"tier": "low"}, {"author_may_approve": True}, {"approvals": {"production": 1}}):
        with pytest.raises(Refused, match="may not loosen the policy"):
            apply(tina, **standing | {"spec": {**a_spec(**loose), "team": "flights"}})
    strict = {**a_spec(approvals={"production": 3}), "team": "flights"}
    assert apply(tina, **standing | {"spec": strict})["changed"] == ["policy"]  # type: ignore[index,call-overload]


def test_a_provider_that_is_away_takes_one_thread_not_all(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may come to /login/oidc."""
    asked: list[str] = []

    def away(self: SignIn, url: str, session: Any = None) -> Any:
        asked.append(url)
        with pytest.raises(Unavailable):
            self.begin("http://127.0.0.1/auth/callback", "/")  # while the first one still waits
        raise Unavailable("the provider does not answer")

    monkeypatch.setattr(SignIn, "_get", away)
    flow = SignIn(Provider("https://id.example", "loopwright"), ctx.clock)
    for _ in range(50):
        with pytest.raises(Unavailable):
            flow.begin("http://127.0.0.1/auth/callback", "/")
    assert len(asked) == 1
    ctx.clock.move(timedelta(seconds=6))  # type: ignore[attr-defined]
    with pytest.raises(Unavailable):
        flow.begin("http://127.0.0.1/auth/callback", "/")
    assert len(asked) == 2


def test_a_new_home_is_its_owners_only_and_the_doctor_names_one_that_is_not(tmp_path: Path) -> None:
    """It holds data, predictions with their inputs, and who may do what."""
    before = os.umask(0o022)
    try:
        ctx = open_context(tmp_path / "new", LOCAL, create=True)
    finally:
        os.umask(before)

    def private() -> Any:
        found: Any = find("system.doctor")(ctx)
        return next(check for check in found if check["check"] == "home is private")

    assert stat.S_IMODE(ctx.home.root.stat().st_mode) == 0o700
    assert private()["ok"]
    ctx.home.root.chmod(0o755)
    assert (private()["ok"], "chmod o-rwx" in private()["next"]) == (False, True)
    ctx.ledger.dispose()


def test_whose_tokens_end_soon_is_for_admins(people: dict[str, Context]) -> None:
    for name in ("vera", "dora", "ada"):
        with pytest.raises(Refused, match="role admin"):
            find("system.doctor")(people[name])


def test_nobody_writes_what_a_run_says_of_itself(
    people: dict[str, Context], register: Callable[..., int]
) -> None:
    asks: dict[str, Any] = {"model": "late", "version": register()}
    for key in ("reason", "trained_until", "semver_reason"):
        with pytest.raises(Refused, match="the run's own"):
            find("models.annotate")(people["dora"], **asks, key=key, value="only words changed")
    for number in range(200):
        find("models.annotate")(people["dora"], **asks, key=f"n{number}", value="x")
    with pytest.raises(BadInput, match="too many notes"):
        find("models.annotate")(people["dora"], **asks, key="one more", value="x")
    find("models.annotate")(people["dora"], **asks, key="n0", value="changed")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("models.show", {"model": "late", "version": 2**70}),
        ("models.show", {"model": "late", "before": 2**31}),
        ("models.promote", {"model": "late", "version": -(2**70)}),
        ("lineage.events", {"after": 2**70}),
        ("audit.show", {"since": "0001-01-01T00:00:00+14:00"}),
        ("audit.export", {"until": "9999-12-31T23:59:59-14:00"}),
        ("monitoring.add_labels",
         {"model": "late", "labels": [{"id": "a", "label": 1, "available_at": "0001-01-01T00:00:00+14:00"}]}),
    ],
)  # fmt: skip
def test_no_number_or_time_is_beyond_what_a_database_holds(
    ctx: Context, register: Callable[..., int], name: str, arguments: dict[str, Any]
) -> None:
    register()
    with pytest.raises(BadInput, match="out of range"):
        find(name)(ctx, **arguments)
