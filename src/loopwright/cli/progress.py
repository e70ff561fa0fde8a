"""How long work looks from the command line: live at a terminal, plain lines when piped, silent with --json."""

import sys
import time
from types import TracebackType
from typing import Any, Self


class Lines:
    """One line per finished step on stderr, with its seconds; for pipes and logs."""

    def __init__(self) -> None:
        self._name = ""
        self._began = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is not None and self._name:
            self._print(f"✗ {self._name}")

    def step(self, name: str) -> None:
        self._name, self._began = name, time.monotonic()

    def update(self, fraction: float, note: str = "") -> None:
        """A pipe shows finished steps only."""

    def note(self, text: str) -> None:
        self._print(f"    {text}")

    def done(self, summary: str) -> None:
        seconds = time.monotonic() - self._began
        self._print(f"✓ {self._name}: {summary} ({seconds:.1f} s)" if self._name else f"✓ {summary}")
        self._name = ""

    @staticmethod
    def _print(text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Live(Lines):
    """A bar for the step at work, finished steps above it."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), console=self._console, transient=True,
        )  # fmt: skip
        self._task: Any = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        super().__exit__(kind, error, trace)

    def step(self, name: str) -> None:
        super().step(name)
        self._drop()
        self._task = self._bar.add_task(name, total=None, note="")

    def update(self, fraction: float, note: str = "") -> None:
        if self._task is not None:
            self._bar.update(self._task, total=1.0, completed=min(max(fraction, 0.0), 1.0), note=note)

    def done(self, summary: str) -> None:
        self._drop()
        super().done(summary)

    def _drop(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def _print(self, text: str) -> None:  # type: ignore[override]  # through the console, above the bar
        from rich.text import Text

        style = "green" if text.startswith("✓") else "red" if text.startswith("✗") else "dim"
        line = Text(text)
        line.stylize(style, 0, 1)
        self._console.print(line)


def watch() -> Lines:
    """Return what fits stderr: a live display at a terminal, lines otherwise."""
    return Live() if sys.stderr.isatty() else Lines()
