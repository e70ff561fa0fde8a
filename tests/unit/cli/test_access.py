"""The commands about users, teams and tokens, as people type them."""

import json
from importlib.resources import files

import pytest

from loopwright.kernel.errors import Refused
from tests.unit.cli.conftest import Type

FLIGHTS = str(files("loopwright") / "examples" / "flights")


def test_a_team_says_who_works_on_its_models(loopwright: Type) -> None:
    loopwright("user", "add", "ada", "--role", "viewer")
    assert (
        loopwright("team", "grant", "flights", "ada", "admin").out == "ada: viewer (flights: admin), active\n"
    )
    assert "flights: admin" in loopwright("user", "list").out
    assert "ada: admin" in loopwright("team", "list").out
    assert loopwright("--as", "ada", "team", "grant", "trains", "ada", "viewer").code == 1
    assert loopwright("team", "revoke", "flights", "ada").out == "ada: viewer, active\n"


def test_a_token_says_what_it_is_for_and_when_it_ends(loopwright: Type) -> None:
    assert "service" in loopwright("user", "add", "bot", "--service").out
    made = loopwright("token", "create", "bot", "--scope", "serve", "--days", "7", "--note", "edge 1")
    assert "is for serve" in made.err
    assert "works until 2" in made.err
    listed = loopwright("token", "list").out
    assert "serve" in listed
    assert "edge 1" in listed
    told = json.loads(loopwright("whoami", "--json", "--token", made.out.strip()).out)
    assert (told["name"], told["service"], told["scopes"]) == ("bot", True, ["serve"])
    assert loopwright("models", "list", "--token", made.out.strip()).code == 1
    assert loopwright("token", "revoke", made.out.strip()).out.endswith("(bot): revoked\n")
    assert loopwright("whoami", "--token", made.out.strip()).code == 2


def test_the_owner_of_a_folder_is_told_so(loopwright: Type) -> None:
    loopwright("user", "add", "ada")
    assert loopwright("whoami").out == "local: admin (this machine)\n"
    assert loopwright("user", "set", "ada").code == 2


def test_training_under_another_name_is_audited_as_every_act_is(
    loopwright: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise Refused("not today")

    monkeypatch.setattr("loopwright.pipeline.lifecycle.run_project", refuse)
    loopwright("user", "add", "dora", "--role", "developer")
    for who in (("--as", "dora"), ()):
        assert loopwright("run", FLIGHTS, *who).code == 1
    (row,) = json.loads(loopwright("audit", "show", "--action", "user.assumed", "--json").out)
    assert (row["actor"], row["subject"], row["payload"]) == ("local", "dora", {"operation": "run"})


def test_what_is_not_there_is_said_to_be_missing(loopwright: Type) -> None:
    loopwright("user", "add", "ada", "--role", "viewer")
    loopwright("team", "grant", "flights", "ada", "approver")
    loopwright("user", "add", "bob", "--role", "viewer")
    wrong = loopwright("team", "revoke", "fligths", "ada")
    assert wrong.code == 2 and "no such team" in wrong.err and "did you mean `flights`?" in wrong.err
    none = loopwright("team", "revoke", "flights", "bob")
    assert none.code == 2 and "bob has no role in the team flights" in none.err
    ghost = loopwright("token", "list", "adda")
    assert ghost.code == 2 and "no such user" in ghost.err and "did you mean `ada`?" in ghost.err
    maybe = loopwright("trust", "list", "--state", "aproved")
    assert maybe.code == 2 and "did you mean `approved`?" in maybe.err


def test_a_scope_for_a_model_that_is_not_there_yet_is_noted(loopwright: Type) -> None:
    loopwright("user", "add", "ada", "--role", "approver")
    made = loopwright("token", "create", "ada", "--scope", "approve:nomodel")
    assert made.code == 0 and "there is no model nomodel yet" in made.err
    assert made.out.startswith("lw_") and len(made.out.splitlines()) == 1


def test_a_remedy_names_all_that_it_takes(loopwright: Type) -> None:
    loopwright("user", "add", "vera", "--role", "viewer")
    reads = loopwright("token", "create", "vera", "--scope", "read").out.strip()
    answer = loopwright("user", "add", "eve", "--token", reads)
    assert answer.code == 1
    assert (
        "user set vera --role admin, and then make a token for it: loopwright token create vera" in answer.err
    )


def test_the_doctor_counts_who_may_approve_in_a_team(loopwright: Type) -> None:
    def reviewers() -> tuple[bool, str]:
        found = json.loads(loopwright("doctor", "--json").out)
        return next((one["ok"], one["found"]) for one in found if one["check"] == "reviewers")

    loopwright("user", "add", "ada", "--role", "approver")
    loopwright("user", "add", "bob", "--role", "viewer")
    loopwright("user", "add", "bot", "--role", "approver", "--service")
    assert reviewers() == (False, "3 active users, 1 who may approve")
    loopwright("team", "grant", "flights", "bob", "approver")
    assert reviewers() == (True, "3 active users, 1 who may approve everywhere, 1 more in team flights")
