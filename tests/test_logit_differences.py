"""Logit differences, by enumeration, by rule `paths` and from a search: against exact logits with tolerance zero, and
what must be refused."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import certiformer as cf
from certiformer.models.codec import Codec
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.languages import sorted_sequences
from certiformer.models.transformer import Transformer
from certiformer.proofs import Valid
from certiformer.verifier import precise
from certiformer.verifier.logit_difference import LogitDifferenceBody
from certiformer.verifier.path_bounds import Margins
from certiformer.verifier.reading import FALSE, TRUE
from certiformer.verifier.recheck import objection
from certiformer.verifier.theorems import domain_to_json
from certiformer.verifier.verdicts import Certificate
from certiformer.verifier.worst_case import certified

Json = Any
SHAPES = [
    (1, 1, 0, "last"),
    (1, 4, 0, "last"),
    (1, 4, 6, "last"),
    (2, 1, 0, "last"),
    (2, 4, 5, "last"),
    (2, 2, 4, "mean"),
]
"""Layers, heads of each, neurons of each, read-out."""


def model_of(seed: int, shape: tuple[int, int, int, str], scale: float = 1.0, vocab: int = 3) -> Transformer:
    layers, heads, neurons, readout = shape
    causal = layers > 1 or readout == "mean" or bool(seed % 2)
    config = TransformerConfig(
        6,
        4,
        vocab,
        3,
        (LayerConfig(heads, 2, neurons),) * layers,
        causal=causal,
        readout=readout,  # type: ignore[arg-type]
    )
    model, generator = Transformer(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def codec_of(model: Transformer) -> Codec:
    tokens, outputs = tuple(range(model.config.d_vocab)), tuple(range(model.config.d_vocab_out))
    return Codec(tokens, False, "categorical", outputs, max_len=model.config.n_ctx)


def domain_of(model: Transformer, n: int = 3) -> cf.Language:
    return cf.sequences(range(model.config.d_vocab), n)


def exactly(model: Transformer, pair: tuple[int, int], n: int = 3) -> tuple[Fraction, Fraction]:
    """Between which two numbers, 1e-25 apart, the least difference over all words lies."""
    words = itertools.product(range(model.config.d_vocab), repeat=n)
    with precise.precision(256):
        rows = [precise._logits(model, list(word), {}) for word in words]
        gaps = [row[0, pair[0]] - row[0, pair[1]] for row in rows]
        ends = []
        for gap in gaps:
            mid, rad = (Fraction(int(x.p), int(x.q)) for x in (gap.mid().fmpq(), gap.rad().fmpq()))
            ends.append((mid - rad, mid + rad))
    low, high = min(end[0] for end in ends), min(end[1] for end in ends)
    assert high - low < Fraction(1, 10**25)
    return low, high


def claimed(model: Transformer, least: float, pair: tuple[int, int] = (0, 1)) -> cf.Claim:
    return cf.LogitDifference(model, *pair, least, codec=codec_of(model))


def forged(claim: cf.Claim, domain: cf.Language, proof: Json) -> Certificate:
    return Certificate.of({**claim.theorem(), "domain": domain_to_json(domain)}, proof)


@cache
def found(number: int) -> tuple[Transformer, cf.Proved, tuple[Fraction, Fraction]]:
    """A model, what a search proves of it, and what is true."""
    model = model_of(number, SHAPES[number % len(SHAPES)], scale=(0.3, 0.6)[number // len(SHAPES) % 2])
    result = cf.least_difference(model, 0, 1, domain_of(model), codec=codec_of(model), gap=0.2, seconds=20)
    verdict = result.prove()
    assert isinstance(verdict, cf.Proved), verdict
    return model, verdict, exactly(model, (0, 1))


def proof_of(number: int) -> Json:
    return json.loads(found(number)[1].certificate.to_bytes())["proof"]


@pytest.mark.parametrize("number", range(12))
def test_what_a_search_proves_is_true_and_tight(number: int) -> None:
    model, verdict, (low, high) = found(number)
    assert Fraction(certified(verdict)) <= high
    assert certified(verdict) >= float(low) - 0.21 - 1e-4 * abs(float(low))
    assert verdict.certificate.rule == "paths"
    assert objection(verdict.certificate, model) is None


@pytest.mark.parametrize("number", range(12))
def test_no_larger_bound_is_accepted(number: int) -> None:
    """The same splits, for a bound that the least difference is just below."""
    model, _, (_, high) = found(number)
    least = np.nextafter(float(high), np.inf)
    if Fraction(least) <= high:
        least = np.nextafter(least, np.inf)
    claim = claimed(model, float(least))
    assert objection(forged(claim, domain_of(model), proof_of(number)), model) is not None
    refuted = cf.prove(claim, domain_of(model))
    assert isinstance(refuted, cf.Refuted) and isinstance(refuted.evidence, cf.verifier.Witness)
    assert claim.holds_really(refuted.evidence) is False
    below = claimed(model, float(np.nextafter(float(high), -np.inf)) - 1e-12)
    assert isinstance(cf.prove(below, domain_of(model), engines="enumeration"), cf.Proved)


@pytest.mark.parametrize("number", range(10))
def test_paths_prove_what_is_true_by_a_little(number: int) -> None:
    model, _, (low, high) = found(number)
    near = 0.1 * (1 + abs(float(low)))
    verdict = cf.prove(claimed(model, float(low) - near), domain_of(model), engines="paths", seconds=20)
    assert isinstance(verdict, cf.Proved) and verdict.certificate.rule == "paths"
    verdict = cf.prove(claimed(model, float(high) + near), domain_of(model), engines="paths", seconds=20)
    assert isinstance(verdict, cf.Unknown) and "the difference is at least" in verdict.reason
    bound = float(verdict.reason.rsplit("at least ", 1)[1].split()[0])
    assert Fraction(bound) <= high + Fraction(1, 10**4) * (1 + abs(high))  # six digits are shown


def test_shares_of_the_inputs() -> None:
    """Of the words, as many have a difference of at least so much as running them all says, and not one more."""
    for number in range(4):
        model, _, _ = found(number)
        domain, words = domain_of(model), torch.tensor(list(itertools.product(range(3), repeat=3)))
        with torch.no_grad():
            logits = copy.deepcopy(model).double()(words)
        gaps = np.sort((logits[:, 0] - logits[:, 1]).numpy())
        claim = claimed(model, float(gaps[8] + gaps[9]) / 2)
        true = Fraction(int((gaps > float(claim.body.at_least)).sum()), len(gaps))  # type: ignore[attr-defined]
        assert true == Fraction(18, 27)
        assert isinstance(cf.prove(claim.at_least(true), domain, engines="enumeration"), cf.Proved)
        assert isinstance(cf.prove(claim.at_least(true + Fraction(1, 27)), domain, engines="enumeration"), cf.Refuted)
        verdict = cf.prove(claim.at_least(Fraction(10, 27)), domain, engines="paths", seconds=10)
        assert isinstance(verdict, cf.Proved)
        proof = json.loads(verdict.certificate.to_bytes())["proof"]
        more = claim.at_least(true + Fraction(1, 27))
        assert objection(forged(more, domain, proof), model) is not None
        assert not isinstance(cf.prove(more, domain, engines="paths", seconds=1), cf.Proved)


def test_several_lengths_and_other_domains() -> None:
    model = model_of(7, (2, 2, 0, "last"), 0.5)
    for domain in (cf.sequences(range(3), range(1, 5)), sorted_sequences(range(3), range(2, 5))):
        words = [row for ids in domain.batches() for row in ids]
        with torch.no_grad():
            logits = [copy.deepcopy(model).double()(torch.from_numpy(word)[None])[0] for word in words]
        gaps = [float(row[0] - row[1]) for row in logits]
        near = 0.01 * (1 + abs(min(gaps)))
        for least, true in ((min(gaps) - near, True), (min(gaps) + near, False)):
            verdict = cf.prove(claimed(model, least), domain, engines="paths", seconds=10)
            assert isinstance(verdict, cf.Proved) is true, verdict


# --- certificates that must be refused

Mutation = Callable[[Json], object]


def nodes(proof: Json) -> Json:
    return proof["trees"][0]["tree"]


def first_split(proof: Json) -> Json:
    return next(node for node in nodes(proof) if node[0] == "tokens")


def leaf_at(proof: Json, entry: Json) -> None:
    place = next(k for k, node in enumerate(nodes(proof)) if node[0] == "leaf")
    nodes(proof)[place] = entry


MUTATIONS: dict[str, Mutation] = {
    "a leaf is left out": lambda proof: nodes(proof).pop(),
    "a leaf is open": lambda proof: leaf_at(proof, ["open"]),
    "a leaf more": lambda proof: nodes(proof).append(["leaf", []]),
    "a token of a part is left out": lambda proof: first_split(proof)[2].__setitem__(0, first_split(proof)[2][0][1:]),
    "two parts overlap": lambda proof: first_split(proof)[2].__setitem__(1, first_split(proof)[2][0]),
    "a part is left out": lambda proof: first_split(proof)[2].pop(),
    "a split of another kind": lambda proof: first_split(proof).__setitem__(0, "states"),
    "a position that is none": lambda proof: first_split(proof).__setitem__(1, 3),
    "a token that is none": lambda proof: first_split(proof)[2][0].__setitem__(0, 3),
    "no tree": lambda proof: proof["trees"].clear(),
    "a tree twice": lambda proof: proof["trees"].append(proof["trees"][0]),
    "of words with a label": lambda proof: proof["trees"][0].__setitem__("label", 0),
    "with a last token": lambda proof: proof["trees"][0].__setitem__("last", 0),
    "of another length": lambda proof: proof["trees"][0].__setitem__("n", 2),
    "another rival": lambda proof: leaf_at(proof, ["leaf", [[2, 64]]]),
    "its own rival": lambda proof: leaf_at(proof, ["leaf", [[0, 64]]]),
    "no levels": lambda proof: leaf_at(proof, ["leaf", [[1, 0]]]),
    "as for outputs never given": lambda proof: leaf_at(proof, ["leaf", [[1, 0, 64]]]),
    "no states": lambda proof: proof["states"].clear(),
}
SPLIT = 7
"""A search whose proof has splits."""


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutated_certificates_are_refused(name: str) -> None:
    model, verdict, _ = found(SPLIT)
    proof = proof_of(SPLIT)
    claim = claimed(model, certified(verdict))
    assert objection(forged(claim, domain_of(model), proof), model) is None
    MUTATIONS[name](proof)
    assert objection(forged(claim, domain_of(model), proof), model) is not None


def test_other_splits_prove_no_more_than_is_true() -> None:
    """Tokens moved between parts: still a proof perhaps, but of the same claim; and none of a false one."""
    rng = np.random.default_rng(3)
    for number in (1, SPLIT, 10):
        model, _, (_, high) = found(number)
        false, domain = claimed(model, float(high) + 1e-6), domain_of(model)
        for _ in range(6):
            proof = proof_of(number)
            for node in nodes(proof):
                if node[0] == "tokens":
                    tokens = rng.permutation(sorted(t for part in node[2] for t in part)).tolist()
                    sizes = [len(part) for part in node[2]]
                    node[2] = [sorted(tokens[sum(sizes[:k]) : sum(sizes[: k + 1])]) for k in range(len(sizes))]
            assert objection(forged(false, domain, proof), model) is not None


def test_a_certificate_is_about_its_own_weights_and_outputs() -> None:
    for number in range(6):
        model, verdict, (low, _) = found(number)
        least, proof, domain = certified(verdict), proof_of(number), domain_of(model)
        for pair in ((1, 0), (0, 2), (2, 1)):
            if exactly(model, pair)[1] < Fraction(least):
                assert objection(forged(claimed(model, least, pair), domain, proof), model) is not None
        worse = copy.deepcopy(model)
        with torch.no_grad():
            worse.parameter("unembed.b_U")[0] -= 1.01 * (float(low) - least) + 1e-3
        assert exactly(worse, (0, 1))[1] < Fraction(least)
        assert objection(forged(claimed(worse, least), domain, proof), worse) is not None
        assert objection(verdict.certificate, worse) is not None  # and the hash says whose it is


BODIES: dict[str, dict[str, object]] = {
    "no output": {"output": 9},
    "its own rival": {"rival": 0},
    "no number": {"at_least": None},
    "another key": {"more": 1},
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_none(name: str) -> None:
    model, verdict, _ = found(1)
    theorem = json.loads(json.dumps(dict(verdict.certificate.theorem)))
    theorem["body"] |= BODIES[name]
    assert objection(Certificate.of(theorem, proof_of(1)), model) is not None


def test_a_wrong_engine_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that are too high by some: the search believes them, the checker does not."""
    model, _, (_, high) = found(SPLIT)
    kept = Margins.least
    monkeypatch.setattr(Margins, "least", lambda self: kept(self) + 3.0)
    result = cf.least_difference(model, 0, 1, domain_of(model), codec=codec_of(model), gap=0.02, seconds=10)
    verdict = result.prove()
    assert isinstance(verdict, cf.Unknown) or Fraction(certified(verdict)) <= high
    monkeypatch.setattr(Margins, "least", lambda self: kept(self) + 100.0)
    claim = claimed(model, float(high) + 0.1)
    verdict = cf.prove(claim, domain_of(model), engines="paths", seconds=10)
    assert isinstance(verdict, cf.Unknown) and "the independent checker does not accept" in verdict.reason


# --- beyond enumeration


@pytest.mark.parametrize(
    ("seed", "vocab", "n", "heads", "scale"), [(1, 32, 8, 4, 1.5), (0, 16, 10, 2, 2.0), (3, 16, 10, 2, 2.0)]
)
def test_the_checker_follows_where_scores_are_hundreds_apart(
    seed: int, vocab: int, n: int, heads: int, scale: float
) -> None:
    """Weights have many orders of magnitude: engine and checker both have to come near the least means, as relaxations
    of neurons change by jumps with them."""
    config = TransformerConfig(8, n, vocab, 3, (LayerConfig(heads, 4, 6),), causal=False, readout="last")
    model, generator = Transformer(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    result = cf.least_difference(model, 0, 1, domain_of(model, n), codec=codec_of(model), seconds=1e-9)
    assert result.groups == 1
    verdict = result.prove()
    assert isinstance(verdict, cf.Proved) and certified(verdict) == result.lower


def four_heads(vocab: int, n: int) -> Transformer:
    model, generator = Transformer(TransformerConfig(16, n, vocab, 4, (LayerConfig(4, 4, 0),), readout="last")), None
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.5 / parameter.shape[-2] ** 0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def test_all_tokens_free_beyond_enumeration(tmp_path: Path) -> None:
    """Both sides of 16^10 inputs; the least difference refuted above what some input has."""
    model = four_heads(16, 10)
    domain = cf.sequences(range(16), 10)
    model.save(tmp_path / "m")
    for pair in ((0, 1), (1, 0)):
        result = cf.least_difference(model, *pair, domain, codec=codec_of(model), gap=4.0, seconds=20)
        assert result.gap <= 4.0
        claim = claimed(model, result.lower, pair)
        verdict = result.prove()
        assert isinstance(verdict, cf.Proved)
        checked = cf.check(verdict.certificate, tmp_path / "m", expect=claim, domain=domain)
        assert isinstance(checked, Valid)
        assert cf.check(verdict.certificate, tmp_path / "m", expect=claimed(model, result.upper, pair)) != checked
        false = claimed(model, result.upper + 0.5, pair)
        refuted = cf.prove(false, domain, seconds=20)
        assert isinstance(refuted, cf.Refuted) and isinstance(refuted.evidence, cf.verifier.Witness)
        body = false.body
        assert isinstance(body, LogitDifferenceBody)
        assert int(body.judge(false.ids(refuted.evidence), "real")[0]) == FALSE
        assert int(body.judge(false.ids(refuted.evidence), "precise")[0]) == FALSE


# --- the claim by itself


def test_equal_logits_are_decided_in_high_precision() -> None:
    """A difference that is exactly what is claimed: float64 balls leave it open."""
    model = model_of(1, (1, 1, 0, "last"), 0.5)
    with torch.no_grad():
        model.parameter("unembed.W_U").fill_(1.0)
        model.parameter("unembed.b_U").copy_(torch.tensor([0.75, 0.25, 0.0]))
    domain = domain_of(model, 2)
    claim = claimed(model, 0.5)
    assert int(claim.body.judge((torch.tensor([[0, 1]]),), "real")[0]) == 0
    verdict = cf.prove(claim, domain)
    assert not isinstance(verdict, cf.Refuted)
    with torch.no_grad():
        model.parameter("unembed.W_U").zero_()
    claim = claimed(model, 0.5)
    assert int(claim.body.judge((torch.tensor([[0, 1]]),), "precise")[0]) == TRUE
    assert isinstance(cf.prove(claim, domain), cf.Proved)
    assert isinstance(cf.prove(claimed(model, float(np.nextafter(0.5, 1))), domain), cf.Refuted)


def test_bad_input() -> None:
    model = model_of(1, (1, 1, 0, "last"))
    codec = codec_of(model)
    for output, rival, why in ((9, 0, "not among"), (0, 9, "not among"), (1, 1, "both 1")):
        with pytest.raises(cf.InputError, match=why):
            cf.LogitDifference(model, output, rival, 0.5, codec=codec)
    for least in (float("nan"), float("inf"), Fraction(1, 3), "x"):
        with pytest.raises(cf.InputError, match="a difference"):
            cf.LogitDifference(model, 0, 1, least, codec=codec)  # type: ignore[arg-type]
    scalar = Codec(codec.vocab, False, "scalar", (0, 1), (0.0, 1.0), max_len=4)
    one = Transformer(replace(model.config, d_vocab_out=1))
    with pytest.raises(cf.InputError, match="scalar"):
        cf.LogitDifference(one, 0, 1, 0.5, codec=scalar)


def test_only_the_result_of_a_search_is_proved() -> None:
    model = four_heads(8, 6)
    seen: list[cf.verifier.worst_case.LeastDifference] = []
    result = cf.least_difference(
        model, 0, 1, cf.sequences(range(8), 6), codec=codec_of(model), seconds=1.5, progress=seen.append
    )
    assert seen and seen[-1].lower <= result.lower
    with pytest.raises(cf.InputError, match="goes on"):
        seen[0].prove()
    body = replace(claimed(model, 1.0).body, at_least=Fraction(2))  # type: ignore[type-var]
    assert "at least 2" in body.describe() and body.kind == "logit_difference"  # type: ignore[union-attr]
