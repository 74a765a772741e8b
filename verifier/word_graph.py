"""The words of one length with one label as the paths of a layered graph, whose nodes are states of two machines.

A node at time j is a pair: what must be remembered of a prefix of j tokens to know whether the word will be an input
with the label, and the state of another machine, the *states*, by which a proof tells prefixes apart. An edge at
position j (a *class* of that position) is a node and a token. Only edges on paths from the start to the end are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import flint
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..models.automata import Automaton
from ..models.labels import LabelMachine

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Edges:
    """The classes of one position: from a node (by its place at time j), a token id, to a node at time j + 1."""

    source: Integers
    token: Integers
    target: Integers

    def __len__(self) -> int:
        return len(self.token)


@dataclass(frozen=True, eq=False)
class WordGraph:
    """`nodes[j]`: the nodes at time j, each a row (label block, state); `edges[j]`: the classes of position j."""

    nodes: tuple[Integers, ...]
    edges: tuple[Edges, ...]

    @property
    def n(self) -> int:
        return len(self.edges)

    @cached_property
    def size(self) -> int:
        """The number of words, exactly."""
        return sum(self.sizes_of_last())

    def sizes_of_last(self) -> list[int]:
        """The number of words through each class of the last position."""
        counts = [1] * len(self.nodes[0])
        for j, edges in enumerate(self.edges[:-1]):
            following = [0] * len(self.nodes[j + 1])
            for source, target in zip(edges.source.tolist(), edges.target.tolist(), strict=True):
                following[target] += counts[source]
            counts = following
        return [counts[source] for source in self.edges[-1].source.tolist()]

    def keep(self, chosen: Sequence[npt.NDArray[np.bool_]]) -> WordGraph:
        """The graph of the paths over chosen edges only (one mask a position)."""
        forward = [np.ones(len(self.nodes[0]), dtype=bool)]
        for j, edges in enumerate(self.edges):
            reached = np.zeros(len(self.nodes[j + 1]), dtype=bool)
            reached[edges.target[chosen[j] & forward[j][edges.source]]] = True
            forward.append(reached)
        needed, kept = forward[-1], []
        alive = [needed]
        for j in range(self.n - 1, -1, -1):
            edges = self.edges[j]
            use = chosen[j] & forward[j][edges.source] & needed[edges.target]
            kept.append(use)
            needed = np.zeros(len(self.nodes[j]), dtype=bool)
            needed[edges.source[use]] = True
            alive.append(needed)
        kept, alive = kept[::-1], alive[::-1]
        place = [np.cumsum(mask) - 1 for mask in alive]
        edges_kept = tuple(
            Edges(place[j][e.source[use]], e.token[use], place[j + 1][e.target[use]])
            for j, (e, use) in enumerate(zip(self.edges, kept, strict=True))
        )
        return WordGraph(tuple(rows[mask] for rows, mask in zip(self.nodes, alive, strict=True)), edges_kept)

    def by_token(self, position: int, tokens: Integers) -> WordGraph:
        """The words whose token at a position is one of these."""
        chosen = [np.ones(len(edges), dtype=bool) for edges in self.edges]
        chosen[position] = np.isin(self.edges[position].token, tokens)
        return self.keep(chosen)

    def by_state(self, time: int, states: Integers) -> WordGraph:
        """The words with one of these states after `time` tokens (0 to n)."""
        inside = np.isin(self.nodes[time][:, 1], states)
        chosen = [np.ones(len(edges), dtype=bool) for edges in self.edges]
        if time:
            chosen[time - 1] = inside[self.edges[time - 1].target]
        elif not inside.all():
            chosen[0][:] = False
        return self.keep(chosen)

    def places_in(self, other: WordGraph) -> list[Tensor]:
        """For each position, [class]: the other graph's class of the same state and token, which must be there."""
        found = []
        for rows, edges, theirs, others in zip(self.nodes, self.edges, other.nodes, other.edges, strict=False):
            width = 1 + int(max(edges.token.max(), others.token.max()))
            known = theirs[others.source, 1] * width + others.token
            wanted = rows[edges.source, 1] * width + edges.token
            order = np.argsort(known)
            place = order[np.searchsorted(known, wanted, sorter=order)]
            assert (known[place] == wanted).all() and len(np.unique(known)) == len(known)
            found.append(torch.from_numpy(place))
        return found

    @cached_property
    def entering(self) -> tuple[Tensor, ...]:
        """For each position, the edges into each node at the next time, int64 [at most, node]; filled by repetition."""
        found = []
        for j, edges in enumerate(self.edges):
            into: list[list[int]] = [[] for _ in self.nodes[j + 1]]
            for place, target in enumerate(edges.target.tolist()):
                into[target].append(place)
            width = max(map(len, into), default=1)
            rows = [row + row[:1] * (width - len(row)) for row in into]
            found.append(torch.tensor(rows, dtype=torch.int64).view(len(rows), width).T.contiguous())
        return tuple(found)

    @cached_property
    def sources(self) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(edges.source) for edges in self.edges)

    @cached_property
    def targets(self) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(edges.target) for edges in self.edges)

    def shares(self) -> tuple[list[npt.NDArray[np.float64]], list[npt.NDArray[np.float64]]]:
        """At each time, [node], in proportion: the numbers of paths up to a node, and from it on."""
        before = [np.ones(len(self.nodes[0]))]
        for j, edges in enumerate(self.edges):
            counts = np.bincount(edges.target, before[-1][edges.source], len(self.nodes[j + 1]))
            before.append(counts / counts.max())
        after = [np.ones(len(self.nodes[-1]))]
        for j in range(self.n - 1, -1, -1):
            counts = np.bincount(self.edges[j].source, after[0][self.edges[j].target], len(self.nodes[j]))
            after.insert(0, counts / counts.max())
        return before, after

    def ahead(self, tables: Sequence[Tensor]) -> list[Tensor]:
        """At each time, [node, ...]: the least sum up to there, over paths of one table [class, ...] a position."""
        best = [torch.zeros(len(self.nodes[0]), *tables[0].shape[1:], dtype=tables[0].dtype)]
        for j, table in enumerate(tables):
            best.append(least_entering(best[j][self.sources[j]] + table, self.entering[j]))
        return best

    def behind(self, tables: Sequence[Tensor]) -> list[Tensor]:
        """At each time, [node]: the least sum from there on, over paths of one table [class] a position."""
        best = [torch.zeros(len(self.nodes[-1]), dtype=tables[0].dtype)]
        for j in range(self.n - 1, -1, -1):
            onward = best[0][self.targets[j]] + tables[j]
            none = torch.full((len(self.nodes[j]),), torch.inf, dtype=onward.dtype)
            best.insert(0, none.scatter_reduce(0, self.sources[j], onward, "amin"))
        return best

    def least(self, tables: Sequence[Tensor]) -> Tensor:
        """[...]: the least sum over paths of one table [class, ...] for each position; rounded to nearest."""
        return self.ahead(tables)[-1].amin(0)

    def count_not_above(self, tables: Sequence[Integers], bound: int, bins: int) -> int:
        """At least the number of paths whose sum of integers, one table [class] a position, is at most `bound`.

        Sums are told apart at `bins` levels or fewer, rounded down: with enough levels the count is exact.
        """
        lows = [int(table.min()) for table in tables]
        room = bound - sum(lows)
        if room < 0:
            return 0
        drop = (room // max(1, bins)).bit_length()
        levels = (room >> drop) + 1
        state = [flint.fmpz_poly([1])] * len(self.nodes[0])
        for j, (table, low) in enumerate(zip(tables, lows, strict=True)):
            following = [flint.fmpz_poly()] * len(self.nodes[j + 1])
            steps, edges = (table - low) >> drop, self.edges[j]
            pairs = edges.source * len(following) + edges.target
            for pair in np.unique(pairs).tolist():
                source, target = divmod(pair, len(following))
                here = steps[pairs == pair]
                here = here[here < levels]
                if len(here) and state[source]:
                    histogram = flint.fmpz_poly(np.bincount(here).tolist())
                    following[target] = following[target] + state[source].mul_low(histogram, levels)
            state = following
        return sum(int(sum(poly.coeffs(), flint.fmpz(0))) for poly in state)


def least_entering(costs: Tensor, entering: Tensor) -> Tensor:
    """[node, ...]: the least of the costs [edge, ...] of the edges into each node."""
    if len(entering) > 16:
        return costs[entering].amin(0)
    found = costs[entering[0]]
    for edges in entering[1:]:
        found = torch.minimum(found, costs[edges])
    return found


@dataclass(frozen=True, eq=False)
class Inputs:
    """The words over `letters` (token ids, ascending) that an automaton over their places accepts; None: all."""

    letters: Integers
    automaton: Automaton | None = None

    def size(self, n: int) -> int:
        """How many there are of length n, exactly."""
        return self.automaton.counts(n)[n][0] if self.automaton else len(self.letters) ** n


def word_graph(
    labels: LabelMachine, label: int, states: Integers, inputs: Inputs, n: int, last: int | None = None
) -> WordGraph:
    """The inputs of length n with this label; `states`: transitions [state, token id].

    `last`, for machines that read the last token first, and only for these: it is this one.
    """
    words = _labelled(labels, label, inputs, last)
    nodes = [np.array([[words.start, 0]], dtype=np.int64)]
    edges = []
    for j in range(n):
        here = nodes[-1]
        blocks = words.step[here[:, 0]] if j < n - 1 else np.zeros((len(here), len(inputs.letters)), dtype=np.int64)
        following = np.stack([blocks, states[here[:, 1:], inputs.letters]], -1)  # [node, letter, 2]
        unique, inverse = np.unique(following.reshape(-1, 2), axis=0, return_inverse=True)
        source, token = np.repeat(np.arange(len(here)), len(inputs.letters)), np.tile(inputs.letters, len(here))
        edges.append(Edges(source, token, inverse.reshape(-1).astype(np.int64)))
        nodes.append(unique)
    chosen = [np.ones(len(e), dtype=bool) for e in edges]
    chosen[-1] = words.closing[nodes[-2][:, 0]].reshape(-1)
    return WordGraph(tuple(nodes), tuple(edges)).keep(chosen)


@dataclass(frozen=True, eq=False)
class _Words:
    """A set of words: classes of prefixes that the same words complete. `step` [class, place of a letter]: the next
    one; `closing`, of the same shape: whether the letter, as the last one, completes a word."""

    step: Integers
    closing: npt.NDArray[np.bool_]
    start: int


def _labelled(labels: LabelMachine, label: int, inputs: Inputs, last: int | None) -> _Words:
    """The inputs with this label (and with this last token)."""
    assert labels.last_first == (last is not None)
    if last is not None:
        automaton = _prefixes(labels, label, inputs, last)
        closing = automaton.accepting[:, None] & (inputs.letters == last)
        return _Words(automaton.transitions.astype(np.int64), closing, 0)
    automaton = _prefixes(labels, label, inputs, None)
    rows, first, place = np.unique(automaton.transitions, axis=0, return_index=True, return_inverse=True)
    place = place.reshape(-1)  # whether a prefix is itself a word does not matter
    return _Words(place[automaton.transitions[first]], automaton.accepting[rows], int(place[0]))


def _prefixes(labels: LabelMachine, label: int, inputs: Inputs, last: int | None) -> Automaton:
    """The inputs with this label, or with `last` the words that it makes such inputs; minimal, over letters' places."""
    moves, right = labels.transitions[:, inputs.letters].astype(np.int64), labels.labels == label
    if inputs.automaton is None:
        if last is None:
            return Automaton(moves.astype(np.int32), right).minimised()
        domain = Automaton(np.zeros((1, len(inputs.letters)), dtype=np.int32), np.ones(1, dtype=bool))
    else:
        domain = inputs.automaton
    steps, ends = domain.transitions.astype(np.int64), domain.accepting
    if last is not None:
        ends = ends[steps[:, int(np.searchsorted(inputs.letters, last))]]
    count = len(steps)
    start = count * int(labels.transitions[0, last]) if last is not None else 0
    known = frontier = np.array([start], dtype=np.int64)  # pairs (state of the labels, of the domain) as one number
    while frontier.size:
        after = np.unique(moves[frontier // count] * count + steps[frontier % count])
        frontier = np.setdiff1d(after, known)
        known = np.concatenate([known, frontier])
    place = np.argsort(known)
    codes = moves[known // count] * count + steps[known % count]
    transitions = place[np.searchsorted(known, codes, sorter=place)]
    return Automaton(transitions.astype(np.int32), right[known // count] & ends[known % count]).minimised()


def whole_graph(states: Integers, letters: Integers, n: int) -> WordGraph:
    """All words of length n over the letters; a node is a state."""
    trivial = one_state(int(states.shape[1]))
    return word_graph(trivial, 0, states, Inputs(letters), n)


def one_state(tokens: int) -> LabelMachine:
    """The machine that tells nothing apart."""
    return LabelMachine(np.zeros((1, tokens), dtype=np.int32), np.zeros(1, dtype=np.int64))
