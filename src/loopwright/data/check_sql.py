"""Whether SQL that a contract brings may run: it may read the tables it is told of, and nothing else.

Judged on the tree that DuckDB's own parser makes of it, so nothing can look harmless here and be read otherwise by the
engine. The engine is locked besides: it opens no file but those of the tables, and reaches no network.
"""

import json
from collections.abc import Iterator, Set
from typing import Any

import duckdb

_SOURCES = (
    "EMPTY",
    "EMPTY_FROM",
    "BASE_TABLE",
    "SUBQUERY",
    "JOIN",
    "EXPRESSION_LIST",
    "TABLE_FUNCTION",
    "PIVOT",
)
_TABLE_FUNCTIONS = ("unnest", "range", "generate_series")
# These tell of the engine, keep something between queries, or run text as SQL.
_REFUSED = (
    "current_setting",
    "set_config",
    "getvariable",
    "nextval",
    "currval",
    "write_log",
    "parse_duckdb_log_message",
)
_REFUSED_STARTS = ("pg_", "duckdb_", "pragma_", "read_", "json_execute", "from_substrait", "getenv", "query")


class Harmful(ValueError):
    """SQL that a contract may not bring; the message says why."""


def require_query(engine: duckdb.DuckDBPyConnection, sql: str, tables: Set[str]) -> str:
    """Return `sql`, one SELECT over `tables`, without its semicolon. Raises Harmful, and duckdb.Error for no SQL."""
    sql = sql.strip().rstrip(";")
    _require(_parsed(engine, sql), tables)
    return sql


def require_condition(engine: duckdb.DuckDBPyConnection, sql: str, tables: Set[str]) -> None:
    """Raise Harmful when `sql` is not one expression over columns (and `tables`, in subqueries)."""
    node = _parsed(engine, f"SELECT (\n{sql}\n)")
    plain = (
        node.get("type") == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and node["from_table"]["type"].startswith("EMPTY")
        and not node.get("where_clause")
        and not node.get("group_expressions")
        and not node.get("modifiers")
        and not node.get("having")
        and not node.get("qualify")
    )
    if not plain:
        raise Harmful("not one condition")
    _require(node, tables)


def _parsed(engine: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    ((found,),) = engine.execute("SELECT json_serialize_sql(CAST(? AS VARCHAR))", [sql]).fetchall()
    tree = json.loads(found)
    if tree["error"]:
        raise Harmful(str(tree.get("error_message", "not SQL")).split("\n")[0])
    if len(tree["statements"]) != 1:
        raise Harmful("more than one statement")
    node: dict[str, Any] = tree["statements"][0]["node"]
    return node


def _require(node: dict[str, Any], tables: Set[str]) -> None:
    parts = list(_walk(node))
    known = {name.lower() for name in tables}
    known |= {
        str(entry["key"]).lower()
        for part in parts
        if isinstance(part.get("cte_map"), dict)
        for entry in part["cte_map"].get("map", [])
    }
    known |= {str(part["cte_name"]).lower() for part in parts if part.get("cte_name")}
    for part in parts:
        if "from_table" in part and part["from_table"]["type"] not in _SOURCES:
            raise Harmful(f"reads {part['from_table']['type'].lower().replace('_', ' ')}")
        if part.get("type") in ("SHOW_REF", "COLUMN_DATA", "BOUND_TABLE_REF", "DELIM_GET"):
            raise Harmful("asks about the engine")
        if part.get("type") == "BASE_TABLE":
            _require_table(part, known)
        elif part.get("type") == "TABLE_FUNCTION":
            name = part["function"].get("function_name", "")
            if name not in _TABLE_FUNCTIONS:
                raise Harmful(f"`{name}` is not for contracts; known tables: {', '.join(sorted(tables))}")
        elif part.get("class") == "FUNCTION":
            name = str(part.get("function_name", "")).lower()
            if (
                part.get("schema")
                or part.get("catalog")
                or name in _REFUSED
                or name.startswith(_REFUSED_STARTS)
            ):
                raise Harmful(f"the function `{name}` is not for contracts")


def _require_table(part: dict[str, Any], known: set[str]) -> None:
    name = ".".join(
        p for p in (part.get("catalog_name"), part.get("schema_name"), part.get("table_name")) if p
    )
    if name.lower() not in known:
        raise Harmful(f"reads `{name}`, which is none of the tables {', '.join(sorted(known))}")


def _walk(node: Any) -> Iterator[dict[str, Any]]:
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
