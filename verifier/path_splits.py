"""How a group of words that is not wholly proved is split: by tokens at a position, or by states at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .path_bounds import Margins
from .word_graph import Integers, WordGraph

Split = tuple[str, int, list[list[int]]]
"""`tokens` or `states`, the position or time, and the parts."""


def choose_split(found: Margins, least: Tensor, unproved: list[int]) -> Split | None:
    """How to split a group of words that is not wholly proved."""
    if len(unproved) > 1 and (choice := _by_last(found.graph, unproved)):
        return choice
    group = max(range(len(unproved)), key=unproved.__getitem__)
    return _best_split(found.graph, *found.of(group, int(least[group].argmin()))) or _any_split(found.graph)


def _any_split(graph: WordGraph) -> Split | None:
    """The first token that a position may have, against the others."""
    for position, edges in enumerate(graph.edges):
        first, *others = np.unique(edges.token).tolist()
        if others:
            return "tokens", position, [[first], others]
    return None


def _by_last(graph: WordGraph, unproved: list[int]) -> Split | None:
    """The last position's tokens in two parts, of about equal mass unproved, unless one has nearly all of it."""
    weight: dict[int, int] = {}
    for token, amount in zip(graph.edges[-1].token.tolist(), unproved, strict=True):
        weight[token] = weight.get(token, 0) + amount
    if len(weight) < 2 or max(weight.values()) > 0.9 * sum(weight.values()):
        return None
    order = sorted(weight, key=lambda token: (-weight[token], token))
    ahead = np.cumsum([weight[token] for token in order]) / sum(weight.values())
    cut = min(int((ahead < 0.5).sum()) + 1, len(order) - 1)
    return "tokens", graph.n - 1, [sorted(order[:cut]), sorted(order[cut:])]


def _best_split(graph: WordGraph, const: float, tables: list[Tensor]) -> Split | None:
    """The time and its states, or the position and its tokens, in two parts that explain most of the bounds' variance.

    What is compared is, for each state or token, the least bound of the words through it, weighted by their number.
    """
    ahead, behind = graph.ahead(tables), graph.behind(tables)
    before, after = graph.shares()
    best: tuple[float, Split | None] = (-1.0, None)
    for j in range(graph.n):
        edges, table = graph.edges[j], tables[j]
        bound = (ahead[j][graph.sources[j]] + table + behind[j + 1][graph.targets[j]] + const).numpy()
        share = before[j][edges.source] * after[j + 1][edges.target]
        best = max(best, _cut("tokens", j, edges.token, bound, share), key=lambda found: found[0])
        bound = (ahead[j + 1] + behind[j + 1] + const).numpy()
        share = before[j + 1] * after[j + 1]
        best = max(best, _cut("states", j + 1, graph.nodes[j + 1][:, 1], bound, share), key=lambda found: found[0])
    return best[1]


def _cut(
    kind: str, at: int, names: Integers, bounds: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]
) -> tuple[float, Split | None]:
    """The names, in the order of their least bounds, in two parts; and the variance of the bounds between them."""
    every, meant = np.unique(names), np.isfinite(bounds)  # what is infinite does not meet this group of paths
    names, bounds, shares = names[meant], bounds[meant], shares[meant]
    unique, place = np.unique(names, return_inverse=True)
    if len(unique) < 2 or not shares.sum():
        return -1.0, None
    least, weight = np.full(len(unique), np.inf), np.zeros(len(unique))
    np.minimum.at(least, place.reshape(-1), bounds)
    np.add.at(weight, place.reshape(-1), shares)
    order = np.lexsort((unique, least))
    weight, value = weight[order] / weight.sum(), least[order]
    left, moment = np.cumsum(weight)[:-1], np.cumsum(weight * value)[:-1]
    right = np.maximum(1 - left, 2.0**-60)
    apart = ((weight * value).sum() - moment) / right - moment / np.maximum(left, 2.0**-60)
    score = left * right * apart**2
    k = int(score.argmax())
    chosen = np.sort(unique[order[: k + 1]])
    return float(score[k]), (kind, at, [chosen.tolist(), np.setdiff1d(every, chosen).tolist()])
