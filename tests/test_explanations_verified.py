"""Verified discovery: with enumeration as the prover on tiny graphs, and with the real one on a compiled model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import certiformer as cf
from certiformer.explanations import Decision, Setup, Verified, discover_verified, patching, sample_pairs
from certiformer.explanations.graph_runs import faint_edges
from certiformer.models import Circuit, InputError, LayerConfig, TransformerConfig, full_circuit, sequences
from certiformer.models.circuits import all_edges
from certiformer.verifier.deciding import Decider

CONFIG = TransformerConfig(4, 3, 3, 2, (LayerConfig(1, 2, 3),))
EDGES = tuple(map(str, all_edges(CONFIG)))
FULL = full_circuit(CONFIG, "zero")
Truth = Callable[[frozenset[str]], str]


def live(edges: frozenset[str]) -> frozenset[str]:
    return edges - faint_edges(edges)


def random_truth(seed: int, unknown: float = 0.0) -> Truth:
    """Any function of the edges that matter: faithful, not, or unknown; the whole model is faithful."""

    def truth(edges: frozenset[str]) -> str:
        key = live(edges)
        if key == FULL.edges:
            return "proved"
        generator = random.Random(f"{seed} {sorted(key)}")
        draw = generator.random()
        return "unknown" if draw < unknown else "proved" if draw < unknown + 0.45 else "refuted"

    return truth


class Prover:
    def __init__(self, truth: Truth, stop_after: int | None = None) -> None:
        self.truth, self.stop_after, self.asked = truth, stop_after, list[frozenset[str]]()

    def __call__(self, circuit: Circuit) -> Decision:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked.append(circuit.edges)
        kind: Any = self.truth(circuit.edges)
        return Decision(kind, f"says {kind}", {"inputs": [len(self.asked)]})


@pytest.mark.parametrize("unknown", [0.0, 0.2])
def test_every_claim_of_the_result_is_true(unknown: float) -> None:
    minimal = 0
    for seed in range(60):
        truth = random_truth(seed, unknown)
        prover = Prover(truth)
        found = discover_verified(CONFIG, prover, start=FULL)
        assert truth(found.circuit.edges) == "proved" == found.faithful.kind
        assert set(found.kept) == found.circuit.edges
        for edge, decision in found.kept.items():
            assert decision.kind == truth(found.circuit.edges - {edge}) != "proved"
        assert found.minimal == all(truth(found.circuit.edges - {edge}) == "refuted" for edge in found.circuit.edges)
        assert found.unknown == tuple(e for e in found.kept if truth(found.circuit.edges - {e}) == "unknown")
        gone = [edge for deletion in found.deleted for edge in deletion.edges]
        assert len(gone) == len(set(gone)) and set(gone) == FULL.edges - found.circuit.edges
        left = FULL.edges
        for deletion in found.deleted:
            left = left - set(deletion.edges)
            assert truth(left) == "proved" == deletion.decision.kind
        assert len(prover.asked) == len(set(prover.asked)) == found.decisions
        minimal += found.minimal
        assert json.dumps(found.to_json()) and ("1-minimal" in found.to_text())
    assert minimal == 60 if not unknown else 0 < minimal < 60


def test_a_monotone_truth_gives_a_minimal_set_however_it_is_ordered() -> None:
    """Needed: one of two paths. The scores decide which stays."""
    paths = [{"input->m0", "m0->logits"}, {"input->a0.h0<v>", "a0.h0->logits"}]

    def truth(edges: frozenset[str]) -> str:
        return "proved" if any(path <= edges for path in paths) else "refuted"

    for kept in (0, 1):
        scores = {edge: float(edge in paths[kept]) for edge in EDGES}
        found = discover_verified(CONFIG, Prover(truth), start=FULL, scores=scores)
        assert found.circuit.edges == paths[kept] and found.minimal
        assert found.decisions < 2 * len(EDGES)


def test_what_leads_nowhere_goes_with_what_led_there() -> None:
    def truth(edges: frozenset[str]) -> str:
        return "proved" if "input->logits" in edges else "refuted"

    prover = Prover(truth)
    scores = {edge: float(edge == "input->logits") for edge in EDGES} | {"m0->logits": -0.5}
    found = discover_verified(CONFIG, prover, start=FULL, scores=scores)
    assert found.circuit.edges == {"input->logits"} and found.minimal
    assert all(not faint_edges(edges) for edges in prover.asked)


@pytest.mark.parametrize("stop", range(12))
def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path, stop: int) -> None:
    truth = random_truth(stop)
    whole = Prover(truth)
    expected = discover_verified(CONFIG, whole, start=FULL, question={"weights": "ab"})
    file, first, second = tmp_path / "r.json", Prover(truth, stop), Prover(truth)
    try:
        discover_verified(CONFIG, first, start=FULL, question={"weights": "ab"}, resume=file)
    except KeyboardInterrupt:
        assert len(first.asked) == stop
    found = discover_verified(CONFIG, second, start=FULL, question={"weights": "ab"}, resume=file)
    assert found.circuit == expected.circuit and found.minimal == expected.minimal
    # Nothing is asked twice, but the last circuit, whose proof must be at hand.
    assert set(first.asked) & set(second.asked) <= {expected.circuit.edges}
    third = Prover(truth)
    discover_verified(CONFIG, third, start=FULL, question={"weights": "ab"}, resume=file)
    assert third.asked == ([] if expected.circuit.edges == FULL.edges else [expected.circuit.edges])


def test_unknown_answers_are_asked_again_with_more_effort(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    lazy = discover_verified(CONFIG, Prover(lambda edges: "unknown"), start=FULL, resume=file, effort=1)
    assert set(lazy.unknown) == FULL.edges and not lazy.minimal
    same = Prover(random_truth(0))
    discover_verified(CONFIG, same, start=FULL, resume=file, effort=1)
    assert same.asked == []
    more = discover_verified(CONFIG, Prover(random_truth(0)), start=FULL, resume=file, effort=2)
    assert more.circuit == discover_verified(CONFIG, Prover(random_truth(0)), start=FULL).circuit


def test_files_of_other_questions_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    discover_verified(CONFIG, Prover(random_truth(1)), start=FULL, question={"weights": "ab", "n": 1}, resume=file)
    with pytest.raises(InputError, match="about another weights;"):
        discover_verified(CONFIG, Prover(random_truth(1)), start=FULL, question={"weights": "cd", "n": 1}, resume=file)
    for broken in ("", "{}", '{"format": 1}'):
        file.write_text(broken)
        with pytest.raises(InputError, match="choose another file"):
            discover_verified(CONFIG, Prover(random_truth(1)), start=FULL, resume=file)


def test_a_file_with_a_false_proof_is_found_out(tmp_path: Path) -> None:
    """The last circuit is decided anew."""
    file = tmp_path / "r.json"
    truth = lambda edges: "refuted"  # noqa: E731
    discover_verified(CONFIG, Prover(truth), start=FULL, resume=file)
    file.write_text(file.read_text().replace('"verdict": "refuted"', '"verdict": "proved"'))
    with pytest.raises(InputError, match="are wrong"):
        discover_verified(CONFIG, Prover(truth), start=FULL, resume=file)


def test_bad_starts_are_refused() -> None:
    with pytest.raises(InputError, match="start from a larger one"):
        discover_verified(CONFIG, Prover(lambda _: "refuted"), start=Circuit.from_edges(["input->logits"], "zero"))
    with pytest.raises(InputError, match="one by one"):
        discover_verified(CONFIG, Prover(random_truth(0)), start=Circuit.from_nodes(CONFIG, ["m0"]))
    with pytest.raises(InputError, match="a9.h0"):
        discover_verified(CONFIG, Prover(random_truth(0)), start=Circuit.from_edges(["a9.h0->logits"]))


def verified_by_prove(ablation: str) -> tuple[cf.Compiled, Verified, Decider]:
    compiled = cf.compile(cf.programs.hist(), vocab=range(2), max_len=3)
    domain = sequences(range(2), range(1, 4))
    decide = Decider(lambda circuit: cf.Faithful(compiled, circuit, ablation), domain, 10)
    setup = Setup(compiled.model, sample_pairs(domain, compiled.codec, 20), "zero")
    start = full_circuit(compiled.model.config, ablation)  # type: ignore[arg-type]
    found = discover_verified(compiled.model.config, decide, start=start, scores=patching(setup).by_edge)
    return compiled, found, decide


@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_with_the_prover_on_a_compiled_model(ablation: str, tmp_path: Path) -> None:
    compiled, found, decide = verified_by_prove(ablation)
    assert found.circuit.edges < full_circuit(compiled.model.config).edges
    # Under zero ablation one deletion leaves two logits equal, which the prover may leave open.
    assert found.minimal == (not found.unknown) and (found.minimal or ablation == "zero")
    proof = found.faithful.verdict
    assert isinstance(proof, cf.Proved)
    compiled.save(tmp_path / "m.safetensors")
    assert isinstance(cf.check(proof.certificate, tmp_path / "m.safetensors"), cf.Valid)
    for edge, decision in found.kept.items():
        if decision.kind == "refuted":
            again = cf.prove(cf.Faithful(compiled, found.circuit.without([edge]), ablation), decide.domain)
            assert isinstance(again, cf.Refuted) and decision.evidence is not None, edge
            verdict: Any = decision.verdict
            assert verdict.claim.holds_really(verdict.evidence) is False
    assert decide.replayed > 0
    assert all(isinstance(deletion.decision.verdict, cf.Proved) for deletion in found.deleted)


def test_a_witness_is_replayed_only_where_it_refutes() -> None:
    """A witness that was planted and refutes nothing is passed over; the prover is asked."""
    compiled, found, decide = verified_by_prove("resample")
    edge, decision = next(iter(found.kept.items()))
    verdict: Any = decision.verdict
    witness = verdict.evidence
    same = type(witness)((witness.inputs[0], witness.inputs[0]))  # the source is the input itself: nothing changes
    other = Decider(decide.claim_of, decide.domain, 10)
    other.witnesses = [same]
    again = other(found.circuit.without([edge]))
    assert isinstance(again, cf.Refuted) and again.setting.engine != "replay" and other.replayed == 0
    assert isinstance(other(found.circuit.without([edge])), cf.Refuted) and other.replayed == 1
    assert isinstance(other(found.circuit), cf.Proved)
