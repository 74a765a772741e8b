"""Rule `paths`, leaves that share bounds: against all words, with zero tolerance; forged proofs; planted faults."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from certiformer.proofs import Invalid, Valid, path_bounds, path_graph, paths
from certiformer.proofs.format import Rejected
from certiformer.proofs.path_bounds import Bounds, Box, Known
from certiformer.proofs.path_graph import WordGraph, whole_graph
from certiformer.proofs.path_model import PathModel

from .path_cases import LONG, Case, Run, random_case, random_config, random_machine, random_weights, remembering
from .path_checks import cases, check_trees, check_words, path, trees
from .test_path_checker import FORGED, LEAVES, SPLIT, majority, rejected

Json = Any
Patch = pytest.MonkeyPatch
CHUNKS = [range(start, start + 40) for start in range(0, 160, 40)]


def deep_case(seed: int) -> Case:
    """Causal, of two or three layers, two or more of them with heads; labels mostly as the model has them."""
    rng = np.random.default_rng(1000 + seed)
    case = random_case(seed)
    n = case.n = max(case.n, 2)
    config = random_config(rng, case.tokens, n)
    layers = [
        {"n_heads": int(rng.integers(1, 3)), "d_head": int(rng.integers(1, 3)), "d_mlp": int(rng.choice([0, 1, 3]))}
        for _ in range(2)
    ]
    if rng.random() < 0.4:
        layers.insert(int(rng.integers(3)), {"n_heads": 0, "d_head": 0, "d_mlp": int(rng.choice([0, 2]))})
    elif rng.random() < 0.2:
        layers.append({"n_heads": 1, "d_head": 1, "d_mlp": 2})
    outputs = int(rng.integers(2, 4))
    config |= {"layers": layers, "causal": True, "readout": str(rng.choice(["last", "mean"])), "d_vocab_out": outputs}
    case.config, case.states = config, random_machine(rng, int(rng.integers(1, 5)), case.tokens)
    case.weights = random_weights(rng, config, float(rng.choice([0.3, 0.6, 1.0, 3.0], p=[0.3, 0.4, 0.2, 0.1])))
    case.labels = remembering(case, n)
    if rng.random() < 0.5:  # some words are wrong
        used = [s for s, y in enumerate(case.labels["labels"]) if y >= 0]
        for state in rng.choice(used, size=min(3, len(used)), replace=False):
            case.labels["labels"][int(state)] = int(rng.integers(outputs))
    return case


def prepared(case: Case) -> Bounds:
    """Bounds on the whole graph, as the checker has them."""
    vocab = np.arange(case.tokens)
    graph = paths.whole_graph(np.array(case.states), case.n, vocab)
    assert graph is not None
    return Bounds(PathModel(case.model(), case.n, vocab), graph).prepared()


# --- bounds ------------------------------------------------------------------------------------------------------


def check_whole(seed: int) -> None:
    """The whole graph has every word as a path, and its bounds hold on all."""
    case = deep_case(seed)
    whole = prepared(case)
    words = case.words(case.n)
    assert whole.graph.size == len(words), "all words are paths"
    for j, step in enumerate(whole.graph.steps):
        seen = {(case.reading(word)[j], word[j]) for word in words}
        assert sorted(zip(step.state.tolist(), step.token.tolist(), strict=True)) == sorted(seen), "classes"
    check_words(case, 0, words, lambda: Bounds(whole.model, whole.graph), seed)


def check_shared(seed: int) -> None:
    """With what all words share, and with stable neurons only: boxes, weights, lines, functions, on all words."""
    for case, label, graph, words in cases(seed, deep_case):
        whole = prepared(case)
        for shared in (True, False):
            known = whole.known(graph, shared)
            for word in words:
                classes, of_all = path(graph, word), path(whole.graph, word)
                assert [int(p[a]) for p, a in zip(known.places, classes, strict=True)] == of_all, "a wrong class"
            check_known(case, label, graph, words, known, seed)


def check_known(case: Case, label: int, graph: WordGraph, words: Any, known: Known, seed: int) -> None:
    model = PathModel(case.model(), case.n, np.arange(case.tokens))
    check_words(case, label, words, lambda: Bounds(model, graph, known), seed)
    _check_margins(case, label, words, Bounds(model, graph, known))


def check_values(seed: int) -> None:
    """As `check_shared`, of shared bounds only, without comparing classes."""
    for case, label, graph, words in cases(seed, deep_case):
        check_known(case, label, graph, words, prepared(case).known(graph, True), seed)


def _check_margins(case: Case, label: int, words: Any, bounds: Bounds) -> None:
    """The sum along each word's path is at most its margin, to every rival, less the biases (added exactly)."""
    others = [w for w in range(case.config["d_vocab_out"]) if w != label]
    unembed, last = case.weights["unembed.W_U"].astype(float), len(case.config["layers"]) - 1
    directions, mean = (unembed[:, label, None] - unembed[:, others]).T, case.config["readout"] == "mean"
    own: Any = bounds.own(directions) if mean else None
    base, terms = (None, None) if mean else bounds.along(directions)
    for word in words:
        run, classes = Run(case, word), path(bounds.graph, word)
        if mean:
            total = sum(part[classes[i]].astype(LONG) for i, part in own)
        else:
            assert base is not None and terms is not None
            total = base[classes[-1]].astype(LONG)
            total = total + sum(part[classes[j], classes[-1]].astype(LONG) for j, part in enumerate(terms))
        stream = run.stream[last] if mean else run.stream[last][-1:]
        assert (total <= (stream @ directions.T.astype(LONG)).sum(axis=0)).all(), "a margin"


@pytest.mark.parametrize("seeds", CHUNKS, ids=lambda s: str(s.start))
@pytest.mark.parametrize("check", [check_whole, check_shared])
def test_every_bound_holds_on_every_word(check: Callable[[int], object], seeds: range) -> None:
    for seed in seeds:
        check(seed)


def test_cases_are_of_all_kinds() -> None:
    """Neurons that are stable among all words and such that are not; both read-outs; layers without heads."""
    seen = set()
    for seed in range(60):
        for case, _, graph, _ in cases(seed, deep_case):
            known = prepared(case).known(graph, True)
            last = len(case.config["layers"]) - 1
            width = case.config["layers"][last]["d_mlp"]
            if width:
                doubtful = len(known.doubtful(last, case.n - 1))
                seen.add("none" if not doubtful else "all" if doubtful == width else "some")
            seen |= {case.config["readout"], len(case.states) > 1, len(case.config["layers"])}
            seen.add("merged" if any(len(set(p)) < len(p) for p in map(np.ndarray.tolist, known.places)) else "apart")
    assert seen >= {"none", "all", "some", "last", "mean", True, False, 2, 3, "merged", "apart"}, seen


def test_shared_leaves_cost_less_and_ordinary_ones_no_more() -> None:
    """Charged as little; and no box of a later layer is found anew."""
    for seed in range(30):
        for case, _, graph, _ in cases(seed, deep_case):
            whole = prepared(case)
            plain = Bounds(whole.model, graph).cost(1)
            shared = Bounds(whole.model, graph, whole.known(graph, True)).cost(1)
            assert shared <= Bounds(whole.model, graph, whole.known(graph, False)).cost(1) <= plain
            assert case.n == 1 or shared < plain


# --- proofs ------------------------------------------------------------------------------------------------------


def mixed(case: Case, seed: int, share: float = 0.6) -> Json:
    """Random trees of shared leaves, ordinary ones, and open nodes."""
    rng, found = np.random.default_rng(seed + 5), trees(case, seed)
    for tree in found:
        tree["tree"] = [
            ["shared", *node[1:]] if node[0] == "leaf" and rng.random() < share else node for node in tree["tree"]
        ]
    return found


def check_mixed(seed: int) -> tuple[int, int, int]:
    """(proved, right, all): never is more proved than is right."""
    case = deep_case(seed)
    return check_trees(case, mixed(case, seed, 0.5 if seed % 2 else 1.0))


def test_no_more_is_proved_than_is_right_and_much_is() -> None:
    proved, right, total = np.array([check_mixed(seed) for seed in range(60)]).sum(axis=0)
    assert right / 3 < proved <= right < total


def deep_majority() -> Case:
    """Of `majority`, causal, with a first layer that changes nothing."""
    case = majority()
    layer = case.config["layers"][0]
    case.config |= {"causal": True, "layers": [layer, layer]}
    second = {name.replace("blocks.0", "blocks.1"): array for name, array in case.weights.items() if "blocks" in name}
    case.weights |= second | {"blocks.0.attn.W_O": np.zeros((1, 2, 2), dtype=np.float32)}
    return case


def as_shared(found: Json) -> Json:
    """With shared leaves in place of leaves."""
    return [
        {**tree, "tree": [["shared", *node[1:]] if node[0] == "leaf" else node for node in tree["tree"]]}
        for tree in found
    ]


SHARED: Json = as_shared(LEAVES)


def test_hand_made_proofs_are_valid() -> None:
    case = deep_majority()
    split = as_shared([{**LEAVES[1], "tree": SPLIT}])
    assert case.right(3) == 8
    assert isinstance(case.check(LEAVES, None), Valid)
    assert isinstance(case.check(SHARED, None), Valid)
    assert isinstance(case.check([SHARED[0], LEAVES[1]], None), Valid)
    assert isinstance(case.check([SHARED[0], *split], None), Valid)
    split[0]["tree"][1] = ["leaf", []]
    assert isinstance(case.check([*split, SHARED[0]], None), Valid)
    split[0]["tree"][-1] = ["open"]
    assert isinstance(case.check([*split, SHARED[0]], Fraction(7, 8)), Valid)
    rejected(case, [*split, SHARED[0]], None, "only 7 of 8")


@pytest.mark.parametrize("name", FORGED)
def test_forged_trees_are_rejected(name: str) -> None:
    found, why = FORGED[name]
    rejected(deep_majority(), as_shared(found), Fraction(5, 8), why)


BROKEN: dict[str, Json] = {
    "no rivals": ["shared"],
    "one field more": ["shared", [], []],
    "rivals that are no list": ["shared", {}],
    "a rival without levels": ["shared", [[0]]],
    "another name": ["Shared", []],
    "too many levels": ["shared", [[0, 2**14 + 1]]],
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_nodes_are_rejected(name: str) -> None:
    rejected(deep_majority(), [SHARED[0], {**SHARED[1], "tree": [BROKEN[name]]}], Fraction(1, 8), "")


def test_words_in_two_shared_leaves_are_not_counted_twice() -> None:
    case = deep_majority()
    rejected(case, [SHARED[1], SHARED[1]], Fraction(1, 8), "has two trees")
    both = [["tokens", 0, [[0, 1]]], ["shared", []], ["shared", []]]
    rejected(case, [{**SHARED[1], "tree": both}], Fraction(1, 8), "no parent")
    wrong = copy.deepcopy(case)
    wrong.labels = {"transitions": [[0, 1], [1, 1]], "labels": [0, 1]}
    rejected(wrong, SHARED, None, "rival 0 is not listed, and may win")
    counted = [SHARED[0], {"n": 3, "label": 1, "tree": [["shared", [[0, 1000]]]]}]
    assert isinstance(wrong.check(counted, Fraction(1, 8)), Valid)
    rejected(wrong, counted, Fraction(6, 8), "are proved right")


def test_models_without_two_layers_with_heads_are_rejected() -> None:
    rejected(majority(), SHARED, Fraction(1, 8), "shared leaves are for two layers with heads, or more")
    case = deep_majority()
    case.config["layers"] = [{"n_heads": 0, "d_head": 0, "d_mlp": 0}, case.config["layers"][1]]
    case.weights = {name: array for name, array in case.weights.items() if "blocks.0" not in name}
    assert isinstance(case.check(LEAVES, None), Valid)
    for found in (SHARED, [LEAVES[0], SHARED[1]]):
        rejected(case, found, Fraction(1, 8), "shared leaves are for two layers with heads, or more")
    nothing = [["tokens", 0, [[0]]], ["tokens", 0, [[1]]], ["shared", []]]  # no words, but no less wrong
    rejected(case, [LEAVES[0], {**LEAVES[1], "tree": nothing}], Fraction(1, 8), "shared leaves are for")


@pytest.mark.parametrize(
    "owner, name, most, why",
    [
        (paths, "MAX_WORK", 2**14, "too much work"),
        (paths, "MAX_SHARED", 10, "to share bounds"),
        (path_graph, "MAX_CLASSES", 3, "classes at position"),
        (path_bounds, "MAX_FUNCTIONS", 10, "too many for this model"),
        (path_bounds, "MAX_TABLE", 1, "too many pairs"),
    ],
)
def test_limits_are_kept(owner: Any, name: str, most: int, why: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(owner, name, most)
    rejected(deep_majority(), SHARED, Fraction(1, 8), why)


def test_the_whole_graph_is_charged_and_found_once(monkeypatch: Patch) -> None:
    """Only where there are shared leaves, once for all trees of a length; and what it takes is spent before."""
    made: list[int] = []
    monkeypatch.setattr(paths, "whole_graph", lambda *given: made.append(1) or whole_graph(*given))
    case = deep_majority()
    assert isinstance(case.check(LEAVES, None), Valid) and not made
    assert isinstance(case.check(SHARED, None), Valid) and len(made) == 1
    assert isinstance(case.check([SHARED[0], LEAVES[1]], None), Valid) and len(made) == 2
    monkeypatch.setattr(paths, "MAX_WORK", work(case, SHARED, monkeypatch) - 1)
    rejected(case, SHARED, None, "too much work")
    monkeypatch.setattr(Bounds, "prepared", lambda self: pytest.fail("bounds that were not paid for"))
    monkeypatch.setattr(paths, "MAX_WORK", 2**14)
    rejected(case, SHARED, None, "too much work")


def work(case: Case, found: Json, monkeypatch: Patch) -> int:
    """What a proof takes."""
    spent: list[int] = []
    right = paths._Checker._spend
    with monkeypatch.context() as patch:
        patch.setattr(paths._Checker, "_spend", lambda self, more: spent.append(more) or right(self, more))
        assert isinstance(case.check(found, None), Valid)
    return sum(spent)


# --- planted faults ----------------------------------------------------------------------------------------------

RIGHT_PLACES, RIGHT_BOX, RIGHT_RANGE = path_graph.places, Known.box, Known.range


def shifted_places(graph: WordGraph, whole: WordGraph) -> Any:
    found = RIGHT_PLACES(graph, whole)
    return [(place + 1) % step.classes for place, step in zip(found, whole.steps, strict=True)]


def by_token(graph: WordGraph, whole: WordGraph) -> Any:
    """The first class with the token, whatever its state."""
    return [
        np.array([int(np.flatnonzero(other.token == token)[0]) for token in step.token])
        for step, other in zip(graph.steps, whole.steps, strict=True)
    ]


def no_radius(known: Known, number: int, i: int, letter: str) -> Box:
    box = RIGHT_BOX(known, number, i, letter)
    return replace(box, rad=0 * box.rad)


def first_kind(known: Known, number: int, i: int, letter: str) -> Box:
    box = RIGHT_BOX(known, number, i, letter)
    return replace(box, kinds=0 * box.kinds)


def other_position(known: Known, number: int, i: int, letter: str) -> Box:
    """The box of the class of the same number at the position before."""
    box = RIGHT_BOX(known, number, i, letter)
    before = known.boxes.get((number, i - 1, letter), box)
    return replace(box, mid=np.resize(before.mid, box.mid.shape))


def always_on(known: Known, number: int, i: int) -> Any:
    low, high = RIGHT_RANGE(known, number, i)
    return np.where(high > 0, np.maximum(low, 0), low), high


def always_off(known: Known, number: int, i: int) -> Any:
    low, high = RIGHT_RANGE(known, number, i)
    return low, np.where(low < 0, np.minimum(high, 0), high)


def cut_short(refinement: Any, n: int, vocab: Any, *_: Any) -> WordGraph | None:
    """Only words that end and begin with the first token."""
    every = path_graph.Language(np.zeros((1, len(vocab)), dtype=np.int64), np.ones((1, len(vocab)), dtype=np.bool_), 0)
    return path_graph.word_graph(every, refinement, n, [("tokens", 0, (0,))], vocab)


VALUES: dict[str, tuple[Any, str, Any]] = {
    "the next class": (path_bounds, "places", shifted_places),
    "a class with the same token": (path_bounds, "places", by_token),
    "no radius": (Known, "box", no_radius),
    "the box of another class": (Known, "box", first_kind),
    "the box of another position": (Known, "box", other_position),
    "neurons said to be on that are not": (Known, "range", always_on),
    "neurons said to be off that are not": (Known, "range", always_off),
}


@pytest.mark.parametrize("name", VALUES)
def test_faults_of_shared_bounds_are_noticed(name: str, monkeypatch: Patch) -> None:
    owner, what, wrong = VALUES[name]
    monkeypatch.setattr(owner, what, wrong)
    with np.errstate(all="ignore"), pytest.raises(AssertionError):
        for seed in range(100):
            unless_noticed(check_values, seed)


def unless_noticed(check: Callable[[int], object], seed: int) -> None:
    """The check; what the checker itself notices proves nothing false."""
    try:
        check(seed)
    except Rejected as error:
        assert "internal error" not in error.why
        raise


@pytest.mark.parametrize("check", [check_values, check_mixed])
def test_a_whole_graph_that_is_not_whole_is_noticed(check: Callable[[int], object], monkeypatch: Patch) -> None:
    monkeypatch.setattr(paths, "whole_graph", cut_short)
    with np.errstate(all="ignore"), pytest.raises((AssertionError, Rejected)):
        for seed in range(100):
            check(seed)


@pytest.mark.parametrize("lacking", ["token", "state"])
def test_a_class_that_the_whole_graph_lacks_fails_loudly(lacking: str, monkeypatch: Patch) -> None:
    case = deep_majority()
    graph = case.graph(3, 1, [])
    kind = ("tokens", 1, (0,)) if lacking == "token" else ("states", 1, (0,))

    def wrong(refinement: Any, n: int, vocab: Any, *_: Any) -> WordGraph | None:
        every = path_graph.Language(np.zeros((1, 2), dtype=np.int64), np.ones((1, 2), dtype=np.bool_), 0)
        return path_graph.word_graph(every, refinement, n, [kind], vocab)

    whole = wrong(np.array(case.states), 3, np.arange(2))
    assert graph is not None and whole is not None
    with pytest.raises(Rejected, match="not in the whole graph"):
        path_graph.places(graph, whole)
    assert isinstance(case.check(SHARED, None), Valid)
    monkeypatch.setattr(paths, "whole_graph", wrong)
    outcome = case.check(SHARED, Fraction(1, 8))
    assert isinstance(outcome, Invalid) and "not in the whole graph" in outcome.why


def test_faults_reach_proofs(monkeypatch: Patch) -> None:
    """With bounds of a wrong class the checker accepts what is false: the check of whole proofs notices that too."""
    for seed in range(60, 75):
        check_mixed(seed)
    monkeypatch.setattr(path_bounds, "places", shifted_places)
    with np.errstate(all="ignore"), pytest.raises(AssertionError, match="more is proved"):
        for seed in range(60, 75):
            unless_noticed(check_mixed, seed)
