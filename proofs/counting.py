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

from .balls import Ball, exp, point, times
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
        finite = np.isfinite(self.value.rad).all() and np.isfinite(self.direct.rad).all()
        require(bool(finite), "the values are known too roughly")

    def terms(self, label: int, query: int, used: Ints) -> tuple[Ints, Ints]:
        """Integers [rival, j, token used] for j < n - 1, and [rival] for the query: at most C e^(s - top) (c + d)."""
        n = self.n
        always = _difference(self.direct[query], label)
        gained = _difference(self.value, label)
        first, second = always.low(), gained.low()
        d = first + second - (np.abs(first) + np.abs(second)) * 2.0**-48 - 2.0**-1000
        product = np.where(d >= 0, self.low[query][..., None], self.high[query][..., None]) * d
        product = product - np.abs(product) * 2.0**-50 - 2.0**-1000
        rest, own = product[: n - 1, used].transpose(2, 0, 1), product[n - 1, query]
        top = max(float(np.abs(rest).max(initial=0.0)), float(np.abs(own).max()), 2.0**-900)
        scale = 2.0 ** (BITS - 1 - math.ceil(math.log2(top)))
        return np.floor(rest * scale).astype(np.int64), np.floor(own * scale).astype(np.int64)


def _difference(x: Ball, label: int) -> Ball:
    """The label's entry of the last axis minus every entry."""
    mid = x.mid[..., label, None] - x.mid
    return Ball(mid, (x.rad[..., label, None] + x.rad) * (1 + 2.0**-48) + np.abs(mid) * 2.0**-50 + 2.0**-1000)


@dataclass(frozen=True, eq=False)
class _Words:
    """Words over the domain's tokens that an automaton accepts: delta [state, token], states renumbered from 0."""

    delta: Ints
    accept: Bits
    start: int

    def size(self, m: int) -> int:
        """The number of words of length m."""
        counts = [0] * len(self.delta)
        counts[self.start] = 1
        steps = [np.unique(row, return_counts=True) for row in self.delta]
        for _ in range(m):
            following = [0] * len(counts)
            for state, (targets, many) in enumerate(steps):
                for target, count in zip(targets.tolist(), many.tolist(), strict=True):
                    following[target] += counts[state] * count
            counts = following
        return sum(counts[s] for s in np.flatnonzero(self.accept))

    def live(self) -> Bits:
        """States from which some word is accepted."""
        useful = self.accept.copy()
        while True:
            wider = useful | useful[self.delta].any(axis=1)
            if (wider == useful).all():
                return useful
            useful = wider


def _words(part: Labels, label: int, query: int, vocab: Ints) -> _Words:
    """The words that, followed by the query, have this label; equivalent states merged (Moore's refinement)."""
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
    accept = part.labels[delta[first, query]] == label
    return _Words(block[delta[first]], np.asarray(accept), int(block[0]))


def _proved(tables: _Tables, part: Labels, label: int, query: int, counts: dict[int, int]) -> int:
    """Inputs of a group, less at most those on which some rival may win."""
    words = _words(part, label, query, tables.vocab)
    live = words.live()
    used = np.flatnonzero(live[words.delta[live]].any(axis=0))
    place = {int(token): i for i, token in enumerate(used)}
    moves = []
    for state in np.flatnonzero(live):
        for target in np.unique(words.delta[state, used]):
            if live[target]:
                chosen = [place[int(t)] for t in used if words.delta[state, t] == target]
                moves.append((int(state), int(target), np.array(chosen, dtype=np.int64)))
    m = tables.n - 1
    size = words.size(m)
    terms, own = tables.terms(label, query, used)
    rivals = [w for w in range(terms.shape[0]) if w != label]
    unlisted = [w for w in rivals if w not in counts]
    require(label not in counts, "the label is not its own rival")
    lowest = _least(words, moves, terms[unlisted]) + own[unlisted]
    if (lowest <= 0).any():
        require(False, f"rival {unlisted[int((lowest <= 0).argmax())]} is not listed, and may win")
    failing = sum(_count(words, moves, terms[w], -int(own[w]), levels) for w, levels in counts.items())
    return size - min(size, failing)


Moves = list[tuple[int, int, Ints]]
NEVER = 2**60


def _least(words: _Words, moves: Moves, terms: Ints) -> Ints:
    """[rival]: the least sum over the words."""
    best = np.full((len(terms), len(words.delta)), NEVER)
    best[:, words.start] = 0
    for j in range(terms.shape[1]):
        following = np.full_like(best, NEVER)
        for source, target, chosen in moves:
            step = np.minimum(best[:, source] + terms[:, j, chosen].min(axis=1), NEVER)
            following[:, target] = np.minimum(following[:, target], step)
        best = following
    return np.asarray(best[:, words.accept].min(axis=1, initial=NEVER))


def _count(words: _Words, moves: Moves, terms: Ints, bound: int, levels: int) -> int:
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
        for source, target, chosen in moves:
            if source in state:
                here = steps[j, chosen]
                histogram = flint.fmpz_poly(np.bincount(here[here <= top], minlength=1).tolist())
                product = state[source].mul_low(histogram, top + 1)
                following[target] = following[target] + product if target in following else product
        state = following
    return sum(int(sum(p.coeffs(), flint.fmpz(0))) for s, p in state.items() if words.accept[s])
