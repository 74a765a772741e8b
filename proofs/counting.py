"""Rule `count`: how many inputs have the right label, at least, and at most (section 7 of the specification).

The comparison of two logits is a sum over positions (`count_tables`). Its terms are rounded down, to integers or in
float64, so that a count of the words with a sum of at most 0 never misses one: on all others the comparison holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import flint
import numpy as np

from .balls import Floats
from .bodies import Labels
from .core import Ints
from .count_tables import Tables, Words, unlabelled
from .format import Json, integer, listing, record, require, within
from .theorem import COUNTED, Theorem
from .tilting import Tilted, check_tilted, read_tilted

MAX_LEVELS = 2**14
BITS = 40
NEVER = 2**60
MAX_EXPONENT = 1020
FALSE_MATTERS = ("fewer_than", "at_most", "between")


@dataclass
class _Count:
    """What is counted so far: inputs on which the body holds, and on which it fails."""

    theorem: Theorem
    part: Labels
    vocab: Ints
    true: int = 0
    false: int = 0
    seen: set[tuple[int, int, int]] = field(default_factory=set)
    tables: dict[int, Tables] = field(default_factory=dict)

    def at(self, n: int) -> Tables:
        """The tables of one length; only those asked for last are kept."""
        if n not in self.tables:
            self.tables = {n: Tables(self.theorem, n, self.vocab)}
        return self.tables[n]

    def once(self, n: int, label: int, query: int) -> None:
        require((n, label, query) not in self.seen, "this group is listed twice")
        self.seen.add((n, label, query))


def check_count(theorem: Theorem, proof: dict[str, Json]) -> None:
    """Accepts if enough inputs provably get their label, or enough provably do not, as the quantifier says."""
    with within("proof", "count"):
        item = record(proof, "proof", ("rule", "groups", "tilted"))
        part = _scope(theorem)
        vocab = np.array([theorem.codec.token(token) for token in theorem.domain.vocab], dtype=np.int64)
        count = _Count(theorem, part, vocab)
        sizes = theorem.domain.sizes()
        for number, entry in enumerate(listing(item["groups"], "groups", 2**22)):
            with within(f"groups[{number}]", "count"):
                _check_group(count, entry)
        tilted: list[tuple[int, Tilted]] = []
        for number, entry in enumerate(listing(item["tilted"], "tilted", 2**18)):
            with within(f"tilted[{number}]", "count"):
                found = read_tilted(entry, theorem.domain.lo, theorem.domain.hi, len(theorem.codec.outputs), len(vocab))
                for query in found.queries:
                    count.once(found.n, found.label, query)
                tilted.append((number, found))
        for n in sorted({found.n for _, found in tilted}):
            here = [(number, found) for number, found in tilted if found.n == n]
            count.true += check_tilted(count.at(n), part, here)
        if theorem.quantifier in FALSE_MATTERS and (part.labels < 0).any():
            count.false += sum(unlabelled(part, vocab, n) for n in sizes)
        theorem.require_counts(count.true, count.false, sum(sizes.values()))


def _scope(theorem: Theorem) -> Labels:
    """The one part of the body; or `Rejected`, if this rule says nothing about such a theorem."""
    config = theorem.model.config
    require(theorem.quantifier in COUNTED, "rule count proves theorems about shares of the inputs only")
    require(len(theorem.parts) == 1 and isinstance(theorem.parts[0], Labels), "rule count is for one `labels` body")
    require(len(config.layers) == 1, "rule count is for one layer")
    layer = config.layers[0]
    require(layer.n_heads == 1 and layer.d_mlp == 0, "rule count is for one head and no neurons")
    require(not config.layer_norm, "rule count is for models without LayerNorm")
    require(config.readout == "last", "rule count is for the read-out 'last'")
    require(not config.sparse, "rule count is for softmax attention")
    require(config.d_readout == 0, "rule count is for models without an MLP at the read-out")
    require(theorem.codec.categorical, "rule count is for categorical codecs: it compares logits")
    require(not theorem.codec.bos, "rule count is for codecs without BOS")
    domain = theorem.domain
    free = not domain.distinct and bool(domain.accept.all()) and not domain.delta.any()
    require(free and domain.start == 0, "rule count is for product domains")
    (part,) = theorem.parts
    assert isinstance(part, Labels)
    require(part.alone is None, "rule count reads a circuit's own model (section 11)")
    require(not part.last_first, "rule count is for label machines that read from the left")
    return part


def _check_group(count: _Count, entry: Json) -> None:
    group = record(entry, "a group", ("n", "label", "query"), ("counts", "lost"))
    outputs = len(count.theorem.codec.outputs)
    n = integer(group["n"], "n", count.theorem.domain.lo, count.theorem.domain.hi)
    label = integer(group["label"], "label", 0, outputs - 1)
    query = integer(group["query"], "query", 0, len(count.vocab) - 1)
    count.once(n, label, query)
    tables = count.at(n)
    words = tables.words(count.part, label, query)
    if "counts" in group:
        counts = [_pair(x, outputs, label) for x in listing(group["counts"], "counts", 2**16)]
        require(len({w for w, _ in counts}) == len(counts), "a rival is listed twice")
        count.true += _won(tables, words, label, query, dict(counts)) if words.size else 0
    if "lost" in group:
        rival, exponent = _pair(group["lost"], outputs, label)
        rest, own = tables.beats(rival, label, query, words.used)
        lost = words.size - min(words.size, _not_above(words, rest[0], own[0], exponent)) if words.size else 0
        count.false += lost


def _pair(data: Json, outputs: int, label: int) -> tuple[int, int]:
    """A rival and an exponent."""
    pair = listing(data, "a count", 2, 2)
    rival = integer(pair[0], "a rival", 0, outputs - 1)
    require(rival != label, "the label is not its own rival")
    return rival, integer(pair[1], "an exponent", -MAX_EXPONENT, MAX_EXPONENT)


def _won(tables: Tables, words: Words, label: int, query: int, counts: dict[int, int]) -> int:
    """Inputs of a group, less at most those on which some rival may win."""
    rest, own = tables.beats_all(label, query, words.used)
    unlisted = [w for w in range(len(own)) if w != label and w not in counts]
    lowest = _least(words, rest[unlisted], own[unlisted])
    if (lowest <= 0).any():
        require(False, f"rival {unlisted[int((lowest <= 0).argmax())]} is not listed, and may win")
    failing = sum(_not_above(words, rest[w], own[w], exponent) for w, exponent in counts.items())
    return words.size - min(words.size, failing)


def _least(words: Words, rest: Floats, own: Floats) -> Ints:
    """[rival]: at most a positive multiple of the least sum over the words, in integers of `BITS` bits."""
    top = max(float(np.abs(rest).max(initial=0.0)), float(np.abs(own).max(initial=0.0)), 2.0**-900)
    scale = 2.0 ** (BITS - 1 - math.ceil(math.log2(top)))
    terms = np.floor(rest * scale).astype(np.int64)
    best = np.full((len(terms), words.states), NEVER)
    best[:, words.start] = 0
    for j in range(terms.shape[1]):
        following = np.full_like(best, NEVER)
        for source, target, chosen in words.moves:
            step = np.minimum(best[:, source] + terms[:, j, chosen].min(axis=1), NEVER)
            following[:, target] = np.minimum(following[:, target], step)
        best = following
    return np.asarray(best[:, words.accept].min(axis=1, initial=NEVER) + np.floor(own * scale).astype(np.int64))


def _integers(x: Floats, exponent: int, n: int) -> Ints:
    """floor(2^exponent x + o), o = 2^-k with n o <= 1 / 2: if n reals sum to at most 0, so do these integers."""
    offset = 2.0 ** -(n.bit_length() + 1)
    with np.errstate(over="ignore"):
        shifted = np.nextafter(np.ldexp(x, exponent) + offset, -np.inf)
    require(bool((np.abs(shifted) < 2.0**50).all()), "the terms are too large for this exponent")
    return np.floor(shifted).astype(np.int64)


def _not_above(words: Words, rest: Floats, own: Floats, exponent: int) -> int:
    """At least the number of words whose real terms, all at least those given, have a sum of at most 0."""
    m = len(rest)
    terms = _integers(rest, exponent, m + 1)
    low = terms.min(axis=1) if m else np.zeros(0, dtype=np.int64)
    room = -int(_integers(own, exponent, m + 1)) - int(low.sum())
    if room < 0:
        return 0
    require(room < MAX_LEVELS, f"sums of {room + 1} levels; the limit is {MAX_LEVELS}")
    steps = terms - low[:, None]
    state = {words.start: flint.fmpz_poly([1])}
    for j in range(m):
        following: dict[int, flint.fmpz_poly] = {}
        for source, target, chosen in words.moves:
            if source in state:
                here = steps[j, chosen]
                histogram = flint.fmpz_poly(np.bincount(here[here <= room], minlength=1).tolist())
                product = state[source].mul_low(histogram, room + 1)
                following[target] = following[target] + product if target in following else product
        state = following
    return sum(int(sum(p.coeffs(), flint.fmpz(0))) for s, p in state.items() if words.accept[s])
