"""Which keys the standard has, and what each holds. The whole document is walked before anything of it is understood.

Read leniently where the meaning is clear (a number or a date where text is wanted is its text); what is unknown, of the
wrong kind or not finite is an error that names the line, the key and the nearest known one.
"""

import math
from collections.abc import Mapping
from datetime import date, datetime
from types import MappingProxyType
from typing import Any

from loopwright.data.document import Document
from loopwright.kernel.errors import BadInput, did_you_mean

Path = tuple[Any, ...]

_ELEMENT = {
    "text": "id name physicalName physicalType description businessName logicalType",
    "flag": "deprecated",
    "texts": "tags",
    "[synonym]": "synonyms",
    "[definition]": "authoritativeDefinitions",
    "[custom]": "customProperties",
    "[quality]": "quality",
    "[relationship]": "relationships",
}
_PROPERTY = {
    "text+": """
        semanticType classification encryptedName transformLogic transformDescription
    """,
    "flag+": "primaryKey required unique partitioned criticalDataElement",
    "integer": "primaryKeyPosition partitionKeyPosition",
    "options": "logicalTypeOptions",
    "texts+": "transformSourceObjects",
    "values": "examples",
    "[enum]": "enum",
    "[column]": "properties",
    "item": "items",
    "map": "map",
}
_PARTS: dict[str, dict[str, str]] = {
    "contract": {
        "text": """
            apiVersion kind id name version status tenant dataProduct domain slaDefaultElement contractCreatedTs
        """,
        "texts": "tags",
        "[server]": "servers",
        "description": "description",
        "[table]": "schema",
        "[support]": "support",
        "price": "price",
        "team": "team",
        "[role]": "roles",
        "[sla]": "slaProperties",
        "[definition]": "authoritativeDefinitions",
        "[custom]": "customProperties",
        "context": "context",
    },
    "description": {
        "text": "purpose limitations usage",
        "[definition]": "authoritativeDefinitions",
        "[custom]": "customProperties",
    },
    "table": _ELEMENT
    | {"text+": "dataGranularityDescription", "[column]": "properties", "context": "context"},
    "column": _ELEMENT | _PROPERTY,
    "item": _ELEMENT | _PROPERTY,
    "map": {"item": "key value"},
    "options": {
        "text": "format defaultTimezone pattern elementType distanceMetric embeddingModel embeddingModelVersion",
        "scalar": "minimum maximum exclusiveMinimum exclusiveMaximum",
        "number": "multipleOf",
        "integer": "minLength maxLength minItems maxItems minProperties maxProperties dimensions",
        "flag": "timezone uniqueItems normalized",
        "texts": "required",
    },
    "enum": {
        "text": "id label description",
        "scalar": "value",
        "texts": "tags",
        "[definition]": "authoritativeDefinitions",
        "[custom]": "customProperties",
    },
    "quality": {
        "text": """
            id name description type metric rule unit query engine dimension method severity businessImpact schedule
            scheduler
        """,
        "mapping": "arguments",
        "scalar": """
            mustBe mustNotBe mustBeGreaterThan mustBeGreaterOrEqualTo mustBeLessThan mustBeLessOrEqualTo
        """,
        "any": "implementation mustBeBetween mustNotBeBetween",
        "values": "validValues",
        "texts": "tags",
        "[definition]": "authoritativeDefinitions",
        "[custom]": "customProperties",
    },
    "relationship": {"text": "id type description", "names": "from to", "[custom]": "customProperties"},
    "custom": {"text": "id property description vendor", "any": "value"},
    "definition": {"text": "id url type description"},
    "synonym": {"text": "id synonym description locale source status", "[custom]": "customProperties"},
    "server": {
        "text": """
            id server type description environment account catalog catalogUrl database dataset delimiter encoding
            endpointUrl format host location namespace path port project region regionName schema serviceName stagingDir
            stream warehouse workgroup
        """,
        "[role]": "roles",
        "[custom]": "customProperties",
    },
    "role": {
        "text": "id role description access firstLevelApprovers secondLevelApprovers",
        "[custom]": "customProperties",
    },
    "support": {
        "text": "id channel url description tool scope invitationUrl",
        "[custom]": "customProperties",
    },
    "price": {"text": "id priceCurrency priceUnit", "number": "priceAmount"},
    "team": {
        "text": "id name description",
        "texts": "tags",
        "[member]": "members",
        "[definition]": "authoritativeDefinitions",
        "[custom]": "customProperties",
    },
    "member": {
        "text": "id username name description role dateIn dateOut replacedByUsername",
        "texts": "tags",
        "[definition]": "authoritativeDefinitions",
        "[custom]": "customProperties",
    },
    "sla": {
        "text": "id property unit element driver description scheduler schedule",
        "scalar": "value valueExt",
        "[definition]": "authoritativeDefinitions",
        "[custom]": "customProperties",
    },
    "context": {
        "text": "instructions",
        "[statement]": "verifiedStatements",
        "[constraint]": "constraints",
    },
    "statement": {
        "text": "id question answer",
        "texts": "tags",
        "[definition]": "authoritativeDefinitions",
        "[custom]": "customProperties",
    },
    "constraint": {
        "text": "id constraint",
        "texts": "tags",
        "[definition]": "authoritativeDefinitions",
        "[custom]": "customProperties",
    },
}
PARTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        part: {key: kind.rstrip("+") for kind, keys in kinds.items() for key in keys.split()}
        for part, kinds in _PARTS.items()
    }
)
"""Part of a contract → its keys → what each holds: a part, a [part] list of it, or a plain kind of value."""
WANTED_BY_STANDARD: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "contract": ("id", "version"),
        "server": ("server", "type"),
        "support": ("channel",),
        "member": ("username",),
        "role": ("role",),
        "custom": ("property", "value"),
        "definition": ("url", "type"),
        "sla": ("property", "value"),
        "synonym": ("synonym",),
        "enum": ("value",),
        "statement": ("question",),
        "constraint": ("constraint",),
        "relationship": ("to",),
    }
)
"""Keys without which the standard's JSON Schema refuses a document, where this system can do without."""
_WANTED = {
    "text": "text",
    "flag": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "scalar": "one value",
    "names": "text, or a list of texts",
    "mapping": "`key: value` lines",
}


def shaped(document: Document) -> dict[str, Any]:
    """The document with every key known and every value of its kind; keys without a value are left out.

    Raises BadInput naming line and key.
    """
    found = _Shape(document).part(document.value, (), "contract")
    assert isinstance(found, dict)
    return found


def plain(value: Any) -> Any:
    """`value` as canonical JSON can hold it: dates, bytes and numbers that are not finite become text."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


class _Shape:
    def __init__(self, document: Document) -> None:
        self.document = document

    def part(self, value: Any, path: Path, part: str) -> Any:
        # Old or short forms that the standard has for these two.
        if part == "team" and isinstance(value, list):
            return self.parts(value, path, "member")
        if part == "context" and isinstance(value, str):
            return value
        if not isinstance(value, dict):
            raise self.fail("not a mapping", path, value, "`key: value` lines")
        known, found = PARTS[part], {}
        for key, item in value.items():
            here = (*path, key)
            if key not in known:
                near = did_you_mean(key, known) or f"Known: {', '.join(sorted(known))}"
                raise self.fail("unknown key", here, key, next=near)
            if item is not None:
                found[key] = self.value(item, here, known[key])
            elif (part, key) in (("custom", "value"), ("enum", "value"), ("sla", "value")):
                found[key] = None
        return found

    def parts(self, value: Any, path: Path, part: str) -> list[Any]:
        return [self.part(item, (*path, i), part) for i, item in enumerate(self.list(value, path))]

    def value(self, value: Any, path: Path, kind: str) -> Any:
        if kind.startswith("["):
            return self.parts(value, path, kind[1:-1])
        if kind in PARTS:
            return self.part(value, path, kind)
        match kind:
            case "text":
                return self.text(value, path)
            case "texts":
                return [self.text(item, (*path, i)) for i, item in enumerate(self.list(value, path))]
            case "values":
                return [plain(item) for item in self.list(value, path)]
            case "names":
                if isinstance(value, list):
                    return [self.text(item, (*path, i)) for i, item in enumerate(value)]
                return [self.text(value, path)]
            case "flag" if isinstance(value, bool):
                return value
            case "integer" if isinstance(value, int) and not isinstance(value, bool):
                return value
            case "number" if isinstance(value, int | float) and not isinstance(value, bool):
                if math.isfinite(value):
                    return value
            case "mapping" if isinstance(value, dict):
                return plain(value)
            case "any":
                return plain(value)
            case "scalar" if not isinstance(value, dict | list):
                return plain(value)
        raise self.fail(f"not {_WANTED[kind]}", path, value, _WANTED[kind])

    def text(self, value: Any, path: Path) -> str:
        if isinstance(value, bool):
            # YAML 1.1 reads yes, no, on and off as such.
            raise self.fail("not text", path, value, "text", "Write it in quotes")
        if isinstance(value, dict | list | bytes) or value is None:
            raise self.fail("missing or not text", path, value, "text")
        return value if isinstance(value, str) else str(plain(value))

    def list(self, value: Any, path: Path) -> list[Any]:
        if not isinstance(value, list):
            raise self.fail("not a list", path, value, "a list (`- …`)")
        return value

    def fail(
        self, what: str, path: Path, got: object, wanted: str = "", next: str = "Mend the contract"
    ) -> BadInput:
        return BadInput(what, where=self.document.where(path), got=got, wanted=wanted, next=next)
