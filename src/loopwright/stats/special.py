"""The chi-squared survival function, so that serving and monitoring need no scipy."""

import math

_STEPS = 10_000
_ENOUGH = 1e-15


def chi2_survival(x: float, df: float) -> float:
    """P(X > x) for X ~ chi-squared with `df` degrees of freedom; 1 for x <= 0.

    The regularised upper incomplete gamma function Q(df/2, x/2) by its series below a + 1 and Lentz's
    continued fraction above (Press et al., Numerical Recipes, 6.2).
    """
    if math.isnan(x) or df <= 0:
        return math.nan
    a, z = df / 2, x / 2
    if z <= 0:
        return 1.0
    if math.isinf(z):
        return 0.0
    scale = math.exp(-z + a * math.log(z) - math.lgamma(a))
    return max(0.0, 1.0 - scale * _series(a, z)) if z < a + 1 else min(1.0, scale * _fraction(a, z))


def _series(a: float, z: float) -> float:
    term = total = 1 / a
    for step in range(1, _STEPS):
        term *= z / (a + step)
        total += term
        if term < total * _ENOUGH:
            break
    return total


def _fraction(a: float, z: float) -> float:
    tiny = 1e-300
    b = z + 1 - a
    c, d = 1 / tiny, 1 / b
    total = d
    for step in range(1, _STEPS):
        factor = -step * (step - a)
        b += 2
        d = factor * d + b
        d = 1 / (d if abs(d) > tiny else tiny)
        c = b + factor / c
        c = c if abs(c) > tiny else tiny
        change = d * c
        total *= change
        if abs(change - 1) < _ENOUGH:
            break
    return total
