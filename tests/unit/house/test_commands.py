"""Every command and option that the documents show exists."""

import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from loopwright.cli.commands import loopwright

ROOT = Path(__file__).parents[3]
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "src" / "loopwright" / "examples").rglob("*.md"),
]
STARTS = ("loopwright", ".venv/bin/loopwright")
ENDS = ("|", "&&", ";", ">", ">>", "2>&1", "&", "||")


def shown(page: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, words) of every loopwright command in the console blocks of `page`."""
    language: str | None = None
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped.startswith("```"):
            language = stripped[3:].strip() or "text" if language is None else None
        elif language in ("console", "shell", "sh", "bash") and (
            stripped.startswith("$ ") or language in ("sh", "bash")
        ):
            words = shlex.split(stripped.removeprefix("$ "), comments=True)
            while words and "=" in words[0] and not words[0].startswith("-"):
                words = words[1:]
            if words and words[0] in STARTS:
                end = next((place for place, word in enumerate(words) if word in ENDS), len(words))
                yield number, words[1:end]


def fault(words: list[str]) -> str:
    """What of `loopwright` + `words` does not exist, or ""."""
    command: click.Command = loopwright
    context = click.Context(command)
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "--version"}
    for word in words:
        if word.startswith("-") and not word.lstrip("-").isdecimal():
            meant = getattr(command, "default", None)
            if word.partition("=")[0] not in known and meant and isinstance(command, click.Group):
                command = command.commands[meant]  # as `loopwright lineage --source …`
                known |= {
                    name
                    for parameter in command.params
                    for name in (*parameter.opts, *parameter.secondary_opts)
                }
            if word.partition("=")[0] not in known:
                return f"no option {word}"
            continue
        if not isinstance(command, click.Group):
            continue
        found = command.get_command(context, word)
        default = getattr(command, "default", None)
        if found is None and default:
            found = command.get_command(context, default)
        if found is None:
            return f"no command {word}"
        command = found
        known |= {
            name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)
        }
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_shown_exists(page: Path) -> None:
    faults = [
        f"line {number}: loopwright {shlex.join(words)}: {why}"
        for number, words in shown(page)
        if (why := fault(words))
    ]
    assert faults == []


def test_the_readme_shows_the_four_commands_for_ones_own_data() -> None:
    commands = [words[0] for _, words in shown(ROOT / "README.md") if words]
    assert {"init", "run", "up", "serve"} <= set(commands)


@pytest.mark.parametrize("words", [["frobnicate"], ["run", "--frobnicate"], ["models", "frobnicate"]])
def test_a_command_that_does_not_exist_would_be_found(words: list[str]) -> None:
    assert fault(words)


def test_the_commands_that_scripts_rely_on_exist() -> None:
    for line in (
        "demo flights --keep DIR",
        "up --home DIR --host H --port 1",
        "serve --control URL --port 1 --grpc-port 2 --workers 2",
        "init NAME --data FILE --target COLUMN",
        "run DIR --set a=b",
        "rollout show", "rollout pause", "rollout resume", "rollout abort", "rollout promote",
        "runs list", "runs show", "runs compare", "models list", "models show", "models lineage",
        "promote", "approve", "reject", "rollback", "labels add", "drift", "quality", "alerts", "retrains",
        "audit show", "audit verify", "audit export", "reproduce", "user", "token", "doctor", "status", "data",
    ):  # fmt: skip
        assert fault(line.split()) == "", line


def test_every_make_target_is_one_of_the_few_to_know() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test", "check", "bench"):
        assert f"\n{target}: " in text


def test_the_package_says_what_it_is() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_reference_of_loop_yaml_is_what_the_code_reads() -> None:
    """Else: run scripts/reference."""
    command = [sys.executable, str(ROOT / "scripts" / "reference"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0
