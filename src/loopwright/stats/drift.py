"""How far a profile has moved from its reference, and whether that is more than chance.

An alarm wants effect and significance both: a bias-corrected PSI over the limit and a p-value that survives
Benjamini-Hochberg over all columns. PSI alone cries wolf in small windows (with 20 bins and 200 rows it
exceeds 0.1 in 93 % of quiet ones), significance alone in large ones.

Rows are seldom independent: all flights of an hour share its weather, and a week has few kinds of weather.
Given the days of a window, the effective number of rows is estimated from how much the days differ.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loopwright.kernel.errors import BadInput
from loopwright.kernel.verdict import Verdict
from loopwright.stats.profile import Counts, Reference
from loopwright.stats.special import chi2_survival

Floats = NDArray[np.float64]

# Half a row in every slot: an empty slot then costs a finite, sample-size-aware amount instead of infinity.
_PSEUDO = 0.5
# Slots expected to hold fewer rows than this are pooled before the chi-squared approximation is used.
_EXPECTED = 5.0
_LEAST_BLOCKS = 4


class Level(StrEnum):
    """How much a column has moved; UNKNOWN when there were too few rows to say."""

    QUIET = "quiet"
    WARN = "warn"
    ALARM = "alarm"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """The drift of one column. `ks` is None for categories, which have no order.

    `design_effect`: how many rows count as one, because rows of a day are alike (1: all are independent).
    `verdict` is FAIL at the alarm level, INCONCLUSIVE with too few rows, otherwise PASS (a warning is no
    failure).
    """

    column: str
    rows: int
    psi: float
    corrected: float
    pvalue: float
    adjusted: float
    ks: float | None
    js: float
    null_share: float
    reference_null_share: float
    novel_share: float
    design_effect: float
    level: Level
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "level": str(self.level), "verdict": str(self.verdict)}


def psi(reference: ArrayLike, current: ArrayLike) -> float:
    """Population stability index Σ (p - q) ln(p / q) with half a row added to every slot that either side
    uses.

    Symmetric; 0 for equal shares and when one side is empty.
    """
    p, q, *_ = _shares(reference, current)
    return float(np.sum((p - q) * np.log(p / q)))


def psi_corrected(reference: ArrayLike, current: ArrayLike, *, design_effect: float = 1.0) -> float:
    """PSI less what chance alone gives, (B - 1)(1/n + 1/m) over the B slots in use; never below 0.

    The expectation of PSI between two samples of one distribution (Yurdakul & Naranjo 2020, "Statistical
    properties of the population stability index"). With a `design_effect`, both are of the effective rows.
    """
    ref, cur = (side / design_effect for side in _pair(reference, current))
    _, _, n, m, slots = _shares(ref, cur)
    if not n or not m:
        return 0.0
    return max(0.0, psi(ref, cur) - (slots - 1) * (1 / n + 1 / m))


def psi_pvalue(reference: ArrayLike, current: ArrayLike, *, design_effect: float = 1.0) -> float:
    """P(a PSI this large | one distribution): PSI / (1/n + 1/m) ~ chi-squared(B - 1), same source.

    Slots that chance would give fewer than five rows are pooled first, where the approximation would be too
    eager. 1 when either side is empty or a single slot is left.
    """
    ref, cur = (side / design_effect for side in _pair(reference, current))
    n, m = float(ref.sum()), float(cur.sum())
    if not n or not m:
        return 1.0
    expected = (ref + cur) * min(n, m) / (n + m)
    rare = expected < _EXPECTED
    if rare.any():
        ref = np.append(ref[~rare], ref[rare].sum())
        cur = np.append(cur[~rare], cur[rare].sum())
    slots = int(((ref + cur) > 0).sum())
    if slots < 2:
        return 1.0
    return chi2_survival(psi(ref, cur) / (1 / n + 1 / m), slots - 1)


def design_effect(blocks: ArrayLike) -> float:
    """How many rows count as one, from counts (blocks, slots) of blocks that are independent of each other.

    The mean over slots of a share's variance as seen between blocks, over its variance if rows were
    independent (Rao & Scott 1981, first-order correction); at least 1. With fewer than four blocks it cannot
    be told: 1.
    """
    counts = np.asarray(blocks, dtype=np.float64)
    counts = counts[counts.sum(axis=1) > 0]
    if len(counts) < _LEAST_BLOCKS:
        return 1.0
    counts = counts[:, counts.sum(axis=0) > 0]
    slots, n = counts.shape[1], counts.sum()
    if slots < 2:
        return 1.0
    shares = counts.sum(axis=0) / n
    spread = ((counts - counts.sum(axis=1, keepdims=True) * shares) ** 2).sum(axis=0)
    few = len(counts) / (len(counts) - 1)
    return max(1.0, float(few * (spread / (n * shares)).sum() / (slots - 1)))


def ks_from_bins(reference: ArrayLike, current: ArrayLike) -> float:
    """The largest distance between two distribution functions, seen at the bins' edges (counts in order, no
    nulls).

    A lower bound of the Kolmogorov-Smirnov distance of the raw values. 0 when either side is empty.
    """
    ref, cur = _pair(reference, current)
    if not ref.sum() or not cur.sum():
        return 0.0
    return float(np.abs(np.cumsum(ref) / ref.sum() - np.cumsum(cur) / cur.sum()).max())


def js_divergence(reference: ArrayLike, current: ArrayLike) -> float:
    """Jensen-Shannon divergence in bits: 0 for equal shares, 1 for no overlap. 0 when either side is
    empty.
    """
    ref, cur = _pair(reference, current)
    if not ref.sum() or not cur.sum():
        return 0.0
    p, q = ref / ref.sum(), cur / cur.sum()
    middle = (p + q) / 2
    return float((_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2)


def benjamini_hochberg(pvalues: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: those <= q are discoveries at false discovery rate q.

    Benjamini & Hochberg 1995, valid for independent or positively dependent tests.
    """
    p = np.asarray(pvalues, dtype=np.float64)
    if not len(p):
        return []
    order = np.argsort(p)
    ranked = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1.0)
    return [float(value) for value in adjusted]


def judge_drift(
    reference: Reference,
    current: Counts,
    *,
    warn: float = 0.1,
    alarm: float = 0.25,
    min_rows: int = 1000,
    q: float = 0.05,
    days: Sequence[Counts] = (),
) -> dict[str, ColumnDrift]:
    """Judge every column of the reference against `current`, counted on the same bins.

    WARN or ALARM when the bias-corrected PSI exceeds its limit and the adjusted p-value is at most `q`;
    UNKNOWN with fewer than `min_rows` rows. `days` are the same rows by day, from which it is estimated how
    alike the rows of a day are; the reference is taken to be clustered as much. Raises BadInput when
    `current` was counted on other bins.
    """
    if not 0 < warn <= alarm:
        raise BadInput(
            "drift limits are out of order",
            where="drift",
            got=f"warn {warn}, alarm {alarm}",
            wanted="0 < warn <= alarm",
        )
    pairs = {
        name: (reference.counts.columns[name], _of(current, name, reference)) for name in reference.columns
    }
    judged = [name for name, (_, cur) in pairs.items() if cur.sum() >= max(min_rows, 1)]
    effects = {name: _effect(days, name, cur) for name, (_, cur) in pairs.items()}
    pvalues = {name: psi_pvalue(*pairs[name], design_effect=effects[name]) for name in judged}
    adjusted = dict(zip(judged, benjamini_hochberg(list(pvalues.values())), strict=True))

    drifts: dict[str, ColumnDrift] = {}
    for name, (ref, cur) in pairs.items():
        bins = reference.bins[name]
        corrected = psi_corrected(ref, cur, design_effect=effects[name])
        level = Level.UNKNOWN
        if name in adjusted:
            real = adjusted[name] <= q
            level = (
                Level.ALARM
                if real and corrected > alarm
                else Level.WARN
                if real and corrected > warn
                else Level.QUIET
            )
        drifts[name] = ColumnDrift(
            column=name,
            rows=int(cur.sum()),
            psi=psi(ref, cur),
            corrected=corrected,
            pvalue=pvalues.get(name, 1.0),
            adjusted=adjusted.get(name, 1.0),
            ks=ks_from_bins(ref[1:], cur[1:]) if bins.ordered else None,
            js=js_divergence(ref, cur),
            null_share=_share(cur, 0),
            reference_null_share=_share(ref, 0),
            novel_share=0.0 if bins.ordered else _share(cur, -1),
            design_effect=effects[name],
            level=level,
            verdict=_VERDICTS[level],
        )
    return drifts


_VERDICTS = {
    Level.QUIET: Verdict.PASS,
    Level.WARN: Verdict.PASS,
    Level.ALARM: Verdict.FAIL,
    Level.UNKNOWN: Verdict.INCONCLUSIVE,
}


def _of(current: Counts, name: str, reference: Reference) -> NDArray[np.int64]:
    slots = reference.bins[name].slots
    if not current.columns:
        return np.zeros(slots, dtype=np.int64)
    counts = current.columns.get(name)
    if counts is None or len(counts) != slots:
        raise BadInput(
            f"column {name} was not counted on this reference's bins",
            where="drift",
            got="nothing" if counts is None else f"{len(counts)} slots",
            wanted=f"{slots} slots",
            next="Count the rows with the reference of the same bundle.",
        )
    return counts


def _effect(days: Sequence[Counts], name: str, current: NDArray[np.int64]) -> float:
    blocks = [day.columns[name] for day in days if name in day.columns]
    fit = [block for block in blocks if len(block) == len(current)]
    return design_effect(np.array(fit)) if fit else 1.0


def _pair(reference: ArrayLike, current: ArrayLike) -> tuple[Floats, Floats]:
    ref, cur = np.asarray(reference, dtype=np.float64), np.asarray(current, dtype=np.float64)
    if ref.shape != cur.shape or ref.ndim != 1:
        raise BadInput(
            "counts of different bins cannot be compared", where="drift", got=(ref.shape, cur.shape)
        )
    return ref, cur


def _shares(reference: ArrayLike, current: ArrayLike) -> tuple[Floats, Floats, float, float, int]:
    ref, cur = _pair(reference, current)
    used = (ref + cur) > 0
    slots = int(used.sum())
    n, m = float(ref.sum()), float(cur.sum())
    if not n or not m:
        return np.ones(1), np.ones(1), n, m, slots
    p = (ref[used] + _PSEUDO) / (n + _PSEUDO * slots)
    q = (cur[used] + _PSEUDO) / (m + _PSEUDO * slots)
    return p, q, n, m, slots


def _relative_entropy(p: Floats, q: Floats) -> float:
    some = p > 0
    return float(np.sum(p[some] * np.log2(p[some] / q[some])))


def _share(counts: NDArray[np.int64], slot: int) -> float:
    total = int(counts.sum())
    return float(counts[slot] / total) if total else 0.0
