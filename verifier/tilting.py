"""Many rivals at once, coarsely: how many words may fail, by exponential weights instead of counted sums.

Method: for theta > 0, the words with f(u_1) + .. + f(u_m) + own <= 0 are at most the sum over all words of
e^(-theta (f(u_1) + .. + own)) (Chernoff, 1952), which is a product of matrices over the automaton's states. Here f is
below the terms of all rivals of a range and all positions before the last, so one such sum stands for many. For each
label the ranges are halved where they lose too much; for each query theta is searched for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from .counting import Arrows, Floats, Integers
from .first_layer import SLACK, FirstLayer

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
RANGES = 56
"""At most so many ranges of rivals a label."""
FINE = 1e-5
"""A range that loses less than this share of a group is not halved."""
NOTHING = 1e-9
"""Of two thetas that lose less than this share the smaller is taken: the greater may overflow for another query."""
SAMPLES = 4
"""Ranges are chosen by so many queries."""
STEPS = np.array([0, -2, 2, -5, 5])
NEXT = np.array([0, -1, 1])
ENOUGH = 5e-5
BELOW_TOP = 12
LIGHT = 2.0**-30
"""Tokens with less than this share of the greatest attention weight are taken together."""
CLIP = 200.0
LEAST = 2.0**-500
SmallLabel = tuple[int, Integers, Arrows, int]
"""A label, queries with the same words before them, these words, and how many they are."""


@dataclass(frozen=True, eq=False)
class Tilted:
    """The inputs of length n with this label: `proved` of `size` are right. `ranges` [[first, end)] of rivals;
    `thetas`: for each query, the exponent of two of the unit, and one digit for each range."""

    n: int
    label: int
    size: int
    ranges: Integers
    proved: int
    thetas: Mapping[int, tuple[int, Integers]]

    def to_json(self, order: Mapping[int, int]) -> dict[str, object]:
        """As in a certificate; queries by their place among the domain's tokens."""
        queries = [[order[q], base, "".join(DIGITS[d] for d in digits)] for q, (base, digits) in self.thetas.items()]
        return {"n": self.n, "label": self.label, "rivals": self.ranges.tolist(), "queries": sorted(queries)}


@dataclass
class _Label:
    """What is found of a label so far."""

    label: int
    samples: list[tuple[int, Arrows]] = field(default_factory=list)
    ranges: Integers = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    digits: Integers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    size: int = 0
    proved: int = 0
    thetas: dict[int, tuple[int, Integers]] = field(default_factory=dict)


def tilt(layer: FirstLayer, labels: Sequence[SmallLabel]) -> Iterator[Tilted]:
    """Bounds for all queries of these labels, at once: yields when all is done, a label at a time."""
    coarse = _Coarse(layer)
    found: dict[int, _Label] = {}
    by_query: dict[int, list[tuple[int, Arrows, int]]] = {}
    for label, queries, arrows, size in labels:
        found.setdefault(label, _Label(label)).size += size * len(queries)
        for query in queries.tolist():
            by_query.setdefault(query, []).append((label, arrows, size))
    if not labels:
        return
    everywhere = sorted(by_query)
    fixed = {everywhere[(2 * i + 1) * len(everywhere) // (2 * SAMPLES)] for i in range(SAMPLES)}
    for query in sorted(fixed):
        for label, arrows, _ in by_query[query]:
            found[label].samples.append((query, arrows))
    for label, queries, arrows, _ in labels:
        if not found[label].samples:
            found[label].samples.append((int(queries[len(queries) // 2]), arrows))
    kept = {query: coarse.maxima(query).copy() for query in fixed}
    for state in found.values():
        _choose_ranges(coarse, kept, state)
    for query, members in sorted(by_query.items()):
        maxima = coarse.maxima(query)
        for label, arrows, size in members:
            state = found[label]
            table = coarse.table(query, label, state.ranges, maxima, arrows)
            digits, share = _search(table, state.digits)
            lost = min(size, int(Fraction(share) * size)) if share < 1 else size
            if lost < size:
                state.thetas[query] = (table.base, digits)
                state.proved += size - lost
    for state in sorted(found.values(), key=lambda state: -state.size):
        yield Tilted(layer.n, state.label, state.size, state.ranges, state.proved, state.thetas)


class _Coarse:
    """Tables of one length, alike for all positions before the last."""

    def __init__(self, layer: FirstLayer) -> None:
        n = layer.n
        ov, slack = layer.ov, np.abs(layer.ov.mid.numpy()).max() * SLACK
        gives, takes = ov.low().numpy() - slack, ov.high().numpy() + slack  # [j, t, w]
        self.gives, self.takes = gives[: n - 1].min(axis=0), takes[: n - 1].max(axis=0).T.copy()
        self.last_gives, self.last_takes = gives[n - 1], takes[n - 1]
        slack = np.abs(layer.direct.mid.numpy()).max() * SLACK
        self.low, self.high = layer.direct.low().numpy() - slack, layer.direct.high().numpy() + slack
        self.least = layer.least[:, : n - 1].min(axis=1) * (1 - SLACK)
        self.most = layer.most[:, : n - 1].max(axis=1) * (1 + SLACK)
        self.last = layer.least[:, n - 1] * (1 - SLACK), layer.most[:, n - 1] * (1 + SLACK)
        self.greatest = float(self.takes.max() - self.gives.min())
        self._maxima = np.empty((len(self.takes).bit_length(), *self.takes.shape))
        self.steps = n - 1

    def maxima(self, query: int) -> Floats:
        """[k, w, t]: at least what the outputs w, w + 1, .., 2^k of them in all, get from token t (as many as are).

        The array is the same one at each call, with new contents.
        """
        rows = self._maxima
        np.add(self.high[query][:, None], self.takes, out=rows[0])
        for k in range(1, len(rows)):
            reach = 2 ** (k - 1)
            np.maximum(rows[k - 1][:-reach], rows[k - 1][reach:], out=rows[k][:-reach])
            rows[k][-reach:] = rows[k - 1][-reach:]
        return rows

    def table(self, query: int, label: int, ranges: Integers, maxima: Floats, arrows: Arrows) -> _Table:
        """The terms of the words `arrows`, for each range of rivals."""
        weights = self.most[query, arrows.tokens]
        top = max(float(weights.max()), 2.0**-800)
        heavy = weights > top * LIGHT
        tokens, light = arrows.tokens[heavy], float(weights[~heavy].max(initial=0.0))
        first, end = ranges.T
        level = np.log2(end - first + 0.5).astype(np.int64)
        against = np.maximum(maxima[level, first][:, tokens], maxima[level, end - 2**level][:, tokens])
        gain = self.low[query, label] + self.gives[tokens, label] - against
        rest = np.where(gain >= 0, self.least[query, tokens], self.most[query, tokens]) * gain
        rivals = self.high[query] + self.last_takes[query]
        against = np.maximum.reduceat(np.append(rivals, -np.inf), ranges.reshape(-1))[::2]
        gain = self.low[query, label] + self.last_gives[query, label] - against
        own = np.where(gain >= 0, self.last[0][query, query], self.last[1][query, query]) * gain
        slack = max(float(np.abs(rest).max(initial=0.0)), float(np.abs(own).max(initial=0.0))) * SLACK
        slack += top * 2.0**-200
        base = -int(np.floor(np.log2(top))) - BELOW_TOP
        dim = light * max(0.0, float(self.high[query].max() - self.low[query, label]) + self.greatest)
        places, moves = np.cumsum(heavy) - 1, []
        for source, target, some in arrows.moves:
            strong = some[heavy[some]]
            moves.append((source, target, places[strong], len(some) - len(strong)))
        return _Table(rest - slack, -dim - slack, own - slack, base, arrows, tuple(moves), self.steps)


@dataclass(frozen=True, eq=False)
class _Table:
    """At most the true terms: `rest` [range, heavy token], `dim` for the other tokens, `own` [range].

    Thetas are multiples of 2^base. `moves`: from a state to a state by these heavy tokens and so many others.
    """

    rest: Floats
    dim: float
    own: Floats
    base: int
    arrows: Arrows
    moves: tuple[tuple[int, int, Integers, int], ...]
    steps: int

    def shares(self, digits: Integers) -> Floats:
        """[choice, range] from digits [choice, range]: at most the share of the words that have a sum of at most 0."""
        theta = np.where(digits % 2, 3.0, 2.0) * np.exp2(self.base + digits // 2.0)
        with np.errstate(over="ignore", invalid="ignore"):
            weights = _exp_above(-theta[..., None] * self.rest)
            others = _exp_above(-theta * self.dim)
            scale = 1.0 / len(self.arrows.tokens)
            moves = [
                (s, t, (weights[..., some].sum(axis=-1) + more * others) * scale) for s, t, some, more in self.moves
            ]
            state = {0: np.ones(digits.shape)}
            for _ in range(self.steps):
                following: dict[int, Floats] = {}
                for source, target, weight in moves:
                    if source in state:
                        step = state[source] * weight
                        following[target] = following[target] + step if target in following else step
                state = {target: np.maximum(found, LEAST) for target, found in following.items()}
            ends = sum((found for s, found in state.items() if s in self.arrows.accepting), np.zeros(digits.shape))
            words = Fraction(self.arrows.size(self.steps), len(self.arrows.tokens) ** self.steps)
            found = ends * _exp_above(-theta * self.own) / float(words) * (1 + 2.0**-15)
        return np.asarray(np.where(np.isnan(found), np.inf, found))


def _exp_above(x: Floats) -> Floats:
    """At least e^x; infinite above CLIP."""
    return np.where(x < CLIP, np.exp(np.clip(x, -CLIP, CLIP)) * (1 + 2.0**-30), np.inf)


def _choose_ranges(coarse: _Coarse, kept: Mapping[int, Floats], state: _Label) -> None:
    """The ranges of rivals of a label, and thetas to start from, by how some queries fare."""
    outputs = coarse.high.shape[1]
    maxima = {query: kept[query] if query in kept else coarse.maxima(query).copy() for query, _ in state.samples}
    ranges = np.array([(a, b) for a, b in ((0, state.label), (state.label + 1, outputs)) if a < b], dtype=np.int64)
    state.ranges = ranges.reshape(-1, 2)
    grid = np.arange(2, len(DIGITS), 3)
    while True:
        tables = [coarse.table(q, state.label, state.ranges, maxima[q], arrows) for q, arrows in state.samples]
        tried = np.broadcast_to(grid[:, None], (len(grid), len(state.ranges)))
        found = np.stack([table.shares(tried) for table in tables])  # [sample, theta, range]
        found = np.maximum(found, NOTHING)
        state.digits = grid[np.median(found.argmin(axis=1), axis=0).astype(np.int64)]
        lost, wide = found.min(axis=1).max(axis=0), np.ptp(state.ranges, axis=1) > 1
        chosen = np.flatnonzero(wide & (lost > max(FINE, float(np.minimum(lost, 1).sum()) / RANGES)))
        chosen = chosen[np.argsort(-lost[chosen])][: RANGES - len(state.ranges)]
        if not len(chosen):
            return
        pieces = []
        for place, (a, b) in enumerate(state.ranges.tolist()):
            middle = (a + b) // 2
            pieces += [(a, middle), (middle, b)] if place in chosen else [(a, b)]
        state.ranges = np.array(pieces, dtype=np.int64)


def _search(table: _Table, digits: Integers) -> tuple[Integers, float]:
    """Better digits near those given, and the share that is lost with them in all: again, as long as it pays."""
    everywhere, share = np.arange(len(digits)), np.inf
    for steps in (STEPS, STEPS, NEXT):
        tried = np.clip(digits + steps[:, None], 0, len(DIGITS) - 1)
        found = table.shares(tried)
        best = np.maximum(found, NOTHING).argmin(axis=0)
        before, share = share, float(found[best, everywhere].sum())
        digits = tried[best, everywhere]
        if share < ENOUGH or share > 0.9 * before:
            break
    return digits, share
