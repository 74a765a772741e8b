"""Sparsemax, the Euclidean projection onto the simplex, of balls (Martins and Astudillo, 2016)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .balls import UNIT, Ball, Floats, between, known
from .exact import TINY

ROUNDS = 64


def sparsemax(scores: Ball, visible: npt.NDArray[np.bool_]) -> Ball:
    """Over the last axis, restricted to visible entries (the others are 0): max(x - t, 0), which sum to 1.

    S(t) = sum of max(x - t, 0) falls with t and rises with every x. So t is at most any number at which S of the upper
    ends is at most 1, and at least any at which S of the lower ends is at least 1; x - 1 <= t < x for the largest x.
    Everything is shifted by the largest midpoint, which moves t as much.
    """
    scores = known(scores.mid, scores.rad)
    top = np.where(visible, scores.mid, -np.inf).max(axis=-1, keepdims=True)
    shifted = scores + Ball(-top, np.zeros_like(top))
    low = np.where(visible, shifted.low(), -np.inf)
    high = np.where(visible, shifted.high(), -np.inf)
    above, below = _above(high), _below(low)
    least = np.maximum(np.nextafter(low - above, -np.inf), 0.0)
    most = np.where(high > below, np.minimum(np.nextafter(high - below, np.inf), 1.0), 0.0)
    found = between(np.minimum(least, 1.0), most)
    return Ball(np.where(most > 0, found.mid, 0.0), np.where(most > 0, found.rad, 0.0))


def _guess(x: Floats) -> Floats:
    """Near the t with S(t) = 1 [.., 1]: the active entries give a t, those not above it leave, until none does."""
    active = x > -np.inf
    for _ in range(ROUNDS):
        total = np.where(active, x, 0.0).sum(axis=-1, keepdims=True)
        t = (total - 1.0) / np.maximum(active.sum(axis=-1, keepdims=True), 1)
        left = active & (x > t)
        if (left == active).all():
            break
        active = np.where(left.any(axis=-1, keepdims=True), left, active)
    return np.asarray(t)


def _sum_above(x: Floats, t: Floats, sign: int) -> Floats:
    """S(t), from above (sign 1) or below (-1)."""
    n = x.shape[-1]
    terms = np.where(x > t, x - t, 0.0)
    return np.asarray(terms.sum(axis=-1, keepdims=True) * (1.0 + sign * 4 * (n + 2) * UNIT) + sign * n * TINY)


def _above(high: Floats) -> Floats:
    """At least t of the upper ends."""
    t = _guess(high)
    t = np.nextafter(t + np.maximum(_sum_above(high, t, 1) - 1.0, 0.0) * (1 + 4 * UNIT), np.inf)
    return np.asarray(np.where(_sum_above(high, t, 1) <= 1.0, t, high.max(axis=-1, keepdims=True)))


def _below(low: Floats) -> Floats:
    """At most t of the lower ends."""
    n = low.shape[-1]
    t = _guess(low)
    t = np.nextafter(t - np.maximum(1.0 - _sum_above(low, t, -1), 0.0) * (1 + 16 * (n + 2) * UNIT), -np.inf)
    floor = np.nextafter(low.max(axis=-1, keepdims=True) - 1.0, -np.inf)
    return np.asarray(np.where(_sum_above(low, t, -1) >= 1.0, np.maximum(t, floor), floor))
