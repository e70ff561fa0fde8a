"""Mergeable profiles: counts per column on bins that were frozen when the reference was built.

Two profiles over the same `Reference` add up like numbers, so a month is the sum of its hours and no raw row
has to be read again. A numeric column has about twenty bins at the reference's quantiles with open ends; a
value that holds a bin's worth of rows alone (a rain gauge at 0) gets a bin of its own. A categorical column
has its most frequent values, OTHER (known, but rare) and NOVEL (never seen in the reference). Both have a
slot for nulls.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopwright.kernel.errors import BadInput

Ints = NDArray[np.int64]
Column = NDArray[Any]

PREDICTION = "@prediction"
"""The name under which a model's first output is profiled beside its inputs."""

FORMAT = 1
KNOWN_LIMIT = 20_000
"""Distinct values remembered to tell OTHER from NOVEL; a column with more never reports NOVEL."""


@dataclass(frozen=True)
class NumericBins:
    """Bins (-inf, e0], (e0, e1], … (ek, inf). Slot 0 of the counts is null, slot i + 1 is bin i."""

    edges: NDArray[np.float64]

    ordered = True

    @property
    def slots(self) -> int:
        return len(self.edges) + 2

    @property
    def names(self) -> list[str]:
        if not len(self.edges):
            return ["null", "any"]
        ends = [f"{edge:.6g}" for edge in self.edges]
        inner = [f"({low}, {high}]" for low, high in pairwise(ends)]
        return ["null", f"<= {ends[0]}", *inner, f"> {ends[-1]}"]

    def count(self, name: str, values: Column) -> Ints:
        numbers = _as_floats(name, values)
        null = np.isnan(numbers)
        known = numbers[~null]
        counts = np.zeros(self.slots, dtype=np.int64)
        counts[0] = len(numbers) - len(known)
        counts[1:] = np.bincount(np.searchsorted(self.edges, known, side="left"), minlength=self.slots - 1)
        return counts

    def to_json(self) -> dict[str, Any]:
        return {"kind": "numeric", "edges": self.edges.tolist()}


@dataclass(frozen=True)
class CategoryBins:
    """Slots: null, the `top` values in order of frequency, OTHER, NOVEL.

    `rest` are the known values counted as OTHER. When there were more than `KNOWN_LIMIT` of them, `closed` is
    false and an unknown value counts as OTHER: it cannot be told from one that was dropped.
    """

    top: tuple[str, ...]
    rest: frozenset[str]
    closed: bool = True

    ordered = False

    @property
    def slots(self) -> int:
        return len(self.top) + 3

    @property
    def names(self) -> list[str]:
        return ["null", *self.top, "OTHER", "NOVEL"]

    def count(self, name: str, values: Column) -> Ints:
        counts = np.zeros(self.slots, dtype=np.int64)
        slot = {value: index + 1 for index, value in enumerate(self.top)}
        other, novel = self.slots - 2, self.slots - 1
        for value, times in Counter(values.tolist()).items():
            if value is None or value != value:
                counts[0] += times
                continue
            text = str(value)
            place = slot.get(text)
            if place is None:
                place = other if text in self.rest or not self.closed else novel
            counts[place] += times
        return counts

    def to_json(self) -> dict[str, Any]:
        return {"kind": "category", "top": list(self.top), "rest": sorted(self.rest), "closed": self.closed}


Bins = NumericBins | CategoryBins


@dataclass(frozen=True)
class Counts:
    """How many rows fell in each slot of each column. `a + b` is the profile of both sets of rows."""

    rows: int
    columns: Mapping[str, Ints]

    def __add__(self, other: "Counts") -> "Counts":
        """Merge; commutative and associative, with an empty profile as its zero.

        A column that only one of them has (the other's was not to be looked at) keeps its counts, which then are of
        fewer rows. Raises BadInput when the two were counted on different bins: their sum would mean nothing.
        """
        differing = [name for name, c in self.columns.items() if len(other.columns.get(name, c)) != len(c)]
        if differing:
            raise BadInput(
                "two profiles were counted on different bins",
                where="profile merge",
                got=", ".join(sorted(differing)),
                wanted="profiles of one reference",
                next="Count both with the reference of the same bundle.",
            )
        merged = {**other.columns, **self.columns}
        merged |= {name: self.columns[name] + c for name, c in other.columns.items() if name in self.columns}
        return Counts(self.rows + other.rows, merged)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Counts)
            and self.rows == other.rows
            and self.columns.keys() == other.columns.keys()
            and all(np.array_equal(c, other.columns[name]) for name, c in self.columns.items())
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "columns": {name: counts.tolist() for name, counts in self.columns.items()},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Counts":
        """Raises BadInput for a document that `to_json` did not write."""
        try:
            columns = {str(name): np.asarray(c, dtype=np.int64) for name, c in document["columns"].items()}
            rows = int(document["rows"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as wrong:
            raise BadInput(
                f"not a profile's counts: {wrong!r}", where="profile", wanted="what Counts.to_json writes"
            ) from wrong
        if not 0 <= rows < 2**53 or any(
            counts.ndim != 1 or (counts < 0).any() for counts in columns.values()
        ):
            raise BadInput(
                "counts cannot be negative or nested", where="profile", wanted="lists of counts >= 0"
            )
        return cls(rows, columns)


EMPTY = Counts(0, {})


@dataclass(frozen=True)
class Reference:
    """The bins of every column and how the reference rows (training, usually) fell in them."""

    bins: Mapping[str, Bins]
    counts: Counts

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.bins)

    @property
    def rows(self) -> int:
        return self.counts.rows

    def count(self, columns: Mapping[str, Column]) -> Counts:
        """Count rows on these bins. Every column of the reference must be there, others are ignored.

        Arrays are one-dimensional and equally long; None and NaN are nulls. Raises BadInput otherwise.
        """
        missing = [name for name in self.bins if name not in columns]
        if missing:
            raise BadInput(
                f"column {missing[0]} of the reference profile is missing",
                where="profile",
                got=", ".join(sorted(columns)),
                wanted=", ".join(self.bins),
            )
        rows = _rows({name: columns[name] for name in self.bins})
        return Counts(
            rows, {name: bins.count(name, np.asarray(columns[name])) for name, bins in self.bins.items()}
        )

    def without(self, names: Collection[str]) -> "Reference":
        """This reference less the columns named."""
        bins = {name: bins for name, bins in self.bins.items() if name not in names}
        counts = {name: counts for name, counts in self.counts.columns.items() if name not in names}
        return Reference(bins, Counts(self.rows, counts))

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "rows": self.counts.rows,
            "columns": {
                name: {**bins.to_json(), "counts": self.counts.columns[name].tolist()}
                for name, bins in self.bins.items()
            },
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Reference":
        """Raises BadInput for a document that `to_json` did not write."""
        if document.get("format") != FORMAT:
            raise BadInput(
                "unknown format of a reference profile",
                where="profile",
                got=document.get("format"),
                wanted=str(FORMAT),
            )
        bins: dict[str, Bins] = {}
        counts: dict[str, Ints] = {}
        try:
            for name, column in document["columns"].items():
                if column["kind"] == "numeric":
                    bins[name] = NumericBins(np.asarray(column["edges"], dtype=np.float64))
                else:
                    bins[name] = CategoryBins(
                        tuple(column["top"]), frozenset(column["rest"]), bool(column["closed"])
                    )
                counts[name] = np.asarray(column["counts"], dtype=np.int64)
                if counts[name].shape != (bins[name].slots,):
                    raise ValueError(f"{name}: {len(counts[name])} counts for {bins[name].slots} slots")
            rows = int(document["rows"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as wrong:
            raise BadInput(f"not a reference profile: {wrong!r}", where="profile") from wrong
        return cls(bins, Counts(rows, counts))


def build_reference(columns: Mapping[str, Column], *, bins: int = 20, top: int = 30) -> Reference:
    """Freeze bins on these columns and count them.

    Numbers, booleans and datetimes get quantile bins; strings get categories. An object array is numeric when
    all its known values are numbers. Raises BadInput for no columns, unequal lengths or arrays that are not
    flat.
    """
    if not columns:
        raise BadInput("a reference profile needs at least one column", where="profile")
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    rows = _rows(arrays)
    frozen: dict[str, Bins] = {
        name: _numeric_bins(_as_floats(name, values), bins)
        if _is_numeric(values)
        else _category_bins(values, top)
        for name, values in arrays.items()
    }
    return Reference(frozen, Counts(rows, {name: b.count(name, arrays[name]) for name, b in frozen.items()}))


def _numeric_bins(numbers: NDArray[np.float64], bins: int) -> NumericBins:
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        return NumericBins(np.empty(0))
    quantiles = np.quantile(finite, np.arange(1, bins) / bins, method="inverted_cdf")
    values, times = np.unique(quantiles, return_counts=True)
    # A value that is two quantiles at once holds at least a bin's worth of rows: without an edge just below
    # it, a shift from that value to anything smaller would stay in the same bin.
    atoms = values[times > 1]
    if len(np.unique(finite[:: max(1, len(finite) // 50_000)])) <= bins:
        atoms = np.unique(finite)
        values = atoms
    return NumericBins(
        np.unique(np.concatenate([values, np.nextafter(atoms, -np.inf)])) if len(atoms) else values
    )


def _category_bins(values: Column, top: int) -> CategoryBins:
    times = Counter(str(value) for value in values.tolist() if value is not None and value == value)
    ranked = sorted(times, key=lambda value: (-times[value], value))
    rest = ranked[top:]
    return CategoryBins(tuple(ranked[:top]), frozenset(rest[:KNOWN_LIMIT]), closed=len(rest) <= KNOWN_LIMIT)


def _is_numeric(values: Column) -> bool:
    if values.dtype.kind != "O":
        return values.dtype.kind in "biufM"
    known = [value for value in values.tolist() if value is not None and value == value]
    return bool(known) and all(isinstance(value, (int, float, np.number)) for value in known)


def _as_floats(name: str, values: Column) -> NDArray[np.float64]:
    """Datetimes become microseconds since 1970."""
    try:
        if values.dtype.kind == "M":
            numbers = values.astype("datetime64[us]").astype(np.float64)
            numbers[np.isnat(values)] = np.nan
            return numbers
        return values.astype(np.float64)
    except (TypeError, ValueError) as wrong:
        raise BadInput(
            f"column {name} was numeric in the reference",
            where="profile",
            got=str(wrong),
            wanted="numbers or nulls",
        ) from wrong


def _rows(arrays: Mapping[str, Column]) -> int:
    shapes = {name: np.shape(values) for name, values in arrays.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise BadInput("columns of a profile must be flat and equally long", where="profile", got=shapes)
    return next(iter(shapes.values()))[0] if shapes else 0
