"""Engine `paths`: groups of a model's inputs, bounded and split, greatest unproved mass first (`path_proofs`)."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..models.labels import LabelMachine
from .balls import Unsupported
from .bounded_model import BoundedModel
from .path_bounds import Margins, OutOfTime, PathBounds, magnitude
from .path_memory import Memory
from .path_splits import Split, choose_split
from .word_graph import Inputs, Integers, WordGraph, whole_graph, word_graph

BINS = (64, 1024)
FINE = 1e-6
"""A group that loses less than this share of all inputs is not looked at again."""
BITS = 40
SAFE = 1e-9
"""A least bound must be so much above 0, relative to the size of the sums, to be trusted to the checker's rounding."""
SMALL, FEW = 0.1, 4
"""A group with at most this share of all classes gets bounds of its own, as long as these gain; one of so many words
always does."""
LONGEST = 64
"""After so many small groups at most, such bounds are tried again."""
WORTH = 0.25
"""Others, as long as these prove at least this share of what the shared ones left."""
MAX_CLASSES = 4096
Stage: TypeAlias = Literal["shared", "own", "split"]
"""What is done with a group next: bounds with what all groups share, bounds of its own, or its parts."""
STAGES: tuple[Stage, ...] = ("shared", "own", "split")
NEVER = 2**50
"""Stands for infinity in tables of integers."""
Pair: TypeAlias = tuple[int, int]
"""Two outputs, of which the first's logit is to exceed the second's."""


@dataclass(frozen=True)
class Found:
    """What the bounds of a group gave. `kind`: leaf, shared (leaf with shared bounds), or open (nothing is proved).

    `counts`: what its leaf lists; `proved`: how many of its words are proved; `choice`: how it would be split; `least`:
    the least bound of any word, of any pair, beyond the margin.
    """

    kind: str = "open"
    counts: tuple[tuple[int, ...], ...] = ()
    proved: int = 0
    choice: Split | None = None
    least: float = -math.inf


@dataclass(eq=False)
class Node:
    """A group of words in the tree: with what was found, or split as `split` says, with parts."""

    graph: WordGraph
    found: Found = field(default_factory=Found)
    split: Split | None = None
    children: list[Node] = field(default_factory=list)

    def all(self) -> Iterator[Node]:
        """Preorder."""
        yield self
        for child in self.children:
            yield from child.all()

    def to_json(self) -> list[object]:
        """As certificates have it."""
        if self.split is not None:
            return list(self.split)
        found = self.found
        return ["open"] if found.kind == "open" else [found.kind, [list(entry) for entry in found.counts]]

    def parts(self, split: Split) -> list[Node]:
        """What a split makes of it."""
        kind, position, parts = split
        pick = self.graph.by_state if kind == "states" else self.graph.by_token
        return [Node(pick(position, np.array(part, dtype=np.int64))) for part in parts]


@dataclass(frozen=True, eq=False)
class Tree:
    """The words of length n with a label (None: all words), and with a last token if the label machine reads it
    first."""

    n: int
    label: int | None
    last: int | None
    root: Node

    def name(self) -> dict[str, int]:
        named = {"n": self.n, "label": self.label, "last": self.last}
        return {key: value for key, value in named.items() if value is not None}

    def to_json(self) -> dict[str, object]:
        return {**self.name(), "tree": [node.to_json() for node in self.root.all()]}


@dataclass(frozen=True)
class Mass:
    """Inputs by what is known of them: proved right, of `total`; the rest is undecided."""

    proved: int
    total: int
    groups: int


class Search:
    """The groups of one model's inputs, refined until enough is proved or time is up.

    What is proved of an input: its label's logit exceeds all others by more than `margin`; or, of any input, that none
    of the outputs `banned` has the greatest logit, or that the first of `pair` exceeds the second by more than `margin`
    (`labels` is then one state's, with one label for all words).
    """

    def __init__(
        self,
        models: dict[int, BoundedModel],
        labels: LabelMachine,
        states: Integers,
        inputs: Inputs,
        deadline: float,
        progress: Callable[[Mass], None],
        margin: float = 0.0,
        banned: Sequence[int] = (),
        pair: Pair | None = None,
    ) -> None:
        config = next(iter(models.values())).config
        self.models, self.outputs, self.last = models, config.d_vocab_out, config.readout == "last"
        self.deadline, self.progress, self.margin, self.banned = deadline, progress, margin, sorted(banned)
        self.pair = pair
        self.total = sum(inputs.size(n) for n in models)
        self.proved = self.groups = 0
        self.trees: list[Tree] = []
        self.steady = True  # whether queue and trees agree
        self._order = itertools.count()
        self._memories: dict[int, Memory] = {}
        self._queue: list[tuple[int, int, Tree, Node, Stage]] = []
        self.states, self._letters, self._bases = states, inputs.letters, dict[int, PathBounds]()
        self.worthwhile = True  # whether bounds of a large group's own gained much, when last tried
        self.patience = (0, 1)  # how many small groups do without such bounds, as they gained little; next time
        few = len(states) * len(inputs.letters) <= MAX_CLASSES
        self._deep = few and sum(layer.n_heads > 0 for layer in config.layers) > 1  # whether there is much to share
        every = sorted(set(labels.labels[labels.labels >= 0].tolist()))
        endings = inputs.letters.tolist() if labels.last_first else [None]
        for n, label, last in itertools.product(models, every, endings):
            graph = word_graph(labels, label, states, inputs, n, last)
            if graph.size:
                tree = Tree(n, None if banned or pair else label, last, Node(graph))
                self.trees.append(tree)
                self._push(tree, tree.root, "shared" if self._deep else "own")

    def _push(self, tree: Tree, node: Node, stage: Stage) -> None:
        heapq.heappush(self._queue, (node.found.proved - node.graph.size, next(self._order), tree, node, stage))

    @property
    def waiting(self) -> list[tuple[Tree, Node, Stage]]:
        """What is looked at next, in this order."""
        return [(tree, node, stage) for _, _, tree, node, stage in sorted(self._queue, key=lambda entry: entry[:2])]

    def go_on_from(
        self, waiting: Sequence[tuple[Tree, Node, Stage]], groups: int, worthwhile: bool, patience: tuple[int, int]
    ) -> None:
        """What an earlier search left, its trees being in place."""
        self._queue, self.groups, self.worthwhile, self.patience = [], groups, worthwhile, patience
        for tree, node, stage in waiting:
            self._push(tree, node, stage)
        self.proved = sum(node.found.proved for tree in self.trees for node in tree.root.all() if node.split is None)

    def run(self, enough: int) -> None:
        """Until `enough` inputs are proved, no group is worth splitting, or time is up; where `enough` are all, until a
        word cannot be proved. What is interrupted is done again when it goes on."""
        while self._queue and self.proved < enough:
            self.steady = False
            entry = heapq.heappop(self._queue)
            unproved, _, tree, node, stage = entry
            try:
                if stage == "split" and node.found.choice is None and enough == self.total:
                    raise OutOfTime
                if stage == "own" and self._skips(tree, node):
                    self._push(tree, node, "split")
                    self.steady = True
                    continue
                fine = -unproved < FINE * self.total and self.total - self.proved > 64 * -unproved
                if fine and stage == "split" and enough < self.total:
                    self.steady = True
                    continue
                children, found = self._parts(tree, node) if stage == "split" else ([], [self._look(tree, node, stage)])
            except (OutOfTime, KeyboardInterrupt) as stop:
                heapq.heappush(self._queue, entry)
                self.steady = True
                if isinstance(stop, OutOfTime):
                    return
                raise
            self._take(tree, node, stage, children, found)
            self.steady = True
            self.progress(Mass(self.proved, self.total, self.groups))

    def least(self) -> float:
        """What every difference of `pair` is known to be at least, so far; minus infinity if nothing is."""
        return (
            min((_least_of(tree.root, -math.inf, 1 if self.last else tree.n) for tree in self.trees), default=-math.inf)
            + self.margin
        )

    def proof(self) -> dict[str, object]:
        """By rule `paths`: the machine of states, and the trees in which something is proved."""
        trees = [tree.to_json() for tree in self.trees if tree.root.split or tree.root.found.kind != "open"]
        return {"rule": "paths", "states": self.states.tolist(), "trees": trees}

    def _tick(self) -> None:
        if time.monotonic() > self.deadline:
            raise OutOfTime

    def _take(self, tree: Tree, node: Node, stage: Stage, children: list[Node], found: list[Found]) -> None:
        """What was found takes its place in the tree, and what is to be done next in the queue."""
        self.groups += len(found)
        if stage == "split":
            if not children:
                return
            self.proved += sum(each.proved for each in found) - node.found.proved
            node.split, node.children = node.found.choice, children
            for child, each in zip(children, found, strict=True):
                child.found = each
                self._follow(tree, child, "shared" if self._deep else "own")
            return
        (new,), before = found, node.found
        if not before.proved or new.proved > before.proved:
            self.proved += new.proved - before.proved
            node.found = new
        if stage == "own":
            gained = new.proved - before.proved
            much = gained >= WORTH * (gained + node.graph.size - node.found.proved)
            if self._small(tree, node):
                pause = min(2 * self.patience[1], LONGEST)
                self.patience = (0, 1) if much else (pause, pause)
            else:
                self.worthwhile = much
        self._follow(tree, node, stage)

    def _follow(self, tree: Tree, node: Node, stage: Stage) -> None:
        """A group waits, with what of it is not proved, for its next stage."""
        if node.found.proved < node.graph.size:
            own = stage == "shared" and (self._small(tree, node) or self.worthwhile)
            self._push(tree, node, "own" if own else "split")

    def _skips(self, tree: Tree, node: Node) -> bool:
        """Whether a small group does without bounds of its own, because those of others gained little."""
        if not self._deep or node.graph.size <= FEW or not self.patience[0] or not self._small(tree, node):
            return False
        self.patience = (self.patience[0] - 1, self.patience[1])
        return True

    def _small(self, tree: Tree, node: Node) -> bool:
        """Whether bounds of its own are worth their cost, which grows with the square of the number of classes."""
        if not self._deep:
            return True
        classes, most = (sum(map(len, g.edges)) for g in (node.graph, self._base(tree.n).graph))
        return node.graph.size <= FEW or classes <= SMALL * most

    def _parts(self, tree: Tree, node: Node) -> tuple[list[Node], list[Found]]:
        """The parts of a group, and what is found of them (none, if it cannot be split)."""
        if node.found.choice is None:
            return [], []
        children = node.parts(node.found.choice)
        return children, [self._look(tree, child, "shared" if self._deep else "own") for child in children]

    def _look(self, tree: Tree, node: Node, stage: Stage) -> Found:
        """Bounds a group of words."""
        graph = node.graph
        if max(map(len, graph.edges)) > MAX_CLASSES:
            raise Unsupported(f"a position has more than {MAX_CLASSES} classes (states times tokens)")
        base = self._base(tree.n) if self._deep else None
        known = base is not None and not self._small(tree, node)
        memory = self._memories.setdefault(tree.n, Memory()) if known else None
        bounds = PathBounds(self.models[tree.n], graph, self._tick, base, stage == "shared", memory)
        sizes = graph.sizes_of_last() if self.last else [graph.size]
        margins, pairs = self._margins(tree, bounds, sizes)
        least = margins.least()
        right, levels = _right(margins, least, sizes)
        proved = sum(right)
        unproved = [size - some for size, some in zip(sizes, right, strict=True)]
        choice = choose_split(margins, least, unproved) if any(unproved) else None
        bound = lowest(margins, least)
        if not proved:
            return Found(choice=choice, least=bound)
        counts: list[tuple[int, ...]]
        if self.banned:
            counts = [(loser, winner, levels.get(k, BINS[0])) for k, (winner, loser) in enumerate(pairs)]
        else:
            counts = [(pairs[k][1], level) for k, level in levels.items()]
        return Found("shared" if stage == "shared" else "leaf", tuple(counts), proved, choice, bound)

    def _margins(self, tree: Tree, bounds: PathBounds, sizes: list[int]) -> tuple[Margins, list[Pair]]:
        """Bounds for the pairs that decide: the label and each rival; each banned output and the best of others; or the
        one that was asked for."""
        if self.pair is not None:
            return bounds.margins([self.pair], self.margin), [self.pair]
        if tree.label is not None:
            pairs = [(tree.label, w) for w in range(self.outputs) if w != tree.label]
            return bounds.margins(pairs, self.margin), pairs
        pairs = [(w, y) for y in self.banned for w in range(self.outputs) if w != y]
        found = bounds.margins(pairs)
        least, weight = found.least(), torch.tensor([float(size) for size in sizes])
        beaten = (weight[:, None] * (least > 0)).sum(0) / weight.sum()
        worst = least.amin(0)
        rest = self.outputs - 1
        chosen = [
            max(range(k, k + rest), key=lambda at: (float(beaten[at]), float(worst[at])))
            for k in range(0, len(pairs), rest)
        ]
        return found.only(chosen), [pairs[k] for k in chosen]

    def _base(self, n: int) -> PathBounds:
        """Bounds over all words of length n, which those of every group can share."""
        if n not in self._bases:
            graph = whole_graph(self.states, self._letters, n)
            self._bases[n] = PathBounds(self.models[n], graph, self._tick)
        return self._bases[n]


def _least_of(node: Node, above: float, times: int) -> float:
    """The least bound of a node's leaves, each the best of its own and of those above it."""
    here = max(above, node.found.least / times)
    return min((_least_of(child, here, times) for child in node.children), default=here)


def lowest(found: Margins, least: Tensor) -> float:
    """A bound of all words and pairs, less what rounding may add."""
    if not least.numel():
        return math.inf
    group, k = divmod(int(least.argmin()), least.shape[1])
    return float(least[group, k]) - SAFE * magnitude(*found.of(group, k))


def _right(found: Margins, least: Tensor, sizes: list[int]) -> tuple[list[int], dict[int, int]]:
    """Of each group's paths (`sizes`), how many no pair may fail; and the pairs counted for it, with their levels."""
    left, listed = list(sizes), dict[int, int]()
    for k in range(least.shape[1]):
        doubtful = [g for g in range(len(least)) if not _safe(found, g, k, float(least[g, k]))]
        if doubtful:
            counts, listed[k] = _failing(found, doubtful, k, left)
            left = [max(0, size - counts.get(g, 0)) for g, size in enumerate(left)]
    return left, listed


def _safe(found: Margins, group: int, k: int, least: float) -> bool:
    """A least bound that the checker's rounding will not turn negative."""
    return least > SAFE * magnitude(*found.of(group, k))


def _failing(found: Margins, groups: list[int], k: int, sizes: list[int]) -> tuple[dict[int, int], int]:
    """For each of the groups, at most how many of its paths pair k may fail; and the levels they were told apart at."""
    tables = {g: _integers(*found.of(g, k)) for g in groups if sizes[g]}
    total, counts, bins = sum(sizes[g] for g in tables), dict[int, int](), BINS[0]
    before = 2 * total
    for bins in BINS:
        counts = {g: found.graph.count_not_above(whole, bound, bins) for g, (whole, bound) in tables.items()}
        failing = sum(counts.values())
        if failing > 0.9 * before or failing < 1e-4 * total:
            break
        before = failing
    return counts, bins


def _integers(const: float, tables: list[Tensor]) -> tuple[list[Integers], int]:
    """Tables and the bound for sums in integers of BITS bits: const + sum <= 0 implies sum of integers <= bound."""
    unit = 2.0 ** (BITS - np.ceil(np.log2(max(magnitude(const, tables), 2.0**-900))))
    whole = [
        torch.where(torch.isfinite(table), torch.floor(table * unit), NEVER).to(torch.int64).numpy() for table in tables
    ]
    return whole, -int(np.floor(const * unit))
