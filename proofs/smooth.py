"""LayerNorm, GELU and SiLU of balls (section 3 of the specification).

Every activation here but ReLU falls up to one place, its *valley*, and rises from there on, so that on an interval it
is greatest at an end, and least at an end or in the valley:
- silu' has the sign of 1 + x + e^x, which increases;
- gelu' = Phi(x) + x phi(x) has for x = -t < 0 the sign of Phi(-t) / phi(t) - t, and Mills' ratio decreases in t;
- gelu_new = x s(z), s the logistic function, has for x = -t < 0 a derivative of the sign of
  1 - C t (1 + 3 K t^2) s(C t (1 + K t^2)), C = 2 sqrt(2/pi), K = 0.044715, and what is subtracted increases in t.
For x >= 0 all three rise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import flint
import numpy as np

from .balls import EXP_RANGE, UNIT, Ball, Floats, between, exp_near, point, times
from .exact import TINY
from .format import require

CELLS = 32
"""Cells for each unit of [0, LIMIT) on which Phi(-t) is expanded."""
LIMIT = 9
DEGREE = 7


@dataclass(frozen=True)
class Smooth:
    """`near`: a number, and how far at most, up to 2^-59, f(x) is from it; the valley lies in [left, right]; f is
    nowhere below `least`."""

    near: Callable[[Floats], tuple[Floats, Floats]]
    left: float
    right: float
    least: float

    def bounds(self, x: Floats) -> tuple[Floats, Floats]:
        """f(x) from below and above."""
        value, error = self.near(x)
        slack = error * (1 + 2.0**-50) + 2.0**-58
        return np.nextafter(value - slack, -np.inf), np.nextafter(value + slack, np.inf)


@lru_cache(maxsize=1)
def _expansions() -> Floats:
    """[power, cell]: Taylor's coefficients of Phi(-t) at the middle of each cell, each within 2^-53 of itself.

    The n-th derivative (n > 0) is (-1)^n He_(n-1)(t) phi(t), He_n Hermite's polynomials.
    """
    before = flint.ctx.prec
    flint.ctx.prec = 160
    rows = []
    try:
        for cell in range(CELLS * LIMIT):
            t = flint.arb(2 * cell + 1) / (2 * CELLS)
            density = (-t * t / 2).exp() / (2 * flint.arb.pi()).sqrt()
            row = [(t / flint.arb(2).sqrt()).erfc() / 2]
            previous, hermite, factorial, sign = flint.arb(0), flint.arb(1), 1, -1
            for n in range(1, DEGREE + 1):
                factorial *= n
                row.append(sign * hermite * density / factorial)
                previous, hermite, sign = hermite, t * hermite - (n - 1) * previous, -sign
            rows.append([float(x.mid()) for x in row])
    finally:
        flint.ctx.prec = before
    return np.array(rows).T.copy()


def _gelu(x: Floats) -> tuple[Floats, Floats]:
    """x Phi(x) = max(x, 0) - t Phi(-t) for t = |x|.

    In a cell |h| <= 1/64: the series' tail is at most 0.44 sqrt(7!) / 8! 2^-48 < 2^-57 (Cramer: |He_n| phi < 0.44
    sqrt(n!)); Horner's scheme, on coefficients whose terms sum to at most 0.51, loses below 12 * 2^-53; h is off by at
    most 2^-59. Together Phi is off by less than 2^-49, and the result by t 2^-49 and two roundings. From t = 9 on,
    t Phi(-t) < phi(9) < 2^-59 is left out.
    """
    t = np.abs(x)
    inside = t < LIMIT
    cell = (np.where(inside, t, 0.0) * CELLS).astype(np.int64)
    h = np.where(inside, t, 0.0) - (2 * cell + 1) / (2.0 * CELLS)
    table = _expansions()
    series = table[DEGREE][cell]
    for row in table[DEGREE - 1 :: -1]:
        series = series * h + row[cell]
    return np.maximum(x, 0.0) - np.where(inside, t * series, 0.0), np.where(inside, t * 2.0**-48, 0.0)


def _logistic_times(x: Floats, z: Floats) -> Floats:
    """x s(z), for z of x's sign: with e = e^-|z| in (0, 1], x / (1 + e) or x e / (1 + e); off by 2^-45 of itself.

    (e is off by 2^-46 e, or taken as e^-700 where it is less than that, which is covered by |x| 2^-900.)
    """
    e = exp_near(-np.minimum(np.abs(z), EXP_RANGE))
    return x * np.where(x < 0, e, 1.0) / (1.0 + e)


def _silu(x: Floats) -> tuple[Floats, Floats]:
    value = _logistic_times(x, x)
    return value, np.abs(value) * 2.0**-45 + np.abs(x) * 2.0**-900


def _gelu_new(x: Floats) -> tuple[Floats, Floats]:
    """z is off by |z| 2^-49, and e^-|z| by less than 0.37 * 2^-49, because |z| e^-|z| < 0.37."""
    value = _logistic_times(x, 1.5957691216057308 * (x + 0.044715 * x * x * x))
    return value, np.abs(value) * 2.0**-45 + np.abs(x) * 2.0**-49


SMOOTH = {
    "gelu": Smooth(_gelu, -0.7517915247, -0.7517915246, -0.169971207480),
    "gelu_new": Smooth(_gelu_new, -0.7524614221, -0.7524614220, -0.170040750572),
    "silu": Smooth(_silu, -1.2784645428, -1.2784645427, -0.278464542762),
}


def activation(name: str, x: Ball) -> Ball:
    """A configuration's activation of every number."""
    if name == "relu":
        return x.relu()
    if name == "leaky_relu":
        low, high = x.low(), x.high()
        left, right = low / 100 - np.abs(low) * 2.0**-54, high / 100 + np.abs(high) * 2.0**-54
        return between(np.where(low < 0, left - TINY, low), np.where(high < 0, right + TINY, high))
    require(name in SMOOTH, f"unknown activation {name}")
    function, left, right = SMOOTH[name], x.low(), x.high()
    (left_low, left_high), (right_low, right_high) = function.bounds(left), function.bounds(right)
    low = np.minimum(left_low, right_low)
    valley = ~((left >= function.right) | (right <= function.left))
    return between(np.where(valley, np.minimum(low, function.least), low), np.maximum(left_high, right_high))


def layer_norm(x: Ball, weight: Floats, bias: Floats, eps: float) -> Ball:
    """Over the last axis, of size d: z = c / sqrt(sum c_i^2 / d + eps d^2) with c_i = d x_i - sum x, times `weight`,
    plus `bias`. (This is (x_i - mean) / sqrt(mean of squares + eps).) Bounds of the c_i give bounds of the root,
    and of the quotient; |z_i| <= sqrt(d) always, because c_i^2 <= sum c^2.
    """
    d = x.mid.shape[-1]
    require(d <= 2**16, f"LayerNorm of {d} numbers")
    c = x @ point(d * np.eye(d) - 1.0)
    low, high = c.low(), c.high()
    most = np.maximum(-low, high)
    least = np.where(low > 0, low, np.where(high < 0, -high, 0.0))
    slack = (d + 8) * UNIT
    root_least = np.sqrt(np.maximum(_spread(least, eps) * (1 - slack) - TINY, 0.0)) * (1 - 2 * UNIT)
    root_least = np.where(root_least < np.inf, root_least, 0.0)  # an overflow is no lower bound
    root_most = np.sqrt(_spread(most, eps) * (1 + slack) + TINY) * (1 + 2 * UNIT)
    cap = np.sqrt(d) * (1 + 2 * UNIT)
    lower = _outward(low / np.where(low > 0, root_most, root_least), -1, cap)
    upper = _outward(high / np.where(high > 0, root_least, root_most), 1, cap)
    return times(between(lower, upper), point(weight)) + point(bias)


def _spread(c: Floats, eps: float) -> Floats:
    d = c.shape[-1]
    return np.asarray((c * c).sum(axis=-1, keepdims=True) / d + eps * d * d)


def _outward(quotient: Floats, direction: int, cap: float) -> Floats:
    """A bound of z from a rounded quotient; the cap where that is more, or nothing."""
    bound = quotient + direction * (np.abs(quotient) * 2 * UNIT + TINY)
    return np.clip(np.where(np.isnan(bound), direction * cap, bound), -cap, cap)
