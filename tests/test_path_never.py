"""Outputs that are never given, by rule `paths`: against enumeration with tolerance zero, and what must be refused."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import certiformer as cf
from certiformer.models.codec import Codec
from certiformer.models.transformer import Transformer
from certiformer.verifier import path_search
from certiformer.verifier.bodies import NeverOutputsBody
from certiformer.verifier.claims import Claim
from certiformer.verifier.recheck import objection
from certiformer.verifier.theorems import domain_to_json
from certiformer.verifier.verdicts import Certificate

from .path_models import random_machine, random_model

LENGTH = 3
Json = Any


def behind(model: Transformer, output: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[word]: by how much an output's logit is below the greatest of the others, in float64."""
    words = torch.tensor(list(itertools.product(range(model.config.d_vocab), repeat=LENGTH)))
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(words)
    others = [w for w in range(model.config.d_vocab_out) if w != output]
    found: np.ndarray[Any, np.dtype[np.float64]] = (logits[:, others].amax(1) - logits[:, output]).numpy()
    return found


def lowered(model: Transformer, output: int, by: float) -> Transformer:
    """The same model, but that this output's logit is lower (by about as much; what it does is found by running it)."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        found.parameter("unembed.b_U")[output] -= by
    return found


def case(seed: int, rank: float) -> tuple[Claim, cf.Language, int, int]:
    """That an output is never given, by a model that is changed so that it is on about `rank` of the words (or none);
    on how many it is not, and how many there are."""
    rng = np.random.default_rng(seed)
    model = random_model(rng, scale=float(rng.choice([0.3, 0.6])))
    output = int(rng.integers(model.config.d_vocab_out))
    sorted_ = np.sort(behind(model, output))
    place = int(rank * len(sorted_))
    spread = float(sorted_[-1] - sorted_[0]) + 1e-3
    by = -float(sorted_[0]) + 0.05 * spread if not place else -float(sorted_[place - 1] + sorted_[place]) / 2
    model = lowered(model, output, by)
    codec = Codec(
        tuple(range(model.config.d_vocab)),
        False,
        "categorical",
        tuple(range(model.config.d_vocab_out)),
        max_len=model.config.n_ctx,
    )
    states = random_machine(rng, 2, model.config.d_vocab, 1)
    claim = cf.NeverOutputs(model, [output], codec=codec, states=states)
    against = behind(model, output)
    return claim, cf.sequences(codec.vocab, LENGTH), int((against > 0).sum()), len(against)


def prove(claim: Claim, domain: cf.Language, seconds: float = 20.0) -> cf.Verdict:
    return cf.prove(claim, domain, engines={"paths"}, seconds=seconds)


@cache
def proved(seed: int) -> tuple[Claim, cf.Language, Certificate]:
    """A claim that is true, and its certificate."""
    claim, domain, _, _ = case(seed, 0.0)
    verdict = prove(claim, domain)
    assert isinstance(verdict, cf.Proved) and isinstance(verdict.certificate, Certificate), verdict
    return claim, domain, verdict.certificate


@pytest.mark.parametrize("seed", range(10))
def test_what_is_never_given_is_proved(seed: int) -> None:
    _, _, never, total = case(seed, 0.0)
    assert never == total
    claim, _, certificate = proved(seed)
    assert objection(certificate, claim.subject.model) is None


@pytest.mark.parametrize("seed", range(10))
def test_no_more_is_proved_than_is_true(seed: int) -> None:
    """Of a model that gives the output on some words: the share on which it does not, and not one word more."""
    claim, domain, never, total = case(seed, 0.2)
    assert 0 < total - never
    assert not isinstance(prove(claim, domain, 0.5), cf.Proved)
    assert not isinstance(prove(claim.at_least(Fraction(never + 1, total)), domain, 0.5), cf.Proved)
    verdict = prove(claim.at_least(Fraction(max(0, never - 1), total)), domain)
    if not isinstance(verdict, cf.Proved):  # some are too near the boundary for floats
        assert np.abs(behind(claim.subject.model, domain.vocab.index(claim.body.outputs[0]))).min() < 1e-3  # type: ignore[attr-defined]
        return
    assert isinstance(verdict.certificate, Certificate)
    proof = json.loads(verdict.certificate.to_bytes())["proof"]
    for false in (claim, claim.at_least(Fraction(never + 1, total))):
        forged = Certificate.of({**false.theorem(), "domain": domain_to_json(domain)}, proof)
        assert objection(forged, claim.subject.model) is not None


def test_one_word_makes_it_false() -> None:
    """On one word of all the output is given, by a little."""
    for seed in range(6):
        claim, domain, certificate = proved(seed)
        model, (output,) = claim.subject.model, claim.body.outputs  # type: ignore[attr-defined]
        near = np.sort(behind(model, output))
        if near[1] - near[0] < 1e-4:
            continue
        worse = lowered(model, output, -float(near[0]) - min(1e-3, float(near[1] - near[0]) / 2))
        assert int((behind(worse, output) < 0).sum()) == 1
        false = cf.NeverOutputs(worse, [output], codec=claim.subject.codec)
        assert not isinstance(prove(false, domain, 0.5), cf.Proved)
        proof = json.loads(certificate.to_bytes())["proof"]
        forged = Certificate.of({**false.theorem(), "domain": domain_to_json(domain)}, proof)
        assert objection(forged, worse) is not None


def leaf(proof: Json) -> Json:
    return next(node for tree in proof["trees"] for node in tree["tree"] if node[0] in ("leaf", "shared"))


def entry(proof: Json) -> Json:
    return leaf(proof)[1][0]


MUTATIONS: dict[str, Callable[[Json], object]] = {
    "no entry": lambda proof: leaf(proof)[1].clear(),
    "two entries": lambda proof: leaf(proof)[1].append(list(entry(proof))),
    "its own rival": lambda proof: entry(proof).__setitem__(1, entry(proof)[0]),
    "rival and output exchanged": lambda proof: leaf(proof)[1].__setitem__(0, [entry(proof)[k] for k in (1, 0, 2)]),
    "a rival that is none": lambda proof: entry(proof).__setitem__(1, 99),
    "no levels": lambda proof: entry(proof).pop(),
    "levels 0": lambda proof: entry(proof).__setitem__(2, 0),
    "as for a label": lambda proof: leaf(proof).__setitem__(1, []),
    "a label": lambda proof: proof["trees"][0].__setitem__("label", 0),
    "a last token": lambda proof: proof["trees"][0].__setitem__("last", 0),
    "another length": lambda proof: proof["trees"][0].__setitem__("n", LENGTH + 1),
    "no trees": lambda proof: proof["trees"].clear(),
    "a tree twice": lambda proof: proof["trees"].append(proof["trees"][0]),
    "open": lambda proof: proof["trees"][0].__setitem__("tree", [["open"]]),
    "an open part": lambda proof: leaf(proof).__setitem__(slice(None), ["open"]),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutated_certificates_are_refused(name: str) -> None:
    refused = 0
    for seed in range(4):
        claim, domain, certificate = proved(seed)
        proof = json.loads(certificate.to_bytes())["proof"]
        MUTATIONS[name](proof)
        forged = Certificate.of({**claim.theorem(), "domain": domain_to_json(domain)}, proof)
        refused += objection(forged, claim.subject.model) is not None
    assert refused == 4


def test_a_certificate_is_about_its_own_outputs_and_weights() -> None:
    for seed in range(6):
        claim, domain, certificate = proved(seed)
        proof = json.loads(certificate.to_bytes())["proof"]
        (output,) = claim.body.outputs  # type: ignore[attr-defined]
        for other in claim.subject.codec.outputs:
            if other != output:
                wrong = replace(claim, body=NeverOutputsBody(claim.subject, (other,)))
                forged = Certificate.of({**wrong.theorem(), "domain": domain_to_json(domain)}, proof)
                assert objection(forged, claim.subject.model) is not None
        assert objection(certificate, lowered(claim.subject.model, output, -1e-3)) is not None


@pytest.mark.parametrize("seed", range(4))
def test_two_outputs_at_once(seed: int) -> None:
    """Each has its rival, which may be the other one where that has a rival too."""
    rng = np.random.default_rng(seed)
    while (model := random_model(rng, scale=0.4)).config.d_vocab_out < 3:
        pass
    words = torch.tensor(list(itertools.product(range(model.config.d_vocab), repeat=LENGTH)))
    with torch.no_grad():
        logits = model(words)
        for output in (0, 2):
            model.parameter("unembed.b_U")[output] -= (logits[:, output] - logits[:, 1]).max() + 0.1
    tokens, outputs = tuple(range(model.config.d_vocab)), tuple(range(model.config.d_vocab_out))
    codec = Codec(tokens, False, "categorical", outputs, max_len=model.config.n_ctx)
    claim, domain = cf.NeverOutputs(model, [2, 0], codec=codec), cf.sequences(tokens, LENGTH)
    assert isinstance(prove(claim, domain), cf.Proved)
    every = cf.NeverOutputs(model, outputs, codec=codec)
    assert not isinstance(prove(every, domain, 1.0), cf.Proved)


def test_a_wrong_engine_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that takes all words for proved: the checker does not."""
    claim, domain, never, total = case(3, 0.2)
    assert never < total
    monkeypatch.setattr(path_search, "_right", lambda found, least, sizes: (list(sizes), {}))
    verdict = prove(claim, domain, 0.5)
    assert isinstance(verdict, cf.Unknown) and "the independent checker does not accept" in verdict.reason
