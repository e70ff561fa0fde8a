"""Users, teams, tokens and scopes: who gets in, for what, and what of it is kept."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.control import access, identify
from loopwright.control.access import Token, User, admit, mint, parse
from loopwright.control.context import Context
from loopwright.control.operation import find
from loopwright.control.store import touch_token
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Refused, Unauthenticated
from loopwright.pipeline.store import save_project
from loopwright.registry.authority import check_team

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
ADA = User("ada", Role.APPROVER, NOON, None)


def token(hashed: str, **changes: datetime) -> Token:
    fields = {"expires_at": None, "revoked_at": None, **changes}
    return Token("id", "ada", hashed, NOON, fields["expires_at"], None, fields["revoked_at"])


def test_a_minted_token_lets_its_user_in() -> None:
    token_id, whole, hashed = mint()
    assert parse(whole)[0] == token_id
    assert admit(parse(whole)[1], token(hashed), ADA, NOON) == Actor("ada", Role.APPROVER)


def test_the_kept_hash_does_not_hold_the_secret() -> None:
    _, whole, hashed = mint()
    assert parse(whole)[1] not in hashed


@given(st.text(max_size=60))
def test_no_other_secret_gets_in(secret: str) -> None:
    _, _, hashed = mint()
    with pytest.raises(Unauthenticated):
        admit(secret, token(hashed), ADA, NOON)


@given(st.text(max_size=80))
def test_anything_that_is_no_token_is_told_so_and_breaks_nothing(text: str) -> None:
    try:
        parse(text)
    except Unauthenticated:
        return
    assert text.strip().startswith("lw_")


def test_a_wrong_secret_and_an_unknown_id_say_the_same() -> None:
    _, _, hashed = mint()
    with pytest.raises(Unauthenticated) as wrong:
        admit("x", token(hashed), ADA, NOON)
    with pytest.raises(Unauthenticated) as unknown:
        admit("x", None, None, NOON)
    assert str(wrong.value) == str(unknown.value)


@pytest.mark.parametrize(
    ("made", "user", "why"),
    [
        ({"revoked_at": NOON}, ADA, "revoked"),
        ({"expires_at": NOON}, ADA, "expired"),
        ({}, User("ada", Role.ADMIN, NOON, NOON), "disabled"),
    ],
)
def test_a_dead_token_says_why(made: dict[str, datetime], user: User, why: str) -> None:
    _, whole, hashed = mint()
    with pytest.raises(Unauthenticated, match=why):
        admit(parse(whole)[1], token(hashed, **made), user, NOON)


@pytest.mark.parametrize("name", ["", "-x", "a b", "local", "Loopwright", "nobody", "x" * 65, "a/b", "a\n"])
def test_a_name_that_could_be_mistaken_is_no_user_name(name: str) -> None:
    with pytest.raises(BadInput):
        access.check_user_name(name)


def test_a_token_works_until_it_is_revoked(ctx: Context) -> None:
    find("access.add_user")(ctx, name="ada", role="approver")
    made = find("access.create_token")(ctx, user="ada", days=1)
    assert isinstance(made, dict)
    whole = str(made["token"])
    assert identify.by_token(ctx.ledger, whole, ctx.clock) == Actor("ada", Role.APPROVER)
    find("access.revoke_token")(ctx, id=made["id"])
    with pytest.raises(Unauthenticated, match="revoked"):
        identify.by_token(ctx.ledger, whole, ctx.clock)


def test_a_token_expires_by_the_clock(ctx: Context) -> None:
    find("access.add_user")(ctx, name="ada")
    made = find("access.create_token")(ctx, user="ada", days=1)
    assert isinstance(made, dict)
    ctx.clock.move(timedelta(days=1))  # type: ignore[attr-defined]
    with pytest.raises(Unauthenticated, match="expired"):
        identify.by_token(ctx.ledger, str(made["token"]), ctx.clock)


def test_a_disabled_user_is_kept_out_and_can_come_back(ctx: Context) -> None:
    find("access.add_user")(ctx, name="ada")
    made = find("access.create_token")(ctx, user="ada")
    assert isinstance(made, dict)
    find("access.set_user")(ctx, name="ada", disabled=True)
    with pytest.raises(Unauthenticated, match="disabled"):
        identify.by_token(ctx.ledger, str(made["token"]), ctx.clock)
    find("access.set_user")(ctx, name="ada", disabled=False)
    assert identify.by_token(ctx.ledger, str(made["token"]), ctx.clock).name == "ada"


def test_the_last_admin_stays_one(ctx: Context) -> None:
    find("access.add_user")(ctx, name="ada", role="admin")
    with pytest.raises(Refused, match="last admin"):
        find("access.set_user")(ctx, name="ada", role="viewer")
    with pytest.raises(Refused, match="last admin"):
        find("access.set_user")(ctx, name="ada", disabled=True)
    find("access.add_user")(ctx, name="bob", role="admin")
    find("access.set_user")(ctx, name="ada", role="viewer")


def test_a_name_is_taken_once_and_an_unknown_one_names_the_nearest(ctx: Context) -> None:
    find("access.add_user")(ctx, name="ada")
    with pytest.raises(Conflict, match="already"):
        find("access.add_user")(ctx, name="ada")
    with pytest.raises(NotFound, match="did you mean `ada`"):
        find("access.create_token")(ctx, user="adda")


def test_nobody_makes_or_sees_tokens_of_others(ctx: Context, people: dict[str, Context]) -> None:
    find("access.create_token")(ctx, user="bob")
    with pytest.raises(Refused, match="for others"):
        find("access.create_token")(people["ada"], user="bob")
    with pytest.raises(Refused, match="other people"):
        find("access.tokens")(people["ada"], user="bob")
    assert find("access.tokens")(people["ada"]) == []
    bobs = find("access.tokens")(people["bob"])
    assert isinstance(bobs, list)
    with pytest.raises(NotFound):
        find("access.revoke_token")(people["ada"], id=bobs[0]["id"])  # type: ignore[index,call-overload]


def made(answer: object) -> dict[str, Any]:
    assert isinstance(answer, dict)
    return answer


def actor_of(ctx: Context, **arguments: object) -> Context:
    """The home in the hands of a token made with `arguments`."""
    whole = str(made(find("access.create_token")(ctx, **arguments))["token"])
    return ctx.acting_as(identify.by_token(ctx.ledger, whole, ctx.clock))


def a_project(ctx: Context, model: str, team: str) -> None:
    with ctx.ledger.write() as conn:
        save_project(conn, model, f"/srv/{model}", {"model": model, "team": team}, "0", ctx.now)


def test_a_token_ends_after_90_days_unless_somebody_says_otherwise(ctx: Context) -> None:
    find("access.add_user")(ctx, name="ada")
    assert made(find("access.create_token")(ctx, user="ada"))["expires_at"] == "2013-09-29T12:00:00Z"
    assert made(find("access.create_token")(ctx, user="ada", forever=True))["expires_at"] is None
    assert made(find("access.create_token")(ctx, user="ada", days=1))["expires_at"] == "2013-07-02T12:00:00Z"
    for wrong in ({"days": 0}, {"days": 1e9}, {"days": 1, "forever": True}):
        with pytest.raises(BadInput):
            find("access.create_token")(ctx, user="ada", **wrong)


def test_tokens_are_listed_with_what_they_are_for(ctx: Context) -> None:
    find("access.add_user")(ctx, name="bot", service=True)
    find("access.create_token")(ctx, user="bot", scopes=["write", "approve:late"], note="CI of flights")
    row = find("access.tokens")(ctx)[0]  # type: ignore[index]
    assert (row["scopes"], row["note"]) == (["write", "approve:late"], "CI of flights")  # type: ignore[index,call-overload]
    with pytest.raises(BadInput, match="unknown scope"):
        find("access.create_token")(ctx, user="bot", scopes=["wirte"])


def test_scopes_take_away_and_never_give(ctx: Context, register: Callable[..., int]) -> None:
    register()
    find("access.add_user")(ctx, name="ada", role="approver")
    find("access.add_user")(ctx, name="vera", role="viewer")
    reader = actor_of(ctx, user="ada", scopes=["read"])
    assert find("models.list")(reader)
    with pytest.raises(Refused, match="with this token"):
        find("models.promote")(reader, model="late", version=1)
    with pytest.raises(Refused, match="with this token"):
        find("models.approve")(reader, model="late", version=1)
    one = actor_of(ctx, user="ada", scopes=["approve:late"])
    assert find("models.show")(one, model="late")
    with pytest.raises(Refused, match="with this token"):
        find("models.show")(one, model="early")
    with pytest.raises(Refused, match="with this token"):
        find("models.list")(one)  # about all models: the role everywhere is needed
    with pytest.raises(Refused, match="vera may not"):
        find("models.promote")(actor_of(ctx, user="vera", scopes=["admin"]), model="late", version=1)


def test_a_token_made_with_a_token_has_no_more_scopes(ctx: Context) -> None:
    find("access.add_user")(ctx, name="root", role="admin")
    maker = actor_of(ctx, user="root", scopes=["write", "approve:late"])
    for beyond in ("approve", "admin", "approve:early", "serve"):
        with pytest.raises(Refused, match="more than it"):
            find("access.create_token")(maker, user="root", scopes=[beyond])
    within = made(find("access.create_token")(maker, user="root", scopes=["read", "write:x", "approve:late"]))
    assert within["scopes"] == ["read", "write:x", "approve:late"]
    assert made(find("access.create_token")(maker, user="root"))["scopes"] == ["write", "approve:late"]
    with pytest.raises(Refused, match="for others"):  # the scopes leave no admin
        find("access.create_token")(maker, user="ada")
    for nothing_to_change in ("read", "serve"):
        with pytest.raises(Refused, match="with this token"):
            find("access.create_token")(actor_of(ctx, user="root", scopes=[nothing_to_change]), user="root")


def test_a_token_made_with_a_token_ends_no_later(ctx: Context) -> None:
    find("access.add_user")(ctx, name="ada")
    maker = actor_of(ctx, user="ada", days=10)
    assert made(find("access.create_token")(maker, user="ada"))["expires_at"] == "2013-07-11T12:00:00Z"
    assert (
        made(find("access.create_token")(maker, user="ada", days=1))["expires_at"] == "2013-07-02T12:00:00Z"
    )
    for later in ({"days": 11}, {"forever": True}):
        with pytest.raises(Refused, match="outlive"):
            find("access.create_token")(maker, user="ada", **later)


def test_whoami_says_how_one_came_in(ctx: Context) -> None:
    find("access.add_user")(ctx, name="bot", service=True)
    find("access.grant_team")(ctx, team="flights", user="bot", role="approver")
    told = made(find("access.whoami")(actor_of(ctx, user="bot", scopes=["serve"])))
    assert (told["name"], told["role"], told["teams"]) == ("bot", "developer", {"flights": "approver"})
    assert (told["scopes"], told["service"]) == (["serve"], True)
    assert told["via"].startswith("token ")


def test_a_role_in_a_team_counts_for_its_models_only(ctx: Context, register: Callable[..., int]) -> None:
    register("late")
    register("early")
    a_project(ctx, "late", "flights")
    a_project(ctx, "early", "trains")
    find("access.add_user")(ctx, name="tom", role="viewer")
    find("access.grant_team")(ctx, team="flights", user="tom", role="developer")
    tom = ctx.acting_as(identify.by_name(ctx.ledger, "tom"))
    find("models.annotate")(tom, model="late", version=1, key="seen", value="yes")
    with pytest.raises(Refused, match="tom may not"):
        find("models.annotate")(tom, model="early", version=1, key="seen", value="yes")
    with pytest.raises(Refused, match="tom may not"):
        find("system.tick")(tom)
    find("access.revoke_team")(ctx, team="flights", user="tom")
    with pytest.raises(Refused):
        tom = ctx.acting_as(identify.by_name(ctx.ledger, "tom"))
        find("models.annotate")(tom, model="late", version=1, key="seen", value="no")


def test_an_admin_of_a_team_grants_there_and_nowhere_else(ctx: Context) -> None:
    for name in ("tina", "tom"):
        find("access.add_user")(ctx, name=name, role="viewer")
    find("access.grant_team")(ctx, team="flights", user="tina", role="admin")
    tina = ctx.acting_as(identify.by_name(ctx.ledger, "tina"))
    find("access.grant_team")(tina, team="flights", user="tom", role="approver")
    for team, who in (("trains", "tom"), ("trains", "tina")):
        with pytest.raises(Refused, match="tina may not"):
            find("access.grant_team")(tina, team=team, user=who, role="viewer")
    with pytest.raises(Refused):
        find("access.set_user")(tina, name="tina", role="admin")
    with pytest.raises(Refused):
        find("access.add_user")(tina, name="eve", role="admin")
    tom = ctx.acting_as(identify.by_name(ctx.ledger, "tom"))
    with pytest.raises(Refused, match="tom may not"):
        find("access.grant_team")(tom, team="flights", user="tom", role="admin")
    listed = find("access.teams")(tina)
    assert listed == [{"team": "flights", "people": {"tina": "admin", "tom": "approver"}, "models": []}]
    rows = find("audit.show")(ctx, action="team.changed")
    assert [row["actor"] for row in rows] == ["local", "tina"]  # type: ignore[union-attr,index,call-overload]


def test_nobody_takes_a_model_into_their_own_team(ctx: Context, register: Callable[..., int]) -> None:
    register("late")
    a_project(ctx, "late", "flights")
    register("found")  # registered with plain MLflow: no project, no team
    eve = Actor("eve", Role.DEVELOPER, (("evil", Role.ADMIN), ("flights", Role.ADMIN)))
    with ctx.ledger.read() as conn:
        check_team(conn, eve, model="late", team="flights")
        check_team(conn, eve, model="new", team="evil")
        for model in ("late", "found"):
            with pytest.raises(Refused, match="eve may not make"):
                check_team(conn, eve, model=model, team="evil")
        with pytest.raises(Refused, match="begin"):
            check_team(conn, Actor("vera", Role.VIEWER), model="new", team="evil")


def test_names_that_differ_in_case_only_are_one_name(ctx: Context) -> None:
    find("access.add_user")(ctx, name="ada")
    with pytest.raises(Conflict):
        find("access.add_user")(ctx, name="Ada")


def test_an_identity_belongs_to_one_person_and_to_no_machine(ctx: Context) -> None:
    who = "https://id.example 4711"
    find("access.add_user")(ctx, name="ada", identity=who)
    with pytest.raises(Conflict, match="signs in as ada"):
        find("access.add_user")(ctx, name="bob", identity=who)
    find("access.add_user")(ctx, name="bob")
    with pytest.raises(Conflict, match="signs in as ada"):
        find("access.set_user")(ctx, name="bob", identity=who)
    with pytest.raises(BadInput, match="tokens only"):
        find("access.add_user")(ctx, name="bot", service=True, identity="https://id.example 1")
    with pytest.raises(BadInput, match="not an identity"):
        find("access.set_user")(ctx, name="bob", identity="bob@example.com")


def test_the_doctor_names_tokens_that_programs_are_about_to_lose(ctx: Context) -> None:
    def finding() -> Any:
        checks: Any = find("system.doctor")(ctx)
        return next(check for check in checks if check["check"] == "tokens")

    find("access.add_user")(ctx, name="bot", service=True)
    find("access.create_token")(ctx, user="bot", days=1, note="never used")
    in_use = actor_of(ctx, user="bot", days=30)
    assert finding()["ok"]
    ctx.clock.move(timedelta(days=13))  # type: ignore[attr-defined]
    assert finding()["ok"]
    ctx.clock.move(timedelta(days=10))  # type: ignore[attr-defined]
    assert finding()["ok"]  # nobody has used it for long
    with ctx.ledger.write() as conn:
        touch_token(conn, in_use.actor.via.removeprefix("token "), ctx.now)
    assert not finding()["ok"]
    assert "of bot" in finding()["found"]
