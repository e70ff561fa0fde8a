"""Answers too large to be held: bytes that are made while they are sent."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stream:
    """What an operation answers instead of a document. `chunks` can be read once; `name` is for who saves them."""

    media_type: str
    name: str
    chunks: Iterator[bytes]

    def to_json(self) -> list[str]:
        """The lines, for who asked for a document after all."""
        return b"".join(self.chunks).decode().splitlines()
