"""Rule `paths`: at least so many inputs have the right label, for models of any depth (specification, section 8); or
never have one of some outputs.

Words of the domain of one length and label (and last token, if the label machine reads it first) are the paths of a
graph (for outputs that are never given: all words of one length); a tree cuts them into disjoint sets by tokens at
positions and by states of a machine; on each leaf, logit_y - logit_w is at least a sum of numbers, one for each edge on
the path. Words on which that sum, less the margin that is claimed, may be 0 or less are counted, in integers, never too
few. Leaves may share what is known of all words of their length (`Known`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

import flint
import numpy as np

from .balls import Floats
from .bodies import LabelMargin, Labels, NeverOutputs
from .core import Ints
from .format import Json, integer, integers, listing, record, require, within
from .path_bounds import Bounds, Known
from .path_graph import Restriction, WordGraph, read_refinement, whole_graph, word_graph
from .path_language import Language, language
from .path_model import PathModel
from .theorem import Theorem

MAX_NODES = 2**16
MAX_TREES = 2**14
MAX_TREE_DEPTH = 256
MAX_LEVELS = 2**14
MAX_PATH_LENGTH = 512
MAX_MARGIN = 2.0**128
MAX_WORK = 2**38
MAX_COUNTING = 2**42
COUNTING = 2**14
"""What an edge takes at least when paths are counted, in the same unit."""
CHOOSING = 64
"""What a token or state of a restriction takes, for each leaf below it."""
MAX_SIZING = 2**24
MAX_REMEMBERED = 2**24
MAX_SHARED = 2**27
MAX_HELD = 2**28
MAX_MERGING = 2**28
MOVING = 64
PER_POSITION = 64
PREPARING = 4
BITS = 40
Duels: TypeAlias = list[tuple[int, int, int]]
"""(winner, loser, levels): the winner's logit is to exceed the loser's. Levels at which the sums are told apart; 0: on
no word may the loser win."""


def check_paths(theorem: Theorem, proof: dict[str, Json]) -> None:
    """Accepts if the leaves' inputs that provably get their label are enough of all."""
    with within("proof", "paths"):
        item = record(proof, "proof", ("rule", "states", "trees"))
        checker = _Checker(theorem, _scope(theorem), read_refinement(item["states"], len(theorem.codec.vocab)))
        proved = 0
        for number, entry in enumerate(listing(item["trees"], "trees", MAX_TREES)):
            with within(f"trees[{number}]", "paths"):
                which, nodes = checker.read(entry)
                proved += checker.tree(which, nodes)
        total = theorem.domain.size()
        require(proved >= theorem.share * total, f"only {proved} of {total} inputs are proved right")


def _scope(theorem: Theorem) -> Labels | LabelMargin | NeverOutputs:
    """The one part of the body; or `Rejected`, if this rule says nothing about such a theorem."""
    config, domain = theorem.model.config, theorem.domain
    require(theorem.quantifier in ("forall", "at_least"), "rule paths proves forall and at_least only")
    part = theorem.parts[0] if len(theorem.parts) == 1 else None
    kinds = "`labels`, `label_margin` or `never_outputs`"
    require(isinstance(part, Labels | LabelMargin | NeverOutputs), f"rule paths is for one body of kind {kinds}")
    assert isinstance(part, Labels | LabelMargin | NeverOutputs)
    own = isinstance(part, NeverOutputs) or part.alone is None
    require(own, "rule paths reads a circuit's own model (section 11)")
    require(_beyond(part) < MAX_MARGIN, f"rule paths is for margins below {MAX_MARGIN:g}")
    require(theorem.codec.categorical, "rule paths is for categorical codecs: it compares logits")
    require(not theorem.codec.bos, "rule paths is for codecs without BOS")
    require(not domain.distinct, "rule paths is for domains of kind product or dfa")
    require(domain.hi * domain.delta.size <= MAX_SIZING, "the domain's automaton is too large to count its words")
    require(domain.hi <= MAX_PATH_LENGTH, f"rule paths is for at most {MAX_PATH_LENGTH} positions")
    require(not config.layer_norm, "rule paths is for models without LayerNorm")
    neurons = any(layer.d_mlp for layer in config.layers)
    require(config.activation == "relu" or not neurons, "rule paths is for ReLU")
    require(config.readout in ("last", "mean"), "rule paths is for read-outs 'last' and 'mean'")
    require(not config.sparse, "rule paths is for softmax attention")
    require(config.d_readout == 0, "rule paths is for models without an MLP at the read-out")
    one = len(config.layers) == 1 and config.readout == "last"
    require(config.causal or one, "rule paths is for causal models, or one layer read out at the last position")
    return part


def _beyond(part: Labels | LabelMargin | NeverOutputs) -> Fraction:
    """By how much the label's logit must exceed the others (by more, where it need only be the greatest)."""
    return part.at_least if isinstance(part, LabelMargin) else Fraction(0)


# --- trees -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Which:
    """What a tree's words have in common: length, label (None: they are all of this length), last token (of the codec;
    None if it is not read first)."""

    n: int
    label: int | None
    last: int | None


@dataclass
class _Checker:
    """What the trees share. `work`, `counting`, `merging`: what was spent; more than the limits is refused.
    `vocab` [token of the domain]: its id in the codec; `labelled`: the part, or for outputs that are never given,
    `banned`, a machine that gives all words label 0. Of models, with their bounds on the whole graph, and of languages
    if they are large, only those asked for last are kept."""

    theorem: Theorem
    part: Labels | LabelMargin | NeverOutputs
    refinement: Ints
    vocab: Ints = field(init=False)
    labelled: Labels | LabelMargin = field(init=False)
    banned: tuple[int, ...] = field(init=False)
    work: int = 0
    counting: int = 0
    merging: int = 0
    nodes: int = 0
    seen: set[_Which] = field(default_factory=set)
    models: dict[int, PathModel] = field(default_factory=dict)
    wholes: dict[int, Bounds] = field(default_factory=dict)
    languages: dict[tuple[int, int | None], Language] = field(default_factory=dict)

    def __post_init__(self) -> None:
        codec, domain = self.theorem.codec, self.theorem.domain
        self.vocab = np.array([codec.token(token) for token in domain.vocab], dtype=np.int64)
        self.banned = ()
        if isinstance(self.part, NeverOutputs):
            self.banned = tuple(k for k, y in enumerate(codec.outputs) if y in self.part.outputs)
            require(len(self.banned) > 0, "none of the outputs is the codec's: rule paths is for outputs that it has")
            self.labelled = Labels(np.zeros((1, len(codec.vocab)), dtype=np.int64), np.zeros(1, dtype=np.int64))
        else:
            self.labelled = self.part

    def read(self, entry: Json) -> tuple[_Which, list[Json]]:
        """A tree: which words it is about, as no other is, and its nodes."""
        codec, domain = self.theorem.codec, self.theorem.domain
        known = () if self.banned else ("label", "last") if self.labelled.last_first else ("label",)
        tree = record(entry, "a tree", ("n", *known, "tree"))
        n = integer(tree["n"], "n", domain.lo, domain.hi)
        label = None if self.banned else integer(tree["label"], "label", 0, len(codec.outputs) - 1)
        last = integer(tree["last"], "last", 0, len(codec.vocab) - 1) if self.labelled.last_first else None
        require(last is None or last in self.vocab, "the last token is not in the domain's vocab")
        which = _Which(n, label, last)
        require(which not in self.seen, "this length and label (and last token) has two trees")
        self.seen.add(which)
        return which, listing(tree["tree"], "tree", MAX_NODES, 1)

    def tree(self, which: _Which, nodes: list[Json]) -> int:
        """How many inputs a tree's leaves prove right; the nodes are in preorder."""
        self.nodes += len(nodes)
        require(self.nodes <= MAX_NODES, f"the trees have over {MAX_NODES} nodes")
        n, label = which.n, which.label
        if n not in self.models:
            self._spend(PREPARING * n * (len(self.vocab) + 1) * self.theorem.model.config.d_model)
            self.models, self.wholes = {n: PathModel(self.theorem.model, n, self.vocab)}, {}
        whole = n in self.wholes or any(isinstance(entry, list) and entry[:1] == ["shared"] for entry in nodes)
        words = self._language(0 if label is None else label, which.last)
        waiting: list[list[Restriction]] = [[]]
        proved = 0
        for number, entry in enumerate(nodes):
            require(waiting, f"node {number} and what follows belong to no parent")
            with within(f"tree node {number}", "paths"):
                above = waiting.pop()
                kind = entry[0] if isinstance(entry, list) and entry else None
                if kind in ("tokens", "states"):
                    require(len(above) < MAX_TREE_DEPTH, f"the tree is deeper than {MAX_TREE_DEPTH}")
                    parts = self._split(str(kind), n, entry)
                    waiting.extend([*above, part] for part in reversed(parts))
                    missing = number + 1 + len(waiting) - len(nodes)
                    require(missing <= 0, f"the tree lacks {missing} nodes")
                elif kind in ("leaf", "shared"):
                    require(kind == "leaf" or self._deep(), "shared leaves are for two layers with heads, or more")
                    duels = self._banned(entry) if label is None else self._rivals(entry, label)
                    widths = {"tokens": len(self.vocab), "states": len(self.refinement)}
                    self._spend(CHOOSING * sum(widths[kept] + len(part) for kept, _, part in above))
                    graph = word_graph(words, self.refinement, n, above, self.vocab, self._move)
                    if graph is not None:
                        known = self._whole(n).known(graph, kind == "shared") if whole else None
                        proved += self._leaf(n, graph, duels, known)
                else:
                    good = kind == "open" and len(entry) == 1
                    require(good, "a node is 'tokens', 'states', 'leaf', 'shared' or 'open'")
        require(not waiting, f"the tree lacks {len(waiting)} nodes")
        return proved

    def _language(self, label: int, last: int | None) -> Language:
        """The words with this label and last token, of all lengths."""
        if (label, last) not in self.languages:
            place = None if last is None else int(np.flatnonzero(self.vocab == last)[0])
            found = language(self.labelled, self.theorem.domain, self.vocab, label, place)
            self.merging += found.work
            require(self.merging <= MAX_MERGING, "the label machine takes too much work for all labels together")
            if sum(old.step.size for old in self.languages.values()) + found.step.size > MAX_REMEMBERED:
                self.languages = {}
            self.languages[label, last] = found
        return self.languages[label, last]

    def _move(self, moves: int) -> None:
        self._spend(MOVING * moves)

    def _spend(self, work: int) -> None:
        self.work += work
        require(self.work <= MAX_WORK, "the leaves take too much work")

    def _split(self, kind: str, n: int, entry: list[Json]) -> list[Restriction]:
        """What each child is restricted to; no word meets two of these."""
        _, place, parts = listing(entry, "a split", 3, 3)
        last, width = (n - 1, len(self.theorem.codec.vocab)) if kind == "tokens" else (n, len(self.refinement))
        at = integer(place, "a position", 0, last)
        found = [integers(part, "a part", 0, width - 1, width) for part in listing(parts, "parts", width, 1)]
        for part in found:
            require(part and part == sorted(set(part)), "a part is empty, or does not ascend")
        require(sum(map(len, found)) == len(set().union(*found)), "two parts of a split overlap")
        return [(kind, at, tuple(part)) for part in found]

    def _rivals(self, entry: list[Json], label: int) -> Duels:
        """The label against every other output."""
        _, listed = listing(entry, "a leaf", 2, 2)
        outputs = len(self.theorem.codec.outputs)
        found: dict[int, int] = {}
        for data in listing(listed, "rivals", outputs):
            pair = listing(data, "a rival", 2, 2)
            rival = integer(pair[0], "a rival", 0, outputs - 1)
            require(rival != label and rival not in found, "a rival is the label, or is listed twice")
            found[rival] = integer(pair[1], "levels", 1, MAX_LEVELS)
        return [(label, w, found.get(w, 0)) for w in range(outputs) if w != label]

    def _banned(self, entry: list[Json]) -> Duels:
        """For each banned output, in their order, another one that is to exceed it."""
        _, listed = listing(entry, "a leaf", 2, 2)
        found: Duels = []
        for data, banned in zip(
            listing(listed, "outputs", len(self.banned), len(self.banned)), self.banned, strict=True
        ):
            loser, winner, levels = listing(data, "a banned output, its rival and levels", 3, 3)
            require(
                integer(loser, "a banned output", 0, len(self.theorem.codec.outputs) - 1) == banned,
                "the banned outputs are not all listed, once and in order",
            )
            winner = integer(winner, "a rival", 0, len(self.theorem.codec.outputs) - 1)
            require(winner != banned, "an output is its own rival")
            found.append((winner, banned, integer(levels, "levels", 1, MAX_LEVELS)))
        return found

    def _deep(self) -> bool:
        return sum(layer.n_heads > 0 for layer in self.theorem.model.config.layers) > 1

    def _whole(self, n: int) -> Bounds:
        """Bounds on the graph of all words of length n over the domain's vocab."""
        if n not in self.wholes:
            graph = whole_graph(self.refinement, n, self.vocab, self._move)
            require(graph is not None, "internal error: a leaf has words, and the whole graph has none")
            assert graph is not None
            bounds = Bounds(self.models[n], graph)
            require(bounds.held() <= MAX_SHARED, "there are too many classes of all words to share bounds")
            self._spend(bounds.cost(0))
            with np.errstate(all="ignore"):
                self.wholes = {n: bounds.prepared()}
        return self.wholes[n]

    def _leaf(self, n: int, graph: WordGraph, duels: Duels, known: Known | None = None) -> int:
        """Words of a leaf, less at most those on which some loser may win."""
        model = self.models[n]
        if not duels:
            return graph.size
        bounds = Bounds(model, graph, known)
        require(bounds.held() <= MAX_HELD, "a leaf has too many classes for so many heads and neurons")
        self._spend(bounds.cost(len(duels)))
        edges = sum(step.classes for step in graph.steps)
        last = model.config.readout == "last"
        self._spend(len(duels) * (edges + PER_POSITION * n) * (graph.steps[-1].classes if last else 1))
        winners, losers = [winner for winner, _, _ in duels], [loser for _, loser, _ in duels]
        directions = (model.unembed[:, winners] - model.unembed[:, losers]).T
        if last:
            return self._by_last(graph, bounds, directions, duels)
        with np.errstate(all="ignore"):
            own = bounds.own(directions)
        require(all(bool(np.isfinite(part).all()) for _, part in own), "a bound is not finite")
        failing = 0
        for number, (winner, loser, levels) in enumerate(duels):
            bias = self._bias(model, winner, loser)
            sums = _integers(graph, [(i, part[:, number]) for i, part in own], len(own) * bias)
            if not levels:
                require(_least(graph, sums) > 0, f"rival {loser} is not listed, and may win")
                continue
            self._count_at(levels, edges, graph.size)
            failing += _count(graph, sums, levels)
        return graph.size - min(graph.size, failing)

    def _count_at(self, levels: int, edges: int, size: int) -> None:
        self.counting += edges * (levels * (size.bit_length() + 64) + COUNTING)
        require(self.counting <= MAX_COUNTING, "the counts take too much work")

    def _bias(self, model: PathModel, winner: int, loser: int) -> Fraction:
        above, below = (Fraction(float(model.unembed_bias[output])) for output in (winner, loser))
        return above - below - _beyond(self.part)

    def _by_last(self, graph: WordGraph, bounds: Bounds, directions: Floats, duels: Duels) -> int:
        """`_leaf` for the read-out `last`: the words of each class of the last position by themselves."""
        model, edges = bounds.model, sum(step.classes for step in graph.steps)
        with np.errstate(all="ignore"):
            base, terms = bounds.along(directions)
        require(bool(np.isfinite(base).all()) and all(bool(np.isfinite(t).all()) for t in terms), "not finite")
        sizes = graph.sizes_of_last()
        failing = [0] * len(sizes)
        for number, (winner, loser, levels) in enumerate(duels):
            bias = self._bias(model, winner, loser)
            for a in range(len(sizes)):
                sums = _integers_to(graph, base[a, number], [part[:, a, number] for part in terms], bias)
                if _least_to(graph, sums, a) > 0:
                    continue
                require(levels > 0, f"rival {loser} is not listed, and may win")
                self._count_at(levels, edges, graph.size)
                failing[a] += _count_to(graph, sums, levels, a)
        return sum(size - min(size, lost) for size, lost in zip(sizes, failing, strict=True))


# --- sums along paths, in integers -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Sums:
    """Integers of the edges of each position, and a constant: a path's sum is positive only if logit_y > logit_w."""

    terms: list[Ints]
    constant: int


def _integers(graph: WordGraph, own: list[tuple[int, Floats]], bias: Fraction) -> _Sums:
    """Rounded down, all times one power of two; terms below 2^40 in size."""
    top = max(*(float(np.abs(part).max()) for _, part in own), abs(float(bias)), 2.0**-900)
    power = BITS - 1 - math.ceil(math.log2(top))
    terms = [np.zeros(step.classes, dtype=np.int64) for step in graph.steps]
    for i, part in own:
        terms[i] = _floor(part, power)
    return _Sums(terms, math.floor(bias * Fraction(2) ** power))


def _floor(x: Floats, power: int) -> Ints:
    """At most x 2^power, up to underflows; a sum of integers that is positive is at least 1, which they cannot hide."""
    return np.asarray(np.floor(x * 2.0**power).astype(np.int64))


def _integers_to(graph: WordGraph, base: float, terms: list[Floats], bias: Fraction) -> _Sums:
    """As `_integers`, of paths to one class of the last position, whose own number is `base`."""
    own = [*enumerate(part[:, None] for part in terms)]
    whole = bias + Fraction(float(base))
    top = max([*(float(np.abs(part).max()) for _, part in own), abs(float(whole)), 2.0**-900])
    power = BITS - 1 - math.ceil(math.log2(top))
    return _Sums([_floor(part, power) for part in terms], math.floor(whole * Fraction(2) ** power))


def _least_to(graph: WordGraph, sums: _Sums, a: int) -> int:
    """The least sum over the paths to class a of the last position."""
    best = np.zeros(1, dtype=np.int64)
    for step, terms in zip(graph.steps[:-1], sums.terms, strict=True):
        best = np.minimum.reduceat(best[step.source] + terms, step.first)
    return int(best[graph.steps[-1].source[a]]) + sums.constant


def _count_to(graph: WordGraph, sums: _Sums, levels: int, a: int) -> int:
    """As `_count`, of the paths to class a of the last position."""
    if not sums.terms:
        return int(sums.constant <= 0)
    state = _histograms(graph, sums, levels)
    source = int(graph.steps[-1].source[a])
    return int(sum(state[source].coeffs(), flint.fmpz(0))) if source in state else 0


def _least(graph: WordGraph, sums: _Sums) -> int:
    """The least sum over all paths."""
    best = np.zeros(1, dtype=np.int64)
    for step, terms in zip(graph.steps, sums.terms, strict=True):
        best = np.minimum.reduceat(best[step.source] + terms, step.first)
    return int(best.min()) + sums.constant


def _count(graph: WordGraph, sums: _Sums, levels: int) -> int:
    """At least the number of paths with a sum of at most 0."""
    return sum(int(sum(p.coeffs(), flint.fmpz(0))) for p in _histograms(graph, sums, levels).values())


def _histograms(graph: WordGraph, sums: _Sums, levels: int) -> dict[int, flint.fmpz_poly]:
    """For each node after as many positions as there are terms: its paths by height, of those that may have a sum of at
    most 0 (none if no path may).

    sum t <= bound implies sum floor((t - low) / 2^k) <= floor((bound - sum of lows) / 2^k).
    """
    lows = [int(terms.min()) for terms in sums.terms]
    room = -sums.constant - sum(lows)
    if room < 0:
        return {}
    k = (room // levels).bit_length()
    top = room >> k
    state = [flint.fmpz_poly([1])]
    for step, terms, low in zip(graph.steps, sums.terms, lows, strict=False):
        following = [flint.fmpz_poly() for _ in step.first]
        place = step.target * (int(step.source.max()) + 1) + step.source
        heights = (terms - low) >> k
        for edges in np.split(np.argsort(place, kind="stable"), np.flatnonzero(np.diff(np.sort(place))) + 1):
            source, target, here = int(step.source[edges[0]]), int(step.target[edges[0]]), heights[edges]
            histogram = flint.fmpz_poly(np.bincount(here[here <= top], minlength=1).tolist())
            following[target] += state[source].mul_low(histogram, top + 1)
        state = following
    return dict(enumerate(state))
