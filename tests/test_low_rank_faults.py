"""Rule `low_rank`: wrong explanations prove nothing that is false, and malformed ones are refused, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import certiformer as cf
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.labels import LabelMachine
from certiformer.models.transformer import Transformer
from certiformer.proofs import Invalid, Valid, check
from certiformer.proofs.format import canonical_json, seal
from certiformer.verifier.low_rank import Factored, factorise
from certiformer.verifier.theorems import domain_to_json
from certiformer.verifier.verdicts import Certificate

from .low_rank_cases import Case, random_case

Proof = dict[str, Any]
MATRICES = ("narrow", "widen", "read", "write", "middle")


@pytest.fixture(scope="module")
def case() -> Case:
    """Most words are right, and some are not."""
    case = random_case(360, wrong=0.15, scale=1.0)
    layer = case.model.config.layers[0]
    assert layer.d_mlp == 8 and layer.n_heads == 4 and len(case.outputs) == 4
    return case


@pytest.fixture(scope="module")
def found(case: Case) -> Factored:
    found = case.find()
    assert 0.5 * found.total < found.proved < found.total == 42
    return found


def numbers(proof: Proof, name: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(bytes.fromhex(proof[name]), "<f4").copy()


def put(proof: Proof, name: str, values: np.ndarray[Any, Any]) -> Proof:
    return {**proof, name: values.astype("<f4").tobytes().hex()}


def test_factors_changed_at_random_prove_nothing_false(case: Case, found: Factored, tmp_path: Path) -> None:
    """Any numbers are factors; what they leave out is bounded from the weights, whatever the certificate says."""
    proof, right, rng = found.proof, case.right(), np.random.default_rng(1)
    rejected = 0
    for trial in range(40):
        name = MATRICES[trial % 5]
        values = numbers(proof, name)
        size = (1e-3, 0.3, 1.0, 30.0, 1e8, 1e30)[trial % 6]
        some = rng.random(values.shape) < (0.1, 1.0)[trial % 2]
        forged = put(proof, name, np.where(some, values * (1 - size) + rng.normal(size=values.shape) * size, values))
        assert isinstance(case.check(forged, right + 1, tmp_path), Invalid)
        rejected += isinstance(case.check(forged, found.proved, tmp_path), Invalid)
    assert rejected > 14


def test_leaders_at_random_prove_nothing_false(case: Case, found: Factored, tmp_path: Path) -> None:
    """Words far apart, or of other labels, may be listed together: that proves less, not more."""
    proof, right, rng = found.proof, case.right(), np.random.default_rng(2)
    fewer = 0
    for trial in range(30):
        entries = []
        for entry in proof["words"]:
            size = len(entry["leaders"])
            leaders = np.arange(size)
            joined = rng.random(size) < (0.1, 0.5, 1.0)[trial % 3]
            for i in np.flatnonzero(joined).tolist():
                roots = np.flatnonzero(leaders[: i + 1] == np.arange(i + 1))
                leaders[i] = roots[rng.integers(len(roots))] if not (leaders[i + 1 :] == i).any() else i
            entries.append({**entry, "leaders": leaders.tolist()})
        forged = {**proof, "words": entries}
        outcome = case.check(forged, right + 1, tmp_path)
        assert isinstance(outcome, Invalid) and "proved to hold on only" in outcome.why
        fewer += isinstance(case.check(forged, found.proved, tmp_path), Invalid)
    assert fewer > 8


def test_a_proof_about_other_weights_is_not_one_about_these(case: Case, found: Factored, tmp_path: Path) -> None:
    """With the theorem bound to the changed weights, only what is true of those can be proved."""
    proof, rng = found.proof, np.random.default_rng(3)
    for trial in range(20):
        model = Transformer(case.model.config)
        model.load_state_dict(case.model.state_dict())
        names = [name for name, _ in model.named_parameters()]
        with torch.no_grad():
            weight = model.parameter(names[trial % len(names)])
            size = (0.01, 1.0, 20.0)[trial % 3]
            weight.add_(torch.from_numpy(rng.normal(size=tuple(weight.shape)) * size))
        other = replace(case, model=model)
        right = other.right()
        if right < other.domain.size():
            assert isinstance(other.check(proof, right + 1, tmp_path), Invalid)
        stale = case.certificate(proof, 1)
        outcome = check(stale.to_bytes(), tmp_path / "model") if right < other.domain.size() else None
        assert outcome is None or (isinstance(outcome, Invalid) and "weights_sha256" in outcome.why)


def test_a_raised_share_or_margin_is_refused(case: Case, found: Factored, tmp_path: Path) -> None:
    assert isinstance(case.check(found.proof, found.proved, tmp_path), Valid)
    for more in range(found.proved + 1, found.total + 1):
        assert isinstance(case.check(found.proof, more, tmp_path), Invalid)
    for margin in (Fraction(3), Fraction(50), Fraction(2) ** 90):
        raised = replace(case, margin=margin)
        outcome = raised.check(found.proof, raised.right() + 1, tmp_path)
        assert isinstance(outcome, Invalid)
    forall = {**case.certificate(found.proof, 1).theorem, "quantifier": "forall"}
    del forall["share"]
    assert "proved to hold on only" in refusal(case, found.proof, tmp_path, forall)


def refusal(case: Case, proof: Proof, folder: Path, theorem: Proof | None = None) -> str:
    """Why a certificate is refused; the theorem: that one input is right, or the one given."""
    data = {"format": "certiformer/1", "theorem": theorem or case.certificate(proof, 1).theorem, "proof": proof}
    case.model.save(folder / "model")
    outcome = check(canonical_json({**data, "seal": seal(data)}), folder / "model")
    assert isinstance(outcome, Invalid) and outcome.rule == "low_rank", outcome
    return outcome.why


def _entry(change: Callable[[list[int]], list[int]]) -> Callable[[Proof], Proof]:
    def changed(proof: Proof) -> Proof:
        first, *others = proof["words"]
        return {**proof, "words": [{**first, "leaders": change(list(first["leaders"]))}, *others]}

    return changed


MALFORMED: dict[str, tuple[Callable[[Proof], Proof], str]] = {
    "a leader after its word": (_entry(lambda x: [1, 1, *x[2:]]), "a leader comes after its word"),
    "a leader that is led": (_entry(lambda x: [0, 0, 1, *x[3:]]), "not its own leader"),
    "a leader that is left out": (_entry(lambda x: [-1, 0, *x[2:]]), "not its own leader"),
    "too few leaders": (_entry(lambda x: x[:-1]), "words of length"),
    "too many leaders": (_entry(lambda x: [*x, 0]), "at most|must have|words of length|items|hold"),
    "a leader that is no word": (_entry(lambda x: [-2, *x[1:]]), "must hold integers"),
    "a length twice": (lambda p: {**p, "words": [p["words"][0], p["words"][0]]}, "n must be|items"),
    "another length": (lambda p: {**p, "words": [{**p["words"][0], "n": 77}]}, "n must be"),
    "digits missing": (lambda p: {**p, "read": p["read"][:-1]}, "read must be"),
    "capital digits": (lambda p: {**p, "read": p["read"].upper()}, "read must be"),
    "no text": (lambda p: {**p, "write": 5}, "write must be"),
    "an infinity": (lambda p: {**p, "middle": "0000807f" + p["middle"][8:]}, "NaN or an infinity"),
    "ranks of another proof": (lambda p: {**p, "ranks": [p["ranks"][0] + 1, *p["ranks"][1:]]}, "narrow must be"),
    "more used than there are": (lambda p: {**p, "ranks": [p["ranks"][0], p["ranks"][0] + 1, 1]}, "are used, of"),
    "a huge rank": (lambda p: {**p, "ranks": [2**20, 1, 1]}, "a rank must be"),
    "a surplus key": (lambda p: {**p, "note": ""}, "unknown keys"),
    "no leaders": (lambda p: {**p, "words": [{"n": p["words"][0]["n"]}]}, "missing keys"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_proofs_are_refused(name: str, case: Case, found: Factored, tmp_path: Path) -> None:
    change, why = MALFORMED[name]
    said = refusal(case, change(found.proof), tmp_path)
    assert any(part in said for part in why.split("|")), said


def test_words_without_an_entry_prove_nothing(case: Case, found: Factored, tmp_path: Path) -> None:
    proof = {**found.proof, "words": []}
    assert "proved to hold on only 0 of" in refusal(case, proof, tmp_path)


SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "two layers": ({"layers": (LayerConfig(1, 2, 3), LayerConfig(0, 0, 3))}, "one layer"),
    "LayerNorm": ({"layer_norm": 1e-3}, "LayerNorm"),
    "gelu": ({"activation": "gelu"}, "activation 'gelu'"),
    "read out at the mean": ({"readout": "mean"}, "read-out 'last'"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_other_models_are_refused(name: str, case: Case, found: Factored, tmp_path: Path) -> None:
    changes, why = SHAPES[name]
    shape = {"layers": (LayerConfig(1, 2, 3),), "readout": "last", **changes}
    config = case.model.config
    other = TransformerConfig(config.d_model, config.n_ctx, config.d_vocab, config.d_vocab_out, **shape)
    changed = replace(case, model=Transformer.initialised(other, 0))
    assert why in refusal(changed, found.proof, tmp_path)
    verdict = cf.prove(changed.claim(Fraction(1, 100)), case.domain, engines={"low_rank"})
    assert isinstance(verdict, cf.Unknown) and "low_rank: low-rank factors are for" in verdict.reason


def test_other_claims_are_refused(case: Case, found: Factored, tmp_path: Path) -> None:
    proof = found.proof
    theorem = case.certificate(proof, 1).theorem
    assert "forall and at_least only" in refusal(case, proof, tmp_path, {**theorem, "quantifier": "at_most"})
    both = {"kind": "and", "parts": [theorem["body"], theorem["body"]]}
    assert "one `labels` or `label_margin` body" in refusal(case, proof, tmp_path, {**theorem, "body": both})
    outputs = {"kind": "never_outputs", "outputs": [0]}
    assert "one `labels` or `label_margin` body" in refusal(case, proof, tmp_path, {**theorem, "body": outputs})


def proved(case: Case, proof: Proof, folder: Path) -> int:
    """How many inputs the checker takes to be proved."""
    total = case.domain.size()
    outcome = case.check(proof, total, folder)
    if isinstance(outcome, Valid):
        return total
    assert isinstance(outcome, Invalid) and outcome.why.endswith(f"of {total} inputs"), outcome
    return int(outcome.why.split("only ")[1].split()[0])


def test_of_what_is_claimed_only_right_words_are_proved(case: Case, found: Factored, tmp_path: Path) -> None:
    """The words of the certificate less some, led at random: each proof is of right words among those claimed."""
    rng = np.random.default_rng(4)
    words = np.concatenate(list(case.domain.batches(1000)))
    assert len(found.proof["words"]) == 1
    right = case.which()
    for trial in range(40):
        claimed = rng.random(len(words)) < np.where(right, (0.1, 0.5)[trial % 2], 0.9)
        leaders = np.full(len(words), -1)
        roots: list[int] = []
        for i in np.flatnonzero(claimed).tolist():
            if not roots or rng.random() < 0.5:
                roots.append(i)
            leaders[i] = i if roots[-1] == i else roots[rng.integers(len(roots))]
        forged = {**found.proof, "words": [{**found.proof["words"][0], "leaders": leaders.tolist()}]}
        assert proved(case, forged, tmp_path) <= int((right & claimed).sum())


def hand_made(labels: list[int]) -> Case:
    """One token: the logits are (1, 0), (0, 1) and (1, 0)."""
    model = Transformer(TransformerConfig(2, 1, 3, 2, (LayerConfig(0, 0, 0),), readout="last", positional="none"))
    with torch.no_grad():
        model.parameter("embed.W_E").copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
        model.parameter("unembed.W_U").copy_(torch.eye(2))
        model.parameter("unembed.b_U").zero_()
    machine = LabelMachine(np.array([[1, 2, 3]] + [[0, 0, 0]] * 3, dtype=np.int32), np.array([-1, *labels]))
    return Case(model, machine, cf.sequences(range(3), 1))


@pytest.mark.parametrize(
    ("labels", "leaders", "expected"),
    [
        ([0, 0, 0], [0, 1, 2], 2),
        ([0, 0, 0], [0, 1, 0], 2),
        ([0, 0, 0], [0, 0, 0], 0),
        ([0, 0, 0], [-1, 1, 2], 1),
        ([0, 1, 0], [0, 1, 0], 3),
        ([0, 1, 0], [0, 0, 0], 2),
        ([0, 1, 1], [0, 1, 0], 2),
        ([0, 1, -1], [0, 1, 0], 2),
        ([-1, 1, 0], [0, 1, 0], 2),
        ([1, 0, 1], [0, 0, 0], 0),
    ],
)
def test_words_with_one_leader_stand_and_fall_together(
    labels: list[int], leaders: list[int], expected: int, tmp_path: Path
) -> None:
    """Those of the same label do, by what the worst of them loses; a label is each word's own."""
    case, eye = hand_made(labels), np.eye(2).astype("<f4").tobytes().hex()
    proof = {"rule": "low_rank", "ranks": [2, 2, 0], "narrow": eye, "widen": eye, "read": "", "write": "", "middle": ""}
    entry = {"n": 1, "leaders": leaders}
    assert proved(case, {**proof, "words": [entry]}, tmp_path) == expected <= case.right()


def test_a_machine_that_reads_the_last_token_first(tmp_path: Path) -> None:
    """Labels as the claim has them: of two tokens, the last, which the model says, or the first, which it does not."""
    model = Transformer(TransformerConfig(2, 2, 2, 2, (LayerConfig(0, 0, 0),), readout="last", positional="none"))
    with torch.no_grad():
        model.parameter("embed.W_E").copy_(torch.eye(2))
        model.parameter("unembed.W_U").copy_(torch.eye(2))
        model.parameter("unembed.b_U").zero_()
    transitions = np.array([[1, 2], [1, 1], [2, 2]], dtype=np.int32)  # the label is the token that is read first
    for last_first, right in ((True, 4), (False, 2)):
        machine = LabelMachine(transitions, np.array([-1, 0, 1]), last_first)
        case = Case(model, machine, cf.sequences(range(2), 2))
        found = case.find()
        assert case.right() == found.proved == right == proved(case, found.proof, tmp_path)


def test_circuits_and_codecs_with_bos_are_refused(case: Case, found: Factored, tmp_path: Path) -> None:
    """What the rule calculates is neither a circuit's output nor that of a model which reads BOS."""
    task = cf.get_task("quotes", length=3, letters=1)
    config = TransformerConfig(3, 4, 4, 2, (LayerConfig(1, 2, 3),), readout="last")
    model = Transformer.initialised(config, 0)
    circuit = cf.Circuit.from_edges(["input->a0.h0<v>", "a0.h0->logits"])
    claim = cf.Labels(model, task, circuit=circuit, ablation="zero")
    refused, why = factorise(claim, task.domain, 0)
    assert refused is None and "not circuits" in why
    plain, _ = factorise(cf.Labels(model, task), task.domain, 0)
    assert plain is not None
    with_bos = cf.Labels(model, task, codec=replace(task.codec, bos=True))
    assert factorise(with_bos, task.domain, 0)[0] is None
    for stated, reason in ((claim, "not for circuits"), (with_bos, "codecs without BOS")):
        theorem = {**stated.at_least(0).theorem(), "domain": domain_to_json(task.domain)}
        model.save(tmp_path / "m")
        outcome = check(Certificate.of(theorem, plain.proof).to_bytes(), tmp_path / "m")
        assert isinstance(outcome, Invalid) and reason in outcome.why, outcome
