"""Errors every room raises: they say where, what, what was found, what was wanted and what to do next.

    LoopwrightError
    ├── BadInput (ValueError)            what was handed in cannot be used     exit 2 · HTTP 422
    ├── NotFound (LookupError)           nothing has this name                 exit 2 · HTTP 404
    ├── Refused (PermissionError)        the answer is no                      exit 1 · HTTP 403
    │   └── Tampered                     bytes do not match digest or signature
    ├── Conflict                         it is already so, or busy             exit 1 · HTTP 409
    ├── Unauthenticated                  nobody we know                        exit 2 · HTTP 401
    │   └── Lapsed                       somebody we knew: expired, revoked
    ├── TooMany                          too much in too short a time          exit 2 · HTTP 429
    └── Unavailable (OSError)            an engine does not answer             exit 2 · HTTP 503

Only the edges (`cli`, `control`) read `exit_code` and `http_status`.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class LoopwrightError(Exception):
    """One paragraph a person can act on: "where: what; got …, wanted …. next"."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(
        self, what: str, *, where: str = "", got: object = None, wanted: str = "", next: str = ""
    ) -> None:
        self.what = what
        self.where = where
        self.got = got
        self.wanted = wanted
        self.next = next
        # OSError keeps only what is handed to its own __init__; one argument leaves errno alone.
        super().__init__(what)

    def __str__(self) -> str:
        found = [f"got {_short(self.got)}"] if self.got is not None else []
        found += [f"wanted {self.wanted}"] if self.wanted else []
        text = f"{self.where}: {self.what}" if self.where else self.what
        if found:
            text = f"{text}; {', '.join(found)}"
        if self.next:
            text = f"{text if text.endswith(('.', '?', '!')) else text + '.'} {self.next}"
        return text

    def to_json(self) -> dict[str, str]:
        """Return the fields as text, for the HTTP API."""
        fields = {"what": self.what, "where": self.where, "wanted": self.wanted, "next": self.next}
        if self.got is not None:
            fields["got"] = _short(self.got)
        return {name: value for name, value in fields.items() if value} | {
            "error": type(self).__name__,
            "message": str(self),
        }


class BadInput(LoopwrightError, ValueError):
    """What was handed in cannot be used as it is."""

    exit_code = 2
    http_status = 422


class NotFound(LoopwrightError, LookupError):
    """Nothing has this name."""

    exit_code = 2
    http_status = 404


class Refused(LoopwrightError, PermissionError):
    """The answer is no; the message says what is missing."""

    exit_code = 1
    http_status = 403


class Tampered(Refused):
    """Bytes do not match their digest or signature; nothing of them was used."""


class Conflict(LoopwrightError):
    """It is already so, or someone else is doing it."""

    exit_code = 1
    http_status = 409


class Unauthenticated(LoopwrightError):
    """The request carries no token, or one nobody knows."""

    exit_code = 2
    http_status = 401


class Lapsed(Unauthenticated):
    """A token or a session that was good once: it has expired, was ended, or its user is disabled."""


class TooMany(LoopwrightError):
    """Too much in too short a time; `retry_after` is when it may be tried again, in seconds."""

    exit_code = 2
    http_status = 429

    def __init__(self, what: str, *, retry_after: float, where: str = "", next: str = "") -> None:
        super().__init__(what, where=where, wanted=f"a pause of {retry_after:.0f} s", next=next)
        self.retry_after = retry_after


class Unavailable(LoopwrightError, OSError):
    """An engine, a disk or another process does not answer."""

    exit_code = 2
    http_status = 503


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "did you mean `x`?" for the nearest of `known`, or "" when none is near."""
    if len(name) > 256:  # comparing takes time, and nobody meant that
        return ""
    spelled = {candidate.lower(): candidate for candidate in known}
    near = get_close_matches(name.lower(), spelled, n=1, cutoff=0.6)
    return f"did you mean `{spelled[near[0]]}`?" if near else ""


def _short(value: object, limit: int = 200) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
