"""Rule `paths` over domains of kind product and dfa, and label machines that read the last token first: the checker
against word-by-word answers, zero tolerance; forged certificates; faults planted in the checker's own code."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from certiformer.proofs import Invalid, Outcome, Valid, judging, path_graph, path_language, paths
from certiformer.proofs.automaton import Domain
from certiformer.proofs.bodies import Labels
from certiformer.proofs.format import Rejected
from certiformer.proofs.path_language import language, minimal
from certiformer.proofs.words import sentence

from . import path_domains
from .path_cases import Case, random_machine
from .path_domains import Question, check_graphs, check_proofs, check_sizes, random_question, tree

Json = Any
Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("start", range(0, 32, 8))
def test_a_leaf_proves_the_words_of_its_kind_and_not_one_more(start: int) -> None:
    for seed in range(start, start + 8):
        check_sizes(seed)


@pytest.mark.parametrize("start", range(0, 400, 100))
def test_paths_are_words_and_edges_are_as_specified(start: int) -> None:
    for seed in range(start, start + 100):
        check_graphs(seed)


def test_no_more_is_proved_than_is_right_and_much_is() -> None:
    proved, right, total = np.array([check_proofs(seed) for seed in range(80)]).sum(axis=0)
    assert right / 2 < proved <= right < total


def test_the_random_questions_are_of_all_kinds() -> None:
    found = [random_question(seed) for seed in range(80)]
    kinds = {(q.domain["kind"], q.last_first) for q in found}
    assert kinds == set(itertools.product(("product", "dfa"), (False, True)))
    assert any(len(set(map(len, q.words()))) > 1 for q in found), "several lengths"
    assert any(len(q.ids) < q.case.tokens for q in found), "tokens that are not in the domain"
    assert any(q.ids != sorted(q.ids) for q in found), "another order than the codec's"
    assert any(-1 in row for q in found for row in q.domain.get("delta", ())), "dead states"
    assert any(-1 in q.case.labels["labels"] for q in found) and any(q.domain["lengths"][0] == 1 for q in found)


def test_the_partition_is_the_coarsest() -> None:
    """On random automata, some of which need many rounds."""
    rng = np.random.default_rng(0)
    for seed in range(600):
        states, tokens = int(rng.integers(1, 14)), int(rng.integers(1, 4))
        step = rng.integers(states, size=(states, tokens))
        if seed % 3 == 0:
            step = np.minimum(np.arange(states)[:, None] + rng.integers(2, size=(states, tokens)), states - 1)
        closes = rng.random((states, tokens)) < rng.choice([0.05, 0.2, 0.5])
        block = np.zeros(states, dtype=np.int64)
        for _ in range(states + 1):
            rows = np.column_stack([block, closes, block[step]])
            block = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
        found, _ = path_language._partition(step, closes, 0)
        pairs = set(zip(block.tolist(), found.tolist(), strict=True))
        assert len(pairs) == len(set(block.tolist())) == len(set(found.tolist()))
        assert len(minimal(step, closes).step) == len(pairs)


# --- hand-made and forged certificates -------------------------------------------------------------------------------


def first_token() -> Question:
    """Three tokens, the domain's being t2 and t0, in this order, of lengths 1 to 3 with an even number of t0's: the
    label is the first token; the model says 1. Labelled 1 (t2 first) are t2, t2 t2, t2 t2 t2, t2 t0 t0."""
    return _question({"transitions": [[1, 3, 2], [1, 1, 1], [2, 2, 2], [3, 3, 3]], "labels": [-1, 0, 1, -1]})


def last_token() -> Question:
    """As `first_token`, with the last token as the label, read first. Labelled 1 are t2, t2 t2, t2 t2 t2, t0 t0 t2."""
    return _question({**first_token().case.labels, "last_first": True})


def _question(labels: Json) -> Question:
    config = {
        "d_model": 1, "n_ctx": 3, "d_vocab": 3, "d_vocab_out": 2, "activation": "relu", "causal": True,
        "layers": [{"n_heads": 0, "d_head": 0, "d_mlp": 0}], "positional": "none", "attention_scale": 1.0,
        "layer_norm": None, "readout": "last",
    }  # fmt: skip
    weights = {
        "embed.W_E": np.zeros((3, 1), dtype=np.float32), "unembed.W_U": np.zeros((1, 2), dtype=np.float32),
        "unembed.b_U": np.array([0, 1], dtype=np.float32),
    }  # fmt: skip
    domain = {"kind": "dfa", "vocab": ["t2", "t0"], "lengths": [1, 3], "start": 0, "accept": [0],
              "delta": [[0, 1], [1, 0]]}  # fmt: skip
    return Question(Case(config, weights, 3, 3, labels, [[0, 0, 1], [0, 0, 1]]), domain)


LEAF: Json = [["leaf", []]]
TREES: dict[str, Json] = {
    "left": [tree((n, 1, None), LEAF) for n in (1, 2, 3)],
    "last": [tree((n, 1, 2), LEAF) for n in (1, 2, 3)],
}
QUESTIONS = {"left": first_token, "last": last_token}


def test_hand_made_proofs_are_valid() -> None:
    for name, make in QUESTIONS.items():
        question = make()
        words = question.words()
        assert len(words) == 7 and sum(map(question.is_right, words)) == 4
        assert isinstance(question.trees(TREES[name], Fraction(4, 7)), Valid)
        rejected(question.trees(TREES[name], Fraction(5, 7)), "only 4 of 7")
        rejected(question.trees(TREES[name], None), "only 4 of 7")
        rejected(question.trees(TREES[name][1:], Fraction(4, 7)), "only 3 of 7")
        question.domain |= {"accept": [0], "delta": [[0, -1]]}  # t2 t2 t2 and shorter
        assert isinstance(question.trees(TREES[name], None), Valid)


def rejected(outcome: Outcome, why: str) -> None:
    assert isinstance(outcome, Invalid) and outcome.rule != "internal error", outcome
    assert why in outcome.why, outcome


SPLIT_AT_THE_END: Json = [["tokens", 2, [[0], [1, 2]]], *LEAF, *LEAF]
OVERLAPPING: Json = [["tokens", 2, [[0, 2], [2]]], *LEAF, *LEAF]
FORGED: dict[str, tuple[str, Json, str]] = {
    "a tree twice": ("left", [*TREES["left"], TREES["left"][2]], "has two trees"),
    "a last token's tree twice": ("last", [*TREES["last"], TREES["last"][2]], "has two trees"),
    "last for a machine from the left": ("left", TREES["last"], "unknown keys"),
    "last null for a machine from the left": ("left", [{**TREES["left"][2], "last": None}], "unknown keys"),
    "no last": ("last", TREES["left"], "missing keys"),
    "last null": ("last", [{**TREES["last"][2], "last": None}], "last must be"),
    "last unknown": ("last", [{**TREES["last"][2], "last": 3}], "last must be"),
    "last negative": ("last", [{**TREES["last"][2], "last": -1}], "last must be"),
    "last a bool": ("last", [{**TREES["last"][2], "last": True}], "last must be"),
    "last a name": ("last", [{**TREES["last"][2], "last": "t2"}], "last must be"),
    "last not in the domain": ("last", [{**TREES["last"][2], "last": 1}], "not in the domain's vocab"),
    "no label": ("left", [{**TREES["left"][2], "label": -1}], "label must be"),
    "too short": ("left", [{**TREES["left"][2], "n": 0}], "n must be"),
    "too long": ("left", [{**TREES["left"][2], "n": 4}], "n must be"),
    "parts that overlap at the end": ("left", [*TREES["left"][:2], {**TREES["left"][2], "tree": OVERLAPPING}],
                                      "overlap"),
    "tokens after the end": ("last", [{**TREES["last"][0], "tree": [["tokens", 1, [[2]]], *LEAF]}], "a position"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forged_trees_are_rejected(name: str) -> None:
    kind, trees, why = FORGED[name]
    rejected(QUESTIONS[kind]().trees(trees, Fraction(1, 7)), why)


def test_last_tokens_that_no_word_ends_with_prove_nothing() -> None:
    """Of label 1 no word ends with t0; and those that do are of label 0, on which the model is wrong."""
    question = last_token()
    more = [*TREES["last"], *(tree((n, 1, 0), LEAF) for n in (1, 2, 3))]
    assert isinstance(question.trees(more, Fraction(4, 7)), Valid)
    rejected(question.trees(more, Fraction(5, 7)), "only 4 of 7")
    rejected(question.trees([tree((3, 0, 0), LEAF)], Fraction(1, 7)), "may win")
    rejected(question.trees([tree((3, 0, 0), [["leaf", [[1, 100]]]])], Fraction(1, 7)), "only 0 of 7")


@pytest.mark.parametrize("kind", QUESTIONS)
def test_trees_split_at_the_end(kind: str) -> None:
    """Tokens at n - 1 and states at n; also where n is 1."""
    question = QUESTIONS[kind]()
    last = 2 if kind == "last" else None
    for at, chosen in [("tokens", 2), ("states", 3)]:
        for part in ([0], [1], [2], [0, 2], [0, 1]):
            if at == "states" and 2 in part:
                continue
            for n in (1, 3):
                place = chosen - 3 + n
                nodes = [[at, place, [part]], *LEAF]
                words = [w for w in question.words() if len(w) == n and question.label(w) == 1]
                count = sum((w if at == "tokens" else question.case.reading(w))[place] in part for w in words)
                assert isinstance(question.trees([tree((n, 1, last), nodes)], Fraction(count, 7)), Valid)
                found = question.trees([tree((n, 1, last), nodes)], Fraction(count + 1, 7))
                rejected(found, f"only {count} of 7")
    whole = [*TREES[kind][:2], {**TREES[kind][2], "tree": SPLIT_AT_THE_END}]
    assert isinstance(question.trees(whole, Fraction(4, 7)), Valid)


@pytest.mark.parametrize("flag", [False, None, 1, 0, "true", [True]])
def test_last_first_is_true_or_left_out(flag: Json) -> None:
    question = last_token()
    question.case.labels["last_first"] = flag
    rejected(question.trees(TREES["left"], Fraction(1, 7)), "last_first is true")
    rejected(question.check({"rule": "enumerate"}, Fraction(1, 7)), "last_first is true")


def test_distinct_domains_are_rejected() -> None:
    question = first_token()
    question.domain = {"kind": "distinct", "vocab": ["t2", "t0"], "lengths": [1, 2]}
    rejected(question.trees(TREES["left"][:2], Fraction(0)), "product or dfa")


def test_rule_count_is_for_machines_from_the_left() -> None:
    question = last_token()
    question.domain = {"kind": "product", "vocab": ["t2", "t0"], "lengths": [1, 3]}
    question.case.config["layers"] = [{"n_heads": 1, "d_head": 1, "d_mlp": 0}]
    name = "blocks.0.attn."
    shapes = {"W_Q": (1, 1, 1), "W_K": (1, 1, 1), "W_V": (1, 1, 1), "W_O": (1, 1, 1), "b_O": (1,)}
    shapes |= {"b_Q": (1, 1), "b_K": (1, 1), "b_V": (1, 1)}
    question.case.weights |= {name + x: np.zeros(shape, dtype=np.float32) for x, shape in shapes.items()}
    proof = {"rule": "count", "groups": [], "tilted": []}
    rejected(question.check(proof, Fraction(0)), "machines that read from the left")
    del question.case.labels["last_first"]
    assert isinstance(question.check(proof, Fraction(0)), Valid)


# --- the other rules: labels by enumeration and of witnesses ---------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_labels_of_all_words_by_enumeration(seed: int) -> None:
    enumerated(seed)


def enumerated(seed: int) -> None:
    """A model that says y of all: it is right on the words labelled y."""
    question = random_question(seed, certain=True)
    question.bos = bool(seed % 2)
    if question.bos:
        question.case.config |= {"d_vocab": question.case.tokens + 1, "n_ctx": question.case.config["n_ctx"] + 1}
        weights = question.case.weights
        for name in ("embed.W_E", "pos_embed.W_pos"):
            if name in weights:
                weights[name] = np.concatenate([weights[name], weights[name][:1]])
    words = question.words()
    for label in range(question.case.config["d_vocab_out"]):
        question.case.weights["unembed.b_U"][:] = np.arange(len(question.case.weights["unembed.b_U"])) == label
        right = [word for word in words if question.label(word) == label]
        for body in ({}, {"kind": "label_margin", "at_least": {"num": 1, "log2den": 1}}):
            changes = {"body": {**question.case.theorem(None)["body"], **body}}
            for count in (len(right), len(right) + 1):
                if count <= len(words):
                    found = question.check({"rule": "enumerate"}, Fraction(count, len(words)), **changes)
                    assert isinstance(found, Valid) == (count == len(right)), found
        for word in words[:: max(1, len(words) // 5)]:
            proof = {"rule": "witness", "inputs": [[question.names[t] for t in word]]}
            theorem = question.check(proof, None, quantifier="exists")
            assert isinstance(theorem, Valid) == (word in right), theorem


def test_the_statement_in_words_tells_the_order() -> None:
    for make, told in ((first_token, False), (last_token, True)):
        question = make()
        theorem = {**question.case.theorem(None), "domain": question.domain}
        theorem["codec"] = {**theorem["codec"], "vocab": question.names}
        margin = {**theorem["body"], "kind": "label_margin", "at_least": 1}
        for body in (theorem["body"], margin):
            assert ("that reads the last token first" in sentence({**theorem, "body": body})) == told


# --- limits ----------------------------------------------------------------------------------------------------------


def _wide(states: int, part: Labels, delta: Any) -> path_language.Language:
    tokens = delta.shape[1]
    delta = np.vstack([np.where(delta < 0, states, delta), np.full((1, tokens), states)])
    accept = np.append(np.arange(states) % 3 == 0, False)
    domain = Domain(tuple(range(tokens)), 1, 20, 0, accept, delta)
    return language(part, domain, np.arange(tokens), 1, 0 if part.last_first else None)


def test_large_automata_are_minimised_quickly() -> None:
    """511 domain states, 150 label states, 8 tokens: at random, and a domain that counts."""
    rng = np.random.default_rng(0)
    counting = np.minimum(np.arange(511)[:, None] + (np.arange(8) % 2), 510)
    start = time.monotonic()
    for delta, last_first in itertools.product((rng.integers(-1, 511, size=(511, 8)), counting), (False, True)):
        part = Labels(np.array(random_machine(rng, 150, 8)), rng.integers(-1, 8, size=150), last_first)
        found = _wide(511, part, delta)
        assert found.work < 2**25 and len(found.step) > 100
    assert time.monotonic() - start < 40


@pytest.mark.parametrize("last_first", [False, True])
def test_hostile_automata_are_refused_before_long(last_first: bool) -> None:
    """Chains, which take as many rounds as they have states."""
    start = time.monotonic()
    for states, tokens in ((2**18, 8), (2**21, 1), (50_000, 2)):
        chain = np.minimum(np.arange(states)[:, None] + 1 - np.arange(tokens) % 2, states - 1)
        part = Labels(chain, (np.arange(states) == states - 1).astype(np.int64), last_first)
        with pytest.raises(Rejected, match=r"too large to be minimised|too many pairs"):
            _wide(1, part, np.zeros((1, tokens), dtype=np.int64))
    assert time.monotonic() - start < 60


def test_languages_that_are_forgotten_are_found_again(monkeypatch: Patch) -> None:
    found = []
    monkeypatch.setattr(paths, "MAX_REMEMBERED", 1)
    monkeypatch.setattr(paths, "language", lambda *given: found.append(given[3:]) or language(*given))
    for name, make in QUESTIONS.items():
        other = {**TREES[name][0], "label": 0, "tree": [["open"]]}
        trees = [TREES[name][0], other, *TREES[name][1:]]
        assert isinstance(make().trees(trees, Fraction(4, 7)), Valid)
    places = [(1, None), (0, None), (1, None), (1, 0), (0, 0), (1, 0)]
    assert found == places


# --- faults planted in the checker's own code ------------------------------------------------------------------------


def changed(change: Callable[..., Any]) -> Callable[[Patch], None]:
    """`change(right, part, domain, vocab, label, last)` for the language, wherever it is used."""

    def plant(patch: Patch) -> None:
        for owner in (paths, path_domains):
            patch.setattr(owner, "language", lambda *given: change(language, *given))

    return plant


def without_domain(right: Any, part: Any, domain: Any, *rest: Any) -> Any:
    return right(part, replace(domain, accept=np.ones_like(domain.accept)), *rest)


def in_order_of_the_codec(right: Any, part: Any, domain: Any, vocab: Any, *rest: Any) -> Any:
    return right(part, domain, np.sort(vocab), *rest)


def any_last_token(right: Any, part: Any, domain: Any, vocab: Any, label: int, last: Any) -> Any:
    found = right(part, domain, vocab, label, last)
    return found if last is None else replace(found, closes=found.closes | found.closes.any(axis=1)[:, None])


def started_without_last(right: Any, part: Any, domain: Any, vocab: Any, label: int, last: Any) -> Any:
    """The start's token `last` leads to a copy of the start."""
    if last is None:
        return right(part, domain, vocab, label, last)
    delta = np.vstack([part.delta, part.delta[:1]])
    delta[0, vocab[last]] = len(part.delta)
    return right(Labels(delta, np.append(part.labels, part.labels[0]), True), domain, vocab, label, last)


def unlabelled_counted(right: Any, part: Any, *rest: Any) -> Any:
    return right(replace(part, labels=np.where(part.labels < 0, 1, part.labels)), *rest)


def one_class(right: Any, *given: Any) -> Any:
    """All pairs that close with the same tokens are one."""
    found = right(*given)
    _, first, block = np.unique(found.closes, axis=0, return_index=True, return_inverse=True)
    block = block.reshape(-1)
    return path_language.Language(block[found.step[first]], found.closes[first], int(block[found.start]))


def dead_if_it_closes_with_nothing(patch: Patch) -> None:
    patch.setattr(path_language.Language, "dead", property(lambda words: ~words.closes.any(axis=1)))


def end_not_restricted(patch: Patch) -> None:
    right = path_graph._allowed

    def allowed(restrictions: Any, n: int, *rest: Any) -> Any:
        tokens, states = right(restrictions, n, *rest)
        return {p: x for p, x in tokens.items() if p < n - 1}, {p: x for p, x in states.items() if p < n}

    patch.setattr(path_graph, "_allowed", allowed)


def twice_is_allowed(patch: Patch) -> None:
    class Forgetful(set[Any]):
        def __contains__(self, item: object) -> bool:
            return False

    right = paths._Checker.read
    patch.setattr(
        paths._Checker, "read", lambda self, entry: (setattr(self, "seen", Forgetful()), right(self, entry))[1]
    )


def read_from_the_left(patch: Patch) -> None:
    right = judging._label
    patch.setattr(judging, "_label", lambda chunk, part: right(chunk, replace(part, last_first=False)))


def forgeries(seed: int) -> None:
    for kind, trees, _ in FORGED.values():
        found = QUESTIONS[kind]().trees(trees, Fraction(5, 7))
        assert not isinstance(found, Valid)


FAULTS: dict[str, tuple[Callable[[Patch], None], Callable[[int], object]]] = {
    "words that are not in the domain": (changed(without_domain), check_sizes),
    "the same, in graphs": (changed(without_domain), check_graphs),
    "tokens in the codec's order": (changed(in_order_of_the_codec), check_sizes),
    "words that end otherwise": (changed(any_last_token), check_sizes),
    "the last token not read": (changed(started_without_last), check_sizes),
    "words without a label": (changed(unlabelled_counted), check_sizes),
    "pairs merged that differ": (changed(one_class), check_graphs),
    "prefixes lost": (dead_if_it_closes_with_nothing, check_graphs),
    "the end not restricted": (end_not_restricted, check_graphs),
    "a tree twice": (twice_is_allowed, forgeries),
    "the last token not read first by enumeration": (read_from_the_left, enumerated),
    "no comparison": (lambda patch: patch.setattr(paths, "_least", lambda *_: 1), check_proofs),
    "no comparison, by last class": (lambda patch: patch.setattr(paths, "_least_to", lambda *_: 1), check_proofs),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_noticed(name: str, monkeypatch: Patch) -> None:
    plant, check = FAULTS[name]
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        for seed in range(60):
            check(seed)


def test_a_wrong_partition_is_noticed_by_the_checker_itself(monkeypatch: Patch) -> None:
    right = path_language._partition

    def coarse(step: Any, closes: Any, work: int) -> Any:
        block, spent = right(step, closes, work)
        return block // 2, spent

    assert isinstance(copy.deepcopy(first_token()).trees(TREES["left"], Fraction(4, 7)), Valid)
    monkeypatch.setattr(path_language, "_partition", coarse)
    found = first_token().trees(TREES["left"], Fraction(1, 7))
    assert isinstance(found, Invalid) and "merged that differ" in found.why
