"""What protocols that bring inputs by name share: the body's type, JSON, and columns that become checked rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from loopwright.kernel.errors import BadInput
from loopwright.serving.http import HttpError, Malformed, Request, TooLarge
from loopwright.serving.rows import (
    RESERVED,
    Reader,
    Rows,
    Value,
    check_event_time,
    check_id,
    check_values,
    v2_datatype,
)

ROW_ID, UNIT, EVENT_TIME = RESERVED

At = Callable[[str, int], str]
"""Tells where a row's value of an input stands in the request."""


@dataclass(frozen=True, slots=True)
class About:
    """What a request says of all its rows: its id (of a single row, the row's), the unit, when it happened.

    "" and 0 where it says nothing.
    """

    id: str = ""
    unit: str = ""
    event_time: int = 0

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str) -> "About":
        """Check `id`, `unit` and `event_time` as they were given. Raises BadInput."""
        prefix = f"{where}." if where else ""
        asked, unit, moment = given.get("id"), given.get("unit"), given.get("event_time")
        return cls(
            "" if asked is None else check_id(asked, f"{prefix}id"),
            "" if unit is None else check_id(unit, f"{prefix}unit"),
            0 if moment is None else check_event_time(moment, f"{prefix}event_time"),
        )


NOTHING = About()


def check_media_type(request: Request, *wanted: str) -> str:
    """Return the body's media type when it is one of `wanted`. Raises HttpError 415, also for text not in UTF-8."""
    given = request.header(b"content-type") or ""
    media_type, *parameters = (part.strip() for part in given.split(";"))
    if media_type.lower() not in wanted:
        raise HttpError(
            415, "a body of another type", where="content-type", got=given or "none", wanted=" or ".join(wanted)
        )  # fmt: skip
    for parameter in filter(None, parameters):
        name, _, value = parameter.partition("=")
        if name.strip().lower() != "charset" or value.strip(' "').lower() not in ("utf-8", "utf8"):
            raise HttpError(
                415, "a parameter that is not understood", where="content-type", got=parameter,
                wanted="charset=utf-8 or none",
            )  # fmt: skip
    return media_type.lower()


def parse_json(body: bytes) -> Any:
    """Return the document. Raises Malformed, and BadInput for a number beyond every type."""
    try:
        return msgspec.json.decode(body)
    except msgspec.ValidationError as error:
        raise BadInput(str(error), where="body") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise not_json(error) from None


def not_json(error: Exception) -> Malformed:
    """The error for a body that is no JSON."""
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return Malformed(f"not JSON ({reason})", where="body")


def check_count(n: int, max_rows: int, where: str) -> None:
    """Raise BadInput for no rows, TooLarge for too many."""
    if n == 0:
        raise BadInput("no rows", where=where, wanted="at least one")
    if n > max_rows:
        raise TooLarge("too many rows", where=where, got=n, wanted=f"at most {max_rows}")


def rows_of(
    columns: Mapping[str, Sequence[Any]], n: int, reader: Reader, at: At, about: About = NOTHING
) -> Rows:
    """Check columns of `n` values each and return them as rows. Raises BadInput saying where.

    Holds every input, and may hold the reserved columns `_id`, `_unit` and `_event_time`, null where a row has none.
    """
    by_input = [
        check_values(columns[name], field, v2_datatype(field), partial(at, name))
        for field, name, _ in reader.fields
    ]
    values: list[list[Value]] = [list(row) for row in zip(*by_input, strict=True)]
    ids, units, times = [about.id if n == 1 else ""] * n, [about.unit] * n, [about.event_time] * n
    for row, given in _given(columns, ROW_ID):
        ids[row] = check_id(given, at(ROW_ID, row))
    for row, given in _given(columns, UNIT):
        units[row] = check_id(given, at(UNIT, row))
    for row, given in _given(columns, EVENT_TIME):
        times[row] = check_event_time(given, at(EVENT_TIME, row))
    return Rows(about.id, n, values, ids, units, times)


def _given(columns: Mapping[str, Sequence[Any]], name: str) -> list[tuple[int, Any]]:
    return [(row, value) for row, value in enumerate(columns.get(name, ())) if value is not None]
