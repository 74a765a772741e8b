"""Exact arithmetic on arrays of dyadic numbers, and upward-rounded radii.

`Exact` holds integers times one power of two: float32 weights are such numbers, so every linear step of a
proof is exact. Error radii are float64 arrays of upper bounds (`Radii`): every operation on them ends with `grow`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import flint
import numpy as np
import numpy.typing as npt

from .format import Rejected, require

Data: TypeAlias = npt.NDArray[Any]  # int64 with |x| < 2^62, or object (Python integers)
Radii: TypeAlias = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
WORD = 2**62
MAX_SHIFT = 20000
TINY = 2.0**-1000


@dataclass(frozen=True, eq=False)
class Exact:
    """The array data * 2^exp."""

    data: Data
    exp: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    def __add__(self, other: Exact) -> Exact:
        left, right, exp = _aligned(self, other)
        return _made(left + right, exp)

    def __neg__(self) -> Exact:
        return Exact(-self.data, self.exp)

    def __sub__(self, other: Exact) -> Exact:
        return self + (-other)

    def __getitem__(self, key: Any) -> Exact:
        return Exact(np.asarray(self.data[key], dtype=self.data.dtype), self.exp)

    def __matmul__(self, other: Exact) -> Exact:
        """Matrix (or vector) product; exact."""
        left = self.data if self.data.ndim == 2 else self.data[None, :]
        right = other.data if other.data.ndim == 2 else other.data[:, None]
        inner = np.flatnonzero((left != 0).any(axis=0) & (right != 0).any(axis=1))
        product = _product(left[:, inner], right[inner, :])
        shape = self.data.shape[:-1] + other.data.shape[1:]
        return _made(product.reshape(shape), self.exp + other.exp)

    @property
    def T(self) -> Exact:
        return Exact(self.data.T, self.exp)

    def scaled(self, factor: Fraction) -> Exact:
        """Times a dyadic number."""
        shift = factor.denominator.bit_length() - 1
        require(factor.denominator == 1 << shift, f"{factor} is not dyadic")
        return _made(self.data.astype(object) * factor.numerator, self.exp - shift)

    def relu(self) -> Exact:
        return Exact(np.maximum(self.data, 0), self.exp)

    def max(self, axis: int = 0) -> Exact:
        return Exact(np.asarray(self.data.max(axis=axis), dtype=self.data.dtype), self.exp)

    def min(self, axis: int = 0) -> Exact:
        return Exact(np.asarray(self.data.min(axis=axis), dtype=self.data.dtype), self.exp)

    def maximum(self, other: Exact) -> Exact:
        left, right, exp = _aligned(self, other)
        return Exact(np.maximum(left, right), exp)

    def minimum(self, other: Exact) -> Exact:
        left, right, exp = _aligned(self, other)
        return Exact(np.minimum(left, right), exp)

    def is_zero(self) -> bool:
        return not (self.data != 0).any()

    def number(self, key: Any = ()) -> Fraction:
        """One entry as a fraction."""
        return Fraction(int(self.data[key])) * _power(self.exp)

    def magnitude(self) -> Radii:
        """Upper bounds of the absolute values."""
        return np.where(self.data == 0, 0.0, np.abs(self._near()) * (1 + 2.0**-50) + TINY)

    def lower(self) -> Radii:
        """Lower bounds of the values."""
        near = self._near()
        return np.where(self.data == 0, 0.0, near - np.abs(near) * 2.0**-50 - TINY)

    def upper(self) -> Radii:
        """Upper bounds of the values."""
        return -(-self).lower()

    def _near(self) -> Radii:
        """Within a factor 1 +- 2^-51, and 2^-1009, of the values. Raises `Rejected` beyond float64."""
        data, drop = self.data, max(0, _largest(self.data).bit_length() - 1000)
        if drop:
            require(self.exp + drop <= -1010, "a number is too large")
            data = data >> drop  # changes each value by less than 2^-1010, which TINY covers
        with np.errstate(all="ignore"):
            near = np.ldexp(data.astype(np.float64), max(-4000, min(4000, self.exp + drop)))
        require(np.isfinite(near).all(), "a number is too large")
        return near


def _power(exp: int) -> Fraction:
    return Fraction(1 << exp) if exp >= 0 else Fraction(1, 1 << -exp)


def _largest(data: Data) -> int:
    if data.size == 0:
        return 0
    return max(abs(int(data.max())), abs(int(data.min())))


def _made(data: Data, exp: int) -> Exact:
    """An `Exact` whose dtype fits its entries."""
    if data.dtype == object and _largest(data) < WORD:
        data = data.astype(np.int64)
    elif data.dtype != object and _largest(data) >= WORD:
        data = data.astype(object)
    return Exact(data, exp)


def _aligned(left: Exact, right: Exact) -> tuple[Data, Data, int]:
    """Both on the smaller exponent, in a dtype in which their sum cannot overflow."""
    if left.is_zero():
        left = Exact(left.data, right.exp)
    elif right.is_zero():
        right = Exact(right.data, left.exp)
    exp = min(left.exp, right.exp)
    shifts = left.exp - exp, right.exp - exp
    require(max(shifts) <= MAX_SHIFT, "the exponents of the numbers are too far apart")
    a, b = (_largest(item.data) << shift for item, shift in zip((left, right), shifts, strict=True))
    dtype = np.int64 if a + b < WORD else object
    first, second = left.data.astype(dtype), right.data.astype(dtype)
    return _shifted(first, shifts[0]), _shifted(second, shifts[1]), exp


def _shifted(data: Data, shift: int) -> Data:
    if shift == 0:
        return data
    if data.dtype != object and shift >= 62:
        return data  # all zero: anything else would have become object
    return data * (1 << shift)


def _product(left: Data, right: Data) -> Data:
    """The integer matrix product, by float64 products of digits so small that every partial sum is below 2^53."""
    rows, inner = left.shape
    columns = right.shape[1]
    a, b = _largest(left), _largest(right)
    bound = a * b * inner
    if bound == 0:
        return np.zeros((rows, columns), dtype=np.int64)
    if bound < 2**53:
        return np.asarray(left.astype(np.float64) @ right.astype(np.float64)).astype(np.int64)
    width = (53 - inner.bit_length()) // 2
    dtype = np.int64 if bound < WORD else object
    total: Data = np.zeros((rows, columns), dtype=dtype)
    right_digits = _digits(right, b, width)
    for i, x in enumerate(_digits(left, a, width)):
        for j, y in enumerate(right_digits):
            part = np.asarray(x @ y).astype(np.int64).astype(dtype)
            total = total + _shifted(part, width * (i + j)) if part.any() else total
    return total


def _digits(data: Data, largest: int, width: int) -> list[Radii]:
    """data = sum of digit_i * 2^(width i), |digit_i| < 2^width, each with the sign of the entry."""
    mask = (1 << width) - 1
    sign = np.where(data < 0, -1.0, 1.0)
    rest = np.abs(data)
    count = -(-largest.bit_length() // width)
    return [((rest >> (width * i)) & mask).astype(np.float64) * sign for i in range(count)]


def zeros(*shape: int) -> Exact:
    return Exact(np.zeros(shape, dtype=np.int64), 0)


def from_float32(array: npt.NDArray[np.float32]) -> Exact:
    """The exact values of finite float32 numbers."""
    mantissa, exponent = np.frexp(array.astype(np.float64))
    whole = np.ldexp(mantissa, 24).astype(np.int64)  # |whole| <= 2^24, exact; the value is whole * 2^(exponent - 24)
    used = whole != 0
    if not used.any():
        return Exact(np.zeros(array.shape, dtype=np.int64), 0)
    odd = np.where(used, whole & -whole, 1)
    whole, exponent = whole // odd, exponent.astype(np.int64) - 24 + np.log2(odd).astype(np.int64)
    least = int(exponent[used].min())
    shift = np.where(used, exponent - least, 0)
    if int(shift.max()) + 24 < 62:
        return Exact(whole << shift, least)
    return _made(whole.astype(object) << shift.astype(object), least)


def from_fractions(items: list[Fraction]) -> Exact:
    """A vector of dyadic numbers."""
    bits = max((x.denominator.bit_length() - 1 for x in items), default=0)
    whole = []
    for x in items:
        require(x.denominator & (x.denominator - 1) == 0, f"{x} is not dyadic")
        whole.append(x.numerator << (bits - x.denominator.bit_length() + 1))
    data = np.empty(len(whole), dtype=object)
    data[:] = whole
    return _made(data, -bits)


def rounded(exact: Exact, bits: int) -> tuple[Exact, Radii]:
    """The array on the grid 2^-bits, and a bound of what that changed."""
    drop = -bits - exact.exp
    if drop <= 0:
        return exact, np.zeros(exact.shape)
    data = exact.data.astype(object) >> drop
    return _made(data, -bits), np.where(exact.data == 0, 0.0, 2.0**-bits)


# --- radii -------------------------------------------------------------------------------------------------------


def grow(radii: npt.ArrayLike) -> Radii:
    """Covers the rounding of a computation with non-negative terms: up to 2^20 additions and a few products each.

    Such a result is at least (1 - 2^-31) of the true one, up to underflows below 2^-1040; NaN (inf * 0) is infinite.
    """
    with np.errstate(all="ignore"):
        result = np.asarray(radii, dtype=np.float64) * (1 + 2.0**-30) + TINY
    return np.where(np.isnan(result), np.inf, result)


def through(radii: Radii, weights: npt.NDArray[np.float32]) -> Radii:
    """Upper bounds of radii @ |weights|."""
    with np.errstate(all="ignore"):
        return grow(radii @ np.abs(weights.astype(np.float64)))


def fraction(radius: float) -> Fraction:
    """A finite radius, exactly."""
    require(np.isfinite(radius), "an error bound is infinite")
    return Fraction(float(radius))


def above(number: Fraction) -> float:
    """A float64 at least `number` (which is non-negative)."""
    if number == 0:
        return 0.0
    try:
        near = number.numerator / number.denominator
    except OverflowError:
        return float("inf")
    return float(near) * (1 + 2.0**-50) + TINY


EXP_LIMIT = 5000
PRECISION = 128


def exp_above(x: Fraction) -> Fraction:
    """A dyadic upper bound of e^x, for x <= EXP_LIMIT."""
    require(x <= EXP_LIMIT, "an exponential overflows")
    return _exp(max(x, Fraction(-EXP_LIMIT)), upper=True)


def exp_below(x: Fraction) -> Fraction:
    """A dyadic lower bound of e^x, not negative."""
    if x < -EXP_LIMIT:
        return Fraction(0)
    return _exp(min(x, Fraction(EXP_LIMIT)), upper=False)


def _exp(x: Fraction, upper: bool) -> Fraction:
    saved = flint.ctx.prec
    try:
        flint.ctx.prec = PRECISION
        ball = (flint.arb(x.numerator) / flint.arb(x.denominator)).exp()
        end = ball.upper() if upper else ball.lower()
    finally:
        flint.ctx.prec = saved
    if not (end.is_exact() and end.is_finite()):
        raise Rejected("an exponential could not be enclosed")
    man, exp = (int(part) for part in end.man_exp())
    return max(Fraction(0), Fraction(man) * _power(exp))
