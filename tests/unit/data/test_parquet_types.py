"""Parquet columns of every type a writer may choose are inferred, judged and kept, or refused with their name."""

import datetime as dt
import decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from loopwright.data.checking import examination
from loopwright.data.contract import Contract
from loopwright.data.infer import infer
from loopwright.data.landing import Times, bronze, good
from loopwright.data.source import resolve
from loopwright.data.staged import Staged
from loopwright.kernel.errors import BadInput

DAY = dt.timedelta(days=1)
DAY_US = 86_400_000_000
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def staged(tmp_path: Path, cells: pa.Array) -> Staged:
    path = tmp_path / "rows.parquet"
    pa_parquet.write_table(pa.table({"x": cells}), path)
    return resolve(str(path), tmp_path).stage(tmp_path / "staging", ())


def contract(kind: str) -> Contract:
    return Contract.parse(
        "apiVersion: v3.1.0\nkind: DataContract\nid: x\nschema:\n- name: x\n"
        f"  properties:\n  - {{name: x, logicalType: {kind}}}\n  customProperties:\n"
        "  - {property: maxBadShare, value: 1}\n",
        "x.odcs.yaml",
    )


@pytest.mark.parametrize(
    ("cells", "kind", "typed", "kept"),
    [
        (pa.array([1.5, None], pa.float16()), "number", [1.5, None], [1.5, None]),
        (pa.array([DAY, None]), "integer", [DAY_US, None], [DAY_US, None]),
        (pa.array([1, None], pa.duration("ns")), "integer", [1, None], [1, None]),
        (pa.array([[DAY]]), "array", [[DAY_US]], [[DAY_US]]),
        (pa.array([{"a": DAY}]), "object", [{"a": DAY_US}], [{"a": DAY_US}]),
        (
            pa.array([decimal.Decimal("1.5")], pa.decimal256(20, 2)), "number", [1.5],
            [decimal.Decimal("1.50")],
        ),
    ],
    ids=["half", "duration", "nanoseconds", "list", "struct", "decimal256"],
)  # fmt: skip
def test_rare_types_are_inferred_judged_and_kept(
    tmp_path: Path, cells: pa.Array, kind: str, typed: list[Any], kept: list[Any]
) -> None:
    rows = staged(tmp_path, cells)
    assert infer(resolve(str(tmp_path / "rows.parquet"), tmp_path)).rows == len(cells)
    with examination(rows, contract(kind)) as found:
        assert found.report.state == "PASS", found.report.rules
        assert found.good().read_all().column("x").to_pylist() == typed
    assert bronze(rows, NOW).read_all().column("x").to_pylist() == kept


def test_spans_of_time_are_no_moments(tmp_path: Path) -> None:
    with examination(staged(tmp_path, pa.array([DAY])), contract("timestamp")) as found:
        assert (found.report.state, found.report.bad_rows) == ("FAIL", 1)


def test_moments_with_nanoseconds_are_kept_to_the_microsecond(tmp_path: Path) -> None:
    rows = staged(tmp_path, pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", "Europe/Berlin")))
    with examination(rows, contract("timestamp")) as found:
        (typed,) = good(found, "b", Times(None, None, NOW)).read_all().column("x").to_pylist()
    (kept,) = bronze(rows, NOW).read_all().column("x").to_pylist()
    assert kept == typed == dt.datetime.fromtimestamp(1_700_000_000, dt.UTC).replace(microsecond=123_456)


def test_what_cannot_be_computed_with_or_kept_is_refused_with_its_column(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="`x` has more digits"):
        staged(tmp_path, pa.array([decimal.Decimal("1.5")], pa.decimal256(60, 2)))
    rows = staged(tmp_path, pa.array([2**64 - 1], pa.uint64()))
    with pytest.raises(BadInput, match="a value of `x` cannot be kept"):
        bronze(rows, NOW).read_all()
