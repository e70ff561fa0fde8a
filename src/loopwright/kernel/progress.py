"""What a long piece of work tells whoever is watching. The watcher decides how it looks."""

from contextvars import ContextVar
from typing import Protocol


class Progress(Protocol):
    """Hears of steps in order; between `step` and `done` come any number of `update` and `note`."""

    def step(self, name: str) -> None:
        """A step begins; `name` is a few words."""

    def update(self, fraction: float, note: str = "") -> None:
        """The current step stands at `fraction` of 1."""

    def note(self, text: str) -> None:
        """One line worth keeping about the current step."""

    def done(self, summary: str) -> None:
        """The current step ended well; `summary` is one line with its figures."""


class Silent:
    """Nobody is watching."""

    def step(self, name: str) -> None: ...

    def update(self, fraction: float, note: str = "") -> None: ...

    def note(self, text: str) -> None: ...

    def done(self, summary: str) -> None: ...


watching: ContextVar[Progress | None] = ContextVar("watching", default=None)
"""Who watches the operations of this thread: set by whoever shows progress, and works in the same process."""
