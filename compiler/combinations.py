"""Tables of several numbers that depend on one linear combination of them only: x + y, x - y, x < y, x and y, ..."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from .core import Value

MAX_ARGUMENTS = 3
MAX_SCALED = 1 << 40


@dataclass(frozen=True, eq=False)
class Combination:
    """The table's value index is `function[k]` where sum of weight times argument is `points[k]` (ascending)."""

    weights: tuple[int, ...]
    points: npt.NDArray[np.float64]
    function: npt.NDArray[np.int64]

    @property
    def thresholds(self) -> int:
        """How often the value changes along the points."""
        return int(np.count_nonzero(np.diff(self.function)))


def combination(table: npt.NDArray[np.int32], values: list[tuple[Value, ...]]) -> Combination | None:
    """The combination with signs +1 and -1 that determines the table with the fewest thresholds, or None.

    `table` has one axis per argument, -1 where the tuple cannot occur; the arguments' possible values must be numbers.
    """
    if table.ndim > MAX_ARGUMENTS:
        return None
    if any(v is None or isinstance(v, str) for listed in values for v in listed):
        return None
    numbers = [[Fraction(v) for v in listed if v is not None and not isinstance(v, str)] for listed in values]
    common = math.lcm(*(f.denominator for listed in numbers for f in listed))
    if max((abs(f) for listed in numbers for f in listed), default=Fraction(0)) * common > MAX_SCALED:
        return None
    used = np.argwhere(table >= 0)
    columns = [np.array([int(f * common) for f in listed], dtype=np.int64) for listed in numbers]
    targets = table[tuple(used.T)].astype(np.int64)
    best: Combination | None = None
    for signs in itertools.product((1, -1), repeat=table.ndim - 1):
        weights = (1, *signs)
        total = sum(w * column[used[:, axis]] for axis, (w, column) in enumerate(zip(weights, columns, strict=True)))
        points, place = np.unique(total, return_inverse=True)
        place = place.reshape(-1)
        low = np.full(len(points), np.iinfo(np.int64).max)
        high = np.full(len(points), -1)
        np.minimum.at(low, place, targets)
        np.maximum.at(high, place, targets)
        if (low == high).all():
            exact = np.array([float(Fraction(int(p), common)) for p in points])
            found = Combination(weights, exact, high)
            if best is None or found.thresholds < best.thresholds:
                best = found
    return best
