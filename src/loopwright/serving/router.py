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
    """Return the arm at `place`: arms other than stable take their shares from the two ends of [0, 1) in turn, in table
    order, and stable takes what they leave.

    Monotone: while an arm's weight grows, every unit that was in it stays in it, and with two arms beside stable none
    moves between them either. Shadows never answer.
    """
    low, high = 0.0, 1.0
    from_below = True
    stable = None
    for arm in arms:
        if arm.name == "stable":
            stable = arm
        elif arm.name != "shadow":
            if from_below:
                low += arm.weight
                if place < low:
                    return arm
            else:
                high -= arm.weight
                if place >= high:
                    return arm
            from_below = not from_below
    if stable is None:
        raise LookupError("a route without a stable arm")
    return stable


def assign(salt: str, unit: str, arms: Sequence[Arm]) -> Arm:
    """Return the arm that answers `unit`; whoever asks, in whatever protocol, learns the same."""
    return arms[0] if len(arms) == 1 else pick(position(salt, unit), arms)


def is_shadowed(salt: str, unit: str, weight: float) -> bool:
    """True when the unit's requests are copied to a shadow of this weight; independent of the canary's split."""
    return weight >= 1.0 or (weight > 0.0 and position(f"{salt}/shadow", unit) < weight)
