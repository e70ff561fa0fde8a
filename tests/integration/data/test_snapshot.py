import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.data.ingest import ingest
from loopwright.data.lake import Lake
from loopwright.data.snapshot import (
    content_digest,
    load_snapshot,
    read_snapshot,
    silver,
    take_snapshot,
    verify_snapshot,
)
from loopwright.data.source import Source
from loopwright.kernel.actor import SYSTEM
from loopwright.kernel.errors import BadInput, NotFound, Tampered
from tests.integration.data.conftest import contract

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
RULES = contract("{name: id, logicalType: integer, unique: true}", "{name: s}")
Csv = Callable[[str], Source]


def land(lake: Lake, source: Source) -> None:
    ingest(lake, model="m", table="t", source=source, contract=RULES, actor=SYSTEM, now=NOON)


def test_a_snapshot_keeps_its_rows_when_the_table_grows(lake: Lake, csv: Csv) -> None:
    land(lake, csv("id,s\n2,b\n1,a\n"))
    before = take_snapshot(lake, model="m", tables=["t"], now=NOON)
    land(lake, csv("id,s\n3,c\n"))
    after = take_snapshot(lake, model="m", tables=["t"], now=NOON)
    assert (before.rows, after.rows) == (2, 3)
    assert before.digest != after.digest
    assert read_snapshot(lake, before.digest, "t").to_pydict() == {"id": [2, 1], "s": ["b", "a"]}
    assert silver(lake, "m", "t").num_rows == 3
    assert before.tables["t"]["schema"] == {"id": "int64", "s": "string"}


def test_equal_data_has_one_snapshot(lake: Lake, csv: Csv) -> None:
    land(lake, csv("id,s\n1,a\n"))
    first = take_snapshot(lake, model="m", tables=["t"], now=NOON)
    assert (
        take_snapshot(lake, model="m", tables=["t"], now=NOON)
        == first
        == load_snapshot(lake, first.digest[:8])
    )


def test_batches_and_their_order_do_not_count(tmp_path: Path, lake: Lake, csv: Csv) -> None:
    land(lake, csv("id,s\n1,a\n2,b\n3,c\n"))
    whole = take_snapshot(lake, model="m", tables=["t"], now=NOON)
    other = Lake(tmp_path / "other", lake.ledger)
    ingest(other, model="n", table="t", source=csv("id,s\n3,c\n"), contract=RULES, actor=SYSTEM, now=NOON)
    ingest(
        other, model="n", table="t", source=csv("id,s\n2,b\n1,a\n"), contract=RULES, actor=SYSTEM, now=NOON
    )
    parts = take_snapshot(other, model="n", tables=["t"], now=NOON)
    assert parts.tables["t"]["content_digest"] == whole.tables["t"]["content_digest"]


def test_rows_removed_or_changed_behind_our_back_are_found(lake: Lake, csv: Csv) -> None:
    land(lake, csv("id,s\n1,a\n2,b\n"))
    pinned = take_snapshot(lake, model="m", tables=["t"], now=NOON)
    assert verify_snapshot(lake, pinned.digest) == pinned
    import pyarrow.parquet as pq

    file = next(Path(lake.path("silver", "m", "t")).glob("*.parquet"))
    rows = pq.read_table(file)
    pq.write_table(rows.set_column(0, "id", pa.array([1, 7])), file)
    with pytest.raises(Tampered, match="content of a snapshot changed"):
        verify_snapshot(lake, pinned.digest)
    pq.write_table(rows.slice(1), file)
    with pytest.raises(Tampered, match="rows of a snapshot are missing"):
        read_snapshot(lake, pinned.digest, "t")


def test_what_is_not_pinned_is_not_found(lake: Lake, csv: Csv) -> None:
    with pytest.raises(NotFound, match="no table silver/m/t"):
        take_snapshot(lake, model="m", tables=["t"], now=NOON)
    land(lake, csv("id,s\n1,a\n"))
    pinned = take_snapshot(lake, model="m", tables=["t"], now=NOON)
    with pytest.raises(NotFound, match="no such snapshot"):
        load_snapshot(lake, "0" * 64)
    with pytest.raises(NotFound, match="holds no such table"):
        read_snapshot(lake, pinned.digest, "u")
    with pytest.raises(BadInput, match="of no tables"):
        take_snapshot(lake, model="m", tables=[], now=NOON)


CELLS = st.tuples(
    st.one_of(st.none(), st.integers(-3, 3)),
    st.one_of(st.none(), st.sampled_from(["", "-", "1:a", "a"])),
    st.one_of(st.none(), st.sampled_from([0.0, -0.0, 1.5])),
)


def table(rows: list[tuple[int | None, str | None, float | None]]) -> pa.Table:
    types = {"a": pa.int64(), "b": pa.string(), "c": pa.float64()}
    return pa.table(
        {name: pa.array([row[i] for row in rows], kind) for i, (name, kind) in enumerate(types.items())}
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(CELLS, max_size=8), st.lists(CELLS, max_size=8), st.randoms(use_true_random=False))
def test_digests_are_equal_exactly_when_the_rows_are(one: list, other: list, order: random.Random) -> None:  # type: ignore[type-arg]
    shuffled = order.sample(one, len(one))
    assert content_digest(table(one)) == content_digest(table(shuffled))
    same = sorted(map(repr_of, one)) == sorted(map(repr_of, other))
    assert (content_digest(table(one)) == content_digest(table(other))) is same


def repr_of(row: tuple[int | None, str | None, float | None]) -> str:
    return repr((row[0], row[1], None if row[2] is None else row[2] + 0.0))


def test_chunks_and_hidden_columns_do_not_count() -> None:
    rows = table([(1, "a", 0.5), (2, "b", 1.5), (3, None, None)])
    chunked = pa.concat_tables([rows.slice(1), rows.slice(0, 1)]).append_column("_row", pa.array([1, 2, 3]))
    assert content_digest(chunked) == content_digest(rows)
    assert content_digest(rows.rename_columns(["a", "b", "d"])) != content_digest(rows)
