"""Tells a person what happens, step by step, and keeps every figure it told."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.table import Table

_PIPE_WIDTH = 170


class Narrator:
    """Prints to a terminal (with a spinner) or a pipe (plain lines); `figures` holds what each step found.

    Is a `pipeline.Progress` too, so that a training run tells its steps in the same voice.
    """

    def __init__(self, console: Console | None = None) -> None:
        # A pipe has no width of its own: lines must not be cut there.
        self.console = console or Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
        self.figures: dict[str, Any] = {}
        self.started = time.monotonic()
        self._status: Status | None = None
        self._doing = ""

    def heading(self, number: str, title: str) -> None:
        """A new step of the tour."""
        self._quiet()
        elapsed = time.monotonic() - self.started
        self.console.print(f"\n[bold]{number:>3}  {title}[/bold]  [dim]{elapsed:.0f} s[/dim]")

    def say(self, text: str) -> None:
        """One line about the current step."""
        self._quiet()
        self.console.print(f"    {text}")

    def found(self, step: str, figures: Mapping[str, Any]) -> None:
        """Keep `figures` of `step` for the report; later figures join earlier ones."""
        self.figures.setdefault(step, {}).update(figures)

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table; numbers to the right."""
        self._quiet()
        drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for i, head in enumerate(heads):
            numeric = bool(rows) and all(isinstance(row[i], int | float) for row in rows)
            drawn.add_column(head, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            drawn.add_row(*(_cell(value) for value in row))
        self.console.print(_Indented(drawn))

    def step(self, name: str) -> None:
        self._doing = name
        self._show(f"{name} …")

    def update(self, fraction: float, note: str = "") -> None:
        self._show(f"{self._doing} {fraction:4.0%}  {note}")

    def note(self, text: str) -> None:
        self.say(text)

    def done(self, summary: str) -> None:
        self.say(f"{self._doing}: {summary}")

    def _show(self, text: str) -> None:
        if not self.console.is_terminal:
            return
        if self._status is None:
            self._status = self.console.status(text)
            self._status.start()
        self._status.update(text)

    def _quiet(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def __enter__(self) -> "Narrator":
        return self

    def __exit__(self, *_: object) -> None:
        self._quiet()


class _Indented:
    """A table moved to the right, under its step."""

    def __init__(self, inner: Table) -> None:
        self.inner = inner

    def __rich__(self) -> Any:
        from rich.padding import Padding

        return Padding(self.inner, (0, 0, 0, 4), expand=False)


def _cell(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
