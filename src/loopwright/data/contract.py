"""Data contracts in the Open Data Contract Standard 3.1: which columns a table has and which rules its rows keep.

A subset is understood: columns with `logicalType`, `required`, `unique`, `primaryKey`, `logicalTypeOptions` (ranges,
lengths, `pattern`, `format`, `defaultTimezone`), `relationships`, and `quality` of type `library`, `sql`, `text`
and `custom` (engine `loopwright`, whose `implementation` is a SQL condition every row must meet). Keys of the
standard that say nothing about checking are allowed and kept; a key the standard does not know is an error.

Ours, in `customProperties`: `severity` (`warn`: counted, the row stays usable; `quarantine`: the row is set aside
with its reasons; `block`: the batch is refused); on the table also `load` (`append` or `full`: each source is the
whole table), `nullValues` (texts that mean null), `maxBadShare` (share of bad rows above which a batch is refused).
"""

from dataclasses import dataclass, fields
from pathlib import Path

from loopwright.data.document import Document, parse_document, read_document
from loopwright.data.odcs import parse_terms
from loopwright.data.terms import TYPES, Column, Limit, Rule, Scope, ServiceLevel, Severity, Terms, Type

__all__ = ["TYPES", "Column", "Contract", "Limit", "Rule", "Scope", "ServiceLevel", "Severity", "Type"]


@dataclass(frozen=True, slots=True)
class Contract(Terms):
    """Terms read from a contract file."""

    @classmethod
    def load(cls, path: Path) -> "Contract":
        """Read a contract file; raises NotFound or BadInput naming file, line and key."""
        return cls._of(read_document(path))

    @classmethod
    def parse(cls, text: str, source: str = "contract") -> "Contract":
        """Read a contract from text; `source` is what errors name."""
        return cls._of(parse_document(text.encode(), source))

    @classmethod
    def _of(cls, document: Document) -> "Contract":
        terms = parse_terms(document)
        return cls(**{field.name: getattr(terms, field.name) for field in fields(terms)})
