"""Where everything comes from and what became of it, as a graph; drawn, written as a page, told to OpenLineage."""

from loopwright.registry.lineage.query import impact, lineage

__all__ = ["impact", "lineage"]
