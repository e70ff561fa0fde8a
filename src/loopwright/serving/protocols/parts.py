"""A part of a bulk request: some rows that are answered together, and those that cannot be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopwright.kernel.errors import BadInput
from loopwright.serving.protocols.parsing import ROW_ID, rows_of
from loopwright.serving.rows import MAX_ID, Reader, Rows, short_name

VALUES = 20_000
"""About as many are checked at once: other requests wait meanwhile."""


@dataclass(slots=True)
class Part:
    """places: of each row its number in the request, from 1. rows: those that can be answered, in order; None when none
    can. bad: by place within this part, why the others cannot; names: their ids, where they have one."""

    places: list[int]
    rows: Rows | None
    bad: dict[int, str]
    names: dict[int, str]

    @property
    def last(self) -> int:
        """The number of the last row."""
        return self.places[-1]

    def good(self) -> list[int]:
        """Places within this part of the rows that can be answered, in the order of `rows`."""
        return [at for at in range(len(self.places)) if at not in self.bad]

    def name(self, request_id: str) -> None:
        """Give rows without an id one, from the request's and their number."""
        if self.rows is not None:
            self.rows.ids = [
                given or f"{request_id}/{self.places[at]}"
                for at, given in zip(self.good(), self.rows.ids, strict=True)
            ]

    def refuse(self, why: str) -> None:
        """Give every row that could have been answered this reason why it is not."""
        if self.rows is None:
            return
        for at, name in zip(self.good(), self.rows.ids, strict=True):
            self.bad[at], self.names[at] = why, name
        self.rows = None


def rows_at_once(reader: Reader) -> int:
    """How many rows of this width make a part."""
    return max(16, min(1024, VALUES // len(reader.fields)))


def part_of(
    places: list[int],
    columns: Mapping[str, Sequence[Any]],
    reader: Reader,
    word: str,
    bad: dict[int, str] | None = None,
    names: dict[int, str] | None = None,
) -> Part:
    """Check the rows at `places`, without those in `bad`, which `columns` leaves out. word: what a place is called."""
    bad, names = bad or {}, names or {}
    good = [at for at in range(len(places)) if at not in bad]
    if not good:
        return Part(places, None, bad, names)
    try:
        rows = rows_of(
            columns, len(good), reader, lambda name, row: f"{word} {places[good[row]]}: {short_name(name)}"
        )
        return Part(places, rows, bad, names)
    except BadInput:
        kept = []
    for row, at in enumerate(good):
        alone = {name: [values[row]] for name, values in columns.items()}
        here = f"{word} {places[at]}"
        try:
            rows_of(alone, 1, reader, lambda name, _, here=here: f"{here}: {short_name(name)}")  # type: ignore[misc]
            kept.append(row)
        except BadInput as error:
            bad[at] = str(error)
            names[at] = name_of(alone.get(ROW_ID, (None,))[0])
    if not kept:
        return Part(places, None, bad, names)
    left = {name: [values[row] for row in kept] for name, values in columns.items()}
    return Part(places, rows_of(left, len(kept), reader, lambda name, row: name), bad, names)


def name_of(given: object) -> str:
    """A row's id as it may be said in an error: cut off when too long, "" when it is no text."""
    return given[:MAX_ID] if isinstance(given, str) else ""
