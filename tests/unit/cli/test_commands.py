"""Commands on a folder: forms, exit codes, errors of one paragraph, JSON."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest

from loopwright.cli.commands import SECTIONS
from loopwright.cli.commands import loopwright as top
from loopwright.serving import supervisor
from loopwright.serving.options import ServeOptions

Type = Callable[..., Any]


def every_command() -> list[tuple[str, click.Command]]:
    """("models list", command) for each command and subcommand."""
    found = []
    for name in top.list_commands(click.Context(top)):
        command = top.get_command(click.Context(top), name)
        assert command is not None
        if isinstance(command, click.Group):
            for sub, child in command.commands.items():
                under = child.commands if isinstance(child, click.Group) else {}
                found += [(f"{name} {sub} {each}", one) for each, one in under.items()] or [
                    (f"{name} {sub}", child)
                ]
        else:
            found.append((name, command))
    return found


def test_the_help_names_every_command_and_imports_none_of_them() -> None:
    script = (
        "import sys; sys.argv=['loopwright','--help']\n"
        "from loopwright.cli import main\ncode=main()\n"
        "heavy=('sqlalchemy','pydantic','numpy','pyarrow','duckdb','mlflow','rich','fastapi','loopwright.control.operation',"
        "'loopwright.cli.models')\n"
        "print([name for name in heavy if name in sys.modules]); raise SystemExit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
    for section in SECTIONS:
        for name in section.commands:
            assert f"  {name} " in done.stdout


def test_one_line_of_help_is_the_commands_own_first_line() -> None:
    for section in SECTIONS:
        for name, (place, line) in section.commands.items():
            module, _, attribute = place.partition(":")
            command = getattr(import_module(f"loopwright.cli.{module}"), attribute)
            said = " ".join((command.help or "").split("\n\n")[0].split())
            assert said == line, name


@pytest.mark.parametrize(("name", "command"), every_command(), ids=[name for name, _ in every_command()])
def test_every_command_explains_itself_and_takes_the_shared_options(
    name: str, command: click.Command
) -> None:
    assert command.help
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--home", "--url", "--token", "--as", "--json", "--debug"} <= options
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.hidden or parameter.help, f"{name} {parameter.name}"


FIXED = [
    "demo flights --keep DIR", "up --home DIR --host H --port 1", "init NAME --data FILE --target COLUMN",
    "serve --control URL --port 1 --grpc-port 2 --workers 3", "apply DIR", "run DIR --set key=value", "status",
    "doctor",
    "data check", "data snapshot", "data tables", "data quarantine M T", "runs list", "runs show R", "runs compare A B",
    "models list", "models show M", "models show M 1", "models lineage M 1", "promote M 1", "approve M 1", "reject M 1",
    "rollback M", "rollout show M", "rollout pause M", "rollout resume M", "rollout abort M", "rollout promote M",
    "labels add M FILE", "drift M", "quality M", "alerts", "alerts list", "alerts ack A", "retrains", "retrains list",
    "retrains show R", "audit show", "audit verify", "audit export", "reproduce R", "user add N", "user list",
    "token create U", "token revoke T", "token list",
]  # fmt: skip


@pytest.mark.parametrize("form", FIXED)
def test_the_fixed_forms_are_understood(form: str) -> None:
    words = form.split()
    command = top.get_command(click.Context(top), words.pop(0))
    assert command is not None
    if isinstance(command, click.Group):
        words = words or [command.default]  # type: ignore[attr-defined]
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words)


@pytest.mark.parametrize("words", [["statsu"], ["models", "shwo"], ["user", "ad"]])
def test_a_misspelt_command_names_the_nearest(loopwright: Type, words: list[str]) -> None:
    answer = loopwright(*words)
    assert answer.code == 2
    assert "did you mean" in answer.err


def test_a_folder_that_is_no_home_says_how_to_make_one(loopwright: Type) -> None:
    answer = loopwright("status")
    assert (answer.code, answer.out) == (2, "")
    assert "no home here yet" in answer.err
    assert len(answer.err.strip().splitlines()) == 1


def test_looking_makes_no_folder(loopwright: Type, tmp_path: Path) -> None:
    loopwright("status", "--home", str(tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()


def test_users_and_tokens_from_the_command_line(loopwright: Type) -> None:
    assert loopwright("user", "add", "ada", "--role", "approver").out == "ada: approver, active\n"
    token = loopwright("token", "create", "ada").out.strip()
    assert token.startswith("lw_")
    assert loopwright("user", "list", "--token", token).code == 0
    refused = loopwright("user", "add", "eve", "--token", token)
    assert (refused.code, refused.out) == (1, "")
    assert "ada may not" in refused.err
    wrong = loopwright("--token", token + "x", "user", "list")
    assert wrong.code == 2
    assert "wrong token" in wrong.err
    listed = json.loads(loopwright("token", "list", "--json").out)
    assert loopwright("token", "revoke", listed[0]["id"]).code == 0
    assert "revoked" in loopwright("user", "list", "--token", token).err


def test_acting_as_a_user_needs_the_user(loopwright: Type) -> None:
    loopwright("user", "add", "vera", "--role", "viewer")
    assert loopwright("user", "add", "eve", "--as", "vera").code == 1
    unknown = loopwright("user", "list", "--as", "vear")
    assert unknown.code == 2
    assert "did you mean `vera`" in unknown.err


READS = ["status", "models list", "runs list", "data tables", "rollout show", "alerts", "retrains", "audit show",
         "audit verify", "user list", "token list", "doctor"]  # fmt: skip


@pytest.mark.parametrize("words", READS)
def test_what_prints_can_print_json(loopwright: Type, words: str) -> None:
    loopwright("user", "add", "ada")
    answer = loopwright(*words.split(), "--json")
    assert answer.code in (0, 1)
    json.loads(answer.out)


@pytest.mark.parametrize(
    "words",
    ["models show late", "models show late 1", "promote late 1", "approve late 1", "reject late 1", "rollback late",
     "rollout show late", "rollout pause late", "drift late", "quality late", "status late", "runs show abc",
     "runs list late", "retrains list late", "retrains show x", "alerts list late", "alerts ack x", "reproduce abc",
     "data tables late", "token revoke abc", "models lineage late 1"],
)  # fmt: skip
def test_what_is_not_there_is_one_paragraph_and_exit_code_2(loopwright: Type, words: str) -> None:
    loopwright("user", "add", "ada")
    answer = loopwright(*words.split())
    assert answer.code == 2, answer
    assert answer.out == ""
    assert len(answer.err.strip().splitlines()) == 1
    assert "unexpected" not in answer.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run nowhere", "no loop.yaml here"),
        ("run nowhere --set x", "no loop.yaml here"),
        ("demo flihgts", "did you mean `flights`"),
        ("status --home a --url http://b", "both --home and --url"),
        ("status --url nonsense", "not the URL of a control plane"),
        ("status --url http://127.0.0.1:1", "does not answer"),
        ("up --port 99999", "not a port"),
        ("serve", "no control plane is named"),
        ("serve --control http://127.0.0.1:1 --online memcached://x", "no online store of this kind"),
        ("labels add late nofile.csv", "no such file"),
    ],
)
def test_bad_input_says_what_to_do(loopwright: Type, words: str, said: str) -> None:
    loopwright("user", "add", "ada")
    answer = loopwright(*words.split())
    assert answer.code == 2
    assert said in answer.err
    assert len(answer.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "home", "store"),
    [
        ("", "nothing", ""),
        ("", "a home", "sqlite:///{home}/online.db"),
        ("", '{"online_url": "redis://cache:6379/1"}', "redis://cache:6379/1"),
        ("--online none", "a home", ""),
        ("--online sqlite:////srv/online.db", "a home", "sqlite:////srv/online.db"),
    ],
)
def test_serve_reads_the_online_store_of_the_home_on_its_machine_or_the_one_named(
    loopwright: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, home: str, store: str
) -> None:
    started: list[ServeOptions] = []
    monkeypatch.setattr(supervisor, "serve", lambda options: started.append(options) or 0)
    if home != "nothing":
        loopwright("user", "add", "ada")
    if home.startswith("{"):
        (tmp_path / "home" / "home.json").write_text(home)
    assert loopwright("serve", "--control", "http://127.0.0.1:1", *words.split()).code == 0
    assert started[0].online == store.format(home=tmp_path / "home")


def test_the_audit_log_is_shown_verified_and_exported(loopwright: Type, tmp_path: Path) -> None:
    for name in ("ada", "bob"):
        loopwright("user", "add", name)
    shown = loopwright("audit", "show").out
    assert "user.added" in shown
    assert loopwright("audit", "verify").code == 0
    assert loopwright("audit", "export", "--output", str(tmp_path / "log.jsonl")).code == 0
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["seq"] for row in rows] == [1, 2]
    assert rows[1]["prev_hash"] == rows[0]["hash"]


def test_a_changed_audit_row_is_found_and_exits_1(loopwright: Type, tmp_path: Path) -> None:
    import sqlite3

    loopwright("user", "add", "ada")
    with sqlite3.connect(tmp_path / "home" / "ledger.db") as database:
        triggers = [
            row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        ]
        for trigger in triggers:
            database.execute(f'DROP TRIGGER "{trigger}"')
        database.execute("UPDATE lw_audit SET actor = 'eve' WHERE seq = 1")
    answer = loopwright("audit", "verify")
    assert answer.code == 1
    assert "BROKEN" in answer.out


def test_an_unexpected_error_is_one_paragraph_and_debug_shows_where(
    loopwright: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loopwright.cli import session

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(session.Session, "call", broken)
    plain = loopwright("status")
    assert plain.code == 2
    assert len(plain.err.strip().splitlines()) == 1
    assert "RuntimeError: boom" in plain.err
    assert "Traceback" in loopwright("status", "--debug").err


def test_a_malformed_ledger_is_told_in_words(loopwright: Type, tmp_path: Path) -> None:
    loopwright("user", "add", "ada")
    for file in (tmp_path / "home").glob("ledger.db*"):
        file.write_bytes(b"this is no database" * 1000)
    answer = loopwright("status")
    assert answer.code == 2
    assert len(answer.err.strip().splitlines()) == 1
    assert "unexpected" not in answer.err
