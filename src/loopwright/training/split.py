"""What a project's `train` function is given."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Split:
    """`x`: float32 (rows, features), NaN where unknown; `y`: float64 (rows,); `names`: one per feature, in
    order.

    `y` is 0/1 for binary, the class index for multiclass, the value for regression.
    """

    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]
    names: tuple[str, ...]

    @property
    def rows(self) -> int:
        return len(self.y)
