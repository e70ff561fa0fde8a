"""Works on a home that is a folder, in this process."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loopwright.control import denials, identify
from loopwright.control.context import Context, open_context
from loopwright.control.operation import find
from loopwright.control.plain import plain
from loopwright.control.stream import Stream
from loopwright.kernel.clock import Clock
from loopwright.kernel.errors import Refused, Unavailable


def open_folder(
    home: Path, token: str | None, *, as_user: str | None, create: bool, clock: Clock
) -> "FolderClient":
    """Return a client for the folder, in the hands of the token's user, of `as_user`, or of the folder's owner."""
    context = open_context(home, identify.LOCAL, clock=clock, create=create)
    return FolderClient(identify.on_folder(context, token, as_user))


class FolderClient:
    """Works on a folder in this process."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.where = str(context.home.root)

    def call(self, operation: str, /, **arguments: Any) -> Any:
        return plain(self._answer(operation, arguments))

    def stream(self, operation: str, /, **arguments: Any) -> Iterator[bytes]:
        answer = self._answer(operation, arguments)
        assert isinstance(answer, Stream), f"{operation} answers with a document"
        yield from answer.chunks

    def _answer(self, operation: str, arguments: dict[str, Any]) -> object:
        try:
            return find(operation).answer(self.context, **arguments)
        except Refused as error:
            if self.context.actor != identify.LOCAL:
                self._note(operation, error)
            raise

    def _note(self, operation: str, error: Refused) -> None:
        """As at the door of a control plane; the owner of the folder has no door to pass."""
        actor = self.context.actor
        payload = {"act": operation, "why": error.what, "status": error.http_status, "count": 1}
        with contextlib.suppress(Unavailable):  # a refusal is told, whether or not it can be written
            self.context.record(denials.ACTION, subject=f"user/{actor.name}", payload=payload)
