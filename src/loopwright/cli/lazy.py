"""A click group that knows its commands' names and help, and imports a command only to run it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

import click

from loopwright.cli.session import home_options, version_option
from loopwright.kernel.errors import did_you_mean


@dataclass(frozen=True, slots=True)
class Section:
    """A heading in the help, and its commands: name → ("module:attribute", one line of help)."""

    title: str
    commands: Mapping[str, tuple[str, str]]


class LazyGroup(click.Group):
    """The top of the command line; `--help` imports no command."""

    def __init__(self, name: str, sections: Sequence[Section], help: str) -> None:
        super().__init__(name, help=help, params=[*home_options(), version_option()], no_args_is_help=True)
        self.callback = lambda **_: None  # the options are read from the context by the commands
        self.sections = sections
        self.places = {command: where for section in sections for command, where in section.commands.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.places:
            return None
        module, _, attribute = self.places[cmd_name][0].partition(":")
        command = getattr(import_module(f"loopwright.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.places:
            hint = did_you_mean(args[0], self.places)
            raise click.UsageError(f"no such command: {args[0]}. {hint}".rstrip(), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.places))
        for section in self.sections:
            with formatter.section(section.title):
                rows = [(name.ljust(width), line) for name, (_, line) in section.commands.items()]
                formatter.write_dl(rows)


def subcommands(default: str | None = None) -> Callable[[Callable[[], None]], click.Group]:
    """Decorate a function as a group whose unknown subcommands name the nearest known one.

    With `default`, that subcommand is meant when none is named.
    """

    def wrap(function: Callable[[], None]) -> click.Group:
        made = click.group(cls=_Group)(function)
        assert isinstance(made, _Group)
        made.default = default
        return made

    return wrap


class _Group(click.Group):
    default: str | None = None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self.default and not (args and (args[0] in self.commands or args[0] == "--help")):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            hint = did_you_mean(args[0], self.commands)
            raise click.UsageError(f"no such command: {args[0]}. {hint}".rstrip(), ctx)
        return super().resolve_command(ctx, args)
