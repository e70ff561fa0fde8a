"""What a server says about itself: each matter once, until it changes or is over."""

from collections.abc import Callable

from loopwright.kernel.errors import LoopwrightError


class Complaints:
    """Says a text about a matter once. `say` writes one line for a person."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: dict[str, str] = {}

    def __call__(self, about: str, text: str) -> bool:
        """Say `text` unless it was the last that was said about this matter; return whether it was said."""
        if self._said.get(about) == text:
            return False
        self._said[about] = text
        self._say(text)
        return True

    def over(self, about: str) -> None:
        """The matter is settled: should it come back, it is said again."""
        self._said.pop(about, None)


def in_words(error: BaseException) -> str:
    """An error as a line names it: our own speak for themselves, others with their type."""
    return str(error) if isinstance(error, LoopwrightError) else f"{type(error).__name__}: {error}"
