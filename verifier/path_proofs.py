"""Engine `paths`: how many inputs a model of any depth labels rightly, by bounds conditional on a machine's states.

The inputs of one length with one label are the paths of a `WordGraph`. `PathBounds` gives for each rival w tables with

    logit_label - logit_w >= const + sum_i table_i(class of i)    along every path,

so the paths on which w may win are counted (or there are none: a shortest-path problem). A group of paths of which too
few are proved is split by the states, or the tokens, at one position, where the bounds of the parts differ most, and
each part is bounded anew: the search is anytime, greatest unproved mass first. The certificate holds the splits.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..models.automata import Automaton
from ..models.labels import LabelMachine
from ..models.languages import Language
from .balls import Unsupported, check_arithmetic
from .bounded_model import BoundedModel
from .claims import Claim
from .label_bodies import LabelMarginBody, LabelsBody, not_compared, token_places
from .path_bounds import Margins, OutOfTime, PathBounds, magnitude
from .path_memory import Memory
from .reading import Subject
from .theorems import domain_to_json
from .verdicts import Certificate
from .word_graph import Inputs, Integers, WordGraph, one_state, whole_graph, word_graph

BINS = (64, 1024)
FINE = 1e-6
"""A group that loses less than this share of all inputs is not looked at again."""
BITS = 40
SAFE = 1e-9
"""A least bound must be so much above 0, relative to the size of the sums, to be trusted to the checker's rounding."""
SMALL, FEW = 0.1, 4
"""A group with at most this share of all classes, or so many words, always gets bounds of its own."""
WORTH = 0.25
"""Others, as long as these prove at least this share of what the shared ones left."""
MAX_CLASSES = 4096
Stage: TypeAlias = Literal["shared", "own", "split"]
"""What is done with a group next: bounds with what all groups share, bounds of its own, or its parts."""
NEVER = 2**50
"""Stands for infinity in tables of integers."""

Split = tuple[str, int, list[list[int]]]


@dataclass
class Node:
    """A group of words in the tree. `kind`: open, leaf (with the rivals counted), or a split with parts."""

    graph: WordGraph
    kind: str = "open"
    position: int = 0
    parts: list[list[int]] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)
    counts: list[tuple[int, int]] = field(default_factory=list)
    proved: int = 0
    choice: Split | None = None
    """How it would be split."""

    def to_json(self) -> Iterator[object]:
        """Preorder."""
        if self.kind in ("leaf", "shared"):
            yield [self.kind, [list(pair) for pair in self.counts]]
        elif self.kind == "open":
            yield ["open"]
        else:
            yield [self.kind, self.position, self.parts]
            for child in self.children:
                yield from child.to_json()


@dataclass(frozen=True)
class Tree:
    """The words of length n with a label, and with a last token if the label machine reads it first."""

    n: int
    label: int
    last: int | None
    root: Node

    def to_json(self) -> dict[str, object]:
        last = {} if self.last is None else {"last": self.last}
        return {"n": self.n, "label": self.label, **last, "tree": list(self.root.to_json())}


@dataclass(frozen=True)
class Mass:
    """Inputs by what is known of them: proved right, of `total`; the rest is undecided."""

    proved: int
    total: int
    groups: int


class Search:
    """The groups of one model's inputs, refined until enough is proved or time is up."""

    def __init__(
        self,
        models: dict[int, BoundedModel],
        labels: LabelMachine,
        states: Integers,
        inputs: Inputs,
        deadline: float,
        progress: Callable[[Mass], None],
        margin: float = 0.0,
    ) -> None:
        config = next(iter(models.values())).config
        self.models, self.outputs, self.last = models, config.d_vocab_out, config.readout == "last"
        self.deadline, self.progress, self.margin = deadline, progress, margin
        self.total = sum(inputs.size(n) for n in models)
        self.proved = self.groups = 0
        self.trees: list[Tree] = []
        self._order = itertools.count()
        self._memories: dict[int, Memory] = {}
        self._queue: list[tuple[int, int, Tree, Node, Stage]] = []
        self.states, self._letters, self._bases = states, inputs.letters, dict[int, PathBounds]()
        self._worthwhile = True  # whether bounds of a large group's own gained much, when last tried
        few = len(states) * len(inputs.letters) <= MAX_CLASSES
        self._deep = few and sum(layer.n_heads > 0 for layer in config.layers) > 1  # whether there is much to share
        every = sorted(set(labels.labels[labels.labels >= 0].tolist()))
        endings = inputs.letters.tolist() if labels.last_first else [None]
        for n, label, last in itertools.product(models, every, endings):
            graph = word_graph(labels, label, states, inputs, n, last)
            if graph.size:
                tree = Tree(n, label, last, Node(graph))
                self.trees.append(tree)
                self._push(tree, tree.root, "shared" if self._deep else "own")

    def _push(self, tree: Tree, node: Node, stage: Stage) -> None:
        heapq.heappush(self._queue, (node.proved - node.graph.size, next(self._order), tree, node, stage))

    def run(self, enough: int) -> None:
        """Until `enough` inputs are proved, no group is worth splitting, or time is up; where `enough` are all, until a
        word cannot be proved."""
        while self._queue and self.proved < enough:
            unproved, _, tree, node, stage = heapq.heappop(self._queue)
            fine = -unproved < FINE * self.total and self.total - self.proved > 64 * -unproved
            if stage == "split" and node.choice is None and enough == self.total:
                return
            if fine and stage == "split" and enough < self.total:
                continue
            try:
                self._split(tree, node) if stage == "split" else self._look(tree, node, stage)
            except OutOfTime:
                return
            self.progress(Mass(self.proved, self.total, self.groups))

    def proof(self) -> dict[str, object]:
        """By rule `paths`: the machine of states, and the trees in which something is proved."""
        trees = [tree.to_json() for tree in self.trees if tree.root.kind != "open"]
        return {"rule": "paths", "states": self.states.tolist(), "trees": trees}

    def _tick(self) -> None:
        if time.monotonic() > self.deadline:
            raise OutOfTime

    def _look(self, tree: Tree, node: Node, stage: Stage) -> None:
        """Bounds a group of words; then it waits, with what of it is not proved, for its next stage."""
        graph = node.graph
        if max(map(len, graph.edges)) > MAX_CLASSES:
            raise Unsupported(f"a position has more than {MAX_CLASSES} classes (states times tokens)")
        self.groups += 1
        rivals = [w for w in range(self.outputs) if w != tree.label]
        base = self._base(tree.n) if self._deep else None
        many = base is not None and not _is_small(graph, base.graph)
        memory = self._memories.setdefault(tree.n, Memory()) if many else None
        bounds = PathBounds(self.models[tree.n], graph, self._tick, base, stage == "shared", memory)
        found = bounds.margins(tree.label, rivals, self.margin)
        least = found.least()
        sizes = graph.sizes_of_last() if self.last else [graph.size]
        right, listed = _right(found, least, rivals, sizes)
        gained = sum(right) - node.proved
        if node.kind == "open" or gained > 0:
            self.proved += gained
            node.kind, node.proved, node.counts = ("shared" if stage == "shared" else "leaf"), sum(right), listed
            unproved = [size - proved for size, proved in zip(sizes, right, strict=True)]
            node.choice = _choice(found, least, unproved) if any(unproved) else None
        if not node.proved:
            node.kind, node.counts = "open", []
        if node.proved < graph.size:
            small = base is None or _is_small(graph, base.graph)
            if stage == "own" and not small:
                self._worthwhile = gained >= WORTH * (gained + graph.size - node.proved)
            self._push(tree, node, "own" if stage == "shared" and (small or self._worthwhile) else "split")

    def _base(self, n: int) -> PathBounds:
        """Bounds over all words of length n, which those of every group can share."""
        if n not in self._bases:
            graph = whole_graph(self.states, self._letters, n)
            self._bases[n] = PathBounds(self.models[n], graph, self._tick)
        return self._bases[n]

    def _split(self, tree: Tree, node: Node) -> None:
        """The parts of a group take its place (none of it, if time runs out on the way)."""
        if node.choice is None:
            return
        kind, position, parts = node.choice
        pick = node.graph.by_state if kind == "states" else node.graph.by_token
        children = [Node(pick(position, np.array(part, dtype=np.int64))) for part in parts]
        before = self.proved
        self.proved -= node.proved
        for child in children:
            try:
                self._look(tree, child, "shared" if self._deep else "own")
            except OutOfTime:
                self.proved = before
                raise
        node.kind, node.position, node.parts, node.children, node.counts = kind, position, parts, children, []


def _is_small(graph: WordGraph, whole: WordGraph) -> bool:
    """Whether bounds of its own are worth their cost, which grows with the square of the number of classes."""
    classes, most = (sum(map(len, g.edges)) for g in (graph, whole))
    return graph.size <= FEW or classes <= SMALL * most


def _right(
    found: Margins, least: Tensor, rivals: list[int], sizes: list[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Of each group's paths (`sizes`), how many no rival may win; and the rivals counted for it, with their levels."""
    left, listed = list(sizes), list[tuple[int, int]]()
    for k, rival in enumerate(rivals):
        doubtful = [g for g in range(len(least)) if not _safe(found, g, k, float(least[g, k]))]
        if doubtful:
            counts, levels = _failing(found, doubtful, k, left)
            left = [max(0, size - counts.get(g, 0)) for g, size in enumerate(left)]
            listed.append((rival, levels))
    return left, listed


def _safe(found: Margins, group: int, k: int, least: float) -> bool:
    """A least bound that the checker's rounding will not turn negative."""
    return least > SAFE * magnitude(*found.of(group, k))


def _failing(found: Margins, groups: list[int], k: int, sizes: list[int]) -> tuple[dict[int, int], int]:
    """For each of the groups, at most how many of its paths rival k may win; and the levels they were told apart at."""
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


def _choice(found: Margins, least: Tensor, unproved: list[int]) -> Split | None:
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


def prove_by_paths(
    claim: Claim, domain: Language, deadline: float, progress: Callable[[str], None]
) -> tuple[Certificate | None, str]:
    """A certificate for a claim about labels or their margin (all inputs, or a share of them); or why there is none."""
    total = domain.size()
    enough = total if claim.quantifier == "forall" else -(-claim.share.numerator * total // claim.share.denominator)
    search, why = search_by_paths(claim, domain, enough, deadline, progress)
    if search is None:
        return None, why
    if search.proved < enough:
        return None, f"{search.proved / total:.6f} of the inputs are proved right, in {search.groups} groups"
    return Certificate.of({**claim.theorem(), "domain": domain_to_json(domain)}, search.proof()), ""


def search_by_paths(
    claim: Claim, domain: Language, enough: int, deadline: float, progress: Callable[[str], None]
) -> tuple[Search | None, str]:
    """What is found of the inputs of a claim about labels or their margin, until `enough` are proved; or why nothing
    is."""
    body = claim.body
    assert isinstance(body, (LabelsBody, LabelMarginBody))
    if why := not_compared(body.subject):
        return None, why
    if domain.distinct:
        return None, "domains of words without repetition are not covered"
    inputs = _inputs(body.subject, domain)
    if inputs is None:
        return None, "the domain's vocabulary has tokens that the model does not know"
    states = (body.states or one_state(len(body.subject.codec.vocab))).transitions.astype(np.int64)
    margin = float(body.at_least) if isinstance(body, LabelMarginBody) else 0.0
    check_arithmetic()

    def say(mass: Mass) -> None:
        share = mass.proved / mass.total
        progress(f"paths: {share:.4%} proved right, {1 - share:.4%} undecided, {mass.groups} groups")

    try:
        with torch.no_grad():
            models = {n: BoundedModel(body.subject.model, n) for n in domain.lengths if domain.size(n)}
            search = Search(models, body.machine, states, inputs, deadline, say, margin)
            search.run(enough)
    except Unsupported as error:
        return None, str(error)
    return search, ""


def _inputs(subject: Subject, domain: Language) -> Inputs | None:
    """The domain over token ids; None if its vocabulary has others."""
    if domain.is_product() and len({domain.alphabet(n) for n in domain.lengths if domain.size(n)}) == 1:
        return Inputs(np.array(sorted(token_places(subject, domain)), dtype=np.int64))
    ids = [subject.codec.index.get(token, -1) for token in domain.vocab]
    order = np.argsort(ids)
    automaton = Automaton(domain.automaton.transitions[:, order], domain.automaton.accepting)
    return Inputs(np.array(ids, dtype=np.int64)[order], automaton) if min(ids) >= 0 else None
