"""A version whose predictions a test holds up and watches."""

import threading
from collections.abc import Callable
from typing import Any

from loopwright.bundle.open import Bundle


class Watched:
    """Answers as `inner` does, after `before(rows)` has returned."""

    isolated = direct = False

    def __init__(self, inner: Bundle, before: Callable[[int], object] = lambda rows: None) -> None:
        self.inner, self.before = inner, before
        self.ran: list[tuple[int, int]] = []
        """(thread, rows) of each prediction."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def predict_columns(self, columns: dict[str, Any]) -> Any:
        rows = len(columns["hour"])
        self.ran.append((threading.get_ident(), rows))
        self.before(rows)
        return self.inner.predict_columns(columns)

    @property
    def sizes(self) -> list[int]:
        """Rows of each prediction."""
        return [rows for _, rows in self.ran]

    @property
    def threads(self) -> set[int]:
        """Where they were made."""
        return {thread for thread, _ in self.ran}
