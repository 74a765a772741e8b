"""Rule `low_rank`: every bound against exact logits, every proof against enumeration, with tolerance zero."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import flint
import numpy as np
import pytest
import torch

import certiformer as cf
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.transformer import Transformer
from certiformer.proofs import Invalid, Valid
from certiformer.proofs.format import Rejected
from certiformer.proofs.low_rank_layer import Factors, Layer
from certiformer.proofs.low_rank_words import Tables
from certiformer.proofs.model import read_model
from certiformer.proofs.near import Near, Work, up
from certiformer.verifier.low_rank import Ranks, factorise
from certiformer.verifier.verdicts import Proved

from .low_rank_cases import exact_logits, lead, precision, random_case, random_factors, random_model


@pytest.mark.parametrize("seed", range(60))
def test_every_bound_of_a_lead_holds_of_exact_logits(seed: int, tmp_path: Path) -> None:
    """At points of any kind: the word's own coordinates, another word's, and random ones."""
    rng = np.random.default_rng(seed)
    model, n = random_model(rng), int(rng.integers(1, 4))
    model.save(tmp_path / "m")
    tokens = model.config.d_vocab
    every = np.array(list(itertools.product(range(tokens), repeat=n)))
    words = every[np.sort(rng.permutation(len(every))[:24])]
    used, outputs = 0, model.config.d_vocab_out
    with np.errstate(all="ignore"):
        layer = Layer(read_model(tmp_path / "m"), random_factors(rng, model), Work())
        try:
            tables = Tables(layer, [np.unique(column) for column in words.T])
        except Rejected as error:
            assert "scores are known too roughly" in str(error)
            return
        found = tables.coordinates(words)
        used = layer.used
        points = found.inner[rng.integers(0, len(words), len(words))].copy()
        points[::3] = found.inner[::3]
        points[1::5] += rng.normal(size=points[1::5].shape) * 0.1
        points[:, used:] = points[:1, used:]
        apart = Near(found.inner - points, 0.0, layer.work)
        apart = Near(apart.mid, float(up(2.0**-52 * apart.norm())), layer.work)
        left = up(apart.lengths(layer.inner_gram) + found.left)
        logits = tables.logits(points[:, :used], points[:1, used:])
        rows = np.arange(len(words))
        bounds = np.stack([logits.leads(rows, np.full(len(words), y), left) for y in range(outputs)], axis=1)
    with precision(600):
        for row, word in enumerate(words):
            exact = exact_logits(model, tuple(word))
            for y in range(outputs):
                if not found.good[row] or np.isnan(bounds[row, y]):
                    continue
                if outputs == 1:
                    assert bounds[row, y] == np.inf
                elif bounds[row, y] > -np.inf:
                    assert flint.arb(float(bounds[row, y])) <= lead(exact, y)


def test_with_factors_of_everything_only_rounding_is_lost(tmp_path: Path) -> None:
    """P and R the identity, U V the exact product: the bound is within 1e-9 of the exact lead, and below it."""
    rng = np.random.default_rng(5)
    config = TransformerConfig(4, 2, 5, 3, (LayerConfig(2, 3, 6),), readout="last")
    model = Transformer(config)
    with torch.no_grad():
        for _, weight in model.named_parameters():
            weight.copy_(torch.from_numpy(rng.integers(-8, 9, size=tuple(weight.shape)) / 8))
    model.save(tmp_path / "m")
    w = {name: x.detach().numpy().astype(np.float64) for name, x in model.named_parameters()}
    written = w["blocks.0.mlp.W_out"] @ w["unembed.W_U"]
    factors = Factors(np.eye(4), np.eye(4), written, np.eye(3), np.ones((1, 6)), 4)
    words = np.array(list(itertools.product(range(5), repeat=2)))
    layer = Layer(read_model(tmp_path / "m"), factors, Work())
    tables = Tables(layer, [np.arange(5), np.arange(5)])
    found = tables.coordinates(words)
    logits = tables.logits(found.inner, np.zeros((1, 0)))
    with precision(300):
        for y in range(3):
            bounds = logits.leads(np.arange(25), np.full(25, y), found.left)
            for word, bound in zip(words.tolist(), bounds.tolist(), strict=True):
                exact = lead(exact_logits(model, tuple(word)), y)
                assert flint.arb(bound) <= exact and exact - bound < 1e-9


@pytest.mark.parametrize("seed", range(16))
def test_what_is_proved_is_true(seed: int, tmp_path: Path) -> None:
    """At the ranks that the engine takes, at the least, and at the greatest."""
    case = random_case(seed)
    right, d = case.right(), case.model.config.d_model
    most = len(case.outputs)
    for ranks in (None, Ranks(1, 1, 1), Ranks(d, d, most), Ranks(d, 1, most)):
        found = case.find(ranks)
        assert found.proved <= right and found.total == case.domain.size()
        outcome = case.check(found.proof, found.proved, tmp_path)
        rough = isinstance(outcome, Invalid) and outcome.why == "the scores are known too roughly"
        assert isinstance(outcome, Valid) or rough
        if found.proved < found.total:
            more = case.check(found.proof, found.proved + 1, tmp_path)
            assert isinstance(more, Invalid)


def test_most_right_inputs_are_proved(tmp_path: Path) -> None:
    """Of models of ordinary size nearly all: the rule is not vacuous."""
    proved = right = 0
    for seed in range(100, 112):
        case = random_case(seed, wrong=0.1, scale=1.0)
        found = case.find()
        assert isinstance(case.check(found.proof, found.proved, tmp_path), Valid)
        proved, right = proved + found.proved, right + case.right()
    assert right > 200 and proved > 0.9 * right


def test_modular_addition_of_113(tmp_path: Path) -> None:
    """All 12,769 inputs, by a proof that takes less than a 25th of what the float32 run of all inputs does."""
    found = cf.models.zoo.load("modular-addition-113")
    claim = cf.Labels(found.model, found.task)
    verdict = cf.prove(claim, found.task.domain, engines={"low_rank"})
    assert isinstance(verdict, Proved) and verdict.certificate.rule == "low_rank"
    found.model.save(tmp_path / "m")
    outcome = cf.check(verdict.certificate, tmp_path / "m", expect=claim, domain=found.task.domain)
    assert isinstance(outcome, Valid)
    margin = cf.prove(cf.TaskMargin(found.model, found.task, 1.5), found.task.domain, engines={"low_rank"})
    assert isinstance(margin, Proved)
    wrong = cf.prove(cf.TaskMargin(found.model, found.task, 3.5), found.task.domain, engines={"low_rank"})
    assert not isinstance(wrong, Proved)
    few, _ = factorise(claim, found.task.domain, found.task.domain.size(), ranks=Ranks(16, 8, 6))
    assert few is not None and 0.4 < few.proved / few.total < 0.9 and few.points < 0.6 * few.proved
    share = cf.Accuracy(found.model, found.task, at_least=Fraction(few.proved, few.total))
    assert isinstance(cf.prove(share, found.task.domain, engines={"low_rank"}), Proved)
