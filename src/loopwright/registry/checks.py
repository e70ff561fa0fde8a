"""What a client may ask for by name: aliases, tags, sources. Read from the registry's rows, changes nothing."""

import unicodedata
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection

from loopwright.kernel.errors import BadInput, Refused
from loopwright.registry import limits, store
from loopwright.registry.location import plain_location
from loopwright.registry.mlflow_rows import store as rows
from loopwright.registry.promotion import RESERVED_ALIASES
from loopwright.registry.versions import TAG_PREFIX

PROMPT_TAG = "mlflow.prompt.is_prompt"
"""Marks a prompt, which is no model: MLflow keeps both in one table and hides prompts from searches."""


def check_alias(conn: Connection, name: str, alias: str) -> None:
    """Refuse an alias that says where a version stands, or could be read so; prompts have no stages."""
    if store.is_prompt(conn, name):
        return
    # Full-width letters and ligatures become plain ones; marks and signs without width go.
    folded = unicodedata.normalize("NFKC", alias).casefold()
    read = "".join(sign for sign in folded if unicodedata.category(sign)[0] in "LN")
    if read in RESERVED_ALIASES:
        raise Refused(
            f"the alias `{alias}` says where a version stands and follows its promotion",
            where=name, next=f"Promote instead: loopwright promote {name} N --to production",
        )  # fmt: skip
    if not alias.isascii():
        raise Refused(
            "an alias with letters outside ASCII could look like one that follows a promotion", where=name, got=alias,
            wanted="letters a-z, digits, `-` and `_`",
        )  # fmt: skip


def check_tag(conn: Connection, name: str, key: str, version: int | None = None) -> None:
    """Refuse a tag of ours, and one that would turn a model into a prompt or back."""
    if unicodedata.normalize("NFKC", key).strip().casefold().startswith(TAG_PREFIX):
        raise Refused(f"tags under `{TAG_PREFIX}` are written by Loopwright only", where=name, got=key)
    if key == PROMPT_TAG and (store.has_versions(conn, name) or version is not None):
        raise Refused("this tag would hide a model that has versions from every search", where=name, got=key)
    if key == PROMPT_TAG and store.is_prompt(conn, name) and rows.has_ml_versions(conn, name):
        raise Refused("this tag would turn a prompt into a model, with its aliases", where=name, got=key)


def check_tags(conn: Connection, name: str, tags: list[Any] | None) -> dict[str, str]:
    """Raise for tags that may not be set or are too many; returns them by key."""
    limits.check_tags(name, len(tags or []), [tag.key for tag in tags or []])
    for tag in tags or []:
        # A prompt's versions carry the mark that the prompt itself has.
        if not (tag.key == PROMPT_TAG and store.is_prompt(conn, name)):
            check_tag(conn, name, tag.key)
    return {tag.key: str(tag.value) for tag in tags or []}


def copied(source: str) -> tuple[str, int] | None:
    """The version that `models:/NAME/N` names."""
    parts = urlsplit(source)
    name, _, number = parts.path.lstrip("/").partition("/")
    if parts.scheme != "models" or parts.netloc or not name or not number.isdecimal():
        return None
    return name, int(number)


def copied_tags(conn: Connection, copied: tuple[str, int], tags: list[Any] | None) -> list[Any]:
    """The tags of a copy: without those of ours that it brings along unchanged, which vouch for the original only."""
    original = rows.ml_tags_of(conn, *copied)
    return [
        tag
        for tag in tags or []
        if not (tag.key.startswith(TAG_PREFIX) and original.get(tag.key) == str(tag.value))
    ]


def resolved(conn: Connection, source: str) -> str:
    """`runs:/RUN/PATH` as the place it means, which can be kept from being overwritten; anything else as it is.

    A place on the server comes in its one spelling.
    """
    parts = urlsplit(source)
    if parts.scheme != "runs":
        return plain_location(source, "source")
    run, _, path = parts.path.lstrip("/").partition("/")
    place = rows.files_of_run(conn, run, path)
    if parts.netloc or not path or place is None:
        raise BadInput("no such run, or no path in it", where="source", got=source, wanted="runs:/RUN/PATH")
    return plain_location(place, "source")
