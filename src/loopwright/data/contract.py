"""Data contracts in the Open Data Contract Standard 3 (3.1 and what 3.2 adds): a table's columns, and what its rows
promise.

Everything the standard allows is read; what this system cannot judge is kept and named in `Contract.unchecked`, and a
key the standard does not know is an error. A file may hold several tables: `FILE#TABLE` names one.

Rules come from `logicalType` and `logicalTypeOptions` (also within objects and arrays: `address.city`, `tags[]`),
`required`, `unique`, `primaryKey`, `enum`, `relationships`, `quality`, and a `freshness` among `slaProperties`.
`quality` of type `library` counts (`rowCount`, `nullValues`, `missingValues`, `invalidValues`, `duplicateValues`; unit
rows or percent), `sql` gives one number, `text` is for people. Type `custom` with `engine: loopwright` has an
`implementation` that is a SQL condition which every row must meet, or one of these (the limit beside the metric: the
standard has no place for it next to `engine`):

    {metric: mean, mustBeBetween: [10, 20]}            also stddev, minimum, maximum, sum, distinct
    {metric: quantile, q: 0.95, mustBeLessThan: 90}
    {metric: categoryShare, value: JFK, mustBeBetween: [20, 45]}            percent, or `unit: rows`
    {metric: outlier, method: robustZ, threshold: 5}            or method: iqr; sets rows aside, or counts with a limit
    {metric: drift, distance: psi, against: previous, mustBeLessThan: 0.2}      or ks; or letters of a snapshot's digest
    {metric: freshness, unit: hours, mustBeLessThan: 6}
    {condition: "a <= b", mustBeLessThan: 1, unit: percent}            the condition, broken by so many rows at most

On a table's `quality` the mapping also says `property: COLUMN`. Without a limit a rule holds when no row breaks it.

Ours, in `customProperties`: `severity` (`warn`: counted, the row stays usable; `quarantine`: the row is set aside with
its reasons; `block`: the batch is refused) on columns, rules, relationships and service levels; `scope` (`table`, or
`batch`: keys may come again in another delivery) where uniqueness is promised; `optional` (the column may be absent)
on columns. On the table, or for all tables on the contract: `load` (`append`; `full`: each delivery is the whole
table; `upsert`: rows replace those of the same key, the greater `versionColumn` wins), `eventTime`, `nullValues`
(texts that mean null), `maxBadShare` (share of bad rows above which a batch is refused), `owner`, `producers`,
`consumers`.

A severity that is not given is quarantine for rules on rows, block for rules on counts, warn for freshness; the
standard's own `severity: warning` or `info` means warn.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from loopwright.data.document import Document, parse_document, read_document
from loopwright.data.odcs.table import parse_terms, table_names
from loopwright.data.terms import TYPES, Column, Limit, Rule, Scope, ServiceLevel, Severity, Terms, Type
from loopwright.kernel.errors import NotFound, did_you_mean

__all__ = ["TYPES", "Column", "Contract", "Limit", "Rule", "Scope", "ServiceLevel", "Severity", "Type"]


@dataclass(frozen=True, slots=True)
class Contract(Terms):
    """Terms read from a contract file."""

    @classmethod
    def load(cls, path: Path, table: str | None = None) -> "Contract":
        """Read a contract file; `table` (or FILE#TABLE) names one of several.

        Raises NotFound or BadInput naming file, line and key.
        """
        if "#" in path.name and not path.exists():
            name, _, table = path.name.rpartition("#")
            path = path.with_name(name)
            document = read_document(path)
            named = table_names(document)
            if table not in named:
                raise NotFound("no such table in the contract", where=str(path), got=table, wanted=", ".join(named),
                               next=did_you_mean(table, named))  # fmt: skip
            return cls.from_document(document, table)
        return cls.from_document(read_document(path), table)

    @classmethod
    def load_all(cls, path: Path) -> tuple["Contract", ...]:
        """Every table of a contract file; raises as `load` does."""
        document = read_document(path)
        return tuple(cls.from_document(document, name) for name in _names(document))

    @classmethod
    def parse(cls, text: str, source: str = "contract", table: str | None = None) -> "Contract":
        """Read a contract from text; `source` is what errors name."""
        return cls.from_document(parse_document(text.encode(), source), table)

    @classmethod
    def parse_all(cls, text: str, source: str = "contract") -> tuple["Contract", ...]:
        """Every table of a contract; raises as `parse` does."""
        document = parse_document(text.encode(), source)
        return tuple(cls.from_document(document, name) for name in _names(document))

    @classmethod
    def from_json(
        cls, document: Mapping[str, Any], source: str = "contract", table: str | None = None
    ) -> "Contract":
        """Read a contract from what `Terms.document` holds."""
        return cls.from_document(Document(source, dict(document), {}), table)

    @classmethod
    def from_document(cls, document: Document, table: str | None = None) -> "Contract":
        """Read a contract from YAML that is parsed already."""
        terms = parse_terms(document, table)
        return cls(**{field.name: getattr(terms, field.name) for field in fields(terms)})


def _names(document: Document) -> list[str | None]:
    return [*table_names(document)] or [None]  # none at all is told by `parse_terms`
