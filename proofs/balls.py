"""Rigorous float64 arithmetic on batches of numbers: each ball is [mid - rad, mid + rad].

Relies on IEEE 754 double precision, round to nearest, gradual underflow (`check_arithmetic`), and on nothing about the
order of summation or fused operations: |fl(sum x_i y_i) - sum x_i y_i| <= n 2^-52 sum |x_i y_i| + n 2^-1074.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .exact import TINY, grow
from .format import require

Floats = npt.NDArray[np.float64]
UNIT = 2.0**-52  # twice the unit roundoff
# ln 2 = HIGH + LOW within 2^-80; HIGH has 32 significant bits, so k * HIGH is exact for integers |k| < 2^20
HIGH = float.fromhex("0x1.62e42feep-1")
LOW = float.fromhex("0x1.a39ef35793c76p-33")
COEFFICIENTS = [1.0 / math.factorial(i) for i in range(14)]
EXP_ERROR = 2.0**-46
EXP_RANGE = 700.0


def check_arithmetic() -> None:
    """Raises `Rejected` unless this process rounds to nearest even and keeps denormal numbers."""
    one, half_ulp, least = np.ones(4), np.full(4, 2.0**-53), np.full(4, 2.0**-1074)
    good = (one + half_ulp == 1).all() and (one + 1.5 * half_ulp == 1 + 2.0**-52).all()
    good = good and (-one - half_ulp == -1).all() and (one + 2.0**-52 + half_ulp == 1 + 2.0**-51).all()
    good = good and (least * one > 0).all() and (np.full(4, 2.0**-1022) / 2 > 0).all()
    good = good and float((np.full((1, 4), 2.0**-600) @ np.full((4, 1), 2.0**-450))[0, 0]) == 2.0**-1048
    require(good, "this machine's floating point does not round to nearest with gradual underflow")


@dataclass(frozen=True, eq=False)
class Ball:
    """All x with |x - mid| <= rad, elementwise. A NaN or infinite radius says nothing; midpoints are finite."""

    mid: Floats
    rad: Floats

    def __add__(self, other: Ball) -> Ball:
        mid = self.mid + other.mid
        return known(mid, grow(self.rad + other.rad + np.abs(mid) * UNIT))

    def __matmul__(self, other: Ball) -> Ball:
        """|XY - fl(mx my)| <= rx (|my| + ry) + |mx| ry + n 2^-52 |mx||my|."""
        n = self.mid.shape[-1]
        left, right = np.abs(self.mid), np.abs(other.mid)
        rad = (self.rad + left * (n * UNIT)) @ right
        if other.rad.any():
            rad = rad + (left + self.rad) @ other.rad
        return known(self.mid @ other.mid, grow(rad))

    def __getitem__(self, key: Any) -> Ball:
        return Ball(self.mid[key], self.rad[key])

    def spread(self, shape: tuple[int, ...]) -> Ball:
        """Repeated along axes of size 1 until it has this shape."""
        return Ball(np.broadcast_to(self.mid, shape), np.broadcast_to(self.rad, shape))

    def swapped(self) -> Ball:
        """Transposed in the last two axes."""
        return Ball(self.mid.swapaxes(-1, -2), self.rad.swapaxes(-1, -2))

    def moved(self, shape: tuple[int, ...], axes: tuple[int, ...]) -> Ball:
        """Reshaped, then transposed."""
        return Ball(self.mid.reshape(shape).transpose(axes), self.rad.reshape(shape).transpose(axes))

    def low(self) -> Floats:
        return np.asarray(np.nextafter(self.mid - self.rad, -np.inf))

    def high(self) -> Floats:
        return np.asarray(np.nextafter(self.mid + self.rad, np.inf))

    def relu(self) -> Ball:
        return between(np.maximum(self.low(), 0), np.maximum(self.high(), 0))


def known(mid: Floats, rad: Floats) -> Ball:
    """The ball; where a midpoint overflowed, or nothing is known of how far it is off, any number at all."""
    lost = ~np.isfinite(mid) | np.isnan(rad)
    return Ball(np.where(lost, 0.0, mid), np.where(lost, np.inf, rad)) if lost.any() else Ball(mid, rad)


def times(x: Ball, factor: Ball) -> Ball:
    """Elementwise product."""
    mid = x.mid * factor.mid
    rad = (np.abs(x.mid) + x.rad) * factor.rad + x.rad * np.abs(factor.mid) + np.abs(mid) * UNIT
    return known(mid, grow(rad))


def total(x: Ball) -> Ball:
    """The sum over the first two axes, which stay with size 1; at most 2^20 terms."""
    terms = x.mid.shape[0] * x.mid.shape[1]
    require(terms <= 2**20, f"a sum of {terms} terms")
    rad = (x.rad + np.abs(x.mid) * (terms * UNIT)).sum(axis=(0, 1), keepdims=True)
    return known(x.mid.sum(axis=(0, 1), keepdims=True), grow(rad))


def divided(x: Ball, count: int) -> Ball:
    """x / count for a count from 1 to 2^20."""
    mid = x.mid / count
    return known(mid, grow(x.rad / count + np.abs(mid) * UNIT))


def point(array: npt.ArrayLike) -> Ball:
    """Exact float64 numbers."""
    mid = np.asarray(array, dtype=np.float64)
    return Ball(mid, np.zeros_like(mid))


def between(low: Floats, high: Floats) -> Ball:
    """A ball that contains [low, high]."""
    mid = low / 2 + high / 2
    return known(mid, grow(np.maximum(high - mid, mid - low)))


def exp_near(x: Floats) -> Floats:
    """|exp_near(x) - e^x| <= EXP_ERROR e^x for |x| <= EXP_RANGE.

    x = k ln 2 + r, |r| <= 0.3467. Relative errors: the reduction |r^ - r| < 2^-53; the series' tail
    r^14/14! e^|r| < 2^-57;
    Horner's 13 products and sums with rounded coefficients at most 43 * 2^-53 e^|r| / e^r <= 86 * 2^-53 < 2^-46.57;
    the power of two is exact. Their sum is below 2^-46.
    """
    k = np.rint(x * 1.4426950408889634)
    r = (x - k * HIGH) - k * LOW
    series = np.full_like(x, COEFFICIENTS[13])
    for coefficient in reversed(COEFFICIENTS[:13]):
        series = series * r + coefficient
    return np.asarray(np.ldexp(series, k.astype(np.int64)))


def exp(x: Ball) -> Ball:
    """e^x for x below EXP_RANGE (an infinite radius beyond)."""
    low, high = x.low(), x.high()
    lower = exp_near(np.clip(np.nan_to_num(low, nan=-EXP_RANGE), -EXP_RANGE, EXP_RANGE)) * (1 - 4 * EXP_ERROR)
    upper = exp_near(np.clip(np.nan_to_num(high, nan=EXP_RANGE), -EXP_RANGE, EXP_RANGE)) * (1 + 4 * EXP_ERROR)
    lower = np.where(low >= -EXP_RANGE, lower, 0.0)
    upper = np.where(high <= EXP_RANGE, upper, np.inf)
    return between(lower, upper)


def softmax(scores: Ball, visible: npt.NDArray[np.bool_]) -> Ball:
    """Over the last axis, restricted to visible entries (the others are 0); a shift changes no softmax.

    Shifted by the entry with the largest midpoint, whose own power is exactly 1. An entry's share is least where its
    power is least and the others' are greatest, and the reverse.
    """
    at = np.where(visible, scores.mid, -np.inf).argmax(axis=-1)[..., None]
    top = Ball(np.take_along_axis(scores.mid, at, -1), np.take_along_axis(scores.rad, at, -1))
    powers = exp(scores + Ball(-top.mid, top.rad))
    is_top = np.arange(visible.shape[-1]) == at
    low = np.where(is_top, 1.0, np.where(visible, np.maximum(powers.low(), 0), 0.0))
    high = np.where(is_top, 1.0, np.where(visible, powers.high(), 0.0))
    low, high = np.nan_to_num(low, nan=0.0, posinf=np.inf), np.nan_to_num(high, nan=np.inf, posinf=np.inf)
    slack = 4 * (visible.shape[-1] + 2) * UNIT
    with np.errstate(invalid="ignore"):  # infinity minus itself: then nothing is known of the others
        above = high.sum(axis=-1, keepdims=True)
        others_high = np.nan_to_num(above - high + above * slack, nan=np.inf, posinf=np.inf) + TINY
        below = low.sum(axis=-1, keepdims=True)
        others_low = np.maximum(below - low - below * slack, 0)
        share_low = np.maximum(0, low / (low + others_high) * (1 - slack) - TINY)
        share_high = np.where(high < np.inf, high / (high + others_low) * (1 + slack) + TINY, 1.0)
    share_high = np.minimum(1, np.nan_to_num(share_high, nan=1.0))
    return between(np.where(visible, share_low, 0.0), np.where(visible, share_high, 0.0))
