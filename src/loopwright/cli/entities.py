"""Entities of a file and answers to a file: CSV, JSON lines or Parquet by its name."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loopwright.kernel.errors import BadInput
from loopwright.kernel.files import written_whole

MOST = 5_000_000
_WANTED = "a name that ends in .csv, .jsonl or .parquet"


def key_values(words: Sequence[str]) -> dict[str, str | None]:
    """["origin=JFK"] as a mapping; an empty value is null. Raises BadInput."""
    found: dict[str, str | None] = {}
    for word in words:
        name, mark, value = word.partition("=")
        if not mark or not name:
            raise BadInput("not a part of an entity", got=word, wanted="NAME=VALUE, like origin=JFK")
        if name in found:
            raise BadInput("named twice", got=name)
        found[name] = value or None
    if not found:
        raise BadInput("no entity is named", wanted="--entity NAME=VALUE, or --file FILE")
    return found


def read_entities(path: Path) -> list[dict[str, Any]]:
    """Rows of a file, in order; in CSV all are text and empty cells null. Raises BadInput naming the line."""
    if not path.is_file():
        raise BadInput("no such file", where=str(path))
    try:
        match path.suffix:
            case ".csv":
                with path.open(encoding="utf-8-sig", newline="") as lines:
                    reader = csv.DictReader(lines, strict=True)
                    rows: list[dict[str, Any]] = []
                    for row in reader:
                        if None in row or None in row.values():
                            raise BadInput(
                                "another number of fields than the header", where=f"{path}:{reader.line_num}"
                            )
                        rows.append({name: value or None for name, value in row.items()})
            case ".jsonl":
                rows = []
                for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                    if line.strip():
                        rows.append(_object(line, f"{path}:{number}"))
            case ".parquet":
                import pyarrow.parquet as pq

                rows = pq.ParquetFile(path).read().to_pylist()
            case _:
                raise BadInput("not a file of entities", where=str(path), got=path.suffix, wanted=_WANTED)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise BadInput(f"cannot be read ({error})", where=str(path)) from None
    if not 1 <= len(rows) <= MOST:
        raise BadInput("so many entities", where=str(path), got=len(rows), wanted=f"1 to {MOST:,}")
    return rows


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write answers of `features.get`, one line each: the entity, VIEW.status and VIEW.age, values, features.

    The file appears whole. Raises BadInput for a name of another kind.
    """
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    if path.suffix not in (".csv", ".jsonl", ".parquet"):
        raise BadInput("not a file to write to", where=str(path), got=path.suffix, wanted=_WANTED)
    with written_whole(path) as stream:
        if path.suffix == ".jsonl":
            for row in flat:
                stream.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        elif path.suffix == ".csv":
            import io

            text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
            writer = csv.DictWriter(text, names)
            writer.writeheader()
            writer.writerows(flat)
            text.flush()
            text.detach()
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist([{n: row.get(n) for n in names} for row in flat]), stream)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = dict(row["entity"])
    for view in row["views"]:
        told |= {f"{view['view']}.status": view["status"], f"{view['view']}.age": view["age"]}
        told |= {f"{view['view']}.{name}": value for name, value in view["values"].items()}
    for name, value in (row["features"] or {}).items():
        told[f"feature.{name}"] = value
    if row["missing"]:
        told["missing"] = ", ".join(row["missing"])
    return told


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise BadInput(f"not JSON ({error})", where=where) from None
    if not isinstance(found, dict):
        raise BadInput("not a JSON object", where=where, got=line[:80])
    return found
