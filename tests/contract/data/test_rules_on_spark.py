"""Every kind of rule on a real Spark: the counts, states and reasons that DuckDB finds."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pa_parquet
import pytest

from loopwright.data.check_spark import examination_on_spark, spark_sql
from loopwright.data.contract import Contract
from loopwright.data.files import Files
from tests.contract.data.cases import Case, cases
from tests.contract.data.test_rules import holds

CONDITION = """
apiVersion: v3.1.0
kind: DataContract
id: t
schema:
  - name: t
    properties: [{name: a, logicalType: integer}]
    quality:
      - {type: custom, engine: loopwright, name: portable, implementation: "a < 3"}
      - {type: custom, engine: loopwright, name: not portable, implementation: "hash(a) % 2 = 0"}
"""


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_spark_finds_what_the_case_says(case: Case, spark: Any, tmp_path: Path) -> None:
    # In two files: rows are numbered through.
    half = case.rows.num_rows // 2
    uris = []
    for n, part in enumerate([case.rows.slice(0, half), case.rows.slice(half)]):
        uris.append(str(tmp_path / f"{n}.parquet"))
        pa_parquet.write_table(part, uris[-1])
    rows = Files(tuple(uris), case.rows.schema, case.rows.num_rows, numbered=True)
    with examination_on_spark(
        spark, rows, case.contract, refs=case.refs, landed=case.landed, now=case.now,
        reference=lambda _: case.reference,
    ) as found:  # fmt: skip
        holds(case, found.report)
        if case.bad is not None:
            bad = found.bad().read_all().to_pydict()
            reasons = dict(zip(bad["_row"], bad["_reasons"], strict=True))
            assert {row: sorted(names) for row, names in reasons.items()} == {
                row: sorted(names) for row, names in case.bad.items()
            }


def test_sql_that_means_another_thing_there_is_an_error_and_names_itself(spark: Any, tmp_path: Path) -> None:
    import pyarrow as pa

    table = pa.table({"a": [1, 5]})
    pa_parquet.write_table(table, tmp_path / "rows.parquet")
    rows = Files((str(tmp_path / "rows.parquet"),), table.schema, 2, numbered=True)
    with examination_on_spark(spark, rows, Contract.parse(CONDITION)) as found:
        results = {result.name: result for result in found.report.rules}
    assert (results["portable"].state, results["portable"].failed) == ("FAIL", 1)
    assert results["not portable"].state == "ERROR"
    assert "hash" in results["not portable"].why
    assert found.report.state == "ERROR"


def test_what_stands_in_quotes_is_not_respelled() -> None:
    assert (
        spark_sql("SELECT len(x) FROM t WHERE a = 'len(x)'")
        == "SELECT CARDINALITY(x) FROM t WHERE a = 'len(x)'"
    )
