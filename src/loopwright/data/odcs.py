"""Parses an ODCS 3.1 file into `Terms`. Every error names the line and the key path."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from loopwright.data.document import Document
from loopwright.data.source import NULLS
from loopwright.data.terms import NONE, TYPES, Column, Limit, Rule, Scope, Severity, Terms, Type
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput, did_you_mean

Path = tuple[Any, ...]

_COMMON = """
    id name description businessName authoritativeDefinitions tags customProperties physicalName physicalType
    logicalType quality relationships
"""
_NAMES = {
    "contract": """
        apiVersion kind id name version status tenant tags servers dataProduct description domain schema support price
        team roles slaDefaultElement slaProperties authoritativeDefinitions customProperties contractCreatedTs
    """,
    "table": f"{_COMMON} dataGranularityDescription properties",
    "column": f"""
        {_COMMON} primaryKey primaryKeyPosition logicalTypeOptions required unique partitioned partitionKeyPosition
        classification encryptedName transformSourceObjects transformLogic transformDescription examples
        criticalDataElement properties items
    """,
    "quality": """
        id name description type metric rule unit arguments query engine implementation mustBe mustNotBe
        mustBeGreaterThan mustBeGreaterOrEqualTo mustBeLessThan mustBeLessOrEqualTo mustBeBetween mustNotBeBetween
        dimension method severity businessImpact schedule scheduler tags authoritativeDefinitions customProperties
    """,
    "relationship": "id type from to description customProperties",
    "custom": "id property value description",
    "options": """
        format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength pattern timezone
        defaultTimezone minItems maxItems uniqueItems minProperties maxProperties required
    """,
}
_KEYS = {kind: frozenset(names.split()) for kind, names in _NAMES.items()}
_OURS = {
    "table": ("load", "nullValues", "maxBadShare"),
    "column": ("severity", "optional"),
    "quality": ("severity",),
    "relationship": ("severity",),
}
_LIMITS = {
    "mustBe": "==",
    "mustNotBe": "!=",
    "mustBeGreaterThan": ">",
    "mustBeGreaterOrEqualTo": ">=",
    "mustBeLessThan": "<",
    "mustBeLessOrEqualTo": "<=",
    "mustBeBetween": "between",
    "mustNotBeBetween": "not between",
}
_METRICS = ("rowCount", "nullValues", "missingValues", "invalidValues", "duplicateValues")
_JDK = {
    "yyyy": "%Y",
    "yy": "%y",
    "MM": "%m",
    "dd": "%d",
    "HH": "%H",
    "mm": "%M",
    "ss": "%S",
    "SSSSSS": "%f",
    "SSS": "%g",
    "XXX": "%z",
}


def parse_terms(document: Document, table: str | None = None) -> Terms:
    """Parse the (only, or the named) table of a contract document."""
    return _Parser(document).terms(table)


class _Parser:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.rules: list[Rule] = []
        self.columns: dict[str, Column] = {}

    def fail(
        self, what: str, path: Path, got: object = None, wanted: str = "", next: str = "Mend the contract"
    ) -> BadInput:
        return BadInput(what, where=self.document.where(path), got=got, wanted=wanted, next=next)

    def terms(self, table: str | None) -> Terms:
        top = self.mapping(self.document.value, (), "contract")
        if not str(top.get("apiVersion", "")).startswith("v3."):
            raise self.fail(
                "not an ODCS 3 contract", ("apiVersion",), top.get("apiVersion"), "apiVersion: v3.1.0"
            )
        if top.get("kind") != "DataContract":
            raise self.fail("not a data contract", ("kind",), top.get("kind"), "kind: DataContract")
        objects = self.items(top.get("schema"), ("schema",))
        names = [entry.get("name") if isinstance(entry, dict) else None for entry in objects]
        if not objects or (table is None and len(objects) > 1) or (table is not None and table not in names):
            raise self.fail(
                "wanted one table",
                ("schema",),
                names,
                f"exactly one entry{f' named {table}' if table else ''}",
            )
        index = names.index(table) if table is not None else 0
        path: Path = ("schema", index)
        entry = self.mapping(objects[index], path, "table")
        name = self.text(entry.get("name"), (*path, "name"))
        ours = self.ours(entry, path, "table")
        properties = self.items(entry.get("properties"), (*path, "properties"))
        if not properties:
            raise self.fail("the table has no columns", (*path, "properties"), wanted="at least one property")
        positions: list[tuple[int, str]] = []
        parsed = []
        for i, item in enumerate(properties):
            at = (*path, "properties", i)
            prop = self.mapping(item, at, "column")
            column = self.column(prop, at)
            if self.flag(prop, "primaryKey", at):
                positions.append((int(prop.get("primaryKeyPosition", i + 1)), column.name))
            parsed.append((prop, column, at))
        key = tuple(column for _, column in sorted(positions))
        for prop, column, at in parsed:
            self.column_rules(prop, column, at, is_key=column.name in key)
        if key:
            self.add(Rule(f"{', '.join(key)} unique", "unique", key, Severity.QUARANTINE, Scope.TABLE, {}))
        self.quality(entry, path, None)
        self.relationships(entry, path, None)
        share = ours.get("maxBadShare", 0.5)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise self.fail("not a share", (*path, "customProperties"), share, "maxBadShare from 0 to 1")
        limit = Limit("<=", 100 * float(share), percent=True)
        self.add(Rule("share of bad rows", "bad rows", (), Severity.BLOCK, Scope.BATCH, {}, limit))
        loading = ours.get("load", "append")
        if loading not in ("append", "full"):
            raise self.fail(
                "unknown way to load", (*path, "customProperties"), loading, "load: append or full"
            )
        nulls = tuple(
            str(n) for n in self.items(ours.get("nullValues", list(NULLS)), (*path, "customProperties"))
        )
        return Terms(
            name=name,
            version=str(top.get("version", "")),
            columns=tuple(self.columns.values()),
            key=key,
            rules=tuple(self.rules),
            loading=loading,
            nulls=nulls,
            digest=digest_json(_plain(entry)),
            source=self.document.source,
        )

    def column(self, prop: Mapping[str, Any], path: Path) -> Column:
        name = self.text(prop.get("name"), (*path, "name"))
        if name.lower() in (known.lower() for known in self.columns):
            raise self.fail("column given twice", (*path, "name"), name)
        type_ = prop.get("logicalType", "string")
        if type_ not in TYPES:
            raise self.fail(
                "unknown logicalType",
                (*path, "logicalType"),
                type_,
                f"one of {', '.join(TYPES)}",
                did_you_mean(str(type_), TYPES) or "Mend it",
            )
        options = self.mapping(prop.get("logicalTypeOptions") or {}, (*path, "logicalTypeOptions"), "options")
        ours = self.ours(prop, path, "column")
        format_ = options.get("format")
        column = Column(
            name=name,
            type=cast(Type, type_),
            format=self.strptime(str(format_), (*path, "logicalTypeOptions", "format"))
            if format_ and type_ in ("timestamp", "date")
            else None,
            timezone=str(options.get("defaultTimezone", "UTC")),
            optional=bool(ours.get("optional", False)),
            severity=self.severity(ours, path, Severity.QUARANTINE),
        )
        self.columns[name] = column
        return column

    def column_rules(self, prop: Mapping[str, Any], column: Column, path: Path, *, is_key: bool) -> None:
        name, severity = column.name, column.severity

        def row(rule: str, kind: str, **arguments: Any) -> None:
            self.add(
                Rule(
                    f"{name} {rule}",
                    kind,
                    (name,),
                    severity,
                    Scope.ROW,
                    arguments,
                    description=str(prop.get("description", "")),
                )
            )

        if column.type != "string":
            row(f"is {'an' if column.type == 'integer' else 'a'} {column.type}", "type")
        if is_key or self.flag(prop, "required", path):
            row("present", "required")
        options = dict(prop.get("logicalTypeOptions") or {})
        for bound, op, strict in (("minimum", ">=", ">"), ("maximum", "<=", "<")):
            value, exclusive = options.get(bound), options.get("exclusive" + bound.capitalize())
            if exclusive is True:
                op = strict
            elif exclusive is not None and exclusive is not False:
                row(f"{strict} {exclusive}", "range", op=strict, value=self.bound(exclusive, column, path))
            if value is not None:
                row(f"{op} {value}", "range", op=op, value=self.bound(value, column, path))
        for option, text in (
            ("multipleOf", "a multiple of"),
            ("minLength", "length >="),
            ("maxLength", "length <="),
        ):
            if option in options:
                number = options[option]
                if isinstance(number, bool) or not isinstance(number, int | float):
                    raise self.fail("not a number", (*path, "logicalTypeOptions", option), number)
                row(f"{text} {number}", option, value=number)
        if "pattern" in options:
            row(
                f"matches {options['pattern']}",
                "pattern",
                value=self.regex(options["pattern"], (*path, "logicalTypeOptions", "pattern")),
            )
        if self.flag(prop, "unique", path):
            self.add(Rule(f"{name} unique", "unique", (name,), severity, Scope.TABLE, {}))
        self.quality(prop, path, name)
        self.relationships(prop, path, name)

    def quality(self, owner: Mapping[str, Any], path: Path, column: str | None) -> None:
        for i, item in enumerate(self.items(owner.get("quality"), (*path, "quality"))):
            at = (*path, "quality", i)
            entry = self.mapping(item, at, "quality")
            kind = entry.get("type", "library")
            if kind not in ("library", "sql", "text", "custom"):
                raise self.fail("unknown type of rule", (*at, "type"), kind, "library, sql, custom or text")
            if kind != "text":  # text is for people
                getattr(self, f"{kind}_rule")(entry, at, column)

    def library_rule(self, entry: Mapping[str, Any], path: Path, column: str | None) -> None:
        metric = entry.get("metric", entry.get("rule"))
        if metric not in _METRICS:
            raise self.fail(
                "unknown metric",
                (*path, "metric"),
                metric,
                f"one of {', '.join(_METRICS)}",
                did_you_mean(str(metric), _METRICS) or "Mend it",
            )
        arguments = dict(entry.get("arguments") or {})
        columns = (column,) if column else tuple(str(c) for c in arguments.pop("properties", ()))
        for name in columns:
            self.known(name, (*path, "arguments"))
        if metric != "rowCount" and not columns:
            raise self.fail("which columns?", path, wanted="the rule on a property, or arguments.properties")
        kinds = {
            "nullValues": "required",
            "duplicateValues": "unique",
            "missingValues": "missing",
            "rowCount": "count",
        }
        kind = kinds.get(metric, "enum")
        if metric == "invalidValues":
            if "pattern" in arguments:
                kind, arguments = (
                    "pattern",
                    {"value": self.regex(arguments["pattern"], (*path, "arguments", "pattern"))},
                )
            elif not isinstance(arguments.get("validValues"), list) or not arguments["validValues"]:
                raise self.fail(
                    "what is valid?",
                    (*path, "arguments"),
                    wanted="arguments.validValues or arguments.pattern",
                )
        scope = Scope.TABLE if kind == "unique" else Scope.BATCH if kind == "count" else Scope.ROW
        words = {
            "required": "present",
            "unique": "unique",
            "missing": "not missing",
            "count": "row count",
            "enum": "valid",
            "pattern": "valid",
        }
        self.rule(entry, path, f"{', '.join(columns)} {words[kind]}".strip(), kind, columns, scope, arguments)

    def sql_rule(self, entry: Mapping[str, Any], path: Path, column: str | None) -> None:
        query = self.text(entry.get("query"), (*path, "query"))
        if not any(limit in entry for limit in _LIMITS):
            raise self.fail("what must the query give?", path, wanted=f"one of {', '.join(_LIMITS)}")
        query = re.sub(r"\$?\{(object|table|model)\}", "{object}", query)
        query = re.sub(r"\$?\{(property|column|field)\}", f'"{column or ""}"', query)
        self.rule(
            entry,
            path,
            f"{column or 'table'} query",
            "query",
            (column,) if column else (),
            Scope.BATCH,
            {"query": query},
        )

    def custom_rule(self, entry: Mapping[str, Any], path: Path, column: str | None) -> None:
        if entry.get("engine") != "loopwright":
            raise self.fail(
                "a custom rule of another engine",
                (*path, "engine"),
                entry.get("engine"),
                "engine: loopwright",
            )
        condition = self.text(entry.get("implementation"), (*path, "implementation"))
        self.rule(
            entry,
            path,
            condition,
            "condition",
            (column,) if column else (),
            Scope.ROW,
            {"condition": condition},
        )

    def rule(
        self,
        entry: Mapping[str, Any],
        path: Path,
        name: str,
        kind: str,
        columns: tuple[str, ...],
        scope: Scope,
        arguments: Mapping[str, Any],
    ) -> None:
        limit = self.limit(entry, path)
        by_row = scope is not Scope.BATCH and limit == NONE
        severity = self.severity(
            self.ours(entry, path, "quality"), path, Severity.QUARANTINE if by_row else Severity.BLOCK
        )
        if severity is Severity.QUARANTINE and not by_row:
            raise self.fail(
                "a rule on counts names no row to set aside",
                path,
                "severity: quarantine",
                "severity: warn or block",
                "Or say mustBe: 0",
            )
        name = str(entry.get("name", name))
        self.add(
            Rule(name, kind, columns, severity, scope, arguments, limit, str(entry.get("description", "")))
        )

    def relationships(self, owner: Mapping[str, Any], path: Path, column: str | None) -> None:
        for i, item in enumerate(self.items(owner.get("relationships"), (*path, "relationships"))):
            at = (*path, "relationships", i)
            entry = self.mapping(item, at, "relationship")
            if entry.get("type", "foreignKey") != "foreignKey":
                raise self.fail("unknown relationship", (*at, "type"), entry["type"], "foreignKey")
            mine = [column] if column else [self.own(str(c), (*at, "from")) for c in _list(entry.get("from"))]
            theirs = [self.text(t, (*at, "to")).split(".") for t in _list(entry.get("to"))]
            if (
                not mine
                or len(mine) != len(theirs)
                or any(len(t) != 2 for t in theirs)
                or len({t[0] for t in theirs}) != 1
            ):
                raise self.fail(
                    "not a relationship",
                    (*at, "to"),
                    entry.get("to"),
                    "table.column, one for each column of `from`, of one table",
                )
            ours = self.ours(entry, at, "relationship")
            table, columns = theirs[0][0], tuple(t[1] for t in theirs)
            name = f"{', '.join(mine)} in {table}.{', '.join(columns)}"
            arguments = {"table": table, "columns": columns}
            severity = self.severity(ours, at, Severity.QUARANTINE)
            if severity is Severity.BLOCK:
                raise self.fail("a relationship cannot block", at, wanted="severity: warn or quarantine")
            self.add(
                Rule(
                    name,
                    "relationship",
                    tuple(mine),
                    severity,
                    Scope.ROW,
                    arguments,
                    description=str(entry.get("description", "")),
                )
            )

    def own(self, name: str, path: Path) -> str:
        """A column of this table, written `column` or `table.column`."""
        name = name.rpartition(".")[2]
        self.known(name, path)
        return name

    def known(self, name: str, path: Path) -> None:
        if name not in self.columns:
            raise self.fail(
                "no such column",
                path,
                name,
                f"one of {', '.join(self.columns)}",
                did_you_mean(name, self.columns) or "Mend it",
            )

    def add(self, rule: Rule) -> None:
        if any(rule.name == known.name for known in self.rules):
            if any(
                (rule.kind, rule.columns, rule.arguments, rule.limit)
                == (k.kind, k.columns, k.arguments, k.limit)
                for k in self.rules
            ):
                return  # the same promise said twice, as `unique` on the only key column
            rule = replace(rule, name=f"{rule.name} ({len(self.rules)})")
        self.rules.append(rule)

    def limit(self, entry: Mapping[str, Any], path: Path) -> Limit:
        given = [key for key in _LIMITS if key in entry]
        if len(given) > 1:
            raise self.fail(
                "two limits in one rule", path, ", ".join(given), "one of them", "Write two rules"
            )
        if not given:
            return NONE
        unit = entry.get("unit", "rows")
        if unit not in ("rows", "percent"):
            raise self.fail("unknown unit", (*path, "unit"), unit, "rows or percent")
        value, percent, op = entry[given[0]], unit == "percent", _LIMITS[given[0]]
        pair = value if isinstance(value, list) else [value]
        if len(pair) != (2 if "between" in op else 1) or any(
            isinstance(v, bool) or not isinstance(v, int | float) for v in pair
        ):
            raise self.fail(
                "not a limit", (*path, given[0]), value, "two numbers" if "between" in op else "a number"
            )
        limit = Limit(op, float(pair[0]), float(pair[-1]) if "between" in op else 0.0, percent)
        return NONE if limit == Limit("==", 0, percent=True) else limit

    def severity(self, ours: Mapping[str, Any], path: Path, default: Severity) -> Severity:
        text = ours.get("severity", default.value)
        if text not in list(Severity):
            raise self.fail(
                "unknown severity",
                (*path, "customProperties"),
                text,
                "warn, quarantine or block",
                did_you_mean(str(text), list(Severity)),
            )
        return Severity(text)

    def ours(self, owner: Mapping[str, Any], path: Path, kind: str) -> dict[str, Any]:
        """Our custom properties as a mapping. A name near one of ours is an error; foreign ones are kept out."""
        found: dict[str, Any] = {}
        for i, item in enumerate(self.items(owner.get("customProperties"), (*path, "customProperties"))):
            entry = self.mapping(item, (*path, "customProperties", i), "custom")
            name = str(entry.get("property"))
            if name in _OURS[kind]:
                found[name] = entry.get("value")
            elif near := did_you_mean(name, _OURS[kind]):
                raise self.fail(
                    "unknown custom property", (*path, "customProperties", i, "property"), name, next=near
                )
        return found

    def strptime(self, text: str, path: Path) -> str:
        if "%" in text:
            return text
        out = re.sub("|".join(_JDK), lambda m: _JDK[m.group()], text.replace("'", ""))
        if re.search(r"(?<!%)[A-Za-z]", out.replace("T", "")):
            raise self.fail(
                "a date format that is not understood",
                path,
                text,
                f"letters {', '.join(_JDK)}, or strptime's % codes",
            )
        return out

    def bound(self, value: Any, column: Column, path: Path) -> Any:
        numeric = column.type in ("integer", "number")
        if isinstance(value, bool) or (numeric and not isinstance(value, int | float)):
            raise self.fail("not a number", (*path, "logicalTypeOptions"), value)
        if column.type == "boolean":
            raise self.fail("a boolean has no range", (*path, "logicalTypeOptions"), value)
        return value if numeric else str(value)

    def regex(self, value: Any, path: Path) -> str:
        try:
            re.compile(str(value))
        except re.error as error:
            raise self.fail(f"not a regular expression ({error})", path, value) from None
        return str(value)

    def flag(self, owner: Mapping[str, Any], key: str, path: Path) -> bool:
        value = owner.get(key, False)
        if not isinstance(value, bool):
            raise self.fail("not true or false", (*path, key), value, "true or false")
        return value

    def mapping(self, value: Any, path: Path, kind: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fail("not a mapping", path, value, "`key: value` lines")
        known = _KEYS[kind]
        for key in value:
            if key not in known:
                raise self.fail(
                    "unknown key",
                    (*path, key),
                    key,
                    next=did_you_mean(key, known) or f"Known: {', '.join(sorted(known))}",
                )
        return value

    def items(self, value: Any, path: Path) -> Sequence[Any]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.fail("not a list", path, value, "a list (`- …`)")
        return value

    def text(self, value: Any, path: Path) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self.fail("missing or not text", path, value, "text")
        return value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _plain(value: Any) -> Any:
    """`value` as JSON: dates become text."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
