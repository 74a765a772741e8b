"""Rule `count`: at least so many inputs have the right label (section 7 of the specification).

One layer, one head, no neurons, read out at the last position. For last token q, label y and rival w, the positive
normaliser of the softmax drops out of the comparison: logit_y - logit_w > 0 iff the sum over positions j of
e^(s_j - top) (c + d_j) is, c being what the query adds always and d_j what the token at j adds with all attention.
Terms are rounded down to integers; words with a sum of at most 0 are counted, in integers, never too few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import flint
import numpy as np

from .balls import Ball, Floats, exp, point, times
from .bodies import Labels
from .core import Bits, Ints
from .format import Json, integer, listing, record, require, within
from .network import Network
from .theorem import Theorem

MAX_LEVELS = 2**14
BITS = 40


def check_count(theorem: Theorem, proof: dict[str, Json]) -> None:
    """Accepts if the groups listed have enough inputs that provably get their label."""
    with within("proof", "count"):
        item = record(proof, "proof", ("rule", "groups"))
        part = _scope(theorem)
        sizes = theorem.domain.sizes()
        vocab = np.array([theorem.codec.token(token) for token in theorem.domain.vocab], dtype=np.int64)
        tables: dict[int, _Tables] = {}
        seen: set[tuple[int, int, int]] = set()
        proved = 0
        for number, entry in enumerate(listing(item["groups"], "groups", 2**22)):
            with within(f"groups[{number}]", "count"):
                group = record(entry, "a group", ("n", "label", "query", "counts"))
                n = integer(group["n"], "n", theorem.domain.lo, theorem.domain.hi)
                label = integer(group["label"], "label", 0, len(theorem.codec.outputs) - 1)
                query = integer(group["query"], "query", 0, len(vocab) - 1)
                require((n, label, query) not in seen, "this group is listed twice")
                seen.add((n, label, query))
                counts = [_pair(x, len(theorem.codec.outputs)) for x in listing(group["counts"], "counts", 2**16)]
                require(len({w for w, _ in counts}) == len(counts), "a rival is listed twice")
                if n not in tables:
                    tables[n] = _Tables(theorem, n, vocab)
                proved += _proved(tables[n], part, label, query, dict(counts))
        total = sum(sizes.values())
        require(proved >= theorem.share * total, f"only {proved} of {total} inputs are proved right")


def _scope(theorem: Theorem) -> Labels:
    """The one part of the body; or `Rejected`, if this rule says nothing about such a theorem."""
    config = theorem.model.config
    require(theorem.quantifier == "at_least", "rule count proves at_least only")
    require(len(theorem.parts) == 1 and isinstance(theorem.parts[0], Labels), "rule count is for one `labels` body")
    require(len(config.layers) == 1, "rule count is for one layer")
    layer = config.layers[0]
    require(layer.n_heads == 1 and layer.d_mlp == 0, "rule count is for one head and no neurons")
    require(config.readout == "last", "rule count is for the read-out 'last'")
    require(theorem.codec.categorical, "rule count is for categorical codecs: it compares logits")
    require(not theorem.codec.bos, "rule count is for codecs without BOS")
    domain = theorem.domain
    free = not domain.distinct and bool(domain.accept.all()) and not domain.delta.any()
    require(free and domain.start == 0, "rule count is for product domains")
    (part,) = theorem.parts
    assert isinstance(part, Labels)
    return part


def _pair(data: Json, outputs: int) -> tuple[int, int]:
    pair = listing(data, "a count", 2, 2)
    return integer(pair[0], "a rival", 0, outputs - 1), integer(pair[1], "levels", 1, MAX_LEVELS)


class _Tables:
    """What the tokens of the domain contribute at one length: `low <= e^(s - top) <= high` [query, j, token];
    `value` [j, token, output] and `direct` [query, output]."""

    def __init__(self, theorem: Theorem, n: int, vocab: Ints) -> None:
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
        self.n, self.vocab = n, vocab
        self._gained: dict[int, Floats] = {}  # of the label asked for last
        self._words: dict[tuple[int, bytes], _Words] = {}
        finite = np.isfinite(self.value.rad).all() and np.isfinite(self.direct.rad).all()
        require(bool(finite), "the values are known too roughly")

    def words(self, part: Labels, label: int, query: int) -> _Words:
        """The words that may stand before this query in an input of this label; the same for many queries."""
        accepting = part.labels[part.delta[:, self.vocab[query]]] == label
        key = (label, accepting.tobytes())
        if key not in self._words:
            self._words[key] = _words(part, label, query, self.vocab, self.n - 1)
        return self._words[key]

    def terms(self, label: int, query: int, used: Ints) -> tuple[Ints, Ints]:
        """Integers [rival, j, token used] for j < n - 1, and [rival] for the query: at most C e^(s - top) (c + d)."""
        n = self.n
        always = _difference(self.direct[query], label).low()  # [rival]
        if label not in self._gained:
            self._gained = {label: _difference(self.value, label).low().transpose(2, 0, 1)}
        gained = self._gained[label]  # [rival, j, token]
        rest = _at_most(
            always[:, None, None] + gained[:, : n - 1, used], always[:, None, None], gained[:, : n - 1, used]
        )
        rest = _weighted(rest, self.low[query, : n - 1, used].T, self.high[query, : n - 1, used].T)
        own = _at_most(always + gained[:, n - 1, query], always, gained[:, n - 1, query])
        own = _weighted(own, self.low[query, n - 1, query], self.high[query, n - 1, query])
        top = max(float(np.abs(rest).max(initial=0.0)), float(np.abs(own).max()), 2.0**-900)
        scale = 2.0 ** (BITS - 1 - math.ceil(math.log2(top)))
        return np.floor(rest * scale).astype(np.int64), np.floor(own * scale).astype(np.int64)


def _at_most(total: Floats, first: Floats, second: Floats) -> Floats:
    """Below the true sum of two numbers that was rounded to `total`."""
    return np.asarray(total - (np.abs(first) + np.abs(second)) * 2.0**-48 - 2.0**-1000)


def _weighted(d: Floats, low: Floats, high: Floats) -> Floats:
    """Below e x for every e in [low, high], low >= 0, and x >= d."""
    product = np.where(d >= 0, low, high) * d
    return np.asarray(product - np.abs(product) * 2.0**-50 - 2.0**-1000)


def _difference(x: Ball, label: int) -> Ball:
    """The label's entry of the last axis minus every entry."""
    mid = x.mid[..., label, None] - x.mid
    return Ball(mid, (x.rad[..., label, None] + x.rad) * (1 + 2.0**-48) + np.abs(mid) * 2.0**-50 + 2.0**-1000)


Moves = list[tuple[int, int, Ints]]


@dataclass(frozen=True, eq=False)
class _Words:
    """The words before a query that an automaton accepts. `used`: the tokens that occur in them; `moves`: from a state
    to a state by tokens, given by their places in `used`; `size`: how many words there are."""

    states: int
    start: int
    accept: Bits
    used: Ints
    moves: Moves
    size: int


def _words(part: Labels, label: int, query: int, vocab: Ints, m: int) -> _Words:
    """The words of length m that, followed by the query, have this label; equivalent states merged (Moore)."""
    delta = part.delta[:, vocab]
    block = (part.labels[delta[:, query]] == label).astype(np.int64)
    count = len(np.unique(block))
    while True:
        behaviour = np.column_stack([block, block[delta]])
        _, first, inverse = np.unique(behaviour, axis=0, return_index=True, return_inverse=True)
        block = inverse.reshape(-1)
        if len(first) == count:
            break
        count = len(first)
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
    return _Words(count, int(block[0]), accept, used, moves, size)


def _proved(tables: _Tables, part: Labels, label: int, query: int, counts: dict[int, int]) -> int:
    """Inputs of a group, less at most those on which some rival may win."""
    words = tables.words(part, label, query)
    if not words.size:
        return 0
    terms, own = tables.terms(label, query, words.used)
    require(label not in counts, "the label is not its own rival")
    unlisted = [w for w in range(len(own)) if w != label and w not in counts]
    lowest = _least(words, terms[unlisted]) + own[unlisted]
    if (lowest <= 0).any():
        require(False, f"rival {unlisted[int((lowest <= 0).argmax())]} is not listed, and may win")
    failing = sum(_count(words, terms[w], -int(own[w]), levels) for w, levels in counts.items())
    return words.size - min(words.size, failing)


NEVER = 2**60


def _least(words: _Words, terms: Ints) -> Ints:
    """[rival]: the least sum over the words."""
    best = np.full((len(terms), words.states), NEVER)
    best[:, words.start] = 0
    for j in range(terms.shape[1]):
        following = np.full_like(best, NEVER)
        for source, target, chosen in words.moves:
            step = np.minimum(best[:, source] + terms[:, j, chosen].min(axis=1), NEVER)
            following[:, target] = np.minimum(following[:, target], step)
        best = following
    return np.asarray(best[:, words.accept].min(axis=1, initial=NEVER))


def _count(words: _Words, terms: Ints, bound: int, levels: int) -> int:
    """At least the number of words with a sum of at most `bound`.

    sum t <= bound implies sum floor((t - low) / 2^k) <= floor((bound - sum of lows) / 2^k).
    """
    low = terms.min(axis=1)
    room = bound - int(low.sum())
    if room < 0:
        return 0
    k = (room // levels).bit_length()
    steps, top = (terms - low[:, None]) >> k, room >> k
    state = {words.start: flint.fmpz_poly([1])}
    for j in range(len(terms)):
        following: dict[int, flint.fmpz_poly] = {}
        for source, target, chosen in words.moves:
            if source in state:
                here = steps[j, chosen]
                histogram = flint.fmpz_poly(np.bincount(here[here <= top], minlength=1).tolist())
                product = state[source].mul_low(histogram, top + 1)
                following[target] = following[target] + product if target in following else product
        state = following
    return sum(int(sum(p.coeffs(), flint.fmpz(0))) for s, p in state.items() if words.accept[s])
