"""What `data diff` compares: a snapshot, a version of a table, or a file, named in one word."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from loopwright.data import store as data_store
from loopwright.data.contract import Contract
from loopwright.data.files import Files
from loopwright.data.lake import Lake
from loopwright.data.snapshot import load_snapshot, snapshot_files
from loopwright.data.source import resolve
from loopwright.kernel.errors import BadInput, NotFound

_TABLE = re.compile(
    r"(?P<model>[A-Za-z0-9_][A-Za-z0-9_.-]*)/(?P<table>[A-Za-z0-9_][A-Za-z0-9_.-]*)(?:@(?P<version>\d{1,18}))?"
)
_DIGEST = re.compile(r"[0-9a-f]{6,64}")
NULLS = ("", "NA", "NULL", "null")
"""What means null in a text file that no contract speaks of."""


@dataclass(frozen=True, slots=True)
class Side:
    """`tables`: name → its rows. `contents`: name → content digest, of snapshots. `model`: None for a file.
    `words`: it is a file of text, whose columns have no types of their own.
    """

    label: str
    model: str | None
    tables: Mapping[str, Files]
    keys: Mapping[str, tuple[str, ...]]
    contents: Mapping[str, str]
    words: bool = False


def is_file(word: str, lake: Lake) -> bool:
    """Whether a word names a file rather than something of the lake."""
    if _DIGEST.fullmatch(word):
        return False
    named = _TABLE.fullmatch(word)
    return named is None or not lake.exists("silver", named["model"], named["table"])


def open_side(word: str, lake: Lake, *, into: Path) -> Side:
    """Find what a word names; a file that is no Parquet is unpacked `into` a folder.

    Raises NotFound and BadInput as the snapshot, the table or the file does.
    """
    if _DIGEST.fullmatch(word):
        snapshot = load_snapshot(lake, word)
        model = str(snapshot.manifest["model"])
        return Side(
            f"snapshot {snapshot.digest[:12]}", model,
            {name: snapshot_files(lake, snapshot.digest, name) for name in snapshot.tables},
            {name: key_of(lake, model, name) for name in snapshot.tables},
            {name: str(entry["content_digest"]) for name, entry in snapshot.tables.items()},
        )  # fmt: skip
    named = _TABLE.fullmatch(word)
    if named is not None and lake.exists("silver", named["model"], named["table"]):
        model, table = named["model"], named["table"]
        version = int(named["version"]) if named["version"] else lake.open("silver", model, table).version()
        files = lake.files("silver", model, table, version=version)
        return Side(
            f"{model}/{table}@{version}", model, {table: files}, {table: key_of(lake, model, table)}, {}
        )
    path = Path(word)
    if "://" in word or not path.is_file():
        raise NotFound(
            "nothing is called so", where="data diff", got=word,
            wanted="a snapshot's digest, MODEL/TABLE, MODEL/TABLE@VERSION or a file",
            next="See: loopwright data snapshots, loopwright data tables",
        )  # fmt: skip
    into.mkdir(parents=True, exist_ok=True)
    staged = resolve(str(path), path.parent).stage(into, NULLS)
    if staged.malformed.rows:
        raise BadInput("lines that are no rows", where=word, got=f"{staged.malformed.rows:,} of them")
    words = all(pa.types.is_string(kind) for kind in staged.rows.schema.types)
    return Side(path.name, None, {path.stem: staged.rows}, {}, {}, words)


def key_of(lake: Lake, model: str, table: str) -> tuple[str, ...]:
    """The key that the table's contract names; none without a contract that can be read."""
    with lake.ledger.read() as conn:
        force = data_store.contract_in_force(conn, f"{model}/{table}")
    if force is None:
        return ()
    for name in (table, None):
        try:
            return Contract.from_json(force.document, f"contract {force.number}", name).key
        except (BadInput, NotFound):
            continue  # a file of one table under another name
    return ()
