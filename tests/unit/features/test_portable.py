"""SQL for other engines: what passes, what is spelled otherwise, and what is refused by name."""

import pytest

from loopwright.features.portable import PORTABLE, to_spark
from loopwright.kernel.errors import BadInput


@pytest.mark.parametrize(
    ("sql", "told", "instead"),
    [
        ("date_diff('day', a, b)", "`date_diff`", "epoch_us(b) - epoch_us(a)"),
        ("dayofweek(t)", "`dayofweek`", "isodow(x)"),
        ("hash(a)", "`hash`", "md5(x)"),
        ("log(a)", "`log`", "ln(x) or log10(x)"),
        ("concat(a, b)", "`concat`", "a || b"),
        ("a // b", "`a // b`", "floor(a / b)"),
        ("CAST(a AS INTEGER)", "a cast to a whole number", "floor(x) or round(x)"),
        ("a::VARCHAR", "a cast to text", "the type that the contract gives"),
        ("round(a, 2)", "round to decimal places", "round(x * 100) / 100"),
        ("random()", "`random`", "must not change when it is made again"),
        ("now()", "`now`", "must not depend on when it is made"),
        ("median(a)", "`median`", "aggregation of the view"),
        ("a LIKE b", "a pattern made at run time", "a pattern in quotes"),
        ("a LIKE 'x\\_%'", "a backslash in a pattern", "a pattern without one"),
        ("substring(a, -2, 1)", "a part of a text", "numbers from 1"),
        ("extract(dow FROM t)", "extract(dow)", "isodow(x)"),
        ("date_trunc('century', t)", "the unit century", "second, minute"),
        ("t + INTERVAL 5 MILLISECONDS", "the unit millisecond", "second, minute"),
        ("trim(a, 'x')", "trimming others than spaces", "trim(x)"),
        ("frobnicate(a)", "`frobnicate`", "Run on DuckDB"),
        ("list_transform(a, x -> x + 1)", "`list_transform`", "Run on DuckDB"),
        ("count(*)", "`count`", "portable subset"),
        ("SELECT * FROM t LIMIT 5", "limit", "a condition"),
        ("SELECT * FROM read_csv('/etc/passwd')", "`read_csv`", "Run on DuckDB"),
        ("SELECT first(a) FROM t", "`first`", "min(x)"),
        ("a +", "was not understood", "portable subset"),
        ("a; DROP TABLE t", "not one expression", "one SQL expression"),
        ("SELECT a FROM t FOR UPDATE", "lock", "Run on DuckDB"),
        ("CAST(DATE '2024-01-01' AS VARCHAR)", "a cast to text", "contract"),
    ],
)
def test_what_differs_is_refused_by_name_with_what_to_write_instead(
    sql: str, told: str, instead: str
) -> None:
    for translate in (to_spark, PORTABLE.translate):
        with pytest.raises(BadInput) as refused:
            translate(sql, "feature view v")
        assert told in str(refused.value) and instead in str(refused.value)
        assert str(refused.value).startswith("feature view v: ")


@pytest.mark.parametrize(
    ("sql", "spark"),
    [
        ('"a b" + 1', "`a b` + 1"),
        ("a / 2", "(CAST((a) AS DOUBLE) / CAST((2) AS DOUBLE))"),
        ("isodow(t)", "(WEEKDAY(CAST(t AS TIMESTAMP)) + 1)"),  # sqlglot alone: two days off
        ("-isodow(t)", "-(WEEKDAY(CAST(t AS TIMESTAMP)) + 1)"),
        ("t + to_minutes(m)", "t + MAKE_DT_INTERVAL(0, 0, CAST(m AS INT), 0)"),
        ("CAST(t AS TIMESTAMP)", "CAST(t AS TIMESTAMP_NTZ)"),
        ("SELECT k, max(v) AS v FROM t GROUP BY k", "SELECT k, MAX(v) AS v FROM t GROUP BY k"),
    ],
)
def test_what_means_the_same_is_spelled_for_spark(sql: str, spark: str) -> None:
    assert to_spark(sql, "here") == spark
    assert PORTABLE.translate(sql, "here") == sql


def test_what_stands_inside_is_respelled_too() -> None:
    told = to_spark("ln(isodow(t) / b)", "here")
    assert "WEEKDAY" in told and "RAISE_ERROR" in told and "Infinity" in told and "DAYOFWEEK" not in told
