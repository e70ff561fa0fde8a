"""Columns, nested ones too, and the rules that they bring along."""

from collections.abc import Mapping
from typing import Any, Protocol
from zoneinfo import available_timezones

from loopwright.data.odcs import words
from loopwright.data.odcs.draft import Draft
from loopwright.data.odcs.quality import add_quality
from loopwright.data.odcs.relations import add_relationships
from loopwright.data.odcs.shape import PARTS, Path
from loopwright.data.odcs.values import read_bound, read_pattern, valid_values
from loopwright.data.terms import TYPES, Column, Rule, Scope, Severity, Type
from loopwright.kernel.errors import did_you_mean

_RANGE = "minimum maximum exclusiveMinimum exclusiveMaximum"
_OPTIONS: Mapping[str, frozenset[str]] = {
    type_: frozenset(names.split())
    for type_, names in {
        "string": "format minLength maxLength pattern",
        "integer": f"format multipleOf {_RANGE}",
        "number": f"format multipleOf {_RANGE}",
        "boolean": "",
        "date": f"format {_RANGE}",
        "time": f"format timezone defaultTimezone {_RANGE}",
        "timestamp": f"format timezone defaultTimezone {_RANGE}",
        "object": "minProperties maxProperties required",
        "array": "minItems maxItems uniqueItems",
        "map": "",
        "vector": "dimensions elementType distanceMetric embeddingModel embeddingModelVersion normalized",
    }.items()
}
_LOGICAL = (*TYPES, "map", "vector")


class _Row(Protocol):
    """Adds a row rule of the column; `option` is the key under logicalTypeOptions that says it."""

    def __call__(self, said: str, kind: str, option: str = "", /, **arguments: Any) -> None: ...


def read_columns(draft: Draft, properties: list[dict[str, Any]], path: Path) -> tuple[Column, ...]:
    """The columns (or an object's parts) in their order; what is computed and not stored is none."""
    found: dict[str, Column] = {}
    for i, prop in enumerate(properties):
        at = (*path, i)
        column = _column(draft, prop, at, _name(draft, prop, at))
        if column.name.lower() in (known.lower() for known in found):
            raise draft.fail("column given twice", (*at, "name"), column.name)
        if prop.get("semanticType") == "measure":
            draft.leave((*at, "semanticType"), f"{column.name} is a measure, no column of the data")
            continue
        found[column.name] = column
    return tuple(found.values())


def add_column_rules(
    draft: Draft, prop: Mapping[str, Any], column: Column, path: Path, name: str, *, is_key: bool = False
) -> None:
    """The rules of a column and of everything in it; `name` is its dotted path."""
    description = prop.get("description", "")

    def row(said: str, kind: str, option: str = "", /, **arguments: Any) -> None:
        at = (*path, "logicalTypeOptions", option) if option in PARTS["options"] else (*path, option)
        rule = Rule(
            f"{name} {said}", kind, (name,), column.severity, Scope.ROW, arguments, description=description
        )
        draft.add(rule, at)

    nested = name != column.name
    if column.type != "string" and not nested:
        row(f"is {'an' if column.type[0] in 'aio' else 'a'} {column.type}", "type", "logicalType")
    if is_key or prop.get("required"):
        row("present", "required", "required")
    _add_options(draft, prop, column, path, row)
    if "enum" in prop:
        values = valid_values(draft, [one.get("value") for one in prop["enum"]], column, (*path, "enum"))
        row("valid", "enum", "enum", validValues=values)
    if prop.get("unique") or (prop.get("primaryKey") and nested):
        _add_unique(draft, prop, column, path, name)
    add_quality(draft, prop, path, name, column)
    add_relationships(draft, prop, path, name)
    _add_nested(draft, prop, column, path, name)


def _add_nested(draft: Draft, prop: Mapping[str, Any], column: Column, path: Path, name: str) -> None:
    fields = {field.name: field for field in column.fields}
    required = prop.get("logicalTypeOptions", {}).get("required", []) if column.type == "object" else []
    for i, part in enumerate(required):
        if part not in fields:
            at = (*path, "logicalTypeOptions", "required", i)
            draft.leave(at, f"{part} is required and not described among the properties")
    for i, part in enumerate(prop.get("properties", ())):
        if part.get("name") in fields and "semanticType" not in part:
            add_column_rules(
                draft, part, fields[part["name"]], (*path, "properties", i), f"{name}.{part['name']}",
                is_key=part["name"] in required,
            )  # fmt: skip
    if column.items is not None and "items" in prop:
        add_column_rules(draft, prop["items"], column.items, (*path, "items"), f"{name}[]")


def _name(draft: Draft, prop: Mapping[str, Any], path: Path) -> str:
    name = prop.get("name", "")
    if not str(name).strip():
        raise draft.fail("missing or not text", (*path, "name"), prop.get("name"), "the column's name")
    return str(name)


def _column(draft: Draft, prop: Mapping[str, Any], path: Path, name: str) -> Column:
    given = prop.get("logicalType") or words.logical(prop.get("physicalType", ""))
    if given not in _LOGICAL:
        raise draft.fail(
            "unknown logicalType",
            (*path, "logicalType"),
            given,
            f"one of {', '.join(_LOGICAL)}",
            did_you_mean(str(given), _LOGICAL) or "Mend it",
        )
    older = str(draft.document.value.get("apiVersion")).startswith("v3.0")
    if older and given == "date" and words.logical(prop.get("physicalType", "")) == "timestamp":
        given = "timestamp"  # version 3.0 had no other word for it
    options = prop.get("logicalTypeOptions", {})
    for key in options:
        if key not in _OPTIONS[given]:
            raise draft.fail(
                f"`{key}` says nothing about a column of type {given}",
                (*path, "logicalTypeOptions", key),
                next=f"For {given}: {', '.join(sorted(_OPTIONS[given])) or 'no options'}",
            )
    ours = draft.ours(prop, path, "column")
    optional = ours.get("optional", False)
    if not isinstance(optional, bool):
        raise draft.fail(
            "not true or false", (*path, "customProperties"), optional, "optional: true or false"
        )
    type_: Type = {"map": "object", "vector": "array"}.get(given, given)  # type: ignore[assignment]
    fields: tuple[Column, ...] = ()
    items: Column | None = None
    if type_ == "object":
        fields = read_columns(draft, prop.get("properties", []), (*path, "properties"))
    elif given == "vector":
        items = Column("", "number")
    elif type_ == "array" and "items" in prop:
        items = _column(draft, prop["items"], (*path, "items"), "")
    return Column(
        name=name,
        type=type_,
        format=_format(draft, options, type_, path),
        timezone=_timezone(draft, options, path),
        optional=optional,
        severity=draft.severity(ours, path, Severity.QUARANTINE),
        fields=fields,
        items=items,
        required=bool(prop.get("required") or prop.get("primaryKey")),
        description=prop.get("description", ""),
        classification=prop.get("classification", ""),
    )


def _format(draft: Draft, options: Mapping[str, Any], type_: Type, path: Path) -> str | None:
    text = options.get("format")
    at = (*path, "logicalTypeOptions", "format")
    if not text:
        return None
    if type_ in ("timestamp", "date", "time"):
        found = words.strptime(text)
        if found is None:
            raise draft.fail(
                "a date format that is not understood",
                at,
                text,
                "letters like yyyy-MM-dd HH:mm:ss.SSSXXX, or strptime's % codes",
            )
        return found
    if type_ == "integer" and words.integers(text) is None:
        raise draft.fail("unknown format", at, text, "i8 to i128 or u8 to u128")
    if type_ == "number" and text not in ("f32", "f64"):
        raise draft.fail("unknown format", at, text, "f32 or f64")
    return None


def _timezone(draft: Draft, options: Mapping[str, Any], path: Path) -> str:
    name = options.get("defaultTimezone", "UTC")
    if name in ("UTC", "Etc/UTC", "Z"):
        return "UTC"
    if name not in available_timezones():
        raise draft.fail(
            "unknown time zone",
            (*path, "logicalTypeOptions", "defaultTimezone"),
            name,
            "a name like Europe/Berlin",
            did_you_mean(name, available_timezones()) or "Mend it",
        )
    return str(name)


def _add_options(draft: Draft, prop: Mapping[str, Any], column: Column, path: Path, row: _Row) -> None:
    options = prop.get("logicalTypeOptions", {})
    where = (*path, "logicalTypeOptions")
    for bound, op, strict in (("minimum", ">=", ">"), ("maximum", "<=", "<")):
        value, exclusive = options.get(bound), "exclusive" + bound.capitalize()
        if options.get(exclusive) is True:  # as JSON Schema had it once
            op = strict
        elif options.get(exclusive) is not None and options[exclusive] is not False:
            found = read_bound(draft, options[exclusive], column, (*where, exclusive))
            row(f"{strict} {options[exclusive]}", "range", exclusive, op=strict, value=found)
        if value is not None:
            found = read_bound(draft, value, column, (*where, bound))
            row(f"{op} {value}", "range", bound, op=op, value=found)
    for option, said in (
        ("multipleOf", "a multiple of"),
        ("minLength", "length >="),
        ("maxLength", "length <="),
        ("minItems", "items >="),
        ("maxItems", "items <="),
    ):
        if option in options:
            number = options[option]
            if number < 0 or (option == "multipleOf" and number == 0):
                raise draft.fail("out of range", (*where, option), number, "a number above 0")
            row(f"{said} {number}", option, option, value=number)
    if options.get("uniqueItems"):
        row("holds nothing twice", "uniqueItems", "uniqueItems", value=True)
    if "dimensions" in options:
        row(f"items >= {options['dimensions']}", "minItems", "dimensions", value=options["dimensions"])
        row(f"items <= {options['dimensions']}", "maxItems", "dimensions", value=options["dimensions"])
    if "pattern" in options:
        value = read_pattern(draft, options["pattern"], (*where, "pattern"))
        row(f"matches {value}", "pattern", "pattern", value=value)
    _add_format(draft, options.get("format", ""), column, where, row)
    for option in ("minProperties", "maxProperties"):
        if option in options:
            draft.leave((*where, option), "how many properties an object has is not checked")


def _add_format(draft: Draft, format_: str, column: Column, path: Path, row: _Row) -> None:
    if column.type == "string" and format_ in words.STRING_FORMATS:
        row(f"is of format {format_}", "pattern", "format", value=words.STRING_FORMATS[format_])
    elif column.type == "string" and format_ and format_ not in ("password", "binary"):
        draft.leave((*path, "format"), f"format {format_} of a string is not checked")
    elif column.type == "integer" and format_:
        low, high = words.integers(format_) or (0, 0)
        if low > -(2**63):
            row(f"is of format {format_}: >= {low}", "range", "format", op=">=", value=low)
        if high < 2**63 - 1:
            row(f"is of format {format_}: <= {high}", "range", "format", op="<=", value=high)


def _add_unique(draft: Draft, prop: Mapping[str, Any], column: Column, path: Path, name: str) -> None:
    if "[]" in name:
        draft.leave((*path, "unique"), f"{name}: uniqueness within a list's elements is not checked")
        return
    scope = draft.scope(draft.ours(prop, path, "column"), path, Scope.TABLE)
    draft.add(Rule(f"{name} unique", "unique", (name,), column.severity, scope, {}), (*path, "unique"))
