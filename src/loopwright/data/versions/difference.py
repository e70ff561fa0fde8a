"""How two versions of a table differ: rows, columns, and what the columns hold. In bounded memory.

Rows with a key are added, removed, changed or the same. Without one, or when a key stands there twice, whole rows are
compared as often as they stand there, and none is "changed".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from loopwright.data.bounded import MEMORY, bounded
from loopwright.data.content import content_names, quote, spelling
from loopwright.data.files import Files
from loopwright.data.versions.describe import Facts, Slots, Spread, count, describe, kind_of, quantile_slots
from loopwright.kernel.errors import BadInput, did_you_mean
from loopwright.stats.drift import benjamini_hochberg, ks_from_bins, psi, psi_corrected, psi_pvalue

WARN, ALARM, CHANCE = 0.1, 0.25, 0.01
EXAMPLES = 5
LONGEST_CELL = 200


@dataclass(frozen=True, slots=True)
class ColumnDifference:
    """A column of both tables. `changed`: rows in which it differs; None where rows could not be told by a key.

    `psi` is corrected for chance; `adjusted` is its p-value over all columns (Benjamini-Hochberg). `level`: same,
    quiet, warn (over 0.1) or alarm (over 0.25), the latter two only beyond chance.
    """

    name: str
    before: Facts
    after: Facts
    changed: int | None
    psi: float
    corrected: float
    adjusted: float
    ks: float | None
    level: str
    spreads: tuple[Spread, Spread] | None

    def to_json(self, *, values: bool) -> dict[str, Any]:
        told: dict[str, Any] = {
            "column": self.name, "kind": self.before.kind, "changed": self.changed, "psi": self.psi,
            "psi_corrected": self.corrected, "pvalue": self.adjusted, "ks": self.ks, "level": self.level,
            "before": self.before.to_json(values=values), "after": self.after.to_json(values=values),
        }  # fmt: skip
        if values and self.spreads is not None:
            told["slots"] = {
                "edges": list(self.spreads[0].slots.edges), "values": list(self.spreads[0].slots.values),
                "before": list(self.spreads[0].counts), "after": list(self.spreads[1].counts),
                "before_nulls": self.spreads[0].nulls, "after_nulls": self.spreads[1].nulls,
            }  # fmt: skip
        return told


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two tables. `key`: by which rows were told; empty with `why_no_key` when by whole rows."""

    key: tuple[str, ...]
    why_no_key: str
    rows: tuple[int, int]
    added: int
    removed: int
    changed: int
    schema: tuple[Mapping[str, str | None], ...]
    columns: tuple[ColumnDifference, ...]
    examples: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def same(self) -> bool:
        return not (self.added or self.removed or self.changed or self.schema)

    def to_json(self, *, values: bool = True) -> dict[str, Any]:
        """Return all fields; without `values`, no row and no value of one."""
        told: dict[str, Any] = {
            "same": self.same, "key": list(self.key), "why_no_key": self.why_no_key or None,
            "rows": {"before": self.rows[0], "after": self.rows[1], "added": self.added,
                     "removed": self.removed, "changed": self.changed,
                     "unchanged": self.rows[0] - self.removed - self.changed},
            "schema": [dict(one) for one in self.schema],
            "columns": [one.to_json(values=values) for one in self.columns],
        }  # fmt: skip
        if values:
            told["examples"] = {what: [dict(row) for row in rows] for what, rows in self.examples.items()}
        return told


def compare(
    before: Files,
    after: Files,
    *,
    key: Sequence[str] = (),
    words: tuple[bool, bool] = (False, False),
    examples: int = EXAMPLES,
    memory: str = MEMORY,
    spill: Path | None = None,
) -> Difference:
    """Compare two tables; the lake's own columns do not count.

    A column whose type changed is compared as a number if both are; as the one's type if the other holds its words and
    nothing else; else as text. `words`: whether the one or the other is text without types of its own: no change then,
    as long as it reads as the other's type. Raises BadInput for a key column that one of the tables lacks.
    """
    names = content_names(before.schema), content_names(after.schema)
    common = [name for name in names[0] if name in names[1]]
    for name in key:
        if name not in common:
            raise BadInput(
                "rows cannot be told by a column that is not in both tables", where="key", got=name,
                wanted=", ".join(common), next=did_you_mean(name, common),
            )  # fmt: skip
    schema = _schema_changes(before.schema, after.schema, *names)
    with bounded(memory, spill=spill) as engine:
        before.view(engine, "_before", names[0] or None)
        after.view(engine, "_after", names[1] or None)
        kinds = _kinds(engine, common, before.schema, after.schema)
        for untyped, file, other in ((words[0], before, after), (words[1], after, before)):
            schema = _without_words(schema, kinds, file.schema, other.schema) if untyped else schema
        _align(engine, "a", "_before", before.schema, kinds)
        _align(engine, "b", "_after", after.schema, kinds)
        counts = [
            int(engine.sql(f'SELECT count(*) FROM "{v}"').fetchall()[0][0]) for v in ("_before", "_after")
        ]
        told, why = tuple(key), "" if key else "the table has no key"
        rows: _Rows
        if not common:
            rows = _Rows(counts[1], counts[0], 0, {}, {})
        else:
            if told and not _unique(engine, told, kinds):
                told, why = (), f"{', '.join(key)} does not tell rows apart"
            rows = _by_key(engine, told, kinds, examples) if told else _by_row(engine, kinds, examples)
        same = not (rows.added or rows.removed or rows.changed)
        columns = _columns(engine, kinds, rows, same, bool(told))
    return Difference(
        told,
        why,
        (counts[0], counts[1]),
        rows.added,
        rows.removed,
        rows.changed,
        schema,
        columns,
        rows.examples,
    )


def unchanged(files: Files, key: Sequence[str] = ()) -> Difference:
    """What `compare` says of a table and itself, without a look at the columns."""
    with bounded() as engine:
        files.view(engine, "_before")
        rows = int(engine.sql('SELECT count(*) FROM "_before"').fetchall()[0][0])
    why = "" if key else "the table has no key"
    return Difference(tuple(key), why, (rows, rows), 0, 0, 0, (), (), {})


@dataclass(frozen=True, slots=True)
class _Rows:
    added: int
    removed: int
    changed: int
    by_column: Mapping[str, int]
    examples: Mapping[str, Sequence[Mapping[str, Any]]]


def _unique(engine: duckdb.DuckDBPyConnection, key: Sequence[str], kinds: pa.Schema) -> bool:
    """Number the rows of both sides by digests of their key and of the rest; whether each key stands there once."""
    rest = [name for name in kinds.names if name not in key]
    other = f"md5_number({spelling(rest, kinds)})" if rest else "0::HUGEINT"
    for side in ("a", "b"):
        engine.execute(
            f"CREATE TEMP TABLE k{side} AS SELECT md5_number({spelling(key, kinds)}) AS k, {other} AS r FROM {side}"
        )
        rows, keys = engine.sql(f"SELECT count(*), count(DISTINCT k) FROM k{side}").fetchall()[0]
        if rows != keys:
            return False
    return True


def _by_key(engine: duckdb.DuckDBPyConnection, key: Sequence[str], kinds: pa.Schema, examples: int) -> _Rows:
    engine.execute(
        "CREATE TEMP TABLE moved AS SELECT coalesce(a.k, b.k) AS k, CASE WHEN b.k IS NULL THEN 'removed' "
        "WHEN a.k IS NULL THEN 'added' ELSE 'changed' END AS what FROM ka a FULL JOIN kb b ON a.k = b.k "
        "WHERE a.k IS NULL OR b.k IS NULL OR a.r <> b.r"
    )
    counts = dict(engine.sql("SELECT what, count(*) FROM moved GROUP BY what").fetchall())
    rest = [name for name in kinds.names if name not in key]
    k = f"md5_number({spelling(key, kinds)})"
    by_column: dict[str, int] = dict.fromkeys(kinds.names, 0)
    shown: dict[str, list[Mapping[str, Any]]] = {}
    chosen = f"(SELECT k FROM moved WHERE what = 'changed' ORDER BY k LIMIT {examples})"
    if counts.get("changed"):
        both = (
            f"(SELECT {k} AS k, * FROM a WHERE {k} IN {{which}}) x JOIN (SELECT {k} AS k, * FROM b WHERE {k} IN "
            "{which}) y ON x.k = y.k"
        )
        moved = "(SELECT k FROM moved WHERE what = 'changed')"
        differ = [f"count(*) FILTER (WHERE x.{quote(n)} IS DISTINCT FROM y.{quote(n)})" for n in rest]
        found = engine.sql(f"SELECT {', '.join(differ)} FROM {both.format(which=moved)}").fetchall()[0]
        by_column |= {name: int(n) for name, n in zip(rest, found, strict=True)}
        if examples:
            cells = [f"x.{quote(n)}" for n in kinds.names] + [f"y.{quote(n)}" for n in kinds.names]
            pairs = engine.sql(
                f"SELECT {', '.join(cells)} FROM {both.format(which=chosen)} ORDER BY x.k"
            ).fetchall()
            half = len(kinds.names)
            shown["changed"] = [
                {
                    "key": {n: _plain(v) for n, v in zip(kinds.names, pair[:half], strict=True) if n in key},
                    "columns": {
                        n: {"before": _plain(old), "after": _plain(new)}
                        for n, old, new in zip(kinds.names, pair[:half], pair[half:], strict=True)
                        if n not in key and not _equal(old, new)
                    },
                }
                for pair in pairs
            ]
    for what, side in (("removed", "a"), ("added", "b")):
        if counts.get(what) and examples:
            which = f"(SELECT k FROM moved WHERE what = '{what}' ORDER BY k LIMIT {examples})"
            shown[what] = _shown(engine, side, kinds, k, which)
    return _Rows(counts.get("added", 0), counts.get("removed", 0), counts.get("changed", 0), by_column, shown)


def _by_row(engine: duckdb.DuckDBPyConnection, kinds: pa.Schema, examples: int) -> _Rows:
    h = f"md5_number({spelling(kinds.names, kinds)})"
    engine.execute(
        "CREATE TEMP TABLE moved AS SELECT k, sum(n)::BIGINT AS n FROM "
        f"(SELECT {h} AS k, -1 AS n FROM a UNION ALL SELECT {h} AS k, 1 AS n FROM b) GROUP BY k HAVING sum(n) <> 0"
    )
    added, removed = engine.sql(
        "SELECT coalesce(sum(n) FILTER (n > 0), 0)::BIGINT, coalesce(-sum(n) FILTER (n < 0), 0)::BIGINT FROM moved"
    ).fetchall()[0]
    shown = {}
    for what, side, sign, found in (("removed", "a", "<", removed), ("added", "b", ">", added)):
        if found and examples:
            which = f"(SELECT k FROM moved WHERE n {sign} 0 ORDER BY k LIMIT {examples})"
            shown[what] = _shown(engine, side, kinds, h, which)[:examples]
    return _Rows(added, removed, 0, {}, shown)


def _columns(
    engine: duckdb.DuckDBPyConnection, kinds: pa.Schema, rows: _Rows, same: bool, keyed: bool
) -> tuple[ColumnDifference, ...]:
    names = kinds.names
    before = describe(engine, "a", kinds, names)
    if same:
        return tuple(
            ColumnDifference(n, before[n], before[n], 0 if keyed else None, 0, 0, 1, 0, "same", None)
            for n in names
        )
    after = describe(engine, "b", kinds, names)
    slots = {n: _slots(before[n], after[n]) for n in names}
    spreads = {n: (one, other) for (n, one), other in zip(
        count(engine, "a", kinds, slots).items(), count(engine, "b", kinds, slots).values(), strict=True)}  # fmt: skip
    pairs = {n: ([a.nulls, *a.counts], [b.nulls, *b.counts]) for n, (a, b) in spreads.items()}
    adjusted = benjamini_hochberg([psi_pvalue(*pairs[n]) for n in names])
    found = []
    for name, chance in zip(names, adjusted, strict=True):
        corrected = psi_corrected(*pairs[name])
        beyond = chance < CHANCE
        level = (
            "alarm" if beyond and corrected > ALARM else "warn" if beyond and corrected > WARN else "quiet"
        )
        ks = (
            None
            if kind_of(kinds.field(name).type) == "category"
            else ks_from_bins(*(p[1:] for p in pairs[name]))
        )
        found.append(
            ColumnDifference(
                name, before[name], after[name], rows.by_column.get(name, 0) if keyed else None,
                psi(*pairs[name]), corrected, chance, ks, level, spreads[name],
            )
        )  # fmt: skip
    return tuple(found)


def _slots(before: Facts, after: Facts) -> Slots:
    if before.kind == "category":
        return Slots(values=tuple(dict.fromkeys((*before.top, *after.top))))
    return quantile_slots(before if before.rows > before.nulls else after)


def _kinds(
    engine: duckdb.DuckDBPyConnection, names: Sequence[str], before: pa.Schema, after: pa.Schema
) -> pa.Schema:
    """The types in which columns of both tables are compared."""
    kinds = {name: _common(before.field(name).type, after.field(name).type) for name in names}
    for view, words, typed in (("_before", before, after), ("_after", after, before)):
        asked = [
            name for name in names
            if _is_text(words.field(name).type) and not _is_text(typed.field(name).type)
        ]  # fmt: skip
        if not asked:
            continue
        types = _sql_types(engine, pa.schema([typed.field(name) for name in asked]))
        unlike = ", ".join(f"count({quote(n)}) - count(TRY_CAST({quote(n)} AS {types[n]}))" for n in asked)
        found = engine.sql(f'SELECT {unlike} FROM "{view}"').fetchall()[0]
        kinds |= {name: typed.field(name).type for name, count in zip(asked, found, strict=True) if not count}
    return pa.schema(list(kinds.items()))


def _align(
    engine: duckdb.DuckDBPyConnection, name: str, source: str, held: pa.Schema, kinds: pa.Schema
) -> None:
    types = _sql_types(engine, kinds)
    cells = [
        quote(n) if held.field(n).type == kinds.field(n).type else f"{quote(n)}::{types[n]} AS {quote(n)}"
        for n in kinds.names
    ]
    engine.execute(f'CREATE TEMP VIEW {name} AS SELECT {", ".join(cells) or "1 AS _none"} FROM "{source}"')


def _sql_types(engine: duckdb.DuckDBPyConnection, kinds: pa.Schema) -> dict[str, str]:
    if not kinds.names:
        return {}
    engine.register("_types", kinds.empty_table())
    found = {row[0]: str(row[1]) for row in engine.execute("DESCRIBE _types").fetchall()}
    engine.unregister("_types")
    return found


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one == other:
        return one
    return pa.float64() if kind_of(one) == kind_of(other) == "number" else pa.string()


def _schema_changes(
    before: pa.Schema, after: pa.Schema, old: Sequence[str], new: Sequence[str]
) -> tuple[Mapping[str, str | None], ...]:
    found: list[Mapping[str, str | None]] = []
    for name in dict.fromkeys((*old, *new)):
        was = str(before.field(name).type) if name in old else None
        now = str(after.field(name).type) if name in new else None
        if was != now:
            change = "added" if was is None else "removed" if now is None else "type"
            found.append({"column": name, "change": change, "before": was, "after": now})
    return tuple(found)


def _without_words(
    changes: tuple[Mapping[str, str | None], ...], kinds: pa.Schema, words: pa.Schema, typed: pa.Schema
) -> tuple[Mapping[str, str | None], ...]:
    """`changes` without those of columns that are text in `words` alone and read as the type of `typed`."""
    read = {
        name for name in kinds.names
        if _is_text(words.field(name).type) and kinds.field(name).type == typed.field(name).type
    }  # fmt: skip
    return tuple(one for one in changes if one["change"] != "type" or one["column"] not in read)


def _shown(
    engine: duckdb.DuckDBPyConnection, side: str, kinds: pa.Schema, digest: str, which: str
) -> list[Mapping[str, Any]]:
    cells = ", ".join(map(quote, kinds.names))
    found = engine.sql(
        f"SELECT {cells} FROM {side} WHERE {digest} IN {which} ORDER BY {digest} LIMIT 1000"
    ).fetchall()
    return [{n: _plain(v) for n, v in zip(kinds.names, row, strict=True)} for row in found]


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other or (one != one and other != other))


def _plain(value: Any) -> Any:
    """A cell as JSON holds it, cut when long."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    text = value.isoformat() if hasattr(value, "isoformat") else str(value)
    return text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 1] + "…"
