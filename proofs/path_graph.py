"""Graphs whose paths are the words of one length and label that a tree's restrictions leave (rule `paths`).

Nodes at time j are pairs (class of label-machine states that accept the same words, state of the refinement machine)
after j tokens; an edge at position j is a node and a token. Both machines are deterministic, so words and paths are in
bijection. Only edges that lie on a path from the start to an accepting node are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from .core import Bits, Ints
from .format import Json, integers, listing, require

MAX_STATES = 4096
MAX_CLASSES = 4096
MAX_MOVES = 2**18
MAX_REFINEMENT = 2**22
MAX_MINIMISING = 2**28
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
class Language:
    """The words with one label: `step` [class of states, token of the domain], `start`, `accept` [class]; and what it
    took to find it."""

    step: Ints
    start: int
    accept: Bits
    work: int = 0


def language(delta: Ints, accept: Bits) -> Language:
    """The minimal automaton (Moore) of `delta` [state, token], start 0, with these accepting states."""
    block = accept.astype(np.int64)
    count, work = len(np.unique(block)), 0
    while True:
        work += delta.size + len(delta)
        require(work <= MAX_MINIMISING, "the label machine is too large to be minimised")
        behaviour = np.column_stack([block, block[delta]])
        _, first, inverse = np.unique(behaviour, axis=0, return_index=True, return_inverse=True)
        block = inverse.reshape(-1)
        if len(first) == count:
            return Language(block[delta[first]], int(block[0]), accept[first], work)
        count = len(first)


@dataclass(frozen=True, eq=False)
class Step:
    """The edges at one position, sorted by the node they lead to.

    `source`, `token` (of the domain's vocab) and `target` [edge]; `first` [node after]: the first edge into it.
    `groups`: nodes of equal degree, with their edges [degree, node].
    """

    source: Ints
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


def _step(source: Ints, token: Ints, target: Ints) -> Step:
    order = np.argsort(target, kind="stable")
    source, token, target = source[order], token[order], target[order]
    degree = np.bincount(target)
    first = np.cumsum(degree) - degree
    groups = []
    for size in np.unique(degree):
        nodes = np.flatnonzero(degree == size)
        groups.append((nodes, first[nodes] + np.arange(size)[:, None]))
    return Step(source, token, target, first, tuple(groups))


def word_graph(
    words: Language, refinement: Ints, n: int, restrictions: list[Restriction], vocab: Ints
) -> WordGraph | None:
    """The graph of the words of length n of a language that meet all restrictions; None if there are none.

    `refinement` [state, token of the codec]; `vocab` [token of the domain]: its id in the codec. Raises `Rejected` for
    more than `MAX_CLASSES` edges at a position.
    """
    states = len(refinement)
    moves = refinement[:, vocab]
    tokens, allowed = _allowed(restrictions, n, vocab, states)
    nodes = [np.array([words.start * states], dtype=np.int64)]
    if 0 in allowed and not allowed[0][0]:
        return None
    edges = []
    for j in range(n):
        letters = np.flatnonzero(tokens[j]) if j in tokens else np.arange(len(vocab))
        require(len(nodes[j]) * len(letters) <= MAX_MOVES, f"too many nodes at position {j}")
        block, state = np.divmod(nodes[j], states)
        after = moves[state][:, letters]
        code = words.step[block][:, letters] * states + after
        good = allowed[j + 1][after] if j + 1 in allowed else np.ones(after.shape, dtype=np.bool_)
        source, place = np.nonzero(good)
        edges.append((source, letters[place], code[good]))
        nodes.append(np.unique(code[good]))
    return _live(words.accept, states, nodes, edges)


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


def _live(accept: Bits, states: int, nodes: list[Ints], edges: list[tuple[Ints, Ints, Ints]]) -> WordGraph | None:
    """The part from which accepting nodes are reached, its nodes numbered anew."""
    alive = nodes[-1][accept[nodes[-1] // states]]
    steps: list[Step] = []
    for j in reversed(range(len(edges))):
        source, token, code = edges[j]
        kept = np.isin(code, alive)
        if not kept.any():
            return None
        source, token, code = source[kept], token[kept], code[kept]
        require(len(source) <= MAX_CLASSES, f"{len(source)} classes at position {j}; the limit is {MAX_CLASSES}")
        before, place = np.unique(source, return_inverse=True)
        steps.append(_step(place.reshape(-1), token, np.searchsorted(alive, code)))
        alive = nodes[j][before]
    steps.reverse()
    counts = np.array([1], dtype=object)
    for step in steps:
        counts = np.add.reduceat(counts[step.source], step.first)
    return WordGraph(tuple(steps), int(counts.sum()))
