"""An examination: what it measures, what it streams, and that it stays within its memory."""

import math
import subprocess
import sys
import textwrap
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.data.check_report import CheckReport, RuleResult
from loopwright.data.checking import examination
from loopwright.data.compiling import compile_rules
from loopwright.data.contract import Contract
from loopwright.data.files import Files
from loopwright.data.staged import MALFORMED, Staged
from loopwright.kernel.errors import BadInput, NotFound


def contract(properties: list[dict[str, Any]], *quality: dict[str, Any], share: float = 1) -> Contract:
    custom = [{"property": "maxBadShare", "value": share}]
    table = {"name": "t", "properties": properties, "quality": list(quality), "customProperties": custom}
    document = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": "t", "schema": [table]}
    return Contract.parse(yaml.safe_dump(document, sort_keys=False), "t.odcs.yaml")


def rule(report: CheckReport, name: str) -> RuleResult:
    return next(r for r in report.rules if r.name == name)


def ours(name: str, **measure: Any) -> dict[str, Any]:
    return {"type": "custom", "engine": "loopwright", "name": name, "implementation": measure}


NUMBERS = st.one_of(st.none(), st.integers(-5, 5).map(float), st.sampled_from([math.nan, math.inf, 0.5, 1e6]))
WORDS = st.one_of(st.none(), st.sampled_from(["a", "b", "ab", "", "é", "c'd"]))
EVERYTHING = contract(
    [
        {
            "name": "n", "logicalType": "number", "required": True, "unique": True,
            "logicalTypeOptions": {"minimum": -3, "exclusiveMaximum": 5},
            "quality": [
                ours("mean", metric="mean", mustBeBetween=[-1, 1]),
                ours("stddev", metric="stddev", mustBeLessThan=3),
                ours("median", metric="quantile", q=0.5, mustBeLessThan=1),
                ours("sum", metric="sum", mustBeLessThan=10),
                ours("distinct", metric="distinct", mustBeGreaterThan=2),
                ours("outlier", metric="outlier", method="iqr", threshold=1.5),
            ],
        },
        {
            "name": "w", "logicalTypeOptions": {"minLength": 1, "maxLength": 1, "pattern": "^[a-z]"},
            "quality": [ours("share of a", metric="categoryShare", value="a", mustBeLessThan=40)],
        },
    ],
    {"metric": "duplicateValues", "arguments": {"properties": ["n", "w"]}, "mustBe": 0, "name": "pairs"},
)  # fmt: skip


def oracle(rows: list[tuple[float | None, str | None]]) -> tuple[dict[str, float], dict[int, set[str]]]:
    """The same contract in plain Python: numbers by rule, and reasons by row."""
    cells = [None if n is None or math.isnan(n) or math.isinf(n) else n for n, _ in rows]
    unfit = [n is not None and math.isinf(n) for n, _ in rows]
    values = sorted(n for n in cells if n is not None)

    def quantile(q: float) -> float:
        at = q * (len(values) - 1)
        low = math.floor(at)
        return values[low] + (at - low) * (values[min(low + 1, len(values) - 1)] - values[low])

    bad: dict[int, set[str]] = {}
    seen: Counter[Any] = Counter()
    for i, (n, (_, w)) in enumerate(zip(cells, rows, strict=True), start=1):
        reasons = set()
        if unfit[i - 1]:
            reasons.add("n is a number")
        elif n is None:
            reasons.add("n present")
        if n is not None:
            spread = 1.5 * (quantile(0.75) - quantile(0.25))
            reasons |= {"n >= -3"} if n < -3 else set()
            reasons |= {"n < 5"} if n >= 5 else set()
            reasons |= {"n unique"} if seen[n] else set()
            outside = n < quantile(0.25) - spread or n > quantile(0.75) + spread
            reasons |= {"outlier"} if outside else set()
            seen[n] += 1
            if w is not None:
                reasons |= {"pairs"} if seen[n, w] else set()
                seen[n, w] += 1
        if w is not None:
            reasons |= {"w length >= 1"} if len(w) < 1 else set()
            reasons |= {"w length <= 1"} if len(w) > 1 else set()
            reasons |= {"w matches ^[a-z]"} if not ("a" <= w[:1] <= "z") else set()
        if reasons:
            bad[i] = reasons
    numbers: dict[str, float] = {"distinct": len(set(values)), "share of a": sum(w == "a" for _, w in rows)}
    if values:
        numbers |= {"mean": float(np.mean(values)), "median": quantile(0.5), "sum": sum(values)}
    if len(values) > 1:
        numbers["stddev"] = float(np.std(values, ddof=1))
    return numbers, bad


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(NUMBERS, WORDS), min_size=1, max_size=30))
def test_what_is_found_is_what_plain_python_finds(rows: list[tuple[float | None, str | None]]) -> None:
    table = pa.table({
        "n": pa.array([n for n, _ in rows], pa.float64()), "w": pa.array([w for _, w in rows], pa.string())
    })  # fmt: skip
    numbers, bad = oracle(rows)
    with examination(table, EVERYTHING) as found:
        report, set_aside = found.report, found.bad().read_all().to_pydict()
        kept = found.good().read_all().column("_row").to_pylist()
    assert {row: set(why) for row, why in zip(set_aside["_row"], set_aside["_reasons"], strict=True)} == bad
    assert kept == [i for i in range(1, len(rows) + 1) if i not in bad]
    assert (report.input_rows, report.bad_rows) == (len(rows), len(bad))
    for name in ("mean", "stddev", "median", "sum", "distinct", "share of a"):
        measured = rule(report, name).measured
        assert measured == (pytest.approx(numbers[name], abs=1e-9) if name in numbers else None), name


def test_quantiles_that_sort_on_disk_are_those_held_in_memory() -> None:
    rows = pa.table({"n": pa.array([*np.random.default_rng(1).normal(size=1001), None, 5.0, 5.0])})
    one = contract([{"name": "n", "logicalType": "number", "quality": [
        ours("q", metric="quantile", q=0.9, mustBeLessThan=0),
        ours("o", metric="outlier", method="robustZ", threshold=3),
    ]}])  # fmt: skip
    found = []
    for in_memory in (True, False):
        compiled = compile_rules(one, rows.schema, in_memory=in_memory)
        engine = duckdb.connect()
        engine.register("_lw_typed", rows)
        engine.execute("CREATE TABLE _lw_bounds AS SELECT 0 AS low0, 0 AS high0")
        (line,) = engine.execute(f"SELECT {compiled.measures['q']} FROM {compiled.source} LIMIT 1").fetchall()
        (first,) = engine.execute(f"SELECT {compiled.outliers[0].first}").fetchall()
        found.append((*line, *first))
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    values = sorted(v for v in rows.column("n").to_pylist() if v is not None)
    assert found[1] == pytest.approx((np.quantile(values, 0.9), np.median(values)), rel=1e-12)


def test_streams_give_rows_in_order_and_one_at_a_time(tmp_path: Path) -> None:
    count = 300_000
    cells = np.arange(count).astype(str).astype(object)
    cells[[5, 70_000, 299_999]] = "x"
    rows = pa.table({"a": pa.array(cells), "b": np.arange(count)})
    pa_parquet.write_table(rows, tmp_path / "rows.parquet")
    files = Files((str(tmp_path / "rows.parquet"),), rows.schema, count, numbered=True)
    malformed = pa.table({"line": [9], "text": ["?"], "why": ["ragged"]}, schema=MALFORMED)
    pa_parquet.write_table(malformed, tmp_path / "malformed.parquet")
    staged = Staged("u", "d", files, Files((str(tmp_path / "malformed.parquet"),), MALFORMED, 1))
    with examination(
        staged, contract([{"name": "a", "logicalType": "integer"}]), memory_limit="100MB"
    ) as found:
        assert found.bad().read_all().to_pydict() == {
            "a": ["x"] * 3, "b": [5, 70_000, 299_999], "_row": [6, 70_001, 300_000],
            "_reasons": [["a is an integer"]] * 3,
        }  # fmt: skip
        first = found.good()
        good = first.read_all()
        assert good.schema == pa.schema([("a", pa.int64()), ("_row", pa.int64())])
        assert good.column("_row").to_pylist() == [
            n for n in range(1, count + 1) if n not in (6, 70_001, 300_000)
        ]
        ended = found.good()
        found.bad()
        with pytest.raises(RuntimeError, match="this stream ended"):
            ended.read_all()
    report = found.report
    assert (report.input_rows, report.good_rows, report.bad_rows) == (count + 1, count - 3, 4)
    assert report.reasons == {"a is an integer": 3, "malformed line": 1}


def test_examples_are_the_first_rows_with_the_columns_of_the_rule_and_the_key() -> None:
    keyed = contract(
        [{"name": "id", "primaryKey": True}, {"name": "n", "logicalType": "integer"}, {"name": "z"}]
    )
    rows = pa.table({"id": list("abcdef"), "n": ["1", "x", "y", "z", "w", "2"], "z": ["q"] * 6})
    with examination(rows, keyed) as found:
        examples = rule(found.report, "n is an integer").examples
    assert examples == (
        {"row": 2, "n": "x", "id": "b"},
        {"row": 3, "n": "y", "id": "c"},
        {"row": 4, "n": "z", "id": "d"},
    )


def test_more_rules_than_a_mask_has_bits_are_told_apart() -> None:
    custom = {"type": "custom", "engine": "loopwright"}
    rules = [{**custom, "implementation": f"a <> {n}", "name": f"not {n}"} for n in range(140)]
    many = contract([{"name": "a", "logicalType": "integer"}], *rules)
    with examination(pa.table({"a": [3, 61, 62, 139, 500]}), many) as found:
        bad = found.bad().read_all().to_pydict()
    assert dict(zip(bad["_row"], bad["_reasons"], strict=True)) == {
        1: ["not 3"], 2: ["not 61"], 3: ["not 62"], 4: ["not 139"]
    }  # fmt: skip


def test_a_snapshot_that_is_not_there_yet_is_no_drift_and_one_nobody_took_is_an_error() -> None:
    def reference(snapshot: str) -> None:
        if snapshot != "previous":
            raise NotFound("no such snapshot", got=snapshot)

    drift = contract([{"name": "n", "logicalType": "number", "quality": [
        ours("previous", metric="drift", distance="ks", against="previous", mustBeLessThan=0.1),
        ours("named", metric="drift", distance="ks", against="abcdef12", mustBeLessThan=0.1),
    ]}])  # fmt: skip
    with examination(
        pa.table({"n": [1.0]}), drift, reference=reference, now=datetime(2013, 1, 1, tzinfo=UTC)
    ) as found:
        assert rule(found.report, "previous").state == "PASS"
        assert rule(found.report, "named").state == "ERROR"
    with examination(pa.table({"n": [1.0]}), drift) as found:
        assert rule(found.report, "previous").state == "ERROR"


@pytest.mark.parametrize("limit", ["10MB", "lots", "-1GB", "256"])
def test_a_limit_that_is_none_is_told(limit: str) -> None:
    with (
        pytest.raises(BadInput, match="not a memory limit"),
        examination(pa.table({"a": ["1"]}), contract([{"name": "a"}]), memory_limit=limit),
    ):
        pass


def test_rows_that_cannot_be_read_never_pass(tmp_path: Path) -> None:
    rows = pa.table({"a": np.arange(200_000)})
    pa_parquet.write_table(rows, tmp_path / "rows.parquet", row_group_size=50_000)
    whole = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(b"\0" * 5000 + whole[5000:])
    files = Files((str(tmp_path / "rows.parquet"),), rows.schema, 200_000, numbered=True)
    wanted = contract([{"name": "a", "logicalType": "integer", "logicalTypeOptions": {"minimum": 5}}])
    with examination(files, wanted) as found:
        assert (found.report.state, [r.name for r in found.report.blocked_by]) == ("ERROR", ["a >= 5"])


MEASURED = """
    import resource, sys
    import numpy as np, pyarrow as pa, pyarrow.parquet as pq
    from pathlib import Path
    from loopwright.data.checking import examination
    from loopwright.data.contract import Contract
    from loopwright.data.files import Files

    def peak():
        return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) // 1024

    path, contract, limit, spill = sys.argv[1:]
    file = pq.ParquetFile(path)
    files = Files((path,), file.schema_arrow, file.metadata.num_rows, numbered=True)
    before = peak()
    with examination(files, Contract.load(Path(contract)), memory_limit=limit, spill=Path(spill)) as found:
        report = found.report
        twice = next(rule.failed for rule in report.rules if rule.name == "k unique")
        print(before, peak(), report.input_rows, report.bad_rows, twice)
"""


def test_keys_that_do_not_fit_in_memory_spill(tmp_path: Path) -> None:
    rows, limit = 900_000, 96
    path, file = tmp_path / "keys.parquet", tmp_path / "k.odcs.yaml"
    numbers = np.random.default_rng(1).permutation(rows)
    numbers[-3:] = numbers[:3]
    schema = pa.schema([("k", pa.string())])
    with pa_parquet.ParquetWriter(path, schema) as writer:
        for part in np.array_split(numbers, 16):
            # Keys of 80 letters: 900,000 of them are more than the limit.
            writer.write_table(pa.table({"k": [f"{n:080}" for n in part]}, schema=schema))
    file.write_text(
        "apiVersion: v3.1.0\nkind: DataContract\nid: k\nschema:\n"
        "  - {name: keys, properties: [{name: k, unique: true}]}\n"
    )
    (tmp_path / "spill").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURED), str(path), str(file), f"{limit}MB", str(tmp_path / "spill")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    before, peak, count, bad, twice = map(int, done.stdout.split())
    assert (count, bad, twice) == (rows, 3, 3)
    assert peak - before < 1.6 * limit, f"{peak - before} MB over {before} MB"
    assert list((tmp_path / "spill").iterdir()) == []


@pytest.mark.parametrize("arrow", [
    pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(),
    pa.float32(), pa.float64(), pa.string(), pa.large_string(), pa.binary(), pa.date32(), pa.time64("us"),
    pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("us", "UTC"),
    pa.decimal128(9, 2), pa.list_(pa.struct([("a", pa.int32()), ("b c", pa.list_(pa.string()))])),
], ids=str)  # fmt: skip
def test_files_come_in_the_types_that_duckdb_sees_in_arrow(tmp_path: Path, arrow: pa.DataType) -> None:
    rows = pa.table({"a": pa.array([None], arrow)})
    pa_parquet.write_table(rows, tmp_path / "rows.parquet")
    with duckdb.connect() as engine:
        Files((str(tmp_path / "rows.parquet"),), rows.schema).view(engine, "files")
        engine.register("arrow", rows)
        seen, wanted = (engine.execute(f"DESCRIBE {name}").fetchall()[0][1] for name in ("files", "arrow"))
    assert seen == wanted


def test_moments_of_the_future_tell_nothing_of_freshness() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    fresh = contract([{"name": "at", "logicalType": "timestamp", "quality": [
        ours("fresh", metric="freshness", unit="h", mustBeLessThan=24)
    ]}])  # fmt: skip

    def judged(*times: datetime) -> RuleResult:
        with examination(
            pa.table({"at": pa.array(times, pa.timestamp("us", "UTC"))}), fresh, now=now
        ) as found:
            return rule(found.report, "fresh")

    old, mistaken, ahead = now - timedelta(days=3), now + timedelta(days=4000), now + timedelta(seconds=200)
    assert judged(old, mistaken).measured == 3 * 86400
    assert judged(old, mistaken).state == "FAIL"
    assert judged(old, ahead).state == "PASS"
    assert "no moments before now" in judged(mistaken).why


SHAPED = contract([{
    "name": "o", "logicalType": "object", "properties": [
        {"name": "n", "logicalType": "integer"},
        {"name": "tags", "logicalType": "array", "items": {"logicalType": "string"}},
        {"name": "in/~", "logicalType": "object", "properties": [{"name": "k", "logicalType": "integer"}]},
        {"name": "lines", "logicalType": "array", "items": {
            "logicalType": "object", "properties": [{"name": "q", "logicalType": "integer"}],
        }},
    ],
}])  # fmt: skip


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"n": 1, "tags": ["a"], "in/~": {"k": 1}, "lines": [{"q": 1}]}', True),
        ('{"n": 1, "tags": null, "in/~": null, "lines": [null]}', True),
        ('{"n": 1, "more": [1]}', True),
        ('{"tags": "x"}', False),
        ('{"in/~": [1]}', False),
        ('{"in/~": 5}', False),
        ('{"lines": [{"q": 1}, 5]}', False),
        ('{"lines": {"q": 1}}', False),
    ],
)
def test_json_of_another_shape_inside_does_not_fit(text: str, fits: bool) -> None:
    with examination(pa.table({"o": [text]}), SHAPED) as found:
        assert (found.report.good_rows, found.report.reasons) == (
            (1, {}) if fits else (0, {"o is an object": 1})
        )
        assert found.report.state == ("PASS" if fits else "FAIL")


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        ([[1, None], None, []], ["[1,null]", None, "[]"]),
        ([{"a": "x"}, None, {"a": None}], ['{"a":"x"}', None, '{"a":null}']),
    ],
)
def test_lists_and_objects_in_a_column_of_text_become_json_and_never_null(
    cells: list[Any], texts: list[str | None]
) -> None:
    wanted = contract([{"name": "s", "logicalType": "string"}])
    with examination(pa.table({"s": cells}), wanted) as found:
        assert found.report.state == "PASS"
        assert found.good().read_all().column("s").to_pylist() == texts
    needed = contract([{"name": "s", "logicalType": "string", "required": True}])
    with examination(pa.table({"s": cells}), needed) as found:
        assert found.report.reasons == {"s present": 1}
