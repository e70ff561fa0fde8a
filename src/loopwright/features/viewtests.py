"""Tests of feature views: conditions that every row of a frame must meet, counted where the frame is made."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import duckdb
import pyarrow as pa

from loopwright.features.duck import run
from loopwright.features.view import FeatureView
from loopwright.kernel.errors import Refused

_KEY = b"loopwright.view_tests"


@dataclass(frozen=True, slots=True)
class ViewTestResult:
    """`failed` of `rows` do not meet the condition; `examples`: ids (or numbers) of the first three of them."""

    view: str
    name: str
    condition: str
    severity: Literal["block", "warn"]
    rows: int
    failed: int
    examples: tuple[str, ...] = ()

    @property
    def state(self) -> Literal["PASS", "WARN", "FAIL"]:
        if not self.failed:
            return "PASS"
        return "FAIL" if self.severity == "block" else "WARN"


def run_tests(
    con: duckdb.DuckDBPyConnection, view: FeatureView, rows: str, where: str
) -> list[ViewTestResult]:
    """Count what fails in `rows`: SQL of a SELECT that gives `_name` (told as the example), `_order` and the view's
    columns. Raises BadInput for a condition that is no SQL over these."""
    results = []
    for name, test in view.all_tests().items():
        place = f"{where}: test `{name}`"
        failing = (
            f"SELECT *, NOT coalesce(CAST(({test.condition}) AS BOOLEAN), false) AS _failed FROM ({rows})"
        )
        first = "arg_min(CAST(_name AS VARCHAR), _order, 3) FILTER (WHERE _failed)"
        counted = f"SELECT count(*), count(*) FILTER (WHERE _failed), {first} FROM ({failing})"
        found = run(con, counted, place).fetchall()[0]
        results.append(
            ViewTestResult(
                view.name, name, test.condition, test.severity, found[0], found[1], tuple(found[2] or ())
            )
        )
    return results


def require_passed(results: Iterable[ViewTestResult], where: str) -> None:
    """Raise Refused when a test that blocks has failed, naming each."""
    failed = [result for result in results if result.state == "FAIL"]
    if failed:
        told = "; ".join(
            f"{r.view}, `{r.name}`: {r.failed} of {r.rows} rows (first: {', '.join(r.examples)}) do not meet "
            f"{r.condition}"
            for r in failed
        )
        raise Refused(
            f"feature views fail their tests: {told}", where=where,
            next='Mend the data or the view; or let the test only warn: ViewTest(…, severity="warn").',
        )  # fmt: skip


def with_results(table: pa.Table, results: Sequence[ViewTestResult]) -> pa.Table:
    """`table` carrying the results in its schema's metadata; as it was where there are none."""
    if not results:
        return table
    told = json.dumps([asdict(result) for result in results]).encode()
    return table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: told})


def results_of(table: pa.Table) -> tuple[ViewTestResult, ...]:
    """What `with_results` attached."""
    told = (table.schema.metadata or {}).get(_KEY)
    if told is None:
        return ()
    return tuple(ViewTestResult(**{**each, "examples": tuple(each["examples"])}) for each in json.loads(told))
