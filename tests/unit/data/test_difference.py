import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.data.bounded import bounded
from loopwright.data.files import Files
from loopwright.data.versions.describe import Slots, count, describe, even_slots, quantile_slots
from loopwright.data.versions.difference import Difference, compare
from loopwright.kernel.errors import BadInput
from loopwright.stats.drift import psi

SCHEMA = pa.schema([("id", pa.int64()), ("s", pa.string()), ("d", pa.float64())])
ROW = st.fixed_dictionaries({
    "id": st.integers(0, 5), "s": st.sampled_from([None, "", "a", "b"]),
    "d": st.sampled_from([None, 0.0, -0.0, 1.5, float("nan")]),
})  # fmt: skip


def files(folder: Path, name: str, rows: pa.Table) -> Files:
    path = folder / f"{name}.parquet"
    pq.write_table(rows, path)
    return Files((str(path),), rows.schema)


def versus(folder: Path, before: Any, after: Any, *key: str) -> Difference:
    one, other = (pa.table(side) if isinstance(side, dict) else side for side in (before, after))
    return compare(files(folder, "a", one), files(folder, "b", other), key=key)


def same_cell(row: dict[str, Any]) -> tuple[Any, ...]:
    d = row["d"]
    return row["id"], row["s"], None if d is None else "nan" if d != d else d + 0.0


@settings(max_examples=10)
@given(st.lists(ROW, max_size=6), st.lists(ROW, max_size=6))
def test_whole_rows_are_compared_as_often_as_they_stand_there(
    tmp_path_factory: pytest.TempPathFactory, one: list[dict[str, Any]], other: list[dict[str, Any]]
) -> None:
    tables = [pa.Table.from_pylist(rows, schema=SCHEMA) for rows in (one, other)]
    found = versus(tmp_path_factory.mktemp("d"), *tables)
    before, after = (Counter(map(same_cell, rows)) for rows in (one, other))
    assert found.added == (after - before).total()
    assert found.removed == (before - after).total()
    assert found.same is (before == after)


@settings(max_examples=10)
@given(
    st.dictionaries(st.integers(0, 9), ROW, max_size=6), st.dictionaries(st.integers(0, 9), ROW, max_size=6)
)
def test_rows_with_a_key_are_added_removed_and_changed(
    tmp_path_factory: pytest.TempPathFactory, one: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]]
) -> None:
    sides = [[{**row, "id": key} for key, row in side.items()] for side in (one, other)]
    tables = [pa.Table.from_pylist(rows, schema=SCHEMA) for rows in sides]
    found = versus(tmp_path_factory.mktemp("d"), *tables, "id")
    before, after = ({row["id"]: same_cell(row) for row in rows} for rows in sides)
    both = before.keys() & after.keys()
    assert found.added == len(after.keys() - before.keys())
    assert found.removed == len(before.keys() - after.keys())
    assert found.changed == sum(before[key] != after[key] for key in both)
    changed = {column.name: column.changed for column in found.columns}
    assert changed["s"] == sum(before[key][1] != after[key][1] for key in both)
    assert changed["d"] == sum(before[key][2] != after[key][2] for key in both)


def test_what_changed_in_a_row_is_shown_with_its_key(tmp_path: Path) -> None:
    found = versus(
        tmp_path, {"id": [1, 2, 3], "s": ["a", "b", "c"]}, {"id": [2, 3, 4], "s": ["b", "x", "d"]}, "id"
    )
    assert found.examples == {
        "changed": [{"key": {"id": 3}, "columns": {"s": {"before": "c", "after": "x"}}}],
        "removed": [{"id": 1, "s": "a"}],
        "added": [{"id": 4, "s": "d"}],
    }
    told = found.to_json(values=False)
    assert "examples" not in told
    assert "slots" not in told["columns"][0]
    assert "low" not in told["columns"][0]["before"]


def test_a_key_that_stands_there_twice_tells_nothing_apart(tmp_path: Path) -> None:
    found = versus(tmp_path, {"id": [1, 1], "s": ["a", "b"]}, {"id": [1, 1], "s": ["a", "c"]}, "id")
    assert (found.key, found.why_no_key) == ((), "id does not tell rows apart")
    assert (found.added, found.removed, found.changed) == (1, 1, 0)


def test_columns_come_go_and_change_their_type(tmp_path: Path) -> None:
    found = versus(
        tmp_path, {"id": [1], "n": [1], "old": ["x"]}, {"id": [1], "n": [1.0], "new": [True]}, "id"
    )
    assert [(c["column"], c["change"], c["before"], c["after"]) for c in found.schema] == [
        ("n", "type", "int64", "double"), ("old", "removed", "string", None), ("new", "added", None, "bool"),
    ]  # fmt: skip
    assert (found.added, found.removed, found.changed, found.same) == (0, 0, 0, False)


def test_the_words_of_a_csv_are_compared_as_what_they_stand_for(tmp_path: Path) -> None:
    moments = pa.array([0, 1_000_000], pa.timestamp("us", "UTC"))
    typed = {"id": [1, 2], "t": moments, "d": [1.50, 2.0]}
    words = {"id": ["1", "2"], "t": ["1970-01-01T00:00:00Z", "1970-01-01T00:00:01Z"], "d": ["1.5", "2"]}
    found = versus(tmp_path, typed, words, "id")
    assert (found.changed, found.added, found.removed) == (0, 0, 0)
    assert versus(tmp_path, typed, {**words, "d": ["1.5", "two"]}, "id").changed > 0


def test_a_moved_column_is_an_alarm_and_a_quiet_one_is_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    size = 5_000
    before = {
        "still": rng.normal(size=size),
        "moved": rng.normal(size=size),
        "kind": rng.choice(["a", "b"], size),
    }
    after = {
        "still": rng.normal(size=size), "moved": rng.normal(1.0, size=size),
        "kind": rng.choice(["a", "b", "new"], size, p=[0.2, 0.2, 0.6]),
    }  # fmt: skip
    levels = {column.name: column for column in versus(tmp_path, before, after).columns}
    assert (levels["still"].level, levels["moved"].level, levels["kind"].level) == ("quiet", "alarm", "alarm")
    spreads = levels["moved"].spreads
    assert spreads is not None
    edges = np.array(spreads[0].slots.edges)
    counts = [
        np.bincount(np.searchsorted(edges, side["moved"]), minlength=len(edges) + 1)
        for side in (before, after)
    ]
    assert [list(one.counts) for one in spreads] == [c.tolist() for c in counts]
    assert levels["moved"].psi == pytest.approx(psi(*([0, *c] for c in counts)))


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="did you mean `carrier`"):
        versus(tmp_path, {"carrier": ["a"]}, {"carrier": ["a"]}, "carier")


def test_tables_without_rows_or_common_columns_are_compared_too(tmp_path: Path) -> None:
    empty = pa.table({"a": pa.array([], pa.int64())})
    assert versus(tmp_path, empty, empty).same
    assert versus(tmp_path, empty, {"a": [1, 2]}).added == 2
    apart = versus(tmp_path, {"a": [1]}, {"b": [1, 2]})
    assert (apart.added, apart.removed, len(apart.schema)) == (2, 1, 2)


def test_facts_agree_with_numpy(tmp_path: Path) -> None:
    rng = random.Random(3)
    values = [rng.choice([None, float("nan"), float("inf"), rng.gauss(5, 2)]) for _ in range(400)]
    known = np.array([v for v in values if v is not None and np.isfinite(v)])
    table = pa.table({"d": pa.array(values), "s": ["x"] * 300 + ["y"] * 99 + [None], "i": list(range(400))})
    with bounded() as engine:
        files(tmp_path, "f", table).view(engine, "rows")
        facts = describe(engine, "rows", table.schema, table.column_names)
        drawn = count(engine, "rows", table.schema, {n: even_slots(f) for n, f in facts.items()})
        assert count(engine, "rows", table.schema, {"d": Slots(edges=(5.0,))})["d"].counts == (
            int((known <= 5).sum()), int((known > 5).sum()),
        )  # fmt: skip
    d = facts["d"]
    assert d.nulls == sum(v is None for v in values)
    assert d.not_finite == sum(v is not None and not np.isfinite(v) for v in values)
    assert (d.low, d.high) == (known.min(), known.max())
    assert d.mean == pytest.approx(known.mean())
    assert d.deviation == pytest.approx(known.std(ddof=1))
    assert d.quantiles[0.5] == np.quantile(known, 0.5, method="inverted_cdf")
    assert (facts["s"].top, drawn["s"].counts, drawn["s"].nulls) == (("x", "y"), (300, 99, 0), 1)
    assert sum(drawn["d"].counts) == len(known)
    assert sum(drawn["i"].counts) == 400
    assert len(quantile_slots(facts["i"]).edges) == 19
