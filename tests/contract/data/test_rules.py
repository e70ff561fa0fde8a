"""Every kind of rule, on every engine that checks: the same counts."""

from pathlib import Path

import pyarrow.parquet as pa_parquet
import pytest

from loopwright.data.check_report import CheckReport
from loopwright.data.checking import examination
from loopwright.data.files import Files
from loopwright.data.terms import BATCH_KINDS, ROW_KINDS
from tests.contract.data.cases import Case, cases

pytestmark = pytest.mark.contract
CASES = cases()


def holds(case: Case, report: CheckReport) -> None:
    """Compare what was found with what the case says."""
    results = {result.name: result for result in report.rules}
    assert set(case.found) <= set(results)
    for name, wanted in case.found.items():
        found = results[name]
        if "failed" in wanted:
            assert (name, found.failed) == (name, wanted["failed"]), found.why
        if "measured" in wanted:
            assert found.measured == pytest.approx(wanted["measured"], rel=1e-12), name
        state = wanted.get("state", "FAIL" if wanted.get("failed") else "PASS")
        assert (name, found.state) == (name, state), found.why
    assert report.good_rows + report.bad_rows == report.input_rows == case.rows.num_rows


@pytest.mark.parametrize("files", [False, True], ids=["arrow", "parquet"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_duckdb_finds_what_the_case_says(case: Case, files: bool, tmp_path: Path) -> None:
    rows = case.rows
    if files:
        pa_parquet.write_table(rows, tmp_path / "rows.parquet")
        rows = Files((str(tmp_path / "rows.parquet"),), rows.schema, rows.num_rows, numbered=True)
    with examination(
        rows,
        case.contract,
        refs=case.refs,
        landed=case.landed,
        now=case.now,
        reference=lambda _: case.reference,
    ) as found:
        holds(case, found.report)
        bad = found.bad().read_all().to_pydict()
        good = found.good().read_all()
    reasons = dict(zip(bad["_row"], bad["_reasons"], strict=True))
    if case.bad is not None:
        assert {row: sorted(names) for row, names in reasons.items()} == {
            r: sorted(n) for r, n in case.bad.items()
        }
    assert good.column("_row").to_pylist() == [
        n for n in range(1, case.rows.num_rows + 1) if n not in reasons
    ]
    counted = {name: sum(name in names for names in reasons.values()) for name in found.report.reasons}
    assert counted == dict(found.report.reasons)


def test_the_cases_know_every_kind_of_rule() -> None:
    assert {rule.kind for case in CASES for rule in case.contract.rules} == {
        *ROW_KINDS,
        *BATCH_KINDS,
        "unique",
    }
