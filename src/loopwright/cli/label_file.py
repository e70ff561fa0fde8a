"""Reads a file of outcomes for `labels add`."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from loopwright.data.duck import connect
from loopwright.kernel.clock import iso
from loopwright.kernel.errors import BadInput, NotFound, did_you_mean

READERS = {
    ".csv": "read_csv(?, all_varchar=true)", ".gz": "read_csv(?, all_varchar=true)",
    ".parquet": "read_parquet(?)", ".jsonl": "read_json_auto(?, format='newline_delimited')",
    ".ndjson": "read_json_auto(?, format='newline_delimited')",
}  # fmt: skip
BATCH = 50_000


def read(file: Path, id_column: str, label_column: str, available_column: str | None) -> list[dict[str, Any]]:
    """Return {id, label, available_at} of every row: numbers where they are numbers, times as ISO 8601 or None."""
    if not file.is_file():
        raise NotFound("no such file", got=str(file))
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise BadInput("a kind of file not known here", got=file.name, wanted=", ".join(READERS))
    try:
        with connect() as engine:
            found = engine.sql(f"SELECT * FROM {reader}", params=[str(file)]).to_arrow_table()
    except duckdb.Error as error:
        raise BadInput(f"cannot be read ({str(error).splitlines()[0]})", where=str(file)) from None
    for name in filter(None, (id_column, label_column, available_column)):
        if name not in found.column_names:
            raise BadInput(
                f"no column `{name}`", where=str(file), got=", ".join(found.column_names),
                next=did_you_mean(name, found.column_names)
                or "Name it with --id-column, --label-column or --available-at.",
            )  # fmt: skip
    ids = [str(value) for value in found.column(id_column).to_pylist()]
    labels = [_number(value) for value in found.column(label_column).to_pylist()]
    if available_column is None:
        return [{"id": name, "label": label} for name, label in zip(ids, labels, strict=True)]
    moments = [_moment(value, file) for value in found.column(available_column).to_pylist()]
    return [
        {"id": name, "label": label, "available_at": moment}
        for name, label, moment in zip(ids, labels, moments, strict=True)
    ]


def batches(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield parts small enough for one request."""
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


def _number(value: Any) -> float | str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return float(value.strip().lower() == "true")
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _moment(value: Any, file: Path) -> str:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        raise BadInput("not a time", where=str(file), got=value, wanted="ISO 8601") from None
    return iso(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
