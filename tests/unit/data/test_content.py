import datetime as dt
import decimal
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.data.content import content, content_digest
from loopwright.data.files import Files
from loopwright.kernel.errors import Unavailable

MOMENT = dt.datetime(2013, 7, 1, 12, 0, 0, 1)
FIELDS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "i": (pa.int64(), [None, 0, 1, -1, 2**62]),
    "d": (pa.float64(), [None, 0.0, 1.0, 0.1, 0.1 + 2**-56, float("inf"), float("-inf"), float("nan"), 1e300]),
    "s": (pa.string(), [None, "", "-", "0:", "1:a", "a", "nan", "NULL", "ä", "e\u0301", "\u00e9", "a\x00b"]),
    "b": (pa.bool_(), [None, True, False]),
    "n": (pa.decimal128(10, 2), [None, decimal.Decimal("1.50"), decimal.Decimal("-1.50"), decimal.Decimal("0.00")]),
    "t": (pa.timestamp("us"), [None, MOMENT, MOMENT + dt.timedelta(microseconds=1)]),
    "z": (pa.timestamp("us", "UTC"), [None, MOMENT.replace(tzinfo=dt.UTC), dt.datetime(1969, 12, 31, tzinfo=dt.UTC)]),
    "day": (pa.date32(), [None, dt.date(2013, 7, 1), dt.date(1, 1, 1)]),
    "bin": (pa.binary(), [None, b"", b"\x00", b"\\x00", b"a"]),
    "l": (pa.list_(pa.string()), [None, [], [None], [""], ["a", "b"], ["b", "a"], ["a, b"], ["NULL"]]),
    "o": (
        pa.struct([("x", pa.float64()), ("y", pa.list_(pa.int64()))]),
        [None, {"x": None, "y": None}, {"x": 0.0, "y": []}, {"x": None, "y": [1]}, {"x": 1.0, "y": [None]}],
    ),
}  # fmt: skip
SCHEMA = pa.schema([(name, kind) for name, (kind, _) in FIELDS.items()])
ROW = st.fixed_dictionaries({name: st.sampled_from(values) for name, (_, values) in FIELDS.items()})


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def files(folder: Path, *parts: pa.Table) -> Files:
    uris = []
    for number, part in enumerate(parts):
        uris.append(str(folder / f"{number}.parquet"))
        pq.write_table(part, uris[-1])
    return Files(tuple(uris), parts[0].schema)


@settings(max_examples=8)
@given(st.lists(ROW, min_size=1, max_size=6), st.randoms(use_true_random=False), st.integers(0, 6))
def test_order_partition_and_chunks_do_not_count(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], order: random.Random, cut: int
) -> None:
    whole = content(table(rows))
    mixed = table(order.sample(rows, len(rows)))
    parts = files(tmp_path_factory.mktemp("parts"), mixed.slice(cut), mixed.slice(0, cut))
    assert content(parts) == whole
    assert whole.rows == len(rows)


@settings(max_examples=14)
@given(st.lists(ROW, min_size=1, max_size=4), st.data())
def test_any_change_of_a_cell_changes_the_digest(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(rows) - 1))
    name = data.draw(st.sampled_from(list(FIELDS)))
    other = data.draw(st.sampled_from(FIELDS[name][1]).filter(lambda v: repr(v) != repr(rows[place][name])))
    changed = [dict(row) for row in rows]
    changed[place][name] = other
    assert content_digest(table(changed)) != content_digest(table(rows))


@settings(max_examples=15)
@given(st.lists(st.tuples(st.text(max_size=4), st.text(max_size=4)), min_size=1, max_size=5))
def test_cells_swapped_between_columns_change_the_digest(pairs: list[tuple[str, str]]) -> None:
    def two(rows: list[tuple[str, str]]) -> pa.Table:
        return pa.table({"a": [a for a, _ in rows], "b": [b for _, b in rows]})

    swapped = [(b, a) for a, b in pairs]
    same = sorted(swapped) == sorted(pairs)
    assert (content_digest(two(swapped)) == content_digest(two(pairs))) is same


@pytest.mark.parametrize("name", FIELDS)
def test_every_two_values_of_a_column_differ(name: str) -> None:
    kind, values = FIELDS[name]
    digests = {content_digest(pa.table({name: pa.array([value], kind)})) for value in values}
    assert len(digests) == len(values)


def test_equal_numbers_are_equal_however_they_are_stored() -> None:
    (signed,) = struct.unpack("d", struct.pack("Q", 0xFFF8000000000001))
    assert signed != signed
    one = pa.table({"d": [0.0, float("nan")], "o": [[0.0], [float("nan")]]})
    other = pa.table({"d": [-0.0, signed], "o": [[-0.0], [signed]]})
    assert content_digest(one) == content_digest(other)


def test_duplicates_count() -> None:
    once, twice = pa.table({"a": [1, 2]}), pa.table({"a": [1, 2, 2]})
    assert len({content_digest(t) for t in (once, twice, pa.table({"a": [1, 1, 2]}))}) == 3


def test_the_entries_of_a_map_have_no_order() -> None:
    kind = pa.map_(pa.string(), pa.int64())
    maps = [[("a", 1), ("b", 2)], [("b", 2), ("a", 1)], [("a", 2), ("b", 1)]]
    one, same, other = (content_digest(pa.table({"m": pa.array([m], kind)})) for m in maps)
    assert one == same != other


def test_nanoseconds_count() -> None:
    one, other = (pa.table({"t": pa.array([n], pa.timestamp("ns"))}) for n in (1000, 1001))
    assert content_digest(one) != content_digest(other)


def test_the_digest_of_known_rows_never_changes() -> None:
    """Snapshots of earlier years are verified by it: whoever changes the spelling must give it another name."""
    rows = pa.table({
        "a": pa.array([1, None, 3]), "s": ["x", "", None], "d": [0.1, -0.0, float("nan")],
        "t": pa.array([MOMENT] * 3, pa.timestamp("us", "UTC")), "b": [True, None, False],
        "day": pa.array([dt.date(2020, 1, 2)] * 3), "_row": [1, 2, 3],
    })  # fmt: skip
    assert content_digest(rows) == "beb286b528126cb0d041ee940bcf8b7204e6a91394b89d4a30b7f4ba05602430"
    assert (
        content_digest(rows.slice(0, 0)) == "675d8a09769c809973b970ec87b6081011b75d4625f908ef4cdb0da298e6e081"
    )


def test_more_rows_than_fit_in_memory_have_the_same_digest(tmp_path: Path) -> None:
    numbers = np.arange(900_000)
    rows = pa.table({"i": numbers, "s": pa.array((numbers % 977).astype(str))})
    parts = [rows.slice(start, 100_000) for start in range(800_000, -1, -100_000)]
    spilt = content_digest(files(tmp_path, *parts), memory="60MB", spill=tmp_path)
    assert spilt == content_digest(rows, memory="1GB")
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}


def test_too_little_memory_says_so(tmp_path: Path) -> None:
    rows = pa.table({"i": np.arange(200_000)})
    with pytest.raises(Unavailable, match="too little memory"):
        content_digest(files(tmp_path, rows), memory="2MB", spill=tmp_path)
