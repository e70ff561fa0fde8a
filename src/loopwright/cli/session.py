"""What every command shares: which home, who acts, and how answers are printed."""

import functools
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopwright.kernel.errors import BadInput

if TYPE_CHECKING:
    from loopwright.control.client import Client

_SHARED = ("home", "url", "token", "as_user", "as_json", "debug")
DEFAULT_HOME = "~/.loopwright"


def home_options() -> list[click.Parameter]:
    """The options every command takes, before or after its own name."""
    return [
        click.Option(["--home"], metavar="DIR", help="Work on this folder (LOOPWRIGHT_HOME, ~/.loopwright)."),
        click.Option(["--url"], metavar="URL", help="Work on this control plane (LOOPWRIGHT_URL)."),
        click.Option(["--token"], metavar="TOKEN", help="Who you are (LOOPWRIGHT_TOKEN)."),
        click.Option(
            ["--as", "as_user"], metavar="USER", help="Act as this user of your own folder; it is audited."
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the answer as JSON."),
        click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
    ]


def version_option() -> click.Parameter:
    def show(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted:
            from loopwright import __version__

            click.echo(f"loopwright {__version__}")
            ctx.exit()

    return click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show the version.",
    )


class Session:
    """One call of the command line. Opens the home on first use."""

    def __init__(
        self, *, home: str | None, url: str | None, token: str | None, as_user: str | None, as_json: bool
    ) -> None:
        if home and url:
            raise BadInput("both --home and --url are given", wanted="one of them")
        self.url = url or (None if home else os.environ.get("LOOPWRIGHT_URL") or None)
        self.home = Path(home or os.environ.get("LOOPWRIGHT_HOME") or DEFAULT_HOME).expanduser().absolute()
        self.token = token or os.environ.get("LOOPWRIGHT_TOKEN") or None
        self.as_user = as_user or os.environ.get("LOOPWRIGHT_USER") or None
        self.as_json = as_json
        self._client: Client | None = None

    @property
    def where(self) -> str:
        """The home in words: its URL or its folder."""
        return self.url or str(self.home)

    def client(self, *, create: bool = False) -> "Client":
        """The way to the home; `create` makes a folder that is not there yet."""
        if self._client is None:
            from loopwright.control.client import connect

            self._client = connect(
                None if self.url else self.home, self.url, self.token, as_user=self.as_user, create=create
            )
        return self._client

    def call(self, operation: str, **arguments: Any) -> Any:
        """Do the operation on the home; arguments that are None are left to their defaults."""
        given = {name: value for name, value in arguments.items() if value is not None}
        return self.client().call(operation, **given)

    def show(self, answer: Any, render: Callable[[Any], str]) -> None:
        """Print `answer`: as JSON when asked for, else as `render` puts it."""
        if self.as_json:
            click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        else:
            text = render(harmless(answer))
            if text:
                click.echo(text)

    def note(self, text: str) -> None:
        """Tell the person something that is not part of the answer (stderr)."""
        click.echo(text, err=True)

    @property
    def at_terminal(self) -> bool:
        return sys.stdout.isatty() and not self.as_json


def harmless(answer: Any) -> Any:
    """`answer` without what a terminal would obey or show in another order: names and reasons are others' words."""
    if isinstance(answer, str):
        return answer if answer.isprintable() else _OBEYED.sub("\ufffd", answer)
    if isinstance(answer, dict):
        return {harmless(key): harmless(value) for key, value in answer.items()}
    return [harmless(one) for one in answer] if isinstance(answer, list) else answer


# Control characters but for those of plain text, and the marks that turn the direction of writing.
_OBEYED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")


def command(name: str, group: click.Group | None = None, **attributes: Any) -> Callable[[Any], click.Command]:
    """Decorate a function `(session, …)` as a command with the shared options added.

    An option given before the command's name counts too; the one after it wins.
    """

    def wrap(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        @click.pass_context
        def call(ctx: click.Context, /, **arguments: Any) -> Any:
            return function(_session(ctx, arguments), **arguments)

        made = (group.command if group is not None else click.command)(name, **attributes)(call)
        made.params += home_options()
        return made

    return wrap


def _session(ctx: click.Context, arguments: dict[str, Any]) -> Session:
    shared = {key: arguments.pop(key) for key in _SHARED}
    parent = ctx.parent
    while parent is not None:
        for key in _SHARED:
            shared[key] = shared[key] or parent.params.get(key)
        parent = parent.parent
    shared.pop("debug")  # read by the edge
    return Session(**shared)
