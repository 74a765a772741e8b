"""Hand-made models: right certificates are valid, and each flaw is rejected under its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from certiformer import proofs
from certiformer.proofs import Invalid, Valid, describe
from certiformer.proofs.check import INTERNAL

from .checker_models import CASES, OUT, PLACES, TOKENS, Case, exchange, previous, sealed, share_of_a


@pytest.mark.parametrize("name", CASES)
def test_right_certificates_are_valid_and_their_theorems_true(name: str) -> None:
    case = CASES[name]()
    outcome = case.check()
    assert isinstance(outcome, Valid), outcome
    assert case.is_true()
    words = describe(outcome.theorem)
    assert "39 inputs" in words and "real" in words and "Trusted base" in words


@pytest.mark.parametrize("name", CASES)
def test_enumeration_agrees(name: str) -> None:
    case = CASES[name]()
    case.proof = {"rule": "enumerate"}
    assert isinstance(case.check(), Valid), case.check()


Change = Callable[[Case], Any]


def step(case: Case, number: int = 0) -> Any:
    return case.proof["steps"][number]


def put(target: Any, key: Any, item: Any) -> None:
    target[key] = item


WRONG_STEPS: list[tuple[str, str, Change]] = [
    ("an atom's table is not the selector's", "previous", lambda c: put(step(c)["atoms"][0]["table"], 0, "110")),
    ("an atom is missing", "previous", lambda c: put(step(c), "atoms", [])),
    ("an atom twice", "previous", lambda c: step(c)["atoms"].append(step(c)["atoms"][0])),
    ("an encoding elsewhere", "previous", lambda c: put(step(c)["encoding"]["dims"], 0, 0)),
    ("an encoding with a dimension that does not exist", "previous", lambda c: put(step(c)["encoding"]["dims"], 0, 99)),
    ("an unknown encoding", "previous", lambda c: put(step(c)["encoding"], "kind", "sparse")),
    ("reads lacks the value", "previous", lambda c: put(step(c), "reads", [])),
    ("reads a node twice", "previous", lambda c: put(step(c), "reads", [0, 0])),
    ("reads a selector", "previous", lambda c: put(step(c), "reads", [2])),
    ("reads a node that does not exist", "previous", lambda c: put(step(c), "reads", [7])),
    ("the wrong head", "previous", lambda c: put(step(c), "head", 1)),
    ("a head twice", "previous", lambda c: c.proof["steps"].insert(0, step(c))),
    ("the wrong layer", "previous", lambda c: put(step(c), "layer", 1)),
    ("a step that is no head's", "previous", lambda c: put(step(c), "node", 0)),
    ("a surplus field", "previous", lambda c: put(step(c), "note", "trust me")),
    ("a missing field", "previous", lambda c: step(c).pop("reads")),
    ("affine for a singular aggregate", "previous", lambda c: put(step(c), "affine", {})),
    ("the head's step is missing", "previous", lambda c: c.proof["steps"].pop(0)),
    ("decode is missing", "previous", lambda c: c.proof["steps"].pop()),
    ("decode twice", "previous", lambda c: c.proof["steps"].append(step(c, 1))),
    ("steps out of order", "twice previous", lambda c: c.proof["steps"].insert(0, c.proof["steps"].pop(1))),
    ("decode reads nothing", "previous", lambda c: put(step(c, 1), "reads", [])),
    ("decode reads what is not the output", "previous", lambda c: put(step(c, 1), "reads", [0])),
    ("an unknown rule of a step", "previous", lambda c: put(step(c), "rule", "axiom")),
    ("affine is missing", "share of a", lambda c: step(c).pop("affine")),
    ("affine with the wrong slope", "share of a", lambda c: put(step(c)["affine"], "slope", 2)),
    ("affine with the wrong offset", "share of a", lambda c: put(step(c)["affine"], "offset", 1)),
    ("affine at a coordinate that is not written", "share of a", lambda c: put(step(c)["affine"], "dim", 0)),
    ("points that are not the means", "share of a", lambda c: put(step(c)["encoding"]["points"], 1, 1)),
    ("points that are not the shares", "count same", lambda c: put(step(c)["encoding"]["points"], 0, 1)),
    ("a group that reads nothing", "exchange", lambda c: put(step(c)["groups"][0], "reads", [])),
    ("a group without its last neuron", "exchange", lambda c: put(step(c)["groups"][0], "neurons", [0, 5])),
    ("neurons out of range", "exchange", lambda c: put(step(c)["groups"][0], "neurons", [0, 9])),
    ("neurons in reverse", "exchange", lambda c: put(step(c)["groups"][0], "neurons", [6, 0])),
    ("two groups with the same neurons", "exchange", lambda c: step(c)["groups"].append(step(c)["groups"][0])),
    ("a group for another node", "exchange", lambda c: put(step(c)["groups"][0], "node", 0)),
    ("no groups", "exchange", lambda c: put(step(c), "groups", [])),
    ("an mlp step twice", "exchange", lambda c: c.proof["steps"].insert(0, step(c))),
    ("an mlp step where there are no neurons", "previous", lambda c: put(c.proof["steps"], 0, _mlp())),
    ("an auxiliary node that is tokens", "echo", lambda c: c.proof["auxiliary"].append(c.program["nodes"][0])),
    ("a program in the proof as well", "echo", lambda c: put(c.proof, "program", c.program)),
    ("an unknown proof rule", "echo", lambda c: put(c.proof, "rule", "obvious")),
    ("a width sum of something that is no width", "count same", lambda c: _sum(c, 0, [[3, 1]])),
    ("a width sum that is no identity", "count same", lambda c: _sum(c, 3, [[3, 2]])),
    ("a width sum twice", "count same", lambda c: [_sum(c, 3, [[3, 1]]), _sum(c, 3, [[3, 1]])]),
]


def _mlp() -> Any:
    return {"rule": "mlp", "layer": 0, "groups": []}


def _sum(case: Case, node: int, terms: list[list[int]]) -> None:
    case.proof["width_sums"].append({"node": node, "terms": terms})


@pytest.mark.parametrize(("flaw", "name", "change"), WRONG_STEPS, ids=[flaw for flaw, _, _ in WRONG_STEPS])
def test_wrong_proofs_are_invalid(flaw: str, name: str, change: Change) -> None:
    case = CASES[name]()
    change(case)
    outcome = case.check()
    assert isinstance(outcome, Invalid), flaw
    assert outcome.why and outcome.rule and outcome.step and outcome.rule != INTERNAL, outcome


WRONG_THEOREMS: list[tuple[str, str, Change]] = [
    ("another table", "exchange", lambda c: put(c.program["nodes"][2]["table"], 0, 0)),
    ("a table entry out of range", "exchange", lambda c: put(c.program["nodes"][2]["table"], 0, 3)),
    ("an undefined entry", "exchange", lambda c: put(c.program["nodes"][2]["table"], 0, -1)),
    ("a table too short", "exchange", lambda c: c.program["nodes"][2]["table"].pop()),
    ("values out of order", "exchange", lambda c: c.program["nodes"][2]["values"].reverse()),
    ("values that repeat", "exchange", lambda c: put(c.program["nodes"][2], "values", ["a", "a", "c"])),
    ("another output node", "exchange", lambda c: put(c.program, "output", 0)),
    ("a selector as output", "previous", lambda c: put(c.program, "output", 2)),
    ("another selector", "previous", lambda c: put(c.program["nodes"][2]["table"], 0, "100")),
    ("another default", "previous", lambda c: put(c.program["nodes"][3], "default", 1)),
    ("no default where the selection may be empty", "previous", lambda c: put(c.program["nodes"][3], "default", -1)),
    ("a causal program", "previous", lambda c: put(c.program, "causal", True)),
    ("a mean of strings", "share of a", lambda c: put(c.program["nodes"][4], "value", 0)),
    ("a missing mean", "share of a", lambda c: put(c.program["nodes"][4], "values", [0, 1])),
    ("a missing width", "count same", lambda c: put(c.program["nodes"][3], "values", [1, 2])),
    ("a forward reference", "previous", lambda c: put(c.program["nodes"][3], "value", 3)),
    ("max_len below the domain's", "echo", lambda c: put(c.program, "max_len", 2)),
    ("longer inputs", "echo", lambda c: put(c.domain, "lengths", [1, 4])),
    ("length 0", "echo", lambda c: put(c.domain, "lengths", [0, 3])),
    ("an empty range of lengths", "echo", lambda c: put(c.domain, "lengths", [3, 2])),
    ("a token the codec does not know", "echo", lambda c: c.domain["vocab"].append("d")),
    ("a domain with a repeated token", "echo", lambda c: c.domain["vocab"].append("a")),
    ("tokens in another order", "echo", lambda c: c.codec["vocab"].reverse()),
    ("outputs in another order", "echo", lambda c: c.codec["outputs"].reverse()),
    ("an output missing", "echo", lambda c: c.codec["outputs"].pop()),
    ("no BOS", "previous", lambda c: put(c.codec, "bos", False)),
    ("points for a categorical codec", "echo", lambda c: put(c.codec, "points", [0, 1, 2])),
    ("equal points", "count same", lambda c: put(c.codec["points"], 0, c.codec["points"][1])),
    ("points interchanged", "count same", lambda c: c.codec["points"].reverse()),
    ("a margin the model does not have", "echo", lambda c: setattr(c, "body", _margin(c, 2))),
    ("an output the model has", "echo", lambda c: setattr(c, "body", _never(c, ["b"]))),
    ("a read-out at the last position", "echo", lambda c: put(c.config, "readout", "last")),
    ("LayerNorm", "echo", lambda c: put(c.config, "layer_norm", 1e-5)),
    ("another activation", "exchange", lambda c: put(c.config, "activation", "gelu")),
    ("scores too small for their selections", "previous", lambda c: put(c.config, "attention_scale", 2.0**-6)),
]


def _margin(case: Case, least: Any) -> Any:
    return {
        "kind": "and",
        "parts": [{"kind": "computes", "program": case.program}, {"kind": "margin", "at_least": least}],
    }


def _never(case: Case, outputs: list[Any]) -> Any:
    never = {"kind": "never_outputs", "outputs": outputs}
    return {"kind": "and", "parts": [{"kind": "computes", "program": case.program}, never]}


@pytest.mark.parametrize(("flaw", "name", "change"), WRONG_THEOREMS, ids=[flaw for flaw, _, _ in WRONG_THEOREMS])
def test_wrong_theorems_are_invalid(flaw: str, name: str, change: Change) -> None:
    case = CASES[name]()
    change(case)
    outcome = case.check()
    assert isinstance(outcome, Invalid) and outcome.rule != INTERNAL, outcome


def test_bodies_other_than_computes() -> None:
    case = CASES["echo"]()
    case.body = _margin(case, {"num": 1, "log2den": 1})
    assert isinstance(case.check(), Valid), case.check()
    case = CASES["echo"]()
    case.domain["vocab"] = ["a", "c"]
    case.body = _never(case, ["b", "x"])
    assert isinstance(case.check(), Valid), case.check()
    for body in ({"kind": "margin", "at_least": {"num": 3, "log2den": 2}}, {"kind": "never_outputs", "outputs": ["b"]}):
        case.body = body
        assert isinstance(case.check(), Invalid), "the proof has no program"
        alone = case.copy()
        alone.proof["program"] = case.program
        assert isinstance(alone.check(), Valid), alone.check()
        alone.proof = {"rule": "enumerate"}
        assert isinstance(alone.check(), Valid), alone.check()
    case.body = {"kind": "and", "parts": []}
    assert isinstance(case.check(), Invalid)


def test_a_language_that_makes_a_false_theorem_true() -> None:
    """Only words without "c": then a model that is wrong on "c" computes the program."""
    case = exchange()
    case.weights["blocks.0.mlp.W_out"][4:6, OUT[0] : OUT[1] + 1] = [[0, 0.25], [0, -0.25]]
    assert isinstance(case.check(), Invalid) and not case.is_true()
    case.domain = {
        "kind": "dfa", "vocab": ["a", "b", "c"], "lengths": [1, 3], "start": 0, "accept": [0], "delta": [[0, 0, -1]],
    }  # fmt: skip
    assert isinstance(case.check(), Valid), case.check()
    assert case.is_true()
    for key, item in (("start", 1), ("accept", [1]), ("accept", []), ("delta", [[0, 0]]), ("delta", [[0, 0, 2]])):
        broken = case.copy()
        broken.domain[key] = item
        assert isinstance(broken.check(), Invalid), (key, item)
    case.domain["delta"] = [[0, 0, 0]]
    assert isinstance(case.check(), Invalid)


def test_expect() -> None:
    case = previous()
    certificate, model = case.certificate(), case.model()
    theorem = certificate["theorem"]
    for key in theorem:
        assert isinstance(proofs.check(certificate, model, {key: theorem[key]}), Valid)
    assert isinstance(proofs.check(certificate, model, theorem), Valid)
    domain = {**theorem["domain"], "lengths": [1, 2]}
    outcome = proofs.check(certificate, model, {"domain": domain})
    assert isinstance(outcome, Invalid) and "domain" in outcome.why
    assert isinstance(proofs.check(certificate, model, {"claim": 1}), Invalid)


def test_other_weights() -> None:
    case = share_of_a()
    certificate = case.certificate()
    case.weights["unembed.W_U"][OUT[0], 0] = 1.0000001
    outcome = proofs.check(certificate, case.model())
    assert isinstance(outcome, Invalid) and "weights" in outcome.why
    narrower = case.copy()
    narrower.config["n_ctx"] = 5
    assert isinstance(proofs.check(certificate, case.model()), Invalid)


def test_holes_are_reported() -> None:
    case = previous()
    case.proof = {"rule": "hole", "which": ["the head"]}
    assert case.check() == proofs.Holey(("the head",))


WEIGHT_FAULTS: list[tuple[str, str, Change]] = [
    ("an output neuron is dead", "exchange", lambda c: put(c.weights["blocks.0.mlp.W_out"], (2, OUT[2]), 0)),
    ("a neuron of no group writes", "exchange", lambda c: put(c.weights["blocks.0.mlp.b_in"], 7, 3) or _write(c)),
    ("the unembedding reads the place", "echo", lambda c: put(c.weights["unembed.W_U"], (PLACES[2], 0), 2)),
    ("a logit bias", "echo", lambda c: put(c.weights["unembed.b_U"], 1, 2)),
    ("two tokens have one embedding", "echo", lambda c: put(c.weights["embed.W_E"], 1, c.weights["embed.W_E"][0])),
    ("a key cannot be seen", "previous", lambda c: put(c.weights["blocks.0.attn.W_K"], (0, PLACES[0], 0), 0)),
    ("the sink is too high", "previous", lambda c: put(c.weights["blocks.0.attn.b_Q"], (0, 3), 3)),
    ("the sink is too low", "previous", lambda c: put(c.weights["blocks.0.attn.b_Q"], (0, 3), -1)),
    ("BOS has another value", "previous", lambda c: put(c.weights["blocks.0.attn.W_V"], (0, 6, 0), -1)),
    ("the output bias of attention", "previous", lambda c: put(c.weights["blocks.0.attn.b_O"], OUT[1], 2)),
    ("the value bias", "previous", lambda c: put(c.weights["blocks.0.attn.b_V"], (0, 2), 2)),
    ("uneven attention", "share of a", lambda c: put(c.weights["blocks.0.attn.W_K"], (0, TOKENS[0], 0), 3)),
    ("the scale", "share of a", lambda c: put(c.config, "attention_scale", -1.0)),
    ("BOS outshines", "count same", lambda c: put(c.weights["blocks.0.attn.b_Q"], (0, 3), 1.1)),
]


def _write(case: Case) -> None:
    case.weights["blocks.0.mlp.W_out"][7, OUT[0]] = 1


@pytest.mark.parametrize(("flaw", "name", "change"), WEIGHT_FAULTS, ids=[flaw for flaw, _, _ in WEIGHT_FAULTS])
def test_changed_weights_that_matter_are_found(flaw: str, name: str, change: Change) -> None:
    case = CASES[name]()
    change(case)
    assert not case.is_true(), flaw
    assert isinstance(case.check(), Invalid)
    case.proof = {"rule": "enumerate"}
    assert isinstance(case.check(), Invalid)


def test_the_seal_binds_the_contents() -> None:
    case = previous()
    certificate = case.certificate()
    certificate["theorem"]["domain"]["lengths"] = [1, 2]
    outcome = proofs.check(certificate, case.model())
    assert isinstance(outcome, Invalid) and "seal" in outcome.why
    assert isinstance(proofs.check(sealed(certificate), case.model()), Valid)
