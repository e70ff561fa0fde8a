"""Errors that say what to do next name commands that exist, in the form they take."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import loopwright as package
from loopwright.cli.commands import loopwright as top

# "loopwright promote {model} {version} --to production": words, placeholders and options after the name.
_MENTION = re.compile(
    r"\bloopwright ((?:[a-z]+|\{[^{}]*\}|[A-Z]+\b|--[a-z-]+|…)(?: (?:[a-z0-9-]+|\{[^{}]*\}|[A-Z]+\b|--[a-z-]+))*)"
)


def mentions() -> Iterator[tuple[str, str]]:
    root = Path(package.__file__).parent
    for file in sorted(root.rglob("*.py")):
        for line in file.read_text(encoding="utf-8").splitlines():
            for found in _MENTION.finditer(line):
                words = found.group(1).split()
                if words[0] in top.places:
                    yield f"{file.relative_to(root)}: {found.group(1)}", found.group(1)


@pytest.mark.parametrize("words", sorted({words for _, words in mentions()}))
def test_a_command_that_is_mentioned_exists(words: str) -> None:
    first, *rest = words.split()
    command = top.get_command(click.Context(top), first)
    assert command is not None
    if isinstance(command, click.Group) and rest and re.fullmatch("[a-z]+", rest[0]):
        assert rest[0] in command.commands, words
        command = command.commands[rest[0]]
    if isinstance(command, click.Group):
        return
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= known, words


def test_mentions_are_found_at_all() -> None:
    assert len(list(mentions())) > 40
