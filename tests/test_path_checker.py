"""Rule `paths` of the independent checker: bounds against all words, zero tolerance; hand-made and forged proofs."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from certiformer.proofs import Invalid, Valid, path_bounds, path_graph, path_language, path_model, paths
from certiformer.proofs.path_bounds import Bounds
from certiformer.proofs.path_model import PathModel

from .path_cases import Case, Run, random_config, random_weights
from .path_checks import check_bounds, check_corners, check_counts, check_mean, check_proof, check_relu, path

Json = Any
CHUNKS = [range(start, start + 40) for start in range(0, 200, 40)]


@pytest.mark.parametrize("seeds", CHUNKS, ids=lambda s: str(s.start))
@pytest.mark.parametrize("check", [check_bounds, check_mean, check_corners, check_counts, check_relu])
def test_every_bound_holds_on_every_word(check: Callable[[int], object], seeds: range) -> None:
    for seed in seeds:
        check(seed)


def test_no_more_is_proved_than_is_right_and_much_is() -> None:
    proved, right, total = np.array([check_proof(seed) for seed in range(80)]).sum(axis=0)
    assert right / 2 < proved <= right < total


def test_saturated_attention_has_finite_bounds() -> None:
    """Scores over 1000, and values that differ where the weights are equal."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        config = random_config(rng, 2, 4)
        layer = {"n_heads": 2, "d_head": 2, "d_mlp": 2}
        config |= {"layers": [layer, layer], "d_model": 3, "causal": True, "readout": "mean", "attention_scale": 1.0}
        case = Case(config, random_weights(rng, config, 8.0), 4, 2, {"transitions": [[0, 0]], "labels": [0]}, [[0, 0]])
        graph = case.graph(4, 0, [])
        assert graph is not None
        runs = {word: Run(case, word) for word in case.words(4)}
        last = [score for run in runs.values() for score in (run.score[1][:, 3], run.score[0][:, 3])]
        assert max(float(np.ptp(score)) for score in last) > 1000
        own = Bounds(PathModel(case.model(), 4, np.arange(2)), graph).own(np.eye(3))
        for word, run in runs.items():
            classes = path(graph, word)
            for i, found in own:
                assert np.isfinite(found).all() and (found[classes[i]] <= run.stream[1][i]).all()


# --- hand-made and forged certificates ---------------------------------------------------------------------------


def majority() -> Case:
    """Uniform attention over three tokens: the label is whether at least two are 1, and the model always has it."""
    config = {
        "d_model": 2, "n_ctx": 3, "d_vocab": 2, "d_vocab_out": 2, "activation": "relu", "causal": False,
        "layers": [{"n_heads": 1, "d_head": 2, "d_mlp": 0}], "positional": "none", "attention_scale": 1.0,
        "layer_norm": None, "readout": "last",
    }  # fmt: skip
    eye, zero = np.eye(2, dtype=np.float32), np.zeros((1, 2, 2), dtype=np.float32)
    weights = {
        "embed.W_E": eye, "unembed.W_U": eye, "unembed.b_U": np.zeros(2, dtype=np.float32),
        "blocks.0.attn.b_O": np.zeros(2, dtype=np.float32), "blocks.0.attn.W_O": 10 * eye[None],
        "blocks.0.attn.W_V": eye[None], "blocks.0.attn.W_Q": zero, "blocks.0.attn.W_K": zero,
    }  # fmt: skip
    weights |= {f"blocks.0.attn.b_{x}": np.zeros((1, 2), dtype=np.float32) for x in "QKV"}
    labels = {"transitions": [[0, 1], [1, 2], [2, 2]], "labels": [0, 0, 1]}
    return Case(config, weights, 3, 2, labels, [[0, 1], [1, 0]])


LEAVES: Json = [{"n": 3, "label": y, "tree": [["leaf", []]]} for y in (0, 1)]
SPLIT: Json = [["tokens", 0, [[0], [1]]], ["leaf", []], ["states", 2, [[0], [1]]], ["leaf", []], ["leaf", []]]


def test_hand_made_proofs_are_valid() -> None:
    case = majority()
    assert case.right(3) == 8
    assert isinstance(case.check(LEAVES, None), Valid)
    assert isinstance(case.check([LEAVES[0], {**LEAVES[1], "tree": SPLIT}], None), Valid)
    assert isinstance(case.check(LEAVES[1:], Fraction(1, 2)), Valid)
    assert isinstance(case.check([{**LEAVES[0], "tree": SPLIT[:-1] + [["open"]]}], Fraction(3, 8)), Valid)


def wrong_labels() -> Case:
    """Of `majority`, with the label 1 for one 1 too: the model is right on five words of eight."""
    case = majority()
    case.labels = {"transitions": [[0, 1], [1, 1]], "labels": [0, 1]}
    return case


def test_failing_words_are_counted() -> None:
    case = wrong_labels()
    assert case.right(3) == 5
    counted = [LEAVES[0], {"n": 3, "label": 1, "tree": [["leaf", [[0, 1000]]]]}]
    assert isinstance(case.check(counted, Fraction(1, 8)), Valid)
    refined = copy.deepcopy(case)
    refined.states = [[0, 1], [1, 2], [2, 2]]
    counted[1] = {"n": 3, "label": 1, "tree": [["states", 3, [[1], [2]]], ["leaf", [[0, 4]]], ["leaf", []]]}
    assert isinstance(refined.check(counted, Fraction(5, 8)), Valid)
    assert isinstance(refined.check(counted, Fraction(6, 8)), Invalid)
    assert isinstance(refined.check(counted, None), Invalid)


def rejected(case: Case, trees: Json, share: Fraction | None, why: str) -> None:
    outcome = case.check(trees, share)
    assert isinstance(outcome, Invalid) and outcome.rule != "internal error", outcome
    assert why in outcome.why, outcome


FORGED: dict[str, tuple[Json, str]] = {
    "a label's tree twice": ([LEAVES[1], LEAVES[1]], "has two trees"),
    "parts that overlap": ([{**LEAVES[1], "tree": [["tokens", 0, [[0, 1], [1]]], *SPLIT[3:]]}], "overlap"),
    "states that overlap": ([{**LEAVES[1], "tree": [["states", 1, [[0, 1], [1]]], *SPLIT[3:]]}], "overlap"),
    "a part twice": ([{**LEAVES[1], "tree": [["tokens", 0, [[1, 1], [0]]], *SPLIT[3:]]}], "does not ascend"),
    "an empty part": ([{**LEAVES[1], "tree": [["tokens", 0, [[], [0]]], *SPLIT[3:]]}], "empty"),
    "a missing node": ([{**LEAVES[1], "tree": SPLIT[:-1]}], "lacks 1 nodes"),
    "a surplus node": ([{**LEAVES[1], "tree": [*SPLIT, ["leaf", []]]}], "no parent"),
    "no node": ([{**LEAVES[1], "tree": []}], "1 to"),
    "a position too far": ([{**LEAVES[1], "tree": [["tokens", 3, [[0]]], ["leaf", []]]}], "a position"),
    "a time too far": ([{**LEAVES[1], "tree": [["states", 4, [[0]]], ["leaf", []]]}], "a position"),
    "an unknown state": ([{**LEAVES[1], "tree": [["states", 1, [[2]]], ["leaf", []]]}], "a part"),
    "an unknown node": ([{**LEAVES[1], "tree": [["wish", 1]]}], "a node is"),
    "a length not in the domain": ([{**LEAVES[1], "n": 2}], "n must be"),
    "an unknown label": ([{**LEAVES[1], "label": 2}], "label must be"),
    "the label as its rival": ([{**LEAVES[1], "tree": [["leaf", [[1, 5]]]]}], "a rival is the label"),
    "a rival twice": ([{**LEAVES[1], "tree": [["leaf", [[0, 5], [0, 5]]]]}], "twice"),
    "no levels": ([{**LEAVES[1], "tree": [["leaf", [[0, 0]]]]}], "levels"),
    "too much claimed": ([LEAVES[1]], "only 4 of 8"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_trees_are_rejected(name: str) -> None:
    trees, why = FORGED[name]
    rejected(majority(), trees, Fraction(5, 8), why)


def test_false_theorems_are_rejected() -> None:
    rejected(wrong_labels(), LEAVES, None, "rival 0 is not listed, and may win")
    wrong = majority()
    wrong.labels["labels"] = [0, 1, 1]
    rejected(wrong, LEAVES, Fraction(1, 2), "may win")
    unlabelled = majority()
    unlabelled.labels["labels"] = [-1, 0, 1]
    assert isinstance(unlabelled.check(LEAVES, Fraction(7, 8)), Valid)
    rejected(unlabelled, LEAVES, Fraction(1), "only 7 of 8")
    model = majority()
    model.weights["unembed.b_U"][0] = 5
    rejected(model, LEAVES, None, "may win")
    longer = majority()
    longer.lengths = [2, 3]
    rejected(longer, LEAVES, None, "only 8 of 12")


def test_a_tie_is_not_won() -> None:
    case = majority()
    case.weights["blocks.0.attn.W_O"][:] = 0
    case.weights["unembed.W_U"][:] = 0
    rejected(case, LEAVES, Fraction(1, 8), "may win")


@pytest.mark.parametrize("change", ["ragged", "outside", "none", "many", "bool"])
def test_broken_machines_are_rejected(change: str) -> None:
    case = majority()
    case.states = {
        "ragged": [[0], [0, 1]], "outside": [[0, 2], [0, 1]], "none": [], "many": [[0, 0]] * 4097,
        "bool": [[False, False]],
    }[change]  # fmt: skip
    rejected(case, LEAVES, None, "")


def _unsupported(case: Case) -> Json:
    return {
        "layer norm": {"layer_norm": 1e-5},
        "gelu": {"activation": "gelu", "layers": [{"n_heads": 1, "d_head": 2, "d_mlp": 1}]},
        "mean, not causal": {"readout": "mean"},
        "two layers, not causal": {"layers": case.config["layers"] * 2},
        "each": {"readout": "each"},
    }


@pytest.mark.parametrize("name", _unsupported(majority()))
def test_what_the_rule_does_not_cover_is_rejected(name: str) -> None:
    case = majority()
    case.config |= _unsupported(case)[name]
    case.weights = random_weights(np.random.default_rng(0), case.config, 1.0)
    for kind in ("model", "rule"):
        outcome = case.check(LEAVES, Fraction(1, 8))
        assert isinstance(outcome, Invalid) and outcome.rule != "internal error", kind


def test_other_domains_and_quantifiers_are_rejected() -> None:
    from certiformer.proofs import check

    from .checker_models import model_bytes, sealed

    case = majority()
    proof = {"rule": "paths", "states": case.states, "trees": LEAVES}
    base = case.theorem(None)
    changes: list[Json] = [{"quantifier": "exists"}, {"quantifier": "none"}]
    changes.append({"domain": {"kind": "distinct", "vocab": [0, 1], "lengths": [2, 2]}})
    changes += [{"codec": {**base["codec"], "bos": True}}]
    changes.append({"body": {"kind": "and", "parts": [base["body"], base["body"]]}})
    for change in changes:
        theorem = {**base, **change}
        certificate = sealed({"format": "certiformer/1", "theorem": theorem, "proof": proof})
        outcome = check(certificate, model_bytes(case.config, case.weights))
        assert isinstance(outcome, Invalid) and outcome.rule != "internal error", (change, outcome)


def test_enumeration_does_not_take_a_mean_for_the_last_position() -> None:
    """A model read out as a mean must not be evaluated as if it were read out elsewhere."""
    from certiformer.proofs import check

    from .checker_models import model_bytes, sealed

    case = majority()
    case.config |= {"readout": "mean", "causal": True}
    wrong = sealed({"format": "certiformer/1", "theorem": case.theorem(None), "proof": {"rule": "enumerate"}})
    right = case.right(3)
    assert right < 8 and isinstance(check(wrong, model_bytes(case.config, case.weights)), Invalid)


def test_huge_certificates_are_refused_quickly() -> None:
    case = majority()
    start = time.monotonic()
    rejected(case, [{**LEAVES[1], "tree": [["open"]] * 70000}], None, "tree must have")
    deep: list[Json] = []
    for _ in range(300):
        deep.append(["tokens", 0, [[0, 1]]])
    rejected(case, [{**LEAVES[1], "tree": [*deep, ["leaf", []]]}], None, "deeper than")
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    "owner, name, most, why",
    [
        (paths, "MAX_WORK", 100, "too much work"),
        (paths, "MAX_MERGING", 100, "for all labels together"),
        (paths, "MAX_COUNTING", 100, "too much work"),
        (paths, "MAX_NODES", 1, "nodes"),
        (path_graph, "MAX_CLASSES", 1, "classes at position"),
        (path_graph, "MAX_MOVES", 1, "too many nodes"),
        (path_graph, "MAX_PLACES", 1, "too many nodes at all positions"),
        (path_language, "MAX_MINIMISING", 5_000, "too large to be minimised"),
        (path_language, "MAX_MINIMISING", 5, "too many pairs"),
        (path_language, "MAX_CELLS", 3, "too many pairs"),
        (path_language, "MAX_PAIRS", 1, "the limit is 1"),
        (paths, "MAX_SIZING", 5, "too large to count"),
        (path_graph, "MAX_REFINEMENT", 1, "too large"),
        (path_bounds, "MAX_FUNCTIONS", 10, "too many for this model"),
        (path_bounds, "MAX_TABLE", 1, "too many pairs"),
        (path_model, "MAX_EMBEDDED", 1, "too many embeddings"),
        (path_model, "MAX_HEADS", 0, "heads"),
        (path_model, "LARGEST", 1.0, "too large"),
    ],
)
def test_limits_are_kept(owner: Any, name: str, most: float, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each limit, made small, refuses a proof that is valid."""
    trees = [{"n": 3, "label": y, "tree": [["leaf", [[1 - y, 100]]]]} for y in (0, 1)]
    assert isinstance(wrong_labels().check(trees, Fraction(1, 8)), Valid)
    monkeypatch.setattr(owner, name, most)
    rejected(wrong_labels(), trees, Fraction(1, 8), why)


def test_many_classes_are_refused_before_they_are_bounded() -> None:
    """A refinement machine that remembers twelve tokens, and a model of 14 positions."""
    case = majority()
    case.config |= {"n_ctx": 14}
    case.n, case.states = 14, [[2 * s % 4096, (2 * s + 1) % 4096] for s in range(4096)]
    start = time.monotonic()
    trees = [{"n": 14, "label": 1, "tree": [["leaf", []]]}]
    rejected(case, trees, None, "classes at position")
    assert time.monotonic() - start < 20
