"""Users and tokens: who gets in, and what of it is kept."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.control import access, identify
from loopwright.control.access import Token, User, admit, mint, parse
from loopwright.control.context import Context
from loopwright.control.operation import find
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Refused, Unauthenticated

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


@pytest.mark.parametrize("name", ["", "-x", "a b", "local", "Loopwright", "x" * 65, "a/b", "a\n"])
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
