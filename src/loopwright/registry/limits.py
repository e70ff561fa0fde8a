"""How much one registry entry or one call may carry, so that no client can make a page or an audit row too large."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from loopwright.kernel.errors import BadInput

TAGS = 1_000
"""Tags on one model, version, run, experiment, logged model or trace, and in one call."""

TEXT = 5_000
"""Characters of a description: what MLflow's column holds on PostgreSQL; SQLite would take anything."""

NAME = 250
"""Characters of a tag's key."""

_SHOWN = 500


def check_tags(where: str, count: int, keys: Iterable[str] = ()) -> None:
    """Raise BadInput for more than `TAGS` tags or for a key longer than `NAME`."""
    if count > TAGS:
        raise BadInput("too many tags", where=where, got=count, wanted=f"at most {TAGS:,}")
    long = next((key for key in keys if len(key) > NAME), None)
    if long is not None:
        raise BadInput(
            "a tag's key is too long", where=where, got=f"{len(long)} characters", wanted=f"at most {NAME}"
        )


def check_text(where: str, text: str | None) -> None:
    """Raise BadInput for a description longer than `TEXT`."""
    if text is not None and len(text) > TEXT:
        raise BadInput(
            "the description is too long",
            where=where,
            got=f"{len(text):,} characters",
            wanted=f"at most {TEXT:,}",
        )


def shown(text: str | None) -> Any:
    """`text` as an audit row keeps it: whole when it is short, else its digest and length."""
    if text is None or len(text) <= _SHOWN:
        return text
    return {
        "sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        "characters": len(text),
    }


def shown_tags(tags: Mapping[str, str]) -> dict[str, Any]:
    """Tags as an audit row keeps them: the first fifty, and how many there are."""
    first = {key: shown(value) for key, value in list(tags.items())[:50]}
    return {"tags": first} if len(tags) <= 50 else {"tags": first, "of": len(tags)}
