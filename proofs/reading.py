"""What can be decoded from enclosures of logits, and how large a margin can be (section 3 of the specification)."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from typing import TypeAlias

import numpy as np

from .balls import Ball, Floats
from .codec import Codec
from .core import Bits

Decided: TypeAlias = tuple[Bits, Bits]
"""Two arrays of one shape: where something provably holds, and where it provably fails."""


def possible(codec: Codec, logits: Ball) -> Bits:
    """[batch, pos, output]: false only for outputs that are provably not decoded.

    categorical: another logit is larger, or an earlier one at least as large. scalar: logit 0 lies outside the closed
    cell of the output's point. (Comparisons with NaN are false: nothing is ruled out.)
    """
    low, high = logits.low(), logits.high()
    if codec.categorical:
        low = np.where(np.isnan(low), -np.inf, low)
        best = low.max(axis=-1, keepdims=True)
        running = np.maximum.accumulate(low, axis=-1)
        earlier = np.concatenate([np.full_like(best, -np.inf), running[..., :-1]], axis=-1)
        return np.asarray(~((best > high) | ((earlier >= high) & (earlier > -np.inf))))
    least, most = cells(codec)
    return np.asarray(~((high[..., :1] < least) | (low[..., :1] > most)))


def cells(codec: Codec) -> tuple[Floats, Floats]:
    """For a scalar codec: float64 intervals that contain all reals nearest to each output's point."""
    order = sorted(range(len(codec.points)), key=lambda o: codec.points[o])
    least, most = np.full(len(order), -np.inf), np.full(len(order), np.inf)
    for left, right in zip(order, order[1:], strict=False):
        middle = (codec.points[left] + codec.points[right]) / 2
        most[left], least[right] = beyond(middle, 1), beyond(middle, -1)
    return least, most


def beyond(x: Fraction, direction: int) -> float:
    """A float64 strictly above (1) or below (-1) x."""
    try:
        near = x.numerator / x.denominator
    except OverflowError:
        return direction * math.inf if direction * x > 0 else -direction * sys.float_info.max
    return float(np.nextafter(np.nextafter(near, direction * np.inf), direction * np.inf))


def same(first: Bits, second: Bits) -> Decided:
    """Of two readings [batch, pos, output]: where both are decided and equal; where they have no output in common."""
    decided = (first.sum(axis=-1) == 1) & (second.sum(axis=-1) == 1)
    common = (first & second).any(axis=-1)
    return np.asarray(decided & common), np.asarray(~common)


def margin(logits: Ball, at_least: Fraction) -> Decided:
    """The largest logit minus every other is at least this; at most 0 always holds.

    It fails if every logit is provably less than `at_least` above some other.
    """
    low, high = logits.low(), logits.high()
    if at_least <= 0:
        everywhere = np.ones(low.shape[:-1], dtype=np.bool_)
        return everywhere, ~everywhere
    low = np.where(np.isnan(low), -np.inf, low)
    index = low.argmax(axis=-1)[..., None]
    others = np.arange(low.shape[-1]) != index
    own = np.take_along_axis(low, index, axis=-1)
    holds = ((_less(own - high) > beyond(at_least, 1)) | ~others).all(axis=-1)
    rival = np.where(others, own, np.where(others, low, -np.inf).max(axis=-1, keepdims=True))
    fails = (_more(high - rival) < beyond(at_least, -1)).all(axis=-1)
    return np.asarray(holds), np.asarray(fails)


def apart(logits: Ball, above: int, below: int, at_least: Fraction) -> Decided:
    """Logit `above` minus logit `below` is at least this. (Comparisons with NaN are false: nothing is decided.)"""
    low, high = logits.low(), logits.high()
    holds = _less(low[..., above] - high[..., below]) > beyond(at_least, 1)
    fails = _more(high[..., above] - low[..., below]) < beyond(at_least, -1)
    return np.asarray(holds), np.asarray(fails)


def lead(logits: Ball, wanted: Bits, at_least: Fraction) -> Decided:
    """The one wanted logit minus every other is at least this (> 0). It fails where one difference provably is less,
    and where none is wanted."""
    low, high = logits.low(), logits.high()
    low, high = np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
    own_low = np.where(wanted, low, -np.inf).max(axis=-1)
    own_high = np.where(wanted, high, -np.inf).max(axis=-1)
    rival_low = np.where(wanted, -np.inf, low).max(axis=-1)
    rival_high = np.where(wanted, -np.inf, high).max(axis=-1)
    exists = wanted.any(axis=-1)
    holds = exists & ((_less(own_low - rival_high) > beyond(at_least, 1)) | wanted.all(axis=-1))
    fails = ~exists | (_more(own_high - rival_low) < beyond(at_least, -1))
    return np.asarray(holds), np.asarray(fails)


def _less(difference: Floats) -> Floats:
    """At most the true difference of two float64 numbers."""
    return np.asarray(difference - np.abs(difference) * 2.0**-50)


def _more(difference: Floats) -> Floats:
    return np.asarray(difference + np.abs(difference) * 2.0**-50)
