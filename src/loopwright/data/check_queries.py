"""The queries that a compiled contract is run by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loopwright.data.check_cells import first_rows, text
from loopwright.data.contract import Rule

EXAMPLES = 3
BITS = 62
"""So many rules share a mask: all bits of a BIGINT that every engine can add up without a sign."""


@dataclass(frozen=True, slots=True)
class Outlier:
    """What the bounds of an outlier rule come from: `first` and `second` are SQL of one number each.

    The quartiles, or the median and (naming {center}, which is that median) the median distance from it; then
    `fallback` is the mean distance, to take when the median one is 0.
    """

    index: int
    rule: Rule
    first: str
    second: str
    fallback: str | None


@dataclass(frozen=True, slots=True)
class Compiled:
    """`typed`: a SELECT over `_lw_raw`. By rule name: `conditions`, SQL that is true where a row breaks it (null: not);
    `measures`, SQL of the one number that the limit is about, of all other rules and of those whose condition needs
    one of `joins` beside `_lw_typed AS _lw_t`; `errors`, why a rule cannot be compiled. `unbroken`: rules that no row
    can break, by the types that the rows come in.
    """

    typed: str
    measures: Mapping[str, str]
    conditions: Mapping[str, str]
    joins: Mapping[str, str]
    outliers: tuple[Outlier, ...]
    errors: Mapping[str, str]
    unbroken: frozenset[str]

    @property
    def source(self) -> str:
        """What the pass reads."""
        return "_lw_typed AS _lw_t" + (" CROSS JOIN _lw_bounds" if self.outliers else "")

    def aggregate(self, broken: Sequence[str], measured: Sequence[str]) -> str:
        """The pass. `broken`: rules with a condition and no join; `measured`: rules with a measure.

        Gives a line for each set of rules that some rows break together: its masks (bit i of mask m: rule 62 m + i of
        `broken`), how many such rows there are, the numbers of the first ones, and then, the same on every line, the
        count of all rows and the measures. At least one line; when no row breaks a rule its masks are null.
        """
        _, masks, names = self._masks(broken)
        grouped = (
            f"SELECT {names}, count(*) AS _lw_n, {first_rows(EXAMPLES)} AS _lw_first"
            f" FROM (SELECT _row, {masks} FROM {self._broken(broken)}) AS _lw_m GROUP BY {names}"
        )
        numbers = "".join(f", {self.measures[name]} AS _lw_v{i}" for i, name in enumerate(measured))
        # Measures that are subqueries read for themselves; the others are one aggregate over the rows.
        return (
            f"SELECT _lw_g.*, _lw_s.* FROM (SELECT count(*) AS _lw_rows{numbers} FROM {self.source}) AS _lw_s"
            f" LEFT JOIN ({grouped}) AS _lw_g ON TRUE"
        )

    def bad_rows(self, names: Sequence[str]) -> str:
        """The row mask: `_row` and the masks `_lw_m0`, `_lw_m1`, … of each row that breaks one of the rules."""
        _, masks, _ = self._masks(names)
        return f"SELECT _row, {masks} FROM {self._broken(names)}"

    def reasons(self, names: Sequence[str]) -> str:
        """SQL of the list of rule names that the masks of `bad_rows` stand for."""
        named = ", ".join(
            f"CASE WHEN (_lw_m{i // BITS} & {1 << i % BITS}) <> 0 THEN {text(name)} END"
            for i, name in enumerate(names)
        )
        return f"list_filter([{named}], lambda _lw_x: _lw_x IS NOT NULL)"

    def first_rows(self, name: str) -> str:
        """The numbers of the first rows that break a rule."""
        return (
            f"SELECT _lw_t._row FROM {self.source} {self.joins.get(name, '')} WHERE {self.conditions[name]}"
            f" ORDER BY 1 LIMIT {EXAMPLES}"
        )

    def _broken(self, names: Sequence[str]) -> str:
        """A relation of the rows that break one of the rules: their numbers, and a flag for each rule."""
        flags, _, _ = self._masks(names)
        any_ = " OR ".join(f"_lw_f{i}" for i in range(len(names))) or "FALSE"
        used = "".join(f" {self.joins[name]}" for name in names if name in self.joins)
        return f"(SELECT * FROM (SELECT _lw_t._row{flags} FROM {self.source}{used}) AS _lw_f WHERE {any_}) AS _lw_b"

    def _masks(self, names: Sequence[str]) -> tuple[str, str, str]:
        """A flag for each rule, the masks made of them, and the masks' names."""
        flags = "".join(
            f", coalesce({self.conditions[name]}, FALSE) AS _lw_f{i}" for i, name in enumerate(names)
        )
        masks = [
            " + ".join(
                f"CASE WHEN _lw_f{i} THEN CAST({1 << i % BITS} AS BIGINT) ELSE 0 END"
                for i in range(start, min(start + BITS, len(names)))
            )
            for start in range(0, len(names), BITS)
        ] or ["CAST(0 AS BIGINT)"]
        made = ", ".join(f"{mask} AS _lw_m{i}" for i, mask in enumerate(masks))
        return flags, made, ", ".join(f"_lw_m{i}" for i in range(len(masks)))
