"""Rule `count`, coarsely: one bound for many rivals and all positions (section 7 of the specification).

For theta > 0, the words u with f(u_1) + .. + f(u_m) + own <= 0 are at most the sum over all words of
e^(-theta (f(u_1) + .. + own)), each of these terms being positive, and for such u at least 1. That sum is a product of
matrices over the states that read the words: no sums are told apart, so it costs little; its value is rounded up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

from .balls import EXP_ERROR, Floats, exp_near
from .bodies import Labels
from .core import Ints
from .count_tables import Tables, Words, lower_product, lower_sum
from .format import Json, integer, listing, record, require, text, within

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
LEAST_STATE = 2.0**-500
CLIP = 200.0
LIGHT = 2.0**-30


@dataclass(frozen=True, eq=False)
class Tilted:
    """Groups of one length and label: `rivals` [[first, end)...], and for each query theta [rivals]."""

    n: int
    label: int
    rivals: Ints
    queries: dict[int, Floats]


def read_tilted(data: Json, lo: int, hi: int, outputs: int, tokens: int) -> Tilted:
    """The ranges ascend, do not overlap, and hold every output but the label."""
    item = record(data, "a tilted entry", ("n", "label", "rivals", "queries"))
    n, label = integer(item["n"], "n", max(lo, 2), hi), integer(item["label"], "label", 0, outputs - 1)
    ranges = [listing(entry, "a range of rivals", 2, 2) for entry in listing(item["rivals"], "rivals", 2**14, 1)]
    ends = [integer(x, "a rival", 0, outputs) for entry in ranges for x in entry]
    require(all(x < y for x, y in zip(ends[::2], ends[1::2], strict=True)), "a range of rivals is empty")
    require(all(x <= y for x, y in pairwise(ends)), "the ranges of rivals do not ascend")
    held = np.zeros(outputs, dtype=np.int64)
    for first, end in zip(ends[::2], ends[1::2], strict=True):
        held[first:end] += 1
    require(held[label] == 0 and int(held.sum()) == outputs - 1, "the ranges are not those of all rivals")
    queries: dict[int, Floats] = {}
    for entry in listing(item["queries"], "queries", tokens):
        triple = listing(entry, "a query", 3, 3)
        query, base = integer(triple[0], "query", 0, tokens - 1), integer(triple[1], "an exponent", -900, 900)
        digits = [DIGITS.find(c) for c in text(triple[2], "digits")]
        require(len(digits) == len(ranges) and min(digits) >= 0, "not one digit for each range of rivals")
        require(query not in queries, "a query is listed twice")
        queries[query] = np.array([math.ldexp((2.0, 3.0)[d % 2], base + d // 2) for d in digits])
    return Tilted(n, label, np.array(ends, dtype=np.int64).reshape(-1, 2), queries)


def check_tilted(tables: Tables, part: Labels, found: list[tuple[int, Tilted]]) -> int:
    """On at least so many inputs of these groups (all of the tables' length) the label wins."""
    reach = max(int(np.ptp(entry.rivals, axis=1).max()) for _, entry in found)
    every = _Coarse(tables, reach)
    won = 0
    for query in sorted({query for _, entry in found for query in entry.queries}):
        highest = every.maxima(query)
        for number, entry in found:
            if query not in entry.queries:
                continue
            with within(f"tilted[{number}]", "count"):
                words = tables.words(part, entry.label, query)
                if words.size:
                    terms = every.terms(query, entry, highest, words)
                    won += words.size - _failing(words, terms, entry.queries[query], tables.n - 1)
    return won


class _Coarse:
    """Tables of one length whose entries hold at all positions before the last."""

    def __init__(self, tables: Tables, reach: int) -> None:
        n = tables.n
        low, high = tables.value.low(), tables.value.high()  # [j, token, output]
        self.gives = low[: n - 1].min(axis=0).T.copy()  # [output, token]
        self.takes = high[: n - 1].max(axis=0).T.copy()
        self.own_low, self.own_high = low[n - 1], high[n - 1]
        self.direct_low, self.direct_high = tables.direct.low(), tables.direct.high()
        self.low, self.high = tables.low[:, : n - 1].min(axis=1), tables.high[:, : n - 1].max(axis=1)
        self.last_low, self.last_high = tables.low[:, n - 1], tables.high[:, n - 1]
        self.depth = reach.bit_length()

    def maxima(self, query: int) -> list[Floats]:
        """[output, token] for each power of two: above what the outputs from this one on, so many, get at most."""
        rows = [np.asarray(-lower_sum(-self.direct_high[query][:, None], -self.takes))]
        for k in range(1, self.depth):
            half = rows[-1]
            rows.append(np.maximum(half[: -(1 << (k - 1))], half[1 << (k - 1) :]))
        return rows

    def terms(self, query: int, entry: Tilted, highest: list[Floats], words: Words) -> _Terms:
        """Below e^(s - top) (c + d) for all rivals of a range."""
        y, first, end = entry.label, entry.rivals[:, 0], entry.rivals[:, 1]
        powers = self.high[query, words.used]
        heavy = powers >= float(powers.max()) * LIGHT
        used, light = words.used[heavy], float(powers[~heavy].max(initial=0.0))
        level = [int(width).bit_length() - 1 for width in end - first]
        against = np.stack(
            [np.maximum(highest[k][a], highest[k][b - (1 << k)]) for k, a, b in zip(level, first, end, strict=True)]
        )[:, used]
        own = lower_sum(self.direct_low[query, y], self.gives[y, used])
        terms = lower_product(lower_sum(own, -against), self.low[query, used], self.high[query, used])
        least = lower_sum(lower_sum(self.direct_low[query, y], self.gives[y].min()), -highest[0].max())
        faint = lower_product(np.minimum(least, 0.0), np.zeros(1), np.array([light]))
        rivals = -lower_sum(-self.direct_high[query], -self.own_high[query])
        most = np.array([rivals[a:b].max() for a, b in zip(first, end, strict=True)])
        gain = lower_sum(lower_sum(self.direct_low[query, y], self.own_low[query, y]), -most)
        last = lower_product(gain, self.last_low[query, query], self.last_high[query, query])
        place = np.cumsum(heavy) - 1
        moves = []
        for source, target, chosen in words.moves:
            kept = chosen[heavy[chosen]]
            moves.append((source, target, place[kept], len(chosen) - len(kept)))
        return _Terms(terms, faint, last, moves)


@dataclass(frozen=True, eq=False)
class _Terms:
    """Lower bounds of the terms: `rest` [range, token], `faint` [1] for each of the tokens with little weight, and
    `own` [range]. `moves`: from a state to a state by these tokens (places in `rest`), and by so many faint ones."""

    rest: Floats
    faint: Floats
    own: Floats
    moves: list[tuple[int, int, Ints, int]]


def _failing(words: Words, terms: _Terms, theta: Floats, m: int) -> int:
    """At most so many of the words have, for some range, a sum of at most 0."""
    shift = max(0, len(words.used) - 1).bit_length()
    with np.errstate(over="ignore", invalid="ignore"):
        rest, faint = _power_above(-theta[:, None] * terms.rest), _power_above(-theta * terms.faint)
        steps = [
            (s, t, np.ldexp(rest[:, chosen].sum(axis=1) + more * faint, -shift)) for s, t, chosen, more in terms.moves
        ]
        state = {words.start: np.ones(len(theta))}
        for _ in range(m):
            following: dict[int, Floats] = {}
            for source, target, weight in steps:
                if source in state:
                    reached = state[source] * weight
                    following[target] = following[target] + reached if target in following else reached
            state = {target: np.maximum(value, LEAST_STATE) for target, value in following.items()}
        ends = sum((value for s, value in state.items() if words.accept[s]), np.zeros(len(theta)))
        total = float((ends * _power_above(-theta * terms.own)).sum())
    if not np.isfinite(total):
        return words.size
    # Each of m < 2^10 steps adds up at most 2^15 + 2^22 positive numbers, with a relative error below 2^-30.
    share = Fraction(total) * (1 + Fraction(1, 2**18)) + Fraction(1, 2**900)
    return min(words.size, math.floor(share * (1 << shift * m)))


def _power_above(x: Floats) -> Floats:
    """At least e^x' for every x' that float64 rounds to x; infinite above CLIP, at least e^-CLIP."""
    near = exp_near(np.clip(np.nextafter(x, np.inf), -CLIP, CLIP))
    return np.where(x < CLIP, near * (1 + 4 * EXP_ERROR), np.inf)
