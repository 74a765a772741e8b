"""Certificates by enumeration and by witness, of every kind of body and quantifier: valid if true, never if false.

`prove` makes them, the independent checker checks them, and a slow judge that shares no code with either says what is
true.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certiformer import proofs
from certiformer.compiler import programs
from certiformer.compiler.alignment import encoding_matrix
from certiformer.compiler.compile import compile
from certiformer.compiler.compiled import Compiled
from certiformer.models.circuits import Circuit
from certiformer.models.codec import Codec
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.edits import edit
from certiformer.models.errors import InputError
from certiformer.models.languages import exactly_one, sequences
from certiformer.models.transformer import Transformer
from certiformer.proofs import Invalid, Valid
from certiformer.proofs.check import INTERNAL
from certiformer.proofs.reading import beyond
from certiformer.verifier.claims import Abstracts, Attends, Claim, Computes, Faithful, Invariant, Margin, NeverOutputs
from certiformer.verifier.label_bodies import LabelMarginBody, LabelsBody
from certiformer.verifier.logit_difference import LogitDifference
from certiformer.verifier.portfolio import prove, theorem
from certiformer.verifier.reading import Subject
from certiformer.verifier.stream_bodies import stream_site
from certiformer.verifier.stream_claims import (
    CircuitsAgree,
    EdgeEffect,
    HeadTable,
    Monotone,
    Robust,
    SubspaceCarries,
    SubspaceRepresents,
    WritesAtMost,
)
from certiformer.verifier.verdicts import Certificate, Proved, Refuted

from .checker_judge import Judge, is_true
from .checker_models import CASES, dyadic, sealed
from .checker_shapes import SHAPES, labelled, reshaped
from .mutations import mutate

REFERENCE = torch.tensor([[0, 1, 1], [1, 0, 0]])
DOMAIN = sequences(range(2), range(1, 4))
QUANTIFIERS: dict[str, Callable[[Claim], Claim]] = {
    "forall": lambda claim: claim,
    "exists": Claim.exists,
    "at_least": lambda claim: claim.at_least(Fraction(2, 3)),
}


@lru_cache
def model(name: str) -> Compiled:
    """Two tokens, up to three of them: two layers, neurons, a scalar read-out, no BOS, causal attention; and noise."""
    if name == "noisy":
        made = model("sort")
        generator = torch.Generator().manual_seed(3)
        rough = copy.deepcopy(made.model)
        with torch.no_grad():
            for parameter in rough.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return Compiled(**{**{field: getattr(made, field) for field in made.__dataclass_fields__}, "model": rough})
    if name in SHAPES:
        return reshaped(model("sort"), **SHAPES[name])
    if name == "scalar":
        return compile(programs.hist(), vocab=range(2), max_len=3)
    if name == "without BOS":
        return compile(programs.hist(), vocab=range(2), max_len=3, bos=False)
    if name == "causal":
        return compile(programs.hist(), vocab=range(2), max_len=3, causal=True)
    return compile(programs.sort(), vocab=range(2), max_len=3)


def difference(compiled: Compiled, least: float) -> Claim:
    """Of the first two outputs' logits; of a model with one logit, another claim."""
    if compiled.codec.kind != "categorical":
        return NeverOutputs(compiled, [compiled.codec.outputs[0]])
    return LogitDifference(compiled, *compiled.codec.outputs[:2], least)


MODELS = ("sort", "scalar", "without BOS", "causal", "noisy", *SHAPES)
KINDS: dict[str, Callable[[Compiled], Claim]] = {
    "computes": Computes,
    "never": lambda c: NeverOutputs(c, [c.codec.outputs[-1]]),
    "swap": lambda c: Invariant(c, relabelling={0: 1, 1: 0}),
    "swap outputs": lambda c: Invariant(c, relabelling={0: 1, 1: 0}, outputs="relabelled"),
    "merge": lambda c: Invariant(c, relabelling={0: 1}),
    "irrelevant": lambda c: Invariant(c, irrelevant_positions=[2]),
    "attends": lambda c: Attends(c, first_head(c), c.alignment.heads[0].node),
    "attends loosely": lambda c: Attends(c, first_head(c), c.alignment.heads[0].node, tolerance=0.6),
    "zero": lambda c: Faithful(c, ablation="zero"),
    "zero, an edge less": lambda c: Faithful(c, less(c), "zero"),
    "mean": lambda c: Faithful(c, ablation="mean", reference=REFERENCE),
    "mean, an edge less": lambda c: Faithful(c, less(c), "mean", reference=REFERENCE),
    "mean by nodes": lambda c: Faithful(c, by_nodes(c), "mean", reference=REFERENCE),
    "resample": lambda c: Faithful(c, ablation="resample"),
    "resample, an edge less": lambda c: Faithful(c, less(c), "resample"),
    "resample by nodes": lambda c: Faithful(c, by_nodes(c), "resample"),
    "abstracts": Abstracts,
    "labels": lambda c: labelled(c, lambda s, m: LabelsBody(s, m, "most")),
    "margin of labels": lambda c: labelled(c, lambda s, m: LabelMarginBody(s, m, "most", Fraction(1, 8))),
    "difference": lambda c: difference(c, -0.25),
    "no difference": lambda c: difference(c, 0.5),
    "margin": lambda c: Margin(c, 0.125) if c.codec.kind == "categorical" else NeverOutputs(c, [c.codec.outputs[0]]),
    "robust": lambda c: Robust(c, site(c, 1), 2.0**-20),
    "robust to much": lambda c: Robust(c, site(c, -1), 0.75),
    "monotone": lambda c: Monotone(c, [0, 1]),
    "antitone": lambda c: Monotone(c, [1, 0]),
    "subspace": lambda c: SubspaceCarries(c, site(c, -1), axes(c, 0), "all"),
    "subspace of no use": lambda c: SubspaceCarries(c, site(c, 1), axes(c, 1), "nothing", complement=True),
    "subspace at a place": lambda c: SubspaceCarries(c, site(c, 0), axes(c, 2), "nothing", positions=[1]),
    "represents": lambda c: represents(c, None),
    "represents at a place": lambda c: represents(c, [0, 2]),
    "writes": lambda c: WritesAtMost(c, "a0.h0", axes(c, 0), 0.25),
    "input writes": lambda c: WritesAtMost(c, "input", axes(c, 1), 1.25),
    "effect": lambda c: EdgeEffect(c, "input->logits", ramp(c), 0.25, 1.0),
    "effect on a query": lambda c: EdgeEffect(c, "input->a0.h0<q>", ramp(c), 0.0, 0.5),
    "agree, zero": lambda c: CircuitsAgree(c, c.circuit, less(c), "zero"),
    "agree, resample": lambda c: CircuitsAgree(c, less(c), by_nodes(c), "resample"),
    "table, qk": lambda c: table(c, "qk", "diagonal", 0.0625),
    "table, ov": lambda c: table(c, "ov", "increasing", -0.3),
    "several": lambda c: Computes(c) & Faithful(c, less(c), "resample") & Invariant(c, irrelevant_positions=[2]),
}


def first_head(compiled: Compiled) -> tuple[int, int]:
    return compiled.alignment.heads[0].layer, compiled.alignment.heads[0].head


def site(compiled: Compiled, depth: int) -> str:
    """The stream at a depth; -1: before the read-out."""
    return stream_site(Subject(compiled.model, compiled.codec), depth % (len(compiled.model.config.layers) + 1))


def axes(compiled: Compiled, step: int) -> torch.Tensor:
    """Some directions: every coordinate but the first `step`; for 0, orthonormal ones that are no coordinates."""
    d = compiled.model.config.d_model
    if step:
        return torch.eye(d)[step:]
    return torch.linalg.qr(torch.randn(d, 2, generator=torch.Generator().manual_seed(1)))[0].T


def table(compiled: Compiled, circuit: Any, relation: Any, least: float) -> Claim:
    """Of the first head; models that have no such table: another claim."""
    config = compiled.model.config
    if config.layer_norm is not None or (circuit == "ov" and (compiled.codec.kind == "scalar" or config.d_readout)):
        return WritesAtMost(compiled, "a0.h0", axes(compiled, 1), 0.5)
    return HeadTable(compiled, (0, 0), circuit, relation, least)


def represents(compiled: Compiled, positions: list[int] | None) -> Claim:
    """The coordinates in which the first component writes its node, after its layer."""
    role = compiled.alignment.heads[0]
    matrix = encoding_matrix(role.encoding, len(role_values(compiled, role.node)), compiled.model.config.d_model)
    used = torch.from_numpy((matrix != 0).any(0))
    directions = torch.eye(compiled.model.config.d_model)[used]
    return SubspaceRepresents(
        compiled, site(compiled, role.layer + 1), directions, role.node, compiled.alignment.program, positions=positions
    )


def role_values(compiled: Compiled, node: int) -> tuple[Any, ...]:
    return compiled.alignment.program.value_node(node).values


def ramp(compiled: Compiled) -> torch.Tensor:
    return torch.arange(compiled.model.config.d_vocab_out) * 0.5 + 0.25


def less(compiled: Compiled) -> Circuit:
    return compiled.circuit.without([sorted(compiled.circuit.edges)[0]])


def by_nodes(compiled: Compiled) -> Circuit:
    """Without the last node."""
    nodes = compiled.circuit.ordered_nodes()
    return Circuit.from_nodes(compiled.model.config, nodes[:-2], "resample")


def weights(compiled: Compiled) -> dict[str, Any]:
    return {name: p.detach().numpy() for name, p in compiled.model.named_parameters()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Compiled], Path]:
    folder, known = tmp_path_factory.mktemp("models"), dict[str, Path]()

    def save(compiled: Compiled) -> Path:
        key = compiled.model.weights_sha256() + compiled.model.config_json()
        if key not in known:
            known[key] = folder / f"{len(known)}.safetensors"
            compiled.model.save(known[key])
        return known[key]

    return save


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_proved_is_true_and_valid(name: str, kind: str, saved: Callable[[Compiled], Path]) -> None:
    compiled = model(name)
    claim = KINDS[kind](compiled)
    for quantifier, quantified in QUANTIFIERS.items():
        wanted = quantified(claim)
        stated: Any = theorem(wanted, DOMAIN)
        truth = is_true(stated, weights(compiled))
        match prove(wanted, DOMAIN, engines={"enumeration"}):
            case Proved(certificate) as verdict:
                assert truth is not False and (truth is None or not verdict.setting.notes)
                outcome = proofs.check(certificate.data, saved(compiled), expect=wanted.to_json())
                assert isinstance(outcome, Valid), outcome
                assert (
                    "RASP" in proofs.describe(outcome.theorem) or "trusted" in proofs.describe(outcome.theorem).lower()
                )
            case Refuted(Certificate() as evidence):
                assert truth is not True
                assert evidence.theorem["quantifier"] in ("none", "fewer_than")
                assert is_true(evidence.theorem, weights(compiled)) is not False
                outcome = proofs.check(evidence.data, saved(compiled))
                assert isinstance(outcome, Valid), outcome
                assert isinstance(checked(stated, compiled, saved), Invalid)
            case Refuted(witness):
                assert truth is not True and quantifier == "forall", witness
                assert isinstance(checked(stated, compiled, saved), Invalid)
            case other:  # robustness is proved to fail by a witness only: not on so many inputs, or on all
                assert truth is None or (kind.startswith("robust") and not truth and quantifier != "forall"), other


def checked(stated: Any, compiled: Compiled, saved: Callable[[Compiled], Path]) -> proofs.Outcome:
    """A certificate of any theorem, by the rule for its quantifier."""
    proof: dict[str, Any] = {"rule": "enumerate"}
    if stated["quantifier"] == "exists":
        proof = {"rule": "witness", "inputs": [[0, 1, 0]] * (2 if "interchange" in str(stated["body"]) else 1)}
    return proofs.check(sealed({"format": "certiformer/1", "theorem": stated, "proof": proof}), saved(compiled))


# --- theorems changed and resealed


def changes(stated: Any) -> list[Any]:
    """Other theorems near this one: each with one part of its meaning changed."""
    found = []

    def change(*path: Any, to: Any) -> None:
        other = copy.deepcopy(stated)
        place = other
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to
        found.append(other)

    for number, part in enumerate(stated["body"].get("parts", [])):
        for other in changes({**stated, "body": part}):
            change("body", "parts", number, to=other["body"])
    match stated["body"]["kind"]:
        case "invariant":
            for pairs in ([[0, 1]], [[1, 0]], [[0, 1], [1, 0]], [[0, 0], [1, 0]]):
                change("body", "relabelling", to=pairs)
            for places in ([0], [1], [0, 1, 2]):
                change("body", "irrelevant_positions", to=places)
            change("body", "relabel_outputs", to=not stated["body"]["relabel_outputs"])
        case "attends":
            nodes = stated["body"]["program"]["nodes"]
            for layer, entry in enumerate(stated["config"]["layers"]):
                for head in range(entry["n_heads"]):
                    found.append({**stated, "body": {**stated["body"], "layer": layer, "head": head}})
            for node, entry in enumerate(nodes):
                if entry["kind"] in ("select", "and", "or", "not"):
                    change("body", "selector", to=node)
            for log2den in (1, 2, 4, 8, 16, 64):
                change("body", "tolerance", to={"num": 1, "log2den": log2den})
        case "faithful":
            edges = stated["body"]["circuit"]["edges"]
            for left_out in edges[:6]:
                change("body", "circuit", "edges", to=[edge for edge in edges if edge != left_out])
            change("body", "circuit", "edges", to=[])
            change("body", "circuit", "granularity", to="node")
            change("body", "ablation", to="zero")
            found[-1]["body"].pop("reference", None)
            if "reference" in stated["body"]:
                change("body", "reference", to=[[0]])
                change("body", "reference", to=[[1, 1]])
        case "interchange":
            body = stated["body"]
            change("body", "heads", to=[])
            change("body", "neurons", to=[])
            for node, entry in enumerate(body["program"]["nodes"]):
                if node > 1 and "values" in entry:
                    change("body", "node", to=node)
            for layer, entry in enumerate(stated["config"]["layers"]):
                if entry["n_heads"]:
                    change("body", "heads", to=[[layer, 0]])
                if entry["d_mlp"]:
                    change("body", "neurons", to=[[layer, 0, 1]])
        case "robust":
            for radius in ({"num": 1, "log2den": 30}, 4, 64):
                change("body", "radius", to=radius)
        case "monotone":
            change("body", "tokens", to=stated["body"]["tokens"][::-1])
            change("body", "outputs", to=stated["body"]["outputs"][::-1])
        case "represents":
            for places in (None, [0], [0, 2], [1]):
                change("body", "positions", to=places)
            for depth in range(len(stated["config"]["layers"]) + 1):
                change("body", "stream", to=depth)
            for node, entry in enumerate(stated["body"]["program"]["nodes"]):
                if node > 1 and "values" in entry:
                    change("body", "node", to=node)
        case "subspace":
            change("body", "complement", to=not stated["body"]["complement"])
            change("body", "carries", to="all" if stated["body"]["carries"] == "nothing" else "nothing")
            change("body", "directions", to=stated["body"]["directions"][:1])
            for places in (None, [0], [0, 2], [1]):
                change("body", "positions", to=places)
            for depth in range(len(stated["config"]["layers"]) + 1):
                change("body", "stream", to=depth)
        case "head_table":
            for relation in ("diagonal", "increasing"):
                for circuit in ("ov", "qk") if stated["codec"]["kind"] == "categorical" else ("qk",):
                    for least in (-4, {"num": -1, "log2den": 3}, {"num": 1, "log2den": 3}, 4):
                        found.append(copy.deepcopy(stated))
                        found[-1]["body"] |= {"relation": relation, "circuit": circuit, "at_least": least}
        case "writes":
            for most in (0, {"num": 1, "log2den": 2}, 1, 100):
                change("body", "at_most", to=most)
            for layer, entry in enumerate(stated["config"]["layers"]):
                for head in range(entry["n_heads"]):
                    change("body", "node", to=f"a{layer}.h{head}")
        case "agree":
            for turn in (0, 1):
                edges = stated["body"]["circuits"][turn]["edges"]
                for left_out in edges[:3]:
                    change("body", "circuits", turn, "edges", to=[edge for edge in edges if edge != left_out])
            change("body", "ablation", to="zero")
        case "effect":
            for most in (0, {"num": 1, "log2den": 2}, 100):
                change("body", "within", to=most)
            change("body", "score", to=-1)
            for edge in ("a0.h0->logits", "input->a0.h0<v>"):
                change("body", "edge", to=edge)
    if "share" in stated:
        for share in ({"num": 1, "den": 14}, {"num": 13, "den": 14}, 0, 1):
            change("share", to=share)
        change("quantifier", to="fewer_than")
    return found


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("computes", "never")])
@pytest.mark.parametrize("name", ["sort", "without BOS", "noisy"])
def test_changed_theorems_are_valid_exactly_if_true(name: str, kind: str, saved: Callable[[Compiled], Path]) -> None:
    compiled = model(name)
    small = ("abstracts", "several", "subspace", "represents", "effect", "agree, resample", "robust")
    domain = sequences(range(2), range(1, 3)) if kind.startswith(small) else DOMAIN
    for quantifier in ("forall", "at_least"):
        stated: Any = theorem(QUANTIFIERS[quantifier](KINDS[kind](compiled)), domain)
        for other in [stated, {**stated, "quantifier": "none"}, *changes(stated)][
            : 12 if quantifier == "at_least" else 99
        ]:
            if other["quantifier"] == "none":
                other.pop("share", None)
            truth, outcome = is_true(other, weights(compiled)), checked(other, compiled, saved)
            if kind.startswith("robust") and truth and not proves_robust(other):
                truth = None
            assert truth is None or isinstance(outcome, Valid) == truth, (other["body"], outcome)
            assert not isinstance(outcome, Invalid) or outcome.rule != INTERNAL, outcome


def proves_robust(stated: Any) -> bool:
    """Whether that theorem is of a kind that the checker can prove: that inputs are robust, to very little."""
    return bool(stated["quantifier"] in ("forall", "at_least") and float(dyadic(stated["body"]["radius"])) < 1e-6)


@pytest.mark.parametrize(
    "kind",
    [
        "irrelevant",
        "attends",
        "mean",
        "resample, an edge less",
        "abstracts",
        "monotone",
        "subspace",
        "writes",
        "effect",
    ],
)
def test_any_change_of_any_field_is_refused_or_true(kind: str, saved: Callable[[Compiled], Path]) -> None:
    compiled = model("sort")
    rng = np.random.default_rng(len(kind))
    domain = sequences(range(2), range(1, 3))
    for quantifier in ("forall", "exists", "at_least"):
        stated: Any = theorem(QUANTIFIERS[quantifier](KINDS[kind](compiled)), domain)
        proof = {"rule": "enumerate"}
        if quantifier == "exists":
            proof = {"rule": "witness", "inputs": [[0, 1]] * KINDS[kind](compiled).arity}  # type: ignore[dict-item]
        original = sealed({"format": "certiformer/1", "theorem": stated, "proof": proof})
        for _ in range(40):
            certificate, what = mutate(rng, original)
            outcome = proofs.check(certificate, saved(compiled))
            assert not isinstance(outcome, Invalid) or outcome.rule != INTERNAL, (what, outcome)
            if isinstance(outcome, Valid):
                assert is_true(certificate["theorem"], weights(compiled)) is not False, what


# --- witnesses


def test_witnesses_must_be_in_the_domain_and_of_the_right_shape(saved: Callable[[Compiled], Path]) -> None:
    compiled = model("sort")
    claim = Faithful(compiled, ablation="resample").exists()
    stated = theorem(claim, exactly_one(1, range(2), range(1, 4)))

    def answer(*inputs: Any) -> type:
        proof = {"rule": "witness", "inputs": [*inputs]}
        certificate = sealed({"format": "certiformer/1", "theorem": stated, "proof": proof})
        return type(proofs.check(certificate, saved(compiled)))

    assert answer([0, 1], [1, 0]) is Valid
    for bad in (
        [[0, 1]], [[0, 1], [1]], [[0, 1], [1, 1]], [[0, 1], [1, 2]], [[0, 1], [1, 0], [1, 0]], [], [[], []],
        [[0, 0, 0, 1], [0, 0, 0, 1]], [0, 1], [[0, 1], "10"], [[0, [1]], [1, 0]],
    ):  # fmt: skip
        assert answer(*bad) is Invalid, bad


def test_a_witness_on_which_the_body_fails_proves_nothing(saved: Callable[[Compiled], Path]) -> None:
    compiled = model("sort")
    stated: Any = theorem(Invariant(compiled, relabelling={0: 1, 1: 0}, outputs="relabelled").exists(), DOMAIN)
    for word, right in (([0, 1], False), ([1, 1], True), ([0], True), ([1, 0, 0], False)):
        proof = {"rule": "witness", "inputs": [word]}
        certificate = sealed({"format": "certiformer/1", "theorem": stated, "proof": proof})
        assert isinstance(proofs.check(certificate, saved(compiled)), Valid if right else Invalid), word


def test_rules_and_quantifiers_must_fit(saved: Callable[[Compiled], Path]) -> None:
    compiled = model("sort")
    forall: Any = theorem(Computes(compiled), DOMAIN)
    witness, enumerate_ = {"rule": "witness", "inputs": [[0]]}, {"rule": "enumerate"}
    for stated, proof in (
        (forall, witness),
        ({**forall, "quantifier": "exists"}, enumerate_),
        ({**forall, "quantifier": "at_least"}, enumerate_),
        ({**forall, "share": 1}, enumerate_),
        ({**forall, "quantifier": "at_least", "share": 2}, enumerate_),
        ({**forall, "quantifier": "at_least", "share": {"num": 2, "den": 4}}, enumerate_),
        ({**forall, "quantifier": "most"}, enumerate_),
        ({**forall, "quantifier": ["forall"]}, enumerate_),
        ({**theorem(Faithful(compiled, ablation="zero"), DOMAIN), "quantifier": "exists"}, {"rule": "no_flow"}),
        (forall, {"rule": "enumerate", "true": 14}),
    ):
        outcome = proofs.check(sealed({"format": "certiformer/1", "theorem": stated, "proof": proof}), saved(compiled))
        assert isinstance(outcome, Invalid) and outcome.rule != INTERNAL, (stated["quantifier"], proof)


@pytest.mark.parametrize(
    ("kind", "key", "item"),
    [
        ("swap", "relabelling", [[0, 1], [0, 0]]),
        ("swap", "relabelling", [[0, 7]]),
        ("swap", "relabelling", [[7, 0]]),
        ("swap", "relabelling", []),
        ("swap", "relabelling", [[0]]),
        ("irrelevant", "irrelevant_positions", [-1]),
        ("irrelevant", "irrelevant_positions", [1, 1]),
        ("irrelevant", "irrelevant_positions", [99]),
        ("irrelevant", "relabel_outputs", 0),
        ("attends", "layer", 9),
        ("attends", "layer", -1),
        ("attends", "head", 9),
        ("attends", "selector", 0),
        ("attends", "selector", 999),
        ("attends", "tolerance", 0.5),
        ("attends", "tolerance", {"num": 1, "den": 3}),
        ("mean", "reference", []),
        ("mean", "reference", [[]]),
        ("mean", "reference", [[0], [0, 1]]),
        ("mean", "reference", [[5]]),
        ("mean", "reference", [[0] * 9]),
        ("mean", "ablation", "any"),
        ("mean", "ablation", "resample"),
        ("zero", "ablation", "mean"),
        ("zero", "ablation", "any"),
        ("zero", "reference", [[0]]),
    ],
)
def test_malformed_bodies(kind: str, key: str, item: Any, saved: Callable[[Compiled], Path]) -> None:
    compiled = model("sort")
    stated: Any = copy.deepcopy(theorem(KINDS[kind](compiled), DOMAIN))
    stated["body"][key] = item
    outcome = checked(stated, compiled, saved)
    assert isinstance(outcome, Invalid) and outcome.rule != INTERNAL, outcome


@pytest.mark.parametrize(
    ("key", "item"),
    [
        ("node", 99),
        ("heads", [[0, 9]]),
        ("heads", [[0, 0], [0, 0]]),
        ("heads", [[9, 0]]),
        ("heads", [0, 0]),
        ("neurons", [[0, 0, 9999]]),
        ("neurons", [[0, 1, 1]]),
        ("neurons", [[0, 0, 2], [0, 1, 3]]),
        ("neurons", [[0, -1, 1]]),
    ],
)
def test_malformed_interchanges(key: str, item: Any, saved: Callable[[Compiled], Path]) -> None:
    compiled = model("sort")
    stated: Any = copy.deepcopy(theorem(Abstracts(compiled), DOMAIN))
    stated["body"] = stated["body"].get("parts", [stated["body"]])[0]
    assert isinstance(checked(stated, compiled, saved), Valid)
    stated["body"][key] = item
    outcome = checked(stated, compiled, saved)
    assert isinstance(outcome, Invalid) and outcome.rule != INTERNAL, outcome


def test_too_many_pairs_are_refused(saved: Callable[[Compiled], Path]) -> None:
    large = compile(programs.reverse(), vocab=range(4), max_len=6)
    stated: Any = theorem(Faithful(large, ablation="resample"), sequences(range(4), range(1, 7)))
    outcome = checked(stated, large, saved)
    assert isinstance(outcome, Invalid) and "refused above" in outcome.why


# --- what a theorem cannot say, and points far apart


def test_an_output_relabelled_to_none_is_not_equal() -> None:
    """Half of the outputs would be relabelled to values that the codec does not have."""
    config = TransformerConfig(2, 2, 2, 2, (), attention_scale=1.0)
    plain = Transformer(config)
    with torch.no_grad():
        plain.parameter("embed.W_E").copy_(torch.eye(2))
        plain.parameter("unembed.W_U").copy_(torch.eye(2))
    codec = Codec((0, 1), False, "categorical", (1, 7), (), 2)
    claim = Invariant(plain, relabelling={1: 0}, outputs="relabelled", codec=codec)
    assert isinstance(prove(claim, sequences([0, 1], 1)), Refuted)


def test_a_claim_about_an_edited_copy_is_not_certified() -> None:
    compiled = model("sort")
    with pytest.raises(InputError, match="edited copy"):
        prove(Computes(Subject(edit(compiled.model), compiled.codec), compiled.core), DOMAIN)


@pytest.mark.parametrize("x", [Fraction(2) ** 2000, -(Fraction(2) ** 2000), Fraction(0), Fraction(1, 3), Fraction(-7)])
def test_floats_beyond(x: Fraction) -> None:
    high, low = beyond(x, 1), beyond(x, -1)
    assert high == np.inf or Fraction(high) > x
    assert low == -np.inf or Fraction(low) < x


@pytest.mark.parametrize("far", [2**2000, -(2**2000)])
def test_points_beyond_float64_are_still_the_farther_ones(far: int) -> None:
    """The logit is 0, the points are 0 and 2^2000: the output of the far point is never the nearest."""
    case = CASES["echo"]()
    case.config["d_vocab_out"] = 1
    case.weights["unembed.W_U"] = np.zeros((13, 1), dtype=np.float32)
    case.weights["unembed.b_U"] = np.zeros(1, dtype=np.float32)
    case.codec = {**case.codec, "kind": "scalar", "outputs": ["near", "far"], "points": [0, far]}
    case.proof = {"rule": "enumerate"}
    for output, right in (("far", True), ("near", False)):
        case.body = {"kind": "never_outputs", "outputs": [output]}
        assert isinstance(case.check(), Valid if right else Invalid)


def test_margins_over_the_reals() -> None:
    compiled = model("sort")
    claim = Margin(compiled, 0.25)
    assert isinstance(prove(claim, DOMAIN, engines={"enumeration"}), Proved)


LAYERS = (LayerConfig(2, 3, 5), LayerConfig(1, 4, 6))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"attention_scale": 0.5, "positional": "none"}])
def test_random_models(seed: int, options: dict[str, Any], tmp_path: Path) -> None:
    """Untrained weights: every contribution matters, so every part of the edited run does."""
    config = TransformerConfig(6, 4, 4, 3, LAYERS, **options)
    made = Transformer.initialised(config, seed)
    subject = Subject(made, Codec((0, 1, 2), True, "categorical", ("a", "b", "c"), (), 3))
    made.save(tmp_path / "m.safetensors")
    domain = sequences(range(3), range(1, 3))
    edges = sorted(Circuit.from_nodes(config, ["a0.h0", "m0", "a1.h0"]).edges)
    rng = np.random.default_rng(seed)
    kept = Circuit.from_edges([edge for edge in edges if rng.random() < 0.7])
    nodes = Circuit.from_nodes(config, ["a0.h1", "m1", "a1.h0"])
    array = {name: p.detach().numpy() for name, p in made.named_parameters()}
    for circuit in (kept, nodes):
        for ablation in ("zero", "mean", "resample"):
            claim = Faithful(subject, circuit, ablation, reference=REFERENCE if ablation == "mean" else None)
            true, _, total = Judge(theorem(claim, domain), array).counts()
            for share in (Fraction(true, total), Fraction(true + 1, total + 1)):
                wanted, truth = claim.at_least(share), true >= share * total
                verdict = prove(wanted, domain, engines={"enumeration"})
                assert isinstance(verdict, Proved if truth else Refuted), (verdict, truth)
                certificate = verdict.certificate if isinstance(verdict, Proved) else verdict.evidence
                assert isinstance(certificate, Certificate)
                outcome = proofs.check(certificate.data, tmp_path / "m.safetensors")
                assert isinstance(outcome, Valid), outcome
