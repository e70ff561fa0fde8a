"""Which arm answers a unit: a pure function of salt, unit and weights, the same in every worker."""

import hashlib
from collections.abc import Sequence

from loopwright.bundle.routes import Arm

_SCALE = 1.0 / 2**64


def position(salt: str, unit: str) -> float:
    """Return the unit's fixed place in [0, 1), uniform over units and independent between salts."""
    digest = hashlib.sha256(f"{salt}\0{unit}".encode("utf-8", "surrogatepass")).digest()
    # Rounding to a float may reach 1.0 for the very last places.
    return min(int.from_bytes(digest[:8]) * _SCALE, 1.0 - 2**-53)


def pick(place: float, arms: Sequence[Arm]) -> Arm:
    """Return the arm at `place`: arms other than stable take [0, w) in table order, stable takes the rest.

    Monotone: while a canary's weight grows, every unit that was in it stays in it. Shadows never answer.
    """
    edge = 0.0
    stable = None
    for arm in arms:
        if arm.name == "stable":
            stable = arm
        elif arm.name != "shadow":
            edge += arm.weight
            if place < edge:
                return arm
    if stable is None:
        raise LookupError("a route without a stable arm")
    return stable


def is_shadowed(salt: str, unit: str, weight: float) -> bool:
    """True when the unit's requests are copied to a shadow of this weight; independent of the canary's split."""
    return weight >= 1.0 or (weight > 0.0 and position(f"{salt}/shadow", unit) < weight)
