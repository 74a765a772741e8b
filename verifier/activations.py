"""Rules for balls through smooth activations and LayerNorm; conventions and proofs as in `balls`.

For each activation f, `POINTS[f](x)` is a pair of float64 numbers y and e with |y - f(x)| <= e (1 + 2^-50) + 2^-53 for
every finite float64 x, and |f'| <= SLOPE everywhere. (The greatest slopes are 1.1290 of gelu, 1.1290 of gelu_new and
1.0999 of silu; a test encloses all three by arb.) So f of a ball lies within SLOPE rad + that of y.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from .balls import EXP_LEAST, Ball, U, _exp_point, _up, add, divide, exact, multiply, negate, relu, total

Pair: TypeAlias = tuple[Tensor, Tensor]
SLOPE = 1.13
FLAT = 8.5
"""Beyond it x Phi(x) is within phi(8.5) < 2^-53 of max(x, 0), as t Phi(-t) < phi(t)."""
_ROOT_2_PI = 0.3989422804014327
_TANH = 1.5957691216057308
"""2 sqrt(2 / pi) within u."""
_CUBE = 0.044715


def _terms(y: float) -> int:
    """How many terms of S(y) leave less than 2^-54: see `_gelu`."""
    n, term = 0, 1.0
    while term > 2.0**-56 or 2 * n + 3 < 2 * y:
        n += 1
        term *= y / (2 * n + 1)
    return n


def _gelu(x: Tensor) -> Pair:
    """x Phi(x) = x/2 + P, P = y e^(-y/2) S(y) / sqrt(2 pi), y = x^2, S(y) = sum over n >= 0 of y^n / (1 3 .. (2n+1)).

    All terms of S are positive. Cut after term n, when that is below 2^-56 and the ratio of terms below 1/2, it loses
    less than 2^-55 S. As (2n + 1) term_n = y term_(n-1), the sum of n term_n is at most S y/2. So, relative to P:
    Horner's scheme, 4 roundings for each n of a term, loses 2 y u and the last sum u; the rounding of y, y/2 u in S and
    y/2 u in the power; exp 128 u; the other products 5 u: together (3 y + 140) u. The last sum loses u |x|.
    """
    y = (x * x).clamp(max=FLAT * FLAT)
    series = torch.ones_like(x)
    for n in range(_terms(float(y.max()) if y.numel() else 0.0), 0, -1):
        series.mul_(y).mul_(1.0 / (2 * n + 1)).add_(1.0)
    bulk = _exp_point(-0.5 * y).mul_(series).mul_(y).mul_(_ROOT_2_PI)
    inside = x.abs() <= FLAT
    error = torch.where(inside, (y * (3 * U) + 140 * U) * bulk + U * x.abs(), 0.0)
    return torch.where(inside, 0.5 * x + bulk, x.clamp(min=0.0)), error


def _times_logistic(x: Tensor, z: Tensor) -> Tensor:
    """x / (1 + e^-z) for z of the sign of x: e = e^-|z| is at most 1; x / (1 + e) or x e / (1 + e).

    e is off by 128 u e up to |z| = 700 (beyond, it is less than 2^-1009, and taken as e^-700, which costs less than
    2^-1000 |x|); the rest loses 4 u: together 140 u of the result.
    """
    power = _exp_point(-z.abs().clamp(max=-EXP_LEAST))
    return x * torch.where(x < 0, power, 1.0) / (1.0 + power)


def _silu(x: Tensor) -> Pair:
    """x / (1 + e^-x)."""
    value = _times_logistic(x, x)
    return value, 140 * U * value.abs() + 2.0**-1000 * x.abs()


def _gelu_new(x: Tensor) -> Pair:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x / (1 + e^-z), z = 2 sqrt(2/pi) x (1 + 0.044715 x^2).

    z is off by 8 u |z|; as |z| e^-|z| < 0.37 this moves the result by less than 4 u |x|.
    """
    value = _times_logistic(x, _TANH * x * (1.0 + _CUBE * (x * x)))
    return value, 140 * U * value.abs() + 4 * U * x.abs()


POINTS: dict[str, Callable[[Tensor], Pair]] = {"gelu": _gelu, "gelu_new": _gelu_new, "silu": _silu}


def activation(function: str, a: Ball) -> Ball:
    """An activation of every entry."""
    if function == "relu":
        return relu(a)
    if function == "leaky_relu":
        return leaky_relu(a)
    value, error = POINTS[function](a.mid)
    return Ball(value, _up(SLOPE * a.rad + error + 2.0**-53))


def leaky_relu(a: Ball) -> Ball:
    """x, or x / 100 below 0: slope at most 1, and 1/100 where the whole ball is negative."""
    mid = torch.where(a.mid < 0, a.mid / 100, a.mid)
    below = a.mid < -a.rad
    return Ball(mid, _up(torch.where(below, a.rad / 100, a.rad) + U * mid.abs()))


def normalise(a: Ball, weight: Ball, bias: Ball, eps: float) -> Ball:
    """LayerNorm over the last axis: z weight + bias, z = c / sqrt(mean(c^2) + eps), c = x - mean(x).

    The mean of squares is enclosed as that, and is at least 0; |z| <= sqrt(d), because c^2 <= d mean(c^2).
    sqrt is one of IEEE 754's correctly rounded operations; with the division it loses at most 2 u (8 u are given).
    """
    width = exact(torch.tensor(float(a.mid.shape[-1]), dtype=torch.float64))
    centred = add(a, negate(divide(total(a, -1), width)))
    square = divide(total(multiply(centred, centred), -1), width)
    spread = add(square, exact(torch.tensor(eps, dtype=torch.float64)))
    most = 1.0 / spread.low().clamp(min=eps).sqrt() * (1 + 8 * U)
    least = 1.0 / spread.high().sqrt() * (1 - 8 * U)
    inverse = Ball((least + most) / 2, _up((most - least) / 2 + 4 * U * most))
    return add(multiply(_within(multiply(centred, inverse), math.sqrt(a.mid.shape[-1]) * (1 + 8 * U)), weight), bias)


def _within(a: Ball, most: float) -> Ball:
    """The same numbers, when none is above `most` in absolute value."""
    low, high = a.low().clamp(min=-most), a.high().clamp(max=most)
    mid = (low + high) / 2
    wide = a.mid.abs() + a.rad > most
    return Ball(torch.where(wide, mid, a.mid), torch.where(wide, _up((high - low) / 2 + 4 * U * most), a.rad))
