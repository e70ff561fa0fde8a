"""Judges rows against a contract: a null passes every rule but `required`, and a rule that cannot be evaluated is an
ERROR, never a pass.

For rows that fit in memory; `checking.examination` reads any number of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from loopwright.data.check_cells import SQL_TYPES
from loopwright.data.check_report import CheckReport, RuleResult, State
from loopwright.data.checking import Reference, examination, require_columns
from loopwright.data.contract import Contract

__all__ = [
    "SQL_TYPES",
    "CheckReport",
    "Checked",
    "RuleResult",
    "State",
    "check",
    "examine",
    "require_columns",
]


@dataclass(frozen=True, slots=True)
class Checked:
    """`good`: typed rows in order, with `_row` (from 0). `bad`: positions of bad rows with the rules they broke."""

    report: CheckReport
    good: pa.Table
    bad: Mapping[int, tuple[str, ...]]


def check(
    rows: pa.Table,
    contract: Contract,
    refs: Mapping[str, pa.Table] | None = None,
    *,
    reference: Reference | None = None,
) -> CheckReport:
    """Judge `rows` (text cells or typed); `refs` are the tables that relationships point to."""
    with examination(rows, contract, refs=refs, reference=reference) as found:
        return found.report


def examine(
    rows: pa.Table,
    contract: Contract,
    refs: Mapping[str, pa.Table],
    *,
    landed: pa.Table | None = None,
    malformed: int = 0,
) -> Checked:
    """Judge and type `rows`. `landed`: what the table holds from other batches (uniqueness is judged with it).

    `malformed` lines are bad rows too, and count as such. Raises BadInput when a column vanished
    or a table that a relationship needs is not among `refs`.
    """
    with examination(rows, contract, refs=refs, landed=landed, malformed=malformed) as found:
        bad = found.bad().read_all().select(["_row", "_reasons"]).to_pydict()
        good = found.good().read_all()
        at = good.column_names.index("_row")
        positions = pa.array([number - 1 for number in good.column("_row").to_pylist()], pa.int64())
        return Checked(
            found.report,
            good.set_column(at, "_row", positions),
            {n - 1: tuple(names) for n, names in zip(bad["_row"], bad["_reasons"], strict=True)},
        )
