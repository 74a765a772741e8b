"""Exact sums and means over finite sets of rationals, with the lengths at which each occurs.

Numbers are scaled to integers; the sums of m elements of a set, with repetition, are a bit set in one big integer
(the set for m + 1 is the union of its shifts), which keeps the common case, small integers and up to a hundred keys,
at microseconds a set.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from .core import Value, normalise
from .ranges import VALUE_LIMIT, Refused

_BIT_LIMIT = 1 << 21
_WORK_LIMIT = 1 << 24
_INT64 = 1 << 62
_FEWER = "round the values to fewer, or lower the maximal length"


def numbers(values: Iterable[Value], what: str, remedy: str) -> list[Fraction]:
    """The values as rationals (True is 1). Raises `Refused` naming a value that is no number, and the remedy."""
    out = []
    for value in values:
        if value is None or isinstance(value, str):
            raise Refused(f"{what}, and {value!r} is not a number; {remedy}")
        out.append(Fraction(value))
    return out


def mean_lengths(sets: Mapping[tuple[Fraction, ...], Mapping[int, int]]) -> dict[tuple[int, int], int]:
    """All means of m elements of a set, with repetition, 2 <= m <= hi, as reduced (numerator, denominator) pairs, and
    the lengths at which each occurs.

    `sets` gives for each set the largest number hi of summands at each length. Lengths come out as bit sets.
    Raises `Refused` for more than `VALUE_LIMIT` different means.
    """
    if not sets:
        return {}
    largest = {members: max(by_length.values()) for members, by_length in sets.items()}
    for members, top in largest.items():
        if top * (len(members) - 1) + 1 > VALUE_LIMIT:
            raise Refused(f"more than {VALUE_LIMIT} different means of up to {top} of {len(members)} values; {_FEWER}")
    scaled = _Scaled(sorted({member for members in sets for member in members}))
    sums = {members: scaled.start(members, top) for members, top in largest.items()}
    totals: dict[tuple[int, int], int] = {}
    for m in range(2, max(largest.values()) + 1):
        sums = {members: scaled.next(members, sums[members]) for members in sums if largest[members] >= m}
        parts = []
        for members, reached in sums.items():
            lengths = sum(1 << n for n, hi in sets[members].items() if hi >= m)
            parts.append((scaled.listed(reached), lengths))
        for number, lengths in _united(parts):
            pair = scaled.mean(number, m)
            totals[pair] = totals.get(pair, 0) | lengths
        if len(totals) > VALUE_LIMIT:
            raise Refused(f"more than {VALUE_LIMIT} different means; {_FEWER}")
    return totals


def _united(parts: Sequence[tuple[npt.NDArray[np.int64], int]]) -> Iterable[tuple[int, int]]:
    """The numbers that occur in some part, each with the union of its parts' lengths."""
    if len(parts) == 1:
        return zip(parts[0][0].tolist(), itertools.repeat(parts[0][1]), strict=False)
    distinct = np.unique(np.concatenate([numbers for numbers, _ in parts]))
    united = [0] * distinct.size
    n_words = max(lengths.bit_length() for _, lengths in parts) // 64 + 1
    for word in range(n_words):
        words = np.zeros(distinct.size, np.uint64)
        for numbers, lengths in parts:
            words[np.searchsorted(distinct, numbers)] |= np.uint64(lengths >> 64 * word & 0xFFFF_FFFF_FFFF_FFFF)
        united = [total | bits << 64 * word for total, bits in zip(united, words.tolist(), strict=True)]
    return zip(distinct.tolist(), united, strict=True)


class _Scaled:
    """Rationals as (offset + step * b) / den with integers b >= 0, and sets of sums of b's: a big integer's bits where
    sums are small, else an ascending array."""

    def __init__(self, members: Sequence[Fraction]) -> None:
        self.den = math.lcm(*(member.denominator for member in members))
        scaled = [int(member * self.den) for member in members]
        self.offset = min(scaled)
        self.step = math.gcd(*(value - self.offset for value in scaled)) or 1
        self.places = {m: (value - self.offset) // self.step for m, value in zip(members, scaled, strict=True)}
        self.top = max(self.places.values())

    def start(self, members: Sequence[Fraction], count: int) -> int | npt.NDArray[np.int64]:
        """The sums of one element, ready for up to `count`."""
        if self.top * count <= _BIT_LIMIT:
            return sum(1 << self.places[member] for member in members)
        if self.top * count >= _INT64:
            raise Refused(f"means of numbers whose common denominator is too large; {_FEWER}")
        return np.array(sorted(self.places[member] for member in members), np.int64)

    def next(self, members: Sequence[Fraction], sums: int | npt.NDArray[np.int64]) -> int | npt.NDArray[np.int64]:
        """The sums of one element more."""
        if isinstance(sums, int):
            united = 0
            for member in members:
                united |= sums << self.places[member]
            return united
        if sums.size * len(members) > _WORK_LIMIT:
            raise Refused(f"too many different sums of {len(members)} values; {_FEWER}")
        steps = np.array([self.places[member] for member in members], np.int64)
        more = np.unique(sums[:, None] + steps[None, :])
        if more.size > VALUE_LIMIT:
            raise Refused(f"more than {VALUE_LIMIT} different means of {len(members)} values; {_FEWER}")
        return more

    def listed(self, sums: int | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The sums, ascending."""
        if not isinstance(sums, int):
            return sums
        raw = np.frombuffer(sums.to_bytes(sums.bit_length() // 8 + 1, "little"), np.uint8)
        return np.flatnonzero(np.unpackbits(raw, bitorder="little")).astype(np.int64)

    def mean(self, total: int, m: int) -> tuple[int, int]:
        """The mean belonging to a sum of m elements, as a reduced fraction."""
        num, den = m * self.offset + self.step * total, m * self.den
        divisor = math.gcd(num, den)
        return num // divisor, den // divisor


def linear_lengths(
    terms: Sequence[Mapping[Value, int]], coefficients: Sequence[Fraction], constant: Fraction
) -> dict[Value, int]:
    """All values of constant + sum of coefficient times argument, with their lengths, given each argument's.

    None in an argument gives None. Raises `Refused` for strings and for more than `VALUE_LIMIT` values.
    """
    den = math.lcm(constant.denominator, *(c.denominator for c in coefficients))
    scale = den * math.lcm(*(v.denominator for t in terms for v in t if isinstance(v, Fraction)))
    for term in terms:
        known = (value for value in term if value is not None)
        numbers(known, "a linear combination is of numbers", "map the value to a number first")
    none = 0
    sums: dict[int, int] = {int(constant * scale): -1}
    for coefficient, term in zip(coefficients, terms, strict=True):
        none |= term.get(None, 0)
        merged: dict[int, int] = {}
        for value, lengths in term.items():
            if isinstance(value, (int, Fraction)):
                shift = int(coefficient * Fraction(value) * scale)
                merged[shift] = merged.get(shift, 0) | lengths
        if len(merged) * len(sums) > _WORK_LIMIT // 8:
            raise Refused(f"too many combinations of values to add: {len(merged)} times {len(sums)}; {_FEWER}")
        new: dict[int, int] = {}
        for left, left_lengths in sums.items():
            for shift, lengths in merged.items():
                if both := left_lengths & lengths:
                    new[left + shift] = new.get(left + shift, 0) | both
        sums = new
        if len(sums) > VALUE_LIMIT:
            raise Refused(f"more than {VALUE_LIMIT} different values of a linear combination; {_FEWER}")
    out: dict[Value, int] = {normalise(Fraction(total, scale)): lengths for total, lengths in sums.items() if lengths}
    # None where some argument is None and every other argument is possible at all.
    somewhere = -1
    for term in terms:
        reachable = 0
        for lengths in term.values():
            reachable |= lengths
        somewhere &= reachable
    if none & somewhere:
        out[None] = none & somewhere
    return out
