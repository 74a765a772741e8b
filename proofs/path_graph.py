"""Graphs whose paths are the words of one length and label that a tree's restrictions leave (rule `paths`).

Nodes at time j < n are pairs (class of a language, state of the refinement machine) after j tokens, at time n states of
the refinement machine alone; an edge at position j < n - 1 is a node and a token, at position n - 1 a node and a token
with which it closes. All machines are deterministic, so words and paths are in bijection. Only edges that lie on a path
from the start to the end are kept. The whole graph of a length has all words over the domain's vocab: every other graph
of this length goes into it, edge by edge, by refinement state and token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from .core import Bits, Ints
from .format import Json, integers, listing, require
from .path_language import Language

MAX_STATES = 4096
MAX_CLASSES = 4096
MAX_MOVES = 2**20
MAX_PLACES = 2**26
MAX_REFINEMENT = 2**22
Restriction: TypeAlias = tuple[str, int, tuple[int, ...]]
"""("tokens", p, ids): the token at position p is one of these; ("states", p, states): the refinement machine's state
after p tokens is one of these."""


def read_refinement(data: Json, width: int) -> Ints:
    """[state, token of the codec's vocab]: the next state; the start is state 0. Raises `Rejected`."""
    rows = listing(data, "states", MAX_STATES, 1)
    require(len(rows) * width <= MAX_REFINEMENT, "the refinement machine is too large")
    delta = [integers(row, "a row of states", 0, len(rows) - 1, width) for row in rows]
    require(all(len(row) == width for row in delta), "the refinement machine has one transition for each token")
    return np.array(delta, dtype=np.int64).reshape(len(rows), width)


@dataclass(frozen=True, eq=False)
class Step:
    """The edges at one position, sorted by the node they lead to.

    `source`, `token` (of the domain's vocab) and `target` [edge]; `state` [edge]: of the refinement machine, before
    the token; `first` [node after]: the first edge into it. `groups`: nodes of equal degree, with their edges
    [degree, node].
    """

    source: Ints
    state: Ints
    token: Ints
    target: Ints
    first: Ints
    groups: tuple[tuple[Ints, Ints], ...]

    @property
    def classes(self) -> int:
        return len(self.source)


@dataclass(frozen=True, eq=False)
class WordGraph:
    """Paths of length len(steps) from the one node at time 0; `size`: how many there are, exactly."""

    steps: tuple[Step, ...]
    size: int

    def sizes_of_last(self) -> list[int]:
        """How many paths there are through each class of the last position, exactly."""
        counts = [1]
        for step in self.steps[:-1]:
            following = [0] * len(step.first)
            for source, target in zip(step.source.tolist(), step.target.tolist(), strict=True):
                following[target] += counts[source]
            counts = following
        return [counts[source] for source in self.steps[-1].source.tolist()]


def _step(source: Ints, state: Ints, token: Ints, target: Ints) -> Step:
    order = np.argsort(target, kind="stable")
    source, state, token, target = source[order], state[order], token[order], target[order]
    degree = np.bincount(target)
    first = np.cumsum(degree) - degree
    groups = []
    for size in np.unique(degree):
        nodes = np.flatnonzero(degree == size)
        groups.append((nodes, first[nodes] + np.arange(size)[:, None]))
    return Step(source, state, token, target, first, tuple(groups))


@dataclass(frozen=True, eq=False)
class _Moves:
    """What edges there may be: the words' language, the refinement machine over the domain's tokens, the length, and
    the restrictions (`tokens` at positions, `allowed` states at times). A node at time j < n is class * states + state.
    """

    words: Language
    refinement: Ints
    n: int
    tokens: dict[int, Bits]
    allowed: dict[int, Bits]

    def letters(self, j: int) -> Ints:
        """The tokens that may stand at position j."""
        return np.flatnonzero(self.tokens[j]) if j in self.tokens else np.arange(self.refinement.shape[1])

    def edges(self, nodes: Ints, j: int) -> tuple[Ints, Ints, Ints]:
        """The edges at position j from these nodes: the place of the source, the token, and the node they lead to."""
        letters = self.letters(j)
        block, state = np.divmod(nodes, len(self.refinement))
        after = self.refinement[state][:, letters]
        good = self.allowed[j + 1][after] if j + 1 in self.allowed else np.ones(after.shape, dtype=np.bool_)
        if j == self.n - 1:
            good, code = good & self.words.closes[block][:, letters], after
        else:
            following = self.words.step[block][:, letters]
            good, code = good & ~self.words.dead[following], following * len(self.refinement) + after
        source, place = np.nonzero(good)
        return source, letters[place], code[good]


def word_graph(
    words: Language,
    refinement: Ints,
    n: int,
    restrictions: list[Restriction],
    vocab: Ints,
    spend: Callable[[int], None] = lambda moves: None,
) -> WordGraph | None:
    """The graph of the words of length n of a language that meet all restrictions; None if there are none.

    `refinement` [state, token of the codec]; `vocab` [token of the domain]: its id in the codec; `spend` is told how
    many moves (a node and a token) are looked at, before they are. Raises `Rejected` for more than `MAX_CLASSES` edges
    at a position, `MAX_MOVES` moves at one, or `MAX_PLACES` nodes altogether.
    """
    states = len(refinement)
    moves = _Moves(words, refinement[:, vocab], n, *_allowed(restrictions, n, vocab, states))
    nodes = [np.array([words.start * states], dtype=np.int64)]
    if 0 in moves.allowed and not moves.allowed[0][0]:
        return None
    places = 1
    for j in range(n):
        count = len(nodes[j]) * len(moves.letters(j))
        require(count <= MAX_MOVES, f"too many nodes at position {j}")
        spend(2 * count + 1)
        nodes.append(np.unique(moves.edges(nodes[j], j)[2]))
        places += len(nodes[-1])
        require(places <= MAX_PLACES, "too many nodes at all positions together")
    return _live(moves, nodes)


def whole_graph(
    refinement: Ints, n: int, vocab: Ints, spend: Callable[[int], None] = lambda moves: None
) -> WordGraph | None:
    """The graph of all words of length n over the domain's vocab, with refinement states alone as nodes; else as
    `word_graph`."""
    tokens = len(vocab)
    every = Language(np.zeros((1, tokens), dtype=np.int64), np.ones((1, tokens), dtype=np.bool_), 0)
    return word_graph(every, refinement, n, [], vocab, spend)


def places(graph: WordGraph, whole: WordGraph) -> list[Ints]:
    """[position][class]: the class of `whole` at this position with the same refinement state and token. Raises
    `Rejected`, as it must never be, if there is none."""
    found = []
    for step, other in zip(graph.steps, whole.steps, strict=True):
        width = 1 + max(int(step.token.max()), int(other.token.max()))
        names = other.state * width + other.token
        order = np.argsort(names)
        rank = np.searchsorted(names, step.state * width + step.token, sorter=order)
        place = order[np.minimum(rank, len(order) - 1)]
        same = (other.state[place] == step.state) & (other.token[place] == step.token)
        require(bool(same.all()), "internal error: a class is not in the whole graph")
        found.append(place)
    return found


def _allowed(
    restrictions: list[Restriction], n: int, vocab: Ints, states: int
) -> tuple[dict[int, Bits], dict[int, Bits]]:
    """Which tokens of the domain may stand at a position, and which refinement states may be reached at a time."""
    tokens: dict[int, Bits] = {}
    allowed: dict[int, Bits] = {}
    for kind, place, chosen in restrictions:
        if kind == "tokens":
            here = np.isin(vocab, chosen)
            tokens[place] = tokens[place] & here if place in tokens else here
        else:
            here = np.isin(np.arange(states), chosen)
            allowed[place] = allowed[place] & here if place in allowed else here
    return tokens, allowed


def _live(moves: _Moves, nodes: list[Ints]) -> WordGraph | None:
    """The part from which the end is reached, its nodes numbered anew."""
    alive = nodes[-1]
    steps: list[Step] = []
    for j in reversed(range(moves.n)):
        source, token, code = moves.edges(nodes[j], j)
        kept = np.isin(code, alive)
        if not kept.any():
            return None
        source, token, code = source[kept], token[kept], code[kept]
        require(len(source) <= MAX_CLASSES, f"{len(source)} classes at position {j}; the limit is {MAX_CLASSES}")
        before, place = np.unique(source, return_inverse=True)
        state = nodes[j][source] % len(moves.refinement)
        steps.append(_step(place.reshape(-1), state, token, np.searchsorted(alive, code)))
        alive = nodes[j][before]
    steps.reverse()
    counts = np.array([1], dtype=object)
    for step in steps:
        counts = np.add.reduceat(counts[step.source], step.first)
    return WordGraph(tuple(steps), int(counts.sum()))
