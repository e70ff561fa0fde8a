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
