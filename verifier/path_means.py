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
REPAIRS, BACK = 48, 2.0**-36
"""Where weights of many orders of magnitude meet, float32 does not come near; then so many steps in float64."""
TINY = 2.0**-900
WIDE = 16


@dataclass(frozen=True, eq=False)
class Prefixes:
    """The paths of a graph to some classes: the rows, each a class of a position, the last positions first.

    `active[j]`: how many rows are of later positions than j; these are the first. `steps[j]`, for each j before the
    last position: (sources, edges), each int64 [at most, node]: the edges into each node at time j + 1 that lead to a
    row, filled by repetition, and the nodes they come from. `ends` [row]: the node that its class leaves.
    """

    active: list[int]
    steps: list[tuple[Tensor, Tensor]]
    ends: Tensor

    @classmethod
    def of(cls, graph: WordGraph, positions: Tensor, classes: Tensor) -> Prefixes:
        last = int(positions[0])
        active = [int((positions > j).sum()) for j in range(last + 1)]
        ends = torch.zeros(len(positions), dtype=torch.int64)
        steps: list[tuple[Tensor, Tensor]] = []
        before = torch.zeros(0, dtype=torch.int64)  # the nodes that the edges found so far come from
        for time in range(last, -1, -1):
            here = slice(active[time], active[time - 1] if time else len(positions))
            left = graph.sources[time][classes[here]]
            nodes, places = torch.unique(torch.cat([before.flatten(), left]), return_inverse=True)
            ends[here] = places[before.numel() :]
            if steps:
                steps[-1] = (places[: before.numel()].view(before.shape), steps[-1][1])
            if time:
                edges = graph.entering[time - 1][:, nodes]
                before = graph.sources[time - 1][edges]
                steps.append((before, edges))
        return cls(active, steps[::-1], ends)

    def rows_at(self, time: int) -> slice:
        """The rows of this position."""
        return slice(self.active[time], self.active[time - 1] if time else len(self.ends))


@dataclass(frozen=True, eq=False)
class Keys:
    """What the paths meet at each position j before the last. `chosen[j]`: one class of j for each kind of them;
    `kinds[j]`: the kind of each edge of `Prefixes.steps[j]`; `met[j]` bool [kind, active row]: whether a path to the
    row meets it."""

    chosen: list[Tensor]
    kinds: list[Tensor]
    met: list[Tensor]

    @classmethod
    def of(cls, prefixes: Prefixes, alike: list[Tensor] | None) -> Keys:
        """`alike` [position][class]: classes with the same number there have the same keys and values."""
        chosen, kinds, met = [], [], []
        reached = torch.zeros(0, 0)  # at time j + 1, [node, active row]: whether it leads to the row
        for j in range(len(prefixes.steps) - 1, -1, -1):
            sources, edges = prefixes.steps[j]
            ending = prefixes.rows_at(j + 1)
            own = torch.zeros(edges.shape[1], ending.stop - ending.start)
            own[prefixes.ends[ending], torch.arange(own.shape[1])] = 1.0
            reached = torch.cat([reached, own], 1) if reached.numel() else own
            names = (edges if alike is None else alike[j][edges]).flatten()
            unique, kind = torch.unique(names, return_inverse=True)
            first = torch.empty(len(unique), dtype=torch.int64)
            first[kind] = edges.flatten()
            along = reached.expand(len(edges), *reached.shape).flatten(0, 1)
            met.append(torch.zeros(len(unique), reached.shape[1]).index_add_(0, kind, along) > 0)
            nodes = prefixes.steps[j - 1][1].shape[1] if j else 1
            reached = torch.zeros(nodes, reached.shape[1]).index_add_(0, sources.flatten(), along).clamp(max=1.0)
            chosen.append(first)
            kinds.append(kind.view(edges.shape))
        return cls(chosen[::-1], kinds[::-1], met[::-1])


def shortest(prefixes: Prefixes, kinds: list[Tensor], costs: list[Tensor]) -> Tensor:
    """[row, ...]: the least sum of costs [kind at j, active row, ...] at the positions before each row's, on the paths
    to it."""
    if not costs:
        return torch.zeros(1, dtype=torch.float64)
    best = torch.zeros(1, *costs[0].shape[1:], dtype=costs[0].dtype)
    done = [best.new_zeros(len(prefixes.ends) - prefixes.active[0], *best.shape[2:])]
    for j, ((sources, _), kind, cost) in enumerate(zip(prefixes.steps, kinds, costs, strict=True)):
        if len(sources) > WIDE:
            best = (best[sources] + cost[kind]).amin(0)
        else:
            found = best[sources[0]].add_(cost[kind[0]])
            for p in range(1, len(sources)):
                torch.minimum(found, best[sources[p]].add_(cost[kind[p]]), out=found)
            best = found
        done.append(_ended(prefixes, j, best))
        best = best[:, : prefixes.active[j + 1]]
    return torch.cat(done[::-1])


def _ended(prefixes: Prefixes, j: int, best: Tensor) -> Tensor:
    """[row of position j + 1, ...]: its own, of sums [node, active row, ...] to time j + 1."""
    ending = prefixes.rows_at(j + 1)
    return best[prefixes.ends[ending], torch.arange(ending.start, ending.stop)]


def _shortest_with(
    prefixes: Prefixes, kinds: list[Tensor], costs: list[Tensor], carried: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """As `shortest`, and the sum of `carried` along the path that attains the least."""
    best = torch.zeros(1, *costs[0].shape[1:], dtype=costs[0].dtype)
    sums = torch.zeros_like(best)
    early = best.new_zeros(len(prefixes.ends) - prefixes.active[0], *best.shape[2:])
    least, along = [early], [early]
    for j, ((sources, _), kind, cost, other) in enumerate(zip(prefixes.steps, kinds, costs, carried, strict=True)):
        if len(sources) > WIDE:
            step, summed = best[sources] + cost[kind], sums[sources] + other[kind]
            best, at = step.min(0)
            sums = summed.gather(0, at[None])[0]
        else:
            found, carry = best[sources[0]].add_(cost[kind[0]]), sums[sources[0]].add_(other[kind[0]])
            for p in range(1, len(sources)):
                step, summed = best[sources[p]].add_(cost[kind[p]]), sums[sources[p]].add_(other[kind[p]])
                carry = torch.where(step < found, summed, carry)
                torch.minimum(found, step, out=found)
            best, sums = found, carry
        least.append(_ended(prefixes, j, best))
        along.append(_ended(prefixes, j, sums))
        best, sums = best[:, : prefixes.active[j + 1]], sums[:, : prefixes.active[j + 1]]
    return torch.cat(least[::-1]), torch.cat(along[::-1])


@dataclass(frozen=True, eq=False)
class Weights:
    """Bounds of the softmax's weights, up to a factor that depends on the row: at each j [kind, active row, head, 1],
    and of the row's own class [row, head, 1]."""

    least: list[Tensor]
    most: list[Tensor]
    own_least: Tensor
    own_most: Tensor


class Means:
    """`values` [j][kind, active row, head, k] and `own` [row, head, k]: at least the values; and their weights."""

    def __init__(self, prefixes: Prefixes, keys: Keys, values: list[Tensor], own: Tensor, weights: Weights) -> None:
        self.prefixes, self.keys, self.values, self.own, self.weights = prefixes, keys, values, own, weights
        self.floor, top = own.clone(), own.clone()
        for value, met, count in zip(values, keys.met, prefixes.active, strict=False):
            here, low, high = met[..., None, None], self.floor[:count], top[:count]
            torch.minimum(low, torch.where(here, value, torch.inf).amin(0), out=low)
            torch.maximum(high, torch.where(here, value, -torch.inf).amax(0), out=high)
        self.range = top - self.floor

    def gains(self, level: Tensor) -> list[Tensor]:
        """At most e (v - level) for every weight e within its bounds: at each j [kind, active row, head, k], and of the
        row itself [row, head, k]."""
        w = self.weights
        pairs = [*zip(self.values, w.least, w.most, strict=True), (self.own, w.own_least, w.own_most)]
        found = []
        for value, least, most in pairs:
            away = value - level[: value.shape[-3]]
            found.append(torch.minimum(least * away, away.mul_(most)))
        return found

    def least_sum(self, gains: list[Tensor]) -> Tensor:
        """[row, ...]: the least sum of `gains` on any path."""
        return shortest(self.prefixes, self.keys.kinds, gains[:-1]) + gains[-1]

    def level(self) -> tuple[Tensor, list[Tensor]]:
        """A level [row, head, k] that no path's mean is below, and the gains there."""
        if not self.values:
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
        """A level nearer to the root, where a small sum does not mean that it is near: Newton's first step from below
        goes beyond the root, as the sum is concave, and the others come down to it."""
        near = sums <= 4 * CLOSE * self.range * self._least_weight()
        if bool(near.all()):
            return level, gains
        proved = line = level
        going = ~near
        for number in range(REPAIRS):
            total, step = self._newton(line)
            proved = torch.where(going & (total >= 0), torch.maximum(proved, line), proved)
            if number:
                going &= total < 0
            step = torch.where(going, step, 0.0)
            line = torch.minimum(line + step, self.floor + self.range)
            if bool((step.abs() <= BACK * self.range).all()):
                break
        higher = torch.maximum(line - BACK * self.range, proved)
        found = self.gains(higher)
        level = torch.where(self.least_sum(found) < 0, proved, higher)
        return level, self.gains(level)

    def _step(self, level: Tensor) -> Tensor:
        """Newton's, from a level: the least path's gain over its weight."""
        return self._newton(level)[1]

    def _newton(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """The least path's gain, and over its weight."""
        gains, w = self.gains(level), self.weights
        pairs = [*zip(self.values, w.least, w.most, strict=True), (self.own, w.own_least, w.own_most)]
        weights = [torch.where(value >= level[: value.shape[-3]], least, most) for value, least, most in pairs]
        gain, weight = _shortest_with(self.prefixes, self.keys.kinds, gains[:-1], weights[:-1])
        gain = gain + gains[-1]
        return gain, gain / (weight + weights[-1]).clamp(min=torch.finfo(level.dtype).tiny)

    def _most_weight(self) -> Tensor:
        """[row, head, 1]: the greatest sum of weights on any path."""
        return -self.least_sum([*(-most for most in self.weights.most), -self.weights.own_most])

    def _least_weight(self) -> Tensor:
        """[row, head, 1]: the least sum of weights on any path."""
        return self.least_sum([*self.weights.least, self.weights.own_least])

    def _search(self) -> Tensor:
        """Near the root, in float32."""
        single = self._single()
        total, level = single.weights.own_most.clone(), single.own * single.weights.own_most
        for value, most, met in zip(single.values, single.weights.most, self.keys.met, strict=True):
            weight = most * met[..., None, None]
            total[: met.shape[1]] += weight.sum(0)
            level[: met.shape[1]] += (value * weight).sum(0)
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
        return [gain / greatest[: gain.shape[-3]] for gain in gains]
