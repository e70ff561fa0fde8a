"""SQL that means the same on DuckDB and on Spark: what is allowed, and how Spark spells it.

A project writes DuckDB's SQL. What both engines read alike is let through and rendered by sqlglot; where they differ,
it is either spelled so that Spark does as DuckDB does, or refused by name with what to write instead. Nothing passes
because it is unknown: every kind of node has to be in the list.

Known to differ silently, and so refused or respelled: `date_diff` (DuckDB counts midnights crossed), `dayofweek`
(0 or 1 for Sunday), `isodow` (sqlglot's own rendering is two days off), `hash`, `log` (base 10 or e), `concat`
(skips nulls), `isnan` of null (null or false), `/` by zero (infinity or an error) and of decimals, `//` of
doubles, casts to whole numbers (rounded or cut), casts to text, `round` to decimal places, `%` patterns with a
backslash, regular expressions made at run time.
"""

from collections.abc import Callable

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from loopwright.kernel.errors import BadInput

_PLAIN = (
    exp.Column, exp.Identifier, exp.Literal, exp.Null, exp.Boolean, exp.Paren, exp.Var, exp.DataType,
    exp.DataTypeParam, exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.Neg, exp.EQ, exp.NEQ, exp.GT, exp.GTE,
    exp.LT, exp.LTE, exp.And, exp.Or, exp.Not, exp.Is, exp.NullSafeEQ, exp.NullSafeNEQ, exp.Between, exp.In,
    exp.Like, exp.ILike, exp.RegexpLike, exp.Case, exp.If, exp.Coalesce, exp.Nullif, exp.Greatest, exp.Least,
    exp.Abs, exp.Floor, exp.Ceil, exp.Round, exp.Sign, exp.Exp, exp.Pow, exp.Ln, exp.Log, exp.Sqrt, exp.IsNan,
    exp.Lower, exp.Upper, exp.Trim, exp.Length, exp.Substring, exp.Left, exp.Right, exp.Replace,
    exp.StartsWith, exp.Contains, exp.DPipe, exp.MD5, exp.Cast, exp.Interval, exp.TimestampTrunc,
    exp.DateTrunc, exp.Extract, exp.Year, exp.Month, exp.Day, exp.Hour, exp.Minute, exp.Second, exp.Quarter,
    exp.DayOfYear, exp.DayOfWeekIso, exp.TimeToUnix, exp.DateFromParts,
)  # fmt: skip
_QUERY = (
    exp.Select, exp.From, exp.Join, exp.Table, exp.TableAlias, exp.Where, exp.Group, exp.Having, exp.Subquery, exp.CTE,
    exp.With, exp.Union, exp.Distinct, exp.Star, exp.Window, exp.WindowSpec, exp.Ordered, exp.Order, exp.Alias,
    exp.Filter, exp.Qualify, exp.Count, exp.Sum, exp.Avg, exp.Min, exp.Max, exp.Stddev, exp.StddevSamp, exp.RowNumber,
    exp.Rank, exp.DenseRank, exp.Lag, exp.Lead,
)  # fmt: skip
_FUNCTIONS = ("epoch_us", "epoch_ms", "to_days", "to_hours", "to_minutes", "to_seconds")
_INSTEAD = {
    "DATEDIFF": "(epoch_us(b) - epoch_us(a)) / 86400000000, for days; DuckDB counts midnights, Spark whole days",
    "DAY_OF_WEEK": "isodow(x); dayofweek counts from 0 here and from 1 there",
    "HASH": "md5(x); hash gives other numbers on every engine",
    "LOG": "ln(x) or log10(x); log is of base 10 here and e there",
    "CONCAT": "a || b; concat skips nulls here and not there",
    "INTDIV": "floor(a / b); // does not cut doubles",
    "RAND": "a column of the table; a feature must not change when it is made again",
    "NOW": "the question's own moment; a feature must not depend on when it is made",
    "CURRENT_DATE": "the question's own moment; a feature must not depend on when it is made",
    "CURRENT_TIMESTAMP": "the question's own moment; a feature must not depend on when it is made",
    "MEDIAN": "an aggregation of the view (mean, min, max), or the DuckDB engine",
    "QUANTILE_CONT": "an aggregation of the view (mean, min, max), or the DuckDB engine",
    "FIRST": 'min(x), or Aggregate("last", …); first depends on the order of rows',
    "ANY_VALUE": "min(x); any_value depends on the order of rows",
    "LIMIT": "a condition; which rows come first depends on the engine",
    "DATE_PART": "year(x), month(x), day(x), hour(x), minute(x), second(x), isodow(x)",
    "WEEK": "date_trunc('week', x)",
    "TRUNC": "floor(x) or ceil(x)",
    "STRPTIME": "a typed column: give the contract the timestamp's format",
    "STR_TO_TIME": "a typed column: give the contract the timestamp's format",
    "TRY_CAST": "a typed column: the contract casts, and sets aside what does not fit",
}
_UNITS = ("SECOND", "MINUTE", "HOUR", "DAY", "WEEK", "MONTH", "QUARTER", "YEAR")
_WHOLE = ("TINYINT", "SMALLINT", "INT", "BIGINT", "INT128", "UTINYINT", "USMALLINT", "UINT", "UBIGINT")
_CASTS = (
    "DOUBLE",
    "FLOAT",
    "BOOLEAN",
    "DATE",
    "TIMESTAMP",
    "TIMESTAMPTZ",
    "TIMESTAMPNTZ",
    "TIMESTAMPLTZ",
    *_WHOLE,
)


def check_portable(sql: str, where: str) -> exp.Expr:
    """Parse an expression or a query; raise BadInput naming what is not the same on every engine, and what is."""
    try:
        parsed = sqlglot.parse(sql, read="duckdb")
    except (SqlglotError, RecursionError) as error:
        raise BadInput(
            "the SQL cannot be carried to another engine: it was not understood", where=where,
            got=str(error).splitlines()[0], wanted="SQL of the portable subset",
        ) from None  # fmt: skip
    tree = parsed[0] if len(parsed) == 1 else None
    if tree is None:
        raise BadInput("not one expression", where=where, got=sql, wanted="one SQL expression")
    allowed = (*_PLAIN, *_QUERY) if isinstance(tree, exp.Query) else _PLAIN
    for node in tree.walk():
        if isinstance(node, exp.Anonymous):
            if node.name.lower() not in _FUNCTIONS:
                _refuse(node.name, node, where)
        elif not isinstance(node, allowed):
            _refuse(node.sql_name() if isinstance(node, exp.Func) else node.key, node, where)
        _check_arguments(node, where)
    return tree


def to_spark(sql: str, where: str) -> str:
    """The same in Spark's SQL; raises BadInput as `check_portable` does."""
    return respell(check_portable(sql, where)).sql(dialect="spark")


def _refuse(kind: str, node: exp.Expr, where: str) -> None:
    instead = _INSTEAD.get(kind.upper())
    raise BadInput(
        f"`{node.sql(dialect='duckdb').partition('(')[0].lower() or kind}` does not mean the same on every engine",
        where=where, wanted=instead or "functions of the portable subset",
        next="Mend the SQL, or run on DuckDB." if instead else "Run on DuckDB, or compute it in a source table.",
    )  # fmt: skip


def _check_arguments(node: exp.Expr, where: str) -> None:
    """Raise BadInput for arguments with which an allowed function differs."""

    def no(what: str, wanted: str) -> None:
        raise BadInput(
            f"{what} does not mean the same on every engine", where=where, got=node.sql(dialect="duckdb"),
            wanted=wanted, next="Mend the SQL, or run on DuckDB.",
        )  # fmt: skip

    match node:
        case exp.Cast():
            kind = node.to.this.name if isinstance(node.to.this, exp.DataType.Type) else str(node.to.this)
            if kind not in _CASTS:
                no(f"a cast to {kind.lower()}", "the type that the contract gives the column")
            whole = (exp.Floor, exp.Ceil, exp.Round, exp.Literal, exp.Boolean, exp.Predicate, exp.Length)
            if kind in _WHOLE and not isinstance(node.this.unnest(), whole):
                no(
                    "a cast to a whole number, which rounds here and cuts there,",
                    "floor(x) or round(x) inside it",
                )
        case exp.Round() if node.args.get("decimals") is not None:
            no("round to decimal places", "round(x * 100) / 100")
        case exp.Log() if node.expression is None or node.this.name != "10":
            _refuse("LOG", node, where)
        case exp.Like() | exp.ILike() | exp.RegexpLike():
            pattern = node.expression
            if not isinstance(pattern, exp.Literal):
                no("a pattern made at run time", "a pattern in quotes")
            if "\\" in pattern.name and not isinstance(node, exp.RegexpLike):
                no("a backslash in a pattern", "a pattern without one")
            if isinstance(node, exp.RegexpLike) and node.args.get("flag") is not None:
                no("a regular expression's options", "(?i) and the like in the pattern")
        case exp.Interval() | exp.TimestampTrunc() | exp.DateTrunc():
            unit = node.unit.name.upper().removesuffix("S") if node.unit is not None else ""
            if unit not in _UNITS:
                no(f"the unit {unit.lower() or 'of this interval'}", f"one of {', '.join(_UNITS).lower()}")
        case exp.Extract() if node.name.upper() not in ("YEAR", "QUARTER", "MONTH", "DAY", "HOUR", "MINUTE"):
            no(f"extract({node.name.lower()})", "second(x), isodow(x), …")
        case exp.Substring() | exp.Left() | exp.Right():
            for at in (node.args.get("start"), node.args.get("length"), node.args.get("expression")):
                if at is not None and not (
                    isinstance(at, exp.Literal) and at.name.isdigit() and int(at.name) > 0
                ):
                    no("a part of a text that does not start and end at fixed places", "numbers from 1")
        case exp.Trim() if node.expression is not None or node.args.get("position"):
            no("trimming others than spaces", "trim(x)")


def respell(tree: exp.Expr) -> exp.Expr:
    """Tell Spark differently what it would else not do as DuckDB does; from the leaves up, so that nothing inside
    what is respelled is left as it was."""
    for node in reversed(list(tree.dfs())):
        rule = _RESPELLED.get(type(node))
        made = node if rule is None else rule(node)
        if made is node:
            continue
        if node is tree:
            return made
        node.replace(made)
    return tree


def _anonymous(node: exp.Expr) -> exp.Expr:
    if node.name.lower() not in _FUNCTIONS:
        return node
    x = node.expressions[0]
    match node.name.lower():
        case "epoch_us":
            return _call("unix_micros", _moment(x))
        case "epoch_ms":
            return _call("unix_millis", _moment(x))
    place = ("to_days", "to_hours", "to_minutes", "to_seconds").index(node.name.lower())
    numbers: list[exp.Expr] = [exp.Literal.number(0) for _ in range(4)]
    numbers[place] = exp.cast(x, "int", dialect="spark") if place < 3 else x
    return _call("make_dt_interval", *numbers)


def _call(name: str, *arguments: exp.Expr) -> exp.Expr:
    return exp.Anonymous(this=name, expressions=[each.copy() for each in arguments])


def _moment(x: exp.Expr) -> exp.Expr:
    return exp.Cast(this=x.copy(), to=exp.DataType.build("TIMESTAMPTZ", dialect="duckdb"))


def _double(x: exp.Expr) -> exp.Expr:
    return exp.Cast(this=exp.Paren(this=x.copy()), to=exp.DataType.build("DOUBLE"))


def _divide(node: exp.Expr) -> exp.Expr:
    """Through doubles, and by zero to infinity or NaN."""
    x, y = _double(node.this), _double(node.expression)
    if isinstance(node.expression, exp.Literal) and float(node.expression.name):
        return exp.Paren(this=exp.Div(this=x, expression=y))
    infinite = exp.Mul(this=x.copy(), expression=_double(exp.Literal.string("Infinity")))
    zero = exp.EQ(this=y.copy(), expression=_double(exp.Literal.number(0)))
    found = exp.Div(this=x, expression=y)
    return exp.Paren(this=exp.Case(ifs=[exp.If(this=zero, true=infinite)], default=found))


def _loud(node: exp.Expr) -> exp.Expr:
    """DuckDB refuses logarithms and roots of what has none; Spark gives null or NaN."""
    x = node.expression if isinstance(node, exp.Log) else node.this
    bound: type[exp.Expr] = exp.LT if isinstance(node, exp.Sqrt) else exp.LTE
    wrong = bound(this=_double(x), expression=_double(exp.Literal.number(0)))
    said = _call("raise_error", exp.Literal.string(f"no {node.key} of a number this small"))
    return exp.Paren(this=exp.Case(ifs=[exp.If(this=wrong, true=said)], default=node.copy()))


_RESPELLED: dict[type[exp.Expr], Callable[[exp.Expr], exp.Expr]] = {
    exp.Anonymous: _anonymous,
    exp.Div: _divide,
    exp.Ln: _loud,
    exp.Log: _loud,
    exp.Sqrt: _loud,
    exp.DayOfWeekIso: lambda node: exp.Paren(
        this=exp.Add(this=_call("weekday", _moment(node.this)), expression=exp.Literal.number(1))
    ),
    exp.TimeToUnix: lambda node: exp.Paren(
        this=exp.Div(
            this=_double(_call("unix_micros", _moment(node.this))),
            expression=_double(exp.Literal.number(1000000)),
        )
    ),
    exp.IsNan: lambda node: exp.Paren(
        this=exp.Case(
            ifs=[exp.If(this=exp.Is(this=node.this.copy(), expression=exp.Null()), true=exp.Null())],
            default=node.copy(),
        )
    ),
    exp.Avg: lambda node: exp.Avg(this=_double(node.this)),
}
