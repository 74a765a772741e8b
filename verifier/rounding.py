"""Outward-rounded float64 arithmetic on arrays of midpoints and radii.

An `Enclosure` (mid, rad) stands for all real arrays x with |x - mid| <= rad. Valid for any summation order, with or
without fused multiply-add, in round-to-nearest. u = 2^-53; gamma_k = k u / (1 - k u) (Higham, Accuracy and Stability,
ch. 3).
Products of which at most k terms are non-zero are summed exactly up to gamma_k, because adding zeros is exact.
What leaves the range of float64 upwards raises `Unbounded`; what may leave it downwards is covered by `TINY`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

U = 2.0**-53
TINY = 2.0**-1000
"""Covers every underflow of the few operations that produced a radius."""
SAFE = 2.0**-900
"""Products above it lose nothing by underflow, and neither do their bounds."""


class Unbounded(ArithmeticError):
    """A bound left the range of float64."""


def gamma(k: int) -> float:
    """Slightly more than k u / (1 - k u)."""
    return (k + 1) * U * (1 + 2.0**-20)


def widen(radius: Array, operations: int) -> Array:
    """A radius computed in `operations` rounded non-negative steps, made an upper bound. Raises `Unbounded`."""
    if not np.isfinite(radius).all():
        raise Unbounded("a bound is not finite: the weights, or the numbers of the explanation, are too large")
    return np.where(radius > 0, radius * (1 + 2 * gamma(operations + 4)) + TINY, 0.0)


@dataclass(frozen=True, eq=False)
class Enclosure:
    mid: Array
    rad: Array

    @staticmethod
    def exact(value: Array) -> Enclosure:
        return Enclosure(value, np.zeros_like(value))

    @staticmethod
    def where(condition: npt.NDArray[np.bool_], yes: Enclosure, no: Enclosure) -> Enclosure:
        """`yes` where the condition holds, else `no`."""
        return Enclosure(np.where(condition, yes.mid, no.mid), np.where(condition, yes.rad, no.rad))

    @property
    def low(self) -> Array:
        return np.where(self.rad > 0, np.nextafter(self.mid - self.rad, -np.inf), self.mid)

    @property
    def high(self) -> Array:
        return np.where(self.rad > 0, np.nextafter(self.mid + self.rad, np.inf), self.mid)

    @property
    def size(self) -> Array:
        """An upper bound of the absolute value."""
        return widen(np.abs(self.mid) + self.rad, 1)

    def __add__(self, other: Enclosure) -> Enclosure:
        mid = self.mid + other.mid
        return Enclosure(mid, widen(self.rad + other.rad + U * np.abs(mid), 3))

    def __sub__(self, other: Enclosure) -> Enclosure:
        return self + Enclosure(-other.mid, other.rad)

    def __getitem__(self, index: Any) -> Enclosure:
        return Enclosure(self.mid[index], self.rad[index])

    def transpose(self) -> Enclosure:
        return Enclosure(self.mid.T, self.rad.T)

    def plus_error(self, error: Array) -> Enclosure:
        return Enclosure(self.mid, widen(self.rad + error, 1))

    def scaled(self, factor: float) -> Enclosure:
        mid = self.mid * factor
        lost = underflow((self.mid, self.rad), (np.array(factor),))
        return Enclosure(mid, widen(self.rad * abs(factor) + U * np.abs(mid) + lost, 3))

    def relu(self) -> Enclosure:
        return between(np.maximum(self.low, 0.0), np.maximum(self.high, 0.0))


def between(low: Array, high: Array) -> Enclosure:
    mid = low + (high - low) / 2
    rad = np.maximum(high - mid, mid - low)
    return Enclosure(mid, np.where(rad > 0, widen(rad, 2), 0.0))


def underflow(left: Sequence[Array], right: Sequence[Array]) -> float:
    """What a sum of products of entries of `left` and of `right` may lose by underflow: `TINY`, or 0 if nothing."""
    least = [
        min(float(np.min(np.abs(part), where=part != 0, initial=np.inf)) for part in side) for side in (left, right)
    ]
    return 0.0 if least[0] * least[1] >= SAFE else TINY


def _terms(left: Array, right: Array) -> int:
    rows = int(np.count_nonzero(left, axis=-1).max(initial=0))
    columns = int(np.count_nonzero(right, axis=-2 if right.ndim > 1 else -1).max(initial=0))
    return max(1, min(rows, columns))


def product(left: Enclosure, right: Enclosure) -> Enclosure:
    """Matrix product: |xy - mid| <= gamma |x||y| + rad_x (|y| + rad_y) + |x| rad_y."""
    mid = left.mid @ right.mid
    size_left, size_right = np.abs(left.mid), np.abs(right.mid)
    k = _terms(left.mid, right.mid)
    if left.mid.ndim == 1 and right.mid.ndim == 1:
        n = left.mid.shape[0]
    else:
        n = left.mid.shape[-1]
    exact = k == 1 and not left.rad.any() and not right.rad.any()
    rad = gamma(k) * (size_left @ size_right)
    if left.rad.any():
        rad = rad + left.rad @ (size_right + right.rad)
    if right.rad.any():
        rad = rad + size_left @ right.rad
    if exact:
        rad = U * np.abs(mid)
    rad = rad + underflow((left.mid, left.rad), (right.mid, right.rad))
    return Enclosure(mid, widen(rad, n + 6))


def bound_product(size: Array, matrix: Array) -> Array:
    """An upper bound of size @ |matrix| for a non-negative vector `size`."""
    return widen(size @ np.abs(matrix) + underflow((size,), (matrix,)), size.shape[-1] + 2)


def shrunk(share: float, size: Array) -> Array:
    """An upper bound of share * size, both non-negative; exactly zero where the size is."""
    return np.where(size > 0, widen(share * size + TINY, 1), 0.0)


def exp_high(x: float) -> float:
    """A float at least exp(x). The platform's exp is trusted to 4 ulp only."""
    if x > 700:
        return float("inf")
    return float(np.exp(x)) * (1 + 2.0**-40) + 2.0**-1000


def exp_low(x: float) -> float:
    """A non-negative float at most exp(x)."""
    if x < -700:
        return 0.0
    return max(0.0, float(np.exp(min(x, 700.0))) * (1 - 2.0**-40))
