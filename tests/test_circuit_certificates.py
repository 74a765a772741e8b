"""Certificates about circuits alone: what is accepted is true, by running every input; what is false is rejected."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import certiformer as cf
from certiformer.models import Circuit as ModelCircuit
from certiformer.models import Codec, LayerConfig, Transformer, TransformerConfig, change_weight
from certiformer.models.circuits import all_edges, all_nodes
from certiformer.models.labels import LabelMachine
from certiformer.proofs import judging, reduction
from certiformer.proofs.balls import Ball
from certiformer.proofs.bodies import Alone as CheckedAlone
from certiformer.proofs.circuit import Circuit, edges_of, nodes_of, outside
from certiformer.proofs.format import Rejected
from certiformer.proofs.model import Config, Layer, parse_model
from certiformer.proofs.network import Network
from certiformer.proofs.reduction import own_model
from certiformer.proofs.theorem import Theorem, read_theorem
from certiformer.verifier.accuracy import Aim, proof_of
from certiformer.verifier.agreement import agreement, agreement_bound, prove_agreement
from certiformer.verifier.alone import Alone
from certiformer.verifier.circuit_bodies import FaithfulBody
from certiformer.verifier.path_proofs import search_by_paths
from certiformer.verifier.reading import Subject
from certiformer.verifier.reducing import places
from certiformer.verifier.shares import count_claim
from certiformer.verifier.verdicts import Certificate

from .circuit_cases import Case, accepted, certificate, one_changed, random_case
from .mutations import mutate

KINDS = ("count", "paths")
SECONDS = 0.25
"""For a proof by paths, which takes what it is given where it cannot prove all."""


def proved(case: Case, kind: str) -> tuple[int, Any]:
    """How many witnesses the engine proves right, and its proof."""
    if kind == "count":
        found, why = count_claim(case.labels, case.domain, Aim())
        assert found is not None, why
        return found.mass.proved, proof_of(found, places(case.labels.body, case.domain))  # type: ignore[arg-type]
    search, why = search_by_paths(case.labels, case.domain, 2**60, time.monotonic() + SECONDS, lambda _: None)
    assert search is not None, why
    return search.proved, search.proof()


def able(case: Case, kind: str) -> bool:
    """Whether the circuit's own model is of the kind that the rule is about."""
    layers = case.alone.reduced.model.config.layers
    return bool(layers) and (kind == "paths" or len(layers) == 1)


def theorem_of(case: Case, tmp: Path) -> Theorem:
    path = tmp / "m.safetensors"
    case.subject.model.save(path)
    stated = certificate(case.labels, case.domain, {"rule": "hole", "which": ["all"]}).theorem
    return read_theorem(dict(stated), parse_model(path.read_bytes()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(20))
def test_the_checkers_own_model_of_a_circuit_is_the_model_with_edits(seed: int, kind: str, tmp_path: Path) -> None:
    """Two ways of the checker's: weights laid out anew, and every reader's sum put together. They must overlap."""
    theorem = theorem_of(random_case(seed, kind, d_readout=seed % 3), tmp_path)
    judge, own = judging.Judge(theorem), own_model(theorem)
    words = np.concatenate(list(theorem.domain.words(3, 64)))
    rows = (words,) if theorem.arity == 1 else (np.repeat(words, len(words), 0), np.tile(words, (len(words), 1)))
    (part,) = theorem.parts
    tokens = rows[0] if len(rows) == 1 else rows[0] * len(theorem.codec.vocab) + rows[1]
    with np.errstate(all="ignore"):
        edited = judging._logits_alone(judging.Chunk(judge, rows), part.alone, 0)  # type: ignore[union-attr, arg-type]
        found = Network(own.model).logits(tokens)
    assert own.domain.size() == len(rows[0]) and own.arity == 1
    assert overlap(edited, found) and float(found.rad.max()) < 1e-6


def overlap(x: Ball, y: Ball) -> bool:
    return bool(((x.low() <= y.high()) & (y.low() <= x.high())).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(14))
def test_what_is_accepted_is_true(seed: int, kind: str, tmp_path: Path) -> None:
    """The share that the engine proves is accepted and not above the truth; none above the truth is accepted."""
    case = random_case(seed, kind)
    if not able(case, kind):
        return
    found, proof = proved(case, kind)
    _, may, total = case.truth()
    assert found <= may
    model = case.subject.model
    assert accepted(certificate(case.labels.at_least(Fraction(found, total)), case.domain, proof), model, tmp_path)
    for share in {Fraction(may + 1, total), Fraction(1)}:
        if may < share * total <= total:
            assert not accepted(certificate(case.labels.at_least(share), case.domain, proof), model, tmp_path)


@pytest.mark.parametrize("seed", range(16))
def test_agreement_is_never_more_than_there_is(seed: int, tmp_path: Path) -> None:
    case = random_case(seed, KINDS[seed % 2])
    if not able(case, KINDS[seed % 2]):
        return
    _, may, total = case.agreement()
    for share in (Fraction(0), Fraction(may, total), Fraction(min(may + 1, total), total), Fraction(1)):
        claim = case.faithful.at_least(share)
        found, _ = prove_agreement(claim, case.domain, time.monotonic() + SECONDS, lambda _: None)
        if found is not None:
            assert share * total <= may
            assert accepted(found, case.subject.model, tmp_path)


def agreeing(tmp_path: Path) -> tuple[Case, Certificate]:
    """A case in which a share is proved that is not little, while model and circuit do not agree everywhere."""
    for seed in range(400, 900):
        case = random_case(seed, "count", "mean")
        if not able(case, "count"):
            continue
        body = case.faithful.body
        assert isinstance(body, FaithfulBody)
        found, _ = agreement(body, case.domain, None, time.monotonic() + SECONDS, lambda _: None)
        share = found[0].share + found[1].share - 1 if found else Fraction(0)
        wrong = case.agreement()[1] < case.agreement()[2] and case.truth()[1] < case.truth()[2]
        if wrong and Fraction(1, 2) <= share < min(found[0].share, found[1].share):
            claim = case.faithful.at_least(share)
            made, _ = prove_agreement(claim, case.domain, time.monotonic() + SECONDS, lambda _: None)
            assert made is not None and accepted(made, case.subject.model, tmp_path)
            exact = agreement_bound(case.faithful, case.domain, seconds=5)
            sure, may, total = case.agreement()
            assert exact.engine == "enumeration" and share <= exact.share and sure <= exact.share * total <= may
            return case, made
    raise AssertionError("no case is proved")


def changed(found: Certificate, change: Any) -> Certificate:
    data = copy.deepcopy(dict(found.data))
    change(data["theorem"], data["proof"])
    return Certificate.of(data["theorem"], data["proof"])


def _above(theorem: Any, proof: Any) -> None:
    theorem["share"] = 1


def _forall(theorem: Any, proof: Any) -> None:
    theorem["quantifier"] = "forall"
    del theorem["share"]


def _zero(theorem: Any, proof: Any) -> None:
    theorem["body"]["ablation"] = "zero"


def _shares_of_premises(theorem: Any, proof: Any) -> None:
    theorem["share"] = proof["model"]["share"] = proof["circuit"]["share"] = 1


def _share_of_circuit(theorem: Any, proof: Any) -> None:
    proof["circuit"]["share"] = 1


def _share_too_large(theorem: Any, proof: Any) -> None:
    proof["model"]["share"] = 2


def _proof_of_circuit_from_model(theorem: Any, proof: Any) -> None:
    proof["circuit"] = proof["model"]
    theorem["share"] = 1


def _labels(theorem: Any, proof: Any) -> None:
    labels = proof["machine"]["labels"]
    proof["machine"]["labels"] = [(x + 1) % 2 if x >= 0 else x for x in labels]


def _no_circuit(theorem: Any, proof: Any) -> None:
    del proof["circuit"]


def _nested(theorem: Any, proof: Any) -> None:
    proof["circuit"]["proof"] = copy.deepcopy(proof)


def _hole(theorem: Any, proof: Any) -> None:
    proof["circuit"]["proof"] = {"rule": "hole", "which": ["the rest"]}


def _at_most(theorem: Any, proof: Any) -> None:
    theorem["quantifier"] = "at_most"


def _mean_lacks(theorem: Any, proof: Any) -> None:
    theorem["body"]["means"].popitem()


def _mean_too_many(theorem: Any, proof: Any) -> None:
    theorem["body"]["means"]["m7"] = "0" * 24


def _mean_infinite(theorem: Any, proof: Any) -> None:
    node = next(iter(theorem["body"]["means"]))
    theorem["body"]["means"][node] = "0000807f" * 3


def _mean_short(theorem: Any, proof: Any) -> None:
    node = next(iter(theorem["body"]["means"]))
    theorem["body"]["means"][node] = "0" * 16


def _mean_upper_case(theorem: Any, proof: Any) -> None:
    node = next(iter(theorem["body"]["means"]))
    theorem["body"]["means"][node] = "AAAAAAAA" * 3


def _reference_too(theorem: Any, proof: Any) -> None:
    theorem["body"]["reference"] = [[0, 0, 0]]


def _distinct(theorem: Any, proof: Any) -> None:
    theorem["domain"]["kind"] = "distinct"


def _no_means(theorem: Any, proof: Any) -> None:
    del theorem["body"]["means"]


REJECTED = [
    _above, _forall, _zero, _shares_of_premises, _share_of_circuit, _share_too_large, _proof_of_circuit_from_model,
    _labels, _no_circuit, _nested, _hole, _at_most, _mean_lacks, _mean_too_many, _mean_infinite, _mean_short,
    _mean_upper_case, _reference_too, _distinct, _no_means,
]  # fmt: skip


def test_changed_certificates_of_agreement_are_rejected(tmp_path: Path) -> None:
    case, found = agreeing(tmp_path)
    for change in REJECTED:
        assert not accepted(changed(found, change), case.subject.model, tmp_path), change.__name__


def variants(case: Case, rng: np.random.Generator) -> Case:
    """The case with one thing about the circuit, its means or the weights changed."""
    config, circuit = case.subject.model.config, case.alone.circuit
    kind = int(rng.integers(3))
    if kind == 0 and circuit.granularity == "edge":
        names = [str(edge) for edge in all_edges(config)]
        name = names[int(rng.integers(len(names)))]
        other = replace(circuit, edges=circuit.edges ^ {name})
        means = case.alone.means
        if means is not None:
            every = [node for node in all_nodes(config) if node != "logits"]
            means = {**{node: torch.ones(config.d_model) for node in every}, **means}
        return replace(case, alone=Alone.of(case.subject, other, case.alone.ablation, means))
    if kind == 1 and case.alone.means:
        node = sorted(case.alone.means)[int(rng.integers(len(case.alone.means)))]
        moved = {**case.alone.means, node: case.alone.means[node] * -3}
        return replace(case, alone=Alone.of(case.subject, circuit, "mean", moved))
    names = [name for name, _ in case.subject.model.named_parameters()]
    name = names[int(rng.integers(len(names)))]
    shape = case.subject.model.parameter(name).shape
    index = tuple(int(rng.integers(size)) for size in shape)
    value = float(rng.choice([-5.0, 5.0, 0.0]))
    return case.with_model(change_weight(case.subject.model, name, index, value))


@pytest.mark.parametrize("kind", KINDS)
def test_proofs_of_one_circuit_prove_nothing_false_of_another(kind: str, tmp_path: Path) -> None:
    """The same proof, stated about another circuit, other means or other weights (with their hash)."""
    wrong = 0
    for seed in range(40):
        case = random_case(seed, kind)
        if not able(case, kind):
            continue
        found, proof = proved(case, kind)
        if not found:
            continue
        rng = np.random.default_rng(seed)
        for _ in range(4):
            other = variants(case, rng)
            _, may, total = other.truth()
            if may >= found:
                continue
            wrong += 1
            stated = certificate(other.labels.at_least(Fraction(found, total)), other.domain, proof)
            assert not accepted(stated, other.subject.model, tmp_path), (seed, other.alone.circuit)
    assert wrong > 8


@pytest.mark.parametrize("kind", KINDS)
def test_one_wrong_input_is_one_too_many(kind: str, tmp_path: Path) -> None:
    """A circuit that is right on every input but one: that it always is, is never accepted, whatever proof is given."""
    tried = 0
    for seed in range(60):
        case = random_case(seed, kind, "zero" if seed % 2 else "mean")
        if not able(case, kind):
            continue
        sure, _, total = case.truth()
        found, proof = proved(case, kind)
        if sure < total or found < total:
            continue
        assert accepted(certificate(case.labels.at_least(1), case.domain, proof), case.subject.model, tmp_path)
        wrong = one_changed(case)
        assert wrong.truth()[1] == total - 1
        tried += 1
        for claim in (wrong.labels.at_least(1), wrong.labels):
            for given in (proof, proved(wrong, kind)[1], {"rule": "enumerate"}):
                assert not accepted(certificate(claim, wrong.domain, given), wrong.subject.model, tmp_path)
        right = wrong.labels.at_least(Fraction(total - 1, total))
        assert accepted(certificate(right, wrong.domain, {"rule": "enumerate"}), wrong.subject.model, tmp_path)
    assert tried > 2


@pytest.mark.parametrize("seed", range(12))
def test_enumeration_of_circuits_by_the_checker(seed: int, tmp_path: Path) -> None:
    """The checker's own count of every witness, by edits, is the engine's, by the circuit's own model."""
    case = random_case(seed, KINDS[seed % 2])
    sure, may, total = case.truth()
    claims = [(case.labels, sure, may), (case.faithful, *case.agreement()[:2])]
    for claim, least, most in claims:
        good = certificate(claim.at_least(Fraction(least, total)), case.domain, {"rule": "enumerate"})
        assert accepted(good, case.subject.model, tmp_path)
        if most < total:
            bad = certificate(claim.at_least(Fraction(most + 1, total)), case.domain, {"rule": "enumerate"})
            assert not accepted(bad, case.subject.model, tmp_path)
        verdict = cf.prove(claim, case.domain, seconds=20)
        assert not isinstance(verdict, cf.Proved if most < total else cf.Refuted), verdict


def test_stored_means_may_carry_what_the_source_cannot_write(tmp_path: Path) -> None:
    """Rule no_flow looks at the vectors too."""
    case = next(found for found in (random_case(s, "count", "mean") for s in range(99)) if "a0.h0" in found.alone.means)
    model: Transformer = copy.deepcopy(case.subject.model)
    with torch.no_grad():
        model.parameter("blocks.0.attn.W_O").zero_()
    config = replace(model.config, readout="each")
    model = Transformer.from_parameters(config, dict(model.named_parameters()))
    whole = frozenset(str(edge) for edge in all_edges(config)) - {"a0.h0->logits"}
    circuit = replace(case.alone.circuit, edges=whole, granularity="edge")
    for vector, good in ((torch.zeros(3), True), (torch.ones(3), False)):
        claim = cf.Faithful(model, circuit, means={"a0.h0": vector}, codec=case.subject.codec)
        assert accepted(certificate(claim, case.domain, {"rule": "no_flow"}), model, tmp_path) is good
        assert isinstance(cf.prove(claim, case.domain, engines={"composition"}), cf.Proved) is good


def mutants(found: Certificate, seed: int, count: int) -> Iterator[Certificate]:
    """Changed copies that are still certificates; see `mutations.mutate`."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        changed, _ = mutate(rng, json.loads(found.to_bytes()))
        if isinstance(changed, dict) and {"theorem", "proof"} <= set(changed):
            yield Certificate(changed)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_accepted_of_changed_certificates_is_true(seed: int, tmp_path: Path) -> None:
    """Any field changed: if the checker still accepts, then by running every input, with edits, it does so too."""
    kind = KINDS[seed % 2]
    case = next(c for s in range(seed, 999, 8) if able(c := random_case(s, kind), kind) and proved(c, kind)[0])
    count, proof = proved(case, kind)
    total = case.truth()[2]
    path = tmp_path / "m.safetensors"
    case.subject.model.save(path)
    found = [certificate(case.labels.at_least(Fraction(count, total)), case.domain, proof)]
    body = case.faithful.body
    assert isinstance(body, FaithfulBody)
    both, _ = agreement(body, case.domain, None, time.monotonic() + SECONDS, lambda _: None)
    if both is not None and both[0].share + both[1].share > 1:
        share = both[0].share + both[1].share - 1
        made, _ = prove_agreement(case.faithful.at_least(share), case.domain, time.monotonic() + 1, lambda _: None)
        found += [made] if made is not None else []
    kept = 0
    for original in found:
        for changed in mutants(original, seed, 80):
            if isinstance(cf.check(changed, path), cf.Valid):
                kept += 1
                again = Certificate.of(changed.theorem, {"rule": "enumerate"})
                outcome = cf.check(again, path)
                assert isinstance(outcome, cf.Valid), (outcome, changed.data)
    assert kept < 40 * len(found)


def test_a_long_chain_of_needed_nodes_is_found_in_one_pass() -> None:
    """Each node is needed by the next alone: time for the table is that of listing the edges, not layers times that."""
    layers = tuple(Layer(1, 1, 1) for _ in range(80))
    config = Config(1, 4, 3, 2, layers, "relu", True, True, 1.0, None, "last", {})
    names = [name for name, _ in nodes_of(config)] + ["logits"]
    following = set(zip(names, names[1:], strict=False))
    chain = frozenset(str(edge) for edge in edges_of(config) if (edge.source, edge.target) in following)
    alone = CheckedAlone(Circuit(frozenset(names), chain, False), "resample")
    began = time.process_time()
    outside(alone.circuit, config)
    listed = time.process_time() - began
    table = reduction._table(config, alone)
    assert time.process_time() - began < 30 * listed
    assert {reader[1] for reader in table if reader[0] == "x"} == {*names} - {"input"}


def test_a_label_machine_that_is_too_large_for_pairs_is_refused(tmp_path: Path) -> None:
    """With 2^7 tokens, its transitions on pairs are 2^7 times those of the certificate."""
    model = Transformer.initialised(TransformerConfig(2, 2, 128, 2, (LayerConfig(1, 2, 0),), readout="last"), seed=0)
    codec = Codec(tuple(range(128)), False, "categorical", (0, 1), (), 2)
    machine = LabelMachine(np.zeros((2**11 + 1, 128), dtype=np.int32), np.zeros(2**11 + 1, dtype=np.int64))
    alone = Alone.of(Subject(model, codec), ModelCircuit.from_nodes(model.config, ()), "resample")
    case = Case(Subject(model, codec), alone, machine, cf.sequences((0,), 2))
    with pytest.raises(Rejected, match="too large for pairs"):
        own_model(theorem_of(case, tmp_path))
