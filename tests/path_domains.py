"""Random questions for rule `paths` about any domain, and their answers word by word: plain loops over plain data."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from certiformer.proofs import Invalid, Outcome, Valid, check
from certiformer.proofs.automaton import Domain, read_domain
from certiformer.proofs.bodies import Labels
from certiformer.proofs.path_graph import Restriction, WordGraph, word_graph
from certiformer.proofs.path_language import Language, language

from .checker_models import model_bytes, sealed
from .path_cases import Case, Run, random_config, random_machine, random_tree, random_weights
from .path_checks import path

Json = Any
Word = tuple[int, ...]
Key = tuple[int, int, int | None]
"""Length, label and last token: what a tree is about."""


@dataclass
class Question:
    """A model and two machines (`case`), over the codec's tokens; a domain in JSON, whose vocab has names of these."""

    case: Case
    domain: Json
    bos: bool = False

    @property
    def names(self) -> list[str]:
        return [f"t{i}" for i in range(self.case.tokens)]

    @property
    def last_first(self) -> bool:
        return "last_first" in self.case.labels

    @property
    def ids(self) -> list[int]:
        """The codec's ids of the domain's tokens."""
        return [self.names.index(name) for name in self.domain["vocab"]]

    def inside(self, places: Word) -> bool:
        """Whether a word, given as places in the domain's vocab, is in the domain."""
        lo, hi = self.domain["lengths"]
        if self.domain["kind"] == "product":
            return lo <= len(places) <= hi
        state = self.domain["start"]
        for place in places:
            state = self.domain["delta"][state][place] if state >= 0 else -1
        return lo <= len(places) <= hi and state in self.domain["accept"]

    def words(self) -> list[Word]:
        """All words, as codec ids."""
        lo, hi = self.domain["lengths"]
        every = (w for n in range(lo, hi + 1) for w in itertools.product(range(len(self.ids)), repeat=n))
        return [tuple(self.ids[place] for place in w) for w in every if self.inside(w)]

    def label(self, word: Word) -> int:
        state = 0
        order = range(len(word))
        for position in [len(word) - 1, *order[:-1]] if self.last_first else order:
            state = self.case.labels["transitions"][state][word[position]]
        return int(self.case.labels["labels"][state])

    def key(self, word: Word) -> Key:
        return len(word), self.label(word), word[-1] if self.last_first else None

    def keys(self) -> list[Key]:
        """Every tree that there may be."""
        lo, hi = self.domain["lengths"]
        outputs, lasts = range(self.case.config["d_vocab_out"]), self.ids if self.last_first else [None]
        return list(itertools.product(range(lo, hi + 1), outputs, lasts))

    def is_right(self, word: Word) -> bool:
        """By the plain forward pass, in long double; a tie is not right."""
        logits, label = Run(self.case, word).logits, self.label(word)
        return label >= 0 and all(logits[label] > x for w, x in enumerate(logits) if w != label)

    def check(self, proof: Json, share: Fraction | None, **changes: Json) -> Outcome:
        theorem = {**self.case.theorem(share), "domain": self.domain}
        theorem["codec"] = {**theorem["codec"], "vocab": self.names, "bos": self.bos}
        certificate = {"format": "certiformer/1", "theorem": {**theorem, **changes}, "proof": proof}
        return check(sealed(certificate), model_bytes(self.case.config, self.case.weights))

    def trees(self, trees: Json, share: Fraction | None) -> Outcome:
        return self.check({"rule": "paths", "states": self.case.states, "trees": trees}, share)

    def language(self, label: int, last: int | None) -> Language:
        part = Labels(np.array(self.case.labels["transitions"]), np.array(self.case.labels["labels"]), self.last_first)
        place = None if last is None else self.ids.index(last)
        return language(part, self.automaton(), np.array(self.ids), label, place)

    def automaton(self) -> Domain:
        return read_domain(self.domain)

    def pair(self, prefix: Word, last: int | None) -> tuple[int, int]:
        """The label machine's state, after the last token if it reads that first, and the domain automaton's (-1:
        dead)."""
        state, place = 0, self.domain.get("start", 0)
        for token in prefix if last is None else (last, *prefix):
            state = self.case.labels["transitions"][state][token]
        for token in prefix:
            rows = self.domain.get("delta", [[0] * len(self.ids)])
            place = rows[place][self.ids.index(token)] if place >= 0 else -1
        return state, place

    def graph(self, key: Key, restrictions: list[Restriction]) -> WordGraph | None:
        n, label, last = key
        words = self.language(label, last)
        return word_graph(words, np.array(self.case.states), n, restrictions, np.array(self.ids))


def tree(key: Key, nodes: Json) -> Json:
    n, label, last = key
    return {"n": n, "label": label, "tree": nodes} | ({} if last is None else {"last": last})


def random_domain(rng: np.random.Generator, names: list[str], hi: int) -> Json:
    """Over some of the names, in any order; an automaton often has dead and useless states."""
    vocab = [str(x) for x in rng.permutation(names)[: int(rng.integers(1, len(names) + 1))]]
    lengths = [int(rng.integers(1, hi + 1)), hi]
    if rng.random() < 0.2:
        return {"kind": "product", "vocab": vocab, "lengths": lengths}
    states = int(rng.integers(1, 6))
    delta = rng.integers(-1 if rng.random() < 0.7 else 0, states, size=(states, len(vocab)))
    accept = [s for s in range(states) if rng.random() < 0.5]
    start = int(rng.integers(states))
    return {
        "kind": "dfa",
        "vocab": vocab,
        "lengths": lengths,
        "start": start,
        "accept": accept,
        "delta": delta.tolist(),
    }


def random_question(seed: int, certain: bool = False) -> Question:
    """`certain`: a model whose logits do not depend on the word. The domain is not empty."""
    rng = np.random.default_rng(seed)
    while True:
        tokens = int(rng.integers(1, 5))
        hi = int(rng.integers(1, {1: 6, 2: 6, 3: 5, 4: 4}[tokens]))
        config = random_config(rng, tokens, hi)
        config["d_vocab_out"] = int(rng.integers(2, 4))
        weights = random_weights(rng, config, float(rng.choice([0.3, 0.6, 1.0, 3.0])))
        if certain:
            weights["unembed.W_U"][:] = 0
        states = int(rng.integers(1, 7))
        labels = {"transitions": random_machine(rng, states, tokens)}
        labels["labels"] = [int(x) for x in rng.integers(-1, config["d_vocab_out"], size=states)]
        labels |= {"last_first": True} if rng.random() < 0.6 else {}
        case = Case(config, weights, hi, tokens, labels, random_machine(rng, int(rng.integers(1, 4)), tokens))
        found = Question(case, random_domain(rng, [f"t{i}" for i in range(tokens)], hi))
        words = found.words()
        if not words:
            continue
        if not certain and rng.random() < 0.6:
            _agree(found, rng)
        return found


def _agree(question: Question, rng: np.random.Generator) -> None:
    """The machine remembers all it reads and labels words as the model does, but for one, perhaps."""
    case, hi = question.case, question.domain["lengths"][1]
    every = [w for m in range(hi + 1) for w in itertools.product(range(case.tokens), repeat=m)]
    place = {word: number for number, word in enumerate(every)}
    rows = [[place.get((*word, t), place[word]) for t in range(case.tokens)] for word in every]
    read = [(*w[1:], w[0]) if question.last_first and w else w for w in every]
    labels = [int(Run(case, w).logits.argmax()) if w else -1 for w in read]
    if rng.random() < 0.5:
        labels[int(rng.integers(len(labels)))] = int(rng.integers(-1, case.config["d_vocab_out"]))
    case.labels = {**case.labels, "transitions": rows, "labels": labels}


def classes(question: Question, label: int, last: int | None) -> dict[tuple[int, int], int]:
    """The class of each pair that a prefix leads to, by refining as long as anything changes."""
    transitions, labels = question.case.labels["transitions"], question.case.labels["labels"]
    rows = question.domain.get("delta", [[0] * len(question.ids)])
    accept = question.domain.get("accept", [0])
    waiting = [question.pair((), last)]
    after: dict[tuple[int, int], list[tuple[int, int]]] = {}
    closes: dict[tuple[int, int], list[bool]] = {}
    while waiting:
        state, place = pair = waiting.pop()
        if pair in after:
            continue
        following = rows[place] if place >= 0 else [-1] * len(question.ids)
        after[pair] = [(transitions[state][t], p) for t, p in zip(question.ids, following, strict=True)]
        ends = [t == last and labels[state] == label for t in question.ids]
        if last is None:
            ends = [labels[s] == label for s, _ in after[pair]]
        closes[pair] = [end and p in accept for end, (_, p) in zip(ends, after[pair], strict=True)]
        waiting += after[pair]
    found = dict.fromkeys(after, 0)
    while True:
        signature = {p: (found[p], tuple(closes[p]), tuple(found[q] for q in after[p])) for p in after}
        number = {s: i for i, s in enumerate(dict.fromkeys(signature.values()))}
        if len(number) == len(set(found.values())):
            return found
        found = {p: number[signature[p]] for p in after}


# --- checks; all raise AssertionError --------------------------------------------------------------------------------


def check_sizes(seed: int) -> None:
    """A certificate of one leaf proves the words of its length, label and last token, and not one more."""
    question = random_question(seed, certain=True)
    words, bias = question.words(), question.case.weights["unembed.b_U"]
    for key in question.keys():
        bias[:] = 0
        bias[key[1]] = 1
        count = sum(question.key(word) == key for word in words)
        for proved in (count, count + 1):
            if proved <= len(words):
                found = question.trees([tree(key, [["leaf", []]])], Fraction(proved, len(words)))
                assert isinstance(found, Valid) == (proved == count), (found, key, count)
    for label in range(len(bias)):  # together
        bias[:] = 0
        bias[label] = 1
        count = sum(question.label(word) == label for word in words)
        trees = [tree(key, [["leaf", []]]) for key in question.keys() if key[1] == label]
        for proved in (count, count + 1):
            if proved <= len(words):
                found = question.trees(trees, Fraction(proved, len(words)))
                assert isinstance(found, Valid) == (proved == count), (found, label, count)
        assert isinstance(question.trees(trees, None), Valid) == (count == len(words)), "forall is all words"


def check_graphs(seed: int) -> None:
    """Paths are words, and edges are what the specification says, for random restrictions."""
    question, rng = random_question(seed), np.random.default_rng(seed + 1)
    words = question.words()
    for key in question.keys():
        n, label, last = key
        restrictions: list[Restriction] = []
        for _ in range(int(rng.integers(3))):
            kind = str(rng.choice(["tokens", "states"]))
            width = question.case.tokens if kind == "tokens" else len(question.case.states)
            place = int(rng.integers(n)) if kind == "tokens" else int(rng.integers(n + 1))
            restrictions.append((kind, place, tuple(s for s in range(width) if rng.random() < 0.8)))
        graph = question.graph(key, restrictions)
        mine = [w for w in words if question.key(w) == key and question.case.meets(w, restrictions)]
        assert (graph.size if graph else 0) == len(mine), "paths are words"
        if graph is None:
            continue
        places = [tuple(question.ids.index(t) for t in word) for word in mine]
        paths = [tuple(path(graph, word)) for word in places]
        assert len(set(paths)) == len(paths), "words have different paths"
        behaviour = classes(question, label, last)
        for j, step in enumerate(graph.steps):
            edges = set()
            for word, at in zip(mine, places, strict=True):
                pair = question.pair(word[:j], last)
                edges.add((behaviour[pair], question.case.reading(word)[j], at[j]))
            assert step.classes == len(edges), "edges are classes of pairs, refinement states and tokens"
        ends = {question.case.reading(word)[n] for word in mine}
        assert len(graph.steps[-1].first) == len(ends), "nodes at the end are refinement states"


def check_proofs(seed: int) -> tuple[int, int, int]:
    """(proved, right, all): never is more proved than is right by random trees."""
    question, rng = random_question(seed), np.random.default_rng(seed + 1)
    words = question.words()
    right, total = sum(map(question.is_right, words)), len(words)
    trees = []
    for key in question.keys():
        if rng.random() < 0.95:
            trees.append(tree(key, random_tree(rng, question.case, key[0], key[1], depth=int(rng.integers(3)))))
    low, high = 0, total + 1
    while trees and high - low > 1:
        middle = (low + high) // 2
        outcome = question.trees(trees, Fraction(middle, total))
        if isinstance(outcome, Valid):
            low = middle
        else:
            assert isinstance(outcome, Invalid) and outcome.rule != "internal error", outcome
            assert "are proved right" in outcome.why or "may win" in outcome.why, outcome
            high = middle
    assert low <= right, "more is proved than is right"
    if trees and right < total:
        assert not isinstance(question.trees(trees, None), Valid), "a word that is not right is proved"
    return low, right, total
