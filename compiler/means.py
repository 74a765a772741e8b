"""Exact sums and means over finite sets of rationals, with the lengths at which each occurs.

Numbers are scaled to integers; the sums of m elements of a set, with repetition, are a bit set in one big integer
(the set for m + 1 is the union of its shifts), which keeps the common case, small integers and up to a hundred keys,
at microseconds a set.
"""

from __future__ import annotations

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


def mean_lengths(sets: Mapping[tuple[Fraction, ...], Mapping[int, int]]) -> dict[Value, int]:
    """All means of m elements of a set, with repetition, 2 <= m <= hi, and the lengths at which each occurs.

    `sets` gives for each set (ascending) the largest number hi of summands at each length. Lengths come out as bit
    sets. Raises `Refused` for more than `VALUE_LIMIT` different means.
    """
    totals: dict[tuple[int, int], int] = {}
    small: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]] = []
    count = 0
    for members, largest in sets.items():
        top = max(largest.values())
        if top * (len(members) - 1) + 1 > VALUE_LIMIT:
            raise Refused(f"more than {VALUE_LIMIT} different means of up to {top} of {len(members)} values; {_FEWER}")
        scaled = _Scaled(members)
        for m, sums in scaled.sums(top):
            lengths = sum(1 << n for n, hi in largest.items() if hi >= m)
            if m >= 2 and lengths:
                num, den = scaled.means(m, sums)
                small.append((num, den, lengths))
                count += num.size
                if count > _WORK_LIMIT:
                    _collect(small, totals)
                    small, count = [], 0
    _collect(small, totals)
    return {int(num) if den == 1 else Fraction(num, den): lengths for (num, den), lengths in totals.items()}


def _collect(
    parts: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]], totals: dict[tuple[int, int], int]
) -> None:
    """Unite the lengths of equal means, given as reduced pairs."""
    if not parts:
        return
    largest = max(int(max(np.abs(num).max(), den.max())) for num, den, _ in parts)
    if largest < 1 << 30:
        codes = np.concatenate([num * (1 << 31) + den for num, den, _ in parts])
        owner = np.concatenate([np.full(num.size, i, np.int32) for i, (num, _, _) in enumerate(parts)])
        lengths = [part[2] for part in parts]
        distinct, inverse = np.unique(codes, return_inverse=True)
        if distinct.size > VALUE_LIMIT:
            raise Refused(f"more than {VALUE_LIMIT} different means; {_FEWER}")
        n_words = max(length.bit_length() for length in lengths) // 64 + 1
        mask = (1 << 64) - 1
        united = np.zeros(distinct.size, object)
        order = np.argsort(inverse, kind="stable")
        starts = np.searchsorted(inverse[order], np.arange(distinct.size))
        for word in range(n_words):
            words = np.array([length >> 64 * word & mask for length in lengths], np.uint64)
            union = np.bitwise_or.reduceat(words[owner[order]], starts)
            united = united + union.astype(object) * (1 << 64 * word)
        den = distinct % (1 << 31)
        for pair_num, pair_den, union_ in zip(((distinct - den) >> 31).tolist(), den.tolist(), united, strict=True):
            totals[pair_num, pair_den] = totals.get((pair_num, pair_den), 0) | int(union_)
    else:
        for num, den, length in parts:
            for pair in zip(num.tolist(), den.tolist(), strict=True):
                totals[pair] = totals.get(pair, 0) | length
            if len(totals) > VALUE_LIMIT:
                break
    if len(totals) > VALUE_LIMIT:
        raise Refused(f"more than {VALUE_LIMIT} different means; {_FEWER}")


class _Scaled:
    """A set of rationals as (offset + step * b) / den with integers b >= 0, the least of them 0."""

    def __init__(self, members: Sequence[Fraction]) -> None:
        self.den = math.lcm(*(member.denominator for member in members))
        scaled = [int(member * self.den) for member in members]
        self.offset = min(scaled)
        self.step = math.gcd(*(value - self.offset for value in scaled)) or 1
        self.steps = sorted((value - self.offset) // self.step for value in scaled)

    def sums(self, top: int) -> Iterable[tuple[int, npt.NDArray[np.int64]]]:
        """For m = 1..top, the sums of m of the b's, ascending."""
        if self.steps[-1] * top >= _INT64:
            raise Refused(f"means of numbers whose common denominator is too large; {_FEWER}")
        if self.steps[-1] * top <= _BIT_LIMIT:
            bits = 1
            for m in range(1, top + 1):
                united = 0
                for step in self.steps:
                    united |= bits << step
                bits = united
                raw = np.frombuffer(bits.to_bytes(bits.bit_length() // 8 + 1, "little"), np.uint8)
                yield m, np.flatnonzero(np.unpackbits(raw, bitorder="little")).astype(np.int64)
            return
        steps = np.array(self.steps, np.int64)
        sums = np.zeros(1, np.int64)
        for m in range(1, top + 1):
            if sums.size * steps.size > _WORK_LIMIT:
                raise Refused(f"too many different sums of {m} of {steps.size} values; {_FEWER}")
            sums = np.unique(sums[:, None] + steps[None, :])
            if sums.size > VALUE_LIMIT:
                raise Refused(f"more than {VALUE_LIMIT} different means of {m} of {steps.size} values; {_FEWER}")
            yield m, sums

    def means(self, m: int, sums: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The means belonging to sums of m elements, as reduced fractions."""
        largest = max(abs(m * self.offset), abs(m * self.offset + self.step * int(sums[-1])), m * self.den)
        if largest >= _INT64:
            raise Refused(f"means of numbers whose common denominator is too large; {_FEWER}")
        num = m * self.offset + self.step * sums
        den = np.full(num.size, m * self.den, np.int64)
        divisor = np.gcd(num, den)
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
