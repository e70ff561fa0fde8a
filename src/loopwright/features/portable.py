"""How the engines of features spell what their SQL says differently; what may be said at all is `data.portable`'s."""

from dataclasses import replace

from loopwright.data.portable import check_portable, to_spark
from loopwright.features.lookup import DUCKDB, Dialect

__all__ = ["PORTABLE", "SPARK", "to_spark"]


def _checked(sql: str, where: str) -> str:
    check_portable(sql, where)
    return sql


PORTABLE: Dialect = replace(DUCKDB, asof=False, translate=_checked)
"""What other engines run, on DuckDB: for comparing."""

SPARK = Dialect(
    asof=False,
    quote="`",
    integer="DECIMAL(38, 0)",
    micros="unix_micros(CAST(({}) AS TIMESTAMP))",
    struct="named_struct('t', {}, 'k', {}, 'v', {})",
    distinct="CAST(size(collect_set({}){}) AS BIGINT)",
    translate=to_spark,
)
