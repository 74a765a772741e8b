"""Least weighted means over paths: the core of rule `paths`'s bound of softmax attention.

For a query class (a lane), keys of class b at position j have values al_j(b) and weights e in [low, high], 0 <= low <=
high. For a number L put g_j(b) = min(low (al - L), high (al - L)). If the sum of g_j along every path is >= 0, then the
weighted mean of the values is >= L on every path, for all weights within their intervals.

Why float64 suffices here without directed rounding. Values and L's are multiples of 2^-158, `low` is 0 or >= 2^-853 and
`high` >= 2^-853, so no product underflows; and low is at most (1 - 2^-41) times the least true weight, high at least
(1 + 2^-41) times the greatest (`margin` of the weights). The subtraction and up to two products round by 3 * 2^-53, so
each true term exceeds the computed one, t, by at least |t| 2^-42. Adding up N terms in float64, one after the other,
errs by less than N 2^-53 times the sum of the |t|, which that exceeds while N <= 2^10. A minimum over paths of such
sums, taken node by node, is at most the sum along each path, as rounding is monotone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .balls import Floats
from .core import Bits, Ints
from .path_graph import WordGraph

GRID = 2.0**-100
"""x - y with y >= GRID, rounded, is a multiple of 2^-158: below 2^-105 in size it is exact, of numbers over 2^-101."""
ROUNDS = 64
"""Where weights of many orders of magnitude meet, each of a dozen rounds or two finds another path."""
INNER = 8
WIDE = 8
BACK = 2.0**-30
Ranks: TypeAlias = npt.NDArray[np.int16]
Places: TypeAlias = list[tuple[Ints, Ints, Ints]]


@dataclass(frozen=True, eq=False)
class Prefixes:
    """The paths to some classes of position i (the rows). `kinds[j]` [edge]: which row of the tables of position j the
    edge has; `source` [row]: the node from which the row's class leaves."""

    graph: WordGraph
    i: int
    kinds: list[Ints]
    source: Ints

    def least(self, terms: Callable[[int], Floats]) -> Floats:
        """[row, function]: the least sum over the paths of terms(j) [kind, row, function], j < i."""
        best = np.zeros((1, 1, 1))
        for j in range(self.i):
            best = self._advance(j, best, terms(j), None)
        return self._end(best)

    def _end(self, best: Floats) -> Floats:
        if self.i == 0:
            return np.zeros((len(self.source), 1))
        return np.asarray(best[self.source, np.arange(len(self.source))])

    def _advance(self, j: int, best: Floats, here: Floats, chosen: list[Ranks] | None) -> Floats:
        """One position further; `chosen` is given the rank, among a node's edges, of the one that attains its least."""
        step, kinds = self.graph.steps[j], self.kinds[j]
        result = np.empty((len(step.first), *here.shape[1:]))
        ranks = np.zeros(result.shape, dtype=np.int16) if chosen is not None else None
        for nodes, edges in step.groups:
            if len(edges) >= WIDE:
                for node, chain in zip(nodes, edges.T, strict=True):
                    sums = best[step.source[chain]] + here[kinds[chain]]
                    result[node] = sums.min(axis=0)
                    if ranks is not None:
                        order = np.arange(len(chain), dtype=np.int16)[:, None, None]
                        ranks[node] = ((sums == result[node]) * order).max(axis=0)
                continue
            least = best[step.source[edges[0]]] + here[kinds[edges[0]]]
            rank = np.zeros(least.shape, dtype=np.int16)
            for p in range(1, len(edges)):
                sums = best[step.source[edges[p]]] + here[kinds[edges[p]]]
                if ranks is not None:
                    np.maximum(rank, (sums < least) * np.int16(p), out=rank)
                np.minimum(least, sums, out=least)
            result[nodes] = least
            if ranks is not None:
                ranks[nodes] = rank
        if chosen is not None and ranks is not None:
            chosen.append(ranks)
        return result

    def attained(self, terms: Callable[[int], Floats]) -> tuple[Floats, Places]:
        """`least`, and for each j the place (kind, row, function) in terms(j) of a path that attains it."""
        best = np.zeros((1, 1, 1))
        chosen: list[Ranks] = []
        for j in range(self.i):
            best = self._advance(j, best, terms(j), chosen)
        value = self._end(best)
        if not self.i:
            return value, []
        every = np.indices(value.shape, dtype=np.int64)
        rows, functions = np.asarray(every[0]), np.asarray(every[1])
        node = np.broadcast_to(self.source[:, None], value.shape)
        places: Places = []
        for j in reversed(range(self.i)):
            step = self.graph.steps[j]
            edge = step.first[node] + chosen[j][node, rows, functions]
            places.append((self.kinds[j][edge], rows, functions))
            node = step.source[edge]
        return value, places[::-1]


@dataclass(frozen=True, eq=False)
class Weighted:
    """One head, seen from the rows. `values[j]` [kind, row or 1, function], `low[j]`, `high[j]` [kind, row, 1] for
    j < i; `own` [row, function], `own_low`, `own_high` [row, 1] for i itself."""

    paths: Prefixes
    values: list[Floats]
    low: list[Floats]
    high: list[Floats]
    own: Floats
    own_low: Floats
    own_high: Floats

    def terms(self, j: int, line: Floats) -> Floats:
        """[kind, row, function]: below e (value - L), e any weight within its interval."""
        distance = self.values[j] - line
        least = distance * self.low[j]
        np.multiply(distance, self.high[j], out=distance)
        return np.minimum(least, distance, out=least)

    def own_term(self, line: Floats) -> Floats:
        distance = self.own - line
        return np.minimum(distance * self.own_low, distance * self.own_high)

    def sums(self, line: Floats) -> Floats:
        """[row, function]: below every path's sum of e (value - L)."""
        return np.asarray(self.paths.least(lambda j: self.terms(j, line)) + self.own_term(line))

    def range(self) -> tuple[Floats, Floats]:
        """[row, function]: the least and the greatest value at any position."""
        shape = self.own.shape
        low = [np.broadcast_to(value.min(axis=0), shape) for value in self.values]
        high = [np.broadcast_to(value.max(axis=0), shape) for value in self.values]
        return np.minimum.reduce([self.own, *low]), np.maximum.reduce([self.own, *high])

    def greatest_weight(self) -> Floats:
        """[row, 1]: above every path's sum of weights."""
        total = self.own_high - self.paths.least(lambda j: -self.high[j])
        return np.asarray(total * (1 + 2.0**-40))

    def mean(self) -> Floats:
        """[row, function]: L, a multiple of 2^-158, with `sums(L) >= 0` in truth; nearly the greatest one.

        The least sum is concave and decreasing in L. The zero of one path's sum is at or above its zero; a search takes
        the path that is least at L, goes a little below that path's zero, and so on. What is returned was tested, and
        not rejected; or it lies on a chord of the least sum, where that is not negative, as it is concave.
        """
        proved, above = self.range()
        near = BACK * (above - proved)
        line = np.maximum(np.minimum(self._guess(), above) - GRID, proved)
        for _ in range(ROUNDS):
            value, zero = self._path(line)
            proved = np.where(accepted(value), np.maximum(proved, line), proved)
            above = np.minimum(above, zero)
            closer = np.maximum(above - np.maximum(near / 2, GRID), proved)
            if (closer <= proved).all() or (above - proved <= near).all():
                return proved
            line = closer
        found = self.sums(line)
        if accepted(found).all():
            return line
        return np.where(accepted(found), line, chord(proved, line, self.sums(proved), found))

    def _guess(self) -> Floats:
        """The mean with greatest weights, as if all classes were keys."""
        total, weight = self.own * self.own_high, self.own_high
        for value, high in zip(self.values, self.high, strict=True):
            total = total + (value * high).sum(axis=0)
            weight = weight + high.sum(axis=0)
        return np.asarray(total / weight)

    def _path(self, line: Floats) -> tuple[Floats, Floats]:
        """`sums`, and above the zero of the sum of a path that attains them: Newton's method on that path alone."""
        value, places = self.paths.attained(lambda j: self.terms(j, line))
        value = value + self.own_term(line)
        terms = [(self.own, np.broadcast_to(self.own_low, line.shape), np.broadcast_to(self.own_high, line.shape))]
        for j, (kind, row, function) in enumerate(places):
            shared = row if self.values[j].shape[1] > 1 else 0
            terms.append(
                (self.values[j][kind, shared, function], self.low[j][kind, row, 0], self.high[j][kind, row, 0])
            )
        values, low, high = (np.stack(part) for part in zip(*terms, strict=True))
        at, zero = line, values.max(axis=0)
        for _ in range(INNER):
            distance = values - at
            weight = np.where(distance >= 0, low, high)
            total = weight.sum(axis=0)
            step = (weight * distance).sum(axis=0) / np.maximum(total, 2.0**-900)
            zero = np.minimum(zero, np.where(total > 0, at + step, zero))
            at = zero
        return value, zero


def accepted(sums: Floats) -> Bits:
    """Where a lower bound of the sums proves them not negative."""
    return np.asarray(sums >= 0)


def chord(low: Floats, line: Floats, at_low: Floats, at_line: Floats) -> Floats:
    """At most the zero between low and line of the line through a positive number at low and a negative one at line."""
    at_low = np.maximum(at_low, 0)
    share = at_low / np.maximum(at_low - np.minimum(at_line, 0), 2.0**-1000)
    found = low + (line - low) * (share * (1 - 2.0**-40))
    rounding = 2.0**-48 * np.maximum(np.abs(low), np.abs(line))
    return np.maximum(found - np.maximum(rounding, GRID), low)


def together(heads: list[Weighted]) -> Floats:
    """[row, function]: below the sum of the heads' weighted means on every path.

    Each head's sum S is at least 0 at its own L, so its mean is at least L + S / Z with Z above its sum of weights; the
    sum over heads of S / Z is least on some path for all heads at once.
    """
    lines = [head.mean() for head in heads]
    total = np.sum(lines, axis=0)
    if len(heads) == 1:
        return np.asarray(total)
    shares = [(1 - 2.0**-40) / head.greatest_weight() for head in heads]

    def terms(j: int) -> Floats:
        found = heads[0].terms(j, lines[0]) * shares[0]
        for head, line, share in zip(heads[1:], lines[1:], shares[1:], strict=True):
            found += head.terms(j, line) * share
        return found

    own = [head.own_term(line) * share for head, line, share in zip(heads, lines, shares, strict=True)]
    more = heads[0].paths.least(terms) + np.sum(own, axis=0)
    return np.asarray(total + np.maximum(more, 0))


def spread(heads: list[Weighted]) -> tuple[Floats, list[Floats]]:
    """Base [row, function] and terms [kind of j, row, function] for each j < i: on every path to a row's class the sum
    over heads of the weighted means is at least base + the sum of its terms.

    As in `together`, S / Z with S the head's sum; a product with a rounded share exceeds the true one by less than the
    2^-42 of its size by which the true term exceeds the computed one.
    """
    lines = [head.mean() for head in heads]
    shares = [(1 - 2.0**-40) / head.greatest_weight() for head in heads]
    base, terms = np.zeros_like(lines[0]), []
    for head, line, share in zip(heads, lines, shares, strict=True):
        base = base + (line + head.own_term(line) * share)
    for j in range(heads[0].paths.i):
        found = heads[0].terms(j, lines[0]) * shares[0]
        for head, line, share in zip(heads[1:], lines[1:], shares[1:], strict=True):
            found += head.terms(j, line) * share
        terms.append(found)
    return base, terms
