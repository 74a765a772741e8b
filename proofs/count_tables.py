"""Tables for rule `count`: what each token adds to the comparison of two logits, and which words have a label.

One layer, one head, no neurons, read out at the last position. For last token q and outputs y and w, the positive
normaliser of the softmax drops out of the comparison: logit_y - logit_w > 0 iff the sum over positions j of
e^(s_j - top) (c + d_j) is, c being what the query adds always and d_j what the token at j adds with all attention.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from .balls import Ball, Floats, exp, known, point, times
from .bodies import Labels
from .core import Bits, Ints
from .format import require
from .network import Network
from .theorem import Theorem

MAX_TABLE = 2**26


class Tables:
    """What the tokens of the domain contribute at one length: `low <= e^(s - top) <= high` [query, j, token];
    `value` [j, token, output] and `direct` [query, output]. Queries and tokens are places in the domain's vocab."""

    def __init__(self, theorem: Theorem, n: int, vocab: Ints) -> None:
        require(n * len(vocab) ** 2 <= MAX_TABLE, f"tables of {len(vocab)} queries and tokens are too large")
        network = Network(theorem.model)
        w = {name: point(array) for name, array in network.weights.items()}
        attn = "blocks.0.attn."
        x = point(np.broadcast_to(network.weights["embed.W_E"][vocab], (n, len(vocab), theorem.model.config.d_model)))
        if theorem.model.config.positional:
            x = x + point(network.weights["pos_embed.W_pos"][:n, None])
        query = x[n - 1] @ w[attn + "W_Q"][0] + w[attn + "b_Q"][0]
        key = x @ w[attn + "W_K"][0] + w[attn + "b_K"][0]
        scores = times(query @ key.swapped(), network._scale(0))  # [j, query, token]
        scores = Ball(scores.mid.transpose(1, 0, 2), scores.rad.transpose(1, 0, 2))
        top = scores.mid.max(axis=(1, 2), keepdims=True)
        with np.errstate(all="ignore"):
            powers = exp(scores + point(-top))
        require(bool(np.isfinite(powers.rad).all()), "the scores are known too roughly")
        self.low, self.high = np.maximum(powers.low(), 0), powers.high()
        mixed = (x @ w[attn + "W_V"][0] + w[attn + "b_V"][0]) @ w[attn + "W_O"][0]
        self.value = mixed @ w["unembed.W_U"]
        self.direct = (x[n - 1] + w[attn + "b_O"]) @ w["unembed.W_U"] + w["unembed.b_U"]
        finite = all(np.isfinite(part).all() for x in (self.value, self.direct) for part in (x.mid, x.rad))
        require(finite, "the values are known too roughly")
        self.n, self.vocab = n, vocab
        self._gained: dict[int, Floats] = {}  # of the label asked for last
        self._words: dict[tuple[int, bytes], Words] = {}

    def words(self, part: Labels, label: int, query: int) -> Words:
        """The words that may stand before this query in an input of this label; the same for many queries."""
        accepting = part.labels[part.delta[:, self.vocab[query]]] == label
        key = (label, accepting.tobytes())
        if key not in self._words:
            self._words[key] = _words(part, label, query, self.vocab, self.n - 1)
        return self._words[key]

    def beats_all(self, label: int, query: int, used: Ints) -> tuple[Floats, Floats]:
        """Below e^(s - top) (c + d) for the label and each rival: [rival, j, token used] for j < n - 1, and [rival]
        for the query itself."""
        if label not in self._gained:
            self._gained = {label: _difference(self.value, label).low().transpose(2, 0, 1)}
        always = _difference(self.direct[query], label).low()
        return self._weighted(always, self._gained[label], query, used)

    def beats(self, label: int, rival: int, query: int, used: Ints) -> tuple[Floats, Floats]:
        """The same for one rival: [1, j, token used] and [1]."""
        pair = (Ellipsis, [label, rival])
        always = _difference(self.direct[query][pair], 0).low()[1:]
        gained = _difference(self.value[pair], 0).low().transpose(2, 0, 1)[1:]
        return self._weighted(always, gained, query, used)

    def _weighted(self, always: Floats, gained: Floats, query: int, used: Ints) -> tuple[Floats, Floats]:
        n = self.n
        rest = lower_sum(always[:, None, None], gained[:, : n - 1, used])
        rest = lower_product(rest, self.low[query, : n - 1, used].T, self.high[query, : n - 1, used].T)
        own = lower_sum(always, gained[:, n - 1, query])
        return rest, lower_product(own, self.low[query, n - 1, query], self.high[query, n - 1, query])


def lower_sum(x: Floats, y: Floats) -> Floats:
    """Below x + y."""
    return np.asarray(x + y - (np.abs(x) + np.abs(y)) * 2.0**-48 - 2.0**-1000)


def lower_product(d: Floats, low: Floats, high: Floats) -> Floats:
    """Below e x for every e in [low, high], low >= 0, and x >= d."""
    product = np.where(d >= 0, low, high) * d
    return np.asarray(product - np.abs(product) * 2.0**-50 - 2.0**-1000)


def _difference(x: Ball, label: int) -> Ball:
    """The label's entry of the last axis minus every entry."""
    mid = x.mid[..., label, None] - x.mid
    return known(mid, (x.rad[..., label, None] + x.rad) * (1 + 2.0**-48) + np.abs(mid) * 2.0**-50 + 2.0**-1000)


Moves = list[tuple[int, int, Ints]]


@dataclass(frozen=True, eq=False)
class Words:
    """The words before a query that an automaton accepts. `used`: the tokens that occur in them; `moves`: from a state
    to a state by tokens, given by their places in `used`; `size`: how many words there are."""

    states: int
    start: int
    accept: Bits
    used: Ints
    moves: Moves
    size: int


def _words(part: Labels, label: int, query: int, vocab: Ints, m: int) -> Words:
    """The words of length m that, followed by the query, have this label; equivalent states merged (Moore)."""
    delta = part.delta[:, vocab]
    block = (part.labels[delta[:, query]] == label).astype(np.int64)
    count = 2
    for step in itertools.count():
        classes: dict[bytes, int] = {}
        small = block.astype(np.uint8 if count <= 256 else np.int64)
        behaviour = np.column_stack([small, small[delta]])
        block = np.array([classes.setdefault(row.tobytes(), len(classes)) for row in behaviour], dtype=np.int64)
        if step and len(classes) == count:  # a refinement with as many classes as before is the same partition
            break
        count = len(classes)
    first = np.unique(block, return_index=True)[1]
    accept = np.asarray(part.labels[delta[first, query]] == label)
    step = block[delta[first]]
    live = accept.copy()
    while (wider := live | live[step].any(axis=1)).sum() > live.sum():
        live = wider
    used = np.flatnonzero(live[step[live]].any(axis=0))
    moves = [
        (int(state), int(target), np.flatnonzero(step[state, used] == target))
        for state in np.flatnonzero(live)
        for target in np.unique(step[state, used])
        if live[target]
    ]
    sizes = {int(block[0]): 1}
    for _ in range(m):
        following: dict[int, int] = {}
        for state, target, tokens in moves:
            following[target] = following.get(target, 0) + sizes.get(state, 0) * len(tokens)
        sizes = following
    size = sum(number for state, number in sizes.items() if accept[state])
    return Words(count, int(block[0]), accept, used, moves, size)


def unlabelled(part: Labels, vocab: Ints, n: int) -> int:
    """How many words of length n end in a state without a label: on them the body is false."""
    rows = [np.unique(row, return_counts=True) for row in part.delta[:, vocab]]
    steps = [[(int(s), int(c)) for s, c in zip(*row, strict=True)] for row in rows]
    counts = [int(label < 0) for label in part.labels]
    for _ in range(n):
        counts = [sum(c * counts[s] for s, c in row) for row in steps]
    return counts[0]
