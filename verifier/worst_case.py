"""The least difference of two logits over all words of a product domain: branch and bound, anytime and resumable.

The lower bound of a group of words comes from `PathBounds`; the words along its least paths, and coordinate search from
the best of them, give the upper one. The group with the least bound is split first, as `path_splits` says. What is
known at any moment: lower <= the least difference <= upper, the latter attained by `word`. The groups are the leaves of
a certificate by rule `paths`.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.errors import InputError
from ..models.files import write_atomically
from ..models.languages import Language
from ..models.transformer import Transformer
from ..models.values import Value
from .balls import check_arithmetic
from .bounded_model import BoundedModel
from .claims import subject_of
from .label_bodies import token_places
from .logit_difference import LogitDifference, LogitDifferenceBody, require_pair
from .path_bounds import Margins, PathBounds, magnitude
from .path_frontier import digest, split_of
from .path_search import Found, Node, lowest
from .path_splits import Split, choose_split
from .portfolio import check_readable, check_setting, theorem
from .reading import Subject
from .recheck import objection
from .verdicts import Certificate, Proved, Setting, Unknown
from .word_graph import one_state, whole_graph

GIVEN_UP = (0.0, 2.0**-24, 2.0**-12, 2.0**-6)
"""Of what lies between the bounds and 0, these shares are given up, one after the other, until the checker accepts."""
SAMPLES, STARTS = 4096, 6


@dataclass(frozen=True)
class LeastDifference:
    """What is known of the least of logit `output` - logit `rival`: a rigorous lower bound over the reals, an upper
    bound (the float32 run's difference on `word`), and how many groups of words were bounded."""

    output: Value
    rival: Value
    lower: float
    upper: float
    word: tuple[Value, ...]
    groups: int
    seconds: float
    _tree: _Tree | None = field(default=None, repr=False, compare=False)

    @property
    def gap(self) -> float:
        return max(0.0, self.upper - self.lower)

    def prove(self, progress: Callable[[str], None] = lambda _: None) -> Proved | Unknown:
        """`Proved`: that the difference is at least `lower` on every input, with a certificate that the independent
        checker accepts. (Should it find less in some group: at least a little less, which the claim says.) `Unknown`
        where nothing was found yet, or the checker does not follow."""
        if self._tree is None:
            raise InputError("these are bounds of a search that goes on; its result, in the end, has the certificate")
        return self._tree.prove(self, progress)

    def __str__(self) -> str:
        shown = " ".join(map(str, self.word))
        return f"{self.lower:.6g} <= least difference <= {self.upper:.6g} (on {shown}), {self.groups} groups"


def certified(proved: Proved) -> float:
    """What a verdict of `LeastDifference.prove` says that the difference is at least."""
    body = proved.setting.claim.body  # type: ignore[union-attr]
    assert isinstance(body, LogitDifferenceBody)
    return float(body.at_least)


def least_difference(
    model: Transformer,
    output: Value,
    rival: Value,
    domain: Language,
    *,
    codec: Any = None,
    gap: float = 0.0,
    seconds: float = 60.0,
    resume: str | PathLike[str] | None = None,
    progress: Callable[[LeastDifference], None] | None = None,
) -> LeastDifference:
    """Bounds of the least of logit_output - logit_rival on a domain, until they differ by at most `gap` or time is up.

    For models that `PathBounds` covers and product domains of one length. `resume`: a file that the search goes on
    from if it is there, and writes what is left to (atomically, also after Ctrl-C). The result's `prove()` gives a
    certificate for the lower bound. The weights are copied at the start. Raises `InputError`.
    """
    subject = subject_of(model, codec)
    check_setting("least_difference", subject, domain, seconds)
    check_readable(subject.codec.vocab, subject.longest, domain)
    search = _Search(subject.snapshot(), output, rival, domain, gap)
    if resume is not None and Path(resume).exists():
        search.read(Path(resume))
    try:
        with torch.no_grad():
            search.run(time.monotonic() + seconds, progress)
    except KeyboardInterrupt:
        pass
    if resume is not None:
        write_atomically(Path(resume), json.dumps(search.to_json(), sort_keys=True).encode())
    return search.result(final=True)


@dataclass(frozen=True, eq=False)
class _Tree:
    """The groups of a search that has ended, over all words of one length."""

    subject: Subject
    domain: Language
    root: Node
    n: int

    def prove(self, found: LeastDifference, progress: Callable[[str], None]) -> Proved | Unknown:
        began, reason = time.monotonic(), "no group of words has been bounded yet"
        size, claim = self.domain.size(), LogitDifference(self.subject, found.output, found.rival, 0.0)
        scale = abs(found.lower) + found.gap
        for share in GIVEN_UP if math.isfinite(found.lower) else ():
            least = found.lower - share * scale
            claim = LogitDifference(self.subject, found.output, found.rival, least)
            progress(f"checking that the difference is at least {least:.6g}")
            certificate = Certificate.of(theorem(claim, self.domain), self.proof(least))
            problem = objection(certificate, self.subject.model)
            spent = found.seconds + time.monotonic() - began
            if problem is None:
                return Proved(certificate, Setting(claim, self.domain, "real", "paths", spent))
            reason = f"the independent checker does not accept the proof: {problem}"
        spent = found.seconds + time.monotonic() - began
        return Unknown(reason, size, Setting(claim, self.domain, "real", "paths", spent))

    def proof(self, least: float) -> dict[str, object]:
        """By rule `paths`: a group whose own bound is `least` or more is a leaf, whatever became of it."""
        nodes = list(_leaves(self.root, least))
        states = one_state(len(self.subject.codec.vocab)).transitions.tolist()
        return {"rule": "paths", "states": states, "trees": [{"n": self.n, "tree": nodes}]}


def _leaves(node: Node, least: float) -> Iterator[list[object]]:
    """As certificates have it, in preorder."""
    if node.split is None or not node.children or node.found.least >= least:
        yield ["leaf", []]
        return
    yield list(node.split)
    for child in node.children:
        yield from _leaves(child, least)


class _Search:
    def __init__(self, subject: Subject, output: Value, rival: Value, domain: Language, gap: float) -> None:
        check_arithmetic()
        require_pair(subject, output, rival)
        lengths = [n for n in domain.lengths if domain.size(n)]
        if len(lengths) != 1 or not domain.is_product():
            raise InputError("least_difference takes a product domain of one length, such as sequences(vocab, 10)")
        (self.n,) = lengths
        letters = np.array(sorted(token_places(subject, domain)), dtype=np.int64)
        outputs = subject.codec.outputs
        self.subject, self.output, self.rival, self.domain = subject, output, rival, domain
        self.at, self.wanted, self.began = (outputs.index(output), outputs.index(rival)), gap, time.monotonic()
        self.model = BoundedModel(subject.model, self.n)
        self.letters, self.groups = letters, 0
        self.best = (math.inf, np.full(self.n, letters[0]))
        """The float32 run's least difference so far, and its word."""
        self._tried: set[bytes] = set()
        self.root = Node(whole_graph(one_state(len(subject.codec.vocab)).transitions.astype(np.int64), letters, self.n))
        self.queue: list[tuple[float, int, Node]] = []
        self.settled = math.inf
        """The least bound of the groups that cannot be split: single words. The float32 run is no bound of theirs."""
        self._order = itertools.count()
        self.identity = [subject.model.weights_sha256(), list(self.at), letters.tolist(), self.n]

    @property
    def upper(self) -> float:
        return self.best[0]

    def result(self, *, final: bool = False) -> LeastDifference:
        """What the tree says, whatever was interrupted."""
        word = tuple(self.subject.codec.vocab[int(t)] for t in self.best[1])
        lower = min(_least_of(self.root, -math.inf), self.upper)
        tree = _Tree(self.subject, self.domain, self.root, self.n) if final else None
        spent = time.monotonic() - self.began
        return LeastDifference(self.output, self.rival, lower, self.upper, word, self.groups, spent, tree)

    def run(self, deadline: float, progress: Callable[[LeastDifference], None] | None) -> None:
        """Splits the group with the least bound, as long as that can raise it."""
        said = time.monotonic()
        if not self.groups:
            self._attack()
            self.root.found = self._look(self.root)
        self._wait(self.root, -math.inf)
        while self.queue and self.queue[0][0] < self.settled:
            if self.upper - self.queue[0][0] <= self.wanted or time.monotonic() >= deadline:
                break
            bound, _, node = heapq.heappop(self.queue)
            assert node.found.choice is not None
            children = node.parts(node.found.choice)
            for child in children:
                child.found = self._look(child)
            node.split = node.found.choice
            node.children = children
            for child in children:
                self._wait(child, bound)
            if progress and time.monotonic() > said + 0.5:
                said = time.monotonic()
                progress(self.result())

    def _wait(self, node: Node, above: float) -> None:
        """Puts the groups that may be split further in the queue."""
        bound = max(above, node.found.least)
        for child in node.children:
            self._wait(child, bound)
        if node.children or bound >= self.upper:
            return
        if node.found.choice is None:
            self.settled = min(self.settled, bound)
        else:
            heapq.heappush(self.queue, (bound, next(self._order), node))

    def _look(self, node: Node) -> Found:
        """The least bound of a group, and how it would be split."""
        self.groups += 1
        found = PathBounds(self.model, node.graph).margins([self.at])
        last = self.subject.model.config.readout == "last"
        least = found.least()
        group = int(least[:, 0].argmin())
        bound = lowest(found, least) - 2 * self.model.rounding * magnitude(*found.of(group, 0))
        bound /= 1 if last else self.n
        bound -= abs(bound) * 2.0**-50
        self._try(_least_word(found, group))
        goal = max((self.upper - self.wanted) * (1 if last else self.n), float(least.min()))
        return Found(choice=_split(found, least[:, 0] <= goal), least=bound)

    def _attack(self) -> None:
        """Coordinate descent from the best of some random words: the sooner the upper bound is good, the fewer groups
        have to be split."""
        words = self.letters[
            np.random.default_rng(0).integers(len(self.letters), size=(min(SAMPLES, self.root.graph.size), self.n))
        ]
        for at in self._differences(words).argsort()[:STARTS].tolist():
            self._try(words[at])

    def _try(self, word: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """Coordinate descent in the float32 run, from a word, unless it comes to one that it has been at."""
        value = float(self._differences(word[None])[0])
        while word.tobytes() not in self._tried:
            self._tried.add(word.tobytes())
            if value < self.upper:
                self.best = (value, word)
            nearby = np.repeat(word[None], self.n * len(self.letters), 0)
            rows = np.arange(len(nearby))
            nearby[rows, rows // len(self.letters)] = np.tile(self.letters, self.n)
            values = self._differences(nearby)
            at = int(values.argmin())
            if float(values[at]) >= value or value > self.upper + abs(self.upper):
                return
            word, value = nearby[at], float(values[at])

    def _differences(self, words: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
        logits: Tensor = self.subject.model(torch.from_numpy(words))
        return (logits[:, self.at[0]] - logits[:, self.at[1]]).double()

    # The file that a search is resumed from

    def to_json(self) -> dict[str, object]:
        upper, word = self.best
        nodes = [_node_to_json(node) for node in self.root.all()] if self.groups else []
        data = {
            "identity": self.identity,
            "groups": self.groups,
            "upper": upper if nodes else None,
            "word": word.tolist(),
            "nodes": nodes,
        }
        return {**data, "sha256": digest(data)}

    def read(self, path: Path) -> None:
        """Raises `InputError` for another search's file."""
        try:
            data = json.loads(path.read_text())
            if data["identity"] != self.identity:
                raise InputError(
                    f"{path} belongs to another search: other weights, outputs or domain; choose another file"
                )
            if data.pop("sha256") != digest(data):
                raise ValueError("its text is not what was written: the hash differs")
            word = np.array(data["word"], dtype=np.int64)
            if data["nodes"]:
                nodes = iter(data["nodes"])
                _rebuild(self.root, nodes)
                if next(nodes, None) is not None:
                    raise ValueError("its tree has nodes to spare")
                self.groups, self.best = int(data["groups"]), (float(data["upper"]), word)
        except (ValueError, KeyError, TypeError, IndexError, StopIteration, OSError) as error:
            raise InputError(f"{path} is no file of an interrupted search ({error}); remove it to begin anew") from None


def _least_of(node: Node, above: float) -> float:
    """The least bound of a node's leaves, each the best of its own and of those above it."""
    here = max(above, node.found.least)
    return min((_least_of(child, here) for child in node.children), default=here)


def _node_to_json(node: Node) -> list[object]:
    """Its bound, whether it is split, and how it is or would be."""
    return [node.found.least, bool(node.children), node.found.choice]


def _rebuild(node: Node, nodes: Iterator[Any]) -> None:
    """The node, and what is below it, from its items in preorder."""
    least, split, choice = next(nodes)
    node.found = Found(choice=None if choice is None else split_of(choice), least=float(least))
    if split:
        assert node.found.choice is not None
        node.split, node.children = node.found.choice, node.parts(node.found.choice)
        for child in node.children:
            _rebuild(child, nodes)


def _split(found: Margins, low: Tensor) -> Split | None:
    """How a group is split, of whose groups of paths some have too `low` a bound: each of the last tokens of these by
    itself, against the others; then as `choose_split` does. None: a single word."""
    graph = found.graph
    if graph.size == 1:
        return None
    tokens = graph.edges[-1].token
    if len(low) == len(tokens) > 1 and len(every := np.unique(tokens)) > 1:
        alone = np.unique(tokens[low.numpy()])
        parts = [[token] for token in alone.tolist()]
        others = np.setdiff1d(every, alone).tolist()
        return "tokens", graph.n - 1, [*parts, others] if others else parts
    return choose_split(found, found.least(), low.to(torch.int64).tolist())


def _least_word(found: Margins, group: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The word along the least path of a group."""
    graph, (_, tables) = found.graph, found.of(group, 0)
    behind = graph.behind(tables)
    node, word = int(behind[0].argmin()), []
    for j, edges in enumerate(graph.edges):
        onward = torch.where(graph.sources[j] == node, behind[j + 1][graph.targets[j]] + tables[j], torch.inf)
        edge = int(onward.argmin())
        word.append(int(edges.token[edge]))
        node = int(edges.target[edge])
    return np.array(word, dtype=np.int64)
