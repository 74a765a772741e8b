"""The least softmax means of heads over the paths to some classes of a position: shortest-path problems.

With weights e_j in [least, most] and values v_j,  mean = sum_j e_j v_j / sum_j e_j >= L  on every path iff (by these
intervals)  min over paths of sum_j min(least (v_j - L), most (v_j - L)) >= 0, a sum that is concave and falls in L.
Its root is sought in float32 by Newton's method, and what is taken is confirmed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .word_graph import WordGraph

ROOT_STEPS = 12
CLOSE = 2.0**-18
"""How far below the root that float32 finds the level is, relative to the range of values."""
REPAIRS, BACK = 4, 2.0**-36
TINY = 2.0**-900
WIDE = 16


@dataclass(frozen=True, eq=False)
class Prefixes:
    """The paths of a graph to some classes of position i (`rows`).

    `steps` [j < i]: (sources, edges), each int64 [at most, node]: the edges into each node at time j + 1 that lead to
    the rows, filled by repetition, and the nodes they come from. `ends` [row]: the node that its class leaves.
    """

    i: int
    rows: Tensor
    steps: list[tuple[Tensor, Tensor]]
    ends: Tensor

    @classmethod
    def of(cls, graph: WordGraph, i: int, rows: Tensor) -> Prefixes:
        nodes, ends = torch.unique(graph.sources[i][rows], return_inverse=True)
        steps: list[tuple[Tensor, Tensor]] = []
        for j in range(i - 1, -1, -1):
            edges = graph.entering[j][:, nodes]
            nodes, sources = torch.unique(graph.sources[j][edges], return_inverse=True)
            steps.append((sources, edges))
        return cls(i, rows, steps[::-1], ends)


@dataclass(frozen=True, eq=False)
class Keys:
    """What the paths meet at each position j < i. `chosen[j]`: one class of j for each kind of them; `kinds[j]`: the
    kind of each edge of `Prefixes.steps[j]`; `met[j]` bool [kind, row]: whether some path to the row meets it."""

    chosen: list[Tensor]
    kinds: list[Tensor]
    met: list[Tensor]

    @classmethod
    def of(cls, prefixes: Prefixes, alike: list[Tensor] | None) -> Keys:
        """`alike` [position][class]: classes with the same number there have the same keys and values."""
        chosen, kinds, met = [], [], []
        rows = len(prefixes.rows)
        reached = torch.zeros(int(prefixes.ends.max()) + 1, rows)
        reached[prefixes.ends, torch.arange(rows)] = 1.0  # at time j + 1, [node, row]: whether it leads to the row
        for j in range(prefixes.i - 1, -1, -1):
            sources, edges = prefixes.steps[j]
            names = (edges if alike is None else alike[j][edges]).flatten()
            unique, kind = torch.unique(names, return_inverse=True)
            first = torch.empty(len(unique), dtype=torch.int64)
            first[kind] = edges.flatten()
            along = reached.expand(len(edges), *reached.shape).flatten(0, 1)
            met.append(torch.zeros(len(unique), rows).index_add_(0, kind, along) > 0)
            before = torch.zeros(int(sources.max()) + 1, rows)
            reached = before.index_add_(0, sources.flatten(), along).clamp(max=1.0)
            chosen.append(first)
            kinds.append(kind.view(edges.shape))
        return cls(chosen[::-1], kinds[::-1], met[::-1])


def shortest(prefixes: Prefixes, kinds: list[Tensor], costs: list[Tensor]) -> Tensor:
    """[row, ...]: the least sum of costs [kind at j, row, ...] at the positions j < i, on the paths to each row."""
    rows = len(prefixes.rows)
    if not prefixes.i:
        return torch.zeros(1)
    best = torch.zeros(1, *costs[0].shape[1:], dtype=costs[0].dtype)
    for (sources, _), kind, cost in zip(prefixes.steps, kinds, costs, strict=True):
        if len(best) == 1:
            sources = torch.zeros_like(sources)
        if len(sources) > WIDE:
            best = (best[sources] + cost[kind]).amin(0)
            continue
        found = best[sources[0]].add_(cost[kind[0]])
        for p in range(1, len(sources)):
            torch.minimum(found, best[sources[p]].add_(cost[kind[p]]), out=found)
        best = found
    return best[prefixes.ends, torch.arange(rows)]


def _shortest_with(
    prefixes: Prefixes, kinds: list[Tensor], costs: list[Tensor], carried: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """As `shortest`, and the sum of `carried` along the path that attains the least."""
    best = torch.zeros(1, *costs[0].shape[1:], dtype=costs[0].dtype)
    sums = torch.zeros_like(best)
    for (sources, _), kind, cost, other in zip(prefixes.steps, kinds, costs, carried, strict=True):
        if len(sources) > WIDE:
            step, summed = best[sources] + cost[kind], sums[sources] + other[kind]
            best, at = step.min(0)
            sums = summed.gather(0, at[None])[0]
            continue
        found, along = best[sources[0]].add_(cost[kind[0]]), sums[sources[0]].add_(other[kind[0]])
        for p in range(1, len(sources)):
            step, summed = best[sources[p]].add_(cost[kind[p]]), sums[sources[p]].add_(other[kind[p]])
            along = torch.where(step < found, summed, along)
            found = torch.minimum(found, step, out=found)
        best, sums = found, along
    rows = torch.arange(len(prefixes.rows))
    return best[prefixes.ends, rows], sums[prefixes.ends, rows]


@dataclass(frozen=True, eq=False)
class Weights:
    """Bounds of the softmax's weights, up to a factor that depends on the row: at j < i [kind, row, head, 1], and of
    the row's own class [row, head, 1]."""

    least: list[Tensor]
    most: list[Tensor]
    own_least: Tensor
    own_most: Tensor


class Means:
    """`values` [j < i][kind, row, head, k] and `own` [row, head, k]: at least the values; and their weights."""

    def __init__(self, prefixes: Prefixes, keys: Keys, values: list[Tensor], own: Tensor, weights: Weights) -> None:
        self.prefixes, self.keys, self.values, self.own, self.weights = prefixes, keys, values, own, weights
        self.floor, top = own, own
        for value, met in zip(values, keys.met, strict=True):
            here = met[..., None, None]
            self.floor = torch.minimum(self.floor, torch.where(here, value, torch.inf).amin(0))
            top = torch.maximum(top, torch.where(here, value, -torch.inf).amax(0))
        self.range = top - self.floor

    def gains(self, level: Tensor) -> list[Tensor]:
        """At most e (v - level) for every weight e within its bounds: at each j < i [kind, row, head, k], and of the
        row itself [row, head, k]."""
        w = self.weights
        pairs = [*zip(self.values, w.least, w.most, strict=True), (self.own, w.own_least, w.own_most)]
        found = []
        for value, least, most in pairs:
            away = value - level
            found.append(torch.minimum(least * away, away.mul_(most)))
        return found

    def least_sum(self, gains: list[Tensor]) -> Tensor:
        """[row, ...]: the least sum of `gains` on any path."""
        return shortest(self.prefixes, self.keys.kinds, gains[:-1]) + gains[-1]

    def level(self) -> tuple[Tensor, list[Tensor]]:
        """A level [row, head, k] that no path's mean is below, and the gains there."""
        if not self.prefixes.i:
            return self.own, [torch.zeros_like(self.own)]
        guess = torch.nan_to_num(self._search().double(), nan=-torch.inf) - CLOSE * self.range
        guess = torch.maximum(torch.minimum(guess, self.floor + self.range), self.floor)
        for _ in range(REPAIRS):
            gains = self.gains(guess)
            sums = self.least_sum(gains)
            if not bool((sums < 0).any()):
                return self._polished(guess, gains, sums)
            lower = guess + self._step(guess) - BACK * self.range
            guess = torch.where(sums < 0, torch.maximum(torch.minimum(lower, guess), self.floor), guess)
        gains = self.gains(guess)
        sums, near = self.least_sum(gains), self._least_weight()
        lost = torch.where(near > TINY, sums / near.clamp(min=TINY), -torch.inf) * (1 + 2.0**-40)
        level = torch.maximum(self.floor, torch.where(sums < 0, guess + lost, guess))
        return level, self.gains(level)

    def _polished(self, level: Tensor, gains: list[Tensor], sums: Tensor) -> tuple[Tensor, list[Tensor]]:
        """A level nearer to the root, where a small sum does not mean that it is near."""
        if bool((sums <= 4 * CLOSE * self.range * self._least_weight()).all()):
            return level, gains
        higher = torch.minimum(level + self._step(level) - 2.0**-40 * self.range, self.floor + self.range)
        higher = torch.maximum(higher, level)
        found = self.gains(higher)
        level = torch.where(self.least_sum(found) < 0, level, higher)
        return level, self.gains(level)

    def _step(self, level: Tensor) -> Tensor:
        """Newton's, from a level: the least path's gain over its weight."""
        gains, w = self.gains(level), self.weights
        pairs = [*zip(self.values, w.least, w.most, strict=True), (self.own, w.own_least, w.own_most)]
        weights = [torch.where(value >= level, least, most) for value, least, most in pairs]
        gain, weight = _shortest_with(self.prefixes, self.keys.kinds, gains[:-1], weights[:-1])
        return (gain + gains[-1]) / (weight + weights[-1]).clamp(min=torch.finfo(level.dtype).tiny)

    def _most_weight(self) -> Tensor:
        """[row, head, 1]: the greatest sum of weights on any path."""
        return -self.least_sum([*(-most for most in self.weights.most), -self.weights.own_most])

    def _least_weight(self) -> Tensor:
        """[row, head, 1]: the least sum of weights on any path."""
        return self.least_sum([*self.weights.least, self.weights.own_least])

    def _search(self) -> Tensor:
        """Near the root, in float32."""
        single = self._single()
        total, level = single.weights.own_most, single.own * single.weights.own_most
        for value, most, met in zip(single.values, single.weights.most, self.keys.met, strict=True):
            weight = most * met[..., None, None]
            total, level = total + weight.sum(0), level + (value * weight).sum(0)
        level = level / total
        close = CLOSE * single.range
        for number in range(ROOT_STEPS):
            step = single._step(level)
            level = level + step
            if number and bool((step.abs() <= close).all()):
                break
        return level

    def _single(self) -> Means:
        """In float32, rounded to nearest."""
        w, small = self.weights, torch.finfo(torch.float32).tiny
        least, most = ([x.float().clamp(min=small) for x in xs] for xs in (w.least, w.most))
        own = w.own_least.float().clamp(min=small), w.own_most.float().clamp(min=small)
        values = [value.float() for value in self.values]
        return Means(self.prefixes, self.keys, values, self.own.float(), Weights(least, most, *own))

    def beyond(self, gains: list[Tensor]) -> list[Tensor]:
        """What each position's class adds to the means beyond the level, at least: as `gains`."""
        greatest = self._most_weight()
        return [gain / greatest for gain in gains]
