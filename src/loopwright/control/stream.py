"""Answers too large to be held: bytes that are made while they are sent."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stream:
    """What an operation answers instead of a document. `chunks` can be read once; `name` is for who saves them."""

    media_type: str
    name: str
    chunks: Iterator[bytes]

    @property
    def headers(self) -> dict[str, str]:
        """How a browser is to take it: a page is shown and runs nothing, anything else is saved."""
        if not self.media_type.startswith("text/html"):
            return {"Content-Disposition": f'attachment; filename="{self.name}"'}
        return {
            "Content-Disposition": f'inline; filename="{self.name}"',
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }

    def to_json(self) -> list[str]:
        """The lines, for who asked for a document after all."""
        return b"".join(self.chunks).decode().splitlines()
