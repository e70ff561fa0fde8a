"""Anytime-valid verdicts on a canary: looking after every request does not raise the rate of false alarms.

Everything rests on Ville's inequality: an e-process (a product of likelihood ratios whose expectation under
the null hypothesis is at most 1 at any stopping time) exceeds 1/alpha with probability at most alpha, ever.

One arm against a fixed rate b: a mixture over alternatives of Bernoulli likelihood ratios `(p/b)^k
((1-p)/(1-b))^(n-k)`, one-sided in p, hence valid for the whole null hypothesis on the other side of b
(Robbins 1970; Ramdas, Grünwald, Vovk & Shafer 2023, "Game-theoretic statistics and safe anytime-valid
inference").

Two arms: the baseline's rate is not known either. For each candidate rate q, the canary's e-process against q
+ margin is multiplied with an e-process against "the baseline's rate is q" (a Beta(1/2, 1/2) mixture, nine
tenths held in cash so that the true q costs little); both live on different requests, so their product is an
e-process, and the smallest of these products over q is one for the composite hypothesis.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loopwright.kernel.errors import BadInput
from loopwright.kernel.verdict import Verdict

Floats = NDArray[np.float64]

# Alternatives as multiples of the bound, and the wager on each. The multiple 1 is cash: it keeps an e-value
# from falling towards 0, so that candidate rates far from the baseline's need not be searched. Chosen so that
# 1 % against 0.5 % + 0.1 pp is told after ~3,000 requests and 10 % after ~20:
# tests/unit/stats/test_sequential.py.
_WORSE = np.array([1.0, 1.65, 2.5, 4.0, 8.0, 16.0, 50.0])
_WORSE_WEIGHTS = np.array([0.05, 0.3, 0.15, 0.15, 0.13, 0.12, 0.1])
# A canary without a single error is the common case, one that equals its baseline the next.
_BETTER = np.array([1.0, 0.0, 0.3, 0.6, 0.83])
_BETTER_WEIGHTS = np.array([0.04, 0.43, 0.03, 0.08, 0.42])
_BASELINE_STAKE = 0.1
_REACH = (
    12.0  # standard errors of the baseline's rate that are searched; beyond, its e-value alone exceeds e^60
)
_GRID = 161
_MOST = 700.0  # exp of more overflows a float


@dataclass(frozen=True, slots=True)
class SequentialResult:
    """`e_fail` is evidence that the limit is broken, `e_pass` that it is kept; each counts from 1/alpha
    up.
    """

    verdict: Verdict
    e_fail: float
    e_pass: float
    detail: str


def error_rate_judgement(
    baseline_n: int,
    baseline_errors: int,
    canary_n: int,
    canary_errors: int,
    *,
    margin: float = 0.001,
    alpha: float = 0.05,
) -> SequentialResult:
    """Whether the canary's error rate exceeds the baseline's by more than `margin` (0.001 = 0.1 percentage
    points).

    FAIL is wrong with probability at most alpha over any number of looks when the canary keeps the margin,
    PASS likewise when it does not. No requests on either arm is INCONCLUSIVE. Raises BadInput for impossible
    counts.
    """
    _check("baseline", baseline_n, baseline_errors)
    _check("canary", canary_n, canary_errors)
    _check_alpha(alpha)
    if not 0 < margin < 1:
        raise BadInput("a margin is a share between 0 and 1", where="error rate judgement", got=margin)
    if not baseline_n or not canary_n:
        idle = "the baseline" if not baseline_n else "the canary"
        return SequentialResult(Verdict.INCONCLUSIVE, 1.0, 1.0, f"{idle} has answered nothing yet")

    def log_e(multiples: Floats, weights: Floats) -> float:
        def at(q: Floats) -> Floats:
            canary = _log_e(canary_n, canary_errors, q + margin, multiples, weights)
            return canary + _log_baseline(baseline_n, baseline_errors, q)

        return _smallest(at, baseline_n, baseline_errors)

    log_fail, log_pass = log_e(_WORSE, _WORSE_WEIGHTS), log_e(_BETTER, _BETTER_WEIGHTS)
    what = (
        f"canary {canary_errors}/{canary_n} ({canary_errors / canary_n:.3%}) against "
        f"baseline {baseline_errors}/{baseline_n} ({baseline_errors / baseline_n:.3%}) + {margin * 100:g} pp"
    )
    return _result(log_fail, log_pass, alpha, what)


def exceedance_judgement(n: int, above: int, *, rate: float = 0.01, alpha: float = 0.05) -> SequentialResult:
    """Whether events happen more often than `rate`, from `above` of `n`; for latency: P(latency > limit) > 1
    %.

    The same promises as `error_rate_judgement`, against a fixed rate. At the defaults no fewer than 299
    requests can PASS. Raises BadInput for impossible counts.
    """
    _check("requests", n, above)
    _check_alpha(alpha)
    if not 0 < rate < 1:
        raise BadInput("a rate is a share between 0 and 1", where="exceedance judgement", got=rate)
    if not n:
        return SequentialResult(Verdict.INCONCLUSIVE, 1.0, 1.0, "nothing has been measured yet")
    bound = np.array([rate])
    log_fail = float(_log_e(n, above, bound, _WORSE, _WORSE_WEIGHTS)[0])
    log_pass = float(_log_e(n, above, bound, _BETTER, _BETTER_WEIGHTS)[0])
    return _result(
        log_fail,
        log_pass,
        alpha,
        f"{above}/{n} ({above / n:.2%}) above the limit, at most {rate:.2%} allowed",
    )


def _result(log_fail: float, log_pass: float, alpha: float, what: str) -> SequentialResult:
    enough = math.log(1 / alpha)
    e_fail, e_pass = math.exp(min(log_fail, _MOST)), math.exp(min(log_pass, _MOST))
    if log_fail >= enough:
        return SequentialResult(Verdict.FAIL, e_fail, e_pass, f"{what}: worse (e = {e_fail:.3g})")
    if log_pass >= enough:
        return SequentialResult(Verdict.PASS, e_fail, e_pass, f"{what}: within it (e = {e_pass:.3g})")
    return SequentialResult(
        Verdict.INCONCLUSIVE,
        e_fail,
        e_pass,
        f"{what}: not decided (e against {e_fail:.3g}, for {e_pass:.3g}, wanted {1 / alpha:g})",
    )


def _log_e(n: int, k: int, bound: Floats, multiples: Floats, weights: Floats) -> Floats:
    """Log e-value of k events in n against each bound (shape (m,)), alternatives at multiples of it.

    An alternative that would exceed 1 is held at halfway between the bound and 1.
    """
    b = np.minimum(bound, 1 - 1e-9)[:, None]
    p = b * multiples
    p = np.where(p >= 1, (1 + b) / 2, p)
    with np.errstate(divide="ignore", invalid="ignore"):
        events = np.where(k == 0, 0.0, k * np.log(p / b)) if k else np.zeros_like(p)
        rest = (n - k) * (np.log1p(-p) - np.log1p(-b)) if n > k else np.zeros_like(p)
    return _log_sum(events + rest + np.log(weights))


def _log_baseline(n: int, k: int, q: Floats) -> Floats:
    """Log e-value of the baseline's k events in n against each candidate rate q; +inf where q is
    impossible.
    """
    mixture = math.lgamma(k + 0.5) + math.lgamma(n - k + 0.5) - math.lgamma(n + 1) - math.log(math.pi)
    with np.errstate(divide="ignore", invalid="ignore"):
        null = (k * np.log(q) if k else 0.0) + ((n - k) * np.log1p(-q) if n > k else 0.0)
    ratio = mixture - null + np.zeros_like(q)
    cash = math.log(1 - _BASELINE_STAKE)
    return np.logaddexp(cash, math.log(_BASELINE_STAKE) + ratio)


def _smallest(log_e: Callable[[Floats], Floats], n: int, k: int) -> float:
    """The minimum over candidate baseline rates: a grid even in standard errors around k/n, then a finer
    one.
    """
    centre, reach = math.asin(math.sqrt(k / n)), _REACH / (2 * math.sqrt(n))
    for _ in range(2):
        angles = np.clip(centre + reach * np.linspace(-1, 1, _GRID), 0, math.pi / 2)
        values = log_e(np.sin(angles) ** 2)
        best = int(values.argmin())
        centre, reach = float(angles[best]), 3 * reach / _GRID
    return float(values[best])


def _log_sum(terms: Floats) -> Floats:
    most = terms.max(axis=-1, keepdims=True)
    safe = np.where(np.isfinite(most), most, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray((safe + np.log(np.exp(terms - safe).sum(axis=-1, keepdims=True)))[..., 0])


def _check(name: str, n: int, k: int) -> None:
    if n < 0 or not 0 <= k <= n:
        raise BadInput(
            f"impossible counts of {name}", where="judgement", got=f"{k} of {n}", wanted="0 <= events <= n"
        )


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise BadInput("alpha is a share between 0 and 1", where="judgement", got=alpha)
