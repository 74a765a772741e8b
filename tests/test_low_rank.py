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

from .low_rank_cases import (
    Case,
    exact,
    exact_logits,
    exact_stream,
    huge_model,
    labels_of,
    lead,
    precision,
    random_case,
    random_factors,
    random_model,
)


@pytest.mark.parametrize("seed", range(60))
def test_every_bound_of_a_lead_holds_of_exact_logits(seed: int, tmp_path: Path) -> None:
    """At points of any kind: the word's own coordinates, another word's, and random ones."""
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    check_leads(rng, model, random_factors(rng, model), tmp_path)


@pytest.mark.parametrize("seed", range(60))
def test_numbers_beyond_float64_prove_nothing_false(seed: int, tmp_path: Path) -> None:
    """An infinity that is no number's enclosure is not greater than anything."""
    rng = np.random.default_rng(seed)
    model = huge_model(rng)
    check_leads(rng, model, random_factors(rng, model, (1.0, 1e20, 1e38)), tmp_path)


@pytest.mark.parametrize("seed", range(12))
def test_the_engine_says_nothing_false_of_numbers_beyond_float64(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    model = huge_model(rng)
    machine = labels_of(model, (2,), rng, 0.3)
    case = Case(model, machine, cf.sequences(range(model.config.d_vocab), 2))
    found, why = factorise(case.claim(), case.domain, case.domain.size())
    if found is None:
        assert "too large for float64" in why
    else:
        right = case.right()
        assert isinstance(case.check(found.proof, right + 1, tmp_path), Invalid) or right == found.total


def check_leads(rng: np.random.Generator, model: Transformer, factors: Factors, tmp_path: Path) -> None:
    """Bounds for random words, at random points, are at most the exact leads."""
    n = int(rng.integers(1, 4))
    model.save(tmp_path / "m")
    tokens = model.config.d_vocab
    every = np.array(list(itertools.product(range(tokens), repeat=n)))
    words = every[np.sort(rng.permutation(len(every))[:24])]
    used, outputs = 0, model.config.d_vocab_out
    with np.errstate(all="ignore"):
        layer = Layer(read_model(tmp_path / "m"), factors, Work())
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


def test_nothing_is_said_of_words_whose_scores_are_all_far_below_the_greatest(tmp_path: Path) -> None:
    """Scores 0, -689 and -691: of the words without the first token powers are lost, and with these the mean."""
    model = Transformer(TransformerConfig(2, 2, 3, 2, (LayerConfig(1, 1, 0),), readout="last", positional="none"))
    with torch.no_grad():
        for _, weight in model.named_parameters():
            weight.zero_()
        model.parameter("embed.W_E").copy_(torch.tensor([[0.0, 0.0], [-689.0, 1.0], [-691.0, 2.0]]))
        model.parameter("blocks.0.attn.b_Q").fill_(1.0)
        model.parameter("blocks.0.attn.W_K")[0, 0] = 1.0
        model.parameter("blocks.0.attn.W_V")[0, 1] = 1.0
        model.parameter("blocks.0.attn.W_O")[0, 0, 1] = 1.0
        model.parameter("unembed.W_U")[1, 0] = 1.0
    model.save(tmp_path / "m")
    nothing = np.zeros((0, 1)), np.zeros((1, 2)), np.zeros((1, 0))
    layer = Layer(read_model(tmp_path / "m"), Factors(np.eye(2), np.eye(2), *nothing, 2), Work())
    words = np.array(list(itertools.product(range(3), repeat=2)))
    tables = Tables(layer, [np.arange(3), np.arange(3)])
    with np.errstate(all="ignore"):
        found = tables.coordinates(words)
        bounds = tables.logits(found.inner, np.zeros((1, 0))).leads(np.arange(9), np.zeros(9, dtype=int), found.left)
    assert found.good.tolist() == [0 in word for word in words.tolist()]
    with precision(300):
        for word, bound, good in zip(words.tolist(), bounds.tolist(), found.good.tolist(), strict=True):
            exact = lead(exact_logits(model, tuple(word)), 0)
            assert not good or (flint.arb(bound) <= exact and exact - bound < 1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_rounding_of_coordinates_and_logits_is_covered(seed: int, tmp_path: Path) -> None:
    """c as it is calculated against c = (x - mean)P, and without neurons the logits of a point against c D + rest."""
    rng = np.random.default_rng(seed)
    model = random_model(rng, scale=1.0)
    factors = random_factors(rng, model)
    model.save(tmp_path / "m")
    words = np.array(list(itertools.product(range(model.config.d_vocab), repeat=2)))[:30]
    layer = Layer(read_model(tmp_path / "m"), factors, Work())
    tables = Tables(layer, [np.unique(column) for column in words.T])
    found = tables.coordinates(words)
    weights = {name: x.detach().numpy().astype(np.float64) for name, x in model.named_parameters()}
    with precision(300):
        mean, narrow, widen = exact(tables.mean.mid[0]), exact(factors.narrow), exact(factors.widen)
        seen = widen @ exact(weights.get("blocks.0.mlp.W_in", np.zeros((len(factors.narrow), 0))))
        for word, inner in zip(words, found.inner, strict=True):
            off = (exact_stream(model, tuple(word)) - mean) @ narrow - exact(inner)
            squares = [x * x for side in (seen, widen) if off.size for x in off @ side if side.size]
            assert sum(squares, flint.arb(0)) <= flint.arb(tables.rough) ** 2
        if layer.d_mlp:
            return
        used = factors.used
        fixed = found.inner[:1, used:]
        logits = tables.logits(found.inner[:, :used], fixed)
        direct = widen @ exact(weights["unembed.W_U"])
        rest = mean @ exact(weights["unembed.W_U"]) + exact(weights["unembed.b_U"])
        for row, inner in enumerate(found.inner):
            point = exact(np.concatenate([inner[:used], fixed[0]]))
            true = rest + point @ direct if point.size else rest
            for y, w in itertools.permutations(range(len(true)), 2):
                gap = flint.arb(logits.found[row, y]) - flint.arb(logits.found[row, w]) - (true[y] - true[w])
                assert abs(gap) <= flint.arb(logits.slack[row])


@pytest.mark.parametrize("seed", range(40))
def test_products_and_lengths_contain_the_exact_ones(seed: int) -> None:
    """Of matrices anywhere within the stated errors, in rational numbers."""
    rng = np.random.default_rng(seed)
    rows, inner, columns = rng.integers(1, 6, 3)
    work = Work()

    def near(*shape: int) -> tuple[Near, list[list[Fraction]]]:
        mid = rng.normal(size=shape) * 10.0 ** rng.integers(-6, 7, shape)
        err = float(rng.choice([0.0, 1e-9, 1e-2]))
        moved = rng.normal(size=shape)
        moved *= err * 0.999 / max(1e-300, float(np.sqrt(np.square(moved).sum())))
        exact = [
            [Fraction(float(a)) + Fraction(float(b)) for a, b in zip(*pair, strict=True)]
            for pair in zip(mid, moved, strict=True)
        ]
        return Near(mid, err, work), exact

    def product(x: list[list[Fraction]], y: list[list[Fraction]]) -> list[list[Fraction]]:
        return [
            [sum((a * b for a, b in zip(row, column, strict=True)), Fraction(0)) for column in zip(*y, strict=True)]
            for row in x
        ]

    def inside(exact: list[list[Fraction]], found: Near) -> bool:
        pairs = [
            (a, Fraction(float(b)))
            for left, right in zip(exact, found.mid, strict=True)
            for a, b in zip(left, right, strict=False)
        ]
        return sum((a - b) ** 2 for a, b in pairs) <= Fraction(found.err) ** 2

    (x, true_x), (y, true_y), (z, true_z) = near(rows, inner), near(inner, columns), near(1, columns)
    both = product(true_x, true_y)
    assert inside(both, x @ y)
    summed = [[a + b for a, b in zip(row, true_z[0], strict=True)] for row in both]
    assert inside(summed, x @ y + z)
    assert inside([[a - b for a, b in zip(row, true_z[0], strict=True)] for row in both], x @ y - z)
    gram = y @ y.T
    for row, length in zip(product(true_x, true_y), x.lengths(gram), strict=True):
        assert sum(a * a for a in row) <= Fraction(float(length)) ** 2
    for row, length in zip(true_x, x.rows(), strict=True):
        assert sum(a * a for a in row) <= Fraction(float(length)) ** 2
    assert sum(a * a for row in true_x for a in row) <= Fraction(x.norm()) ** 2
